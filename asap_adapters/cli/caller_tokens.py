"""How `asap serve` authenticates its callers: by a table of tokens, an identity provider's keys, or its introspection.

The options are `--token`, `--oidc`, `--introspect`, and those that need them. No error repeats a token.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import frozen

from asap_adapters.auth.authenticator import Authenticator
from asap_adapters.cli.command import Excludes, Needs, OptionRule, choice, flag, nested, option, repeated
from asap_adapters.cli.exit_codes import UserError
from asap_adapters.cli.oauth_client import CLIENT_RULES, OAuthClientOptions, client_identity
from asap_adapters.cli.options import network, scope, url, urn
from asap_core.auth.claims import ByClaim, BySubject, TokenPolicy
from asap_core.auth.dpop_server import DpopPolicy, ProofRequirement
from asap_core.auth.introspection_response import IntrospectionPolicy
from asap_core.auth.principal import AuthenticationResult, Credential, ProofOffer, TokenTable
from asap_core.auth.provider_metadata import metadata_urls
from asap_core.net.outbound import OutboundPolicy
from asap_core.wire.rules import URN

if TYPE_CHECKING:
    from asap_adapters.auth.introspection import IntrospectionAuthenticator
    from asap_adapters.auth.jwt import JwtAuthenticator


def _subject(text: str) -> tuple[str, str]:
    # The last "=": a subject may contain one, a URN doesn't.
    subject, _, agent = text.rpartition("=")
    if not subject or not URN.fits(agent):
        raise ValueError("expected a subject as SUB=URN, such as client-7=urn:asap:agent:alice")
    return subject, agent


@frozen(kw_only=True)
class CallerOptions:
    """Which callers are let in, and as which agent."""

    token: Sequence[str] = repeated(
        "--token TOKEN=URN",
        str,
        "let in callers with this bearer token, as the agent URN; prefer --token-file: process lists show options",
    )
    token_file: Path | None = option(
        "--token-file FILE", Path, "read TOKEN=URN from this file, one a line; # begins a comment"
    )
    oidc: str | None = option(
        "--oidc ISSUER",
        str,
        "let in callers with a JWT of this OpenID Connect or OAuth 2 provider; needs the extra jwt",
    )
    introspect: str | None = option(
        "--introspect URL", url, "ask this introspection endpoint (RFC 7662) about callers' tokens"
    )
    audience: Sequence[str] = repeated("--audience NAME", str, "accept only tokens that are issued for this audience")
    any_audience: bool = flag(
        "--any-audience", "accept tokens for any audience, because the endpoint answers for this agent alone"
    )
    scope: Sequence[str] = repeated("--scope SCOPE", scope, "accept only tokens with this scope")
    subject: Sequence[tuple[str, str]] = repeated(
        "--subject SUB=URN", _subject, "let in tokens of this subject, as the agent URN"
    )
    subject_claim: str = option("--subject-claim NAME", str, "read the subject from this claim", default="sub")
    agent_claim: str | None = option(
        "--agent-claim NAME", str, "read the agent's URN from this claim; choose one that only the provider can set"
    )
    oidc_network: Sequence[str] = repeated(
        "--oidc-network CIDR", network, "allow the provider to be in this private network, such as 10.0.0.0/8"
    )
    dpop: str | None = choice(
        "--dpop",
        tuple(each.value for each in ProofRequirement),
        "require proof of possession (DPoP, RFC 9449) for tokens that are bound to a key (allowed), require it for all "
        "(required), or refuse such tokens (off)",
        shown_default=ProofRequirement.ALLOWED.value,
    )
    dpop_nonce: bool = flag("--dpop-nonce", "require in each proof a nonce that this server issued")
    client: OAuthClientOptions = nested(OAuthClientOptions)


_OF_PROVIDER: Final = ["--oidc", "--introspect"]
_OF_JWT: Final = ["--dpop", "--dpop-nonce"]
# Where users can set a claim, one that names the agent by default would let them choose who they are.
_NO_DEFAULT: Final = "no claim names the agent by default"
CALLER_RULES: Final[Sequence[OptionRule]] = (
    *(Needs(each, _OF_PROVIDER) for each in ("--audience", "--scope", "--agent-claim", "--subject", "--oidc-network")),
    *(Needs(each, ["--introspect"]) for each in ("--any-audience", "--client-id")),
    *(Excludes(each, ["--introspect"], "proofs aren't checked for introspected tokens") for each in _OF_JWT),
    *(Needs(each, ["--oidc"]) for each in _OF_JWT),
    Needs("--oidc", ["--audience"], "tokens for other services aren't for this agent", unless="--introspect"),
    Needs("--introspect", ["--audience", "--any-audience"]),
    Excludes("--audience", ["--any-audience"]),
    *(Needs(each, ["--subject", "--agent-claim"], _NO_DEFAULT) for each in _OF_PROVIDER),
    Excludes("--subject", ["--agent-claim"]),
    Needs("--introspect", ["--client-id"]),
    *CLIENT_RULES,
)


# --- the table: --token and --token-file -----------------------------------------------------------------------------


def read_tokens(given: Iterable[str], file: Path | None) -> TokenTable:
    """Read TOKEN=URN pairs, those given and those in `file`. Raises OSError, and UserError that names the place."""
    pairs = [("--token", pair) for pair in given]
    if file is not None:
        pairs += _lines(file)
    table: dict[str, str] = {}
    for where, pair in pairs:
        # The last "=": base64 ends in "=", a URN has none.
        token, separator, agent = pair.rpartition("=")
        if not separator:
            raise UserError(f"{where}: expected TOKEN=URN", usage=True)
        if token in table:
            raise UserError(f"{where}: expected every token once", usage=True)
        _check(where, token, agent)
        table[token] = agent
    return TokenTable(table)


def _check(where: str, token: str, agent: str) -> None:
    try:
        TokenTable({token: urn(agent)})
    except ValueError as error:
        raise UserError(f"{where}: {error}", usage=True) from None


def _lines(file: Path) -> list[tuple[str, str]]:
    """Read the lines of a token file, each with its place, without empty lines and comments."""
    try:
        text = file.read_text("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{file}: expected TOKEN=URN lines in UTF-8") from None
    numbered = [(f"{file}, line {number}", line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(where, line) for where, line in numbered if line and not line.startswith("#")]
    if not lines:
        # Without any token, the agent would be open to everyone.
        raise UserError(f"{file}: expected at least one TOKEN=URN line")
    return lines


# --- the provider: --oidc and --introspect ---------------------------------------------------------------------------


def provider_policy(options: CallerOptions) -> TokenPolicy | IntrospectionPolicy | None:
    """Return which tokens of the provider are accepted, or None if no provider is given. Raises UserError."""
    source = "--oidc" if options.introspect is None else "--introspect"
    try:
        if options.introspect is not None:
            return IntrospectionPolicy(
                audience=options.audience or None, agent=_agent(options), issuer=options.oidc, scopes=options.scope
            )
        if options.oidc is None:
            return None
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


# --- both ------------------------------------------------------------------------------------------------------------


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
async def authenticator(
    options: CallerOptions, table: TokenTable, nonce_secret: bytes | None
) -> AsyncIterator[Authenticator | None]:
    """Yield what authenticates callers, or None if nothing does.

    nonce_secret: what DPoP nonces are made with; server processes that share a port share it.

    Raises: UserError, OSError.
    """
    policy = provider_policy(options)
    if policy is None:
        yield table if len(table) else None
    elif isinstance(policy, IntrospectionPolicy):
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
