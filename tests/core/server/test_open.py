"""The head of a request: target, framing, host and version, which are checked before anything else."""

import json
from typing import Any

import pytest

from asap_core import (
    Agent,
    Dispatch,
    Fork,
    ManualClock,
    ReadBody,
    Request,
)
from asap_core.http.head import read_plain_head
from asap_core.server.events import Decision
from tests.builders import call, manifest
from tests.core.server.exchanges import body, head, outcome, post, serve


class TestHeads:
    """Fields that decide are held to their grammar, whatever parser read the bytes."""

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
    def test_valid_hosts_are_accepted(self, host) -> None:
        assert isinstance(serve().open(head(host=host, transfer_encoding="Chunked")), ReadBody)


class TestDriversArguments:
    """An invalid argument of a driver is refused at once: else it would be ignored silently."""

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
    def test_header_names_that_are_not_lower_case_bytes_are_refused(self, headers) -> None:
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
    def test_texts_of_another_type_are_refused(self, wrong) -> None:
        with pytest.raises(ValueError, match="method, target, peer, local: expected strings"):
            Request(**{"method": "POST", "target": "/asap", **wrong})

    @pytest.mark.parametrize("chunk", ["{}", "", None, 5, [123], {}])
    def test_a_body_of_another_type_is_refused(self, chunk) -> None:
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

    def test_a_body_may_be_any_buffer(self) -> None:
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
    def test_a_single_text_in_place_of_a_list_is_refused(self, wrong) -> None:
        with pytest.raises(ValueError, match=r"(payload_types|aliases): expected strings, such as"):
            Agent(manifest(), **wrong)


class TestVersions:
    @pytest.mark.parametrize(
        ("offered", "chosen"),
        [("2.2", "2.2"), ("2.1", "2.1"), ("2.1, 2.2", "2.1"), ("9, 2.2,2.1", "2.2"), ("", "2.2"), (" ", "2.2")],
    )
    def test_the_first_common_version_is_chosen(self, offered, chosen) -> None:
        response = post(serve(), call(), asap_version=offered)
        assert (outcome(response), dict(response.headers)[b"asap-version"].decode()) == ("ok", chosen)

    def test_without_a_common_version_the_refusal_lists_the_supported_ones(self) -> None:
        response = post(serve(), call(), asap_version="99.0")
        value = json.loads(response.body)["error"]
        assert (response.status, value["code"], response.close) == (200, -32000, True)
        assert value["data"]["details"]["supported"] == ["2.1", "2.2"]
        # Where the reference has them.
        assert (value["data"]["requested"], value["data"]["supported"]) == ("99.0", ["2.1", "2.2"])

    @pytest.mark.parametrize("offered", ["SECRET", '9"', "9" * 65, "\xff", '"9, 2.2"', 'x="9,2.2,"'])
    def test_an_invalid_version_is_not_repeated(self, offered) -> None:
        response = post(serve(), call(), asap_version=offered)
        data = json.loads(response.body)["error"]["data"]
        assert (data["code"], data["requested"]) == ("asap:protocol/version_incompatible", None)
        assert offered not in response.body.decode()

    def test_the_refusal_repeats_the_requested_versions(self) -> None:
        response = post(serve(), call(), asap_version="99.0, 98")
        assert json.loads(response.body)["error"]["data"]["requested"] == "99.0, 98"


class TestStreams:
    def test_streams_are_refused_as_not_implemented(self) -> None:
        response = post(serve(), call(9), target="/asap/stream")
        value = json.loads(response.body)
        assert (value["id"], value["error"]["code"]) == (9, -32012)


def test_a_plain_head_decides_as_the_same_head_does() -> None:
    data = b"POST /asap?x=1 HTTP/1.1\r\nHost: agent.example\r\nContent-Length: 1\r\n\r\n"
    plain = read_plain_head(data, max_size=1_000, max_fields=10)
    assert plain is not None
    request = plain.request(peer="192.0.2.1")
    same = Request(method="POST", target="/asap?x=1", headers=request.headers, peer="192.0.2.1")
    bodies = []
    for each in (request, same):
        state: Any = serve().open(each)
        bodies.append(state.feed(b"{").end().response.body)
    assert bodies[0] == bodies[1]
    assert json.loads(bodies[0])["error"]["code"] == -32700
