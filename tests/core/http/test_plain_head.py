"""The heads of most requests, read by one pattern: it accepts only what has one meaning, and refuses nothing."""

import pytest
from attrs import asdict
from hypothesis import given, strategies as st

from asap_core.http.head import Head, HeadReader, PlainHead, judge, read_plain_head
from asap_core.http.messages import Request, collect

START = b"POST /asap HTTP/1.1\r\nHost: a\r\n"
END = b"Content-Length: 3\r\n\r\n"


def read(data: bytes, *, max_size: int = 300, max_fields: int = 6) -> PlainHead | None:
    return read_plain_head(data, max_size=max_size, max_fields=max_fields)


def accepted(data: bytes) -> PlainHead:
    found = read(data)
    assert found is not None
    return found


class TestAccepted:
    def test_a_head_is_read_up_to_its_body(self) -> None:
        data = b"Get /a%20b?c={d} HTTP/1.1\r\nHOST:a.example:80\r\nX-Y:\t\xe9 b? \r\nZ:\r\nContent-Length: 007\r\n\r\n"
        headers = ((b"host", b"a.example:80"), (b"x-y", b"\xe9 b?"), (b"z", b""), (b"content-length", b"007"))
        expected = PlainHead("Get", "/a%20b?c={d}", headers, 7, True, len(data), dict(headers))
        assert read(data + b"rest\r\n\r\n") == expected

    def test_a_head_without_a_length_has_no_body(self) -> None:
        assert accepted(b"GET /asap HTTP/1.1\r\nHost: a\r\n\r\n").length == 0

    @pytest.mark.parametrize(
        ("connection", "stays"), [(b"", True), (b"Connection: Keep-Alive\r\n", True), (b"CONNECTION: Close\r\n", False)]
    )
    def test_the_connection_stays_open_unless_the_client_closes_it(self, connection, stays) -> None:
        assert accepted(START + connection + END).stays_open is stays

    @pytest.mark.parametrize("host", [b"", b"[fe80::1%25eth0]:80", b"a-b.example", b"127.0.0.1"])
    def test_a_host_is_an_authority(self, host) -> None:
        assert accepted(b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n" % host).headers == ((b"host", host),)

    def test_repeated_fields_without_a_part_in_the_framing_are_accepted(self) -> None:
        assert accepted(START + b"Accept: a\r\naccept: b\r\n" + END).headers[1:3] == (
            (b"accept", b"a"),
            (b"accept", b"b"),
        )


class TestLeft:
    """What isn't accepted: a general parser decides about it."""

    @pytest.mark.parametrize("cut", range(1, len(START + END)))
    def test_an_incomplete_head(self, cut) -> None:
        assert read((START + END)[:-cut]) is None

    def test_a_head_over_its_limits(self) -> None:
        data = START + END
        assert read(data + b"x", max_size=len(data), max_fields=2) is not None
        assert read(data + b"x", max_size=len(data) - 1, max_fields=2) is None
        assert read(data + b"x", max_size=len(data), max_fields=1) is None

    @pytest.mark.parametrize(
        "line",
        [
            b"POST /asap HTTP/1.0", b"POST /asap HTTP/1.2", b"POST /asap HTTP/2.0", b"POST /asap http/1.1",
            b"POST /asap HTTP/1.1 ", b"POST  /asap HTTP/1.1", b"POST\t/asap HTTP/1.1", b"POST /a b HTTP/1.1",
            b" POST /asap HTTP/1.1", b"\r\nPOST /asap HTTP/1.1", b"!POST /asap HTTP/1.1", b"PO(T /asap HTTP/1.1",
            b"CONNECT /asap HTTP/1.1", b"CONNECT a:443 HTTP/1.1", b"OPTIONS * HTTP/1.1", b"GET http://a/asap HTTP/1.1",
            b"POST /asap# HTTP/1.1", b"POST /as%6 HTTP/1.1", b"POST /\xe4 HTTP/1.1", b"POST ?/asap HTTP/1.1",
            b"POST /asap?\x7f HTTP/1.1", b"POST /asap?a#b HTTP/1.1", b"POST HTTP/1.1", b"POST /asap",
        ],
    )  # fmt: skip
    def test_another_request_line(self, line) -> None:
        assert read(line + b"\r\nHost: a\r\n" + END) is None

    @pytest.mark.parametrize(
        "fields",
        [
            b"", b"Host: a\r\nHost: a\r\n", b"Host:\r\nHost:\r\n", b"Host: a b\r\n", b"Host: a, b\r\n",
            b"Host: a\r\nHost: b\r\n", b"Host: http://a\r\n", b"Host: a@b\r\n", b"Host: a/b\r\n", b"Host: a:b\r\n",
        ],
    )  # fmt: skip
    def test_another_number_of_hosts_than_one_or_no_host(self, fields) -> None:
        assert read(b"GET /asap HTTP/1.1\r\n" + fields + b"\r\n") is None

    @pytest.mark.parametrize(
        "field",
        [
            b"Connection: close, keep-alive", b"Connection: x-close", b"Connection: te, close", b"Connection:",
            b"Connection: close\r\nConnection: close", b"Connection: upgrade", b"Connection: closed",
            b"Connection: keep-alive\r\nConnection: close", b"Expect: 100-continue", b"Expect:", b"Upgrade: h2c",
        ],
    )  # fmt: skip
    def test_what_is_negotiated_about_the_connection(self, field) -> None:
        assert read(START + field + b"\r\n" + END) is None

    # The shapes that the public suites for request smuggling send: CL.TE, TE.CL, TE.TE, CL.CL, CL.0, and what hides a
    # field from one of two readers.
    @pytest.mark.parametrize(
        "field",
        [
            b"Transfer-Encoding: chunked", b"transfer-encoding:chunked", b"Transfer-Encoding: chunked\r\n" + END[:-4],
            b"Transfer-Encoding : chunked", b"Transfer-Encoding\t: chunked", b" Transfer-Encoding: chunked",
            b"\tTransfer-Encoding: chunked", b"Transfer-Encoding: xchunked", b"Transfer-Encoding:\x0bchunked",
            b"Transfer-Encoding: \x00chunked", b"Transfer-Encoding: chunked\x00", b"Transfer-Encoding:\x0cchunked",
            b"Transfer-Encoding: 'chunked'", b'Transfer-Encoding: "chunked"', b"Transfer-Encoding: chunked, identity",
            b"Transfer-Encoding: identity, chunked", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
            b"Transfer-Encoding:\r\n chunked", b"Transfer-Encoding\r\n : chunked", b"X: y\nTransfer-Encoding: chunked",
            b"X: y\rTransfer-Encoding: chunked", b"X: y\r\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: \xff",
            b"Transfer-Encoding: chunked\x20", b"Transfer-Encoding: chunk", b"\x00Transfer-Encoding: chunked",
            b"Transfer\x00-Encoding: chunked", b"Transfer-Encoding\x00: chunked", b"Transfer-Encoding\xa0: chunked",
            b"TRANSFER-ENCODING: CHUNKED", b"Transfer-Encoding:", b": chunked", b"Transfer-Encoding chunked",
            b"\x7fTransfer-Encoding: chunked", b"(Transfer-Encoding): chunked", b"Transfer Encoding: chunked",
            b"Content-Length: 1", b"content-length: 3", b"Content-Length : 3", b" Content-Length: 3",
            b"Content-Length\x00: 3", b"Content-Length\r\n : 3", b"X: y\nContent-Length: 9", b"X: y\rContent-Length: 9",
        ],
    )  # fmt: skip
    def test_a_second_framing_however_it_is_hidden(self, field) -> None:
        assert read(START + END[:-2] + field + b"\r\n\r\n") is None
        assert read(START + field + b"\r\n" + END) is None

    @pytest.mark.parametrize(
        "value",
        [
            b"", b"+3", b"-3", b"-0", b"3,3", b"3, 3", b"3 3", b"0x3", b"3.0", b"3e0", b"1_0", b"\xb3", b"3;", b'"3"',
            b"\x0b3", b"3\x00", b"1" * 19,
        ],
    )  # fmt: skip
    def test_a_content_length_of_anything_but_18_digits(self, value) -> None:
        assert read(START + b"Content-Length: " + value + b"\r\n\r\n") is None
        assert read(START + b"Content-Length: " + b"1" * 18 + b"\r\n\r\n") is not None


PLAIN_LINES = (b"POST /asap HTTP/1.1", b"GET /health?a HTTP/1.1")
LINES = (
    *PLAIN_LINES, b"GET / HTTP/1.0", b"CONNECT a HTTP/1.1", b"OPTIONS * HTTP/1.1", b"GET http://a/ HTTP/1.1",
)  # fmt: skip
PLAIN_FIELDS = (b"Content-Length: 3", b"Connection: close", b"Connection: keep-alive", b"X: y", b"Accept: \xe9\t")
FIELDS = (
    *PLAIN_FIELDS, b"Host: b", b"host:", b"Content-Length: 0", b"Content-Length: 3,3", b"Connection: close, x",
    b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"Upgrade: x", b" X: y", b"X : y", b"X",
)  # fmt: skip
BYTES = (b"\r", b"\n", b" ", b"\t", b"\x00", b":", b",", b"a", b"1", b"\xff")


@st.composite
def almost_heads(draw: st.DrawFn) -> bytes:
    """Heads, most of them in the usual form, some with a byte inserted or replaced, and what may follow them."""
    usual = draw(st.booleans())
    lines = [draw(st.sampled_from(PLAIN_LINES if usual else LINES)), b"Host: a"][: draw(st.sampled_from([1, 2, 2, 2]))]
    lines += draw(st.lists(st.sampled_from(PLAIN_FIELDS if usual else FIELDS), max_size=4, unique=usual))
    data = b"\r\n".join([*lines, b"", b""]) + draw(st.sampled_from([b"", b"abc", b"abcGET / HTTP/1.1\r\n"]))
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        at, size = draw(st.integers(0, len(data))), draw(st.integers(0, 1))
        data = data[:at] + draw(st.sampled_from(BYTES)) + data[at + size :]
    return data


@given(almost_heads() | st.binary(max_size=100), st.integers(1, 300), st.integers(0, 6))
def test_whatever_is_accepted_the_other_readers_accept_and_read_the_same(data, max_size, max_fields) -> None:
    """`HeadReader`, `Head.request` and `judge` are what other drivers go through."""
    plain = read(data, max_size=max_size, max_fields=max_fields)
    if plain is None:
        return
    head = HeadReader(max_size=max_size, max_fields=max_fields).feed(data)
    assert isinstance(head, Head)
    assert (head.data, head.rest) == (data[: plain.end], data[plain.end :])
    request = plain.request(peer="p", local="l")
    general = Request(method=plain.method, target=plain.target, headers=plain.headers, peer="p", local="l")
    assert head.request(peer="p", local="l") == general
    assert asdict(request) == {**asdict(general), "path": request.path, "fields": collect(plain.headers)}
    assert request.path == judge(plain.method, plain.target, request.fields)
    assert plain.end <= max_size
    assert len(plain.headers) <= max_fields
