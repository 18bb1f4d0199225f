"""Breakers that open after failures in a row, let a probe through, and never stay open for ever."""

from typing import Any

import pytest
from hypothesis import Phase, given, settings, strategies as st

from asap_core.client.breaker import (
    Breaker,
    BreakerOpen,
    BreakerPolicy,
    Breakers,
    BreakerState,
    Permit,
    RequestOutcome,
    request_outcome,
)
from asap_core.errors import Advice, BadReply, NotAllowed, RemoteError, TimedOut, Unreachable


class TestBreaker:
    def failing(self):
        breaker: Any = Breaker()
        for _ in range(5):
            breaker.give_back(breaker.ask(now=0.0), RequestOutcome.FAILED, now=0.0)
        return breaker

    def test_a_breaker_opens_after_failures_in_a_row_only(self) -> None:
        breaker: Any = Breaker()
        for outcome in (
            [RequestOutcome.FAILED] * 4
            + [RequestOutcome.OK]
            + [RequestOutcome.FAILED] * 4
            + [RequestOutcome.ABANDONED] * 9
        ):
            breaker.give_back(breaker.ask(now=0.0), outcome, now=0.0)
        assert breaker.state(now=0.0) is BreakerState.CLOSED
        breaker.give_back(breaker.ask(now=0.0), RequestOutcome.FAILED, now=0.0)
        assert breaker.ask(now=10.0) == BreakerOpen(50.0)

    def test_a_breaker_lets_one_probe_through_after_its_pause(self) -> None:
        breaker = self.failing()
        probe = breaker.ask(now=60.0)
        assert probe.probe
        assert breaker.state(now=60.0) is BreakerState.HALF_OPEN
        assert breaker.ask(now=60.0) == BreakerOpen(1.0)
        breaker.give_back(probe, RequestOutcome.OK, now=61.0)
        assert breaker.state(now=61.0) is BreakerState.CLOSED

    def test_a_failed_probe_opens_the_breaker_again(self) -> None:
        breaker = self.failing()
        breaker.give_back(breaker.ask(now=60.0), RequestOutcome.FAILED, now=61.0)
        assert breaker.ask(now=61.0) == BreakerOpen(60.0)

    def test_a_probe_that_is_abandoned_is_not_lost(self) -> None:
        breaker = self.failing()
        probe = breaker.ask(now=60.0)
        breaker.give_back(probe, RequestOutcome.ABANDONED, now=60.0)
        breaker.give_back(probe, RequestOutcome.FAILED, now=60.0)
        assert isinstance(breaker.ask(now=60.0), Permit)

    def closed_while_probing(self, breakers: Any):
        """Three requests are under way. Two fail, a probe is sent, and then the third succeeds."""
        permits = [breakers.ask("a", now=0.0) for _ in range(3)]
        for permit in permits[:2]:
            breakers.give_back("a", permit, RequestOutcome.FAILED, now=0.0)
        probe = breakers.ask("a", now=60.0)
        breakers.give_back("a", permits[2], RequestOutcome.OK, now=60.0)
        return probe

    def test_a_failed_probe_counts_as_one_failure_if_an_older_request_closed_the_breaker(self) -> None:
        breakers: Any = Breakers(BreakerPolicy(threshold=2))
        breakers.give_back("a", self.closed_while_probing(breakers), RequestOutcome.FAILED, now=60.0)
        assert isinstance(breakers.ask("a", now=60.0), Permit)

    def test_a_host_has_one_probe_at_once_even_if_its_breaker_was_closed_meanwhile(self) -> None:
        breakers: Any = Breakers(BreakerPolicy(threshold=2))
        probe = self.closed_while_probing(breakers)
        for _ in range(2):
            breakers.give_back("a", breakers.ask("a", now=60.0), RequestOutcome.FAILED, now=60.0)
        assert breakers.ask("a", now=120.0) == BreakerOpen(1.0)
        breakers.give_back("a", probe, RequestOutcome.OK, now=120.0)
        assert len(breakers) == 0


THRESHOLD, REST = 2, 60.0
HOSTS = ("https://a", "https://b")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(HOSTS),
        st.sampled_from(["ask", "give", "both", "both"]),
        st.sampled_from([RequestOutcome.FAILED, *RequestOutcome]),
        st.sampled_from([0.0, 0.0, 1.0, 61.0]),
    ),
    min_size=10,
    max_size=40,
)


class Host:
    """A naive reading of what one host's requests came to."""

    def __init__(self) -> None:
        self.failures = 0
        self.opened: float | None = None
        self.out: list[Any] = []

    def asked(self, answer, now: float) -> None:
        probing = any(permit.probe for permit in self.out)
        free = self.opened is None or (now >= self.opened + REST and not probing)
        assert isinstance(answer, Permit) == free
        if isinstance(answer, Permit):
            assert answer.probe == (self.opened is not None)
            self.out.append(answer)
        else:
            assert 0 < answer.retry_after <= REST

    def ended(self, permit, outcome: RequestOutcome, now: float) -> None:
        if outcome is RequestOutcome.OK:
            self.failures, self.opened = 0, None
        elif outcome is RequestOutcome.FAILED:
            self.failures += 1
            if self.failures >= THRESHOLD:
                self.opened = now


def law(kind, phases=tuple(Phase)) -> None:
    """A request is let through, or told when to try again, and never refused for ever."""

    @settings(report_multiple_bugs=False, max_examples=200, phases=phases)
    @given(STEPS)
    def held(taken) -> None:
        breakers, now = kind(BreakerPolicy(threshold=THRESHOLD, rest=REST)), 0.0
        hosts = {name: Host() for name in HOSTS}
        for name, what, outcome, pause in taken:
            now += pause
            host = hosts[name]
            if what != "give":
                host.asked(breakers.ask(name, now=now), now)
            if what != "ask" and host.out:
                permit = host.out.pop()
                breakers.give_back(name, permit, outcome, now=now)
                host.ended(permit, outcome, now)
        for name, host in hosts.items():
            for permit in host.out:
                breakers.give_back(name, permit, RequestOutcome.ABANDONED, now=now)
            assert isinstance(breakers.ask(name, now=now + REST), Permit)
        assert len(breakers) <= sum(1 for host in hosts.values() if host.failures)

    held()


def test_breakers_keep_the_law() -> None:
    law(Breakers)


class OneForAll(Breakers):
    def ask(self, origin: str, *, now):
        return super().ask("all", now=now)

    def give_back(self, origin: str, permit, outcome, *, now) -> None:
        super().give_back("all", permit, outcome, now=now)


class LosesTheProbe(Breakers):
    def give_back(self, origin: str, permit, outcome, *, now) -> None:
        if outcome is not RequestOutcome.ABANDONED:
            super().give_back(origin, permit, outcome, now=now)


class CountsAbandoned(Breakers):
    def give_back(self, origin: str, permit, outcome, *, now) -> None:
        outcome = RequestOutcome.FAILED if outcome is RequestOutcome.ABANDONED else outcome
        super().give_back(origin, permit, outcome, now=now)


class NeverOpens(Breakers):
    def ask(self, origin: str, *, now):
        return Permit(probe=False)


class ForgetsAtOnce(Breakers):
    def give_back(self, origin: str, permit, outcome, *, now) -> None:
        super().give_back(origin, permit, outcome, now=now)
        self._breakers.clear()


@pytest.mark.planted
@pytest.mark.parametrize("mutant", [OneForAll, LosesTheProbe, CountsAbandoned, NeverOpens, ForgetsAtOnce])
def test_a_planted_bug_is_caught(mutant) -> None:
    with pytest.raises(AssertionError):
        law(mutant, (Phase.generate,))


def test_the_number_of_breakers_is_bounded_and_only_failing_hosts_have_one() -> None:
    breakers: Any = Breakers(BreakerPolicy(threshold=1), most=2)
    for host in ("a", "b", "c"):
        breakers.give_back(host, breakers.ask(host, now=0.0), RequestOutcome.FAILED, now=0.0)
    assert len(breakers) == 2
    assert isinstance(breakers.ask("a", now=0.0), Permit)
    assert isinstance(breakers.ask("c", now=0.0), BreakerOpen)
    breakers.give_back("c", breakers.ask("c", now=60.0), RequestOutcome.OK, now=60.0)
    assert len(breakers) == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, RequestOutcome.OK),
        (RemoteError(code=-32603, message="m"), RequestOutcome.OK),
        (RemoteError(code=400, message="m", status=400), RequestOutcome.OK),
        (RemoteError(code=429, message="m", status=429), RequestOutcome.OK),
        (RemoteError(code=503, message="m", status=503), RequestOutcome.OK),
        (RemoteError(code=503, message="m", status=503, own=False), RequestOutcome.FAILED),
        (RemoteError(code=404, message="m", status=404, own=False), RequestOutcome.ABANDONED),
        (Unreachable("u", "down"), RequestOutcome.FAILED),
        (TimedOut("u", "slow"), RequestOutcome.FAILED),
        (Unreachable("u", "no connection to spare", sent=False, crowded=True), RequestOutcome.ABANDONED),
        (BadReply("u", "html", 502), RequestOutcome.FAILED),
        # What one odd message may bring about says nothing of the host.
        (RemoteError(code=500, message="m", status=500), RequestOutcome.ABANDONED),
        (BadReply("u", "html", 200), RequestOutcome.ABANDONED),
        (BadReply("u", "a filter's page", 403), RequestOutcome.ABANDONED),
        (BadReply("u", "too large"), RequestOutcome.ABANDONED),
        (NotAllowed("u", "inside", Advice("allow it")), RequestOutcome.ABANDONED),
        (KeyboardInterrupt(), RequestOutcome.ABANDONED),
    ],
)
def test_an_error_decides_the_outcome_for_the_host(error, outcome) -> None:
    assert request_outcome(error) is outcome
