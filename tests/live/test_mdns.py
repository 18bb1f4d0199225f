"""mDNS for real, on loopback: agents come, change and go, and nothing is left behind."""

import contextlib
import functools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import zeroconf
from zeroconf import _dns
from zeroconf._protocol.outgoing import DNSOutgoing

from asap_adapters import AgentClient, HttpOptions
from asap_adapters.cli.echo_agent import echo_manifest
from asap_adapters.mdns import browsing, multicast
from asap_adapters.mdns.announcing import AnnouncingEngine
from asap_adapters.mdns.local_network import Advertiser, Browser, browse
from asap_core import NotResolved
from asap_core.errors import AsapError, MdnsUnavailable
from asap_core.mdns.dnssd import Added, Announcement, Ignored, Removed, Updated
from asap_core.server.wellknown import publish

pytestmark = [pytest.mark.anyio, pytest.mark.live, pytest.mark.usefixtures("quick")]

LOOPBACK = ["127.0.0.1"]
# Whoever else tests on this machine's loopback at the same time has others.
PORT = 18_000 + os.getpid() % 400 * 100
AGENT = f"urn:asap:agent:live-{PORT}"
# Nothing here takes that long, unless it hangs.
SECONDS = 60


@pytest.fixture
def quick(monkeypatch) -> None:
    """Shorten the half second in which others may claim a name, as zeroconf's own tests do."""
    monkeypatch.setattr(zeroconf._core, "_CHECK_TIME", 20)
    monkeypatch.setattr(zeroconf._core, "_PROBE_RANDOM_DELAY_INTERVAL", (1, 2))


@pytest.fixture
def unhurried(quick, monkeypatch) -> None:
    """Where it's about names that are taken: as on a real link.

    zeroconf sends the probes that are late at once, one after another, and waits for no answers then. So its clock
    stands still while this process does.
    """
    monkeypatch.setattr(zeroconf._core, "_CHECK_TIME", 500)
    real: Callable[[], float] = zeroconf._core.current_time_millis  # type: ignore[attr-defined]
    stood_still = 0.0
    last = real()

    def current_time_millis() -> float:
        nonlocal last, stood_still
        stood_still += max(0.0, real() - stood_still - last - 600)
        last = real() - stood_still
        return last

    monkeypatch.setattr(zeroconf._core, "current_time_millis", current_time_millis)


def advertiser(port=PORT, name="Live Agent", **changes):
    fields = {
        "agent_id": AGENT,
        "name": name,
        "version": "1.2.3",
        "skills": ["echo", "sum"],
        "manifest_url": f"http://127.0.0.1:{port}/.well-known/asap/manifest.json",
        "host": "127.0.0.1",
        "port": port,
    }
    return Advertiser(**{**fields, **changes})


async def first(events, kind, port):
    async for event in events:
        if isinstance(event, kind) and event.announcement.port == port:
            return event.announcement
    raise AssertionError


def engine_threads():
    return {thread for thread in threading.enumerate() if thread.name == "asap-mdns"}


async def test_an_agent_is_added_with_all_fields_and_removed_by_its_goodbye() -> None:
    with anyio.fail_after(SECONDS):
        async with browse(interfaces=LOOPBACK) as events:
            async with advertiser(PORT + 1) as announced:
                found = await first(events, Added, PORT + 1)
                assert found.instance == announced.instance
                assert found.agent_id == AGENT
                assert (found.version, found.skills) == ("1.2.3", ("echo", "sum"))
                assert found.manifest_url.endswith(f":{PORT + 1}/.well-known/asap/manifest.json")
                assert found.addresses == ("127.0.0.1",)
            gone = await first(events, Removed, PORT + 1)
            assert gone == found


async def test_a_change_is_seen() -> None:
    with anyio.fail_after(SECONDS):
        async with browse(interfaces=LOOPBACK) as events, advertiser(PORT + 8, name="Changing") as announced:
            before = await first(events, Added, PORT + 8)
            await announced.update(version="2.0.0", skills=["echo"])
            after = await first(events, Updated, PORT + 8)
            assert (after.version, after.skills) == ("2.0.0", ("echo",))
            assert (after.instance, after.agent_id) == (before.instance, before.agent_id)


async def test_skills_that_do_not_fit_are_left_out() -> None:
    with anyio.fail_after(SECONDS):
        async with browse(interfaces=LOOPBACK) as events, advertiser(PORT + 9, skills=["s" * 90] * 3) as announced:
            assert announced.left_out == ("capabilities",)
            assert (await first(events, Added, PORT + 9)).skills is None


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("name", [f"Twin {PORT}", f"{PORT}" + "n" * 90], ids=["short", "long"])
async def test_two_agents_of_the_same_name_get_different_names(name) -> None:
    with anyio.fail_after(SECONDS):
        async with advertiser(PORT + 2, name=name) as one, advertiser(PORT + 3, name=name) as other:
            assert other.instance == f"{one.instance}-2"


@pytest.mark.parametrize("host", ["localhost", "::1", "127.0.0.2"])
async def test_a_loopback_address_is_announced_on_loopback_only(host) -> None:
    shown = f"[{host}]" if ":" in host else host
    with anyio.fail_after(SECONDS):
        one = advertiser(PORT + 10, host=host, manifest_url=f"http://{shown}:{PORT + 10}/m")
        async with browse(interfaces=LOOPBACK) as events, one:
            assert [where.link for where in one.announced] == ["lo"]
            assert (await first(events, Added, PORT + 10)).host == host


def say(name: str, host: str, port: int, *, ttl: int) -> None:
    """Announce an agent as a responder that writes names like this."""
    kind = name.partition(".")[2]
    strings = b"ID=" + AGENT.encode(), b"MANIFEST_URL=http://127.0.0.1:%d/m" % port
    out = DNSOutgoing(0x8400)
    for record in (
        _dns.DNSPointer(kind, 12, 1, ttl, name),
        _dns.DNSService(name, 33, 0x8001, ttl, 0, 0, port, host),
        _dns.DNSText(name, 16, 0x8001, ttl, b"".join(bytes([len(one)]) + one for one in strings)),
        _dns.DNSAddress(host, 1, 0x8001, ttl, socket.inet_aton("127.0.0.1")),
    ):
        out.add_answer_at_time(record, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        for packet in out.packets():
            sender.sendto(packet, ("224.0.0.251", 5353))


async def test_names_are_the_same_in_any_case() -> None:
    """RFC 6762 §16: an agent announced in capitals is added, is the same in another case, and is removed."""
    port = PORT + 12
    loud, odd = f"LOUD {port}._ASAP._TCP.LOCAL.", f"LouD {port}._aSap._tCp.locaL."
    plain = f"loud {port}._asap._tcp.local."
    with anyio.fail_after(SECONDS):
        async with browse(interfaces=LOOPBACK) as events:
            say(loud, f"HOST-{port}.LOCAL.", port, ttl=120)
            found = await first(events, Added, port)
            assert (found.instance, found.agent_id) == (f"LOUD {port}", AGENT)
            say(plain, f"host-{port}.local.", port, ttl=120)
            # It's the same: else it would be gone, and another one added, with its new port.
            say(odd, f"Host-{port}.Local.", port + 1, ttl=120)
            assert (await first(events, Updated, port + 1)).instance == f"LOUD {port}"
            say(plain, f"host-{port}.local.", port + 1, ttl=0)
            assert (await first(events, Removed, port + 1)).instance == f"LOUD {port}"


@pytest.mark.usefixtures("unhurried")
async def test_a_name_used_in_another_case_is_not_used_again() -> None:
    with anyio.fail_after(SECONDS):
        async with (
            advertiser(PORT + 13, name=f"Twin {PORT}x") as one,
            advertiser(PORT + 14, name=f"TWIN {PORT}X") as other,
        ):
            assert one.instance == f"Twin-{PORT}x"
            assert other.instance == f"TWIN-{PORT}X-2"


def test_the_constructor_does_no_io(monkeypatch) -> None:
    monkeypatch.setattr(socket, "socket", None)
    monkeypatch.setattr(threading, "Thread", None)
    assert advertiser().instance is None
    browse()


async def test_a_browser_that_is_cancelled_leaves_no_thread() -> None:
    before = engine_threads()
    with anyio.move_on_after(0.3):
        async with browse(interfaces=LOOPBACK) as events:
            assert engine_threads() - before
            async for _ in events:
                pass
    assert engine_threads() == before


async def test_an_advertiser_that_is_cancelled_while_it_starts_stops_at_once(monkeypatch) -> None:
    monkeypatch.setattr(zeroconf._core, "_CHECK_TIME", SECONDS * 1_000)
    before = engine_threads()
    began = time.monotonic()
    with anyio.move_on_after(0.2):
        async with advertiser(PORT + 11):
            raise AssertionError("nobody can know after 0.2 s that the name is free")
    assert engine_threads() == before
    assert time.monotonic() - began < SECONDS / 2


async def test_an_advertiser_says_goodbye_when_its_block_fails() -> None:
    with anyio.fail_after(SECONDS):
        async with browse(interfaces=LOOPBACK) as events:
            with contextlib.suppress(ZeroDivisionError):
                async with advertiser(PORT + 12):
                    await first(events, Added, PORT + 12)
                    raise ZeroDivisionError
            await first(events, Removed, PORT + 12)


async def test_leaving_the_block_ends_the_iteration_in_other_tasks() -> None:
    ended = anyio.Event()

    async def read(events) -> None:
        async for _ in events:
            pass
        ended.set()

    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as group:
            async with browse(interfaces=LOOPBACK) as events:
                group.start_soon(read, events)
                await anyio.lowlevel.checkpoint()
            await ended.wait()


def versions_seen_at(port: int, browser: Browser) -> set[str | None]:
    """The versions that this browser's engine has seen of the agent at this port, read or not."""
    with browser._lock:
        seen = browser._announced_agents._now.values()
        return {found.version for found in seen if isinstance(found, Announcement) and found.port == port}


async def test_a_slow_reader_gets_the_latest_state() -> None:
    with anyio.fail_after(SECONDS):
        slow, quick = Browser(interfaces=LOOPBACK), Browser(interfaces=LOOPBACK)
        announced = advertiser(PORT + 13, name="Busy")
        async with slow, quick, announced:
            for version in "234":
                await announced.update(version=version, skills=[])
                while (await first(quick, (Added, Updated), PORT + 13)).version != version:
                    pass
            # Its own engine may be some packets behind the other's.
            while "4" not in versions_seen_at(PORT + 13, slow):  # noqa: ASYNC110 - the engine tells only the reader
                await anyio.sleep(0.01)
            assert (await first(slow, (Added, Updated), PORT + 13)).version == "4"


async def test_an_agent_that_cannot_be_resolved_delays_no_other_and_is_named(monkeypatch) -> None:
    # Nobody answers for that host, so what is announced there can't be resolved.
    silent = advertiser(PORT + 14, name="Silent", manifest_url=f"http://nobody-is-there.local:{PORT + 14}/m")
    with anyio.fail_after(SECONDS):
        async with silent, advertiser(PORT + 15):
            monkeypatch.setattr(browsing, "_RESOLVE_MS", 2_000 * SECONDS)
            async with browse(interfaces=LOOPBACK) as events:
                await first(events, Added, PORT + 15)
            monkeypatch.setattr(browsing, "_RESOLVE_MS", 500)
            async with browse(interfaces=LOOPBACK) as events:
                async for event in events:
                    if isinstance(event, Ignored) and event.unusable.instance == silent.instance:
                        break


async def test_use_outside_async_with_raises_an_error_that_names_it() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await advertiser().update(version="2", skills=[])
    with pytest.raises(RuntimeError, match="async with"):
        await Browser().__anext__()
    browser = Browser(interfaces=LOOPBACK)
    async with browser:
        pass
    with pytest.raises(RuntimeError, match="make another"):
        await browser.__aenter__()
    with pytest.raises(StopAsyncIteration):
        await browser.__anext__()


@pytest.mark.parametrize(
    "changes",
    [
        {"interfaces": ["192.0.2.99"]},
        {"interfaces": ["no address"]},
        {"host": "agent.example"},
        {"manifest_url": "https://agent.example/m"},
        {"manifest_url": "http://192.0.2.99/m"},
    ],
)
async def test_an_unusable_announcement_is_refused(changes) -> None:
    before = engine_threads()
    with pytest.raises(MdnsUnavailable):
        async with advertiser(**changes):
            pass
    assert engine_threads() == before


async def test_without_multicast_an_error_is_raised(monkeypatch) -> None:
    def refuse(*_options, **_more):
        raise OSError(19, "No such device")

    monkeypatch.setattr(multicast, "AsyncZeroconf", refuse)
    for one in (advertiser(), browse(interfaces=LOOPBACK)):
        with pytest.raises(MdnsUnavailable, match="No such device"):
            async with one:
                pass


async def test_interfaces_without_multicast_raise_an_error_and_leave_no_thread(monkeypatch) -> None:
    from zeroconf._utils import net

    monkeypatch.setattr(net, "add_multicast_member", lambda *_arguments: False)
    before = engine_threads()
    with pytest.raises(MdnsUnavailable, match=r"no interface here has it \(lo: it takes no multicast"):
        async with browse(interfaces=LOOPBACK):
            pass
    assert engine_threads() == before


async def test_an_agent_that_dies_without_a_goodbye_is_removed_when_its_records_expire(monkeypatch) -> None:
    close = multicast.Station.close
    short = functools.partial(zeroconf.ServiceInfo, host_ttl=2)
    monkeypatch.setattr(browsing, "_ALIVE_SECONDS", 1)
    with anyio.fail_after(SECONDS):
        async with browse(interfaces=LOOPBACK) as events:
            monkeypatch.setattr(zeroconf, "ServiceInfo", short)
            async with advertiser(PORT + 16):
                found = await first(events, Added, PORT + 16)
                # Longer than its records live: who answers stays.
                with anyio.move_on_after(4):
                    await first(events, Removed, PORT + 16)
                    raise AssertionError("it's alive")
                monkeypatch.setattr(multicast.Station, "close", lambda station, **_: close(station, quietly=True))
            assert await first(events, Removed, PORT + 16) == found
            # Its name's record is still good for an hour; all the same it's told when it's back.
            async with advertiser(PORT + 16):
                assert await first(events, Added, PORT + 16) == found


class Loop:
    """The test's loop, which ticks unless something blocks it; and steps that each take until it has ticked."""

    def __init__(self) -> None:
        self.ticks, self.steps = 0, 0
        self.blocked: list[str] = []

    async def tick(self) -> None:
        while True:
            await anyio.sleep(0.002)
            self.ticks += 1

    def waited_for(self, step):
        """`step`, after the next tick. If it runs in the loop, or the loop waits for it, there's none."""

        @functools.wraps(step)
        def run(*args, **kwargs):
            before, end = self.ticks, time.monotonic() + SECONDS / 4
            while self.ticks == before:
                time.sleep(0.001)
                if time.monotonic() > end:
                    self.blocked.append(step.__qualname__)
                    break
            self.steps += 1
            return step(*args, **kwargs)

        return run


async def test_starting_and_stopping_do_not_block_the_loop(monkeypatch) -> None:
    """They take 1.2 s and 0.3 s, and a goodbye 125 ms."""
    loop = Loop()
    steps: list[tuple[Any, str]] = [
        (Advertiser, "_make_engine"), (Browser, "_make_engine"), (multicast.Engine, "open"),
        (multicast.Engine, "close"), (multicast, "machine_links"), (multicast, "AsyncZeroconf"),
        (AnnouncingEngine, "change"),
    ]  # fmt: skip
    for owner, name in steps:
        monkeypatch.setattr(owner, name, loop.waited_for(getattr(owner, name)))
    with anyio.fail_after(2 * SECONDS):
        async with anyio.create_task_group() as group:
            group.start_soon(loop.tick)
            async with browse(interfaces=LOOPBACK), advertiser(PORT + 4) as announced:
                await announced.update(version="2", skills=[])
            group.cancel_scope.cancel()
    assert loop.blocked == []
    assert loop.steps >= 11  # all of them, and the first six for each of the two


def test_the_first_start_does_not_block_the_loop(anyio_backend) -> None:
    # In a process of its own, where nothing is imported yet.
    script = (
        "import sys, time, anyio\n"
        "from asap_adapters.mdns.local_network import browse\n"
        "ticks, told = 0, []\n"
        "async def tick():\n"
        "    global ticks\n"
        "    while True:\n"
        "        await anyio.sleep(0.002)\n"
        "        ticks += 1\n"
        "class UntilATick:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'zeroconf':\n"
        "            before, end = ticks, time.monotonic() + 15\n"
        "            while ticks == before and time.monotonic() < end:\n"
        "                time.sleep(0.001)\n"
        "            told.append('blocked' if ticks == before else 'ticks')\n"
        "sys.meta_path.insert(0, UntilATick())\n"
        "async def main():\n"
        "    assert 'zeroconf' not in sys.modules\n"
        "    async with anyio.create_task_group() as group:\n"
        "        group.start_soon(tick)\n"
        "        async with browse(interfaces=['127.0.0.1']):\n"
        "            pass\n"
        "        group.cancel_scope.cancel()\n"
        "    print(*told)\n"
        "anyio.run(main, backend=sys.argv[1])\n"
    )
    command = [sys.executable, "-c", script, anyio_backend]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "ticks\n"


def sockets():
    """How many sockets and pollers this process has open."""
    found = 0
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found += str(entry.readlink()).startswith(("socket:", "anon_inode:"))
    return found


class Counted:
    """Runs a coroutine, and cancels a scope when it has suspended so many times."""

    def __init__(self, coroutine, scope, at) -> None:
        self.coroutine, self.scope, self.at, self.suspended = coroutine, scope, at, 0

    def __await__(self):
        running, answer, error = self.coroutine, None, None
        while True:
            try:
                yielded = running.send(answer) if error is None else running.throw(error)
            except StopIteration as stop:
                return stop.value
            self.suspended += 1
            if self.suspended == self.at:
                self.scope.cancel()
            try:
                answer, error = (yield yielded), None
            except BaseException as thrown:  # noqa: BLE001 - the cancellation, handed on
                answer, error = None, thrown


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts sockets in Linux's /proc")
@pytest.mark.parametrize("what", ["browse", "advertise"])
async def test_cancellation_at_each_await_leaves_nothing_behind(what) -> None:
    async def use():
        if what == "browse":
            async with browse(interfaces=LOOPBACK) as events:
                with anyio.move_on_after(0.3):
                    async for _ in events:
                        pass
        else:
            async with advertiser(PORT + 17, name=f"Cut {PORT}") as announced:
                await announced.update(version="2", skills=[])

    await use()  # imported, and the loop's own worker threads are there
    threads, before, at, done = engine_threads(), sockets(), 0, False
    while not done:
        at += 1
        assert at < 100
        began = time.monotonic()
        with anyio.CancelScope() as scope:
            counted = Counted(use(), scope, at)
            await counted
            done = counted.suspended < at
        assert engine_threads() == threads
        assert sockets() == before
        assert time.monotonic() - began < SECONDS / 2
    assert at > 4


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts sockets in Linux's /proc")
async def test_a_break_ends_browsing_promptly_and_leaves_nothing_behind() -> None:
    async with browse(interfaces=LOOPBACK):
        pass
    threads, before = engine_threads(), sockets()
    with anyio.fail_after(SECONDS):
        async with advertiser(PORT + 18):
            ours = engine_threads()
            began = 0.0
            async with browse(interfaces=LOOPBACK) as events:
                async for event in events:
                    if isinstance(event, Added) and event.announcement.port == PORT + 18:
                        began = time.monotonic()
                        break
            assert time.monotonic() - began < SECONDS / 2
            assert engine_threads() == ours
    assert engine_threads() == threads
    assert sockets() == before


async def test_an_agent_of_another_process_is_seen() -> None:
    script = (
        "import anyio\n"
        "from asap_adapters.mdns.local_network import Advertiser\n"
        "async def main():\n"
        "    async with Advertiser(agent_id='urn:asap:agent:other', name='Other', version='1', skills=[],\n"
        f"        manifest_url='http://127.0.0.1:{PORT + 5}/m.json', host='127.0.0.1', port={PORT + 5}):\n"
        "        print('up', flush=True)\n"
        "        await anyio.to_thread.run_sync(input)\n"
        "anyio.run(main)\n"
    )
    process = subprocess.Popen(  # noqa: ASYNC220 - starts and returns
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        with anyio.fail_after(SECONDS):
            async with browse(interfaces=LOOPBACK) as events:
                assert (await first(events, Added, PORT + 5)).agent_id == "urn:asap:agent:other"
    finally:
        process.communicate(b"\n", timeout=SECONDS)


async def test_an_agent_is_resolved_by_its_name_and_verified() -> None:
    manifest = echo_manifest(AGENT, "http://127.0.0.1:1")
    requests: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        requests.append(str(request.url))
        return httpx.Response(200, content=publish(manifest))

    transport = httpx.MockTransport(handle)
    async with (
        advertiser(PORT + 6),
        AgentClient(sender="urn:asap:agent:me", http=HttpOptions(transport=transport)) as client,
    ):
        found = await client.resolve(AGENT, wait=SECONDS)
        assert found.id == AGENT
        with pytest.raises(NotResolved, match="not announced within"):
            await client.resolve("urn:asap:agent:nobody", wait=0.5)
    assert requests == [f"http://127.0.0.1:{PORT + 6}/.well-known/asap/manifest.json"]


async def test_another_agent_under_an_announced_name_is_refused() -> None:
    other = publish(echo_manifest("urn:asap:agent:mallory", "http://127.0.0.1:1"))
    transport = httpx.MockTransport(lambda _request: httpx.Response(200, content=other))
    async with (
        advertiser(PORT + 7),
        AgentClient(sender="urn:asap:agent:me", http=HttpOptions(transport=transport)) as client,
    ):
        said = "not announced within"
        for wait in (1, 4, 16):
            with pytest.raises(NotResolved) as caught:
                await client.resolve(AGENT, wait=wait)
            said = str(caught.value)
            if "not announced within" not in said:
                break
        assert f"is urn:asap:agent:mallory, not {AGENT}" in said


SLOW = """
import anyio
from asap_adapters.cli.echo_agent import echo_manifest
from asap_core import Agent
agent = Agent(echo_manifest("urn:asap:agent:slow", "http://127.0.0.1:1"))
async def echo(request, context):
    print("at work", flush=True)
    await anyio.sleep(29)
handlers = {"echo": echo}
"""


async def test_on_sigterm_the_goodbye_does_not_wait_for_running_calls(tmp_path, anyio_backend) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    command = [sys.executable, "-u", "-m", "asap_adapters.cli", "serve", "slow:agent"]
    process: Any = subprocess.Popen(  # noqa: ASYNC220 - starts and returns
        [*command, "--mdns", "--port", "0", "--backend", anyio_backend],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)},
    )

    answered = anyio.Event()

    async def call(url) -> None:
        async with AgentClient(sender="urn:asap:agent:me", http=HttpOptions(timeout=60)) as client:
            with contextlib.suppress(AsapError):
                await client.send(url, "task.request", {"skill_id": "echo", "input": {}})
        answered.set()

    try:
        with anyio.fail_after(SECONDS):
            async with browse(interfaces=LOOPBACK) as events, anyio.create_task_group() as group:
                while " listens on " not in (line := await anyio.to_thread.run_sync(process.stdout.readline)):
                    pass
                port = int(line.rpartition(":")[2])
                found = await first(events, Added, port)
                group.start_soon(call, f"http://127.0.0.1:{found.port}")
                while await anyio.to_thread.run_sync(process.stdout.readline) != "at work\n":
                    pass
                process.terminate()
                await first(events, Removed, port)
                assert (process.poll(), answered.is_set()) == (None, False)
                process.terminate()
                assert await anyio.to_thread.run_sync(process.wait) == 130
    finally:
        process.kill()
        process.communicate()
