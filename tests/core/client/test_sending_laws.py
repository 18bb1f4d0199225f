"""Laws of sending, whatever an agent does and wherever a program is closed; and planted bugs that break them.

* Every permit of a breaker is given back, once, with what the request says about its host.
* A message is carried out at most once, unless the caller chose its key; then the agent is asked under that key only.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import pytest
from attrs import evolve, frozen
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from asap_core.client import sending, tokens
from asap_core.client.breaker import BreakerOpen, BreakerPolicy, Breakers, Permit, RequestOutcome
from asap_core.client.delivery import Attempt, RetryAfter, RetryPolicy, next_step
from asap_core.client.programs import Expired, Fetch, Stage, Unanswered
from asap_core.client.runtime import Runtime
from asap_core.client.sending import Sender
from asap_core.clock import Instant
from asap_core.refusals import TIMESTAMP
from tests.core.client.peers import AGENT, LOST, NOT_CONNECTED, Peers, answer, credentials, refused
from tests.core.client.scripted import After, Driver, Reply, Run

OK, FAILED, ABANDONED = RequestOutcome.OK, RequestOutcome.FAILED, RequestOutcome.ABANDONED


@frozen
class Event:
    """What happens to one request.

    reply: what the client sees.
    done: whether the agent carried the message out.
    tells: what it says about the host.
    """

    reply: Reply | None
    done: bool
    tells: RequestOutcome


WRONG_TIME = {"code": TIMESTAMP.taxonomy, "recoverable": True, "details": {"server_time": "2031-01-01T00:00:00Z"}}
EVENTS = {
    "replies": Event(None, True, OK),
    "can't be connected to": Event(NOT_CONNECTED, False, FAILED),
    "has no free connection": Event(Expired(Stage.QUEUED), False, ABANDONED),
    "does it, and the reply is lost": Event(LOST, True, FAILED),
    "does it too late": Event(Expired(), True, FAILED),
    "does it, and the reply is cut off": Event(Unanswered(Stage.ANSWERED, "cut off"), True, FAILED),
    "does it, and a proxy says 502": Event(answer(b"<html>", 502), True, FAILED),
    "does it, and a filter says 500": Event(answer(b"<html>", 500), True, ABANDONED),
    "does it, and answers rubbish": Event(answer(b"<html>"), True, ABANDONED),
    "does it, and fails with 500": Event(
        answer({"jsonrpc": "2.0", "id": None, "error": {"code": -32603, "message": "no"}}, 500), True, ABANDONED
    ),
    "limits the rate": Event(answer({"detail": "slowly"}, 429), False, ABANDONED),
    "is busy": Event(refused(), False, OK),
    "refuses the token": Event(answer({"detail": "no", "code": "asap:auth"}, 401), False, OK),
    "refuses the timestamp": Event(refused(**WRONG_TIME), False, OK),
}


class WatchedBreakers(Breakers):
    """Notes each permit, and how it was given back."""

    def __init__(self, policy: BreakerPolicy) -> None:
        super().__init__(policy)
        self.permits: list[Permit] = []
        self.outcomes: list[RequestOutcome] = []

    def ask(self, origin: str, *, now: Instant) -> Permit | BreakerOpen:
        permit = super().ask(origin, now=now)
        if isinstance(permit, Permit):
            self.permits.append(permit)
        return permit

    def give_back(self, origin: str, permit: Permit, outcome: RequestOutcome, *, now: Instant) -> None:
        if not permit.given_back:
            self.outcomes.append(outcome)
        super().give_back(origin, permit, outcome, now=now)

    @property
    def given(self) -> int:
        return sum(not permit.given_back for permit in self.permits)


class Agent(Peers):
    """An agent to which these events happen, one for each request; then it replies. It compares keys, not ids."""

    def __init__(self, script: Sequence[Event], *, probing: bool = False) -> None:
        policy = BreakerPolicy(threshold=1 if probing else 9, rest=30.0)
        super().__init__(auth={AGENT: credentials()}, retry=RetryPolicy(), breaker=policy)
        self.breakers = WatchedBreakers(policy)
        self.sender._breakers = self.breakers
        self.times_done: Counter[str] = Counter()
        self.happened: list[Event] = []
        if probing:
            # A request has failed, and the next one is a probe.
            self.agent_does = [NOT_CONNECTED]
            self.start(self.sender.once(self.to, self.envelope(), "first"))
            self.advance(30)
            self.posts.clear()
            self.breakers.outcomes.clear()
        self.agent_does = [self._happens(event) for event in (*script, *[EVENTS["replies"]] * 9)]

    def _happens(self, event: Event) -> Callable[[Fetch], Reply]:
        def does(fetch: Fetch) -> Reply:
            self.happened.append(event)
            (call,) = self.posts[-1].calls
            self.times_done[call["idempotency_key"]] += event.done
            return self.carried_out(fetch) if event.reply is None else event.reply

        return does


Closing = Callable[[Driver, Run[Any]], None]


def check_sending(
    script: Sequence[Event], *, keyed: bool, turns: int | None = None, closing: Closing = Driver.close, probing=False
) -> bool:
    """Send a message, close the program after so many turns, and check the laws. Returns whether it was closed."""
    agent = Agent(script, probing=probing)
    run = agent.start(agent.deliver("mine" if keyed else None))
    for _ in range(1000 if turns is None else turns):
        if not agent.turn():
            break
    closed, held = run.effect is not None, agent.breakers.given
    if closed:
        if closing is Driver.close:
            # Not before the owner's lock is held.
            run.program.close()
            assert agent.breakers.given == held
        closing(agent, run)
        agent.runtime.take_wakes()
    assert agent.breakers.given == 0
    ended = [event.tells for event in agent.happened]
    if held:
        ended[-1] = ABANDONED
    assert agent.breakers.outcomes == ended
    assert all(times <= 1 for times in agent.times_done.values()) or keyed
    calls = [post.calls[0] for post in agent.posts]
    assert len({call["idempotency_key"] for call in calls}) <= 1
    assert len({call["envelope"]["id"] for call in calls}) <= 1
    # Otherwise the agent couldn't tell it from a replay. A message whose credential was refused isn't admitted.
    for before, after, event in zip(calls, calls[1:], agent.happened, strict=False):
        if event is not EVENTS["refuses the token"]:
            assert before["envelope"]["extensions"] != after["envelope"]["extensions"]
    # Each of three attempts, and the one by a corrected clock, may have its token refused.
    assert len(calls) <= 8
    agent.agent_does, agent.good = [], {f"t{number}" for number in range(20)}
    agent.advance(60)
    agent.send()
    return closed


def scripts(length: int) -> Iterator[tuple[Event, ...]]:
    return (script for size in range(1, length + 1) for script in product(EVENTS.values(), repeat=size))


def check_short_scripts() -> None:
    for script, keyed in product(scripts(2), (False, True)):
        check_sending(script, keyed=keyed)


def check_closing_at_every_effect() -> None:
    for event, closing, probing in product(EVENTS.values(), (Driver.close, Driver.lose), (False, True)):
        turns = 0
        while check_sending([event], keyed=True, turns=turns, closing=closing, probing=probing):
            turns += 1
        assert turns >= 1


def test_short_scripts_keep_the_laws() -> None:
    check_short_scripts()


def test_closing_at_every_effect_keeps_the_laws() -> None:
    check_closing_at_every_effect()


@given(
    st.lists(st.sampled_from(list(EVENTS.values())), max_size=9),
    st.booleans(),
    st.none() | st.integers(0, 20),
    st.sampled_from([Driver.close, Driver.lose]),
    st.booleans(),
)
@settings(deadline=None)
def test_long_scripts_keep_the_laws(script, keyed, turns, closing, probing) -> None:
    check_sending(script, keyed=keyed, turns=turns, closing=closing, probing=probing)


class PermitLaws(RuleBasedStateMachine):
    """Several callers of one host: a permit is held by exactly those whose request is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.agent = Agent([])
        self.agent.breakers = self.agent.sender._breakers = WatchedBreakers(BreakerPolicy(threshold=2, rest=30.0))

    @rule(event=st.sampled_from(list(EVENTS.values())), seconds=st.sampled_from([0.0, 5.0]))
    def send(self, event: Event, seconds: float) -> None:
        def does(fetch: Fetch) -> After:
            return After(seconds, self.agent.carried_out(fetch) if event.reply is None else event.reply)

        self.agent.agent_does.append(does)
        self.agent.start(self.agent.deliver("mine"))

    @rule(seconds=st.sampled_from([0.0, 1.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.agent.advance(seconds)

    @precondition(lambda self: self.agent.runs)
    @rule(data=st.data(), closing=st.sampled_from([Driver.close, Driver.lose]))
    def close(self, data: st.DataObject, closing: Closing) -> None:
        closing(self.agent, data.draw(st.sampled_from(self.agent.runs)))
        self.agent.runtime.take_wakes()

    @invariant()
    def those_who_ask_have_permits(self) -> None:
        asking = [run for run in self.agent.runs if isinstance(run.effect, Fetch) and AGENT in run.effect.url]
        held = [permit for permit in self.agent.breakers.permits if not permit.given_back]
        assert len(held) == len(asking)
        assert sum(permit.probe for permit in held) <= 1
        assert len(self.agent.breakers.outcomes) == len(self.agent.breakers.permits) - len(held)


LAWS = settings(stateful_step_count=30, deadline=None)


def test_exactly_the_requests_under_way_have_permits() -> None:
    run_state_machine_as_test(PermitLaws, settings=LAWS)


# --- planted bugs ----------------------------------------------------------------------------------------------------


def leaves_permits_behind(patch) -> None:
    patch.setattr(Runtime, "undo_after", lambda *_: None)


def touches_the_breaker_in_another_thread(patch) -> None:
    patch.setattr(Runtime, "undo_after", lambda _self, _error, undo: undo())


def tells_the_breaker_of_no_failure(patch) -> None:
    patch.setattr(sending, "AsapError", ZeroDivisionError)


def takes_refusals_for_failures(patch) -> None:
    patch.setattr(sending, "request_outcome", lambda error: OK if error is None else FAILED)


def takes_failures_for_replies(patch) -> None:
    patch.setattr(sending, "request_outcome", lambda _: OK)


@pytest.mark.planted
@pytest.mark.parametrize(
    "plant",
    [
        leaves_permits_behind,
        touches_the_breaker_in_another_thread,
        tells_the_breaker_of_no_failure,
        takes_refusals_for_failures,
        takes_failures_for_replies,
    ],
)
def test_a_planted_bug_with_permits_is_caught(plant, monkeypatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_closing_at_every_effect()


def takes_lost_for_unsent(patch) -> None:
    patch.setattr(sending, "classify_failure", lambda _: Attempt.UNSENT)


def takes_its_own_key_for_the_callers(patch) -> None:
    patch.setattr(sending, "next_step", lambda ended, **more: next_step(ended, **{**more, "keyed": True}))


def always_sends_again(patch) -> None:
    patch.setattr(sending, "next_step", lambda *_, **__: RetryAfter(1.0))


def makes_a_new_key(patch) -> None:
    once = Sender.once
    patch.setattr(Sender, "once", lambda self, to, envelope, key: once(self, to, envelope, self._runtime.new_id()))


def makes_a_new_message(patch) -> None:
    patch.setattr(
        Sender, "_renewed", lambda self, _allowed, envelope, _nonce: evolve(envelope, id=self._runtime.new_id())
    )


def sends_the_same_nonce(patch) -> None:
    patch.setattr(Sender, "_renewed", lambda _self, _allowed, envelope, _nonce: envelope)


def blames_the_token(patch) -> None:
    patch.setattr(sending, "is_unauthorized", lambda *_: True)


def blames_the_clock(patch) -> None:
    patch.setattr(sending, "server_time_in", lambda *_: 1_900_000_000.0)


def replaces_credentials_without_end(patch) -> None:
    patch.setattr(tokens.MessageCredentials, "should_retry", lambda *_, **__: True)


@pytest.mark.planted
@pytest.mark.parametrize(
    "plant",
    [
        takes_lost_for_unsent,
        takes_its_own_key_for_the_callers,
        always_sends_again,
        makes_a_new_key,
        makes_a_new_message,
        sends_the_same_nonce,
        blames_the_token,
        blames_the_clock,
        replaces_credentials_without_end,
    ],
)
def test_a_planted_bug_with_retries_is_caught(plant, monkeypatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_short_scripts()
