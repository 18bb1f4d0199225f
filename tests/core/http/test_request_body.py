"""Bodies within the bytes of a connection: their content, however they are split, and what is refused."""

import pytest

from asap_core.http.head import BadHead
from asap_core.http.messages import Request
from asap_core.http.request_body import RequestBody

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
