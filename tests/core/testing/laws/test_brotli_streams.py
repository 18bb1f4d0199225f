"""Streams of brotli that the laws send, without a compressor: what stands in them, and where they end."""

import pytest

from asap_core.testing.laws.brotli_streams import BLANKS, END, stored_brotli, to_brotli


@pytest.mark.parametrize("size", [1, 255, 256, 65_536])
@pytest.mark.parametrize("end", [END, BLANKS, END + b"more"])
def test_what_is_stored_is_read(size: int, end: bytes) -> None:
    assert stored_brotli(to_brotli(b"a" * size, end)) == (size, b"a" * size, end)


def test_a_stream_that_was_cut_is_read_as_far_as_it_goes() -> None:
    assert stored_brotli(to_brotli(b"a" * 9)[:8]) == (9, b"a" * 5, b"")


@pytest.mark.parametrize("data", [b"", b"a" * 65_537])
def test_a_meta_block_has_one_byte_at_least_and_64_kib_at_most(data: bytes) -> None:
    with pytest.raises(ValueError, match="1 to 65536 bytes"):
        to_brotli(data)


@pytest.mark.parametrize("stream", [b"", b"\x0b\x00", b"{}", b"\x0b\x00\x00a\x03", b"\x1b\x00\x80a\x03"])
def test_another_stream_is_not_read(stream: bytes) -> None:
    with pytest.raises(ValueError, match="a stored meta-block"):
        stored_brotli(stream)
