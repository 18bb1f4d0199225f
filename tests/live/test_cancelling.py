"""The client cancelled at each await and at random moments, over real sockets: no connection is lost, none stays open.

asyncio's own cancellation (`task.cancel()`, `asyncio.wait_for`) isn't anyio's: it arrives once, at whatever is awaited
just then, and goes through shields.
"""

import asyncio
import functools
import os
import random
import ssl
import stat
import time
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from asap_adapters import TLS, AgentClient, HttpOptions, serve
from asap_adapters.cli.echo_agent import ECHO_ID, echo_manifest
from asap_adapters.server.listener import listen
from asap_core import Agent, Policy, StartPolicy

pytestmark = [pytest.mark.anyio, pytest.mark.live]

# Nothing here takes that long, unless it hangs.
SECONDS = 60.0

TASK = ("task.request", {"skill_id": "echo", "input": {}})
Work = Callable[[AgentClient, str], Coroutine[Any, Any, object]]
Open = Callable[[], AgentClient]


async def echo(request, _context):
    await anyio.sleep(0.0005)
    return request.input


@asynccontextmanager
async def served(tls: tuple[str, str] | None) -> AsyncIterator[tuple[str, Open]]:
    """An agent on this machine, and what makes clients for it; at the end, no socket is left."""
    before = sockets()
    bound = await listen("127.0.0.1", 0, tls=tls is not None)
    base = bound.url.replace("127.0.0.1", "localhost")
    agent = Agent(
        echo_manifest(ECHO_ID, base), policy=Policy(peer_limits=(), start=StartPolicy.OPEN, connections_per_peer=1_000)
    )
    files = None if tls is None else TLS(*tls)
    verify = ssl.create_default_context(cafile=None if tls is None else tls[0])
    async with anyio.create_task_group() as group:
        group.start_soon(functools.partial(serve, agent, {"echo": echo}, at=bound, tls=files))
        yield base, lambda: AgentClient(sender="urn:asap:agent:me", http=HttpOptions(verify=verify, timeout=SECONDS))
        group.cancel_scope.cancel()
    with anyio.fail_after(SECONDS):
        while sockets() > before:  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(0.01)


def sockets() -> int:
    found = 0
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 - numbers
        try:
            found += stat.S_ISSOCK(os.fstat(int(name)).st_mode)
        except OSError:
            continue
    return found


async def discover(client: AgentClient, base: str) -> object:
    client.forget(base)
    return await client.discover(base)


async def send(client: AgentClient, base: str) -> object:
    return await client.send(await client.discover(base), *TASK)


class Interrupted:
    """Steps a coroutine. At its `at`th await it's cancelled: while it waits, or just as what it waits for has come."""

    def __init__(self, at: int, *, late: bool, natively: bool) -> None:
        self._at = at
        self._late = late
        self._natively = natively
        self._scope = anyio.CancelScope()
        self._task = asyncio.current_task() if natively else None
        self.awaits = 0

    async def run(self, work: Coroutine[Any, Any, object]) -> None:
        try:
            with self._scope:
                await self._stepped(work)
        except asyncio.CancelledError:
            assert self._task is not None
            self._task.uncancel()

    def _cancel(self) -> None:
        if self._task is None:
            self._scope.cancel()
        else:
            self._task.cancel()

    @types.coroutine
    def _stepped(self, work: Coroutine[Any, Any, object]) -> Generator[Any, Any, None]:
        step: Callable[[], Any] = functools.partial(work.send, None)
        while True:
            try:
                trap = step()
            except StopIteration:
                return
            self.awaits += 1
            here = self.awaits == self._at
            if here and self._late and self._natively and asyncio.isfuture(trap):
                # Before the task itself is woken: what it waits for is there, and it never sees it.
                trap.add_done_callback(lambda _: self._cancel())
            elif here and not (self._late and not self._natively):
                self._cancel()
            try:
                came = yield trap
                step = functools.partial(work.send, came)
            except BaseException as error:  # noqa: BLE001 - it's the work's to see
                step = functools.partial(work.throw, error)
            if here and self._late and not self._natively:
                self._cancel()


WAYS = pytest.mark.parametrize("way", ["task.cancel()", "scope"])


@pytest.fixture
def natively(way: str, anyio_backend_name: str) -> bool:
    if way == "scope":
        return False
    if anyio_backend_name == "trio":
        pytest.skip("cannot run anywhere here: trio has no other cancellation than its scopes")
    return True


@pytest.fixture
def few_places(monkeypatch) -> None:
    """One origin may have two connections: a third that's lost is missed at once."""
    monkeypatch.setattr("asap_adapters.net.outbound_transport.PLACES", 10)


@WAYS
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("late", [False, True], ids=["while it waits", "as it comes"])
@pytest.mark.parametrize("work", [discover, send])
@pytest.mark.usefixtures("few_places")
async def test_a_client_cancelled_at_each_await_stays_usable(
    certificate: tuple[str, str], work: Work, encrypted: bool, late: bool, natively: bool
) -> None:
    at, ended = 0, False
    async with served(certificate if encrypted else None) as (base, made):
        while not ended:
            at += 1
            async with made() as client:
                for warm in (False, True, True):
                    if warm:
                        await work(client, base)
                    interrupted = Interrupted(at, late=late, natively=natively)
                    await interrupted.run(work(client, base))
                    ended = ended or (interrupted.awaits < at and not warm)
                with anyio.fail_after(SECONDS):
                    async with anyio.create_task_group() as group:
                        for _ in range(4):
                            group.start_soon(work, client, base)
    assert at > 5


@WAYS
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
@pytest.mark.usefixtures("few_places")
async def test_a_client_cancelled_at_random_moments_stays_usable(
    certificate: tuple[str, str], encrypted: bool, natively: bool
) -> None:
    chance = random.Random(11)
    async with served(certificate if encrypted else None) as (base, made), made() as client:
        await send(client, base)
        began = time.monotonic()
        for _ in range(10):
            await send(client, base)
        usual = (time.monotonic() - began) / 10
        cancelled = 0
        while cancelled < 100:
            work = chance.choice((discover, send))
            seconds = chance.random() * 1.5 * usual
            try:
                if natively:
                    await asyncio.wait_for(work(client, base), seconds)
                else:
                    with anyio.fail_after(seconds):
                        await work(client, base)
            except TimeoutError:
                cancelled += 1
        with anyio.fail_after(SECONDS):
            async with anyio.create_task_group() as group:
                for _ in range(50):
                    group.start_soon(send, client, base)
