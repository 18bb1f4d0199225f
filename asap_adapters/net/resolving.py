"""Resolves names in daemon threads, so that a look-up that hangs delays neither the loop's end nor the process's.

The system's resolver can't be interrupted. asyncio waits for its default threads when the loop ends, and Python for its
threads when the process ends, but neither for daemon threads. Each look-up holds a place until its thread ends, which
bounds their number. Places are shared between domains, so that names that hang leave places for others.
"""

import asyncio
import socket
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from threading import Thread
from typing import Any, Final, Protocol, TypeVar

import anyio
from attrs import define

from asap_core.client.places import PlaceQueue
from asap_core.net.urls import domain_of

# Concurrent threads. One domain alone gets a fifth, as many as asyncio's default executor has on a small machine.
THREADS: Final = 50


K = TypeVar("K", bound=Hashable)


async def wait_for_place(places: PlaceQueue[K], key: K) -> None:
    """Wait until this key is given a place."""
    woken = anyio.Event()
    waiter = places.line_up(key, woken.set)
    try:
        await woken.wait()
    except BaseException:
        places.leave(waiter)
        raise


class Resolver(Protocol):
    """Resolves names. Give one to `AgentClient` to use another than the system's."""

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """Return addresses as text, with scopes, in the order to try them. Raises OSError if there's none."""
        ...


def _nothing() -> None: ...


class SystemResolver:
    """The operating system's resolver: `/etc/hosts`, DNS, or what else is configured. For one event loop."""

    def __init__(self) -> None:
        self._places: PlaceQueue[str] = PlaceQueue(THREADS)

    async def resolve(self, host: str, port: int, *, begins: Callable[[], object] = _nothing) -> Sequence[str]:
        """Resolve a name. Calls `begins` when a thread starts the look-up. Raises OSError, UnicodeError."""
        key, answered = domain_of(host), anyio.Event()
        if not self._places.take(key):
            await wait_for_place(self._places, key)

        def ended() -> None:
            self._places.give_back(key)
            answered.set()

        question = Question(host, port, _waker(), ended)
        try:
            question.begin()
        except BaseException:
            self._places.give_back(key)
            raise
        begins()
        await answered.wait()
        return question.answer()


def _addresses(host: str, port: int) -> Sequence[str]:
    return [str(address[0]) for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


@define(eq=False)
class Question:
    """One look-up. It runs in a thread; the result is delivered in the loop, unless that has ended.

    report: calls a function where the result is waited for.
    ended: called there.
    look_up: returns a name's addresses. It blocks.
    """

    host: str
    port: int
    report: Callable[[Callable[[], object]], object]
    ended: Callable[[], object]
    look_up: Callable[[str, int], Sequence[str]] = _addresses
    addresses: Sequence[str] = ()
    error: BaseException | None = None

    def begin(self) -> None:
        """Start the thread."""
        Thread(target=self._ask, name="asap resolver", daemon=True).start()

    def _ask(self) -> None:
        try:
            self.addresses = self.look_up(self.host, self.port)
        except BaseException as error:  # noqa: BLE001 - raised by `answer`
            self.error = error
        with suppress(RuntimeError):  # the loop has ended: trio.RunFinishedError is one
            self.report(self.ended)

    def answer(self) -> Sequence[str]:
        """Return the addresses. Raises what `look_up` raised: OSError, UnicodeError."""
        if self.error is not None:
            raise self.error
        return self.addresses


def _waker() -> Callable[[Callable[[], object]], Any]:
    """Return a function that runs another one in this loop. It may be called from any thread."""
    if anyio.lowlevel.current_token().backend_class.__module__.endswith("_asyncio"):
        return asyncio.get_running_loop().call_soon_threadsafe
    import trio  # noqa: PLC0415 - may be missing on asyncio

    return trio.lowlevel.current_trio_token().run_sync_soon
