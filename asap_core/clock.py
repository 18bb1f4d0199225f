"""Time as an argument: two kinds of seconds that a type checker keeps apart, and the clocks that produce them.

Rule 1: only the outermost objects (`Agent`, `AgentClient`) hold a `Clock`. They read it once per input.

Rule 2: everything below takes time as an argument: `at`, a `Moment`, if both clocks matter; `now`, an `Instant`, or
`wall`, a `WallTime`, if one does. So one decision sees one moment, and a test can choose it.

Rule 3: durations are differences of `Instant`. `WallTime` appears only where a document carries a date, since an
operator or NTP may set the wall clock back.
"""

from collections.abc import Callable
from typing import NewType, Protocol

from asap_core.request_values import frozen

Instant = NewType("Instant", float)
"""Seconds on a monotonic clock, whose zero is arbitrary: only differences mean anything."""

WallTime = NewType("WallTime", float)
"""Seconds since the Unix epoch by a wall clock, which may be set forwards or back."""


class Clock(Protocol):
    """Where the outermost objects read time. Both methods return at once and never raise."""

    def monotonic(self) -> Instant:
        """Return seconds on a clock that never goes back."""
        ...

    def wall(self) -> WallTime:
        """Return seconds since the Unix epoch, as far as this machine knows."""
        ...


class FunctionClock:
    """A clock of two functions, such as `FunctionClock(time.monotonic, time.time)`.

    monotonic: returns seconds on a clock that never goes back.
    wall: returns seconds since the Unix epoch.
    """

    __slots__ = ("_monotonic", "_wall")

    def __init__(self, monotonic: Callable[[], float], wall: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._wall = wall

    def monotonic(self) -> Instant:
        """See `Clock`."""
        return Instant(self._monotonic())

    def wall(self) -> WallTime:
        """See `Clock`."""
        return WallTime(self._wall())


@frozen
class Moment:
    """Both clocks, read together."""

    now: Instant
    wall: WallTime

    @classmethod
    def read(cls, clock: Clock) -> "Moment":
        """Read both clocks now."""
        return cls(clock.monotonic(), clock.wall())


class ManualClock:
    """A clock that moves only if `advance` or `step_wall` is called: for tests, simulations and replays of a log.

    >>> clock = ManualClock(wall=1_700_000_000)
    >>> clock.advance(5)
    >>> clock.monotonic(), clock.wall()
    (5.0, 1700000005.0)
    """

    __slots__ = ("_now", "_wall")

    def __init__(self, *, monotonic: float = 0.0, wall: float = 1_750_000_000.0) -> None:
        self._now = Instant(float(monotonic))
        self._wall = WallTime(float(wall))

    def monotonic(self) -> Instant:
        """Return the instant that the clock was last moved to."""
        return self._now

    def wall(self) -> WallTime:
        """Return the wall time that the clock was last moved to."""
        return self._wall

    def advance(self, seconds: float) -> None:
        """Let `seconds` (0 or more) pass on both clocks. Raises ValueError if `seconds` is negative."""
        if seconds < 0:
            raise ValueError(f"time passes forwards only; use step_wall() to set the wall clock back, not {seconds!r}")
        self._now = Instant(self._now + seconds)
        self._wall = WallTime(self._wall + seconds)

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock by `seconds`, forwards or back, as an operator or NTP does. Monotonic time stays."""
        self._wall = WallTime(self._wall + seconds)
