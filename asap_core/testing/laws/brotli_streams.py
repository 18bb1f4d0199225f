"""brotli streams (RFC 7932) without a compressor: what they contain is stored, and not compressed."""

from typing import Final

# A window of 4 MiB (RFC 7932 §9.1), and the header of a meta-block that is stored (§9.2): its bits, the lowest first.
_WINDOW: Final = 0b1011
_STORED: Final = 1 << 23
_LENGTH_AT: Final = 7
_MOST: Final = 65_536
_HEADER: Final = 3

END: Final = b"\x03"
"""The end of a stream: a last meta-block that is empty."""
BLANKS: Final = bytes.fromhex(
    "fcffff034002241e0b24f7fe8fffff7f004800c46101e8defff1ffff0f000980382c00ddfb3ffeffff012001108705a07bff"
    "c7ffff3f002400e2b00074effff8ffff078004401c1680eefd1fffffff00900088c302d0bdffe3ffff1f001200715800baf7"
    "7f03"
)
"""Meta-blocks of 64 MiB of blanks, and the end of a stream."""


def to_brotli(data: bytes, end: bytes = END) -> bytes:
    """Return a stream with this content, at most 65,536 bytes. `end`: also `BLANKS`."""
    if not 0 < len(data) <= _MOST:
        raise ValueError(f"expected 1 to {_MOST} bytes")
    return (_WINDOW | (len(data) - 1) << _LENGTH_AT | _STORED).to_bytes(_HEADER, "little") + data + end


def stored_brotli(stream: bytes) -> tuple[int, bytes, bytes]:
    """Return the length that such a stream states, what there is of its content, and what follows.

    Raises ValueError if it isn't such a stream.
    """
    head = int.from_bytes(stream[:_HEADER], "little")
    size = (head >> _LENGTH_AT & (_MOST - 1)) + 1
    if len(stream) < _HEADER or head != _WINDOW | (size - 1) << _LENGTH_AT | _STORED:
        raise ValueError("expected a window of 4 MiB and a stored meta-block")
    return size, stream[_HEADER : _HEADER + size], stream[_HEADER + size :]
