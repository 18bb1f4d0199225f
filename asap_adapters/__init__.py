"""The adapters' public names: the core's decisions carried out on trio, asyncio and threads. Modules below may move.

Each name is imported on first use: a server loads nothing of the client, and a client nothing of the server.
"""

from typing import TYPE_CHECKING, Final

from asap_core.lazy_imports import lazy_names

if TYPE_CHECKING:
    from asap_adapters.auth.authenticator import Authenticator as Authenticator, VerifyCredential as VerifyCredential
    from asap_adapters.blocking.browsing import BlockingBrowser as BlockingBrowser
    from asap_adapters.blocking.client import BlockingClient as BlockingClient
    from asap_adapters.blocking.connecting import BlockingResolver as BlockingResolver
    from asap_adapters.blocking.http_options import BlockingHttpOptions as BlockingHttpOptions
    from asap_adapters.client.agent_client import AgentClient as AgentClient
    from asap_adapters.net.outbound_transport import HttpOptions as HttpOptions
    from asap_adapters.net.resolving import Resolver as Resolver
    from asap_adapters.server.asgi import AsgiApp as AsgiApp
    from asap_adapters.server.handlers import Context as Context, Handlers as Handlers, TaskFailed as TaskFailed
    from asap_adapters.server.listener import Bound as Bound, listen as listen, serve as serve
    from asap_adapters.server.running import run as run
    from asap_adapters.server.startup import bind_agent as bind_agent
    from asap_adapters.server.storage import Redis as Redis, StateFile as StateFile
    from asap_adapters.server.tls import TLS as TLS
    from asap_core.auth.principal import (
        Anonymous as Anonymous,
        Authenticated as Authenticated,
        TokenTable as TokenTable,
    )
    from asap_core.client.breaker import BreakerPolicy as BreakerPolicy
    from asap_core.client.delivery import RetryPolicy as RetryPolicy
    from asap_core.client.discovery import DiscoveredAgent as DiscoveredAgent
    from asap_core.client.document_cache import DocumentCachePolicy as DocumentCachePolicy
    from asap_core.client.options import DiscoveryOptions as DiscoveryOptions, TrustPolicy as TrustPolicy
    from asap_core.errors import (
        AgentChanged as AgentChanged,
        AsapError as AsapError,
        BadReply as BadReply,
        BadState as BadState,
        BadStore as BadStore,
        InvalidDocument as InvalidDocument,
        InvalidTransition as InvalidTransition,
        MdnsUnavailable as MdnsUnavailable,
        NotAllowed as NotAllowed,
        NoToken as NoToken,
        NotResolved as NotResolved,
        RemoteError as RemoteError,
        TimedOut as TimedOut,
        Unreachable as Unreachable,
        Unsuitable as Unsuitable,
        Unverified as Unverified,
        WrongAgent as WrongAgent,
    )
    from asap_core.net.outbound import OutboundPolicy as OutboundPolicy

_HOMES: Final = {
    "asap_adapters.auth.authenticator": "Authenticator VerifyCredential",
    "asap_adapters.blocking.browsing": "BlockingBrowser",
    "asap_adapters.blocking.client": "BlockingClient",
    "asap_adapters.blocking.connecting": "BlockingResolver",
    "asap_adapters.blocking.http_options": "BlockingHttpOptions",
    "asap_adapters.client.agent_client": "AgentClient",
    "asap_adapters.net.outbound_transport": "HttpOptions",
    "asap_adapters.net.resolving": "Resolver",
    "asap_adapters.server.asgi": "AsgiApp",
    "asap_adapters.server.startup": "bind_agent",
    "asap_adapters.server.handlers": "Context Handlers TaskFailed",
    "asap_adapters.server.listener": "Bound listen serve",
    "asap_adapters.server.running": "run",
    "asap_adapters.server.storage": "Redis StateFile",
    "asap_adapters.server.tls": "TLS",
    "asap_core.auth.principal": "Anonymous Authenticated TokenTable",
    "asap_core.client.breaker": "BreakerPolicy",
    "asap_core.client.delivery": "RetryPolicy",
    "asap_core.client.discovery": "DiscoveredAgent",
    "asap_core.client.document_cache": "DocumentCachePolicy",
    "asap_core.client.options": "DiscoveryOptions TrustPolicy",
    "asap_core.errors": (
        "AgentChanged AsapError BadReply BadState BadStore InvalidDocument InvalidTransition MdnsUnavailable NoToken "
        "NotAllowed NotResolved RemoteError TimedOut Unreachable Unsuitable Unverified WrongAgent"
    ),
    "asap_core.net.outbound": "OutboundPolicy",
}

__all__ = sorted(name for names in _HOMES.values() for name in names.split())  # noqa: PLE0605 - the table above

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
