"""The core's public names. Modules below this package may move; these names stay.

Each name is imported on first use, so a client doesn't load the server's half.
"""

from typing import TYPE_CHECKING, Final

from asap_core.lazy_imports import lazy_names

if TYPE_CHECKING:
    from asap_core.admission.admission import (
        AdmissionAnswer as AdmissionAnswer,
        AdmissionQuestion as AdmissionQuestion,
        Admitted as Admitted,
        AnswerGone as AnswerGone,
        Future as Future,
        Mismatch as Mismatch,
        OutcomeUnknown as OutcomeUnknown,
        Reservation as Reservation,
        Running as Running,
        Stale as Stale,
        Stored as Stored,
        StoreUnavailable as StoreUnavailable,
    )
    from asap_core.admission.policy import NoncePolicy as NoncePolicy, Policy as Policy
    from asap_core.admission.ratelimit import (
        Left as Left,
        Limit as Limit,
        Limited as Limited,
        parse_limits as parse_limits,
    )
    from asap_core.admission.replay import (
        Floored as Floored,
        Replayed as Replayed,
        Saturated as Saturated,
        StartPolicy as StartPolicy,
    )
    from asap_core.admission.state_file import outcome_to_json as outcome_to_json, read_outcome as read_outcome
    from asap_core.auth.principal import (
        Anonymous as Anonymous,
        Authenticated as Authenticated,
        Credential as Credential,
        DpopProof as DpopProof,
        InsufficientScope as InsufficientScope,
        Principal as Principal,
        ProofRefused as ProofRefused,
        Proven as Proven,
        TokenTable as TokenTable,
    )
    from asap_core.clock import (
        Clock as Clock,
        FunctionClock as FunctionClock,
        Instant as Instant,
        ManualClock as ManualClock,
        Moment as Moment,
        WallTime as WallTime,
    )
    from asap_core.errors import (
        Advice as Advice,
        AgentChanged as AgentChanged,
        Allow as Allow,
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
        Problem as Problem,
        Remedy as Remedy,
        RemoteError as RemoteError,
        TimedOut as TimedOut,
        Unreachable as Unreachable,
        Unsuitable as Unsuitable,
        Unverified as Unverified,
        WrongAgent as WrongAgent,
    )
    from asap_core.http.framing import RequestBody as RequestBody
    from asap_core.http.head import BadHead as BadHead, Head as Head, HeadReader as HeadReader
    from asap_core.http.messages import (
        BadCoding as BadCoding,
        Codings as Codings,
        Inflater as Inflater,
        Request as Request,
        Response as Response,
    )
    from asap_core.net.outbound import OutboundPolicy as OutboundPolicy
    from asap_core.refusals import HANDLER_TIMEOUT as HANDLER_TIMEOUT, KINDS as KINDS, Kind as Kind, Refusal as Refusal
    from asap_core.server.agent import Agent as Agent
    from asap_core.server.call import (
        Admit as Admit,
        Answered as Answered,
        CallState as CallState,
        Dispatch as Dispatch,
        Hold as Hold,
        Record as Record,
        broken_call as broken_call,
    )
    from asap_core.server.events import Decision as Decision, What as What
    from asap_core.server.exchange import (
        Authenticate as Authenticate,
        ClaimProof as ClaimProof,
        Done as Done,
        Exchange as Exchange,
        Fork as Fork,
        ReadBody as ReadBody,
        Respond as Respond,
        TakeLimit as TakeLimit,
        refuse_head as refuse_head,
    )
    from asap_core.server.metrics import Counters as Counters
    from asap_core.server.outgoing import Outgoing as Outgoing
    from asap_core.wire.codec import (
        decode_envelope as decode_envelope,
        encode_envelope as encode_envelope,
        read_health as read_health,
        read_manifest as read_manifest,
        to_json as to_json,
    )
    from asap_core.wire.envelope import Envelope as Envelope
    from asap_core.wire.handler_reply import Replied as Replied
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
        AckStatus as AckStatus,
        ArtifactNotify as ArtifactNotify,
        McpResourceData as McpResourceData,
        McpResourceFetch as McpResourceFetch,
        McpToolCall as McpToolCall,
        McpToolResult as McpToolResult,
        MessageAck as MessageAck,
        MessageSend as MessageSend,
        Payload as Payload,
        StateQuery as StateQuery,
        StateRestore as StateRestore,
        TaskCancel as TaskCancel,
        TaskRequest as TaskRequest,
        TaskResponse as TaskResponse,
        TaskStream as TaskStream,
        TaskUpdate as TaskUpdate,
        UpdateType as UpdateType,
    )
    from asap_core.wire.registry import Registry as Registry, RegistryEntry as RegistryEntry, Skipped as Skipped
    from asap_core.wire.registry_index import RegistryIndex as RegistryIndex
    from asap_core.wire.registry_reader import read_registry as read_registry
    from asap_core.wire.signing import PublicKey as PublicKey
    from asap_core.wire.task import Task as Task
    from asap_core.wire.task_status import Role as Role, TaskStatus as TaskStatus

# Where each name comes from; the imports above say the same to type checkers, which must not see `__getattr__`:
# they would take any name for one of this package's.
_HOMES: Final = {
    "asap_core.admission.admission": (
        "AdmissionAnswer AdmissionQuestion Admitted AnswerGone Future Mismatch OutcomeUnknown Reservation Running "
        "Stale StoreUnavailable Stored"
    ),
    "asap_core.admission.policy": "NoncePolicy Policy",
    "asap_core.admission.ratelimit": "Left Limit Limited parse_limits",
    "asap_core.admission.replay": "Floored Replayed Saturated StartPolicy",
    "asap_core.admission.state_file": "outcome_to_json read_outcome",
    "asap_core.auth.principal": (
        "Anonymous Authenticated Credential DpopProof InsufficientScope Principal ProofRefused Proven TokenTable"
    ),
    "asap_core.clock": "Clock FunctionClock Instant ManualClock Moment WallTime",
    "asap_core.errors": (
        "Advice AgentChanged Allow AsapError BadReply BadState BadStore InvalidDocument InvalidTransition "
        "MdnsUnavailable NoToken NotAllowed NotResolved Problem Remedy RemoteError TimedOut Unreachable Unsuitable "
        "Unverified WrongAgent"
    ),
    "asap_core.http.head": "BadHead Head HeadReader",
    "asap_core.http.messages": "BadCoding Codings Inflater Request Response",
    "asap_core.http.framing": "RequestBody",
    "asap_core.net.outbound": "OutboundPolicy",
    "asap_core.refusals": "HANDLER_TIMEOUT KINDS Kind Refusal",
    "asap_core.server.agent": "Agent",
    "asap_core.server.call": "Admit Answered CallState Dispatch Hold Record broken_call",
    "asap_core.server.events": "Decision What",
    "asap_core.server.exchange": "Authenticate ClaimProof Done Exchange Fork ReadBody Respond TakeLimit refuse_head",
    "asap_core.server.metrics": "Counters",
    "asap_core.server.outgoing": "Outgoing",
    "asap_core.wire.codec": "decode_envelope encode_envelope read_health read_manifest to_json",
    "asap_core.wire.envelope": "Envelope",
    "asap_core.wire.handler_reply": "Replied",
    "asap_core.wire.manifest": "AuthScheme Capabilities Endpoints Health Load Manifest Skill",
    "asap_core.wire.payloads": (
        "AckStatus ArtifactNotify McpResourceData McpResourceFetch McpToolCall McpToolResult MessageAck MessageSend "
        "Payload StateQuery StateRestore TaskCancel TaskRequest TaskResponse TaskStream TaskUpdate UpdateType"
    ),
    "asap_core.wire.registry": "Registry RegistryEntry Skipped",
    "asap_core.wire.registry_index": "RegistryIndex",
    "asap_core.wire.registry_reader": "read_registry",
    "asap_core.wire.signing": "PublicKey",
    "asap_core.wire.task": "Task",
    "asap_core.wire.task_status": "Role TaskStatus",
}

__all__ = sorted(name for names in _HOMES.values() for name in names.split())  # noqa: PLE0605 - the table above

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
