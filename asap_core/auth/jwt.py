"""Verifying a JWT, from its text to a principal, as linked states: each offers only the moves that are legal in it.

    open ─▶ NeedKeys ─▶ VerifySignature ─▶ Accepted | InsufficientScope | Rejected
       │        └──────────────────────▶ Rejected | KeysUnavailable
       ├─▶ Accepted (verified before)
       └─▶ ProofRefused                        with a proof, instead of Accepted and InsufficientScope:
                                               VerifyProof ─▶ Proven | InsufficientScope | ProofRefused

A driver is one `match`: it fetches keys, checks signatures, and decides nothing. `docs/credentials.md` lists the items
of RFC 8725 and what answers each.
"""

from hashlib import blake2b
from typing import Final, assert_never

from attrs import define, field, frozen

from asap_core.auth.claims import Accepted, Rejected, TokenPolicy, judge_claims, wrong_key
from asap_core.auth.dpop_server import NonceMint, ProofRequirement, UnverifiedProof, read_proof
from asap_core.auth.jwks import KeySet, VerificationKey, is_possible
from asap_core.auth.jws import Jws, Malformed, read_jws
from asap_core.auth.keyring import FetchKeys, KeyRing, NoFetch
from asap_core.auth.principal import DpopProof, InsufficientScope, ProofRefused, Proven
from asap_core.clock import Instant, Moment, WallTime
from asap_core.lru import Lru

# 128 bits under a secret key: too many to find a second token with the digest of a known one.
_DIGEST: Final = 16


@frozen
class KeysUnavailable:
    """Whether the token is good can't be decided now: the provider doesn't answer, and it may have a new key."""


JwtVerdict = Accepted | Proven | InsufficientScope | Rejected | ProofRefused | KeysUnavailable


@frozen
class _Known:
    accepted: Accepted
    key: VerificationKey
    until: Instant


class JwtVerifier:
    """Judges the tokens of one issuer, and remembers the good ones. One event loop owns it.

    secret: 32 random bytes for the digests that tokens are remembered by; no token is kept in clear
    nonce_secret: the secret of nonces for proofs, the same in all processes that serve one agent; by default, one that
        is derived from `secret`
    """

    def __init__(self, policy: TokenPolicy, *, secret: bytes, nonce_secret: bytes | None = None) -> None:
        self.policy = policy
        self.ring = KeyRing(policy)
        self._secret = secret
        own = blake2b(b"nonces", key=secret).digest() if nonce_secret is None else nonce_secret
        self._mint = NonceMint(own, life=policy.dpop.nonce_life) if policy.dpop.nonce else None
        self._known: Lru[bytes, _Known] = Lru(policy.max_known)

    def __len__(self) -> int:
        """How many tokens are remembered."""
        return len(self._known)

    def open(self, token: str, *, proof: DpopProof | None = None, at: Moment) -> "TokenState":
        """Begin to judge a token and the `proof` that came with it, if any. Never raises, whatever the text."""
        jws = read_jws(token, algorithms=self.policy.algorithms)
        if isinstance(jws, Malformed):
            return Rejected(jws.expected)
        read = None if proof is None else self._read_proof(proof, token, at.wall)
        if isinstance(read, (ProofRefused, Rejected)):
            return read
        run = _Run(self, blake2b(token.encode("ascii"), key=self._secret, digest_size=_DIGEST).digest(), jws, read)
        return self._after(run, self.ring.due(now=at.now), at=at)

    def _read_proof(self, proof: DpopProof, token: str, wall: WallTime) -> UnverifiedProof | ProofRefused | Rejected:
        policy = self.policy.dpop
        if policy.proofs is ProofRequirement.OFF:
            return Rejected("a bearer token, without a proof")
        return read_proof(proof, token=token, policy=policy, mint=self._mint, wall=wall)

    def _after(self, run: "_Run", due: FetchKeys | NoFetch | None, *, at: Moment) -> "TokenState":
        match due:
            case FetchKeys():
                return NeedKeys(due, run)
            case NoFetch.UNREACHABLE:
                return KeysUnavailable()
            case NoFetch.UNKNOWN:
                return Rejected("a key of the issuer's")
            case None:
                return self._with_keys(run, at=at)
            case _:
                assert_never(due)

    def _with_keys(self, run: "_Run", *, at: Moment) -> "TokenState":
        keys = self.ring.usable(now=at.now)
        if keys is None:
            return KeysUnavailable()
        known = self._recall(run.digest, keys, at=at)
        if known is not None:
            # Only the token was verified before: a proof is for one request.
            wrong = wrong_key(known.bound, run.proof_key, self.policy.dpop)
            return run.judged(known) if wrong is None else Rejected(wrong)
        key = keys.key_for(run.jws)
        if key is None:
            return self._without_key(run, keys, at=at)
        if not is_possible(key, run.jws.signature):
            return Rejected("a signature by the issuer's key")
        return VerifySignature(key, run.jws.signing_input, run.jws.signature, run)

    def _without_key(self, run: "_Run", keys: KeySet, *, at: Moment) -> "TokenState":
        if run.jws.kid is None and keys.keys:
            # The token doesn't say which key it is, and fetching the keys again wouldn't either.
            return Rejected("a kid, since the issuer has several keys or none of this kind")
        return self._after(run, self.ring.missing(now=at.now), at=at)

    # --- what was verified before ------------------------------------------------------------------------------------

    def _recall(self, digest: bytes, keys: KeySet, *, at: Moment) -> Accepted | None:
        known = self._known.peek(digest)
        if known is None:
            return None
        # It ends on whichever clock reaches its end first, and with the key that signed it.
        if at.now < known.until and at.wall < known.accepted.until and known.key in keys.keys:
            self._known.touch(digest)
            return known.accepted
        self._known.pop(digest)
        return None

    def remember(self, digest: bytes, accepted: Accepted, key: VerificationKey, *, at: Moment) -> None:
        """Remember a verified token. The least recently used one is forgotten for it."""
        self._known.put(digest, _Known(accepted, key, Instant(at.now + (accepted.until - at.wall))))


@define(eq=False)
class _Run:
    """What the states of one token share."""

    verifier: JwtVerifier
    digest: bytes = field(repr=False)
    jws: Jws
    proof: UnverifiedProof | None

    @property
    def proof_key(self) -> str | None:
        """The thumbprint of the proof's key; whether it signed the proof is checked last."""
        return None if self.proof is None else self.proof.thumbprint

    def judged(self, verdict: Accepted | InsufficientScope) -> "VerifyProof | JwtVerdict":
        """Return the verdict on a good token, or what verifies the proof that came with it."""
        if self.proof is None:
            return verdict
        return VerifyProof(self.proof.key, self.proof.signing_input, self.proof.signature, verdict, self.proof)


@define(eq=False)
class NeedKeys:
    """Fetch the issuer's key set; unless `fetch.again`, a cached one will do. `fetch.patience` bounds the wait.

    Leads to: `fetched` ─▶ VerifySignature | VerifyProof | Accepted | InsufficientScope | Rejected | NeedKeys;
    `unavailable` ─▶ the same by older keys, or KeysUnavailable.
    """

    fetch: FetchKeys
    _run: _Run = field(repr=False)

    def fetched(self, keys: KeySet, *, age: float, at: Moment) -> "TokenState":
        """The key set was fetched; the provider vouched for it `age` seconds ago."""
        verifier = self._run.verifier
        verifier.ring.fetched(self.fetch, keys, age=age, now=at.now)
        return verifier._with_keys(self._run, at=at)  # noqa: SLF001 - one module, one machine

    def unavailable(self, *, at: Moment) -> "TokenState":
        """The fetch failed or took too long: older keys serve, within their bound."""
        verifier = self._run.verifier
        verifier.ring.failed(self.fetch, now=at.now)
        return verifier._with_keys(self._run, at=at)  # noqa: SLF001 - one module, one machine

    def abandon(self, *, now: Instant) -> None:
        """The caller has left."""
        self._run.verifier.ring.abandoned(self.fetch, now=now)


@define(eq=False)
class VerifySignature:
    """Check whether `signature` is one of `signing_input` by `key`, under the key's own algorithm.

    Leads to: `good` ─▶ Accepted | InsufficientScope | Rejected | VerifyProof; `bad` ─▶ Rejected.
    """

    key: VerificationKey
    signing_input: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    _run: _Run = field(repr=False)

    def good(self, *, at: Moment) -> "VerifyProof | JwtVerdict":
        """The signature holds: judge the claims."""
        verifier = self._run.verifier
        verdict = judge_claims(self._run.jws, verifier.policy, wall=at.wall, proof_key=self._run.proof_key)
        if isinstance(verdict, Accepted):
            verifier.remember(self._run.digest, verdict, self.key, at=at)
        return verdict if isinstance(verdict, Rejected) else self._run.judged(verdict)

    def bad(self) -> JwtVerdict:
        """The signature doesn't hold. Keys aren't fetched for that: forged tokens would cause a fetch each."""
        return Rejected("a signature by the issuer's key")


@define(eq=False)
class VerifyProof:
    """Check whether `signature` is one of `signing_input` by `key`: the caller's key, which the token names.

    Leads to: `good` ─▶ Proven | InsufficientScope; `bad` ─▶ ProofRefused.
    """

    key: VerificationKey
    signing_input: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    _verdict: Accepted | InsufficientScope
    _proof: UnverifiedProof = field(repr=False)

    def good(self) -> Proven | InsufficientScope:
        """The signature holds. Whether the proof is new remains to be checked: the `Exchange` claims it."""
        if isinstance(self._verdict, InsufficientScope):
            return self._verdict
        proof = self._proof
        return Proven(
            principal=self._verdict.principal,
            holder=proof.holder,
            proof_id=proof.proof_id,
            issued=proof.issued,
            nonce=proof.nonce,
        )

    def bad(self) -> ProofRefused:
        """The signature doesn't hold."""
        return ProofRefused("a signature by the key in jwk")


TokenState = NeedKeys | VerifySignature | VerifyProof | JwtVerdict
