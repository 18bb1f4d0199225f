"""The public face of the core: what users import. Everything else may move."""

from asap_core.clock import Clock, Instant, ManualClock, WallTime
from asap_core.codec import decode_envelope, encode_envelope, read_health, read_manifest, read_registry, to_json
from asap_core.errors import (
    KINDS,
    AsapError,
    BadReply,
    InvalidDocument,
    InvalidTransition,
    Kind,
    NotAllowed,
    Problem,
    Refusal,
    RemoteError,
    TimedOut,
    Unreachable,
    WrongAgent,
)
from asap_core.http import Request, Response
from asap_core.model.envelope import Envelope
from asap_core.model.manifest import AuthScheme, Capabilities, Endpoints, Health, Load, Manifest, Skill
from asap_core.model.payloads import (
    McpToolCall,
    McpToolResult,
    MessageAck,
    MessageSend,
    Payload,
    TaskCancel,
    TaskRequest,
    TaskResponse,
    TaskUpdate,
)
from asap_core.model.registry import Registry, RegistryEntry
from asap_core.model.task import Task, TaskStatus
from asap_core.server.agent import Agent
from asap_core.server.call import Admit, Answered, CallState, Dispatch, Record, Replied
from asap_core.server.exchange import Authenticate, Done, Exchange, Fork, ReadBody, Respond, TakeLimit
from asap_core.server.identity import Anonymous, Authenticated, Credential, Principal, TokenTable
from asap_core.server.policy import NoncePolicy, Policy
from asap_core.server.ratelimit import Limit, parse_limits
from asap_core.server.replay import StartPolicy

__all__ = [
    "KINDS",
    "Admit",
    "Agent",
    "Anonymous",
    "Answered",
    "AsapError",
    "AuthScheme",
    "Authenticate",
    "Authenticated",
    "BadReply",
    "CallState",
    "Capabilities",
    "Clock",
    "Credential",
    "Dispatch",
    "Done",
    "Endpoints",
    "Envelope",
    "Exchange",
    "Fork",
    "Health",
    "Instant",
    "InvalidDocument",
    "InvalidTransition",
    "Kind",
    "Limit",
    "Load",
    "Manifest",
    "ManualClock",
    "McpToolCall",
    "McpToolResult",
    "MessageAck",
    "MessageSend",
    "NoncePolicy",
    "NotAllowed",
    "Payload",
    "Policy",
    "Principal",
    "Problem",
    "ReadBody",
    "Record",
    "Refusal",
    "Registry",
    "RegistryEntry",
    "RemoteError",
    "Replied",
    "Request",
    "Respond",
    "Response",
    "Skill",
    "StartPolicy",
    "TakeLimit",
    "Task",
    "TaskCancel",
    "TaskRequest",
    "TaskResponse",
    "TaskStatus",
    "TaskUpdate",
    "TimedOut",
    "TokenTable",
    "Unreachable",
    "WallTime",
    "WrongAgent",
    "decode_envelope",
    "encode_envelope",
    "parse_limits",
    "read_health",
    "read_manifest",
    "read_registry",
    "to_json",
]
