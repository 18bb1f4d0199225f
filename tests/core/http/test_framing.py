"""Where bodies end, for any bytes in any pieces: chunk sizes, extensions and trailers; what is refused."""

import pytest
from hypothesis import example, given, strategies as st

from asap_core.http.framing import ChunkFrames, RequestBody
from asap_core.http.head import BadHead
from asap_core.http.messages import Request


def follow(data: bytes, chunk: int | None = None, **limits) -> str | None:
    frames = ChunkFrames(**{"max_line": 100, "max_fields": 3, **limits})
    for start in range(0, len(data), chunk or len(data) or 1):
        expected = frames.feed(data[start : start + (chunk or len(data))])
        if expected is not None:
            return expected
    return None


@pytest.mark.parametrize(
    "body",
    [
        b"0\r\n\r\n",
        b"3\r\nabc\r\n0\r\n\r\n",
        b"A\r\n0123456789\r\n00\r\n\r\n",
        b'3;a;b=c;d="x;\\" y"\r\nabc\r\n0;last\r\nX: y\r\nEmpty:\r\n\r\n',
        b"3\r\n\n\r\x00\r\n0\r\n\r\n",  # content may be anything
        b"0\r\nX: \t\xff\r\n\r\n",
        b"0\r\n\r\nPOST /next HTTP/1.1\n\x00",  # what comes after it isn't looked at
        b"ff",  # more is to come
    ],
)
@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_valid_chunks_pass_however_they_are_split(body, chunk) -> None:
    assert follow(body, chunk) is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        *(
            (bad, "chunk lines and trailers that end in CR LF, without control characters")
            for bad in [
                b"0\n",
                b"3\nabc\r\n",
                b"3\r\nabc\n",
                b"0\r\nX: y\n\n",
                b"0\r\nX: y\r\n\n",
                b"0\r\n\n",
                b"0\r\nX: a\rb\r\n",
                b"0\r\nX: \x00\r\n",
                b"0;a\x00\r\n",
                b"3;a=\rb\r\n",
                b"0\r\nX: \x0b\r\n",
                b"0;\x7f\r\n",
                b"3\r\r\n",
            ]
        ),
        *(
            (bad, "chunk sizes in hexadecimal, with extensions as in RFC 9112")
            for bad in [
                b"\r\n",
                b"+3\r\n",
                b"-3\r\n",
                b"0x3\r\n",
                b"1_0\r\n",
                b" 3\r\n",
                b"3 \r\n",
                b"3\t\r\n",
                b"3 ;a\r\n",
                b"g\r\n",
                b"3;\r\n",
                b"3;a b\r\n",
                b'3;a="b\r\n',
                b"3;a=\r\n",
                b"3,a\r\n",
                b"\xb3\r\n",
                b"0" * 17 + b"\r\n",
            ]
        ),
        *((bad, "CR LF after each chunk") for bad in [b"3\r\nabcd\r\n", b"1\r\nabc\r\n0\r\n"]),
        *(
            (b"0\r\n" + bad, "at most 3 trailers, each a name, a colon and a value on one line")
            for bad in [
                b"X\r\n",
                b"X : y\r\n",
                b" X: y\r\n",
                b"X: y\r\n folded\r\n",
                b":\r\n",
                b"\xe9: y\r\n",
                b"X: y\r\n" * 4,
            ]
        ),
        *(
            (b"0\r\n" + bad, "in trailers no field that decides how the request is read")
            for bad in [
                b"Content-Length: 1\r\n",
                b"transfer-encoding: chunked\r\n",
                b"HOST: a\r\n",
                b"Origin: https://app.example\r\n",
                b"Authorization: Bearer x\r\n",
                b"X-Idempotency-Key: k\r\n",
                b"X: y\r\nContent-Encoding: gzip\r\n",
            ]
        ),
        *(
            (bad, "chunk lines and trailers of at most 100 bytes")
            for bad in [
                b"1;" + b"e" * 100,
                b"1" * 101,
                b"0\r\nX: " + b"y" * 98,
                b"0\r\n" + b"X: %s\r\n" % (b"y" * 50) * 2,
            ]
        ),
    ],
)
@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_invalid_chunks_are_refused_however_they_are_split(body, expected, chunk) -> None:
    assert follow(body, chunk) == expected


PIECES = [
    b"0",
    b"3",
    b"abc",
    b"\r\n",
    b"\n",
    b"\r",
    b";",
    b"=",
    b'"',
    b"X: y",
    b" ",
    b"\x00",
    b"1\r\na\r\n",
    b"0\r\n\r\n",
]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join), st.integers(1, 5))
@example(b"0\r\nX: y\n\n", 1)
def test_any_bytes_get_the_same_decision_however_they_are_cut(body, chunk) -> None:
    assert follow(body) == follow(body, chunk)


CHUNKED = b"3;a=b\r\na\r\n\r\n2\r\nbc\r\n0\r\nX: y\r\n\r\n"


def body_of(**fields: bytes) -> RequestBody:
    headers = [(name.replace("_", "-").encode(), value) for name, value in fields.items()]
    return RequestBody(Request(method="POST", target="/asap", headers=headers, peer="192.0.2.1"))


@pytest.mark.parametrize("size", [1, 2, 7, 100])
@pytest.mark.parametrize(
    ("fields", "data"), [({"content_length": b"5"}, b"a\r\nbc"), ({"transfer_encoding": b"chunked"}, CHUNKED)]
)
def test_a_body_is_read_to_its_end_however_it_is_split(fields: dict[str, bytes], data: bytes, size: int) -> None:
    body, content = body_of(**fields), b""
    for at in range(0, len(data), size):
        assert not body.ended
        piece = body.read(data[at : at + size] + (b"GET /" if at + size >= len(data) else b""))
        assert isinstance(piece, bytes)
        content += piece
    assert (content, body.ended) == (b"a\r\nbc", True)


def test_a_request_that_says_nothing_of_a_body_has_none() -> None:
    assert body_of().ended


@pytest.mark.parametrize("fields", [{"content_length": b"5"}, {"transfer_encoding": b"chunked"}])
def test_a_body_that_is_cut_off_is_refused(fields: dict[str, bytes]) -> None:
    body = body_of(**fields)
    assert body.read(b"1\r\n") is not None
    assert body.read(b"") == BadHead(400, "the whole body")


def test_a_body_that_breaks_the_framing_is_refused() -> None:
    assert body_of(transfer_encoding=b"chunked").read(b"1\r\nab\r\n") == BadHead(400, "CR LF after each chunk")


def test_a_body_that_is_almost_all_framing_is_refused() -> None:
    body, small = body_of(transfer_encoding=b"chunked"), b"1\r\na\r\n" * 10_000
    assert body.read(small) == b"a" * 10_000
    assert body.read(small) == BadHead(400, "a body in chunks of 8 bytes or more, without long extensions or trailers")
    large = body_of(transfer_encoding=b"chunked")
    assert all(isinstance(large.read(b"8\r\n12345678\r\n" * 10_000), bytes) for _ in range(20))
