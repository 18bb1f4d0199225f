"""The ASGI application, driven as an ASGI server drives it."""

import asyncio
import gc
import gzip
import itertools
import json
import time
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

import anyio
import httpx
import pytest

from asap_adapters import AsgiApp
from asap_adapters.server.asgi import _AsgiWire
from asap_core import Envelope, Policy, encode_envelope

pytestmark = pytest.mark.anyio

BASE = "http://localhost"
NUMBERS = itertools.count()


@pytest.fixture
def app(agent, echo_handlers):
    return AsgiApp(agent(), echo_handlers)


async def test_the_application_runs_under_any_asgi_server(app) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=BASE) as client:
        assert (await client.get("/.well-known/asap/manifest.json")).json()["name"] == "Echo"
        assert (await client.get("/nowhere")).status_code == 404
        answer = await client.post("/asap", content=b"nonsense")
        assert (answer.status_code, answer.json()["error"]["code"]) == (200, -32700)
        assert (await client.post("/asap", content=b"x" * 11_000_000)).status_code == 413
        assert (await client.head("/health")).headers["content-length"] == "15"


async def play(app, scope, *messages):
    left, sent = list(messages), []

    async def receive():
        return left.pop(0)

    async def send(message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


async def test_lifespan_starts_and_stops_and_warns_that_memory_is_per_process(app, caplog) -> None:
    sent = await play(app, {"type": "lifespan"}, {"type": "lifespan.startup"}, {"type": "lifespan.shutdown"})
    assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert "per process" in caplog.text
    assert "without authentication" in caplog.text


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
async def test_what_the_block_of_a_lifespan_raises_comes_out_as_it_is(app, error) -> None:
    raised = error("x")
    with pytest.raises(error) as caught:
        async with app.lifespan():
            raise raised
    assert caught.value is raised


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_lifespan_may_be_left_in_another_task(app) -> None:
    """pytest-asyncio enters and leaves a fixture in two tasks. On trio a task group can't be left so."""
    lifespan, before = app.lifespan(), asyncio.all_tasks()
    await asyncio.create_task(lifespan.__aenter__())
    assert (await play(app, {**HTTP, "method": "GET", "path": "/ready"}, {"type": "http.request"}))[0]["status"] == 200
    await asyncio.create_task(lifespan.__aexit__(None, None, None))
    assert asyncio.all_tasks() == before


async def test_a_lifespan_that_is_cancelled_ends(app) -> None:
    with anyio.move_on_after(5) as scope:
        async with app.lifespan():
            await anyio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_websocket_is_refused(app) -> None:
    sent = await play(app, {"type": "websocket"}, {"type": "websocket.connect"})
    assert sent == [{"type": "websocket.close", "code": 1000}]


async def test_an_unknown_scope_raises_an_error(app) -> None:
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
async def test_pages_of_this_machine_may_call_a_server_on_this_machine(app, server, origin, status) -> None:
    scope = {**HTTP, "server": server, "headers": [(b"host", b"localhost:8000"), (b"origin", origin)]}
    start, _ = await play(app, scope, {"type": "http.request", "body": b"{}"})
    assert start["status"] == status


@pytest.mark.parametrize(
    ("server", "warns"),
    [
        (("127.0.0.1", 8001), True),
        (
            ("192.0.2.1", 8001),
            True,
        ),  # the manifest says localhost
        (("127.0.0.1", 80), False),
        (("/run/agent.sock", None), False),
        (None, False),
    ],
)
async def test_a_manifest_with_another_port_of_this_machine_is_warned_of_once(app, server, warns, caplog) -> None:
    for _ in range(2):
        await play(app, {**HTTP, "server": server}, {"type": "http.request", "body": b"{}"})
    told = [record.getMessage() for record in caplog.records if "the manifest says" in record.getMessage()]
    assert [f"listens on {server[0]}, port 8001" in one for one in told] == ([True] if warns else [])


async def test_a_listed_page_gets_an_answer_to_its_preflight_request(agent, echo_handlers) -> None:
    app = AsgiApp(agent(origins=["https://app.example"]), echo_handlers)
    headers = [(b"host", b"localhost"), (b"origin", b"https://app.example")]
    start, _ = await play(app, {**HTTP, "method": "OPTIONS", "headers": headers}, {"type": "http.request"})
    assert (start["status"], dict(start["headers"])[b"access-control-allow-origin"]) == (204, b"https://app.example")


async def test_a_server_that_writes_names_in_capitals_is_understood(app) -> None:
    scope = {**HTTP, "headers": [(b"Content-Length", b"99999999")]}
    start, _ = await play(app, scope, {"type": "http.request", "body": b"{}"})
    assert start["status"] == 413


async def test_no_header_is_lost_if_headers_can_be_read_once_and_one_has_capitals(app) -> None:
    headers = iter([(b"host", b"localhost"), (b"origin", b"https://evil.example"), (b"Accept", b"*/*")])
    start, _ = await play(app, {**HTTP, "headers": headers}, {"type": "http.request", "body": b"{}"})
    assert start["status"] == 403


async def test_blanks_after_a_value_are_no_part_of_it(app) -> None:
    headers = [(b"host", b"localhost\t"), (b"content-length", b"99999999 "), (b"accept", b" */* ")]
    start, _ = await play(app, {**HTTP, "headers": headers}, {"type": "http.request", "body": b"{}"})
    assert start["status"] == 413  # not 400


async def test_a_name_that_is_no_token_is_refused(app) -> None:
    scope = {**HTTP, "http_version": "2", "headers": [(b"host", b"localhost"), (b"content-length ", b"2")]}
    start, body = await play(app, scope, {"type": "http.request", "body": b"{}"})
    assert (start["status"], body["body"]) == (400, b'{"detail":"Expected an HTTP/1.1 request"}')


async def test_a_peer_that_leaves_is_forgotten(app) -> None:
    first = {"type": "http.request", "body": b"{", "more_body": True}
    assert await play(app, HTTP, first, {"type": "http.disconnect"}) == []


async def test_a_peer_that_left_before_the_answer_is_forgotten(app) -> None:
    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(_message) -> None:
        raise OSError

    await app(HTTP, receive, send)


@pytest.mark.parametrize(("version", "says"), [("1.1", True), ("2", False)])
async def test_an_http_2_response_has_no_connection_header(app, version, says) -> None:
    headers = [(b"host", b"a"), (b"content-length", b"9")]
    scope = {**HTTP, "path": "/nowhere", "http_version": version, "headers": headers}
    sent = await play(app, scope, {"type": "http.request"})
    assert ((b"connection", b"close") in sent[0]["headers"]) is says


async def test_a_body_in_pieces_is_one_body(app) -> None:
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
        ({"path": "/health", "query_string": b"a=b"}, 200),
        ({"path": "/health", "query_string": b"a#b"}, 400),
        ({"path": "/health", "headers": [(b"x", b"a\x01")]}, 400),
        ({"path": "/health", "headers": [(b"x%d" % number, b"") for number in range(101)]}, 431),
        ({"path": "/health", "headers": [(b"x", b"a" * 16_384)]}, 431),
        ({"path": "/health", "http_version": "2"}, 200),
        ({"path": "/health", "http_version": "1.0"}, 200),
        ({"path": "/health", "http_version": "1.0", "headers": [(b"transfer-encoding", b"chunked")]}, 400),
        ({"path": "/health", "http_version": "1.1"}, 400),  # without Host
        ({"path": "/health", "http_version": "2.0"}, 505),
    ],
)
async def test_a_head_has_one_reading_under_any_server(app, scope, status) -> None:
    sent = await play(app, {**HTTP, "method": "GET", **scope}, {"type": "http.request"})
    assert sent[0]["status"] == status


async def test_a_head_that_is_refused_ends_the_connection_and_head_gets_no_body(app) -> None:
    get, head = [
        await play(app, {**HTTP, "method": method, "http_version": "1.1"}, {"type": "http.request"})
        for method in ("GET", "HEAD")
    ]
    assert get[0] == head[0]
    assert (b"connection", b"close") in get[0]["headers"]
    assert (b"content-length", b"%d" % len(get[1]["body"])) in get[0]["headers"]
    assert head[1]["body"] == b""


@pytest.mark.parametrize("client", [None, ("", 0), ("unix", 0)])
async def test_callers_without_an_address_are_warned_of_once(app, client, caplog) -> None:
    for _ in range(2):
        await play(app, {**HTTP, "client": ("192.0.2.1", 1)}, {"type": "http.request"})
    assert "have one share together" not in caplog.text
    for _ in range(2):
        await play(app, {**HTTP, "client": client}, {"type": "http.request"})
    assert caplog.text.count("have one share together") == 1


async def test_a_key_of_a_caller_without_an_address_needs_authentication(app) -> None:
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


LEFT = {"type": "http.disconnect"}
CALLER = {**HTTP, "client": ("192.0.2.7", 5)}


def keyed(key):
    envelope = Envelope.new(
        sender="urn:asap:agent:tester", recipient="urn:asap:agent:echo-agent", payload_type="task.request",
        payload={"conversation_id": "c", "skill_id": "echo", "input": {}},
        ids=lambda: f"id-{next(NUMBERS):06}", wall=time.time(),  # type: ignore[arg-type]
    )  # fmt: skip
    params = {"envelope": encode_envelope(envelope), **({} if key is None else {"idempotency_key": key})}
    return json.dumps({"jsonrpc": "2.0", "method": "asap.send", "id": 1, "params": params}).encode()


class Once:
    """`receive` of a request whose body is there. After it the peer is gone."""

    def __init__(self, body: bytes) -> None:
        self.messages = [{"type": "http.request", "body": body}]

    async def __call__(self):
        return self.messages.pop(0) if self.messages else LEFT


async def leaves(_message) -> None:
    raise OSError


def idle(served) -> bool:
    """Whether nothing of the agent is taken."""
    return (served.active, served.body_bytes, served.outgoing.held) == (0, 0, 0)


async def test_a_repeated_call_of_a_batch_waits_no_longer_than_the_first_one_runs(app) -> None:
    """The first may be over before the task of the second has begun."""
    body = b"[%b,%b]" % (keyed("k"), keyed("k"))
    began = anyio.current_time()
    sent = await play(app, CALLER, {"type": "http.request", "body": body})
    assert ["result" in answer for answer in json.loads(sent[1]["body"])] == [True, True]
    assert anyio.current_time() - began < 1


class Caller:
    """One HTTP scope as an ASGI server plays it: its body comes in time or not, its answer is taken or not."""

    def __init__(self, app, *bodies, headers=(), takes=10**9, every=0.0) -> None:
        self.app, self.headers, self.takes, self.every = app, list(headers), takes, every
        self.bodies = list(bodies)
        self.sent: list[Any] = []
        self.over = False

    async def receive(self):
        await anyio.sleep(self.every)
        if not self.bodies:
            await anyio.sleep_forever()
        return {"type": "http.request", "body": self.bodies.pop(0), "more_body": bool(self.bodies) or self.every > 0}

    async def send(self, message) -> None:
        if len(self.sent) >= self.takes:
            await anyio.sleep_forever()
        self.sent.append(message)

    async def call(self) -> None:
        await self.app({**HTTP, "headers": self.headers}, self.receive, self.send)
        self.over = True

    @property
    def status(self):
        return self.sent[0]["status"]

    @property
    def body(self):
        return b"".join(message["body"] for message in self.sent[1:])


def large(size):
    envelope = Envelope.new(
        sender="urn:asap:agent:tester", recipient="urn:asap:agent:echo-agent", payload_type="task.request",
        payload={"conversation_id": "c", "skill_id": "echo", "input": {"text": "x" * size}},
        ids=lambda: f"id-{next(NUMBERS):06}", wall=time.time(),  # type: ignore[arg-type]
    )  # fmt: skip
    params = {"envelope": encode_envelope(envelope)}
    return json.dumps({"jsonrpc": "2.0", "method": "asap.send", "id": 1, "params": params}).encode()


@pytest.fixture(params=["alone", "in a lifespan"])
def begun(request):
    """With a lifespan the sweeper ends waits, without one each exchange's own scope."""

    def begin(app) -> AbstractAsyncContextManager[object]:
        return nullcontext() if request.param == "alone" else app.lifespan()

    return begin


class TestSlowPeers:
    async def test_a_body_that_does_not_arrive_times_out(self, app, begun) -> None:
        caller = Caller(app, b"{", b" ", b" ", every=20.0)
        async with begun(app):
            with anyio.fail_after(100):
                began = anyio.current_time()
                await caller.call()
        assert (caller.status, anyio.current_time() - began) == (408, Policy().body_timeout)
        assert json.loads(caller.body) == {"detail": "Expected the whole body within 30 s"}
        assert caller.sent[-1]["more_body"] is False

    async def test_the_limit_of_a_body_does_not_depend_on_what_came_before(self, app) -> None:
        """The sweeper is asleep, or looks at another exchange."""
        async with app.lifespan():
            await anyio.sleep(7)
            early, late = Caller(app), Caller(app)
            with anyio.fail_after(100):
                async with anyio.create_task_group() as group:
                    group.start_soon(early.call)
                    await anyio.sleep(9.1)
                    began = anyio.current_time()
                    await late.call()
            assert (early.status, late.status, anyio.current_time() - began) == (408, 408, Policy().body_timeout)

    async def test_what_runs_when_the_lifespan_ends_keeps_its_limits(self, app) -> None:
        waits, sends = Caller(app, every=20.0), Caller(app, large(1_000_000), takes=3)
        with anyio.fail_after(100):
            async with anyio.create_task_group() as group:
                began = anyio.current_time()
                async with app.lifespan():
                    group.start_soon(waits.call)
                    group.start_soon(sends.call)
                    await anyio.sleep(1)
        assert (waits.status, len(sends.sent)) == (408, 3)
        assert anyio.current_time() - began == max(Policy().body_timeout, Policy().write_timeout)

    async def test_what_is_over_is_forgotten(self, app) -> None:
        async with app.lifespan():
            await Caller(app, large(10)).call()
            await play(app, HTTP, {"type": "http.request", "body": b"{", "more_body": True}, LEFT)
            gc.collect()
            assert [each for each in gc.get_objects() if type(each) is _AsgiWire] == []

    @pytest.mark.parametrize(("version", "says"), [("1.1", True), ("2", False)])
    async def test_a_timed_out_request_closes_its_http_1_1_connection(self, app, version, says) -> None:
        caller = Caller(app)
        with anyio.fail_after(100):
            await app({**HTTP, "http_version": version}, caller.receive, caller.send)
        assert ((b"connection", b"close") in caller.sent[0]["headers"]) is says

    async def test_a_coded_body_that_decodes_to_nothing_is_too_large(self, agent, echo_handlers) -> None:
        start, nothing = gzip.compress(b"")[:10], b"\x00\x00\x00\xff\xff" * 2_000
        app = AsgiApp(agent(max_body=100_000), echo_handlers)
        caller = Caller(app, start, *[nothing] * 1_000, headers=[(b"content-encoding", b"gzip")])
        await caller.call()
        assert caller.status == 413
        assert len(caller.bodies) > 950

    async def test_an_answer_that_is_not_read_times_out(self, app, begun) -> None:
        caller = Caller(app, large(1_000_000), takes=3)
        async with begun(app):
            with anyio.fail_after(100):
                began = anyio.current_time()
                await caller.call()
        assert anyio.current_time() - began == Policy().write_timeout
        assert len(caller.sent) == 3


class TestDisconnects:
    """A peer that leaves costs nothing: what was reserved is given back, and keyed work that has begun ends."""

    @pytest.fixture
    def served(self, agent):
        return agent()

    @pytest.fixture
    def calls(self) -> list[str]:
        return []

    @pytest.fixture
    def app(self, served, calls):
        async def slow(request, context):
            calls.append("begun")
            await anyio.sleep(5)
            calls.append("ended")
            return {}

        return AsgiApp(served, {"echo": slow})

    async def test_while_the_body_is_read(self, app, served, calls) -> None:
        for _ in range(3):
            assert (
                await play(app, HTTP, {"type": "http.request", "body": b"x" * 200_000, "more_body": True}, LEFT) == []
            )
        assert (calls, idle(served)) == ([], True)

    @pytest.mark.parametrize("key", [None, "k"])
    async def test_while_the_handler_runs_it_ends(self, app, served, calls, key) -> None:
        """As with the server of this library: nobody reads meanwhile, so nobody notices."""
        body = keyed(key)
        await app(CALLER, Once(body), leaves)
        assert (calls, idle(served)) == (["begun", "ended"], True)
        sent = []

        async def send(message) -> None:
            sent.append(message)

        await app(CALLER, Once(body), send)
        result = json.loads(sent[1]["body"])
        # With a key the answer is kept; without one the same envelope is a replay.
        assert ("result" in result) == (key is not None)
        assert calls == ["begun", "ended"]

    @pytest.mark.parametrize("key", [None, "k"])
    async def test_a_server_that_cancels_the_request_loses_only_work_without_a_key(
        self, app, served, calls, key
    ) -> None:
        with anyio.move_on_after(1):
            await app(CALLER, Once(keyed(key)), leaves)
        assert calls == ["begun"] + ["ended"] * (key is not None)
        assert idle(served)

    async def test_while_a_large_answer_is_sent(self, served, echo_handlers) -> None:
        caller = Caller(AsgiApp(served, echo_handlers), large(1_000_000))
        left = []

        async def send(message) -> None:
            left.append(message)
            if len(left) > 3:
                raise OSError

        await caller.app({**HTTP, "headers": []}, caller.receive, send)
        assert (len(left), served.outgoing.held, idle(served)) == (4, 0, True)


class TestHandlers:
    async def test_a_handler_that_takes_too_long_is_ended_and_answered(self, agent, begun) -> None:
        async def sleepy(request, context) -> None:
            await anyio.sleep_forever()

        served = agent(handler_deadline=3.0)
        app = AsgiApp(served, {"echo": sleepy})
        caller = Caller(app, large(10))
        async with begun(app):
            with anyio.fail_after(100):
                began = anyio.current_time()
                await caller.call()
        assert anyio.current_time() - began == 3.0
        assert "error" in json.loads(caller.body)
        assert idle(served)

    async def test_its_time_begins_when_it_begins(self, agent) -> None:
        async def sleepy(request, context) -> dict[str, object]:
            await anyio.sleep(2.9)
            return {}

        body = large(10)
        caller = Caller(AsgiApp(agent(handler_deadline=3.0), {"echo": sleepy}), body[:5], body[5:], b"", every=9.0)
        with anyio.move_on_after(100):
            await caller.call()
        # The last piece says that more follows, so the body never ends.
        assert caller.status == 408


class TestLargeAnswers:
    async def test_large_answers_are_sent_in_pieces(self, app) -> None:
        caller = Caller(app, large(1_000_000))
        await caller.call()
        pieces = caller.sent[1:]
        assert [each["more_body"] for each in pieces] == [True] * (len(pieces) - 1) + [False]
        assert max(len(each["body"]) for each in pieces) == 65_536
        assert json.loads(caller.body)["result"]["envelope"]["payload"]["result"]["echoed"]["text"] == "x" * 1_000_000

    @pytest.mark.parametrize("extra", [-1, 0, 1])
    async def test_answers_of_any_size_arrive_complete(self, app, extra) -> None:
        first = Caller(app, large(1))
        await first.call()
        for pieces in (1, 2):
            caller = Caller(app, large(pieces * 65_536 - len(first.body) + 1 + extra))
            await caller.call()
            assert len(caller.body) == pieces * 65_536 + extra
            assert len(caller.sent) - 1 == (pieces + 1 if extra > 0 else pieces)

    async def test_large_answers_end_the_slowest_readers_if_they_need_room(self, agent, echo_handlers) -> None:
        served = agent(max_answers=10_000_000)
        app = AsgiApp(served, echo_handlers)
        slower, slow, third, quick = (Caller(app, large(1_000_000), takes=takes) for takes in (2, 5, 4, 1_000))
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                for caller in (slower, slow):
                    group.start_soon(caller.call)
                    await anyio.sleep(1)
                assert (slower.over, slow.over) == (False, False)
                assert served.outgoing.held > 2_000_000
                group.start_soon(third.call)
                await anyio.sleep(1)
                assert (slower.over, slow.over, third.over) == (True, False, False)
                await quick.call()
                await anyio.sleep(1)
                assert (slow.over, third.over) == (True, False)
                assert len(quick.body) > 1_000_000
                group.cancel_scope.cancel()
        assert served.outgoing.held == 0

    async def test_answers_that_could_never_be_sent_are_logged(self, agent, echo_handlers, caplog) -> None:
        caller = Caller(AsgiApp(agent(max_answers=100_000), echo_handlers), large(200_000))
        await caller.call()
        assert json.loads(caller.body)["error"]["message"] == "Internal error"
        assert "expected at most 100000 bytes in one answer (max_answers), not 200" in caplog.text
