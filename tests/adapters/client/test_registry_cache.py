"""Copies of registries in files: written whole or not at all, used where the server can't be reached, and only then."""

# ruff: noqa: ASYNC240 - what a test does with files holds nobody up

import json
import logging
import os
import stat
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import httpx
import pytest

from asap_adapters import driver
from asap_adapters.client.agent_client import AgentClient
from asap_adapters.system import LoopClock
from asap_core import BadReply, InvalidDocument, Unreachable, to_json
from asap_core.client.registry_copies import _hash
from asap_core.client.resolution import Resolved
from asap_core.net.addresses import Proximity
from tests.adapters.client.test_cancelling import Interrupted
from tests.adapters.client.test_discovery import URN, registry
from tests.clients import make_client

pytestmark = pytest.mark.anyio

URL = "https://r.example/registry.json"
WEEK = 604_800.0


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


def counted(monkeypatch, name: str) -> list[Any]:
    """The calls of one of the driver's functions on files."""
    calls: list[Any] = []
    real = getattr(driver, name)

    def call(*given, **options):
        calls.append(given)
        return real(*given, **options)

    monkeypatch.setattr(driver, name, call)
    return calls


def head_of(copy: Path):
    return json.loads(copy.read_bytes().partition(b"\n")[0].rpartition(b" ")[0])


def rewrite(copy: Path, body: bytes | None = None, **changes) -> None:
    """Change what a copy says of itself, as we'd have written it."""
    text = json.dumps({**head_of(copy), **changes}).encode()
    body = copy.read_bytes().partition(b"\n")[2] if body is None else body
    copy.write_bytes(text + b" " + _hash(text).encode() + b"\n" + body)


class TwoClocks(LoopClock):
    """Civil time that may be set."""

    __slots__ = ("set",)

    def __init__(self) -> None:
        super().__init__()
        self.set = 0.0

    def wall(self):
        return 1_800_000_000.0 + anyio.current_time() + self.set


DOWN = httpx.ConnectError("refused")


class TestAStartWithoutTheServer:
    @pytest.mark.parametrize("happens", [DOWN, httpx.ReadTimeout(""), 500, 502, 503, 504], ids=str)
    async def test_is_served_by_the_copy_and_says_so(self, server: Server, directory: Path, happens, caplog) -> None:
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

    @pytest.mark.parametrize("status", [400, 429, 501, 302])
    async def test_is_not_for_a_server_that_answers_something_else(
        self, server: Server, directory: Path, status: int
    ) -> None:
        copy = await fetch(server, directory)
        server.happens = status
        async with client_of(server, directory) as client:
            with pytest.raises(BadReply):
                await client.registry(URL)
        assert copy.exists()

    async def test_nor_for_nonsense(self, server: Server, directory: Path) -> None:
        copy = await fetch(server, directory)
        server.registry = ["nonsense"]
        async with client_of(server, directory) as client:
            with pytest.raises(InvalidDocument):
                await client.registry(URL)
        assert copy.exists()

    @pytest.mark.parametrize("status", [401, 403, 404, 410])
    async def test_one_that_says_it_is_gone_takes_the_copy_along(
        self, server: Server, directory: Path, status: int
    ) -> None:
        copy = await fetch(server, directory)
        server.happens = status
        async with client_of(server, directory) as client:
            with pytest.raises(BadReply):
                await client.registry(URL)
        assert not copy.exists()

    async def test_a_week_and_not_longer(self, server: Server, directory: Path, caplog) -> None:
        copy = await fetch(server, directory)
        server.happens = DOWN
        vouched = head_of(copy)["vouched"]
        for age, told in (
            (WEEK - 100, "its last good copy on disk, 7 days old"),
            (7_200.0, "its last good copy on disk, 2 hours old"),
            (130.0, "2 minutes"),
        ):
            rewrite(copy, vouched=vouched - age)
            async with client_of(server, directory) as client:
                assert told in str((await client.explain(URN, wait=0.0)).trace[0])
        rewrite(copy, vouched=vouched - WEEK)
        async with client_of(server, directory) as client:
            with pytest.raises(Unreachable):
                await client.registry(URL)
        assert "isn't used: it's too old" in caplog.text

    @pytest.mark.parametrize(("control", "serves"), [("max-age=60, must-revalidate", 60.0), ("", WEEK)])
    async def test_as_long_by_either_clock_and_as_its_server_allows(
        self, server: Server, directory: Path, control: str, serves: float
    ) -> None:
        """Also where it's in memory: civil time that's set back makes nothing younger."""
        server.headers = {"cache-control": control}
        clock = TwoClocks()
        async with client_of(server, directory, clock=clock) as client:
            await client.registry(URL)
            server.happens = DOWN
            clock.set = -10 * WEEK
            await anyio.sleep(serves - 1)
            assert len(await client.registry(URL)) == 1
            await anyio.sleep(60)
            with pytest.raises(Unreachable):
                await client.registry(URL)
            assert client.stands_in(URL) is None

    async def test_civil_time_that_is_set_forward_makes_it_older(self, server: Server, directory: Path) -> None:
        clock = TwoClocks()
        async with client_of(server, directory, clock=clock) as client:
            await client.registry(URL)
            server.happens = DOWN
            await anyio.sleep(50_000)
            await anyio.sleep(50_000)
            assert len(await client.registry(URL)) == 1
            clock.set = WEEK
            with pytest.raises(Unreachable):
                await client.registry(URL)

    async def test_agents_in_the_network_that_it_is_in_are_found_as_before(
        self, server: Server, directory: Path, monkeypatch
    ) -> None:
        copy = await fetch(server, directory)
        rewrite(copy, zone="NETWORK")
        server.happens = DOWN
        async with client_of(server, directory) as client:
            await client.registry(URL)
            assert client._client._requests.proximity_of(URL) is Proximity.NETWORK

    async def test_without_one_the_failure_is_told(self, server: Server, directory: Path) -> None:
        server.happens = DOWN
        async with client_of(server, directory) as client:
            with pytest.raises(Unreachable):
                await client.registry(URL)
        assert not directory.exists()

    async def test_many_read_it_once(self, server: Server, directory: Path, monkeypatch, caplog) -> None:
        await fetch(server, directory)
        server.happens = DOWN
        reads = counted(monkeypatch, "open_to_read")
        async with client_of(server, directory) as client, anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(client.registry, URL)
        assert (server.asked, len(reads)) == (2, 1)
        assert caplog.text.count("serves") == 1

    async def test_what_is_revoked_is_never_taken_from_a_copy(self, server: Server, directory: Path) -> None:
        await fetch(server, directory)
        server.happens = DOWN
        async with client_of(server, directory, revocations=URL) as client:
            end = await client.explain(URN, wait=0.0)
        assert not isinstance(end, Resolved)


class TestWriting:
    async def test_is_for_its_owner_only_and_tells_no_url(self, server: Server, directory: Path) -> None:
        copy = await fetch(server, directory)
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert b"r.example" not in copy.read_bytes().partition(b"\n")[0]
        assert [path.name for path in directory.iterdir()] == [copy.name]

    async def test_happens_once_for_all_and_again_for_what_is_new(
        self, server: Server, directory: Path, monkeypatch
    ) -> None:
        written = counted(monkeypatch, "write")
        server.headers = {"etag": '"1"', "cache-control": "max-age=60"}
        async with client_of(server, directory) as client:
            async with anyio.create_task_group() as group:
                for _ in range(50):
                    group.start_soon(client.registry, URL)
            assert len(written) == 1
            server.happens = 304
            for _ in range(3):
                await anyio.sleep(90.0)
                await client.registry(URL)
            assert (server.asked, len(written)) == (4, 1)
            # What is confirmed again and again is written again each hour, and what nobody confirmed isn't.
            await anyio.sleep(3_600.0)
            await client.registry(URL)
            assert len(written) == 2
            server.happens, server.registry = None, registry("https://a.example/m", "https://b.example/m")
            await anyio.sleep(90.0)
            await client.registry(URL)
            assert len(written) == 3
        server.happens = DOWN
        async with client_of(server, directory) as client:
            assert len(await client.registry(URL)) == 2

    async def test_what_nobody_vouched_for_since_is_not_written_again(
        self, server: Server, directory: Path, monkeypatch
    ) -> None:
        written = counted(monkeypatch, "write")
        server.headers = {"cache-control": "max-age=80000"}
        async with client_of(server, directory) as client:
            for _ in range(10):
                await client.registry(URL)
                await anyio.sleep(7_000)
            server.happens = DOWN
            await anyio.sleep(30_000)
            await client.registry(URL)
        assert len(written) == 1

    async def test_the_same_is_not_written_by_each_process(self, server: Server, directory: Path, monkeypatch) -> None:
        copy = await fetch(server, directory)
        before = copy.stat().st_ino
        await fetch(server, directory)
        assert copy.stat().st_ino == before
        rewrite(copy, vouched=head_of(copy)["vouched"] - 4_000)
        await fetch(server, directory)
        assert copy.stat().st_ino != before

    @pytest.mark.parametrize("control", ["no-store", "no-cache", "max-age=0, stale-if-error=0"])
    async def test_what_its_server_does_not_allow_is_not_on_disk(
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

    async def test_they_are_bounded_and_what_no_longer_counts_goes(self, server: Server, directory: Path) -> None:
        copy = await fetch(server, directory)
        for number in range(40):
            other = directory / f"{number}.registry"
            other.write_bytes(b"")
            os.utime(other, (copy.stat().st_mtime - 10 * number,) * 2)
        old = directory / "old.registry"
        old.write_bytes(b"")
        os.utime(old, (1, 1))
        (directory / "mine.txt").write_bytes(b"")
        copy.unlink()
        async with client_of(server, directory) as client:
            await client.registry(URL)
        assert len(list(directory.glob("*.registry"))) == 32
        assert (old.exists(), copy.exists(), (directory / "mine.txt").exists()) == (False, True, True)

    async def test_where_it_cannot_be_is_no_harm(self, server: Server, tmp_path: Path, caplog) -> None:
        (tmp_path / "file").write_text("")
        async with client_of(server, tmp_path / "file") as client:
            assert len(await client.registry(URL)) == 1
        assert "no copy of https://r.example:443/registry.json is kept" in caplog.text

    async def test_that_breaks_off_leaves_the_old_copy(self, server: Server, directory: Path, monkeypatch) -> None:
        copy = await fetch(server, directory)
        before = copy.read_bytes()

        def full(_descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        server.registry = registry("https://a.example/m", "https://b.example/m")
        monkeypatch.setattr(os, "fsync", full)
        async with client_of(server, directory) as client:
            assert len(await client.registry(URL)) == 2
        assert copy.read_bytes() == before
        assert [path.name for path in directory.iterdir()] == [copy.name]

    async def test_what_a_killed_process_left_is_tidied_up(self, server: Server, directory: Path) -> None:
        copy = await fetch(server, directory)
        old, new = directory / f"{copy.name}.a.tmp", directory / f"{copy.name}.b.tmp"
        old.write_bytes(b"")
        new.write_bytes(b"")
        os.utime(old, (1, 1))
        await fetch(server, directory)
        assert (old.exists(), new.exists()) == (False, True)

    async def test_two_clients_may_share_the_directory(self, server: Server, directory: Path) -> None:
        async with client_of(server, directory) as one, client_of(server, directory) as other:
            async with anyio.create_task_group() as group:
                group.start_soon(one.registry, URL)
                group.start_soon(other.registry, URL)
            one.forget(URL)
            await other.registry(URL)
        assert list(directory.glob("*.tmp")) == []


class TestForgetting:
    @pytest.mark.parametrize("act", [lambda client: client.forget(URL), lambda client: client.reset()])
    async def test_takes_the_copy_away(self, server: Server, directory: Path, act) -> None:
        async with client_of(server, directory) as client:
            await client.registry(URL)
            act(client)
            assert list(directory.iterdir()) == []
            server.happens = DOWN
            with pytest.raises(Unreachable):
                await client.registry(URL)

    @pytest.mark.parametrize("step", range(1, 12))
    async def test_at_any_moment_it_does_not_come_back(self, server: Server, directory: Path, step: int) -> None:
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

    async def test_while_it_is_being_written_it_does_not_come_back(
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

    async def test_while_it_is_being_read_it_is_not_used(self, server: Server, directory: Path, monkeypatch) -> None:
        await fetch(server, directory)
        server.happens = DOWN
        real = driver._read
        async with client_of(server, directory) as client:

            async def read(*given):
                client.forget(URL)
                return await real(*given)

            monkeypatch.setattr(driver, "_read", read)
            for _ in range(2):
                with pytest.raises(Unreachable):
                    await client.registry(URL)


class TestWhatIsNoCopy:
    async def refused(self, server: Server, directory: Path, caplog, why: str) -> None:
        server.happens = DOWN
        caplog.clear()
        async with client_of(server, directory) as client:
            for _ in range(3):
                with pytest.raises(Unreachable):
                    await client.registry(URL)
        assert f"isn't used: {why}" in caplog.text
        assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1

    async def test_torn_anywhere(self, server: Server, directory: Path, caplog) -> None:
        copy = await fetch(server, directory)
        whole = copy.read_bytes()
        for size in {*range(0, len(whole), 23), len(whole) - 1}:
            copy.write_bytes(whole[:size])
            await self.refused(server, directory, caplog, "it isn't")

    async def test_changed_in_any_place(self, server: Server, directory: Path, caplog) -> None:
        copy = await fetch(server, directory)
        whole = copy.read_bytes()
        start = whole.index(b"\n") + 1
        for place in range(0, len(whole), 29):
            copy.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            why = "it isn't whole" if place >= start else "it isn't a copy of a registry"
            await self.refused(server, directory, caplog, why)

    async def test_what_is_spoilt_is_read_through_once(
        self, server: Server, directory: Path, monkeypatch, caplog
    ) -> None:
        """However many ask; and again when it's another file."""
        copy = await fetch(server, directory)
        whole = copy.read_bytes()
        copy.write_bytes(whole[:-1])
        server.happens = DOWN
        reads = counted(monkeypatch, "_read")
        async with client_of(server, directory) as client:

            async def ask() -> None:
                with pytest.raises(Unreachable):
                    await client.registry(URL)

            async with anyio.create_task_group() as group:
                for _ in range(50):
                    group.start_soon(ask)
            assert (len(reads), caplog.text.count("isn't used")) == (1, 1)
            copy.write_bytes(whole)
            assert len(await client.registry(URL)) == 1

    async def test_one_from_the_future_counts_once_the_clock_is_right(
        self, server: Server, directory: Path, caplog
    ) -> None:
        copy = await fetch(server, directory)
        rewrite(copy, vouched=1_800_000_000.0 + 86_400.0)
        server.happens = DOWN
        clock = TwoClocks()
        async with client_of(server, directory, clock=clock) as client:
            for _ in range(2):
                with pytest.raises(Unreachable):
                    await client.registry(URL)
            assert caplog.text.count("isn't used: it's from the future") == 1
            clock.set = 86_500.0
            assert len(await client.registry(URL)) == 1

    async def test_of_another_registry(self, server: Server, directory: Path, caplog) -> None:
        copy = await fetch(server, directory)
        other = "https://other.example/registry.json"
        async with client_of(server, directory, registries=[other]) as client:
            await client.registry(other)
        (elsewhere,) = set(directory.iterdir()) - {copy}
        elsewhere.replace(copy)
        await self.refused(server, directory, caplog, "it's a copy of another registry")

    async def test_others_may_write(self, server: Server, directory: Path, caplog) -> None:
        copy = await fetch(server, directory)
        copy.chmod(0o666)
        await self.refused(server, directory, caplog, "it isn't a file that only its owner may write")

    async def test_too_large(self, server: Server, directory: Path, caplog) -> None:
        copy = await fetch(server, directory)
        with copy.open("r+b") as file:
            file.truncate(80_000_000)
        await self.refused(server, directory, caplog, "it isn't whole")
        rewrite(copy, length=80_000_000)
        await self.refused(server, directory, caplog, "it's too large")

    async def test_a_link_and_a_pipe(self, server: Server, directory: Path, caplog) -> None:
        copy = await fetch(server, directory)
        copy.rename(directory / "away")
        copy.symlink_to(directory / "away")
        await self.refused(server, directory, caplog, "")
        copy.unlink()
        os.mkfifo(copy, 0o600)
        await self.refused(server, directory, caplog, "it isn't a file that only its owner may write")

    async def test_whole_and_no_registry(self, server: Server, directory: Path, caplog) -> None:
        copy = await fetch(server, directory)
        rewrite(copy, b"[]", length=2, digest=blake2b(b"[]", digest_size=32).hexdigest())
        await self.refused(server, directory, caplog, "not a valid registry")


@pytest.mark.parametrize("down", [False, True])
async def test_cancelled_at_each_await_the_others_are_answered(server: Server, directory: Path, down: bool) -> None:
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
