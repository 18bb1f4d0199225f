"""The public face of the core: what users import. Everything else may move.

Each name is imported when it's first asked for: a client needn't wait for the server's half.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from asap_core.admission.policy import NoncePolicy as NoncePolicy, Policy as Policy
    from asap_core.admission.ratelimit import Limit as Limit, parse_limits as parse_limits
    from asap_core.admission.replay import StartPolicy as StartPolicy
    from asap_core.auth.principal import (
        Anonymous as Anonymous,
        Authenticated as Authenticated,
        Credential as Credential,
        Principal as Principal,
        TokenTable as TokenTable,
    )
    from asap_core.clock import Clock as Clock, Instant as Instant, ManualClock as ManualClock, WallTime as WallTime
    from asap_core.errors import (
        KINDS as KINDS,
        AgentChanged as AgentChanged,
        AsapError as AsapError,
        BadReply as BadReply,
        BadState as BadState,
        BadStore as BadStore,
        InvalidDocument as InvalidDocument,
        InvalidTransition as InvalidTransition,
        Kind as Kind,
        MdnsUnavailable as MdnsUnavailable,
        NotAllowed as NotAllowed,
        NoToken as NoToken,
        NotResolved as NotResolved,
        Problem as Problem,
        Refusal as Refusal,
        RemoteError as RemoteError,
        TimedOut as TimedOut,
        Unreachable as Unreachable,
        Unsuitable as Unsuitable,
        Unverified as Unverified,
        WrongAgent as WrongAgent,
    )
    from asap_core.http.messages import Request as Request, Response as Response
    from asap_core.server.agent import Agent as Agent
    from asap_core.server.call import (
        Admit as Admit,
        Answered as Answered,
        CallState as CallState,
        Dispatch as Dispatch,
        Hold as Hold,
        Record as Record,
        Replied as Replied,
    )
    from asap_core.server.exchange import (
        Authenticate as Authenticate,
        ClaimProof as ClaimProof,
        Done as Done,
        Exchange as Exchange,
        Fork as Fork,
        ReadBody as ReadBody,
        Respond as Respond,
        TakeLimit as TakeLimit,
    )
    from asap_core.wire.codec import (
        decode_envelope as decode_envelope,
        encode_envelope as encode_envelope,
        read_health as read_health,
        read_manifest as read_manifest,
        to_json as to_json,
    )
    from asap_core.wire.envelope import Envelope as Envelope
    from asap_core.wire.manifest import (
        AuthScheme as AuthScheme,
        Capabilities as Capabilities,
        Endpoints as Endpoints,
        Health as Health,
        Load as Load,
        Manifest as Manifest,
        Skill as Skill,
    )
    from asap_core.wire.payloads import (
        McpToolCall as McpToolCall,
        McpToolResult as McpToolResult,
        MessageAck as MessageAck,
        MessageSend as MessageSend,
        Payload as Payload,
        TaskCancel as TaskCancel,
        TaskRequest as TaskRequest,
        TaskResponse as TaskResponse,
        TaskUpdate as TaskUpdate,
    )
    from asap_core.wire.registry import Registry as Registry, RegistryEntry as RegistryEntry
    from asap_core.wire.registry_entry import read_registry as read_registry
    from asap_core.wire.signing import PublicKey as PublicKey
    from asap_core.wire.task import Task as Task, TaskStatus as TaskStatus

# Where each name comes from, for `__getattr__`; the imports above say the same to type checkers.
_HOMES: Final = {
    "asap_core.clock": "Clock Instant ManualClock WallTime",
    "asap_core.wire.codec": "decode_envelope encode_envelope read_health read_manifest to_json",
    "asap_core.errors": (
        "KINDS AgentChanged AsapError BadReply BadState BadStore InvalidDocument InvalidTransition Kind "
        "MdnsUnavailable NoToken NotAllowed NotResolved Problem Refusal RemoteError TimedOut Unreachable Unsuitable "
        "Unverified WrongAgent"
    ),
    "asap_core.http.messages": "Request Response",
    "asap_core.wire.envelope": "Envelope",
    "asap_core.wire.manifest": "AuthScheme Capabilities Endpoints Health Load Manifest Skill",
    "asap_core.wire.payloads": (
        "McpToolCall McpToolResult MessageAck MessageSend Payload TaskCancel TaskRequest TaskResponse TaskUpdate"
    ),
    "asap_core.wire.registry": "Registry RegistryEntry",
    "asap_core.wire.task": "Task TaskStatus",
    "asap_core.wire.registry_entry": "read_registry",
    "asap_core.server.agent": "Agent",
    "asap_core.server.call": "Admit Answered CallState Dispatch Hold Record Replied",
    "asap_core.server.exchange": "Authenticate ClaimProof Done Exchange Fork ReadBody Respond TakeLimit",
    "asap_core.auth.principal": "Anonymous Authenticated Credential Principal TokenTable",
    "asap_core.admission.policy": "NoncePolicy Policy",
    "asap_core.admission.ratelimit": "Limit parse_limits",
    "asap_core.admission.replay": "StartPolicy",
    "asap_core.wire.signing": "PublicKey",
}
_HOME_OF: Final = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_HOME_OF)  # noqa: PLE0605 - the table above


def __getattr__(name: str) -> Any:
    """Import what is asked for (PEP 562)."""
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
