"""The head of a request, read line by line: request line, fields, framing. Each has one reading (RFC 9112).

A line is checked when it's complete, so that a head is refused at its first fault.
"""

import re
from dataclasses import dataclass, field, replace
from typing import Final

from asap_core.testing.planted.messages import HttpFault, PlantedOptions, PlantedRequest
from asap_core.testing.planted.switches import Breaks

# RFC 9110 §5.6.2.
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# RFC 3986 §3.3 and §3.4; a query may also have what browsers leave unencoded there.
_PATH: Final = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)+")
_QUERY: Final = re.compile(r"[!$-;=?-~]*")
# RFC 3986 §3.2.2 and §3.2.3, without user information.
_HOST: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]{0,5})?")
# RFC 9110 §5.5: HTAB is the one control character that a value may have.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# With these a broken agent knows a name in the usual spelling only.
_SPELLINGS: Final = (
    ("http.case_of_authorization", "Authorization"),
    ("http.case_of_content_encoding", "Content-Encoding"),
    ("http.case_of_if_none_match", "If-None-Match"),
    ("idempotency.header_case", "X-Idempotency-Key"),
    ("http.case_of_version", "ASAP-Version"),
)
_A_PAGE: Final = 4_096
# int() of a megabyte of digits takes long, and a number of 19 digits is above any limit.
_DIGITS: Final = 18


@dataclass
class HeadLines:
    """Collects the lines of one head; `take` each, until it returns True."""

    options: PlantedOptions
    broken: Breaks
    size: int = 0
    lines: list[str] = field(default_factory=list)
    skipped: bool = False

    def take(self, line: bytes) -> bool:
        """Take one line, with its end. Returns whether the head is complete. Raises HttpFault."""
        self.size += len(line)
        self.check_size(0)
        text = line_text(line, self.broken)
        if not text and not self.lines and not (self.skipped or self.broken("http.empty_line_first")):
            # RFC 9112 §2.2: one empty line before a request is ignored.
            self.skipped = True
            return False
        if not text:
            if not self.lines:
                raise HttpFault(400, "a request line")
            return True
        if text[0] in " \t" and self.lines:
            # RFC 9112 §5.2: obsolete line folding.
            if not self.broken("http.folded_field"):
                raise HttpFault(400, "header fields on one line each")
            self.lines[-1] += " " + text.strip()
            return False
        self.lines.append(text)
        if len(self.lines) > self.options.max_fields + 1 and not self.broken("limits.fields"):
            raise HttpFault(431, f"at most {self.options.max_fields} header fields")
        return False

    def check_size(self, waiting: int) -> None:
        """Refuse a head that is too large, of which `waiting` bytes belong to no complete line yet."""
        if self.size + waiting > _A_PAGE and self.broken("limits.head_of_a_page"):
            raise HttpFault(431, "a small head")
        if self.size + waiting > self.options.max_head and not self.broken("limits.head"):
            status = 400 if self.broken("limits.head_status") else 431
            raise HttpFault(status, f"a request line and headers of at most {self.options.max_head} bytes")


def line_text(line: bytes, broken: Breaks) -> str:
    """Return a line without its end. Raises HttpFault if it doesn't end in CR LF or has a control character."""
    text = line.decode("latin-1").removesuffix("\n")
    if text.endswith("\r"):
        text = text[:-1]
    elif not broken("http.bare_line_feed"):
        raise HttpFault(400, "lines that end in CR LF")
    controls = set(_CONTROL.findall(text))
    if broken("http.bare_carriage_return"):
        controls.discard("\r")
    if broken("http.nul"):
        controls.discard("\0")
    if controls:
        raise HttpFault(400, "lines without control characters")
    return text


def read_head(lines: list[str], broken: Breaks) -> PlantedRequest:
    """Read the lines of a complete head. Raises HttpFault."""
    method, target, version = _request_line(lines[0], broken)
    request = PlantedRequest(method=method, path="", fields=tuple(_field(line, broken) for line in lines[1:]))
    path, query = _target(method, target, broken)
    _check_host(request, version, broken)
    return replace(
        request,
        path=path,
        query=query,
        length=_length(request, version, broken),
        keeps_open=_keeps_open(request, version, broken),
    )


def _request_line(line: str, broken: Breaks) -> tuple[str, str, str]:
    words = line.split() if broken("http.blanks_in_request_line") else line.split(" ")
    if len(words) != 3 or not re.fullmatch(r"HTTP/\d\.\d", words[2]):
        raise HttpFault(400, "a request line of method, target and version, each after one space")
    method, target, version = words
    if broken("http.method_case"):
        method = method.upper()
    if not _TOKEN.fullmatch(method) and not broken("http.method_token"):
        raise HttpFault(400, "a method that is a token")
    if version not in ("HTTP/1.1", "HTTP/1.0") and not broken("http.version"):
        raise HttpFault(400 if broken("http.version_status") else 505, "HTTP/1.1 or HTTP/1.0")
    return method, target, version


def _field(line: str, broken: Breaks) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if broken("http.blank_before_colon"):
        name = name.rstrip(" \t")
    if not colon or not _TOKEN.fullmatch(name):
        if broken("http.field_without_colon") and not colon:
            return "x-ignored", ""
        raise HttpFault(400, "header fields of a name, a colon and a value")
    if any(name != usual and name.lower() == usual.lower() and broken(switch) for switch, usual in _SPELLINGS):
        return "x-unknown", value.strip(" \t")
    if broken("http.field_name_case") and not name[0].isupper():
        return "x-unknown", value.strip(" \t")
    return name.lower(), value.strip(" \t")


def _target(method: str, target: str, broken: Breaks) -> tuple[str, str]:
    """Return path and query of a request target (RFC 9112 §3.2)."""
    if target == "*" and method == "OPTIONS":
        return "*", ""
    wrong = HttpFault(400, "a request target that is a path, such as /asap, or an http URL with one")
    if method == "CONNECT":
        if not target or not _HOST.fullmatch(target):
            raise wrong
        return target, ""
    scheme, sep, rest = target.partition("://")
    if sep and scheme.lower() in ("http", "https") and not broken("http.absolute_target"):
        host, slash, tail = rest.partition("/")
        if not host or not _HOST.fullmatch(host):
            raise wrong
        target = slash + tail if slash else "/"
    path, _, query = target.partition("?")
    if broken("http.fragment_in_target"):
        query = query.partition("#")[0]
        path = path.partition("#")[0]
    if not _PATH.fullmatch(path) or not _QUERY.fullmatch(query):
        raise wrong
    return path, query


def _check_host(request: PlantedRequest, version: str, broken: Breaks) -> None:
    hosts = request.values("host")
    if not hosts and version != "HTTP/1.0" and not broken("http.host_missing"):
        raise HttpFault(400, "one Host")
    if len(hosts) > 1 and not broken("http.host_twice"):
        raise HttpFault(400, "one Host")
    if any(not _HOST.fullmatch(host) for host in hosts) and not broken("http.host_invalid"):
        raise HttpFault(400, "one Host: a name or an address, with or without a port")


def _length(request: PlantedRequest, version: str, broken: Breaks) -> int | None:
    """Return the length of the body; None if it's chunked."""
    lengths, codings = request.values("content-length"), request.values("transfer-encoding")
    if codings and broken("http.transfer_encoding_ignored"):
        codings = []
    if codings and lengths:
        # RFC 9112 §6.1: two framings, between which readers choose differently.
        if broken("http.length_beside_coding_length_wins"):
            codings = []
        elif not broken("http.length_beside_coding"):
            raise HttpFault(400, "either Content-Length or Transfer-Encoding")
    if codings and version == "HTTP/1.0" and not broken("http.coding_in_http_1_0"):
        raise HttpFault(400, "Transfer-Encoding in HTTP/1.1 only")
    if codings:
        _check_chunked(codings, broken)
        return None
    return _plain_length(lengths, broken)


def _check_chunked(codings: list[str], broken: Breaks) -> None:
    known = [coding.lower() for coding in codings] == ["chunked"]
    if not known and not (broken("http.unknown_coding") and codings[-1].lower().endswith("chunked")):
        # RFC 9112 §6.1: 501 for a transfer coding that isn't understood.
        raise HttpFault(400 if broken("http.unknown_coding_status") else 501, "no Transfer-Encoding but chunked")


def _plain_length(lengths: list[str], broken: Breaks) -> int:
    if not lengths:
        return 0
    if len(lengths) > 1:
        equal = broken("http.two_equal_lengths") and len(set(lengths)) == 1
        if not (equal or broken("http.two_lengths_first")):
            raise HttpFault(400, "one Content-Length")
    text = lengths[0]
    if broken("http.length_list"):
        text = text.partition(",")[0]
    if broken("http.length_sign"):
        text = text.removeprefix("+")
    if text.isdigit() and not text.isascii() and broken("http.length_isdigit"):
        raise HttpFault(500, "a number")
    if not re.fullmatch(r"[0-9]+", text):
        if broken("http.length_not_digits"):
            return 0
        raise HttpFault(400, "one Content-Length, of digits only")
    length = int(text) if len(text) <= _DIGITS else 10**_DIGITS
    return length % 2**32 if broken("http.length_wraps") else length


def _keeps_open(request: PlantedRequest, version: str, broken: Breaks) -> bool:
    """Whether another request may follow on the connection (RFC 9112 §9.3)."""
    values = request.values("connection")
    if not broken("http.close_in_list"):
        values = [option.strip() for value in values for option in value.split(",")]
    asked = {*values} if broken("http.close_case") else {option.lower() for option in values}
    if broken("http.close_ignored"):
        asked.discard("close")
    if broken("http.keep_alive"):
        return False
    return "close" not in asked and (version == "HTTP/1.1" or broken("http.open_in_http_1_0"))
