"""The decisions that observers get."""

import json

import pytest

from asap_core import (
    parse_limits,
)
from asap_core.refusals import HANDLER_FAILED, HANDLER_TIMEOUT, KINDS, TIMESTAMP
from asap_core.server.events import DECISION_OF, Decision, What
from tests.builders import ALICE, call
from tests.core.server.exchanges import REFUSED, finish, head, post, serve


class TestDecisions:
    """Each is told once, as what it was, with nothing in it that's secret or a stranger's text."""

    @pytest.fixture
    def told(self):
        return []

    @pytest.fixture
    def agent(self, told):
        return serve(observe=told.append)

    def test_accepted_and_repeated_requests_are_reported(self, agent, told) -> None:
        post(agent, call(key="k"))
        post(agent, call(key="k"))
        facts = {"peer": "192.0.2.1", "payload_type": "taskrequest"}
        assert told == [Decision(what=What.ACCEPTED, **facts), Decision(what=What.REPEATED, **facts)]  # type: ignore[arg-type]

    WHAT = {
        "asap:rpc/parse_error": What.MALFORMED,
        "asap:rpc/invalid_request": What.MALFORMED,
        "asap:rpc/method_not_found": What.UNKNOWN,
        "asap:protocol/malformed_envelope": What.MALFORMED,
        "asap:admission/misaddressed": What.MISADDRESSED,
        "asap:transport/handler_not_found": What.UNKNOWN,
    }

    @pytest.mark.parametrize(("body", "code"), REFUSED, ids=[f"{n}-{code}" for n, (_, code) in enumerate(REFUSED)])
    def test_each_refusal_is_reported_as_its_decision(self, agent, told, body, code) -> None:
        post(agent, body)
        (decision,) = told
        if code == "asap:protocol/invalid_timestamp":
            assert decision.what in (What.STALE, What.FUTURE)
            assert (decision.age > 0) is (decision.what is What.STALE)
        else:
            assert decision.what is self.WHAT[code]
        assert decision.kind.taxonomy == code

    def test_a_replay_names_its_peer_and_principal(self, told) -> None:
        agent, same = serve(auth=True, observe=told.append), call(envelope_changes={"extensions": {"nonce": "secret"}})
        post(agent, same, authorization="Bearer t")
        post(agent, same, authorization="Bearer t")
        assert [decision.what for decision in told] == [What.ACCEPTED, What.REPLAYED]
        assert {decision.principal for decision in told} == {ALICE}
        assert "secret" not in repr(told)

    def test_a_forged_sender_is_reported_as_spoofed(self, told) -> None:
        forged = call(envelope_changes={"sender": "urn:asap:agent:mallory"})
        post(serve(auth=True, observe=told.append), forged, authorization="Bearer t")
        assert [(one.what, one.principal) for one in told] == [(What.SPOOFED, ALICE)]
        assert "mallory" not in repr(told)

    def test_an_invalid_token_is_reported_as_unauthenticated(self, told) -> None:
        agent = serve(auth=True, observe=told.append)
        finish(agent.open(head()))
        finish(agent.open(head(authorization="Bearer a b")))
        agent.open(head(authorization="Bearer token-of-somebody")).refused()
        assert [one.what for one in told] == [What.UNAUTHENTICATED] * 3
        agent.open(head(authorization="Bearer x")).unavailable()
        assert told[-1].what is What.UNAVAILABLE
        assert "token" not in repr([(one.peer, one.principal, one.payload_type, one.age) for one in told])

    def test_each_item_of_a_batch_over_its_limit_is_reported(self, told) -> None:
        agent = serve(observe=told.append, peer_limits=parse_limits("3/second"))
        post(agent, [call(), call(), call(), call(), call()])
        assert [one.what for one in told].count(What.ACCEPTED) == 3
        assert [one.what for one in told].count(What.LIMITED) == 2
        told.clear()
        post(agent, call())
        assert [one.what for one in told] == [What.LIMITED]

    def test_unreadable_bodies_are_reported(self, told) -> None:
        agent = serve(observe=told.append, max_body=100)
        post(agent, b"x" * 101)
        post(agent, b"x", content_encoding="gzip")
        post(agent, b"x", content_encoding="zstd")
        finish(agent.open(head(content_length="101")))
        assert [one.what for one in told] == [What.UNREADABLE] * 4

    def test_an_unsettled_key_is_reported(self, agent, told) -> None:
        fork = agent.open(head()).feed(json.dumps(call(key="k")).encode()).end()
        (held,) = agent.open(head()).feed(json.dumps(call(key="k")).encode()).end().calls
        assert [one.what for one in told] == [What.ACCEPTED]
        held.expired()
        assert told[-1].what is What.UNSETTLED
        fork.calls[0].lost()
        post(agent, call(key="k"))
        assert [one.what for one in told] == [What.ACCEPTED, What.UNSETTLED, What.UNSETTLED]

    def test_only_payload_types_that_the_agent_accepts_are_named(self, agent, told) -> None:
        post(agent, call(envelope_changes={"payload_type": "anything<script>"}))
        assert [(one.what, one.payload_type) for one in told] == [(What.UNKNOWN, None)]

    def test_documents_are_no_decisions(self, agent, told) -> None:
        finish(agent.open(head("GET", "/health")))
        finish(agent.open(head("GET", "/nothing")))
        assert told == []

    def test_every_refusal_stands_for_a_decision_or_has_a_reason(self) -> None:
        reasons = {
            HANDLER_FAILED: "the call was accepted, which was its decision",
            HANDLER_TIMEOUT: "the call was accepted, which was its decision",
            TIMESTAMP: "stale or from the future, depending on its age",
        }
        assert set(DECISION_OF) == {kind.taxonomy for kind in KINDS if kind not in reasons}
