"""Proofs that a token's sender holds its key (RFC 9449): what is signed, and the nonces that servers want in them.

    text = unsigned_proof(ProofClaims(method="POST", url=…, issued=wall, jti=id), alg="ES256", jwk=public)
    header = serialize(text, sign(text))

The mathematics is the caller's; `asap_adapters.auth.dpop_key` has it.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

from attrs import field, frozen

from asap_core.auth.dpop import (
    PROOF_TYPE,
    USE_NONCE,
    comparable_url,
    is_nonce,
    is_proof_id,
    thumbprint,
    token_hash,
)
from asap_core.auth.jws import serialize, signing_input
from asap_core.clock import WallTime
from asap_core.http.fields import CHALLENGE_SCHEME, challenges
from asap_core.lru import Lru

# As many servers as tokens are kept for; who talks to more asks one of them once more.
MAX_SERVERS: Final = 1_000
# RFC 7518 §6, RFC 7517 §4: of a key, what's private, shared, or nobody needs for a signature.
_SHOWN: Final = frozenset({"kty", "crv", "x", "y", "e", "n"})
_UNAUTHORIZED: Final = 401
_BAD_REQUEST: Final = 400


@frozen(kw_only=True)
class ProofClaims:
    """What a proof says (RFC 9449 §4.2). Raises ValueError for what none can say.

    `url` may have a query and a fragment, which aren't said. `issued` is wall time, said in whole seconds; `jti` is
    unique to this proof: 96 random bits, or a UUID. `access_token` is that which is sent along, `nonce` the server's.
    """

    method: str
    url: str
    issued: WallTime
    jti: str = field(repr=False)
    access_token: str | None = field(default=None, repr=False)
    nonce: str | None = field(default=None, repr=False)

    def __attrs_post_init__(self) -> None:
        if comparable_url(self.url) is None:
            raise ValueError("url: expected a URL of http or https, without a user")
        if not is_proof_id(self.jti):
            raise ValueError("jti: expected 1 to 256 characters")
        if self.nonce is not None and not is_nonce(self.nonce):
            raise ValueError("nonce: expected visible ASCII characters without quotes and backslashes (RFC 9449 §8.1)")
        if self.access_token is not None and not self.access_token.isascii():
            raise ValueError("access_token: expected ASCII characters")


def unsigned_proof(proof: ProofClaims, *, alg: str, jwk: Mapping[str, str]) -> bytes:
    """What is to be signed with the key whose public part `jwk` is. Nothing of `jwk` is shown that isn't public.

    Raises ValueError where `jwk` isn't a key of a type that we know.
    """
    thumbprint(jwk)
    header = {"typ": PROOF_TYPE, "alg": alg, "jwk": {name: jwk[name] for name in sorted(_SHOWN & jwk.keys())}}
    claims: dict[str, Any] = {
        "jti": proof.jti,
        "htm": proof.method,
        "htu": comparable_url(proof.url),
        "iat": int(proof.issued),
    }
    if proof.access_token is not None:
        claims["ath"] = token_hash(proof.access_token)
    if proof.nonce is not None:
        claims["nonce"] = proof.nonce
    return signing_input(header, claims)


class ProofKey(Protocol):
    """A private key that tokens are bound to, at work; `asap_adapters.auth.dpop_key.DpopKey` is one."""

    @property
    def algorithm(self) -> str:
        """The `alg` of its proofs."""
        ...

    @property
    def public_jwk(self) -> Mapping[str, str]:
        """Its public part."""
        ...

    @property
    def thumbprint(self) -> str:
        """What a token bound to it has in `cnf.jkt`."""
        ...

    def sign(self, message: bytes) -> bytes:
        """The signature of a message, as JWS writes it."""
        ...


def make_proof(key: ProofKey, proof: ProofClaims) -> str:
    """The proof made with this key, as the header `DPoP` carries it."""
    text = unsigned_proof(proof, alg=key.algorithm, jwk=key.public_jwk)
    return serialize(text, key.sign(text))


class ServerNonces:
    """The newest nonce of each server, by origin (RFC 9449 §8.2, §9). One event loop owns it.

    A token endpoint and an agent on one origin have one memory only: give each its own `ServerNonces`.
    """

    __slots__ = ("_nonces",)

    def __init__(self, *, most: int = MAX_SERVERS) -> None:
        self._nonces: Lru[str, str] = Lru(most)

    def __len__(self) -> int:
        """How many servers' nonces are remembered."""
        return len(self._nonces)

    def nonce_for(self, url: str) -> str | None:
        """What belongs into a proof for this URL; None where its server hasn't given any."""
        return self._nonces.peek(_origin(url))

    def answered(
        self,
        url: str,
        *,
        status: int,
        headers: Iterable[tuple[bytes, bytes]],
        error: str | None = None,
        sent: str | None,
        again: bool = False,
    ) -> bool:
        """Remember the nonce that came with an answer. Whether to send the request once more, with a new proof.

        It is once: `again` says that this was the second time. `sent` is the nonce that was in the proof; `error` is
        the code in the body, where it's a token endpoint that answered (RFC 6749 §5.2).
        """
        found = list(headers)
        nonces = [value for name, value in found if name.lower() == b"dpop-nonce"]
        nonce = nonces[0].decode("latin-1").strip() if len(nonces) == 1 else None
        if nonce is None or not is_nonce(nonce):
            return False
        self._nonces.put(_origin(url), nonce)
        # The nonce that it refused it would refuse again.
        return not again and nonce != sent and _is_asked(status, found, error)


def _is_asked(status: int, headers: list[tuple[bytes, bytes]], error: str | None) -> bool:
    if status == _BAD_REQUEST:
        return error == USE_NONCE
    told = [value.decode("latin-1") for name, value in headers if name.lower() == b"www-authenticate"]
    return status == _UNAUTHORIZED and any(map(_asks_for_nonce, told))


def _asks_for_nonce(told: str) -> bool:
    return any(each[CHALLENGE_SCHEME] == "dpop" and each.get("error") == USE_NONCE for each in challenges(told))


def _origin(url: str) -> str:
    return "/".join((comparable_url(url) or "").split("/")[:3])
