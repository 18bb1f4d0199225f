"""Making DPoP proofs (RFC 9449): what is signed, and the nonces that servers ask for.

    text = unsigned_proof(ProofClaims(method="POST", url=…, issued=wall, jti=id), alg="ES256", jwk=public)
    header = serialize(text, sign(text))

The caller signs; `asap_adapters.auth.client_keys` has keys that do.
"""

from collections.abc import Iterable, Mapping
from typing import Final, Protocol

from attrs import field, frozen

from asap_core.auth.bearer import USE_NONCE
from asap_core.auth.dpop import (
    PROOF_TYPE,
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

# As many servers as tokens are kept for; a forgotten one costs one more round trip.
MAX_SERVERS: Final = 1_000
# The public members of keys (RFC 7518 §6, RFC 8037 §2); others are private, or aren't needed to verify.
_PUBLIC: Final = frozenset({"kty", "crv", "x", "y", "e", "n"})
_UNAUTHORIZED: Final = 401
_BAD_REQUEST: Final = 400


@frozen(kw_only=True)
class ProofClaims:
    """The claims of a proof (RFC 9449 §4.2).

    url: the URL of the request; its query and fragment are left out of the proof
    issued: the date of the proof, written in whole seconds
    jti: an id unique to this proof: 96 random bits, or a UUID
    access_token: the token that is sent with it
    nonce: the server's newest nonce, if it has issued any

    Raises ValueError if a value is invalid.
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
    """Return the text to sign with the key whose public part is `jwk`. Private members of `jwk` are left out.

    Raises ValueError if `jwk` isn't a key of a known type.
    """
    thumbprint(jwk)
    header = {"typ": PROOF_TYPE, "alg": alg, "jwk": {name: jwk[name] for name in sorted(_PUBLIC & jwk.keys())}}
    claims: dict[str, object] = {
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
    """A private key that tokens are bound to; `asap_adapters.auth.DpopKey` is one."""

    @property
    def algorithm(self) -> str:
        """The `alg` of proofs by this key."""
        ...

    @property
    def public_jwk(self) -> Mapping[str, str]:
        """The public part of the key."""
        ...

    @property
    def thumbprint(self) -> str:
        """The `cnf.jkt` of tokens that are bound to this key."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message, as JWS encodes it."""
        ...


def make_proof(key: ProofKey, proof: ProofClaims) -> str:
    """Return a proof by this key, as the value of the header `DPoP`."""
    text = unsigned_proof(proof, alg=key.algorithm, jwk=key.public_jwk)
    return serialize(text, key.sign(text))


class ServerNonces:
    """The newest nonce of each server, by origin (RFC 9449 §8.2, §9). One event loop owns it.

    A token endpoint and an agent may share an origin and issue nonces of their own: use one `ServerNonces` for each.
    """

    __slots__ = ("_nonces",)

    def __init__(self, *, most: int = MAX_SERVERS) -> None:
        self._nonces: Lru[str, str] = Lru(most)

    def __len__(self) -> int:
        """How many servers' nonces are remembered."""
        return len(self._nonces)

    def nonce_for(self, url: str) -> str | None:
        """Return the nonce for a proof for this URL, or None if its server has issued none."""
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
        """Remember the nonce that came with a response. Returns whether to send the request again, with a new proof.

        error: the error code in the body, if a token endpoint answered (RFC 6749 §5.2)
        sent: the nonce that was in the proof
        again: whether this was the second attempt; there is no third
        """
        found = list(headers)
        nonces = [value for name, value in found if name.lower() == b"dpop-nonce"]
        nonce = nonces[0].decode("latin-1").strip() if len(nonces) == 1 else None
        if nonce is None or not is_nonce(nonce):
            return False
        self._nonces.put(_origin(url), nonce)
        # It would refuse the same nonce again.
        return not again and nonce != sent and _asks_again(status, found, error)


def _asks_again(status: int, headers: list[tuple[bytes, bytes]], error: str | None) -> bool:
    if status == _BAD_REQUEST:
        return error == USE_NONCE
    challenged = [value.decode("latin-1") for name, value in headers if name.lower() == b"www-authenticate"]
    return status == _UNAUTHORIZED and any(map(_asks_for_nonce, challenged))


def _asks_for_nonce(challenge: str) -> bool:
    return any(each[CHALLENGE_SCHEME] == "dpop" and each.get("error") == USE_NONCE for each in challenges(challenge))


def _origin(url: str) -> str:
    return "/".join((comparable_url(url) or "").split("/")[:3])
