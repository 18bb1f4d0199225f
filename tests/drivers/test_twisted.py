"""docs/drivers/twisted_driver.py, in a reactor that runs in a thread."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from asap_core import NotAllowed, RemoteError, TimedOut, Unreachable
from asap_core.client import (
    BodyReader,
    Client,
    DiscoveryOptions,
    Fetch,
    OutboundPolicy,
    Program,
    Received,
    RequestOptions,
    RetryPolicy,
    Route,
)
from asap_core.testing import ProgramRunner, check_driver
from tests.drivers.demo_agent import SENDER, URN, Demo, echo, make_agent, needs, raw_server, task, until

needs("twisted")

from twisted.internet import reactor, threads  # noqa: E402
from twisted.internet.defer import CancelledError, Deferred, gatherResults  # noqa: E402
from twisted.internet.task import deferLater  # noqa: E402
from twisted.web.server import Site  # noqa: E402

from docs.drivers.twisted_driver import AgentResource, TwistedClient  # noqa: E402

pytestmark = pytest.mark.live
MANIFEST = "/.well-known/asap/manifest.json"


@pytest.fixture(scope="module", autouse=True)
def _reactor() -> Iterator[None]:
    """A reactor can be run once in a process."""
    thread = threading.Thread(target=reactor.run, kwargs={"installSignalHandlers": False}, daemon=True)
    thread.start()
    yield
    reactor.callFromThread(reactor.stop)
    thread.join(60)


def run(main, *args):
    """Run a coroutine function in the reactor's thread, and return its result."""
    return threads.blockingCallFromThread(reactor, lambda: Deferred.fromCoroutine(main(*args)).addTimeout(10, reactor))


def twisted_client(**options) -> TwistedClient:
    return TwistedClient(Client(SENDER, retry=RetryPolicy(retries=0), **options))


@pytest.fixture
def served() -> Iterator[tuple[str, AgentResource]]:
    async def handle(call):
        return echo(call)

    async def listen():
        resource = AgentResource(None, handle)  # type: ignore[arg-type]
        port = reactor.listenTCP(0, Site(resource), interface="127.0.0.1")
        url = f"http://127.0.0.1:{port.getHost().port}"
        resource.agent = make_agent(url)
        return url, resource, port

    url, resource, port = run(listen)
    yield url, resource
    threads.blockingCallFromThread(reactor, port.stopListening)


# --- server ----------------------------------------------------------------------------------------------------------


def test_the_resource_serves_its_agent_and_refuses_a_replay(served: tuple[str, AgentResource]) -> None:
    url, _ = served

    async def main() -> None:
        mine = twisted_client()
        manifest = await mine.run(mine.client.discover(url, expect=URN))
        reply = await mine.run(mine.client.send(manifest, "task.request", task(a=1), nonce="once"))
        assert reply.payload["result"] == {"a": 1}
        with pytest.raises(RemoteError, match="nonce"):
            await mine.run(mine.client.send(manifest, "task.request", task(a=1), nonce="once"))

    run(main)


def test_three_retries_at_once_are_answered_by_one_run(served: tuple[str, AgentResource]) -> None:
    url, resource = served
    ran = []

    async def slow(call):
        ran.append(call)
        await deferLater(reactor, 0.2, lambda: None)
        return echo(call)

    async def main() -> None:
        mine = TwistedClient(Client(SENDER))  # it tries again
        manifest = await mine.run(mine.client.discover(url))
        sends = [mine.client.send(manifest, "task.request", task(), idempotency_key="k") for _ in range(3)]
        replies = await gatherResults([Deferred.fromCoroutine(mine.run(send)) for send in sends])
        assert len({reply.payload["task_id"] for reply in replies}) == len(ran) == 1

    resource.handle = slow
    run(main)


def test_a_handler_that_fails_is_answered_by_an_internal_error(served: tuple[str, AgentResource], caplog) -> None:
    url, resource = served

    async def fail(call):
        raise ZeroDivisionError

    async def main() -> None:
        mine = twisted_client()
        await mine.run(mine.client.send(url, "task.request", task()))

    resource.handle = fail
    with pytest.raises(RemoteError) as caught:
        run(main)
    assert caught.value.code == -32603
    assert "a handler failed" in caplog.text


def test_a_peer_that_leaves_breaks_nothing(served: tuple[str, AgentResource]) -> None:
    url, resource = served
    ended = threading.Event()

    async def slow(call):
        await deferLater(reactor, 0.3, lambda: None)
        ended.set()
        return echo(call)

    async def main() -> None:
        mine = twisted_client(http=RequestOptions(timeout=0.1))
        await mine.run(mine.client.send(await mine.run(mine.client.discover(url)), "task.request", task()))

    resource.handle = slow
    with pytest.raises(TimedOut):
        run(main)
    assert ended.wait(60)


# --- client ----------------------------------------------------------------------------------------------------------


def test_20_callers_make_one_request_and_another_takes_over_from_a_cancelled_leader(demo: Demo) -> None:
    demo.open.clear()
    mine = twisted_client()
    calls: list[Deferred] = []

    async def begin() -> None:
        calls.extend(Deferred.fromCoroutine(mine.run(mine.client.discover(demo.url))) for _ in range(20))

    async def cancel() -> None:
        calls[0].cancel()
        with pytest.raises(CancelledError):
            await calls.pop(0)

    async def end() -> list[object]:
        found: list[object] = await gatherResults(calls)
        return found

    run(begin)
    until(lambda: demo.hits[MANIFEST] == 1)
    assert len(mine.parked) == 19
    run(cancel)
    until(lambda: demo.hits[MANIFEST] == 2)
    demo.open.set()
    assert len({id(manifest) for manifest in run(end)}) == 1
    assert demo.hits[MANIFEST] == 2
    assert mine.parked == {}


def test_an_agent_is_found_in_a_registry(demo: Demo) -> None:
    mine = twisted_client(discovery=DiscoveryOptions(registries=[demo.registry]))
    assert run(lambda: mine.run(mine.client.resolve(URN))).id == URN


def test_an_answer_that_is_cut_off_is_no_answer() -> None:
    mine = twisted_client()
    with raw_server(b"HTTP/1.1 200 OK\r\ncontent-len") as url, pytest.raises(Unreachable):
        run(lambda: mine.run(mine.client.get_document(url)))


def test_an_address_that_refuses_is_followed_by_the_next() -> None:
    mine = twisted_client()
    with raw_server(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}") as url:
        route = Route("127.0.0.1", int(url.rpartition(":")[2]), "http", announced=("127.0.0.2", "127.0.0.1"))
        asked = Fetch("GET", url, (), None, 5.0, 5.0, route, BodyReader(100))
        assert run(lambda: mine.perform(asked)) == Received("127.0.0.1")


def test_an_answer_that_trickles_in_ends_at_the_time_limit() -> None:
    mine = twisted_client(http=RequestOptions(timeout=1.0))
    with raw_server(*[b"H"] * 600, pause=0.1) as url, pytest.raises(TimedOut):
        run(lambda: mine.run(mine.client.get_document(url)))


def test_a_name_that_leads_into_a_private_network_is_not_connected_to(monkeypatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("10.0.0.1", 80))])
    mine = twisted_client(outbound=OutboundPolicy(allow_http=["agent.example"]))
    with pytest.raises(NotAllowed):
        run(lambda: mine.run(mine.client.discover("http://agent.example")))


# --- its rules -------------------------------------------------------------------------------------------------------


def test_the_driver_keeps_its_rules() -> None:
    def prepare(client: Client) -> ProgramRunner:
        driver = TwistedClient(client)

        async def together(programs: Sequence[Program[Any]], cancel_after: float | None) -> Sequence[object]:
            made = [
                Deferred.fromCoroutine(driver.run(program)).addErrback(lambda each: each.value) for program in programs
            ]
            if cancel_after is not None:
                await deferLater(reactor, cancel_after)
                made[0].cancel()
            results: Sequence[object] = await gatherResults(made)
            return results

        return lambda programs, cancel_after: run(together, programs, cancel_after)

    check_driver(prepare, lacks=["patience"])
