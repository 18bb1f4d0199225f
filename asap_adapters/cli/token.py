"""`asap token`: gets an access token from an identity provider and prints it."""

from typing import Final

from attrs import frozen

from asap_adapters.auth.client_credentials import TokenSource
from asap_adapters.cli.command import command, in_event_loop, nested
from asap_adapters.cli.exit_codes import UserError
from asap_adapters.cli.oauth_client import CREDENTIAL_RULES, CredentialOptions, credentials_of
from asap_adapters.cli.options import OutboundOptions, backend_option, json_option
from asap_adapters.cli.output import print_json, say
from asap_adapters.net.transport import HttpTransport
from asap_adapters.system import LoopClock
from asap_core.auth.authorization import ClientCredentials

# The time that the client has for any document.
_TIMEOUT: Final = 10.0


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
    http = HttpTransport(
        token=None,
        auth={},
        policy=options.outbound.policy(),
        timeout=_TIMEOUT,
        trust_env=False,
        compress=False,
        verify=options.outbound.verify,
        transport=None,
        named=(credentials.asked,),
    )
    http.open()
    try:
        await _print(http, credentials, as_json=options.json)
    finally:
        await http.aclose()
    return 0


async def _print(http: HttpTransport, credentials: ClientCredentials, *, as_json: bool) -> None:
    clock = LoopClock()
    source = TokenSource(http, clock)
    source.add(credentials)
    token = (await source.get(credentials, credentials.scopes)).token
    if as_json:
        left = max(0, round(token.expires - clock.monotonic()))
        print_json({"access_token": token.value, "token_type": credentials.token_type, "expires_in": left})
    else:
        say(token.value)


COMMANDS: Final = (
    command(
        "token",
        TokenOptions,
        in_event_loop(_token),
        "get an access token from an identity provider and print it",
        rules=CREDENTIAL_RULES,
    ),
)
