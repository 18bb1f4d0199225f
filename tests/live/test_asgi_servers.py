"""The ASGI application under real servers: bodies that don't come, peers that leave."""

import itertools
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import pytest

from tests.builders import call
from tests.live.command import asap

pytestmark = pytest.mark.live
SERVERS = {
    "uvicorn, httptools": ["uvicorn", "--http", "httptools", "--fd", "{fd}", "tests.live.asgi_app:app"],
    "uvicorn, h11": ["uvicorn", "--http", "h11", "--fd", "{fd}", "tests.live.asgi_app:app"],
    "hypercorn, trio": ["hypercorn", "--worker-class", "trio", "--bind", "fd://{fd}", "tests.live.asgi_app:app"],
    "hypercorn, asyncio": ["hypercorn", "--bind", "fd://{fd}", "tests.live.asgi_app:app"],
}
NUMBERS = itertools.count()
# Seconds: far above what any of this takes.
SECONDS = 30.0


@pytest.fixture(scope="module", params=list(SERVERS))
def port(request) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [part.format(fd=listener.fileno()) for part in SERVERS[request.param]]
        with subprocess.Popen(
            [sys.executable, "-m", *command], pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL
        ) as server:
            try:
                yield listener.getsockname()[1]
            finally:
                server.terminate()


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


# What an ASGI server decides before the application sees the request.
OF_THE_SERVER = {"uvicorn, h11": ["limits.status_of_a_long_head"]}


def test_the_laws_of_conform_are_kept(port: int, request, tmp_path) -> None:
    expected = tmp_path / "expected.txt"
    expected.write_text("\n".join(OF_THE_SERVER.get(request.node.callspec.params["port"], [])))
    url = f"http://127.0.0.1:{port}"
    # Heads, chunks and connections are the server's.
    groups = [word for group in ("http", "heads", "bodies", "connections") for word in ("--except", group)]
    shown = asap("conform", url, "--direct", "--json", *groups, "--expected-failures", expected)
    failed = [f"{each['id']}: {each['remark']}" for each in json.loads(shown.stdout) if each["outcome"] == "failed"]
    assert shown.returncode == 0, (failed, shown.stderr)
