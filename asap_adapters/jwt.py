"""Bearer tokens of an OpenID Connect or OAuth 2 provider: discovery, its keys, and signatures checked by joserfc.

Which key, when to ask for keys, and what a token must say is decided in `asap_core.server.jwt`; here it's carried out.
"""

import logging
import ssl
from base64 import urlsafe_b64encode
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from types import TracebackType
from typing import Any, Final, Self, assert_never

import anyio
import httpx
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from asap_adapters.clock import LoopClock
from asap_adapters.documents import Documents, Lookup, Whole
from asap_adapters.entropy import new_secret
from asap_adapters.provider import Provider
from asap_adapters.web import Web
from asap_core.client.directory import DirectoryPolicy
from asap_core.client.freshness import FreshnessPolicy
from asap_core.client.outbound import OutboundPolicy
from asap_core.errors import AsapError
from asap_core.server.claims import Accepted, ByClaim, BySubject, Rejected, TokenPolicy
from asap_core.server.identity import Authenticated, Credential, Insufficient
from asap_core.server.jwks import MAX_KEY_SET, MAX_KEYS, EcKey, KeySet, OkpKey, PublicKey, RsaKey, read_key_set
from asap_core.server.jwt import NeedKeys, TokenState, Unavailable, Verifier, VerifySignature

__all__ = ["ByClaim", "BySubject", "ProviderUnavailable", "TokenPolicy", "Tokens", "is_signature"]

log: Final = logging.getLogger("asap.jwt")

# As long as a document may take; callers' requests wait for it.
_FETCH_SECONDS: Final = 10.0
_COORDINATE: Final = 32


class ProviderUnavailable(OSError):
    """The identity provider can't be reached, and what is kept of it doesn't tell whether a token is good."""


class Tokens:
    """Tells whom JSON Web Tokens of one issuer stand for: `serve(…, authenticate=tokens.verify)`.

    `policy` says which tokens are good. The provider is asked when the first token comes; `allow_http` and
    `allow_networks` are as in `AgentClient`, `verify` and `transport` httpx's. Use it as `async with Tokens(…)`, or
    close it with `aclose()`. Raises ValueError where the policy's issuer can't be one.
    """

    def __init__(
        self,
        policy: TokenPolicy,
        *,
        allow_http: Collection[str] = (),
        allow_networks: Iterable[str] = (),
        verify: ssl.SSLContext | bool = True,
        trust_env: bool = True,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._clock = LoopClock()
        self._verifier = Verifier(policy, secret=new_secret())
        self._web = Web(
            token=None,
            auth={},
            policy=OutboundPolicy(allow_http=allow_http, allow_networks=allow_networks),
            timeout=_FETCH_SECONDS,
            trust_env=trust_env,
            compress=False,
            verify=verify,
            transport=transport,
        )
        # The key ring decides how long keys serve and outlive an outage: here they're kept no longer than it would.
        once = DirectoryPolicy(
            freshness=FreshnessPolicy(
                default=policy.fresh_for, most=policy.fresh_for, stale_while_revalidate=0.0, stale_if_error=0.0
            ),
            longest_failure=policy.cool_down,
        )
        self._provider = Provider(self._web, self._clock, policy.issuer, fresh_for=policy.fresh_for)
        self._keys: Documents[KeySet] = Documents(
            self._web,
            self._clock,
            reader=lambda: Whole(read_key_set),
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
        self._web.open()
        self._provider.name()

    async def aclose(self) -> None:
        """Close all connections. A second time does nothing."""
        await self._web.aclose()

    async def verify(self, credential: Credential) -> Authenticated | Insufficient | None:
        """Whom the token stands for; None where it's not good. Raises `ProviderUnavailable` where it can't be told."""
        state: TokenState = self._verifier.open(credential.token, now=self._clock.monotonic(), wall=self._clock.wall())
        while True:
            match state:
                case NeedKeys():
                    state = await self._get_keys(state)
                case VerifySignature(key, signing_input, signature):
                    good = is_signature(key, signing_input, signature)
                    state = state.good(**self._times()) if good else state.bad()
                case Accepted(principal):
                    return principal
                case Insufficient():
                    return state
                case Rejected(expected):
                    log.info("a token was refused: expected %s", expected)
                    return None
                case Unavailable.KEYS:
                    raise ProviderUnavailable("the identity provider's keys can't be had")
                case _:
                    assert_never(state)

    def _times(self) -> Mapping[str, Any]:
        return {"now": self._clock.monotonic(), "wall": self._clock.wall()}

    async def _get_keys(self, state: NeedKeys) -> TokenState:
        found: Lookup[KeySet] | None = None
        try:
            with anyio.move_on_after(state.ask.patience):
                found = await self._fetch(again=state.ask.again)
        except AsapError as error:
            log.warning("the identity provider's keys can't be had: %s", error)
        except BaseException:
            state.abandon(now=self._clock.monotonic())
            raise
        if found is None:
            return state.unavailable(**self._times())
        if found.document.passed_over:
            log.info("%d keys of the identity provider can't be used", found.document.passed_over)
        return state.fetched(found.document, age=found.age, **self._times())

    async def _fetch(self, *, again: bool) -> Lookup[KeySet]:
        url = (await self._provider.endpoint("jwks_uri")).url
        if again:
            # All who miss a key ask so, in whatever order they come: one fetch answers them.
            return await self._keys.refresh(url, cool_down=self._verifier.policy.cool_down)
        return await self._keys.find(url)


def is_signature(key: PublicKey, signing_input: bytes, signature: bytes) -> bool:
    """Whether this is a signature by that key, under the algorithm that the key is for. Never raises."""
    try:
        return bool(JWSRegistry.algorithms[key.algorithm.value].verify(signing_input, signature, _imported(key)))
    except (JoseError, ValueError):  # a key that OpenSSL finds fault with: nothing is signed by it
        return False


@lru_cache(maxsize=MAX_KEYS)
def _imported(key: PublicKey) -> OKPKey | ECKey | RSAKey:
    match key:
        case OkpKey(_, x):
            return OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": _text(x)})
        case EcKey(_, x, y):
            coordinates = {"x": _text(x.to_bytes(_COORDINATE)), "y": _text(y.to_bytes(_COORDINATE))}
            return ECKey.import_key({"kty": "EC", "crv": "P-256", **coordinates})
        case RsaKey(_, n, e):
            return RSAKey.import_key({"kty": "RSA", "n": _integer(n), "e": _integer(e)})
        case _:
            assert_never(key)


def _integer(value: int) -> str:
    return _text(value.to_bytes((value.bit_length() + 7) // 8))


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
