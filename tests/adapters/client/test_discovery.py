"""Finding agents on both loops: cancelling, large registries, files, real keys, and what is announced on a link."""

import gzip
import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from attrs import evolve

from asap_adapters import HttpOptions
from asap_adapters.auth.signing_key import PrivateKey
from asap_adapters.client.agent_client import AgentClient
from asap_adapters.driver import ProgramDriver
from asap_adapters.mdns import local_network
from asap_core import (
    BadReply,
    Endpoints,
    InvalidDocument,
    NotAllowed,
    Unverified,
    to_json,
)
from asap_core.client.programs import LocalNetwork, Next, Program
from asap_core.client.search import Resolved, Unresolved
from asap_core.mdns.dnssd import Added, Announcement, Event
from asap_core.wire.signing import sign
from tests.clients import make_client

pytestmark = pytest.mark.anyio

URN = "urn:asap:agent:echo-agent"
MANIFEST = "/.well-known/asap/manifest.json"


def registry(*urls: str, urn: str = URN) -> dict[str, Any]:
    entry = {"id": urn, "name": "E", "description": "", "asap_version": "0.1", "skills": ["echo"]}
    agents = [{**entry, "endpoints": {"manifest": url}} for url in urls]
    return {"version": "1", "updated_at": "2026-01-01T00:00:00Z", "agents": agents}


@pytest.fixture
def world(manifest):
    """The document at each URL."""
    return {"https://a.example/m": to_json(manifest())}


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def client_in(world, asked):
    async def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        found = world.get(str(request.url))
        return httpx.Response(404) if found is None else httpx.Response(200, json=found)

    def make(**options) -> AgentClient:
        return make_client(transport=httpx.MockTransport(answer), **options)

    return make


def announcement(urn: str | None, url: str) -> Announcement:
    host = url.split("/")[2]
    return Announcement(
        instance=url,
        agent_id=urn,
        version="",
        skills=None,
        manifest_url=url,
        host=host,
        port=443,
        addresses=("127.0.0.1",),
    )


class Coming:
    """These events, a second apart, and then nothing for ever."""

    def __init__(self, events) -> None:
        self._events = list(events)

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self._events:
            await anyio.sleep_forever()
        await anyio.sleep(1)
        return self._events.pop(0)


def on_link(monkeypatch: pytest.MonkeyPatch, *events) -> None:
    """Let clients see these on their local network, a second apart."""

    @asynccontextmanager
    async def browse(*, interfaces=None) -> AsyncIterator[Any]:
        del interfaces
        yield Coming(events)

    monkeypatch.setattr(local_network, "browse", browse)


class TestResolving:
    async def test_a_cancelled_search_leaves_nothing_behind(self, world, client_in, monkeypatch) -> None:
        """Cancelled at every step in turn."""
        world["https://r.example/1"] = registry("https://b.example/m", "https://a.example/m")
        for steps in range(60):
            async with client_in(registries=["https://r.example/1"]) as client:
                on_link(monkeypatch, Added(announcement(URN, "https://a.example/m")))
                ends: list[Any] = []
                async with anyio.create_task_group() as group:

                    async def look(client=client, ends=ends) -> None:
                        ends.append(await client.explain(URN, wait=5))

                    group.start_soon(look)
                    for _ in range(steps):
                        await anyio.lowlevel.checkpoint()
                    group.cancel_scope.cancel()
                assert (
                    client._client._discovery._manifests.waiting == client._client._discovery._registries.waiting == 0
                )
                # And what was begun can be begun again.
                assert isinstance(await client.explain(URN, wait=5), Resolved | Unresolved)


class TestForgetting:
    async def test_forgotten_documents_are_requested_again(self, world, client_in, asked) -> None:
        world[f"https://a.example{MANIFEST}"] = world["https://a.example/m"]
        world["https://r.example/1?x=1"] = registry()
        async with client_in() as client:
            for _ in range(2):
                await client.discover("https://a.example")
                await client.get_manifest("https://a.example/m")
                await client.registry("https://r.example/1?x=1")
            assert len(asked) == 3
            for url in ("https://a.example", "https://a.example/m", "https://r.example/1?x=1"):
                client.forget(url)
                await client.discover("https://a.example")
                await client.get_manifest("https://a.example/m")
                await client.registry("https://r.example/1?x=1")
            assert len(asked) == 6
            client.reset()
            assert client.cached("https://a.example") is None
            await client.registry("https://r.example/1?x=1")
            assert len(asked) == 7


class TestAnnounced:
    """What an announcement allows is for following it, and for nobody who names the same host."""

    HERE = "http://192.168.1.5:8000"

    @pytest.fixture
    def neighbour(self, world, manifest, monkeypatch) -> Announcement:
        monkeypatch.setattr("asap_adapters.mdns.interfaces.link_networks", lambda _link: ("192.168.1.2/24",))
        world[f"{self.HERE}/m"] = to_json(manifest(endpoints=Endpoints(asap=f"{self.HERE}/asap")))
        return evolve(announcement(URN, f"{self.HERE}/m"), host="192.168.1.5", addresses=("192.168.1.5",))

    async def test_an_announcement_does_not_allow_other_requests_to_its_host(
        self, world, client_in, neighbour, asked
    ) -> None:
        world[f"{self.HERE}{MANIFEST}"] = world[f"{self.HERE}/m"]
        async with client_in() as client:
            assert (await client.follow(neighbour)).id == URN
            for base in (self.HERE, "http://192.168.1.5:9000"):
                for ask in (client.discover, client.health_check, client.get_document, client.get_manifest):
                    with pytest.raises(NotAllowed):
                        await ask(base)
                with pytest.raises(NotAllowed):
                    await client.send(base, "task.query", {})
            with pytest.raises(NotAllowed):
                await client.get_manifest(f"{self.HERE}/m")
            assert client.cached(self.HERE) is None
            assert asked == [f"{self.HERE}/m"]

    async def test_envelopes_are_sent_to_the_announced_host(self, world, client_in, neighbour, manifest, asked) -> None:
        async with client_in(allow_endpoints=["http://192.168.1.5:9000"]) as client:
            found = await client.follow(neighbour)
            with pytest.raises(BadReply):
                await client.send(found, "task.query", {})
            assert asked[-1] == f"{self.HERE}/asap"
            # One that says that they go elsewhere.
            client.reset()
            world[f"{self.HERE}/m"] = to_json(manifest(endpoints=Endpoints(asap="http://192.168.1.5:7000/asap")))
            with pytest.raises(NotAllowed):
                await client.send(await client.follow(neighbour), "task.query", {})
            # A copy of the manifest is the caller's own, and was announced nowhere.
            with pytest.raises(NotAllowed):
                await client.send(evolve(found), "task.query", {})


# Forty pieces.
LARGE = 4_000


def large() -> bytes:
    return json.dumps(registry(*["https://a.example/m"] * LARGE)).encode()


@pytest.mark.parametrize("source", ["file", "plain", "gzip", "copy"])
async def test_other_tasks_run_while_a_large_registry_is_read(source, tmp_path) -> None:
    """However large, other tasks take their turns while it's read, and however small it is when packed."""
    data, turns = large(), 0
    location: Any = "https://r.example/1"
    if source == "file":
        location = tmp_path / "registry.json"
        location.write_bytes(data)
    packed = gzip.compress(data) if source == "gzip" else data
    headers = {"content-encoding": "gzip"} if source == "gzip" else {}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=headers, stream=Once(packed)))
    options: Any = {"registry_cache": tmp_path} if source == "copy" else {}
    if source == "copy":
        async with make_client(transport=transport, **options) as client:
            await client.registry(location)
        transport = httpx.MockTransport(lambda _: httpx.Response(503))
    client = make_client(transport=transport, **options)
    async with client, anyio.create_task_group() as group:

        async def turn() -> None:
            nonlocal turns
            while True:
                await anyio.lowlevel.checkpoint()
                turns += 1

        group.start_soon(turn)
        assert len((await client.registry(location)).agents) == LARGE
        group.cancel_scope.cancel()
    assert turns > len(data) / 20_000


class Once(httpx.AsyncByteStream):
    """A body in one piece, as a fast network brings it."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._body


async def test_a_registry_with_an_error_in_the_middle_is_refused(client_in, asked) -> None:
    data = large()
    middle = data.index(b"}, {", len(data) // 2)
    data = data[:middle] + b"},, {" + data[middle:]
    transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=Once(data)))
    async with AgentClient(sender="urn:asap:agent:me", http=HttpOptions(transport=transport)) as client:
        for _ in range(2):
            with pytest.raises(InvalidDocument, match="one JSON text"):
                await client.registry("https://r.example/1")


async def test_a_manifest_is_verified_with_a_real_key(world, client_in, manifest) -> None:
    trusted, other = PrivateKey.new(), PrivateKey.new()
    url = f"https://a.example{MANIFEST}"
    world[url] = sign(to_json(manifest()), trusted.sign, trusted.public_key)
    async with client_in(trusted_keys={URN: str(trusted.public_key)}) as client:
        assert (await client.discover("https://a.example")).id == URN
        client.reset()
        world[url] = sign(to_json(manifest()), other.sign, other.public_key)
        with pytest.raises(Unverified, match="isn't a trusted key of this agent"):
            await client.discover("https://a.example")


@pytest.mark.parametrize("name", ["pipe", "a\0b"])
async def test_a_path_that_is_not_a_file_is_refused_at_once(client_in, tmp_path, name) -> None:
    if name == "pipe":
        os.mkfifo(tmp_path / name)
    async with client_in(registries=[tmp_path / name]) as client:
        with pytest.raises(BadReply, match="expected a file"):
            await client.registry(tmp_path / name)
        assert "expected a file" in str((await client.explain(URN, wait=0)).trace[0])


class ManyChunks(httpx.AsyncByteStream):
    """Tiny chunks that have all arrived, so that none of them is waited for."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(10_000):
            yield b" "


@pytest.mark.parametrize("status", [200, 404])
async def test_tiny_chunks_that_arrive_at_once_hold_nobody_up(status: int) -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    transport = httpx.MockTransport(lambda _: httpx.Response(status, stream=ManyChunks()))
    async with (
        AgentClient(sender=URN, http=HttpOptions(transport=transport)) as client,
        anyio.create_task_group() as group,
    ):
        group.start_soon(others)
        with pytest.raises((BadReply, InvalidDocument)):
            await client.discover("https://a.example")
        group.cancel_scope.cancel()
    assert turns > 100


class Hearing:
    """An announcement at once."""

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        return Added(announcement(URN, "https://a.example/m"))


async def test_a_logging_handler_that_raises_leaves_no_browsing_open(monkeypatch) -> None:
    opened: list[bool] = []

    @asynccontextmanager
    async def browse() -> AsyncIterator[AsyncIterator[Event]]:
        opened.append(True)
        yield Hearing()
        opened.clear()

    def hears(driver: ProgramDriver) -> Program[None]:
        yield from Next(LocalNetwork())
        driver.runtime.warn("asap.discovery", "heard")

    def refuse(_record: logging.LogRecord) -> bool:
        assert opened
        raise OSError("disk full")

    driver = ProgramDriver(HttpOptions(), owner="…")
    monkeypatch.setattr(local_network, "browse", browse)
    driver.open()
    logging.getLogger("asap.discovery").addFilter(refuse)
    try:
        with pytest.raises(OSError, match="disk full"):
            await driver.run(hears(driver))
    finally:
        logging.getLogger("asap.discovery").removeFilter(refuse)
        await driver.aclose()
    assert not opened
