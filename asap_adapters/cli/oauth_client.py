"""`--client-id` and the options that need it: this process as an OAuth client."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

from asap_adapters.cli.command import Excludes, Needs, OptionRule, choice, option


@frozen(kw_only=True)
class OAuthClientOptions:
    """How this process authenticates at an identity provider."""

    client_id: str | None = option("--client-id ID", str, "authenticate at the provider as this OAuth client")
    client_secret_file: Path | None = option(
        "--client-secret-file FILE", Path, "read the client's secret from this file: one line"
    )
    client_auth: str = choice(
        "--client-auth", ("basic", "post"), "send the secret in a header (basic) or in the form (post)", default="basic"
    )
    client_key: Path | None = option(
        "--client-key FILE",
        Path,
        "authenticate by a JWT signed with this private key (PEM) instead of a secret; needs the extra jwt",
    )
    client_key_id: str | None = option("--client-key-id KID", str, "name the key by this key id")


CLIENT_RULES: Final[Sequence[OptionRule]] = (
    Needs("--client-id", ["--client-secret-file", "--client-key"]),
    Excludes("--client-secret-file", ["--client-key"]),
)
