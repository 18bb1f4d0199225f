"""Coalescing: one flight for all callers, handed over if its leader leaves, ended if no caller waits."""

from typing import Any

import pytest
from hypothesis import Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from asap_core.flights import (
    MAX_FLIGHTS as MAX_FLIGHTS_AT_ONCE,
    MAX_WAITERS as MAX_WAITERS_AT_ONCE,
    BackOff,
    Crowded,
    Flight,
    Flights,
    Joined,
    Leading,
    doubled,
)


class TestCoalescing:
    def test_the_first_leads_and_the_others_join(self) -> None:
        flights: Any = Flights()
        leading = flights.join("k", 1)
        assert isinstance(leading, Leading)
        assert flights.join("k", 2) == Joined()
        assert list(flights) == ["k"]
        assert flights.land(leading.flight) == (1, 2)
        assert (len(flights), flights.waiting) == (0, 0)

    def test_a_late_result_is_refused(self) -> None:
        flights: Any = Flights()
        flight = flights.join("k", 1).flight
        assert flights.land(flight) == (1,)
        assert flights.land(flight) == ()
        assert flights.land(Flight("k", 1)) == ()

    def test_another_waiter_leads_after_a_leader_that_leaves_whose_result_is_late(self) -> None:
        flights: Any = Flights()
        first = flights.join("k", 1).flight
        flights.join("k", 2)
        flights.join("k", 3)
        second: Any = flights.leave(1)
        assert (second.waiter, flights.land(first)) == (2, ())
        assert flights.land(second.flight) == (2, 3)

    def test_a_flight_ends_with_its_last_waiter(self) -> None:
        flights: Any = Flights()
        flights.join("k", 1)
        flights.join("k", 2)
        assert flights.leave(2) is None
        assert flights.leave(1) is None
        assert flights.leave(1) is None
        assert (len(flights), flights.flight("k")) == (0, None)

    def test_a_caller_after_detach_starts_a_new_flight(self) -> None:
        flights: Any = Flights()
        first = flights.join("k", 1).flight
        flights.join("k", 2)
        flights.detach("k")
        flights.detach("k")
        flights.detach("nothing")
        assert flights.flight("k") is None
        second = flights.join("k", 3).flight
        assert (len(flights), flights.is_live(first), flights.is_live(second)) == (2, True, True)
        successor = flights.leave(1).flight
        assert (flights.is_live(first), flights.flight("k")) == (False, second)
        assert flights.land(successor) == (2,)
        assert flights.land(second) == (3,)
        assert (len(flights), flights.waiting) == (0, 0)

    def test_a_waiter_waits_for_one_flight_only(self) -> None:
        flights: Any = Flights()
        flights.join("k", 1)
        with pytest.raises(ValueError, match="waits already"):
            flights.join("other", 1)

    def test_the_numbers_of_flights_and_waiters_are_bounded(self) -> None:
        flights: Any = Flights(max_flights=1, max_waiters=2)
        flights.join("k", 1)
        assert flights.join("other", 2) == Crowded()
        flights.join("k", 3)
        assert flights.join("k", 4) == Crowded()
        flights.detach("k")
        assert flights.join("k", 5) == Crowded()
        assert (MAX_FLIGHTS_AT_ONCE, MAX_WAITERS_AT_ONCE) == (1_024, 100_000)


MAX_FLIGHTS, MAX_WAITERS = 2, 3
KEYS = st.sampled_from(["a", "b", "c"])


class CoalescingLaws(RuleBasedStateMachine):
    """Beside a naive model: of each key, who waits, in order of coming. The first of them leads.

    A line is of a key and of how often that was detached before: (key, number).
    """

    kind = Flights

    def __init__(self) -> None:
        super().__init__()
        self.flights: Any = self.kind(max_flights=MAX_FLIGHTS, max_waiters=MAX_WAITERS)
        self.number = 0
        self.detached = dict.fromkeys("abc", 0)
        self.lines: dict[Any, list[int]] = {}
        # The flight that the first of each line carries, as it was told.
        self.carried: dict[Any, Any] = {}
        self.over: list[Any] = []
        self.ended: list[int] = []

    def told_to_lead(self, name, leading) -> None:
        assert isinstance(leading, Leading), "nobody leads"
        assert leading == Leading(self.lines[name][0], leading.flight), "somebody else leads than the first in line"
        assert leading.flight not in self.over
        assert leading.flight not in self.carried.values()
        self.carried[name] = leading.flight

    @rule(key=KEYS)
    def join(self, key: str) -> None:
        self.number += 1
        joined = self.flights.join(key, self.number)
        name = key, self.detached[key]
        line = self.lines.get(name)
        if len(self.lines) == MAX_FLIGHTS if line is None else len(line) == MAX_WAITERS:
            assert joined == Crowded()
            return
        self.lines.setdefault(name, []).append(self.number)
        if line is None:
            self.told_to_lead(name, joined)
        else:
            assert joined == Joined()

    @rule(key=KEYS)
    def detach(self, key: str) -> None:
        self.flights.detach(key)
        self.detached[key] += 1

    @precondition(lambda self: self.lines)
    @rule(data=st.data())
    def no_waiter_waits_twice(self, data) -> None:
        key = data.draw(st.sampled_from(sorted(self.lines)))
        with pytest.raises(ValueError, match="waits already"):
            self.flights.join(data.draw(KEYS), data.draw(st.sampled_from(self.lines[key])))

    @precondition(lambda self: self.lines)
    @rule(data=st.data())
    def land(self, data) -> None:
        key = data.draw(st.sampled_from(sorted(self.lines)))
        assert self.flights.land(self.carried[key]) == tuple(self.lines[key])
        self.ended += self.lines.pop(key)
        self.over.append(self.carried.pop(key))

    @precondition(lambda self: self.over)
    @rule(data=st.data())
    def a_late_result_is_refused(self, data) -> None:
        flight = data.draw(st.sampled_from(self.over))
        assert not self.flights.is_live(flight)
        assert self.flights.land(flight) == ()

    @precondition(lambda self: self.lines)
    @rule(data=st.data())
    def leave(self, data) -> None:
        key = data.draw(st.sampled_from(sorted(self.lines)))
        line = self.lines[key]
        waiter = data.draw(st.sampled_from(line))
        led = waiter == line[0]
        line.remove(waiter)
        self.ended.append(waiter)
        leading = self.flights.leave(waiter)
        if led:
            self.over.append(self.carried[key])
        if not line:
            del self.lines[key], self.carried[key]
        if led and line:
            self.told_to_lead(key, leading)
        else:
            assert leading is None

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def leaving_after_the_end_changes_nothing(self, data) -> None:
        assert self.flights.leave(data.draw(st.sampled_from(self.ended))) is None

    @invariant()
    def each_key_has_the_flight_of_its_first_waiter(self) -> None:
        for key, number in self.detached.items():
            assert self.flights.flight(key) is self.carried.get((key, number))
        assert all(self.flights.is_live(flight) for flight in self.carried.values())
        assert len(self.flights) == len(self.lines) <= MAX_FLIGHTS

    @invariant()
    def exactly_the_waiters_have_a_flight(self) -> None:
        waiting = {waiter: self.carried[key] for key, line in self.lines.items() for waiter in line}
        assert self.flights.waiting == len(waiting)
        assert all(self.flights.flight_of(waiter) is flight for waiter, flight in waiting.items())
        assert all(self.flights.flight_of(waiter) is None for waiter in self.ended)
        assert len(waiting) == len(waiting.keys() - set(self.ended)), "somebody ended twice"


class TwoFlights(Flights[Any, Any]):
    def join(self, key, waiter):
        self._flights.pop(key, None)
        return super().join(key, waiter)


class HandsOverTheSameFlight(Flights[Any, Any]):
    def _hand_over(self, flight):
        flight.leader = next(iter(flight.waiters))
        return Leading(flight.leader, flight)


class HandsOverToNoWaiter(Flights[Any, Any]):
    def _hand_over(self, flight):
        super()._hand_over(flight)


class HandsOverToTheLast(Flights[Any, Any]):
    def _hand_over(self, flight):
        last = next(reversed(flight.waiters))
        flight.waiters = {last: None, **flight.waiters}
        return super()._hand_over(flight)


class LosesTheNewLeader(Flights[Any, Any]):
    def _hand_over(self, flight):
        leading = super()._hand_over(flight)
        for waiter in leading.flight.waiters:
            self._by_waiter[waiter] = flight
        return leading


class KeepsFlightsWithoutWaiters(Flights[Any, Any]):
    def leave(self, waiter):
        flight = self._by_waiter.get(waiter)
        leading = super().leave(waiter)
        if flight is not None and not flight.waiters:
            self._flights[flight.key] = flight
        return leading


class AcceptsLateResults(Flights[Any, Any]):
    def is_live(self, flight) -> bool:
        return flight.key in self._flights


class AnswersTheLeaderOnly(Flights[Any, Any]):
    def land(self, flight):
        return super().land(flight)[:1]


class KeepsWaiters(Flights[Any, Any]):
    def land(self, flight):
        kept = dict(self._by_waiter)
        waiters = super().land(flight)
        self._by_waiter = kept
        return waiters


class LetsOthersJoinWhatIsDetached(Flights[Any, Any]):
    def detach(self, key) -> None:
        pass


class DropsWhatIsDetached(Flights[Any, Any]):
    def detach(self, key) -> None:
        super().detach(key)
        self._detached.clear()


class AttachesAgainOnHandOver(Flights[Any, Any]):
    def _hand_over(self, flight):
        leading = super()._hand_over(flight)
        self._detached.discard(leading.flight)
        self._flights[flight.key] = leading.flight
        return leading


class Unbounded(Flights[Any, Any]):
    def __init__(self, **_bounds) -> None:
        super().__init__()


LAWS = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_coalescing_keeps_its_laws() -> None:
    run_state_machine_as_test(CoalescingLaws, settings=LAWS)


@pytest.mark.planted
@pytest.mark.long
@pytest.mark.parametrize(
    "mutant",
    [
        TwoFlights,
        HandsOverTheSameFlight,
        HandsOverToNoWaiter,
        HandsOverToTheLast,
        LosesTheNewLeader,
        KeepsFlightsWithoutWaiters,
        AcceptsLateResults,
        AnswersTheLeaderOnly,
        KeepsWaiters,
        LetsOthersJoinWhatIsDetached,
        DropsWhatIsDetached,
        AttachesAgainOnHandOver,
        Unbounded,
    ],
)
def test_broken_coalescing_is_caught(mutant) -> None:
    hunt = settings(LAWS, max_examples=1000, phases=[Phase.generate], derandomize=True, database=None)
    machine = type("Machine", (CoalescingLaws,), {"kind": mutant})
    with pytest.raises((AssertionError, BaseExceptionGroup, KeyError, ValueError)):
        run_state_machine_as_test(machine, settings=hunt)


class TestBackOff:
    def test_pauses_double_up_to_the_longest(self) -> None:
        back_off: Any = BackOff(most=9, first=2.0, longest=15.0)
        pauses = [back_off.failed("k", "cause", now=100.0).until - 100.0 for _ in range(6)]
        assert pauses == [2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
        last = back_off.last("k")
        assert (last.cause, last.since, last.in_a_row) == ("cause", 100.0, 6)

    def test_pauses_last_from_a_second_to_half_a_minute_by_default(self) -> None:
        back_off: Any = BackOff(most=1)
        assert [back_off.failed("k", None, now=0.0).until for _ in range(7)] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 32.0]

    def test_a_key_is_not_tried_before_its_pause_ends(self) -> None:
        back_off: Any = BackOff(most=9)
        failure = back_off.failed("k", None, now=5.0)
        assert back_off.current("k", now=5.9) is failure
        assert back_off.current("k", now=6.0) is None
        assert back_off.last("k") is failure
        assert back_off.current("other", now=5.0) is back_off.last("other") is None

    def test_success_resets_the_pause(self) -> None:
        back_off: Any = BackOff(most=9)
        back_off.failed("k", None, now=0.0)
        back_off.failed("k", None, now=0.0)
        back_off.forget("k")
        back_off.forget("never failed")
        assert (len(back_off), back_off.last("k")) == (0, None)
        assert back_off.failed("k", None, now=0.0).in_a_row == 1

    @pytest.mark.parametrize(("asked", "pause"), [(None, 4.0), (0.0, 4.0), (3.0, 4.0), (7.0, 7.0), (86_400.0, 10.0)])
    def test_a_server_may_ask_for_more_within_the_longest(self, asked, pause) -> None:
        back_off: Any = BackOff(most=9, first=4.0, longest=10.0)
        assert back_off.failed("k", None, now=1.0, retry_after=asked).until == 1.0 + pause

    def test_jitter_spreads_by_a_tenth(self) -> None:
        back_off: Any = BackOff(most=9, first=10.0, longest=10.0)
        assert back_off.failed("k", None, now=0.0, jitter=0.5).until == pytest.approx(10.5)

    def test_the_table_is_bounded_and_forgets_the_oldest_failure(self) -> None:
        back_off: Any = BackOff(most=2)
        for key in ("a", "b", "a", "c"):
            back_off.failed(key, None, now=0.0)
        assert (list(back_off), len(back_off)) == (["a", "c"], 2)

    def test_doubling_never_overflows(self) -> None:
        assert doubled(1.0, 100_000, most=1e300) == 2.0**20
        assert (doubled(3.0, 0, most=9.0), doubled(3.0, 1, most=9.0), doubled(3.0, 2, most=9.0)) == (3.0, 6.0, 9.0)
