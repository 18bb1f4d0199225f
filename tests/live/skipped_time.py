"""Time that a test stops, or skips: real sockets and processes, and yet exact times on a machine of any speed."""

import asyncio
import math
import selectors
import time
from typing import Any

import trio.testing

# Seconds in which what has been sent may arrive, before a wait is skipped.
_ARRIVES = 0.02


class _Selector(selectors.DefaultSelector):
    """The one of asyncio's loop, and its clock."""

    def __init__(self) -> None:
        super().__init__()
        self.stopped_at: float | None = None
        self.skips = False
        self.ahead = 0.0

    def now(self) -> float:
        return (time.monotonic() if self.stopped_at is None else self.stopped_at) + self.ahead

    def select(self, timeout: float | None = None) -> Any:
        if self.stopped_at is None or timeout is None or timeout <= 0:
            return super().select(timeout)
        ready = super().select(_ARRIVES)
        if not ready and self.skips:
            self.ahead += timeout
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.selector = _Selector()
        super().__init__(self.selector)

    def time(self) -> float:
        return self.selector.now()


def backend(name: str) -> Any:
    """What the fixture `anyio_backend` returns for tests that call these functions. Time passes at first."""
    if name == "trio":
        return "trio", {"clock": trio.testing.MockClock(rate=1.0)}
    return "asyncio", {"loop_factory": _Loop}


def stop_time() -> None:
    """From here on nothing takes any time, and so nothing times out, however slow the machine is."""
    _set(passes=False, skips=False)


def skip_time() -> None:
    """From here on waits are over at once, and the loop's clock says how long they would have taken."""
    _set(passes=False, skips=True)


def let_time_pass() -> None:
    """From here on it's the real one again."""
    _set(passes=True, skips=False)


def _set(*, passes: bool, skips: bool) -> None:
    try:
        loop: Any = asyncio.get_running_loop()
    except RuntimeError:
        clock: Any = trio.lowlevel.current_clock()
        clock.rate = 1.0 if passes else 0.0
        clock.autojump_threshold = _ARRIVES if skips else math.inf
        return
    ours: _Selector = loop.selector
    now = ours.now()
    ours.stopped_at = None if passes else now - ours.ahead
    ours.skips = skips
    ours.ahead += now - ours.now()
