"""Which callers `asap serve` lets in: its options and their rules, and the table of tokens. No error repeats a token.

`asap_adapters.cli.provider_tokens` asks the provider that `--oidc` or `--introspect` names.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

from asap_adapters.cli.command import Excludes, Needs, OptionRule, choice, flag, nested, option, repeated
from asap_adapters.cli.failures import UserError
from asap_adapters.cli.oauth_client import CLIENT_RULES, OAuthClientOptions
from asap_adapters.cli.options import network, scope, url, urn
from asap_core.auth.principal import TokenTable
from asap_core.wire.rules import URN


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
        ("off", "allowed", "required"),
        "require proof of possession (DPoP, RFC 9449) for tokens that are bound to a key (allowed), require it for all "
        "(required), or refuse such tokens (off)",
        shown_default="allowed",
    )
    dpop_nonce: bool = flag("--dpop-nonce", "require in each proof a nonce that this server issued")
    client: OAuthClientOptions = nested(OAuthClientOptions)

    @property
    def names_provider(self) -> bool:
        """Whether tokens of a provider are accepted."""
        return self.oidc is not None or self.introspect is not None


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


# --- --token and --token-file ----------------------------------------------------------------------------------------


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
