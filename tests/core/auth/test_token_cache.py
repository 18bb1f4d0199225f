"""Access tokens: fetched once, ahead of their end, never for another scope, and not asked for without end."""

from typing import Any

import pytest
from attrs import evolve
from hypothesis import Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from asap_core.auth import token_cache as tokens_module
from asap_core.auth.token_cache import Issued, NotIssued, TokenCache, TokenFailed, TokenGiven, TokenKey, TokenLead
from asap_core.clock import Moment
from asap_core.errors import NoToken
from asap_core.flights import Flights
from tests.moments import moment

KEY = TokenKey("https://idp.example/token", "me", "read")
ERROR = NoToken("https://idp.example/token", "it is down")


class Kept:
    """Tokens under one key, with both clocks in step."""

    def __init__(self) -> None:
        self.tokens: Any = TokenCache()
        self.asked = 0

    def lookup(self, now: float, *, key=KEY, wall: float | None = None):
        self.asked += 1
        return self.tokens.lookup(key, self.asked, at=moment(now, now if wall is None else wall))

    def settle(self, flight, outcome, now: float, *, jitter: float = 0.0):
        return self.tokens.settle(flight, outcome, at=moment(now, now), jitter=jitter)

    def issue(self, lifetime: float, now: float, *, value: str = "a", key=KEY, jitter: float = 0.0):
        (lead,) = self.lookup(now, key=key)
        (given,) = self.settle(lead.flight, Issued(value, lifetime), now, jitter=jitter)
        return given.token

    def fail(self, now: float, *, key=KEY, retry_after: float | None = None):
        (lead,) = self.lookup(now, key=key)
        return self.settle(lead.flight, NotIssued(ERROR, retry_after), now)


def test_all_waiters_share_one_fetch() -> None:
    kept = Kept()
    (lead,) = kept.lookup(0.0)
    assert lead == TokenLead(1, lead.flight, None)
    assert kept.lookup(0.0) == ()
    assert kept.tokens.waiting == 2
    given = kept.settle(lead.flight, Issued("secret", 3600.0), 0.0)
    assert [effect.waiter for effect in given] == [1, 2]
    assert kept.lookup(3569.0)[0].token.value == "secret"
    assert kept.settle(lead.flight, Issued("late", 1.0), 0.0) == ()
    assert "secret" not in repr(given) + repr(Issued("secret", 1.0)) + repr(kept.tokens)


@pytest.mark.parametrize("other", ["endpoint", "client_id", "scope", "audience", "bound"])
def test_another_key_gets_another_token(other) -> None:
    kept = Kept()
    kept.issue(3600.0, 0.0)
    assert isinstance(kept.lookup(0.0, key=evolve(KEY, **{other: "else"}))[0], TokenLead)


def test_one_caller_renews_a_token_while_the_others_use_the_old_one() -> None:
    kept = Kept()
    kept.issue(100.0, 0.0)
    assert isinstance(kept.lookup(79.9)[0], TokenGiven)
    (lead,) = kept.lookup(80.0)
    # It's not worth a long wait: the old one does.
    assert (type(lead), lead.patience) == (TokenLead, 1.0)
    assert kept.lookup(80.0)[0].token.value == "a"


def test_a_token_ends_on_the_clock_that_is_first() -> None:
    for now, wall in ((100.0, 50.0), (50.0, 100.0)):
        kept = Kept()
        kept.issue(100.0, 0.0)
        (lead,) = kept.lookup(now, wall=wall)
        (failed,) = kept.tokens.settle(lead.flight, NotIssued(ERROR), at=moment(now, wall), jitter=0.0)
        assert (lead.patience, failed) == (None, TokenFailed(lead.waiter, ERROR, 1.0))


def test_jitter_spreads_the_renewals_of_a_fleet_that_started_together() -> None:
    kept = Kept()
    kept.issue(100.0, 0.0, jitter=0.5)
    assert isinstance(kept.lookup(69.9)[0], TokenGiven)
    assert isinstance(kept.lookup(70.0)[0], TokenLead)
    # 30 s ahead, and up to as much again.
    assert kept.issue(3600.0, 80.0, value="b", key=evolve(KEY, scope="x"), jitter=0.999).due == pytest.approx(3620.03)


def test_a_short_lived_token_is_used_for_most_of_its_lifetime() -> None:
    kept = Kept()
    kept.issue(10.0, 0.0)
    assert isinstance(kept.lookup(7.9)[0], TokenGiven)
    kept.issue(0.0, 0.0, key=evolve(KEY, scope="none"))
    assert isinstance(kept.lookup(0.0, key=evolve(KEY, scope="none"))[0], TokenLead)


def test_a_token_that_is_renewed_ends_on_the_clock_that_is_first() -> None:
    kept = Kept()
    kept.issue(100.0, 0.0)
    # The machine slept: monotonic time stood still.
    assert isinstance(kept.lookup(10.0, wall=79.9)[0], TokenGiven)
    (due,) = kept.lookup(10.0, wall=80.0)
    assert due.patience == 1.0
    kept.tokens.abandon(due.waiter)
    assert kept.lookup(10.0, wall=100.0)[0].patience is None


def test_the_monotonic_clock_alone_ends_a_token_too() -> None:
    kept = Kept()
    kept.issue(100.0, 0.0)
    # The wall clock was set back.
    assert isinstance(kept.lookup(79.9, wall=-500.0)[0], TokenGiven)
    (due,) = kept.lookup(80.0, wall=-500.0)
    assert due.patience == 1.0
    kept.tokens.abandon(due.waiter)
    assert kept.lookup(100.0, wall=-500.0)[0].patience is None


def test_jitter_spreads_clients_that_failed_together() -> None:
    kept = Kept()
    (lead,) = kept.lookup(0.0)
    (failed,) = kept.settle(lead.flight, NotIssued(ERROR), 0.0, jitter=1.0)
    assert failed.next_try == pytest.approx(1.1)


def test_a_local_limit_does_not_count_as_failure_of_the_endpoint() -> None:
    kept = Kept()
    (lead,) = kept.lookup(0.0)
    (failed,) = kept.settle(lead.flight, NotIssued(ERROR, crowded=True), 0.0)
    assert (failed.error, failed.next_try) == (ERROR, 0.0)
    assert isinstance(kept.lookup(0.0)[0], TokenLead), "another may ask at once"


def test_while_the_endpoint_fails_the_old_token_serves_and_requests_get_rarer() -> None:
    kept = Kept()
    kept.issue(1000.0, 0.0)
    now, pauses = 980.0, []
    for _ in range(3):
        assert kept.fail(now)[0].token.value == "a"
        pause = 0.0
        while isinstance(kept.lookup(now + pause)[0], TokenGiven):
            pause += 0.5
        kept.tokens.abandon(kept.asked)
        pauses.append(pause)
        now += pause
    assert pauses == [1.0, 2.0, 4.0]
    # A slow one is given more time each time, or it would never be heard.
    assert kept.lookup(now)[0].patience == 8.0


def test_without_a_token_a_failure_answers_all_callers_until_the_next_try() -> None:
    kept = Kept()
    assert kept.fail(0.0) == (TokenFailed(1, ERROR, 1.0),)
    assert kept.lookup(0.75) == (TokenFailed(2, ERROR, 0.25),)
    assert kept.fail(1.0) == (TokenFailed(3, ERROR, 2.0),)
    now: Any = 0.0
    failed: Any = None
    for _ in range(10):
        failure = kept.tokens._failures.last(KEY)
        assert failure is not None
        now = failure.until
        (failed,) = kept.fail(now)
    assert failed.next_try == pytest.approx(32.0)
    kept.issue(10.0, now + 32.0)
    (lead,) = kept.lookup(now + 42.0)
    token = kept.tokens._tokens.peek(KEY)
    assert token is not None
    assert kept.settle(lead.flight, NotIssued(ERROR), 0.0) == (TokenGiven(lead.waiter, token),)
    assert [kept.tokens._failures.last(key).in_a_row for key in kept.tokens._failures] == [1]


@pytest.mark.parametrize(("asked", "wait"), [(0.5, 1.0), (20.0, 20.0), (86_400.0, 32.0)])
def test_retry_after_counts_within_bounds(asked, wait) -> None:
    kept = Kept()
    assert kept.fail(0.0, retry_after=asked)[0].next_try == wait


def test_another_waiter_leads_after_a_leader_that_leaves() -> None:
    kept = Kept()
    kept.lookup(0.0)
    kept.lookup(0.0)
    (lead,) = kept.tokens.abandon(1)
    assert (lead.waiter, lead.patience, kept.tokens.abandon(1)) == (2, None, ())


class TestPatience:
    LATE: Any = {"at": moment(81.0, 81.0), "jitter": 0.0}

    def test_the_only_waiter_gets_the_old_token_and_the_fetch_failed(self) -> None:
        kept = Kept()
        old = kept.issue(100.0, 0.0)
        (lead,) = kept.lookup(80.0)
        assert kept.tokens.outwait(lead.flight, ERROR, **self.LATE) == (TokenGiven(lead.waiter, old),)
        assert kept.tokens.waiting == 0
        assert isinstance(kept.lookup(81.5)[0], TokenGiven)
        assert kept.tokens.outwait(lead.flight, ERROR, **self.LATE) == ()

    def test_a_caller_waits_without_patience_if_the_token_ends_soon(self) -> None:
        kept = Kept()
        kept.issue(100.0, 0.0)
        assert kept.lookup(99.0)[0].patience is None
        kept = Kept()
        kept.issue(100.0, 0.0)
        assert kept.lookup(98.9)[0].patience == 1.0

    def test_a_leader_whose_token_was_dropped_keeps_fetching(self) -> None:
        kept = Kept()
        old = kept.issue(100.0, 0.0)
        (lead,) = kept.lookup(80.0)
        kept.tokens.drop(KEY, old, now=80.5)
        assert kept.lookup(80.5) == ()
        assert kept.tokens.outwait(lead.flight, ERROR, **self.LATE) == (TokenLead(lead.waiter, lead.flight, None),)

    def test_a_waiter_without_a_usable_token_leads_next(self) -> None:
        kept = Kept()
        old = kept.issue(100.0, 0.0)
        (lead,) = kept.lookup(80.0)
        # A wall clock that was wrong for a moment: for this one the token had ended.
        assert kept.lookup(80.5, wall=100.0) == ()
        given, leads = kept.tokens.outwait(lead.flight, ERROR, **self.LATE)
        assert given == TokenGiven(lead.waiter, old)
        assert (leads.waiter, leads.patience) == (lead.waiter + 1, None)
        assert kept.settle(lead.flight, Issued("late", 1.0), 81.0) == ()


class TestRefused:
    def test_a_refused_token_is_dropped_once_and_a_newer_one_stays(self) -> None:
        kept = Kept()
        first = kept.issue(100.0, 0.0)
        assert kept.tokens.drop(KEY, first, now=1.0)
        assert len(kept.tokens) == 0
        second = kept.issue(100.0, 1.0, value="b")
        # A second call that went out with the first.
        assert kept.tokens.drop(KEY, first, now=1.5)
        assert kept.lookup(1.5)[0].token == second

    def test_a_peer_that_refuses_every_token_does_not_cause_a_fetch_each_time(self) -> None:
        kept = Kept()
        kept.tokens.drop(KEY, kept.issue(1000.0, 0.0), now=0.0)
        second = kept.issue(1000.0, 0.0, value="b")
        assert not kept.tokens.drop(KEY, second, now=9.9)
        assert kept.lookup(9.9)[0].token == second
        assert kept.tokens.drop(KEY, second, now=10.0)


def test_all_tables_are_bounded(monkeypatch) -> None:
    monkeypatch.setattr(tokens_module, "MAX_TOKENS", 2)
    kept = Kept()
    for number in range(4):
        key = evolve(KEY, scope=str(number))
        kept.tokens.drop(key, kept.issue(100.0, 0.0, key=key), now=0.0)
        kept.issue(100.0, 0.0, key=key)
        kept.fail(0.0, key=evolve(KEY, audience=str(number)))
    assert (len(kept.tokens), len(kept.tokens._failures), len(kept.tokens._dropped)) == (2, 2, 2)
    # The one not used for longest goes.
    kept.lookup(0.0, key=evolve(KEY, scope="2"))
    kept.issue(100.0, 0.0, key=evolve(KEY, scope="4"))
    assert isinstance(kept.lookup(0.0, key=evolve(KEY, scope="2"))[0], TokenGiven)
    kept.tokens._flights = Flights(max_flights=0)
    (failed,) = kept.lookup(5.0, key=evolve(KEY, scope="9"))
    assert (type(failed), failed.next_try) == (TokenFailed, 0.0)


def test_the_tokens_for_a_thousand_purposes_are_kept() -> None:
    kept = Kept()
    for number in range(1_001):
        kept.issue(100.0, 0.0, key=evolve(KEY, scope=str(number)))
    assert len(kept.tokens) == tokens_module.MAX_TOKENS == 1_000


# --- the laws --------------------------------------------------------------------------------------------------------

KEYS = st.sampled_from([KEY, evolve(KEY, scope="write")])
ROUNDING = 1e-6
LIVES = (0.0, 0.5, 12.0, 100.0)
WAITS = (0.0, 0.5, 1.5, 3.0, 9.0, 20.0, 40.0)
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


class TokenLaws(RuleBasedStateMachine):
    """Compared with a naive model: the token of each key, its waiters, and when a request may be sent."""

    kind: Any = TokenCache

    def __init__(self) -> None:
        super().__init__()
        self.tokens = self.kind()
        self.now, self.wall, self.number = 0.0, 5000.0, 0
        self.flights: dict[Any, Any] = {}
        self.waiting: dict[int, Any] = {}
        self.latest: dict[Any, Any] = {}
        self.held_off: dict[Any, float] = {}
        self.failed: dict[Any, int] = {}
        self.dropped: dict[Any, float] = {}

    @property
    def at(self) -> Moment:
        return moment(self.now, self.wall)

    def good(self, key) -> bool:
        token = self.latest.get(key)
        return token is not None and self.now < token["end"] and self.wall < token["wall_end"]

    def take(self, effects, key) -> None:
        """Carry out the effects; each is for a caller that waits."""
        for effect in effects:
            assert self.waiting[effect.waiter] == key, "an answer for another key, or nobody"
            match effect:
                case TokenGiven(waiter, token):
                    assert self.good(key), "a token that has ended, or was dropped"
                    assert token.value == self.latest[key]["value"], "another token than the last one issued for this"
                    del self.waiting[waiter]
                case TokenFailed(waiter):
                    assert not self.good(key), "a good token was kept back"
                    assert key in self.held_off
                    del self.waiting[waiter]
                case TokenLead(waiter, flight, patience):
                    assert (patience is None) or self.good(key)
                    assert self.now >= self.held_off.get(key, 0.0), "the endpoint is asked again too soon"
                    self.flights[key] = flight
                    assert flight.leader == waiter

    @rule(key=KEYS)
    def lookup(self, key) -> None:
        self.number += 1
        self.waiting[self.number] = key
        under_way = key in self.flights
        effects = self.tokens.lookup(key, self.number, at=self.at)
        assert effects or (under_way and not self.good(key)), "told to wait for nothing, or with a good token at hand"
        assert not (under_way and any(isinstance(effect, TokenLead) for effect in effects)), "two fetches for one key"
        token: Any = self.latest.get(key)
        # How long it is until it's due; within rounding of it either is right.
        left = min(token["due"] - self.now, token["wall_due"] - self.wall) if self.good(key) else -1.0
        if left > ROUNDING:
            assert isinstance(effects[0], TokenGiven), "asked again for a token that isn't due"
        elif left < -ROUNDING and not under_way and self.now >= self.held_off.get(key, 0.0):
            assert isinstance(effects[0], TokenLead), "one that's due isn't asked for"
        self.take(effects, key)

    @precondition(lambda self: self.flights)
    @rule(data=st.data(), life=st.sampled_from(LIVES), jitter=st.sampled_from([0.0, 0.5, 0.99]))
    def issue(self, data, life: float, jitter: float) -> None:
        key = data.draw(st.sampled_from(sorted(self.flights, key=repr)))
        waiters = sum(1 for waited in self.waiting.values() if waited == key)
        self.number += 1
        value = f"t{self.number}"
        ahead = min(30.0, life / 5) * (1 + jitter)
        self.latest[key] = {
            "value": value, "end": self.now + life, "wall_end": self.wall + life,
            "due": self.now + life - ahead, "wall_due": self.wall + life - ahead,
        }  # fmt: skip
        effects = self.tokens.settle(self.flights.pop(key), Issued(value, life), at=self.at, jitter=jitter)
        assert len(effects) == waiters, "somebody who waited isn't answered"
        for effect in effects:
            assert isinstance(effect, TokenGiven)
            assert effect.token.value == value
            assert self.waiting.pop(effect.waiter) == key
        self.held_off.pop(key, None)
        self.failed.pop(key, None)

    @precondition(lambda self: self.flights)
    @rule(data=st.data(), patience=st.booleans(), asked=st.none() | st.floats(0.0, 100.0))
    def fail(self, data, patience: bool, asked: float | None) -> None:
        key = data.draw(st.sampled_from(sorted(self.flights, key=repr)))
        flight = self.flights[key]
        waiters = [waiter for waiter, waited in self.waiting.items() if waited == key]
        if patience:
            effects = self.tokens.outwait(flight, ERROR, at=self.at, jitter=0.0)
            if not self.good(key) or len(waiters) > 1:
                if self.good(key):
                    del self.flights[key]
                self.take(effects, key)
                assert key in self.flights, "somebody waits and nobody fetches"
                return
            asked = None
        else:
            effects = self.tokens.settle(flight, NotIssued(ERROR, asked), at=self.at, jitter=0.0)
        del self.flights[key]
        assert len(effects) == len(waiters)
        count = self.failed[key] = self.failed.get(key, 0) + 1
        self.held_off[key] = self.now + max(PAUSES[min(count, 6) - 1], min(asked or 0.0, 32.0))
        self.take(effects, key)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data) -> None:
        waiter = data.draw(st.sampled_from(sorted(self.waiting)))
        key = self.waiting.pop(waiter)
        if self.flights[key].leader == waiter:
            del self.flights[key]
        self.take(self.tokens.abandon(waiter), key)
        assert self.tokens.abandon(waiter) == ()

    @precondition(lambda self: self.latest)
    @rule(data=st.data())
    def refuse(self, data) -> None:
        key = data.draw(st.sampled_from(sorted(self.latest, key=repr)))
        token = self.tokens._tokens.peek(key)
        if token is None:
            return
        pays = self.tokens.drop(key, token, now=self.now)
        assert pays == (self.now >= self.dropped.get(key, 0.0)), "a peer says how often the endpoint is asked"
        if pays:
            self.dropped[key] = self.now + 10.0
            del self.latest[key]

    @rule(seconds=st.sampled_from(WAITS), slept=st.sampled_from([0.0, 0.0, 30.0]), stepped=st.sampled_from([0, 0, -50]))
    def wait(self, seconds: float, slept: float, stepped: float) -> None:
        self.now += seconds
        self.wall += seconds + slept + stepped

    @invariant()
    def no_caller_waits_without_a_fetch(self) -> None:
        assert set(self.waiting.values()) == set(self.flights)
        assert self.tokens.waiting == len(self.waiting)


class GivesAnyScope(TokenCache[Any]):
    def lookup(self, key, waiter, *, at):
        return super().lookup(evolve(key, scope=""), waiter, at=at)


class IgnoresTheWallClock(TokenCache[Any]):
    def _good(self, key, *, at):
        token = self._tokens.peek(key)
        return token if token is not None and at.now < token.expires else None


class ForgetsFailures(TokenCache[Any]):
    def _fail(self, key, outcome, **more):
        failure = super()._fail(key, outcome, **more)
        self._failures.forget(key)
        return failure


class NeverSlowsDown(TokenCache[Any]):
    def _fail(self, key, outcome, **more):
        self._failures.forget(key)
        return super()._fail(key, outcome, **more)


class TrustsAnyRetryAfter(TokenCache[Any]):
    def _fail(self, key, outcome, **more):
        failure = super()._fail(key, outcome, **more)
        longer = evolve(failure, until=more["now"] + max(outcome.retry_after or 0.0, 40.0))
        self._failures._failures.put(key, longer)
        return longer


class NeverRefreshes(TokenCache[Any]):
    def _keep(self, key, *rest, **more):
        token = super()._keep(key, *rest, **more)
        self._tokens.put(key, evolve(token, due=token.expires))
        return token


class DropsAnyRefusedToken(TokenCache[Any]):
    def drop(self, key, token, *, now) -> bool:
        self._dropped.clear()
        return super().drop(key, token, now=now)


class DropsNothing(TokenCache[Any]):
    def drop(self, key, token, *, now) -> bool:
        pays = super().drop(key, token, now=now)
        self._tokens.put(key, token)
        return pays


class FailsWaitersWithoutAToken(TokenCache[Any]):
    def outwait(self, flight, error, **more):
        return self.settle(flight, NotIssued(error), **more)


class FailsAtOnce(TokenCache[Any]):
    def settle(self, flight, outcome, **more):
        if isinstance(outcome, NotIssued):
            self._tokens.pop(flight.key)
        return super().settle(flight, outcome, **more)


LAWS = settings(max_examples=100, stateful_step_count=50, deadline=None)


def test_the_token_cache_keeps_its_laws() -> None:
    run_state_machine_as_test(TokenLaws, settings=LAWS)


@pytest.mark.planted
@pytest.mark.long
@pytest.mark.parametrize(
    "mutant",
    [
        GivesAnyScope,
        IgnoresTheWallClock,
        ForgetsFailures,
        NeverSlowsDown,
        TrustsAnyRetryAfter,
        NeverRefreshes,
        DropsAnyRefusedToken,
        DropsNothing,
        FailsWaitersWithoutAToken,
        FailsAtOnce,
    ],
)
def test_a_planted_bug_in_the_token_cache_is_caught(mutant) -> None:
    hunt = settings(LAWS, max_examples=1000, phases=[Phase.generate], derandomize=True, database=None)
    machine = type("Machine", (TokenLaws,), {"kind": mutant})
    with pytest.raises((AssertionError, BaseExceptionGroup, KeyError)):
        run_state_machine_as_test(machine, settings=hunt)
