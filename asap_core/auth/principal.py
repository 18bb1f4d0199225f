"""Who calls: credentials, principals, and `TokenTable` for static bearer tokens.

Credentials are as received, principals as verified. A principal is `Authenticated` or `Anonymous`, never a string, so
that a handler can't mistake a claimed sender for a verified one. `TokenTable` is the simplest authenticator.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Final

from attrs import field, frozen

from asap_core.arguments import expect_mapping
from asap_core.auth.bearer import MAX_TOKEN, USE_NONCE, is_scope, is_token
from asap_core.clock import WallTime
from asap_core.http.messages import Headers, header_values
from asap_core.request_values import frozen as request_value
from asap_core.wire.rules import URN

_REALM: Final = 'realm="asap"'


@frozen
class Authenticated:
    """A caller whose credential was verified.

    urn: the agent that the caller is
    scopes: what the credential allows, as its issuer wrote it; equality doesn't depend on them
    key: the thumbprint (RFC 7638) of the key that the caller proved to hold; None if the credential is bound to none
    """

    urn: str = field(validator=URN)
    scopes: frozenset[str] = field(default=frozenset(), eq=False)
    key: str | None = field(default=None, eq=False)


@request_value
class Anonymous:
    """A caller without a verified credential. `peer` is the address that the connection came from; it may be empty."""

    peer: str


Principal = Authenticated | Anonymous


@frozen
class InsufficientScope:
    """A valid credential that doesn't allow enough: all of `scopes` are needed, at least one (RFC 6750 §3.1)."""

    scopes: frozenset[str]

    def __attrs_post_init__(self) -> None:
        # RFC 6749 §3.3: a quote would break the challenge that names them.
        if not self.scopes or not all(map(is_scope, self.scopes)):
            raise ValueError("scopes: expected words of visible ASCII characters without quotes (RFC 6749 §3.3)")


@frozen(kw_only=True)
class DpopProof:
    """A proof that came with a token (RFC 9449 §7), and the request that it must be for: its method and our URL."""

    text: str = field(repr=False)
    method: str
    url: str


@frozen
class Credential:
    """A token as received: a bearer token (RFC 6750 §2.1), or one with a proof of its key. Never shown in a repr.

    An authenticator that doesn't verify proofs must refuse every credential that has one, as `TokenTable` does.
    """

    token: str = field(repr=False)
    proof: DpopProof | None = None


@frozen(kw_only=True)
class Proven:
    """A caller verified by a token and a proof of its key. The server must claim the proof, which is good only once.

    holder: the scope in which the proof's id is unique: the key and the URL
    proof_id: the proof's id (`jti`)
    issued: the proof's date
    nonce: the nonce that its sender uses from now on, if it has changed
    """

    principal: Authenticated
    holder: str = field(repr=False)
    proof_id: str = field(repr=False)
    issued: WallTime
    nonce: str | None = field(default=None, repr=False)


@frozen
class ProofRefused:
    """A proof that is refused. `expected` says what an acceptable one has, for logs; it repeats nothing of the proof.

    nonce: the nonce that the next proof must have (RFC 9449 §9); None if that isn't the reason
    """

    expected: str
    nonce: str | None = field(default=None, repr=False)

    @property
    def error(self) -> str:
        """The error code (RFC 9449 §12.2)."""
        return "invalid_dpop_proof" if self.nonce is None else USE_NONCE


AuthenticationResult = Authenticated | Proven | InsufficientScope | ProofRefused | None
"""Whom a credential stands for; None if it isn't good. `Proven` counts once: the server claims its proof."""


@frozen(kw_only=True)
class ProofOffer:
    """Which proofs are accepted: signed with one of `algs`. `required`: a token without a proof is refused."""

    algs: tuple[str, ...]
    required: bool = False


@frozen
class NoCredential:
    """No Authorization header, or one of another scheme."""


@frozen
class BadCredential:
    """An unreadable Authorization header; `expected` says what a readable one has. `proves`: its scheme is DPoP."""

    expected: str
    proves: bool = False


def read_credential(
    headers: Headers, *, method: str = "", url: str | None = None
) -> Credential | NoCredential | BadCredential:
    """Read the credential from a request's headers. Never raises.

    method, url: the request that a proof must be for (RFC 9449 §4.3); without `url` only the scheme Bearer is read
    """
    values = header_values(headers, b"authorization")
    if not values:
        return NoCredential()
    if len(values) > 1:
        return BadCredential("one Authorization header")
    scheme, _, token = values[0].strip().partition(b" ")
    # RFC 9110 §11.1: the scheme is case-insensitive.
    scheme = scheme.lower()
    proof_url = url if scheme == b"dpop" else None
    if scheme != b"bearer" and proof_url is None:
        return NoCredential()
    text = token.strip(b" \t").decode("latin-1")
    if not is_token(text):
        named = "Bearer" if proof_url is None else "DPoP"
        expected = f"Authorization: {named} and a token of 1 to {MAX_TOKEN} visible ASCII characters"
        return BadCredential(expected, proves=proof_url is not None)
    return Credential(text) if proof_url is None else _with_proof(text, headers, method, proof_url)


def _with_proof(token: str, headers: Headers, method: str, url: str) -> Credential | BadCredential:
    proofs = header_values(headers, b"dpop")
    # RFC 9449 §4.3, 1: one header field, one proof.
    if len(proofs) != 1:
        return BadCredential("one DPoP header", proves=True)
    return Credential(token, DpopProof(text=proofs[0].strip().decode("latin-1"), method=method, url=url))


def challenge(offer: ProofOffer | None, *, error: str | None = None, proves: bool = False) -> str:
    """Return the WWW-Authenticate challenge. The error goes to the scheme that the caller used.

    Source: RFC 6750 §3, RFC 9449 §7.1.
    """
    wrong = "" if error is None else f', error="{error}"'
    if offer is None:
        return f"Bearer {_REALM}{wrong}"
    proof = f'DPoP {_REALM}, algs="{" ".join(offer.algs)}"'
    if offer.required:
        return f"{proof}{wrong}"
    return f"Bearer {_REALM}, {proof}{wrong}" if proves else f"Bearer {_REALM}{wrong}, {proof}"


def insufficient_scope(scopes: frozenset[str], *, proves: bool = False) -> str:
    """Return the challenge of a 403 (RFC 6750 §3.1), which names all scopes that are needed."""
    return f'{"DPoP" if proves else "Bearer"} {_REALM}, error="insufficient_scope", scope="{" ".join(sorted(scopes))}"'


class TokenTable:
    """An authenticator with a table of static bearer tokens, each for one agent.

    Tokens are looked up by their SHA-256. So the time that takes says nothing about a token byte by byte,
    and the table holds no token in clear.
    """

    __slots__ = ("_by_digest",)

    proofs: ProofOffer | None = None
    """It verifies no proofs: none of its tokens is bound to a key."""

    def __init__(self, tokens: Mapping[str, str]) -> None:
        """Take a mapping of token to agent URN. Raises ValueError if a token or a URN is invalid."""
        expect_mapping("tokens", tokens, str, '{"…": "urn:asap:agent:alice"}')
        for token in tokens:
            if not is_token(token):
                raise ValueError(f"expected tokens of 1 to {MAX_TOKEN} visible ASCII characters")
        self._by_digest = {_digest(token): Authenticated(urn) for token, urn in tokens.items()}

    def __len__(self) -> int:
        return len(self._by_digest)

    def verify(self, credential: Credential) -> Authenticated | None:
        """Return the agent that the token stands for, or None. A credential with a proof is refused."""
        return self._by_digest.get(_digest(credential.token)) if credential.proof is None else None


def _digest(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogatepass")).digest()
