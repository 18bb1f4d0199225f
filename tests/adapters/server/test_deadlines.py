"""Deadlines of handlers on a connection, whose one scope ends them: each is answered, and the next request follows."""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from asap_adapters.server.connection import serve_connection
from asap_adapters.server.connection_limits import sweeping
from asap_adapters.server.driver import Driver
from asap_adapters.server.handlers import Handlers
from asap_adapters.server.startup import bind_agent
from asap_core import Agent, Envelope, encode_envelope

pytestmark = pytest.mark.anyio
DEADLINE = 5.0


def post(number: int = 1, key: str | None = None) -> bytes:
    payload = {"conversation_id": "c", "skill_id": "echo", "input": {}}
    envelope = Envelope.new(
        sender="urn:asap:agent:tester",
        recipient="urn:asap:agent:echo-agent",
        payload_type="task.request",
        payload=payload,
        ids=lambda: f"id-{number}-{time.monotonic_ns()}",
        wall=time.time(),  # type: ignore[arg-type]
    )
    params = {"envelope": encode_envelope(envelope)} | ({} if key is None else {"idempotency_key": key})
    body = json.dumps({"jsonrpc": "2.0", "method": "asap.send", "id": number, "params": params}).encode()
    return b"POST /asap HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


class Server:
    """An agent's server on one connection, which `ours` is the other end of."""

    def __init__(self, ours: Any, theirs: Any, agent: Agent, handler: Callable[..., Any]) -> None:
        self.ours, self.theirs, self.agent = ours, theirs, agent
        self.driver = Driver(agent, Handlers({"echo": handler}))
        self.received = b""

    async def serve(self) -> None:
        async with sweeping() as sweeper:
            await serve_connection(self.theirs, self.driver, peer="192.0.2.1", sweeper=sweeper)

    async def answer(self) -> dict[str, Any]:
        """Return the next answer."""
        with anyio.fail_after(1_000):
            while (end := self.received.find(b"\r\n\r\n")) < 0:
                self.received += await self.ours.receive()
            head, self.received = self.received[:end], self.received[end + 4 :]
            size = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            while len(self.received) < size:
                self.received += await self.ours.receive()
        body, self.received = self.received[:size], self.received[size:]
        found: dict[str, Any] = json.loads(body)
        return found


@pytest.fixture
def server(pipe: Any, agent: Any) -> Callable[..., Server]:
    def make(handler: Callable[..., Any], **policy: object) -> Server:
        ours, theirs = pipe()
        return Server(ours, theirs, bind_agent(agent(handler_deadline=DEADLINE, **policy)), handler)

    return make


async def quick(*_: object) -> dict[str, int]:
    return {"n": 1}


async def too_slow(*_: object) -> None:
    await anyio.sleep(100)


async def answers_when_cancelled(*_: object) -> dict[str, str]:
    try:
        await anyio.sleep(100)
    except anyio.get_cancelled_exc_class():
        return {"text": "x" * 200_000}
    raise AssertionError("nothing cancelled it")


async def raises_when_cancelled(*_: object) -> None:
    try:
        await anyio.sleep(100)
    finally:
        raise RuntimeError("a bug")


async def fails_in_a_group(*_: object) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(too_slow)
        group.start_soon(raises_when_cancelled)


async def shields_itself(*_: object) -> None:
    with anyio.CancelScope(shield=True):
        await anyio.sleep(2 * DEADLINE)
    await anyio.sleep(100)


async def ends_at_that_moment(*_: object) -> dict[str, int]:
    await anyio.sleep(DEADLINE)
    return {"n": 1}


async def cancels_its_task(*_: object) -> None:
    if (task := _task()) is not None:
        try:
            task.cancel()
            await anyio.sleep(0.1)
        except asyncio.CancelledError:
            task.cancel()
            task.uncancel()
    await anyio.sleep(100)


def _task() -> "asyncio.Task[Any] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


TIMED_OUT, BROKE, ANSWERED = "timed out", "broke", "answered"


def kind_of(answer: dict[str, Any]) -> str:
    if "result" in answer:
        return ANSWERED
    return TIMED_OUT if "deadline_seconds" in json.dumps(answer["error"]) else BROKE


@pytest.mark.parametrize(
    ("handler", "kinds", "seconds"),
    [
        (quick, {ANSWERED}, 0),
        (too_slow, {TIMED_OUT}, DEADLINE),
        (answers_when_cancelled, {ANSWERED}, DEADLINE),
        (raises_when_cancelled, {BROKE}, DEADLINE),
        (fails_in_a_group, {TIMED_OUT, BROKE}, DEADLINE),
        (shields_itself, {TIMED_OUT}, 2 * DEADLINE),
        (ends_at_that_moment, {ANSWERED, TIMED_OUT}, DEADLINE),
        (cancels_its_task, {TIMED_OUT}, DEADLINE),
    ],
)
@pytest.mark.parametrize("pipelined", [False, True])
async def test_whatever_a_handler_does_at_its_deadline_is_answered_and_the_next_request_too(
    server, handler, kinds, seconds, pipelined
) -> None:
    calls = 0

    async def first_slow(*arguments: object) -> Any:
        nonlocal calls
        calls += 1
        return await (handler if calls == 1 else quick)(*arguments)

    one = server(first_slow)
    async with anyio.create_task_group() as group:
        group.start_soon(one.serve)
        began = anyio.current_time()
        await one.ours.send(post(1) + post(2) if pipelined else post(1))
        assert kind_of(await one.answer()) in kinds
        assert anyio.current_time() - began == pytest.approx(seconds, abs=0.01)
        if not pipelined:
            await anyio.sleep(3 * DEADLINE)  # the first one's time is over, and ends nothing else
            await one.ours.send(post(2))
        answer = await one.answer()
        assert (kind_of(answer), answer["id"]) == (ANSWERED, 2)
        group.cancel_scope.cancel()
    assert one.agent.active == 0


async def test_a_keyed_call_has_a_deadline_of_its_own_and_its_retry_the_same_answer(server) -> None:
    one = server(too_slow)
    async with anyio.create_task_group() as group:
        group.start_soon(one.serve)
        began = anyio.current_time()
        for _ in range(2):
            await one.ours.send(post(1, key="k"))
            assert kind_of(await one.answer()) == TIMED_OUT
            assert anyio.current_time() - began == pytest.approx(DEADLINE, abs=0.01)
        group.cancel_scope.cancel()


async def test_a_function_in_a_thread_that_outlives_its_deadline_is_answered(server) -> None:
    import threading

    over = threading.Event()
    one = server(lambda *_: over.wait(30))
    async with anyio.create_task_group() as group:
        group.start_soon(one.serve)
        await one.ours.send(post(1))
        assert kind_of(await one.answer()) == TIMED_OUT
        over.set()
        group.cancel_scope.cancel()
    assert one.agent.active == 0


async def test_an_answer_after_a_deadline_is_logged_once_with_its_time(server, caplog) -> None:
    caplog.set_level(logging.INFO, "asap.access")
    one = server(too_slow)
    async with anyio.create_task_group() as group:
        group.start_soon(one.serve)
        await one.ours.send(post(1))
        await one.answer()
        await one.ours.send_eof()
        await anyio.sleep(1)
        group.cancel_scope.cancel()
    (line,) = [record.getMessage() for record in caplog.records if record.name == "asap.access"]
    assert line.startswith("192.0.2.1 POST /asap 200 ")
    assert float(line.split()[-1].removesuffix("ms")) == pytest.approx(DEADLINE * 1000, abs=10)


@pytest.mark.parametrize("handler", [too_slow, answers_when_cancelled, shields_itself, ends_at_that_moment])
@pytest.mark.parametrize("native", [False, True])
async def test_a_connection_cancelled_at_a_deadline_leaves_nothing_running(server, handler, native) -> None:
    """Cancel after every number of scheduling steps from just before the deadline on."""
    if native and _task() is None:
        pytest.skip("cannot run anywhere here: trio has no other cancellation than its scopes")
    for steps in range(14):
        one = server(handler)
        async with anyio.create_task_group() as group:
            task = asyncio.ensure_future(one.serve()) if native else None
            if task is None:
                group.start_soon(one.serve)
            await one.ours.send(post(1))
            await anyio.sleep(DEADLINE - 0.001)
            for _ in range(steps):
                await (anyio.sleep(0.0005) if steps < 4 else anyio.lowlevel.checkpoint())
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
            group.cancel_scope.cancel()
        assert one.agent.active == 0


async def test_a_peer_that_does_not_take_the_answer_after_a_deadline_is_given_up(server) -> None:
    one = server(answers_when_cancelled, write_timeout=3)

    async def never(_data: bytes) -> None:
        await anyio.sleep_forever()

    one.theirs.send = never
    with anyio.fail_after(DEADLINE + 3.5):
        async with anyio.create_task_group() as group:
            group.start_soon(one.serve)
            await one.ours.send(post(1))
    assert one.agent.active == 0
