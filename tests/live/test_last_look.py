"""Idle connections that end, on real sockets: a request that has arrived by then is answered."""

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.streams.tls import TLSStream

from asap_adapters.server.acceptor import stream_maker
from asap_adapters.server.connection import serve_connection
from asap_adapters.server.connection_limits import ConnectionSlots, Sweeper
from asap_adapters.server.driver import Driver
from asap_adapters.server.handlers import Handlers
from asap_adapters.server.startup import bind_agent
from asap_adapters.server.tls import TLS, accept_tls
from tests import builders

pytestmark = [pytest.mark.anyio, pytest.mark.live]
GET = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
SECONDS = 60


@pytest.fixture(params=["trio", "asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    if request.param == "uvloop":
        pytest.importorskip("uvloop", reason="needs uvloop: pip install uvloop")
        return "asyncio", {"use_uvloop": True}
    return request.param


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A pair of connected sockets; the server's doesn't block."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours = socket.create_connection(listening.getsockname())
        theirs, _ = listening.accept()
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


class Serving:
    """One idle connection of a server, and what can end it."""

    def __init__(self) -> None:
        self.now = anyio.current_time()
        self.stop, self.slots, self.sweeper = anyio.Event(), ConnectionSlots(2), Sweeper(lambda: self.now)
        self.settled: anyio.Event | None = None

    async def is_idle(self) -> None:
        """Wait until the connection waits for a request."""
        while not (self.slots._waiting_first or self.slots._waiting_again):  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(0.001)

    def give_way(self) -> None:
        self.settled = self.slots.dismiss("a")
        assert self.settled is not None

    def expire(self) -> None:
        self.now += 1_000
        self.sweeper.sweep()

    def end(self) -> None:
        self.stop.set()
        self.slots.end_waiting()


@pytest.fixture
def serving(sockets: Any) -> Any:
    """`async with serving() as server`: `server.stream` is the server's end, and idle."""

    @asynccontextmanager
    async def run(secured: Callable[[Any], Any] | None = None) -> Any:
        server, agent = Serving(), builders.agent()
        driver = Driver(agent, Handlers({"echo": lambda request, _context: request.input}))
        bind_agent(agent)
        slot = server.slots.enter("a")
        stream = stream_maker()(sockets[1])

        async def serve() -> None:
            over = stream if secured is None else await secured(stream)
            try:
                await serve_connection(
                    over, driver, peer="192.0.2.1", sweeper=server.sweeper, slot=slot, stop=server.stop
                )
            finally:
                await anyio.aclose_forcefully(stream)
                slot.give_back()

        with anyio.fail_after(SECONDS):
            async with anyio.create_task_group() as group:
                group.start_soon(serve)
                yield server
                group.cancel_scope.cancel()

    return run


async def received(ours: socket.socket) -> bytes:
    ours.settimeout(SECONDS)
    try:
        return await anyio.to_thread.run_sync(ours.recv, 65_536)
    except ConnectionResetError:
        return b"reset"


@pytest.mark.parametrize(("ends", "closes"), [(Serving.give_way, False), (Serving.expire, False), (Serving.end, True)])
@pytest.mark.parametrize("before", [b"", GET])
async def test_a_request_written_just_before_is_answered(serving, sockets, ends, closes, before) -> None:
    ours, _ = sockets
    async with serving() as server:
        if before:
            ours.sendall(before)
            assert (await received(ours)).startswith(b"HTTP/1.1 200 ")
        await server.is_idle()
        ours.sendall(GET)  # the loop hasn't seen it
        ends(server)
        answer = await received(ours)
        assert (answer[:13], b"connection: close" in answer) == (b"HTTP/1.1 200 ", closes)
        if server.settled is not None:
            assert server.settled.is_set()  # the newcomer looks for another place


@pytest.mark.parametrize("ends", [Serving.give_way, Serving.expire, Serving.end])
async def test_a_silent_connection_ends(serving, sockets, ends) -> None:
    async with serving() as server:
        await server.is_idle()
        ends(server)
        assert await received(sockets[0]) == b""


async def test_part_of_a_head_does_not_keep_the_place(serving, sockets) -> None:
    async with serving() as server:
        await server.is_idle()
        sockets[0].sendall(GET[:-1])
        server.give_way()
        assert await received(sockets[0]) == b""
        assert server.settled is not None
        await server.settled.wait()


async def test_the_rest_of_a_head_may_follow_while_the_server_stops(serving, sockets) -> None:
    async with serving() as server:
        await server.is_idle()
        sockets[0].sendall(GET[:-1])
        server.end()
        await anyio.sleep(0.05)
        sockets[0].sendall(GET[-1:])
        assert (await received(sockets[0])).startswith(b"HTTP/1.1 200 ")


async def test_over_tls_a_request_written_just_before_is_answered(serving, sockets, certificate) -> None:
    context = ssl.create_default_context(cafile=certificate[0])
    there = TLS(Path(certificate[0]), Path(certificate[1])).context()
    raw = sockets[0].dup()
    raw.setblocking(False)
    with raw:
        async with serving(lambda stream: accept_tls(stream, there)) as server:
            plain = stream_maker()(raw)
            ours = await TLSStream.wrap(plain, hostname="127.0.0.1", ssl_context=context, server_side=False)
            await server.is_idle()
            ours._ssl_object.write(GET)
            sockets[0].send(ours._write_bio.read())
            server.give_way()
            assert (await ours.receive()).startswith(b"HTTP/1.1 200 ")
            await anyio.aclose_forcefully(plain)


class TestOrder:
    """The one idle longest gives way; a connection that is new counts as idle from a second after it came."""

    @pytest.mark.parametrize(("idle", "goes"), [(0.5, "new"), (1.5, "kept")])
    async def test_a_new_connection_is_compared_with_one_that_was_served(self, idle: float, goes: str) -> None:
        slots, gone, start = ConnectionSlots(3), [], time.monotonic()
        kept, new = slots.enter("a"), slots.enter("a")
        kept.stays()
        # Both on the scale of the comparison: the new one counts from `start + idle`.
        new.waits(lambda: gone.append("new"), start + idle - 1)
        kept.waits(lambda: gone.append("kept"), start + 1)
        slots.dismiss("a")
        assert gone == [goes]
        slots.dismiss("a")
        assert sorted(gone) == ["kept", "new"]
        assert slots.dismiss("a") is None
