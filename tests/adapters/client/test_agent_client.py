"""The client over an agent in the same process, on virtual time."""

import gc
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest

from asap_adapters import AgentClient, HttpOptions
from asap_adapters.testing import in_process
from asap_core import (
    BadReply,
    NotResolved,
    RemoteError,
    TaskRequest,
    TimedOut,
)
from asap_core.client.fetch_results import Source

pytestmark = pytest.mark.anyio

BASE = "http://localhost"
MANIFEST = "/.well-known/asap/manifest.json"


class TestOpeningAndClosing:
    async def test_a_client_that_is_not_open_raises_an_error_with_the_remedy(self, counting, client_of) -> None:
        with pytest.raises(RuntimeError, match="async with AgentClient"):
            await client_of(counting()).discover(BASE)

    async def test_a_client_may_be_closed_twice_and_from_another_task(self, counting, client_of) -> None:
        client = await client_of(counting()).__aenter__()
        async with anyio.create_task_group() as group:
            group.start_soon(client.aclose)
            group.start_soon(client.aclose)
        await client.aclose()
        with pytest.raises(RuntimeError, match="async with"):
            await client.discover(BASE)

    async def test_a_client_that_is_never_closed_warns(self, counting, client_of) -> None:
        client = await client_of(counting()).__aenter__()
        with pytest.warns(ResourceWarning, match="never closed"):  # noqa: PT031 - both make one event
            del client
            gc.collect()

    async def test_a_client_opened_twice_raises_an_error(self, counting, client_of) -> None:
        async with client_of(counting()) as client:
            with pytest.raises(RuntimeError, match="open already"):
                await client.__aenter__()


class TestDiscovery:
    async def test_fifty_concurrent_calls_make_one_request(self, counting, client_of) -> None:
        transport = counting(seconds=1)
        found = []
        async with client_of(transport) as client:
            before = anyio.current_time()

            async def one() -> None:
                found.append(await client.discover(BASE))

            async with anyio.create_task_group() as group:
                for _ in range(50):
                    group.start_soon(one)
            assert anyio.current_time() - before == pytest.approx(1)
        assert transport.paths == [MANIFEST]
        assert len(found) == 50

    async def test_waiters_are_answered_if_the_leader_is_cancelled_at_any_moment(self, counting, client_of) -> None:
        """Cancel the leader after every number of scheduling steps: the other waiters still get their answer."""
        for steps in range(25):
            found: Any = []
            async with client_of(counting(seconds=0.1)) as client, anyio.create_task_group() as group:
                leader = anyio.CancelScope()

                async def leading(client=client, leader=leader) -> None:
                    with leader:
                        await client.discover(BASE)

                async def waiting(client=client, found=found) -> None:
                    found.append(await client.discover(BASE))

                group.start_soon(leading)
                group.start_soon(waiting)
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                leader.cancel()
            assert (len(found), client._client._discovery._manifests.waiting) == (1, 0)

    @pytest.mark.parametrize("step", [3600, -3600])
    async def test_a_wall_clock_that_jumps_changes_no_lifetime_and_no_uptime(
        self, counting, client_of, monkeypatch, step
    ) -> None:
        transport = counting()
        async with client_of(transport) as client:
            await client.discover(BASE)
            await anyio.sleep(100)
            real = time.time
            monkeypatch.setattr(time, "time", lambda: real() + step)
            assert (await client.look_up(BASE)).source is Source.CACHED
            assert (await client.health_check(BASE)).uptime_seconds == pytest.approx(100)
            await anyio.sleep(250)
            assert (await client.look_up(BASE)).source is Source.REVALIDATED

    async def test_a_request_to_a_host_that_hangs_times_out(self, counting, client_of) -> None:
        async with client_of(counting(seconds=1000)) as client:
            before = anyio.current_time()
            with pytest.raises(TimedOut, match="nothing within 10 s"):
                await client.discover(BASE)
            assert anyio.current_time() - before == pytest.approx(10)


class TestRegistry:
    REGISTRY: Any = {
        "version": "1",
        "updated_at": "2026-01-01T00:00:00Z",
        "agents": [
            {
                "id": "urn:asap:agent:echo-agent",
                "name": "Echo",
                "description": "",
                "asap_version": "0.1",
                "skills": ["echo"],
                "endpoints": {"http": f"{BASE}/asap"},
            },
            {"id": "broken"},
        ],
    }

    async def test_resolve_verifies_the_agent_that_answers(self, counting, client_of, tmp_path) -> None:
        file = tmp_path / "registry.json"
        file.write_text(json.dumps(self.REGISTRY))
        async with client_of(counting(), registries=[file]) as client:
            manifest = await client.resolve("urn:asap:agent:echo-agent", wait=0)
            assert manifest.id == "urn:asap:agent:echo-agent"
            with pytest.raises(NotResolved, match="not listed"):
                await client.resolve("urn:asap:agent:nobody", wait=0)


class TestSending:
    async def test_a_reply_is_returned(self, agent, echo_handlers) -> None:
        async with in_process(agent(), echo_handlers) as client:
            reply = await client.send(BASE, "task.request", {"skill_id": "echo", "input": {"a": 1}})
            assert reply.payload["result"] == {"echoed": {"a": 1}}
            request = TaskRequest(conversation_id="c", skill_id="echo", input={"b": 2})
            reply = await client.send(BASE, "task.request", request)
            assert reply.payload["result"] == {"echoed": {"b": 2}}

    async def test_a_large_message_is_compressed_and_arrives(self, agent, echo_handlers) -> None:
        async with in_process(agent(), echo_handlers) as client:
            reply = await client.send(BASE, "task.request", {"skill_id": "echo", "input": {"a": "x" * 50_000}})
            assert len(reply.payload["result"]["echoed"]["a"]) == 50_000

    async def test_a_refusal_is_an_error_with_its_fields(self, agent, echo_handlers) -> None:
        async with in_process(agent(), echo_handlers) as client:
            with pytest.raises(RemoteError) as caught:
                await client.send(BASE, "task.request", {"skill_id": "other", "input": {}})
            assert (caught.value.code, caught.value.taxonomy) == (-32012, "asap:transport/handler_not_found")
            await client.send(BASE, "task.request", {"skill_id": "echo", "input": {}}, nonce="n")
            with pytest.raises(RemoteError, match="seen before"):
                await client.send(BASE, "task.request", {"skill_id": "echo", "input": {}}, nonce="n")

    async def test_an_error_names_the_first_problem(self, agent, echo_handlers) -> None:
        async with in_process(agent(), echo_handlers) as client:
            with pytest.raises(RemoteError, match=r"Invalid params .*: params\.envelope\.payload\.skill_id: expected"):
                await client.send(BASE, "task.request", {"input": {}})

    async def test_a_batch_is_returned_in_order(self, agent, echo_handlers) -> None:
        async with in_process(agent(), echo_handlers) as client:
            messages: Any = [("task.request", {"skill_id": skill, "input": {}}) for skill in ("echo", "no", "echo")]
            outcomes = await client.send_batch(BASE, messages)
            assert [type(outcome).__name__ for outcome in outcomes] == ["Envelope", "RemoteError", "Envelope"]
            with pytest.raises(ValueError, match="1 to 50"):
                await client.send_batch(BASE, [])


async def test_a_client_that_is_not_open_says_so_at_once() -> None:
    client = AgentClient("urn:asap:agent:me")
    with pytest.raises(RuntimeError, match="isn't open"):
        await client.discover(BASE)
    with pytest.raises(RuntimeError, match="isn't open"):
        await client.keep_fresh([BASE])


async def test_an_error_response_is_reported_without_the_body_that_never_ends() -> None:
    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"x"
            await anyio.sleep_forever()

    class Failing(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(500, headers={"content-length": "10"}, stream=Endless())

    async with AgentClient("urn:asap:agent:me", http=HttpOptions(transport=Failing())) as client:
        before = anyio.current_time()
        with pytest.raises(BadReply, match="500"):
            await client.get_document(f"{BASE}/document")
        assert anyio.current_time() - before < 5
