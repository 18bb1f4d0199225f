"""Tests that need trio itself: a decision is carried out before anything else runs."""

from typing import Any

import httpx
import pytest
import trio.testing
from attrs import frozen

from asap_adapters import HttpOptions
from asap_adapters.client.agent_client import AgentClient
from asap_adapters.driver import ProgramDriver
from asap_core.client.runtime import Place


@frozen
class Effect:
    """An effect of a table, for whoever has this place."""

    waiter: Place[Any]


@pytest.mark.trio
async def test_settling_a_driver_has_no_checkpoint() -> None:
    nothing = httpx.MockTransport(lambda _request: httpx.Response(404))
    driver = ProgramDriver(HttpOptions(transport=nothing), owner="Test()")
    runtime, place = driver.runtime, Place[Any]()
    with trio.testing.assert_no_checkpoints():
        runtime.give([Effect(place)])
        runtime.warn("asap.discovery", "a warning")
        driver.settle()
    assert place.ready


@pytest.mark.trio
async def test_reading_the_cache_has_no_checkpoint(counting) -> None:
    async with AgentClient(sender="urn:asap:agent:tester", http=HttpOptions(transport=counting())) as client:
        await client.discover("http://localhost")
        with trio.testing.assert_no_checkpoints():
            assert client.cached("http://localhost") is not None


@pytest.mark.trio
async def test_an_hour_of_the_trio_clock_makes_a_cached_document_stale(counting, autojump_clock) -> None:
    async with AgentClient(sender="urn:asap:agent:tester", http=HttpOptions(transport=counting())) as client:
        await client.discover("http://localhost")
        await trio.sleep(3600)
        assert client.cached("http://localhost") is None


@pytest.mark.trio
async def test_an_object_of_another_loop_raises_an_error(counting) -> None:
    async with AgentClient(sender="urn:asap:agent:tester", http=HttpOptions(transport=counting())) as client:
        await client.discover("http://localhost")

        async def elsewhere() -> None:
            client.cached("http://localhost")

        with pytest.raises(RuntimeError, match="another event loop"):
            await trio.to_thread.run_sync(lambda: trio.run(elsewhere))
