"""Which token an agent is sent: what the client may ask a provider for, narrowed by the agent's manifest.

Rule of this module: a manifest only ever narrows. The agent wrote it, so it chooses no provider that a secret is sent
to, and no scope that the client's user didn't allow.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

from attrs import field, frozen

from asap_core.auth.bearer import is_scope
from asap_core.auth.client_credentials import ClientKey, ClientSecret
from asap_core.auth.dpop_client import ProofKey
from asap_core.auth.provider_metadata import metadata_urls
from asap_core.auth.token_cache import TokenKey
from asap_core.net.urls import is_web_url, normal
from asap_core.wire.json_values import Json
from asap_core.wire.manifest import AuthScheme
from asap_core.wire.rules import NONEMPTY, Rule, absent_or

# The schemes by which manifests ask for a token in a header (RFC 6750, RFC 9449), or say how to get one.
_SCHEMES: Final = ("bearer", "dpop", "oauth2")
_NONEMPTY: Final = absent_or(NONEMPTY)
_ENDPOINT: Final = Rule(
    "a URL such as https://id.example/token, or None", lambda value: value is None or is_web_url(value)
)


def _scope_words(value: object) -> tuple[Any, ...]:
    if isinstance(value, str):
        return tuple(value.split())
    return tuple(value) if isinstance(value, Collection) else (value,)


def _check_scopes(_object: object, _attribute: object, scopes: tuple[str, ...]) -> None:
    if not all(map(is_scope, scopes)):
        raise ValueError("scopes: expected words of visible ASCII characters without quotes (RFC 6749 §3.3)")


@frozen(kw_only=True)
class ClientCredentials:
    """How to get tokens for an agent: at which provider, as which client, for what (RFC 6749 §4.4).

    client: the client that requests tokens, and its secret or key
    issuer: the provider; its metadata names the token endpoint (RFC 8414)
    token_endpoint: the URL of the token endpoint; with it no metadata is fetched
    scopes: all that may be asked for; if an agent's manifest lists scopes, only those of them are
    audience: whom tokens are for, in the parameter that many providers have for it; each agent needs its own, or one
        agent could use our token at another
    resource: the same in the parameter of RFC 8707
    dpop: the key that tokens are bound to (RFC 9449); without the key they are useless

    Raises ValueError if a value is invalid, or if both `issuer` and `token_endpoint` are missing.
    """

    client: ClientSecret | ClientKey = field(
        validator=Rule("ClientSecret(…) or a ClientKey", lambda value: isinstance(value, ClientSecret | ClientKey))
    )
    issuer: str | None = field(default=None, validator=_NONEMPTY)
    token_endpoint: str | None = field(default=None, validator=_ENDPOINT)
    scopes: tuple[str, ...] = field(default=(), converter=_scope_words, validator=_check_scopes)
    audience: str | None = field(default=None, validator=_NONEMPTY)
    resource: str | None = field(default=None, validator=_NONEMPTY)
    dpop: ProofKey | None = field(
        default=None,
        validator=Rule("a ProofKey, or None", lambda value: value is None or hasattr(value, "thumbprint")),
    )

    def __attrs_post_init__(self) -> None:
        if self.token_endpoint is not None:
            return
        if self.issuer is None:
            raise ValueError("expected the issuer of tokens, or the URL of its token endpoint")
        metadata_urls(self.issuer)  # raises ValueError if it's none

    @property
    def asked(self) -> str:
        """Where tokens come from: the endpoint, or the issuer if only that is known."""
        return self.token_endpoint or self.issuer or ""

    @property
    def token_type(self) -> str:
        """The type of the tokens (RFC 6750 §4, RFC 9449 §5), which is also the scheme of the Authorization header."""
        return "Bearer" if self.dpop is None else "DPoP"

    @property
    def assertion_audience(self) -> str | None:
        """The audience of the client's assertion (`private_key_jwt`); None: the endpoint that it is sent to.

        RFC 7523 §3 allows issuer and endpoint. The issuer is safer: the endpoint's URL could be another provider's.
        """
        return self.issuer

    def key(self, scopes: Collection[str]) -> TokenKey:
        """Return the cache key of a token for these scopes."""
        bound = "" if self.dpop is None else self.dpop.thumbprint
        audience = "\n".join((self.audience or "", self.resource or ""))
        return TokenKey(self.asked, self.client.client_id, " ".join(sorted(scopes)), audience, bound)

    def fields(self, scopes: Collection[str]) -> tuple[tuple[str, str], ...]:
        """Return the form fields of the token request, without the client's authentication."""
        optional = (("scope", " ".join(scopes)), ("audience", self.audience), ("resource", self.resource))
        return (("grant_type", "client_credentials"), *((name, value) for name, value in optional if value))


@frozen
class CredentialsMismatch:
    """The agent's manifest asks for other credentials; `lacks` says what the agent doesn't have, for `Unsuitable`."""

    lacks: str


# By RFC 8414 and by OpenAPI, which the reference's examples follow.
_ENDPOINTS: Final = ("token_endpoint", "token_url", "tokenUrl")


def scopes_for(credentials: ClientCredentials, auth: AuthScheme | None) -> tuple[str, ...] | CredentialsMismatch:
    """Return the scopes to ask for, for an agent whose manifest has this `auth` section. Never raises."""
    if auth is None:
        return credentials.scopes
    if not any(map(auth.accepts, _SCHEMES)):
        return CredentialsMismatch("a use for access tokens: its manifest names other ways to authenticate")
    offer = auth.oauth2 or {}
    if not (_same(credentials.issuer, offer, "issuer") and _same(credentials.token_endpoint, offer, *_ENDPOINTS)):
        return CredentialsMismatch("a use for tokens of this provider: its manifest names another")
    named = _read_scopes(offer.get("scopes"))
    # If none of its scopes are ours, the agent's own challenge says what is missing.
    return tuple(scope for scope in credentials.scopes if scope in named) or credentials.scopes


def _same(ours: str | None, offer: Mapping[str, Json], *names: str) -> bool:
    theirs = next((url for name in names if isinstance(url := offer.get(name), str)), None)
    return ours is None or theirs is None or normal(theirs).rstrip("/") == normal(ours).rstrip("/")


def _read_scopes(value: Json) -> frozenset[str]:
    """Read a list, a text of words, or OpenAPI's object whose keys are scopes."""
    words = value.split() if isinstance(value, str) else value
    return frozenset(each for each in words if isinstance(each, str)) if isinstance(words, list | dict) else frozenset()
