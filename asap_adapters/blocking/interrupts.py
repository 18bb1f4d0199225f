"""Holds Ctrl-C back while tables and connections change, and lets it through while a thread waits.

Python runs the handler of SIGINT in the main thread, between any two instructions. Inside a step of a program that
would leave a table half changed. So the main thread has another handler while it's inside `held`. That handler calls
the one before, KeyboardInterrupt as a rule, only inside `interruptible`; elsewhere it waits for the next such call, or
for the end of `held`.
"""

import inspect
import signal
import threading
from _thread import allocate_lock
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final, ParamSpec, TypeVar

from attrs import define

P = ParamSpec("P")
T = TypeVar("T")

# A lock can't be interrupted on Windows, so the wait for it is cut into pieces there. In seconds.
_LONGEST_WAIT: Final = 0.1 if hasattr(signal, "CTRL_C_EVENT") else threading.TIMEOUT_MAX


@define(eq=False)
class _Hold:
    """The handler of SIGINT inside one `held`."""

    before: Callable[[int, FrameType | None], object]
    outer: "_Hold | None"
    open: bool = False
    pending: bool = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        if not self.open:
            self.pending = True
            return
        # What ends the wait isn't interrupted again.
        self.open = self.pending = False
        self.before(number, frame)
        self.open = True


# The innermost, of the main thread.
_hold: _Hold | None = None


@contextmanager
def held() -> Iterator[None]:
    """Hold Ctrl-C back in the main thread. Does nothing in other threads, or if Ctrl-C calls no Python function."""
    global _hold  # noqa: PLW0603 - handlers of signals are global too
    handler = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    hold = _Hold(handler, _hold) if callable(handler) else None
    if hold is None or not _handles(hold):
        yield
        return
    _hold = hold
    try:
        yield
    finally:
        _hold = hold.outer
        if signal.getsignal(signal.SIGINT) == hold.handle:  # else a handler before has changed it
            signal.signal(signal.SIGINT, hold.before)
        if hold.pending:
            hold.before(signal.SIGINT, inspect.currentframe())


def _handles(hold: _Hold) -> bool:
    try:
        signal.signal(signal.SIGINT, hold.handle)
    except ValueError:  # a subinterpreter
        return False
    return True


def interruptible(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Make a call that Ctrl-C may interrupt, and that changes nothing which must stay whole."""
    hold = _hold
    if hold is None or threading.current_thread() is not threading.main_thread():
        return call(*args, **kwargs)
    hold.open = True
    try:
        if hold.pending:
            hold.handle(signal.SIGINT, inspect.currentframe())
        return call(*args, **kwargs)
    finally:
        hold.open = False


class Flag:
    """An event that one thread waits for. Any thread may set it, more than once."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._lock.acquire()

    def set(self) -> None:
        """End the wait, or the next one."""
        with suppress(RuntimeError):  # it's set already
            self._lock.release()

    def wait(self, seconds: float) -> bool:
        """Wait until it's set, for at most so many seconds. Returns whether it was. Ctrl-C interrupts the wait."""
        while not interruptible(self._lock.acquire, timeout=min(max(seconds, 0.0), _LONGEST_WAIT)):
            seconds -= _LONGEST_WAIT
            if seconds <= 0:
                return False
        return True
