"""`BlockingClient` against an agent over HTTP, from threads, a script that Ctrl-C ends, and beside `AgentClient`."""

import inspect
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.from_thread
import httpx
import pytest

from asap_adapters import (
    AgentClient,
    BadReply,
    BlockingClient,
    BlockingHttpOptions,
    DiscoveryOptions,
    HttpOptions,
    NotAllowed,
    NotResolved,
    RemoteError,
    TimedOut,
    Unreachable,
    WrongAgent,
    serve,
)
from asap_adapters.cli.echo_agent import ECHO_ID, echo_manifest
from asap_adapters.server.listener import Bound, listen
from asap_core import Agent, Policy, StartPolicy
from asap_core.client.fetch_results import Source
from asap_core.client.search import Resolved
from asap_core.wire.manifest import MANIFEST_PATH
from tests.adapters.test_blocking import DEADLOCK, Callers
from tests.live.test_blocking import until

pytestmark = pytest.mark.live

TASK = ("task.request", {"skill_id": "echo", "input": {"text": "hello"}})
ME = "urn:asap:agent:me"


CALLED = threading.Event()
"""Set when a call that takes long has come."""
OVER = threading.Event()
"""Set at the end: it ends such calls."""


async def echo(request, _context):
    if "seconds" in request.input:
        CALLED.set()
        with anyio.move_on_after(request.input["seconds"]):
            while not OVER.is_set():  # noqa: ASYNC110 - another thread says it
                await anyio.sleep(0.02)
    return {"echoed": request.input}


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    """An agent's base URL. It's served in a thread."""

    async def main(bound: Bound, stop: anyio.Event) -> None:
        policy = Policy(peer_limits=(), start=StartPolicy.OPEN, drain=30.0, handler_deadline=30.0)
        agent = Agent(echo_manifest(ECHO_ID, bound.url), policy=policy)
        await serve(agent, {"echo": echo}, at=bound, stop=stop)

    with anyio.from_thread.start_blocking_portal() as portal:
        bound, stop = portal.call(listen, "127.0.0.1", 0), portal.call(anyio.Event)
        serving = portal.start_task_soon(main, bound, stop)
        yield bound.url
        OVER.set()
        portal.call(stop.set)
        serving.result(DEADLOCK)


@pytest.fixture
def client() -> Iterator[BlockingClient]:
    with BlockingClient(sender=ME) as made:
        yield made


@pytest.fixture
def registry(base: str, tmp_path: Path) -> Path:
    """A registry's file with this agent."""
    path = tmp_path / "registry.json"
    entry = {"id": ECHO_ID, "name": "E", "description": "", "asap_version": "0.1", "skills": ["echo"]}
    agents = [{**entry, "endpoints": {"manifest": f"{base}{MANIFEST_PATH}"}}]
    path.write_text(json.dumps({"version": "1", "updated_at": "2026-01-01T00:00:00Z", "agents": agents}))
    return path


class TestCalls:
    def test_agents_are_found(self, base: str, client: BlockingClient) -> None:
        assert client.cached(base) is None
        assert client.discover(base, expect=ECHO_ID).id == ECHO_ID
        assert client.look_up(base).source is Source.CACHED
        assert client.cached(base) == client.get_manifest(base + MANIFEST_PATH)
        assert client.health_check(base).agent_id == ECHO_ID
        assert json.loads(client.get_document(base + MANIFEST_PATH))["id"] == ECHO_ID
        with pytest.raises(WrongAgent):
            client.discover(base, expect="urn:asap:agent:other")
        client.forget(base)
        assert client.cached(base) is None
        client.discover(base)
        client.reset()
        assert client.cached(base) is None

    def test_messages_are_answered(self, base: str, client: BlockingClient) -> None:
        reply = client.send(base, *TASK)
        assert reply.payload["result"] == {"echoed": {"text": "hello"}}
        good, bad = client.send_batch(base, [TASK, ("task.request", {"skill_id": "none", "input": {}})])
        assert not isinstance(good, RemoteError)
        assert isinstance(bad, RemoteError)
        with pytest.raises(RemoteError):
            client.send(base, "task.request", {"skill_id": "none", "input": {}})

    def test_large_messages_are_answered(self, base: str, client: BlockingClient) -> None:
        text = "x" * 1_000_000
        reply = client.send(base, "task.request", {"skill_id": "echo", "input": {"text": text}})
        assert reply.payload["result"] == {"echoed": {"text": text}}

    def test_agents_of_a_registry_are_found(self, base: str, registry: Path) -> None:
        with BlockingClient(sender=ME, discovery=DiscoveryOptions(registries=[registry])) as client:
            assert client.resolve(ECHO_ID, wait=0).id == ECHO_ID
            assert isinstance(client.explain(ECHO_ID, wait=0), Resolved)
            assert [entry.id for entry in client.find(registry, skill="echo")] == [ECHO_ID]
            assert client.registry(registry).skipped == ()
            assert client.stands_in(registry) is None
            with pytest.raises(NotResolved):
                client.resolve("urn:asap:agent:other", wait=0)

    def test_a_reply_that_takes_too_long_is_an_error(self, base: str) -> None:
        with BlockingClient(sender=ME) as patient:
            manifest = patient.discover(base)
        # The shortest within which this machine connects and sends.
        for limit in (0.3, 3.0):
            with BlockingClient(sender=ME, http=BlockingHttpOptions(timeout=limit)) as client:
                begun = time.monotonic()
                with pytest.raises(Unreachable) as raised:
                    client.send(manifest, "task.request", {"skill_id": "echo", "input": {"seconds": 600}})
                took = time.monotonic() - begun
            if isinstance(raised.value, TimedOut):
                assert took < limit + DEADLOCK / 4
                return
        pytest.fail("it couldn't be connected to, and sent")

    def test_arguments_are_checked(self, client: BlockingClient) -> None:
        with pytest.raises(ValueError, match="base_url"):
            client.discover(5)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="http: expected BlockingHttpOptions"):
            BlockingClient(sender=ME, http=HttpOptions())  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="http: expected HttpOptions"):
            AgentClient(sender=ME, http=BlockingHttpOptions())  # type: ignore[arg-type]
        with pytest.raises(NotAllowed):
            client.discover("http://10.0.0.1")

    def test_a_transport_of_ones_own_is_used(self) -> None:
        transport = httpx.MockTransport(lambda _: httpx.Response(503))
        options = BlockingHttpOptions(transport=transport)
        with BlockingClient(sender=ME, http=options) as client, pytest.raises(BadReply, match="503"):
            client.discover("https://agent.example")

    def test_an_unopened_client_says_how_to_open_it(self) -> None:
        client = BlockingClient(sender=ME)
        for call in (lambda: client.discover("https://a.example"), lambda: client.keep_fresh("https://a.example")):
            with pytest.raises(RuntimeError, match=re.escape("write: with BlockingClient(sender=…) as client")):
                call()

    def test_a_client_that_is_not_closed_warns(self) -> None:
        client = BlockingClient(sender=ME)
        client.__enter__()
        with pytest.warns(ResourceWarning, match="never closed"):
            del client


class TestThreads:
    def test_twenty_threads_share_one_request_and_send_each_their_own(self, base: str, client: BlockingClient) -> None:
        callers = Callers(lambda: client.send(base, *TASK).payload["result"])
        callers.start(20)
        assert callers.join() == [{"echoed": {"text": "hello"}}] * 20

    def test_no_thread_and_no_event_loop_is_left_or_needed(self, base: str, client: BlockingClient) -> None:
        before = set(threading.enumerate())
        client.send(base, *TASK)
        assert set(threading.enumerate()) <= before

    def test_keeping_fresh_ends_with_the_client(self, base: str) -> None:
        with BlockingClient(sender=ME) as client:
            callers = Callers(lambda: client.keep_fresh(base))
            callers.start(1)
            until(lambda: client.cached(base) is not None)
            refused = Callers(lambda: client.keep_fresh("http://10.0.0.1"))
            refused.start(1)
            assert [type(end) for end in refused.join()] == [NotAllowed]
        assert callers.join() == [None]

    def test_it_works_inside_an_event_loop(self, base: str, client: BlockingClient) -> None:
        """As in a notebook, whose loop waits meanwhile."""

        async def cell() -> str:
            return client.discover(base).id

        assert anyio.run(cell) == ECHO_ID
        assert anyio.run(cell, backend="trio") == ECHO_ID


class TestSignatures:
    def test_methods_are_agent_clients_own(self) -> None:
        ours, theirs = (_methods(kind) for kind in (BlockingClient, AgentClient))
        assert {*ours, "aclose"} == {*theirs, "close"}
        for name in ours - {"sender", "close", "keep_fresh", "browse"}:
            one, other = getattr(BlockingClient, name), getattr(AgentClient, name)
            assert list(inspect.signature(one).parameters.values()) == list(
                inspect.signature(other).parameters.values()
            )
            assert one.__doc__ == other.__doc__

    def test_parameters_are_agent_clients_own(self) -> None:
        ours, theirs = (list(inspect.signature(kind).parameters) for kind in (BlockingClient, AgentClient))
        assert ours == theirs


def _methods(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


SCRIPT = """
import os, sys, time
from asap_adapters import BlockingClient, BlockingHttpOptions

def sockets():
    return sum(os.readlink(f"/proc/self/fd/{name}").startswith("socket") for name in os.listdir("/proc/self/fd")
               if os.path.lexists(f"/proc/self/fd/{name}"))

with BlockingClient(sender="urn:asap:agent:me") as client:
    client.discover(sys.argv[1])
    print("calls", flush=True)
    try:
        client.send(sys.argv[1], "task.request", {"skill_id": "echo", "input": {"seconds": 60}})
    except KeyboardInterrupt:
        print("interrupted", sockets(), flush=True)
        print(client.discover(sys.argv[1]).id, flush=True)
        raise
"""


def test_ctrl_c_ends_a_script(base: str) -> None:
    with subprocess.Popen([sys.executable, "-c", SCRIPT, base], stdout=subprocess.PIPE, text=True) as script:
        assert script.stdout is not None
        CALLED.clear()
        assert script.stdout.readline() == "calls\n"
        assert CALLED.wait(DEADLOCK)
        script.send_signal(signal.SIGINT)
        rest, _ = script.communicate(timeout=DEADLOCK)
    # A shell sees that the signal ended it.
    assert (rest.splitlines(), script.returncode) == (["interrupted 0", ECHO_ID], -signal.SIGINT)
