"""The adapters: the core's decisions carried out on trio and asyncio. What users type is here; the rest may move."""

try:
    from asap_adapters.client.agent_client import AgentClient, Discovery
    from asap_adapters.server.asgi import AsgiApp
    from asap_adapters.server.handlers import Context, TaskFailed
    from asap_adapters.server.listener import bind_agent, listen, run, serve
except ModuleNotFoundError as error:
    if error.name is None or error.name.startswith("asap"):
        raise
    missing = f"asap_adapters needs {error.name}, which comes with: pip install 'asap-sansio[agent]'"
    raise ModuleNotFoundError(missing, name=error.name) from None
from asap_core.auth.principal import Anonymous, Authenticated, TokenTable
from asap_core.errors import (
    AgentChanged,
    AsapError,
    BadReply,
    BadState,
    BadStore,
    InvalidDocument,
    InvalidTransition,
    MdnsUnavailable,
    NotAllowed,
    NoToken,
    NotResolved,
    RemoteError,
    TimedOut,
    Unreachable,
    Unsuitable,
    Unverified,
    WrongAgent,
)

__all__ = [
    "AgentChanged",
    "AgentClient",
    "Anonymous",
    "AsapError",
    "AsgiApp",
    "Authenticated",
    "BadReply",
    "BadState",
    "BadStore",
    "Context",
    "Discovery",
    "InvalidDocument",
    "InvalidTransition",
    "MdnsUnavailable",
    "NoToken",
    "NotAllowed",
    "NotResolved",
    "RemoteError",
    "TaskFailed",
    "TimedOut",
    "TokenTable",
    "Unreachable",
    "Unsuitable",
    "Unverified",
    "WrongAgent",
    "bind_agent",
    "listen",
    "run",
    "serve",
]
