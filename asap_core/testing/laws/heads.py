"""Laws of heads: request line, fields, Host and target have one reading.

Each is a request for the manifest that differs in one place, so nothing is done if it's accepted.
"""

import gzip
from collections.abc import Collection, Mapping
from typing import Final

from asap_core.testing.laws.checks import accepted, check, refused
from asap_core.testing.laws.effects import SendBytes, Steps
from asap_core.testing.laws.lab import MANIFEST_PATH, Lab, to_body
from asap_core.testing.laws.law import LawGroup, Severity
from asap_core.testing.laws.verdicts import Need

HEADS: Final = LawGroup("heads", "request lines, fields, hosts and targets have one reading")

_DIRECT: Final = frozenset({Need.BYTES, Need.DIRECT})
_REFUSED: Final = "each is refused by 400"


def _get(lab: Lab, *lines: str, line: str = "", host: str | None = None) -> bytes:
    """Return a request for the manifest, with further lines in its head, another request line or Host."""
    first = line or f"GET {lab.root}{MANIFEST_PATH} HTTP/1.1"
    head = [first, f"Host: {lab.host if host is None else host}", "Connection: close", *lines, ""]
    return "".join(f"{each}\r\n" for each in head).encode("latin-1")


def _each_is_refused(requests: Mapping[str, bytes], statuses: Collection[int] = (400,)) -> Steps[None]:
    for example, sent in requests.items():
        got = yield from SendBytes((sent,), answers=1)
        check(got.first.status in statuses, got.first, example)


@HEADS.law(clause="RFC 9112 §2.2; docs/security.md 20", expected=_REFUSED, severity=Severity.HARDENING, needs=_DIRECT)
def line_ends(lab: Lab) -> Steps[None]:
    """A line that ends in LF alone, or has a CR within, is refused."""
    right = _get(lab, "X-A: b")
    yield from _each_is_refused(
        {
            "LF after the request line": right.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\n"),
            "LF after a field": right.replace(b"X-A: b\r\n", b"X-A: b\n"),
            "CR within a field": right.replace(b"X-A: b", b"X-A: a\rb"),
            "LF at the end of the head": right.removesuffix(b"\r\n") + b"\n",
        }
    )


@HEADS.law(clause="RFC 9110 §5.5; docs/security.md 20", expected=_REFUSED, severity=Severity.HARDENING, needs=_DIRECT)
def control_characters(lab: Lab) -> Steps[None]:
    """A field with a NUL or another control character is refused."""
    yield from _each_is_refused({repr(c): _get(lab, f"X-A: a{c}b") for c in ("\0", "\x01", "\x0b", "\x7f")})


@HEADS.law(clause="RFC 9112 §5.2; docs/security.md 20", expected=_REFUSED, severity=Severity.HARDENING, needs=_DIRECT)
def folded_fields(lab: Lab) -> Steps[None]:
    """A field that goes on in the next line is refused."""
    yield from _each_is_refused({repr(c): _get(lab, "X-A: a", f"{c}b") for c in (" ", "\t")})


@HEADS.law(clause="RFC 9112 §5.1; docs/security.md 20", expected=_REFUSED, severity=Severity.HARDENING, needs=_DIRECT)
def blanks_before_the_colon(lab: Lab) -> Steps[None]:
    """A blank between a field's name and the colon is refused."""
    yield from _each_is_refused({repr(c): _get(lab, f"Content-Length{c}: 0") for c in (" ", "\t")})


@HEADS.law(clause="RFC 9112 §5; docs/security.md 20", expected=_REFUSED, severity=Severity.HARDENING, needs=_DIRECT)
def lines_without_a_field(lab: Lab) -> Steps[None]:
    """A line without a colon, or without a name before it, is refused."""
    yield from _each_is_refused({line: _get(lab, line) for line in ("X-A", ": a", "a b: c", "a(b): c")})


@HEADS.law(clause="RFC 9112 §3; docs/security.md 20", expected=_REFUSED, severity=Severity.HARDENING, needs=_DIRECT)
def blanks_in_the_request_line(lab: Lab) -> Steps[None]:
    """A request line with other blanks than two spaces is refused."""
    target = lab.root + MANIFEST_PATH
    lines = (
        f"GET  {target} HTTP/1.1", f"GET {target}  HTTP/1.1", f"GET {target} HTTP/1.1 ", f"GET\t{target} HTTP/1.1",
        f"GET {target} x HTTP/1.1",
    )  # fmt: skip
    yield from _each_is_refused({repr(line): _get(lab, line=line) for line in lines})


@HEADS.law(clause="RFC 9110 §9.1", expected=_REFUSED, severity=Severity.HARDENING, needs=_DIRECT)
def methods_are_tokens(lab: Lab) -> Steps[None]:
    """A method with a character that no method has is refused."""
    target = lab.root + MANIFEST_PATH
    yield from _each_is_refused({each: _get(lab, line=f"{each} {target} HTTP/1.1") for each in ("G(T", "G@T", 'G"T')})


@HEADS.law(clause="RFC 9110 §15.6.6", expected="status 505", severity=Severity.SHOULD, needs={Need.BYTES}, strict=True)
def other_versions(lab: Lab) -> Steps[None]:
    """A version of HTTP whose major number isn't 1 is refused by 505."""
    target = lab.root + MANIFEST_PATH
    versions = ("HTTP/2.0", "HTTP/3.0", "HTTP/9.9")
    yield from _each_is_refused({each: _get(lab, line=f"GET {target} {each}") for each in versions}, statuses=(505,))


@HEADS.law(clause="RFC 9112 §3.2; docs/security.md 20", expected=_REFUSED, severity=Severity.HARDENING, needs=_DIRECT)
def hosts_have_a_grammar(lab: Lab) -> Steps[None]:
    """A Host that is no name or address is refused."""
    hosts = ("a b", "a/b", "user@host", "host:port", "host:80:80", "[::1", "http://host")
    yield from _each_is_refused({host: _get(lab, host=host) for host in hosts})


@HEADS.law(clause="RFC 9112 §3.2.2", expected="status 200", severity=Severity.SHOULD, needs={Need.BYTES}, strict=True)
def absolute_targets(lab: Lab) -> Steps[None]:
    """A target in absolute form means its path."""
    sent = _get(lab, line=f"GET http://{lab.host}{lab.root}{MANIFEST_PATH} HTTP/1.1")
    got = yield from SendBytes((sent,), answers=1)
    check(got.first.status == 200, got.first)  # noqa: PLR2004 - HTTP's


@HEADS.law(clause="RFC 9112 §3.2; docs/security.md 20", expected=_REFUSED, severity=Severity.HARDENING, needs=_DIRECT)
def targets_have_a_grammar(lab: Lab) -> Steps[None]:
    """A target with a fragment, with characters that no URL has, or without a path is refused."""
    target = lab.root + MANIFEST_PATH
    targets = (f"{target}#a", f"{target}?a#b", f'{target}?"', f"{target}%", f"{target}\\", target[1:], f"{target}\xff")
    yield from _each_is_refused({each: _get(lab, line=f"GET {each} HTTP/1.1") for each in targets})


@HEADS.law(clause="RFC 9112 §2.2", expected="status 200", severity=Severity.SHOULD, needs={Need.BYTES}, strict=True)
def an_empty_line_before(lab: Lab) -> Steps[None]:
    """An empty line before a request line is ignored: old clients end a body with one."""
    got = yield from SendBytes((b"\r\n" + _get(lab),), answers=1)
    check(got.first.status == 200, got.first)  # noqa: PLR2004 - HTTP's


@HEADS.law(clause="RFC 9110 §5.1", expected="status 200", needs={Need.BYTES})
def names_in_any_case(lab: Lab) -> Steps[None]:
    """The names of fields are read in any case."""
    for name in (b"host", b"HOST", b"hOsT"):
        got = yield from SendBytes((_get(lab).replace(b"Host", name),), answers=1)
        check(got.first.status == 200, got.first, name.decode())  # noqa: PLR2004 - HTTP's


@HEADS.law(
    clause="RFC 9110 §5.1", expected="each is read: the call is accepted, the version is chosen, the ETag is known",
    needs={Need.SKILL}, strict=True,
)  # fmt: skip
def fields_in_any_case(lab: Lab) -> Steps[None]:
    """The names of all fields that an agent reads are read in any case."""
    etag = (yield from lab.get(MANIFEST_PATH)).header("etag") or ""
    revalidated = yield from lab.get(MANIFEST_PATH, headers=[("If-None-Match", etag)])
    for example, spelled in (("lower case", str.lower), ("upper case", str.upper)):
        body = to_body(lab.rpc(lab.envelope()))
        names = ("Authorization", "ASAP-Version", "Content-Type", "Content-Length")
        values = [value for _, value in lab.caller.credentials] or [""]
        fields = dict(zip(names, (values[0], "2.1", "application/json", str(len(body))), strict=True))
        headers = [(spelled(name), value) for name, value in fields.items() if value]
        answer = yield from lab.fetch(lab.request("POST", lab.path, headers=headers, body=body))
        accepted(answer, example)
        version = answer.header("asap-version")
        check(version == "2.1", f"ASAP-Version: {version}, not 2.1", example)
        if revalidated.status == 304:  # noqa: PLR2004 - HTTP's
            answer = yield from lab.get(MANIFEST_PATH, headers=[(spelled("If-None-Match"), etag)])
            check(answer.status == 304, answer, f"If-None-Match in {example}")  # noqa: PLR2004 - HTTP's
        if Need.COMPRESSION in lab.has:
            body = gzip.compress(to_body(lab.rpc(lab.envelope())))
            accepted((yield from lab.post(body, headers=[(spelled("Content-Encoding"), "gzip")])), f"gzip, {example}")


@HEADS.law(
    clause="RFC 3986 §6.2.2.1; docs/security.md 20",
    expected="status 404",
    severity=Severity.HARDENING,
    needs={Need.SKILL},
    strict=True,
)
def one_path(lab: Lab) -> Steps[None]:
    """The endpoint has one path: no other spelling of it leads there, as a proxy's rules may name just this one."""
    body = to_body(lab.rpc(lab.envelope()))
    own = lab.path
    others = (
        *(own.upper(), f"{own}/", f"/{own}", f"{own}x", f"{own}/x", own.replace("/a", "/%61"), f"{own}//"),
        *(f"/conform/..{own}", f"/.{own}", f"{own}/.", f"{own}%2F", f"{own};v=1", f"{own}%00"),
    )
    for path in others:
        request = lab.request("POST", path, headers=lab.caller.credentials, body=body)
        refused((yield from lab.fetch(request)), path, statuses=[404])
