"""OAuth 2.0 clients (RFC 6749): how a client authenticates to its provider, and how token responses are read.

Rule of this module: secrets are in no repr and no error. Of what the endpoint answers only the error codes of RFC 6749
§5.2 are repeated.
"""

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Final, assert_never
from urllib.parse import quote_plus

from attrs import field, frozen

from asap_core.auth.bearer import is_scope, is_token
from asap_core.auth.jws import serialize, signing_input
from asap_core.clock import WallTime
from asap_core.wire.json import NotJson, read_json
from asap_core.wire.json_values import Json
from asap_core.wire.rules import NONEMPTY, Rule, absent_or

JwsSigner = Callable[[bytes], bytes]
"""Signs a message with a private key; returns the signature as JWS encodes it."""

# An assertion is used at once; a minute allows for clocks that differ (RFC 7523 §3 wants it short).
_ASSERTION_SECONDS: Final = 60
_ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
# RFC 6749 §5.1: without expires_in the lifetime is documented elsewhere, and unknown to us. A token used for too long
# costs one refused request; one fetched too often costs one request each five minutes.
_LIFETIME: Final = 300.0
# A year: a larger number isn't meant as a lifetime.
_LONGEST: Final = 31_536_000.0
_MAX_DEPTH: Final = 16
# RFC 6749 §5.2, RFC 8707 §2, RFC 9449 §5, §8.
_CODES: Final = frozenset(
    {
        "invalid_client",
        "invalid_dpop_proof",
        "invalid_grant",
        "invalid_request",
        "invalid_scope",
        "invalid_target",
        "unauthorized_client",
        "unsupported_grant_type",
        "use_dpop_nonce",
    }
)
_OK: Final = 200
# RFC 6749 §5.2 refuses with 400 and 401; some providers answer unauthorized_client with 403.
_REFUSALS: Final = frozenset({400, 401, 403})


class SecretMethod(Enum):
    """How a client secret is sent (RFC 6749 §2.3.1), by the names of RFC 7591 §2."""

    BASIC = "client_secret_basic"
    POST = "client_secret_post"


def _is_client_id(_client: object, _attribute: object, value: Any) -> None:
    # RFC 6749 §2.2 and appendix A.1: visible ASCII and spaces.
    if not (isinstance(value, str) and value and value.isascii() and value.isprintable()):
        raise ValueError("expected a client id of visible ASCII characters")


def _is_secret(_client: object, _attribute: object, value: Any) -> None:
    if not (isinstance(value, str) and value and value.isascii() and value.isprintable()):
        raise ValueError("expected a client secret of visible ASCII characters")


@frozen
class ClientSecret:
    """A client that authenticates with a secret. Raises ValueError if a value is invalid, without repeating it."""

    client_id: str = field(validator=_is_client_id)
    secret: str = field(repr=False, validator=_is_secret)
    method: SecretMethod = field(default=SecretMethod.BASIC, converter=SecretMethod)


@frozen
class ClientKey:
    """A client that authenticates with a private key, which it never sends (`private_key_jwt`, RFC 7523 §2.2).

    algorithm: the JWS algorithm of `sign`: `EdDSA`, `ES256` or `RS256`
    kid: the provider's name for the key, if it knows several of this client
    """

    client_id: str = field(validator=_is_client_id)
    algorithm: str = field(validator=NONEMPTY)
    sign: JwsSigner = field(repr=False, validator=Rule("a function that signs bytes", callable))
    kid: str | None = field(default=None, validator=absent_or(NONEMPTY))


@frozen
class PostForm:
    """A form to post, and the headers to send with it."""

    fields: tuple[tuple[str, str], ...] = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)


def authenticated_form(
    fields: Sequence[tuple[str, str]],
    client: ClientSecret | ClientKey,
    *,
    audience: str,
    jti: str,
    wall: WallTime,
) -> PostForm:
    """Return a form with these fields that authenticates the client.

    audience: whom an assertion is for: the issuer, or the endpoint
    jti: a random id of an assertion
    """
    match client:
        case ClientSecret():
            return _with_secret(fields, client)
        case ClientKey():
            assertion = _assertion(client, audience=audience, jti=jti, wall=wall)
            kind = ("client_assertion_type", _ASSERTION_TYPE)
            return PostForm((*fields, ("client_id", client.client_id), kind, ("client_assertion", assertion)))
        case _:
            assert_never(client)


def _with_secret(fields: Sequence[tuple[str, str]], client: ClientSecret) -> PostForm:
    if client.method is SecretMethod.POST:
        return PostForm((*fields, ("client_id", client.client_id), ("client_secret", client.secret)))
    # RFC 6749 §2.3.1: each is form-encoded before they're joined, or a colon in the id would divide it.
    pair = f"{quote_plus(client.client_id)}:{quote_plus(client.secret)}"
    return PostForm(tuple(fields), (("authorization", f"Basic {b64encode(pair.encode()).decode()}"),))


def _assertion(client: ClientKey, *, audience: str, jti: str, wall: WallTime) -> str:
    """RFC 7523 §3: who it's from, whom it's for, until when, and that it's another than the last."""
    now = int(wall)
    claims = {
        "iss": client.client_id,
        "sub": client.client_id,
        "aud": audience,
        "jti": jti,
        "iat": now,
        "exp": now + _ASSERTION_SECONDS,
    }
    header = {"alg": client.algorithm, "typ": "JWT", **({} if client.kid is None else {"kid": client.kid})}
    unsigned = signing_input(header, claims)
    return serialize(unsigned, client.sign(unsigned))


# --- what comes back -------------------------------------------------------------------------------------------------


@frozen
class GrantedToken:
    """A token, good for `lifetime` seconds; `scopes` are its scopes, if the response names them (RFC 6749 §5.1)."""

    value: str = field(repr=False)
    lifetime: float
    scopes: frozenset[str] | None = None


@frozen
class GrantRefused:
    """The endpoint refuses this client or its request. `code` is the error code, if it is a known one."""

    code: str | None


@frozen
class GrantFailed:
    """Neither a token nor a refusal; a retry may succeed. `expected` says what a usable response has."""

    expected: str


TokenResponse = GrantedToken | GrantRefused | GrantFailed


def read_token_response(status: int, body: bytes, *, token_type: str = "Bearer") -> TokenResponse:  # noqa: S107 - no password
    """Read the response of a token endpoint (RFC 6749 §5). Never raises, whatever the bytes."""
    if status not in _REFUSALS and status != _OK:
        return GrantFailed(f"a token with HTTP 200, not HTTP {status}")
    try:
        value = read_json(body, max_depth=_MAX_DEPTH)
    except NotJson:
        value = None
    if status != _OK:
        code = value.get("error") if isinstance(value, dict) else None
        return GrantRefused(code if isinstance(code, str) and code in _CODES else None)
    return _grant(value, token_type) if isinstance(value, dict) else GrantFailed("a JSON object with a token")


def _grant(value: Mapping[str, Json], token_type: str) -> GrantedToken | GrantFailed:
    token, kind, scope = value.get("access_token"), value.get("token_type"), value.get("scope")
    if not (isinstance(token, str) and is_token(token)):
        return GrantFailed("an access_token of visible ASCII characters, at most 8192")
    # RFC 6749 §5.1: case-insensitive. RFC 9449 §5: a bearer token isn't bound to our key, as it was asked to be.
    if not (isinstance(kind, str) and kind.lower() == token_type.lower()):
        return GrantFailed(f"token_type {token_type}")
    lifetime = _lifetime(value.get("expires_in"))
    if lifetime is None:
        return GrantFailed("expires_in in seconds, more than 0, or none")
    return GrantedToken(token, lifetime, _scopes(scope))


def _scopes(value: Any) -> frozenset[str] | None:
    """Read scopes, as words or (some providers) as a list. Returns None if they are missing or of another form."""
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) for each in texts):
        return None
    return frozenset(filter(is_scope, " ".join(texts).split(" ")))


def _lifetime(value: Json) -> float | None:
    if value is None:
        return _LIFETIME
    # Some providers write the number as text.
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= len(str(int(_LONGEST))):
        value = int(value)
    if not (type(value) is int or type(value) is float) or not value > 0:
        return None
    return min(float(value), _LONGEST)
