"""Where the body of a request ends: by its Content-Length, or by its chunks (RFC 9112 §7.1), whose grammar is checked.

h11 reads the server's bodies, but it accepts bare line feeds, blanks and any extension, and there two readers may
disagree about where the body ends and the next request begins (request smuggling). `ChunkFrames` sees the bytes before
h11 does. Its answer doesn't depend on how the bytes are split. `RequestBody` is for drivers without an HTTP parser.
"""

import re
from typing import Final

from asap_core.http.fields import CONTROL, QUOTED_STRING, TOKEN
from asap_core.http.head import BadHead
from asap_core.http.messages import Request

# RFC 9112 §7.1 and §7.1.1, but without optional whitespace: nobody sends it, and some readers take it for part of the
# size. 16 hexadecimal digits are more than any body needs.
_SIZE: Final = re.compile(rf"([0-9A-Fa-f]{{1,16}})(?:;{TOKEN}(?:=(?:{TOKEN}|{QUOTED_STRING}))?)*".encode("latin-1"))
_FIELD: Final = re.compile(rf"({TOKEN}):.*".encode("latin-1"), re.DOTALL)
_CONTROL: Final = re.compile(CONTROL.encode("latin-1"))
# RFC 9110 §6.5.1: no fields for framing, routing, authentication or content format. Those were evaluated before the
# body; in a trailer they would be ignored, while the sender expects that they count.
_NOT_IN_TRAILERS: Final = frozenset(
    b"asap-version authorization connection content-encoding content-length content-type dpop expect forwarded host "
    b"if-none-match origin te trailer transfer-encoding x-forwarded-for x-idempotency-key".split()
)


class ChunkFrames:
    """Follows one chunked body.

    `max_line`: bytes of one line, and of all trailers together.
    `max_fields`: the number of trailers.
    """

    __slots__ = ("_content", "_fields", "_in_trailers", "_line", "_max_fields", "_max_line", "_size", "ended")

    def __init__(self, *, max_line: int, max_fields: int) -> None:
        self._max_line = max_line
        self._max_fields = max_fields
        self._line = bytearray()
        self._content: int | None = None
        self._in_trailers = False
        self.ended: bool = False
        """Whether the last byte of the body was seen."""
        self._size = self._fields = 0

    def feed(self, data: bytes, content: bytearray | None = None) -> str | None:
        """Follow the next bytes. Returns what would have been right if they are wrong, else None.

        data: what comes after the body's end is ignored.
        content: gets the content, that is the bytes without the framing.
        """
        at = 0
        while at < len(data) and not self.ended:
            if self._content:
                skipped = min(self._content, len(data) - at)
                self._content -= skipped
                if content is not None:
                    content += data[at : at + skipped]
                at += skipped
                continue
            end = data.find(b"\n", at) + 1
            self._line += data[at : end or len(data)]
            if len(self._line) + self._size > self._max_line:
                return f"chunk lines and trailers of at most {self._max_line} bytes"
            if not end:
                return None
            at = end
            expected = self._take_line(bytes(self._line))
            if expected is not None:
                return expected
            self._line.clear()
        return None

    def _take_line(self, line: bytes) -> str | None:
        if not line.endswith(b"\r\n") or _CONTROL.search(line, 0, len(line) - 2):
            return "chunk lines and trailers that end in CR LF, without control characters"
        text = line[:-2]
        if self._in_trailers:
            return self._take_trailer(text)
        if self._content == 0:  # between a chunk's last byte and the next chunk's size
            self._content = None
            return "CR LF after each chunk" if text else None
        match = _SIZE.fullmatch(text)
        if match is None:
            return "chunk sizes in hexadecimal, with extensions as in RFC 9112"
        self._content = int(match[1], 16)
        self._in_trailers = self._content == 0
        return None

    def _take_trailer(self, text: bytes) -> str | None:
        self.ended = not text
        if self.ended:
            return None
        self._size += len(text)
        self._fields += 1
        match = _FIELD.fullmatch(text)
        if match is None or self._fields > self._max_fields:
            return f"at most {self._max_fields} trailers, each a name, a colon and a value on one line"
        if match[1].lower() in _NOT_IN_TRAILERS:
            return "in trailers no field that decides how the request is read"
        return None


# Bytes of a line, and of all trailers together. Chunk lines have some 10 bytes; trailers are rare.
_MAX_LINE: Final = 8_192
_MAX_TRAILERS: Final = 100
# Bytes of framing beyond the size of the content. A chunk of one byte has 5 bytes of framing, and takes microseconds.
_FRAMING: Final = 65_536


class RequestBody:
    """Takes the body of one request out of what arrives: a body with a Content-Length, a chunked one, or none.

    request: one that `Agent.open` answered with `ReadBody`, so its framing is valid.
    """

    __slots__ = ("_frames", "_framing", "_left")

    def __init__(self, request: Request) -> None:
        fields = dict(request.headers)
        chunked = b"transfer-encoding" in fields
        self._frames = ChunkFrames(max_line=_MAX_LINE, max_fields=_MAX_TRAILERS) if chunked else None
        self._left = int(fields.get(b"content-length", 0))
        self._framing = 0

    @property
    def ended(self) -> bool:
        """Whether the whole body was read."""
        return self._left == 0 if self._frames is None else self._frames.ended

    def read(self, data: bytes) -> bytes | BadHead:
        """Return the content in the next bytes, or `BadHead` if the body is cut off, or its chunks are malformed.

        data: what arrived after the head; what comes after the body's end is ignored. Empty: the peer has closed.
        """
        if not data:
            return BadHead(400, "the whole body")
        if self._frames is None:
            data = data[: self._left]
            self._left -= len(data)
            return data
        content = bytearray()
        expected = self._frames.feed(data, content)
        self._framing += len(data) - 2 * len(content)
        if expected is None and self._framing > _FRAMING:
            expected = "a body in chunks of 8 bytes or more, without long extensions or trailers"
        return bytes(content) if expected is None else BadHead(400, expected)
