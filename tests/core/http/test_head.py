"""The head of a request: any bytes get one decision, however they are split, and no head has two readings."""

from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from asap_core.http.head import BadHead, Head, HeadReader, PlainRequest, judge, parsed_request, path_of
from asap_core.http.messages import Request, collect
from asap_core.testing import heads, nearly_valid_heads
from asap_core.testing.head_rules import HEAD_RULES


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
    def test_a_valid_head_is_read_however_it_is_split(self, chunk) -> None:
        outcome = self.read(self.GOOD + b"abc", chunk)
        assert outcome.data == self.GOOD
        assert self.read(b"\r\n" + self.GOOD, chunk) == Head(self.GOOD, b"")
        assert isinstance(self.read(b"\r\n\r\n" + self.GOOD, chunk), BadHead)

    def test_a_head_is_parsed_for_drivers_without_a_parser(self) -> None:
        head = self.read(b"POST /asap?a HTTP/1.1\r\nHost: a:1\r\nX-Y:\t\xe9 b? \r\nZ:\r\n\r\n")
        assert head.request(peer="127.0.0.1", local="::1") == Request(
            method="POST",
            target="/asap?a",
            headers=[(b"host", b"a:1"), (b"x-y", b"\xe9 b?"), (b"z", b"")],
            peer="127.0.0.1",
            local="::1",
        )

    @pytest.mark.parametrize("line", [b"no colon", b"colonless", b": nameless", b"a b: c", b"\xe9: c", b"(a): c"])
    def test_a_field_without_a_valid_name_is_no_request(self, line) -> None:
        head = self.read(b"GET / HTTP/1.1\r\nHost: a\r\n" + line + b"\r\n\r\n")
        assert head.request(peer="") == BadHead(400, "an HTTP/1.1 request")

    def test_a_method_is_a_token(self) -> None:
        assert self.read(b"GE(T / HTTP/1.1\r\nHost: a\r\n\r\n").request(peer="") == BadHead(400, "an HTTP/1.1 request")

    @pytest.mark.parametrize("extra", [0, 1])
    @pytest.mark.parametrize("chunk", [None, 1])
    def test_the_size_of_a_head_has_an_exact_limit(self, extra, chunk) -> None:
        outcome = self.read(self.GOOD, chunk, max_size=len(self.GOOD) - extra)
        assert isinstance(outcome, BadHead if extra else Head)

    @pytest.mark.parametrize("chunk", [None, 1])
    def test_what_is_longer_than_a_head_may_be_is_refused_before_its_end(self, chunk) -> None:
        expected = BadHead(431, "a request line and headers of at most 200 bytes")
        assert self.read(b"GET /" + b"a" * 195, chunk) is None
        assert self.read(b"GET /" + b"a" * 196, chunk) == expected

    def test_what_begins_no_request_is_refused_at_once(self) -> None:
        assert self.read(b"\x16") == self.read(b"1") == BadHead(400, "an HTTP/1.1 request")
        reader = HeadReader(max_size=200, max_fields=5)
        assert reader.feed(b"G") is None
        assert reader.started is True

    @pytest.mark.parametrize("behind", [b"\x00", b"\n", b"\xff" * 300])
    def test_what_follows_a_head_may_be_any_bytes(self, behind) -> None:
        assert self.read(self.GOOD + behind) == Head(self.GOOD, behind)

    def test_the_number_of_fields_has_a_limit(self) -> None:
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
    def test_heads_with_two_readings_are_refused(self, head) -> None:
        assert self.read(head + b"\r\nHost: a\r\n\r\n").status == 400

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
    def test_heads_for_request_smuggling_are_refused(self, head, status) -> None:
        assert self.read(head + b"\r\nHost: a\r\n\r\n").status == status

    @pytest.mark.parametrize(
        ("head", "is_read"),
        [
            (b"GET / HTTP/1.1\r\n\r\n", False),
            (b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", False),
            (b"GET / HTTP/1.0\r\nHost: a\r\nhost: a\r\n\r\n", False),
            (b"GET / HTTP/1.1\r\nHOST:\r\n\r\n", True),
            (b"GET / HTTP/1.0\r\n\r\n", True),
        ],
    )
    def test_a_request_names_one_host(self, head, is_read) -> None:
        expected = (
            Head(head, b"") if is_read else BadHead(400, "one Host: a name or an address, with or without a port")
        )
        assert self.read(head) == expected

    @pytest.mark.parametrize("blank", [b" ", b"\t"])
    def test_folded_fields_are_refused(self, blank) -> None:
        outcome = self.read(b"GET / HTTP/1.1\r\nA: b\r\n" + blank + b"c: d\r\n\r\n")
        assert outcome == BadHead(400, "header fields on one line each")

    def test_a_version_has_two_numbers(self) -> None:
        assert self.read(b"GET / HTTP/1.\r\n\r\n").status == 400

    def test_a_transfer_coding_alone_is_accepted(self) -> None:
        assert isinstance(self.read(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"), Head)

    @pytest.mark.parametrize(
        "value",
        [
            b"150?",
            b"?150",
            b"150,150",
            b"150, 150",
            b"+150",
            b"-0",
            b"1_5",
            b"0x10",
            b"",
            b"1 5",
            b"1.0",
            "١٥".encode(),
            b"\xb2",
        ],
    )
    def test_a_content_length_of_anything_but_digits_is_refused(self, value) -> None:
        outcome = self.read(b"POST /asap HTTP/1.1\r\nHost: a\r\nContent-Length: " + value + b"\r\n\r\n")
        assert outcome == BadHead(400, "one Content-Length, of digits only")

    @pytest.mark.parametrize("value", [b"150", b" 150\t", b"0", b"007"])
    def test_a_content_length_of_digits_is_accepted(self, value) -> None:
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
    def test_valid_targets_have_exactly_one_path(self, method, target, path) -> None:
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
    def test_targets_of_an_invalid_form_have_no_path(self, method, target) -> None:
        assert path_of(target, method) is None

    @given(st.sampled_from(["GET", "CONNECT", "OPTIONS"]), st.text())
    def test_any_text_gets_a_decision(self, method, target) -> None:
        assert isinstance(path_of(target, method), str | None)

    @given(st.from_regex(r"(?:https?://[a-z?/#:@]{0,8})?[a-z?/#:%]{0,12}", fullmatch=True))
    def test_the_path_of_a_target_is_the_one_that_urlsplit_finds(self, target) -> None:
        from urllib.parse import urlsplit

        path = path_of(target, "GET")
        if path is not None:
            assert path == (urlsplit(target if "://" in target else f"http://a{target}").path or "/")


class TestParsedRequests:
    @pytest.mark.parametrize(
        ("headers", "found"),
        [
            ({}, "/asap"),
            ({b"host": b"a.example:80", b"content-length": b"5"}, "/asap"),
            ({b"host": b"[fe80::1%25eth0]:80", b"transfer-encoding": b"Chunked"}, "/asap"),
            ({b"host": b"a, b"}, 400),
            ({b"content-length": b"5, 5"}, 400),
            ({b"content-length": b"5", b"transfer-encoding": b"chunked"}, 400),
            ({b"transfer-encoding": b"gzip, chunked"}, 501),
        ],
    )
    def test_a_parsed_request_is_judged_like_its_bytes(self, headers, found) -> None:
        judged = judge("POST", "/asap?x", headers)
        assert (judged.status if isinstance(judged, BadHead) else judged) == found

    def test_what_is_wrong_with_the_framing_is_said(self) -> None:
        one, both = {b"content-length": b"5, 5"}, {b"content-length": b"5", b"transfer-encoding": b"chunked"}
        assert judge("POST", "/asap", one) == BadHead(400, "one Content-Length, of digits only")
        expected = BadHead(400, "either Content-Length or, in HTTP/1.1, Transfer-Encoding")
        assert judge("POST", "/asap", both) == expected

    def test_a_target_of_another_form_is_refused(self) -> None:
        assert judge("POST", "*", {}) == BadHead(
            400, "a request target that is a path, such as /asap, or an http URL with one"
        )


# Rules about what another server has read away, or must judge before it knows method, target and fields.
READ_AWAY = {
    "a request line has three words", "one space divides the words", "the version has two numbers",
    "a line ends in CR LF, not in LF", "a line ends in CR LF, not in CR", "a field stays on one line",
    "a field has a colon",
}  # fmt: skip


class TestHeadsThatAnotherServerHasRead:
    """What another server has read is judged like its bytes."""

    def parsed(self, data, **changes):
        """What comes of a head that a server has read, which checks nothing."""
        line, *lines = data.removesuffix(b"\r\n\r\n").split(b"\r\n")
        method, target, version = line.decode("latin-1").split(" ")
        fields = [each.partition(b":") for each in lines]
        headers = tuple((name.lower(), value.strip(b" \t")) for name, _, value in fields)
        options = {"version": version.removeprefix("HTTP/"), "max_size": 2_000, "max_fields": 20, **changes}
        return parsed_request(method, target, headers, peer="192.0.2.1", local="192.0.2.2", **options)

    def status(self, outcome):
        if type(outcome) is Request:  # an Exchange judges it
            outcome = judge(outcome.method, outcome.target, collect(outcome.headers))
        return outcome.status if isinstance(outcome, BadHead) else None

    @given(nearly_valid_heads(*(HEAD_RULES.keys() - READ_AWAY)))
    def test_a_head_that_breaks_a_rule_gets_the_same_status(self, drawn) -> None:
        if len(drawn.data.split(b"\r\n")[0].split(b" ")) == 3:
            assert self.status(self.parsed(drawn.data)) == drawn.status

    @given(heads())
    def test_a_valid_head_makes_the_same_request(self, data) -> None:
        head, found = HeadReader(max_size=2_000, max_fields=20).feed(data), self.parsed(data)
        assert isinstance(head, Head)
        request = head.request(peer="192.0.2.1", local="192.0.2.2")
        assert isinstance(request, Request)
        assert isinstance(found, PlainRequest)
        fields = collect(request.headers)
        assert (found.path, found.fields) == (judge(request.method, request.target, fields), fields)
        bare = Request(
            method=found.method, target=found.target, headers=found.headers, peer=found.peer, local=found.local
        )
        assert bare == request

    @pytest.mark.parametrize(
        ("version", "fields", "expected"),
        [
            ("1.1", b"host: a", None),
            ("1.1", b"x: a", BadHead(400, "one Host: a name or an address, with or without a port")),
            ("1.0", b"x: a", None),
            ("1", b"x: a", None),
            ("2", b"x: a", None),
            ("3", b"x: a", None),
            ("2.0", b"host: a", BadHead(505, "HTTP/1.1 or HTTP/1.0")),
            ("1.2", b"host: a", BadHead(505, "HTTP/1.1 or HTTP/1.0")),
            ("1.1", b"host: a\r\ntransfer-encoding: chunked", None),
            (
                "1",
                b"host: a\r\ntransfer-encoding: chunked",
                BadHead(400, "either Content-Length or, in HTTP/1.1, Transfer-Encoding"),
            ),
            ("1.1", b"host: a\r\nx: a\tb\xff", None),
            *[
                ("2", b"x: a%bb" % byte, BadHead(400, "lines that end in CR LF, without control characters"))
                for byte in (b"\0", b"\x08", b"\n", b"\x1f", b"\x7f")
            ],
        ],
    )
    def test_a_version_has_its_rules(self, version, fields, expected) -> None:
        found = self.parsed(b"POST /asap x\r\n%b\r\n\r\n" % fields, version=version)
        assert found == expected if expected is not None else isinstance(found, PlainRequest)

    def test_the_size_of_a_head_has_an_exact_limit(self) -> None:
        head = b"POST /asap HTTP/1.1\r\nhost:a\r\nx:bcd\r\n\r\n"
        assert isinstance(self.parsed(head, max_size=len(head)), PlainRequest)
        expected = BadHead(431, f"a request line and headers of at most {len(head) - 1} bytes")
        assert self.parsed(head, max_size=len(head) - 1) == expected

    def test_the_number_of_fields_has_a_limit(self) -> None:
        head = b"POST /asap HTTP/1.1\r\nhost:a\r\nx:b\r\nx:b\r\n\r\n"
        assert isinstance(self.parsed(head, max_fields=3), PlainRequest)
        assert self.parsed(head, max_fields=2) == BadHead(431, "at most 2 header fields")

    @pytest.mark.parametrize("method", ["", "!GET", "G@T", "G T"])
    def test_a_method_is_a_token_that_begins_with_a_letter(self, method) -> None:
        options: dict[str, Any] = {"version": "2", "peer": "", "local": "", "max_size": 99, "max_fields": 1}
        assert parsed_request(method, "/", (), **options) == BadHead(400, "an HTTP/1.1 request")
        assert isinstance(parsed_request("PUT", "/", (), **options), PlainRequest)

    @pytest.mark.parametrize("name", [b"", b"x ", b" x", b"x y", b"x(", b"x\xe9", b"\tx", b'x"'])
    def test_a_name_is_a_token(self, name) -> None:
        options: dict[str, Any] = {"version": "2", "peer": "", "local": "", "max_size": 99, "max_fields": 2}
        found = parsed_request("GET", "/", ((b"x-y", b"("), (name, b"1")), **options)
        assert found == BadHead(400, "an HTTP/1.1 request")
        assert isinstance(parsed_request("GET", "/", ((b"!#$%&'*+.^_`|~0-9az", b"("),), **options), PlainRequest)

    def test_the_path_may_precede_a_query(self) -> None:
        found = self.parsed(b"GET /a?b HTTP/1.1\r\nhost: a\r\n\r\n")
        assert (found.path, found.target) == ("/a", "/a?b")
