"""Schedules: when callers of a decision machine or a program come and go, and how the clocks move meanwhile."""

from collections.abc import Sequence
from typing import Final

from attrs import frozen
from hypothesis import strategies as st


@frozen
class CallerArrives:
    """This caller begins what it wants. It isn't there yet, or has left before."""

    caller: int


@frozen
class CallerLeaves:
    """This caller doesn't want it any longer: its call is cancelled."""

    caller: int


@frozen
class TimePasses:
    """So many seconds pass, on both clocks."""

    seconds: float


@frozen
class WallClockSteps:
    """Somebody sets the wall clock, by so many seconds; back, if they're negative."""

    seconds: float


ScheduleStep = CallerArrives | CallerLeaves | TimePasses | WallClockSteps
Schedule = Sequence[ScheduleStep]

# Shorter and longer than what a client or a server waits for: a back-off, a time-out, a cache's lifetime.
_SECONDS: Final = (0.0, 0.1, 1.0, 5.0, 31.0, 400.0, 100_000.0)
_WALL_SECONDS: Final = (-1.0, 1.0, -40.0, 40.0, -100_000.0, 100_000.0)


def schedules(
    *, callers: int = 4, most: int = 20, seconds: Sequence[float] = _SECONDS, wall: bool = True
) -> st.SearchStrategy[Schedule]:
    """Schedules of so many callers at most. They shrink to few steps of few callers.

    A caller leaves only after it arrived, and may come again. Those who don't leave stay to the end.

    most: how many steps there are at most.
    seconds: of which it's drawn how much time passes at once.
    wall: whether the wall clock is set, too.
    """
    # A number stands for a caller, who comes or goes: so every list of steps is a valid schedule, shrunk ones too.
    turns: st.SearchStrategy[int | ScheduleStep] = st.integers(0, callers - 1)
    passes: st.SearchStrategy[int | ScheduleStep] = st.sampled_from([*seconds]).map(TimePasses)
    sets = st.sampled_from(_WALL_SECONDS).map(WallClockSteps)
    kinds = [turns, turns, turns, turns, passes, *([sets] if wall else [])]
    # By index: `st.one_of` would count a strategy that is listed several times once.
    step = st.integers(0, len(kinds) - 1).flatmap(kinds.__getitem__)
    return st.lists(step, max_size=most).map(_with_callers)


def _with_callers(drawn: Sequence[int | ScheduleStep]) -> Schedule:
    there: set[int] = set()
    steps: list[ScheduleStep] = []
    for each in drawn:
        if not isinstance(each, int):
            steps.append(each)
        elif each in there:
            there.remove(each)
            steps.append(CallerLeaves(each))
        else:
            there.add(each)
            steps.append(CallerArrives(each))
    return tuple(steps)
