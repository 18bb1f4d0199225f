"""Tasks, and the entities of a conversation (docs/wire.md §2.3)."""

from datetime import datetime
from typing import Final

from attrs import evolve, field, frozen

from asap_core.clock import WallTime
from asap_core.errors import InvalidTransition
from asap_core.wire.envelope import utc
from asap_core.wire.json_values import JsonObject
from asap_core.wire.rules import (
    BOOLEAN,
    DATE_TIME,
    OBJECT,
    TEXT,
    TEXTS,
    URN,
    absent_or,
    array,
    integer,
    one_of,
    one_or_more,
    parse_timestamp,
)
from asap_core.wire.task_status import TRANSITIONS, Role, TaskStatus

# The reference's limit for tasks that start tasks.
MAX_DEPTH: Final = 10


@frozen(kw_only=True)
class Task:
    """A task: its status, its conversation and its parent task.

    depth: how many parents it has.
    """

    id: str = field(validator=TEXT)
    conversation_id: str = field(validator=TEXT)
    parent_task_id: str | None = field(default=None, validator=absent_or(TEXT))
    status: TaskStatus = field(validator=one_of(TaskStatus))
    depth: int = field(default=0, validator=integer(least=0, most=MAX_DEPTH))
    progress: JsonObject | None = field(default=None, validator=absent_or(OBJECT))
    created_at: datetime = field(converter=parse_timestamp, validator=DATE_TIME)
    updated_at: datetime = field(converter=parse_timestamp, validator=DATE_TIME)

    def move(self, to: TaskStatus, *, wall: WallTime) -> "Task":
        """Return a copy in status `to`, updated at `wall`.

        Raises: InvalidTransition, which names the allowed statuses.
        """
        allowed = TRANSITIONS[self.status]
        if to not in allowed:
            raise InvalidTransition(
                self.id, self.status.value, to.value, tuple(sorted(status.value for status in allowed))
            )
        return evolve(self, status=to, updated_at=utc(wall))


@frozen(kw_only=True)
class AgentRecord:
    """The entity `Agent` of the published schemas: an agent's id and its manifest's URI."""

    id: str = field(validator=URN)
    manifest_uri: str = field(validator=TEXT)
    capabilities: tuple[str, ...] = field(converter=array, validator=one_or_more(TEXT))


@frozen(kw_only=True)
class Conversation:
    """A conversation: its participants."""

    id: str = field(validator=TEXT)
    participants: tuple[str, ...] = field(converter=array, validator=one_or_more(TEXT))
    created_at: datetime = field(converter=parse_timestamp, validator=DATE_TIME)
    metadata: JsonObject | None = field(default=None, validator=absent_or(OBJECT))


@frozen(kw_only=True)
class Message:
    """One turn of a task.

    parts: the ids of its parts.
    """

    id: str = field(validator=TEXT)
    task_id: str = field(validator=TEXT)
    sender: str = field(validator=TEXT)
    role: Role = field(validator=one_of(Role))
    parts: tuple[str, ...] = field(converter=array, validator=TEXTS)
    timestamp: datetime = field(converter=parse_timestamp, validator=DATE_TIME)


@frozen(kw_only=True)
class Artifact:
    """A result that a task produced.

    parts: the ids of its parts.
    """

    id: str = field(validator=TEXT)
    task_id: str = field(validator=TEXT)
    name: str = field(validator=TEXT)
    parts: tuple[str, ...] = field(converter=array, validator=TEXTS)
    created_at: datetime = field(converter=parse_timestamp, validator=DATE_TIME)


@frozen(kw_only=True)
class StateSnapshot:
    """The state of a task at one version."""

    id: str = field(validator=TEXT)
    task_id: str = field(validator=TEXT)
    version: int = field(validator=integer(least=1))
    data: JsonObject = field(validator=OBJECT)
    checkpoint: bool = field(default=False, validator=BOOLEAN)
    created_at: datetime = field(converter=parse_timestamp, validator=DATE_TIME)
