"""docs/drivers/lambda_driver.py: processes that answer events one at a time, over one store, and their client."""

import base64
import json
import secrets
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from asap_core import Agent, Limit, NotAllowed, Policy, RemoteError, Unreachable
from asap_core.client import Client, DiscoveryOptions, Fetch, OutboundPolicy, Received, RequestOptions, RetryPolicy
from asap_core.testing import check_store
from docs.drivers import lambda_driver
from docs.drivers.lambda_driver import Function, Invocation, Store, SystemClock
from tests.drivers.demo_agent import SENDER, URN, Demo, echo, echo_manifest, new_id, raw_server, task

pytestmark = pytest.mark.live
MANIFEST = "/.well-known/asap/manifest.json"
URL = "https://abc.lambda-url.example"


def function(database: Path, handle: Callable[..., Any] = echo, **policy: Any) -> Function:
    """A function as it is after a cold start: nothing of its own but the way to the store."""
    agent = Agent(echo_manifest(URL), policy=Policy(**policy))
    store = Store(sqlite3.connect(database, isolation_level=None), agent.policy, SystemClock())
    key = secrets.token_bytes(32)
    agent.bind(clock=SystemClock(), ids=new_id, key=key, shared_admission=True, shared_limits={"peer"})
    return Function(agent, handle, store)


class Processes:
    """Sends each request of a client to the next of several processes, as events."""

    def __init__(self, *functions: Function) -> None:
        self.functions, self.events = functions, list[dict[str, Any]]()

    def __call__(self, asked: Fetch) -> Received:
        http = {"method": asked.method, "sourceIp": "203.0.113.9"}
        event = {
            "rawPath": asked.url.removeprefix(URL),
            "headers": dict(asked.headers),
            "requestContext": {"http": http},
            "body": (asked.body or b"").decode(),
        }
        status, headers, body = self.answer(event)
        asked.reader.read(status, list(headers.items()), body)
        return Received()

    def answer(self, event: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        out: Any = self.functions[len(self.events) % len(self.functions)](json.loads(json.dumps(event)), None)
        self.events.append(event)
        return out["statusCode"], out["headers"], base64.b64decode(out["body"])


def invocation(**options: Any) -> Invocation:
    return Invocation(Client(SENDER, retry=RetryPolicy(retries=0), http=RequestOptions(compress=False), **options))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "agent.db"


# --- server ----------------------------------------------------------------------------------------------------------


def test_a_replay_is_refused_by_another_process(database: Path, monkeypatch) -> None:
    processes, mine = Processes(function(database), function(database)), invocation()
    monkeypatch.setattr(lambda_driver, "fetch", processes)
    manifest = mine.run(mine.client.discover(URL, expect=URN))
    reply = mine.run(mine.client.send(manifest, "task.request", task(a=1), nonce="once"))
    assert reply.payload["result"] == {"a": 1}
    with pytest.raises(RemoteError, match="nonce"):
        mine.run(mine.client.send(manifest, "task.request", task(a=1), nonce="once"))
    # The client gave the first request a key of its own: the same bytes are a retry of it.
    _, _, body = processes.answer(processes.events[1])
    assert json.loads(body)["result"]["envelope"]["payload"] == reply.payload


def test_a_retry_is_answered_by_another_process_without_running_again(database: Path, monkeypatch) -> None:
    ran: list[object] = []

    def count(call):
        ran.append(call)
        return echo(call)

    processes, mine = Processes(function(database, count), function(database, count)), invocation()
    monkeypatch.setattr(lambda_driver, "fetch", processes)
    replies = [mine.run(mine.client.send(URL, "task.request", task(), idempotency_key="k")) for _ in range(2)]
    assert len({reply.payload["task_id"] for reply in replies}) == len(ran) == 1
    with pytest.raises(RemoteError, match="idempotency"):
        mine.run(mine.client.send(URL, "task.request", task(b=2), idempotency_key="k"))


def test_an_answer_that_a_killed_process_did_not_record_is_unknown(database: Path, monkeypatch) -> None:
    def killed(call):
        raise SystemExit

    first, second = function(database, killed, handler_deadline=0.2), function(database, handler_deadline=0.2)
    processes, mine = Processes(first), invocation()
    monkeypatch.setattr(lambda_driver, "fetch", processes)
    manifest = mine.run(mine.client.discover(URL))
    with pytest.raises(SystemExit):
        mine.run(mine.client.send(manifest, "task.request", task(), idempotency_key="k"))
    processes.functions = (second,)
    with pytest.raises(RemoteError, match="running"):
        mine.run(mine.client.send(manifest, "task.request", task(), idempotency_key="k"))
    time.sleep(0.25)
    with pytest.raises(RemoteError, match="unknown"):
        mine.run(mine.client.send(manifest, "task.request", task(), idempotency_key="k"))


def test_what_callers_take_is_counted_by_all_processes(database: Path, monkeypatch) -> None:
    limits = (Limit(3, per=3_600.0),)
    functions = [function(database, peer_limits=limits) for _ in range(2)]
    processes, mine = Processes(*functions), invocation()
    monkeypatch.setattr(lambda_driver, "fetch", processes)
    manifest = mine.run(mine.client.discover(URL))
    for _ in range(3):
        mine.run(mine.client.send(manifest, "task.request", task()))
    for _ in range(2):
        with pytest.raises(RemoteError, match="limit"):
            mine.run(mine.client.send(manifest, "task.request", task()))


def test_the_store_keeps_its_promises() -> None:
    def prepare(clock):
        path = Path(mkdtemp(), "agent.db")
        return lambda: Store(sqlite3.connect(path, isolation_level=None), Policy(), clock)

    check_store(prepare, examples=10)


def test_a_handler_that_fails_leaves_its_key_unknown(database: Path, monkeypatch) -> None:
    processes, mine = Processes(function(database, lambda call: 1 / 0)), invocation()
    monkeypatch.setattr(lambda_driver, "fetch", processes)
    manifest = mine.run(mine.client.discover(URL))
    for problem in ("internal", "unknown"):
        with pytest.raises(RemoteError, match=f"(?i){problem}"):
            mine.run(mine.client.send(manifest, "task.request", task(), idempotency_key="k"))


# --- client ----------------------------------------------------------------------------------------------------------


def test_20_calls_make_one_request(demo: Demo) -> None:
    mine = invocation()
    assert len({id(mine.run(mine.client.discover(demo.url, expect=URN))) for _ in range(20)}) == 1
    assert demo.hits[MANIFEST] == 1


def test_the_call_after_one_that_was_stopped_asks_anew(demo: Demo, monkeypatch) -> None:
    mine = invocation()

    def stopped(asked: Fetch) -> Received:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(lambda_driver, "fetch", stopped)
        with pytest.raises(SystemExit):
            mine.run(mine.client.discover(demo.url))
    assert mine.run(mine.client.discover(demo.url)).id == URN
    assert demo.hits[MANIFEST] == 1


def test_time_in_which_the_function_is_frozen_counts() -> None:
    assert SystemClock().monotonic() == pytest.approx(time.clock_gettime(time.CLOCK_BOOTTIME), abs=1.0)


def test_an_agent_is_found_in_a_registry_and_called(demo: Demo) -> None:
    mine = invocation(discovery=DiscoveryOptions(registries=[demo.registry]))
    manifest = mine.run(mine.client.resolve(URN))
    assert mine.run(mine.client.send(manifest, "task.request", task(a=1))).payload["result"] == {"a": 1}


def test_an_answer_that_is_cut_off_is_no_answer() -> None:
    mine = invocation()
    with raw_server(b"HTTP/1.1 200 OK\r\ncontent-len") as url, pytest.raises(Unreachable):
        mine.run(mine.client.get_document(url))


def test_a_name_that_leads_into_a_private_network_is_not_connected_to(monkeypatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("10.0.0.1", 80))])
    mine = invocation(outbound=OutboundPolicy(allow_http=["agent.example"]))
    with pytest.raises(NotAllowed):
        mine.run(mine.client.discover("http://agent.example"))
