"""Which token an agent is shown: what its client may ask a provider for, and what the agent's manifest says it takes.

Rule of this module: a manifest only ever narrows. It's the agent's own word, so it names no provider that a secret goes
to, and no scope that the client wasn't allowed by its user.
"""

from collections.abc import Collection
from typing import Any, Final

from attrs import Attribute, field, frozen

from asap_core.auth.bearer import is_scope
from asap_core.auth.client_credentials import ClientKey, ClientSecret
from asap_core.auth.dpop_client import ProofKey
from asap_core.auth.token_cache import TokenKey
from asap_core.net.urls import normal
from asap_core.wire.manifest import AuthScheme
from asap_core.wire.rules import TEXT, Rule, absent_or

# What manifests call a token that's sent in a header (RFC 6750, RFC 9449), and how it was come by.
_SCHEMES: Final = ("bearer", "dpop", "oauth2")
_TEXT: Final = absent_or(TEXT)


def _scopes(given: object) -> tuple[Any, ...]:
    if isinstance(given, str):
        return tuple(given.split())
    return tuple(given) if isinstance(given, Collection) else (given,)


def _are_scopes(_object: object, _attribute: "Attribute[Any]", scopes: tuple[Any, ...]) -> None:
    if not all(map(is_scope, scopes)):
        raise ValueError("scopes: expected words of visible ASCII characters without quotes (RFC 6749 §3.3)")


@frozen(kw_only=True)
class ClientCredentials:
    """How to get tokens for an agent: at which provider, as which client, for what (RFC 6749 §4.4).

    `issuer` is the provider, whose metadata says where its token endpoint is (RFC 8414); or `token_endpoint` says so.
    `scopes` is all that may be asked for: where an agent's manifest names scopes, those of them alone. `audience` is
    whom tokens are for, by the parameter that many providers have for it; `resource` the same as RFC 8707 has it. Give
    each agent its own, or it could show our token to another. With `dpop` tokens are bound to that key (RFC 9449), and
    useless without it. Raises ValueError where one of them can't be.
    """

    client: ClientSecret | ClientKey = field(
        validator=Rule("ClientSecret(…) or a ClientKey", lambda value: isinstance(value, ClientSecret | ClientKey))
    )
    issuer: str | None = field(default=None, validator=_TEXT)
    token_endpoint: str | None = field(default=None, validator=_TEXT)
    scopes: tuple[str, ...] = field(default=(), converter=_scopes, validator=_are_scopes)
    audience: str | None = field(default=None, validator=_TEXT)
    resource: str | None = field(default=None, validator=_TEXT)
    dpop: ProofKey | None = field(
        default=None,
        validator=Rule("a ProofKey, or None", lambda value: value is None or hasattr(value, "thumbprint")),
    )

    def __attrs_post_init__(self) -> None:
        if self.issuer is None and self.token_endpoint is None:
            raise ValueError("expected the issuer of tokens, or the URL of its token endpoint")

    @property
    def asked(self) -> str:
        """Who is asked for tokens, as it's shown and kept by."""
        return self.token_endpoint or self.issuer or ""

    @property
    def token_type(self) -> str:
        """What kind of token is got (RFC 6750 §4, RFC 9449 §5), and the scheme that it's sent by."""
        return "Bearer" if self.dpop is None else "DPoP"

    @property
    def assertion_audience(self) -> str | None:
        """Whom an assertion of the client's is for; None is the endpoint that it's sent to.

        The issuer where it's known: an endpoint's URL could be another provider's (RFC 7523 §3 allows both).
        """
        return self.issuer

    def key(self, scopes: Collection[str]) -> TokenKey:
        """What a token for these scopes is kept by."""
        bound = "" if self.dpop is None else self.dpop.thumbprint
        audience = "\n".join((self.audience or "", self.resource or ""))
        return TokenKey(self.asked, self.client.client_id, " ".join(sorted(scopes)), audience, bound)

    def fields(self, scopes: Collection[str]) -> tuple[tuple[str, str], ...]:
        """What the token endpoint is asked: without what proves who asks."""
        optional = (("scope", " ".join(scopes)), ("audience", self.audience), ("resource", self.resource))
        return (("grant_type", "client_credentials"), *((name, value) for name, value in optional if value))


@frozen
class CredentialsMismatch:
    """These credentials aren't what the agent takes; `lacks` is what `Unsuitable` says it doesn't have."""

    lacks: str


def scopes_for(credentials: ClientCredentials, auth: AuthScheme | None) -> tuple[str, ...] | CredentialsMismatch:
    """Which scopes to ask for to talk to an agent whose manifest has this `auth` section. Never raises."""
    if auth is None:
        return credentials.scopes
    if not any(map(auth.accepts, _SCHEMES)):
        return CredentialsMismatch("a use for access tokens: its manifest names other ways to authenticate")
    offer = auth.oauth2 or {}
    if not (_same(credentials.issuer, offer, "issuer") and _same(credentials.token_endpoint, offer, *_ENDPOINTS)):
        return CredentialsMismatch("a use for tokens of this provider: its manifest names another")
    named = _read_scopes(offer.get("scopes"))
    # What it names and we may not ask for it will tell us itself, by its challenge.
    return tuple(scope for scope in credentials.scopes if scope in named) or credentials.scopes


# By RFC 8414 and by OpenAPI, which the reference's examples follow.
_ENDPOINTS: Final = ("token_endpoint", "token_url", "tokenUrl")


def _same(ours: str | None, offer: dict[str, Any], *names: str) -> bool:
    theirs = next((offer[name] for name in names if isinstance(offer.get(name), str)), None)
    return ours is None or theirs is None or normal(theirs).rstrip("/") == normal(ours).rstrip("/")


def _read_scopes(value: Any) -> frozenset[str]:
    """A list, words, or OpenAPI's object of them."""
    if isinstance(value, str):
        value = value.split()
    return frozenset(each for each in value if isinstance(each, str)) if isinstance(value, list | dict) else frozenset()
