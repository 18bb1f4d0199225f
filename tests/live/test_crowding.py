"""Connections and threads are shared out: what one host holds up, it holds up for itself."""

import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest

from asap_adapters import AgentClient, BadReply, TimedOut, Unreachable
from asap_adapters.cli.echo_agent import ECHO_ID, echo_manifest
from asap_core.client.breaker import BreakerPolicy
from asap_core.client.delivery import RetryPolicy
from asap_core.server.wellknown import publish
from tests.clients import make_client
from tests.live.skipped_time import backend, skip_time, stop_time

pytestmark = [pytest.mark.anyio, pytest.mark.live]

TASK = ("task.request", {"skill_id": "echo", "input": {}})
SECONDS = 60.0
"""Nothing here takes that long, unless it hangs."""
ALONE = 100
"""How many requests one host may hold."""


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request) -> Any:
    return backend(request.param)


class Host:
    """Answers GETs at once, and everything else never; knows how many are connected, and were sent elsewhere."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.manifest = echo_manifest(ECHO_ID, self.url)
        self.connected = 0
        self.silent = False
        self.redirects = anyio.Event()
        self.redirected = 0

    async def serve(self, stream) -> None:
        self.connected += 1
        try:
            async with stream:
                while True:
                    head = await stream.receive()
                    if head.startswith(b"GET /from"):
                        await self.redirects.wait()
                        self.redirected += 1
                        await stream.send(b"HTTP/1.1 302 X\r\nlocation: /to\r\ncontent-length: 0\r\n\r\n")
                        continue
                    if head.startswith(b"GET /to"):
                        await anyio.sleep_forever()
                    if self.silent or not head.startswith(b"GET"):
                        await anyio.sleep_forever()
                    body = publish(self.manifest)
                    await stream.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            pass
        finally:
            self.connected -= 1


@asynccontextmanager
async def hosts(number: int) -> AsyncIterator[list[Host]]:
    found = []
    async with AsyncExitStack() as stack, anyio.create_task_group() as group:
        for _ in range(number):
            listener: Any = await anyio.create_tcp_listener(local_host="127.0.0.1", backlog=500)
            await stack.enter_async_context(listener)
            found.append(Host(listener.extra(anyio.abc.SocketAttribute.local_port)))
            group.start_soon(listener.serve, found[-1].serve)
        yield found
        group.cancel_scope.cancel()


def client(**options) -> AgentClient:
    retry = RetryPolicy(retries=0)
    return make_client(retry=retry, **{"timeout": SECONDS, **options})


async def hold(ours: AgentClient, host: Host, ends: list[Exception] | None = None) -> None:
    try:
        await ours.send(host.manifest, *TASK)
    except (Unreachable, BadReply) as error:
        if ends is not None:
            ends.append(error)


async def until(true) -> None:
    end = time.monotonic() + SECONDS / 2  # not on the loop's clock, which a test may have stopped
    while not true():
        assert time.monotonic() < end, "it doesn't happen"
        await anyio.lowlevel.checkpoint()


class TestConnections:
    async def test_an_agent_that_uses_its_whole_share_does_not_block_another(self) -> None:
        async with hosts(2) as (busy, healthy), client() as ours, anyio.create_task_group() as group:
            for _ in range(110):
                group.start_soon(hold, ours, busy)
            await until(lambda: busy.connected == ALONE)
            with anyio.fail_after(SECONDS / 2):
                assert (await ours.discover(healthy.url)).id == ECHO_ID
            assert busy.connected == ALONE
            group.cancel_scope.cancel()

    async def test_many_full_agents_leave_connections_for_another(self) -> None:
        async with hosts(6) as (healthy, *busy), client() as ours, anyio.create_task_group() as group:
            for host in busy:
                for _ in range(60):
                    group.start_soon(hold, ours, host)
            await until(lambda: all(host.connected >= 30 for host in busy))
            with anyio.fail_after(SECONDS / 2):
                await ours.discover(healthy.url)
            group.cancel_scope.cancel()

    async def test_a_request_without_a_connection_is_reported_as_not_sent(self) -> None:
        ends: list[Exception] = []
        stop_time()  # so that all time out together: else the last may be given the connections of the first
        async with hosts(1) as (busy,), client(timeout=10.0) as ours, anyio.create_task_group() as group:
            for _ in range(ALONE + 10):
                group.start_soon(hold, ours, busy, ends)
            await until(lambda: busy.connected == ALONE)
            skip_time()
        sent = [error for error in ends if isinstance(error, Unreachable) and error.sent]
        unsent = [error for error in ends if isinstance(error, Unreachable) and not error.sent]
        assert (len(sent), len(unsent)) == (ALONE, 10)
        assert {type(error) for error in sent} == {TimedOut}
        assert all(error.crowded and not isinstance(error, TimedOut) for error in unsent)
        assert "too many requests to it are running" in str(unsent[0])

    async def test_a_redirected_request_waits_for_a_connection_within_the_same_timeout(self) -> None:
        ends: list[Unreachable] = []

        async def follow(number: int) -> None:
            with pytest.raises(Unreachable) as raised:
                await ours.get_document(f"{busy.url}/from/{number}")
            ends.append(raised.value)

        stop_time()
        async with hosts(1) as (busy,), client(timeout=10.0, redirects=1) as ours, anyio.create_task_group() as group:
            for number in range(ALONE + 10):
                group.start_soon(follow, number)
            await until(lambda: busy.connected == ALONE)
            busy.redirects.set()
            await until(lambda: busy.redirected == ALONE + 10)
            skip_time()
        assert [type(error) for error in ends].count(TimedOut) == ALONE
        assert sum(error.crowded for error in ends) == 10, "that they can't connect is no fault of the host's"

    async def test_waiting_for_a_connection_is_not_counted_as_the_hosts_failure(self) -> None:
        ends: list[Exception] = []
        async with hosts(1) as (busy,), client(breaker=BreakerPolicy(threshold=2)) as ours:
            await ours.discover(busy.url)
            async with anyio.create_task_group() as group:
                for _ in range(ALONE):
                    group.start_soon(hold, ours, busy, ends)
                await until(lambda: busy.connected == ALONE)
                other = busy.url.replace("127.0.0.1", "localhost")
                for _ in range(3):
                    with anyio.move_on_after(0.2):
                        await hold(ours, busy, ends)
                ours.forget(busy.url)
                with anyio.move_on_after(0.2):
                    await ours.discover(busy.url)
                assert (await ours.discover(other)).id == ECHO_ID, "another name has a share of its own"
                group.cancel_scope.cancel()
            assert (await ours.discover(busy.url)).id == ECHO_ID
        assert ends == []

    async def test_a_waiter_gets_the_next_free_connection(self) -> None:
        async with hosts(1) as (host,), client() as ours, anyio.create_task_group() as group:
            scopes = [anyio.CancelScope() for _ in range(ALONE)]

            async def held(scope: anyio.CancelScope) -> None:
                with scope:
                    await hold(ours, host)

            for scope in scopes:
                group.start_soon(held, scope)
            await until(lambda: host.connected == ALONE)
            found: list[object] = []

            async def discover() -> None:
                found.append(await ours.discover(host.url))

            group.start_soon(discover)
            await anyio.sleep(0.1)
            assert found == []
            scopes[7].cancel()
            await until(lambda: found)
            group.cancel_scope.cancel()


SLOW = """
import socket, sys, threading, time
import anyio

def found(host, *_, **__):
    if host.endswith(".slow"):
        time.sleep(600)
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

socket.getaddrinfo = found
from asap_adapters import AgentClient, HttpOptions, Unreachable

async def main():
    async with AgentClient("urn:asap:agent:me", http=HttpOptions(timeout=0.5)) as client:
        async def ask(host):
            try:
                await client.discover(f"https://{host}")
            except Unreachable as error:
                return f"{type(error).__name__} {error.sent} {error.crowded} {error}"
        async def tell(host):
            print(await ask(host))
        async with anyio.create_task_group() as group:
            for number in range(int(sys.argv[2])):
                group.start_soon(tell, f"n{number}.agent.slow")
        for _ in range(10):  # a busy machine may take longer than the time limit
            other = await ask("nothing.invalid")
            if "can't be resolved" in other:
                break
        print(other)
    print(threading.active_count(), "threads")

anyio.run(main, backend=sys.argv[1])
"""


class TestNames:
    def run(self, backend: str, number: int) -> list[str]:
        command = [sys.executable, "-c", SLOW, backend, str(number)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def test_a_slow_name_lookup_blocks_neither_the_loop_nor_the_exit(self, anyio_backend_name: str) -> None:
        said, other, _ = self.run(anyio_backend_name, 1)
        assert said.startswith("Unreachable False False")
        assert "can't connect within 0.5 s" in said
        assert "can't be resolved" in other

    def test_slow_name_lookups_have_a_bounded_number_of_threads_and_leave_some_to_others(
        self, anyio_backend_name: str
    ) -> None:
        *said, other, threads = self.run(anyio_backend_name, 60)
        assert sum(line.startswith("Unreachable False False") for line in said) == 10
        crowded = [line for line in said if line.startswith("Unreachable False True")]
        assert len(crowded) == 50
        assert "no connection became free within 0.5 s" in crowded[0]
        assert "can't be resolved" in other
        assert int(threads.split()[0]) < 25
