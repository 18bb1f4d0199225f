"""Laws of compressed bodies."""

import gzip
from typing import Final

from asap_core.testing.laws.checks import accepted, check, refused
from asap_core.testing.laws.effects import Steps
from asap_core.testing.laws.lab import Lab, to_body
from asap_core.testing.laws.law import LawGroup, Severity
from asap_core.testing.laws.verdicts import Need

COMPRESSION: Final = LawGroup("compression", "bodies that are compressed")

_GZIP: Final = [("Content-Encoding", "gzip")]
# Compressed it's 64 KB.
_BOMB: Final = 64 * 1024 * 1024
_NEEDS: Final = frozenset({Need.SKILL, Need.COMPRESSION})


@COMPRESSION.law(clause="docs/wire.md §4.1", expected="it's accepted", needs=_NEEDS)
def gzip_bodies(lab: Lab) -> Steps[None]:
    """A call that is compressed by gzip is accepted."""
    accepted((yield from lab.post(gzip.compress(to_body(lab.rpc(lab.envelope()))), headers=_GZIP)))


@COMPRESSION.law(clause="docs/wire.md §4.1", expected="it's refused, by status 400", needs=_NEEDS)
def corrupt_gzip(lab: Lab) -> Steps[None]:
    """A body that isn't what its Content-Encoding says is refused, without a crash."""
    whole = gzip.compress(to_body(lab.rpc(lab.envelope())))
    for example, body in (
        ("no gzip at all", to_body(lab.rpc(lab.envelope()))),
        ("cut short", whole[:-12]),
        ("a wrong checksum", whole[:-8] + b"\0\0\0\0" + whole[-4:]),
        ("a damaged byte", whole[:20] + b"\xff" + whole[21:]),
    ):
        refused((yield from lab.post(body, headers=_GZIP)), example)


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
    expected="status 413",
    severity=Severity.HARDENING,
    needs=_NEEDS,
)
def bombs(lab: Lab) -> Steps[None]:
    """A small body that inflates to 64 MiB is refused."""
    body = to_body(lab.rpc(lab.envelope(payload=lab.task(input={"x": "a" * _BOMB}))))
    answer = yield from lab.post(gzip.compress(body, 9), headers=_GZIP)
    check(answer.result is None and (answer.problem or answer.status == 413), answer)  # noqa: PLR2004 - HTTP's
