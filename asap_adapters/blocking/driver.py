"""Runs the core's programs in the threads that call, several at once.

Rules. One lock is held around each step of a program, and around nothing that waits. Ctrl-C interrupts effects, and
nothing else (`interrupts`). A run closes its program on every way out, under the lock, and wakes those who need not
wait any longer. There is no event loop, and no thread but those of name look-ups and of watching the local network.
"""

import math
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from threading import Lock
from typing import TYPE_CHECKING, ParamSpec, TypeVar, assert_never

import httpx

from asap_adapters.blocking.interrupts import Flag, held, interruptible
from asap_adapters.blocking.transport import fetch
from asap_adapters.driver import log
from asap_adapters.file_effects import read, remove, write
from asap_adapters.system import SystemClock, new_id, new_token, random_fraction
from asap_core.client.programs import (
    Completed,
    Effect,
    Expired,
    Fetch,
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

if TYPE_CHECKING:
    from asap_adapters.blocking.browsing import BlockingBrowser

P = ParamSpec("P")
T = TypeVar("T")


class BlockingDriver:
    """Runs programs over one transport. Opened and closed by the client that owns it.

    connect: makes the transport.
    owner: how its owner is written, for an error message.
    clock: for simulations.
    """

    def __init__(self, connect: Callable[[], httpx.BaseTransport], *, owner: str, clock: Clock | None = None) -> None:
        self.runtime = Runtime(SystemClock() if clock is None else clock, new_id, new_token, random_fraction)
        self._connect = connect
        self._owner = owner
        self._transport: httpx.BaseTransport | None = None
        self._process = 0  # that opened it
        self._lock = Lock()
        self._parked: dict[Ticket, Flag] = {}

    @property
    def is_open(self) -> bool:
        """Return whether programs can be run."""
        return self._transport is not None

    def open(self) -> None:
        """Prepare for requests. Raises RuntimeError if it's open already."""
        with held(), self._lock:
            if self._transport is not None:
                raise RuntimeError("this client is open already")
            self._transport, self._process = self._connect(), os.getpid()

    def close(self) -> None:
        """Close all connections, and end what other threads wait for. A second call does nothing."""
        with held():
            with self._lock:
                transport, self._transport = self._transport, None
                for flag in self._parked.values():
                    flag.set()
            # In a fork, the connections are the other process's too: it may be using them.
            if transport is not None and self._process == os.getpid():
                transport.close()

    def run(self, make: Callable[P, Program[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a program, run it, and return its result. Raises what it raises; RuntimeError if this isn't open."""
        with held(), ExitStack() as opened:
            self._opened()
            sources: dict[LocalNetwork, BlockingBrowser] = {}
            program = self._locked(make, *args, **kwargs)
            try:
                moved = self._locked(step, program)
                while not isinstance(moved, Returned):
                    outcome = self._perform(moved, sources, opened)
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

    def _opened(self) -> httpx.BaseTransport:
        if self._transport is None:
            raise RuntimeError(f"this client isn't open; write: with {self._owner} as client: …")
        if self._process != os.getpid():  # two processes would read each other's answers from one connection
            raise RuntimeError("this client was opened in another process; open one in each, after the fork")
        return self._transport

    # --- effects -----------------------------------------------------------------------------------------------------

    def _perform(self, effect: Effect, sources: "dict[LocalNetwork, BlockingBrowser]", opened: ExitStack) -> Outcome:
        match effect:
            case Fetch():
                return fetch(self._opened(), effect)
            case Wait(ticket, seconds):
                return self._wait(ticket, seconds)
            case Sleep(seconds):
                self._wait(Ticket(), seconds)
                return Completed()
            case Next(source, seconds):
                return _next(source, seconds, sources, opened)
            case ReadFile(seconds=seconds):
                end = _end(seconds)
                return read(effect, lambda: interruptible(time.monotonic) < end)
            case WriteFile(seconds=seconds):
                end = _end(seconds)
                return write(effect, lambda: interruptible(time.monotonic) < end)
            case _:
                assert_never(effect)

    def _wait(self, ticket: Ticket, seconds: float | None) -> Completed | Expired:
        flag = Flag()
        with self._lock:
            self._opened()
            self._parked[ticket] = flag
            if ticket.ready:
                flag.set()
        try:
            flag.wait(math.inf if seconds is None else seconds)
        finally:
            with self._lock:
                del self._parked[ticket]
        if ticket.ready:
            return Completed()
        self._opened()  # it may have been closed meanwhile
        return Expired()


def _end(seconds: float | None) -> float:
    return math.inf if seconds is None else time.monotonic() + seconds


def _next(
    source: LocalNetwork, seconds: float | None, sources: "dict[LocalNetwork, BlockingBrowser]", opened: ExitStack
) -> Heard | Unavailable | Expired:
    from asap_adapters.blocking.browsing import BlockingBrowser  # noqa: PLC0415 - importing zeroconf takes 80 ms, and few callers need it

    end = _end(seconds)
    try:
        if source not in sources:
            sources[source] = opened.enter_context(BlockingBrowser())
        event = sources[source].next(end)
    except MdnsUnavailable as error:
        return Unavailable(str(error))
    return Expired() if event is None else Heard(event)
