"""OAuth 2.0 client credentials (RFC 6749 §4.4): what a token endpoint is asked, as whom, and what its answer means.

Rule of this module: what proves who we are is in no repr and in no error, and nothing that the endpoint says is
repeated but the error codes of RFC 6749 §5.2.
"""

from base64 import b64encode
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Final, assert_never
from urllib.parse import quote_plus

from attrs import field, frozen

from asap_core.auth.bearer import is_scope, is_token
from asap_core.auth.jws import serialize, signing_input
from asap_core.clock import WallTime
from asap_core.wire.json import NotJson, read_json
from asap_core.wire.rules import TEXT, Rule, absent_or

JwsSigner = Callable[[bytes], bytes]
"""A private key at work: the JWS signature of a message."""

# An assertion is used at once; a minute forgives what clocks differ by (RFC 7523 §3 wants it short).
_ASSERTION_SECONDS: Final = 60
_ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
# RFC 6749 §5.1: without expires_in the life is known otherwise, and to us it isn't. A token used for longer than it's
# good costs a refusal; one fetched too often a request each five minutes.
_LIFETIME: Final = 300.0
# A year: what claims more is no lifetime.
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
# What RFC 6749 §5.2 answers a refusal with; 403 is what some providers make of unauthorized_client.
_REFUSALS: Final = frozenset({400, 401, 403})


class SecretMethod(Enum):
    """How a secret is shown (RFC 6749 §2.3.1, by the names of RFC 7591 §2)."""

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
    """A client that has a password. Raises ValueError where it can't be one, without repeating it."""

    client_id: str = field(validator=_is_client_id)
    secret: str = field(repr=False, validator=_is_secret)
    method: SecretMethod = field(default=SecretMethod.BASIC, converter=SecretMethod)


@frozen
class ClientKey:
    """A client that has a private key (`private_key_jwt`, RFC 7523 §2.2): it proves itself without showing it.

    `algorithm` is the JWS name of what `sign` does: `EdDSA`, `ES256` or `RS256`. `kid` names the key where the provider
    knows several.
    """

    client_id: str = field(validator=_is_client_id)
    algorithm: str = field(validator=TEXT)
    sign: JwsSigner = field(repr=False, validator=Rule("a function that signs bytes", callable))
    kid: str | None = field(default=None, validator=absent_or(TEXT))


@frozen
class Form:
    """A form to post: its fields, and the headers that go with it."""

    fields: tuple[tuple[str, str], ...] = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)


def authenticated_form(
    fields: Sequence[tuple[str, str]],
    client: ClientSecret | ClientKey,
    *,
    audience: str,
    jti: str,
    wall: WallTime,
) -> Form:
    """These fields, sent by this client. `audience` is who an assertion is for: the issuer, or the endpoint asked.

    `jti` is a random id for it.
    """
    match client:
        case ClientSecret():
            return _with_secret(fields, client)
        case ClientKey():
            assertion = _assertion(client, audience=audience, jti=jti, wall=wall)
            kind = ("client_assertion_type", _ASSERTION_TYPE)
            return Form((*fields, ("client_id", client.client_id), kind, ("client_assertion", assertion)))
        case _:
            assert_never(client)


def _with_secret(fields: Sequence[tuple[str, str]], client: ClientSecret) -> Form:
    if client.method is SecretMethod.POST:
        return Form((*fields, ("client_id", client.client_id), ("client_secret", client.secret)))
    # RFC 6749 §2.3.1: each is form-encoded before they're joined, or a colon in the id would divide it.
    pair = f"{quote_plus(client.client_id)}:{quote_plus(client.secret)}"
    return Form(tuple(fields), (("authorization", f"Basic {b64encode(pair.encode()).decode()}"),))


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
    """A token, good for `lifetime` seconds; `scopes` are what it's for where the endpoint says so (RFC 6749 §5.1)."""

    value: str = field(repr=False)
    lifetime: float
    scopes: frozenset[str] | None = None


@frozen
class GrantRefused:
    """The endpoint says no: to this client, or to what it asks. `code` is RFC 6749's, where it's one that is known."""

    code: str | None


@frozen
class GrantFailed:
    """Neither a token nor a refusal; it may be better later. `expected` says what would have been right."""

    expected: str


TokenResponse = GrantedToken | GrantRefused | GrantFailed


def read_token_response(status: int, body: bytes, *, token_type: str = "Bearer") -> TokenResponse:  # noqa: S107 - no password
    """Read what a token endpoint answered (RFC 6749 §5). Never raises, whatever the bytes."""
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


def _grant(value: dict[str, Any], token_type: str) -> GrantedToken | GrantFailed:
    token, kind, scope = value.get("access_token"), value.get("token_type"), value.get("scope")
    if not (isinstance(token, str) and is_token(token)):
        return GrantFailed("an access_token of visible ASCII characters, at most 8192")
    # RFC 6749 §5.1: case-insensitive. RFC 9449 §5: a token that isn't bound to our key isn't what was asked for.
    if not (isinstance(kind, str) and kind.lower() == token_type.lower()):
        return GrantFailed(f"token_type {token_type}")
    lifetime = _lifetime(value.get("expires_in"))
    if lifetime is None:
        return GrantFailed("expires_in in seconds, more than 0, or none")
    return GrantedToken(token, lifetime, _scopes(scope))


def _scopes(said: Any) -> frozenset[str] | None:
    """What the token is for, as words or (of some providers) a list; None if it doesn't say, or in no way we know."""
    texts = said if isinstance(said, list) else [said]
    if not all(isinstance(each, str) for each in texts):
        return None
    return frozenset(filter(is_scope, " ".join(texts).split(" ")))


def _lifetime(value: Any) -> float | None:
    if value is None:
        return _LIFETIME
    # Some write the number as text.
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= len(str(int(_LONGEST))):
        value = int(value)
    if type(value) not in (int, float) or not value > 0:
        return None
    return min(float(value), _LONGEST)
