"""The guides' Python runs as it stands: each page's blocks are one module, and what they define is called."""

import asyncio
import gzip
import inspect
import json
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import ANY, Mock
from wsgiref.simple_server import WSGIRequestHandler, make_server

import anyio
import anyio.to_thread
import pytest

from asap_adapters import AgentClient, AsgiApp, RemoteError, StateFile, serve
from asap_core import (
    Authenticated,
    Envelope,
    InsufficientScope,
    ManualClock,
    NotAllowed,
    ProofRefused,
    Request,
    TimedOut,
    Unreachable,
    WallTime,
    encode_envelope,
)
from asap_core.client import (
    BodyReader,
    Client,
    Completed,
    Fetch,
    FileRead,
    HttpExchange,
    ReadFile,
    Received,
    RequestOptions,
    Route,
    Runtime,
    Sleep,
    Unavailable,
    Wait,
    WriteFile,
)

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


@contextmanager
def answering_once(answer: bytes) -> Iterator[int]:
    """Answer one connection before its request is read, and close it. Yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def serve_one() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

        answered = pool.submit(serve_one)
        yield listener.getsockname()[1]
        answered.result(60)


def fetch_of(port: int, *, body: bytes = b"") -> Fetch:
    url, route = f"http://127.0.0.1:{port}", Route("127.0.0.1", port, "http", announced=("127.0.0.1",))
    return Fetch("POST", url, (), body, 5.0, 5.0, route, BodyReader(1_000_000))


@pytest.fixture
def embedding(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the blocks of the page define, executed in their order."""
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
    return names


class TestOnAnotherRuntime:
    def test_the_servers_blocks_run_in_their_order(self, embedding: dict[str, Any]) -> None:
        assert "asap:transport/timeout" in embedding["state"].body.decode()
        assert embedding["api"].mounted == {"/agents/adder": embedding["app"]}

    def test_an_exchange_that_breaks_is_abandoned(self, embedding: dict[str, Any]) -> None:
        names: dict[str, Any] = {**embedding}
        bind(names, ManualClock())
        exec(source_of("def drive"), names)
        opened: list[Any] = []

        def breaks(state: Any, _: object) -> None:
            opened.append(state)
            raise OSError

        names["next_state"] = breaks
        with pytest.raises(OSError, match=r"^$"):
            names["drive"](Request(method="POST", target="/asap", headers=[], peer="192.0.2.1"), None)
        with pytest.raises(Exception, match="was left already"):
            opened[0].end()

    def test_each_result_of_authentication_has_its_move(self, embedding: dict[str, Any]) -> None:
        state = Mock()
        results = [
            Authenticated("urn:asap:agent:me"), InsufficientScope(frozenset({"a"})), ProofRefused("a proof"), None,
            OSError(),
        ]  # fmt: skip
        for result in results:
            embedding["authenticate"](state, Mock(side_effect=[result]))
        moves = [name for name, *_ in state.method_calls]
        assert moves == ["verified", "insufficient", "refused", "refused", "unavailable"]

    @pytest.mark.live
    def test_the_client_calls_the_wsgi_server_from_several_threads(self, embedding: dict[str, Any]) -> None:
        with serving(embedding) as url, ThreadPoolExecutor(8) as threads:
            assert list(threads.map(embedding["ask"], [url] * 20)) == [{"echoed": ANY}] * 20
            assert list(embedding["requests"]).count(MANIFEST) == 1

    @pytest.mark.live
    def test_the_driver_of_the_page_is_right(self, embedding: dict[str, Any]) -> None:
        embedding["test_my_driver_is_right"]()

    def test_tasks_run_together_and_the_first_is_cancelled(self, embedding: dict[str, Any]) -> None:
        def runner(programs: Any, cancel_after: float | None) -> Any:
            return asyncio.run(embedding["tasks_together"](asyncio.sleep, programs, cancel_after))

        cancelled, slept = runner([60.0, 0.01], 0.02)
        assert (type(cancelled), slept) == (asyncio.CancelledError, None)
        assert runner([0.01], None) == [None]

    def test_a_run_on_callbacks_ends_and_is_cancelled(self, embedding: dict[str, Any]) -> None:
        begun: list[Any] = []
        ends: list[Any] = []

        def begin(effect: Any, done: Any) -> Any:
            begun.append((effect, done))
            return lambda: ends.append("aborted")

        with serving(embedding) as url:
            led, waits = (embedding["Run"](embedding["client"].discover(url), begin, ends.append) for _ in range(2))
            assert [type(effect) for effect, _ in begun] == [Fetch, Wait]
            led.cancel()
            assert ends == ["aborted"]
            assert begun[1][0].ticket.ready  # the other leads now
            begun[1][1](Completed())
            assert isinstance(begun[2][0], Fetch)
            begun[2][1](embedding["fetch"](begun[2][0]))
        assert ends[1].id == "urn:asap:agent:adder"
        assert waits.program.gi_frame is None

    def test_a_run_on_callbacks_is_cancelled_after_an_effect_that_ended_at_once(
        self, embedding: dict[str, Any]
    ) -> None:
        aborted: list[float] = []

        def begin(effect: Sleep, done: Any) -> Any:
            if effect.seconds == 1:
                done(Completed())
            return lambda: aborted.append(effect.seconds)

        def program(*seconds: float) -> Any:
            for each in seconds:
                yield from Sleep(each)

        run = embedding["Run"](program(1, 2), begin, Mock())
        run.cancel()
        assert aborted == [2]
        ended = embedding["Run"](program(), begin, Mock())
        ended.cancel()
        assert aborted == [2]

    def test_failures_are_told_apart(self, embedding: dict[str, Any]) -> None:
        port = free_port()
        with pytest.raises(Unreachable):
            embedding["run"](embedding["client"].discover(f"http://127.0.0.1:{port}"))
        with pytest.raises(NotAllowed):
            embedding["run"](embedding["client"].discover("https://192.168.1.1"))
        with socket.create_server(("127.0.0.1", 0)) as silent:
            late = Client("urn:asap:agent:me", http=RequestOptions(timeout=1.0))
            late.bind(Runtime(embedding["clock"], lambda: "i", lambda: "t", lambda: 0.5))
            with pytest.raises(TimedOut):
                embedding["run"](late.discover(f"http://127.0.0.1:{silent.getsockname()[1]}"))

    def test_an_answer_is_read_that_comes_before_all_is_sent(self, embedding: dict[str, Any]) -> None:
        with answering_once(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\n{}") as port:
            asked = fetch_of(port, body=bytes(12_000_000))
            assert embedding["fetch"](asked) == Received("127.0.0.1")
        assert (asked.reader.status, asked.reader.body) == (413, b"{}")

    def test_a_response_is_worked_through_in_turns(self, embedding: dict[str, Any]) -> None:
        asked = fetch_of(80)
        exchange = HttpExchange(asked)
        exchange.begin()
        received = Mock(
            side_effect=[b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n" + gzip.compress(bytes(900_000)), b""]
        )
        turns = Mock()
        assert embedding["receive_in_turns"](exchange, received, turns) == Received()
        assert asked.reader.body == bytes(900_000)
        assert turns.called

    def test_files_are_read(self, embedding: dict[str, Any], tmp_path: Path) -> None:
        registry = tmp_path / "registry.json"
        registry.write_text('{"version": "1.0", "updated_at": "2026-02-10T12:00:00Z", "agents": []}')
        assert len(embedding["run"](embedding["client"].registry(registry))) == 0
        with pytest.raises(FileNotFoundError):
            embedding["run"](embedding["client"].registry(tmp_path / "none.json"))

    def test_private_files_are_written_and_read(self, embedding: dict[str, Any], tmp_path: Path) -> None:
        path, file = tmp_path / "copies" / "a.json", Mock(**{"wanted.side_effect": [True, False]})
        for content in (b"[1]", b"[2]"):
            file.pieces.return_value = [content]
            assert embedding["write_file"](WriteFile(str(path), file)) == Completed()
        assert (path.read_bytes(), path.stat().st_mode & 0o777, list(path.parent.iterdir())) == (b"[1]", 0o600, [path])
        first, again = BodyReader(10), BodyReader(10)
        first.begin(200, [])
        read = embedding["read_private"](ReadFile(str(path), first, private=True))
        assert isinstance(read, FileRead)
        assert first.body == b"[1]"
        assert embedding["read_private"](ReadFile(str(path), again, private=True, unless=read.identity)) == read
        assert again.body == b""
        path.chmod(0o666)
        for bad in (path, tmp_path / "none", path.parent):
            assert isinstance(embedding["read_private"](ReadFile(str(bad), again, private=True)), Unavailable)
        assert isinstance(embedding["write_file"](WriteFile(str(path / "b"), file)), Unavailable)

    def test_the_clock_goes_on_while_the_process_is_frozen(
        self, embedding: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = embedding["ThawedClock"]()
        monkeypatch.setitem(embedding, "time", Mock(**{"time.side_effect": [100.0, 7_300.0, 50.0, 60.0]}))
        assert [clock.monotonic(), clock.monotonic(), clock.monotonic(), clock.wall()] == [100, 7300, 7300, 60]

    def test_a_day_is_simulated_the_same_each_time(self, embedding: dict[str, Any]) -> None:
        days = [simulate(embedding) for _ in range(2)]
        assert days[0] == days[1]
        statuses, requests, took = days[0]
        assert statuses == ["completed"] * 480
        assert requests.count(MANIFEST) < 480 / 20 * 2
        assert took > 23 * 3_600.0

    def test_large_bodies_are_read_in_small_steps(self, embedding: dict[str, Any]) -> None:
        turns: list[None] = []
        reader = BodyReader(100_000)
        reader.begin(200, [("content-encoding", "gzip")])
        embedding["receive"](reader, [gzip.compress(secrets.token_bytes(50_000))], lambda: turns.append(None))
        assert (len(reader.body), len(turns) > 10) == (50_000, True)
        small = BodyReader(10)
        small.begin(200, [])
        embedding["receive"](small, [b"x" * 100, b"never read"], lambda: None)
        assert not small.wants


@pytest.mark.parametrize("ends", ["replied", "broken"])
def test_the_agent_of_the_guide_to_stores_remembers(tmp_path: Path, ends: str) -> None:
    names, tour, clock = run_page("stores"), dict[str, Any](), ManualClock(wall=WallTime(1_800_000_000.0))
    exec(the_tours_agent(), tour)
    store = names["SqliteStore"](tmp_path / "store", clock)

    def handler(_: Any) -> Any:
        if ends == "broken":
            raise OSError("the disk is full")
        return {"task_id": "t", "status": "completed", "result": {}}

    def ask(nonce: str) -> Any:
        agent = tour["agent"].unbound()  # another process
        agent.bind(clock=clock, ids=lambda: "e", key=b"k" * 32, shared_admission=True)
        call = dispatch_of(agent, nonce=nonce, wall=clock.wall(), key="k")
        return json.loads(names["answer"](call, store, handler).body)

    if ends == "broken":
        with pytest.raises(OSError, match="full"):
            ask("n1")
        assert ask("n2")["error"]["code"] == -32064
    else:
        assert ask("n1")["result"] == ask("n2")["result"] | {"envelope": ANY}
    store.close()


MANIFEST = "/.well-known/asap/manifest.json"


def source_of(text: str) -> str:
    return next(block for block in blocks(ROOT / "docs" / "embedding.md") if text in block)


def bind(names: dict[str, Any], clock: Any) -> None:
    names["agent"] = names["agent"].unbound()
    numbers = count()
    names["agent"].bind(clock=clock, ids=lambda: f"e{next(numbers)}", key=b"k" * 32)


@contextmanager
def serving(names: dict[str, Any]) -> Iterator[str]:
    """Serve the page's WSGI application, with a manifest that names its port."""
    requests: list[str] = []

    class Quiet(WSGIRequestHandler):
        def log_message(self, *_: object) -> None:
            requests.append(self.path)

    server = make_server("127.0.0.1", 0, names["application"], handler_class=Quiet)
    tour: dict[str, Any] = {"__name__": "tour"}
    exec(the_tours_agent().replace("8000", str(server.server_port)), tour)
    names.update(agent=tour["agent"], requests=requests)
    exec(source_of("agent.bind(clock=clock"), names)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    time.sleep(0.01)  # envelopes dated before the agent was bound are refused
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def simulate(names: dict[str, Any]) -> tuple[list[str], list[str], float]:
    """A day: every hour, twenty programs that send at once."""
    clock, numbers, requests = ManualClock(wall=WallTime(1_800_000_000.0)), count(), list[str]()
    bind(names, clock)
    clock.advance(1.0)
    client = Client("urn:asap:agent:me")
    client.bind(Runtime(clock, lambda: f"i{next(numbers)}", lambda: f"t{next(numbers)}", lambda: 0.5))

    def serve(effect: Any) -> Any:
        requests.append(effect.url.removeprefix("http://127.0.0.1:8000"))
        return names["reach_the_agent"](effect)

    world = names["World"](client, clock, serve)
    for hour in range(24):
        for _ in range(20):
            sending = client.send("http://127.0.0.1:8000", "task.request", {"skill_id": "add", "input": {}})
            world.at(hour * 3_600.0 + 1.0, sending)
    world.run()
    return [reply.payload["status"] for reply in world.results], requests, clock.monotonic()


def dispatch_of(agent: Any, *, nonce: str = "n", wall: float | None = None, key: str | None = None) -> Any:
    envelope = Envelope.new(
        sender="urn:asap:agent:me", recipient="urn:asap:agent:adder", payload_type="task.request",
        payload={"conversation_id": "c", "skill_id": "add", "input": {}}, ids=lambda: "e1",
        wall=WallTime(time.time() + 1 if wall is None else wall), nonce=nonce,
    )  # fmt: skip
    params = {"envelope": encode_envelope(envelope)} | ({} if key is None else {"idempotency_key": key})
    call = {"jsonrpc": "2.0", "method": "asap.send", "id": 1, "params": params}
    body = agent.open(Request(method="POST", target="/asap", headers=[], peer="192.0.2.1"))
    return body.feed(json.dumps(call).encode()).end().calls[0]


def test_every_page_with_examples_is_run_somewhere() -> None:
    run = {"README", "CHANGELOG", "serve", "call", "discover", "testing", "embedding", "credentials", "stores"}
    run |= {"conformance"}
    pages = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    assert {page.stem for page in pages if blocks(page)} <= run


def test_the_example_of_a_law_is_one_of_the_laws() -> None:
    _pytest, law = blocks(ROOT / "docs" / "conformance.md")  # the other one is run by tests/live/test_pytest_plugin.py
    assert law.strip() in (ROOT / "asap_core" / "testing" / "laws" / "replay.py").read_text("utf-8")


def test_the_examples_are_exactly_the_functions_that_are_run() -> None:
    for page in ("call", "discover"):
        names = run_page(page)
        assert defined(page) == [
            name
            for name, value in names.items()
            if inspect.isfunction(value) and value.__code__.co_filename == f"{page}.md"
        ]
