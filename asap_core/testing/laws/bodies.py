"""Laws of bodies: where one ends has one reading."""

from collections.abc import Collection, Mapping
from typing import Final

from asap_core.testing.laws.checks import accepted, check
from asap_core.testing.laws.effects import SendBytes, Steps
from asap_core.testing.laws.http_messages import HttpRequest
from asap_core.testing.laws.lab import HEALTH_PATH, MANIFEST_PATH, Lab, to_body
from asap_core.testing.laws.law import LawGroup, Severity
from asap_core.testing.laws.verdicts import Need

BODIES: Final = LawGroup("bodies", "where a body ends has one reading")

_DIRECT: Final = frozenset({Need.SKILL, Need.BYTES, Need.DIRECT})
_REFUSED: Final = "each is refused by 400, and the call isn't carried out"
_CHUNKED: Final = "Transfer-Encoding: chunked"
_END: Final = b"0\r\n\r\n"
_TOO_LONG: Final = 10**12


def _post(lab: Lab, *framing: str, body: bytes, version: str = "HTTP/1.1") -> bytes:
    """Return a POST to the endpoint with these fields about its body, and this body as it's framed."""
    fields = [f"{name}: {value}" for name, value in (("Host", lab.host), *lab.caller.credentials)]
    lines = [f"POST {lab.path} {version}", *fields, "Content-Type: application/json", "Connection: close", *framing, ""]
    return "".join(f"{each}\r\n" for each in lines).encode("latin-1") + body


def _call(lab: Lab) -> bytes:
    return to_body(lab.rpc(lab.envelope()))


def _chunk(data: bytes, size: str = "", end: bytes = b"\r\n") -> bytes:
    """Return data as one chunk. `size`: what stands before it, instead of its size; `%x` is the size."""
    return (size or "%x").replace("%x", f"{len(data):x}").encode("latin-1") + b"\r\n" + data + end


def _each_is_refused(requests: Mapping[str, bytes], statuses: Collection[int] = (400,)) -> Steps[None]:
    for example, sent in requests.items():
        got = yield from SendBytes((sent,), answers=1)
        check(got.first.status in statuses, got.first, example)


@BODIES.law(clause="RFC 9110 §8.6; docs/security.md 20", expected=_REFUSED, needs=_DIRECT)
def lengths_are_digits(lab: Lab) -> Steps[None]:
    """A Content-Length of anything but digits is refused."""
    calls = [(call := _call(lab), str(len(call))) for _ in range(6)]
    forms = ("+{}", "-{}", "0x{}", "{} 0", "{}.0", "{}a")
    yield from _each_is_refused(
        {
            form: _post(lab, f"Content-Length: {form.format(length)}", body=call)
            for form, (call, length) in zip(forms, calls, strict=True)
        }
    )
    yield from _each_is_refused(
        {
            "empty": _post(lab, "Content-Length:", body=b""),
            "a superscript two": _post(lab, "Content-Length: \xb2", body=b"{}"),
        }
    )


@BODIES.law(clause="RFC 9110 §8.6; docs/security.md 20", expected=_REFUSED, severity=Severity.HARDENING, needs=_DIRECT)
def lists_of_lengths(lab: Lab) -> Steps[None]:
    """A list of lengths, and a length twice, is refused, also if they're equal."""
    first, second = _call(lab), _call(lab)
    yield from _each_is_refused(
        {
            "a list": _post(lab, f"Content-Length: {len(first)}, {len(first)}", body=first),
            "two fields": _post(lab, *[f"Content-Length: {len(second)}"] * 2, body=second),
        }
    )


@BODIES.law(clause="RFC 9112 §7.1", expected="each is accepted", needs={Need.SKILL, Need.BYTES})
def chunked_bodies(lab: Lab) -> Steps[None]:
    """A body in chunks is read, with what chunks may have."""
    for example, coding, size, end in (
        ("one chunk", "chunked", "%x", _END), ("in capitals", "Chunked", "%x", _END),
        ("zeros", "chunked", "00%x", _END), ("an extension", "chunked", '%x;a=b;c="d"', _END),
        ("a trailer", "chunked", "%x", b"0\r\nX-A: b\r\n\r\n"),
    ):  # fmt: skip
        sent = _post(lab, f"Transfer-Encoding: {coding}", body=_chunk(_call(lab), size) + end)
        accepted((yield from SendBytes((sent,), answers=1)).first, example)
    call = _call(lab)
    sent = _post(lab, _CHUNKED, body=_chunk(call[:9]) + _chunk(call[9:]) + _END)
    accepted((yield from SendBytes((sent,), answers=1)).first, "two chunks")


@BODIES.law(clause="RFC 9112 §7.1; docs/security.md 20", expected=_REFUSED, needs=_DIRECT)
def sizes_of_chunks(lab: Lab) -> Steps[None]:
    """A chunk's size that isn't hexadecimal digits is refused."""
    sizes = ("0x%x", "+%x", "-%x", " %x", "%x ", "\t%x", "%xg", "%x,")
    yield from _each_is_refused({size: _post(lab, _CHUNKED, body=_chunk(_call(lab), size) + _END) for size in sizes})


@BODIES.law(
    clause="RFC 9112 §7.1.1; docs/security.md 20", expected=_REFUSED, severity=Severity.HARDENING, needs=_DIRECT
)
def extensions_of_chunks(lab: Lab) -> Steps[None]:
    """A chunk's extension that breaks the grammar is refused."""
    sizes = ("%x;", "%x;=a", '%x;a="b', "%x;a b", "%x;a\x00b", "%x;\n")
    yield from _each_is_refused(
        {repr(size): _post(lab, _CHUNKED, body=_chunk(_call(lab), size) + _END) for size in sizes}
    )


@BODIES.law(clause="RFC 9112 §7.1; docs/security.md 20", expected=_REFUSED, needs=_DIRECT)
def ends_of_chunks(lab: Lab) -> Steps[None]:
    """A chunk without CR LF after it is refused."""
    ends = (b"xx", b"\n\n", b"\r\r", b"  ")
    yield from _each_is_refused(
        {repr(end): _post(lab, _CHUNKED, body=_chunk(_call(lab), end=end) + _END) for end in ends}
    )


@BODIES.law(clause="RFC 9110 §6.5; docs/security.md 20", expected=_REFUSED, severity=Severity.HARDENING, needs=_DIRECT)
def trailers_have_a_grammar(lab: Lab) -> Steps[None]:
    """A trailer that isn't a field is refused."""
    lines = (b"no colon", b": a", b"a b: c", b"X-A : b")
    yield from _each_is_refused(
        {repr(line): _post(lab, _CHUNKED, body=_chunk(_call(lab)) + b"0\r\n" + line + b"\r\n\r\n") for line in lines}
    )


@BODIES.law(
    clause="RFC 9110 §6.5.1; docs/security.md 20", expected=_REFUSED, severity=Severity.HARDENING, needs=_DIRECT
)
def trailers_decide_nothing(lab: Lab) -> Steps[None]:
    """A trailer that would decide how the request is read is refused."""
    lines = (b"Content-Length: 0", b"Transfer-Encoding: chunked", b"Host: other.example", b"Authorization: Bearer x")
    yield from _each_is_refused(
        {line.decode(): _post(lab, _CHUNKED, body=_chunk(_call(lab)) + b"0\r\n" + line + b"\r\n\r\n") for line in lines}
    )


@BODIES.law(
    clause="RFC 9112 §6.1, §6.3; docs/security.md 20",
    expected="status 501; also 400 if chunked isn't last",
    severity=Severity.SHOULD,
    needs=_DIRECT,
    strict=True,
)
def unknown_codings(lab: Lab) -> Steps[None]:
    """A transfer coding that the agent doesn't know is refused by 501, wherever it stands."""
    for fields in (["x-unknown"], ["gzip, chunked"], ["chunked, gzip"], ["xchunked"], ["gzip", "chunked"]):
        sent = _post(lab, *(f"Transfer-Encoding: {each}" for each in fields), body=_chunk(_call(lab)) + _END)
        # RFC 9112 §6.3: if chunked isn't the last coding, 400 is right too.
        statuses = (501,) if fields[-1] in ("chunked", "gzip, chunked") else (501, 400)
        example = fields[0] if len(fields) == 1 else f"{' and '.join(fields)} in two fields"
        yield from _each_is_refused({example: sent}, statuses=statuses)


@BODIES.law(clause="RFC 9112 §6.1; docs/security.md 20", expected=_REFUSED, needs=_DIRECT)
def no_coding_in_http_1_0(lab: Lab) -> Steps[None]:
    """A transfer coding in HTTP/1.0 is refused: that version has none."""
    sent = _post(lab, _CHUNKED, body=_chunk(_call(lab)) + _END, version="HTTP/1.0")
    yield from _each_is_refused({"chunked": sent})


@BODIES.law(clause="RFC 9110 §8.6; docs/security.md 17", expected="status 413, 400 or 408, or no answer", needs=_DIRECT)
def lengths_do_not_wrap(lab: Lab) -> Steps[None]:
    """A length or a chunk's size beyond 32 or 64 bits isn't taken for what is left of it."""
    for bits in (32, 64):
        call = _call(lab)
        framed = {
            f"a length of 2 to the {bits}": _post(lab, f"Content-Length: {2**bits + len(call)}", body=call),
            f"a chunk of 2 to the {bits}": _post(lab, _CHUNKED, body=_chunk(call, f"{2**bits + len(call):x}") + _END),
        }
        for example, sent in framed.items():
            got = yield from SendBytes((sent,), answers=1, seconds=2)
            check(not got.answers or got.first.status in (400, 408, 413), got.first, example)


def _one_answer(request: HttpRequest, example: str) -> Steps[None]:
    """Send a request whose body looks like another request. The body must not be answered."""
    got = yield from SendBytes((request.to_bytes(),), seconds=1.5)
    check(len(got.answers) == 1, f"{len(got.answers)} answers", example)


@BODIES.law(clause="RFC 9110 §9.3.1; docs/security.md 20", expected="one answer", needs={Need.BYTES, Need.DIRECT})
def bodies_of_other_methods(lab: Lab) -> Steps[None]:
    """A body that comes with GET or another method is no request of its own."""
    inner = lab.request("GET", lab.root + HEALTH_PATH, close=False).to_bytes()
    for method in ("GET", "DELETE"):
        yield from _one_answer(lab.request(method, lab.root + MANIFEST_PATH, body=inner, close=False), method)


@BODIES.law(clause="RFC 9112 §9.6; docs/security.md 20", expected="one answer", needs={Need.BYTES, Need.DIRECT})
def bodies_of_refused_calls(lab: Lab) -> Steps[None]:
    """The body of a call that was refused before it was read is no request of its own."""
    inner = lab.request("GET", lab.root + HEALTH_PATH, close=False).to_bytes()
    for example, path, headers in (
        ("an unknown coding", lab.path, [*lab.caller.credentials, ("Content-Encoding", "x-unknown")]),
        ("an unknown path", "/conform-unknown", []),
        ("no token", lab.path, []),
        ("a length that is too large", lab.path, [*lab.caller.credentials, ("Content-Length", str(_TOO_LONG))]),
    ):
        yield from _one_answer(lab.request("POST", path, headers=headers, body=inner, close=False), example)
