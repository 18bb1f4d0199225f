"""Runs handlers, with a deadline, and converts their results."""

import logging
import math
import threading
from collections.abc import Callable, Mapping
from types import CoroutineType
from typing import Any, Final, Protocol, cast

import anyio
import anyio.to_thread

from asap_adapters.server.user_code import (
    expect_handlers,
    forget_cancellations,
    is_async,
    is_cancellation,
    must_propagate,
    partition,
    pending_cancellations,
    report,
)
from asap_adapters.system import new_id
from asap_core.arguments import expect_whole
from asap_core.auth.principal import Principal
from asap_core.refusals import BUSY, HANDLER_FAILED, HANDLER_TIMEOUT, Refusal
from asap_core.request_values import frozen
from asap_core.server.agent import Agent
from asap_core.server.call import Answered, Dispatch, Record
from asap_core.wire.envelope import Envelope, normalise_payload_type
from asap_core.wire.handler_reply import Replied, fields_of
from asap_core.wire.payloads import WIRE_NAMES, Payload, TaskResponse
from asap_core.wire.task_status import TaskStatus

log: Final = logging.getLogger("asap.handlers")

# anyio's and the standard library's default size of a thread pool on common machines.
MAX_THREADS: Final = 40
# A thread's stack takes 8 MiB of addresses on Linux, and systems allow a process some 30,000 threads.
MOST_THREADS: Final = 10_000


class TaskFailed(Exception):
    """Raise it in a handler to say that the task failed, and why. Any other exception counts as a bug of the handler.

    reason: what the caller is told.
    result: further members of the task's result.
    """

    def __init__(self, reason: str, **result: object) -> None:
        super().__init__(reason)
        self.reason = reason
        self.result = result


@frozen(kw_only=True)
class Context:
    """What a handler gets beside its request.

    envelope: the whole envelope.
    principal: who sent it, `Authenticated` or `Anonymous`: match on it before you trust the sender.
    deadline: how many seconds the handler has.
    task_id: the id of the task in the response.
    """

    envelope: Envelope
    principal: Principal
    deadline: float
    task_id: str


Handler = Callable[[Any, Context], Any]
"""`async def f(request: TaskRequest, context: Context) -> object`, or the same without async, run in a thread."""


class Timer(Protocol):
    """Ends the handler of an exchange by a scope around the whole exchange, instead of one for each handler.

    expired: whether it did, so that nothing can be awaited in that scope any more.
    """

    @property
    def expired(self) -> bool:
        """See above."""
        ...

    def begin_handler(self, seconds: float) -> None:
        """A handler begins, and has so many seconds."""
        ...


class _Slot:
    """A place among the worker threads. The loop takes it; it's freed once, by the thread or by a loop that gave up."""

    def __init__(self, free: threading.Semaphore) -> None:
        self._free = free
        self._lock = threading.Lock()
        self._begun = False
        self._gone = False

    def begin(self) -> bool:
        """Called in the thread: whether the work is still wanted."""
        with self._lock:
            self._begun = not self._gone
            return self._begun

    def end(self) -> None:
        """Called in the thread: free the place."""
        self._free.release()

    def give_up(self) -> bool:
        """Called in the loop: free the place unless the thread has begun. Returns whether it had."""
        with self._lock:
            if not self._begun and not self._gone:
                self._gone = True
                self._free.release()
            return self._begun


class _NeverRan:
    """The handler didn't run, since no thread was free."""


@frozen
class _Raised:
    """What a handler raised in its thread."""

    error: BaseException


_Outcome = Payload | Replied | Refusal | _NeverRan
TASK_REQUEST: Final = "taskrequest"
# Seconds. A thread is busy for milliseconds to seconds; the reference says one second too.
_AFTER_BUSY: Final = 1.0


class Handlers:
    """Which function runs for a call.

    skills: for each skill of the manifest, the function `(request, context) -> result` for its `task.request`s.
    on: the functions for other payload types, whose names may be in any spelling.
    threads: how many functions that aren't async run at once, each in a worker thread; a call past that is refused as
        busy. One that outlives its deadline keeps its thread, since nothing can stop it.
    new_id: where the ids of tasks come from.
    """

    def __init__(
        self,
        skills: Mapping[str, Handler],
        *,
        on: Mapping[str, Handler] | None = None,
        threads: int = MAX_THREADS,
        new_id: Callable[[], str] = new_id,
    ) -> None:
        expect_handlers("handlers", skills, '{"echo": echo}')
        expect_handlers("on", on or {}, '{"task.cancel": cancel}')
        expect_whole("threads", threads, least=1, most=MOST_THREADS)
        self.skills = dict(skills)
        self.threads = threads
        self.on = {normalise_payload_type(kind): handler for kind, handler in (on or {}).items()}
        # With each, whether it's async: asked once, not once a call.
        self._of_skills = {skill: (handler, is_async(handler)) for skill, handler in self.skills.items()}
        self._of_types = {kind: (handler, is_async(handler)) for kind, handler in self.on.items()}
        self.new_id = new_id
        self._free = threading.Semaphore(threads)
        # The semaphore bounds the threads; anyio's limiter would free a place while an abandoned thread still runs.
        self._no_limit: anyio.CapacityLimiter | None = None

    @classmethod
    def of(cls, handlers: "Mapping[str, Handler] | Handlers") -> "Handlers":
        """Those that a user passed: a mapping of skills, or `Handlers`, of which a copy has all threads free."""
        if not isinstance(handlers, Handlers):
            return cls(handlers)
        return cls(handlers.skills, on=handlers.on, threads=handlers.threads, new_id=handlers.new_id)

    def check(self, agent: Agent) -> None:
        """Raise ValueError if handlers and manifest don't agree."""
        missing = sorted(agent.skills - set(self.skills))
        unknown = sorted(set(self.skills) - agent.skills)
        if missing:
            raise ValueError(f"expected a handler for every skill of the manifest; none for {', '.join(missing)}")
        if unknown:
            raise ValueError(f"expected every handler's skill in the manifest; it lacks {', '.join(unknown)}")
        unserved = sorted(agent.payload_types - set(self.on) - {TASK_REQUEST})
        if unserved:
            raise ValueError(f"expected a handler in on= for every payload type; none for {', '.join(unserved)}")

    async def run(self, dispatch: Dispatch, timer: Timer | None = None) -> Record | Answered:
        """Run the handler of a call, and go on with its outcome.

        timer: keeps the deadline of a handler that isn't shielded. If it has expired, nothing can be awaited next.

        If it's cancelled midway, the call is lost: its idempotency key answers "outcome unknown" from then on.
        """
        try:
            outcome = await self._outcome(dispatch, timer)
            await forget_cancellations()
        except BaseException:
            dispatch.lost()
            raise
        # By type, not isinstance: a subclass of `Replied` is the user's code, and its `__class__` may raise.
        kind = type(outcome)
        if kind is _NeverRan:
            return dispatch.turned_away(Refusal(kind=BUSY, retry_after=_AFTER_BUSY))
        if kind is Refusal:
            return dispatch.failed(cast("Refusal", outcome))
        return dispatch.replied(cast("Payload | Replied", outcome))

    async def _outcome(self, dispatch: Dispatch, timer: Timer | None) -> "_Outcome":
        before, task_id = pending_cancellations(), ""
        try:
            task_id = f"task_{self.new_id()}"
            if timer is None or dispatch.shielded:
                with anyio.move_on_after(dispatch.deadline, shield=dispatch.shielded):
                    return await self._answer_of(dispatch, task_id, before)
            else:
                timer.begin_handler(dispatch.deadline)
                try:
                    return await self._answer_of(dispatch, task_id, before)
                except BaseException as error:
                    if not (timer.expired and is_cancellation(error)):
                        raise
        except BaseException as error:
            if must_propagate(error, before):
                raise
            return _failed(error, dispatch, task_id)
        return Refusal(kind=HANDLER_TIMEOUT, details={"deadline_seconds": dispatch.deadline})

    async def _answer_of(self, dispatch: Dispatch, task_id: str, before: int) -> "_Outcome":
        try:
            handler, asynchronous = self._find(dispatch)
            context = Context(
                envelope=dispatch.envelope, principal=dispatch.principal, deadline=dispatch.deadline, task_id=task_id
            )
            request = dispatch.envelope.payload if dispatch.request is None else dispatch.request
            if asynchronous:
                return _payload_of(await handler(request, context), dispatch, task_id)
            return await self._in_thread(lambda: handler(request, context), dispatch, task_id)
        except BaseException as error:
            # Decided within the shield: a caller who left meanwhile has nothing to do with this failure.
            if must_propagate(error, before):
                if (parts := partition(error)) is None:
                    raise
                ours, failures = parts
                _report(failures, dispatch)
                raise ours from None
            return _failed(error, dispatch, task_id)

    def _find(self, dispatch: Dispatch) -> tuple[Handler, bool]:
        if dispatch.kind == TASK_REQUEST and dispatch.skill is not None:
            return self._of_skills[dispatch.skill]
        return self._of_types[dispatch.kind]

    async def _in_thread(self, call: Callable[[], object], dispatch: Dispatch, task_id: str) -> "_Outcome":
        if not self._free.acquire(blocking=False):
            return _NeverRan()
        slot = _Slot(self._free)

        def work() -> object:
            if not slot.begin():
                return None
            try:
                return call()
            except BaseException as error:  # noqa: BLE001 - Ctrl-C and cancellations come to the loop, never to this thread
                return _Raised(error)
            finally:
                slot.end()

        if self._no_limit is None:
            self._no_limit = anyio.CapacityLimiter(math.inf)
        try:
            value = await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._no_limit)
        finally:
            slot.give_up()
        if isinstance(value, _Raised):
            return _failed(value.error, dispatch, task_id)
        return _payload_of(value, dispatch, task_id)


_TASK_RESPONSE: Final = WIRE_NAMES[TaskResponse]
_COMPLETED: Final = TaskStatus.COMPLETED.value


def _payload_of(value: object, dispatch: Dispatch, task_id: str) -> Payload | Replied | Refusal:
    """Return what a handler's return value means: a payload stays one, anything else is a task's result."""
    kind: type = type(value)
    if issubclass(kind, Replied) or kind in WIRE_NAMES:
        return value  # type: ignore[return-value]
    if issubclass(kind, CoroutineType):
        cast("CoroutineType[object, object, object]", value).close()
        return _refused(dispatch, "returned a coroutine: expected `async def`, or the result of what it calls")
    if dispatch.kind != TASK_REQUEST:
        return _refused(dispatch, f"must return one of the protocol's payloads, or Replied, not {kind.__name__}")
    result = value if value is None or kind is dict else fields_of(value)
    if result is not None and type(result) is not dict:
        result = {"value": value}
    return completed(task_id, cast("dict[str, object] | None", result))


def completed(task_id: str, result: dict[str, object] | None) -> Replied:
    """Return what the `TaskResponse` of a completed task is on the wire. To make one and write it would take 10 µs."""
    task = {"task_id": task_id, "status": _COMPLETED, "result": result, "final_state": None, "metrics": None}
    return Replied(_TASK_RESPONSE, task)


_INTERNAL_ERROR: Final = Refusal(kind=HANDLER_FAILED, note="Internal server error")


def _refused(dispatch: Dispatch, fault: str) -> Refusal:
    log.error("the handler for %s %s", dispatch.skill or dispatch.kind, fault)
    return _INTERNAL_ERROR


def _failed(error: BaseException, dispatch: Dispatch, task_id: str) -> TaskResponse | Refusal:
    """Return what the caller is told of an exception: the failure of a `TaskFailed`, or an internal error."""
    if issubclass(type(error), TaskFailed):
        try:
            result = _told(cast("TaskFailed", error))
            return TaskResponse(task_id=task_id, status=TaskStatus.FAILED, result=result)
        except Exception as worse:  # noqa: BLE001 - whatever a subclass does
            error = worse
    _report(error, dispatch)
    return _INTERNAL_ERROR


def _report(error: BaseException, dispatch: Dispatch) -> None:
    report(log, "the handler for %s broke", dispatch.skill or dispatch.kind, error=error)


def _told(failure: TaskFailed) -> dict[str, object]:
    if not issubclass(type(failure.reason), str):
        raise TypeError(f"expected TaskFailed to have a reason of text, not {type(failure.reason).__name__}")
    return {"error": failure.reason, **failure.result}
