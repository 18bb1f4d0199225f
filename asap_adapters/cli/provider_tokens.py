"""How `asap serve` authenticates callers by an identity provider: by its keys (`--oidc`) or its introspection.

A server without these options doesn't import this module. No error repeats a token.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from attrs import frozen

from asap_adapters.auth.authenticator import Authenticator
from asap_adapters.cli.caller_tokens import CallerOptions
from asap_adapters.cli.failures import UserError
from asap_adapters.cli.oauth_credentials import client_identity
from asap_core.auth.claims import ByClaim, BySubject, TokenPolicy
from asap_core.auth.dpop_server import DpopPolicy, ProofRequirement
from asap_core.auth.introspection_response import IntrospectionPolicy
from asap_core.auth.principal import AuthenticationResult, Credential, ProofOffer, TokenTable
from asap_core.auth.provider_metadata import metadata_urls
from asap_core.net.outbound import OutboundPolicy

if TYPE_CHECKING:
    from asap_adapters.auth.introspection import IntrospectionAuthenticator
    from asap_adapters.auth.jwt import JwtAuthenticator


def provider_policy(options: CallerOptions) -> TokenPolicy | IntrospectionPolicy:
    """Return which tokens of the provider are accepted. Raises UserError."""
    source = "--oidc" if options.introspect is None else "--introspect"
    try:
        if options.introspect is not None:
            return IntrospectionPolicy(
                audience=options.audience or None, agent=_agent(options), issuer=options.oidc, scopes=options.scope
            )
        assert options.oidc is not None  # noqa: S101 - one of them is given
        metadata_urls(options.oidc)
        return TokenPolicy(
            issuer=options.oidc,
            audience=options.audience,
            agent=_agent(options),
            scopes=options.scope,
            dpop=_dpop(options),
        )
    except ValueError as error:
        raise UserError(f"{source}: {error}", usage=True) from None


def _dpop(options: CallerOptions) -> DpopPolicy:
    policy = DpopPolicy(proofs=ProofRequirement(options.dpop or ProofRequirement.ALLOWED), nonce=options.dpop_nonce)
    if policy.nonce and policy.proofs is ProofRequirement.OFF:
        raise ValueError("expected --dpop-nonce or --dpop off, not both: without proofs there is no nonce")
    if policy.proofs is ProofRequirement.REQUIRED and (options.token or options.token_file):
        raise ValueError("expected --dpop required or --token, not both: no key is bound to a token of the table")
    return policy


def _agent(options: CallerOptions) -> ByClaim | BySubject:
    if options.agent_claim is not None:
        return ByClaim(options.agent_claim)
    agents = dict(options.subject)
    if len(agents) < len(options.subject):
        raise ValueError("expected every --subject once")
    return BySubject(agents, claim=options.subject_claim)


@frozen
class _TableOrProvider:
    """Looks a token up in the table first, then asks the provider. Tokens of the table come without proof."""

    table: TokenTable
    provider: "JwtAuthenticator | IntrospectionAuthenticator"

    @property
    def proofs(self) -> ProofOffer | None:
        """Which proofs the provider's tokens may come with."""
        return self.provider.proofs

    async def verify(self, credential: Credential) -> AuthenticationResult:
        """Return whom the token stands for."""
        return self.table.verify(credential) or await self.provider.verify(credential)


@asynccontextmanager
async def table_and_provider(
    options: CallerOptions, table: TokenTable, nonce_secret: bytes | None
) -> AsyncIterator[Authenticator]:
    """Yield what authenticates callers by the table of tokens and by the provider.

    nonce_secret: what DPoP nonces are made with; server processes that share a port share it.

    Raises: UserError, OSError.
    """
    policy = provider_policy(options)
    if isinstance(policy, IntrospectionPolicy):
        async with _introspection(options, policy) as introspection:
            yield _TableOrProvider(table, introspection)
    else:
        from asap_adapters.auth import JwtAuthenticator  # noqa: PLC0415 - needs an extra

        outbound = OutboundPolicy(allow_networks=options.oidc_network)
        async with JwtAuthenticator(policy, outbound=outbound, nonce_secret=nonce_secret) as jwt:
            yield _TableOrProvider(table, jwt)


def _introspection(options: CallerOptions, policy: IntrospectionPolicy) -> "IntrospectionAuthenticator":
    from asap_adapters.auth import IntrospectionAuthenticator  # noqa: PLC0415 - most servers don't need it

    assert options.introspect is not None and options.client.client_id is not None  # noqa: PT018, S101 - CALLER_RULES
    client = client_identity(options.client, options.client.client_id)
    try:
        outbound = OutboundPolicy(allow_networks=options.oidc_network)
        return IntrospectionAuthenticator(policy, client, endpoint=options.introspect, outbound=outbound)
    except ValueError as error:
        raise UserError(f"--introspect: {error}", usage=True) from None
