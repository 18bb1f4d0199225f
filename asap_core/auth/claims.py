"""What a token must say to let its bearer in: by whom, for whom, from when until when, as which agent, to do what.

Rule of this module: what isn't there isn't assumed. A token without an end, an audience or an agent is refused.
"""

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, assert_never

from attrs import Attribute, field, frozen, validators

from asap_core.auth.bearer import is_scope
from asap_core.auth.dpop_server import DpopPolicy, ProofRequirement
from asap_core.auth.jws import Algorithm, Jws, decode_base64url
from asap_core.auth.principal import Authenticated, InsufficientScope
from asap_core.clock import WallTime
from asap_core.wire.json import NotJson, read_json
from asap_core.wire.rules import URN, Rule, integer, number

_MAX_DEPTH: Final = 16
_SHA256: Final = 32


@frozen
class ByClaim:
    """The agent is what this claim says: its URN. `sub` where the provider's subjects are URNs."""

    name: str


def _read_only(agents: object) -> Mapping[str, str]:
    return MappingProxyType(dict(agents) if isinstance(agents, Mapping) else {})


@frozen
class BySubject:
    """The agent that's listed for the token's subject; nobody else is let in.

    `claim` is what says who that is: `sub`, or what takes its place where a provider leaves that out, as some do for
    clients (`client_id`).
    """

    agents: Mapping[str, str] = field(converter=_read_only, repr=False)
    claim: str = "sub"

    def __attrs_post_init__(self) -> None:
        if not self.agents or not all(map(URN.fits, self.agents.values())):
            raise ValueError(f"expected at least one subject, each with {URN.expected}")


AGENT: Final = Rule(
    "ByClaim('sub'), or BySubject({'client-7': 'urn:asap:agent:a'})",
    lambda value: isinstance(value, ByClaim | BySubject),
)


def names(values: object) -> frozenset[Any]:
    """One text, or several, as a set."""
    return frozenset([values] if isinstance(values, str) or not isinstance(values, Iterable) else values)


def are_names(_policy: object, attribute: "Attribute[Any]", values: frozenset[Any] | None) -> None:
    """Validate that they're texts, and at least one."""
    if values is not None and not (values and all(isinstance(each, str) for each in values)):
        raise ValueError(f"{attribute.name}: expected whom tokens are for, as text or a list of texts")


def scopes(values: object) -> frozenset[str]:
    """One scope, or several, as a set. Raises ValueError for what can't be one."""
    found = names(values)
    if not all(map(is_scope, found)):
        raise ValueError("scopes: expected words of visible ASCII characters without quotes (RFC 6749 §3.3)")
    return found


def _dpop(value: Any) -> Any:
    return value if isinstance(value, DpopPolicy) else DpopPolicy(proofs=value)


@frozen(kw_only=True)
class TokenPolicy:
    """Which tokens are good here. Seconds throughout."""

    issuer: str = field(
        validator=Rule("the issuer's URL, as text", lambda value: isinstance(value, str) and value != "")
    )
    """Compared character by character, in tokens and in the provider's own metadata (RFC 8414 §3.3)."""
    audience: frozenset[str] = field(converter=names, validator=are_names)
    """Whom tokens must be for: one of these. A token for another service isn't one for us (RFC 8725 §3.9)."""
    agent: ByClaim | BySubject = field(validator=AGENT)
    """How a token says which agent its bearer is."""
    scopes: frozenset[str] = field(default=frozenset(), converter=scopes)
    """What a token must allow, all of it; for want of it a request is answered 403."""
    algorithms: frozenset[Algorithm] = field(default=frozenset(Algorithm), converter=frozenset)
    """Those that tokens may be signed with."""
    dpop: DpopPolicy = field(factory=DpopPolicy, converter=_dpop)
    """Which proofs are good, and whether they're required: a `DpopPolicy`, or one word of `ProofRequirement`."""
    types: frozenset[str | None] = field(default=frozenset({None, "jwt", "at+jwt"}), converter=frozenset)
    """The `typ` that tokens may have, in lower case; None is to have none. Other kinds of JWT, such as DPoP proofs and
    logout tokens, say in it what they are (RFC 8725 §3.11). `{"at+jwt"}` where the provider follows RFC 9068."""
    leeway: float = field(default=30.0, validator=number(least=0, most=300))
    """How far clocks may differ: the tolerance that envelopes have."""
    fresh_for: float = field(default=300.0, validator=[number(), validators.gt(0)])
    """How long keys are used before they're asked for again: after so long a key that the provider took back is out."""
    stale_for: float = field(default=3_600.0, validator=number(least=0))
    """How much longer they're used while the provider can't be reached. After that nobody is let in."""
    cool_down: float = field(default=30.0, validator=[number(), validators.gt(0)])
    """Unknown keys make us ask again at most once in so long, and a provider that fails is left alone for as long."""
    patience: float = field(default=1.0, validator=[number(), validators.gt(0)])
    """How long a request waits for fresh keys where older ones would do."""
    max_known: int = field(default=10_000, validator=integer(least=1))
    """Tokens remembered as verified, some 500 bytes each."""


@frozen
class Accepted:
    """A token that lets its bearer in, until `until` of wall time; leeway is in it.

    `bound` is the thumbprint of the key that it's good with, and with that only; None: with none.
    """

    principal: Authenticated
    until: WallTime
    bound: str | None = None


@frozen
class Rejected:
    """A token that doesn't. `expected` says what one would have; for logs, nothing of the token is in it."""

    expected: str


def judge_claims(
    jws: Jws, policy: TokenPolicy, *, wall: WallTime, proof_key: str | None = None
) -> Accepted | InsufficientScope | Rejected:
    """Judge what a token says, its signature being good. `proof_key` is the key that a proof came by. Never raises."""
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
    claims: Mapping[str, Any], agent: ByClaim | BySubject, needed: frozenset[str], bound: str | None = None
) -> Authenticated | InsufficientScope | Rejected:
    """Whom these claims stand for, with what they allow: at least `needed`; `bound` is the key they need."""
    urn = _agent_of(claims, agent)
    if urn is None:
        return Rejected("a token of an agent that may call")
    held = _scopes_of(claims)
    if held is None:
        return Rejected("a scope that is text")
    return Authenticated(urn, held, bound) if needed <= held else InsufficientScope(needed)


def _read_claims(payload: bytes) -> dict[str, Any] | Rejected:
    try:
        claims = read_json(payload, max_depth=_MAX_DEPTH)
    except NotJson as error:
        return Rejected(f"claims in JSON: {error.expected}")
    return claims if isinstance(claims, dict) else Rejected("claims that are an object")


def _wrong_origin(jws: Jws, claims: dict[str, Any], policy: TokenPolicy) -> str | None:
    if jws.typ not in policy.types:
        return "a token whose typ is an access token's"
    if claims.get("iss") != policy.issuer:
        return "iss to be the issuer"
    audience = claims.get("aud")
    named = audience if isinstance(audience, list) else [audience]
    if not all(isinstance(each, str) for each in named) or policy.audience.isdisjoint(named):
        return "aud to name this agent"
    return None


def _scopes_of(claims: Mapping[str, Any]) -> frozenset[str] | None:
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


def _wrong_confirmation(claims: dict[str, Any]) -> str | None:
    if "cnf" not in claims:
        return None
    confirmation = claims["cnf"]
    # RFC 7800 §3.1: it's good only for who shows what it says; all else that may be there we can't have shown to us.
    if not isinstance(confirmation, dict) or set(confirmation) != {"jkt"} or not _is_thumbprint(confirmation["jkt"]):
        return "in cnf a jkt, and nothing else"
    return None


def _bound_to(claims: dict[str, Any]) -> str | None:
    """The thumbprint in `cnf` (RFC 9449 §6.1); None without one."""
    thumbprint: str | None = claims["cnf"]["jkt"] if "cnf" in claims else None
    return thumbprint


def _is_thumbprint(value: object) -> bool:
    decoded = decode_base64url(value.encode("ascii")) if isinstance(value, str) and value.isascii() else None
    return decoded is not None and len(decoded) == _SHA256


def wrong_key(bound: str | None, proof_key: str | None, policy: DpopPolicy) -> str | None:
    """What's wrong with a token bound to one key, or none, that came with a proof by another, or none."""
    if bound is None and policy.proofs is ProofRequirement.REQUIRED:
        return "a token that's bound to a key, with proof of it"
    if bound == proof_key:
        return None
    return "a bearer token, without a proof" if bound is None else "a proof by the key in cnf"


def _wrong_time(claims: dict[str, Any], policy: TokenPolicy, *, wall: WallTime) -> str | None:
    # RFC 8725 has no word on tokens without end; whoever gets hold of one keeps it (fault 18).
    if not is_date(claims.get("exp")) or claims["exp"] + policy.leeway <= wall:
        return "exp, in the future"
    for name in ("nbf", "iat"):
        if name in claims and (not is_date(claims[name]) or claims[name] - policy.leeway > wall):
            return f"{name}, if there, in the past"
    return None


# Year 9999: later ones are sentinels or milliseconds, and a token for ever is one without end.
_LAST_DATE: Final = 253_402_300_800


def is_date(value: object) -> bool:
    """Whether it's a date that a token may have: from 1970 to the year 9999."""
    # RFC 7519 §2, NumericDate. bool is an int to Python only.
    return type(value) in (int, float) and 0 < value < _LAST_DATE and math.isfinite(value)  # type: ignore[operator,arg-type] # a number by its type


def _agent_of(claims: Mapping[str, Any], rule: ByClaim | BySubject) -> str | None:
    """Which agent these claims are of; None where they're nobody's who may call."""
    match rule:
        case ByClaim(name):
            urn = claims.get(name)
            return urn if URN.fits(urn) else None
        case BySubject(agents, claim):
            subject = claims.get(claim)
            return agents.get(subject) if isinstance(subject, str) else None
        case _:
            assert_never(rule)
