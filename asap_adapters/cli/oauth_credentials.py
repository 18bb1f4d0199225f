"""How a command gets access tokens, and how it authenticates at the provider. No error repeats a secret."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

from asap_adapters.cli.command import Needs, OptionRule, nested, option, repeated
from asap_adapters.cli.failures import UserError
from asap_adapters.cli.oauth_client import CLIENT_RULES, OAuthClientOptions
from asap_adapters.cli.options import scope, url
from asap_core.auth.authorization import ClientCredentials
from asap_core.auth.client_credentials import ClientKey, ClientSecret, SecretMethod
from asap_core.auth.dpop_client import ProofKey
from asap_core.auth.provider_metadata import metadata_urls

# Client secrets have some 40 characters; a longer file is another file.
_MAX_SECRET: Final = 4_096
# The values of --client-auth.
_METHODS: Final = {"basic": SecretMethod.BASIC, "post": SecretMethod.POST}


def _issuer(text: str) -> str:
    metadata_urls(text)  # raises ValueError if it's none
    return text


@frozen(kw_only=True)
class CredentialOptions:
    """How a command gets access tokens, with the client credentials grant (RFC 6749 §4.4)."""

    client: OAuthClientOptions = nested(OAuthClientOptions)
    issuer: str | None = option("--issuer URL", _issuer, "get tokens from this OAuth 2 or OpenID Connect provider")
    token_endpoint: str | None = option(
        "--token-endpoint URL", url, "get tokens at this token endpoint, without asking the issuer for it"
    )
    scope: Sequence[str] = repeated("--scope SCOPE", scope, "request this scope")
    audience: str | None = option("--audience AUDIENCE", str, "request tokens for this audience (parameter `audience`)")
    resource: str | None = option(
        "--resource URL", str, "request tokens for this resource (parameter `resource`, RFC 8707)"
    )
    dpop_key: Path | None = option(
        "--dpop-key FILE",
        Path,
        "request tokens bound to this private key (PEM, Ed25519 or P-256; `asap keys new` makes one), and prove "
        "possession of it with each request (DPoP, RFC 9449); needs the extra jwt",
    )


CREDENTIAL_RULES: Final[Sequence[OptionRule]] = (
    *(
        Needs(each, ["--client-id"])
        for each in (
            "--issuer", "--token-endpoint", "--client-secret-file", "--client-key", "--scope", "--audience",
            "--resource", "--dpop-key",
        )
    ),
    Needs("--client-id", ["--issuer", "--token-endpoint"]),
    *CLIENT_RULES,
)  # fmt: skip


def credentials_of(options: CredentialOptions) -> ClientCredentials | None:
    """Return how to get access tokens, or None without `--client-id`. Raises UserError and OSError."""
    if options.client.client_id is None:
        return None
    return ClientCredentials(
        client=client_identity(options.client, options.client.client_id),
        issuer=options.issuer,
        token_endpoint=options.token_endpoint,
        scopes=options.scope,
        audience=options.audience,
        resource=options.resource,
        dpop=None if options.dpop_key is None else _proof_key(options.dpop_key),
    )


def client_identity(options: OAuthClientOptions, client_id: str) -> ClientSecret | ClientKey:
    """Return how this process authenticates at the provider. Raises UserError and OSError."""
    try:
        if options.client_key is not None:
            from asap_adapters.auth import read_client_key  # noqa: PLC0415 - needs an extra

            return read_client_key(options.client_key, client_id, kid=options.client_key_id)
        assert options.client_secret_file is not None  # noqa: S101 - CLIENT_RULES: one of them is given
        return ClientSecret(client_id, _secret(options.client_secret_file), _METHODS[options.client_auth])
    except ValueError as error:
        raise UserError(str(error), usage=True) from None


def _proof_key(file: Path) -> ProofKey:
    from asap_adapters.auth import DpopKey  # noqa: PLC0415 - needs an extra

    try:
        return DpopKey.load(file)
    except ValueError as error:
        raise UserError(str(error)) from None


def _secret(file: Path) -> str:
    """Read a secret, without the newline that editors add."""
    with file.open("rb") as opened:
        data = opened.read(_MAX_SECRET + 1)
    text = data.decode("ascii", "replace").removesuffix("\n").removesuffix("\r")
    if not text or len(data) > _MAX_SECRET or not text.isascii() or not text.isprintable():
        raise UserError(f"{file}: expected a secret: one line of visible ASCII characters")
    return text
