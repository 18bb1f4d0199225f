"""How a client on trio or asyncio makes requests: the core's options, and those of connections."""

import ssl
from typing import Final

import httpx
from attrs import field, frozen

from asap_adapters.net.resolving import Resolver
from asap_core.arguments import ArgumentRule, has_methods, is_instance, is_or_none
from asap_core.client.options import RequestOptions

_VERIFY: Final = ArgumentRule("an ssl.SSLContext, True or False", is_instance(bool, ssl.SSLContext))
_FLAG: Final = ArgumentRule("True or False", is_instance(bool))
_TRANSPORT: Final = ArgumentRule(
    "an httpx.AsyncBaseTransport, or None", is_or_none(is_instance(httpx.AsyncBaseTransport))
)
_RESOLVER: Final = ArgumentRule(
    "an object with a method resolve(host, port), or None", is_or_none(has_methods("resolve"))
)


@frozen(kw_only=True)
class ConnectionOptions(RequestOptions):
    """How a client connects."""

    verify: ssl.SSLContext | bool = field(default=True, validator=_VERIFY)
    """The TLS context, or False to verify no certificates."""
    trust_env: bool = field(default=False, validator=_FLAG)
    """Use the proxies and certificates that the environment names."""


@frozen(kw_only=True)
class HttpOptions(ConnectionOptions):
    """How an `AgentClient` makes requests. Raises ValueError if an option is invalid."""

    transport: httpx.AsyncBaseTransport | None = field(default=None, validator=_TRANSPORT)
    """An httpx transport to use instead of the client's own, such as an `InProcessTransport`. It gets only URLs that
    the policy allows. Addresses aren't checked."""
    resolver: Resolver | None = field(default=None, validator=_RESOLVER)
    """Looks up names instead of the operating system."""
