"""`--client-id` and what goes with it: how to get access tokens at an identity provider. No error repeats a secret."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from asap_adapters.cli.output import UserError
from asap_core.auth.authorization import ClientCredentials
from asap_core.auth.bearer import is_scope
from asap_core.auth.client_credentials import ClientSecret, SecretMethod
from asap_core.auth.dpop_client import ProofKey
from asap_core.auth.provider import metadata_urls
from asap_core.net.urls import origin_of

if TYPE_CHECKING:
    from asap_core.auth.client_credentials import ClientKey

# Passwords of machines have some 40 characters; what's longer is another file.
_MAX_SECRET: Final = 4_096
_METHODS: Final = {"basic": SecretMethod.BASIC, "post": SecretMethod.POST}


def add_credential_options(command: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Add the options of a command that gets tokens."""
    group = command.add_argument_group("access tokens", "got at an OAuth 2 or OpenID Connect provider, as this client")
    add_client(group.add_argument, required=required)
    group.add_argument("--issuer", metavar="URL", type=_issuer, help="the provider")
    group.add_argument("--token-endpoint", metavar="URL", type=_url, help="or the URL of its token endpoint")
    group.add_argument(
        "--scope", metavar="SCOPE", type=_scope, action="append", default=[], help="ask for this scope (repeatable)"
    )
    group.add_argument("--audience", metavar="AUDIENCE", help="whom tokens are for, as `audience`")
    group.add_argument(
        "--dpop-key",
        metavar="FILE",
        type=Path,
        help='bind them to this key (PEM, Ed25519 or P-256): asap keys new makes one; needs "asap-sansio[jwt]"',
    )
    group.add_argument("--resource", metavar="URL", help="whom tokens are for, as `resource` (RFC 8707)")


def add_client(add: Any, *, required: bool = False) -> None:
    """Add the options that say who we are to a provider."""
    add("--client-id", metavar="ID", required=required, help="the client's id")
    add("--client-secret-file", metavar="FILE", type=Path, help="its secret, in a file")
    add(
        "--client-auth",
        choices=tuple(_METHODS),
        default="basic",
        help="how the secret is sent: in a header, or in the form (default: basic)",
    )
    add("--client-key", metavar="FILE", type=Path, help='or its private key (PEM); needs "asap-sansio[jwt]"')
    add("--client-key-id", metavar="KID", help="what the provider calls that key")


def credentials_of(arguments: argparse.Namespace) -> ClientCredentials | None:
    """What the options say; None without a client id. Raises UserError where it can't be meant, and OSError."""
    if arguments.client_id is None:
        stray = next((name for name in _GO_WITH if getattr(arguments, name)), None)
        if stray is not None:
            raise UserError(f"--{stray.replace('_', '-')} goes with --client-id", usage=True)
        return None
    if arguments.issuer is None and arguments.token_endpoint is None:
        raise UserError("--client-id needs --issuer, or --token-endpoint", usage=True)
    return ClientCredentials(
        client=client_of(arguments),
        issuer=arguments.issuer,
        token_endpoint=arguments.token_endpoint,
        scopes=arguments.scope,
        audience=arguments.audience,
        resource=arguments.resource,
        dpop=None if arguments.dpop_key is None else _proof_key(arguments.dpop_key),
    )


_GO_WITH: Final = (
    "issuer", "token_endpoint", "client_secret_file", "client_key", "scope", "audience", "resource", "dpop_key",
)  # fmt: skip


def client_of(arguments: argparse.Namespace) -> "ClientSecret | ClientKey":
    """Who we are to the provider, `--client-id` being given. Raises UserError and OSError."""
    if (arguments.client_key is None) == (arguments.client_secret_file is None):
        raise UserError("--client-id needs --client-secret-file or --client-key, one of them", usage=True)
    try:
        if arguments.client_key is not None:
            return _key(arguments)
        return ClientSecret(arguments.client_id, _secret(arguments.client_secret_file), _METHODS[arguments.client_auth])
    except ValueError as error:
        raise UserError(str(error), usage=True) from None


def _key(arguments: argparse.Namespace) -> "ClientKey":
    try:
        from asap_adapters.auth.client_key import read_client_key  # noqa: PLC0415 - an extra, which few need
    except ModuleNotFoundError as error:
        raise UserError(str(error)) from None
    return read_client_key(arguments.client_key, arguments.client_id, kid=arguments.client_key_id)


def _proof_key(file: Path) -> ProofKey:
    try:
        from asap_adapters.auth.dpop_key import DpopKey  # noqa: PLC0415 - an extra, which few need
    except ModuleNotFoundError as error:
        raise UserError(str(error)) from None
    try:
        return DpopKey.load(file)
    except ValueError as error:
        raise UserError(str(error)) from None


def _secret(file: Path) -> str:
    """What's in the file, without the line's end that editors put there."""
    with file.open("rb") as opened:
        data = opened.read(_MAX_SECRET + 1)
    text = data.decode("ascii", "replace").removesuffix("\n").removesuffix("\r")
    if not text or len(data) > _MAX_SECRET or not text.isascii() or not text.isprintable():
        raise UserError(f"{file}: expected a secret: one line of visible ASCII characters")
    return text


def _issuer(text: str) -> str:
    try:
        metadata_urls(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _url(text: str) -> str:
    if origin_of(text) is None:
        raise argparse.ArgumentTypeError("expected a URL such as https://id.example/token")
    return text


def _scope(text: str) -> str:
    if not is_scope(text):
        raise argparse.ArgumentTypeError("expected one scope, without spaces; give --scope again for another")
    return text
