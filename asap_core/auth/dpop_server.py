"""One proof that whoever sends a token holds its key (RFC 9449), from its text to what is left to be done about it.

    read_proof ─▶ UnverifiedProof ─▶ its signature (driver), the token's `cnf.jkt` (`claims`) ─▶ its `jti` (exchange)
               └─▶ ProofRefused

Rule of this module: here, and nowhere else, the key in a JWS header is read, since it's what is to be proven; what it
signed means nothing until the token names it. And a proof's id is claimed last, so that nobody uses up another's.
"""

from enum import Enum
from hashlib import blake2b
from typing import Any, Final

from attrs import field, frozen, validators

from asap_core.auth.dpop import PROOF_TYPE, comparable_url, is_proof_id, thumbprint, token_hash
from asap_core.auth.jwks import VerificationKey, is_possible, public_jwk, read_key
from asap_core.auth.jws import Algorithm, Jws, Malformed, decode_base64url, encode_base64url, names_of, read_jws
from asap_core.auth.principal import DpopProof, ProofOffer, ProofRefused
from asap_core.clock import WallTime
from asap_core.wire.json import NotJson, read_json

_MAX_DEPTH: Final = 8
# 128 bits: nobody finds another server's nonce by trying.
_NONCE_BYTES: Final = 16
_LEAST_SECRET: Final = 16


class ProofRequirement(Enum):
    """What is made of proofs that come with tokens."""

    OFF = "off"
    """There are none: tokens that are bound to a key are refused."""
    ALLOWED = "allowed"
    """Tokens that are bound to a key need one, all others come as a bearer's."""
    REQUIRED = "required"
    """Tokens that aren't bound to a key are refused."""


def _proofs(value: Any) -> Any:
    return next((one for one in ProofRequirement if one.value == value), value)


@frozen(kw_only=True)
class DpopPolicy:
    """Which proofs are good here. Seconds throughout."""

    proofs: ProofRequirement = field(
        default=ProofRequirement.ALLOWED, converter=_proofs, validator=validators.instance_of(ProofRequirement)
    )
    """See `ProofRequirement`."""
    algorithms: frozenset[Algorithm] = field(
        default=frozenset(Algorithm), converter=frozenset, validator=validators.min_len(1)
    )
    """Those that they may be signed with."""
    max_age: float = field(default=60.0, validator=[validators.gt(0), validators.le(300)])
    """How old one may be. A client makes one for each request; a minute is for slow networks and clocks. At most as
    long as envelopes may be old by default, since their ids are remembered together."""
    skew: float = field(default=30.0, validator=[validators.ge(0), validators.le(300)])
    """How far ahead it may be dated: the tolerance that tokens and envelopes have."""
    nonce: bool = field(default=False, validator=validators.instance_of(bool))
    """Whether it must have a nonce of ours (RFC 9449 §9): then none is made long before it's used, by whoever had the
    key for a moment. Costs a client one more round trip at first."""
    nonce_life: float = field(default=300.0, validator=validators.gt(0))
    """How long a nonce is given out; it's good for as long again."""

    def offer(self) -> ProofOffer | None:
        """What callers are told of it."""
        if self.proofs is ProofRequirement.OFF:
            return None
        return ProofOffer(algs=names_of(self.algorithms), required=self.proofs is ProofRequirement.REQUIRED)


class NonceMint:
    """Nonces that say when they were given out, to who knows the secret: nothing is remembered of them.

    All processes that serve one agent need the same `secret`, 16 to 64 random bytes.
    """

    __slots__ = ("_life", "_secret")

    def __init__(self, secret: bytes, *, life: float) -> None:
        if not _LEAST_SECRET <= len(secret) <= blake2b.MAX_KEY_SIZE:
            raise ValueError("expected a secret of 16 to 64 random bytes")
        self._secret = secret
        self._life = life

    def current(self, *, wall: WallTime) -> str:
        """The nonce that is given out now."""
        return self._of(int(wall // self._life))

    def takes(self, nonce: object, *, wall: WallTime) -> bool:
        """Whether it's the current one, or the one before it."""
        slot = int(wall // self._life)
        return isinstance(nonce, str) and self._blind(nonce) in (
            self._blind(self._of(slot)),
            self._blind(self._of(slot - 1)),
        )

    def _of(self, slot: int) -> str:
        text = blake2b(b"%d" % slot, key=self._secret, digest_size=_NONCE_BYTES, person=b"dpop nonce").digest()
        return encode_base64url(text)

    def _blind(self, nonce: str) -> bytes:
        # The time that comparing takes depends on digests, which nobody can steer byte by byte (fault 27).
        return blake2b(nonce.encode("utf-8", "surrogatepass"), key=self._secret, person=b"compare").digest()


@frozen(kw_only=True)
class UnverifiedProof:
    """A proof that says what it should. Whether `key` signed it isn't known yet.

    `holder` scopes its id: the key, and what it's for. `nonce` is what its sender is to use from now on, where that has
    changed.
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
    """Read a proof, and judge what it says (RFC 9449 §4.3, 2 to 12, but for 7). Never raises, whatever the text.

    `token` is what it came with; with a `mint` it must have one of its nonces.
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
        if not mint.takes(nonce, wall=wall):
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
    """The key that it brings, or what's wrong with it."""
    if jws.typ != PROOF_TYPE:
        return f"typ {PROOF_TYPE}"
    # It was read once, by a reader that looks at no key in it.
    header: dict[str, Any] = read_json(
        decode_base64url(jws.signing_input.partition(b".")[0]) or b"", max_depth=_MAX_DEPTH
    )
    key = read_key(header.get("jwk"))
    if key is None or key.algorithm is not jws.algorithm:
        return "in jwk a public key for alg, and nothing private of it"
    if not is_possible(key, jws.signature):
        return "a signature by the key in jwk"
    return key


def _claims_of(jws: Jws) -> dict[str, Any] | str:
    try:
        claims = read_json(jws.payload, max_depth=_MAX_DEPTH)
    except NotJson as error:
        return f"claims in JSON: {error.expected}"
    return claims if isinstance(claims, dict) else "claims that are an object"


def _wrong(claims: dict[str, Any], proof: DpopProof, *, token: str, policy: DpopPolicy, wall: WallTime) -> str | None:
    if claims.get("htm") != proof.method:
        return "htm to be the method"
    url = claims.get("htu")
    here = comparable_url(proof.url)
    if here is None or not isinstance(url, str) or comparable_url(url) != here:
        return "htu to be the URL that the agent's manifest has"
    issued = claims.get("iat")
    # bool is an int to Python only.
    if type(issued) not in (int, float) or not wall - policy.max_age <= issued <= wall + policy.skew:  # type: ignore[operator] # a number by its type
        return f"iat at most {policy.max_age:g} s ago and {policy.skew:g} s ahead"
    if not is_proof_id(claims.get("jti")):
        return "a jti of 1 to 256 characters"
    if claims.get("ath") != token_hash(token):
        return "ath to be the hash of the token"
    return None
