"""The breaker of one host: requests that end in any order, probes, and time."""

from collections.abc import Hashable
from typing import Any, Final

from asap_core.client.breaker import Breaker, BreakerOpen, BreakerPolicy, Breakers, BreakerState, Permit, RequestOutcome
from asap_core.clock import Instant
from tests.explore.explorer import Step

HOST: Final = "https://a.example"
THRESHOLD, REST, TICK, AT_ONCE = 2, 2.0, 1.0, 3
CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


class BreakerWorld:
    """At most `AT_ONCE` requests are under way: each has a permit."""

    kind: type[Breakers] = Breakers

    def __init__(self) -> None:
        self.breakers: Any = self.kind(BreakerPolicy(threshold=THRESHOLD, rest=REST))
        self.now = 0.0
        self.under_way: list[Permit] = []
        self.in_a_row = 0

    def state(self, after: float = 0.0) -> BreakerState:
        return self.breaker().state(now=Instant(self.now + after))

    def breaker(self) -> Breaker:
        found: Breaker | None = self.breakers._breakers.peek(HOST)
        return found or Breaker()

    def inputs(self) -> list[Step]:
        asked: list[Step] = [("ask",)] if len(self.under_way) < AT_ONCE else []
        kinds = sorted({permit.probe for permit in self.under_way})
        return [("tick",), *asked, *((one.value, probe) for one in RequestOutcome for probe in kinds)]

    def do(self, step: Step) -> None:
        before = self.state()
        match step:
            case ("tick",):
                self.now += TICK
                assert before is self.state() or (before, self.state()) == (OPEN, HALF_OPEN)
            case ("ask",):
                self.ask(before)
                assert self.state() is before, "asking changes nothing"
            case (outcome, probe):
                permit = next(permit for permit in self.under_way if permit.probe is probe)
                self.under_way.remove(permit)
                self.give_back(permit, RequestOutcome(outcome), before)

    def ask(self, before: BreakerState) -> None:
        probed = any(permit.probe for permit in self.under_way)
        answer = self.breakers.ask(HOST, now=self.now)
        if isinstance(answer, Permit):
            self.under_way.append(answer)
            assert answer.probe is (before is not CLOSED), "only a probe passes a breaker that isn't closed"
            assert before is CLOSED or (before is HALF_OPEN and not probed), "it lets more than the probe through"
        else:
            assert isinstance(answer, BreakerOpen)
            assert 0 < answer.retry_after <= REST
            assert before is OPEN or (before is HALF_OPEN and probed), "a request that may pass is refused"
            assert self.breaker().state(now=Instant(self.now + answer.retry_after)) is HALF_OPEN, (
                "too early to ask again"
            )

    def give_back(self, permit: Permit, outcome: RequestOutcome, before: BreakerState) -> None:
        self.in_a_row = {RequestOutcome.OK: 0, RequestOutcome.FAILED: self.in_a_row + 1}.get(outcome, self.in_a_row)
        self.breakers.give_back(HOST, permit, outcome, now=self.now)
        opens = outcome is RequestOutcome.FAILED and self.in_a_row >= THRESHOLD
        closes = outcome is RequestOutcome.OK
        assert self.state() is (OPEN if opens else CLOSED if closes else before), f"{outcome} in a row: {self.in_a_row}"
        done = self.fingerprint()
        self.breakers.give_back(HOST, permit, RequestOutcome.FAILED, now=self.now)
        assert self.fingerprint() == done, "a permit counts twice"

    def check(self) -> None:
        assert sum(permit.probe for permit in self.under_way) <= 1, "two probes at once"
        plain = self.state() is CLOSED and not self.in_a_row and not any(permit.probe for permit in self.under_way)
        assert len(self.breakers) == (0 if plain else 1), "stored although it's new, or forgotten although it isn't"

    def fingerprint(self) -> Hashable:
        breaker = self.breaker()
        age = None if breaker._opened is None else min(self.now - breaker._opened, REST)
        permits = sorted(permit.probe for permit in self.under_way)
        return min(self.in_a_row, THRESHOLD), min(breaker._failures, THRESHOLD), age, breaker._probing, tuple(permits)

    def is_over(self) -> bool:
        return not self.under_way and not len(self.breakers)
