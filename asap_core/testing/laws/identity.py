"""Laws of identity: who may call, as whom, and whom."""

import base64
from typing import Final

from asap_core.testing.laws.checks import accepted, check, refused
from asap_core.testing.laws.effects import SendBytes, Steps
from asap_core.testing.laws.http_messages import Answer
from asap_core.testing.laws.lab import HEALTH_PATH, MANIFEST_PATH, Caller, Lab, to_body
from asap_core.testing.laws.law import LawGroup, Severity
from asap_core.testing.laws.verdicts import LawNotTried, Need

IDENTITY: Final = LawGroup("identity", "who may call, as whom, and whom")


@IDENTITY.law(
    clause="docs/wire.md §4.2; docs/security.md 11",
    expected="each is refused with 401 and WWW-Authenticate (RFC 6750 §3)",
    needs={Need.SKILL, Need.AUTH},
)
def a_token_is_required(lab: Lab) -> Steps[None]:
    """A call without a token, or with one that nobody issued, is refused."""
    for example, token in (("no token", None), ("an unknown token", lab.fresh()), ("one beyond ASCII", "t\xf6k")):
        stranger = Caller(lab.caller.urn, token)
        refused((yield from lab.send(lab.envelope(), caller=stranger)), example)


def _alike(urn: str) -> tuple[str, ...]:
    """Return URNs that resemble this one: longer, shorter, and with another second segment or without it."""
    first = ":".join(urn.split(":")[:4])
    return tuple(each for each in (f"{urn}x", urn[:-1], first, f"{first}:x", f"{first}:conform") if each != urn)


@IDENTITY.law(
    clause="docs/security.md 7",
    expected="each is refused: the sender must be exactly the agent that the token stands for",
    needs={Need.SKILL, Need.AUTH},
)
def the_sender_is_the_tokens(lab: Lab) -> Steps[None]:
    """An envelope from another agent than the token's is refused, however much its name resembles."""
    for sender in ("urn:asap:agent:somebody-else", *_alike(lab.caller.urn), lab.recipient):
        refused((yield from lab.send(lab.envelope(sender=sender))), f"sender {sender}")


@IDENTITY.law(
    clause="docs/security.md 9",
    expected="each is refused: the envelope is for another agent",
    needs={Need.SKILL},
    strict=True,
)
def the_recipient_is_this_agent(lab: Lab) -> Steps[None]:
    """An envelope for another agent is refused."""
    for recipient in ("urn:asap:agent:somebody-else", *_alike(lab.recipient), lab.caller.urn):
        if recipient != lab.recipient:
            refused((yield from lab.send(lab.envelope(recipient=recipient))), f"recipient {recipient}")


@IDENTITY.law(
    clause="RFC 6750 §3; docs/security.md 11",
    expected="status 401, and the header WWW-Authenticate with the scheme Bearer",
    needs={Need.AUTH},
    strict=True,
)
def missing_tokens_are_challenged(lab: Lab) -> Steps[None]:
    """A call without a token is answered 401 with a challenge."""
    answer = yield from lab.send(lab.envelope(), caller=Caller(lab.caller.urn))
    check(answer.status == 401, answer)  # noqa: PLR2004 - HTTP's
    challenge = answer.header("www-authenticate") or ""
    check("bearer" in challenge.lower(), f"WWW-Authenticate: {challenge!r}")


_TOKENS: Final = frozenset({Need.SKILL, Need.AUTH})


def _with_header(lab: Lab, *values: str, target: str | None = None) -> Steps[Answer]:
    """Send a valid call with these values of Authorization."""
    headers = [("Authorization", value) for value in values]
    body = to_body(lab.rpc(lab.envelope()))
    return (yield from lab.fetch(lab.request("POST", target or lab.path, headers=headers, body=body)))


def _token(lab: Lab) -> str:
    return lab.caller.token or ""


@IDENTITY.law(clause="RFC 9110 §11.1", expected="each is accepted", severity=Severity.SHOULD, needs=_TOKENS)
def schemes_in_any_case(lab: Lab) -> Steps[None]:
    """The name of the scheme Bearer is read in any case."""
    for scheme in ("Bearer", "bearer", "BEARER"):
        accepted((yield from _with_header(lab, f"{scheme} {_token(lab)}")), scheme)


@IDENTITY.law(clause="RFC 6750 §2.1; docs/security.md 7", expected="each is refused", needs=_TOKENS)
def other_schemes(lab: Lab) -> Steps[None]:
    """A bearer token under another scheme is refused."""
    token = _token(lab)
    basic = base64.b64encode(f"conform:{token}".encode()).decode()
    for example, value in (
        ("Token", f"Token {token}"), ("Digest", f"Digest {token}"), ("Basic", f"Basic {basic}"), ("no scheme", token),
        ("no blank", f"Bearer{token}"),
    ):  # fmt: skip
        refused((yield from _with_header(lab, value)), example)


@IDENTITY.law(clause="docs/security.md 7, 11", expected="each is refused", needs=_TOKENS)
def tokens_are_compared_whole(lab: Lab) -> Steps[None]:
    """A token that is longer, shorter or in other cases than the right one is refused."""
    token = _token(lab)
    for example, other in (
        ("longer", f"{token}x"), ("shorter", token[:-1]), ("the first character", token[:1]),
        ("other cases", token.swapcase()), ("empty", ""), ("with =", f"{token}="), ("without =", token.rstrip("=")),
    ):  # fmt: skip
        if other != token:
            refused((yield from _with_header(lab, f"Bearer {other}")), example)


@IDENTITY.law(
    clause="RFC 6750 §2.3; docs/security.md 7", expected="each is refused", severity=Severity.HARDENING, needs=_TOKENS
)
def tokens_in_the_query(lab: Lab) -> Steps[None]:
    """A token in the query isn't read: it would stand in logs."""
    for name in ("token", "access_token"):
        refused((yield from _with_header(lab, target=f"{lab.path}?{name}={_token(lab)}")), name)


@IDENTITY.law(
    clause="RFC 9110 §5.3; docs/security.md 7",
    expected="each is refused",
    severity=Severity.HARDENING,
    needs=_TOKENS | {Need.DIRECT},
    strict=True,
)
def one_credential(lab: Lab) -> Steps[None]:
    """A request with two credentials is refused: two readers could take it for two callers."""
    right = f"Bearer {_token(lab)}"
    for example, values in (("right and wrong", (right, "Bearer x")), ("wrong and right", ("Bearer x", right))):
        refused((yield from _with_header(lab, *values)), example)


@IDENTITY.law(
    clause="docs/security.md 13; RFC 9110 §10.1.1",
    expected="status 401 with a challenge, before the body and without 100 Continue",
    severity=Severity.HARDENING,
    needs={Need.AUTH, Need.BYTES},
    strict=True,
)
def refusals_before_the_body(lab: Lab) -> Steps[None]:
    """A call without a token, or with an unknown one, is refused before its body arrives."""
    for example, token, headers in (
        ("no token", None, []),
        ("an unknown token", lab.fresh(), []),
        ("no token, Expect: 100-continue", None, [("Expect", "100-continue")]),
    ):
        body = to_body(lab.rpc(lab.envelope()))
        request = lab.post_request(body, headers=headers, caller=Caller(lab.caller.urn, token))
        got = yield from SendBytes((request.to_bytes().removesuffix(body),), answers=1)
        check(not got.raw.startswith(b"HTTP/1.1 100"), "the answer begins with 100 Continue", example)
        refused(got.first, example, statuses=[401])
        check(got.first.header("www-authenticate"), f"{got.first}, without WWW-Authenticate", example)


@IDENTITY.law(
    clause="RFC 6750 §3.1",
    expected="no code without a credential, invalid_token for an unknown one, invalid_request for a malformed one",
    severity=Severity.SHOULD,
    needs={Need.AUTH},
    strict=True,
)
def challenges_say_why(lab: Lab) -> Steps[None]:
    """The challenge says whether a token is wrong or the credential is malformed."""
    for example, values, code in (
        ("no credential", (), ""),
        ("an unknown token", ("Bearer conform-nobody-issued-this",), "invalid_token"),
        ("a malformed one", ("Bearer two words",), "invalid_request"),
    ):
        answer = yield from _with_header(lab, *values)
        challenge = answer.header("www-authenticate") or ""
        check(challenge, f"{answer}, without WWW-Authenticate", example)
        check(code in challenge if code else "error=" not in challenge, f"WWW-Authenticate: {challenge}", example)


@IDENTITY.law(clause="docs/security.md 7, 11", expected="status 403", needs=_TOKENS, strict=True)
def another_sender_is_forbidden(lab: Lab) -> Steps[None]:
    """An envelope in another agent's name is answered 403, so that proxies and limiters see it."""
    refused((yield from lab.send(lab.envelope(sender="urn:asap:agent:somebody-else"))), statuses=[403])


@IDENTITY.law(
    clause="docs/security.md 7", expected="it's refused, and the first caller's token isn't enough",
    needs=_TOKENS | {Need.OTHER},
)  # fmt: skip
def two_callers(lab: Lab) -> Steps[None]:
    """One caller can't send in the other's name."""
    other = lab.second_caller()
    refused((yield from lab.send(lab.envelope(caller=other), caller=lab.caller)), "the first as the second")
    refused((yield from lab.send(lab.envelope(), caller=other)), "the second as the first")


_MOMENT: Final = 0.3
_PAGE: Final = "https://page.example"


def _from_page(lab: Lab, origin: str, host: str | None = None) -> Steps[None]:
    headers = [("Origin", origin), *([] if host is None else [("Host", host)])]
    answer = yield from lab.call(lab.rpc(lab.envelope()), headers=headers)
    refused(answer, f"Origin {origin}, Host {host or lab.host}", statuses=[403])


@IDENTITY.law(clause="docs/security.md 52", expected="status 403", needs={Need.SKILL}, strict=True)
def foreign_pages(lab: Lab) -> Steps[None]:
    """A web page of another origin can't call the agent."""
    for origin in ("https://page.example", "http://page.example:8000", f"http://{lab.host}.page.example"):
        yield from _from_page(lab, origin)


@IDENTITY.law(clause="docs/security.md 52", expected="status 403", needs={Need.SKILL}, strict=True)
def pages_without_an_origin(lab: Lab) -> Steps[None]:
    """A page whose origin is hidden (`Origin: null`) can't call the agent."""
    yield from _from_page(lab, "null")


@IDENTITY.law(clause="docs/security.md 52", expected="status 403", needs={Need.SKILL, Need.DIRECT}, strict=True)
def rebound_pages(lab: Lab) -> Steps[None]:
    """A page whose name was led to the agent's address (DNS rebinding) can't call the agent."""
    yield from _from_page(lab, "http://page.example", "page.example")
    yield from _from_page(lab, "http://page.example:8000", "page.example:8000")
    # A page of this machine, or of the agent's own origin, but another name in Host.
    yield from _from_page(lab, "http://localhost", "page.example")
    yield from _from_page(lab, f"http://{lab.host}", "page.example")


@IDENTITY.law(
    clause="docs/security.md 52; Fetch §4.8", expected="another status than 2xx, or no Access-Control-Allow-Origin",
    severity=Severity.HARDENING, strict=True,
)  # fmt: skip
def preflights(lab: Lab) -> Steps[None]:
    """A browser that asks first (a preflight) isn't told that a foreign page may call."""
    asked = [
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "authorization,content-type"),
    ]
    for origin in (_PAGE, "null"):
        answer = yield from lab.fetch(lab.request("OPTIONS", lab.path, headers=[("Origin", origin), *asked]))
        # A browser goes on only after a status that says "ok".
        is_ok = answer.status is not None and answer.status // 100 == 2  # noqa: PLR2004 - HTTP's
        check(not is_ok or not _may_read(answer, origin), _allows(answer), f"Origin {origin}")


def _may_read(answer: Answer, origin: str) -> bool:
    """Whether a browser lets a page of this origin read the answer (Fetch, CORS check)."""
    return answer.header("access-control-allow-origin") in (origin, "*")


def _allows(answer: Answer) -> str:
    return f"{answer}, Access-Control-Allow-Origin: {answer.header('access-control-allow-origin')}"


@IDENTITY.law(
    clause="docs/security.md 52",
    expected="no Access-Control-Allow-Origin for the page",
    severity=Severity.HARDENING,
    needs={Need.SKILL},
    strict=True,
)
def pages_read_nothing(lab: Lab) -> Steps[None]:
    """No answer and no document may be read by a page whose origin isn't listed."""
    for example, origin in (("another page", _PAGE), ("a page of this machine", "http://localhost:1"), ("no page", "")):
        headers = [("Origin", origin)] if origin else []
        for path in (MANIFEST_PATH, HEALTH_PATH):
            answer = yield from lab.get(path, headers=headers)
            check(not _may_read(answer, origin), _allows(answer), f"{example}, {path}")
        for name, document in (("a call", lab.rpc(lab.envelope())), ("a malformed call", {})):
            answer = yield from lab.call(document, headers=headers)
            check(not _may_read(answer, origin), _allows(answer), f"{example}, {name}")


@IDENTITY.law(clause="docs/security.md 7", expected="it's refused, or there's no such path", needs=_TOKENS, strict=True)
def streams_need_a_token(lab: Lab) -> Steps[None]:
    """The endpoint for streams requires a token too."""
    body = to_body(lab.rpc(lab.envelope()))
    answer = yield from lab.fetch(lab.request("POST", f"{lab.path}/stream", body=body))
    refused(answer, statuses=[401, 403, 404, 405])


@IDENTITY.law(
    clause="docs/security.md 7",
    expected="the second one is refused: each request has a credential of its own",
    needs={Need.SKILL, Need.AUTH, Need.BYTES},
)
def each_request_authenticates(lab: Lab) -> Steps[None]:
    """A request without a token is refused, also on a connection that has carried one."""
    first = lab.post_request(to_body(lab.rpc(lab.envelope())), close=False).to_bytes()
    bare = lab.post_request(to_body(lab.rpc(lab.envelope())), caller=Caller(lab.caller.urn)).to_bytes()
    got = yield from SendBytes((first, bare), answers=2)
    if len(got.answers) < 2:  # noqa: PLR2004 - both requests'
        raise LawNotTried("the agent ends the connection after one request")
    accepted(got.answers[0], "with a token")
    refused(got.answers[1], "without")
    if lab.other is not None and lab.other.token is not None:
        second = lab.post_request(to_body(lab.rpc(lab.envelope(caller=lab.other))), caller=lab.other).to_bytes()
        first = lab.post_request(to_body(lab.rpc(lab.envelope())), close=False).to_bytes()
        got = yield from SendBytes((first, _MOMENT, second), answers=2)
        check(len(got.answers) == 2, f"{len(got.answers)} answers", "two callers")  # noqa: PLR2004 - both requests'
        for example, answer in zip(("the first of two callers", "the second of two callers"), got.answers, strict=True):
            accepted(answer, example)
