"""Laws of compressed bodies."""

import gzip
from io import BytesIO
from typing import Final

from asap_core.testing.laws.brotli_streams import BLANKS, to_brotli
from asap_core.testing.laws.checks import accepted, check, refused
from asap_core.testing.laws.effects import Steps
from asap_core.testing.laws.lab import Lab, to_body
from asap_core.testing.laws.law import LawGroup, Severity
from asap_core.testing.laws.verdicts import LawNotTried, Need

COMPRESSION: Final = LawGroup("compression", "bodies that are compressed")

_GZIP: Final = [("Content-Encoding", "gzip")]
_BROTLI: Final = [("Content-Encoding", "br")]
_UNKNOWN: Final = 415
# Compressed it's 64 KB.
_BOMB: Final = 64 * 1024 * 1024
# Below every limit; so many of them are a bomb.
_MEMBER: Final = 1024 * 1024
# Above 10 MiB, the reference's limit.
_LARGE: Final = 11 * 1024 * 1024
# More than a reader inflates at once.
_BLANKS: Final = 200_000
_CORRUPT: Final = "each is refused, by status 400"
_NEEDS: Final = frozenset({Need.SKILL, Need.COMPRESSION})


@COMPRESSION.law(clause="docs/wire.md §4.1; RFC 1952 §2.3.1", expected="each is accepted", needs=_NEEDS)
def gzip_bodies(lab: Lab) -> Steps[None]:
    """A call that is compressed by gzip is accepted, also if its header has a file's name."""
    accepted((yield from lab.post(gzip.compress(to_body(lab.rpc(lab.envelope()))), headers=_GZIP)))
    named = BytesIO()
    with gzip.GzipFile("call.json", "wb", fileobj=named) as file:
        file.write(to_body(lab.rpc(lab.envelope())))
    accepted((yield from lab.post(named.getvalue(), headers=_GZIP)), "with a file's name")


def _padded(lab: Lab) -> bytes:
    """Return a valid call with blanks after it, so that its first part alone is the same call."""
    return to_body(lab.rpc(lab.envelope())) + b" " * _BLANKS


@COMPRESSION.law(clause="docs/wire.md §4.1; RFC 1952 §2.3", expected=_CORRUPT, needs=_NEEDS)
def corrupt_gzip(lab: Lab) -> Steps[None]:
    """A body that isn't what its Content-Encoding says is refused, without a crash, whatever it begins with."""
    whole = gzip.compress(_padded(lab), 0)
    for example, body in (
        ("no gzip at all", to_body(lab.rpc(lab.envelope()))),
        ("a wrong checksum", whole[:-8] + b"\0\0\0\0" + whole[-4:]),
        ("a wrong length", whole[:-4] + b"\0\0\0\0"),
    ):
        refused((yield from lab.post(body, headers=_GZIP)), example)


@COMPRESSION.law(clause="docs/wire.md §4.1; RFC 1952 §2.3", expected=_CORRUPT, needs=_NEEDS)
def cut_gzip(lab: Lab) -> Steps[None]:
    """A gzip stream that was cut off is refused, also if the call in it is whole."""
    for example, kept in (("the last byte", -1), ("the checksum", -8), ("blanks and the checksum", -5_000)):
        whole = gzip.compress(_padded(lab), 0)
        refused((yield from lab.post(whole[:kept], headers=_GZIP)), f"without {example}")


@COMPRESSION.law(clause="RFC 1952 §2.2", expected="it's accepted", severity=Severity.SHOULD, needs=_NEEDS, strict=True)
def gzip_in_two_members(lab: Lab) -> Steps[None]:
    """A call in two gzip members, one after the other, is accepted."""
    body = to_body(lab.rpc(lab.envelope()))
    accepted((yield from lab.post(gzip.compress(body[:50]) + gzip.compress(body[50:]), headers=_GZIP)))


@COMPRESSION.law(clause="RFC 1952 §2.2", expected=_CORRUPT, severity=Severity.HARDENING, needs=_NEEDS, strict=True)
def nothing_after_gzip(lab: Lab) -> Steps[None]:
    """A body that goes on after its gzip stream is refused: another reader could read more."""
    for example, added in (("text", b"text"), ("a call", to_body(lab.rpc(lab.envelope())))):
        body = gzip.compress(to_body(lab.rpc(lab.envelope()))) + added
        refused((yield from lab.post(body, headers=_GZIP)), example)


def _in_brotli(lab: Lab) -> Steps[None]:
    """Send a call in br, which is accepted. An agent that doesn't know br says so by 415, and isn't tried with it."""
    answer = yield from lab.post(to_brotli(to_body(lab.rpc(lab.envelope()))), headers=_BROTLI)
    if answer.status == _UNKNOWN:
        raise LawNotTried("the agent doesn't know br")
    accepted(answer, "br")


@COMPRESSION.law(clause="docs/wire.md §4.1", expected="it's accepted, or refused by 415", needs=_NEEDS)
def brotli_bodies(lab: Lab) -> Steps[None]:
    """A call that is compressed by br is accepted: the reference's clients send it without asking."""
    yield from _in_brotli(lab)


@COMPRESSION.law(clause="docs/wire.md §4.1; RFC 7932 §9", expected=_CORRUPT, needs=_NEEDS)
def corrupt_brotli(lab: Lab) -> Steps[None]:
    """A body that isn't br, or a br stream that was cut off, is refused, also if the call in it is whole."""
    yield from _in_brotli(lab)
    refused((yield from lab.post(to_body(lab.rpc(lab.envelope())), headers=_BROTLI)), "no br at all")
    for example, kept in (("the end", -1), ("blanks and the end", -1_000)):
        whole = to_brotli(to_body(lab.rpc(lab.envelope())) + b" " * 2_000)
        refused((yield from lab.post(whole[:kept], headers=_BROTLI)), f"without {example}")


@COMPRESSION.law(clause="RFC 7932 §9", expected=_CORRUPT, severity=Severity.HARDENING, needs=_NEEDS, strict=True)
def nothing_after_brotli(lab: Lab) -> Steps[None]:
    """A body that goes on after its br stream is refused: another reader could read more."""
    yield from _in_brotli(lab)
    for example, added in (("text", b"text"), ("a call", to_body(lab.rpc(lab.envelope())))):
        body = to_brotli(to_body(lab.rpc(lab.envelope()))) + added
        refused((yield from lab.post(body, headers=_BROTLI)), example)


@COMPRESSION.law(
    clause="RFC 9110 §8.4.1", expected="each is accepted", severity=Severity.SHOULD, needs=_NEEDS, strict=True
)
def names_of_codings(lab: Lab) -> Steps[None]:
    """The name of a coding is read in any case, and identity is one."""
    body = to_body(lab.rpc(lab.envelope()))
    accepted((yield from lab.post(gzip.compress(body), headers=[("Content-Encoding", "GZIP")])), "GZIP")
    body = to_body(lab.rpc(lab.envelope()))
    accepted((yield from lab.post(body, headers=[("Content-Encoding", "identity")])), "identity")


@COMPRESSION.law(clause="RFC 9110 §8.4", expected="status 415", severity=Severity.HARDENING, needs=_NEEDS, strict=True)
def lists_of_codings(lab: Lab) -> Steps[None]:
    """A body with several codings, of which one is unknown, is refused."""
    for value in ("x-unknown, gzip", "gzip, x-unknown"):
        body = gzip.compress(to_body(lab.rpc(lab.envelope())))
        refused((yield from lab.post(body, headers=[("Content-Encoding", value)])), value, statuses=[415])


@COMPRESSION.law(
    clause="RFC 9110 §15.5.16", expected="Accept-Encoding, with gzip in it", severity=Severity.SHOULD,
    needs={Need.ADMITTED, Need.COMPRESSION}, strict=True,
)  # fmt: skip
def known_codings_are_named(lab: Lab) -> Steps[None]:
    """The refusal of a coding names those that the agent knows."""
    answer = yield from lab.post(b"{}", headers=[("Content-Encoding", "x-unknown")])
    got = answer.header("accept-encoding") or ""
    check("gzip" in got, f"{answer}, Accept-Encoding: {got!r}")


@COMPRESSION.law(
    clause="RFC 9110 §8.4, §15.5.16",
    expected="status 415",
    severity=Severity.SHOULD,
    needs={Need.SKILL},
)
def unknown_codings(lab: Lab) -> Steps[None]:
    """A content coding that the agent doesn't know is refused by 415."""
    body = to_body(lab.rpc(lab.envelope()))
    refused((yield from lab.post(body, headers=[("Content-Encoding", "x-unknown")])), statuses=[415])


@COMPRESSION.law(
    clause="docs/security.md 17",
    expected="status 413; also 400 for several gzip members",
    severity=Severity.HARDENING,
    needs=_NEEDS,
)
def bombs(lab: Lab) -> Steps[None]:
    """A small body that inflates to 64 MiB is refused, by gzip, also in many members, or br, whatever its end says."""
    body = to_body(lab.rpc(lab.envelope(payload=lab.task(input={"x": "a" * _BOMB}))))
    answer = yield from lab.post(gzip.compress(body, 9), headers=_GZIP)
    refused(answer, "gzip", statuses=[413])
    body = to_body(lab.rpc(lab.envelope(payload=lab.task(input={"x": "a" * _LARGE}))))
    answer = yield from lab.post(gzip.compress(body[:-1]) + gzip.compress(body[-1:]), headers=_GZIP)
    refused(answer, "two gzip members, the last of a byte", statuses=[413, 400])
    call = gzip.compress(to_body(lab.rpc(lab.envelope())))
    answer = yield from lab.post(call + gzip.compress(b" " * _MEMBER, 9) * (_BOMB // _MEMBER), headers=_GZIP)
    refused(answer, "a call, and many gzip members of blanks", statuses=[413, 400])
    answer = yield from lab.post(to_brotli(to_body(lab.rpc(lab.envelope())), BLANKS), headers=_BROTLI)
    if answer.status != _UNKNOWN:
        refused(answer, "br", statuses=[413])
