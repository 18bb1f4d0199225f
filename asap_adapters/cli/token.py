"""`asap token`: gets an access token from an identity provider and prints it."""

from typing import Final

import anyio
from attrs import frozen

from asap_adapters.cli.command import command, in_event_loop, nested
from asap_adapters.cli.failures import UserError
from asap_adapters.cli.oauth_credentials import CREDENTIAL_RULES, CredentialOptions, credentials_of
from asap_adapters.cli.options import CLI_SENDER, OutboundOptions, backend_option, json_option
from asap_adapters.cli.output import print_json, say
from asap_adapters.client.agent_client import AgentClient


@frozen(kw_only=True)
class TokenOptions:
    """The options of `asap token`."""

    credentials: CredentialOptions = nested(CredentialOptions, "access tokens")
    json: bool = json_option()
    outbound: OutboundOptions = nested(OutboundOptions, "connections")
    backend: str = backend_option()


async def _token(options: TokenOptions) -> int:
    credentials = credentials_of(options.credentials)
    if credentials is None:
        raise UserError("expected --client-id", usage=True)
    async with AgentClient(CLI_SENDER, **options.outbound.client_arguments()) as client:
        token = await client.token(credentials)
        left = max(0, round(token.expires - anyio.current_time()))
    if options.json:
        print_json({"access_token": token.value, "token_type": credentials.token_type, "expires_in": left})
    else:
        say(token.value)
    return 0


COMMANDS: Final = (
    command(
        "token",
        TokenOptions,
        in_event_loop(_token),
        "get an access token from an identity provider and print it",
        rules=CREDENTIAL_RULES,
    ),
)
