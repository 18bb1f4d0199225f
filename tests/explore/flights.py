"""Flights and back-off as the document cache uses them: callers lead, join and leave, and pause after failures."""

from collections.abc import Hashable
from typing import Any, Final

from asap_core.clock import Instant
from asap_core.flights import BackOff, Crowded, Flight, Flights, Joined, Leading
from tests.explore.explorer import Step

KEYS: Final = ("a", "b")
MAX_FLIGHTS, MAX_WAITERS, FIRST, LONGEST, TICK = 2, 2, 1.0, 2.0, 1.0
Line = tuple[str, bool, int]
"""A key, whether others may join, and how many wait. Callers differ in nothing but their place."""


class FlightsWorld:
    """Beside it stands what is expected: who waits for each flight, in the order in which they came."""

    kind: type[Flights[Any, Any]] = Flights
    pauses: type[BackOff[Any, Any]] = BackOff

    def __init__(self) -> None:
        self.flights: Any = self.kind(max_flights=MAX_FLIGHTS, max_waiters=MAX_WAITERS)
        self.back_off: Any = self.pauses(most=len(KEYS), first=FIRST, longest=LONGEST)
        self.now, self.number = 0.0, 0
        self.waiting: dict[Flight[Any, Any], list[int]] = {}
        self.open: dict[str, Flight[Any, Any]] = {}
        self.over: list[Flight[Any, Any]] = []

    def lines(self) -> dict[Line, Flight[Any, Any]]:
        return {(one.key, self.open.get(one.key) is one, len(line)): one for one, line in self.waiting.items()}

    def inputs(self) -> list[Step]:
        steps: list[Step] = [("tick",), *(("call", key) for key in KEYS), *(("detach", key) for key in self.open)]
        for line in sorted(self.lines()):
            steps += [("done", line), ("failed", line), *(("leave", line, place) for place in range(line[2]))]
        return steps

    def do(self, step: Step) -> None:
        match step:
            case ("tick",):
                self.now += TICK
            case ("call", str(key)):
                self.call(key)
            case ("detach", str(key)):
                self.flights.detach(key)
                del self.open[key]
            case ("leave", line, int(place)):
                self.leave(self.lines()[line], place)  # type: ignore[index]
            case (how, line):
                self.land(self.lines()[line], failed=how == "failed")  # type: ignore[index]

    def call(self, key: str) -> None:
        if (failure := self.back_off.current(key, now=Instant(self.now))) is not None:
            assert 0 < failure.until - self.now <= LONGEST
            return
        self.number += 1
        flight, joined = self.open.get(key), self.flights.join(key, self.number)
        full = len(self.waiting) == MAX_FLIGHTS if flight is None else len(self.waiting[flight]) == MAX_WAITERS
        if full:
            assert joined == Crowded()
        elif flight is not None:
            assert joined == Joined(), "two lead for one key"
            self.waiting[flight].append(self.number)
        else:
            assert joined == Leading(self.number, joined.flight), "nobody leads"
            self.waiting[joined.flight], self.open[key] = [self.number], joined.flight

    def leave(self, flight: Flight[Any, Any], place: int) -> None:
        line = self.waiting[flight]
        leading = self.flights.leave(waiter := line.pop(place))
        assert self.flights.leave(waiter) is None, "who left may leave again, without effect"
        if place and line:
            assert leading is None
            return
        del self.waiting[flight]
        self.over.append(flight)
        joinable = self.open.get(flight.key) is flight
        if line:
            assert leading == Leading(line[0], leading.flight), "the next waiter doesn't lead"
            self.waiting[leading.flight] = line
        if joinable:
            self.open.update({flight.key: leading.flight} if line else {})
            if not line:
                del self.open[flight.key]

    def land(self, flight: Flight[Any, Any], *, failed: bool) -> None:
        assert self.flights.land(flight) == tuple(self.waiting.pop(flight)), "a waiter has no answer, or two"
        self.over.append(flight)
        if self.open.get(flight.key) is flight:
            del self.open[flight.key]
        if failed:
            self.back_off.failed(flight.key, "cause", now=self.now)
        else:
            self.back_off.forget(flight.key)
            assert self.back_off.last(flight.key) is None

    def check(self) -> None:
        assert len(self.flights) == len(self.waiting) <= MAX_FLIGHTS
        assert self.flights.waiting == sum(map(len, self.waiting.values()))
        for flight, line in self.waiting.items():
            assert self.flights.is_live(flight)
            assert all(self.flights.flight_of(waiter) is flight for waiter in line), "a waiter has lost its flight"
        for key in KEYS:
            assert self.flights.flight(key) is self.open.get(key)
        for flight in self.over:
            assert (self.flights.is_live(flight), self.flights.land(flight)) == (False, ()), "a late result is accepted"

    def fingerprint(self) -> Hashable:
        lines = [(one.key, self.open.get(one.key) is one, len(line)) for one, line in self.waiting.items()]
        failures = [(key, self.back_off.last(key)) for key in KEYS]
        pauses = [(key, min(one.in_a_row, 2), max(one.until - self.now, 0)) for key, one in failures if one is not None]
        return tuple(sorted(lines)), tuple(pauses)

    def is_over(self) -> bool:
        return not self.waiting and not len(self.back_off)
