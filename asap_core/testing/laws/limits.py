"""Laws of limits: what is too much is refused before it costs much."""

from typing import Final

from asap_core.testing.laws.checks import accepted, check, refused
from asap_core.testing.laws.effects import SendBytes, Steps
from asap_core.testing.laws.lab import MANIFEST_PATH, Lab, to_body
from asap_core.testing.laws.law import LawGroup, Severity
from asap_core.testing.laws.verdicts import Need

LIMITS: Final = LawGroup("limits", "what is too much is refused before it costs much")

_TOO_LONG: Final = 10**12
_LONG_HEADER: Final = 200_000
# Above 10 MiB, the reference's limit.
_LARGE: Final = 11 * 1024 * 1024
_USUAL_BODY: Final = 2 * 1024 * 1024
# A token takes 8 KiB at most.
_USUAL_HEADER: Final = 8_000
_CHUNK: Final = 65_536
_JSON: Final = ("Content-Type", "application/json")


@LIMITS.law(
    clause="RFC 9110 §15.5.14; docs/security.md 13",
    expected="status 413 at once: the declared length is refused before the body is read",
    severity=Severity.HARDENING,
    needs={Need.ADMITTED, Need.BYTES},
)
def a_declared_length(lab: Lab) -> Steps[None]:
    """A body that declares a terabyte is refused before it arrives."""
    request = lab.post_request(b"", headers=[("Content-Length", str(_TOO_LONG))])
    got = yield from SendBytes((request.to_bytes(),), answers=1)
    refused(got.first, statuses=[413])


@LIMITS.law(
    clause="RFC 6585 §5; docs/security.md 20",
    expected="status 431 or 400",
    severity=Severity.HARDENING,
    needs={Need.BYTES},
)
def a_long_head(lab: Lab) -> Steps[None]:
    """A head of 200 KB is refused."""
    request = lab.request("GET", lab.root + MANIFEST_PATH, headers=[("X-Long", "a" * _LONG_HEADER)])
    got = yield from SendBytes((request.to_bytes(),), answers=1)
    check(got.first.status in (400, 413, 414, 431) or (got.closed and not got.answers), got.first)


@LIMITS.law(
    clause="docs/security.md 17",
    expected="status 413",
    severity=Severity.HARDENING,
    needs={Need.SKILL},
)
def a_large_body(lab: Lab) -> Steps[None]:
    """A valid call of more than 10 MiB is refused."""
    body = to_body(lab.rpc(lab.envelope(payload=lab.task(input={"x": "a" * _LARGE}))))
    answer = yield from lab.post(body)
    check(answer.result is None and (answer.problem or answer.status == 413), answer)  # noqa: PLR2004 - HTTP's


# More than any caller needs; the usual limit is 100.
_MANY_FIELDS: Final = 1_000


@LIMITS.law(
    clause="RFC 6585 §5; docs/security.md 20", expected="status 431", severity=Severity.HARDENING,
    needs={Need.BYTES}, strict=True,
)  # fmt: skip
def many_fields(lab: Lab) -> Steps[None]:
    """A head of a thousand short fields is refused by 431."""
    headers = [(f"X-{number}", "a") for number in range(_MANY_FIELDS)]
    got = yield from SendBytes((lab.request("GET", lab.root + MANIFEST_PATH, headers=headers).to_bytes(),), answers=1)
    check(got.first.status == 431, got.first)  # noqa: PLR2004 - HTTP's


@LIMITS.law(clause="RFC 6585 §5", expected="status 431", severity=Severity.SHOULD, needs={Need.BYTES}, strict=True)
def status_of_a_long_head(lab: Lab) -> Steps[None]:
    """A head that is too long is refused by 431, which says what is wrong."""
    request = lab.request("GET", lab.root + MANIFEST_PATH, headers=[("X-Long", "a" * _LONG_HEADER)])
    got = yield from SendBytes((request.to_bytes(),), answers=1)
    check(got.first.status == 431, got.first)  # noqa: PLR2004 - HTTP's


@LIMITS.law(
    clause="docs/policy.md, max_body and max_head", expected="each is accepted", severity=Severity.SHOULD,
    needs={Need.SKILL}, strict=True,
)  # fmt: skip
def what_callers_send(lab: Lab) -> Steps[None]:
    """A body of 2 MiB, and a head as long as one with a long token, are accepted."""
    body = to_body(lab.rpc(lab.envelope())) + b" " * _USUAL_BODY
    accepted((yield from lab.post(body)), "a body of 2 MiB, most of it blanks")
    answer = yield from lab.call(lab.rpc(lab.envelope()), headers=[("X-Long", "a" * _USUAL_HEADER)])
    accepted(answer, "a head of 8 KB")


@LIMITS.law(
    clause="RFC 9112 §7.1; docs/security.md 17", expected="status 413", severity=Severity.HARDENING,
    needs={Need.SKILL, Need.BYTES},
)  # fmt: skip
def a_large_chunked_body(lab: Lab) -> Steps[None]:
    """A valid call of more than 10 MiB in chunks is refused: no length announces it."""
    body = to_body(lab.rpc(lab.envelope(payload=lab.task(input={"x": "a" * _LARGE}))))
    head = lab.request("POST", lab.path, headers=[*lab.caller.credentials, _JSON, ("Transfer-Encoding", "chunked")])
    pieces = [body[at : at + _CHUNK] for at in range(0, len(body), _CHUNK)]
    framed = [f"{len(each):x}\r\n".encode() + each + b"\r\n" for each in pieces]
    got = yield from SendBytes((head.to_bytes() + b"".join(framed),), answers=1, seconds=10)
    refused(got.first, statuses=[413])
