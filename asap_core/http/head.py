"""The head of an HTTP request: complete, within its limits, and with one meaning to every reader.

`HeadReader` checks bytes before h11 parses them. h11 accepts what request smuggling is made of: bare line feeds, folded
lines, lists of lengths, a length beside a transfer coding. Heads that pass have none of these, however the bytes were
split. `judge` checks a head that a driver passes to an Exchange, and `parsed_request` what else a head still shows if
another HTTP server has read it, so that the decision is the same.
"""

import re
from collections.abc import Mapping
from itertools import chain
from typing import Final

from attrs import field

from asap_core.http.fields import CONTROL, TOKEN
from asap_core.http.messages import Headers, Request, collect
from asap_core.request_values import frozen

_END: Final = b"\r\n\r\n"
_NO_REQUEST: Final = "an HTTP/1.1 request"
_is_token: Final = re.compile(TOKEN.encode("latin-1")).fullmatch


@frozen
class Head:
    """A head that can be parsed, with its closing empty line, and the bytes that followed it."""

    data: bytes
    rest: bytes

    def request(self, *, peer: str, local: str = "") -> "Request | BadHead":
        """Parse it, for drivers without another HTTP parser. `peer`, `local`: as in `Request`."""
        line, *lines = self.data[: -len(_END)].split(b"\r\n")
        method, target, _version = line.decode("latin-1").split(" ")
        fields = [field.partition(b":") for field in lines]
        if not all(colon and _is_token(name) for name, colon, _ in fields) or not _is_token(method.encode("latin-1")):
            return BadHead(400, _NO_REQUEST)
        headers = tuple((name.lower(), value.strip(b" \t")) for name, _, value in fields)
        return Request(method=method, target=target, headers=headers, peer=peer, local=local)


@frozen
class BadHead:
    """A head that is refused: the status to answer with, and what would have been right. The connection is closed."""

    status: int
    expected: str


# RFC 9112 §2.2 on bare CR and LF, RFC 9110 §5.5 on NUL and other control characters: only HTAB is allowed. The class
# comes first, since the search skips by it; then, for CR and LF, whether the other one is beside it.
_BARE: Final = re.compile(CONTROL.encode("latin-1") + rb"(?:(?<![\r\n])|(?<=\r)(?!\n|\Z)|(?<=\n)(?<!\r\n))")
_VERSION: Final = re.compile(rb"HTTP/(\d+)\.(\d+)")
_NO_CONTROLS: Final = "lines that end in CR LF, without control characters"
_VERSIONS: Final = "HTTP/1.1 or HTTP/1.0"
# Methods begin with a letter. Other bytes never begin a request (a TLS hello begins with 0x16).
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
        """Whether any byte of the head was received."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> "Head | BadHead | None":
        """Take the next bytes. Returns the head if it's complete, `BadHead` if it's wrong, None if more is needed."""
        self._buffer += data
        # RFC 9112 §2.2: a server SHOULD ignore at least one empty line before the request line. Only one is ignored.
        if not self._skipped and self._buffer.startswith(b"\r\n"):
            del self._buffer[:2]
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
        # Of two faults the first in the bytes counts, so that the answer doesn't depend on how they are split.
        if self._buffer and _FIRST.match(self._buffer) is None and self._buffer != b"\r":
            return BadHead(400, _NO_REQUEST)
        # RFC 9112 §2.2: a recipient MAY accept a bare LF as a line end, which isn't done here, but not a bare CR.
        if _BARE.search(self._buffer, max(0, self._seen - 1), min(stop, self._max_size)):
            return BadHead(400, _NO_CONTROLS)
        if stop > self._max_size:
            return _too_long(self._max_size)
        return None

    def _judge(self, head: bytes) -> BadHead | None:
        request_line, *fields = head[: -len(_END)].split(b"\r\n")
        if len(fields) > self._max_fields:
            return _too_many(self._max_fields)
        return _judge_request_line(request_line) or _judge_fields(request_line, fields)


def _too_long(size: int) -> BadHead:
    # RFC 6585 §5. A request line that is too long gets the same status.
    return BadHead(431, f"a request line and headers of at most {size} bytes")


def _too_many(fields: int) -> BadHead:
    return BadHead(431, f"at most {fields} header fields")


def _judge_request_line(line: bytes) -> BadHead | None:
    words = line.split(b" ")
    version = _VERSION.fullmatch(words[-1])
    if len(words) != 3 or version is None:  # noqa: PLR2004 - method, target, version (RFC 9112 §3)
        return BadHead(400, "a request line of method, target and version, each after one space")
    if version.groups() not in ((b"1", b"1"), (b"1", b"0")):
        return BadHead(505, _VERSIONS)
    return None


_LENGTH: Final = b"content-length"
_ONE_FRAMING: Final = "either Content-Length or, in HTTP/1.1, Transfer-Encoding"
_ONE_LENGTH: Final = "one Content-Length, of digits only"
_ONE_HOST: Final = "one Host: a name or an address, with or without a port"
_is_length: Final = re.compile(rb"[0-9]+").fullmatch


def _judge_fields(request_line: bytes, fields: list[bytes]) -> BadHead | None:
    names = [field.partition(b":")[0].lower() for field in fields]
    if any(field[:1] in (b" ", b"\t") for field in fields):
        # RFC 9112 §5.2: a server must either refuse obsolete line folding or replace it by blanks.
        return BadHead(400, "header fields on one line each")
    if any(name != name.strip() for name in names):
        # RFC 9112 §5.1: some readers take whitespace before the colon as part of the name, others don't.
        return BadHead(400, "header names without whitespace before the colon")
    if b"transfer-encoding" in names and (b"content-length" in names or request_line.endswith(b"/1.0")):
        # RFC 9112 §6.1: two framings, between which readers choose differently: an attempt at request smuggling.
        return BadHead(400, _ONE_FRAMING)
    hosts = names.count(b"host")
    if hosts > 1 or (hosts == 0 and request_line.endswith(b"/1.1")):
        # RFC 9112 §3.2: a server must refuse both.
        return BadHead(400, _ONE_HOST)
    lengths = [
        field.partition(b":")[2].strip(b" \t") for field, name in zip(fields, names, strict=True) if name == _LENGTH
    ]
    # RFC 9110 §8.6: a list of equal lengths may be refused or taken as one.
    if len(lengths) > 1 or not all(map(_is_length, lengths)):
        return BadHead(400, _ONE_LENGTH)
    return None


# --- what any driver hands over --------------------------------------------------------------------------------------

# RFC 3986 §3.3: the characters of a path. All others are percent-encoded.
_PATH: Final = r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]++|%[0-9A-Fa-f]{2})*+"
# RFC 3986 §3.4 allows fewer characters in a query, but browsers don't encode these (URL Standard, query percent-encode
# set).
_QUERY: Final = r"[!$-;=?-~]*"
# RFC 3986 §3.2.2 and §3.2.3, without user information (RFC 9110 §4.2.4). In brackets there may be a zone (RFC 6874),
# its "%" encoded or not: some clients send the zone of a link-local address.
_HOST: Final = r"(?:\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~%-]+)?\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]++|%[0-9A-Fa-f]{2})++)"
_PORT: Final = r"(?::[0-9]{0,5})?"
# RFC 9112 §3.2.1 and §3.2.2; the host isn't empty (RFC 9110 §4.2.1). A path must precede a query: readers take
# "http://a?/b" as a request for "/" or for "/b".
_TARGET: Final = re.compile(rf"(?:[Hh][Tt][Tt][Pp][Ss]?://{_HOST}{_PORT}(?=/|\Z))?(?:({_PATH})(?:\?{_QUERY})?)?")
_AUTHORITY: Final = re.compile(rf"{_HOST}?{_PORT}")


def path_of(target: str, method: str) -> str | None:
    """The path of a request target (RFC 9112 §3.2). Returns None if it isn't of a form that goes with `method`.

    "*" (OPTIONS) and the authority form (CONNECT) have no path: they are returned unchanged.
    """
    if method == "CONNECT":
        return target if target and _AUTHORITY.fullmatch(target) else None
    if target == "*":
        return target if method == "OPTIONS" else None
    match = _TARGET.fullmatch(target)
    return (match[1] or "/") if match is not None and target else None


# Those of most requests, which needn't be matched.
_USUAL_TARGETS: Final = frozenset({"/asap", "/.well-known/asap/manifest.json"})


def judge(method: str, target: str, headers: Mapping[bytes, bytes]) -> str | BadHead:
    """Return the path that a head asks for, or what is wrong with it. `headers`: as returned by `collect`."""
    path = target if target in _USUAL_TARGETS else path_of(target, method)
    if path is None:
        return BadHead(400, "a request target that is a path, such as /asap, or an http URL with one")
    host, length, coding = headers.get(b"host"), headers.get(_LENGTH), headers.get(b"transfer-encoding")
    if host is not None and not _AUTHORITY.fullmatch(host.decode("latin-1")):
        return BadHead(400, _ONE_HOST)
    if length is not None and (coding is not None or not _is_length(length)):
        return BadHead(400, _ONE_LENGTH if coding is None else _ONE_FRAMING)
    if coding is not None and coding.lower() != b"chunked":
        # RFC 9112 §6.1: 501 for a transfer coding that isn't understood. Drivers decode "chunked" and no other.
        return BadHead(501, "no Transfer-Encoding but chunked")
    return path


# --- the heads of most requests --------------------------------------------------------------------------------------

# RFC 9112 §2.1, in the one form that most clients send: HTTP/1.1, the target a path (RFC 9112 §3.2.1), the method a
# token that begins with a letter. Possessive throughout, so that matching takes linear time for any bytes.
_PLAIN: Final = re.compile(
    rf"((?=[A-Za-z]){TOKEN}) ({_PATH}(?:\?{_QUERY}+)?+) HTTP/1\.1\r\n"
    rf"((?:{TOKEN}:[\t\x20-\x7e\x80-\xff]*+\r\n)*+)\r\n".encode("latin-1")
)
_is_authority: Final = re.compile(_AUTHORITY.pattern.encode("latin-1")).fullmatch
# What these ask for is read by the general parser.
_SPECIAL: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade"})
# A longer number is above any limit, and int() of a megabyte of digits takes long.
_is_plain_length: Final = re.compile(rb"[0-9]{1,18}").fullmatch
# RFC 9112 §9.3, by the value of Connection in lower case: whether the connection stays open after the response.
_STAYS_OPEN: Final = {None: True, b"keep-alive": True, b"close": False}


@frozen
class PlainHead:
    """A request's head that was read, in full, by `read_plain_head`.

    method: as sent; never CONNECT, whose response turns the connection into something else.
    target: a path, perhaps with a query.
    headers: as in `Request`.
    length: how many bytes of body follow.
    stays_open: whether the client may send another request after this one.
    end: how many bytes the head has, with its closing empty line.
    fields: the headers by name.
    """

    method: str
    target: str
    headers: Headers
    length: int
    stays_open: bool
    end: int
    fields: dict[bytes, bytes] = field(repr=False)

    def request(self, *, peer: str, local: str = "") -> "PlainRequest":
        """Return the request. `peer`, `local`: as in `Request`."""
        path = self.target.partition("?")[0]
        return PlainRequest(
            method=self.method,
            target=self.target,
            headers=self.headers,
            peer=peer,
            local=local,
            path=path,
            fields=self.fields,
        )


@frozen(kw_only=True)
class PlainRequest(Request):
    """A request and what the reader of its head knows of it, so that an exchange needn't look again.

    path: as `judge` returns it.
    fields: the headers as `collect` returns them.
    """

    path: str
    fields: dict[bytes, bytes] = field(repr=False)
    headers: Headers = ()

    def __attrs_post_init__(self) -> None:
        """Check nothing, and convert no headers: the reader has checked them."""


def read_plain_head(data: bytes, *, max_size: int, max_fields: int) -> PlainHead | None:
    """Read a head at the start of `data` if it's complete, valid and in the form of most requests.

    It only accepts. Returns None for anything else: `HeadReader` and a general parser then decide about it, and say
    what is wrong. Each head that is accepted here has the same meaning to them.
    """
    match = _PLAIN.match(data, 0, max_size)
    if match is None:
        return None
    method, target, block = match.groups()
    lines = block.split(b"\r\n")
    lines.pop()
    if len(lines) > max_fields or method == b"CONNECT":
        return None
    headers = []
    for line in lines:
        name, _, value = line.partition(b":")
        headers.append((name.lower(), value.strip(b" \t")))
    fields = collect(headers)
    host, length = fields.get(b"host"), fields.get(_LENGTH, b"0")
    connection = fields.get(b"connection")
    stays_open = _STAYS_OPEN.get(connection if connection is None else connection.lower())
    # A repeated field is a list here, with a blank after each comma: that is no host, no length and no option.
    if host is None or not _is_authority(host) or not _is_plain_length(length) or stays_open is None:
        return None
    if not _SPECIAL.isdisjoint(fields):
        return None
    return PlainHead(
        method.decode("ascii"), target.decode("ascii"), tuple(headers), int(length), stays_open, match.end(), fields
    )


# --- heads that another HTTP server has read -------------------------------------------------------------------------

# Those of most requests, which needn't be matched.
_USUAL_METHODS: Final = frozenset({"POST", "GET"})
_is_method: Final = re.compile(f"(?=[A-Za-z]){TOKEN}").fullmatch
_CONTROLS: Final = bytes([*range(0x09), *range(0x0A, 0x20), 0x7F])
_NAME_BYTES: Final = bytes(byte for byte in range(0x100) if _is_token(bytes([byte])))
# What a head has beside its parts: two spaces, "HTTP/1.1" and two line ends; for each field a colon and a line end.
_BESIDE_TARGET: Final = 14
_BESIDE_FIELD: Final = 3
# Some servers call HTTP/1.0 "1".
_OLD: Final = frozenset({"1.0", "1"})
# They need no Host and have no Transfer-Encoding (RFC 9113 §8.3.1 and §8.2.2, RFC 9114 §4.3.1 and §4.2).
_NEWER: Final = frozenset({"2", "3"})


def parsed_request(
    method: str,
    target: str,
    headers: Headers,
    *,
    version: str,
    peer: str,
    local: str,
    max_size: int,
    max_fields: int,
) -> Request | BadHead:
    """Return the request that another HTTP server has read, or what is wrong with its head.

    Judges what the head still shows as `HeadReader` judges bytes. Only that server can judge the rest: ends of lines,
    folded fields, blanks in the request line, and a list of equal lengths that it has made one.

    method, target, peer, local: as in `Request`.
    headers: as returned by `findable`.
    version: of HTTP: "1.0", "1.1", "2" or "3".
    max_size: bytes of the head, without blanks around values.
    """
    fields = dict(headers)
    if len(fields) < len(headers):
        fields = collect(headers)
    bad = (
        _judge_parts(method, target, headers, max_size, max_fields)
        or _judge_version(version, fields)
        or _judge_names(fields)
    )
    if bad is not None:
        return bad
    path = judge(method, target, fields)
    if isinstance(path, BadHead):
        return Request(method=method, target=target, headers=headers, peer=peer, local=local)  # an Exchange refuses it
    return PlainRequest(method=method, target=target, headers=headers, peer=peer, local=local, path=path, fields=fields)


def _judge_parts(method: str, target: str, headers: Headers, max_size: int, max_fields: int) -> BadHead | None:
    if method not in _USUAL_METHODS and not _is_method(method):
        return BadHead(400, _NO_REQUEST)
    parts = b"".join(chain.from_iterable(headers))
    if len(parts.translate(None, _CONTROLS)) < len(parts):
        return BadHead(400, _NO_CONTROLS)
    if len(method) + len(target) + _BESIDE_TARGET + len(parts) + _BESIDE_FIELD * len(headers) > max_size:
        return _too_long(max_size)
    return _too_many(max_fields) if len(headers) > max_fields else None


def _judge_version(version: str, fields: Mapping[bytes, bytes]) -> BadHead | None:
    if version == "1.1":
        return None if b"host" in fields else BadHead(400, _ONE_HOST)
    if version in _OLD:
        return BadHead(400, _ONE_FRAMING) if b"transfer-encoding" in fields else None
    return None if version in _NEWER else BadHead(505, _VERSIONS)


def _judge_names(fields: Mapping[bytes, bytes]) -> BadHead | None:
    # HTTP/2 lets through more than tokens (RFC 9113 §8.2.1), and so do servers that pass on what it sends.
    if b"" in fields or b"".join(fields).translate(None, _NAME_BYTES):
        return BadHead(400, _NO_REQUEST)
    return None
