"""Authenticates a server's callers by JSON Web Tokens, as programs: fetches the issuer's keys, and applies them.

`asap_core.auth.jwt` decides which key counts, when keys are fetched, and what a token must say.
"""

from collections.abc import Callable
from typing import Final, assert_never

from asap_core.auth.claims import Accepted, Rejected, TokenPolicy
from asap_core.auth.jwks import MAX_KEY_SET, KeySet, VerificationKey, read_key_set
from asap_core.auth.jwt import JwtVerifier, KeysUnavailable, NeedKeys, TokenState, VerifyProof, VerifySignature
from asap_core.auth.principal import AuthenticationResult, Credential, InsufficientScope, ProofRefused, Proven
from asap_core.client.body_reader import WholeParser
from asap_core.client.document_cache import DocumentCachePolicy
from asap_core.client.documents import Documents, LocatedDocument
from asap_core.client.programs import Program, within
from asap_core.client.provider import Provider
from asap_core.client.requests import Requests
from asap_core.client.runtime import Runtime
from asap_core.errors import AsapError
from asap_core.http.caching import FreshnessPolicy

_LOGGER: Final = "asap.jwt"

SignatureVerifier = Callable[[VerificationKey, bytes, bytes], bool]
"""Whether `key, signing_input, signature` are a signature under the key's own algorithm. Never raises."""


class ProviderUnavailable(OSError):
    """The identity provider can't be reached, and the cached keys don't decide whether a token is good."""


class JwtAuthentication:
    """Verifies the tokens of one issuer, and the proofs of possession that come with them.

    policy: which tokens and proofs are accepted.
    verify_signature: checks the signature of a token, by a key of the issuer.
    verify_proof: checks the signature of a proof, by a key that its caller chose. If imported keys are cached, those of
        callers may not evict the issuer's.
    secret: 32 random bytes for the digests that tokens are remembered by.
    nonce_secret: 16 to 64 random bytes, the same in all processes that serve one agent whose policy asks for nonces.

    Raises: ValueError if the policy isn't a `TokenPolicy`, or its issuer isn't a valid one.
    """

    def __init__(
        self,
        runtime: Runtime,
        requests: Requests,
        policy: TokenPolicy,
        *,
        verify_signature: SignatureVerifier,
        verify_proof: SignatureVerifier,
        secret: bytes,
        nonce_secret: bytes | None = None,
    ) -> None:
        if not isinstance(policy, TokenPolicy):
            raise ValueError("policy: expected a TokenPolicy")  # noqa: TRY004 - as for all that's given
        self.proofs = policy.dpop.offer()
        """Which proofs it verifies, as callers are told; None: none."""
        self._runtime = runtime
        self._verify_signature = verify_signature
        self._verify_proof = verify_proof
        self._verifier = JwtVerifier(policy, secret=secret, nonce_secret=nonce_secret)
        self._provider = Provider(runtime, requests, policy.issuer, fresh_for=policy.fresh_for)
        # The key ring decides how long keys serve, during an outage too; here they're cached no longer than that.
        once = DocumentCachePolicy(
            freshness=FreshnessPolicy(
                default=policy.fresh_for, most=policy.fresh_for, stale_while_revalidate=0.0, stale_if_error=0.0
            ),
            longest_failure=policy.cool_down,
        )
        self._keys: Documents[KeySet] = Documents(
            runtime, requests, parser=lambda: WholeParser(read_key_set), limit=MAX_KEY_SET, policy=once
        )

    @property
    def waiting(self) -> int:
        """Return how many programs wait for keys."""
        return self._verifier.ring.waiting

    def verify(self, credential: Credential) -> Program[AuthenticationResult]:
        """Return whom the token stands for, or None if it isn't good. Raises `ProviderUnavailable` if neither is known.

        With a proof the result is `Proven`: the server must claim the proof, as `asap_core.Agent` does.
        """
        runtime = self._runtime
        state: TokenState = self._verifier.open(credential.token, proof=credential.proof, at=runtime.moment())
        while True:
            match state:
                case Accepted(principal):
                    return principal
                case NeedKeys():
                    state = yield from self._get_keys(state)
                case VerifySignature(key, signing_input, signature):
                    good = self._verify_signature(key, signing_input, signature)
                    state = state.good(at=runtime.moment()) if good else state.bad()
                case VerifyProof(key, signing_input, signature):
                    state = state.good() if self._verify_proof(key, signing_input, signature) else state.bad()
                case Proven() | InsufficientScope():
                    return state
                case ProofRefused(expected):
                    runtime.inform(_LOGGER, f"a proof was refused: expected {expected}")
                    return state
                case Rejected(expected):
                    runtime.inform(_LOGGER, f"a token was refused: expected {expected}")
                    return None
                case KeysUnavailable():
                    raise ProviderUnavailable("the identity provider's keys can't be had")
                case _:
                    assert_never(state)

    def _get_keys(self, state: NeedKeys) -> Program[TokenState]:
        runtime, found = self._runtime, None
        with runtime.undoing(lambda: state.abandon(now=runtime.now())):
            try:
                found = yield from within(state.fetch.patience, self._fetch(again=state.fetch.again), runtime.clock)
            except AsapError as error:
                runtime.warn(_LOGGER, f"the identity provider's keys can't be had: {error}")
        if not isinstance(found, LocatedDocument):
            return state.unavailable(at=runtime.moment())
        if found.document.skipped:
            runtime.inform(_LOGGER, f"{found.document.skipped} keys of the identity provider can't be used")
        return state.fetched(found.document, age=found.age, at=runtime.moment())

    def _fetch(self, *, again: bool) -> Program[LocatedDocument[KeySet]]:
        self._provider.name()
        url = (yield from self._provider.endpoint("jwks_uri")).url
        if again:
            # All callers that miss a key come here, in any order: one fetch answers them.
            return (yield from self._keys.find(url, cool_down=self._verifier.policy.cool_down))
        return (yield from self._keys.find(url))
