"""`in_process`: the agent in the same process behaves as one that's reached over HTTP."""

import asyncio
import math
from functools import partial

import anyio
import anyio.to_thread
import httpx
import pytest

from asap_adapters import HttpOptions, RemoteError, TimedOut
from asap_adapters.server.startup import bind_agent
from asap_adapters.testing import InProcessTransport, in_process
from asap_core import Agent
from asap_core.client.delivery import RetryPolicy

pytestmark = pytest.mark.anyio

BASE = "http://localhost"
PAYLOAD = {"skill_id": "echo", "input": {}}


class Slow:
    """A skill that takes a while, and records when it began, ended, or was cancelled."""

    def __init__(self, seconds: float = 5.0) -> None:
        self.seconds = seconds
        self.told: list[str] = []

    async def __call__(self, _request, _context):
        self.told.append("began")
        try:
            await anyio.sleep(self.seconds)
        except anyio.get_cancelled_exc_class():
            self.told.append("cut off")
            raise
        self.told.append("ended")
        return {"told": list(self.told)}


@pytest.mark.parametrize("key", ["k", None])
async def test_a_caller_that_gives_up_returns_at_once(agent, key) -> None:
    slow = Slow()
    async with in_process(agent(), {"echo": slow}) as client:
        began = anyio.current_time()
        with anyio.move_on_after(0.3) as scope:
            await client.send(BASE, "task.request", PAYLOAD, idempotency_key=key)
        assert scope.cancelled_caught
        assert anyio.current_time() - began == pytest.approx(0.3)
    assert slow.told == ["began", "ended"]  # without a key of the caller's the client makes one


async def test_work_without_a_key_ends_with_its_caller(agent) -> None:
    slow = Slow()
    transport = InProcessTransport(agent(require_id=False, require_timestamp=False, nonce="off"), {"echo": slow})
    envelope = {
        "asap_version": "0.1",
        "sender": "urn:asap:agent:me",
        "recipient": "urn:asap:agent:echo-agent",
        "payload_type": "task.request",
        "payload": {**PAYLOAD, "conversation_id": "c"},
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": "asap.send", "params": {"envelope": envelope}}
    async with httpx.AsyncClient(transport=transport) as http:
        with anyio.move_on_after(1):
            await http.post(f"{BASE}/asap", json=body)
        await anyio.sleep(0.1)
        assert slow.told == ["began", "cut off"]


async def test_a_client_in_a_cancelled_task_group_returns_at_once(agent) -> None:
    async with in_process(agent(), {"echo": Slow()}) as client:
        began = anyio.current_time()
        async with anyio.create_task_group() as group:
            for number in range(5):
                send = partial(client.send, BASE, "task.request", PAYLOAD, idempotency_key=str(number))
                group.start_soon(send)
            await anyio.sleep(1)
            group.cancel_scope.cancel()
        assert anyio.current_time() - began == pytest.approx(1)


async def test_a_timeout_is_as_over_http(agent) -> None:
    async with in_process(
        agent(), {"echo": Slow(20)}, http=HttpOptions(timeout=2.0), retry=RetryPolicy(retries=0)
    ) as client:
        began = anyio.current_time()
        with pytest.raises(TimedOut):
            await client.send(BASE, "task.request", PAYLOAD, idempotency_key="k")
        assert anyio.current_time() - began == pytest.approx(2.0)
        # It went on, and whoever asks again gets its answer, or is told that it runs.
        with pytest.raises((TimedOut, RemoteError)):
            await client.send(BASE, "task.request", PAYLOAD, idempotency_key="k")


async def test_running_work_is_finished_within_the_drain_when_the_context_is_left(agent) -> None:
    slow = Slow(5)
    began = anyio.current_time()
    async with in_process(agent(handler_deadline=8, drain=10), {"echo": slow}) as client:
        with anyio.move_on_after(1):
            await client.send(BASE, "task.request", PAYLOAD, idempotency_key="k")
    assert slow.told == ["began", "ended"]
    assert anyio.current_time() - began == pytest.approx(5)


async def test_an_exception_in_the_block_propagates_unchanged(agent, echo_handlers) -> None:
    cause = ValueError("cause")
    with pytest.raises(KeyError, match="mine") as raised:
        async with in_process(agent(), echo_handlers):
            raise KeyError("mine") from cause
    assert raised.value.__cause__ is cause
    group = ExceptionGroup("mine", [KeyError("a"), ValueError("b")])
    with pytest.raises(ExceptionGroup) as grouped:
        async with in_process(agent(), echo_handlers):
            raise group
    assert grouped.value is group


async def test_the_context_may_be_cancelled_from_outside(agent) -> None:
    with anyio.move_on_after(1) as scope:
        async with in_process(agent(), {"echo": Slow(math.inf)}) as client:
            await client.send(BASE, "task.request", PAYLOAD)
    assert scope.cancelled_caught


async def test_a_bug_on_the_side_of_the_agent_fails_that_request_only(agent, echo_handlers) -> None:
    class Buggy(Agent):
        def open(self, request):
            if request.method == "POST":
                raise LookupError("a bug")
            return super().open(request)

    good = agent()
    transport = InProcessTransport(Buggy(good.manifest, policy=good.policy), echo_handlers)
    async with httpx.AsyncClient(transport=transport) as http:
        assert (await http.post(f"{BASE}/asap", json={})).status_code == 500
        assert (await http.get(f"{BASE}/health")).status_code == 200


async def test_a_transport_that_is_entered_twice_raises_an_error(agent, echo_handlers) -> None:
    async with InProcessTransport(agent(), echo_handlers) as transport:
        with pytest.raises(RuntimeError, match=r"httpx\.AsyncClient\(transport=…\) enters it by itself"):
            await httpx.AsyncClient(transport=transport).__aenter__()
        async with in_process(agent(), echo_handlers) as client:
            assert (await client.send(BASE, "task.request", PAYLOAD)).payload["status"] == "completed"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_fixture_may_be_entered_and_left_in_two_tasks(agent, echo_handlers) -> None:
    fixture = in_process(agent(), echo_handlers)
    client = await asyncio.create_task(fixture.__aenter__())
    reply = await client.send(BASE, "task.request", PAYLOAD)
    assert reply.payload["result"] == {"echoed": {}}
    await asyncio.create_task(fixture.__aexit__(None, None, None))
    with pytest.raises(RuntimeError):
        await client.send(BASE, "task.request", PAYLOAD)


class TestOneAgentForAll:
    async def test_each_context_starts_with_a_new_agent(self, agent, echo_handlers) -> None:
        shared = agent()
        for _ in range(3):
            async with in_process(shared, echo_handlers) as client:
                await client.send(BASE, "task.request", {**PAYLOAD, "input": {}}, idempotency_key="k")
        assert not shared.bound

    async def test_two_contexts_at_once_share_nothing(self, agent) -> None:
        shared, ran = agent(), []

        async def handler(_request, _context):
            ran.append(1)
            return {}

        async with (
            in_process(shared, {"echo": handler}) as one,
            in_process(shared, {"echo": handler}) as other,
        ):
            for client in (one, other, one):
                payload = {**PAYLOAD, "conversation_id": "c"}
                await client.send(BASE, "task.request", payload, idempotency_key="k")
        assert len(ran) == 2

    async def test_an_agent_bound_here_is_served_itself(self, agent, echo_handlers) -> None:
        bound = bind_agent(agent(), metrics=True)
        async with in_process(bound, echo_handlers) as client:
            await client.send(BASE, "task.request", PAYLOAD)
        assert b'asap_decisions_total{what="accepted"} 1' in bound.metrics().body

    async def test_an_agent_bound_to_a_loop_that_ended_is_copied(self, agent, echo_handlers) -> None:
        shared = agent()

        async def elsewhere() -> None:
            bind_agent(shared)

        await anyio.to_thread.run_sync(anyio.run, elsewhere)
        async with in_process(shared, echo_handlers) as client:
            reply = await client.send(BASE, "task.request", PAYLOAD)
        assert reply.payload["result"] == {"echoed": {}}
