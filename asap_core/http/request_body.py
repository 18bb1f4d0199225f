"""The body of a request within the bytes of a connection, for drivers without an HTTP parser."""

from typing import Final

from asap_core.http.chunks import ChunkFrames
from asap_core.http.head import BadHead
from asap_core.http.messages import Request

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
