"""A retry that waits for the first request: the state `Hold`."""

import json

import pytest

from asap_core import (
    Answered,
    Dispatch,
    Hold,
    ManualClock,
    Refusal,
    StartPolicy,
)
from asap_core.refusals import BUSY
from asap_core.server.call_context import IllegalMove
from tests.builders import call
from tests.core.server.exchanges import head, outcome, post, reply, serve


class TestHold:
    """A retry that comes while the first is running waits for it, and gets its answer."""

    def start(self, agent, **changes):
        fork = agent.open(head()).feed(json.dumps(call(key="k", **changes)).encode()).end()
        return fork, fork.calls[0]

    @pytest.fixture
    def clock(self):
        return ManualClock()

    @pytest.fixture
    def agent(self, clock):
        return serve(clock=clock)

    def test_a_held_call_is_woken_by_the_end_of_the_work_and_gets_its_answer(self, agent) -> None:
        (first, running), (second, held) = self.start(agent), self.start(agent, number=2)
        assert isinstance(held, Hold)
        assert (held.seconds, agent.take_wakes()) == (5.0, ())
        one = first.answered([reply(running)]).response
        assert agent.take_wakes() == (held.ticket,)
        assert agent.take_wakes() == ()
        two = second.answered([held.again()]).response
        payloads = [json.loads(each.body)["result"]["envelope"]["payload"] for each in (one, two)]
        assert payloads[0] == payloads[1]
        assert agent.active == 0

    @pytest.mark.parametrize(
        ("leave", "then"), [("lost", "asap:admission/outcome_unknown"), ("abandon", "ok"), ("turned_away", "ok")]
    )
    def test_a_held_call_is_woken_by_any_end_of_the_work(self, agent, leave, then) -> None:
        (_, running), (second, held) = self.start(agent), self.start(agent)
        getattr(running, leave)(*([Refusal(kind=BUSY)] if leave == "turned_away" else []))
        assert agent.take_wakes() == (held.ticket,)
        after = held.again()
        # Nobody did the work: whoever asks first does it now.
        assert isinstance(after, Dispatch) is (then == "ok")
        answered = reply(after) if isinstance(after, Dispatch) else after
        assert outcome(second.answered([answered]).response) == then

    def test_a_held_call_waits_as_long_as_the_policy_says(self, agent, clock) -> None:
        _, (second, held) = self.start(agent), self.start(agent)
        clock.advance(2)
        held = held.again()
        assert held.seconds == 3.0
        clock.advance(3)
        refused = held.again()
        assert outcome(second.answered([refused]).response) == "asap:admission/still_running"

    def test_a_driver_that_cannot_wait_ends_the_hold(self, agent) -> None:
        _, (second, held) = self.start(agent), self.start(agent)
        assert outcome(second.answered([held.expired()]).response) == "asap:admission/still_running"
        with pytest.raises(IllegalMove):
            held.again()

    def test_the_policy_may_forbid_waiting(self) -> None:
        agent = serve(hold=0.0)
        _, (second, refused) = self.start(agent), self.start(agent)
        assert outcome(second.answered([refused]).response) == "asap:admission/still_running"

    @pytest.mark.parametrize("leave", ["again", "expired", "abandon", "fork"])
    def test_nothing_is_kept_of_calls_that_left(self, agent, leave) -> None:
        (first, running), (second, held), (third, other) = (self.start(agent) for _ in range(3))
        first.answered([reply(running)])
        assert len(agent.admission._held) == 1
        for fork, state in ((second, held), (third, other)):
            fork.abandon() if leave == "fork" else getattr(state, leave)()
        assert agent.admission._held == agent.admission._wakes == {}

    def test_a_caller_that_has_its_answer_may_still_leave(self, agent) -> None:
        (first, running), (second, held) = self.start(agent), self.start(agent)
        first.answered([reply(running)])
        assert isinstance(held.again(), Answered)
        second.abandon()
        assert agent.admission._held == {}

    def test_a_held_call_is_judged_again_by_the_present_time(self) -> None:
        agent = serve(start=StartPolicy.FLOOR)
        _, running = self.start(agent, envelope_changes={"timestamp": "2025-06-15T15:06:45Z"})
        second, held = self.start(agent)
        running.abandon()
        assert outcome(second.answered([held.again()]).response) == "asap:admission/restarted"

    def test_an_abandoned_fork_leaves_its_key_outcome_unknown(self, agent) -> None:
        fork, _ = self.start(agent)
        fork.abandon()
        assert outcome(post(agent, call(key="k"))) == "asap:admission/outcome_unknown"

    def test_another_payload_under_the_key_does_not_wait(self, agent) -> None:
        self.start(agent)
        payload = {"conversation_id": "c", "skill_id": "echo", "input": {"other": 1}}
        second, refused = self.start(agent, envelope_changes={"payload": payload})
        assert outcome(second.answered([refused]).response) == "asap:admission/key_mismatch"
