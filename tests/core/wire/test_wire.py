"""What comes over the wire and goes out on it: heads, bodies, URLs, replies, registries."""

import gzip
import json
import random
import tracemalloc
from typing import Any

import pytest
from attrs import evolve
from hypothesis import example, given, strategies as st

import asap_core
from asap_core.admission.admission import AdmissionQuestion
from asap_core.auth.principal import (
    Anonymous,
    Authenticated,
    BadCredential,
    Credential,
    TokenTable,
    read_credential,
    sender_rule,
)
from asap_core.client.replies import (
    SentCall,
    UnusableReply,
    is_unauthorized,
    read_batch_reply,
    read_reply,
    retry_after_of,
)
from asap_core.clock import ManualClock
from asap_core.errors import (
    Advice,
    BadReply,
    InvalidTransition,
    NotAllowed,
    NoToken,
    Problem,
    RemoteError,
    TimedOut,
    Unreachable,
    WrongAgent,
)
from asap_core.http.head import BadHead, Head, HeadReader, path_of
from asap_core.http.messages import BadCoding, Body, BodyTooLarge, Gzip, collect, matches_etag
from asap_core.net.outbound import Allowed, UrlRefused, judge_url
from asap_core.net.urls import is_loopback, origin_of, without_credentials
from asap_core.refusals import KINDS, Refusal
from asap_core.testing import envelopes, json_values
from asap_core.wire.codec import decode_envelope, encode_envelope
from asap_core.wire.task import TRANSITIONS, Task, TaskStatus


class TestHeads:
    GOOD = b"POST /asap HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"

    def read(self, data, chunk=None, **limits):
        reader = HeadReader(**{"max_size": 200, "max_fields": 5, **limits})
        assert not reader.started
        outcome = reader.feed(b"")
        for start in range(0, len(data), chunk or len(data) or 1):
            if outcome is not None:
                break
            outcome = reader.feed(data[start : start + (chunk or len(data))])
        return outcome

    @pytest.mark.parametrize("chunk", [None, 1, 3])
    def test_a_good_one_is_read_however_it_is_cut(self, chunk) -> None:
        outcome = self.read(self.GOOD + b"abc", chunk)
        assert outcome.data == self.GOOD
        assert self.read(b"\r\n" + self.GOOD, chunk) == Head(self.GOOD, b"")
        assert isinstance(self.read(b"\r\n\r\n" + self.GOOD, chunk), BadHead)

    @pytest.mark.parametrize("extra", [0, 1])
    @pytest.mark.parametrize("chunk", [None, 1])
    def test_its_size_has_a_limit_that_is_exact(self, extra, chunk) -> None:
        outcome = self.read(self.GOOD, chunk, max_size=len(self.GOOD) - extra)
        assert isinstance(outcome, BadHead if extra else Head)

    def test_its_fields_have_one_too(self) -> None:
        assert isinstance(self.read(self.GOOD, max_fields=2), Head)
        assert self.read(self.GOOD, max_fields=1).status == 431

    ALMOST_HEADS = st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"G", b"a: b", b"\x00", b" "]), max_size=40).map(
        b"".join
    )

    @given(st.binary(max_size=120) | ALMOST_HEADS, st.integers(1, 10), st.sampled_from([10, 200]))
    @example(b"\r\n\r\n", 1, 200)
    @example(b"GET / HTTP/1.1\nhost: a" + b"a" * 200, 20, 30)
    def test_any_bytes_get_the_same_decision_however_they_are_cut(self, data, chunk, size) -> None:
        whole, cut = self.read(data, max_size=size), self.read(data, chunk, max_size=size)
        assert type(whole) is type(cut)
        if isinstance(whole, BadHead):
            assert whole.status == cut.status

    @pytest.mark.parametrize(
        "head",
        [
            b"GET /  HTTP/1.1", b"GET HTTP/1.1", b"GET / HTTP/1.1 ", b"GET / http/1.1", b"GET / HTTP/1.1\r\nA: b\rc",
            b"GET / HTTP/1.1\r\nA\t: b", b"GET / HTTP/1.1\r\n\tA: b", b" GET / HTTP/1.1", b"GET / HTTP/1.1\r\nA: \x01b",
            b"GET / HTTP/1.1\r\nA: b\x7f", b"GET /\x0b HTTP/1.1",
        ],
    )  # fmt: skip
    def test_what_has_two_readings_is_refused(self, head) -> None:
        assert self.read(head + b"\r\n\r\n").status == 400

    @pytest.mark.parametrize(
        ("head", "status"),
        [
            (b"GET / HTTP/2.0", 505),
            (b"GET / HTTP/1.2", 505),
            (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked", 400),
            (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked", 400),
            (b"POST / HTTP/1.1\r\nContent-Length: 1\r\ncontent-length: 1", 400),
        ],
    )
    def test_what_smuggling_is_made_of_is_refused(self, head, status) -> None:
        assert self.read(head + b"\r\n\r\n").status == status

    @pytest.mark.parametrize(
        "value", [b"150,150", b"150, 150", b"+150", b"-0", b"1_5", b"0x10", b"", b"1 5", b"1.0", "١٥".encode(), b"\xb2"]
    )
    def test_a_length_is_digits_and_nothing_else(self, value) -> None:
        outcome = self.read(b"POST /asap HTTP/1.1\r\nHost: a\r\nContent-Length: " + value + b"\r\n\r\n")
        assert outcome == BadHead(400, "one Content-Length, of digits only")

    @pytest.mark.parametrize("value", [b"150", b" 150\t", b"0", b"007"])
    def test_digits_are_a_length(self, value) -> None:
        assert isinstance(self.read(b"POST /asap HTTP/1.1\r\nHost: a\r\nContent-Length:" + value + b"\r\n\r\n"), Head)


class TestTargets:
    @pytest.mark.parametrize(
        ("method", "target", "path"),
        [
            ("POST", "/asap", "/asap"),
            ("GET", "/asap?x=1", "/asap"),
            ("GET", "/asap?x={[1|2]}?/", "/asap"),
            ("GET", "//x/asap", "//x/asap"),
            ("GET", "/asap/", "/asap/"),
            ("GET", "/%61sap", "/%61sap"),
            ("GET", "http://a/asap", "/asap"),
            ("GET", "HTTPS://[::1]:8000/asap?x", "/asap"),
            ("GET", "http://[fe80::1%25eth0]/asap", "/asap"),
            ("GET", "http://a", "/"),
            ("OPTIONS", "*", "*"),
            ("CONNECT", "a:443", "a:443"),
        ],
    )
    def test_have_one_path(self, method, target, path) -> None:
        assert path_of(target, method) == path

    @pytest.mark.parametrize(
        ("method", "target"),
        [
            ("POST", "?://x/asap"),
            ("POST", "http://x?/asap"),
            ("POST", ""),
            ("POST", "*"),
            ("POST", "a:443"),
            ("POST", "asap"),
            ("POST", "x://a/asap"),
            ("POST", "ftp://a/asap"),
            ("POST", "http:///asap"),
            ("POST", "http://:80/asap"),
            ("POST", "http://me@a/asap"),
            ("POST", "http://a:x/asap"),
            ("POST", "http://a b/asap"),
            ("POST", "http://a\\/asap"),
            ("POST", "http://a#/asap"),
            ("POST", "http:/asap"),
            ("POST", "://a/asap"),
            ("POST", "/asap#x"),
            ("POST", "/asap?x#y"),
            ("POST", "/asap\\"),
            ("POST", "/as%6"),
            ("POST", "/asap "),
            ("POST", "/asap\n"),
            ("POST", "/asap?\x7f"),
            ("POST", "/äsap"),
            ("CONNECT", "/asap"),
            ("CONNECT", ""),
            ("CONNECT", "http://a/asap"),
            ("options", "*"),
        ],
    )
    def test_of_no_form_have_none(self, method, target) -> None:
        assert path_of(target, method) is None

    @given(st.sampled_from(["GET", "CONNECT", "OPTIONS"]), st.text())
    def test_any_text_is_one_or_isnt(self, method, target) -> None:
        assert isinstance(path_of(target, method), str | None)

    @given(st.from_regex(r"(?:https?://[a-z?/#:@]{0,8})?[a-z?/#:%]{0,12}", fullmatch=True))
    def test_what_has_a_path_has_the_one_that_a_url_reader_finds(self, target) -> None:
        from urllib.parse import urlsplit

        path = path_of(target, "GET")
        if path is not None:
            assert path == (urlsplit(target if "://" in target else f"http://a{target}").path or "/")


class TestBodies:
    @given(st.binary(max_size=300), st.integers(1, 50))
    def test_any_bytes_through_gzip_are_the_same_however_they_are_cut(self, data, chunk) -> None:
        def run(pieces):
            body = Body(limit=100_000, inflater=Gzip())
            try:
                for piece in pieces:
                    body.feed(piece)
                return body.end()
            except (BadCoding, BodyTooLarge) as error:
                return type(error)

        for coded in (data, gzip.compress(data), gzip.compress(data)[:-1], gzip.compress(data) * 3):
            cut = [coded[start : start + chunk] for start in range(0, len(coded), chunk)]
            assert run([coded]) == run(cut)
        assert run([gzip.compress(data) * 3]) == data * 3

    @given(st.binary(max_size=300), st.integers(1, 50), st.lists(st.booleans(), min_size=5, max_size=5))
    def test_taken_in_pieces_it_is_the_same(self, data, chunk, taking) -> None:
        for coded, inflater in ((data, None), (gzip.compress(data), Gzip())):
            body, found = Body(limit=len(data), inflater=inflater), b""
            for place, start in enumerate(range(0, len(coded), chunk)):
                body.feed(coded[start : start + chunk])
                if taking[place % len(taking)]:
                    found += body.take()
                    assert body.held == 0
            assert found + body.end() == data
            over = Body(limit=len(data))
            over.feed(data)
            over.take()
            with pytest.raises(BodyTooLarge):
                over.feed(b"x")

    def test_many_small_pieces_take_no_more_memory_than_a_few(self) -> None:
        body = Body(limit=1_000_000)
        tracemalloc.start()
        for _ in range(500_000):
            body.feed(b"xy")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3_000_000
        assert body.end() == b"xy" * 500_000

    def test_a_bomb_takes_no_more_memory_than_the_limit(self) -> None:
        bomb = gzip.compress(b"0" * 200_000_000)
        body = Body(limit=1_000_000, inflater=Gzip())
        tracemalloc.start()
        with pytest.raises(BodyTooLarge, match="at most 1000000 bytes"):
            body.feed(bomb)
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
        tracemalloc.stop()

    @pytest.mark.parametrize(
        ("start", "nothing"),
        [
            # A stored block of no bytes (RFC 1951 §3.2.4), and a file name that never ends (RFC 1952 §2.3).
            (gzip.compress(b"")[:10], b"\x00\x00\x00\xff\xff"),
            (gzip.compress(b"")[:3] + b"\x08" + gzip.compress(b"")[4:10], b"name"),
        ],
    )
    def test_a_coded_one_that_says_nothing_has_a_limit_too(self, start, nothing) -> None:
        body = Body(limit=100_000, inflater=Gzip())
        body.feed(start)
        for _ in range(200_000 // len(nothing)):
            body.feed(nothing)
        with pytest.raises(BodyTooLarge, match="at most 100000 bytes"):
            body.feed(nothing * (40_000 // len(nothing)))

    @pytest.mark.parametrize("size", [0, 1, 1000, 10_000_000])
    def test_what_coding_makes_longer_still_fits(self, size) -> None:
        data = random.Random(1).randbytes(size)
        for level in (0, 1, 9):
            coded = gzip.compress(data, level)
            assert len(coded) > size
            body = Body(limit=size, inflater=Gzip())
            body.feed(coded)
            assert body.end() == data

    def test_the_limit_is_exact(self) -> None:
        for size, fits in ((1000, True), (1001, False)):
            body = Body(limit=1000, inflater=Gzip())
            if fits:
                body.feed(gzip.compress(b"0" * size))
                assert len(body.end()) == size
            else:
                with pytest.raises(BodyTooLarge):
                    body.feed(gzip.compress(b"0" * size))

    def test_members_without_end_are_refused(self) -> None:
        body = Body(limit=1000, inflater=Gzip())
        with pytest.raises(BadCoding, match="at most 16"):
            body.feed(gzip.compress(b"") * 17)

    @pytest.mark.parametrize("step", [1, 7, 1000])
    def test_zero_padding_is_passed_over_as_gzip_does(self, step) -> None:
        coded = gzip.compress(b"one") + bytes(300) + gzip.compress(b"two") + bytes(5)
        body = Body(limit=1000, inflater=Gzip())
        for start in range(0, len(coded), step):
            body.feed(coded[start : start + step])
        assert body.end() == b"onetwo"

    @pytest.mark.parametrize("step", [1, 1000, 100_000])
    def test_padding_without_end_is_refused_and_so_is_anything_else(self, step) -> None:
        body = Body(limit=1000, inflater=Gzip())
        body.feed(gzip.compress(b"x") + bytes(65_536))
        with pytest.raises(BadCoding, match="at most 65536 zero bytes"):
            body.feed(bytes(step))
        with pytest.raises(BadCoding, match="gzip stream"):
            Body(limit=1000, inflater=Gzip()).feed(gzip.compress(b"x") + b"\0\0more")

    def test_output_that_waits_without_input_is_not_lost(self) -> None:
        data = b"a" * 65_536 * 3
        body = Body(limit=10**6, inflater=Gzip())
        for byte in gzip.compress(data):
            body.feed(bytes([byte]))
        assert body.end() == data

    def test_several_values_of_a_header_are_one_list(self) -> None:
        headers = ((b"a", b"1"), (b"b", b"2"), (b"a", b"3"))
        assert collect(headers) == {b"a": b"1, 3", b"b": b"2"}

    @pytest.mark.parametrize(
        ("value", "names"),
        [
            (b'"a"', True), (b'W/"a"', True), (b'"b", "a"', True), (b" * ", True), (b'"b"', False), (b'"a,*,b"', False),
            (b'"b,W/,a"', False), (b'*, "b"', False), (b"a", False), (b"", False),
        ],
    )  # fmt: skip
    def test_an_entity_tag_is_read_with_its_quotes(self, value, names) -> None:
        assert matches_etag([value], '"a"') is names


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "origin"),
        [
            ("https://a.example", "https://a.example:443"),
            ("https://A.example:8443/x?y#z", "https://a.example:8443"),
            ("http://localhost:1/x", "http://localhost:1"),
            ("http://127.9.9.9", "http://127.9.9.9:80"),
            ("http://[::1]:5", "http://[::1]:5"),
            ("http://x.localhost", "http://x.localhost:80"),
            ("http://lan.example", "http://lan.example:80"),
        ],
    )
    def test_where_it_may_go(self, url, origin) -> None:
        judged = judge_url(url, allow_http=["lan.example"])
        assert isinstance(judged, Allowed)
        assert judged.origin == origin == origin_of(url)
        assert "#" not in judged.url

    @pytest.mark.parametrize(
        "url",
        [
            "http://a.example", "ftp://a", "a.example", "", "https://", "https://u:p@a", "https://u@a", "https://a:x",
            "https://a:0", "https://a:99999", "https://[::1", "https://a b", "https://a\n", "https://a\\b",
            "https://" + "a" * 9000, "http://127.0.0.1.example", "file:///etc/passwd", "javascript:x", "//a",
            "http://[::1]evil.example/", "https://[v1.x]/", "https://☃.example/", "https://１２７.0.0.1/", "https://a..b/",
            "https://.", "https://.a", "https://" + "a" * 64 + ".example", "https://-a.example",
            "https://::1/", "https://[]/",
        ],
    )  # fmt: skip
    def test_where_it_may_not(self, url) -> None:
        judged = judge_url(url)
        assert isinstance(judged, UrlRefused)
        assert str(judged.remedy)
        assert "u:p" not in judged.shown

    def test_what_is_shown_has_no_port_that_nobody_wrote(self) -> None:
        assert without_credentials("ftp://u:p@x/y?z") == "ftp://x/y"
        assert without_credentials("https://x") == "https://x:443"

    @given(st.text())
    def test_any_text_is_judged(self, text) -> None:
        assert isinstance(judge_url(text), Allowed | UrlRefused)
        without_credentials(text)
        origin_of(text)

    def test_only_web_urls_have_an_origin(self) -> None:
        assert origin_of("ftp://a") is None
        assert origin_of("nonsense") is None

    @pytest.mark.parametrize(
        ("host", "loopback"),
        [("localhost", True), ("127.0.0.1", True), ("::1", True), ("10.0.0.1", False), ("x", False)],
    )
    def test_what_is_this_machine(self, host, loopback) -> None:
        assert is_loopback(host) is loopback


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
    def test_one_that_fits_is_taken(self) -> None:
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
    def test_one_that_does_not_is_not(self, value) -> None:
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

    def test_what_is_wrong_with_an_envelope_reaches_the_sender(self) -> None:
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
    def test_the_first_of_it_is_in_the_message(self, problems, told) -> None:
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
    def test_a_wait_that_makes_no_sense_is_none(self, wait) -> None:
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
    def test_any_answer_is_a_decision(self, value, status) -> None:
        read(value, status)
        read_batch_reply((SENT, SENT), status=status, body=json.dumps(value).encode())


class TestWhoseAnErrorIs:
    """An error names this call, or none; and it's the agent's own, or may be a proxy's."""

    def error(self, **members):
        return {"jsonrpc": "2.0", "error": {"code": 7, "message": "no"}, **members}

    @pytest.mark.parametrize("call_id", ["req-1", 1])
    def test_of_this_call_or_of_none_is_taken(self, call_id) -> None:
        sent = evolve(SENT, call_id=call_id)
        for members in ({"id": call_id}, {"id": None}, {"id": ""}, {}):
            assert read(self.error(**members), sent=sent).code == 7

    @pytest.mark.parametrize(
        ("call_id", "named"),
        [("req-1", "req-2"), ("req-1", 0), ("req-1", False), ("req-1", []), ("1", 1), (1, "1"), (1, True), (1, 1.0)],
    )
    def test_of_another_call_is_not(self, call_id, named) -> None:
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
    def test_a_result_of_this_call_is_taken(self, call_id) -> None:
        sent, result = evolve(SENT, call_id=call_id), {"id": call_id, "result": {"envelope": REPLY}}
        assert read(result, sent=sent).id == "e2"
        assert read_batch_reply((sent,), status=200, body=json.dumps([result]).encode())[0].id == "e2"  # type: ignore[index,union-attr]

    @pytest.mark.parametrize("named", [None, ""])
    def test_a_result_names_its_call(self, named) -> None:
        assert isinstance(read({"id": named, "result": {"envelope": REPLY}}), UnusableReply)

    def test_in_a_batch_a_place_serves_only_answers_without_id(self) -> None:
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
    def test_own_is_json_rpc_or_a_code_of_asap(self, value, own) -> None:
        for status in (200, 403, 500, 502, 503, 504):
            found = read(value, status)
            assert (found.own, found.recoverable) == (own, own and status == 503)
        assert read(value, 429).recoverable

    def test_its_own_word_counts(self) -> None:
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
    def test_are_seconds_or_a_date(self, headers, seconds) -> None:
        assert retry_after_of(headers, wall=self.NOW) == seconds  # type: ignore[arg-type]


class TestUnauthorized:
    def refusal(self, data, call_id=None) -> bytes:
        return json.dumps({"jsonrpc": "2.0", "id": call_id, "error": {"code": -32600, "data": data}}).encode()

    def test_not_in_the_name_of_another_call(self) -> None:
        assert is_unauthorized(200, self.refusal({"status_code": 401}, "req-1"), "req-1")
        assert not is_unauthorized(200, self.refusal({"status_code": 401}, "req-2"), "req-1")

    def test_by_its_status(self) -> None:
        assert is_unauthorized(401, b"")
        assert not is_unauthorized(403, self.refusal({"status_code": 403}))
        assert not is_unauthorized(200, b"{}")

    def test_or_as_the_reference_says_it(self) -> None:
        assert is_unauthorized(200, self.refusal({"error": "Invalid authentication token", "status_code": 401}))
        assert not is_unauthorized(200, self.refusal({"status_code": "401"}))
        assert not is_unauthorized(200, self.refusal([401]))

    @pytest.mark.parametrize("body", [b"401", b"[401]", b"{401", b'{"error": 401}', b'{"result": 401}', b"401" * 5_000])
    def test_by_nothing_else(self, body) -> None:
        assert not is_unauthorized(200, body)


class TestTasks:
    TASK = Task(
        id="t", conversation_id="c", status=TaskStatus.SUBMITTED, created_at="2026-01-01", updated_at="2026-01-01"
    )

    @pytest.mark.parametrize("before", TaskStatus)
    @pytest.mark.parametrize("after", TaskStatus)
    def test_moves_are_those_of_the_table(self, before, after) -> None:
        task: Any = evolve(self.TASK, status=before)
        if after in TRANSITIONS[before]:
            assert (task.move(after, wall=1.0).status, task.move(after, wall=1.0).updated_at.year) == (after, 1970)
        else:
            with pytest.raises(InvalidTransition) as caught:
                task.move(after, wall=1.0)
            assert (caught.value.from_status, caught.value.to_status) == (before.value, after.value)
            assert f"a {before.value} task can move to" in str(caught.value)

    def test_what_is_over_is_over(self) -> None:
        assert {status for status in TaskStatus if status.terminal} == {
            TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED,
        }  # fmt: skip


class TestWho:
    def test_tokens_are_looked_up_by_digest_and_shown_nowhere(self) -> None:
        table = TokenTable({"t": "urn:asap:agent:a"})
        assert table.verify(Credential("t")) == Authenticated("urn:asap:agent:a")
        assert table.verify(Credential("\ud800")) is None
        assert len(table) == 1
        assert "'t'" not in repr(Credential("t"))

    @pytest.mark.parametrize(
        "tokens",
        [*({token: "urn:asap:agent:a"} for token in ("", "a b", "a\tb", "é", "t" * 8193)), {"t": "me"}],
    )
    def test_tokens_that_cannot_be_are_refused(self, tokens) -> None:
        with pytest.raises(ValueError, match="expected"):
            TokenTable(tokens)

    def test_a_table_takes_the_longest_token_that_a_header_may_have(self) -> None:
        assert len(TokenTable({"t" * 8192: "urn:asap:agent:a"})) == 1

    @pytest.mark.parametrize("value", [b"Bearer abc", b"bearer   abc ", b"BEARER abc", b" Bearer abc"])
    def test_a_bearer_token_is_read(self, value) -> None:
        assert read_credential(((b"authorization", value),)) == Credential("abc")

    @pytest.mark.parametrize(("length", "kind"), [(8192, Credential), (8193, BadCredential)])
    def test_a_token_has_a_longest_length(self, length, kind) -> None:
        assert type(read_credential(((b"authorization", b"Bearer " + b"t" * length),))) is kind

    def test_a_question_shows_no_nonce(self) -> None:
        facts: Any = {"sender": "s", "authenticated": True, "peer": "", "issued": 0.0, "deadline": 1.0}
        secrets: Any = {"nonce": "hush-nonce", "idempotency_key": "hush-key", "digest": b"hush"}
        assert "hush" not in repr(AdmissionQuestion(**facts, **secrets))

    def test_nobody_is_held_to_a_name_that_was_not_proven(self) -> None:
        assert sender_rule(Anonymous("192.0.2.1"), "urn:asap:agent:a") is None
        assert sender_rule(Authenticated("urn:asap:agent:a"), "urn:asap:agent:a") is None
        assert sender_rule(Authenticated("urn:asap:agent:a"), "urn:asap:agent:b") is not None


class TestErrors:
    def test_no_number_of_ours_is_one_of_the_references(self) -> None:
        references = {
            -32000, -32001, -32002, -32003, -32010, -32011, -32012, -32020, -32030, -32031, -32032, -32033, -32034,
            -32040, -32050, -32051, -32052,
        }  # fmt: skip
        ours = [kind.code for kind in KINDS if -32099 <= kind.code <= -32000 and kind.code not in references]
        assert len(ours) == len(set(ours))
        assert all(code <= -32060 for code in ours)

    def test_what_keeps_a_token_from_being_had_is_said(self) -> None:
        told = str(NoToken("https://id.example/token", "nothing within 10 s", next_try=2.0))
        assert told == "no access token from https://id.example/token: nothing within 10 s; not asked again for 2.0 s"

    def test_each_taxonomy_string_is_one_kind(self) -> None:
        assert len({kind.taxonomy for kind in KINDS}) == len(KINDS)
        assert all(kind.advice and kind.message for kind in KINDS)

    def test_they_say_what_would_have_been_right(self) -> None:
        said = [
            str(Unreachable("https://a", "refused", 2.0)),
            str(TimedOut("https://a", "nothing")),
            str(BadReply("https://a", "expected JSON", 500)),
            str(BadReply("https://a", "expected JSON")),
            str(WrongAgent("https://a", "urn:asap:agent:a", "urn:asap:agent:b")),
            str(NotAllowed("https://a", "it's far", Advice("move it"))),
            str(RemoteError(code=1, message="no")),
            str(Refusal(kind=KINDS[0], problems=(Problem(("a", 0), "x"),))),
            str(Problem((), "x")),
        ]
        assert said == [
            "no answer from https://a: refused; not asked again for 2.0 s",
            "no answer from https://a: nothing",
            "unusable answer from https://a (HTTP 500): expected JSON",
            "unusable answer from https://a: expected JSON",
            "https://a is urn:asap:agent:b, not urn:asap:agent:a",
            "https://a is not asked: it's far; move it",
            "the agent refused: no [1]",
            "Parse error; $.a[0]: expected x",
            "$: expected x",
        ]


class TestClock:
    def test_it_stands_still_until_it_is_moved(self) -> None:
        clock = ManualClock(monotonic=5, wall=10)
        clock.advance(1)
        clock.step_wall(-100)
        assert (clock.monotonic(), clock.wall()) == (6.0, -89.0)
        with pytest.raises(ValueError, match="forwards only"):
            clock.advance(-1)


class TestThePublicFace:
    def test_is_what_it_was(self) -> None:
        assert set(asap_core.__all__) >= {"Agent", "Envelope", "Manifest", "Skill", "Policy", "Request", "Response"}
        assert all(hasattr(asap_core, name) for name in asap_core.__all__)
        assert sorted(asap_core.__all__) == asap_core.__all__
        assert set(asap_core.__all__) <= set(dir(asap_core))
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            getattr(asap_core, "nothing")  # noqa: B009 - the type checker knows that there's none

    @given(envelopes())
    def test_an_envelope_is_hashable_by_nothing_and_equal_by_value(self, envelope) -> None:
        assert evolve(envelope) == envelope
