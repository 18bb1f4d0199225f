"""Delivery: what is sent again and what isn't, the same work done once, and a client whose clock is wrong."""

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import h11
import httpx
import pytest

from asap_adapters import RemoteError, Unreachable
from asap_adapters.server.binding import bind_agent
from asap_adapters.server.connection import serve_connection
from asap_adapters.server.driver import Driver
from asap_adapters.server.handlers import Handlers
from asap_adapters.system import LoopClock
from asap_adapters.testing import InProcessTransport
from asap_core.auth.principal import TokenTable
from asap_core.client.breaker import BreakerPolicy
from asap_core.client.delivery import RetryPolicy
from asap_core.errors import BadReply
from asap_core.wire.json import read_json
from asap_core.wire.manifest import MANIFEST_PATH
from tests.clients import make_client

pytestmark = pytest.mark.anyio

BASE = "http://localhost"
ASK = {"skill_id": "echo", "input": {"n": 1}, "conversation_id": "c"}


class Recorder(httpx.AsyncBaseTransport):
    """Passes requests on to an agent, after what `trouble` does to the next of them; keeps what was sent."""

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
        self.sent.append(
            (anyio.current_time(), read_json(await request.aread()), request.headers.get("x-idempotency-key"))
        )
        happens = self.trouble.pop(0) if self.trouble else None
        if isinstance(happens, httpx.ConnectError | httpx.ConnectTimeout):
            raise happens
        if callable(happens):
            # An answer by something in front of the agent.
            return happens(self.sent[-1][1])
        response = await self.inner.handle_async_request(request)
        if happens is None:
            return response
        if isinstance(happens, Exception):
            raise happens
        return httpx.Response(happens[0], json=happens[1])


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


def refused(**data):
    error = {"code": -32062, "message": "still running", "data": {"recoverable": True, **data}}
    return 200, {"jsonrpc": "2.0", "id": None, "error": error}


async def send(client, **options):
    return (await client.send(BASE, "task.request", ASK, **options)).payload["result"]


class TestWhatIsSentAgain:
    async def test_keeps_id_and_key_and_is_dated_anew(self, recorder) -> None:
        recorder.trouble = [httpx.ConnectError("refused"), httpx.ConnectTimeout("")]
        async with client_of(recorder) as client:
            await send(client)
        calls = [document["params"] for _, document, _ in recorder.sent]
        assert len(calls) == 3
        assert len({call["envelope"]["id"] for call in calls}) == 1
        assert len({call["idempotency_key"] for call in calls} | {key for _, _, key in recorder.sent}) == 1
        assert len({call["envelope"]["extensions"]["nonce"] for call in calls}) == 3
        assert len({call["envelope"]["timestamp"] for call in calls}) == 3
        at = [when for when, _, _ in recorder.sent]
        assert 0.9 <= at[1] - at[0] <= 1.0
        assert 1.8 <= at[2] - at[1] <= 2.0

    async def test_waits_as_long_as_the_agent_says(self, recorder) -> None:
        recorder.trouble = [refused(retry_after_ms=7500)]
        async with client_of(recorder) as client:
            await send(client)
        assert recorder.sent[1][0] - recorder.sent[0][0] == pytest.approx(7.5)

    async def test_whoever_asks_for_too_long_is_not_asked_again(self, recorder) -> None:
        recorder.trouble = [refused(retry_after=61)]
        async with client_of(recorder) as client:
            with pytest.raises(RemoteError) as caught:
                await send(client)
        assert (caught.value.retry_after, len(recorder.sent)) == (61.0, 1)

    async def test_ends_with_the_last_error(self, recorder) -> None:
        recorder.trouble = [httpx.ConnectError("refused")] * 3
        async with client_of(recorder) as client:
            with pytest.raises(Unreachable, match="can't connect") as caught:
                await send(client)
        assert (len(recorder.sent), caught.value.sent) == (3, False)

    @pytest.mark.parametrize("lost", [httpx.ReadError(""), httpx.RemoteProtocolError(""), httpx.ReadTimeout("")])
    async def test_what_may_have_been_done_is_not_without_a_key(self, recorder, runs, lost) -> None:
        recorder.trouble = [lost]
        async with client_of(recorder) as client:
            with pytest.raises(Unreachable):
                await send(client)
        assert (len(recorder.sent), runs) == (1, [1])

    async def test_with_one_its_answer_is_asked_for_again(self, recorder, runs) -> None:
        recorder.trouble = [httpx.ReadError(""), httpx.RemoteProtocolError("")]
        async with client_of(recorder) as client:
            assert await send(client, idempotency_key="k") == {"runs": 1}
        assert (len(recorder.sent), runs) == (3, [1])

    async def test_a_refusal_that_is_final_is_final(self, recorder) -> None:
        recorder.trouble = [(200, {"jsonrpc": "2.0", "id": None, "error": {"code": -32603, "message": "no"}})]
        async with client_of(recorder) as client:
            with pytest.raises(RemoteError):
                await send(client, idempotency_key="k")
        assert len(recorder.sent) == 1

    async def test_a_nonce_of_the_callers_own_stays(self, recorder) -> None:
        recorder.trouble = [httpx.ConnectError("")]
        async with client_of(recorder) as client:
            await send(client, nonce="mine")
        assert [document["params"]["envelope"]["extensions"]["nonce"] for _, document, _ in recorder.sent] == [
            "mine"
        ] * 2

    async def test_policy_may_say_once(self, recorder) -> None:
        recorder.trouble = [httpx.ConnectError("")]
        async with client_of(recorder, retry=RetryPolicy(retries=0)) as client:
            with pytest.raises(Unreachable):
                await send(client)
        assert len(recorder.sent) == 1

    async def test_an_envelope_sent_as_it_is_is_sent_once(self, recorder) -> None:
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

    @pytest.mark.parametrize("key", ["", " ", "a\nb: c", "k" * 257, "kéy"])
    async def test_a_key_that_cannot_be_sent_is_refused_and_not_repeated(self, recorder, key) -> None:
        async with client_of(recorder) as client:
            with pytest.raises(ValueError, match="1 to 256 visible ASCII") as caught:
                await send(client, idempotency_key=key)
        assert recorder.sent == []
        assert not key.strip() or key not in str(caught.value)

    async def test_a_caller_who_leaves_while_it_waits_ends_it(self, recorder) -> None:
        recorder.trouble = [refused(retry_after=30)]
        async with client_of(recorder) as client:
            with anyio.move_on_after(5) as scope:
                await send(client)
        assert scope.cancelled_caught
        assert len(recorder.sent) == 1


def own(data=None, **members):
    return {"jsonrpc": "2.0", "id": None, "error": {"code": -32603, "message": "no", "data": data}, **members}


def reply_to(asked):
    envelope = asked["params"]["envelope"]
    answer = {
        **envelope, "id": "r", "sender": envelope["recipient"], "recipient": envelope["sender"],
        "correlation_id": envelope["id"], "payload_type": "task.response",
        "payload": {"task_id": "t", "status": "completed", "result": {}},
    }  # fmt: skip
    return {"jsonrpc": "2.0", "id": asked["id"], "result": {"envelope": answer}}


SHAPES: Any = {
    "a reply to this call": [reply_to],
    "own": [lambda _: own(), lambda asked: own(id=asked["id"]), lambda _: {"error": "no", "code": "asap:x"}],
    "own, recoverable": [
        lambda asked: own({"recoverable": True}, id=asked["id"]),
        lambda _: {"detail": "no", "code": "asap:x", "recoverable": True},
    ],
    "own, not recoverable": [
        lambda _: own({"recoverable": False}, id=""),
        lambda _: {"error": "no", "code": "asap:x", "recoverable": False},
    ],
    '`{"detail": …}`': [lambda _: {"detail": "no"}, lambda _: {"detail": "no", "code": "busy", "recoverable": True}],
    "a page": [
        lambda _: b"<html>no</html>",
        lambda _: {"detail": [{"loc": ["body"]}]},
        lambda _: [],
        lambda _: {"message": "no"},
    ],
    "nothing": [lambda _: b""],
    "another call's error": [lambda _: own({"recoverable": True, "retry_after": 1}, id="req-another")],
    "no connection": [httpx.ConnectError("refused")],
    "no answer": [httpx.ReadError("")],
}  # fmt: skip


def rows_of_the_table():
    """Each row of the table in `docs/outbound.md`, once for each status and shape of answer."""
    text = (Path(__file__).parents[3] / "docs" / "outbound.md").read_text(encoding="utf-8")
    lines = text.partition("| HTTP status | answer |")[2].partition("\n\n")[0].splitlines()[2:]
    for line in lines:
        statuses, answers, raises, *counts = (cell.strip() for cell in line.strip("| ").split(" | "))
        for answer in answers.split("; "):
            for status in statuses.split(", "):
                for keyed, count in zip((False, True), counts, strict=True):
                    yield pytest.param(
                        (status, answer, raises.strip("`"), keyed, count),
                        id=f"{status} {answer} {'with' if keyed else 'without'} a key",
                    )  # fmt: skip


def answer_of(status: str, make, **headers: str):
    if isinstance(make, Exception):
        return make

    def answered(asked):
        value = make(asked if isinstance(asked, dict) else asked[0])
        body = {"content": value} if isinstance(value, bytes) else {"json": value}
        return httpx.Response(int(status), headers=headers, **body)

    return answered


class TestTheTableOfAnswers:
    def test_it_is_read(self) -> None:
        rows = list(rows_of_the_table())
        assert len(rows) > 150
        assert {row.values[0][1] for row in rows} == set(SHAPES)
        assert {row.values[0][4] for row in rows} == {"once", "again", "returned"}

    @pytest.mark.parametrize("row", list(rows_of_the_table()))
    async def test_it_is_kept(self, recorder, row) -> None:
        status, answer, raises, keyed, count = row
        options = {"idempotency_key": "k"} if keyed else {}
        async with client_of(recorder) as client:
            for number, shape in enumerate(SHAPES[answer]):
                recorder.sent.clear()
                recorder.trouble = [answer_of(status, shape, **{"Retry-After": "7"})] * (3 if count == "again" else 1)
                if count == "returned":
                    await send(client, **options)
                    assert len(recorder.sent) == 1
                    continue
                with pytest.raises(
                    {"RemoteError": RemoteError, "BadReply": BadReply, "Unreachable": Unreachable}[raises]
                ):
                    await send(client, **options)
                assert len(recorder.sent) == (3 if count == "again" else 1), f"shape {number}"
                waits = [after[0] - before[0] for before, after in pairwise(recorder.sent)]
                assert all(wait >= 7 for wait in waits) or status == "–"

    @pytest.mark.parametrize(("status", "shape"), [("429", "a page"), ("429", "nothing"), ("503", "own")])
    async def test_of_a_batch_nothing_was_done_either(self, recorder, status, shape) -> None:
        recorder.trouble = [answer_of(status, SHAPES[shape][0], **{"Retry-After": "7"})]
        async with client_of(recorder) as client:
            outcomes = await client.send_batch(BASE, [("task.request", ASK)] * 2)
        assert [one.payload["status"] for one in outcomes] == ["completed"] * 2
        first, second = recorder.sent
        assert second[0] - first[0] == 7
        for one, other in zip(first[1], second[1], strict=True):
            assert one["params"]["idempotency_key"] == other["params"]["idempotency_key"]
            assert one["params"]["envelope"]["id"] == other["params"]["envelope"]["id"]
            assert one["params"]["envelope"]["extensions"] != other["params"]["envelope"]["extensions"]

    @pytest.mark.parametrize("shape", ["a page", '`{"detail": …}`'])
    async def test_a_batch_that_may_have_been_done_is_not_sent_again(self, recorder, shape) -> None:
        recorder.trouble = [answer_of("503", SHAPES[shape][0])]
        async with client_of(recorder) as client:
            if shape == "a page":
                with pytest.raises(BadReply):
                    await client.send_batch(BASE, [("task.request", ASK)])
            else:
                (outcome,) = await client.send_batch(BASE, [("task.request", ASK)])
                assert not outcome.recoverable
        assert len(recorder.sent) == 1

    async def test_a_date_is_waited_for_and_too_long_is_not(self, recorder) -> None:
        headers = {"Date": "Sun, 06 Nov 2094 08:49:37 GMT", "Retry-After": "Sun, 06 Nov 2094 08:49:57 GMT"}
        recorder.trouble = [answer_of("429", SHAPES["a page"][0], **headers)]
        async with client_of(recorder) as client:
            await send(client)
            assert recorder.sent[1][0] - recorder.sent[0][0] == 20
            recorder.trouble = [answer_of("429", SHAPES["a page"][0], **{"Retry-After": "61"})]
            with pytest.raises(BadReply) as caught:
                await send(client)
        assert (caught.value.status, caught.value.retry_after, len(recorder.sent)) == (429, 61.0, 3)

    async def test_what_a_proxy_lets_through_is_done_once(self, recorder, runs) -> None:
        recorder.trouble = [(502, {"detail": "no"}), (503, ["no"]), None]
        async with client_of(recorder) as client:
            assert await send(client, idempotency_key="k") == {"runs": 1}
        assert (len(recorder.sent), runs) == (3, [1])

    async def test_one_odd_message_opens_no_breaker(self, recorder) -> None:
        options = {"retry": RetryPolicy(retries=0), "breaker": BreakerPolicy(threshold=2)}
        odd = [("403", "a page"), ("500", '`{"detail": …}`'), ("413", "nothing"), ("200", "a page"), ("429", "a page")]
        async with client_of(recorder, **options) as client:
            for status, shape in odd * 2:
                recorder.trouble = [answer_of(status, SHAPES[shape][0])]
                with pytest.raises((RemoteError, BadReply)):
                    await send(client)
            assert await send(client) == {"runs": 1}
            for status in ("502", "504"):
                recorder.trouble = [answer_of(status, SHAPES["a page"][0])]
                with pytest.raises(BadReply):
                    await send(client)
            with pytest.raises(Unreachable, match="requests are paused"):
                await send(client)


class TestTheSameCallUnderAKey:
    """What the client makes up follows from the key: the agent compares the whole payload under it."""

    PLAIN: Any = {"skill_id": "echo", "input": {"n": 1}}

    def conversations(self, recorder):
        return [document["params"]["envelope"]["payload"]["conversation_id"] for _, document, _ in recorder.sent]

    @pytest.mark.parametrize("kind", ["task.request", "TaskRequest", "task_request"])
    async def test_is_the_same_request(self, recorder, runs, kind) -> None:
        for _ in range(2):
            async with client_of(recorder) as client:
                for _ in range(2):
                    reply = await client.send(BASE, kind, self.PLAIN, idempotency_key="order 42")
                    assert reply.payload["result"] == {"runs": 1}
        assert (len(recorder.sent), runs) == (4, [1])
        assert len(set(self.conversations(recorder))) == 1
        assert "order" not in self.conversations(recorder)[0]
        assert "conversation_id" not in self.PLAIN

    async def test_another_key_or_sender_is_another_conversation(self, recorder, runs) -> None:
        async with client_of(recorder) as client:
            for options in ({"idempotency_key": "a"}, {"idempotency_key": "b"}, {}, {}):
                await client.send(BASE, "task.request", self.PLAIN, **options)
            await client.send(BASE, "task.request", self.PLAIN, idempotency_key="a", sender="urn:asap:agent:other")
        assert len(runs) == 5
        assert len(set(self.conversations(recorder))) == 5

    async def test_another_payload_under_it_is_still_refused(self, recorder, runs) -> None:
        async with client_of(recorder) as client:
            await client.send(BASE, "task.request", self.PLAIN, idempotency_key="k")
            for other in ({**self.PLAIN, "input": {"n": 2}}, {**self.PLAIN, "conversation_id": "mine"}):
                with pytest.raises(RemoteError) as caught:
                    await client.send(BASE, "task.request", other, idempotency_key="k")
                assert caught.value.code == -32063
        assert runs == [1]


async def test_large_answers_of_one_caller_do_not_push_out_anothers(agent, runs) -> None:
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


class TestABreaker:
    POLICY = {"retry": RetryPolicy(retries=0), "breaker": BreakerPolicy(threshold=2, rest=30.0)}

    async def failing(self, client, times: int):
        errors = []
        for _ in range(times):
            with pytest.raises(Unreachable) as caught:
                await send(client)
            errors.append(caught.value)
        return errors[-1]

    async def test_leaves_alone_who_keeps_failing_and_finds_out_when_it_is_back(self, recorder) -> None:
        recorder.trouble = [httpx.ConnectError("refused")] * 3
        async with client_of(recorder, **self.POLICY) as client:
            error = await self.failing(client, 5)
            assert (len(recorder.sent), error.next_try, error.sent) == (2, 30.0, False)
            assert "requests are paused" in str(error)
            await anyio.sleep(31)
            await self.failing(client, 2)
            assert len(recorder.sent) == 3, "one probe"
            await anyio.sleep(31)
            assert await send(client) == {"runs": 1}
            assert await send(client) == {"runs": 2}

    async def test_whoever_is_told_to_wait_is_not_kept_waiting(self, recorder) -> None:
        recorder.trouble = [httpx.ConnectError("refused")] * 9
        async with client_of(recorder, breaker=BreakerPolicy(threshold=2, rest=30.0)) as client:
            began = anyio.current_time()
            await self.failing(client, 1)
            assert anyio.current_time() - began < 3
            assert len(recorder.sent) == 2

    async def test_a_refusal_opens_nothing(self, recorder) -> None:
        recorder.trouble = [refused()] * 9
        async with client_of(recorder, **self.POLICY) as client:
            for _ in range(9):
                with pytest.raises(RemoteError):
                    await send(client)
            await send(client)

    async def test_a_probe_that_is_cancelled_is_not_lost(self, recorder) -> None:
        recorder.trouble = [httpx.ConnectError("refused")] * 2
        async with client_of(recorder, **self.POLICY) as client:
            await self.failing(client, 2)
            await anyio.sleep(31)
            for steps in range(8):
                async with anyio.create_task_group() as group:
                    group.start_soon(send, client)
                    for _ in range(steps):
                        await anyio.lowlevel.checkpoint()
                    group.cancel_scope.cancel()
            assert (await send(client))["runs"] >= 1

    async def test_a_batch_is_one_request(self, recorder) -> None:
        recorder.trouble = [httpx.ConnectError("refused")] * 2
        async with client_of(recorder, **self.POLICY) as client:
            for _ in range(4):
                with pytest.raises(Unreachable):
                    await client.send_batch(BASE, [("task.request", ASK)] * 3)
            assert len(recorder.sent) == 2


class TestAClockThatIsWrong:
    @pytest.fixture
    def clock(self, monkeypatch):
        monkeypatch.setattr("asap_adapters.driver.LoopClock", Skewed)
        monkeypatch.setattr(Skewed, "offset", 0.0)
        return Skewed

    @pytest.mark.parametrize("offset", [-3600.0, 3600.0, 86_400.0 * 365])
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

    async def test_being_put_right_takes_nothing_from_the_retries(self, recorder, clock) -> None:
        clock.offset = 3600.0
        recorder.trouble = [None, httpx.ConnectError(""), httpx.ConnectError("")]
        async with client_of(recorder) as client:
            await send(client)
        assert len(recorder.sent) == 4

    async def test_a_server_that_never_agrees_is_asked_twice(self, recorder, clock) -> None:
        error = {
            "code": -32002, "message": "no",
            "data": {"code": "asap:protocol/invalid_timestamp", "recoverable": True,
                     "details": {"server_time": "2031-01-01T00:00:00Z"}},
        }  # fmt: skip
        recorder.trouble = [(200, {"jsonrpc": "2.0", "id": None, "error": error})] * 5
        async with client_of(recorder) as client:
            with pytest.raises(RemoteError):
                await send(client)
        assert len(recorder.sent) == 2

    async def test_over_plain_http_nobody_is_believed(self, recorder, clock, manifest) -> None:
        from asap_core import Endpoints

        clock.offset = 3600.0
        elsewhere = manifest(endpoints=Endpoints(asap="http://agent.example/asap"))
        async with client_of(recorder, allow_http=["agent.example"]) as client:
            with pytest.raises(RemoteError) as caught:
                await client.send(elsewhere, "task.request", ASK)
        assert caught.value.taxonomy == "asap:protocol/invalid_timestamp"
        assert len(recorder.sent) == 1


class Cut(httpx.AsyncBaseTransport):
    """Speaks HTTP with the real server over a pipe that breaks after so many bytes of the next reply."""

    def __init__(self, driver, pipe) -> None:
        self.driver = driver
        self.pipe = pipe
        self.after: int | None = None
        self.length = 0

    async def handle_async_request(self, request: httpx.Request):
        body = await request.aread()
        lines = [f"{request.method} {request.url.raw_path.decode()} HTTP/1.1".encode()]
        lines += [name + b": " + value for name, value in request.headers.raw]
        ours, theirs = self.pipe()
        reply = b""
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: serve_connection(theirs, self.driver, peer="192.0.2.1"))
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


async def test_cut_at_every_byte_of_the_reply_the_work_is_done_once(agent, pipe) -> None:
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
