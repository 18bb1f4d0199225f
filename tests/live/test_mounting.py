"""The ASGI application mounted in another one, which doesn't pass on that the server starts and stops."""

import logging
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest

from asap_adapters import AgentClient, AsgiApp, BadState, HttpOptions, Redis, StateFile
from asap_adapters.cli.echo_agent import ECHO_ID, echo, echo_manifest
from asap_adapters.server.startup import bind_agent
from asap_core import Agent, Policy

pytestmark = [pytest.mark.live, pytest.mark.anyio]

BASE = "http://localhost"
PAYLOAD = {"skill_id": "echo", "input": {}}


class Parent:
    """A parent like Starlette: it strips nothing, adds the path of the mount, and keeps lifespan for itself."""

    def __init__(self, app, path: str = "/x") -> None:
        self.app, self.path = app, path

    async def __call__(self, scope, receive, send) -> None:
        assert scope["path"].startswith(f"{self.path}/")
        await self.app({**scope, "root_path": scope.get("root_path", "") + self.path}, receive, send)


def agent() -> Agent:
    return Agent(echo_manifest(ECHO_ID, f"{BASE}/x"), policy=Policy(start="open"))


def mounted(**options) -> AsgiApp:
    return AsgiApp(agent(), {"echo": echo}, **options)


def client_of(parent) -> AgentClient:
    return AgentClient(sender="urn:asap:agent:me", http=HttpOptions(transport=httpx.ASGITransport(parent)))


async def send(app, key: str | None = None):
    async with client_of(Parent(app)) as client:
        reply = await client.send(f"{BASE}/x", "task.request", PAYLOAD, idempotency_key=key)
        return reply.payload["result"]


async def test_an_application_with_memory_storage_needs_no_lifespan() -> None:
    assert await send(mounted()) == {"echoed": {}}


@pytest.mark.parametrize("options", [{"storage": StateFile("f")}, {"storage": Redis("redis://127.0.0.1:1")}])
async def test_an_application_with_other_storage_needs_lifespan_and_says_so(options, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match=r"mounted in another application, `async with app\.lifespan\(\):`"):
        await send(mounted(**options))
    assert list(tmp_path.iterdir()) == []


async def test_an_application_started_by_its_parent_serves_and_writes_its_state(tmp_path) -> None:
    app = mounted(storage=StateFile(tmp_path / "f"), metrics=True)
    async with app.lifespan():
        assert await send(app, "k") == {"echoed": {}}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(Parent(app)), base_url=BASE) as http:
            assert 'what="accepted"} 1' in (await http.get("/x/asap/metrics")).text
            assert (await http.get("/x/ready")).status_code == 200
    assert (tmp_path / "f").stat().st_size > 0


async def test_a_lifespan_may_be_given_to_a_framework_which_passes_itself(tmp_path) -> None:
    app = mounted(storage=StateFile(tmp_path / "f"))
    parent = Parent(app)
    async with app.lifespan(parent):
        assert await send(app) == {"echoed": {}}


async def test_an_application_that_runs_cannot_be_started_again(tmp_path) -> None:
    app = mounted(storage=StateFile(tmp_path / "f"))
    async with app.lifespan():
        with pytest.raises(RuntimeError, match="started already"):
            async with app.lifespan():
                pass
        sent: list[Any] = []

        async def receive():
            return {"type": "lifespan.startup"}

        async def tell(message) -> None:
            sent.append(message)

        await app({"type": "lifespan"}, receive, tell)
        assert sent[0]["type"] == "lifespan.startup.failed"
        assert "started already" in sent[0]["message"]
        assert await send(app, "k") == {"echoed": {}}  # the first goes on


async def test_an_application_may_start_again_after_its_end_also_in_another_loop(tmp_path) -> None:
    app = mounted(storage=StateFile(tmp_path / "f"))

    async def once():
        async with app.lifespan():
            return await send(app, "k")

    assert await once() == {"echoed": {}}
    assert await once() == {"echoed": {}}
    assert await anyio.to_thread.run_sync(anyio.run, once) == {"echoed": {}}
    with pytest.raises(RuntimeError, match="no lifespan event was received"):
        await send(app)


async def test_an_application_may_start_again_after_a_failed_start(tmp_path) -> None:
    app = mounted(storage=StateFile(tmp_path / "f"))
    (tmp_path / "f").write_text("something else")
    with pytest.raises(BadState):
        async with app.lifespan():
            pass
    (tmp_path / "f").unlink()
    async with app.lifespan():
        assert await send(app) == {"echoed": {}}


async def test_an_agent_that_the_user_bound_is_not_copied() -> None:
    bound = bind_agent(agent(), metrics=True)
    app = AsgiApp(bound, {"echo": echo})
    for _ in range(2):
        async with app.lifespan():
            await send(app)
    assert b'what="accepted"} 2' in bound.metrics().body


async def test_an_exception_of_the_parent_propagates_and_the_file_is_closed(tmp_path) -> None:
    app = mounted(storage=StateFile(tmp_path / "f"))
    with pytest.raises(KeyError, match="mine"):
        async with app.lifespan():
            raise KeyError("mine")
    async with mounted(storage=StateFile(tmp_path / "f")).lifespan():
        pass


async def test_the_parent_may_forward_the_lifespan_messages_of_the_server(tmp_path, caplog) -> None:
    app = mounted(storage=StateFile(tmp_path / "f"))
    caplog.set_level(logging.WARNING, "asap.asgi")
    to_app, of_server = anyio.create_memory_object_stream[Any](2)
    told: list[str] = []

    async def tell(message) -> None:
        told.append(message["type"])

    async with to_app, of_server, anyio.create_task_group() as group:
        group.start_soon(app, {"type": "lifespan"}, of_server.receive, tell)
        await to_app.send({"type": "lifespan.startup"})
        while not told:  # noqa: ASYNC110 - a file is opened in a thread
            await anyio.sleep(0.01)
        assert await send(app, "k") == {"echoed": {}}
        await to_app.send({"type": "lifespan.shutdown"})
    assert told == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert caplog.text.count("without authentication") == 1
