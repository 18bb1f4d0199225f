"""HTTP as values: requests and responses without a socket, conditional requests, and bodies inflated within a limit.

Header names are lower-case bytes and values bytes, as h11 and ASGI have them; nothing here parses a wire.
"""

import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NoReturn, Protocol

from attrs import field, frozen

from asap_core.wire.json import write_json

Headers = tuple[tuple[bytes, bytes], ...]

# One call of a decoder makes no more than this, so that a bomb is noticed one block after the limit, not at its end.
_BLOCK: Final = 65_536


def _findable(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The headers, once it's sure that each is found under its name. Once for each request: 0.7 µs for ten."""
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
    """The head of a request. `target` is the request target as received, `peer` the address that it came from.

    All whose `peer` isn't an IP address share what peers have, and need authentication for idempotency keys.
    `local` is the address that the server listens on; without it web pages of this machine are strangers. The body
    comes later, through `ReadBody`. Raises ValueError if names of headers aren't bytes in lower case.
    """

    method: str
    target: str
    headers: Headers = field(default=(), converter=_findable)
    peer: str = ""
    local: str = ""

    def __attrs_post_init__(self) -> None:
        if not type(self.method) is type(self.target) is type(self.peer) is type(self.local) is str:
            raise ValueError("method, target, peer, local: expected strings")


@frozen(kw_only=True)
class Response:
    """A whole response. `close` asks the driver to end the connection after it: the request's body was not read."""

    status: int
    headers: Headers = ()
    body: bytes = b""
    close: bool = False


def collect(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """All headers by name, each as one list where it's repeated (RFC 9110 §5.3): for whoever looks at several."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        found[name] = found[name] + b", " + value if name in found else value
    return found


def header_values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    """All values of a header, in order. `name` is in lower case."""
    return [value for key, value in headers if key == name]


def json_response(status: int, value: object, headers: Headers = (), *, close: bool = False) -> Response:
    """A response with a JSON body."""
    return Response(
        status=status,
        headers=((b"content-type", b"application/json"), *headers),
        body=write_json(value),
        close=close,
    )


# RFC 9110 §8.8.3: what stands between the quotes may be a comma or an asterisk as well; some also write blanks there.
_ENTITY_TAGS: Final = re.compile(rb'"[\x20\x21\x23-\x7e\x80-\xff]*"')


def matches_etag(values: Iterable[bytes], etag: str) -> bool:
    """Whether an If-None-Match header names `etag`: by weak comparison, a lone `*` being any (RFC 9110 §13.1.2)."""
    wanted = etag.encode("ascii")
    return any(value.strip() == b"*" or wanted in _ENTITY_TAGS.findall(value) for value in values)


class BadCoding(ValueError):
    """The body isn't what its Content-Encoding says, or ends too early."""


class BodyTooLarge(ValueError):
    """The body, inflated, is larger than policy allows. `limit` is in bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"expected at most {limit} bytes")
        self.limit = limit


class Inflater(Protocol):
    """A content decoding in steps, so that nothing is inflated beyond what there's room for."""

    def inflate(self, data: bytes, room: int) -> bytes:
        """Take `data` and return about `room` bytes of output at most, keeping the rest. Raises `BadCoding`."""
        ...

    @property
    def pending(self) -> bool:
        """Whether `inflate(b"", room)` would give more without further input."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the coded stream has come to its end."""
        ...


# HTTP senders write one member (RFC 1952 §2.2 allows more). Each costs 20 bytes at least and a copy of what follows it.
_MAX_MEMBERS: Final = 16
# Zero bytes after a member, as `gzip` and Python's gzip module skip them: a file padded to a tape's or disk's block.
# 64 KiB is the largest block in use.
_MAX_PADDING: Final = 65_536


class Gzip:
    """gzip (RFC 1952), with a few members at most, and zero padding after each."""

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
        # A full block may have more behind it even where all input is consumed: zlib holds up to a match's length.
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


# A coded body may be this much longer than a plain one may: padding, a head with names, and 1 byte in 3,000 that
# deflate and brotli add to what can't be made shorter. More than that codes nothing, such as empty blocks.
_CODING_OVERHEAD: Final = _MAX_PADDING + 65_536


class Body:
    """A body as it comes in: inflated on the way where it's coded, never held beyond `limit` bytes in all.

    What comes in is bounded too, coded or not: not every byte of a coded body stands for one that's held.
    """

    __slots__ = ("_coded_left", "_data", "_inflater", "_limit", "_taken")

    def __init__(self, *, limit: int, inflater: Inflater | None = None) -> None:
        self._limit = limit
        self._inflater = inflater
        self._coded_left = limit + _CODING_OVERHEAD
        # Most bodies come in one piece, which is passed on as it came; more are put together, whatever their number.
        self._data: bytes | bytearray = b""
        self._taken = 0

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body. Raises `BodyTooLarge` and `BadCoding`."""
        if self._inflater is None:
            self._keep(chunk)
            return
        # In slices, since a decoder copies what it hasn't consumed after every block.
        for start in range(0, len(chunk), _BLOCK):
            self._inflate(self._inflater, chunk[start : start + _BLOCK])

    def _inflate(self, inflater: Inflater, data: bytes) -> None:
        self._coded_left -= len(data)
        if self._coded_left < 0:
            self._refuse()
        self._keep(inflater.inflate(data, self._room()))
        while inflater.pending:
            self._keep(inflater.inflate(b"", self._room()))

    def _room(self) -> int:
        return min(_BLOCK, self._limit - self._taken - len(self._data) + 1)

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
        """How many bytes of it are in memory, inflated."""
        return len(self._data)

    def take(self) -> bytes:
        """Return what has come since the last time, for whoever reads it piece by piece. It counts for the limit."""
        data, self._data = bytes(self._data), b""
        self._taken += len(data)
        return data

    def end(self) -> bytes:
        """Return the body, or what wasn't taken of it. Raises `BadCoding` where the coded stream isn't finished."""
        if self._inflater is not None and not self._inflater.finished:
            raise BadCoding("expected the coded body to be complete")
        # Two copies are there for a moment only: what's made of a large body needs the room.
        data, self._data = bytes(self._data), b""
        return data
