"""The key ring beside what it promises: when the provider is asked, and how long keys serve."""

from typing import Any

import pytest
from hypothesis import Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from asap_core.auth import keyring
from asap_core.auth.jwks import KeySet
from asap_core.auth.jws import Jws
from asap_core.auth.keyring import FetchKeys, KeyRing, NoFetch
from tests.core.auth.tokens import KEYS, policy, read, token


def failing(*, times: int = 1, **changes):
    """A ring without keys, asked until the provider has failed so often; and when it may be asked again."""
    ring: Any = KeyRing(policy(**changes))
    now = 0.0
    pauses = []
    for _ in range(times):
        ring.failed(ring.due(now=now), now=now)
        pauses.append(ring._next_refresh - now)
        now = ring._next_refresh
    return ring, pauses


class TestAsking:
    def test_one_caller_fetches_fresh_keys_and_the_others_use_the_old_ones(self) -> None:
        ring: Any = KeyRing(policy(fresh_for=60, stale_for=120, cool_down=30, patience=2))
        ring.fetched(ring.due(now=0.0), KEYS, age=0, now=0.0)
        fetch = ring.due(now=60.0)
        assert (fetch.again, fetch.patience, ring.waiting) == (False, 2.0, 1)
        assert ring.due(now=60.0) is ring.due(now=89.9) is None
        assert isinstance(ring.due(now=90.0), FetchKeys)

    def test_callers_wait_for_the_fetch_if_the_keys_are_too_old(self) -> None:
        ring: Any = KeyRing(policy(fresh_for=60, stale_for=120, cool_down=30))
        ring.fetched(ring.due(now=0.0), KEYS, age=0, now=0.0)
        assert isinstance(ring.due(now=179.0), FetchKeys)
        assert isinstance(ring.due(now=180.0), FetchKeys)
        assert ring.waiting == 2

    def test_a_failure_while_older_keys_serve_is_followed_by_the_cool_down(self) -> None:
        ring: Any = KeyRing(policy(fresh_for=60, stale_for=120, cool_down=30, patience=1))
        ring.fetched(ring.due(now=0.0), KEYS, age=0, now=0.0)
        ring.failed(ring.due(now=60.0), now=65.0)
        assert ring.due(now=94.9) is None
        assert ring.missing(now=94.9) is NoFetch.UNREACHABLE
        assert ring.due(now=95.0).patience == 2.0

    def test_without_keys_pauses_double_up_to_the_cool_down(self) -> None:
        assert failing(times=6, cool_down=10)[1] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
        assert failing(times=7, cool_down=100)[1] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 32.0]
        ring, _ = failing()
        assert ring.due(now=0.9) is NoFetch.UNREACHABLE
        assert isinstance(ring.due(now=1.0), FetchKeys)

    def test_an_older_answer_changes_nothing_and_one_of_the_same_age_counts(self) -> None:
        ring: Any = KeyRing(policy(cool_down=30))
        ring.fetched(ring.due(now=0.0), KEYS, age=0, now=0.0)
        ring.fetched(ring.due(now=300.0), KeySet(()), age=301, now=300.0)
        assert ring.keys is KEYS
        same = KeySet(())
        ring.fetched(ring.due(now=330.0), same, age=330, now=330.0)
        assert ring.keys is same

    def test_the_cool_down_begins_when_the_provider_is_asked_for_a_missing_key(self) -> None:
        ring: Any = KeyRing(policy(cool_down=30))
        ring.fetched(ring.due(now=0.0), KEYS, age=0, now=0.0)
        ring.fetched(ring.missing(now=100.0), KEYS, age=10, now=100.0)
        assert ring.missing(now=129.9) is NoFetch.UNKNOWN
        assert isinstance(ring.missing(now=130.0), FetchKeys)

    def test_an_answer_from_before_the_cool_down_does_not_say_that_there_is_no_such_key(self) -> None:
        ring: Any = KeyRing(policy(cool_down=30))
        ring.fetched(ring.due(now=0.0), KEYS, age=0, now=0.0)
        ring.fetched(ring.missing(now=40.0), KEYS, age=30, now=40.0)
        assert (ring.waiting, ring.missing(now=69.9)) == (0, NoFetch.UNREACHABLE)
        ring.fetched(ring.missing(now=70.0), KEYS, age=29.9, now=70.0)
        assert ring.missing(now=70.0) is NoFetch.UNKNOWN

    def test_a_late_failure_changes_nothing(self) -> None:
        ring: Any = KeyRing(policy())
        first, second = ring.due(now=0.0), ring.due(now=0.0)
        ring.fetched(first, KEYS, age=0, now=0.0)
        ring.failed(second, now=1.0)
        ring.abandoned(second, now=1.0)
        assert (ring.waiting, ring._failures.last(None)) == (0, None)


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
            # A caller that joins a running question makes no request of its own.
            joins = self.ring.waiting > 1
            self.pending.append(found)
            if found.again and not joins:
                # A round that's over may not be asked again within the cool-down, for any caller.
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
    def a_caller_leaves_during_the_fetch(self) -> None:
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


@pytest.mark.planted
@pytest.mark.long
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


def test_reasons_for_no_fetch_are_distinct() -> None:
    assert [each.value for each in NoFetch] == ["unknown", "unreachable"]
    assert isinstance(read(token()), Jws)
