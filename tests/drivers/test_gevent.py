"""docs/drivers/gevent_driver.py, on the hub of the main thread, without monkey-patching."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from asap_core import NotAllowed, RemoteError, TimedOut, Unreachable
from asap_core.client import Client, DiscoveryOptions, OutboundPolicy, Program, RequestOptions, RetryPolicy
from asap_core.testing import ProgramRunner, check_driver
from tests.drivers.demo_agent import SENDER, URN, Demo, echo, make_agent, needs, raw_server, task
from tests.drivers.runners import result_of

needs("gevent")

import gevent  # noqa: E402
from gevent.event import Event  # noqa: E402
from gevent.pywsgi import WSGIServer  # noqa: E402

from docs.drivers.gevent_driver import Application, Greenlets  # noqa: E402

pytestmark = pytest.mark.live
MANIFEST = "/.well-known/asap/manifest.json"


@pytest.fixture(autouse=True)
def _in_time() -> Iterator[None]:
    with gevent.Timeout(10):
        yield


def greenlets(**options) -> Greenlets:
    return Greenlets(Client(SENDER, retry=RetryPolicy(retries=0), **options))


def until(happened) -> None:
    while not happened():
        gevent.sleep(0.005)


@pytest.fixture
def served() -> Iterator[tuple[str, Application]]:
    server = WSGIServer(("127.0.0.1", 0), None, log=None)
    server.start()
    url = f"http://127.0.0.1:{server.server_port}"
    server.application = application = Application(make_agent(url), echo)
    yield url, application
    server.stop()


# --- server ----------------------------------------------------------------------------------------------------------


def test_the_application_serves_its_agent_and_refuses_a_replay(served: tuple[str, Application]) -> None:
    url, _ = served
    mine = greenlets()
    reply = mine.run(mine.client.send(url, "task.request", task(a=1), nonce="once"))
    assert reply.payload["result"] == {"a": 1}
    with pytest.raises(RemoteError, match="nonce"):
        mine.run(mine.client.send(url, "task.request", task(a=1), nonce="once"))


def test_three_retries_at_once_are_answered_by_one_run(served: tuple[str, Application]) -> None:
    url, application = served
    ran, release = [], Event()

    def slow(call):
        ran.append(call)
        release.wait()
        return echo(call)

    application.handle = slow
    mine = greenlets()
    manifest = mine.run(mine.client.discover(url))
    sends = [mine.client.send(manifest, "task.request", task(), idempotency_key="k") for _ in range(3)]
    calls = [gevent.spawn(mine.run, send) for send in sends]
    until(lambda: len(application.held) == 1)
    gevent.sleep(0.05)
    release.set()
    gevent.joinall(calls, raise_error=True)
    assert len({call.value.payload["task_id"] for call in calls}) == len(ran) == 1
    assert len(application.held) == 0


def test_a_batch_runs_its_handlers_at_once(served: tuple[str, Application]) -> None:
    url, application = served
    both = Event()

    def meet(call):
        if call.request.input["first"]:
            both.wait()
        both.set()
        return echo(call)

    application.handle = meet
    mine = greenlets()
    batch = [("task.request", task(first=True)), ("task.request", task(first=False))]
    replies = mine.run(mine.client.send_batch(url, batch))
    assert [reply.payload["result"]["first"] for reply in replies if not isinstance(reply, RemoteError)] == [
        True,
        False,
    ]


def test_a_handler_that_fails_is_answered_by_an_internal_error(served: tuple[str, Application], caplog) -> None:
    url, application = served
    application.handle = lambda call: 1 / 0  # type: ignore[assignment, return-value]
    mine = greenlets()
    with pytest.raises(RemoteError) as caught:
        mine.run(mine.client.send(url, "task.request", task()))
    assert caught.value.code == -32603
    assert "a handler failed" in caplog.text


# --- client ----------------------------------------------------------------------------------------------------------


def test_20_greenlets_make_one_request_and_another_takes_over_from_a_killed_leader(demo: Demo) -> None:
    demo.open.clear()
    mine = greenlets()
    leader, *others = [gevent.spawn(mine.run, mine.client.discover(demo.url)) for _ in range(20)]
    until(lambda: demo.hits[MANIFEST] == 1)
    assert len(mine.parked) == 19
    leader.kill()
    until(lambda: demo.hits[MANIFEST] == 2)
    demo.open.set()
    gevent.joinall(others, raise_error=True)
    assert len({id(one.value) for one in others}) == 1
    assert demo.hits[MANIFEST] == 2
    assert len(mine.parked) == 0


def test_an_agent_is_found_in_a_registry(demo: Demo) -> None:
    mine = greenlets(discovery=DiscoveryOptions(registries=[demo.registry]))
    assert mine.run(mine.client.resolve(URN)).id == URN


def test_an_answer_that_is_cut_off_is_no_answer() -> None:
    mine = greenlets()
    with raw_server(b"HTTP/1.1 200 OK\r\ncontent-len") as url, pytest.raises(Unreachable):
        mine.run(mine.client.get_document(url))


def test_an_answer_that_trickles_in_ends_at_the_time_limit() -> None:
    mine = greenlets(http=RequestOptions(timeout=1.0))
    with raw_server(*[b"H"] * 600, pause=0.1) as url, pytest.raises(TimedOut):
        mine.run(mine.client.get_document(url))


def test_a_name_that_leads_into_a_private_network_is_not_connected_to(monkeypatch) -> None:
    monkeypatch.setattr("gevent.socket.getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("10.0.0.1", 80))])
    mine = greenlets(outbound=OutboundPolicy(allow_http=["agent.example"]))
    with pytest.raises(NotAllowed):
        mine.run(mine.client.discover("http://agent.example"))


# --- its rules -------------------------------------------------------------------------------------------------------


def test_the_driver_keeps_its_rules() -> None:
    def prepare(client: Client) -> ProgramRunner:
        driver = Greenlets(client)

        def runner(programs: Sequence[Program[Any]], cancel_after: float | None) -> Sequence[object]:
            made = [gevent.spawn(result_of, driver.run, program) for program in programs]
            if cancel_after is not None:
                gevent.sleep(cancel_after)
                made[0].kill()
            gevent.joinall(made)
            return [each.value for each in made]

        return runner

    check_driver(prepare)
