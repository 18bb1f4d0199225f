"""An authenticator for the JSON Web Tokens of an OpenID Connect or OAuth 2 provider: signatures are joserfc's."""

from collections.abc import Callable
from functools import lru_cache
from typing import Final, assert_never

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from asap_adapters.auth.provider_authenticator import REPLACED, ProviderAuthenticator
from asap_adapters.net.outbound_transport import HttpOptions
from asap_adapters.system import new_secret
from asap_core.arguments import replaced
from asap_core.auth.claims import TokenPolicy
from asap_core.auth.jwks import MAX_KEYS, EcKey, OkpKey, RsaKey, VerificationKey, public_jwk
from asap_core.auth.principal import AuthenticationResult, Credential
from asap_core.client.jwt_authentication import JwtAuthentication
from asap_core.net.outbound import OutboundPolicy

# Callers whose keys are kept imported, some 2 KB each; importing one takes 50 µs.
_MAX_CALLERS: Final = 1_000

_Key = OKPKey | ECKey | RSAKey


class JwtAuthenticator(ProviderAuthenticator):
    """An authenticator for the JSON Web Tokens of one issuer: `serve(…, authenticate=tokens)`.

    Use it as `async with JwtAuthenticator(…)`, or close it with `aclose()`. The provider is first asked when the first
    token comes.

    policy: which tokens and proofs are accepted
    outbound: where the provider may be, such as `OutboundPolicy(allow_networks=["10.0.0.0/8"])`
    http: how it's asked, such as `HttpOptions(trust_env=True)`
    nonce_secret: 16 to 64 random bytes, the same in all processes that serve one agent whose policy asks for nonces

    Raises ValueError if an argument is invalid.
    """

    @replaced(**REPLACED)
    def __init__(
        self,
        policy: TokenPolicy,
        *,
        outbound: OutboundPolicy | None = None,
        http: HttpOptions | None = None,
        nonce_secret: bytes | None = None,
    ) -> None:
        super().__init__(outbound, http)
        self._authentication = JwtAuthentication(
            self._driver.runtime,
            self._requests,
            policy,
            verify_signature=is_signature,
            verify_proof=_is_callers_signature,
            secret=new_secret(),
            nonce_secret=nonce_secret,
        )
        self.proofs = self._authentication.proofs
        """Which proofs it verifies, as callers are told; None: none."""

    async def verify(self, credential: Credential) -> AuthenticationResult:
        """Return whom the token stands for, or None if it isn't good. Raises `ProviderUnavailable` if neither is known.

        With a proof the result is `Proven`: the server must claim the proof, as `asap_core.Agent` does.
        """
        return await self._driver.run(self._authentication.verify(credential), checkpoint=False)


def is_signature(key: VerificationKey, signing_input: bytes, signature: bytes) -> bool:
    """Whether this is a signature by that key, under the algorithm that the key is for. Never raises."""
    return _holds(_imported, key, signing_input, signature)


def _is_callers_signature(key: VerificationKey, signing_input: bytes, signature: bytes) -> bool:
    return _holds(_imported_callers, key, signing_input, signature)


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
