"""An identity provider's metadata (OpenID Connect Discovery, RFC 8414): where to fetch it, and how to read it."""

from collections.abc import Mapping
from typing import Final

from attrs import frozen

from asap_core.errors import InvalidDocument, Problem
from asap_core.net.urls import DEFAULT_PORTS, read_url
from asap_core.wire.json import NotJson, read_json
from asap_core.wire.json_values import Json

# Keycloak's has 6 KB.
MAX_METADATA: Final = 262_144
_MAX_DEPTH: Final = 16


@frozen(kw_only=True)
class ProviderMetadata:
    """A provider's metadata: its issuer and its endpoints.

    Each endpoint is optional (RFC 8414 §2): a caller that needs a missing one reports that.
    """

    issuer: str
    jwks_uri: str | None = None
    token_endpoint: str | None = None
    introspection_endpoint: str | None = None


def metadata_urls(issuer: str) -> tuple[str, str]:
    """Return the URLs of an issuer's metadata, in the order to try: OpenID Connect Discovery §4, then RFC 8414 §3.1.

    Raises ValueError if `issuer` isn't a URL of http or https without user, query and fragment (RFC 8414 §2).
    """
    parts = read_url(issuer)
    plain = parts is not None and parts.scheme in DEFAULT_PORTS and parts.netloc and "@" not in parts.netloc
    if parts is None or not plain or "?" in issuer or "#" in issuer:
        raise ValueError("expected as issuer a URL such as https://id.example, without user, query, fragment")
    path = parts.path.rstrip("/")
    origin = f"{parts.scheme}://{parts.netloc}"
    return (
        f"{origin}{path}/.well-known/openid-configuration",
        f"{origin}/.well-known/oauth-authorization-server{path}",
    )


def read_metadata(data: bytes, *, issuer: str) -> ProviderMetadata:
    """Read a provider's metadata. Raises `InvalidDocument`, also if it is another issuer's.

    RFC 8414 §3.3: the issuer must equal the one asked for, character by character. Otherwise a provider could pose as
    another one by naming that one's keys (mix-up).
    """
    try:
        value = read_json(data, max_depth=_MAX_DEPTH)
    except NotJson as error:
        raise InvalidDocument("provider's metadata", (Problem((), error.expected, "ill_formed"),)) from None
    if not isinstance(value, dict):
        raise InvalidDocument("provider's metadata", (Problem((), "an object"),))
    if value.get("issuer") != issuer:
        raise InvalidDocument("provider's metadata", (Problem(("issuer",), "the issuer that was asked"),))
    return ProviderMetadata(
        issuer=issuer,
        jwks_uri=_url(value, "jwks_uri"),
        token_endpoint=_url(value, "token_endpoint"),
        introspection_endpoint=_url(value, "introspection_endpoint"),
    )


def _url(value: Mapping[str, Json], name: str) -> str | None:
    """Return the URL of that name, or None if it is missing. The outbound policy judges it before it is fetched."""
    url = value.get(name)
    if url is not None and not (isinstance(url, str) and url):
        raise InvalidDocument("provider's metadata", (Problem((name,), "a URL, or none"),))
    return url
