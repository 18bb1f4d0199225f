"""The payloads that the protocol knows (wire-protocol §2.1), found by their normalised type name.

Their fields are strict, as the reference's are; `config`, `metrics` and other free objects stay free, since 1.1 peers
put keys of their own there.
"""

from enum import Enum
from typing import Any, Final

from attrs import field, frozen

from asap_core.wire.rules import (
    BOOLEAN,
    OBJECT,
    TEXT,
    TEXTS,
    InvalidValue,
    Rule,
    absent_or,
    array,
    integer,
    number,
    one_of,
)
from asap_core.wire.task import Role, TaskStatus

_PERCENT: Final = number(least=0, most=100)
PROGRESS: Final = Rule(
    "an object; its percent, if there, a number from 0 to 100",
    lambda value: type(value) is dict and ("percent" not in value or _PERCENT.fits(value["percent"])),
)


class UpdateType(Enum):
    """What a task update is about."""

    PROGRESS = "progress"
    INPUT_REQUIRED = "input_required"
    STATUS_CHANGE = "status_change"


class AckStatus(Enum):
    """What became of an envelope that asked for an acknowledgement."""

    RECEIVED = "received"
    PROCESSED = "processed"
    REJECTED = "rejected"


@frozen(kw_only=True)
class TaskRequest:
    """Please do this: the skill and its input. `config` holds hints such as `timeout_seconds`."""

    conversation_id: str = field(validator=TEXT)
    parent_task_id: str | None = field(default=None, validator=absent_or(TEXT))
    skill_id: str = field(validator=TEXT)
    input: dict[str, Any] = field(validator=OBJECT)
    config: dict[str, Any] | None = field(default=None, validator=absent_or(OBJECT))


@frozen(kw_only=True)
class TaskResponse:
    """How the task stands, and what came of it."""

    task_id: str = field(validator=TEXT)
    status: TaskStatus = field(validator=one_of(TaskStatus))
    result: dict[str, Any] | None = field(default=None, validator=absent_or(OBJECT))
    final_state: dict[str, Any] | None = field(default=None, validator=absent_or(OBJECT))
    metrics: dict[str, Any] | None = field(default=None, validator=absent_or(OBJECT))


@frozen(kw_only=True)
class TaskUpdate:
    """News of a running task."""

    task_id: str = field(validator=TEXT)
    update_type: UpdateType = field(validator=one_of(UpdateType))
    status: TaskStatus = field(validator=one_of(TaskStatus))
    progress: dict[str, Any] | None = field(default=None, validator=absent_or(PROGRESS))
    input_request: dict[str, Any] | None = field(default=None, validator=absent_or(OBJECT))


@frozen(kw_only=True)
class TaskStream:
    """A piece of a streamed answer (2.x). `progress` is a ratio, unlike a task update's percent."""

    chunk: str = field(default="", validator=TEXT)
    progress: float | None = field(default=None, validator=absent_or(number(least=0, most=1)))
    final: bool = field(default=False, validator=BOOLEAN)
    status: TaskStatus | None = field(default=None, validator=absent_or(one_of(TaskStatus)))


@frozen(kw_only=True)
class TaskCancel:
    """Please stop this task."""

    task_id: str = field(validator=TEXT)
    reason: str | None = field(default=None, validator=absent_or(TEXT))


@frozen(kw_only=True)
class MessageSend:
    """A message within a task; `parts` are ids."""

    task_id: str = field(validator=TEXT)
    message_id: str = field(validator=TEXT)
    sender: str = field(validator=TEXT)
    role: Role = field(validator=one_of(Role))
    parts: tuple[str, ...] = field(converter=array, validator=TEXTS)


@frozen(kw_only=True)
class StateQuery:
    """A question: what is the state of this task, at this version or now."""

    task_id: str = field(validator=TEXT)
    version: int | None = field(default=None, validator=absent_or(integer()))


@frozen(kw_only=True)
class StateRestore:
    """Go back to this snapshot."""

    task_id: str = field(validator=TEXT)
    snapshot_id: str = field(validator=TEXT)


@frozen(kw_only=True)
class ArtifactNotify:
    """A task has made this."""

    artifact_id: str = field(validator=TEXT)
    task_id: str = field(validator=TEXT)
    name: str | None = field(default=None, validator=absent_or(TEXT))


@frozen(kw_only=True)
class McpToolCall:
    """Call an MCP tool."""

    request_id: str = field(validator=TEXT)
    tool_name: str = field(validator=TEXT)
    arguments: dict[str, Any] = field(validator=OBJECT)
    mcp_context: dict[str, Any] | None = field(default=None, validator=absent_or(OBJECT))


@frozen(kw_only=True)
class McpToolResult:
    """What an MCP tool answered: a result, or an error, never both."""

    request_id: str = field(validator=TEXT)
    success: bool = field(validator=BOOLEAN)
    result: dict[str, Any] | None = field(default=None, validator=absent_or(OBJECT))
    error: str | None = field(default=None, validator=absent_or(TEXT))

    def __attrs_post_init__(self) -> None:
        if self.success and (self.result is None or self.error is not None):
            raise InvalidValue("result without error when success is true")
        if not self.success and (self.error is None or self.result is not None):
            raise InvalidValue("error without result when success is false")


@frozen(kw_only=True)
class McpResourceFetch:
    """Fetch an MCP resource."""

    resource_uri: str = field(validator=TEXT)


@frozen(kw_only=True)
class McpResourceData:
    """An MCP resource's content."""

    resource_uri: str = field(validator=TEXT)
    content: dict[str, Any] = field(validator=OBJECT)


@frozen(kw_only=True)
class MessageAck:
    """What became of an envelope (WebSocket only)."""

    original_envelope_id: str = field(validator=TEXT)
    status: AckStatus = field(validator=one_of(AckStatus))
    error: str | None = field(default=None, validator=absent_or(TEXT))


Payload = (
    TaskRequest
    | TaskResponse
    | TaskUpdate
    | TaskStream
    | TaskCancel
    | MessageSend
    | StateQuery
    | StateRestore
    | ArtifactNotify
    | McpToolCall
    | McpToolResult
    | McpResourceFetch
    | McpResourceData
    | MessageAck
)

PAYLOADS: Final[dict[str, type[Payload]]] = {
    payload.__name__.lower(): payload
    for payload in (
        TaskRequest,
        TaskResponse,
        TaskUpdate,
        TaskStream,
        TaskCancel,
        MessageSend,
        StateQuery,
        StateRestore,
        ArtifactNotify,
        McpToolCall,
        McpToolResult,
        McpResourceFetch,
        McpResourceData,
        MessageAck,
    )
}
"""The normalised payload type → the class, for all 14 types that the reference 2.5 knows."""

WIRE_NAMES: Final[dict[type[Payload], str]] = {
    TaskRequest: "task.request",
    TaskResponse: "task.response",
    TaskUpdate: "task.update",
    TaskStream: "TaskStream",
    TaskCancel: "task.cancel",
    MessageSend: "message.send",
    StateQuery: "state_query",
    StateRestore: "state_restore",
    ArtifactNotify: "artifact.notify",
    McpToolCall: "mcp.tool_call",
    McpToolResult: "mcp.tool_result",
    McpResourceFetch: "mcp.resource_fetch",
    McpResourceData: "mcp.resource_data",
    MessageAck: "MessageAck",
}
"""The class → the spelling that peers of both generations use (wire-protocol §1.4); any spelling is read."""
