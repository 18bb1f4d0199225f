"""The key ring beside what it promises: when the provider is asked, and how long keys serve."""

from typing import Any

import pytest
from hypothesis import Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from asap_core.auth import keyring
from asap_core.auth.jws import Jws
from asap_core.auth.keyring import FetchKeys, KeyRing, NoFetch
from tests.core.auth.tokens import KEYS, policy, read, token


class RingMachine(RuleBasedStateMachine):
    """The key ring beside what it promises: asked at most once per cool-down, never used too long."""

    ring_class: Any = KeyRing

    def __init__(self) -> None:
        super().__init__()
        self.policy = policy(fresh_for=60, stale_for=120, cool_down=30)
        self.ring = self.ring_class(self.policy)
        self.now, self.asked, self.pending = 0.0, [], []  # type: ignore[var-annotated]
        self.vouched = float("-inf")

    @rule(seconds=st.sampled_from([1, 10, 29, 30, 31, 60, 180]))
    def time_passes(self, seconds) -> None:
        self.now += seconds

    def take(self, found) -> None:
        if isinstance(found, FetchKeys):
            # Whoever joins a question under way asks nobody by that.
            joins = self.ring.waiting > 1
            self.pending.append(found)
            if found.again and not joins:
                # A round that's over may not be asked again within the cool-down, whoever wants it.
                assert all(self.now - before >= 30 for before in self.asked)
                assert self.now - self.vouched >= 30
                self.asked.append(self.now)

    @rule()
    def a_token_comes(self) -> None:
        found = self.ring.due(now=self.now)
        if self.now - self.vouched < 60:
            assert found is None
        if self.now - self.vouched >= 180:
            assert found is not None  # nothing is let in by keys so old
        self.take(found)

    @rule()
    def its_key_is_unknown(self) -> None:
        if self.now - self.vouched < 60:
            waited = bool(self.pending)
            found = self.ring.missing(now=self.now)
            if waited and not isinstance(found, FetchKeys):
                assert not self.ring.waiting
            self.take(found)

    @rule()
    def someone_asks_and_hangs_up(self) -> None:
        self.its_key_is_unknown()
        if self.pending:
            self.ring.abandoned(self.pending.pop(), now=self.now)

    @rule(which=st.integers(0), outcome=st.sampled_from(["fetched", "failed", "abandoned"]))
    def it_is_answered(self, which, outcome) -> None:
        if not self.pending:
            return
        ask = self.pending.pop(which % len(self.pending))
        if outcome == "fetched":
            self.ring.fetched(ask, KEYS, age=0, now=self.now)
            self.vouched = self.now
        else:
            getattr(self.ring, outcome)(ask, now=self.now)

    @invariant()
    def keys_serve_within_their_bound_and_no_longer(self) -> None:
        assert (self.ring.usable(now=self.now) is not None) == (self.now - self.vouched < 180)


def test_the_key_ring_keeps_its_promises() -> None:
    run_state_machine_as_test(RingMachine, settings=settings(max_examples=60, stateful_step_count=30, deadline=None))


class AsksAtOnceAfterAnAnswer(KeyRing):
    def fetched(self, ask, keys, *, age, now) -> None:
        before = self._next_again
        super().fetched(ask, keys, age=age, now=now)
        self._next_again = before


class ForgetsTheCoolDownWhenLeft(KeyRing):
    def abandoned(self, ask, *, now) -> None:
        super().abandoned(ask, now=now)
        self._next_again = keyring._NEVER


class ServesForEver(KeyRing):
    def usable(self, *, now):
        return self.keys


class HasNoCoolDown(KeyRing):
    def missing(self, *, now):
        self._next_again = keyring._NEVER
        return super().missing(now=now)


@pytest.mark.parametrize("mutant", [AsksAtOnceAfterAnAnswer, ForgetsTheCoolDownWhenLeft, ServesForEver, HasNoCoolDown])
def test_a_planted_bug_in_the_ring_is_caught(mutant) -> None:
    # Always the same examples: one of these bugs takes some hundred on average, and no number is enough on a bad day.
    hunt = settings(
        max_examples=5000,
        stateful_step_count=25,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        derandomize=True,
    )
    machine = type("Planted", (RingMachine,), {"ring_class": mutant})
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=hunt)


def test_why_it_is_not_asked_is_told_apart() -> None:
    assert [each.value for each in NoFetch] == ["unknown", "unreachable"]
    assert isinstance(read(token()), Jws)
