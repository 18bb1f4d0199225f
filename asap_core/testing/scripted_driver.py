"""A driver of the client's programs without a loop: a manual clock, and the outside world as a script. Deterministic.

    driver = ScriptedDriver(lambda effect: ScriptedAnswer(body=b"{}"))
    client = Client("urn:asap:agent:me").bind(driver.runtime)
    manifest = driver.run(client.discover("https://agent.example"))

Several programs run at once: `start` them, then take `turn`s, or `answer` and `close` them by hand.
"""

import math
from collections.abc import Callable
from itertools import count
from typing import Any, Final, Generic, TypeVar, assert_never

from attrs import define, frozen

from asap_core.client import programs
from asap_core.client.runtime import Runtime
from asap_core.clock import ManualClock
from asap_core.errors import AsapError
from asap_core.testing.caller_schedules import CallerArrives, CallerLeaves, Schedule, TimePasses, WallClockSteps

T = TypeVar("T")


@frozen
class ScriptedAnswer:
    """A response, or a file with this body. `failure`: the outcome if it isn't complete. `identity`: the file's."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    address: str | None = None
    failure: programs.Unanswered | programs.Expired | None = None
    identity: programs.FileIdentity | None = None


ScriptedReply = ScriptedAnswer | programs.Outcome


@frozen
class Delayed:
    """A reply after some seconds: at the effect's last moment it's in time, later the effect expires."""

    seconds: float
    reply: ScriptedReply


# The effect expires, unless `ScriptedDriver.answer` answers it.
HELD: Final = Delayed(math.inf, programs.Expired())
OutcomeOf = Callable[[Any], ScriptedReply | Delayed]


@define(eq=False)
class ScriptedRun(Generic[T]):
    """A program that was started. `effect`: what it waits for. `end`: how it ended, unless it was closed."""

    program: programs.Program[T]
    effect: programs.Effect | None = None
    end: programs.Returned[T] | AsapError | OSError | None = None
    due: float = math.inf
    reply: ScriptedReply = programs.Expired()  # noqa: RUF009

    def result(self) -> T:
        """Return the program's value, or raise its exception."""
        assert self.end is not None, f"not finished: {self.effect}"
        if isinstance(self.end, AsapError | OSError):
            raise self.end
        return self.end.value


class ScriptedDriver:
    """Runs the programs of a client that is bound to its `runtime`.

    script: returns the outcome of a Fetch, Next, ReadFile or WriteFile, perhaps `Delayed`.
    effects: all that were yielded to it.
    runs: those under way, in order.
    removed: the files that were to be removed.
    """

    def __init__(self, script: OutcomeOf = lambda _: HELD) -> None:
        numbers = count(1)
        self.script, self.clock = script, ManualClock()
        self.runtime = Runtime(
            self.clock, lambda: f"id-{next(numbers)}", lambda: f"token-{next(numbers)}", fraction=lambda: 0.5
        )
        self.effects: list[programs.Effect] = []
        self.runs: list[ScriptedRun[Any]] = []
        self.removed: list[str] = []

    def start(self, program: programs.Program[T]) -> ScriptedRun[T]:
        """Run a program up to its first effect."""
        run = ScriptedRun(program)
        self._step(run, None)
        return run

    def run(self, program: programs.Program[T]) -> T:
        """Run a program to its end, and meanwhile those that were started before."""
        run = self.start(program)
        while run.effect is not None:
            assert self.turn(), f"waits for ever: {run.effect}"
        return run.result()

    def turn(self, until: float = math.inf) -> bool:
        """Let time pass until the next reply, and give it. Returns False if there is no reply by then."""
        self._wake()
        run = min(self.runs, key=lambda run: run.due, default=None)
        if run is None or run.due == math.inf or run.due > until:
            return False
        self.clock.advance(max(run.due - self.clock.monotonic(), 0.0))
        self.answer(run, run.reply)
        return True

    def advance(self, seconds: float) -> None:
        """Let time pass, and carry out what is due in it."""
        end = self.clock.monotonic() + seconds
        while self.turn(end):
            pass
        self.clock.advance(max(end - self.clock.monotonic(), 0.0))

    def answer(self, run: ScriptedRun[Any], reply: ScriptedReply) -> None:
        """Give the program its outcome now."""
        self.runs.remove(run)
        self._step(run, _outcome(run.effect, reply))

    def follow(self, schedule: Schedule, program: Callable[[int], programs.Program[T]]) -> list[ScriptedRun[T]]:
        """Let callers come and go, and time pass. Returns the runs in the order in which they were started.

        program: makes the program of a caller.
        """
        runs: list[ScriptedRun[T]] = []
        there: dict[int, ScriptedRun[T]] = {}
        for step in schedule:
            match step:
                case CallerArrives(caller):
                    runs.append(self.start(program(caller)))
                    there[caller] = runs[-1]
                case CallerLeaves(caller):
                    run = there.pop(caller)
                    if run.effect is not None:
                        self.close(run)
                case TimePasses(seconds):
                    self.advance(seconds)
                case WallClockSteps(seconds):
                    self.clock.step_wall(seconds)
                case _:
                    assert_never(step)
        return runs

    def close(self, run: ScriptedRun[Any]) -> None:
        """Close a program where it's suspended."""
        self.runs.remove(run)
        run.effect = None
        run.program.close()
        self._wake()

    def _step(self, run: ScriptedRun[T], outcome: programs.Outcome | None) -> None:
        run.effect = None
        try:
            moved = programs.step(run.program, outcome)
        except (AsapError, OSError) as error:
            run.end = error
        else:
            if isinstance(moved, programs.Returned):
                run.end = moved
            else:
                self._suspend(run, moved)
        self._wake()

    def _suspend(self, run: ScriptedRun[Any], effect: programs.Effect) -> None:
        self.effects.append(effect)
        self.runs.append(run)
        now, limit = self.clock.monotonic(), math.inf if effect.seconds is None else effect.seconds
        run.effect, run.due, run.reply = effect, now + limit, programs.Expired()
        match effect:
            case programs.Wait(ticket):
                if ticket.ready:
                    run.due, run.reply = now, programs.Completed()
            case programs.Sleep():
                run.reply = programs.Completed()
            case programs.Fetch() | programs.Next() | programs.ReadFile() | programs.WriteFile():
                reply = self.script(effect)
                after = reply if isinstance(reply, Delayed) else Delayed(0.0, reply)
                if after.seconds <= limit:
                    run.due, run.reply = now + after.seconds, after.reply
            case _:
                assert_never(effect)

    def _wake(self) -> None:
        woken = self.runtime.take_wakes()
        self.removed.extend(self.runtime.take_removals())
        for run in self.runs:
            if isinstance(run.effect, programs.Wait) and run.effect.ticket in woken:
                run.due, run.reply = self.clock.monotonic(), programs.Completed()


def _outcome(effect: programs.Effect | None, reply: ScriptedReply) -> programs.Outcome:
    if not isinstance(reply, ScriptedAnswer):
        return reply
    assert isinstance(effect, programs.Fetch | programs.ReadFile)
    if isinstance(effect, programs.Fetch):
        effect.reader.begin(reply.status, reply.headers)
    effect.reader.feed(reply.body)
    if reply.failure is not None:
        return reply.failure
    effect.reader.end()
    if isinstance(effect, programs.ReadFile):
        return programs.FileRead(reply.identity)
    return programs.Received(reply.address)
