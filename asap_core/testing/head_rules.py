"""Heads of HTTP requests as bytes: valid ones, and nearly valid ones, each with the rule that it breaks."""

from collections.abc import Callable, Mapping
from typing import Final

from attrs import frozen
from hypothesis import strategies as st


@frozen
class NearlyValidHead:
    """The head of a request that a server refuses.

    rule: the name of the one rule that it breaks.
    data: the head, with the empty line that ends it. `cuts(data)` draws its pieces.
    mended: a head that keeps this rule too. A server accepts it.
    status: that of the refusal: 400, 501 or 505.
    """

    rule: str
    data: bytes
    mended: bytes
    status: int


Field = tuple[bytes, bytes]


@frozen
class RequestLines:
    """A head before it's written. `fields`: names and values, with the blanks around them."""

    method: bytes
    target: bytes
    version: bytes
    fields: tuple[Field, ...]

    @property
    def request_line(self) -> bytes:
        """The first line, without its end."""
        return b" ".join([self.method, self.target, self.version])

    @property
    def field_lines(self) -> list[bytes]:
        """The lines of the fields, without their ends."""
        return [name + b":" + value for name, value in self.fields]


Break = Callable[[RequestLines], st.SearchStrategy[bytes]]


@frozen
class HeadRule:
    """How a rule is broken.

    status: of the refusal.
    source: the clause.
    breaks: returns heads that differ from this one in the rule only.
    """

    status: int
    source: str
    breaks: Break


def heads() -> st.SearchStrategy[bytes]:
    """Heads of requests in HTTP/1.1 and HTTP/1.0 that a server can read, whatever it answers."""
    return _LINES.map(lambda lines: _written(lines.request_line, lines.field_lines))


def nearly_valid_heads(*rules: str) -> st.SearchStrategy[NearlyValidHead]:
    """Heads of requests that break one rule each, named in `asap_core.testing.head_rules.HEAD_RULES`.

    Limits aren't among the rules: each server has its own.

    rules: the names of those to break; all of them if there are none.
    Raises: KeyError for a name that isn't in the table.
    """
    chosen = {name: HEAD_RULES[name] for name in rules or HEAD_RULES}

    @st.composite
    def drawn(draw: st.DrawFn) -> NearlyValidHead:
        name, lines = draw(st.sampled_from([*chosen])), draw(_LINES)
        mended = _written(lines.request_line, lines.field_lines)
        return NearlyValidHead(name, draw(chosen[name].breaks(lines)), mended, chosen[name].status)

    return drawn()


# --- valid ones ------------------------------------------------------------------------------------------------------

_PATHS: Final = (b"/asap", b"/", b"/.well-known/asap/manifest.json", b"/asap?x=1", b"/%61sap", b"//a/b", b"/~a;b=c")
_TARGETS: Final = (*_PATHS, b"http://agent.example/asap", b"HTTPS://[2001:db8::1]:8000/asap?x", b"http://agent.example")
_HOSTS: Final = (b"agent.example", b"agent.example:8000", b"192.0.2.1", b"[2001:db8::1]:80", b"localhost", b"")
_BLANKS: Final = (b"", b" ", b"\t", b" \t ")
# RFC 9110 §5.5: any visible characters, blanks between them, and bytes above 0x7f.
_VALUES: Final = (b"", b"a", b"a b", b"a, b", b'"a:b"', b"\xe9\xff", b"a\tb", b"!#$%&'*+-.^_`|~(){}[]<>@?=\\/")
_NAMES: Final = (b"X", b"accept", b"User-Agent", b"x_y", b"!#$%&'*+-.^_`|~9")
_FRAMING: Final = (b"content-length", b"transfer-encoding")


def _cased(name: bytes) -> st.SearchStrategy[bytes]:
    return st.sampled_from([name, name.lower(), name.upper()])


def _padded(values: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.builds(lambda *parts: b"".join(parts), st.sampled_from(_BLANKS), values, st.sampled_from(_BLANKS))


def _field(name: bytes, *values: bytes) -> st.SearchStrategy[Field]:
    return st.tuples(_cased(name), _padded(st.sampled_from(values)))


_HOST: Final = _field(b"Host", *_HOSTS)
_LENGTH: Final = _field(b"Content-Length", b"0", b"5", b"007")
_CHUNKED: Final = _field(b"Transfer-Encoding", b"chunked", b"Chunked")
_OTHERS: Final = st.lists(st.tuples(st.sampled_from(_NAMES), _padded(st.sampled_from(_VALUES))), max_size=3)


@st.composite
def _lines(draw: st.DrawFn) -> RequestLines:
    version = draw(st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0"]))
    method = draw(st.sampled_from([b"POST", b"GET", b"HEAD", b"OPTIONS", b"PUT", b"M-SEARCH", b"get"]))
    target = draw(st.sampled_from(_TARGETS + ((b"*",) if method == b"OPTIONS" else ())))
    fields = [draw(_HOST), *draw(_OTHERS)]
    # RFC 9112 §6.1: there's no transfer coding in HTTP/1.0.
    framing = draw(st.sampled_from([None, _LENGTH, _CHUNKED if version == b"HTTP/1.1" else _LENGTH]))
    fields += [] if framing is None else [draw(framing)]
    return RequestLines(method, target, version, tuple(draw(st.permutations(fields))))


_LINES: Final = _lines()


def _written(request_line: bytes, field_lines: list[bytes]) -> bytes:
    return b"\r\n".join([request_line, *field_lines, b"", b""])


# --- the rules -------------------------------------------------------------------------------------------------------


def _line(*wrong: Callable[[RequestLines], bytes]) -> Break:
    """Another request line."""
    return lambda lines: st.sampled_from(wrong).map(lambda make: _written(make(lines), lines.field_lines))


def _target(*wrong: bytes) -> Break:
    return _line(*[lambda lines, target=target: b" ".join([b"POST", target, lines.version]) for target in wrong])


def _version(*wrong: bytes) -> Break:
    return _line(
        *[lambda lines, version=version: b" ".join([lines.method, lines.target, version]) for version in wrong]
    )


def _fields(*wrong: bytes | tuple[bytes, ...], instead_of: tuple[bytes, ...] = (), version: bytes = b"") -> Break:
    """Other lines at any place among the fields; `instead_of`: the names of those that they replace."""

    def broken(lines: RequestLines) -> st.SearchStrategy[bytes]:
        kept = [name + b":" + value for name, value in lines.fields if name.lower() not in instead_of]
        first = b" ".join([lines.method, lines.target, version or lines.version])
        return st.builds(
            lambda place, chosen: _written(first, [*kept[:place], *_several(chosen), *kept[place:]]),
            st.integers(0, len(kept)),
            st.sampled_from(wrong),
        )

    return broken


def _several(chosen: bytes | tuple[bytes, ...]) -> tuple[bytes, ...]:
    return (chosen,) if isinstance(chosen, bytes) else chosen


def _bare(end: bytes) -> Break:
    """Another end of a line; the empty line that ends the head is as it should be."""

    def broken(lines: RequestLines) -> st.SearchStrategy[bytes]:
        written = [lines.request_line, *lines.field_lines]
        return st.integers(0, len(written) - 2).map(
            lambda place: b"\r\n".join(written[: place + 1]) + end + b"\r\n".join([*written[place + 1 :], b"", b""])
        )

    return broken


def _controls(lines: RequestLines) -> st.SearchStrategy[bytes]:
    bad = st.sampled_from([b"\0", b"\x01", b"\x08", b"\x0b", b"\x0c", b"\x1b", b"\x7f"])
    written = _written(lines.request_line, lines.field_lines)
    # Not before the method: a head that begins with a control character breaks another rule as well.
    return st.builds(lambda at, byte: written[:at] + byte + written[at:], st.integers(1, len(written) - 4), bad)


HEAD_RULES: Final[Mapping[str, HeadRule]] = {
    "a request begins with its method": HeadRule(400, "RFC 9112 §3", _line(
        lambda it: b" " + it.request_line, lambda it: b"\x16\x03\x01" + it.request_line,
        lambda it: b"\t" + it.request_line, lambda it: b":" + it.request_line,
    )),
    "a method is a token": HeadRule(400, "RFC 9110 §9.1", _line(*[
        lambda it, method=method: b" ".join([method, it.target, it.version])
        for method in (b"GE(T", b"PO@ST", b"P{}", b"G\xc9T", b"GET:", b"GET,")
    ])),
    "a request line has three words": HeadRule(400, "RFC 9112 §3", _line(
        lambda it: it.method + b" " + it.target, lambda it: it.method + b" " + it.version, lambda it: it.method,
        lambda it: it.request_line + b" x", lambda it: b" ".join([it.method, it.target, b"x", it.version]),
    )),
    "one space divides the words": HeadRule(400, "RFC 9112 §3", _line(
        lambda it: it.request_line.replace(b" ", b"  ", 1), lambda it: it.request_line.replace(b" ", b"\t"),
        lambda it: it.request_line + b" ", lambda it: it.method + b" " + it.target + b"  " + it.version,
    )),
    "the version has two numbers": HeadRule(400, "RFC 9112 §2.3", _version(
        b"http/1.1", b"HTTP/1", b"HTTP/1.", b"HTTP/.1", b"HTTP/1.1.1", b"HTTP/1.x", b"HTTP1.1", b"HTTPS/1.1",
    )),
    "the version is known": HeadRule(505, "RFC 9110 §15.6.6", _version(b"HTTP/2.0", b"HTTP/3.0", b"HTTP/0.9")),
    "the target has one of four forms": HeadRule(400, "RFC 9112 §3.2", _target(
        b"asap", b"*", b"?x", b"a.example:443", b"ftp://a.example/asap", b"http:///asap", b"http:/asap", b"://a/asap",
        b"http://:80/asap", b"http://a.example:x/asap",
    )),
    "a target has no fragment": HeadRule(400, "RFC 9112 §3.2", _target(b"/asap#x", b"/asap?x#y", b"http://a.example/#x")),
    "a target has no user": HeadRule(400, "RFC 9110 §4.2.4", _target(b"http://me@a.example/", b"http://a:b@a.example/")),
    "a target has characters of a URI only": HeadRule(400, "RFC 3986 §3.3", _target(
        b"/\xe4", b"/as%6", b"/%zz", b"/a\\b", b'/"', b"/<a>", b"/a^b", b"/a|b",
    )),
    "a line ends in CR LF, not in LF": HeadRule(400, "RFC 9112 §2.2", _bare(b"\n")),
    "a line ends in CR LF, not in CR": HeadRule(400, "RFC 9112 §2.2", _bare(b"\r")),
    "a head has no control characters": HeadRule(400, "RFC 9110 §5.5", _controls),
    "a field stays on one line": HeadRule(400, "RFC 9112 §5.2", _fields(b" folded", b"\tx: y", b" ", b" x: y")),
    "a field has a colon": HeadRule(400, "RFC 9112 §5", _fields(b"x", b"x y", b"x=y")),
    "a field's name is a token": HeadRule(400, "RFC 9110 §5.1", _fields(
        b": y", b"a b: y", b"(a): y", b"\xe9: y", b'"x": y', b"a/b: y", b"[x]: y", b"x;y: z", b"@x: y",
    )),
    "no blank precedes the colon": HeadRule(400, "RFC 9112 §5.1", _fields(
        b"x : y", b"x\t: y", b"Content-Length : 5", b"Transfer-Encoding : chunked", b"Host : a",
    )),
    "a request in HTTP/1.1 has a Host": HeadRule(400, "RFC 9112 §3.2", _fields(
        (), b"X-Host: a.example", instead_of=(b"host",), version=b"HTTP/1.1"
    )),
    "a request has one Host": HeadRule(400, "RFC 9112 §3.2", _fields(
        (b"Host: a.example", b"Host: a.example"), (b"Host: a.example", b"host: b.example"), instead_of=(b"host",)
    )),
    "Host is a name or an address": HeadRule(400, "RFC 9110 §7.2", _fields(
        b"Host: a b", b"Host: http://a.example", b"Host: me@a.example", b"Host: a.example/x", b"Host: a.example:x",
        b"Host: a.example, b.example", b"Host: [a.example", b"Host: a#b", b"Host: a?b", b"Host: \xe9", b"Host: a:1:2",
        instead_of=(b"host",),
    )),
    "Content-Length has digits only": HeadRule(400, "RFC 9110 §8.6", _fields(
        *[b"Content-Length: " + value for value in (
            b"", b"+5", b"-0", b"-5", b"5 5", b"0x5", b"5.0", b"5e0", b"5;", b"1_0", b"five", b'"5"', b"\xb2",
        )],
        instead_of=_FRAMING,
    )),
    "there is one Content-Length": HeadRule(400, "RFC 9110 §8.6", _fields(
        b"Content-Length: 5, 5", b"Content-Length: 5,5", b"Content-Length: 5, 6",
        (b"Content-Length: 5", b"Content-Length: 5"), (b"Content-Length: 5", b"content-length: 6"),
        instead_of=_FRAMING,
    )),
    "there is one framing": HeadRule(400, "RFC 9112 §6.1", _fields(
        (b"Content-Length: 5", b"Transfer-Encoding: chunked"), (b"transfer-encoding: chunked", b"content-length: 0"),
        (b"Transfer-Encoding: identity", b"Content-Length: 5"), instead_of=_FRAMING, version=b"HTTP/1.1",
    )),
    "HTTP/1.0 has no transfer coding": HeadRule(400, "RFC 9112 §6.1", _fields(
        b"Transfer-Encoding: chunked", b"transfer-encoding: identity", instead_of=_FRAMING, version=b"HTTP/1.0"
    )),
    "the transfer coding is chunked": HeadRule(501, "RFC 9112 §6.1", _fields(
        *[b"Transfer-Encoding: " + value for value in (
            b"gzip", b"identity", b"xchunked", b"chunked, identity", b"identity, chunked", b"chunked, chunked",
            b'"chunked"', b"chunked;q=1", b"", b"chunk", b"\xff",
        )],
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"), instead_of=_FRAMING, version=b"HTTP/1.1",
    )),
}  # fmt: skip
"""The rules that `nearly_valid_heads` breaks, by name."""
