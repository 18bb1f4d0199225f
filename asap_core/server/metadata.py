"""What an identity provider says of itself (OpenID Connect Discovery, RFC 8414): where that is, and who says it."""

from typing import Final
from urllib.parse import urlsplit

from attrs import frozen

from asap_core.errors import InvalidDocument, Problem
from asap_core.jsontext import NotJson, read_json

__all__ = ["ProviderMetadata", "metadata_urls", "read_metadata"]

# Keycloak's has 6 KB.
MAX_METADATA: Final = 262_144
_MAX_DEPTH: Final = 16


@frozen
class ProviderMetadata:
    """What a resource server needs of a provider: that it is who it should be, and where its keys are."""

    issuer: str
    jwks_uri: str


def metadata_urls(issuer: str) -> tuple[str, str]:
    """Where an issuer's metadata may be, in the order to ask: OpenID Connect Discovery §4, then RFC 8414 §3.1.

    Raises ValueError where it can't be an issuer: a URL without query and fragment (RFC 8414 §2).
    """
    try:
        parts = urlsplit(issuer)
    except ValueError:  # brackets that aren't around an IPv6 address
        parts = urlsplit("")
    plain = parts.scheme in {"https", "http"} and parts.netloc and "@" not in parts.netloc
    if not plain or "?" in issuer or "#" in issuer:
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
    keys = value.get("jwks_uri")
    if not isinstance(keys, str) or not keys:
        raise InvalidDocument("provider's metadata", (Problem(("jwks_uri",), "a URL"),))
    return ProviderMetadata(issuer, keys)
