"""The server's decisions, without a network: every request gets one, in the order that spends least on strangers."""

import gzip
import itertools
import json
from typing import Any

import pytest
from attrs import asdict, evolve
from hypothesis import given, strategies as st

from asap_core import (
    Admit,
    Agent,
    Anonymous,
    Answered,
    Authenticate,
    Authenticated,
    AuthScheme,
    Capabilities,
    Dispatch,
    Done,
    Endpoints,
    Fork,
    Hold,
    Manifest,
    ManualClock,
    NoncePolicy,
    Policy,
    ReadBody,
    Record,
    Refusal,
    Replied,
    Request,
    Respond,
    Skill,
    StartPolicy,
    TakeLimit,
    TaskResponse,
    TaskStatus,
    parse_limits,
)
from asap_core.admission import admission
from asap_core.admission.ratelimit import Left, Limiter
from asap_core.admission.replay import Floored, Replayed, Saturated
from asap_core.clock import WallTime
from asap_core.refusals import BUSY, HANDLER_FAILED, KINDS
from asap_core.server.call import abandon_call
from asap_core.server.call_run import IllegalMove
from asap_core.server.events import WHAT_OF, Decision, What
from asap_core.server.exchange import refuse_head
from asap_core.server.metrics import Counters
from asap_core.testing import request_bodies, requests
from asap_core.wire.jsonrpc import MAX_ID

AGENT, ALICE = "urn:asap:agent:echo-agent", "urn:asap:agent:alice"
NUMBERS = itertools.count()
STAMP = "2025-06-15T15:06:40Z"  # ManualClock's


def manifest(*, auth=False, **changes):
    fields = {
        "id": AGENT, "name": "Echo", "version": "1.0.0", "description": "",
        "capabilities": Capabilities(skills=[Skill(id="echo", description="")]),
        "endpoints": Endpoints(asap="https://a.example/asap"),
        "auth": AuthScheme(schemes=["Bearer"]) if auth else None,
    }  # fmt: skip
    return Manifest(**{**fields, **changes})


def serve(
    *,
    auth=False,
    clock=None,
    shared=False,
    shared_limits=(),
    payload_types=("task.request",),
    aliases=(),
    observe=None,
    counters=None,
    **policy,
):
    fields = {"peer_limits": (), "start": StartPolicy.OPEN, **policy}
    agent = Agent(manifest(auth=auth), policy=Policy(**fields), payload_types=payload_types, aliases=aliases)
    return agent.bind(
        clock=clock or ManualClock(), ids=lambda: f"id-{next(NUMBERS)}", key=b"k" * 32,
        shared_admission=shared, shared_limits=shared_limits, observe=observe, counters=counters,
    )  # fmt: skip


def envelope(**changes):
    fields = {
        "id": f"e-{next(NUMBERS)}", "asap_version": "0.1", "timestamp": STAMP, "sender": ALICE, "recipient": AGENT,
        "payload_type": "task.request", "payload": {"conversation_id": "c", "skill_id": "echo", "input": {}},
    }  # fmt: skip
    return {key: value for key, value in {**fields, **changes}.items() if value is not ...}


def call(number=1, *, key=None, envelope_changes=None, **changes):
    params = {"envelope": envelope(**(envelope_changes or {}))}
    if key is not None:
        params["idempotency_key"] = key
    return {"jsonrpc": "2.0", "method": "asap.send", "id": number, "params": params, **changes}


def body():
    return json.dumps(call()).encode()


def head(method="POST", target="/asap", peer="192.0.2.1", **headers):
    pairs = tuple((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items())
    return Request(method=method, target=target, headers=pairs, peer=peer)


def reply(state):
    return state.replied(Replied("task.response", {"task_id": "t", "status": "completed"}))


def finish(state, *, answer=reply):
    """Drive to the response, every dispatch answered by `answer`."""
    while not isinstance(state, Respond):
        match state:
            case Authenticate():
                state = state.verified(Authenticated(ALICE))
            case Fork():
                state = state.answered([answer(one) if isinstance(one, Dispatch) else one for one in state.calls])  # type: ignore[misc]
    return state.response


def post(agent, body, *, answer=reply, peer="192.0.2.1", **headers):
    state = agent.open(head(peer=peer, **headers))
    if isinstance(state, Authenticate):
        state = state.verified(Authenticated(ALICE))
    if isinstance(state, ReadBody):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        state = state.feed(data)
        state = state.end() if isinstance(state, ReadBody) else state
    return finish(state, answer=answer)


def outcome(response):
    """The taxonomy of the refusal, or "ok"."""
    value = json.loads(response.body)
    assert ("error" in value) is not ("result" in value), value
    return value["error"]["data"]["code"] if "error" in value else "ok"


class TestDocuments:
    @pytest.mark.parametrize(
        "target",
        [
            "/health",
            "/ready",
            "/.well-known/asap/health",
            "/.well-known/asap/manifest.json",
            "/health?x",
            "http://host/health",
        ],
    )
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    def test_are_answered_at_once(self, method, target) -> None:
        response = finish(serve().open(head(method, target)))
        assert response.status == 200
        assert dict(response.headers)[b"asap-version"] == b"2.2"
        assert (response.body == b"") is (method == "HEAD")
        assert int(dict(response.headers)[b"content-length"]) > 0

    def test_the_manifest_is_revalidated(self) -> None:
        agent = serve()
        first = finish(agent.open(head("GET", "/.well-known/asap/manifest.json")))
        tag = dict(first.headers)[b"etag"].decode()
        assert dict(first.headers)[b"cache-control"] == b"public, max-age=300"
        for wanted in (tag, f"W/{tag}", "*", f'"x", {tag}', f'"x, y",{tag}'):
            again = finish(agent.open(head("GET", "/.well-known/asap/manifest.json", if_none_match=wanted)))
            assert (again.status, again.body, b"content-length" in dict(again.headers)) == (304, b"", False)
        for other in ('"x"', "x", "", tag.strip('"'), f'"x,{tag}', '"x,*,y"'):
            assert finish(agent.open(head("GET", "/.well-known/asap/manifest.json", if_none_match=other))).status == 200

    def test_the_manifest_has_later_keys_only_where_they_say_something(self) -> None:
        body = json.loads(finish(serve().open(head("GET", "/.well-known/asap/manifest.json"))).body)
        assert not {"supported_versions", "sla", "verification"} & set(body)
        assert not {"hardware", "inference"} & set(body["capabilities"])
        agent = Agent(manifest(supported_versions=["2.2"]))
        assert json.loads(agent.document.body)["supported_versions"] == ["2.2"]

    def test_uptime_and_load_are_told(self) -> None:
        clock = ManualClock()
        agent = serve(clock=clock)
        clock.advance(2.5)
        clock.step_wall(-3600)
        agent.started("caller")
        report = json.loads(finish(agent.open(head("GET", "/.well-known/asap/health"))).body)
        assert (report["uptime_seconds"], report["load"], report["status"]) == (
            2.5, {"active_tasks": 1, "queue_depth": 0}, "healthy",
        )  # fmt: skip

    def test_draining_is_told_to_probes(self) -> None:
        agent = serve()
        agent.drain()
        statuses = [
            finish(agent.open(head("GET", target))).status
            for target in ("/ready", "/.well-known/asap/health", "/health")
        ]
        assert statuses == [503, 503, 200]

    @pytest.mark.parametrize(
        ("method", "target", "status", "allow"),
        [
            ("GET", "/asap", 405, b"POST"),
            ("HEAD", "/asap", 405, b"POST"),
            ("PUT", "/asap/stream", 405, b"POST"),
            ("POST", "/health", 405, b"GET, HEAD"),
            ("get", "/health", 405, b"GET, HEAD"),
            ("GET", "/", 404, None),
            ("POST", "/asapx", 404, None),
            ("OPTIONS", "*", 404, None),
            ("CONNECT", "host:443", 404, None),
            ("GET", "http://host", 404, None),
        ],
    )
    def test_other_methods_and_paths_are_refused(self, method, target, status, allow) -> None:
        response = finish(serve().open(head(method, target)))
        assert (response.status, dict(response.headers).get(b"allow"), response.close) == (status, allow, True)


class TestOneCall:
    def test_is_dispatched_and_answered(self) -> None:
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

    def test_a_refusal_of_the_handlers_is_an_answer(self) -> None:
        refused = Refusal(kind=HANDLER_FAILED, note="Internal server error")
        assert outcome(post(serve(), call(), answer=lambda state: state.failed(refused))) == "asap:rpc/internal_error"

    def test_what_cannot_be_sent_is_told_to_the_operator_only(self) -> None:
        answers = []

        def nonsense(state):
            answers.append(state.replied(Replied("task.response", {"x": {1, 2}})))
            return answers[0]

        response = post(serve(), call(), answer=nonsense)
        assert outcome(response) == "asap:rpc/internal_error"
        assert "values that JSON has" in answers[0].fault
        assert "values that JSON has" not in response.body.decode()

    def test_a_body_may_come_in_pieces(self) -> None:
        state = serve().open(head())
        for byte in json.dumps(call()).encode():
            state = state.feed(bytes([byte]))
        assert outcome(finish(state.end())) == "ok"

    def test_nothing_is_left_running(self) -> None:
        agent = serve()
        post(agent, call())
        assert agent.active == 0


REFUSED = [
    (b"", "asap:rpc/parse_error"),
    (b"not json", "asap:rpc/parse_error"),
    (b'{"a":1,"a":2}', "asap:rpc/parse_error"),
    (b"[" * 1000 + b"]" * 1000, "asap:rpc/parse_error"),
    (5, "asap:rpc/invalid_request"),
    ({}, "asap:rpc/invalid_request"),
    (call(jsonrpc="1.0"), "asap:rpc/invalid_request"),
    (call(method=5), "asap:rpc/invalid_request"),
    (call(more=1), "asap:rpc/invalid_request"),
    ({key: value for key, value in call().items() if key != "id"}, "asap:rpc/invalid_request"),
    (call(None), "asap:rpc/invalid_request"),
    (call(1.5), "asap:rpc/invalid_request"),
    (call(True), "asap:rpc/invalid_request"),
    (call({}), "asap:rpc/invalid_request"),
    (call("x" * 300), "asap:rpc/invalid_request"),
    (call(2**63), "asap:rpc/invalid_request"),
    ({key: value for key, value in call().items() if key != "params"}, "asap:rpc/invalid_request"),
    (call(method="other"), "asap:rpc/method_not_found"),
    (call(params=[]), "asap:protocol/malformed_envelope"),
    (call(params={}), "asap:protocol/malformed_envelope"),
    (call(params={"envelope": 5}), "asap:protocol/malformed_envelope"),
    (call(key=""), "asap:protocol/malformed_envelope"),
    (call(key="x" * 300), "asap:protocol/malformed_envelope"),
    (call(envelope_changes={"sender": "x"}), "asap:protocol/malformed_envelope"),
    (call(envelope_changes={"timestamp": ...}), "asap:protocol/malformed_envelope"),
    (call(envelope_changes={"id": ...}), "asap:protocol/malformed_envelope"),
    (call(envelope_changes={"recipient": "urn:asap:agent:other"}), "asap:admission/misaddressed"),
    (call(envelope_changes={"timestamp": "2025-06-15T15:01:39Z"}), "asap:protocol/invalid_timestamp"),
    (call(envelope_changes={"timestamp": "2025-06-15T15:07:11Z"}), "asap:protocol/invalid_timestamp"),
    (call(envelope_changes={"payload_type": "no.such"}), "asap:transport/handler_not_found"),
    (call(envelope_changes={"payload": {}}), "asap:protocol/malformed_envelope"),
    (
        call(envelope_changes={"payload": {"conversation_id": "c", "skill_id": "no", "input": {}}}),
        "asap:transport/handler_not_found",
    ),
    (call(envelope_changes={"extensions": {"nonce": ""}}), "asap:protocol/malformed_envelope"),
    (call(envelope_changes={"extensions": {"nonce": 5}}), "asap:protocol/malformed_envelope"),
]


class TestRefusals:
    @pytest.mark.parametrize(("body", "code"), REFUSED, ids=[f"{n}-{code}" for n, (_, code) in enumerate(REFUSED)])
    def test_each_has_its_code_and_status_200(self, body, code) -> None:
        agent = serve()
        response = post(agent, body)
        assert (response.status, outcome(response)) == (200, code)
        assert len(agent.admission._guard) == 0

    def test_the_id_comes_back_where_it_was_readable(self) -> None:
        assert json.loads(post(serve(), call("mine", method=5)).body)["id"] == "mine"
        assert json.loads(post(serve(), call({}, method=5)).body)["id"] is None

    def test_every_structural_error_is_listed(self) -> None:
        value = json.loads(post(serve(), {"jsonrpc": 1, "x": 1}).body)
        paths = {error["path"] for error in value["error"]["data"]["validation_errors"]}
        assert paths == {"$", "$.jsonrpc", "$.method", "$.id", "$.params"}

    def test_a_timestamp_outside_the_window_is_told_the_servers_time(self) -> None:
        details = json.loads(post(serve(), call(envelope_changes={"timestamp": 0})).body)["error"]["data"]
        assert details["details"]["server_time"] == STAMP
        assert details["retry_after_ms"] == 5000
        ahead = json.loads(post(serve(), call(envelope_changes={"timestamp": "2030-01-01"})).body)["error"]["data"]
        assert ahead["details"]["future_offset_seconds"] > 0

    @pytest.mark.parametrize("edge", ["2025-06-15T15:01:40Z", "2025-06-15T15:07:10Z"])
    def test_a_timestamp_at_the_edge_of_the_window_is_in_it(self, edge) -> None:
        assert outcome(post(serve(), call(envelope_changes={"timestamp": edge}))) == "ok"

    def test_what_there_are_handlers_for_is_told(self) -> None:
        agent = serve(payload_types=["task.request", "message.send"])
        other = call(envelope_changes={"payload_type": "no.such"})
        for target, supported in (("/asap", ["messagesend", "taskrequest"]), ("/asap/stream", [])):
            value = json.loads(post(agent, other, target=target).body)
            assert value["error"]["data"]["details"]["supported"] == supported

    @given(request_bodies())
    def test_any_body_gets_one_json_answer_that_says_nothing_internal(self, body) -> None:
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


class TestHeads:
    """What decides is held to its grammar, whoever read the bytes."""

    @pytest.mark.parametrize("target", ["?://x/asap", "http://x?/asap", "", "*", "asap", "/asap#", "http://me@x/asap"])
    def test_a_target_of_no_form_is_refused(self, target) -> None:
        response = serve().open(head(target=target)).response
        assert (response.status, response.close) == (400, True)
        assert json.loads(response.body)["detail"].startswith("Expected a request target that is a path")

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ([("content-length", "150,150")], 400),
            ([("content-length", "150"), ("content-length", "150")], 400),
            ([("content-length", "+1")], 400),
            ([("content-length", "")], 400),
            ([("content-length", " 1")], 400),
            ([("content-length", "1"), ("transfer-encoding", "chunked")], 400),
            ([("transfer-encoding", "gzip")], 501),
            ([("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], 501),
            ([("transfer-encoding", "identity")], 501),
            ([("host", "a b")], 400),
            ([("host", "a"), ("host", "a")], 400),
            ([("host", "me@a")], 400),
            ([("host", "http://a")], 400),
            ([("host", "a/b")], 400),
            ([("host", "a:b")], 400),
            ([("host", "[::1")], 400),
            ([("host", "a,b c")], 400),
            ([("host", "a\tb")], 400),
            ([("host", "ä")], 400),
        ],
    )
    @pytest.mark.parametrize(("method", "target"), [("POST", "/asap"), ("GET", "/health")])
    def test_framing_and_host_have_one_reading(self, headers, status, method, target) -> None:
        pairs = tuple((name.encode(), value.encode()) for name, value in headers)
        told: list[Decision] = []
        agent = serve(observe=told.append, peer_limits="1/hour")
        response = agent.open(Request(method=method, target=target, headers=pairs, peer="192.0.2.1")).response
        assert (response.status, response.close) == (status, True)
        # Nothing of its share was spent.
        assert isinstance(agent.open(head()), ReadBody)

    @pytest.mark.parametrize(
        "host",
        ["", "a", "a.example:8000", "127.0.0.1:8000", "[::1]:8000", "[fe80::1%25eth0]", "[fe80::1%eth0]", "a_b"],
    )
    def test_hosts_that_are_ones(self, host) -> None:
        assert isinstance(serve().open(head(host=host, transfer_encoding="Chunked")), ReadBody)


class TestWhatADriverGives:
    """What can't be meant is refused at once: it would be taken, and silently ignored."""

    @pytest.mark.parametrize(
        "headers",
        [
            ((b"Content-Type", b"text/plain"),),
            (("content-type", b"text/plain"),),
            ((b"content-type", "text/plain"),),
            ((b"content-type", None),),
            ((bytearray(b"content-type"), b"text/plain"),),
            ((b"a", b"b", b"c"),),
            ((b"a",),),
            (b"a",),
            (b"ab",),
            {b"content-type": b"text/plain"},
            {b"te": b"trailers"},
            "content-type",
            b"te",
            None,
            5,
        ],
    )
    def test_headers_that_nobody_would_find(self, headers) -> None:
        with pytest.raises(ValueError, match="headers: expected pairs of bytes, names in lower case, such as"):
            Request(method="POST", target="/asap", headers=headers)

    @pytest.mark.parametrize("make", [tuple, list, iter])
    def test_headers_may_come_in_any_sequence(self, make) -> None:
        pairs = [(b"content-length", b"99999999"), (b"1", b"")]
        state: Any = serve().open(Request(method="POST", target="/asap", headers=make(pairs)))
        assert (state.response.status, type(Request(method="GET", target="/", headers=pairs).headers)) == (413, tuple)

    @pytest.mark.parametrize(
        "wrong", [{"method": b"POST"}, {"target": b"/asap"}, {"peer": None}, {"local": 5}, {"peer": ("127.0.0.1", 80)}]
    )
    def test_texts_are_texts(self, wrong) -> None:
        with pytest.raises(ValueError, match="method, target, peer, local: expected strings"):
            Request(**{"method": "POST", "target": "/asap", **wrong})

    @pytest.mark.parametrize("chunk", ["{}", "", None, 5, [123], {}])
    def test_a_body_is_bytes(self, chunk) -> None:
        state: Any = serve().open(head())
        with pytest.raises(ValueError, match=r"feed: expected bytes, such as text\.encode\(\)"):
            state.feed(chunk)
        assert isinstance(state.feed(b"{}").end(), Fork)  # nothing of it was taken

    def test_a_fork_has_an_answer_for_each_call(self) -> None:
        fork = serve().open(head()).feed(json.dumps([1, 2]).encode()).end()
        for answers in (
            [],
            fork.calls[:1],
            [*fork.calls, fork.calls[0]],
            None,
            fork.calls[0],
            [None, None],
            [b"", b""],
        ):
            with pytest.raises(ValueError, match="answered: expected one Answered for each call"):
                fork.answered(answers)
        assert len(json.loads(fork.answered(fork.calls).response.body)) == 2

    def test_or_what_can_be_copied_to_bytes(self) -> None:
        piece = bytearray(body())
        state = serve().open(head()).feed(piece).feed(memoryview(b" "))
        piece[:] = b"x" * len(piece)
        assert isinstance(state.end().calls[0], Dispatch)

    @pytest.mark.parametrize("codings", [{"br": None}, {b"BR": None}])
    def test_codings_have_names_that_are_found(self, codings) -> None:
        agent = Agent(manifest())
        with pytest.raises(ValueError, match="codings: expected "):
            agent.bind(clock=ManualClock(), ids=str, key=b"k" * 32, codings=codings)
        with pytest.raises(ValueError, match="16 to 64 random bytes"):
            agent.bind(clock=ManualClock(), ids=str, key="k" * 32)  # type: ignore[arg-type]
        assert not agent.bound

    @pytest.mark.parametrize("wrong", [{"payload_types": "task.request"}, {"aliases": "urn:asap:agent:b"}])
    def test_one_text_is_not_several(self, wrong) -> None:
        with pytest.raises(ValueError, match=r"(payload_types|aliases): expected strings, such as"):
            Agent(manifest(), **wrong)


class TestBodies:
    def test_a_length_over_the_limit_is_refused_before_it_is_read(self) -> None:
        for length in ("10485761", "9" * 30, "9" * 5000):
            state = serve().open(head(content_length=length))
            assert (state.response.status, state.response.close) == (413, True)

    @pytest.mark.parametrize("length", ["0", "10485760", "10".zfill(18)])
    def test_any_other_length_is_left_to_the_body(self, length) -> None:
        assert isinstance(serve().open(head(content_length=length)), ReadBody)

    def test_a_body_over_the_limit_is_refused_as_it_comes(self) -> None:
        state = serve(max_body=10).open(head()).feed(b"x" * 10)
        response = state.feed(b"x").response
        assert (response.status, response.close) == (413, True)
        with pytest.raises(IllegalMove):
            state.end()

    @pytest.mark.parametrize("coding", ["gzip", "GZIP", " x-gzip ", "identity", ""])
    def test_known_codings_are_inflated(self, coding) -> None:
        body = json.dumps(call()).encode()
        body = gzip.compress(body) if "gzip" in coding.lower() else body
        assert outcome(post(serve(), body, content_encoding=coding)) == "ok"

    @pytest.mark.parametrize("coding", ["br", "gzip, br", "deflate", "gzip, gzip"])
    def test_others_are_refused_with_those_that_would_do(self, coding) -> None:
        response = serve().open(head(content_encoding=coding)).response
        assert (response.status, dict(response.headers)[b"accept-encoding"]) == (415, b"gzip, x-gzip")
        assert response.close

    @pytest.mark.parametrize(
        ("body", "close"),
        [(b"not gzip", True), (gzip.compress(b"x") + b"more", True), (gzip.compress(b"x" * 1000)[:-9], False)],
        ids=["no gzip", "more", "cut off"],
    )
    def test_what_cannot_be_inflated_is_refused(self, body, close) -> None:
        # What is found wrong at its end was read whole: the connection can go on.
        response = post(serve(), body, content_encoding="gzip")
        assert (response.status, response.close) == (400, close)

    def test_who_waits_for_continue_is_known(self) -> None:
        assert serve().open(head(expect="100-Continue")).expect_continue
        assert serve().open(head(expect="x, 100-continue")).expect_continue
        assert not serve().open(head(expect='"100-continue"')).expect_continue
        assert not serve().open(head(expect='x="a, 100-continue"')).expect_continue
        assert serve().open(head(expect='x="a", 100-continue')).expect_continue
        assert not serve().open(head()).expect_continue


class TestVersions:
    @pytest.mark.parametrize(
        ("offered", "chosen"),
        [("2.2", "2.2"), ("2.1", "2.1"), ("2.1, 2.2", "2.1"), ("9, 2.2,2.1", "2.2"), ("", "2.2"), (" ", "2.2")],
    )
    def test_the_first_that_both_know_is_chosen(self, offered, chosen) -> None:
        response = post(serve(), call(), asap_version=offered)
        assert (outcome(response), dict(response.headers)[b"asap-version"].decode()) == ("ok", chosen)

    def test_with_none_in_common_it_says_which_there_are(self) -> None:
        response = post(serve(), call(), asap_version="99.0")
        value = json.loads(response.body)["error"]
        assert (response.status, value["code"], response.close) == (200, -32000, True)
        assert value["data"]["details"]["supported"] == ["2.1", "2.2"]
        # Where the reference has them.
        assert (value["data"]["requested"], value["data"]["supported"]) == ("99.0", ["2.1", "2.2"])

    @pytest.mark.parametrize("offered", ["SECRET", '9"', "9" * 65, "\xff", '"9, 2.2"', 'x="9,2.2,"'])
    def test_what_is_no_version_is_not_repeated(self, offered) -> None:
        response = post(serve(), call(), asap_version=offered)
        data = json.loads(response.body)["error"]["data"]
        assert (data["code"], data["requested"]) == ("asap:protocol/version_incompatible", None)
        assert offered not in response.body.decode()

    def test_the_versions_asked_for_are_told_back(self) -> None:
        response = post(serve(), call(), asap_version="99.0, 98")
        assert json.loads(response.body)["error"]["data"]["requested"] == "99.0, 98"


class TestWho:
    def test_without_a_credential_there_is_a_challenge(self) -> None:
        response = serve(auth=True).open(head()).response
        assert (response.status, response.close) == (401, True)
        assert dict(response.headers)[b"www-authenticate"] == b'Bearer realm="asap"'
        assert json.loads(response.body)["error"]["data"]["status_code"] == 401

    @pytest.mark.parametrize("value", ["Bearer", "Bearer a b", "Bearer " + "x" * 9000, "Bearer é"])
    def test_a_credential_that_cannot_be_read_is_challenged(self, value) -> None:
        response = serve(auth=True).open(head(authorization=value)).response
        assert (response.status, b'error="invalid_request"' in dict(response.headers)[b"www-authenticate"]) == (
            401,
            True,
        )

    def test_one_that_is_refused_is_challenged(self) -> None:
        response = serve(auth=True).open(head(authorization="bearer x")).refused().response
        assert (response.status, b'error="invalid_token"' in dict(response.headers)[b"www-authenticate"]) == (401, True)

    def test_one_that_cannot_be_checked_waits(self) -> None:
        response = serve(auth=True).open(head(authorization="Bearer x")).unavailable().response
        assert (response.status, dict(response.headers)[b"retry-after"], response.close) == (503, b"1", True)

    def test_another_scheme_is_none(self) -> None:
        response = serve(auth=True).open(head(authorization="Basic eDp5")).response
        assert dict(response.headers)[b"www-authenticate"] == b'Bearer realm="asap"'

    def test_two_headers_are_none(self) -> None:
        request = Request(method="POST", target="/asap", headers=((b"authorization", b"Bearer a"),) * 2, peer="x")
        assert serve(auth=True).open(request).response.status == 401

    def test_the_sender_is_who_authenticated(self) -> None:
        forged = call(envelope_changes={"sender": "urn:asap:agent:mallory"})
        response = post(serve(auth=True), forged, authorization="Bearer x")
        assert (response.status, outcome(response)) == (403, "asap:auth/sender_mismatch")

    def test_the_profile_reference_says_so_within_200(self) -> None:
        forged = call(envelope_changes={"sender": "urn:asap:agent:mallory"})
        response = post(serve(auth=True, plain_refusals=True), forged, authorization="Bearer x")
        assert (response.status, json.loads(response.body)["error"]["code"]) == (200, -32602)
        assert serve(auth=True, plain_refusals=True).open(head()).response.status == 200
        busy = post(serve(plain_refusals=True), call(), answer=lambda state: state.turned_away(Refusal(kind=BUSY)))
        assert busy.status == 503

    def test_an_alias_is_this_agent(self) -> None:
        other = call(envelope_changes={"recipient": "urn:asap:agent:other"})
        aliased = serve(aliases=["urn:asap:agent:other"])
        assert outcome(post(aliased, other)) == "ok"
        assert aliased.addresses == {aliased.manifest.id, "urn:asap:agent:other"}


class TestOnce:
    @pytest.mark.parametrize("policy", list(NoncePolicy))
    @pytest.mark.parametrize("nonce", [True, False])
    def test_what_stands_for_uniqueness_is_policy(self, policy, nonce) -> None:
        extensions = {"nonce": "n"} if nonce else None
        agent = serve(nonce=policy)
        first, again = (
            outcome(post(agent, call(envelope_changes={"id": "same", "extensions": extensions}))) for _ in range(2)
        )
        if policy is NoncePolicy.REQUIRED and not nonce:
            assert first == "asap:protocol/malformed_envelope"
        else:
            assert first == "ok"
            assert again == ("ok" if policy is NoncePolicy.OFF else "asap:protocol/invalid_nonce")

    @pytest.mark.parametrize(("nonce", "what"), [(..., "missing"), (5, "wrong"), ("", "wrong")])
    def test_a_nonce_that_is_missing_is_told_from_one_that_cannot_be(self, nonce, what) -> None:
        changes = {} if nonce is ... else {"extensions": {"nonce": nonce}}
        value = json.loads(post(serve(nonce=NoncePolicy.REQUIRED), call(envelope_changes=changes)).body)
        assert [error["type"] for error in value["error"]["data"]["validation_errors"]] == [what]

    @pytest.mark.parametrize("nonce", ["x", "ix", "nx"])
    def test_a_nonce_is_no_envelope_id(self, nonce) -> None:
        agent = serve()
        assert outcome(post(agent, call(envelope_changes={"extensions": {"nonce": nonce}}))) == "ok"
        assert outcome(post(agent, call(envelope_changes={"id": "x"}))) == "ok"

    @pytest.mark.parametrize(
        ("policy", "may", "must"),
        [
            ({"require_id": False}, "id", "timestamp"),
            ({"require_timestamp": False, "nonce": NoncePolicy.OFF}, "timestamp", "id"),
        ],
    )
    def test_each_may_be_left_out_by_itself(self, policy, may, must) -> None:
        agent = serve(**policy)
        assert outcome(post(agent, call(envelope_changes={may: ...}))) == "ok"
        assert outcome(post(agent, call(envelope_changes={must: ...}))) == "asap:protocol/malformed_envelope"

    def test_what_may_be_left_out_counts_where_it_is_there(self) -> None:
        agent = serve(require_id=False, require_timestamp=False, nonce=NoncePolicy.OFF)
        answer = json.loads(post(agent, call(envelope_changes={"id": "mine"})).body)["result"]["envelope"]
        assert answer["correlation_id"] == "mine"
        assert outcome(post(agent, call(envelope_changes={"timestamp": 0}))) == "asap:protocol/invalid_timestamp"

    def test_old_peers_may_leave_out_what_policy_lets_them(self) -> None:
        agent = serve(**asdict(Policy.reference(), recurse=False) | {"peer_limits": ()})
        for left_out in (..., None):
            changes = {"id": left_out, "timestamp": left_out, "recipient": "urn:asap:agent:any"}
            assert outcome(post(agent, call(envelope_changes=changes))) == "ok"

    @pytest.mark.parametrize(
        ("version", "code"),
        [
            ("0.1", "ok"),
            ("0.2.5", "ok"),
            ("1.0", "asap:protocol/version_incompatible"),
            ("99", "asap:protocol/version_incompatible"),
            ("", "asap:protocol/version_incompatible"),
        ],
    )
    def test_an_envelope_of_another_major_version_is_refused(self, version, code) -> None:
        other = call(envelope_changes={"asap_version": version})
        assert outcome(post(serve(), other)) == code
        assert outcome(post(serve(check_version=False), other)) == "ok"

    def test_a_message_speaks_for_its_envelopes_sender_only(self) -> None:
        options: Any = {"payload_types": ["task.request", "message.send"]}
        payload = {"task_id": "t", "message_id": "m", "sender": ALICE, "role": "user", "parts": []}
        for sender, code in ((ALICE, "ok"), ("urn:asap:agent:other", "asap:auth/sender_mismatch")):
            message = call(envelope_changes={"payload_type": "message.send", "payload": {**payload, "sender": sender}})
            assert outcome(post(serve(**options), message)) == code
            assert outcome(post(serve(**options, check_payload_sender=False), message)) == "ok"

    def test_an_answer_says_who_gives_it_whoever_was_asked(self) -> None:
        other = call(envelope_changes={"recipient": "urn:asap:agent:any"})
        answer = json.loads(post(serve(check_recipient=False), other).body)["result"]["envelope"]
        assert answer["sender"] == AGENT
        alias = serve(aliases=["urn:asap:agent:any"])
        assert json.loads(post(alias, other).body)["result"]["envelope"]["sender"] == "urn:asap:agent:any"

    def test_a_key_brings_the_first_answer_under_the_new_id(self) -> None:
        agent = serve()
        first = json.loads(post(agent, call(1, key="k")).body)
        again = json.loads(post(agent, call(2, key="k")).body)
        assert again["id"] == 2
        assert again["result"]["envelope"]["payload"] == first["result"]["envelope"]["payload"]
        assert again["result"]["envelope"]["correlation_id"] != first["result"]["envelope"]["correlation_id"]

    def test_after_a_restart_it_says_so_and_not_that_there_is_load(self) -> None:
        told: Any = []
        agent = serve(start=StartPolicy.FLOOR, observe=told.append)
        answer = post(agent, call(key="k", envelope_changes={"timestamp": "2025-06-15T15:06:39Z"}))
        error = json.loads(answer.body)["error"]
        assert (answer.status, error["code"], error["data"]["code"]) == (503, -32067, "asap:admission/restarted")
        assert (error["data"]["recoverable"], error["data"]["retry_after"]) == (True, 1)
        assert dict(answer.headers)[b"retry-after"] == b"1"
        assert "last start" in error["message"] == error["data"]["error"]
        assert [each.what for each in told] == [What.RESTARTED]

    def test_a_key_may_come_as_a_header(self) -> None:
        agent = serve()
        post(agent, call(envelope_changes={"id": "a"}), x_idempotency_key="k")
        assert outcome(post(agent, call(envelope_changes={"id": "a"}), x_idempotency_key="k")) == "ok"
        assert outcome(post(agent, call(envelope_changes={"id": "a"}, key="k"), x_idempotency_key="k")) == "ok"

    @pytest.mark.parametrize("key", [" k ", "k" * MAX_ID])
    def test_a_key_may_be_as_long_in_a_header_as_elsewhere(self, key) -> None:
        assert outcome(post(serve(), call(key=key.strip()), x_idempotency_key=key)) == "ok"

    UNKNOWN = ["", "unix", "testclient", "0.0.0.0", "::", "_hidden", "192.0.2.1, 192.0.2.2", "1" * 100]

    @pytest.mark.parametrize("peer", UNKNOWN)
    def test_without_an_address_or_a_principal_there_is_nobody_to_keep_a_key_for(self, peer) -> None:
        agent = serve()
        for asked, headers in ((call(key="k", envelope_changes={"id": "a"}), {}), (call(), {"x_idempotency_key": "k"})):
            response = post(agent, asked, peer=peer, **headers)
            assert outcome(response) == "asap:protocol/malformed_envelope"
            for what_to_do in (b"expected no key, or a caller who authenticates", b"over TCP", b"(trusted_proxies)"):
                assert what_to_do in response.body
        # Nothing was spent for it, and without a key it's served.
        assert outcome(post(agent, call(envelope_changes={"id": "a"}), peer=peer)) == "ok"
        batch = json.loads(post(agent, [call(1, key="k"), call(2)], peer=peer).body)
        assert ["error" in one for one in batch] == [True, False]

    @pytest.mark.parametrize("peer", UNKNOWN)
    def test_a_principal_needs_no_address_for_its_keys(self, peer) -> None:
        agent = serve(auth=True)
        for _ in range(2):
            assert outcome(post(agent, call(key="k"), peer=peer, authorization="Bearer x")) == "ok"

    @pytest.mark.parametrize(
        ("told", "known"),
        [
            ("198.51.100.7", True),
            ("198.51.100.7, 10.0.0.2", True),
            ("10.1.1.1", True),
            (None, True),
            ("unknown", False),
            ("", False),
            ("198.51.100.7, _hidden, 10.0.0.3", False),
            ("198.51.100.7" + ", 10.0.0.2" * 20, False),
            ("10.0.0.2" + ", 10.0.0.2" * 19, True),
        ],
    )
    def test_nor_is_there_for_whom_a_proxy_names_no_address(self, told, known) -> None:
        agent = serve(trusted_proxies=("10.0.0.0/8",))
        headers = {} if told is None else {"x_forwarded_for": told}
        expected = "ok" if known else "asap:protocol/malformed_envelope"
        assert outcome(post(agent, call(key="k"), peer="10.0.0.1", **headers)) == expected

    @pytest.mark.parametrize("key", ["k\xa0", "\x85k", "é", "a\x1fb"])
    def test_a_key_in_a_header_is_printable_ascii(self, key) -> None:
        request = Request(
            method="POST", target="/asap", headers=((b"x-idempotency-key", key.encode("latin-1")),), peer="192.0.2.1"
        )
        response = finish(serve().open(request).feed(json.dumps(call()).encode()).end())
        assert outcome(response) == "asap:protocol/malformed_envelope"

    @pytest.mark.parametrize("value", ["other", "", "x" * 300])
    def test_two_keys_that_differ_are_refused(self, value) -> None:
        assert outcome(post(serve(), call(key="k"), x_idempotency_key=value)) == "asap:protocol/malformed_envelope"

    def test_a_header_beside_what_cannot_be_read_changes_nothing(self) -> None:
        assert outcome(post(serve(), {}, x_idempotency_key="k")) == "asap:rpc/invalid_request"

    def test_a_key_of_the_callers_own_in_config_is_its_own_business(self) -> None:
        payload = {"conversation_id": "c", "skill_id": "echo", "input": {}, "config": {"idempotency_key": "other"}}
        assert outcome(post(serve(), call(key="k", envelope_changes={"payload": payload}))) == "ok"

    def test_what_never_ran_gives_its_key_back(self) -> None:
        agent = serve()

        def busy(state):
            return state.turned_away(Refusal(kind=BUSY, retry_after=1.0))

        response = post(agent, call(key="k"), answer=busy)
        assert (response.status, outcome(response)) == (503, "asap:transport/thread_pool_exhausted")
        assert dict(response.headers)[b"retry-after"] == b"1"
        assert outcome(post(agent, call(key="k"))) == "ok"

    def test_who_does_not_know_when_to_come_again_says_nothing_of_it(self) -> None:
        response = post(serve(), call(), answer=lambda state: state.turned_away(Refusal(kind=BUSY)))
        assert (response.status, b"retry-after" in dict(response.headers)) == (503, False)

    @pytest.mark.parametrize(("leave", "then"), [("lost", "asap:admission/outcome_unknown"), ("abandon", "ok")])
    def test_what_was_cut_off_is_unknown_and_what_was_abandoned_is_free(self, leave, then) -> None:
        agent = serve()
        (dispatch,) = agent.open(head()).feed(json.dumps(call(key="k")).encode()).end().calls
        assert dispatch.shielded
        getattr(dispatch, leave)()
        assert agent.active == 0
        assert outcome(post(agent, call(key="k"))) == then

    ANSWERS = [
        (Replayed(), "asap:protocol/invalid_nonce", 200),
        (Saturated(5.0), "asap:admission/saturated", 503),
        (Floored(5.0), "asap:admission/restarted", 503),
        (admission.Mismatch(), "asap:admission/key_mismatch", 200),
        (admission.OutcomeUnknown(), "asap:admission/outcome_unknown", 200),
        (admission.AnswerGone(), "asap:admission/answer_gone", 200),
        (admission.Stale(WallTime(2e9)), "asap:protocol/invalid_timestamp", 200),
        (admission.Future(WallTime(1e9)), "asap:protocol/invalid_timestamp", 200),
        (admission.StoreUnavailable(2.0), "asap:admission/unavailable", 503),
        (admission.Stored(Replied("task.response", {"task_id": "t", "status": "completed"})), "ok", 200),
        (admission.Stored(Refusal(kind=HANDLER_FAILED)), "asap:rpc/internal_error", 200),
    ]

    @pytest.mark.parametrize(("given_answer", "code", "status"), ANSWERS, ids=lambda value: type(value).__name__)
    def test_a_shared_store_answers_with_the_same_types(self, given_answer, code, status) -> None:
        state = serve(shared=True).open(head()).feed(json.dumps(call(key="k")).encode()).end()
        (admit,) = state.calls
        assert isinstance(admit, Admit)
        response = state.answered([admit.answered(given_answer)]).response
        assert (response.status, outcome(response)) == (status, code)
        assert (b"retry-after" in dict(response.headers)) is (status == 503)

    @pytest.mark.parametrize("auth", [False, True])
    def test_the_store_is_told_all_that_its_answer_depends_on(self, auth) -> None:
        state = serve(shared=True, auth=auth).open(head(authorization="Bearer t"))
        state = state.verified(Authenticated(ALICE)) if auth else state
        asked = [call(1, envelope_changes={"id": "a"}), call(2, key="k", envelope_changes={"id": "b"})]
        plain, keyed = (one.question for one in state.feed(json.dumps(asked).encode()).end().calls)
        facts = {"sender": ALICE, "authenticated": auth, "peer": "192.0.2.1", "issued": 1750000000.0, "deadline": 30.0}
        assert plain == admission.AdmissionQuestion(nonce="ia", idempotency_key=None, digest=b"", **facts)
        assert keyed == admission.AdmissionQuestion(nonce="ib", idempotency_key="k", digest=keyed.digest, **facts)
        assert len(keyed.digest) == 16

    @pytest.mark.parametrize(
        ("age", "offset", "what"),
        [
            (0.12345, {"age_seconds": 0.123}, What.STALE),
            (400.0, {"age_seconds": 400.0}, What.STALE),
            (-0.12345, {"future_offset_seconds": 0.123}, What.FUTURE),
        ],
    )
    def test_a_store_with_another_clock_may_find_it_too_old_or_ahead(self, age, offset, what) -> None:
        clock, told = ManualClock(), []  # type: ignore[var-annotated]
        issued = call(envelope_changes={"timestamp": 1750000000.0})
        agent = serve(shared=True, clock=clock, max_age=500.0, observe=told.append)
        state = agent.open(head()).feed(json.dumps(issued).encode()).end()
        theirs = WallTime(1750000000.0 + age)
        answered = state.calls[0].answered(admission.Stale(theirs) if age > 0 else admission.Future(theirs))
        details = json.loads(answered.body)["error"]["data"]["details"]
        assert offset.items() <= details.items()
        assert (told[-1].what, told[-1].age) == (what, pytest.approx(age))

    def test_a_store_that_has_tickets_of_its_own_is_asked_again_all_the_same(self) -> None:
        (asked,) = serve(shared=True).open(head()).feed(json.dumps(call(key="k")).encode()).end().calls
        held = asked.answered(admission.Running(0.5, b"theirs"))
        assert (held.ticket, held.seconds) == (None, 0.5)

    def test_what_runs_elsewhere_is_asked_about_again_until_patience_ends(self) -> None:
        clock = ManualClock()
        state = serve(shared=True, clock=clock, hold=1.2).open(head()).feed(json.dumps(call(key="k")).encode()).end()
        (asked,) = state.calls
        waited = []
        while isinstance(asked, Admit):
            held = asked.answered(admission.Running(0.5))
            if isinstance(held, Hold):
                assert held.ticket is None
                waited.append(round(held.seconds, 6))
                clock.advance(held.seconds)
                asked = held.again()
            else:
                asked = held
        assert waited == [0.5, 0.5, 0.2]
        response = state.answered([asked]).response
        assert (response.status, outcome(response)) == (200, "asap:admission/still_running")
        assert json.loads(response.body)["error"]["data"]["retry_after_ms"] == 500
        assert json.loads(response.body)["error"]["data"]["recoverable"] is True

    def test_a_store_that_keeps_nonsense_is_a_bug(self) -> None:
        (admit,) = serve(shared=True).open(head()).feed(json.dumps(call()).encode()).end().calls
        with pytest.raises(TypeError, match="recorded"):
            admit.answered(admission.Stored("x"))

    def test_with_a_shared_store_the_driver_keeps_the_answer(self) -> None:
        agent = serve(shared=True)
        state = agent.open(head()).feed(json.dumps(call(key="k")).encode()).end()
        dispatch = state.calls[0].answered(admission.Admitted(admission.Reservation(b"r")))
        record = reply(dispatch)
        assert isinstance(record, Record)
        assert (record.reservation, record.size > 100) == (admission.Reservation(b"r"), True)
        assert outcome(state.answered([record.recorded()]).response) == "ok"
        state = agent.open(head()).feed(json.dumps(call(key="k")).encode()).end()
        dispatch = state.calls[0].answered(admission.Admitted(admission.Reservation(b"r")))
        dispatch.abandon()
        assert agent.active == 0


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

    def test_it_is_woken_by_the_end_of_the_work_and_answered_like_it(self, agent) -> None:
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
    def test_it_is_woken_however_the_work_ends(self, agent, leave, then) -> None:
        (_, running), (second, held) = self.start(agent), self.start(agent)
        getattr(running, leave)(*([Refusal(kind=BUSY)] if leave == "turned_away" else []))
        assert agent.take_wakes() == (held.ticket,)
        after = held.again()
        # Nobody did the work: whoever asks first does it now.
        assert isinstance(after, Dispatch) is (then == "ok")
        answered = reply(after) if isinstance(after, Dispatch) else after
        assert outcome(second.answered([answered]).response) == then

    def test_it_waits_as_long_as_policy_says_and_no_longer(self, agent, clock) -> None:
        _, (second, held) = self.start(agent), self.start(agent)
        clock.advance(2)
        held = held.again()
        assert held.seconds == 3.0
        clock.advance(3)
        refused = held.again()
        assert outcome(second.answered([refused]).response) == "asap:admission/still_running"

    def test_a_driver_that_cannot_wait_says_so(self, agent) -> None:
        _, (second, held) = self.start(agent), self.start(agent)
        assert outcome(second.answered([held.expired()]).response) == "asap:admission/still_running"
        with pytest.raises(IllegalMove):
            held.again()

    def test_policy_may_say_that_nobody_waits(self) -> None:
        agent = serve(hold=0.0)
        _, (second, refused) = self.start(agent), self.start(agent)
        assert outcome(second.answered([refused]).response) == "asap:admission/still_running"

    @pytest.mark.parametrize("leave", ["again", "expired", "abandon", "fork"])
    def test_nothing_is_left_of_those_who_have_gone(self, agent, leave) -> None:
        (first, running), (second, held), (third, other) = (self.start(agent) for _ in range(3))
        first.answered([reply(running)])
        assert len(agent.admission._held) == 1
        for fork, state in ((second, held), (third, other)):
            fork.abandon() if leave == "fork" else getattr(state, leave)()
        assert agent.admission._held == agent.admission._wakes == {}

    def test_who_has_its_answer_may_still_leave(self, agent) -> None:
        (first, running), (second, held) = self.start(agent), self.start(agent)
        first.answered([reply(running)])
        assert isinstance(held.again(), Answered)
        second.abandon()
        assert agent.admission._held == {}

    def test_what_was_forgotten_meanwhile_is_judged_by_the_time_it_is_now(self) -> None:
        agent = serve(start=StartPolicy.FLOOR)
        _, running = self.start(agent, envelope_changes={"timestamp": "2025-06-15T15:06:45Z"})
        second, held = self.start(agent)
        running.abandon()
        assert outcome(second.answered([held.again()]).response) == "asap:admission/restarted"

    def test_of_what_is_abandoned_as_a_whole_nobody_knows_whether_it_began(self, agent) -> None:
        fork, _ = self.start(agent)
        fork.abandon()
        assert outcome(post(agent, call(key="k"))) == "asap:admission/outcome_unknown"

    def test_something_else_asked_under_the_key_does_not_wait(self, agent) -> None:
        self.start(agent)
        payload = {"conversation_id": "c", "skill_id": "echo", "input": {"other": 1}}
        second, refused = self.start(agent, envelope_changes={"payload": payload})
        assert outcome(second.answered([refused]).response) == "asap:admission/key_mismatch"


class TestBatches:
    def test_answers_come_in_order(self) -> None:
        batch = [call(1), 5, call(3, method="x"), call(4, envelope_changes={"sender": "x"}), call(5)]
        response = post(serve(), batch)
        values = json.loads(response.body)
        assert [value["id"] for value in values] == [1, None, 3, 4, 5]
        assert ["error" in value for value in values] == [False, True, True, True, False]
        assert (response.status, dict(response.headers)[b"content-type"]) == (200, b"application/json")

    def test_of_one_is_a_batch_still(self) -> None:
        assert len(json.loads(post(serve(), [call()]).body)) == 1

    def test_compressed_is_a_batch_still(self) -> None:
        body = gzip.compress(json.dumps([call(), call()]).encode())
        assert len(json.loads(post(serve(), body, content_encoding="gzip").body)) == 2

    @pytest.mark.parametrize(("batch", "code"), [([], "asap:rpc/invalid_request"), ([1] * 51, "asap:rpc/batch_size")])
    def test_of_none_or_too_many_is_one_error(self, batch, code) -> None:
        assert outcome(post(serve(), batch)) == code

    def test_of_as_many_as_there_may_be_each_is_answered(self) -> None:
        assert len(json.loads(post(serve(), [1] * 50).body)) == 50

    def test_a_replay_within_it_is_refused(self) -> None:
        same = call(1)
        values = json.loads(post(serve(), [same, {**same, "id": 2}]).body)
        assert ["error" in value for value in values] == [False, True]

    def test_the_header_key_stands_for_each_item_by_its_place(self) -> None:
        agent, told = serve(), []  # type: ignore[var-annotated]
        agent._observers = (told.append,)
        batch = [call(1), call(2), call(3, key="k")]
        for _ in range(2):
            values = json.loads(post(agent, batch, x_idempotency_key="k").body)
            assert all("result" in value for value in values)
        assert [one.what for one in told] == [What.ACCEPTED] * 3 + [What.REPEATED] * 3

    @pytest.mark.parametrize("keys", [[""], ["x" * 300], ["a", "b"]])
    def test_a_header_key_that_cannot_be_is_refused_by_each(self, keys) -> None:
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


class TestWhoseShare:
    """Which share a request takes from, and what it's told of it."""

    PROXIED = {"trusted_proxies": ("10.0.0.0/8",), "peer_limits": parse_limits("1/minute")}

    def test_behind_a_trusted_proxy_it_is_the_clients(self) -> None:
        agent = serve(**self.PROXIED)
        for client, code in (("192.0.2.1", "ok"), ("192.0.2.2", "ok"), ("192.0.2.1", "asap:transport/rate_limited")):
            answer = post(agent, call(), peer="10.0.0.1", x_forwarded_for=f"203.0.113.5, {client}")
            assert outcome(answer) == code

    def test_what_a_proxy_quotes_of_the_caller_does_not_choose_whose(self) -> None:
        agent = serve(forwarded_header="forwarded", **self.PROXIED)
        for number, code in enumerate(("ok", "asap:transport/rate_limited", "asap:transport/rate_limited")):
            value = f'for=203.0.113.7;host="a,for=198.51.100.{number}"'
            assert outcome(post(agent, call(), peer="10.0.0.1", forwarded=value)) == code

    def test_from_anyone_else_the_header_is_not_read(self) -> None:
        agent = serve(**self.PROXIED)
        post(agent, call(), peer="192.0.2.9", x_forwarded_for="203.0.113.1")
        answer = post(agent, call(), peer="192.0.2.9", x_forwarded_for="203.0.113.2")
        assert outcome(answer) == "asap:transport/rate_limited"

    def test_the_client_is_who_an_anonymous_principal_is(self) -> None:
        agent = serve(trusted_proxies=("10.0.0.0/8",))
        (dispatch,) = agent.open(head(peer="10.0.0.1", x_forwarded_for="192.0.2.7")).feed(body()).end().calls
        assert dispatch.principal == Anonymous("192.0.2.7")

    def test_every_answer_says_what_is_left(self) -> None:
        agent = serve(peer_limits=parse_limits("10/second;100/minute"))
        headers = dict(post(agent, call()).headers)
        assert headers[b"ratelimit-policy"] == b'"10-per-1s";q=10;w=1, "100-per-60s";q=100;w=60'
        assert headers[b"ratelimit"] == b'"10-per-1s";r=9;t=1'
        for _ in range(9):
            post(agent, call())
        refused = dict(post(agent, call()).headers)
        assert refused[b"ratelimit"] == b'"10-per-1s";r=0;t=1'
        assert refused[b"retry-after"] == b"1"

    def test_what_is_left_is_told_as_of_the_answer(self) -> None:
        clock = ManualClock()
        agent = serve(clock=clock, peer_limits=parse_limits("10/second"))
        fork = agent.open(head()).feed(body()).end()
        clock.advance(0.1)
        assert dict(finish(fork).headers)[b"ratelimit"] == b'"10-per-1s";r=10;t=0'
        reading = agent.open(head())
        clock.advance(0.1)
        refused = reading.feed(b"nonsense").end().response
        assert (dict(refused.headers)[b"ratelimit"], refused.close) == (b'"10-per-1s";r=10;t=0', False)

    def test_it_is_the_principals_where_that_is_limited(self) -> None:
        agent = serve(auth=True, principal_limits=parse_limits("5/hour"))
        headers = dict(post(agent, call(), authorization="Bearer t").headers)
        assert headers[b"ratelimit"] == b'"5-per-3600s";r=4;t=720'

    @pytest.mark.parametrize("options", [{}, {"shared_limits": ["peer"], "peer_limits": parse_limits("1/second")}])
    def test_nothing_is_said_where_nothing_is_known(self, options) -> None:
        state = serve(**options).open(head())
        state: Any = state.taken() if isinstance(state, TakeLimit) else state  # type: ignore[no-redef]
        assert not any(name.startswith(b"ratelimit") for name, _ in finish(state.feed(body()).end()).headers)

    def test_handlers_at_work_are_bounded_for_each_caller(self) -> None:
        told: list[Any] = []
        agent = serve(concurrent=2, observe=told.append)
        working = [agent.open(head()).feed(body()).end() for _ in range(2)]
        response = post(agent, call())
        assert (response.status, outcome(response)) == (429, "asap:transport/rate_limited")
        assert json.loads(response.body)["error"]["data"]["limit"] == "2 at once"
        assert dict(response.headers)[b"retry-after"] == b"1"
        assert told[-1].what is What.LIMITED
        # Somebody else has a share of its own; and what was refused has used up no nonce.
        assert outcome(post(agent, call(), peer="192.0.2.77")) == "ok"
        same = call()
        assert outcome(post(agent, same)) == "asap:transport/rate_limited"
        finish(working[0])
        assert outcome(post(agent, same)) == "ok"
        working[1].abandon()
        assert (agent.active, agent._callers) == (0, {})

    def test_who_waits_for_a_store_has_a_place_already(self) -> None:
        agent = serve(shared=True, concurrent=2)

        def ask():
            return agent.open(head()).feed(body()).end()

        first, second, third = ask(), ask(), ask()
        assert [type(one.calls[0]) for one in (first, second, third)] == [Admit, Admit, Answered]
        assert outcome(third.answered(third.calls).response) == "asap:transport/rate_limited"
        dispatched = first.calls[0].answered(admission.Admitted(None))
        assert isinstance(ask().calls[0], Answered)
        second.calls[0].answered(Replayed())
        fourth = ask()
        assert isinstance(fourth.calls[0], Admit)
        fourth.abandon()
        reply(dispatched)
        assert agent._callers == {}

    def test_with_tokens_they_are_counted_by_principal(self) -> None:
        agent = serve(auth=True, concurrent=1)
        first = agent.open(head(authorization="Bearer t")).verified(Authenticated(ALICE)).feed(body()).end()
        assert isinstance(first.calls[0], Dispatch)
        again = post(agent, call(), peer="192.0.2.77", authorization="Bearer t")
        assert outcome(again) == "asap:transport/rate_limited"

    def test_a_limiter_answers_what_is_left_by_each_limit(self) -> None:
        limiter = Limiter(parse_limits("2/second;10/minute"), capacity=10)
        now: Any = 5.0
        assert [(left.amount, left.seconds) for left in limiter.left("k", now=now)] == [(2, 0.0), (10, 0.0)]
        limiter.take("k", now=now)
        assert [(left.amount, left.seconds) for left in limiter.left("k", now=now)] == [(1, 0.5), (9, 6.0)]
        assert len(limiter) == 1


class TestShares:
    def test_over_it_there_is_429_as_in_the_reference(self) -> None:
        agent = serve(peer_limits=parse_limits("2/minute"))
        assert [post(agent, call()).status for _ in range(3)] == [200, 200, 429]
        response: Any = agent.open(head()).response
        data = json.loads(response.body)["error"]
        assert (data["code"], data["data"]["limit"], data["data"]["retry_after"]) == (429, "2 per 1 minute", 30)
        assert dict(response.headers)[b"retry-after"] == b"30"
        assert response.close
        assert isinstance(agent.open(head(peer="192.0.2.2")), ReadBody)

    def test_documents_cost_nothing(self) -> None:
        agent = serve(peer_limits=parse_limits("1/minute"))
        assert all(finish(agent.open(head("GET", "/health"))).status == 200 for _ in range(5))

    def test_a_batch_costs_what_it_holds_and_the_rest_is_limited(self) -> None:
        agent = serve(peer_limits=parse_limits("10/minute"))
        values = json.loads(post(agent, [call(number) for number in range(15)]).body)
        limited = [value["error"]["code"] if "error" in value else 0 for value in values]
        assert limited == [0] * 10 + [429] * 5
        assert values[-1]["error"]["data"]["retry_after"] == 1
        assert agent.open(head()).response.status == 429

    def test_an_authenticated_agent_has_a_share_of_its_own(self) -> None:
        agent = serve(auth=True, peer_limits=parse_limits("100/minute"), principal_limits=parse_limits("3/minute"))
        values = json.loads(post(agent, [call(number) for number in range(5)], authorization="Bearer x").body)
        assert ["error" in value for value in values] == [False] * 3 + [True] * 2
        assert post(agent, call(), authorization="Bearer x").status == 429

    def test_of_one_item_costs_one(self) -> None:
        agent = serve(peer_limits=parse_limits("2/minute"))
        assert [json.loads(post(agent, [call()]).body)[0].get("error") for _ in range(2)] == [None, None]

    def test_only_a_principal_limit_counts_the_batch_too(self) -> None:
        agent = serve(auth=True, principal_limits=parse_limits("3/minute"))
        values = json.loads(post(agent, [call(number) for number in range(5)], authorization="Bearer x").body)
        assert values[-1]["error"]["data"]["limit"] == "3 per 1 minute"

    def test_a_shared_limiter_is_asked_by_the_driver(self) -> None:
        agent = serve(shared_limits=["peer"], peer_limits=parse_limits("10/minute"))
        state: Any = agent.open(head())
        assert isinstance(state, TakeLimit)
        assert (state.scope, state.key, state.cost, state.partial) == ("peer", "192.0.2.1", 1, False)
        assert state.limited(5.0, "10 per 1 minute").response.status == 429
        assert agent.open(head()).unavailable().response.status == 503
        state = agent.open(head()).taken().feed(json.dumps([call(1), call(2), call(3)]).encode()).end()
        assert (state.cost, state.partial) == (2, True)
        assert [isinstance(one, Dispatch) for one in state.taken(1).calls] == [True, True, False]
        state = agent.open(head()).taken().feed(json.dumps([call(1)]).encode()).end()
        assert isinstance(state, Fork)

    @pytest.mark.parametrize("number", [1, 3])
    def test_a_shared_limiter_is_asked_for_what_is_limited_only(self, number) -> None:
        batch = json.dumps([call(each) for each in range(number)]).encode()

        def read(state):
            return state.verified(Authenticated(ALICE))

        agent = serve(auth=True, shared_limits=["peer", "principal"])
        state = read(agent.open(head(authorization="Bearer t")))
        assert isinstance(state.feed(batch).end(), Fork)
        agent = serve(auth=True, shared_limits=["peer", "principal"], principal_limits=parse_limits("9/minute"))
        state = read(agent.open(head(authorization="Bearer t"))).taken().feed(batch).end()
        assert isinstance(state, Fork) if number == 1 else (state.scope, state.cost) == ("principal", 2)

    def test_what_a_shared_limiter_says_is_left_is_told_to_the_caller(self) -> None:
        agent = serve(shared_limits=["peer"], peer_limits=parse_limits("10/minute"))
        (limit,) = agent.policy.peer_limits

        def headers(body):
            return dict(finish(body.feed(json.dumps(call()).encode()).end()).headers)

        told: Any = agent.open(head())
        assert headers(told.taken(1, (Left(limit, 7, 12.5),)))[b"ratelimit"] == b'"10-per-60s";r=7;t=13'
        untold: Any = agent.open(head())
        assert b"ratelimit" not in headers(untold.taken())


class TestColdStarts:
    """A request starts the process: it's dated before the agent has its clock."""

    def instance(self, *, seconds=2.0, **policy):
        """An agent that started so long after the envelopes' date."""
        clock = ManualClock()
        clock.advance(seconds)
        return serve(clock=clock, **policy)

    @pytest.mark.parametrize("start", ["floor", "exact"])
    @pytest.mark.parametrize("seconds", [0.0, 2.0])
    def test_the_first_request_is_refused_as_dated_before_the_start(self, start, seconds) -> None:
        response = post(self.instance(start=start, seconds=seconds), call())
        assert (response.status, outcome(response)) == (503, "asap:admission/restarted")

    def test_with_the_policy_open_it_is_accepted_and_once(self) -> None:
        agent, asked = self.instance(start="open"), call()
        assert outcome(post(agent, asked)) == "ok"
        assert outcome(post(agent, asked)) == "asap:protocol/invalid_nonce"

    def test_what_that_gives_up_is_once_in_all_processes(self) -> None:
        asked, keyed = call(), call(key="k")
        for seconds in (2.0, 2.0, 299.0):
            agent = self.instance(start="open", seconds=seconds)
            worked: list[int] = []
            assert outcome(post(agent, asked)) == "ok"
            for _ in range(2):
                post(agent, keyed, answer=lambda state, worked=worked: (worked.append(1), reply(state))[1])
            assert worked == [1]

    @pytest.mark.parametrize(("max_age", "seconds"), [(300.0, 301.0), (30.0, 31.0)])
    def test_and_no_longer_than_its_timestamp_is_good_for(self, max_age, seconds) -> None:
        agent = self.instance(start="open", max_age=max_age, seconds=seconds)
        assert outcome(post(agent, call())) == "asap:protocol/invalid_timestamp"

    def test_with_a_store_that_processes_share_it_is_the_store_that_says(self) -> None:
        state = self.instance(start="floor", shared=True).open(head()).feed(body()).end()
        assert isinstance(state.calls[0], Admit)


class TestBodiesUnderWay:
    FREE = 65_536
    BOUND: Any = {"max_bodies": 200_000, "max_body": 200_000}

    def under_way(self, agent, size: int):
        state = agent.open(head())
        assert isinstance(state, ReadBody)
        return state.feed(b" " * (self.FREE + size))

    def test_together_hold_no_more_than_policy_says(self) -> None:
        told: list[Any] = []
        agent = serve(**self.BOUND, observe=told.append)
        first = self.under_way(agent, 120_000)
        second = self.under_way(agent, 80_000)
        assert isinstance(first, ReadBody) and isinstance(second, ReadBody)  # noqa: PT018
        refused = self.under_way(agent, 1).response
        assert (refused.status, outcome(refused), refused.close) == (503, "asap:transport/thread_pool_exhausted", True)
        assert dict(refused.headers)[b"retry-after"] == b"1"
        assert told[-1].what is What.LIMITED
        # The small ones get through, and so does the next large one when there's room again.
        assert outcome(post(agent, call())) == "ok"
        assert isinstance(first.feed(b" "), Respond)
        assert isinstance(self.under_way(agent, 120_000), ReadBody)

    def test_count_until_their_answer_is_made(self) -> None:
        agent = serve(**self.BOUND)
        large = call(
            envelope_changes={"payload": {"conversation_id": "c", "skill_id": "echo", "input": {"x": "x" * 150_000}}}
        )
        for leave in ("answered", "abandon"):
            fork = agent.open(head()).feed(json.dumps(large).encode()).end()
            assert agent.body_bytes > 150_000 - self.FREE
            assert self.under_way(agent, 120_000).response.status == 503
            fork.answered([reply(fork.calls[0])]) if leave == "answered" else fork.abandon()
            assert agent.body_bytes == 0
            large["params"]["envelope"]["id"] = "another"

    @pytest.mark.parametrize("leave", ["abandon", "end"])
    def test_give_back_what_they_held(self, leave) -> None:
        agent = serve(**self.BOUND)
        for _ in range(3):
            state = self.under_way(agent, 30_000).feed(b" " * 70_000)
            assert agent.body_bytes == 100_000
            getattr(state, leave)()
            assert agent.body_bytes == 0

    def test_give_it_back_when_they_are_refused(self) -> None:
        agent = serve(max_bodies=10**6, max_body=self.FREE + 1000)
        assert self.under_way(agent, 1001).response.status == 413
        assert self.under_way(agent, 1000).feed(b" ").response.status == 413
        assert agent.body_bytes == 0

    def test_small_ones_make_no_room_for_large_ones(self) -> None:
        agent = serve(**self.BOUND)
        for size in (1, self.FREE):
            small: Any = agent.open(head())
            assert isinstance(small.feed(b" " * size), ReadBody)
            assert agent.body_bytes == 0

    def test_count_inflated(self) -> None:
        agent = serve(**self.BOUND)
        assert isinstance(self.under_way(agent, 120_000), ReadBody)
        state = agent.open(head(content_encoding="gzip")).feed(gzip.compress(b" " * (self.FREE + 80_001)))
        assert state.response.status == 503
        assert agent.body_bytes == 120_000


class TestStreams:
    def test_are_not_built_yet_and_say_so(self) -> None:
        response = post(serve(), call(9), target="/asap/stream")
        value = json.loads(response.body)
        assert (value["id"], value["error"]["code"]) == (9, -32012)


class TestMoves:
    def test_a_state_that_was_left_has_no_more_moves(self) -> None:
        agent = serve(auth=True)
        state = agent.open(head(authorization="Bearer x"))
        body = state.verified(Authenticated(ALICE))
        with pytest.raises(IllegalMove, match="Authenticate was left already"):
            state.refused()
        fork = body.end()
        with pytest.raises(IllegalMove):
            body.feed(b"x")
        response = fork
        assert response.sent() == Done()
        with pytest.raises(IllegalMove):
            response.sent()

    def test_a_call_that_was_left_has_none_either(self) -> None:
        (dispatch,) = serve().open(head()).feed(json.dumps(call()).encode()).end().calls
        reply(dispatch)
        with pytest.raises(IllegalMove, match="Dispatch was left already"):
            reply(dispatch)

    STATES: Any = {
        "TakeLimit": lambda agent: agent.open(head()),
        "Authenticate": lambda agent: agent.open(head(authorization="Bearer x")).taken(),
        "ReadBody": lambda agent: TestMoves.STATES["Authenticate"](agent).verified(Authenticated(ALICE)),
        "Fork": lambda agent: TestMoves.STATES["ReadBody"](agent).feed(json.dumps(call(key="k")).encode()).end(),
        "Respond": lambda agent: agent.open(head("GET", "/health")),
        "Admit": lambda agent: TestMoves.STATES["Fork"](agent).calls[0],
        "Hold": lambda agent: TestMoves.STATES["Admit"](agent).answered(admission.Running(0.5)),
        "Dispatch": lambda agent: TestMoves.STATES["Admit"](agent).answered(
            admission.Admitted(admission.Reservation(b"r"))
        ),
        "Record": lambda agent: reply(TestMoves.STATES["Dispatch"](agent)),
    }
    MOVES: Any = {
        "TakeLimit": [("taken",), ("limited", 1.0, "1 per 1 second"), ("unavailable",), ("abandon",)],
        "Authenticate": [("verified", Authenticated(ALICE)), ("refused",), ("unavailable",), ("abandon",)],
        "ReadBody": [("end",), ("abandon",)],
        "Fork": [("answered", [Answered(b"", Refusal(kind=BUSY))]), ("abandon",)],
        "Respond": [("sent",), ("abandon",)],
        "Admit": [("answered", admission.Admitted(None)), ("abandon",)],
        "Hold": [("again",), ("expired",), ("abandon",)],
        "Dispatch": [
            ("replied", Replied("x", {})), ("failed", Refusal(kind=BUSY)), ("turned_away", Refusal(kind=BUSY)),
            ("lost",), ("abandon",),
        ],
        "Record": [("recorded",), ("abandon",)],
    }  # fmt: skip

    @pytest.mark.parametrize(
        ("name", "first", "then"),
        [(name, *pair) for name, moves in MOVES.items() for pair in itertools.product(moves, moves)],
        ids=lambda value: value if isinstance(value, str) else value[0],
    )
    def test_after_any_move_no_other_is_left(self, name, first, then) -> None:
        agent = serve(auth=True, shared=True, shared_limits=["peer", "principal"], peer_limits=parse_limits("9/minute"))
        state = self.STATES[name](agent)
        getattr(state, first[0])(*first[1:])
        with pytest.raises(IllegalMove, match=f"{name} was left already"):
            getattr(state, then[0])(*then[1:])
        if name == "ReadBody":
            with pytest.raises(IllegalMove):
                state.feed(b"x")

    def test_a_call_abandoned_from_outside_has_no_more_moves(self) -> None:
        (dispatch,) = serve().open(head()).feed(body()).end().calls
        abandon_call(dispatch)
        with pytest.raises(IllegalMove):
            reply(dispatch)

    def test_every_state_can_be_abandoned(self) -> None:
        agent = serve(auth=True, shared=True, shared_limits=["peer", "principal"], peer_limits=parse_limits("9/minute"))
        take = agent.open(head(authorization="Bearer x"))
        authenticate = agent.open(head(authorization="Bearer x")).taken()
        body = agent.open(head(authorization="Bearer x")).taken().verified(Authenticated(ALICE))
        fork = agent.open(head(authorization="Bearer x")).taken().verified(Authenticated(ALICE))
        fork = fork.feed(json.dumps([call(1, key="k"), 5, call(2)]).encode()).end().taken()
        running = fork.calls[0].answered(admission.Admitted(admission.Reservation(b"r")))
        respond = agent.open(head("GET", "/health"))
        assert isinstance(running, Dispatch)
        for state in (take, authenticate, body, fork, respond):
            assert state.abandon() == Done()
        assert agent.active == 0

    def test_a_question_can_be_abandoned_once(self) -> None:
        agent = serve(shared=True)
        (admit,) = agent.open(head()).feed(json.dumps(call()).encode()).end().calls
        admit.abandon()
        assert agent._callers == {}
        with pytest.raises(IllegalMove, match="Admit was left already"):
            admit.abandon()

    def test_a_record_can_be_abandoned(self) -> None:
        (admit,) = serve(shared=True).open(head()).feed(json.dumps(call(key="k")).encode()).end().calls
        record = reply(admit.answered(admission.Admitted(admission.Reservation(b"r"))))
        record.abandon()
        abandon_call(admit)

    def test_an_answered_call_is_over(self) -> None:
        (dispatch,) = serve().open(head()).feed(json.dumps(call()).encode()).end().calls
        answered = reply(dispatch)
        assert isinstance(answered, Answered)
        abandon_call(dispatch)
        abandon_call(answered)
        assert answered.refusal is None


class TestBinding:
    def test_unbound_it_says_what_to_do(self) -> None:
        agent = Agent(manifest())
        assert not agent.bound
        with pytest.raises(RuntimeError, match="bind"):
            agent.open(head())
        with pytest.raises(RuntimeError, match="bind"):
            agent.new_id()

    def test_it_is_bound_once(self) -> None:
        agent = serve()
        with pytest.raises(RuntimeError, match="served already"):
            agent.bind(clock=ManualClock(), ids=str, key=b"k" * 32)

    @pytest.mark.parametrize("key", [b"", b"k" * 15, b"k" * 65])
    def test_a_key_has_16_to_64_bytes(self, key) -> None:
        with pytest.raises(ValueError, match="16 to 64"):
            Agent(manifest()).bind(clock=ManualClock(), ids=str, key=key)

    def test_its_version_is_one_that_peers_can_read(self) -> None:
        with pytest.raises(ValueError, match=r"1\.4\.2"):
            Agent(manifest(version="newest"))

    def test_its_scheme_is_one_that_can_be_checked(self) -> None:
        with pytest.raises(ValueError, match="bearer"):
            Agent(evolve(manifest(), auth=AuthScheme(schemes=["basic"])))


def test_what_is_no_request_gets_a_response_too() -> None:
    response = refuse_head(431, "Expected less")
    assert (response.status, response.close) == (431, True)
    assert json.loads(response.body) == {"detail": "Expected less"}
    assert dict(response.headers)[b"content-length"] == b"%d" % len(response.body)
    assert dict(response.headers)[b"asap-version"] == b"2.2"


# --- what watchers are told ------------------------------------------------------------------------------------------


class TestDecisions:
    """Each is told once, as what it was, with nothing in it that's secret or a stranger's text."""

    @pytest.fixture
    def told(self):
        return []

    @pytest.fixture
    def agent(self, told):
        return serve(observe=told.append)

    def test_what_is_let_in_and_what_is_repeated(self, agent, told) -> None:
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
    def test_what_is_refused_by_what_it_says(self, agent, told, body, code) -> None:
        post(agent, body)
        (decision,) = told
        if code == "asap:protocol/invalid_timestamp":
            assert decision.what in (What.STALE, What.FUTURE)
            assert (decision.age > 0) is (decision.what is What.STALE)
        else:
            assert decision.what is self.WHAT[code]
        assert decision.kind.taxonomy == code

    def test_a_replay_with_whom_it_came_from(self, told) -> None:
        agent, same = serve(auth=True, observe=told.append), call(envelope_changes={"extensions": {"nonce": "secret"}})
        post(agent, same, authorization="Bearer t")
        post(agent, same, authorization="Bearer t")
        assert [decision.what for decision in told] == [What.ACCEPTED, What.REPLAYED]
        assert {decision.principal for decision in told} == {ALICE}
        assert "secret" not in repr(told)

    def test_a_forged_sender(self, told) -> None:
        forged = call(envelope_changes={"sender": "urn:asap:agent:mallory"})
        post(serve(auth=True, observe=told.append), forged, authorization="Bearer t")
        assert [(one.what, one.principal) for one in told] == [(What.SPOOFED, ALICE)]
        assert "mallory" not in repr(told)

    def test_who_has_no_good_token(self, told) -> None:
        agent = serve(auth=True, observe=told.append)
        finish(agent.open(head()))
        finish(agent.open(head(authorization="Bearer a b")))
        agent.open(head(authorization="Bearer token-of-somebody")).refused()
        assert [one.what for one in told] == [What.UNAUTHENTICATED] * 3
        agent.open(head(authorization="Bearer x")).unavailable()
        assert told[-1].what is What.UNAVAILABLE
        assert "token" not in repr([(one.peer, one.principal, one.payload_type, one.age) for one in told])

    def test_who_is_over_their_share_once_for_each_item(self, told) -> None:
        agent = serve(observe=told.append, peer_limits=parse_limits("3/second"))
        post(agent, [call(), call(), call(), call(), call()])
        assert [one.what for one in told].count(What.ACCEPTED) == 3
        assert [one.what for one in told].count(What.LIMITED) == 2
        told.clear()
        post(agent, call())
        assert [one.what for one in told] == [What.LIMITED]

    def test_bodies_that_cannot_be_read(self, told) -> None:
        agent = serve(observe=told.append, max_body=100)
        post(agent, b"x" * 101)
        post(agent, b"x", content_encoding="gzip")
        post(agent, b"x", content_encoding="zstd")
        finish(agent.open(head(content_length="101")))
        assert [one.what for one in told] == [What.UNREADABLE] * 4

    def test_what_is_unsettled_under_its_key(self, agent, told) -> None:
        fork = agent.open(head()).feed(json.dumps(call(key="k")).encode()).end()
        (held,) = agent.open(head()).feed(json.dumps(call(key="k")).encode()).end().calls
        assert [one.what for one in told] == [What.ACCEPTED]
        held.expired()
        assert told[-1].what is What.UNSETTLED
        fork.calls[0].lost()
        post(agent, call(key="k"))
        assert [one.what for one in told] == [What.ACCEPTED, What.UNSETTLED, What.UNSETTLED]

    def test_types_are_named_only_where_the_agent_takes_them(self, agent, told) -> None:
        post(agent, call(envelope_changes={"payload_type": "anything<script>"}))
        assert [(one.what, one.payload_type) for one in told] == [(What.UNKNOWN, None)]

    def test_documents_are_no_decisions(self, agent, told) -> None:
        finish(agent.open(head("GET", "/health")))
        finish(agent.open(head("GET", "/nothing")))
        assert told == []

    def test_every_refusal_before_the_handler_has_its_word(self) -> None:
        after = {"asap:rpc/internal_error", "asap:transport/timeout",
                 "asap:transport/thread_pool_exhausted", "asap:protocol/invalid_timestamp"}  # fmt: skip
        assert {kind.taxonomy for kind in KINDS} - set(WHAT_OF) <= after


class TestCounters:
    def test_count_and_are_shown(self) -> None:
        counters = Counters()
        agent = serve(counters=counters)
        post(agent, call(key="k"))
        post(agent, call(key="k"))
        post(agent, b"{")
        assert (counters[What.ACCEPTED], counters[What.REPEATED], counters[What.MALFORMED]) == (1, 1, 1)
        response = finish(agent.open(head("GET", "/asap/metrics")))
        assert dict(response.headers)[b"content-type"].startswith(b"application/openmetrics-text; version=1.0.0")
        lines = response.body.decode().splitlines()
        assert 'asap_decisions_total{what="accepted"} 1' in lines
        assert 'asap_decisions_total{what="spoofed"} 0' in lines
        assert 'asap_accepted_total{payload_type="taskrequest"} 1' in lines
        assert lines[-1] == "# EOF"

    def test_are_not_shown_unless_asked_for(self) -> None:
        assert finish(serve().open(head("GET", "/asap/metrics"))).status == 404
        assert finish(serve(counters=Counters()).open(head("POST", "/asap/metrics"))).status == 405

    def test_before_anything_was_decided_all_are_zero(self) -> None:
        text = Counters().text(active=0, uptime=1.5).decode()
        assert all(f'{{what="{what.value}"}} 0\n' in text for what in What)
        assert "asap_uptime_seconds 1.500\n" in text


class TestPolicy:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("max_body", 0), ("max_body", 1.5), ("max_body", True), ("max_batch", "50"), ("max_age", 0),
            ("max_age", float("inf")), ("max_age", float("nan")), ("skew", -1), ("hold", -1), ("drain", None),
            ("nonce", "sometimes"), ("start", "late"), ("peer_limits", "often"), ("peer_limits", ["10/second"]),
            ("peer_limits", 10), ("profile", "lenient"), ("require_id", "no"), ("max_depth", 301),
            ("handler_deadline", 31), ("trusted_proxies", ["x"]), ("max_bodies", 10_485_759),
        ],
    )  # fmt: skip
    def test_what_cannot_be_is_refused_when_it_is_made(self, field, value) -> None:
        with pytest.raises(ValueError, match=r"expected|must be") as caught:
            Policy(**{field: value})
        assert field in str(caught.value) or "10.0.0.0/8" in str(caught.value) or "10/second" in str(caught.value)

    def test_limits_and_names_may_be_written_as_text(self) -> None:
        written: Any = {"peer_limits": "5/minute", "nonce": "off", "start": "exact", "principal_limits": ""}
        policy = Policy(**written)
        assert policy.peer_limits == parse_limits("5/minute")
        assert (policy.nonce, policy.start, policy.principal_limits) == (NoncePolicy.OFF, StartPolicy.EXACT, ())
        assert Policy().peer_limits == parse_limits("10/second;100/minute")
