"""Replies to a sent envelope: taken only if they answer it; any bytes give a reply, a refusal, or why it's unusable."""

import json
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, strategies as st

from asap_core.client.replies import (
    SentCall,
    UnusableReply,
    is_unauthorized,
    read_batch_reply,
    read_reply,
    retry_after_of,
)
from asap_core.errors import (
    RemoteError,
)
from asap_core.testing import json_values
from asap_core.wire.codec import decode_envelope, encode_envelope

ASKED = decode_envelope(
    {
        "id": "e1", "asap_version": "0.1", "timestamp": "2026-01-01T00:00:00Z", "sender": "urn:asap:agent:me",
        "recipient": "urn:asap:agent:you", "payload_type": "task.request", "payload": {},
    }
)  # fmt: skip
SENT = SentCall("req-1", ASKED)
REPLY = {
    **encode_envelope(ASKED), "id": "e2", "sender": "urn:asap:agent:you", "recipient": "urn:asap:agent:me",
    "correlation_id": "e1", "payload_type": "task.response",
}  # fmt: skip


def read(value, status=200, sent=SENT):
    return read_reply(sent, status=status, body=value if isinstance(value, bytes) else json.dumps(value).encode())


class TestReplies:
    def test_a_matching_reply_is_accepted(self) -> None:
        assert read({"jsonrpc": "2.0", "id": "req-1", "result": {"envelope": REPLY}}).id == "e2"

    @pytest.mark.parametrize(
        "value",
        [
            b"", b"<html>", 5, [], {}, {"id": "req-1"}, {"id": "req-1", "result": {}},
            {"id": "req-1", "result": 5},
            {"id": "other", "result": {"envelope": REPLY}},
            {"id": "req-1", "result": {"envelope": REPLY}, "error": None},
            {"id": "req-1", "result": {"envelope": {**REPLY, "correlation_id": "x"}}},
            {"id": "req-1", "result": {"envelope": {**REPLY, "sender": "urn:asap:agent:x"}}},
            {"id": "req-1", "result": {"envelope": {**REPLY, "recipient": "urn:asap:agent:x"}}},
            {"error": 5}, {"detail": 5},
        ],
    )  # fmt: skip
    def test_a_mismatched_reply_is_unusable(self, value) -> None:
        assert isinstance(read(value), UnusableReply)

    def test_errors_of_2_x_are_read(self) -> None:
        error = {
            "code": -32002, "message": "Too old",
            "data": {
                "code": "asap:protocol/invalid_timestamp", "recoverable": True, "retry_after_ms": 5000,
                "details": {"a": 1},
            },
        }  # fmt: skip
        found = read({"id": "req-1", "error": error})
        assert (found.code, found.taxonomy, found.recoverable, found.retry_after, found.details) == (
            -32002, "asap:protocol/invalid_timestamp", True, 5.0, {"a": 1},
        )  # fmt: skip
        assert "Too old" in str(found)
        assert "retry after 5 s" in str(found)

    def test_the_problems_of_an_envelope_reach_the_sender(self) -> None:
        problems = [{"loc": ["params", "envelope", "sender"], "msg": "expected an agent URN"}]
        for extra in ({}, {"details": {"a": 1}}):
            found = read({"error": {"code": -32602, "data": {**extra, "validation_errors": problems}}})
            assert found.details == {**extra.get("details", {}), "validation_errors": problems}
            assert str(found) == "the agent refused: refused: params.envelope.sender: expected an agent URN [-32602]"

    @pytest.mark.parametrize(
        ("problems", "told"),
        [
            ([{"loc": ["a", 3], "msg": "m"}, {"msg": "n"}], "no: a.3: m [1]"),
            ([{"loc": [["x"], None, True], "msg": "m"}], "no: m [1]"),
            ([{"loc": "a", "msg": "m\x1b[2J\nx"}], "no: m [2J x [1]"),
            ([{"loc": ["a"], "msg": 5}], "no: a [1]"),
            ([{"msg": "m" * 1_000}], f"no: {'m' * 200} [1]"),
            ([{}], "no: a problem that it doesn't name [1]"),
            ([5], "no: a problem that it doesn't name [1]"),
            ([], "no [1]"),
            ("x", "no [1]"),
        ],
    )
    def test_the_message_names_the_first_problem(self, problems, told) -> None:
        found = read({"error": {"code": 1, "message": "no", "data": {"validation_errors": problems}}})
        assert str(found) == f"the agent refused: {told}"

    def test_errors_of_1_1_are_read(self) -> None:
        found = read(
            {"id": None, "error": {"code": -32601, "message": "Method not found", "data": {"error": "No handler"}}}
        )
        assert (found.code, found.taxonomy, found.message) == (-32601, "", "Method not found (No handler)")
        assert read({"error": {"code": "x", "message": 5, "data": []}}).message == "refused"
        limited = read({"error": {"code": 429, "data": {"retry_after": 3}}}, 429)
        assert (limited.recoverable, limited.retry_after) == (True, 3.0)

    def test_refusals_below_json_rpc_are_read(self) -> None:
        found = read({"detail": "Request size exceeds"}, 413)
        assert (found.code, found.status, found.recoverable) == (413, 413, False)
        found = read({"error": "Service Temporarily Unavailable", "code": "asap:transport/thread_pool_exhausted"}, 503)
        assert (found.taxonomy, found.recoverable) == ("asap:transport/thread_pool_exhausted", True)

    @pytest.mark.parametrize("wait", [-1, True, "5", 1e300, None])
    def test_an_invalid_retry_after_is_ignored(self, wait) -> None:
        assert read({"error": {"code": 1, "data": {"retry_after_ms": wait}}}).retry_after is None

    def test_remote_text_is_short_and_on_one_line(self) -> None:
        found = read({"error": {"code": 1, "message": "a\nb\x1b[31m" + "x" * 10_000}})
        assert "\n" not in found.message
        assert len(found.message) < 600

    def test_a_batch_is_matched_by_id_and_by_place(self) -> None:
        other = SentCall("req-2", evolve(ASKED, id="e9"))
        second = {"id": "req-2", "result": {"envelope": {**REPLY, "correlation_id": "e9"}}}
        first = {"id": "req-1", "result": {"envelope": REPLY}}
        body = json.dumps([second, first]).encode()
        found = read_batch_reply((SENT, other), status=200, body=body)
        assert [one.correlation_id for one in found] == ["e1", "e9"]  # type: ignore[union-attr]
        found = read_batch_reply(
            (SENT, other), status=200, body=json.dumps([{"error": {"code": 7}, "id": None}]).encode()
        )
        assert (found[0].code, isinstance(found[1], UnusableReply)) == (7, True)  # type: ignore[index,union-attr]

    def test_a_batch_refused_as_a_whole_is_one_refusal(self) -> None:
        assert isinstance(read_batch_reply((SENT,), status=200, body=b"x"), UnusableReply)
        for status, told in ((200, ""), (502, " with HTTP 200, not HTTP 502")):
            wanted = f"expected one JSON text; it stops being JSON at character 0{told}"
            assert read_reply(SENT, status=status, body=b"x") == UnusableReply(wanted)
        assert isinstance(read_batch_reply((SENT,), status=200, body=b'{"error": {"code": 3}}'), RemoteError)
        named = b'{"error": {"code": 3}, "id": "req-1"}'
        assert isinstance(read_batch_reply((SENT,), status=200, body=named), UnusableReply)

    @given(json_values() | st.binary(max_size=30).map(repr), st.integers(100, 599))
    def test_any_answer_is_read_without_an_exception(self, value, status) -> None:
        read(value, status)
        read_batch_reply((SENT, SENT), status=status, body=json.dumps(value).encode())


class TestErrorsAndCallIds:
    """An error names this call, or none; and it's the agent's own, or may be a proxy's."""

    def error(self, **members):
        return {"jsonrpc": "2.0", "error": {"code": 7, "message": "no"}, **members}

    @pytest.mark.parametrize("call_id", ["req-1", 1])
    def test_an_error_with_this_calls_id_or_no_id_is_accepted(self, call_id) -> None:
        sent = evolve(SENT, call_id=call_id)
        for members in ({"id": call_id}, {"id": None}, {"id": ""}, {}):
            assert read(self.error(**members), sent=sent).code == 7

    @pytest.mark.parametrize(
        ("call_id", "named"),
        [("req-1", "req-2"), ("req-1", 0), ("req-1", False), ("req-1", []), ("1", 1), (1, "1"), (1, True), (1, 1.0)],
    )
    def test_an_error_with_another_calls_id_is_unusable(self, call_id, named) -> None:
        sent = evolve(SENT, call_id=call_id)
        for status in (200, 401, 429, 503):
            assert isinstance(read(self.error(id=named), status, sent), UnusableReply)
        result = {"id": named, "result": {"envelope": REPLY}}
        assert isinstance(read(result, sent=sent), UnusableReply)
        for members in ({"id": named}, {"id": named, "jsonrpc": "2.0"}):
            answered = read_batch_reply((sent,), status=200, body=json.dumps([members]).encode())
            assert isinstance(answered, tuple)
            assert isinstance(answered[0], UnusableReply)

    @pytest.mark.parametrize("call_id", ["req-1", "0", 0, 1])
    def test_a_result_of_this_call_is_accepted(self, call_id) -> None:
        sent, result = evolve(SENT, call_id=call_id), {"id": call_id, "result": {"envelope": REPLY}}
        assert read(result, sent=sent).id == "e2"
        assert read_batch_reply((sent,), status=200, body=json.dumps([result]).encode())[0].id == "e2"  # type: ignore[index,union-attr]

    @pytest.mark.parametrize("named", [None, ""])
    def test_a_result_with_another_calls_id_is_unusable(self, named) -> None:
        assert isinstance(read({"id": named, "result": {"envelope": REPLY}}), UnusableReply)

    def test_in_a_batch_an_answer_is_matched_by_place_only_without_an_id(self) -> None:
        sent = (SENT, SentCall("req-2", evolve(ASKED, id="e9")), SentCall("req-3", evolve(ASKED, id="e10")))

        def codes(*items):
            found: Any = read_batch_reply(sent, status=200, body=json.dumps(items).encode())
            return [one.code if isinstance(one, RemoteError) else None for one in found]

        def item(code: int, **members):
            return {"error": {"code": code}, **members}

        assert codes(item(1, id="req-3"), item(2, id=None), item(3, id="req-1")) == [3, 2, 1]
        assert codes(item(1, id="other"), item(2, id="req-2"), item(3)) == [None, 2, 3]
        assert codes(item(1, id="req-1"), item(2, id="req-1"), item(3, id="req-3")) == [None, None, 3]
        assert codes(item(1, id="req-1"), item(2, id="more"), item(3, id=[1]), item(4, id="req-2")) == [1, 4, None]
        assert codes({"error": "busy", "code": "asap:x"}) == [200, None, None]

    @pytest.mark.parametrize(
        ("value", "own"),
        [
            ({"jsonrpc": "2.0", "id": None, "error": {"code": -32603, "message": "no"}}, True),
            ({"error": "busy", "code": "asap:transport/thread_pool_exhausted"}, True),
            ({"code": "asap:auth/required"}, True),
            ({"error": {"code": 1, "data": {"code": "asap:x"}}}, True),
            ({"detail": "Service Unavailable"}, False),
            ({"detail": "no", "code": "ASAP:x"}, False),
            ({"detail": "no", "code": ["asap:x"]}, False),
            # Google's and others' gateways.
            ({"error": {"code": 503, "message": "no", "status": "UNAVAILABLE"}}, False),
            ({"jsonrpc": "2.0", "error": {"code": "503", "message": "no"}}, False),
            ({"jsonrpc": "2.0", "error": {"code": True, "message": "no"}}, False),
        ],
    )
    def test_an_error_is_the_agents_own_if_it_is_json_rpc_or_has_an_asap_code(self, value, own) -> None:
        for status in (200, 403, 500, 502, 503, 504):
            found = read(value, status)
            assert (found.own, found.recoverable) == (own, own and status == 503)
        assert read(value, 429).recoverable

    def test_the_error_says_if_it_is_recoverable(self) -> None:
        for said in (True, False):
            body = {"error": "busy", "code": "asap:x", "recoverable": said, "retry_after_ms": 1500}
            assert [read(body, status).recoverable for status in (200, 502, 503)] == [said] * 3
            assert (read(body, 503).retry_after, read(body, 503).message) == (1.5, "busy")
            proxy = {"error": {"message": "no", "data": {"recoverable": said}}}
            assert not read(proxy, 503).recoverable

    def test_the_longer_wait_counts(self) -> None:
        body = json.dumps({"error": "busy", "code": "asap:x", "retry_after": 2}).encode()
        for told, found in ((None, 2.0), (1.0, 2.0), (3.0, 3.0)):
            assert read_reply(SENT, status=503, body=body, retry_after=told).retry_after == found  # type: ignore[union-attr]


class TestRetryAfterHeaders:
    NOW = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT

    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ([], None),
            ([("Retry-After", "3")], 3.0),
            ([("retry-after", " 3 ")], 3.0),
            ([("retry-after", "3"), ("RETRY-AFTER", "7"), ("retry-after", "soon")], 7.0),
            ([("retry-after", "soon")], None),
            ([("retry-after", "-1")], None),
            ([("retry-after", "1.5")], 1.5),
            ([("retry-after", "1.5.5")], None),
            ([("retry-after", "1e5")], None),
            ([("retry-after", "Sun, 06 Nov 1994 08:49:47 GMT")], 10.0),
            ([("retry-after", "Sun, 06 Nov 1994 08:49:07 GMT")], 0.0),
            # By the server's clock, if it shows one.
            ([("retry-after", "Sun, 06 Nov 1994 08:49:47 GMT"), ("date", "Sun, 06 Nov 1994 08:49:45 GMT")], 2.0),
            ([("retry-after", "Sun, 06 Nov 1994 08:49:47 GMT"), ("date", "today")], 10.0),
        ],
    )
    def test_retry_after_is_seconds_or_a_date(self, headers, seconds) -> None:
        assert retry_after_of(headers, wall=self.NOW) == seconds  # type: ignore[arg-type]


class TestUnauthorized:
    def refusal(self, data, call_id=None) -> bytes:
        return json.dumps({"jsonrpc": "2.0", "id": call_id, "error": {"code": -32600, "data": data}}).encode()

    def test_a_401_with_another_calls_id_is_ignored(self) -> None:
        assert is_unauthorized(200, self.refusal({"status_code": 401}, "req-1"), "req-1")
        assert not is_unauthorized(200, self.refusal({"status_code": 401}, "req-2"), "req-1")

    def test_status_401_is_unauthorized(self) -> None:
        assert is_unauthorized(401, b"")
        assert not is_unauthorized(403, self.refusal({"status_code": 403}))
        assert not is_unauthorized(200, b"{}")

    def test_status_code_401_in_error_data_is_unauthorized(self) -> None:
        assert is_unauthorized(200, self.refusal({"error": "Invalid authentication token", "status_code": 401}))
        assert not is_unauthorized(200, self.refusal({"status_code": "401"}))
        assert not is_unauthorized(200, self.refusal([401]))

    @pytest.mark.parametrize("body", [b"401", b"[401]", b"{401", b'{"error": 401}', b'{"result": 401}', b"401" * 5_000])
    def test_other_bodies_are_not_unauthorized(self, body) -> None:
        assert not is_unauthorized(200, body)
