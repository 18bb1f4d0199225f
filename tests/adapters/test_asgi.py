"""The ASGI application, driven as an ASGI server drives it."""

import json
from typing import Any

import httpx
import pytest

from asap_adapters import AsgiApp
from asap_core import Envelope, encode_envelope

pytestmark = pytest.mark.anyio

BASE = "http://localhost"


@pytest.fixture
def app(agent: Any, echo_handlers: Any) -> Any:
    return AsgiApp(agent(), echo_handlers)


async def test_serves_under_any_asgi_server(app: Any) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=BASE) as client:
        assert (await client.get("/.well-known/asap/manifest.json")).json()["name"] == "Echo"
        assert (await client.get("/nowhere")).status_code == 404
        answer = await client.post("/asap", content=b"nonsense")
        assert (answer.status_code, answer.json()["error"]["code"]) == (200, -32700)
        assert (await client.post("/asap", content=b"x" * 11_000_000)).status_code == 413
        assert (await client.head("/health")).headers["content-length"] == "15"


async def play(app: Any, scope: Any, *messages: Any) -> Any:
    left, sent = list(messages), []

    async def receive() -> Any:
        return left.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


async def test_starts_and_stops_and_warns_that_memory_is_per_process(app: Any, caplog: Any) -> None:
    sent = await play(app, {"type": "lifespan"}, {"type": "lifespan.startup"}, {"type": "lifespan.shutdown"})
    assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert "per process" in caplog.text
    assert "without authentication" in caplog.text


async def test_refuses_a_websocket(app: Any) -> None:
    sent = await play(app, {"type": "websocket"}, {"type": "websocket.connect"})
    assert sent == [{"type": "websocket.close", "code": 1000}]


async def test_knows_no_other_scope(app: Any) -> None:
    with pytest.raises(RuntimeError, match="expected an ASGI scope"):
        await play(app, {"type": "carrier-pigeon"})


HTTP: Any = {"type": "http", "method": "POST", "path": "/asap", "headers": [], "client": None}


@pytest.mark.parametrize(
    ("server", "origin", "status"),
    [
        (("127.0.0.1", 8000), b"http://localhost:3000", 200),
        (("127.0.0.1", 8000), b"https://evil.example", 403),
        (("192.0.2.1", 8000), b"http://localhost:3000", 403),
        (("/run/agent.sock", None), b"http://localhost:3000", 403),
        (None, b"http://localhost:3000", 403),
    ],
)
async def test_pages_of_this_machine_may_call_where_it_serves_this_machine(
    app: Any, server: Any, origin: Any, status: Any
) -> None:
    scope = {**HTTP, "server": server, "headers": [(b"host", b"localhost:8000"), (b"origin", origin)]}
    start, _ = await play(app, scope, {"type": "http.request", "body": b"{}"})
    assert start["status"] == status


async def test_a_listed_page_asks_before_it_calls(agent: Any, echo_handlers: Any) -> None:
    app = AsgiApp(agent(origins=["https://app.example"]), echo_handlers)
    headers = [(b"host", b"localhost"), (b"origin", b"https://app.example")]
    start, _ = await play(app, {**HTTP, "method": "OPTIONS", "headers": headers}, {"type": "http.request"})
    assert (start["status"], dict(start["headers"])[b"access-control-allow-origin"]) == (204, b"https://app.example")


async def test_a_peer_that_leaves_is_forgotten(app: Any) -> None:
    first = {"type": "http.request", "body": b"{", "more_body": True}
    assert await play(app, HTTP, first, {"type": "http.disconnect"}) == []


async def test_a_peer_that_is_gone_when_the_answer_comes_is_forgotten(app: Any) -> None:
    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(_message: Any) -> None:
        raise OSError

    await app(HTTP, receive, send)


@pytest.mark.parametrize(("version", "says"), [("1.1", True), ("2", False)])
async def test_http_2_knows_no_connection_header(app: Any, version: Any, says: Any) -> None:
    sent = await play(app, {**HTTP, "path": "/nowhere", "http_version": version}, {"type": "http.request"})
    assert ((b"connection", b"close") in sent[0]["headers"]) is says


async def test_a_body_in_pieces_is_one_body(app: Any) -> None:
    pieces = [{"type": "http.request", "body": piece, "more_body": True} for piece in (b"[", b"", b"]")]
    sent = await play(app, HTTP, *pieces, {"type": "http.request"})
    assert json.loads(sent[-1]["body"])["error"]["data"]["error"] == "empty batch"


@pytest.mark.parametrize(
    ("scope", "status"),
    [
        ({"path": "/health"}, 200),
        ({"path": "/health", "raw_path": b"/health"}, 200),
        ({"path": "/health", "raw_path": b"http://a/health"}, 200),
        ({"path": "/x/health", "raw_path": b"/x/health", "root_path": "/x"}, 200),
        ({"path": "/ü/health", "raw_path": b"/%C3%BC/health", "root_path": "/ü"}, 200),
        # Decoded, these would be the path and a query, a fragment, or an absolute form.
        ({"path": "/health?x"}, 404),
        ({"path": "/health#x"}, 404),
        ({"path": "/hea%6cth"}, 404),
        ({"path": "http://a/health", "raw_path": b"http%3A//a/health"}, 400),
        ({"path": "?://x/health"}, 400),
        ({"path": "/health", "raw_path": b"http://x?/health"}, 400),
        ({"path": "*", "raw_path": b"*"}, 400),
        ({"path": "", "raw_path": b""}, 400),
        ({"path": "/health", "headers": [(b"content-length", b"0"), (b"content-length", b"0")]}, 400),
        ({"path": "/health", "headers": [(b"content-length", b"0,0")]}, 400),
        ({"path": "/health", "headers": [(b"host", b"a"), (b"host", b"b")]}, 400),
        ({"path": "/health", "headers": [(b"transfer-encoding", b"chunked")]}, 200),
        ({"path": "/health", "headers": [(b"transfer-encoding", b"gzip, chunked")]}, 501),
    ],
)
async def test_a_head_has_one_reading_whoever_read_it(app: Any, scope: Any, status: Any) -> None:
    sent = await play(app, {**HTTP, "method": "GET", **scope}, {"type": "http.request"})
    assert sent[0]["status"] == status


@pytest.mark.parametrize("client", [None, ("", 0), ("unix", 0)])
async def test_says_once_that_callers_without_an_address_have_one_share(app: Any, client: Any, caplog: Any) -> None:
    for _ in range(2):
        await play(app, {**HTTP, "client": ("192.0.2.1", 1)}, {"type": "http.request"})
    assert "have one share together" not in caplog.text
    for _ in range(2):
        await play(app, {**HTTP, "client": client}, {"type": "http.request"})
    assert caplog.text.count("have one share together") == 1


async def test_without_an_address_a_key_takes_authentication(app: Any) -> None:
    sent = await play(app, HTTP, {"type": "http.request", "body": keyed_call()})
    assert "Invalid idempotency key" in json.loads(sent[-1]["body"])["error"]["data"]["error"]
    sent = await play(app, {**HTTP, "client": ("192.0.2.1", 1)}, {"type": "http.request", "body": keyed_call()})
    assert "result" in json.loads(sent[-1]["body"])


def keyed_call() -> bytes:
    import time

    envelope = Envelope.new(
        sender="urn:asap:agent:tester", recipient="urn:asap:agent:echo-agent", payload_type="task.request",
        payload={"conversation_id": "c", "skill_id": "echo", "input": {}}, ids=lambda: f"id-{time.monotonic_ns()}",
        wall=time.time(),  # type: ignore[arg-type]
    )  # fmt: skip
    params = {"envelope": encode_envelope(envelope), "idempotency_key": "k"}
    return json.dumps({"jsonrpc": "2.0", "method": "asap.send", "id": 1, "params": params}).encode()
