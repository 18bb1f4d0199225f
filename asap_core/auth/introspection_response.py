"""Reading and judging introspection responses (RFC 7662 §2.2)."""

from collections.abc import Mapping
from enum import Enum
from typing import Final

from attrs import field, frozen, validators

from asap_core.auth.claims import (
    AGENT,
    Accepted,
    ByClaim,
    BySubject,
    Rejected,
    bearer_of,
    check_audience,
    is_date,
    scope_set,
    text_set,
)
from asap_core.auth.principal import Authenticated, InsufficientScope
from asap_core.clock import WallTime
from asap_core.wire.json import NotJson, read_json
from asap_core.wire.json_values import Json, JsonObject
from asap_core.wire.rules import NONEMPTY, absent_or, integer, number

_MAX_DEPTH: Final = 16
_OK: Final = 200
_UNAUTHORIZED: Final = 401
# How providers, and filters in front of them, answer a token that is too long or of an unexpected form.
_TOKEN_STATUSES: Final = frozenset({_OK, 400, 403, 413, 414, 415, 422, 431})


def _audience(values: object) -> frozenset[str] | None:
    return None if values is None else text_set(values)


@frozen(kw_only=True)
class IntrospectionPolicy:
    """Which responses are accepted, and for how long they are kept. Durations are in seconds."""

    audience: frozenset[str] | None = field(converter=_audience, validator=check_audience)
    """A response must name one of these in `aud`. None: the provider answers for this agent's tokens alone."""
    agent: ByClaim | BySubject = field(validator=AGENT)
    """How the agent is found from a response."""
    issuer: str | None = field(default=None, validator=absent_or(NONEMPTY))
    """Compared character by character, if the response names the issuer."""
    scopes: frozenset[str] = field(default=frozenset(), converter=scope_set)
    """Scopes that a token must have, all of them; otherwise the request is answered 403."""
    leeway: float = field(default=30.0, validator=number(least=0, most=300))
    """How far clocks may differ: the same tolerance as for envelopes."""
    most: float = field(default=60.0, validator=[number(), validators.gt(0)])
    """How long "active" is kept, and so how long a revoked token may still count. RFC 7662 §4 warns of longer times."""
    most_refused: float = field(default=10.0, validator=[number(), validators.gt(0)])
    """How long "not active" is kept: a new token may take some seconds to reach all of a provider's servers."""
    max_kept: int = field(default=10_000, validator=integer(least=1))
    """How many good responses are kept, some 500 bytes each. Bad ones have a table of their own, of the same size, so
    that guessed tokens evict no good response."""
    max_asked: int = field(default=100, validator=integer(least=1))
    """How many tokens are asked about at once; one more is answered 503.

    A fifth of the places is reserved for tokens that were good before, so that guesses can't take them all.
    """


@frozen
class ActiveToken:
    """The provider's claims about a token that is active."""

    claims: JsonObject = field(repr=False)


@frozen
class InactiveToken:
    """The provider doesn't know the token, or it has expired or was revoked."""


class FailureCause(Enum):
    """What may be the reason that there is no answer."""

    TOKEN = "token"  # noqa: S105 - no password
    """The token: the provider, or a filter in front of it, finds it malformed."""
    EITHER = "either"
    """The token or the provider; it can't be told which (500, 429, no answer in time)."""
    PROVIDER = "provider"
    """The provider, or this agent: there would have been no answer for any token."""


@frozen
class IntrospectionFailed:
    """There is no usable answer; `expected` says what one has."""

    expected: str
    cause: FailureCause = FailureCause.EITHER


def read_introspection(status: int, body: bytes) -> ActiveToken | InactiveToken | IntrospectionFailed:
    """Read an introspection response (RFC 7662 §2.2). Never raises, whatever the bytes.

    By §2.3 another status than 200 is about this client, not about the token; but providers answer malformed tokens so.
    """
    try:
        value = read_json(body, max_depth=_MAX_DEPTH)
    except NotJson as error:
        if status == _OK:
            return IntrospectionFailed(f"an answer in JSON: {error.expected}", FailureCause.TOKEN)
        value = None
    if status != _OK:
        return IntrospectionFailed(f"an answer with HTTP 200, not HTTP {status}", _cause_of(status, value))
    # §2.2: a boolean. Other values that a language takes for true grant nothing.
    if not isinstance(value, dict) or type(active := value.get("active")) is not bool:
        return IntrospectionFailed("an object with active, true or false", FailureCause.TOKEN)
    return ActiveToken(value) if active else InactiveToken()


def _cause_of(status: int, value: Json) -> FailureCause:
    # RFC 6749 §5.2: the provider doesn't know this client, whatever the token is.
    if status == _UNAUTHORIZED and isinstance(value, dict) and value.get("error") == "invalid_client":
        return FailureCause.PROVIDER
    return FailureCause.TOKEN if status in _TOKEN_STATUSES else FailureCause.EITHER


def judge_introspection(
    answer: ActiveToken, policy: IntrospectionPolicy, *, wall: WallTime
) -> Accepted | InsufficientScope | Rejected:
    """Judge the claims about an active token. It is accepted until it ends, or for `policy.most`. Never raises."""
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


def _wrong_origin(claims: Mapping[str, Json], policy: IntrospectionPolicy) -> str | None:
    if policy.issuer is not None and claims.get("iss", policy.issuer) != policy.issuer:
        return "iss, if there, to be the issuer"
    if policy.audience is not None:
        audience = claims.get("aud")
        named = audience if isinstance(audience, list) else [audience]
        if not all(isinstance(each, str) for each in named) or policy.audience.isdisjoint(named):
            return "aud to name this agent"
    kind = claims.get("token_type", "bearer")
    # RFC 7662 §4: an endpoint may answer for other kinds of token too, such as refresh tokens.
    if not isinstance(kind, str) or kind.lower() != "bearer":
        return "a bearer token"
    # RFC 7800 §3.1: the bearer must prove to hold a key, and proofs aren't verified here.
    return "a bearer token, without cnf" if "cnf" in claims else None


def _wrong_time(claims: Mapping[str, Json], policy: IntrospectionPolicy, *, wall: WallTime) -> str | None:
    # Without `exp` it is accepted for as long as a response is kept; then the provider is asked again.
    if "exp" in claims and (not is_date(end := claims["exp"]) or end + policy.leeway <= wall):
        return "exp, if there, in the future"
    for name in ("nbf", "iat"):
        if name in claims and (not is_date(begin := claims[name]) or begin - policy.leeway > wall):
            return f"{name}, if there, in the past"
    return None
