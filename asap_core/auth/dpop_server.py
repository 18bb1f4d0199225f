"""Verifying DPoP proofs (RFC 9449): a proof is read and judged here; its signature and its id are checked afterwards.

    read_proof ─▶ UnverifiedProof ─▶ its signature (driver), the token's `cnf.jkt` (`claims`) ─▶ its `jti` (exchange)
               └─▶ ProofRefused

Rule 1: only here the key in a JWS header is read, since the caller proves to hold it. A proof counts for nothing unless
the token names that key.

Rule 2: a proof's id is claimed last, so that nobody can use up the id of another caller's proof.
"""

from collections.abc import Mapping
from enum import Enum
from hashlib import blake2b
from typing import Any, Final

from attrs import field, frozen, validators

from asap_core.auth.dpop import PROOF_TYPE, comparable_url, is_proof_id, thumbprint, token_hash
from asap_core.auth.jwks import VerificationKey, is_possible, public_jwk, read_key
from asap_core.auth.jws import (
    Algorithm,
    Jws,
    Malformed,
    algorithms_of,
    decode_base64url,
    encode_base64url,
    names_of,
    read_jws,
)
from asap_core.auth.principal import DpopProof, ProofOffer, ProofRefused
from asap_core.clock import WallTime
from asap_core.wire.json import NotJson, read_json
from asap_core.wire.json_values import Json, JsonObject

_MAX_DEPTH: Final = 8
# 128 bits: too many to guess a nonce.
_NONCE_BYTES: Final = 16
_LEAST_SECRET: Final = 16


class ProofRequirement(Enum):
    """Whether tokens must be bound to a key, and so come with a proof."""

    OFF = "off"
    """No proofs are taken: tokens that are bound to a key are refused."""
    ALLOWED = "allowed"
    """A token that is bound to a key needs a proof; all others are bearer tokens."""
    REQUIRED = "required"
    """Tokens that aren't bound to a key are refused."""


def _proofs(value: object) -> object:
    return next((one for one in ProofRequirement if one.value == value), value)


@frozen(kw_only=True)
class DpopPolicy:
    """Which proofs are accepted. Durations are in seconds."""

    proofs: ProofRequirement = field(
        default=ProofRequirement.ALLOWED, converter=_proofs, validator=validators.instance_of(ProofRequirement)
    )
    """See `ProofRequirement`."""
    algorithms: frozenset[Algorithm] = field(
        default=frozenset(Algorithm), converter=algorithms_of, validator=validators.min_len(1)
    )
    """The algorithms that proofs may be signed with."""
    max_age: float = field(default=60.0, validator=[validators.gt(0), validators.le(300)])
    """How old a proof may be. A client makes one for each request; a minute allows for slow networks and clocks. At
    most the default maximum age of envelopes, since the ids of both are remembered together."""
    skew: float = field(default=30.0, validator=[validators.ge(0), validators.le(300)])
    """How far in the future a proof may be dated: the same tolerance as for tokens and envelopes."""
    nonce: bool = field(default=False, validator=validators.instance_of(bool))
    """Require a server nonce in each proof (RFC 9449 §9), so that proofs can't be prepared in advance by someone who
    had the key for a moment. It costs each client one more round trip at first."""
    nonce_life: float = field(default=300.0, validator=validators.gt(0))
    """How long a nonce is issued; it is accepted for as long again."""

    def offer(self) -> ProofOffer | None:
        """Return what callers are told about proofs; None if none are taken."""
        if self.proofs is ProofRequirement.OFF:
            return None
        return ProofOffer(algs=names_of(self.algorithms), required=self.proofs is ProofRequirement.REQUIRED)


class NonceMint:
    """Stateless nonces: keyed digests of the time, verifiable with the secret.

    secret: 16 to 64 random bytes, the same in all processes that serve one agent
    life: seconds for which a nonce is issued
    """

    __slots__ = ("_life", "_secret")

    def __init__(self, secret: bytes, *, life: float) -> None:
        if not _LEAST_SECRET <= len(secret) <= blake2b.MAX_KEY_SIZE:
            raise ValueError("expected a secret of 16 to 64 random bytes")
        self._secret = secret
        self._life = life

    def current(self, *, wall: WallTime) -> str:
        """Return the nonce to issue now."""
        return self._of(int(wall // self._life))

    def accepts(self, nonce: object, *, wall: WallTime) -> bool:
        """Whether `nonce` is the current one or the one before it."""
        slot = int(wall // self._life)
        return isinstance(nonce, str) and self._blind(nonce) in (
            self._blind(self._of(slot)),
            self._blind(self._of(slot - 1)),
        )

    def _of(self, slot: int) -> str:
        text = blake2b(b"%d" % slot, key=self._secret, digest_size=_NONCE_BYTES, person=b"dpop nonce").digest()
        return encode_base64url(text)

    def _blind(self, nonce: str) -> bytes:
        # Compared as digests: the time that takes says nothing about the nonce byte by byte.
        return blake2b(nonce.encode("utf-8", "surrogatepass"), key=self._secret, person=b"compare").digest()


@frozen(kw_only=True)
class UnverifiedProof:
    """A proof whose claims are right. Whether `key` signed it isn't known yet.

    holder: the scope in which its id is unique: the key and the URL
    nonce: the nonce that its sender uses from now on, if it has changed
    """

    key: VerificationKey
    thumbprint: str
    holder: str = field(repr=False)
    proof_id: str = field(repr=False)
    issued: WallTime
    signing_input: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    nonce: str | None = field(default=None, repr=False)


def read_proof(
    proof: DpopProof, *, token: str, policy: DpopPolicy, mint: NonceMint | None, wall: WallTime
) -> UnverifiedProof | ProofRefused:
    """Read a proof and judge its claims (RFC 9449 §4.3, items 2 to 12 except 7). Never raises, whatever the text.

    token: the access token that came with it
    mint: whose nonces the proof must have; None: no nonce is required
    """
    jws = read_jws(proof.text, algorithms=policy.algorithms)
    if isinstance(jws, Malformed):
        return ProofRefused(jws.expected)
    key = _key_of(jws)
    if isinstance(key, str):
        return ProofRefused(key)
    claims = _claims_of(jws)
    wrong = claims if isinstance(claims, str) else _wrong(claims, proof, token=token, policy=policy, wall=wall)
    if isinstance(claims, str) or wrong is not None:
        return ProofRefused(str(wrong))
    renewed: str | None = None
    if mint is not None:
        nonce, current = claims.get("nonce"), mint.current(wall=wall)
        if not mint.accepts(nonce, wall=wall):
            return ProofRefused("a nonce of ours", current)
        renewed = None if nonce == current else current
    print_of_key = thumbprint(public_jwk(key))
    return UnverifiedProof(
        key=key,
        thumbprint=print_of_key,
        holder=f"dpop {print_of_key} {comparable_url(proof.url)}",
        proof_id=claims["jti"],
        issued=WallTime(claims["iat"]),
        signing_input=jws.signing_input,
        signature=jws.signature,
        nonce=renewed,
    )


def _key_of(jws: Jws) -> VerificationKey | str:
    """Return the key in the header, or what is wrong with it."""
    if jws.typ != PROOF_TYPE:
        return f"typ {PROOF_TYPE}"
    # `read_jws` has parsed this header before; it doesn't return the key.
    header: Any = read_json(decode_base64url(jws.signing_input.partition(b".")[0]) or b"", max_depth=_MAX_DEPTH)
    key = read_key(header.get("jwk"))
    if key is None or key.algorithm is not jws.algorithm:
        return "in jwk a public key for alg, and nothing private of it"
    if not is_possible(key, jws.signature):
        return "a signature by the key in jwk"
    return key


def _claims_of(jws: Jws) -> JsonObject | str:
    try:
        claims = read_json(jws.payload, max_depth=_MAX_DEPTH)
    except NotJson as error:
        return f"claims in JSON: {error.expected}"
    return claims if isinstance(claims, dict) else "claims that are an object"


def _wrong(
    claims: Mapping[str, Json], proof: DpopProof, *, token: str, policy: DpopPolicy, wall: WallTime
) -> str | None:
    if claims.get("htm") != proof.method:
        return "htm to be the method"
    url = claims.get("htu")
    here = comparable_url(proof.url)
    if here is None or not isinstance(url, str) or comparable_url(url) != here:
        return "htu to be the URL that the agent's manifest has"
    issued = claims.get("iat")
    # bool is an int to Python only.
    if not (type(issued) is int or type(issued) is float) or not wall - policy.max_age <= issued <= wall + policy.skew:
        return f"iat at most {policy.max_age:g} s ago and {policy.skew:g} s ahead"
    if not is_proof_id(claims.get("jti")):
        return "a jti of 1 to 256 characters"
    if claims.get("ath") != token_hash(token):
        return "ath to be the hash of the token"
    return None
