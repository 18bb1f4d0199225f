"""An authenticator for tokens that only their provider can read (RFC 7662): the provider is asked about each."""

from asap_adapters.auth.provider_authenticator import REPLACED, ProviderAuthenticator
from asap_adapters.net.outbound_transport import HttpOptions
from asap_adapters.system import new_secret
from asap_core.arguments import replaced
from asap_core.auth.client_credentials import ClientKey, ClientSecret
from asap_core.auth.introspection_response import IntrospectionPolicy
from asap_core.auth.principal import Authenticated, Credential, InsufficientScope
from asap_core.client.token_introspection import TokenIntrospection
from asap_core.net.outbound import OutboundPolicy


class IntrospectionAuthenticator(ProviderAuthenticator):
    """An authenticator that asks a provider whom tokens stand for: `serve(…, authenticate=introspection)`.

    Use it as `async with IntrospectionAuthenticator(…)`, or close it with `aclose()`.

    policy: which responses are accepted, and for how long they are kept
    client: what authenticates us to the provider (§2.1)
    endpoint: the URL to ask; by default the one in the metadata of the policy's issuer
    outbound, http: as in `JwtAuthenticator`

    Raises ValueError if both `endpoint` and the policy's issuer are missing, or an argument is invalid.
    """

    proofs = TokenIntrospection.proofs

    @replaced(**REPLACED)
    def __init__(
        self,
        policy: IntrospectionPolicy,
        client: ClientSecret | ClientKey,
        *,
        endpoint: str | None = None,
        outbound: OutboundPolicy | None = None,
        http: HttpOptions | None = None,
    ) -> None:
        super().__init__(outbound, http)
        self._introspection = TokenIntrospection(
            self._driver.runtime, self._requests, policy, client, secret=new_secret(), endpoint=endpoint
        )

    @property
    def waiting(self) -> int:
        """How many tasks wait for the provider."""
        return self._introspection.waiting

    async def verify(self, credential: Credential) -> Authenticated | InsufficientScope | None:
        """Return whom the token stands for, or None if it isn't good. Raises `IntrospectionUnavailable` if unknown."""
        return await self._driver.run(self._introspection.verify(credential), checkpoint=False)
