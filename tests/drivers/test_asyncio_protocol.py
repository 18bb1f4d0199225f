"""docs/drivers/asyncio_protocol.py: tasks that share a client, and a server that reads the wire itself."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

from asap_core import Dispatch, NotAllowed, Payload, RemoteError, TimedOut, Unreachable
from asap_core.client import Client, DiscoveryOptions, OutboundPolicy, RequestOptions, RetryPolicy
from docs.drivers.asyncio_protocol import AgentProtocol, AsyncioClient, Waiting
from tests.builders import call
from tests.drivers.demo_agent import SENDER, URN, Demo, echo, make_agent, raw_server, task

pytestmark = pytest.mark.live
CHUNKED = b"POST /asap HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
MANIFEST = "/.well-known/asap/manifest.json"


def client(**options) -> AsyncioClient:
    return AsyncioClient(Client(SENDER, retry=RetryPolicy(retries=0), **options))


async def at_once(call: Dispatch) -> Payload:
    return echo(call)


@asynccontextmanager
async def serving(handle: Callable[[Dispatch], Awaitable[Payload]] = at_once) -> AsyncIterator[str]:
    """Serve the echo agent with the driver. Yields its base URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        agent, held = make_agent(url), Waiting()

        def accept() -> AgentProtocol:
            return AgentProtocol(agent, handle, held)

        async with await asyncio.get_running_loop().create_server(accept, sock=listener):
            yield url


async def exchange(url: str, data: bytes) -> bytes:
    """Send these bytes, and return the whole response."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    try:
        async with asyncio.timeout(60):
            return await reader.read()
    finally:
        writer.close()


# --- server ----------------------------------------------------------------------------------------------------------


def test_the_server_answers_and_refuses_a_replay() -> None:
    async def main() -> None:
        mine = client()
        async with serving() as url:
            reply = await mine.run(mine.client.send(url, "task.request", task(a=1), nonce="once"))
            assert reply.payload["result"] == {"a": 1}
            with pytest.raises(RemoteError, match="nonce"):
                await mine.run(mine.client.send(url, "task.request", task(), nonce="once"))

    asyncio.run(main())


def test_three_retries_at_once_are_answered_by_one_run() -> None:
    async def main() -> None:
        mine, ran, release = client(), [], asyncio.Event()

        async def slow(call: Dispatch) -> Payload:
            ran.append(call)
            await release.wait()
            return echo(call)

        async with serving(slow) as url:
            manifest = await mine.run(mine.client.discover(url))
            sends = [mine.client.send(manifest, "task.request", task(), idempotency_key="k") for _ in range(3)]
            asyncio.get_running_loop().call_later(0.1, release.set)
            replies = await asyncio.gather(*map(mine.run, sends))
        assert len({reply.payload["task_id"] for reply in replies}) == len(ran) == 1

    asyncio.run(main())


@pytest.mark.parametrize(("key", "end"), [(None, "cancelled"), ("k", "finished")])
def test_a_caller_that_leaves_cancels_its_handler_unless_the_answer_is_kept(key, end) -> None:
    def request() -> bytes:
        stamp = datetime.now(UTC).isoformat()
        body = json.dumps(call(key=key, envelope_changes={"recipient": URN, "timestamp": stamp})).encode()
        return b"POST /asap HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
            len(body),
            body,
        )

    async def main() -> str:
        begun, ends = asyncio.Event(), asyncio.Queue[str]()

        async def slow(call: Dispatch) -> Payload:
            begun.set()
            try:
                await asyncio.sleep(0.1)
            except asyncio.CancelledError:
                ends.put_nowait("cancelled")
                raise
            ends.put_nowait("finished")
            return echo(call)

        async with serving(slow) as url, asyncio.timeout(60):
            caller = asyncio.create_task(exchange(url, request()))
            await begun.wait()
            caller.cancel()
            ended = await ends.get()
            while len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110 - until the connection's task has ended
                await asyncio.sleep(0.005)
            return ended

    assert asyncio.run(main()) == end


@pytest.mark.parametrize(
    ("error", "code"), [(RuntimeError("secret"), -32603), (TimeoutError(), -32033)], ids=["fails", "takes too long"]
)
def test_a_handler_that_fails_is_answered_by_an_error(error: Exception, code: int, caplog) -> None:
    async def broken(call: Dispatch) -> Payload:
        raise error

    async def main() -> None:
        mine = client()
        async with serving(broken) as url:
            with pytest.raises(RemoteError) as caught:
                await mine.run(mine.client.send(url, "task.request", task()))
        assert caught.value.code == code
        assert "secret" not in str(caught.value)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /.well-known/asap/manifest.json HTTP/1.1\r\nHost: a\r\n\r\n", b"200"),
        (b"GET / HTTP/2.0\r\n\r\n", b"505"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"400"),
        (b"POST /asap HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n{}", b"413"),
        (b"POST /asap HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}", b"200"),
        (CHUNKED + b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", b"200"),
        (CHUNKED + b"1\r\n{}\r\n", b"400"),
        (CHUNKED + b"FFFFFF\r\n" + bytes(11_000_000), b"413"),
        (b"\r\n\r\n", b"400"),
    ],
)
def test_any_head_gets_a_response(data: bytes, status: bytes) -> None:
    async def main() -> bytes:
        async with serving() as url:
            return await exchange(url, data)

    assert asyncio.run(main()).startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize("data", [b"G" * 70_000, b"\x16\x03\x01\r\n\r\n"])
def test_what_is_not_read_costs_the_connection_and_no_other(data: bytes) -> None:
    async def main() -> None:
        async with serving() as url:
            assert b"HTTP/1.1 200" not in await exchange(url, data)
            mine = client()
            assert (await mine.run(mine.client.discover(url))).id == URN

    asyncio.run(main())


# --- client ----------------------------------------------------------------------------------------------------------


async def until_parked(mine: AsyncioClient, count: int) -> None:
    async with asyncio.timeout(60):
        while len(mine.waiting) < count:  # noqa: ASYNC110 - the driver has no event for tests
            await asyncio.sleep(0.005)


def test_20_tasks_make_one_request(demo: Demo) -> None:
    async def main() -> None:
        demo.open.clear()
        mine = client()
        calls = [asyncio.create_task(mine.run(mine.client.discover(demo.url, expect=URN))) for _ in range(20)]
        await until_parked(mine, 19)
        demo.open.set()
        assert len({id(manifest) for manifest in await asyncio.gather(*calls)}) == 1

    asyncio.run(main())
    assert demo.hits[MANIFEST] == 1


def test_another_task_takes_over_from_a_cancelled_leader(demo: Demo) -> None:
    async def main() -> None:
        demo.open.clear()
        mine = client()
        leader, *others = [asyncio.create_task(mine.run(mine.client.discover(demo.url))) for _ in range(20)]
        await asyncio.to_thread(demo.arrived.wait, 5)
        leader.cancel()
        demo.open.set()
        assert {manifest.id for manifest in await asyncio.gather(*others)} == {URN}
        assert leader.cancelled()
        assert not mine.waiting

    asyncio.run(main())
    assert demo.hits[MANIFEST] == 2


def test_an_agent_is_found_in_a_registry(demo: Demo) -> None:
    mine = client(discovery=DiscoveryOptions(registries=[demo.registry]))

    async def main() -> None:
        assert (await mine.run(mine.client.resolve(URN))).id == URN

    asyncio.run(main())


@pytest.mark.parametrize(
    ("chunks", "error"), [((b"HTTP/1.1 200 OK\r\ncontent-len",), Unreachable), ((b"H",) * 600, TimedOut)]
)
def test_an_answer_that_is_cut_off_or_trickles_in_is_no_answer(chunks: tuple[bytes, ...], error) -> None:
    async def main() -> None:
        mine = client(http=RequestOptions(timeout=1.0 if error is TimedOut else 60.0))
        with raw_server(*chunks, pause=0.1 if error is TimedOut else 0.0) as url, pytest.raises(error):
            await mine.run(mine.client.get_document(url))

    asyncio.run(main())


def test_a_name_that_leads_into_a_private_network_is_not_connected_to(monkeypatch) -> None:
    async def main() -> None:
        async def private(*_, **__):
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 80))]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", private)
        monkeypatch.setattr(asyncio, "open_connection", lambda *_, **__: pytest.fail("it was connected to"))
        mine = client(outbound=OutboundPolicy(allow_http=["agent.example"]))
        with pytest.raises(NotAllowed):
            await mine.run(mine.client.discover("http://agent.example"))

    asyncio.run(main())
