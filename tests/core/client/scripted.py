"""The kit's driver of programs, by the short names that tests of programs use, and how a program is lost."""

from threading import Thread
from typing import Any
from weakref import ref

from asap_core.testing.scripted_driver import (
    HELD,
    Delayed as After,
    OutcomeOf as Script,
    ScriptedAnswer as Answer,
    ScriptedDriver,
    ScriptedReply as Reply,
    ScriptedRun as Run,
)

__all__ = ["HELD", "After", "Answer", "Driver", "Reply", "Run", "Script"]


class Driver(ScriptedDriver):
    """Also loses programs."""

    def lose(self, run: Run[Any]) -> None:
        """Forget a program, so that it's closed in another thread, as by the garbage collector there."""
        self.runs.remove(run)
        held, left = [run.program], ref(run.program)
        run.effect = None
        del run.program
        thread = Thread(target=held.clear)
        thread.start()
        thread.join()
        assert left() is None, "something else holds the program"
