"""Requests under one idempotency key, with admission in memory: one works, others wait, some leave, the key expires."""

import json
from collections.abc import Hashable
from typing import Any, Final

from asap_core import Answered, Dispatch, Hold, ManualClock, Refusal, Replied, Respond
from asap_core.refusals import BUSY, HANDLER_FAILED
from tests.builders import call
from tests.core.server.exchanges import head, serve
from tests.explore.explorer import Step

# Each tick is as long as a call may be held, as an answer is kept, and half of what a handler has until it's lost: its
# second and the table's grace of five.
SLOTS, TICK, HOLD, KEPT, DEADLINE = 3, 3.0, 3.0, 3.0, 1.0
OTHER: Final = {"payload": {"conversation_id": "c", "skill_id": "echo", "input": {"other": True}}}
LEFT: Final = "left"


class RetriesWorld:
    """A driver of `SLOTS` connections. Each sends one request at a time; they differ in nothing but their place."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.agent: Any = serve(
            clock=self.clock, hold=HOLD, handler_deadline=DEADLINE, idempotency_ttl=KEPT, max_age=3600.0
        )
        self.table = self.agent.admission._table
        self.forks: list[Any] = [None] * SLOTS
        self.calls: list[Any] = [None] * SLOTS
        self.began: list[float] = [0.0] * SLOTS
        self.woken: set[bytes] = set()
        self.runs, self.answer = 0, ""

    def inputs(self) -> list[Step]:
        steps: list[Step] = []
        for slot, state in enumerate(self.calls):
            match state:
                case None:
                    steps += [("call", slot), ("call otherwise", slot)]
                case Dispatch():
                    steps += [(name, slot) for name in ("replied", "failed", "turned away", "lost", "vanishes")]
                case Hold():
                    steps += [("again", slot), ("expired", slot), ("leaves", slot)]
        # The end of a handler is reported within its deadline and the grace, so the second tick doesn't come.
        late = any(isinstance(one, Dispatch) and self.age(slot) > 0 for slot, one in enumerate(self.calls))
        return steps if late else [*steps, ("tick",)]

    def age(self, slot: int) -> float:
        return self.clock.monotonic() - self.began[slot]

    def do(self, step: Step) -> None:
        match step:
            case ("tick",):
                self.clock.advance(TICK)
            case (("call" | "call otherwise") as name, int(slot)):
                body = json.dumps(call(key="k", envelope_changes=OTHER if name == "call otherwise" else None))
                self.forks[slot] = self.agent.open(head()).feed(body.encode()).end()
                self.go(slot, self.forks[slot].calls[0])
            case (str(name), int(slot)):
                self.go(slot, self.moved(name, slot, self.calls[slot]))
        self.woken.update(self.agent.take_wakes())
        self.woken &= {state.ticket for state in self.calls if isinstance(state, Hold)}

    def moved(self, name: str, slot: int, state: Any) -> Any:
        match name:
            case "replied":
                self.answer = f"run {self.runs}"
                return state.replied(Replied("task.response", {"task_id": self.answer, "status": "completed"}))
            case "failed":
                self.answer = HANDLER_FAILED.taxonomy
                return state.failed(Refusal(kind=HANDLER_FAILED))
            case "turned away":
                return state.turned_away(Refusal(kind=BUSY))
            case "again" | "expired":
                return getattr(state, name)()
            case "lost" | "vanishes":
                state.lost() if name == "lost" else state.abandon()
        self.forks[slot].abandon()
        return LEFT

    def go(self, slot: int, state: Any) -> None:
        """Take the state that follows. An answer is sent at once."""
        if isinstance(state, Dispatch):
            self.runs, self.began[slot] = self.runs + 1, self.clock.monotonic()
        elif isinstance(state, Answered):
            responded = self.forks[slot].answered([state])
            assert isinstance(responded, Respond)
            self.judge(json.loads(responded.response.body))
            responded.sent()
        over = state is LEFT or isinstance(state, Answered)
        self.calls[slot], self.forks[slot] = (None, None) if over else (state, self.forks[slot])

    def judge(self, answer: Any) -> None:
        if "result" in answer:
            told = answer["result"]["envelope"]["payload"]["task_id"]
        elif (told := answer["error"]["data"]["code"]) != HANDLER_FAILED.taxonomy:
            return
        assert told == self.answer, "it isn't the answer of the last run"

    def check(self) -> None:
        running = [one for one in self.calls if isinstance(one, Dispatch)]
        held = [one for one in self.calls if isinstance(one, Hold)]
        assert len(running) <= 1, "two handlers under one key"
        assert self.agent.active == sum(self.agent._callers.values()) == len(running), "running handlers are miscounted"
        assert sum(self.agent.admission._held.values()) == len(held), "waiting calls are miscounted"
        for state in held:
            assert 0 < state.seconds <= HOLD, "it waits without a deadline"
            assert running or state.ticket in self.woken, "it waits for nothing, and isn't woken"
        assert len(self.table) <= 1

    def fingerprint(self) -> Hashable:
        now = self.clock.monotonic()
        # Of an expired key nothing is left but its entry, until the next look.
        entries = [(one.state, one.digest, max(one.until - now, -KEPT)) for one in self.table._entries.values()]
        slots = [
            (type(one).__name__, self.age(slot) if isinstance(one, Dispatch) else None, *self.hold(one))
            for slot, one in enumerate(self.calls)
        ]
        return tuple(entries), tuple(sorted(map(repr, slots)))

    def hold(self, state: Any) -> tuple[Hashable, ...]:
        if not isinstance(state, Hold):
            return ()
        until: Any = state._context.hold_until
        return state.ticket in self.woken, state._question.digest, max(until - self.clock.monotonic(), 0)

    def is_over(self) -> bool:
        return self.calls == [None] * SLOTS
