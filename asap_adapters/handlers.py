"""The user's functions: which one runs for a call, in which thread, for how long, and what its return value means."""

import inspect
import logging
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

import anyio
import anyio.to_thread
from attrs import frozen

from asap_adapters.entropy import new_id
from asap_core.errors import BUSY, HANDLER_FAILED, HANDLER_TIMEOUT, Refusal
from asap_core.model.envelope import Envelope, normalise_payload_type
from asap_core.model.payloads import WIRE_NAMES, Payload, TaskResponse
from asap_core.model.task import TaskStatus
from asap_core.server.agent import Agent
from asap_core.server.call import Answered, Dispatch, Record, Replied
from asap_core.server.identity import Principal

__all__ = ["Context", "Handler", "Handlers", "TaskFailed"]

log: Final = logging.getLogger("asap.handlers")

# anyio's and the standard library's default size of a thread pool on common machines.
MAX_THREADS: Final = 40


class TaskFailed(Exception):
    """Raised by a handler: the task failed, and the caller is told this. Anything else raised is the handler's bug."""

    def __init__(self, reason: str, **result: object) -> None:
        super().__init__(reason)
        self.reason = reason
        self.result = result


@frozen(kw_only=True)
class Context:
    """What a handler knows beside its request: the envelope, who sent it, how long it may take in seconds.

    `principal` is `Authenticated` or `Anonymous`: match on it before trusting the sender.
    """

    envelope: Envelope
    principal: Principal
    deadline: float
    task_id: str


Handler = Callable[[Any, Context], Any]
"""`async def f(request: TaskRequest, context: Context) -> object`, or the same without async, run in a thread."""


class _Slot:
    """A place among the worker threads: taken by the loop, freed once, by the thread or by a loop that gave up."""

    def __init__(self, free: threading.Semaphore) -> None:
        self._free = free
        self._lock = threading.Lock()
        self._begun = False
        self._gone = False

    def begin(self) -> bool:
        """In the thread: whether the work is still wanted."""
        with self._lock:
            self._begun = not self._gone
            return self._begun

    def end(self) -> None:
        """In the thread: the work is over."""
        self._free.release()

    def give_up(self) -> bool:
        """In the loop: free the place unless the thread has begun; returns whether it had."""
        with self._lock:
            if not self._begun and not self._gone:
                self._gone = True
                self._free.release()
            return self._begun


class _NeverRan:
    """The handler had no thread to run in."""


class Handlers:
    """Which function runs: by skill for `task.request`, by payload type (in any spelling) for the rest.

    Functions that aren't async run in worker threads, `threads` at most; past that a call is refused as busy at once.
    One that outlives its deadline keeps its thread, since nothing can stop it.
    """

    def __init__(
        self,
        skills: Mapping[str, Handler],
        *,
        on: Mapping[str, Handler] | None = None,
        threads: int = MAX_THREADS,
        new_id: Callable[[], str] = new_id,
    ) -> None:
        self.skills = dict(skills)
        self.on = {normalise_payload_type(kind): handler for kind, handler in (on or {}).items()}
        self._new_id = new_id
        self._free = threading.Semaphore(threads)
        # The semaphore bounds the threads; anyio's limiter would free a place while an abandoned thread still runs.
        self._no_limit: anyio.CapacityLimiter | None = None

    def check(self, agent: Agent) -> None:
        """Make sure that handlers and manifest agree. Raises ValueError that says what is missing where."""
        missing = sorted(agent.skills - set(self.skills))
        unknown = sorted(set(self.skills) - agent.skills)
        if missing:
            raise ValueError(f"expected a handler for every skill of the manifest; none for {', '.join(missing)}")
        if unknown:
            raise ValueError(f"expected every handler's skill in the manifest; it lacks {', '.join(unknown)}")
        unserved = sorted(agent.payload_types - set(self.on) - {TASK_REQUEST})
        if unserved:
            raise ValueError(f"expected a handler in on= for every payload type; none for {', '.join(unserved)}")

    async def run(self, dispatch: Dispatch) -> Record | Answered:
        """Run the function for `dispatch` and pass on what came of it.

        Cancelled midway, the call is lost: its idempotency key answers `outcome unknown` from then on.
        """
        context = Context(
            envelope=dispatch.envelope,
            principal=dispatch.principal,
            deadline=dispatch.deadline,
            task_id=f"task_{self._new_id()}",
        )
        try:
            outcome = await self._outcome(dispatch, context)
        except BaseException:
            dispatch.lost()
            raise
        match outcome:
            case _NeverRan():
                return dispatch.turned_away(Refusal(kind=BUSY, retry_after=_AFTER_BUSY))
            case Refusal():
                return dispatch.failed(outcome)
            case _:
                return dispatch.replied(outcome)

    async def _outcome(self, dispatch: Dispatch, context: Context) -> "Payload | Replied | Refusal | _NeverRan":
        handler = self._find(dispatch)
        request = dispatch.envelope.payload if dispatch.request is None else dispatch.request
        try:
            with anyio.move_on_after(dispatch.deadline, shield=dispatch.shielded):
                if _is_async(handler):
                    return _payload_of(await handler(request, context), dispatch, context)
                return await self._in_thread(handler, request, dispatch, context)
        except TaskFailed as failure:
            result = {"error": failure.reason, **failure.result}
            return TaskResponse(task_id=context.task_id, status=TaskStatus.FAILED, result=result)
        except Exception:
            log.exception("the handler for %s broke", dispatch.skill or dispatch.kind)
            return Refusal(kind=HANDLER_FAILED, note="Internal server error")
        return Refusal(kind=HANDLER_TIMEOUT, details={"deadline_seconds": dispatch.deadline})

    def _find(self, dispatch: Dispatch) -> Handler:
        if dispatch.kind == TASK_REQUEST and dispatch.skill is not None:
            return self.skills[dispatch.skill]
        return self.on[dispatch.kind]

    async def _in_thread(
        self, handler: Handler, request: object, dispatch: Dispatch, context: Context
    ) -> "Payload | Replied | Refusal | _NeverRan":
        if not self._free.acquire(blocking=False):
            return _NeverRan()
        slot = _Slot(self._free)

        def work() -> object:
            if not slot.begin():
                return None
            try:
                return handler(request, context)
            finally:
                slot.end()

        if self._no_limit is None:
            self._no_limit = anyio.CapacityLimiter(math.inf)
        try:
            value = await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._no_limit)
        finally:
            slot.give_up()
        return _payload_of(value, dispatch, context)


TASK_REQUEST: Final = "taskrequest"
# A worker thread is a matter of milliseconds to seconds; the reference says one second too.
_AFTER_BUSY: Final = 1.0


def _is_async(handler: Handler) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004 - is it async, not is it callable


def _payload_of(value: object, dispatch: Dispatch, context: Context) -> Payload | Replied | Refusal:
    """What a handler's return value means: a payload passes through, anything else completes the task."""
    if isinstance(value, Replied) or type(value) in WIRE_NAMES:
        return value  # type: ignore[return-value]
    if dispatch.kind == TASK_REQUEST:
        result = value if value is None or type(value) is dict else {"value": value}
        return TaskResponse(task_id=context.task_id, status=TaskStatus.COMPLETED, result=result)
    log.error("the handler for %s must return one of the protocol's payloads, or Replied", dispatch.kind)
    return Refusal(kind=HANDLER_FAILED, note="Internal server error")
