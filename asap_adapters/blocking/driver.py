"""Runs the core's programs in the threads that call, several at once.

Rules. One lock is held around each step of a program, and around nothing that waits. Ctrl-C interrupts effects, and
nothing else (`interrupts`). Closing the driver ends them; those on files between two pieces. A run closes its program
on every way out, under the lock, and wakes those who need not wait any longer. There is no event loop, and no thread
but those of name look-ups and of watching the local network.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, BinaryIO, ParamSpec, TypeVar, assert_never

from attrs import field, frozen

from asap_adapters.blocking.connecting import left
from asap_adapters.blocking.http_options import BlockingHttpOptions
from asap_adapters.blocking.interrupts import Closing, Flag, held, interruptible
from asap_adapters.blocking.transport import AnyBlockingTransport, BlockingTransport, fetch, read_body
from asap_adapters.driver import log
from asap_adapters.file_effects import PIECE, open_to_read, remove, unavailable, write
from asap_adapters.system import SystemClock, new_id, new_token, random_fraction
from asap_core.client.connections import Progress
from asap_core.client.programs import (
    Completed,
    Effect,
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
    Unanswered,
    Unavailable,
    Wait,
    WriteFile,
    step,
)
from asap_core.client.runtime import Remark, Runtime
from asap_core.clock import Clock
from asap_core.errors import MdnsUnavailable

if TYPE_CHECKING:
    from asap_adapters.blocking.browsing import BlockingBrowser

P = ParamSpec("P")
T = TypeVar("T")


class BlockingDriver:
    """Runs programs over one transport. Opened and closed by the client that owns it.

    http: how requests are made.
    owner: how its owner is written, for an error message.
    clock: for simulations.
    """

    def __init__(self, http: BlockingHttpOptions, *, owner: str, clock: Clock | None = None) -> None:
        self.runtime = Runtime(SystemClock() if clock is None else clock, new_id, new_token, random_fraction)
        self._http = http
        self._owner = owner
        self._session: _Session | None = None
        self._lock = Lock()
        self._parked: dict[Ticket, Flag] = {}

    @property
    def is_open(self) -> bool:
        """Return whether programs can be run."""
        return self._session is not None

    def open(self) -> None:
        """Prepare for requests. Raises RuntimeError if it's open already."""
        with held(), self._lock:
            if self._session is not None:
                raise RuntimeError("this client is open already")
            transport = self._http.transport or BlockingTransport(self._http, self._http.resolver)
            self._session = _Session(transport, os.getpid())

    def close(self) -> None:
        """Close all connections. Runs of other threads raise RuntimeError. A second call does nothing."""
        with held():
            with self._lock:
                session, self._session = self._session, None
            # In a fork, the connections are the other process's too: it may be using them.
            if session is not None and session.process == os.getpid():
                session.closing.close()
                session.transport.close()

    def run(self, make: Callable[P, Program[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a program, run it, and return its result. Raises what it raises.

        Raises RuntimeError if this isn't open, or is closed before the program ends.
        """
        with held(), ExitStack() as opened:
            session = self._opened()
            sources: dict[LocalNetwork, BlockingBrowser] = {}
            program = self._locked(make, *args, **kwargs)
            try:
                moved = self._locked(step, program)
                while not isinstance(moved, Returned):
                    session.closing.check()
                    outcome = self._perform(moved, session, sources, opened)
                    if isinstance(outcome, Unanswered | Expired):  # perhaps since it was closed
                        session.closing.check()
                    moved = self._locked(step, program, outcome)
            except BaseException:
                self._locked(program.close)
                raise
            return moved.value

    def call(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that uses what programs share, and doesn't wait."""
        with held():
            return self._locked(work, *args, **kwargs)

    def _locked(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        remarks: tuple[Remark, ...] = ()
        try:
            with self._lock:
                try:
                    return work(*args, **kwargs)
                finally:
                    for ticket in self.runtime.take_wakes():
                        if ticket in self._parked:
                            self._parked[ticket].set()
                    for path in self.runtime.take_removals():
                        remove(path)
                    remarks = self.runtime.take_remarks()
        finally:
            log(remarks)  # without the lock: a logging handler may use this client too

    def _opened(self) -> "_Session":
        session = self._session
        if session is None:
            raise RuntimeError(f"this client isn't open; write: with {self._owner} as client: …")
        if session.process != os.getpid():  # two processes would read each other's answers from one connection
            raise RuntimeError("this client was opened in another process; open one in each, after the fork")
        return session

    # --- effects -----------------------------------------------------------------------------------------------------

    def _perform(
        self,
        effect: Effect,
        session: "_Session",
        sources: "dict[LocalNetwork, BlockingBrowser]",
        opened: ExitStack,
    ) -> Outcome:
        match effect:
            case Fetch():
                return fetch(session.transport, effect)
            case Wait(ticket, seconds):
                return self._wait(ticket, seconds, session.closing)
            case Sleep(seconds):
                session.closing.wait(Flag(), seconds)
                return Completed()
            case Next(source, seconds):
                return _next(source, seconds, session.closing, sources, opened)
            case ReadFile():
                return load(effect, session.closing)
            case WriteFile(seconds=seconds):
                return write(effect, partial(_check, Progress(end=_end(seconds)), session.closing))
            case _:
                assert_never(effect)

    def _wait(self, ticket: Ticket, seconds: float | None, closing: Closing) -> Completed | Expired:
        flag = Flag()
        with self._lock:
            self._parked[ticket] = flag
            if ticket.ready:
                flag.set()
        try:
            closing.wait(flag, math.inf if seconds is None else seconds)
        finally:
            with self._lock:
                del self._parked[ticket]
        return Completed() if ticket.ready else Expired()


@frozen(eq=False)
class _Session:
    """What is between `open` and `close`. `process`: the one that opened it."""

    transport: AnyBlockingTransport
    process: int
    closing: Closing = field(factory=Closing)


def _end(seconds: float | None) -> float:
    return math.inf if seconds is None else time.monotonic() + seconds


def _check(progress: Progress, closing: Closing) -> None:
    """Let signals through. Raises TimeoutError if the time is over, RuntimeError if the client was closed."""
    interruptible(left, progress)
    closing.check()


def load(effect: ReadFile, closing: Closing) -> FileRead | Unavailable | Expired:
    """Carry out a `ReadFile`."""
    progress = Progress(end=_end(effect.seconds))
    try:
        file, outcome = open_to_read(effect)
        if file is None:
            return outcome
        with file:
            read_body(effect.reader, _pieces(file, partial(_check, progress, closing)), progress)
    except TimeoutError:
        return Expired()
    except OSError as error:
        return unavailable(error)
    return outcome


def _pieces(file: BinaryIO, check: Callable[[], object]) -> Iterator[bytes]:
    while piece := file.read(PIECE):
        yield piece
        check()


def _next(
    source: LocalNetwork,
    seconds: float | None,
    closing: Closing,
    sources: "dict[LocalNetwork, BlockingBrowser]",
    opened: ExitStack,
) -> Heard | Unavailable | Expired:
    from asap_adapters.blocking.browsing import BlockingBrowser  # noqa: PLC0415 - importing zeroconf takes 80 ms, and few callers need it

    end = _end(seconds)
    try:
        if source not in sources:
            sources[source] = opened.enter_context(BlockingBrowser())
        browser = sources[source]
        with closing.ending(browser.end):
            event = browser.next(end)
    except MdnsUnavailable as error:
        return Unavailable(str(error))
    return Expired() if event is None else Heard(event)
