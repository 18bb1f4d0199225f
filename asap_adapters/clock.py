"""The system's clocks. No other module reads them.

Monotonic time is the event loop's, so trio's MockClock, or an asyncio loop with virtual time, drives the whole library.
"""

import asyncio
import time
from collections.abc import Callable

import anyio

from asap_core.clock import Instant, WallTime


class LoopClock:
    """The clock of the running event loop. It may be made before the loop starts.

    The first reading binds it to that loop, since monotonic times of two loops can't be compared.
    """

    __slots__ = ("_loop", "_running", "_time")

    def __init__(self) -> None:
        self._loop: object = None
        self._running: Callable[[], object] = _no_loop
        self._time: Callable[[], float] = anyio.current_time

    def monotonic(self) -> Instant:
        """Return seconds on the running loop's clock. Raises RuntimeError in a second loop, or without one."""
        if self._loop is None:
            self._loop, self._running, self._time = _this_loop()
        try:
            here = self._running() is self._loop
        except RuntimeError:
            here = False
        if not here:
            raise RuntimeError("this object belongs to another event loop; make one for each loop")
        return Instant(self._time())

    def wall(self) -> WallTime:
        """Return seconds since the Unix epoch."""
        return WallTime(time.time())


def _no_loop() -> object:
    return None


def _this_loop() -> tuple[object, Callable[[], object], Callable[[], float]]:
    """Return the running loop, a function that returns the running loop, and the loop's clock.

    They are the backend's own functions, since anyio's take 2 µs.
    """
    token = anyio.lowlevel.current_token()  # raises RuntimeError if no loop is running
    if token.backend_class.__module__.endswith("_asyncio"):
        loop = asyncio.get_running_loop()
        return loop, asyncio.get_running_loop, loop.time
    import trio  # noqa: PLC0415 - on asyncio it needn't be loaded

    return trio.lowlevel.current_trio_token(), trio.lowlevel.current_trio_token, trio.current_time
