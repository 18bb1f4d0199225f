"""One caller's failure is that caller's: what handlers, authenticators, stores, clocks and observers may do.

And what isn't theirs passes: our own cancellation, however it comes, Ctrl-C, and the end of a closed coroutine.
"""

import asyncio
import itertools
import logging
from typing import Any

import anyio
import httpx
import pytest

from asap_adapters import TaskFailed
from asap_adapters.server.driver import Driver
from asap_adapters.server.handlers import Handlers
from asap_adapters.testing import InProcessTransport, in_process
from asap_core import ManualClock, RemoteError, Replied, Request
from asap_core.admission.admission import Admitted, Reservation, Stored
from asap_core.client.delivery import RetryPolicy
from tests import builders

pytestmark = pytest.mark.anyio

BASE = "http://localhost"
NUMBERS = itertools.count()
ONCE = RetryPolicy(retries=0)


class Custom(BaseException):
    pass


class Lying(BaseException):
    """Says that it's Ctrl-C."""

    @property
    def __class__(self):
        return KeyboardInterrupt

    @__class__.setter
    def __class__(self, value) -> None: ...


class Unreadable(BaseExceptionGroup[BaseException]):
    @property
    def exceptions(self):
        raise SystemExit


STRAY: dict[str, Any] = {
    "SystemExit": lambda: SystemExit(0),
    "GeneratorExit": GeneratorExit,
    "CancelledError": asyncio.CancelledError,
    "custom": Custom,
    "lying": Lying,
    "group": lambda: BaseExceptionGroup("", [SystemExit(), BaseExceptionGroup("", [GeneratorExit(), ValueError()])]),
    "group of cancellations": lambda: BaseExceptionGroup("", [asyncio.CancelledError(), ValueError()]),
    "unreadable group": lambda: Unreadable("", [SystemExit()]),
    "ValueError": ValueError,
    "OSError": OSError,
    "StopIteration": StopIteration,
    "EndOfStream": anyio.EndOfStream,
}
CTRL_C: dict[str, Any] = {
    "alone": KeyboardInterrupt,
    "in a group": lambda: BaseExceptionGroup("", [BaseExceptionGroup("", [ValueError(), KeyboardInterrupt()])]),
}


def raising(make):
    async def function(*_arguments):
        raise make()

    return function


def raising_at_once(make):
    def function(*_arguments):
        raise make()

    return function


async def fine(_request, _context):
    return {"fine": True}


def call(skill: str, *, key: str | None = None, number: int = 1) -> dict[str, Any]:
    payload = {"conversation_id": "c", "skill_id": skill, "input": {}}
    extensions = {"nonce": f"{next(NUMBERS)}"}
    return builders.call(number, key=key, envelope_changes={"payload": payload, "extensions": extensions})


class Served:
    """An agent with these handlers, at a clock that stands still."""

    def __init__(self, made, handlers, *, authenticate=None, ids=None, **bind) -> None:
        self.clock = bind.pop("clock", None) or ManualClock()
        self.agent = made.bind(clock=self.clock, ids=ids or (lambda: f"id-{next(NUMBERS)}"), key=b"k" * 32, **bind)
        self.transport = InProcessTransport(self.agent, handlers, authenticate=authenticate)
        self.driver: Driver = self.transport._driver

    async def post(self, content, **headers: str):
        request = httpx.Request(
            "POST",
            f"{BASE}/asap",
            **({"content": content} if isinstance(content, bytes) else {"json": content}),
            headers=headers,
        )
        response = await self.transport.handle_async_request(request)
        await response.aread()
        return response

    async def ask(self, skill: str = "echo", **changes):
        return (await self.post(call(skill, **changes))).json()

    async def code(self, skill: str = "echo", **changes):
        return (await self.ask(skill, **changes)).get("error", {}).get("code")

    def nothing_is_left(self) -> None:
        assert (self.agent.active, self.agent._callers, self.agent.body_bytes) == (0, {}, 0)


@pytest.fixture
def served(agent):
    def make(handler=fine, *, auth=False, policy=None, **options) -> Served:
        made = agent("echo", "fine", auth=auth, **(policy or {}))
        return Served(made, {"echo": handler, "fine": fine}, **options)

    return make


class TestHandlers:
    # Those that run in threads: `tests/live/test_failures.py`, since virtual time doesn't wait for threads.
    @pytest.mark.parametrize("name", STRAY)
    async def test_any_exception_is_an_internal_error_that_is_kept_and_logged(self, served, caplog, name) -> None:
        runs = []

        def make():
            runs.append(1)
            return STRAY[name]()

        one = served(raising(make))
        assert [await one.code(key="k"), await one.code(key="k"), await one.code()] == [-32603] * 3
        assert len(runs) == 2
        assert "the handler for echo broke" in caplog.text
        one.nothing_is_left()

    @pytest.mark.parametrize("name", CTRL_C)
    async def test_ctrl_c_propagates_and_the_outcome_is_unknown(self, served, name) -> None:
        error = CTRL_C[name]()
        one = served(raising(lambda: error))
        with pytest.raises(BaseException) as caught:  # noqa: PT011 - this very one
            await one.code(key="k")
        assert caught.value is error
        assert await one.code(key="k") == -32064
        one.nothing_is_left()

    @pytest.mark.parametrize("name", [*STRAY, "awaits a cancelled task", "cancels itself"])
    async def test_the_other_answers_of_a_batch_are_sent(self, served, name, anyio_backend_name) -> None:
        handler = raising(STRAY[name]) if name in STRAY else AWAITS[name]
        if name in AWAITS and anyio_backend_name == "trio":
            handler = raising(STRAY["SystemExit"])
        answers = (await served(handler).post([call("fine"), call("echo", number=2), call("fine", number=3)])).json()
        assert [each.get("error", {}).get("code") for each in answers] == [None, -32603, None]
        assert [each["id"] for each in answers] == [1, 2, 3]

    @pytest.mark.parametrize("name", ["awaits a cancelled task", "cancels itself"])
    async def test_longer_calls_of_a_batch_are_answered(self, served, name, anyio_backend_name) -> None:
        async def handler(request, context):
            if context.envelope.payload["conversation_id"] == "stray":
                return await AWAITS[name](request, context)
            await anyio.sleep(5)
            return {}

        if anyio_backend_name == "trio":
            return
        one, stray = served(handler), call("echo", number=2)
        stray["params"]["envelope"]["payload"]["conversation_id"] = "stray"
        answers = (await one.post([call("echo"), stray, call("echo", number=3)])).json()
        assert [each.get("error", {}).get("code") for each in answers] == [None, -32603, None]
        one.nothing_is_left()

    async def test_a_reply_of_a_class_whose_methods_raise_is_kept(self, served) -> None:
        class Evil(Replied):
            def __getattribute__(self, name: str):
                raise SystemExit

        async def handler(_request, _context):
            return Evil("task.response", {})

        one = served(handler)
        assert [await one.code(key="k"), await one.code(key="k"), await one.code("fine")] == [-32603, -32603, None]

    async def test_a_handler_that_awaits_a_cancelled_task_is_an_internal_error(
        self, served, anyio_backend_name
    ) -> None:
        if anyio_backend_name == "trio":
            # Cancelled by a scope that it has left since.
            handler: Any = cancelled_by_a_scope_it_left
        else:
            handler = AWAITS["awaits a cancelled task"]
        one = served(handler)
        assert [await one.code(key="k"), await one.code(key="k"), await one.code()] == [-32603] * 3
        assert await one.code("fine") is None
        one.nothing_is_left()

    async def test_a_handler_that_swallowed_a_cancellation_is_answered(self, served, anyio_backend_name) -> None:
        """A pending older cancellation isn't mistaken for a new one."""
        if anyio_backend_name == "trio":
            return

        async def handler(request, context):
            task: Any = asyncio.current_task()
            if not task.cancelling():
                task.cancel()
                try:
                    await anyio.sleep(1)
                except asyncio.CancelledError:
                    return {}
            return await AWAITS["awaits a cancelled task"](request, context)

        one = served(handler)
        assert [await one.code(), await one.code(), await one.code("fine")] == [None, -32603, None]
        asyncio.current_task().uncancel()  # type: ignore[union-attr]

    async def test_task_ids_that_raise_are_an_internal_error(self, agent) -> None:
        made = agent()
        driver = Driver(
            made.bind(clock=ManualClock(), ids=lambda: "id", key=b"k" * 32),
            Handlers({"echo": fine}, new_id=raising_at_once(SystemExit)),
        )
        (dispatch,) = made.open(Request(method="POST", target="/asap")).feed(_bytes(call("echo"))).end().calls
        answered = await driver.answer(dispatch)
        assert answered.refusal is not None
        assert answered.refusal.kind.code == -32603


def _bytes(value) -> bytes:
    from asap_core.wire.json import write_json

    return write_json(value)


async def _awaits_a_cancelled_task(_request, _context):
    work = asyncio.ensure_future(asyncio.sleep(60))
    asyncio.get_running_loop().call_soon(work.cancel)
    await work


async def _cancels_itself(_request, _context):
    asyncio.current_task().cancel()  # type: ignore[union-attr]
    await asyncio.sleep(0)


AWAITS = {"awaits a cancelled task": _awaits_a_cancelled_task, "cancels itself": _cancels_itself}


async def cancelled_by_a_scope_it_left(_request, _context):
    kept: Any = None
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.sleep(1)
        except anyio.get_cancelled_exc_class() as error:
            kept = error
    raise kept


class TestCancellation:
    """Passes, wherever it comes from: nothing is answered, and the work's outcome is unknown."""

    @pytest.fixture
    def waiting(self):
        async def handler(_request, _context):
            await anyio.sleep(10)
            return {}

        return handler

    async def test_a_scope_cancels_a_call(self, served, waiting) -> None:
        one = served(waiting)
        with anyio.move_on_after(1) as scope:
            await one.code()
        assert scope.cancelled_caught
        one.nothing_is_left()

    async def test_a_scope_cancels_a_batch(self, served, waiting) -> None:
        one = served(waiting)
        with anyio.move_on_after(1) as scope:
            await one.post([call("echo"), call("fine"), call("echo")])
        assert scope.cancelled_caught
        one.nothing_is_left()

    async def test_a_scope_cancels_a_call_whose_tasks_fail(self, served, caplog) -> None:
        async def handler(_request, _context):
            async with anyio.create_task_group() as group:
                group.start_soon(failing_at_the_end)
                await anyio.sleep(10)

        one = served(handler)
        with anyio.move_on_after(1):
            await one.code()
        assert "the handler for echo broke" in caplog.text
        assert await one.code("fine") is None
        one.nothing_is_left()

    async def test_cancelling_an_asyncio_task_cancels_its_call(self, served, waiting, anyio_backend_name) -> None:
        if anyio_backend_name == "trio":
            return
        one = served(waiting)
        for content in (call("echo"), [call("echo"), call("fine")], call("echo", key="k")):
            task = asyncio.ensure_future(one.post(content))
            await asyncio.sleep(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await one.code(key="k") == -32064
        one.nothing_is_left()

    async def test_wait_for_cancels_a_call(self, served, waiting, anyio_backend_name) -> None:
        if anyio_backend_name == "trio":
            return
        one = served(waiting)
        before = anyio.current_time()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(one.code(), 1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await one.code()
        assert anyio.current_time() - before == pytest.approx(2)
        assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
        one.nothing_is_left()

    @pytest.mark.parametrize("key", [None, "k"])
    async def test_the_deadline_cancels_a_call(self, served, waiting, key) -> None:
        one = served(waiting, policy={"handler_deadline": 3})
        before = anyio.current_time()
        assert await one.code(key=key) == -32033
        assert anyio.current_time() - before == pytest.approx(3)

    async def test_cancellation_does_not_reach_a_call_with_a_key(self, served, waiting) -> None:
        one = served(waiting)
        with anyio.move_on_after(1):
            await one.code(key="k")
        assert await one.code(key="k") is None

    async def test_a_failure_within_a_shield_is_no_cancellation(self, served, anyio_backend_name) -> None:
        async def handler(request, context):
            await anyio.sleep(2)
            raise SystemExit

        one = served(handler)
        with anyio.move_on_after(1):
            await one.code(key="k")
        assert await one.code(key="k") == -32603

    async def test_a_call_in_a_thread_can_be_cancelled(self, served) -> None:
        import threading

        release = threading.Event()
        one = served(lambda _request, _context: release.wait(10))
        with anyio.move_on_after(1) as scope:
            await one.code()
        release.set()
        assert scope.cancelled_caught
        one.nothing_is_left()

    @pytest.mark.parametrize("key", [None, "k"])
    @pytest.mark.parametrize("where", ["handler", "authenticate"])
    async def test_a_coroutine_that_is_closed_ends(self, served, key, where) -> None:
        class Suspends:
            def __await__(self):
                yield

        async def handler(*_arguments):
            await Suspends()

        options = {"handler": handler} if where == "handler" else {"auth": True, "authenticate": handler}
        one = served(**options)
        work = one.post(call("echo", key=key), authorization="Bearer t")
        while work.cr_frame is not None and not ended(work):
            pass
        work.close()
        one.nothing_is_left()
        if where == "handler" and key:
            assert await one.code(key=key) == -32064


def ended(work) -> bool:
    work.send(None)
    return True


async def failing_at_the_end() -> None:
    try:
        await anyio.sleep(10)
    finally:
        raise ValueError


@pytest.mark.parametrize("how", [raising, raising_at_once])
class TestAuthenticatorsAndStores:
    @pytest.mark.parametrize("name", STRAY)
    async def test_an_authenticator_that_raises_is_answered_503(self, served, caplog, name, how) -> None:
        one = served(auth=True, authenticate=how(STRAY[name]))
        response = await one.post(call("echo"), authorization="Bearer t")
        assert response.status_code == 503
        assert ("authenticate broke" in caplog.text) is (name != "OSError")

    @pytest.mark.parametrize("name", STRAY)
    async def test_a_store_whose_ask_raises_is_unavailable(self, served, caplog, name, how) -> None:
        one = served(shared_admission=True)
        one.driver.store = Store(ask=how(STRAY[name]))
        assert await one.code() == -32066
        assert "store.ask broke" in caplog.text
        one.nothing_is_left()

    @pytest.mark.parametrize("name", STRAY)
    @pytest.mark.parametrize("verb", ["record", "lose", "give_back"])
    async def test_a_store_that_raises_when_told_an_outcome_is_logged(self, served, caplog, name, how, verb) -> None:
        one = served(fine, shared_admission=True)
        one.driver.store = Store(**{verb: how(STRAY[name])})
        if verb == "give_back":
            one.driver._handlers._of_skills["echo"] = (lambda _request, _context: None, False)
            while one.driver._handlers._free.acquire(blocking=False):
                pass
            assert await one.code(key="k") == -32031
        elif verb == "record":
            assert await one.code(key="k") is None
        else:
            one.driver._handlers._of_skills["echo"] = (raising(KeyboardInterrupt), True)
            with pytest.raises(KeyboardInterrupt):
                await one.code(key="k")
        assert f"store.{verb} broke" in caplog.text
        one.nothing_is_left()

    @pytest.mark.parametrize("name", STRAY)
    async def test_a_limiter_that_raises_is_answered_503(self, served, caplog, name, how) -> None:
        from asap_core import parse_limits

        one = served(policy={"peer_limits": parse_limits("5/minute")}, shared_limits=["peer"])
        one.driver.shares = Store(take=how(STRAY[name]))
        assert (await one.post(call("echo"))).status_code == 503
        assert "shares.take broke" in caplog.text


class Store:
    """Admits everything; keyword arguments replace methods."""

    def __init__(self, **methods) -> None:
        self.__dict__.update(methods)

    async def ask(self, question):
        return Admitted(None if question.idempotency_key is None else Reservation(b"r"))

    async def record(self, *_facts) -> None: ...

    async def lose(self, *_facts) -> None: ...

    async def give_back(self, *_facts) -> None: ...


class TestInvalidAnswers:
    @pytest.mark.parametrize("verdict", [True, "urn:asap:agent:alice", {}, ..., ("a",)], ids=repr)
    async def test_an_invalid_verdict_of_an_authenticator_is_answered_503(self, served, caplog, verdict) -> None:
        one = served(auth=True, authenticate=lambda _credential: verdict)
        assert (await one.post(call("echo"), authorization="Bearer t")).status_code == 503
        assert "expected Authenticated, Proven, InsufficientScope, ProofRefused, None" in caplog.text

    @pytest.mark.parametrize("answer", [None, True, ...], ids=repr)
    async def test_an_invalid_answer_of_a_store_is_unavailable(self, served, caplog, answer) -> None:
        async def ask(_question):
            return answer

        one = served(shared_admission=True)
        one.driver.store = Store(ask=ask)
        assert await one.code() == -32066
        assert "store.ask returned" in caplog.text

    async def test_an_invalid_stored_answer_is_refused(self, served, caplog) -> None:
        async def ask(_question):
            return Stored({"a": 1})

        one = served(shared_admission=True)
        one.driver.store = Store(ask=ask)
        assert await one.code(key="k") == -32603
        assert "a call broke" in caplog.text
        one.nothing_is_left()


class TestClocksIdsAndCodings:
    @pytest.mark.parametrize("name", STRAY)
    @pytest.mark.parametrize("hand", ["monotonic", "wall"])
    async def test_a_clock_that_raises_is_answered(self, served, caplog, name, hand) -> None:
        one = served()
        setattr(one.agent, "now" if hand == "monotonic" else hand, raising_at_once(STRAY[name]))
        response = await one.post(call("echo"))
        assert response.status_code in (200, 500)
        assert response.status_code == 500 or response.json()["error"]["code"] == -32603
        assert "broke" in caplog.text or "was raised while its answer was written" in caplog.text
        vars(one.agent).update(now=one.clock.monotonic, wall=one.clock.wall)
        assert await one.code() is None
        one.nothing_is_left()

    async def test_nothing_is_held_of_a_large_body(self, served) -> None:
        one = served()
        one.agent.wall = raising_at_once(SystemExit)
        assert (await one.post(_bytes({**call("echo"), "x": "x" * 200_000}))).status_code in (200, 500)
        one.nothing_is_left()

    @pytest.mark.parametrize("name", STRAY)
    async def test_ids_that_raise_are_an_internal_error(self, served, name) -> None:
        one = served(ids=raising_at_once(STRAY[name]))
        assert [await one.code(key="k"), await one.code(key="k")] == [-32603, -32603]

    @pytest.mark.parametrize("name", STRAY)
    async def test_a_decoder_that_raises_is_answered_500(self, served, name, caplog) -> None:
        class Decoder:
            inflate = raising_at_once(STRAY[name])

        one = served(codings={b"x": Decoder})
        response = await one.post(b"body", **{"content-encoding": "x"})
        assert (response.status_code, "an exchange broke" in caplog.text) == (500, True)
        assert await one.code() is None
        one.nothing_is_left()


class TestOverTheWire:
    """A request that causes a bug is answered, and its connection closed, over HTTP and under ASGI."""

    @pytest.fixture
    def broken(self, served):
        one = served()
        one.agent.now = raising_at_once(SystemExit)
        return one

    async def test_a_bug_is_answered_500_over_http(self, broken, pipe) -> None:
        from asap_adapters.server.connection import serve_connection
        from asap_adapters.server.connection_limits import sweeping

        ours, theirs = pipe()
        await ours.send(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n")
        with anyio.fail_after(100):
            async with sweeping() as sweeper:
                await serve_connection(theirs, broken.driver, peer="192.0.2.1", sweeper=sweeper)
        answer = await ours.receive()
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert b"connection: close\r\n" in answer
        assert answer.endswith(b'{"detail":"Internal server error"}')

    async def test_a_bug_is_answered_500_under_asgi(self, agent) -> None:
        from asap_adapters import AsgiApp

        made = agent().bind(clock=ManualClock(), ids=lambda: "id", key=b"k" * 32)
        made.now = raising_at_once(SystemExit)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=AsgiApp(made, {"echo": fine})), base_url=BASE
        ) as client:
            answer = await client.get("/health")
        assert (answer.status_code, answer.json()) == (500, {"detail": "Internal server error"})


class TestObservers:
    @pytest.mark.parametrize("name", STRAY)
    async def test_observers_that_raise_are_logged_once_and_change_nothing(self, served, caplog, name) -> None:
        one = served(observe=raising_at_once(STRAY[name]))
        assert [await one.code(key="k") for _ in range(5)] == [None] * 5
        (told,) = [record.getMessage() for record in caplog.records if record.name == "asap.drive"]
        assert told.startswith("observe broke, and may again: from now on it's only counted")
        assert one.agent.observer_failures == 5

    async def test_a_log_that_raises_changes_nothing(self, served, monkeypatch) -> None:
        monkeypatch.setattr(logging.getLogger("asap.handlers"), "error", raising_at_once(SystemExit))
        assert await served(raising(ValueError)).code() == -32603


class TestFailedTasks:
    async def told(self, agent, make):
        async with in_process(agent(), {"echo": raising(make)}, retry=ONCE) as client:
            return (await client.send(BASE, "task.request", {"skill_id": "echo", "input": {}})).payload["result"]

    @pytest.mark.parametrize(
        "make",
        [
            type("Quiet", (TaskFailed,), {"__init__": lambda _self: None}),
            type("NoReason", (TaskFailed,), {"__init__": lambda _self: None, "result": {}}),
            type("Odd", (TaskFailed,), {"__init__": lambda _self: None, "reason": "r", "result": 5}),
            type("Raising", (TaskFailed,), {"__init__": lambda _self: None, "reason": property(lambda _self: 1 / 0)}),
            lambda: TaskFailed(5),  # type: ignore[arg-type]
            lambda: TaskFailed(ValueError("secret")),  # type: ignore[arg-type]
            lambda: TaskFailed("r", a={1}),
            lambda: TaskFailed("r", a=float("nan")),
            lambda: TaskFailed("\ud800"),
        ],
    )
    async def test_failed_tasks_with_unwritable_details_are_internal_errors(self, agent, make, caplog) -> None:
        with pytest.raises(RemoteError) as caught:
            await self.told(agent, make)
        assert caught.value.code == -32603
        assert "echo" in caplog.text

    async def test_failed_tasks_with_writable_details_are_sent(self, agent) -> None:
        assert await self.told(agent, lambda: TaskFailed("r", a=(1,))) == {"error": "r", "a": [1]}
