"""Credentials carried out: how a server verifies tokens, how a client gets them, and keys in files.

Each name is imported on first use, with the packages that it needs; if one is missing, the error names the extra.
"""

from typing import TYPE_CHECKING, Final

from asap_core.lazy_imports import lazy_names

if TYPE_CHECKING:
    from asap_adapters.auth.client_keys import DpopKey as DpopKey, read_client_key as read_client_key
    from asap_adapters.auth.introspection import IntrospectionAuthenticator as IntrospectionAuthenticator
    from asap_adapters.auth.jwt import JwtAuthenticator as JwtAuthenticator
    from asap_adapters.auth.signing_key import PrivateKey as PrivateKey
    from asap_core.auth.authorization import ClientCredentials as ClientCredentials
    from asap_core.auth.claims import ByClaim as ByClaim, BySubject as BySubject, TokenPolicy as TokenPolicy
    from asap_core.auth.client_credentials import ClientKey as ClientKey, ClientSecret as ClientSecret
    from asap_core.auth.dpop_server import DpopPolicy as DpopPolicy
    from asap_core.auth.introspection_response import IntrospectionPolicy as IntrospectionPolicy
    from asap_core.auth.principal import (
        InsufficientScope as InsufficientScope,
        ProofOffer as ProofOffer,
        ProofRefused as ProofRefused,
        Proven as Proven,
    )
    from asap_core.client.jwt_authentication import ProviderUnavailable as ProviderUnavailable
    from asap_core.client.token_introspection import IntrospectionUnavailable as IntrospectionUnavailable

_HOMES: Final = {
    "asap_adapters.auth.client_keys": "DpopKey read_client_key",
    "asap_adapters.auth.introspection": "IntrospectionAuthenticator",
    "asap_adapters.auth.jwt": "JwtAuthenticator",
    "asap_adapters.auth.signing_key": "PrivateKey",
    "asap_core.auth.authorization": "ClientCredentials",
    "asap_core.auth.claims": "ByClaim BySubject TokenPolicy",
    "asap_core.auth.client_credentials": "ClientKey ClientSecret",
    "asap_core.auth.dpop_server": "DpopPolicy",
    "asap_core.auth.introspection_response": "IntrospectionPolicy",
    "asap_core.auth.principal": "InsufficientScope ProofOffer ProofRefused Proven",
    "asap_core.client.jwt_authentication": "ProviderUnavailable",
    "asap_core.client.token_introspection": "IntrospectionUnavailable",
}

__all__ = sorted(name for names in _HOMES.values() for name in names.split())  # noqa: PLE0605 - the table above

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
