"""Moments made of plain numbers."""

from asap_core.clock import Instant, Moment, WallTime


def moment(now: float, wall: float) -> Moment:
    return Moment(Instant(now), WallTime(wall))
