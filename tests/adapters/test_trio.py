"""Tests that need trio itself: a decision is carried out before anything else runs."""

from typing import Any

import anyio
import pytest
import trio.testing

from asap_adapters.client.agent_client import AgentClient
from asap_adapters.net.documents import _carry_out, _Waiter
from asap_core.client.document_cache import Deliver, DocumentCache, Lead
from asap_core.client.fetch_results import Fetched
from tests.moments import moment


@pytest.mark.trio
async def test_performing_effects_has_no_checkpoint() -> None:
    directory: DocumentCache[str, _Waiter] = DocumentCache()
    waiters = [_Waiter(woken=anyio.Event()) for _ in range(3)]
    now: Any = 0.0
    with trio.testing.assert_no_checkpoints():
        for waiter in waiters:
            _carry_out(directory.lookup("https://a.example", waiter, now=now))
        lead = waiters[0].effect
        assert isinstance(lead, Lead)
        _carry_out(directory.settle(lead.flight, Fetched("v"), at=moment(now, now)))
    assert all(isinstance(waiter.effect, Deliver) for waiter in waiters)


@pytest.mark.trio
async def test_reading_the_cache_has_no_checkpoint(counting) -> None:
    async with AgentClient(sender="urn:asap:agent:tester", transport=counting()) as client:
        await client.discover("http://localhost")
        with trio.testing.assert_no_checkpoints():
            assert client.cached("http://localhost") is not None


@pytest.mark.trio
async def test_an_hour_of_the_trio_clock_makes_a_cached_document_stale(counting, autojump_clock) -> None:
    async with AgentClient(sender="urn:asap:agent:tester", transport=counting()) as client:
        await client.discover("http://localhost")
        await trio.sleep(3600)
        assert client.cached("http://localhost") is None


@pytest.mark.trio
async def test_an_object_of_another_loop_raises_an_error(counting) -> None:
    async with AgentClient(sender="urn:asap:agent:tester", transport=counting()) as client:
        await client.discover("http://localhost")

        async def elsewhere() -> None:
            client.cached("http://localhost")

        with pytest.raises(RuntimeError, match="another event loop"):
            await trio.to_thread.run_sync(lambda: trio.run(elsewhere))
