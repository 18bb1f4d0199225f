"""Time as an argument: two kinds of seconds that a type checker keeps apart, and the clocks that produce them.

Rule of this package: only the outermost objects hold a `Clock`, and they read it once per input. Everything below takes
`now=` (monotonic) and `wall=` (civil) as keyword arguments, so that one decision sees one instant and a test can
choose it.
"""

from typing import NewType, Protocol

Instant = NewType("Instant", float)
"""Seconds on a clock that never steps. Only differences mean anything. Durations, TTLs, back-off and limits use it."""

WallTime = NewType("WallTime", float)
"""Seconds since the Unix epoch, as the civil clock shows them; may step either way. Only for dates in documents."""


class Clock(Protocol):
    """Where the outermost objects read time. Both methods return at once and never raise."""

    def monotonic(self) -> Instant:
        """Seconds on a clock that never goes back."""
        ...

    def wall(self) -> WallTime:
        """Seconds since the Unix epoch, as far as this machine knows."""
        ...


class ManualClock:
    """A clock that stands still until it's told to move: for tests, simulations and replays of a log.

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
        """Return the instant it was last moved to."""
        return self._now

    def wall(self) -> WallTime:
        """Return the wall time it was last moved to."""
        return self._wall

    def advance(self, seconds: float) -> None:
        """Let `seconds` (0 or more) pass on both clocks."""
        if seconds < 0:
            raise ValueError(f"time passes forwards only; use step_wall() to set the wall clock back, not {seconds!r}")
        self._now = Instant(self._now + seconds)
        self._wall = WallTime(self._wall + seconds)

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock forwards or back by `seconds`, as an operator or NTP does; monotonic time stays."""
        self._wall = WallTime(self._wall + seconds)
