"""The user's code has taken all of anyio's threads: files are read and written all the same."""

import ast
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
from attrs import evolve

import asap_adapters
from asap_adapters import AgentClient, DiscoveryOptions, HttpOptions, StateFile, listen, serve
from asap_adapters.server.startup import bind_agent
from asap_adapters.stores.redis import RedisStore
from asap_core import Agent
from asap_core.admission.admission import AdmissionQuestion, Admitted, StoreUnavailable
from tests.adapters.client.test_discovery import URN, registry
from tests.builders import agent, manifest
from tests.live.redis_server import server

pytestmark = [pytest.mark.live, pytest.mark.anyio]

# A failure waits for twice as long: nothing can end a thread.
SECONDS = 30


@asynccontextmanager
async def all_threads_taken() -> AsyncIterator[None]:
    limiter = anyio.to_thread.current_default_thread_limiter()
    taken = int(limiter.total_tokens)
    end = threading.Event()
    async with anyio.create_task_group() as group:
        for _ in range(taken):
            group.start_soon(anyio.to_thread.run_sync, end.wait, 2 * SECONDS)
        while limiter.borrowed_tokens < taken:  # noqa: ASYNC110 - anyio tells nobody
            await anyio.sleep(0.01)
        try:
            yield
        finally:
            end.set()


def agent_at(url: str) -> Agent:
    return agent(manifest("wait", "echo", url=f"{url}/asap", id="urn:asap:agent:shop"), concurrent=100)


@pytest.fixture
def release() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


async def test_work_under_a_key_begins_while_forty_handlers_have_all_threads(
    tmp_path: Path, release: threading.Event
) -> None:
    begun = 0

    async def wait(_request, _context):
        nonlocal begun
        begun += 1
        await anyio.to_thread.run_sync(release.wait, 2 * SECONDS)
        return {}

    async def echo(_request, _context):
        return {"echoed": True}

    handlers = {"wait": wait, "echo": echo}
    bound = await listen("127.0.0.1", 0)
    url, agent = bound.url, agent_at(bound.url)
    async with anyio.create_task_group() as servers:
        await servers.start(partial(serve, agent, handlers, at=bound, storage=StateFile(tmp_path / "state")))
        async with (
            AgentClient(sender="urn:asap:agent:me", http=HttpOptions(timeout=60.0)) as client,
            anyio.create_task_group() as waiting,
        ):
            for _ in range(45):
                waiting.start_soon(client.send, url, "task.request", {"skill_id": "wait", "input": {}})
            with anyio.fail_after(SECONDS):
                while begun < 45:  # noqa: ASYNC110 - short, and only here
                    await anyio.sleep(0.01)
                for number in range(3):
                    reply = await client.send(
                        url, "task.request", {"skill_id": "echo", "input": {}}, idempotency_key=f"k{number}"
                    )
                    assert reply.payload["result"] == {"echoed": True}
            release.set()
        servers.cancel_scope.cancel()


async def test_a_state_file_is_opened_and_closed(tmp_path: Path) -> None:
    stop = anyio.Event()
    handlers: Any = {"wait": lambda *_: None, "echo": lambda *_: None}
    async with all_threads_taken():
        with anyio.fail_after(SECONDS):
            async with anyio.create_task_group() as servers:
                agent = agent_at("http://127.0.0.1:1")
                await servers.start(
                    partial(
                        serve, agent, handlers, at=("127.0.0.1", 0), storage=StateFile(tmp_path / "state"), stop=stop
                    )
                )
                stop.set()


async def test_a_registry_in_a_file_its_copy_and_a_revocation_list_are_read(tmp_path: Path) -> None:
    listed = tmp_path / "registry.json"
    listed.write_text(json.dumps(registry("https://a.example/m")))
    revoked = tmp_path / "revoked.json"
    revoked.write_text(json.dumps({"version": "1.0", "revoked": []}))
    there = True

    async def answer(request: httpx.Request) -> httpx.Response:
        if there and request.url.host == "r.example":
            return httpx.Response(200, json=registry("https://a.example/m"))
        return httpx.Response(503)

    def client() -> AgentClient:
        return AgentClient(
            sender="urn:asap:agent:me",
            http=HttpOptions(transport=httpx.MockTransport(answer)),
            discovery=DiscoveryOptions(registries=[listed], revocations=revoked, registry_cache=tmp_path / "copies"),
        )

    async with all_threads_taken():
        with anyio.fail_after(SECONDS):
            async with client() as first:
                assert len(await first.registry(listed)) == 1
                assert "not a valid" not in str(await first.explain(URN, wait=0))
                await first.registry("https://r.example/r")
            there = False
            async with client() as second:
                assert len(await second.registry("https://r.example/r")) == 1
                assert second.stands_in("https://r.example/r") is not None


async def test_a_redis_server_with_a_name_is_found_again(tmp_path: Path) -> None:
    with server(tmp_path) as redis:
        agent = bind_agent(agent_at("http://127.0.0.1:1"), shared_admission=True)
        question = AdmissionQuestion(
            sender=URN, authenticated=True, peer="", nonce="n1", issued=agent.wall(), idempotency_key=None, digest=b"",
            deadline=1.0,
        )  # fmt: skip
        named = redis.url.replace("127.0.0.1", "localhost")
        async with all_threads_taken(), RedisStore.open(named, agent) as store:
            assert await store.ask(question) == Admitted(None)
            redis.kill()
            assert await store.ask(evolve(question, nonce="n2")) == StoreUnavailable(1.0)
            redis.start()
            with anyio.fail_after(SECONDS):
                for number in count(3):
                    if await store.ask(evolve(question, nonce=f"n{number}", issued=agent.wall())) == Admitted(None):
                        break
                    await anyio.sleep(0.05)


def test_nothing_runs_in_the_default_threads_of_the_user() -> None:
    root = Path(asap_adapters.__file__).parent
    found = []
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                limited = any(keyword.arg == "limiter" for keyword in node.keywords)
                if (called.endswith("to_thread.run_sync") and not limited) or called.endswith("open_file"):
                    found.append(f"{path.relative_to(root)}:{node.lineno}: {called}")
    assert found == []
