"""One call that is admitted: the state `Dispatch`, and what its handler answers."""

import json

import pytest

from asap_core import (
    Refusal,
    Replied,
    TaskResponse,
    TaskStatus,
)
from asap_core.refusals import HANDLER_FAILED
from tests.builders import AGENT, ALICE, call
from tests.core.server.exchanges import finish, head, outcome, post, serve

MESSAGE = {"task_id": "t", "message_id": "m", "sender": ALICE, "role": "user", "parts": []}


class TestDispatch:
    def test_a_call_is_dispatched_and_answered(self) -> None:
        state = serve().open(head()).feed(json.dumps(call(7)).encode()).end()
        (dispatch,) = state.calls
        assert (dispatch.kind, dispatch.skill, dispatch.deadline) == ("taskrequest", "echo", 30.0)
        assert (dispatch.request.skill_id, dispatch.shielded) == ("echo", False)
        response = finish(state)
        value = json.loads(response.body)
        assert (response.status, value["id"], "error" in value, response.close) == (200, 7, False, False)
        assert dict(response.headers)[b"content-type"] == b"application/json"
        answer = value["result"]["envelope"]
        assert (answer["sender"], answer["recipient"], answer["correlation_id"]) == (AGENT, ALICE, dispatch.envelope.id)
        assert len(answer) == 11

    def test_a_typed_payload_is_an_answer(self) -> None:
        response = post(
            serve(), call(), answer=lambda state: state.replied(TaskResponse(task_id="t", status=TaskStatus.WORKING))
        )
        assert json.loads(response.body)["result"]["envelope"]["payload"]["status"] == "working"

    def test_a_refusal_by_the_handler_is_sent(self) -> None:
        refused = Refusal(kind=HANDLER_FAILED, note="Internal server error")
        assert outcome(post(serve(), call(), answer=lambda state: state.failed(refused))) == "asap:rpc/internal_error"

    def test_only_the_operator_learns_why_an_answer_cannot_be_sent(self) -> None:
        answers = []

        def nonsense(state):
            answers.append(state.replied(Replied("task.response", {"x": {1, 2}})))
            return answers[0]

        response = post(serve(), call(), answer=nonsense)
        assert outcome(response) == "asap:rpc/internal_error"
        assert "values that JSON has" in answers[0].fault
        assert "values that JSON has" not in response.body.decode()

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({}, "echo"),
            ({"payload_type": "message.send", "payload": MESSAGE}, "messagesend"),
        ],
    )
    def test_the_fault_names_the_skill_or_payload_type(self, changes, named) -> None:
        agent = serve(payload_types=["task.request", "message.send"])
        (dispatch,) = agent.open(head()).feed(json.dumps(call(envelope_changes=changes)).encode()).end().calls
        assert dispatch.replied(Replied("x", {"x": {1, 2}})).fault.startswith(f"{named}: ")

    def test_a_body_may_come_in_pieces(self) -> None:
        state = serve().open(head())
        for byte in json.dumps(call()).encode():
            state = state.feed(bytes([byte]))
        assert outcome(finish(state.end())) == "ok"

    def test_no_call_is_left_running(self) -> None:
        agent = serve()
        post(agent, call())
        assert agent.active == 0
