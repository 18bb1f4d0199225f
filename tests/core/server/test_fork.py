"""The calls of one request, one or many: the state `Fork`."""

import gzip
import json

import pytest

from asap_core import (
    Request,
)
from asap_core.server.events import What
from tests.builders import call
from tests.core.server.exchanges import finish, outcome, post, serve


class TestBatches:
    def test_answers_come_in_order(self) -> None:
        batch = [call(1), 5, call(3, method="x"), call(4, envelope_changes={"sender": "x"}), call(5)]
        response = post(serve(), batch)
        values = json.loads(response.body)
        assert [value["id"] for value in values] == [1, None, 3, 4, 5]
        assert ["error" in value for value in values] == [False, True, True, True, False]
        assert (response.status, dict(response.headers)[b"content-type"]) == (200, b"application/json")

    def test_a_batch_of_one_is_answered_by_a_batch(self) -> None:
        assert len(json.loads(post(serve(), [call()]).body)) == 1

    def test_a_compressed_batch_is_answered_by_a_batch(self) -> None:
        body = gzip.compress(json.dumps([call(), call()]).encode())
        assert len(json.loads(post(serve(), body, content_encoding="gzip").body)) == 2

    @pytest.mark.parametrize(("batch", "code"), [([], "asap:rpc/invalid_request"), ([1] * 51, "asap:rpc/batch_size")])
    def test_an_empty_or_too_long_batch_is_one_error(self, batch, code) -> None:
        assert outcome(post(serve(), batch)) == code

    def test_each_item_of_the_longest_batch_is_answered(self) -> None:
        assert len(json.loads(post(serve(), [1] * 50).body)) == 50

    def test_a_replay_within_a_batch_is_refused(self) -> None:
        same = call(1)
        values = json.loads(post(serve(), [same, {**same, "id": 2}]).body)
        assert ["error" in value for value in values] == [False, True]

    def test_the_header_key_stands_for_each_item_by_its_place(self) -> None:
        agent, told = serve(), []  # type: ignore[var-annotated]
        agent._observers, agent.observed = (told.append,), True
        batch = [call(1), call(2), call(3, key="k")]
        for _ in range(2):
            values = json.loads(post(agent, batch, x_idempotency_key="k").body)
            assert all("result" in value for value in values)
        assert [one.what for one in told] == [What.ACCEPTED] * 3 + [What.REPEATED] * 3

    def test_the_header_key_is_read_with_every_character_but_the_spaces_around_it(self) -> None:
        agent = serve()
        assert "result" in json.loads(post(agent, call(1, key="?k?"), x_idempotency_key="\t ?k? ").body)

    @pytest.mark.parametrize("keys", [[""], ["x" * 300], ["a", "b"]])
    def test_an_invalid_header_key_is_refused_for_each_item(self, keys) -> None:
        agent, batch = serve(), json.dumps([call(1), call(2, key="mine"), 5]).encode()
        headers = tuple((b"x-idempotency-key", key.encode()) for key in keys)
        state = agent.open(Request(method="POST", target="/asap", headers=headers, peer="192.0.2.1")).feed(batch).end()
        values = json.loads(finish(state).body)
        codes = [value["error"]["data"]["code"] for value in values]
        assert codes == ["asap:protocol/malformed_envelope"] * 2 + ["asap:rpc/invalid_request"]

    def test_an_item_with_another_key_than_the_header_is_refused(self) -> None:
        values = json.loads(post(serve(), [call(1, key="other"), call(2)], x_idempotency_key="k").body)
        assert ["error" in value for value in values] == [True, False]
        assert values[0]["error"]["data"]["validation_errors"][0]["path"] == "$.params.idempotency_key"
