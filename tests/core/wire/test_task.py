"""The lifecycle of a task: it moves as its table says."""

from typing import Any

import pytest
from attrs import evolve

from asap_core.errors import (
    InvalidTransition,
)
from asap_core.wire.task import Task
from asap_core.wire.task_status import TRANSITIONS, TaskStatus


class TestTasks:
    TASK = Task(
        id="t", conversation_id="c", status=TaskStatus.SUBMITTED, created_at="2026-01-01", updated_at="2026-01-01"
    )

    @pytest.mark.parametrize("before", TaskStatus)
    @pytest.mark.parametrize("after", TaskStatus)
    def test_transitions_are_those_of_the_table(self, before, after) -> None:
        task: Any = evolve(self.TASK, status=before)
        if after in TRANSITIONS[before]:
            assert (task.move(after, wall=1.0).status, task.move(after, wall=1.0).updated_at.year) == (after, 1970)
        else:
            with pytest.raises(InvalidTransition) as caught:
                task.move(after, wall=1.0)
            assert (caught.value.from_status, caught.value.to_status) == (before.value, after.value)
            assert f"a {before.value} task can move to" in str(caught.value)

    def test_only_completed_failed_and_cancelled_are_terminal(self) -> None:
        assert {status for status in TaskStatus if status.terminal} == {
            TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED,
        }  # fmt: skip
