"""Introspection: when a request is sent, who shares it, and what pauses after a failure."""

from functools import partial
from typing import Any

import pytest
from attrs import evolve
from hypothesis import Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from asap_core.auth.claims import Accepted, Rejected
from asap_core.auth.introspection import AskProvider, Introspector, Judged, NoVerdict
from asap_core.auth.introspection_response import (
    ActiveToken,
    FailureCause,
    InactiveToken,
    IntrospectionFailed,
    read_introspection,
)
from asap_core.auth.principal import InsufficientScope
from asap_core.clock import Moment
from asap_core.flights import Flight
from asap_core.lru import Lru
from tests.core.auth.responses import GOOD, POLICY, WALL
from tests.moments import moment

SECRET = b"k" * 32


class Asked:
    """An introspector, with both clocks in step."""

    def __init__(self, **policy) -> None:
        self.machine: Any = Introspector(evolve(POLICY, **policy), secret=SECRET)
        self.number = 0

    def lookup(self, token: str, now: float = 0.0, *, wall: float | None = None):
        self.number += 1
        return self.machine.lookup(token, self.number, at=moment(now, WALL + (now if wall is None else wall)))

    def settle(self, question, answer, now: float = 0.0):
        return self.machine.settle(question, answer, at=moment(now, WALL + now))

    def ask(self, token: str, answer, now: float = 0.0):
        (asks,) = self.lookup(token, now)
        (judged,) = self.settle(asks.flight, answer, now)
        return judged.verdict


def good(**changes) -> ActiveToken:
    return ActiveToken({**GOOD, **changes})


class TestAskingOnce:
    def test_callers_with_the_same_token_share_one_request(self) -> None:
        made = Asked()
        (asks,) = made.lookup("t")
        assert isinstance(asks, AskProvider)
        assert made.lookup("t") == made.lookup("t") == ()
        assert (made.machine.waiting, made.machine.asking) == (3, 1)
        judged = made.settle(asks.flight, good())
        assert [each.waiter for each in judged] == [1, 2, 3]
        assert len({id(each.verdict) for each in judged}) == 1
        assert made.settle(asks.flight, InactiveToken()) == ()
        assert (made.machine.waiting, made.machine.asking, len(made.machine)) == (0, 0, 1)
        assert "'t'" not in repr(asks) + repr(judged) + repr(vars(made.machine))
        assert {len(digest) for digest in made.machine._good} == {16}

    def test_a_valid_token_is_introspected_again_after_a_minute(self) -> None:
        made = Asked()
        made.ask("t", good())
        assert isinstance(made.lookup("t", 59.9)[0].verdict, Accepted)
        assert isinstance(made.lookup("t", 60.0)[0], AskProvider)
        assert len(made.machine) == 0

    def test_a_cached_answer_ends_on_the_clock_that_is_first(self) -> None:
        made = Asked()
        made.ask("t", good())
        assert isinstance(made.lookup("t", 1.0, wall=60.0)[0], AskProvider)
        # A wall clock that was set back gives it no more time.
        made = Asked()
        made.ask("t", good())
        assert isinstance(made.lookup("t", 60.0, wall=-1000.0)[0], AskProvider)

    @pytest.mark.parametrize("answer", [InactiveToken(), good(aud="x"), good(scope="x")])
    def test_a_rejected_token_is_introspected_again_sooner(self, answer) -> None:
        made = Asked()
        verdict = made.ask("t", answer)
        assert made.lookup("t", 9.9)[0].verdict == verdict
        assert isinstance(made.lookup("t", 10.0)[0], AskProvider)

    def test_a_kept_verdict_is_known_without_a_waiter(self) -> None:
        made = Asked()
        known = partial(made.machine.known, at=moment(1.0, WALL + 1.0))
        assert known("t") is None
        verdict = made.ask("t", good())
        assert (known("t"), made.machine.waiting) == (verdict, 0)
        assert known("é") is None

    def test_an_invalid_token_is_not_introspected(self) -> None:
        for text in ("", "a b", "é", "x" * 8193, "a\n"):
            assert isinstance(Asked().lookup(text)[0].verdict, Rejected)

    def test_guesses_evict_no_answer_of_a_valid_token(self) -> None:
        made = Asked(max_kept=2)
        made.ask("t", good())
        for number in range(9):
            made.ask(f"guess{number}", InactiveToken())
        assert len(made.machine) == 3
        assert isinstance(made.lookup("t")[0], Judged)
        made.ask("u", good())
        made.lookup("t")
        made.ask("v", good())
        # The one not shown for longest goes.
        assert isinstance(made.lookup("t")[0], Judged)
        assert isinstance(made.lookup("u")[0], AskProvider)

    def test_the_number_of_concurrent_requests_is_bounded(self) -> None:
        made = Asked(max_asked=2)
        (first,) = made.lookup("a")
        made.lookup("b")
        assert made.lookup("c")[0].verdict is NoVerdict.CROWDED
        assert made.lookup("a") == ()
        made.settle(first.flight, InactiveToken())
        assert isinstance(made.lookup("c")[0], AskProvider)

    def test_another_waiter_leads_after_a_leader_that_leaves(self) -> None:
        made = Asked()
        (first,) = made.lookup("t")
        made.lookup("t")
        made.lookup("t")
        (asks,) = made.machine.abandon(1)
        assert (asks.waiter, made.machine.abandon(1), made.machine.abandon(3)) == (2, (), ())
        assert made.settle(first.flight, good()) == ()
        assert [each.waiter for each in made.settle(asks.flight, good())] == [2]
        (asks,) = made.lookup("u")
        made.machine.abandon(asks.waiter)
        assert (made.machine.waiting, made.machine.asking) == (0, 0)
        assert made.settle(asks.flight, good()) == ()


DOWN, ODD, DOUBTFUL = (
    IntrospectionFailed("x", cause) for cause in (FailureCause.PROVIDER, FailureCause.TOKEN, FailureCause.EITHER)
)


class TestFailuresOfOneToken:
    """A failure of one token affects that token only: anybody can choose a token."""

    def test_a_failure_of_the_first_token_does_not_affect_other_tokens(self) -> None:
        made = Asked()
        assert made.ask("junk", ODD) is NoVerdict.PROVIDER
        assert isinstance(made.ask("t", good()), Accepted)

    @pytest.mark.parametrize("failure", [ODD, DOUBTFUL])
    def test_failures_of_one_token_do_not_affect_other_tokens(self, failure) -> None:
        made = Asked()
        made.ask("t", good())
        for number in range(50):
            assert made.ask(f"junk{number}", failure, 60.0) is NoVerdict.PROVIDER
            assert isinstance(made.ask(f"new{number}", good(), 60.0), Accepted)
        assert isinstance(made.ask("t", good(), 60.0), Accepted)

    def test_a_failing_token_is_introspected_less_and_less_often(self) -> None:
        made, now, asked = Asked(), 0.0, []
        while now < 100:
            found = made.lookup("t", now)[0]
            if isinstance(found, AskProvider):
                asked.append(now)
                made.settle(found.flight, ODD, now)
            now += 0.5
        assert asked == [0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 63.0, 95.0]
        assert isinstance(made.ask("t", good(), 127.0), Accepted)
        made.ask("t", ODD, 187.0)
        assert isinstance(made.lookup("t", 188.0)[0], AskProvider)

    def test_before_the_first_answer_a_failure_counts_for_the_provider(self) -> None:
        made = Asked()
        made.ask("a", DOUBTFUL)
        assert made.lookup("b", 0.9)[0].verdict is NoVerdict.PROVIDER
        made.ask("b", DOUBTFUL, 1.0)
        assert made.lookup("c", 2.9)[0].verdict is NoVerdict.PROVIDER
        made.ask("c", InactiveToken(), 3.0)
        made.ask("d", DOUBTFUL, 3.0)
        assert isinstance(made.lookup("e", 3.0)[0], AskProvider)

    @pytest.mark.parametrize("ODD", [ODD, DOUBTFUL])
    def test_failures_of_two_tokens_that_were_good_count_for_the_provider(self, ODD) -> None:  # noqa: N803
        made = Asked()
        for token in ("a", "b", "c"):
            made.ask(token, good())
        made.ask("a", ODD, 60.0)
        made.ask("a", ODD, 61.0)
        made.ask("junk", ODD, 61.0)
        assert isinstance(made.ask("new", good(), 61.0), Accepted)
        made.ask("a", ODD, 63.0)
        made.ask("junk", ODD, 63.0)
        made.ask("b", ODD, 63.0)
        assert made.lookup("other", 63.9)[0].verdict is NoVerdict.PROVIDER
        # And a stranger's failure doesn't prolong it.
        made.ask("another", ODD, 64.0)
        assert isinstance(made.ask("newer", good(), 64.0), Accepted)

    def test_each_further_token_that_was_good_prolongs_the_pause_of_the_provider(self) -> None:
        made = Asked()
        for token in ("a", "b", "c"):
            made.ask(token, good())
        made.ask("a", ODD, 60.0)
        made.ask("b", ODD, 60.0)
        assert made.lookup("other", 60.9)[0].verdict is NoVerdict.PROVIDER
        made.ask("c", ODD, 61.0)
        assert made.lookup("other", 62.9)[0].verdict is NoVerdict.PROVIDER
        assert isinstance(made.lookup("other", 63.0)[0], AskProvider)

    def test_a_token_that_was_refused_since_does_not_count_as_good(self) -> None:
        made = Asked()
        for token in ("a", "b"):
            made.ask(token, good())
            made.ask(token, InactiveToken(), 60.0)
            made.ask(token, ODD, 70.0)
        assert isinstance(made.lookup("new", 70.0)[0], AskProvider)

    def test_guesses_do_not_use_the_slots_of_tokens_that_were_good(self) -> None:
        made = Asked(max_asked=5)
        for token in ("a", "b"):
            made.ask(token, good())
        for number in range(4):
            assert isinstance(made.lookup(f"guess{number}", 60.0)[0], AskProvider)
        assert made.lookup("guess", 60.0)[0].verdict is NoVerdict.CROWDED
        assert isinstance(made.lookup("a", 60.0)[0], AskProvider)
        assert made.lookup("b", 60.0)[0].verdict is NoVerdict.CROWDED

    def test_known_tokens_may_use_all_slots(self) -> None:
        made = Asked(max_asked=5)
        for number in range(5):
            made.ask(f"good{number}", good())
        for number in range(5):
            assert isinstance(made.lookup(f"good{number}", 60.0)[0], AskProvider)
        assert made.lookup("guess", 60.0)[0].verdict is NoVerdict.CROWDED

    def test_tables_are_bounded(self) -> None:
        made = Asked(max_kept=2)
        for number in range(9):
            made.ask(f"junk{number}", ODD)
            made.ask(f"good{number}", good())
        assert isinstance(made.lookup("junk0", 0.0)[0], AskProvider)
        assert made.lookup("junk8", 0.0)[0].verdict is NoVerdict.PROVIDER

    @pytest.mark.parametrize(
        ("status", "body", "cause"),
        [
            (401, b'{"error": "invalid_client"}', FailureCause.PROVIDER),
            (401, b'{"error": "invalid_token"}', FailureCause.EITHER),
            (400, b'{"error": "invalid_client"}', FailureCause.TOKEN),
            (401, b"", FailureCause.EITHER),
            (401, b"[]", FailureCause.EITHER),
            *[(status, b"", FailureCause.TOKEN) for status in (400, 403, 413, 414, 415, 422, 431)],
            *[(status, b"", FailureCause.EITHER) for status in (204, 302, 404, 429, 500, 502, 503, 504)],
            (200, b"<html>", FailureCause.TOKEN),
            (200, b"", FailureCause.TOKEN),
            (200, b"{}", FailureCause.TOKEN),
        ],
    )
    def test_the_response_says_if_a_failure_is_the_tokens_or_the_providers(self, status, body, cause) -> None:
        found = read_introspection(status, body)
        assert isinstance(found, IntrospectionFailed)
        assert found.cause is cause


class TestFailureCauses:
    def test_an_answer_clears_the_failures_before_it(self) -> None:
        made = Asked()
        for token in "abc":
            made.ask(token, good())
        made.ask("a", ODD, 60.0)
        made.ask("b", good(), 60.0)
        made.ask("c", ODD, 60.0)
        assert isinstance(made.lookup("new", 60.0)[0], AskProvider)

    def test_known_tokens_use_no_slots_of_unknown_tokens(self) -> None:
        made = Asked(max_asked=5)
        made.ask("known", good())
        for token in ("known", "guess1", "guess2", "guess3", "guess4"):
            assert isinstance(made.lookup(token, 60.0)[0], AskProvider)
        assert made.lookup("guess5", 60.0)[0].verdict is NoVerdict.CROWDED

    def test_a_token_that_is_no_longer_active_counts_as_unknown(self) -> None:
        made = Asked(max_asked=5)
        made.ask("once-good", good())
        made.ask("once-good", InactiveToken(), 60.0)
        for number in range(4):
            made.lookup(f"guess{number}", 70.0)
        assert made.lookup("once-good", 70.0)[0].verdict is NoVerdict.CROWDED


class TestFailuresOfTheProvider:
    def test_pauses_after_failures_of_the_provider_double(self) -> None:
        made, now, pauses = Asked(), 0.0, []
        for _ in range(8):
            assert made.ask("t", DOWN, now) is NoVerdict.PROVIDER
            pause = 0.0
            while isinstance(made.lookup("u", now + pause)[0], Judged):
                pause += 0.5
            made.machine.abandon(made.number)
            pauses.append(pause)
            now += pause
        assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 32.0, 32.0]
        made.ask("t", good(), now)
        assert made.ask("u", DOWN, now) is NoVerdict.PROVIDER
        assert isinstance(made.lookup("v", now + 1.0)[0], AskProvider)

    def test_a_failure_of_the_provider_does_not_count_against_the_token(self) -> None:
        made = Asked()
        (first,), (second,) = made.lookup("t"), made.lookup("u")
        made.settle(first.flight, DOWN)
        made.settle(second.flight, good(), 0.5)
        assert isinstance(made.lookup("t", 0.5)[0], AskProvider)

    def test_failures_at_the_same_time_count_once(self) -> None:
        made = Asked()
        asks = [made.lookup(f"t{number}")[0] for number in range(50)]
        for each in asks:
            made.settle(each.flight, DOWN)
        assert isinstance(made.lookup("u", 1.0)[0], AskProvider)

    def test_a_response_is_kept_for_its_time_and_no_longer(self) -> None:
        made = Asked()
        made.ask("t", good())
        made.ask("u", DOWN, 30.0)
        assert isinstance(made.lookup("t", 59.0)[0].verdict, Accepted)
        assert made.ask("t", DOWN, 60.0) is NoVerdict.PROVIDER


TOKENS = st.sampled_from(["a", "b", "c", "d"])


WAITS = (0.0, 0.5, 1.5, 5.0, 9.0, 30.0, 59.0)


class IntrospectionLaws(RuleBasedStateMachine):
    """Compared with a naive model: the latest answer for each token, the waiters, and whether a request may be sent."""

    kind: Any = Introspector

    def __init__(self) -> None:
        super().__init__()
        self.machine = self.kind(evolve(POLICY, max_asked=2, max_kept=2), secret=SECRET)
        self.now, self.wall, self.number = 0.0, WALL, 0
        self.said: dict[str, Any] = {}
        self.questions: dict[str, Any] = {}
        self.waiting: dict[int, str] = {}
        self.held_off, self.failed = 0.0, 0
        # At most until then anybody may be held off; and each for its own token's failures.
        self.longest, self.counted = 0.0, 0
        self.own: dict[str, Any] = {}
        self.ever_good: set[str] = set()
        self.doubted: set[str] = set()

    @property
    def at(self) -> Moment:
        return moment(self.now, self.wall)

    def take(self, effects, token: str) -> None:
        for effect in effects:
            assert self.waiting[effect.waiter] == token, "an answer about another's token"
            match effect:
                case AskProvider(_, flight):
                    self.questions[token] = flight
                case Judged(waiter, verdict):
                    del self.waiting[waiter]
                    self.check(token, verdict)

    def check(self, token: str, verdict) -> None:
        if isinstance(verdict, NoVerdict):
            return
        said, now, wall, end = self.said[token]
        most = 60.0 if said == "good" else 10.0
        assert self.now < now + most, "believed for too long"
        assert self.wall < wall + most, "believed for too long by the wall clock"
        assert {"good": Accepted, "bad": Rejected, "small": InsufficientScope}[said] is type(verdict), "another verdict"
        if said == "good":
            assert self.wall < end + 30.0, "good past its end"

    @rule(token=TOKENS)
    def lookup(self, token: str) -> None:
        self.number += 1
        self.waiting[self.number] = token
        under_way = dict(self.questions)
        effects = self.machine.lookup(token, self.number, at=self.at)
        if not effects:
            assert token in under_way, "told to wait for nothing"
        elif isinstance(effects[0], AskProvider):
            assert token not in under_way, "asked twice at once"
            assert len(under_way) < 2, "too many questions at once"
            assert self.now >= self.held_off, "a provider in trouble is asked again too soon"
        elif effects[0].verdict is NoVerdict.PROVIDER:
            until, _ = self.own.get(token, (0.0, 0))
            assert self.now < max(self.longest, until), "held off for another token's sake"
        elif effects[0].verdict is NoVerdict.CROWDED:
            assert len(under_way) == 2
        self.take(effects, token)

    @precondition(lambda self: self.questions)
    @rule(data=st.data(), said=st.sampled_from(["good", "bad", "small"]), life=st.sampled_from([0.5, 20.0, 300.0]))
    def answer(self, data, said: str, life: float) -> None:
        token = data.draw(st.sampled_from(sorted(self.questions)))
        waiters = sum(1 for waited in self.waiting.values() if waited == token)
        end = self.wall + life
        active = good(exp=end, iat=self.wall)
        answer = {"good": active, "bad": InactiveToken(), "small": good(exp=end, iat=self.wall, scope="x")}[said]
        self.said[token] = said, self.now, self.wall, end
        self.held_off, self.failed = 0.0, 0
        self.longest, self.counted = 0.0, 0
        self.doubted.clear()
        self.own.pop(token, None)
        if said != "bad":
            self.ever_good.add(token)
        effects = self.machine.settle(self.questions.pop(token), answer, at=self.at)
        assert len(effects) == waiters, "somebody isn't answered"
        self.take(effects, token)

    @precondition(lambda self: self.questions)
    @rule(data=st.data(), cause=st.sampled_from(FailureCause))
    def fail(self, data, cause: FailureCause) -> None:
        token = data.draw(st.sampled_from(sorted(self.questions)))
        effects = self.machine.settle(self.questions.pop(token), IntrospectionFailed("x", cause), at=self.at)
        general = cause is FailureCause.PROVIDER or (cause is FailureCause.EITHER and not self.said)
        if general and self.now >= self.held_off:
            self.failed += 1
            self.held_off = self.now + 2.0 ** min(self.failed - 1, 5)
        if token in self.ever_good:
            self.doubted.add(token)
        if general or (token in self.ever_good and len(self.doubted) > 1):
            self.counted += 1
            self.longest = max(self.longest, self.now + 2.0 ** min(self.counted - 1, 5))
        if not general:
            _, count = self.own.get(token, (0.0, 0))
            self.own[token] = self.now + 2.0 ** min(count, 5), count + 1
        assert all(effect.verdict is NoVerdict.PROVIDER for effect in effects)
        self.take(effects, token)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data) -> None:
        waiter = data.draw(st.sampled_from(sorted(self.waiting)))
        token = self.waiting.pop(waiter)
        asked = next(iter(self.questions[token].waiters)) == waiter
        if asked:
            del self.questions[token]
        self.take(self.machine.abandon(waiter), token)

    @rule(seconds=st.sampled_from(WAITS), stepped=st.sampled_from([0, 0, -50, 40]))
    def wait(self, seconds: float, stepped: float) -> None:
        self.now += seconds
        self.wall += seconds + stepped

    @invariant()
    def waiters_have_a_request(self) -> None:
        assert set(self.waiting.values()) == set(self.questions)
        assert (self.machine.waiting, self.machine.asking) == (len(self.waiting), len(self.questions))
        kept = (self.machine._good, self.machine._refused, self.machine._failed, self.machine._known)
        assert max(map(len, kept)) <= 2, "unbounded"


class CachesTooLong(Introspector[Any]):
    def _keep(self, digest, verdict, *, at) -> None:
        super()._keep(digest, verdict, at=moment(at.now + 5.0, at.wall + 5.0))


class IgnoresTheWallClock(Introspector[Any]):
    def _recall(self, digest, *, at):
        return super()._recall(digest, at=moment(at.now, float("-inf")))


class ForgetsFailuresOfTheProvider(Introspector[Any]):
    def settle(self, flight, answer, *, at):
        effects = super().settle(flight, answer, at=at)
        self._provider_failed.forget(None)
        return effects


class CountsAnyFailureForTheProvider(Introspector[Any]):
    """An earlier bug: a failure of an unknown token held off all callers."""

    def _fail(self, digest, answer, *, now) -> None:
        super()._fail(digest, IntrospectionFailed("x", FailureCause.PROVIDER), now=now)


class SharesNoRequest(Introspector[Any]):
    def lookup(self, token, waiter, *, at):
        held, self._flights._flights = self._flights._flights, {}
        effects = super().lookup(token, waiter, at=at)
        self._flights._flights = {**held, **self._flights._flights}
        return effects


class LosesWaiters(Introspector[Any]):
    def abandon(self, waiter):
        effects = super().abandon(waiter)
        return effects[:0]


class AcceptsLateAnswers(Introspector[Any]):
    def _lead(self, leading):
        asks = super()._lead(leading)
        self._good.clear()
        return AskProvider(asks.waiter, Flight(asks.flight.key, asks.waiter, asks.flight.waiters))


class RejectsTokensDuringFailures(Introspector[Any]):
    def _judge(self, digest, answer, *, at):
        verdict = super()._judge(digest, answer, at=at)
        return Rejected("x") if verdict is NoVerdict.PROVIDER else verdict


class IgnoresItsBounds(Introspector[Any]):
    def __init__(self, policy, **secret) -> None:
        super().__init__(policy, **secret)
        self._good, self._refused = Lru(10_000), Lru(10_000)


LAWS = settings(max_examples=100, stateful_step_count=50, deadline=None)


def test_introspection_keeps_its_laws() -> None:
    run_state_machine_as_test(IntrospectionLaws, settings=LAWS)


@pytest.mark.planted
@pytest.mark.long
@pytest.mark.parametrize(
    "mutant",
    [
        CachesTooLong,
        IgnoresTheWallClock,
        ForgetsFailuresOfTheProvider,
        CountsAnyFailureForTheProvider,
        SharesNoRequest,
        LosesWaiters,
        AcceptsLateAnswers,
        RejectsTokensDuringFailures,
        IgnoresItsBounds,
    ],
)
def test_a_planted_bug_in_introspection_is_caught(mutant) -> None:
    hunt = settings(LAWS, max_examples=1000, phases=[Phase.generate], derandomize=True, database=None)
    machine = type("Machine", (IntrospectionLaws,), {"kind": mutant})
    with pytest.raises((AssertionError, BaseExceptionGroup, KeyError)):
        run_state_machine_as_test(machine, settings=hunt)
