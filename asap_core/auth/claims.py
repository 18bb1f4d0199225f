"""The claims that a token must have: issuer, audience, validity period, agent and scopes.

Rule of this module: a missing claim is never assumed. A token without an end, an audience or an agent is refused.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, TypeGuard, assert_never

from attrs import field, frozen, validators

from asap_core.arguments import NamedField
from asap_core.auth.bearer import is_scope
from asap_core.auth.dpop_server import DpopPolicy, ProofRequirement
from asap_core.auth.jws import Algorithm, Jws, algorithms_of, decode_base64url
from asap_core.auth.principal import Authenticated, InsufficientScope
from asap_core.clock import WallTime
from asap_core.wire.json import NotJson, read_json
from asap_core.wire.json_values import Json, JsonObject
from asap_core.wire.rules import NONEMPTY, URN, Rule, integer, number

_MAX_DEPTH: Final = 16
_SHA256: Final = 32


@frozen
class ByClaim:
    """The agent's URN is the value of this claim: `sub`, if the provider's subjects are URNs."""

    name: str = field(validator=NONEMPTY)


def _read_only(agents: object) -> Mapping[str, str]:
    return MappingProxyType(dict(agents) if isinstance(agents, Mapping) else {})


@frozen
class BySubject:
    """The agent is looked up by the token's subject; a subject that isn't listed is refused.

    agents: subject to agent URN
    claim: the claim that has the subject: `sub`, or `client_id` for providers that omit `sub` for clients

    Raises ValueError if no subject is listed, or an agent isn't a URN.
    """

    agents: Mapping[str, str] = field(converter=_read_only, repr=False)
    claim: str = field(default="sub", validator=NONEMPTY)

    def __attrs_post_init__(self) -> None:
        if not self.agents or "" in self.agents or not all(map(URN.fits, self.agents.values())):
            raise ValueError(f"expected at least one subject, each with {URN.expected}")


AGENT: Final = Rule(
    "ByClaim('sub'), or BySubject({'client-7': 'urn:asap:agent:a'})",
    lambda value: isinstance(value, ByClaim | BySubject),
)


def text_set(values: object) -> frozenset[str]:
    """Return one text, or several, as a set."""
    return frozenset([values] if isinstance(values, str) or not isinstance(values, Iterable) else values)


def check_audience(_policy: object, attribute: NamedField, values: frozenset[str] | None) -> None:
    """Raise ValueError unless there is at least one value and all are texts."""
    if values is not None and not (values and all(map(NONEMPTY.fits, values))):
        raise ValueError(f"{attribute.name}: expected whom tokens are for, as text or a list of texts")


def scope_set(values: object) -> frozenset[str]:
    """Return one scope, or several, as a set. Raises ValueError for an invalid one."""
    found = text_set(values)
    if not all(map(is_scope, found)):
        raise ValueError("scopes: expected words of visible ASCII characters without quotes (RFC 6749 §3.3)")
    return found


def _dpop(value: DpopPolicy | ProofRequirement | str) -> DpopPolicy:
    return value if isinstance(value, DpopPolicy) else DpopPolicy(proofs=value)


@frozen(kw_only=True)
class TokenPolicy:
    """Which tokens are accepted. Durations are in seconds."""

    issuer: str = field(
        validator=Rule("the issuer's URL, as text", lambda value: isinstance(value, str) and value != "")
    )
    """Compared character by character, in tokens and in the provider's metadata (RFC 8414 §3.3)."""
    audience: frozenset[str] = field(converter=text_set, validator=check_audience)
    """A token must name one of these in `aud`: tokens for other services are refused (RFC 8725 §3.9)."""
    agent: ByClaim | BySubject = field(validator=AGENT)
    """How the agent is found from a token's claims."""
    scopes: frozenset[str] = field(default=frozenset(), converter=scope_set)
    """Scopes that a token must have, all of them; otherwise the request is answered 403."""
    algorithms: frozenset[Algorithm] = field(default=frozenset(Algorithm), converter=algorithms_of)
    """The algorithms that tokens may be signed with."""
    dpop: DpopPolicy = field(factory=DpopPolicy, converter=_dpop)
    """Which proofs are accepted, and whether they're required: a `DpopPolicy`, or a value of `ProofRequirement`."""
    types: frozenset[str | None] = field(default=frozenset({None, "jwt", "at+jwt"}), converter=frozenset)
    """The values of `typ` that tokens may have, in lower case; None stands for a missing one. Other kinds of JWT, such
    as DPoP proofs and logout tokens, have a `typ` of their own (RFC 8725 §3.11). `{"at+jwt"}` if the provider follows
    RFC 9068."""
    leeway: float = field(default=30.0, validator=number(least=0, most=300))
    """How far clocks may differ: the same tolerance as for envelopes."""
    fresh_for: float = field(default=300.0, validator=[number(), validators.gt(0)])
    """How long keys are used before they're fetched again, and so how long a withdrawn key may still count."""
    stale_for: float = field(default=3_600.0, validator=number(least=0))
    """How much longer they're used while the provider can't be reached. After that all tokens are answered 503."""
    cool_down: float = field(default=30.0, validator=[number(), validators.gt(0)])
    """The shortest time between two fetches because of unknown keys, and after a failed one."""
    patience: float = field(default=1.0, validator=[number(), validators.gt(0)])
    """How long a request waits for fresh keys if older ones are still usable."""
    max_known: int = field(default=10_000, validator=integer(least=1))
    """How many verified tokens are remembered, some 500 bytes each."""


@frozen
class Accepted:
    """A token that is accepted.

    until: when it ends, leeway included
    bound: the thumbprint of the key that it is bound to; None: it is a bearer token
    """

    principal: Authenticated
    until: WallTime
    bound: str | None = None


@frozen
class Rejected:
    """A token that is refused. `expected` says what an acceptable one has, for logs; nothing of the token is in it."""

    expected: str


def judge_claims(
    jws: Jws, policy: TokenPolicy, *, wall: WallTime, proof_key: str | None = None
) -> Accepted | InsufficientScope | Rejected:
    """Judge the claims of a token whose signature holds. Never raises.

    proof_key: the thumbprint of the key whose proof came with it; None: no proof came
    """
    claims = _read_claims(jws.payload)
    if isinstance(claims, Rejected):
        return claims
    wrong = (
        _wrong_origin(jws, claims, policy)
        or _wrong_time(claims, policy, wall=wall)
        or _wrong_confirmation(claims)
        or wrong_key(bound := _bound_to(claims), proof_key, policy.dpop)
    )
    if wrong is not None:
        return Rejected(wrong)
    bearer = bearer_of(claims, policy.agent, policy.scopes, bound)
    if not isinstance(bearer, Authenticated):
        return bearer
    return Accepted(bearer, WallTime(claims["exp"] + policy.leeway), bound)


def bearer_of(
    claims: JsonObject, agent: ByClaim | BySubject, needed: frozenset[str], bound: str | None = None
) -> Authenticated | InsufficientScope | Rejected:
    """Return the agent that these claims stand for, with its scopes, if they include all of `needed`."""
    urn = _agent_of(claims, agent)
    if urn is None:
        return Rejected("a token of an agent that may call")
    held = _scopes_of(claims)
    if held is None:
        return Rejected("a scope that is text")
    return Authenticated(urn, held, bound) if needed <= held else InsufficientScope(needed)


def _read_claims(payload: bytes) -> JsonObject | Rejected:
    try:
        claims = read_json(payload, max_depth=_MAX_DEPTH)
    except NotJson as error:
        return Rejected(f"claims in JSON: {error.expected}")
    return claims if isinstance(claims, dict) else Rejected("claims that are an object")


def _wrong_origin(jws: Jws, claims: Mapping[str, Json], policy: TokenPolicy) -> str | None:
    if jws.typ not in policy.types:
        return "a token whose typ is an access token's"
    if claims.get("iss") != policy.issuer:
        return "iss to be the issuer"
    audience = claims.get("aud")
    named = audience if isinstance(audience, list) else [audience]
    if not all(isinstance(each, str) for each in named) or policy.audience.isdisjoint(named):
        return "aud to name this agent"
    return None


def _scopes_of(claims: JsonObject) -> frozenset[str] | None:
    """What a token allows; None if that can't be read.

    RFC 9068 §2.2.3 and RFC 7662 §2.2: words in one text. Some providers write a list of texts, and null for none; Okta
    and Microsoft call it `scp`.
    """
    said = claims.get("scope")
    said = claims.get("scp") if said is None else said
    texts = said if isinstance(said, list) else ["" if said is None else said]
    if not all(isinstance(each, str) for each in texts):
        return None
    return frozenset(" ".join(texts).split(" ")) - {""}


def _wrong_confirmation(claims: Mapping[str, Json]) -> str | None:
    if "cnf" not in claims:
        return None
    confirmation = claims["cnf"]
    # RFC 7800 §3.1: the bearer must prove what `cnf` says. We can verify `jkt` only.
    if not isinstance(confirmation, dict) or set(confirmation) != {"jkt"} or not _is_thumbprint(confirmation["jkt"]):
        return "in cnf a jkt, and nothing else"
    return None


def _bound_to(claims: JsonObject) -> str | None:
    """Return the thumbprint in `cnf` (RFC 9449 §6.1), or None without one."""
    thumbprint: str | None = claims["cnf"]["jkt"] if "cnf" in claims else None
    return thumbprint


def _is_thumbprint(value: object) -> bool:
    decoded = decode_base64url(value.encode("ascii")) if isinstance(value, str) and value.isascii() else None
    return decoded is not None and len(decoded) == _SHA256


def wrong_key(bound: str | None, proof_key: str | None, policy: DpopPolicy) -> str | None:
    """Return what is wrong if a token bound to key `bound` came with a proof by `proof_key`; None if nothing is."""
    if bound is None and policy.proofs is ProofRequirement.REQUIRED:
        return "a token that's bound to a key, with proof of it"
    if bound == proof_key:
        return None
    return "a bearer token, without a proof" if bound is None else "a proof by the key in cnf"


def _wrong_time(claims: Mapping[str, Json], policy: TokenPolicy, *, wall: WallTime) -> str | None:
    # RFC 8725 doesn't mention tokens without an end; a stolen one would be good for ever.
    if not is_date(end := claims.get("exp")) or end + policy.leeway <= wall:
        return "exp, in the future"
    for name in ("nbf", "iat"):
        if name in claims and (not is_date(begin := claims[name]) or begin - policy.leeway > wall):
            return f"{name}, if there, in the past"
    return None


# Year 9999: a later date is a sentinel or counts milliseconds, so that the token has no real end.
_LAST_DATE: Final = 253_402_300_800


def is_date(value: object) -> TypeGuard[float]:
    """Whether `value` is a date from 1970 to the year 9999."""
    # RFC 7519 §2, NumericDate. In Python a bool is an int. NaN and infinity aren't between the bounds.
    return (type(value) is int or type(value) is float) and 0 < value < _LAST_DATE


def _agent_of(claims: JsonObject, rule: ByClaim | BySubject) -> str | None:
    """Return the agent's URN, or None if the claims name no agent that may call."""
    match rule:
        case ByClaim(name):
            urn = claims.get(name)
            return urn if URN.fits(urn) else None
        case BySubject(agents, claim):
            subject = claims.get(claim)
            return agents.get(subject) if isinstance(subject, str) else None
        case _:
            assert_never(rule)
