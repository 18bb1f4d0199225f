"""Holds signals back while tables and connections change, lets them through while a thread waits, and ends such waits.

Python runs handlers of signals, Ctrl-C's among them, in the main thread between any two instructions. Inside a step of
a program they would leave a table half changed, or wait for a lock that this thread has. So inside `held`, each signal
that calls a Python function has another handler. It calls that function inside `interruptible` only; elsewhere the
signal waits for the next such call, or for the end of `held`.
"""

import inspect
import signal
import threading

# The functions of `signal` are these, and enums of handlers, which take 15 µs more.
from _signal import getsignal, signal as set_handler  # type: ignore[import-not-found]
from _thread import allocate_lock
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Final, ParamSpec, TypeVar

from attrs import define, field

P = ParamSpec("P")
T = TypeVar("T")

# Those of POSIX's real-time signals aren't used to interrupt programs.
_SIGNALS: Final = tuple(number for number in map(int, signal.valid_signals()) if number < 32)  # noqa: PLR2004
# A lock can't be interrupted on Windows, so the wait for it is cut into pieces there. In seconds.
_LONGEST_WAIT: Final = 0.1 if hasattr(signal, "CTRL_C_EVENT") else threading.TIMEOUT_MAX


@define(eq=False)
class _Hold:
    """The handlers of signals inside one `held`. `before`: those outside it, by signal."""

    outer: "_Hold | None"
    before: dict[int, Callable[[int, FrameType | None], object]] = field(factory=dict)
    open: bool = False
    pending: list[int] = field(factory=list)

    def begin(self) -> None:
        for number in _SIGNALS:
            handler = getsignal(number)
            if callable(handler):
                self.before[number] = handler
                set_handler(number, self.handle)

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.open:
            # If it raises, what that ends isn't interrupted again.
            self.open = False
            self.before[number](number, frame)
            self.open = True
        elif number not in self.pending:
            self.pending.append(number)

    def handle_pending(self) -> None:
        while self.pending:
            self.handle(self.pending.pop(0), inspect.currentframe())

    def end(self) -> None:
        with ExitStack() as rest:  # from its end; all of it, whatever the handlers raise
            rest.callback(self._deliver)
            for number in self.before:
                rest.callback(self._restore, number)

    def _restore(self, number: int) -> None:
        if getsignal(number) == self.handle:  # else a handler has set another
            set_handler(number, self.before[number])

    def _deliver(self) -> None:
        with ExitStack() as rest:
            for number in reversed(self.pending):
                rest.callback(self.before[number], number, inspect.currentframe())


# The innermost, of the main thread.
_hold: _Hold | None = None


@contextmanager
def held() -> Iterator[None]:
    """Hold signals back in the main thread. Does nothing in other threads, in which no handler runs."""
    global _hold  # noqa: PLW0603 - handlers of signals are global too
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    hold = _Hold(_hold)
    try:
        with suppress(ValueError):  # a subinterpreter, which has no handlers
            hold.begin()
        _hold = hold
        yield
    finally:
        _hold = hold.outer
        hold.end()


def interruptible(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Make a call that signals may interrupt. The call must not change shared state. Such calls may nest."""
    hold = _hold
    if hold is None or threading.current_thread() is not threading.main_thread():
        return call(*args, **kwargs)
    outer, hold.open = hold.open, True
    try:
        if hold.pending:
            hold.handle_pending()
        return call(*args, **kwargs)
    finally:
        hold.open = hold.open and outer  # it's False already if a handler has raised


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
        """Wait until it's set, for at most so many seconds. Returns whether it was. Signals interrupt the wait."""
        while not interruptible(self._lock.acquire, timeout=min(max(seconds, 0.0), _LONGEST_WAIT)):
            seconds -= _LONGEST_WAIT
            if seconds <= 0:
                return False
        return True


class Closing:
    """Whether a client was closed, and what ends then in the threads that use it. Any thread may call it."""

    def __init__(self) -> None:
        self.closed = False
        self._lock = threading.Lock()
        self._ends: dict[object, Callable[[], object]] = {}

    def close(self) -> None:
        """Close it, and end all waits, and those that begin later."""
        with self._lock:
            self.closed = True
            for end in self._ends.values():
                end()

    def check(self) -> None:
        """Raise RuntimeError if it was closed."""
        if self.closed:
            raise RuntimeError("this client was closed while the call ran")

    @contextmanager
    def ending(self, end: Callable[[], object]) -> Iterator[None]:
        """Call `end`, in any thread, if it's closed inside `with` or was before. `end` must not wait."""
        key = object()
        with self._lock:
            self._ends[key] = end
            if self.closed:
                end()
        try:
            yield
        finally:
            with self._lock:
                del self._ends[key]

    def wait(self, flag: Flag, seconds: float) -> bool:
        """Wait for a flag, for at most so many seconds. Returns whether it was set. RuntimeError if this is closed."""
        with self.ending(flag.set):
            was_set = flag.wait(seconds)
        self.check()
        return was_set
