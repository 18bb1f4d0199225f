"""What an identity provider says of itself (OpenID Connect Discovery, RFC 8414): where that is, and who says it."""

from typing import Any, Final

from attrs import frozen

from asap_core.errors import InvalidDocument, Problem
from asap_core.net.urls import DEFAULT_PORTS, read_url
from asap_core.wire.json import NotJson, read_json

# Keycloak's has 6 KB.
MAX_METADATA: Final = 262_144
_MAX_DEPTH: Final = 16


@frozen(kw_only=True)
class ProviderMetadata:
    """What a provider says of itself: who it is, and the URLs to ask, where it has them.

    Each is OPTIONAL to one of its readers (RFC 8414 §2); whoever needs one that's missing says so.
    """

    issuer: str
    jwks_uri: str | None = None
    token_endpoint: str | None = None
    introspection_endpoint: str | None = None


def metadata_urls(issuer: str) -> tuple[str, str]:
    """Where an issuer's metadata may be, in the order to ask: OpenID Connect Discovery §4, then RFC 8414 §3.1.

    Raises ValueError where it can't be an issuer: a URL without query and fragment (RFC 8414 §2).
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
    """Read a provider's metadata. Raises `InvalidDocument`, also where it's another issuer's.

    RFC 8414 §3.3: the issuer is identical to the one asked, character by character, or a provider could pass for
    another by naming its keys (mix-up).
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


def _url(value: dict[str, Any], name: str) -> str | None:
    """The URL of that name, judged by whoever asks it; None where there's none."""
    url = value.get(name)
    if url is not None and not (isinstance(url, str) and url):
        raise InvalidDocument("provider's metadata", (Problem((name,), "a URL, or none"),))
    return url
