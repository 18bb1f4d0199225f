"""docs/drivers/threads.py: threads that share a client, wsgiref and Flask that serve the same application."""

import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from asap_core import Manifest, NotAllowed, RemoteError, TimedOut, Unreachable
from asap_core.client import Client, DiscoveryOptions, OutboundPolicy, RequestOptions, RetryPolicy
from docs.drivers.threads import Application, Threads
from tests.drivers.demo_agent import (
    ELSEWHERE,
    SENDER,
    URN,
    Demo,
    echo,
    make_agent,
    raw_server,
    task,
    until,
    wsgi_server,
)

pytestmark = pytest.mark.live
MANIFEST = "/.well-known/asap/manifest.json"


def threads(**options) -> Threads:
    return Threads(Client(SENDER, retry=RetryPolicy(retries=0), **options))


@pytest.fixture(params=["wsgiref", "flask"])
def served(request) -> Iterator[tuple[str, Application]]:
    """The driver's application on wsgiref, alone and as a view of a Flask application."""
    made: list[Application] = []
    if request.param == "flask":
        pytest.importorskip("flask", reason=f"{ELSEWHERE} flask isn't installed here")

    def make(url: str):
        made.append(Application(make_agent(url), echo))
        if request.param == "wsgiref":
            return made[0]
        flask = pytest.importorskip("flask").Flask("agent")
        for name, rule in enumerate(["/asap", MANIFEST]):
            flask.add_url_rule(rule, str(name), lambda: made[0], methods=["GET", "POST"])
        return flask

    with wsgi_server(make) as url:
        yield url, made[0]


# --- server ----------------------------------------------------------------------------------------------------------


def test_the_application_serves_its_agent(served: tuple[str, Application]) -> None:
    url, _ = served
    mine = threads()
    reply = mine.run(mine.client.send(url, "task.request", task(a=1)))
    assert reply.payload["result"] == {"a": 1}


def test_the_application_refuses_a_replay(served: tuple[str, Application]) -> None:
    url, _ = served
    mine = threads()
    manifest = mine.run(mine.client.discover(url, expect=URN))
    reply = mine.run(mine.client.send(manifest, "task.request", task(), nonce="once"))
    assert reply.correlation_id is not None
    with pytest.raises(RemoteError, match="nonce"):
        mine.run(mine.client.send(manifest, "task.request", task(), nonce="once"))


def test_three_retries_at_once_are_answered_by_one_run(served: tuple[str, Application]) -> None:
    url, application = served
    ran, release = [], threading.Event()

    def slow(call):
        ran.append(call)
        release.wait(60)
        return echo(call)

    application.handle = slow
    mine = threads()
    manifest = mine.run(mine.client.discover(url))
    with ThreadPoolExecutor(3) as pool:
        calls = [
            pool.submit(mine.run, mine.client.send(manifest, "task.request", task(), idempotency_key="k"))
            for _ in range(3)
        ]
        until(lambda: application.agent.admission._held)  # type: ignore[union-attr]
        release.set()
        assert len({call.result(60).payload["task_id"] for call in calls}) == 1
    assert len(ran) == 1


def test_a_handler_that_fails_is_answered_by_an_internal_error(served: tuple[str, Application], caplog) -> None:
    url, application = served
    application.handle = lambda call: 1 / 0  # type: ignore[assignment, return-value]
    mine = threads()
    with pytest.raises(RemoteError) as caught:
        mine.run(mine.client.send(url, "task.request", task()))
    assert caught.value.code == -32603
    assert "a handler failed" in caplog.text


# --- client ----------------------------------------------------------------------------------------------------------


def parked(mine: Threads) -> int:
    """How many threads wait on the client's lock."""
    return len(mine.turn.lock._waiters)  # type: ignore[attr-defined]


def test_20_threads_make_one_request(demo: Demo) -> None:
    demo.open.clear()
    mine = threads()
    with ThreadPoolExecutor(20) as pool:
        calls = [pool.submit(mine.run, mine.client.discover(demo.url, expect=URN)) for _ in range(20)]
        until(lambda: parked(mine) == 19)
        demo.open.set()
        assert len({id(call.result(60)) for call in calls}) == 1
    assert demo.hits[MANIFEST] == 1


def test_another_thread_takes_over_from_an_interrupted_leader(demo: Demo) -> None:
    demo.open.clear()
    mine = threads()
    with ThreadPoolExecutor(5) as pool:
        calls: list[Future[Manifest]] = []

        def interrupt() -> None:
            demo.arrived.wait(60)
            calls.extend(pool.submit(mine.run, mine.client.discover(demo.url)) for _ in range(5))
            until(lambda: parked(mine) == 5)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]

        interrupting = threading.Thread(target=interrupt)
        interrupting.start()
        with pytest.raises(KeyboardInterrupt):
            mine.run(mine.client.discover(demo.url))
        interrupting.join()
        demo.open.set()
        assert {call.result(60).id for call in calls} == {URN}
    assert demo.hits[MANIFEST] == 2


def test_an_agent_is_found_in_a_registry(demo: Demo) -> None:
    mine = threads(discovery=DiscoveryOptions(registries=[demo.registry]))
    assert mine.run(mine.client.resolve(URN)).id == URN


def test_an_answer_that_is_cut_off_is_no_answer() -> None:
    mine = threads()
    with raw_server(b"HTTP/1.1 200 OK\r\ncontent-len") as url, pytest.raises(Unreachable):
        mine.run(mine.client.get_document(url))


def test_an_answer_that_trickles_in_ends_at_the_time_limit() -> None:
    mine = threads(http=RequestOptions(timeout=1.0))
    begun = time.monotonic()
    with raw_server(*[b"H"] * 600, pause=0.1) as url, pytest.raises(TimedOut):
        mine.run(mine.client.get_document(url))
    assert time.monotonic() - begun < 30


def test_a_name_that_leads_into_a_private_network_is_not_connected_to(monkeypatch) -> None:
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("it was connected to"))
    mine = threads(outbound=OutboundPolicy(allow_http=["agent.example"]))
    with pytest.raises(NotAllowed):
        mine.run(mine.client.discover("http://agent.example"))
