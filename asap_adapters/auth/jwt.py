"""JSON Web Tokens of an OpenID Connect or OAuth 2 provider: its metadata and keys are fetched, signatures checked.

`asap_core.auth.jwt` decides which key counts, when keys are fetched, and what a token must say.
"""

import logging
import ssl
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from types import TracebackType
from typing import Final, Self, assert_never

import anyio
import httpx
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from asap_adapters.auth.provider import Provider
from asap_adapters.net.documents import Documents, LocatedDocument, WholeReader
from asap_adapters.net.transport import HttpTransport
from asap_adapters.system import LoopClock, new_secret
from asap_core.auth.claims import Accepted, Rejected, TokenPolicy
from asap_core.auth.jwks import (
    MAX_KEY_SET,
    MAX_KEYS,
    EcKey,
    KeySet,
    OkpKey,
    RsaKey,
    VerificationKey,
    public_jwk,
    read_key_set,
)
from asap_core.auth.jwt import JwtVerifier, KeysUnavailable, NeedKeys, TokenState, VerifyProof, VerifySignature
from asap_core.auth.principal import Authenticated, Credential, InsufficientScope, ProofRefused, Proven
from asap_core.client.document_cache import DocumentCachePolicy
from asap_core.clock import Moment
from asap_core.errors import AsapError
from asap_core.http.caching import FreshnessPolicy
from asap_core.net.outbound import OutboundPolicy

log: Final = logging.getLogger("asap.jwt")

# As long as other documents may take; callers' requests wait for it.
_FETCH_SECONDS: Final = 10.0
# Callers whose keys are kept imported, some 2 KB each; importing one takes 50 µs.
_MAX_CALLERS: Final = 1_000

_Key = OKPKey | ECKey | RSAKey


class ProviderUnavailable(OSError):
    """The identity provider can't be reached, and the cached keys don't decide whether a token is good."""


class JwtAuthenticator:
    """An authenticator for the JSON Web Tokens of one issuer: `serve(…, authenticate=tokens)`.

    Use it as `async with JwtAuthenticator(…)`, or close it with `aclose()`. The provider is first asked when the first
    token comes.

    policy: which tokens and proofs are accepted
    allow_http: hosts that may be asked without TLS, as in `AgentClient`
    allow_networks: private networks in which the provider may be, in CIDR notation, as in `AgentClient`
    verify: the provider's certificate authorities, as httpx takes them
    trust_env: whether proxies from the environment are used
    transport: an httpx transport instead of the network, for tests
    nonce_secret: 16 to 64 random bytes, the same in all processes that serve one agent whose policy asks for nonces

    Raises ValueError if the policy's issuer isn't a valid one.
    """

    def __init__(
        self,
        policy: TokenPolicy,
        *,
        allow_http: Collection[str] = (),
        allow_networks: Iterable[str] = (),
        verify: ssl.SSLContext | bool = True,
        trust_env: bool = False,
        transport: httpx.AsyncBaseTransport | None = None,
        nonce_secret: bytes | None = None,
    ) -> None:
        if not isinstance(policy, TokenPolicy):
            raise ValueError("policy: expected a TokenPolicy")  # noqa: TRY004 - as for all that's given
        self.proofs = policy.dpop.offer()
        """Which proofs it verifies, as callers are told; None: none."""
        self._clock = LoopClock()
        self._verifier = JwtVerifier(policy, secret=new_secret(), nonce_secret=nonce_secret)
        self._http = HttpTransport(
            token=None,
            auth={},
            policy=OutboundPolicy(allow_http=allow_http, allow_networks=allow_networks),
            timeout=_FETCH_SECONDS,
            trust_env=trust_env,
            compress=False,
            verify=verify,
            transport=transport,
        )
        # The key ring decides how long keys serve, during an outage too; here they're cached no longer than that.
        once = DocumentCachePolicy(
            freshness=FreshnessPolicy(
                default=policy.fresh_for, most=policy.fresh_for, stale_while_revalidate=0.0, stale_if_error=0.0
            ),
            longest_failure=policy.cool_down,
        )
        self._provider = Provider(self._http, self._clock, policy.issuer, fresh_for=policy.fresh_for)
        self._keys: Documents[KeySet] = Documents(
            self._http,
            self._clock,
            reader=lambda: WholeReader(read_key_set),
            limit=MAX_KEY_SET,
            policy=once,
        )

    async def __aenter__(self) -> Self:
        self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _open(self) -> None:
        self._http.open()
        self._provider.name()

    async def aclose(self) -> None:
        """Close all connections. A second time does nothing."""
        await self._http.aclose()

    async def verify(self, credential: Credential) -> Authenticated | Proven | InsufficientScope | ProofRefused | None:
        """Return whom the token stands for, or None if it isn't good. Raises `ProviderUnavailable` if neither is known.

        With a proof the result is `Proven`: the server must claim the proof, as `asap_core.Agent` does.
        """
        state: TokenState = self._verifier.open(credential.token, proof=credential.proof, at=Moment.read(self._clock))
        while True:
            match state:
                case NeedKeys():
                    state = await self._get_keys(state)
                case VerifySignature(key, signing_input, signature):
                    good = is_signature(key, signing_input, signature)
                    state = state.good(at=Moment.read(self._clock)) if good else state.bad()
                case VerifyProof(key, signing_input, signature):
                    good = _holds(_imported_callers, key, signing_input, signature)
                    state = state.good() if good else state.bad()
                case Accepted(principal):
                    return principal
                case Proven() | InsufficientScope():
                    return state
                case ProofRefused(expected):
                    log.info("a proof was refused: expected %s", expected)
                    return state
                case Rejected(expected):
                    log.info("a token was refused: expected %s", expected)
                    return None
                case KeysUnavailable():
                    raise ProviderUnavailable("the identity provider's keys can't be had")
                case _:
                    assert_never(state)

    async def _get_keys(self, state: NeedKeys) -> TokenState:
        found: LocatedDocument[KeySet] | None = None
        try:
            with anyio.move_on_after(state.fetch.patience):
                found = await self._fetch(again=state.fetch.again)
        except AsapError as error:
            log.warning("the identity provider's keys can't be had: %s", error)
        except BaseException:
            state.abandon(now=self._clock.monotonic())
            raise
        if found is None:
            return state.unavailable(at=Moment.read(self._clock))
        if found.document.skipped:
            log.info("%d keys of the identity provider can't be used", found.document.skipped)
        return state.fetched(found.document, age=found.age, at=Moment.read(self._clock))

    async def _fetch(self, *, again: bool) -> LocatedDocument[KeySet]:
        url = (await self._provider.endpoint("jwks_uri")).url
        if again:
            # All callers that miss a key come here, in any order: one fetch answers them.
            return await self._keys.refresh(url, cool_down=self._verifier.policy.cool_down)
        return await self._keys.find(url)


def is_signature(key: VerificationKey, signing_input: bytes, signature: bytes) -> bool:
    """Whether this is a signature by that key, under the algorithm that the key is for. Never raises."""
    return _holds(_imported, key, signing_input, signature)


def _holds(
    imported: Callable[[VerificationKey], _Key], key: VerificationKey, signing_input: bytes, signature: bytes
) -> bool:
    try:
        return bool(JWSRegistry.algorithms[key.algorithm.value].verify(signing_input, signature, imported(key)))
    except (JoseError, ValueError):  # OpenSSL refuses the key, so that no signature by it holds
        return False


def _import(key: VerificationKey) -> _Key:
    match key:
        case OkpKey():
            return OKPKey.import_key({**public_jwk(key)})
        case EcKey():
            return ECKey.import_key({**public_jwk(key)})
        case RsaKey():
            return RSAKey.import_key({**public_jwk(key)})
        case _:
            assert_never(key)


# Two caches: callers' keys, however many, don't evict the issuer's.
_imported: Final = lru_cache(maxsize=MAX_KEYS)(_import)
_imported_callers: Final = lru_cache(maxsize=_MAX_CALLERS)(_import)
