"""Laws of connections: what follows what, when one ends, and how long it may take."""

import gzip
from typing import Final

from asap_core.testing.laws.checks import accepted, check
from asap_core.testing.laws.effects import ConverseTogether, SendBytes, Steps
from asap_core.testing.laws.lab import HEALTH_PATH, MANIFEST_PATH, Lab, to_body
from asap_core.testing.laws.law import LawGroup, Severity
from asap_core.testing.laws.verdicts import LawNotTried, Need

CONNECTIONS: Final = LawGroup("connections", "what follows what, when a connection ends, and how long it may take")

# Longer than an agent waits for a head (10 s) or a body (30 s).
_SLOW: Final = 40.0
# Seconds between two bytes of a slow peer, and how many it has: the last one comes too late.
_DRIP: Final = 2.0
_DRIPS: Final = 30
# Longer than an agent keeps an idle connection (60 s).
_IDLE: Final = 100.0
_MOMENT: Final = 0.3
_BAD: Final = b"GET /  HTTP/1.1\r\n\r\n"


def _dripped(pieces: list[bytes]) -> tuple[bytes | float, ...]:
    return tuple(piece for each in pieces for piece in (each, _DRIP))


def _get(lab: Lab, path: str = MANIFEST_PATH, *, close: bool = False) -> bytes:
    return lab.request("GET", lab.root + path, close=close).to_bytes()


@CONNECTIONS.law(
    clause="RFC 9112 §9.3", expected="both requests are answered", severity=Severity.SHOULD, needs={Need.BYTES}
)
def persistence(lab: Lab) -> Steps[None]:
    """A second request on a connection is answered too."""
    got = yield from SendBytes((_get(lab), _MOMENT, _get(lab)), answers=2)
    check([each.status for each in got.answers] == [200, 200], got.first, f"{len(got.answers)} answers")


@CONNECTIONS.law(clause="RFC 9112 §9.3.2", expected="three answers, in order", needs={Need.BYTES, Need.DIRECT})
def pipelining(lab: Lab) -> Steps[None]:
    """Requests that are sent ahead are answered, in their order."""
    got = yield from SendBytes((_get(lab) + _get(lab, HEALTH_PATH) + _get(lab),), answers=3)
    names = ["health" if "agent_id" in each.document else "manifest" for each in got.answers]
    check(names == ["manifest", "health", "manifest"], f"answers: {', '.join(names)}")


@CONNECTIONS.law(
    clause="RFC 9112 §9.3.2", expected="two results, each with its request's id", needs={Need.SKILL, Need.BYTES}
)
def pipelined_calls(lab: Lab) -> Steps[None]:
    """Calls on one connection are answered each with its own id."""
    ids = [lab.fresh(), lab.fresh()]
    calls = [lab.post_request(to_body(lab.rpc(lab.envelope(), id=each)), close=False).to_bytes() for each in ids]
    got = yield from SendBytes((calls[0], _MOMENT, calls[1]), answers=2)
    for answer in got.answers:
        accepted(answer)
    check([each.document.get("id") for each in got.answers] == ids, f"{len(got.answers)} answers; sent {ids}")


@CONNECTIONS.law(
    clause="RFC 9110 §7.6.1; RFC 9112 §9.6",
    expected="one answer, with Connection: close; the connection ends, and nothing after it is read",
    needs={Need.BYTES, Need.DIRECT},
)
def a_close_that_is_asked_for(lab: Lab) -> Steps[None]:
    """The connection ends after a request with Connection: close."""
    for value in ("close", "Close", "keep-alive, close"):
        last = lab.request("GET", lab.root + MANIFEST_PATH, headers=[("Connection", value)]).to_bytes()
        got = yield from SendBytes((last + _get(lab),), seconds=3)
        count = len(got.answers)
        check(count == 1 and got.first.status == 200, f"{count} answers, {got.first}", value)  # noqa: PLR2004 - HTTP's
        check(got.closed, "the connection stays open", value)


@CONNECTIONS.law(
    clause="RFC 9112 §9.3; RFC 9110 §3.3",
    expected="the last call is accepted: what earlier requests on the connection had says nothing about it",
    needs={Need.SKILL, Need.BYTES, Need.IDEMPOTENCY, Need.COMPRESSION},
    strict=True,
)
def nothing_is_kept_of_a_request(lab: Lab) -> Steps[None]:
    """The key and the coding of a request count for that request only, also if others follow on its connection."""
    for example, headers, code in (
        ("after one with a key", [("X-Idempotency-Key", lab.fresh())], bytes),
        ("after one in gzip", [("Content-Encoding", "gzip")], gzip.compress),
    ):
        first = lab.post_request(code(to_body(lab.rpc(lab.envelope()))), headers=headers, close=False)
        second = lab.post_request(to_body(lab.rpc(lab.envelope())), close=False)
        got = yield from SendBytes((first.to_bytes(), _MOMENT, second.to_bytes()), answers=2)
        if len(got.answers) < 2:  # noqa: PLR2004 - both requests'
            raise LawNotTried("the agent ends the connection after one request")
        for answer in got.answers:
            accepted(answer, example)


@CONNECTIONS.law(
    clause="RFC 9112 §9.3, §6.1",
    expected="status 200, without a transfer coding, and the connection ends",
    needs={Need.BYTES, Need.DIRECT},
    strict=True,
)
def http_1_0(lab: Lab) -> Steps[None]:
    """A request of HTTP/1.0 is answered, and the connection ends after it: its client reads until then."""
    sent = _get(lab).replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n")
    got = yield from SendBytes((sent,), seconds=3)
    check(got.first.status == 200, got.first)  # noqa: PLR2004 - HTTP's
    coding = got.first.header("transfer-encoding")
    check(coding is None, f"Transfer-Encoding: {coding}")
    check(got.closed, "the connection stays open")


@CONNECTIONS.law(
    clause="RFC 9112 §9.6", expected="Connection: close", severity=Severity.SHOULD, needs={Need.BYTES}, strict=True
)
def a_close_is_said(lab: Lab) -> Steps[None]:
    """The last answer on a connection says that it's the last."""
    for example, sent in (("asked for", _get(lab, close=True)), ("after a fault", _BAD)):
        got = yield from SendBytes((sent,), seconds=3)
        said = got.first.header("connection") or ""
        check(not got.closed or "close" in said.lower(), f"{got.first}, Connection: {said!r}", example)


@CONNECTIONS.law(
    clause="RFC 9112 §9.6; docs/security.md 20",
    expected="one answer, 400, and the connection ends",
    needs={Need.BYTES, Need.DIRECT},
)
def nothing_after_a_fault(lab: Lab) -> Steps[None]:
    """What follows a request that can't be read isn't read: nobody knows where it begins."""
    got = yield from SendBytes((_BAD, _MOMENT, _get(lab)), seconds=3)
    check(got.first.status == 400, got.first)  # noqa: PLR2004 - HTTP's
    check(len(got.answers) == 1, f"{len(got.answers)} answers")
    check(got.closed, "the connection stays open")


@CONNECTIONS.law(
    clause="RFC 9110 §10.1.1", expected="100 Continue, and then the result", severity=Severity.SHOULD,
    needs={Need.SKILL, Need.BYTES}, strict=True,
)  # fmt: skip
def expectations(lab: Lab) -> Steps[None]:
    """A client that waits for 100 Continue before it sends the body gets it."""
    for expectation in ("100-continue", "100-Continue"):
        request = lab.post_request(to_body(lab.rpc(lab.envelope())), headers=[("Expect", expectation)])
        head, _, body = request.to_bytes().partition(b"\r\n\r\n")
        got = yield from SendBytes((head + b"\r\n\r\n", _MOMENT, body), answers=1)
        check(got.raw.startswith(b"HTTP/1.1 100"), f"first came {got.raw[:20]!r}", expectation)
        accepted(got.first, expectation)


@CONNECTIONS.law(
    clause="docs/security.md 18", expected="the connection ends within 40 s", severity=Severity.HARDENING,
    needs={Need.BYTES, Need.DIRECT},
)  # fmt: skip
def slow_heads(lab: Lab) -> Steps[None]:
    """A head of which a byte comes now and then isn't waited for."""
    pieces = _dripped([bytes([each]) for each in _get(lab)[: int(_SLOW / _DRIP)]])
    got = yield from SendBytes(pieces, seconds=_SLOW)
    check(got.closed, f"the connection is open after {_SLOW:.0f} s")


@CONNECTIONS.law(
    clause="docs/security.md 18; RFC 9110 §15.5.9", expected="status 408 within 40 s", severity=Severity.HARDENING,
    needs={Need.SKILL, Need.BYTES, Need.DIRECT}, strict=True,
)  # fmt: skip
def slow_bodies(lab: Lab) -> Steps[None]:
    """A body that doesn't arrive, or of which a byte comes now and then, is answered by 408."""
    silent, dripping = (lab.post_request(to_body(lab.rpc(lab.envelope()))).to_bytes() for _ in range(2))
    unfinished = dripping[:-1]  # a line for a shell waits longer, and must get no other answer
    coded = [*lab.caller.credentials, ("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")]
    chunked = lab.request("POST", lab.path, headers=coded).to_bytes()
    examples = {
        "nothing comes": (silent[:-20],),
        "a byte every 2 s": (unfinished[:-_DRIPS], *_dripped([bytes([each]) for each in unfinished[-_DRIPS:]])),
        "a chunk every 2 s": (chunked, *_dripped([b"1\r\n \r\n"] * _DRIPS)),
    }
    found = yield from ConverseTogether(tuple(SendBytes(each, seconds=_SLOW) for each in examples.values()))
    for example, got in zip(examples, found, strict=True):
        check(got.closed, f"the connection is open after {_SLOW:.0f} s", example, at=got.first)
        check(got.first.status == 408, got.first, example)  # noqa: PLR2004 - HTTP's


@CONNECTIONS.law(
    clause="docs/security.md 18", expected="the connection ends within 100 s", severity=Severity.HARDENING,
    needs={Need.BYTES, Need.CLOCK},
)  # fmt: skip
def idle_connections(lab: Lab) -> Steps[None]:
    """A connection on which nothing comes is ended."""
    got = yield from SendBytes((_get(lab),), seconds=_IDLE)
    check(got.closed, f"the connection is open after {_IDLE:.0f} s")
