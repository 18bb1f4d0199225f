"""Documents by URL on virtual time: fetched once for all who ask, refreshed for who misses something in them."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest

from asap_adapters.clock import LoopClock
from asap_adapters.documents import Documents, Whole
from asap_adapters.web import Web
from asap_core import BadReply
from asap_core.client.directory import Source
from asap_core.client.outbound import OutboundPolicy

pytestmark = pytest.mark.anyio

URL = "http://localhost/keys.json"
Open = Callable[..., AbstractAsyncContextManager["Keys"]]


class Keys:
    """Key sets of a server that has a newer one each time it's asked, and says so with this status."""

    def __init__(self, **options: Any) -> None:
        self.asked = 0
        self.status = 200
        self.web = Web(
            token=None,
            auth={},
            policy=OutboundPolicy(),
            timeout=10.0,
            trust_env=False,
            compress=False,
            verify=True,
            transport=httpx.MockTransport(self._answer),
        )
        self.documents: Documents[bytes] = Documents(
            self.web,
            LoopClock(),
            **{"reader": lambda: Whole(bytes), "limit": 100, "ttl": lambda _: None, "policy": None, **options},
        )

    async def _answer(self, _request: httpx.Request) -> httpx.Response:
        self.asked += 1
        content = b"%d" % self.asked
        await anyio.sleep(1)
        return httpx.Response(self.status, content=content)


@pytest.fixture
def keys() -> Open:
    @asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[Keys]:
        server = Keys(**options)
        server.web.open()
        try:
            yield server
        finally:
            await server.web.aclose()

    return opened


class TestRefreshing:
    async def test_many_who_miss_a_key_ask_for_the_set_once(self, keys: Open) -> None:
        async with keys() as server:
            assert (await server.documents.find(URL)).document == b"1"
            await anyio.sleep(60)
            found = []

            async def miss() -> None:
                found.append((await server.documents.refresh(URL, cool_down=60)).document)

            async with anyio.create_task_group() as group:
                for _ in range(100):
                    group.start_soon(miss)
        assert (found, server.asked) == ([b"2"] * 100, 2)

    async def test_and_again_not_before_the_cool_down_is_over(self, keys: Open) -> None:
        async with keys() as server:
            sources = []
            for pause in (0, 59, 1, 59, 1):
                await anyio.sleep(pause)
                sources.append((await server.documents.refresh(URL, cool_down=60)).source)
        assert sources == [Source.FETCHED, Source.CACHED, Source.FETCHED, Source.CACHED, Source.FETCHED]

    async def test_what_is_kept_outlives_a_refresh_that_fails(self, keys: Open) -> None:
        async with keys() as server:
            await server.documents.find(URL)
            await anyio.sleep(60)
            server.status = 500
            assert (await server.documents.refresh(URL, cool_down=60)).source is Source.CACHED
            assert server.asked == 2


class TestUnkept:
    async def test_any_status_that_is_an_answer_is_one(self, keys: Open) -> None:
        async with keys(keep=False, statuses={200, 503}) as server:
            for number, status in enumerate((200, 503), start=1):
                server.status = status
                assert (await server.documents.find(URL)).document == b"%d" % number
            assert server.documents.cached(URL) is None
            server.status = 404
            with pytest.raises(BadReply, match="with HTTP 200 or 503"):
                await server.documents.find(URL)
