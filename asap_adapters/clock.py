"""The system's clocks, read here and nowhere else.

Monotonic time is the event loop's, so that trio's MockClock, or a virtual asyncio loop, drives the whole library.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import anyio

from asap_core.clock import Instant, WallTime


class LoopClock:
    """The clock of whichever event loop runs. Reads nothing until it's asked, so it may be made before the loop.

    The first reading binds it to that loop: monotonic times of two loops can't be compared.
    """

    __slots__ = ("_loop", "_running", "_time")

    def __init__(self) -> None:
        self._loop: Any = None
        self._running: Callable[[], object] = _no_loop
        self._time: Callable[[], float] = anyio.current_time

    def monotonic(self) -> Instant:
        """Seconds on the running loop's clock. Raises RuntimeError in a second loop, and outside of any."""
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
        """Seconds since the epoch."""
        return WallTime(time.time())


def _no_loop() -> object:
    return None


def _this_loop() -> tuple[object, Callable[[], object], Callable[[], float]]:
    """The running loop, what tells which one runs, and its clock: the backend's own, since anyio's ways take 2 µs."""
    token = anyio.lowlevel.current_token()  # raises where none runs
    if token.backend_class.__module__.endswith("_asyncio"):
        loop = asyncio.get_running_loop()
        return loop, asyncio.get_running_loop, loop.time
    import trio  # noqa: PLC0415 - only who runs on trio has it, perhaps

    return trio.lowlevel.current_trio_token(), trio.lowlevel.current_trio_token, trio.current_time
