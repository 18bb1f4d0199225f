"""HTTP messages as values: heads of requests, whole responses, their headers, and bodies while they are received.

Header names are lower-case bytes and values bytes, as h11 and ASGI have them; nothing here parses a wire.

A body is decoded step by step, and is never larger than its limit. The decoders of this module and of the adapters
(brotli) have the interface `Inflater`. None of them decodes more than there is room for, so that a decompression bomb
is refused when it passes the limit, not after it was decoded.
"""

import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NoReturn, Protocol

from attrs import field

from asap_core.request_values import frozen
from asap_core.wire.json import write_json

Headers = tuple[tuple[bytes, bytes], ...]


def findable(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return headers whose names are bytes in lower case, in which form they are looked up. 0.7 µs for ten headers.

    Raises: ValueError if one isn't, or has no value of bytes.
    """
    try:
        pairs = tuple(headers)
        for name, value in pairs:
            if type(name) is not bytes or type(value) is not bytes or name != name.lower():
                break
        else:
            return pairs
    except (TypeError, ValueError):
        pass  # it isn't iterable, or its items aren't pairs
    raise ValueError("headers: expected pairs of bytes, names in lower case, such as ((b'content-length', b'2'),)")


@frozen(kw_only=True)
class Request:
    """The head of a request; its body comes later, through `ReadBody`.

    `target`: the request target as received.
    `headers`: pairs of bytes, names in lower case.
    `peer`: the IP address that the request came from. All requests whose `peer` is something else share one peer's
        limits, and need authentication to use idempotency keys.
    `local`: the address that the server listens on; without it web pages of this machine are refused as foreign.

    Raises: ValueError if one of these has another type, or a header's name isn't in lower case.
    """

    method: str
    target: str
    headers: Headers = field(default=(), converter=findable)
    peer: str = ""
    local: str = ""

    def __attrs_post_init__(self) -> None:
        if not type(self.method) is type(self.target) is type(self.peer) is type(self.local) is str:
            raise ValueError("method, target, peer, local: expected strings")


@frozen(kw_only=True)
class Response:
    """A whole response. `close` asks the driver to close the connection after it: the request's body wasn't read."""

    status: int
    headers: Headers = ()
    body: bytes = b""
    close: bool = False


def collect(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return all headers by name; the values of a repeated one are joined by commas (RFC 9110 §5.3)."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        found[name] = found[name] + b", " + value if name in found else value
    return found


def header_values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    """Return all values of a header, in order. `name`: in lower case."""
    return [value for key, value in headers if key == name]


def json_response(status: int, value: object, headers: Headers = (), *, close: bool = False) -> Response:
    """Make a response with a JSON body."""
    return Response(
        status=status,
        headers=((b"content-type", b"application/json"), *headers),
        body=write_json(value),
        close=close,
    )


# RFC 9110 §8.8.3: commas and asterisks are allowed between the quotes. Blanks aren't, but some servers write them.
_ENTITY_TAGS: Final = re.compile(rb'"[\x20\x21\x23-\x7e\x80-\xff]*"')


def matches_etag(values: Iterable[bytes], etag: str) -> bool:
    """Whether an If-None-Match header matches `etag`: `*` always does; else by weak comparison (RFC 9110 §13.1.2)."""
    wanted = etag.encode("ascii")
    return any(value.strip() == b"*" or wanted in _ENTITY_TAGS.findall(value) for value in values)


# --- bodies -----------------------------------------------------------------------------------------------------------

# One call of a decoder returns at most this, so that a decompression bomb is noticed one block after the limit.
_BLOCK: Final = 65_536


class BadCoding(ValueError):
    """The body isn't in the coding that Content-Encoding names, or is incomplete."""


class BodyTooLarge(ValueError):
    """The body, decoded, is larger than policy allows. `limit` is in bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"expected at most {limit} bytes")
        self.limit = limit


class Inflater(Protocol):
    """A content decoder that works in steps, so that no more is decoded than there is room for."""

    def inflate(self, data: bytes, room: int) -> bytes:
        """Take `data` and return at most about `room` bytes of output; the rest stays pending. Raises `BadCoding`."""
        ...

    @property
    def pending(self) -> bool:
        """Whether `inflate(b"", room)` would return more output without further input."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the coded stream is complete."""
        ...


# HTTP senders write one member; RFC 1952 §2.2 allows more. Each costs a copy of all data that follows it.
_MAX_MEMBERS: Final = 16
# Zero bytes after a member: `gzip` and Python's gzip module skip them, since files are padded to the block of a tape or
# disk. 64 KiB is the largest block in use.
_MAX_PADDING: Final = 65_536


class Gzip:
    """Decodes gzip (RFC 1952): at most 16 members, each followed by at most 64 KiB of zero padding."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)
        self._members = 1
        self._padding = 0
        self._rest = b""
        self._full = False

    def inflate(self, data: bytes, room: int) -> bytes:
        """See `Inflater`."""
        data = self._rest + data
        if self._member.eof:
            data = self._without_padding(data)
            if not data:
                self._rest, self._full = b"", False
                return b""
            self._next_member()
        try:
            output = self._member.decompress(data, room)
        except zlib.error:
            raise BadCoding("expected a gzip stream (RFC 1952)") from None
        self._rest = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
        # After a full block there may be more output even if all input is consumed: zlib holds up to one match back.
        self._full = len(output) >= room
        return output

    def _without_padding(self, data: bytes) -> bytes:
        rest = data.lstrip(b"\0")
        self._padding += len(data) - len(rest)
        if self._padding > _MAX_PADDING:
            raise BadCoding(f"expected at most {_MAX_PADDING} zero bytes after the gzip stream")
        return rest

    def _next_member(self) -> None:
        if self._members == _MAX_MEMBERS:
            raise BadCoding(f"expected at most {_MAX_MEMBERS} gzip members")
        self._member = zlib.decompressobj(wbits=31)
        self._members += 1

    @property
    def pending(self) -> bool:
        """See `Inflater`."""
        return bool(self._rest) or self._full

    @property
    def finished(self) -> bool:
        """See `Inflater`."""
        return self._member.eof and not self._rest


Codings = Mapping[bytes, Callable[[], Inflater]]


# A coded body may be this much longer than the limit for plain ones: padding, a gzip header with names, and the 1 byte
# in 3,000 that deflate and brotli add to incompressible data. More than that would be empty blocks.
_CODING_OVERHEAD: Final = _MAX_PADDING + 65_536


class Body:
    """A body that is being received, and decoded if it's coded; at most `limit` bytes are held.

    The number of coded bytes is bounded as well: a coded body may be long and still decode to nothing.
    """

    __slots__ = ("_coded_left", "_data", "_inflater", "_limit", "_taken")

    def __init__(self, limit: int, inflater: Inflater | None = None) -> None:
        self._limit = limit
        self._inflater = inflater
        self._coded_left = limit + _CODING_OVERHEAD
        # Most bodies come in one piece, which isn't copied; further pieces are collected in a bytearray.
        self._data: bytes | bytearray = b""
        self._taken = 0

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body. Raises `BodyTooLarge` and `BadCoding`."""
        if self._inflater is None:
            self._keep(chunk)
            return
        # In slices: after every block a decoder copies all input that it hasn't consumed.
        for start in range(0, len(chunk), _BLOCK):
            self.decode(chunk[start : start + _BLOCK])
            while self.pending:
                self.decode(b"")

    def decode(self, data: bytes) -> None:
        """Take bytes, and decode one block at most. Call it with b"" while `pending`. Raises as `feed`."""
        if self._inflater is None:
            self._keep(data)
            return
        self._coded_left -= len(data)
        if self._coded_left < 0:
            self._refuse()
        self._keep(self._inflater.inflate(data, min(_BLOCK, self._limit - self._taken - len(self._data) + 1)))

    @property
    def pending(self) -> bool:
        """Whether there's more to decode. A kilobyte of brotli may be many megabytes."""
        return self._inflater is not None and self._inflater.pending

    def _keep(self, chunk: bytes) -> None:
        if self._taken + len(self._data) + len(chunk) > self._limit:
            self._refuse()
        if not self._data:
            self._data = chunk
            return
        if type(self._data) is bytes:
            self._data = bytearray(self._data)
        self._data += chunk

    def _refuse(self) -> NoReturn:
        self._data = b""
        raise BodyTooLarge(self._limit)

    @property
    def held(self) -> int:
        """How many decoded bytes are in memory."""
        return len(self._data)

    def take(self) -> bytes:
        """Return what was decoded since the last call, for reading a body piece by piece. It counts for the limit."""
        data, self._data = bytes(self._data), b""
        self._taken += len(data)
        return data

    def end(self) -> bytes:
        """Return the body, or what wasn't taken of it. Raises `BadCoding` if the coded stream is incomplete."""
        if self._inflater is not None and not self._inflater.finished:
            raise BadCoding("expected the coded body to be complete")
        # Dropped here, so that two copies exist only for a moment: what is made of a large body needs the memory.
        data, self._data = bytes(self._data), b""
        return data
