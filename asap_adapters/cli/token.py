"""`asap token`: gets an access token from an identity provider and prints it."""

from typing import Final

from attrs import frozen

from asap_adapters.cli.command import command, in_event_loop, nested
from asap_adapters.cli.exit_codes import UserError
from asap_adapters.cli.oauth_client import CREDENTIAL_RULES, CredentialOptions, credentials_of
from asap_adapters.cli.options import OutboundOptions, backend_option, json_option
from asap_adapters.cli.output import print_json, say
from asap_adapters.coding import CODINGS
from asap_adapters.driver import ProgramDriver
from asap_adapters.net.outbound_transport import OutboundTransport
from asap_core.auth.authorization import ClientCredentials
from asap_core.auth.token_cache import Token
from asap_core.client.requests import Requests
from asap_core.client.tokens import TokenSource


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
    driver = ProgramDriver(lambda: OutboundTransport(verify=options.outbound.verify), owner="asap token")
    driver.open()
    try:
        token = await _get(driver, credentials, options.outbound)
    finally:
        await driver.aclose()
    if options.json:
        left = max(0, round(token.expires - driver.runtime.now()))
        print_json({"access_token": token.value, "token_type": credentials.token_type, "expires_in": left})
    else:
        say(token.value)
    return 0


async def _get(driver: ProgramDriver, credentials: ClientCredentials, outbound: OutboundOptions) -> Token:
    requests = Requests(driver.runtime, policy=outbound.policy(), codings=CODINGS, named=(credentials.asked,))
    source = TokenSource(driver.runtime, requests)
    source.add(credentials)
    return (await driver.run(source.get(credentials, credentials.scopes))).token


COMMANDS: Final = (
    command(
        "token",
        TokenOptions,
        in_event_loop(_token),
        "get an access token from an identity provider and print it",
        rules=CREDENTIAL_RULES,
    ),
)
