"""The guides' Python runs as it stands: each page's blocks are one module, and what they define is called."""

import inspect
import json
import re
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import anyio.to_thread
import pytest

from asap_adapters import AgentClient, AsgiApp, RemoteError, StateFile, serve
from asap_core import Envelope, Request, WallTime, encode_envelope

ROOT = Path(__file__).parents[2]
BACKENDS = ["trio", "asyncio"]
FEW = """
from hypothesis import settings
settings.register_profile("few", max_examples=5, deadline=None)
settings.load_profile("few")
"""


def blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text("utf-8"), re.DOTALL)


def run_page(name: str, *, port: int = 8000) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": name}
    for block in blocks(ROOT / "docs" / f"{name}.md"):
        exec(compile(block.replace("8000", str(port)), f"{name}.md", "exec"), names)
    return names


def the_tours_agent() -> str:
    return next(block for block in blocks(ROOT / "README.md") if "agent = Agent(" in block)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def defined(page: str) -> list[str]:
    return [
        name
        for text in blocks(ROOT / "docs" / f"{page}.md")
        for name in re.findall(r"^(?:async )?def (\w+)\(url", text, re.MULTILINE)
    ]


@pytest.mark.live
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("page", "name"), [(page, name) for page in ("call", "discover") for name in defined(page)])
def test_each_example_calls_the_agent_of_the_tour(page: str, name: str, backend: str) -> None:
    adder: dict[str, Any] = {"__name__": "adder"}
    example, port = run_page(page)[name], free_port()
    exec(the_tours_agent().replace("8000", str(port)), adder)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            url = await group.start(partial(serve, adder["agent"], adder["handlers"], at=("127.0.0.1", port)))
            await (example(url) if inspect.iscoroutinefunction(example) else anyio.to_thread.run_sync(example, url))
            group.cancel_scope.cancel()

    anyio.run(main, backend=backend)


@pytest.mark.live
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_served_agent_answers_and_stops(backend: str) -> None:
    names, seen = run_page("serve", port=free_port()), []

    async def client_of(url: str) -> None:
        async with AgentClient(sender="urn:asap:agent:me") as client:
            for given in ({"text": "one two"}, {}):
                reply = await client.send(url, "task.request", {"skill_id": "count", "input": given})
                seen.append((reply.payload["status"], reply.payload.get("result")))

    anyio.run(names["until_called"], client_of, backend=backend)
    assert seen == [("completed", {"words": 2}), ("failed", {"error": "expected input.text, a string"})]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_guarded_agent_requires_the_token(backend: str) -> None:
    from asap_adapters.testing import in_process

    names = run_page("serve")

    async def status(**options: Any) -> object:
        serving = in_process(
            names["guarded"],
            names["handlers"],
            authenticate=names["tokens"],
            sender="urn:asap:agent:me",
            **options,
        )
        async with serving as client:
            payload = {"skill_id": "count", "input": {"text": "a"}}
            return (await client.send("http://127.0.0.1:8000", "task.request", payload)).payload["status"]

    async def both() -> None:
        assert await status(token="a-long-random-token") == "completed"
        with pytest.raises(RemoteError):
            await status(token="another")

    anyio.run(both, backend=backend)


def test_the_tests_pass(tmp_path: Path) -> None:
    (tmp_path / "adder.py").write_text(the_tours_agent())
    text = "from adder import agent, handlers, manifest\n" + "\n\n".join(blocks(ROOT / "docs" / "testing.md"))
    (tmp_path / "test_adder.py").write_text(text)
    (tmp_path / "conftest.py").write_text(FEW)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "--strict-markers", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    asynchronous = len(re.findall(r"^async def test", text, re.MULTILINE))
    assert f"{2 * asynchronous + text.count('def test_') - asynchronous} passed" in done.stdout, done.stdout


class _Application:
    """As much of Starlette's application as the guide uses."""

    def __init__(self, lifespan: Any) -> None:
        self.lifespan, self.mounted = lifespan, dict[str, Any]()

    def mount(self, path: str, application: Any) -> None:
        self.mounted[path] = application


def test_the_blocks_of_writing_a_driver_run_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    starlette: Any = ModuleType("starlette.applications")
    starlette.Starlette = _Application
    monkeypatch.setitem(sys.modules, "starlette", ModuleType("starlette"))
    monkeypatch.setitem(sys.modules, "starlette.applications", starlette)
    names: dict[str, Any] = {"__name__": "embedding", "AsgiApp": AsgiApp, "StateFile": StateFile}
    exec(the_tours_agent(), names)
    for block in blocks(ROOT / "docs" / "embedding.md"):
        if "dispatch." in block:
            names["dispatch"] = dispatch_of(names["agent"])
        if "AsgiApp(" in block:
            names["agent"] = names["agent"].unbound()
        exec(compile(block, "embedding.md", "exec"), names)
    assert "asap:transport/timeout" in names["state"].body.decode()
    assert names["api"].mounted == {"/agents/adder": names["app"]}


def dispatch_of(agent: Any) -> Any:
    envelope = Envelope.new(
        sender="urn:asap:agent:me", recipient="urn:asap:agent:adder", payload_type="task.request",
        payload={"conversation_id": "c", "skill_id": "add", "input": {}}, ids=lambda: "e1",
        wall=WallTime(time.time() + 1), nonce="n",
    )  # fmt: skip
    call = {"jsonrpc": "2.0", "method": "asap.send", "id": 1, "params": {"envelope": encode_envelope(envelope)}}
    body = agent.open(Request(method="POST", target="/asap", headers=[], peer="192.0.2.1"))
    return body.feed(json.dumps(call).encode()).end().calls[0]


def test_every_page_with_examples_is_run_somewhere() -> None:
    run = {"README", "CHANGELOG", "serve", "call", "discover", "testing", "embedding", "credentials"}
    pages = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    assert {page.stem for page in pages if blocks(page)} <= run


def test_the_examples_are_exactly_the_functions_that_are_run() -> None:
    for page in ("call", "discover"):
        names = run_page(page)
        assert defined(page) == [
            name
            for name, value in names.items()
            if inspect.isfunction(value) and value.__code__.co_filename == f"{page}.md"
        ]
