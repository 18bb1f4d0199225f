"""The payloads of the protocol (docs/wire.md §2.1), in a table by their normalised type name.

Their fields are strict, as the reference's are. `config`, `metrics` and similar objects aren't checked, since 1.1 peers
put their own keys there.
"""

from enum import Enum
from typing import Final

from attrs import field, frozen

from asap_core.wire.json_values import JsonObject
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
from asap_core.wire.task_status import Role, TaskStatus

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
    """The result for an envelope that required an acknowledgement."""

    RECEIVED = "received"
    PROCESSED = "processed"
    REJECTED = "rejected"


@frozen(kw_only=True)
class TaskRequest:
    """Asks the agent to run a skill.

    config: hints such as `timeout_seconds`.
    """

    conversation_id: str = field(validator=TEXT)
    parent_task_id: str | None = field(default=None, validator=absent_or(TEXT))
    skill_id: str = field(validator=TEXT)
    input: JsonObject = field(validator=OBJECT)
    config: JsonObject | None = field(default=None, validator=absent_or(OBJECT))


@frozen(kw_only=True)
class TaskResponse:
    """The status of a task, and its result."""

    task_id: str = field(validator=TEXT)
    status: TaskStatus = field(validator=one_of(TaskStatus))
    result: JsonObject | None = field(default=None, validator=absent_or(OBJECT))
    final_state: JsonObject | None = field(default=None, validator=absent_or(OBJECT))
    metrics: JsonObject | None = field(default=None, validator=absent_or(OBJECT))


@frozen(kw_only=True)
class TaskUpdate:
    """Reports progress or a change of a running task."""

    task_id: str = field(validator=TEXT)
    update_type: UpdateType = field(validator=one_of(UpdateType))
    status: TaskStatus = field(validator=one_of(TaskStatus))
    progress: JsonObject | None = field(default=None, validator=absent_or(PROGRESS))
    input_request: JsonObject | None = field(default=None, validator=absent_or(OBJECT))


@frozen(kw_only=True)
class TaskStream:
    """A piece of a streamed answer (2.x).

    progress: from 0 to 1, unlike a task update's `percent`.
    """

    chunk: str = field(default="", validator=TEXT)
    progress: float | None = field(default=None, validator=absent_or(number(least=0, most=1)))
    final: bool = field(default=False, validator=BOOLEAN)
    status: TaskStatus | None = field(default=None, validator=absent_or(one_of(TaskStatus)))


@frozen(kw_only=True)
class TaskCancel:
    """Asks the agent to cancel a task."""

    task_id: str = field(validator=TEXT)
    reason: str | None = field(default=None, validator=absent_or(TEXT))


@frozen(kw_only=True)
class MessageSend:
    """A message within a task.

    parts: the ids of its parts.
    """

    task_id: str = field(validator=TEXT)
    message_id: str = field(validator=TEXT)
    sender: str = field(validator=TEXT)
    role: Role = field(validator=one_of(Role))
    parts: tuple[str, ...] = field(converter=array, validator=TEXTS)


@frozen(kw_only=True)
class StateQuery:
    """Asks for the state of a task, at a version or the current one."""

    task_id: str = field(validator=TEXT)
    version: int | None = field(default=None, validator=absent_or(integer()))


@frozen(kw_only=True)
class StateRestore:
    """Asks the agent to restore a task's state from a snapshot."""

    task_id: str = field(validator=TEXT)
    snapshot_id: str = field(validator=TEXT)


@frozen(kw_only=True)
class ArtifactNotify:
    """Reports that a task has produced an artifact."""

    artifact_id: str = field(validator=TEXT)
    task_id: str = field(validator=TEXT)
    name: str | None = field(default=None, validator=absent_or(TEXT))


@frozen(kw_only=True)
class McpToolCall:
    """Calls an MCP tool."""

    request_id: str = field(validator=TEXT)
    tool_name: str = field(validator=TEXT)
    arguments: JsonObject = field(validator=OBJECT)
    mcp_context: JsonObject | None = field(default=None, validator=absent_or(OBJECT))


@frozen(kw_only=True)
class McpToolResult:
    """The result of an MCP tool: `result` if it succeeded, `error` if it failed, never both."""

    request_id: str = field(validator=TEXT)
    success: bool = field(validator=BOOLEAN)
    result: JsonObject | None = field(default=None, validator=absent_or(OBJECT))
    error: str | None = field(default=None, validator=absent_or(TEXT))

    def __attrs_post_init__(self) -> None:
        if self.success and (self.result is None or self.error is not None):
            raise InvalidValue("result without error when success is true")
        if not self.success and (self.error is None or self.result is not None):
            raise InvalidValue("error without result when success is false")


@frozen(kw_only=True)
class McpResourceFetch:
    """Asks for an MCP resource."""

    resource_uri: str = field(validator=TEXT)


@frozen(kw_only=True)
class McpResourceData:
    """The content of an MCP resource."""

    resource_uri: str = field(validator=TEXT)
    content: JsonObject = field(validator=OBJECT)


@frozen(kw_only=True)
class MessageAck:
    """Acknowledges an envelope (WebSocket only)."""

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
"""The class of a payload, by its normalised type: all 14 types that the reference 2.5 knows."""

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
"""The spelling to send for each class: the one that peers of both generations use (docs/wire.md §1.4)."""
