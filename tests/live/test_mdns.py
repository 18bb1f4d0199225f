"""mDNS for real, on loopback: agents come, change and go, and nothing is left behind."""

import socket
import subprocess
import sys
import threading
import time
from typing import Any

import anyio
import httpx
import pytest

from asap_adapters import AgentClient, Unreachable
from asap_adapters.cli.serve import echo_manifest
from asap_adapters.mdns import Advertiser, browse
from asap_core.dnssd import Added, Removed
from asap_core.server.wellknown import publish

pytestmark = [pytest.mark.anyio, pytest.mark.live]

LOOPBACK = ["127.0.0.1"]


def advertiser(port: Any = 18000, name: Any = "Live Agent", **changes: Any) -> Any:
    fields = {
        "agent_id": "urn:asap:agent:live",
        "name": name,
        "version": "1.2.3",
        "skills": ["echo", "sum"],
        "manifest_url": f"http://127.0.0.1:{port}/.well-known/asap/manifest.json",
        "host": "127.0.0.1",
        "port": port,
    }
    return Advertiser(**{**fields, **changes})


async def first(events: Any, kind: Any, port: Any) -> Any:
    async for event in events:
        if isinstance(event, kind) and event.announcement.port == port:
            return event.announcement
    raise AssertionError


async def test_an_agent_comes_with_all_it_says_and_goes_with_a_goodbye() -> None:
    with anyio.fail_after(20):
        async with browse(interfaces=LOOPBACK) as events:
            async with advertiser(18001) as announced:
                found = await first(events, Added, 18001)
                assert found.instance == announced.instance
                assert found.agent_id == "urn:asap:agent:live"
                assert (found.version, found.skills) == ("1.2.3", ("echo", "sum"))
                assert found.manifest_url.endswith(":18001/.well-known/asap/manifest.json")
                assert found.addresses == ("127.0.0.1",)
            gone = await first(events, Removed, 18001)
            assert gone == found


async def test_two_of_one_name_get_names_of_their_own() -> None:
    with anyio.fail_after(20):
        async with advertiser(18002, name="Twin") as one, advertiser(18003, name="Twin") as other:
            assert one.instance != other.instance


def test_the_constructor_does_no_io(monkeypatch: Any) -> None:
    monkeypatch.setattr(socket, "socket", None)
    monkeypatch.setattr(threading, "Thread", None)
    assert advertiser().instance is None


async def test_a_browser_that_is_cancelled_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    with anyio.move_on_after(0.3):
        async with browse(interfaces=LOOPBACK) as events:
            async for _ in events:
                pass
    left = {thread for thread in threading.enumerate() if "mdns" in thread.name or "zeroconf" in thread.name}
    assert left - before == set()


async def test_starting_and_stopping_does_not_hold_up_the_loop() -> None:
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            began = time.monotonic()
            await anyio.sleep(0.005)
            longest = max(longest, time.monotonic() - began - 0.005)

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        async with browse(interfaces=LOOPBACK), advertiser(18004):
            pass
        group.cancel_scope.cancel()
    # 10 ms on a quiet machine; five times that where others share its cores.
    assert longest < 0.05


async def test_another_process_is_seen() -> None:
    script = (
        "import anyio\n"
        "from asap_adapters.mdns import Advertiser\n"
        "async def main():\n"
        "    async with Advertiser(agent_id='urn:asap:agent:other', name='Other', version='1', skills=[],\n"
        "        manifest_url='http://127.0.0.1:18005/m.json', host='127.0.0.1', port=18005):\n"
        "        print('up', flush=True)\n"
        "        await anyio.to_thread.run_sync(input)\n"
        "anyio.run(main)\n"
    )
    process = subprocess.Popen(  # noqa: ASYNC220 - starts and returns
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        with anyio.fail_after(30):
            async with browse(interfaces=LOOPBACK) as events:
                assert (await first(events, Added, 18005)).agent_id == "urn:asap:agent:other"
    finally:
        process.communicate(b"\n", timeout=30)


async def test_an_agent_is_resolved_by_its_name_and_verified() -> None:
    manifest = echo_manifest("urn:asap:agent:live", "http://127.0.0.1:1")
    requests: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        requests.append(str(request.url))
        return httpx.Response(200, content=publish(manifest))

    transport = httpx.MockTransport(handle)
    async with advertiser(18006), AgentClient(sender="urn:asap:agent:me", transport=transport) as client:
        found = await client.resolve("urn:asap:agent:live", wait=10)
        assert found.id == "urn:asap:agent:live"
        with pytest.raises(Unreachable, match="not announced within"):
            await client.resolve("urn:asap:agent:nobody", wait=0.5)
    assert requests == ["http://127.0.0.1:18006/.well-known/asap/manifest.json"]


async def test_somebody_else_under_an_announced_name_is_not_taken() -> None:
    other = publish(echo_manifest("urn:asap:agent:mallory", "http://127.0.0.1:1"))
    transport = httpx.MockTransport(lambda _request: httpx.Response(200, content=other))
    async with advertiser(18007), AgentClient(sender="urn:asap:agent:me", transport=transport) as client:
        with pytest.raises(Unreachable, match="is urn:asap:agent:mallory, not urn:asap:agent:live"):
            await client.resolve("urn:asap:agent:live", wait=2)
