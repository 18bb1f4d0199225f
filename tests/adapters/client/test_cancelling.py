"""Cancellation and concurrency: cancelled callers, deadlines, second loops, a thousand concurrent callers.

Whatever happens to one caller, the others are answered, and nothing is left behind.
"""

import asyncio
import functools
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import anyio
import httpx
import pytest

from asap_adapters.client.agent_client import AgentClient
from asap_core import BadReply, TimedOut
from asap_core.client.document_cache import DocumentCache
from asap_core.client.fetch_results import Source
from asap_core.server.wellknown import publish
from tests.clients import make_client

pytestmark = pytest.mark.anyio

BASE = "http://localhost"
MANIFEST = "/.well-known/asap/manifest.json"
HEALTH = b'{"status":"healthy","agent_id":"a","version":"1","uptime_seconds":1}'
Operation = Callable[[AgentClient], Coroutine[Any, Any, object]]


class Server:
    """Answers after a second, in three pieces, with this status and Cache-Control."""

    def __init__(self, manifest, *, seconds: float = 1.0, status: int = 200, control: str = "") -> None:
        self._document = publish(manifest())
        self._headers = {"cache-control": control}
        self.seconds = seconds
        self.status = status
        self.asked = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        await anyio.sleep(self.seconds)
        body = self._document if "manifest" in request.url.path else HEALTH
        return httpx.Response(self.status, headers=self._headers, stream=Pieces(body))


class Pieces(httpx.AsyncByteStream):
    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self):
        third = len(self._body) // 3
        for piece in (self._body[:third], self._body[third : 2 * third], self._body[2 * third :]):
            await anyio.lowlevel.checkpoint()
            yield piece

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()


@pytest.fixture
def server(manifest):
    return lambda **options: Server(manifest, **options)


def client_of(server: Server, **options) -> AgentClient:
    return make_client(sender="urn:asap:agent:tester", transport=httpx.MockTransport(server), **options)


def waiting(client: AgentClient) -> int:
    finder = client._client._discovery
    return sum(
        len(documents._cache._purposes) + len(documents._cache._flights) + documents.waiting
        for documents in (finder._manifests, finder._registries, finder._reports)
    )


def this_task() -> "asyncio.Task[Any]":
    task = asyncio.current_task()
    assert task is not None
    return task


class Interrupted:
    """Runs a coroutine and cancels it at its `at`th await: the task is about to be put aside. Counts them."""

    def __init__(self, at: int | None, *, natively: bool = False) -> None:
        self._at = at
        self._natively = natively
        self.awaits = 0
        self.scope = anyio.CancelScope()

    async def run(self, work: Coroutine[Any, Any, object]) -> bool:
        """Whether it came to its end."""
        try:
            with self.scope:
                await self._stepped(work)
                return True
        except asyncio.CancelledError:
            this_task().uncancel()
        return False

    def _cancel(self) -> None:
        if self._natively:
            this_task().cancel()
        else:
            self.scope.cancel()

    @types.coroutine
    def _stepped(self, work: Coroutine[Any, Any, object]) -> Generator[Any, Any, None]:
        step: Callable[[], Any] = functools.partial(work.send, None)
        while True:
            try:
                trap = step()
            except StopIteration:
                return
            self.awaits += 1
            if self.awaits == self._at:
                self._cancel()
            try:
                step = functools.partial(work.send, (yield trap))
            except BaseException as error:  # noqa: BLE001 - it's the work's to see
                step = functools.partial(work.throw, error)


async def discover(client: AgentClient) -> object:
    return await client.discover(BASE)


async def refresh(client: AgentClient) -> object:
    return await client._driver.run(client._client._discovery._manifests.find(BASE + MANIFEST, cool_down=0.0))


async def health(client: AgentClient) -> object:
    return await client.health_check(BASE)


async def stale(client: AgentClient) -> object:
    """Discover a stale cached document that may be used while it's revalidated."""
    return await client.discover(BASE)


OTHERS = 3


async def play(
    server: Server,
    operation: Operation,
    *,
    place: int,
    at: int | None,
    leaves: int | None = None,
    natively: bool = False,
) -> int:
    """Let callers come in turn; cancel the one at this place at its `at`th await. How many awaits it had.

    `leaves` is the place of another one who leaves after half a second.
    """
    answers: list[object] = []
    interrupted = Interrupted(at, natively=natively)
    async with client_of(server) as client:
        if operation is stale:
            await client.discover(BASE)
        ended = False

        async def first() -> None:
            nonlocal ended
            ended = await interrupted.run(operation(client))

        async def other() -> None:
            answers.append(await operation(client))

        async def leaving() -> None:
            with anyio.move_on_after(0.5):
                await operation(client)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                for number in range(OTHERS + 1):
                    group.start_soon(first if number == place else leaving if number == leaves else other)
                    await anyio.wait_all_tasks_blocked()
        assert ended is (at is None), "it wasn't cancelled where it should be"
        assert len(answers) == OTHERS - (leaves is not None), "somebody wasn't answered"
        assert waiting(client) == 0, "something is left behind"
    return interrupted.awaits


class TestCancelledAtEachAwait:
    @pytest.mark.parametrize("natively", [False, True], ids=["by a scope", "by task.cancel()"])
    @pytest.mark.parametrize("operation", [discover, refresh, health, stale])
    @pytest.mark.parametrize(
        ("place", "leaves"), [(0, None), (2, None), (1, 0)], ids=["who leads", "who waits", "who takes over"]
    )
    async def test_the_other_callers_are_answered_and_nothing_is_left(
        self,
        server,
        operation: Operation,
        *,
        place: int,
        leaves: int | None,
        natively: bool,
        anyio_backend_name: str,
    ) -> None:
        if natively and anyio_backend_name == "trio":
            pytest.skip("cannot run anywhere here: trio has no other cancellation than its scopes")
        # Each look-up is a fetch; who finds a stale one while somebody asks again has it without waiting.
        options = {
            "seconds": 0.75,
            "control": "max-age=0, stale-while-revalidate=60" if operation is stale else "max-age=0",
        }
        awaits = await play(server(**options), operation, place=place, at=None, leaves=leaves)
        assert awaits > 0 or (operation is stale and place > 0)
        for at in range(1, awaits + 1):
            one = server(**options)
            await play(one, operation, place=place, at=at, leaves=leaves, natively=natively)
            # The first's work is lost at most once for each who led.
            assert one.asked <= 2 + (leaves is not None) + (operation is stale)

    async def test_the_leader_awaits_each_step_of_the_fetch(self, server) -> None:
        """So that cancelling at each of them is more than cancelling at one."""
        assert await play(server(), discover, place=0, at=None) >= 5

    @pytest.mark.planted
    @pytest.mark.parametrize("place", [0, 2], ids=["who leads", "who waits"])
    async def test_a_leader_that_leaves_silently_is_caught(
        self, server, monkeypatch: pytest.MonkeyPatch, place: int
    ) -> None:
        monkeypatch.setattr(DocumentCache, "abandon", lambda _self, _waiter: ())
        with pytest.raises((AssertionError, BaseExceptionGroup, TimeoutError)):
            await play(server(control="max-age=0"), discover, place=place, at=2)


class TestDeadlines:
    async def test_each_caller_has_a_deadline_of_its_own(self, server) -> None:
        ends: list[tuple[float, bool]] = []
        async with client_of(server(seconds=5)) as client, anyio.create_task_group() as group:

            async def wait(seconds: float) -> None:
                with anyio.move_on_after(seconds) as scope:
                    await client.discover(BASE)
                ends.append((anyio.current_time() - start, scope.cancelled_caught))

            start = anyio.current_time()
            for seconds in (9, 1, 3, 7):
                group.start_soon(wait, seconds)
                # The first leads; trio starts tasks in any order.
                await anyio.wait_all_tasks_blocked()
        assert [(round(after), late) for after, late in ends] == [(1, True), (3, True), (5, False), (5, False)]

    async def test_a_leader_at_its_deadline_loses_its_work_once(self, server) -> None:
        one = server(seconds=5)
        async with client_of(one) as client, anyio.create_task_group() as group:

            async def hurry() -> None:
                with anyio.move_on_after(2):
                    await client.discover(BASE)

            group.start_soon(hurry)
            await anyio.wait_all_tasks_blocked()
            await client.discover(BASE)
        assert one.asked == 2


class TestAnotherLoop:
    @pytest.mark.parametrize("backend", ["trio", "asyncio"])
    async def test_another_loop_gets_an_error_at_once(self, server, backend: str) -> None:
        async with client_of(server(seconds=0)) as client:
            found = await client.discover(BASE)
            for operation in (discover, refresh, health):

                def elsewhere(operation: Operation = operation) -> None:
                    anyio.run(operation, client, backend=backend)

                with pytest.raises(RuntimeError, match="belongs to another event loop"):
                    await anyio.to_thread.run_sync(elsewhere)
            assert waiting(client) == 0
            assert await client.discover(BASE) is found

    async def test_another_loop_gets_an_error_while_this_one_waits(self, server) -> None:
        async with client_of(server()) as client, anyio.create_task_group() as group:
            group.start_soon(discover, client)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(RuntimeError, match="belongs to another event loop"):
                await anyio.to_thread.run_sync(lambda: anyio.run(discover, client))

    async def test_a_thread_without_a_loop_gets_an_error(self, server) -> None:
        async with client_of(server()) as client:
            await client.discover(BASE)
            with pytest.raises(RuntimeError, match="event loop"):
                await anyio.to_thread.run_sync(client.cached, BASE)


class TestAThousandCallers:
    async def found(self, server: Server, **options) -> tuple[float, list[object]]:
        """How long it took until all were answered, and what came of each."""
        ends: list[object] = []
        async with client_of(server, **options) as client:

            async def one() -> None:
                try:
                    ends.append(await client.discover(BASE))
                except (TimedOut, BadReply) as error:
                    ends.append(error)

            begun = anyio.current_time()
            async with anyio.create_task_group() as group:
                for _ in range(1_000):
                    group.start_soon(one)
            took = anyio.current_time() - begun
            assert waiting(client) == 0
        assert len(ends) == 1_000
        return took, ends

    async def test_a_thousand_callers_of_a_good_host_make_one_request(self, server) -> None:
        one = server()
        took, ends = await self.found(one)
        assert took == pytest.approx(1.0)
        assert (one.asked, len(set(map(id, ends)))) == (1, 1)

    async def test_a_thousand_callers_of_a_hanging_host_make_one_request_and_time_out_together(self, server) -> None:
        one = server(seconds=1_000)
        took, ends = await self.found(one, timeout=0.5)
        assert one.asked == 1
        assert took <= 0.6
        assert {type(end) for end in ends} == {TimedOut}

    async def test_a_thousand_callers_of_a_failing_host_make_one_request(self, server) -> None:
        one = server(status=500)
        took, ends = await self.found(one)
        assert took == pytest.approx(1.0)
        assert one.asked == 1
        assert {type(end) for end in ends} == {BadReply}


async def test_a_cached_manifest_serves_one_day_without_its_server(server) -> None:
    one = server()
    async with client_of(one) as client:
        await client.discover(BASE)
        one.status = 503
        await anyio.sleep(86_400)
        assert (await client.look_up(BASE)).source is Source.STALE_ERROR
        await anyio.sleep(301)
        with pytest.raises(BadReply, match=r"the cached copy is 867\d\d s old, too old to use"):
            await client.discover(BASE)
