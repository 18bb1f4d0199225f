"""What a provider says of a token that only it can read (RFC 7662 §2.2), and which answers let a bearer in."""

from enum import Enum
from typing import Any, Final

from attrs import field, frozen, validators

from asap_core.auth.claims import (
    AGENT,
    Accepted,
    ByClaim,
    BySubject,
    Rejected,
    are_names,
    bearer_of,
    is_date,
    names,
    scopes,
)
from asap_core.auth.principal import Authenticated, InsufficientScope
from asap_core.clock import WallTime
from asap_core.wire.json import NotJson, read_json
from asap_core.wire.rules import TEXT, absent_or, integer, number

_MAX_DEPTH: Final = 16
_OK: Final = 200
_UNAUTHORIZED: Final = 401
# What providers and filters before them answer a token that's too long, or has a form that they don't expect.
_ODD: Final = frozenset({_OK, 400, 403, 413, 414, 415, 422, 431})


def _names(values: object) -> frozenset[str] | None:
    return None if values is None else names(values)


@frozen(kw_only=True)
class IntrospectionPolicy:
    """Which answers let a bearer in, and for how long they're believed. Seconds throughout."""

    audience: frozenset[str] | None = field(converter=_names, validator=are_names)
    """Whom tokens must be for: one of these. None is to leave it to the provider, where it answers for ours alone."""
    agent: ByClaim | BySubject = field(validator=AGENT)
    """How an answer says which agent the bearer is."""
    issuer: str | None = field(default=None, validator=absent_or(TEXT))
    """Compared character by character, where the answer says who issued the token."""
    scopes: frozenset[str] = field(default=frozenset(), converter=scopes)
    """What a token must allow, all of it; for want of it a request is answered 403."""
    leeway: float = field(default=30.0, validator=number(least=0, most=300))
    """How far clocks may differ: the tolerance that envelopes have."""
    most: float = field(default=60.0, validator=[number(), validators.gt(0)])
    """How long a good answer is believed: a token that's taken back is out after so long. RFC 7662 §4 warns of more."""
    most_refused: float = field(default=10.0, validator=[number(), validators.gt(0)])
    """How long "not active" is: a token that's new to one half of a provider is known to the other soon."""
    max_kept: int = field(default=10_000, validator=integer(least=1))
    """Good answers kept, some 500 bytes each; of bad ones as many, so that nobody's guesses push them out."""
    max_asked: int = field(default=100, validator=integer(least=1))
    """Questions under way at once. Tokens that need one more are told to come again (503).

    A fifth of them is for tokens that were good before: guesses don't take the places of callers.
    """


@frozen
class ActiveToken:
    """What the provider says of a token that's active."""

    claims: dict[str, Any] = field(repr=False)


@frozen
class InactiveToken:
    """The provider doesn't know the token, or it's over, or taken back."""


class FailureCause(Enum):
    """What there's no answer for."""

    TOKEN = "token"  # noqa: S105 - no password
    """For this token: it's odd to the provider, or to a filter before it."""
    EITHER = "either"
    """For the token, or for the provider's trouble; nobody can tell (500, 429, no answer in time)."""
    PROVIDER = "provider"
    """For the provider's trouble, or ours: there would have been none for any token."""


@frozen
class IntrospectionFailed:
    """There's no answer; `expected` says what one would be."""

    expected: str
    cause: FailureCause = FailureCause.EITHER


def read_introspection(status: int, body: bytes) -> ActiveToken | InactiveToken | IntrospectionFailed:
    """Read what an introspection endpoint answered (RFC 7662 §2.2). Never raises, whatever the bytes.

    By §2.3 any other status than 200 is about us, not about the token; providers have them for odd tokens too.
    """
    try:
        value = read_json(body, max_depth=_MAX_DEPTH)
    except NotJson as error:
        if status == _OK:
            return IntrospectionFailed(f"an answer in JSON: {error.expected}", FailureCause.TOKEN)
        value = None
    if status != _OK:
        return IntrospectionFailed(f"an answer with HTTP 200, not HTTP {status}", _cause_of(status, value))
    active = value.get("active") if isinstance(value, dict) else None
    # §2.2: a boolean. What else is true to a language is nobody's permission.
    if type(active) is not bool:
        return IntrospectionFailed("an object with active, true or false", FailureCause.TOKEN)
    return ActiveToken(value) if active else InactiveToken()


def _cause_of(status: int, value: Any) -> FailureCause:
    # RFC 6749 §5.2: it doesn't know this client, whatever the token is.
    if status == _UNAUTHORIZED and isinstance(value, dict) and value.get("error") == "invalid_client":
        return FailureCause.PROVIDER
    return FailureCause.TOKEN if status in _ODD else FailureCause.EITHER


def judge_introspection(
    answer: ActiveToken, policy: IntrospectionPolicy, *, wall: WallTime
) -> Accepted | InsufficientScope | Rejected:
    """Judge what the provider says of an active token: `until` is policy's end, or the token's. Never raises."""
    claims = answer.claims
    wrong = _wrong_origin(claims, policy) or _wrong_time(claims, policy, wall=wall)
    if wrong is not None:
        return Rejected(wrong)
    bearer = bearer_of(claims, policy.agent, policy.scopes)
    if not isinstance(bearer, Authenticated):
        return bearer
    until = wall + policy.most
    if "exp" in claims:
        until = min(until, claims["exp"] + policy.leeway)
    return Accepted(bearer, WallTime(until))


def _wrong_origin(claims: dict[str, Any], policy: IntrospectionPolicy) -> str | None:
    if policy.issuer is not None and claims.get("iss", policy.issuer) != policy.issuer:
        return "iss, if there, to be the issuer"
    if policy.audience is not None:
        audience = claims.get("aud")
        named = audience if isinstance(audience, list) else [audience]
        if not all(isinstance(each, str) for each in named) or policy.audience.isdisjoint(named):
            return "aud to name this agent"
    kind = claims.get("token_type", "bearer")
    # RFC 7662 §4: an endpoint may answer for other kinds of token too, which nobody may call with.
    if not isinstance(kind, str) or kind.lower() != "bearer":
        return "a bearer token"
    # RFC 7800 §3.1: it's good only for who holds a key, and a bearer's request shows none.
    return "a bearer token, without cnf" if "cnf" in claims else None


def _wrong_time(claims: dict[str, Any], policy: IntrospectionPolicy, *, wall: WallTime) -> str | None:
    # Without one it's good for as long as an answer is believed: the provider is asked again then.
    if "exp" in claims and (not is_date(claims["exp"]) or claims["exp"] + policy.leeway <= wall):
        return "exp, if there, in the future"
    for name in ("nbf", "iat"):
        if name in claims and (not is_date(claims[name]) or claims[name] - policy.leeway > wall):
            return f"{name}, if there, in the past"
    return None
