"""The head of an HTTP/1 request, judged before a parser sees it: whole, small enough, and with one reading only.

h11 is lenient where smuggling lives: bare line feeds, folded lines, a length beside a transfer coding. What passes here
has none of them. The answer is the same however the bytes were cut into chunks.
"""

import re
from typing import Final

from attrs import frozen

__all__ = ["BadHead", "Head", "HeadReader"]


@frozen
class Head:
    """A head that can be parsed, with its closing empty line, and what came after it."""

    data: bytes
    rest: bytes


@frozen
class BadHead:
    """No HTTP request that this server answers: the status to close with, and what would have been right."""

    status: int
    expected: str


_END: Final = b"\r\n\r\n"
_BARE: Final = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|\x00")
_VERSION: Final = re.compile(rb"HTTP/(\d+)\.(\d+)")
# What request methods are made of, near enough: the rest never begins a request (a TLS hello is 0x16).
_FIRST: Final = re.compile(rb"[A-Za-z]")


class HeadReader:
    """Collects a head of at most `max_size` bytes and `max_fields` header fields."""

    __slots__ = ("_buffer", "_max_fields", "_max_size", "_seen", "_skipped")

    def __init__(self, *, max_size: int, max_fields: int) -> None:
        self._max_size = max_size
        self._max_fields = max_fields
        self._buffer = bytearray()
        self._seen = 0
        self._skipped = False

    @property
    def started(self) -> bool:
        """Whether any byte of the head has come."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> "Head | BadHead | None":
        """Take the next bytes: the head once it's whole, what's wrong as soon as it's seen, or None: more is needed."""
        self._buffer += data
        # RFC 9112 §2.2: a server should ignore an empty line before the request line. One: more is not a client's slip.
        if not self._skipped and self._buffer.startswith(b"\r\n"):
            del self._buffer[:2]
            self._seen = 0
            self._skipped = True
        end = self._buffer.find(_END, max(0, self._seen - 3))
        stop = len(self._buffer) if end < 0 else end + len(_END)
        bad = self._bad_bytes(stop)
        if bad is not None or end < 0:
            self._seen = stop
            return bad
        head = bytes(self._buffer[:stop])
        return self._judge(head) or Head(head, bytes(self._buffer[stop:]))

    def _bad_bytes(self, stop: int) -> BadHead | None:
        # Of two faults the one that comes first in the bytes counts, so that no cut of them changes the answer.
        if self._buffer and _FIRST.match(self._buffer) is None and self._buffer != b"\r":
            return BadHead(400, "an HTTP/1.1 request")
        # RFC 9112 §2.2 lets a recipient take a bare LF for a line end, and says nothing good of a bare CR.
        if _BARE.search(self._buffer, max(0, self._seen - 1), min(stop, self._max_size)):
            return BadHead(400, "lines that end in CR LF, without NUL")
        if stop > self._max_size:
            # RFC 6585 §5; a request line this long is refused the same, whichever of the two it is.
            return BadHead(431, f"a request line and headers of at most {self._max_size} bytes")
        return None

    def _judge(self, head: bytes) -> BadHead | None:
        request_line, *fields = head[: -len(_END)].split(b"\r\n")
        if len(fields) > self._max_fields:
            return BadHead(431, f"at most {self._max_fields} header fields")
        return _judge_request_line(request_line) or _judge_fields(request_line, fields)


def _judge_request_line(line: bytes) -> BadHead | None:
    words = line.split(b" ")
    version = _VERSION.fullmatch(words[-1])
    if len(words) != 3 or version is None:  # noqa: PLR2004 - method, target, version (RFC 9112 §3)
        return BadHead(400, "a request line of method, target and version, each after one space")
    if version.groups() not in ((b"1", b"1"), (b"1", b"0")):
        return BadHead(505, "HTTP/1.1 or HTTP/1.0")
    return None


def _judge_fields(request_line: bytes, fields: list[bytes]) -> BadHead | None:
    names = [field.partition(b":")[0].lower() for field in fields]
    if any(field[:1] in (b" ", b"\t") for field in fields):
        # RFC 9112 §5.2: obsolete folding, to be refused or unfolded.
        return BadHead(400, "header fields on one line each")
    if any(name != name.strip() for name in names):
        # RFC 9112 §5.1: whitespace before the colon has been read as part of the name, and as not.
        return BadHead(400, "header names without whitespace before the colon")
    if b"transfer-encoding" in names and (b"content-length" in names or request_line.endswith(b"/1.0")):
        # RFC 9112 §6.1: an attempt at request smuggling; the message's end isn't certain.
        return BadHead(400, "either Content-Length or, in HTTP/1.1, Transfer-Encoding")
    if names.count(b"content-length") > 1:
        return BadHead(400, "one Content-Length")
    return None
