"""Refusals: their codes and messages."""

import json

import pytest
from hypothesis import given, strategies as st

from asap_core import (
    ReadBody,
)
from asap_core.testing import request_bodies, requests
from tests.builders import STAMP, call
from tests.core.server.exchanges import REFUSED, finish, outcome, post, serve


class TestRefusals:
    @pytest.mark.parametrize(("body", "code"), REFUSED, ids=[f"{n}-{code}" for n, (_, code) in enumerate(REFUSED)])
    def test_each_refusal_has_its_code_and_status_200(self, body, code) -> None:
        agent = serve()
        response = post(agent, body)
        assert (response.status, outcome(response)) == (200, code)
        assert len(agent.admission._guard) == 0

    def test_a_refusal_has_the_id_of_the_call_if_it_is_readable(self) -> None:
        assert json.loads(post(serve(), call("mine", method=5)).body)["id"] == "mine"
        assert json.loads(post(serve(), call({}, method=5)).body)["id"] is None

    def test_every_structural_error_is_listed(self) -> None:
        value = json.loads(post(serve(), {"jsonrpc": 1, "x": 1}).body)
        paths = {error["path"] for error in value["error"]["data"]["validation_errors"]}
        assert paths == {"$", "$.jsonrpc", "$.method", "$.id", "$.params"}

    def test_a_refused_timestamp_is_answered_with_the_servers_time(self) -> None:
        details = json.loads(post(serve(), call(envelope_changes={"timestamp": 0})).body)["error"]["data"]
        assert details["details"]["server_time"] == STAMP
        assert details["retry_after_ms"] == 5000
        ahead = json.loads(post(serve(), call(envelope_changes={"timestamp": "2030-01-01"})).body)["error"]["data"]
        assert ahead["details"]["future_offset_seconds"] > 0

    @pytest.mark.parametrize("edge", ["2025-06-15T15:01:40Z", "2025-06-15T15:07:10Z"])
    def test_a_timestamp_at_the_edge_of_the_window_is_accepted(self, edge) -> None:
        assert outcome(post(serve(), call(envelope_changes={"timestamp": edge}))) == "ok"

    def test_a_refused_payload_type_is_answered_with_the_supported_ones(self) -> None:
        agent = serve(payload_types=["task.request", "message.send"])
        other = call(envelope_changes={"payload_type": "no.such"})
        for target, supported in (("/asap", ["messagesend", "taskrequest"]), ("/asap/stream", [])):
            value = json.loads(post(agent, other, target=target).body)
            assert value["error"]["data"]["details"]["supported"] == supported

    @given(request_bodies())
    def test_any_body_gets_one_json_answer_without_internal_details(self, body) -> None:
        response = post(serve(), body)
        assert response.status in (200, 413, 503)
        json.loads(response.body)

    @given(requests(), st.lists(st.binary(max_size=20), max_size=3))
    def test_any_head_gets_one_answer(self, request, chunks) -> None:
        state = serve(max_body=30).open(request)
        for chunk in chunks:
            if isinstance(state, ReadBody):
                state = state.feed(chunk)
        state = state.end() if isinstance(state, ReadBody) else state
        response = finish(state)
        assert 200 <= response.status < 600
        assert response.status != 500
