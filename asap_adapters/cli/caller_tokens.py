"""`--oidc`, `--introspect` and what goes with them: callers' tokens come from an identity provider."""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from attrs import frozen

from asap_adapters.auth.authenticator import AuthenticationResult, Authenticator
from asap_adapters.cli.introspect import introspection, introspection_policy
from asap_adapters.cli.output import UserError
from asap_core.auth.claims import ByClaim, BySubject, TokenPolicy
from asap_core.auth.dpop_server import DpopPolicy, ProofRequirement
from asap_core.auth.introspection_response import IntrospectionPolicy
from asap_core.auth.principal import Credential, ProofOffer, TokenTable
from asap_core.auth.provider import metadata_urls

if TYPE_CHECKING:
    from asap_adapters.auth.introspection import IntrospectionAuthenticator
    from asap_adapters.auth.jwt import JwtAuthenticator


def add_oidc(add: Any) -> None:
    """Add the options of this module."""
    add("--oidc", metavar="ISSUER", help="let in who has a token of this OpenID Connect or OAuth 2 provider")
    add("--audience", metavar="NAME", action="append", default=[], help="whom its tokens must be for (repeatable)")
    add("--scope", metavar="SCOPE", action="append", default=[], help="what they must allow, all of it (repeatable)")
    add("--agent-claim", metavar="NAME", help="the claim that is the URN of the bearer's agent")
    add("--subject", metavar="SUB=URN", action="append", default=[], help="let in this subject as URN (repeatable)")
    add("--subject-claim", metavar="NAME", default="sub", help="the claim that says the subject (default: sub)")
    add("--oidc-network", metavar="NET", action="append", default=[], help="a private network that it may be in")
    add(
        "--dpop",
        choices=[each.value for each in ProofRequirement],
        help="proofs that a token's sender holds its key (default: allowed)",
    )
    add("--dpop-nonce", action="store_true", help="each with a nonce of ours, so that none is made ahead")


def policy_of(arguments: argparse.Namespace) -> TokenPolicy | IntrospectionPolicy | None:
    """Which tokens of the provider are good; None without one. Raises UserError."""
    if arguments.introspect is not None:
        try:
            return introspection_policy(arguments, _agent(arguments))
        except ValueError as error:
            raise UserError(f"--introspect: {error}", usage=True) from None
    if arguments.any_audience or arguments.client_id is not None:
        raise UserError("--client-id and --any-audience go with --introspect", usage=True)
    if arguments.oidc is None:
        given = (arguments.audience, arguments.scope, arguments.agent_claim, arguments.subject, arguments.oidc_network)
        if any((*given, arguments.dpop, arguments.dpop_nonce)):
            message = (
                "--audience, --scope, --agent-claim, --subject, --oidc-network, --dpop and --dpop-nonce go with --oidc"
            )
            raise UserError(message, usage=True)
        return None
    if not arguments.audience:
        raise UserError("--oidc needs --audience: tokens for other services aren't for this agent", usage=True)
    try:
        metadata_urls(arguments.oidc)
        return TokenPolicy(
            issuer=arguments.oidc,
            audience=arguments.audience,
            agent=_agent(arguments),
            scopes=arguments.scope,
            dpop=_dpop(arguments),
        )
    except ValueError as error:
        raise UserError(f"--oidc: {error}", usage=True) from None


def _dpop(arguments: argparse.Namespace) -> DpopPolicy:
    policy = DpopPolicy(proofs=arguments.dpop or ProofRequirement.ALLOWED, nonce=arguments.dpop_nonce)
    if policy.nonce and policy.proofs is ProofRequirement.OFF:
        raise ValueError("--dpop-nonce is for proofs, and with --dpop off there are none")
    if policy.proofs is ProofRequirement.REQUIRED and (arguments.token or arguments.token_file):
        raise ValueError("with --dpop required nobody is let in by --token or --token-file, which no key is bound to")
    return policy


def _agent(arguments: argparse.Namespace) -> ByClaim | BySubject:
    if arguments.subject and arguments.agent_claim is not None:
        raise UserError("expected --subject or --agent-claim, not both", usage=True)
    if arguments.agent_claim is not None:
        return ByClaim(arguments.agent_claim)
    if not arguments.subject:
        # No default: where users choose a claim's value themselves, it would let them name themselves.
        raise ValueError("expected --subject SUB=URN for each who is let in, or --agent-claim NAME")
    # The last "=": subjects may have one, a URN has none.
    pairs = [pair.rpartition("=") for pair in arguments.subject]
    if not all(subject for subject, _, _ in pairs) or len({subject for subject, _, _ in pairs}) < len(pairs):
        raise ValueError("expected every subject once, as SUB=URN")
    return BySubject({subject: urn for subject, _, urn in pairs}, claim=arguments.subject_claim)


@frozen
class _TableOrProvider:
    """Looks tokens up in the table first, then asks the provider. Those of the table are bearer tokens, always."""

    table: TokenTable
    provider: "JwtAuthenticator | IntrospectionAuthenticator"

    @property
    def proofs(self) -> ProofOffer | None:
        """Which proofs the provider's tokens may come with."""
        return self.provider.proofs

    async def verify(self, credential: Credential) -> AuthenticationResult:
        """Whom the token stands for."""
        return self.table.verify(credential) or await self.provider.verify(credential)


@asynccontextmanager
async def authenticator(arguments: argparse.Namespace, table: TokenTable) -> AsyncIterator[Authenticator | None]:
    """Open what verifies tokens: the table, and the provider for those that aren't in it. None without both."""
    policy = policy_of(arguments)
    if policy is None:
        yield table if len(table) else None
        return
    if isinstance(policy, IntrospectionPolicy):
        async with introspection(arguments, policy) as made:
            yield _TableOrProvider(table, made)
        return
    try:
        from asap_adapters.auth.jwt import JwtAuthenticator  # noqa: PLC0415 - an extra of its own
    except ImportError:
        raise UserError('--oidc needs the extra "jwt": pip install "asap-sansio[jwt]"') from None
    try:
        tokens = JwtAuthenticator(policy, allow_networks=arguments.oidc_network, nonce_secret=arguments.nonce_secret)
    except ValueError as error:
        raise UserError(f"--oidc-network: {error}", usage=True) from None

    async with tokens:
        yield _TableOrProvider(table, tokens)
