"""Who a caller is and how it proves that, for servers and clients: bearer tokens, JWT, DPoP, OAuth 2.

Each name is imported on first use, as in `asap_core`.
"""

from typing import TYPE_CHECKING, Final

from asap_core.lazy_imports import lazy_names

if TYPE_CHECKING:
    from asap_core.auth.authorization import ClientCredentials as ClientCredentials
    from asap_core.auth.claims import ByClaim as ByClaim, BySubject as BySubject, TokenPolicy as TokenPolicy
    from asap_core.auth.client_credentials import (
        ClientKey as ClientKey,
        ClientSecret as ClientSecret,
        SecretMethod as SecretMethod,
    )
    from asap_core.auth.dpop_client import ProofKey as ProofKey
    from asap_core.auth.dpop_server import DpopPolicy as DpopPolicy, ProofRequirement as ProofRequirement
    from asap_core.auth.introspection_response import IntrospectionPolicy as IntrospectionPolicy
    from asap_core.auth.jwks import (
        EcKey as EcKey,
        OkpKey as OkpKey,
        RsaKey as RsaKey,
        VerificationKey as VerificationKey,
    )
    from asap_core.auth.jws import Algorithm as Algorithm
    from asap_core.auth.principal import ProofOffer as ProofOffer
    from asap_core.auth.token_cache import Token as Token

_HOMES: Final = {
    "asap_core.auth.authorization": "ClientCredentials",
    "asap_core.auth.claims": "ByClaim BySubject TokenPolicy",
    "asap_core.auth.client_credentials": "ClientKey ClientSecret SecretMethod",
    "asap_core.auth.dpop_client": "ProofKey",
    "asap_core.auth.dpop_server": "DpopPolicy ProofRequirement",
    "asap_core.auth.introspection_response": "IntrospectionPolicy",
    "asap_core.auth.jwks": "EcKey OkpKey RsaKey VerificationKey",
    "asap_core.auth.jws": "Algorithm",
    "asap_core.auth.principal": "ProofOffer",
    "asap_core.auth.token_cache": "Token",
}

__all__ = sorted(name for names in _HOMES.values() for name in names.split())  # noqa: PLE0605 - the table above

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
