"""Cached documents on both loops: they take a turn, can be cancelled, and are kept fresh by a task."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import httpx
import pytest

from asap_adapters.net.outbound_transport import HttpOptions
from asap_core import NotAllowed
from asap_core.client.body_reader import WholeParser
from asap_core.client.documents import Documents, LocatedDocument
from tests.clients import Wired

pytestmark = pytest.mark.anyio

BASE = "http://localhost"
URL = f"{BASE}/keys.json"
Open = Callable[..., AbstractAsyncContextManager["Keys"]]


class Keys:
    """A server's key set, kept by a client."""

    def __init__(self) -> None:
        self.http = Wired(
            HttpOptions(transport=httpx.MockTransport(lambda _: httpx.Response(200, content=b"1"))), timeout=10.0
        )
        self.documents: Documents[bytes] = Documents(
            self.http.driver.runtime, self.http.requests, parser=lambda: WholeParser(bytes), limit=100, policy=None
        )

    async def find(self) -> LocatedDocument[bytes]:
        return await self.http.driver.run(self.documents.find(URL))


@pytest.fixture
def keys() -> Open:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Keys]:
        server = Keys()
        server.http.driver.open()
        try:
            yield server
        finally:
            await server.http.aclose()

    return opened


class TestKeepingFresh:
    async def test_a_manifest_is_always_cached_and_requested_before_it_expires(self, counting, client_of) -> None:
        transport = counting(seconds=1)
        async with client_of(transport) as client, anyio.create_task_group() as group:
            group.start_soon(client.keep_fresh, [BASE])
            await anyio.sleep(2)
            for _ in range(3_600):
                assert client.cached(BASE) is not None
                await anyio.sleep(1)
            group.cancel_scope.cancel()
        # 300 s of which nine tenths, or a little less, are waited.
        assert 3_600 / 300 < len(transport.paths) <= 3_600 / 240 + 1

    async def test_a_url_that_is_not_allowed_is_refused_at_once(self, counting, client_of) -> None:
        transport = counting()
        async with client_of(transport) as client:
            with pytest.raises(NotAllowed):
                await client.keep_fresh([BASE, "http://agent.example"])
            with pytest.raises(ValueError, match="at most 1000 agents"):
                await client.keep_fresh([BASE] * 1_001)
        assert transport.paths == []

    async def test_the_origin_of_a_manifest_is_known(self, counting, client_of) -> None:
        async with client_of(counting()) as client, anyio.create_task_group() as group:
            group.start_soon(client.keep_fresh, [BASE])
            await anyio.sleep(1)
            group.cancel_scope.cancel()
            assert client._client._discovery.origin(client.cached(BASE)) == "http://localhost:80"


class TestCachedDocuments:
    async def test_a_caller_that_finds_a_cached_document_lets_other_tasks_run(self, keys: Open) -> None:
        async with keys() as server:
            await server.find()
            turns: list[str] = []

            async def other() -> None:
                turns.append("other")

            async with anyio.create_task_group() as group:
                group.start_soon(other)
                for _ in range(3):
                    await server.find()
                turns.append("finder")
        assert turns == ["other", "finder"]

    async def test_a_caller_that_finds_a_cached_document_can_be_cancelled(self, keys: Open) -> None:
        async with keys() as server:
            await server.find()
            with anyio.CancelScope() as scope:
                scope.cancel()
                await server.find()
            assert scope.cancelled_caught

    async def test_a_closed_driver_raises_an_error(self, keys: Open) -> None:
        async with keys() as server:
            await server.find()
            await server.http.aclose()
            with pytest.raises(RuntimeError, match="isn't open"):
                await server.find()
