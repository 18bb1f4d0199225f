"""The status of a task: its machine as one table (docs/wire.md §2.4). And who writes a message."""

from collections.abc import Mapping
from enum import Enum
from typing import Final


class TaskStatus(Enum):
    """The status of a task."""

    SUBMITTED = "submitted"
    WORKING = "working"
    INPUT_REQUIRED = "input_required"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether the task is over: no status follows this one."""
        return not TRANSITIONS[self]


TRANSITIONS: Final[Mapping[TaskStatus, frozenset[TaskStatus]]] = {
    TaskStatus.SUBMITTED: frozenset({TaskStatus.WORKING, TaskStatus.CANCELLED}),
    TaskStatus.WORKING: frozenset(
        {TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.INPUT_REQUIRED}
    ),
    TaskStatus.INPUT_REQUIRED: frozenset({TaskStatus.WORKING, TaskStatus.CANCELLED}),
    TaskStatus.COMPLETED: frozenset(),
    TaskStatus.FAILED: frozenset(),
    TaskStatus.CANCELLED: frozenset(),
}
"""The allowed transitions, complete (docs/wire.md §2.4). No status moves to itself."""


class Role(Enum):
    """The author of a message."""

    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"
