"""The system's clocks, read here and nowhere else.

Monotonic time is the event loop's, so that trio's MockClock, or a virtual asyncio loop, drives the whole library.
"""

import time

import anyio

from asap_core.clock import Instant, WallTime

__all__ = ["LoopClock"]


class LoopClock:
    """The clock of whichever event loop runs. Reads nothing until it's asked, so it may be made before the loop.

    The first reading binds it to that loop: monotonic times of two loops can't be compared.
    """

    __slots__ = ("_loop",)

    def __init__(self) -> None:
        self._loop: object = None

    def monotonic(self) -> Instant:
        """Seconds on the running loop's clock. Raises RuntimeError in a second loop."""
        token = anyio.lowlevel.current_token()
        if self._loop is None:
            self._loop = token
        elif self._loop is not token and self._loop != token:
            raise RuntimeError("this object belongs to another event loop; make one for each loop")
        return Instant(anyio.current_time())

    def wall(self) -> WallTime:
        """Seconds since the epoch."""
        return WallTime(time.time())
