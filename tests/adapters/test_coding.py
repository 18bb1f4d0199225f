"""brotli of the library, and the streams that the laws make without it."""

import pytest

from asap_adapters.coding import Brotli
from asap_core.http.messages import Body, BodyTooLarge
from asap_core.testing.laws.brotli_streams import BLANKS, to_brotli

_MIB = 1024 * 1024


def decoded(stream: bytes, limit: int) -> bytes:
    body = Body(limit, Brotli())
    body.feed(stream)
    return body.take()


def test_what_a_law_stores_is_a_brotli_stream() -> None:
    assert decoded(to_brotli(b'{"a": 1}'), 100) == b'{"a": 1}'


def test_the_blanks_of_a_law_are_64_mib() -> None:
    assert decoded(to_brotli(b"{}", BLANKS), 65 * _MIB) == b"{}" + b" " * (64 * _MIB)


def test_the_blanks_are_not_decoded_beyond_the_limit() -> None:
    body = Body(10 * _MIB, Brotli())
    with pytest.raises(BodyTooLarge):
        body.feed(to_brotli(b"{}", BLANKS))
    assert body.held <= 10 * _MIB
