"""Sending to a real agent: the same work is done once, a wrong clock is corrected, and a wait can be cancelled."""

import time
from typing import Any

import anyio
import h11
import httpx
import pytest

from asap_adapters import RemoteError, Unreachable
from asap_adapters.server.connection import serve_connection
from asap_adapters.server.connection_limits import sweeping
from asap_adapters.server.driver import Driver
from asap_adapters.server.handlers import Handlers
from asap_adapters.server.startup import bind_agent
from asap_adapters.system import LoopClock
from asap_adapters.testing import InProcessTransport
from asap_core.auth.principal import TokenTable
from asap_core.wire.json import read_json
from asap_core.wire.manifest import MANIFEST_PATH
from tests.clients import make_client

pytestmark = pytest.mark.anyio

BASE = "http://localhost"
ASK = {"skill_id": "echo", "input": {"n": 1}, "conversation_id": "c"}


class Recorder(httpx.AsyncBaseTransport):
    """Passes requests on to an agent, and keeps them. `trouble`: an error, or an answer, to the next ones instead."""

    def __init__(self, agent, handlers) -> None:
        # Made within the loop that it's used in.
        self.make: Any = lambda: InProcessTransport(agent, handlers)
        self.inner: Any = None
        self.trouble: list[Any] = []
        self.sent: list[Any] = []

    async def handle_async_request(self, request: httpx.Request):
        self.inner = self.inner or self.make()
        if request.url.path == MANIFEST_PATH:
            return await self.inner.handle_async_request(request)
        self.sent.append((anyio.current_time(), read_json(await request.aread())))
        happens = self.trouble.pop(0) if self.trouble else None
        if isinstance(happens, Exception):
            raise happens
        if happens is not None:
            return httpx.Response(200, json=happens)
        return await self.inner.handle_async_request(request)


@pytest.fixture
def runs():
    return []


@pytest.fixture
def recorder(agent, runs):
    async def handler(_request, _context):
        runs.append(1)
        return {"runs": len(runs)}

    return Recorder(agent(), {"echo": handler})


def client_of(transport, **options):
    return make_client(transport=transport, **options)


async def send(client):
    return (await client.send(BASE, "task.request", ASK)).payload["result"]


class TestSending:
    async def test_an_envelope_of_the_caller_is_sent_once(self, recorder) -> None:
        recorder.trouble = [None, httpx.ConnectError("")]
        async with client_of(recorder) as client:
            manifest = await client.discover(BASE)
            reply = await client.send(manifest, "task.request", ASK)
            asked = recorder.sent[0][1]["params"]["envelope"]
            assert reply.correlation_id == asked["id"]
            from asap_core import decode_envelope

            with pytest.raises(Unreachable):
                await client.post(manifest, decode_envelope(asked))
        assert len(recorder.sent) == 2

    async def test_a_cancelled_wait_sends_nothing_more(self, recorder) -> None:
        error = {"code": -32062, "message": "still running", "data": {"recoverable": True, "retry_after": 30}}
        recorder.trouble = [{"jsonrpc": "2.0", "id": None, "error": error}]
        async with client_of(recorder) as client:
            with anyio.move_on_after(5) as scope:
                await send(client)
        assert scope.cancelled_caught
        assert len(recorder.sent) == 1


class TestIdempotencyKeys:
    """What the client makes up follows from the key: the agent compares the whole payload under it."""

    PLAIN: Any = {"skill_id": "echo", "input": {"n": 1}}

    def conversations(self, recorder):
        return [document["params"]["envelope"]["payload"]["conversation_id"] for _, document in recorder.sent]

    @pytest.mark.parametrize("kind", ["task.request", "TaskRequest", "task_request"])
    async def test_calls_with_the_same_key_are_the_same_request(self, recorder, runs, kind) -> None:
        for _ in range(2):
            async with client_of(recorder) as client:
                for _ in range(2):
                    reply = await client.send(BASE, kind, self.PLAIN, idempotency_key="order 42")
                    assert reply.payload["result"] == {"runs": 1}
        assert (len(recorder.sent), runs) == (4, [1])
        assert len(set(self.conversations(recorder))) == 1
        assert "order" not in self.conversations(recorder)[0]
        assert "conversation_id" not in self.PLAIN

    async def test_another_key_or_sender_makes_another_conversation(self, recorder, runs) -> None:
        async with client_of(recorder) as client:
            for options in ({"idempotency_key": "a"}, {"idempotency_key": "b"}, {}, {}):
                await client.send(BASE, "task.request", self.PLAIN, **options)
            await client.send(BASE, "task.request", self.PLAIN, idempotency_key="a", sender="urn:asap:agent:other")
        assert len(runs) == 5
        assert len(set(self.conversations(recorder))) == 5

    async def test_another_payload_with_the_same_key_is_refused(self, recorder, runs) -> None:
        async with client_of(recorder) as client:
            await client.send(BASE, "task.request", self.PLAIN, idempotency_key="k")
            for other in ({**self.PLAIN, "input": {"n": 2}}, {**self.PLAIN, "conversation_id": "mine"}):
                with pytest.raises(RemoteError) as caught:
                    await client.send(BASE, "task.request", other, idempotency_key="k")
                assert caught.value.code == -32063
        assert runs == [1]


async def test_large_answers_of_a_caller_evict_only_its_own(agent, runs) -> None:
    async def handler(request, _context):
        runs.append(1)
        return {"text": "x" * request.input["n"]}

    tokens = TokenTable({name: f"urn:asap:agent:{name}" for name in ("me", "mallory")})
    served = agent(auth=True, idempotency_bytes=20_000)
    transport = InProcessTransport(served, {"echo": handler}, authenticate=tokens.verify)

    async def ask(client, name: str, key: str, size: int):
        payload = {"skill_id": "echo", "input": {"n": size}}
        reply = await client.send(BASE, "task.request", payload, idempotency_key=key, sender=f"urn:asap:agent:{name}")
        return len(reply.payload["result"]["text"])

    async with client_of(transport, token="me") as me, client_of(transport, token="mallory") as mallory:
        assert await ask(me, "me", "mine", 10) == 10
        for number in range(20):
            assert await ask(mallory, "mallory", f"k{number}", 3_000) == 3_000
        assert await ask(me, "me", "mine", 10) == 10
        with pytest.raises(RemoteError, match="no longer kept"):
            await ask(mallory, "mallory", "k0", 3_000)
    assert len(runs) == 21


class Skewed(LoopClock):
    offset = 0.0

    def wall(self):
        return time.time() + self.offset


class TestWrongClock:
    @pytest.fixture
    def clock(self, monkeypatch):
        monkeypatch.setattr("asap_adapters.driver.LoopClock", Skewed)
        monkeypatch.setattr(Skewed, "offset", 0.0)
        return Skewed

    @pytest.mark.parametrize("offset", [-3600.0, 3600.0])
    async def test_a_wrong_client_clock_is_corrected_by_the_servers_time(self, recorder, clock, offset) -> None:
        clock.offset = offset
        async with client_of(recorder) as client:
            for _ in range(3):
                await send(client)
            # Refused once, and right from then on, even if the local clock is set right.
            assert len(recorder.sent) == 4
            clock.offset = 0.0
            await send(client)
            assert len(recorder.sent) == 5
            outcomes = await client.send_batch(BASE, [("task.request", ASK)])
            assert outcomes[0].payload["status"] == "completed"
        assert recorder.sent[1][0] == recorder.sent[0][0]


class Cut(httpx.AsyncBaseTransport):
    """Speaks HTTP with the real server over a pipe that breaks after so many bytes of the next reply."""

    def __init__(self, driver, pipe) -> None:
        self.driver = driver
        self.pipe = pipe
        self.after: int | None = None
        self.length = 0

    async def serve(self, theirs) -> None:
        async with sweeping() as sweeper:
            await serve_connection(theirs, self.driver, peer="192.0.2.1", sweeper=sweeper)

    async def handle_async_request(self, request: httpx.Request):
        body = await request.aread()
        lines = [f"{request.method} {request.url.raw_path.decode()} HTTP/1.1".encode()]
        lines += [name + b": " + value for name, value in request.headers.raw]
        ours, theirs = self.pipe()
        reply = b""
        async with anyio.create_task_group() as group:
            group.start_soon(self.serve, theirs)
            await ours.send(b"\r\n".join(lines) + b"\r\n\r\n" + body)
            reply = await ours.receive()
            await ours.aclose()
        if request.url.path == "/asap":
            self.length = len(reply)
            after, self.after = self.after, None
            reply = reply[:after]
        return _response_of(reply)


def _response_of(reply: bytes) -> httpx.Response:
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(reply)
    parser.receive_data(b"")
    head, content = None, b""
    try:
        while not isinstance(event := parser.next_event(), h11.EndOfMessage | h11.ConnectionClosed):
            if isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                content += event.data
    except h11.RemoteProtocolError:
        raise httpx.RemoteProtocolError("the connection ended early") from None
    if head is None:
        raise httpx.RemoteProtocolError("the connection ended before the head")
    return httpx.Response(head.status_code, headers=list(head.headers), content=content)


async def test_work_is_done_once_if_the_reply_is_cut_at_any_byte(agent, pipe) -> None:
    runs = []

    async def handler(_request, _context):
        runs.append(1)
        return {"runs": len(runs)}

    transport = Cut(Driver(bind_agent(agent(concurrent=5000)), Handlers({"echo": handler})), pipe)
    async with client_of(transport) as client:
        manifest = await client.discover(BASE)
        await client.send(manifest, "task.request", ASK, idempotency_key="first")
        length = transport.length
        assert length > 500
        for after in range(length):
            transport.after = after
            reply = await client.send(manifest, "task.request", ASK, idempotency_key=f"cut-{after}")
            assert reply.payload["result"] == {"runs": len(runs)}
            assert len(runs) == after + 2, f"cut after {after} bytes"
            assert transport.after is None
