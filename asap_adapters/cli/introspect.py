"""`--introspect` and what goes with it: an identity provider is asked about callers' tokens, which only it can read."""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from asap_adapters.cli.oauth_client import add_client, client_of
from asap_adapters.cli.output import UserError
from asap_core.auth.claims import ByClaim, BySubject
from asap_core.auth.introspection_response import IntrospectionPolicy
from asap_core.net.urls import origin_of

if TYPE_CHECKING:
    from asap_adapters.auth.introspection import IntrospectionAuthenticator


def add_introspect(add: Any) -> None:
    """Add the options of this module."""
    add("--introspect", metavar="URL", type=_url, help="ask this introspection endpoint about callers' tokens")
    add("--any-audience", action="store_true", help="it answers for tokens of this agent alone: don't compare")
    add_client(add)


def _url(text: str) -> str:
    if origin_of(text) is None:
        raise argparse.ArgumentTypeError("expected a URL such as https://id.example/introspect")
    return text


def introspection_policy(arguments: argparse.Namespace, agent: "ByClaim | BySubject") -> IntrospectionPolicy:
    """Which answers let a bearer in. Raises UserError, and ValueError where one of the options can't be."""
    if bool(arguments.audience) == arguments.any_audience:
        raise UserError("--introspect needs --audience, or --any-audience, and not both", usage=True)
    if arguments.dpop is not None or arguments.dpop_nonce:
        raise UserError("--dpop goes with --oidc: proofs aren't checked with --introspect", usage=True)
    return IntrospectionPolicy(
        audience=arguments.audience or None, agent=agent, issuer=arguments.oidc, scopes=arguments.scope
    )


@asynccontextmanager
async def introspection(
    arguments: argparse.Namespace, policy: IntrospectionPolicy
) -> AsyncIterator["IntrospectionAuthenticator"]:
    """Who asks the provider. Raises UserError."""
    from asap_adapters.auth.introspection import IntrospectionAuthenticator  # noqa: PLC0415 - few need it

    if arguments.client_id is None:
        raise UserError("--introspect needs --client-id, and the client's secret or key", usage=True)
    try:
        made = IntrospectionAuthenticator(
            policy, client_of(arguments), endpoint=arguments.introspect, allow_networks=arguments.oidc_network
        )
    except ValueError as error:
        raise UserError(f"--introspect: {error}", usage=True) from None
    async with made:
        yield made
