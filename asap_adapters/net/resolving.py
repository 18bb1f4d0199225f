"""Names to addresses, in threads of this library's own: a look-up that hangs keeps neither loop nor process waiting.

The system's resolver can't be interrupted. asyncio's default threads are waited for when the loop ends, and Python's
when the process does; daemon threads aren't. Each look-up holds a place until its thread ends, so that their number
is bounded, and shared out so that names that hang leave places for others.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Thread
from typing import Any, Final, Protocol

import anyio
from attrs import define, field

from asap_adapters.net.place_queue import PlaceQueue

# Threads at once. One domain alone gets a fifth of it, as many as asyncio's default executor has on a small machine.
_THREADS: Final = 50


class Resolver(Protocol):
    """Answers what addresses a name has. Give one to `AgentClient` to use another than the system's."""

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """Return addresses as text, scopes included, those to try first in front. Raises OSError if there's none."""
        ...


def _nothing() -> None: ...


class SystemResolver:
    """The operating system's: `/etc/hosts`, DNS, and whatever else it's configured for. One event loop owns it."""

    def __init__(self) -> None:
        self._places: PlaceQueue[str] = PlaceQueue(_THREADS)

    async def resolve(self, host: str, port: int, *, begins: Callable[[], object] = _nothing) -> Sequence[str]:
        """Ask it, calling `begins` when there's a thread to ask in. Raises OSError, UnicodeError."""
        key = _domain(host)
        await self._places.take(key)
        question = _Question(host, port, _waker(), lambda: self._places.give_back(key))
        try:
            Thread(target=question.ask, name="asap resolver", daemon=True).start()
        except BaseException:
            self._places.give_back(key)
            raise
        begins()
        await question.answered.wait()
        if question.error is not None:
            raise question.error
        return question.addresses


@define(eq=False)
class _Question:
    """One look-up: asked in a thread, answered in the loop, if that's still there."""

    host: str
    port: int
    wake: Callable[[Callable[[], object]], object]
    ended: Callable[[], object]
    answered: anyio.Event = field(factory=anyio.Event)
    addresses: Sequence[str] = ()
    error: Exception | None = None

    def ask(self) -> None:
        try:
            answers = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
            self.addresses = [str(address[0]) for *_, address in answers]
        except Exception as error:  # noqa: BLE001 - it's raised where it was asked
            self.error = error
        with suppress(RuntimeError):  # the loop has ended; trio.RunFinishedError is one
            self.wake(self._end)

    def _end(self) -> None:
        self.ended()
        self.answered.set()


def _domain(host: str) -> str:
    """What names that hang together have in common: their last two labels. Whose they are isn't known here."""
    return ".".join(host.rstrip(".").lower().rsplit(".", 2)[-2:])


def _waker() -> Callable[[Callable[[], object]], Any]:
    """What runs a function in this loop, from any thread."""
    if anyio.lowlevel.current_token().backend_class.__module__.endswith("_asyncio"):
        return asyncio.get_running_loop().call_soon_threadsafe
    import trio  # noqa: PLC0415 - only who runs on trio has it, perhaps

    return trio.lowlevel.current_trio_token().run_sync_soon
