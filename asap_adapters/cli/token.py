"""`asap token`: an access token from an identity provider, to look at or to pass on."""

import argparse
from typing import Any, Final

from asap_adapters.auth.client_credentials import TokenSource
from asap_adapters.cli.oauth_client import add_credential_options, credentials_of
from asap_adapters.cli.options import add_client_options, reach
from asap_adapters.cli.output import print_json, say
from asap_adapters.clock import LoopClock
from asap_adapters.net.transport import Web
from asap_core.auth.authorization import ClientCredentials
from asap_core.net.outbound import OutboundPolicy

# As any document may take.
_SECONDS: Final = 10.0


def add_commands(commands: Any) -> None:
    """Add the command of this module."""
    token = commands.add_parser("token", help="get an access token from an identity provider, and print it")
    add_credential_options(token, required=True)
    add_client_options(token)
    token.set_defaults(run=_token)


async def _token(arguments: argparse.Namespace) -> int:
    credentials = credentials_of(arguments)
    assert credentials is not None  # noqa: S101 - for the type checker: --client-id is required
    verify = reach(arguments).pop("verify")
    web = Web(
        token=None,
        auth={},
        policy=OutboundPolicy(
            allow_http=arguments.allow_http,
            allow_networks=arguments.allow_network,
            allow_ports=arguments.allow_port,
        ),
        timeout=_SECONDS,
        trust_env=False,
        compress=False,
        verify=verify,
        transport=None,
        named=(credentials.asked,),
    )
    web.open()
    try:
        await _print(web, credentials, as_json=arguments.json)
    finally:
        await web.aclose()
    return 0


async def _print(web: Web, credentials: ClientCredentials, *, as_json: bool) -> None:
    clock = LoopClock()
    source = TokenSource(web, clock)
    source.add(credentials)
    token = (await source.get(credentials, credentials.scopes)).token
    if as_json:
        left = max(0, round(token.expires - clock.monotonic()))
        print_json({"access_token": token.value, "token_type": credentials.token_type, "expires_in": left})
    else:
        say(token.value)
