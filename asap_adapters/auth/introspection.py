"""An authenticator for tokens that only their provider can read (RFC 7662): the provider is asked about each."""

import ssl
from collections.abc import Collection, Iterable
from types import TracebackType
from typing import Self

import httpx

from asap_adapters.coding import CODINGS
from asap_adapters.driver import ProgramDriver
from asap_adapters.net.outbound_transport import OutboundTransport
from asap_adapters.system import new_secret
from asap_core.auth.client_credentials import ClientKey, ClientSecret
from asap_core.auth.introspection_response import IntrospectionPolicy
from asap_core.auth.principal import Authenticated, Credential, InsufficientScope
from asap_core.client.requests import Requests
from asap_core.client.token_introspection import TokenIntrospection
from asap_core.net.outbound import OutboundPolicy


class IntrospectionAuthenticator:
    """An authenticator that asks a provider whom tokens stand for: `serve(…, authenticate=introspection)`.

    Use it as `async with IntrospectionAuthenticator(…)`, or close it with `aclose()`.

    policy: which responses are accepted, and for how long they are kept
    client: what authenticates us to the provider (§2.1)
    endpoint: the URL to ask; by default the one in the metadata of the policy's issuer
    allow_http, allow_networks, verify, trust_env, transport: as in `JwtAuthenticator`

    Raises ValueError if both `endpoint` and the policy's issuer are missing, or the issuer isn't a valid one.
    """

    proofs = TokenIntrospection.proofs

    def __init__(
        self,
        policy: IntrospectionPolicy,
        client: ClientSecret | ClientKey,
        *,
        endpoint: str | None = None,
        allow_http: Collection[str] = (),
        allow_networks: Iterable[str] = (),
        verify: ssl.SSLContext | bool = True,
        trust_env: bool = False,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._driver = ProgramDriver(
            lambda: transport or OutboundTransport(verify=verify, trust_env=trust_env),
            owner="IntrospectionAuthenticator(…)",
        )
        runtime, allowed = self._driver.runtime, OutboundPolicy(allow_http=allow_http, allow_networks=allow_networks)
        requests = Requests(runtime, policy=allowed, codings=CODINGS)
        self._introspection = TokenIntrospection(
            runtime, requests, policy, client, secret=new_secret(), endpoint=endpoint
        )

    async def __aenter__(self) -> Self:
        self._driver.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections. A second time does nothing."""
        await self._driver.aclose()

    @property
    def waiting(self) -> int:
        """How many tasks wait for the provider."""
        return self._introspection.waiting

    async def verify(self, credential: Credential) -> Authenticated | InsufficientScope | None:
        """Return whom the token stands for, or None if it isn't good. Raises `IntrospectionUnavailable` if unknown."""
        return await self._driver.run(self._introspection.verify(credential), checkpoint=False)
