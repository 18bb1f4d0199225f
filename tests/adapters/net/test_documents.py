"""Documents by URL on virtual time: fetched once for all who ask, refreshed for who misses something in them."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import httpx
import pytest

from asap_core import BadReply, NotAllowed
from asap_core.client.body_reader import WholeParser
from asap_core.client.documents import Documents, LocatedDocument
from asap_core.client.fetch_results import Source
from asap_core.errors import Advice
from tests.clients import Wired

pytestmark = pytest.mark.anyio

BASE = "http://localhost"
URL = f"{BASE}/keys.json"
Open = Callable[..., AbstractAsyncContextManager["Keys"]]


class Keys:
    """Key sets of a server that has a newer one each time it's asked, and says so with this status."""

    def __init__(self, **options) -> None:
        self.asked = 0
        self.status = 200
        self.http = Wired(lambda: httpx.MockTransport(self._answer), timeout=10.0)
        self.documents: Documents[bytes] = Documents(
            self.http.driver.runtime,
            self.http.requests,
            **{"parser": lambda: WholeParser(bytes), "limit": 100, "ttl": lambda _: None, "policy": None, **options},
        )

    async def find(self, url: str = URL) -> LocatedDocument[bytes]:
        return await self.http.driver.run(self.documents.find(url))

    async def refresh(self, url: str = URL, cool_down: float = 60) -> LocatedDocument[bytes]:
        return await self.http.driver.run(self.documents.find(url, cool_down=cool_down))

    async def _answer(self, _request: httpx.Request) -> httpx.Response:
        self.asked += 1
        content = b"%d" % self.asked
        await anyio.sleep(1)
        return httpx.Response(self.status, content=content)


@pytest.fixture
def keys() -> Open:
    @asynccontextmanager
    async def opened(**options) -> AsyncIterator[Keys]:
        server = Keys(**options)
        server.http.driver.open()
        try:
            yield server
        finally:
            await server.http.aclose()

    return opened


class TestRefreshing:
    async def test_many_who_miss_a_key_ask_for_the_set_once(self, keys: Open) -> None:
        async with keys() as server:
            assert (await server.find(URL)).document == b"1"
            await anyio.sleep(60)
            found = []

            async def miss() -> None:
                found.append((await server.refresh(URL, cool_down=60)).document)

            async with anyio.create_task_group() as group:
                for _ in range(100):
                    group.start_soon(miss)
        assert (found, server.asked) == ([b"2"] * 100, 2)

    async def test_and_again_not_before_the_cool_down_is_over(self, keys: Open) -> None:
        async with keys() as server:
            sources = []
            for pause in (0, 59, 1, 59, 1):
                await anyio.sleep(pause)
                sources.append((await server.refresh(URL, cool_down=60)).source)
        assert sources == [Source.FETCHED, Source.CACHED, Source.FETCHED, Source.CACHED, Source.FETCHED]

    async def test_what_is_kept_outlives_a_refresh_that_fails(self, keys: Open) -> None:
        async with keys() as server:
            await server.find(URL)
            await anyio.sleep(60)
            server.status = 500
            assert (await server.refresh(URL, cool_down=60)).source is Source.CACHED
            assert server.asked == 2


class TestUnkept:
    async def test_any_status_that_is_an_answer_is_one(self, keys: Open) -> None:
        async with keys(keep=False, statuses={200, 503}) as server:
            for number, status in enumerate((200, 503), start=1):
                server.status = status
                assert (await server.find(URL)).document == b"%d" % number
            assert server.documents.cached(URL) is None
            server.status = 404
            with pytest.raises(BadReply, match="with HTTP 200 or 503"):
                await server.find(URL)


class TestKeepingFresh:
    async def test_what_is_kept_fresh_is_always_at_hand_and_asked_for_ahead_of_its_time(
        self, counting, client_of
    ) -> None:
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

    async def test_one_that_fails_is_tried_again_and_keeps_nobody_waiting(
        self, counting, client_of, caplog: pytest.LogCaptureFixture
    ) -> None:
        transport = counting()
        transport.fail_with = httpx.ConnectError("refused")
        async with client_of(transport) as client, anyio.create_task_group() as group:
            group.start_soon(client.keep_fresh, [BASE, "http://127.0.0.1:9999"])
            await anyio.sleep(60)
            assert 4 <= len(transport.paths) <= 12
            assert "can't connect: refused; not asked again for" in caplog.text
            transport.fail_with = None
            await anyio.sleep(60)
            assert client.cached(BASE) is not None
            group.cancel_scope.cancel()

    async def test_one_that_lets_nothing_be_kept_is_asked_each_ten_seconds(self, keys: Open) -> None:
        async with keys(keep=False) as server, anyio.create_task_group() as group:
            group.start_soon(server.http.driver.run, server.documents.keep_fresh(URL))
            await anyio.sleep(100)
            group.cancel_scope.cancel()
        assert server.asked == 10

    async def test_what_may_not_be_asked_is_said_at_once(self, counting, client_of) -> None:
        transport = counting()
        async with client_of(transport) as client:
            with pytest.raises(NotAllowed):
                await client.keep_fresh([BASE, "http://agent.example"])
            with pytest.raises(ValueError, match="at most 1000 agents"):
                await client.keep_fresh([BASE] * 1_001)
        assert transport.paths == []

    async def test_what_it_fetched_is_known_to_be_from_there(self, counting, client_of) -> None:
        async with client_of(counting()) as client, anyio.create_task_group() as group:
            group.start_soon(client.keep_fresh, [BASE])
            await anyio.sleep(1)
            group.cancel_scope.cancel()
            assert client._client._discovery.origin(client.cached(BASE)) == "http://localhost:80"


class TestJudging:
    async def test_a_url_in_use_is_judged_again_before_it_is_asked(
        self, keys: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with keys() as server:
            await server.find(URL)
            refused = NotAllowed(URL, "no longer", Advice("ask somebody else"))

            def judge(_url: str) -> None:
                raise refused

            monkeypatch.setattr(server.documents, "_judge", judge)
            assert (await server.find(URL)).source is Source.CACHED
            await anyio.sleep(300)
            with pytest.raises(NotAllowed, match="no longer"):
                await server.find(URL)
            assert server.asked == 1


class TestAtHand:
    async def test_a_caller_who_only_finds_what_is_kept_lets_others_run(self, keys: Open) -> None:
        async with keys() as server:
            await server.find(URL)
            turns: list[str] = []

            async def other() -> None:
                turns.append("other")

            async with anyio.create_task_group() as group:
                group.start_soon(other)
                for _ in range(3):
                    await server.find(URL)
                turns.append("finder")
        assert turns == ["other", "finder"]

    async def test_and_can_be_cancelled(self, keys: Open) -> None:
        async with keys() as server:
            await server.find(URL)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await server.find(URL)
            assert scope.cancelled_caught

    async def test_once_closed_nothing_is_found(self, keys: Open) -> None:
        async with keys() as server:
            await server.find(URL)
            await server.http.aclose()
            with pytest.raises(RuntimeError, match="isn't open"):
                await server.find(URL)
