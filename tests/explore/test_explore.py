"""Small explorations keep the laws; planted defects break them, and are shown by a short sequence of inputs."""

from typing import Any

import pytest

from asap_core.admission.admission import LocalAdmission
from asap_core.admission.idempotency import Free, IdempotencyTable
from asap_core.client.breaker import Breaker, Breakers, Permit, RequestOutcome
from asap_core.flights import BackOff, Flights, Leading
from asap_core.server import exchange
from asap_core.server.call_context import CallContext
from asap_core.server.outgoing import OutgoingAnswers
from tests.explore.__main__ import DOCS, MACHINES, row
from tests.explore.breakers import BreakerWorld
from tests.explore.exchange import ExchangeWorld
from tests.explore.explorer import Explored, Fault, explore
from tests.explore.flights import FlightsWorld
from tests.explore.retries import RetriesWorld


class Counter:
    """Counts to 3, and back to 0. The defects: what is wrong at which number."""

    def __init__(self, *, raises: int | None = None, trap: int | None = None, hidden: bool = False) -> None:
        self.number, self.raises, self.trap, self.hidden = 0, raises, trap, hidden

    def inputs(self):
        return [] if self.number == self.trap else [("up",), ("reset",)] if self.number < 3 else [("reset",)]

    def do(self, step) -> None:
        self.number = self.number + 1 if step == ("up",) else 0

    def check(self) -> None:
        assert self.number != self.raises, "too far"

    def fingerprint(self):
        return min(self.number, 2) if self.hidden else self.number

    def is_over(self) -> bool:
        return self.number == 0


class TestTheExplorer:
    def test_it_tries_every_input_in_every_state_once(self) -> None:
        assert explore(Counter) == Explored(inputs=2, states=4, transitions=7, depth=3)

    def test_it_shows_the_shortest_sequence_that_breaks_a_law(self) -> None:
        with pytest.raises(Fault, match="after up → up: AssertionError: too far"):
            explore(lambda: Counter(raises=2))

    def test_a_state_without_a_way_to_an_end_is_a_trap(self) -> None:
        with pytest.raises(Fault, match="after up → up → up: there's no way to an end"):
            explore(lambda: Counter(trap=3))
        with pytest.raises(Fault, match="after up: there's no way to an end"):
            explore(Counter, escapes={"reset"})

    def test_a_fingerprint_that_hides_something_is_noticed(self) -> None:
        with pytest.raises(Fault, match="the fingerprint hides something"):
            explore(lambda: Counter(hidden=True))


@pytest.fixture
def two_callers(monkeypatch):
    """Three take some seconds; `python -m tests.explore` has them."""
    monkeypatch.setattr("tests.explore.retries.SLOTS", 2)


@pytest.mark.parametrize("name", [name for name, machine in MACHINES.items() if machine.make is not RetriesWorld])
def test_a_machine_keeps_its_laws_and_the_docs_say_how_much_was_explored(name: str) -> None:
    assert row(name, MACHINES[name].explored()) in DOCS.read_text("utf-8").splitlines()


@pytest.mark.usefixtures("two_callers")
def test_two_callers_with_one_idempotency_key_keep_the_laws() -> None:
    explored = explore(RetriesWorld, escapes={"leaves", "lost", "vanishes"})
    assert explored.states > 50


class LosesTheProbe(Breakers):
    def give_back(self, origin, permit, outcome, *, now) -> None:
        if outcome is not RequestOutcome.ABANDONED:
            super().give_back(origin, permit, outcome, now=now)


class ForgetsTheProbe(Breaker):
    @property
    def pristine(self) -> bool:
        return self._failures == 0 and self._opened is None


class OpensAfterAnyFailedProbe(Breaker):
    def give_back(self, permit, outcome, *, now) -> None:
        probe = permit.probe and not permit.given_back
        super().give_back(permit, outcome, now=now)
        if probe and outcome is RequestOutcome.FAILED:
            self._opened = now


class TwoProbes(Breaker):
    def ask(self, *, now):
        self._probing = False
        return super().ask(now=now)


class CountsPermitsTwice(Breaker):
    def give_back(self, permit, outcome, *, now) -> None:
        super().give_back(Permit(permit.probe), outcome, now=now)


@pytest.mark.planted
class TestBrokenBreakers:
    @pytest.mark.parametrize("mutant", [ForgetsTheProbe, OpensAfterAnyFailedProbe, TwoProbes, CountsPermitsTwice])
    def test_one_is_found(self, mutant, monkeypatch) -> None:
        monkeypatch.setattr("asap_core.client.breaker.Breaker", mutant)
        with pytest.raises(Fault):
            explore(BreakerWorld)

    def test_a_lost_probe_is_found(self) -> None:
        with pytest.raises(Fault):
            explore(type("World", (BreakerWorld,), {"kind": LosesTheProbe}))


class TwoLeaders(Flights[Any, Any]):
    def join(self, key, waiter):
        self._flights.pop(key, None)
        return super().join(key, waiter)


class NobodyLeads(Flights[Any, Any]):
    def _hand_over(self, flight):
        super()._hand_over(flight)


class HandsOverTheSameFlight(Flights[Any, Any]):
    def _hand_over(self, flight):
        flight.leader = next(iter(flight.waiters))
        return Leading(flight.leader, flight)


class DropsWhatIsDetached(Flights[Any, Any]):
    def detach(self, key) -> None:
        super().detach(key)
        self._detached.clear()


class PausesForEver(BackOff[Any, Any]):
    def current(self, key, *, now):
        return self.last(key)


@pytest.mark.planted
class TestBrokenFlights:
    @pytest.mark.parametrize("mutant", [TwoLeaders, NobodyLeads, HandsOverTheSameFlight, DropsWhatIsDetached])
    def test_one_is_found(self, mutant) -> None:
        with pytest.raises(Fault):
            explore(type("World", (FlightsWorld,), {"kind": mutant}))

    def test_a_pause_without_end_is_found(self) -> None:
        with pytest.raises(Fault):
            explore(type("World", (FlightsWorld,), {"pauses": PausesForEver}))


def nothing(*_args, **_options) -> None:
    """Instead of a method."""


@pytest.mark.planted
class TestBrokenExchanges:
    @pytest.mark.parametrize(
        ("owner", "name", "planted", "wrong"),
        [
            (exchange._ExchangeContext, "leave", nothing, "is allowed again"),
            (exchange._ExchangeContext, "release_body", nothing, "active, callers, body, answers are"),
            (exchange.TakeLimit, "_unread", False, "would be read as the next request"),
            (CallContext, "leave", nothing, "is allowed again"),
            (CallContext, "stop_asking", nothing, "active, callers, body, answers are"),
            (CallContext, "end_work", nothing, "active, callers, body, answers are"),
            (OutgoingAnswers, "end", nothing, "active, callers, body, answers are"),
        ],
    )
    def test_one_is_found(self, owner, name, planted, wrong, monkeypatch) -> None:
        monkeypatch.setattr(owner, name, planted)
        with pytest.raises(Fault, match=wrong):
            explore(ExchangeWorld, escapes={"abandon", "lost"})

    @pytest.mark.parametrize(
        ("owner", "name", "planted", "wrong"),
        [
            (LocalAdmission, "_wake", nothing, "it waits for nothing"),
            (LocalAdmission, "let_go", nothing, "waiting calls are miscounted"),
            (LocalAdmission, "give_back", nothing, "it waits for nothing"),
            (IdempotencyTable, "find", lambda *_asked: Free(), "two handlers under one key"),
            (IdempotencyTable, "free", nothing, "it waits for nothing"),
            (CallContext, "stop_waiting", nothing, "waiting calls are miscounted"),
        ],
    )
    @pytest.mark.usefixtures("two_callers")
    def test_a_broken_retry_is_found(self, owner, name, planted, wrong, monkeypatch) -> None:
        monkeypatch.setattr(owner, name, planted)
        with pytest.raises(Fault, match=wrong):
            explore(RetriesWorld, escapes={"leaves", "lost", "vanishes"})
