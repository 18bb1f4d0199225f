"""Runs the core's programs on trio and asyncio: carries out their effects, in the task of the caller."""

import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack
from typing import Final, ParamSpec, Self, TypeVar, assert_never

import anyio
import anyio.lowlevel

from asap_adapters.file_effects import PIECE, open_to_read, remove, unavailable, write
from asap_adapters.files import FileThreads
from asap_adapters.net.outbound_transport import AnyTransport, HttpOptions, OutboundTransport, fetch
from asap_adapters.system import LoopClock, new_id, new_token, random_fraction
from asap_core.client.programs import (
    Completed,
    Expired,
    Fetch,
    FileRead,
    Heard,
    LocalNetwork,
    Next,
    Outcome,
    Program,
    ReadFile,
    Returned,
    Sleep,
    Ticket,
    Unavailable,
    Wait,
    WriteFile,
    step,
)
from asap_core.client.runtime import Remark, Runtime
from asap_core.clock import Clock
from asap_core.errors import MdnsUnavailable
from asap_core.mdns.dnssd import Event

P = ParamSpec("P")
T = TypeVar("T")

_LEVELS: Final = {"info": logging.INFO, "warning": logging.WARNING}


class ProgramDriver:
    """Runs programs over one transport. Opened and closed by the client or authenticator that owns it.

    http: how requests are made.
    owner: how its owner is written, for an error message.
    clock: for simulations.
    """

    def __init__(self, http: HttpOptions, *, owner: str, clock: Clock | None = None) -> None:
        self.runtime = Runtime(LoopClock() if clock is None else clock, new_id, new_token, random_fraction)
        self._http = http
        self._owner = owner
        self._transport: AnyTransport | None = None
        self._parked: dict[Ticket, anyio.Event] = {}
        self._files = FileThreads()
        # Threads of their own, since the disk of one may hang.
        self._private_files = FileThreads()

    @property
    def is_open(self) -> bool:
        """Return whether programs can be run."""
        return self._transport is not None

    def open(self) -> None:
        """Prepare for requests. Raises RuntimeError if it's open already, OSError if certificates are unreadable."""
        if self._transport is not None:
            raise RuntimeError("this client is open already")
        self._transport = self._http.transport or OutboundTransport(self._http)

    async def aclose(self) -> None:
        """Close all connections. Any task may call it; a second call does nothing."""
        transport, self._transport = self._transport, None
        if transport is not None:
            with anyio.CancelScope(shield=True):
                await transport.aclose()

    async def run(self, program: Program[T], *, checkpoint: bool = True) -> T:
        """Run a program and return its result. Raises what the program raises; RuntimeError if it isn't open.

        checkpoint: whether other tasks run even if the program needs no effect.
        """
        outcome: Outcome | None = None
        sources: _Sources | None = None
        try:
            self.opened()
            while not isinstance(moved := step(program, outcome), Returned):
                self.settle()
                if isinstance(moved, Wait):
                    # Not by `_perform`: thousands may wait, and each would keep one more coroutine.
                    outcome = await self._wait(moved.ticket, moved.seconds)
                elif isinstance(moved, Next):
                    sources = sources or _Sources()
                    outcome = await sources.next(moved.source, moved.seconds)
                else:
                    outcome = await self._perform(moved)
            if checkpoint and outcome is None:
                await anyio.lowlevel.checkpoint()
            return moved.value
        finally:
            try:
                program.close()
                self.settle()
            finally:  # even if a logging handler raises
                if sources is not None:
                    with anyio.CancelScope(shield=True):
                        await sources.aclose()

    def call(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that changes what programs share, and doesn't wait."""
        try:
            return work(*args, **kwargs)
        finally:
            self.settle()

    def settle(self) -> None:
        """Wake programs whose tickets are ready, remove files, and write log messages."""
        if self.runtime.is_quiet:
            return
        for ticket in self.runtime.take_wakes():
            if ticket in self._parked:
                self._parked[ticket].set()
        for path in self.runtime.take_removals():
            remove(path)
        log(self.runtime.take_remarks())

    def opened(self) -> AnyTransport:
        """Return the transport. Raises RuntimeError if it isn't open."""
        if self._transport is None:
            raise RuntimeError(f"this client isn't open; write: async with {self._owner} as client: …")
        return self._transport

    # --- effects -----------------------------------------------------------------------------------------------------

    async def _perform(self, effect: Fetch | Sleep | ReadFile | WriteFile) -> Outcome:
        match effect:
            case Fetch():
                return await fetch(self.opened(), effect)
            case Sleep(seconds):
                await anyio.sleep(seconds)
                return Completed()
            case ReadFile(seconds=seconds):
                with anyio.move_on_after(seconds):
                    return await self._load(effect)
            case WriteFile(seconds=seconds):
                with anyio.move_on_after(seconds):
                    # An abandoned thread ends by itself, with a complete file or none.
                    return await self._private_files.run(write, effect, abandon_on_cancel=True)
            case _:
                assert_never(effect)
        return Expired()

    async def _wait(self, ticket: Ticket, seconds: float | None) -> Completed | Expired:
        event = self._parked[ticket] = anyio.Event()
        try:
            if not ticket.ready and seconds is None:
                await event.wait()
            elif not ticket.ready:
                with anyio.move_on_after(seconds):
                    await event.wait()
        finally:
            del self._parked[ticket]
        return Completed() if ticket.ready else Expired()

    async def _load(self, effect: ReadFile) -> FileRead | Unavailable:
        threads, reader = self._private_files if effect.private else self._files, effect.reader
        try:
            file, outcome = await threads.run(open_to_read, effect)
            if file is None:
                return outcome
            with file:  # nothing was written: closing it doesn't block
                while reader.wants and (piece := await threads.run(file.read, PIECE)):
                    reader.feed(piece)
                    while reader.work():
                        await anyio.lowlevel.checkpoint()
        except OSError as error:
            return unavailable(error)
        reader.end()
        return outcome


class DriverOwner:
    """Opens and closes its driver, by `async with` or `aclose`."""

    _driver: ProgramDriver

    async def __aenter__(self) -> Self:
        """Open it."""
        self._driver.open()
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Close it."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections. Any task may call it; a second call does nothing."""
        await self._driver.aclose()


def log(remarks: Iterable[Remark]) -> None:
    """Log what programs have noted."""
    for remark in remarks:
        logging.getLogger(remark.logger).log(_LEVELS[remark.level], "%s", remark.text)


class _Sources(AsyncExitStack):
    """The sources of `Next` that one run has opened."""

    def __init__(self) -> None:
        super().__init__()
        self._events: dict[LocalNetwork, AsyncIterator[Event]] = {}

    async def next(self, source: LocalNetwork, seconds: float | None) -> Heard | Unavailable | Expired:
        from asap_adapters.mdns.local_network import browse  # noqa: PLC0415 - importing zeroconf takes 80 ms, and few callers need it

        with anyio.move_on_after(seconds):
            try:
                if source not in self._events:
                    self._events[source] = await self.enter_async_context(browse())
                return Heard(await anext(self._events[source]))
            except MdnsUnavailable as error:
                return Unavailable(str(error))
        return Expired()
