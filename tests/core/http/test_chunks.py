"""The framing of chunked bodies: sizes, extensions and trailers, for any bytes in any pieces."""

import pytest
from hypothesis import example, given, strategies as st

from asap_core.http.chunks import ChunkFrames


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
