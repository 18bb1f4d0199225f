"""The ASGI application under real servers: bodies that don't come, peers that leave, and the laws of `asap conform`."""

import itertools
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from asap_core.testing.laws import connections
from tests.builders import call
from tests.live.command import asap

pytestmark = pytest.mark.live
SERVERS = {
    "uvicorn, httptools": ["uvicorn", "--http", "httptools", "--fd", "{fd}"],
    "uvicorn, h11": ["uvicorn", "--http", "h11", "--fd", "{fd}"],
    "hypercorn, trio": ["hypercorn", "--worker-class", "trio", "--bind", "fd://{fd}"],
    "hypercorn, asyncio": ["hypercorn", "--bind", "fd://{fd}"],
}
NUMBERS = itertools.count()
# Seconds: far above what any of this takes.
SECONDS = 60.0


@contextmanager
def serving(server: str, app: str) -> Iterator[int]:
    """Start a server. Gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [part.format(fd=listener.fileno()) for part in SERVERS[server]]
        with subprocess.Popen(
            [sys.executable, "-m", *command, f"tests.live.asgi_app:{app}"],
            pass_fds=[listener.fileno()],
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                yield listener.getsockname()[1]
            finally:
                process.terminate()


@pytest.fixture(scope="module", params=list(SERVERS))
def port(request) -> Iterator[int]:
    with serving(request.param, "app") as port:
        yield port


@pytest.fixture
def client(port: int) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS) as client:
        yield client


def body_of(key: str | None = None, **task) -> bytes:
    changes = {
        "id": f"live-{next(NUMBERS)}",
        "timestamp": datetime.now(UTC).isoformat(),
        "payload": {"conversation_id": "c", "skill_id": "echo", "input": task},
    }
    return json.dumps(call(key=key, envelope_changes=changes)).encode()


def connected(port: int, body: bytes, *, size: int | None = None) -> socket.socket:
    """Send a POST whose body has `size` bytes, and of it only these."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
    head = b"POST /asap HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    connection.sendall(head % (len(body) if size is None else size) + body)
    return connection


def becomes_idle(client: httpx.Client) -> bool:
    until = time.monotonic() + SECONDS
    while client.get("/.well-known/asap/health").json()["load"]["active_tasks"]:
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def test_a_call_is_answered(client: httpx.Client) -> None:
    answer = client.post("/asap", content=body_of(text="x" * 300_000)).json()
    assert answer["result"]["envelope"]["payload"]["result"]["text"] == "x" * 300_000


@pytest.mark.parametrize("pause", [None, 0.3])
def test_a_body_that_hangs_or_trickles_is_refused_in_time(port: int, pause: float | None) -> None:
    with connected(port, b"{", size=1_000) as connection:
        began = time.monotonic()
        answer = b""
        connection.settimeout(SECONDS if pause is None else pause)
        while not answer:
            try:
                answer = connection.recv(65_536)
            except TimeoutError:
                connection.sendall(b" ")
        assert answer.startswith(b"HTTP/1.1 408")
        assert time.monotonic() - began < SECONDS / 2


def test_peers_that_leave_in_the_body_cost_nothing(port: int, client: httpx.Client) -> None:
    for _ in range(20):
        connected(port, b"x" * 100_000, size=1_000_000).close()
    assert client.post("/asap", content=body_of()).status_code == 200
    assert becomes_idle(client)


def test_work_under_a_key_outlives_its_caller_and_is_answered_once(port: int, client: httpx.Client) -> None:
    body = body_of(key=f"k-{next(NUMBERS)}", seconds=0.5)
    connected(port, body).close()
    first, second = (client.post("/asap", content=body).json()["result"]["envelope"]["payload"] for _ in range(2))
    assert first["status"] == "completed"
    assert second == first  # with the same task id
    assert becomes_idle(client)


def test_peers_that_take_no_answer_are_forgotten(port: int, client: httpx.Client) -> None:
    connections = [connected(port, body_of(text="x" * 3_000_000)) for _ in range(3)]
    for each in connections[:2]:
        each.recv(1_000)
        each.close()
    assert becomes_idle(client)
    assert client.post("/asap", content=body_of()).status_code == 200
    connections[2].close()


EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
# What each server decides before the application sees the request.
OF_THE_SERVER = {
    "uvicorn, httptools": "uvicorn_httptools.txt",
    "uvicorn, h11": "uvicorn_h11.txt",
    "hypercorn, trio": "hypercorn.txt",
    "hypercorn, asyncio": "hypercorn.txt",
}
# These send requests after a last one, which ends hypercorn's worker on trio:
# https://github.com/pgjones/hypercorn/issues/203
ENDS_THE_WORKER = ("connections.a_close_that_is_asked_for", "http.one_length")
GROUPS_OF_THE_SERVER = ("http", "heads", "bodies", "connections", "limits")
CALLERS = (
    *("--token", "t-alice", "--as", "urn:asap:agent:alice"),
    *("--other-token", "t-bob", "--other-as", "urn:asap:agent:bob"),
    *("--failing-skill", "fail"),
)


def conforms(server: str, *, only: Iterable[str] = (), without: Iterable[str] = ()) -> None:
    """Expect that `asap conform` finds what the server's file lists, and no more. `only`, `without`: laws or groups."""
    without = [*without, *(ENDS_THE_WORKER if server == "hypercorn, trio" else ())]
    options = [word for name in only for word in ("--only", name)]
    options += [word for name in without for word in ("--except", name)]
    with serving(server, "with_tokens") as port:
        expected = EXAMPLES / OF_THE_SERVER[server]
        url = f"http://127.0.0.1:{port}"
        shown = asap("conform", url, *CALLERS, "--direct", "--json", *options, "--expected-failures", expected)
    results = json.loads(shown.stdout)
    found = {outcome: [each for each in results if each["outcome"] == outcome] for outcome in ("failed", "skipped")}
    assert shown.returncode == 0, ([f"{each['id']}: {each['remark']}" for each in found["failed"]], shown.stderr)
    assert len(found["skipped"]) <= len(results) / 10, [each["id"] for each in found["skipped"]]


@pytest.mark.long
@pytest.mark.parametrize("server", SERVERS)
def test_the_laws_are_kept_that_no_server_decides(server: str) -> None:
    conforms(server, without=GROUPS_OF_THE_SERVER)


@pytest.mark.long
@pytest.mark.parametrize("server", SERVERS)
def test_the_laws_are_kept_that_the_server_leaves_to_the_application(server: str) -> None:
    never = ["connections.slow_heads"] if server.startswith("uvicorn") else []
    conforms(server, only=GROUPS_OF_THE_SERVER, without=never)


@pytest.mark.parametrize("server", [each for each in SERVERS if each.startswith("uvicorn")])
def test_uvicorn_waits_for_a_head_without_end(server: str, monkeypatch) -> None:
    monkeypatch.setattr(connections, "_SLOW", 4.0)
    conforms(server, only=["connections.slow_heads"])
