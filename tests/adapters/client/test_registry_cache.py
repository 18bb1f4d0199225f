"""Copies of registries in files: written whole or not at all, used where the server can't be reached, and only then."""

# ruff: noqa: ASYNC240 - what a test does with files holds nobody up

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import httpx
import pytest

from asap_adapters.client.agent_client import AgentClient
from asap_core import Unreachable, to_json
from asap_core.client.registry_copies import _hash
from asap_core.client.search import Resolved
from tests.adapters.client.test_cancelling import Interrupted
from tests.adapters.client.test_discovery import URN, registry
from tests.clients import make_client

pytestmark = pytest.mark.anyio

URL = "https://r.example/registry.json"


class Server:
    """A registry at r.example, an agent at a.example. `happens` is a status or an error, instead of the registry."""

    def __init__(self, manifest) -> None:
        self.manifest = to_json(manifest())
        self.registry: Any = registry("https://a.example/m")
        self.happens: Any = None
        self.headers: Any = {}
        self.asked = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.host == "a.example":
            return httpx.Response(200, json=self.manifest)
        self.asked += 1
        await anyio.lowlevel.checkpoint()
        if isinstance(self.happens, Exception):
            raise self.happens
        if isinstance(self.happens, int):
            return httpx.Response(self.happens)
        return httpx.Response(200, json=self.registry, headers=self.headers)


@pytest.fixture
def server(manifest) -> Server:
    return Server(manifest)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "copies"


def client_of(server: Server, directory: Path, **options) -> AgentClient:
    options = {"registries": [URL], "registry_cache": directory, **options}
    return make_client(transport=httpx.MockTransport(server), **options)


async def fetch(server: Server, directory: Path) -> Path:
    """Have a copy written."""
    async with client_of(server, directory) as client:
        assert len(await client.registry(URL)) == 1
    (copy,) = directory.glob("*.registry")
    return copy


def head_of(copy: Path):
    return json.loads(copy.read_bytes().partition(b"\n")[0].rpartition(b" ")[0])


def rewrite(copy: Path, **changes) -> None:
    """Change what a copy says of itself, as we'd have written it."""
    text = json.dumps({**head_of(copy), **changes}).encode()
    body = copy.read_bytes().partition(b"\n")[2]
    copy.write_bytes(text + b" " + _hash(text).encode() + b"\n" + body)


DOWN = httpx.ConnectError("refused")


class TestOutages:
    @pytest.mark.parametrize("happens", [DOWN, 503], ids=str)
    async def test_a_new_process_uses_the_copy_and_logs_it(
        self, server: Server, directory: Path, happens, caplog
    ) -> None:
        await fetch(server, directory)
        server.happens = happens
        async with client_of(server, directory) as client:
            end = await client.explain(URN, wait=0.0)
            assert isinstance(end, Resolved)
            assert str(end.trace[0]) in (
                f"https://r.example:443/registry.json: listed, in its last good copy on disk, {age} s old"
                for age in (0, 1)
            )
            assert "serves" in caplog.text
            assert client.stands_in(URL) == pytest.approx(0.0, abs=1.0)
            asked = server.asked
            assert len(await client.registry(URL)) == 1
            # The failure is remembered, and so is the copy.
            assert server.asked == asked
            server.happens = None
            await anyio.sleep(60)
            await client.registry(URL)
            assert (client.stands_in(URL), client.stands_in("other")) == (None, None)
            # When it's down once more, that's said once more.
            server.happens = 503
            await anyio.sleep(80_000)
            await anyio.sleep(10_000)
            caplog.clear()
            for _ in range(2):
                assert "its last good copy, 25 hours old" in str((await client.explain(URN, wait=0.0)).trace[0])
            assert caplog.text.count("serves") == 1


class TestWriting:
    async def test_an_unchanged_copy_is_not_written_by_each_process(
        self, server: Server, directory: Path, monkeypatch
    ) -> None:
        copy = await fetch(server, directory)
        before = copy.stat().st_ino
        await fetch(server, directory)
        assert copy.stat().st_ino == before
        rewrite(copy, vouched=head_of(copy)["vouched"] - 4_000)
        await fetch(server, directory)
        assert copy.stat().st_ino != before

    @pytest.mark.parametrize("control", ["no-store"])
    async def test_a_copy_that_its_server_forbids_is_removed(
        self, server: Server, directory: Path, control: str
    ) -> None:
        copy = await fetch(server, directory)
        server.headers = {"cache-control": control}
        async with client_of(server, directory) as client:
            assert len(await client.registry(URL)) == 1
            assert not copy.exists()
            server.happens = DOWN
            with pytest.raises(Unreachable):
                await client.registry(URL)

    async def test_two_clients_may_share_a_directory(self, server: Server, directory: Path) -> None:
        async with client_of(server, directory) as one, client_of(server, directory) as other:
            async with anyio.create_task_group() as group:
                group.start_soon(one.registry, URL)
                group.start_soon(other.registry, URL)
            one.forget(URL)
            await other.registry(URL)
        assert list(directory.glob("*.tmp")) == []


class TestForgetting:
    @pytest.mark.parametrize("act", [lambda client: client.forget(URL), lambda client: client.reset()])
    async def test_forget_and_reset_remove_the_copy(self, server: Server, directory: Path, act) -> None:
        async with client_of(server, directory) as client:
            await client.registry(URL)
            act(client)
            assert list(directory.iterdir()) == []
            server.happens = DOWN
            with pytest.raises(Unreachable):
                await client.registry(URL)

    @pytest.mark.parametrize("step", range(1, 12))
    async def test_a_copy_that_is_forgotten_at_any_moment_stays_removed(
        self, server: Server, directory: Path, step: int
    ) -> None:
        """While it's fetched, while it's written, while it's read."""
        for happens in (None, DOWN):
            server.happens = None
            if happens is not None:
                await fetch(server, directory)
            server.happens = happens
            async with client_of(server, directory) as client:
                async with anyio.create_task_group() as group:

                    async def ask(client: AgentClient = client) -> None:
                        with suppress(Unreachable):
                            await client.registry(URL)

                    group.start_soon(ask)
                    for _ in range(step):
                        await anyio.lowlevel.checkpoint()
                    client.forget(URL)
                if list(directory.glob("*")):
                    # It was asked for only afterwards.
                    assert step < 3
                    continue
                server.happens = DOWN
                await anyio.sleep(60)
                with pytest.raises(Unreachable):
                    await client.registry(URL)

    async def test_a_copy_that_is_forgotten_during_its_write_stays_removed(
        self, server: Server, directory: Path, monkeypatch
    ) -> None:
        real = os.fsync
        clients: list[AgentClient] = []

        def forgotten_now(descriptor: int) -> None:
            real(descriptor)
            anyio.from_thread.run_sync(clients[0].forget, URL)

        monkeypatch.setattr(os, "fsync", forgotten_now)
        async with client_of(server, directory) as client:
            clients.append(client)
            assert len(await client.registry(URL)) == 1
        assert list(directory.iterdir()) == []


@pytest.mark.parametrize("down", [False, True])
async def test_waiters_are_answered_if_a_caller_is_cancelled_at_any_await(
    server: Server, directory: Path, down: bool
) -> None:
    at = 0
    while True:
        at += 1
        server.happens = None
        if down:
            await fetch(server, directory)
            server.happens = DOWN
        interrupted = Interrupted(at)
        async with client_of(server, directory) as client:
            found: list[Any] = []

            async def first(client=client, interrupted=interrupted) -> None:
                await interrupted.run(client.registry(URL))

            async def other(client=client, found=found) -> None:
                found.append(len(await client.registry(URL)))

            async with anyio.create_task_group() as group:
                group.start_soon(first)
                await anyio.lowlevel.checkpoint()
                group.start_soon(other)
                group.start_soon(other)
            assert found == [1, 1]
        assert list(directory.glob("*.registry")) != []
        if interrupted.awaits < at:
            break
    assert at > 3
