"""The streams of plain sockets, on real ones: no byte is lost, and none is kept without a bound."""

import asyncio
import collections
import contextlib
import math
import os
import socket
import struct
from collections.abc import Iterator
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream, SocketAttribute

from asap_adapters.server.acceptor import stream_maker
from asap_adapters.server.listener import listen, listen_on, serve

pytestmark = [pytest.mark.anyio, pytest.mark.live]
# More than the kernel holds for a connection whose buffers are `SMALL`.
LARGE, SMALL = 4_000_000, 16_384
SECONDS = 30


@pytest.fixture(params=["trio", "asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Real clocks: the sockets are real."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop", reason="needs uvloop: pip install uvloop")
        return "asyncio", {"use_uvloop": True}
    return request.param


@pytest.fixture(params=["tcp", "unix"])
def sockets(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A pair of connected sockets with small buffers; neither blocks."""
    if request.param == "unix":
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours = socket.create_connection(server.getsockname())
            theirs, _ = server.accept()
    for each in (ours, theirs):
        each.setblocking(False)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    with ours, theirs:
        yield ours, theirs


@contextlib.asynccontextmanager
async def connected(theirs: socket.socket) -> Any:
    stream = stream_maker()(theirs)
    try:
        with anyio.fail_after(SECONDS):
            yield stream
    finally:
        with anyio.CancelScope(shield=True):
            await stream.aclose()


async def send_all(ours: socket.socket, data: bytes) -> None:
    while data:
        with contextlib.suppress(BlockingIOError):
            data = data[ours.send(data) :]
        await anyio.lowlevel.checkpoint()


async def receive_all(ours: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        with contextlib.suppress(BlockingIOError):
            received += ours.recv(65_536)
        await anyio.lowlevel.checkpoint()
    return bytes(received)


async def turns(number: int) -> None:
    for _ in range(number):
        await anyio.lowlevel.checkpoint()


async def forever(use: Any) -> None:
    while True:
        await use()


def push(ours: socket.socket) -> int:
    """Send until the kernel takes no more. Returns how much it took."""
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < LARGE:
            sent += ours.send(bytes(65_536))
    return sent


class TestBytes:
    @pytest.mark.parametrize("size", [1, 65_536, 65_537, LARGE])
    async def test_all_bytes_pass_in_order_in_both_directions(self, sockets, size) -> None:
        ours, theirs = sockets
        data, received = os.urandom(size), bytearray()
        async with connected(theirs) as stream, anyio.create_task_group() as group:
            group.start_soon(send_all, ours, data)
            while len(received) < size:
                received += await stream.receive()
            group.start_soon(stream.send, data)
            assert await receive_all(ours, size) == data == bytes(received)

    async def test_a_read_returns_at_most_what_it_asks_for(self, sockets) -> None:
        ours, theirs = sockets
        async with connected(theirs) as stream:
            ours.send(b"abcdef")
            assert [await stream.receive(4), await stream.receive(4)] == [b"abcd", b"ef"]

    async def test_the_streams_of_one_loop_keep_their_bytes_apart(self) -> None:
        make, pairs = stream_maker(), [socket.socketpair() for _ in range(20)]
        for ours, theirs in pairs:
            ours.setblocking(False)
            theirs.setblocking(False)
        streams = [make(theirs) for _, theirs in pairs]
        for number, (ours, _) in enumerate(pairs):
            ours.send(b"%d" % number)
        await turns(5)
        assert [await stream.receive() for stream in streams] == [b"%d" % number for number in range(20)]
        for stream, (ours, _) in zip(streams, pairs, strict=True):
            await stream.aclose()
            ours.close()


class TestBounds:
    async def test_what_nobody_asks_for_stays_in_the_kernel_and_is_read_later(self, sockets) -> None:
        ours, theirs = sockets
        async with connected(theirs) as stream:
            sent = 0
            for _ in range(50):  # as often as a stream without bounds would read
                sent += push(ours)
                await turns(3)
            # The kernel's buffers, and two reads that this process holds.
            assert sent < 1_000_000
            received = 0
            while received < sent:
                received += len(await stream.receive())
            async with anyio.create_task_group() as group:
                group.start_soon(send_all, ours, b"x" * LARGE)
                while received < sent + LARGE:
                    received += len(await stream.receive())

    async def test_a_write_ends_when_the_kernel_has_all_of_it(self, sockets) -> None:
        ours, theirs = sockets
        async with connected(theirs) as stream:
            with anyio.move_on_after(0.1) as scope:
                await stream.send(bytes(LARGE))
            assert scope.cancelled_caught
            assert 0 < len(await receive_all(ours, 1)) < LARGE


class TestEnds:
    async def test_a_peer_that_has_ended_its_side_still_reads(self, sockets) -> None:
        ours, theirs = sockets
        async with connected(theirs) as stream:
            ours.send(b"last")
            ours.shutdown(socket.SHUT_WR)
            assert await stream.receive() == b"last"
            for _ in range(2):
                with pytest.raises(anyio.EndOfStream):
                    await stream.receive()
            await stream.send(b"answer")
            await stream.send_eof()
            assert await receive_all(ours, 6) == b"answer"
            assert ours.recv(1) == b""

    async def test_a_reader_that_waits_sees_the_end(self, sockets) -> None:
        ours, theirs = sockets
        async with connected(theirs) as stream, anyio.create_task_group() as group:

            async def read() -> None:
                with pytest.raises(anyio.EndOfStream):
                    await stream.receive()

            group.start_soon(read)
            await turns(5)
            ours.shutdown(socket.SHUT_WR)

    @pytest.mark.parametrize("sockets", ["tcp"], indirect=True)
    @pytest.mark.parametrize("waiting", [True, False])
    async def test_a_reset_ends_reading_and_writing(self, sockets, waiting) -> None:
        ours, theirs = sockets

        async def use(each: Any) -> None:
            # The one that comes first is told of the reset; a read after it sees an end.
            with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
                await forever(each)

        async with connected(theirs) as stream, anyio.create_task_group() as group:
            if waiting:
                group.start_soon(use, stream.receive)
                group.start_soon(use, lambda: stream.send(bytes(LARGE)))
                await turns(5)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            ours.close()
            if not waiting:
                await use(stream.receive)
                await use(lambda: stream.send(bytes(LARGE)))

    async def test_a_closed_stream_says_so(self, sockets) -> None:
        ours, theirs = sockets
        stream = stream_maker()(theirs)
        await stream.aclose()
        await stream.aclose()
        for use in (stream.receive, lambda: stream.send(b"x"), stream.send_eof):
            with pytest.raises(anyio.ClosedResourceError):
                await use()
        await turns(3)
        assert (ours.recv(1), theirs.fileno()) == (b"", -1)

    async def test_the_peer_sees_the_end_as_soon_as_the_stream_is_told_to_close(self, sockets) -> None:
        """Its next request would be lost between that moment and the loop's next round, which may take long."""
        ours, theirs = sockets
        async with connected(theirs) as stream:
            await stream.send(b"x")
            assert await receive_all(ours, 1) == b"x"
            closing = stream.aclose()
            closing.send(None)  # up to where it first waits
            assert ours.recv(1) == b""
            closing.close()

    async def test_what_was_sent_arrives_after_the_stream_is_closed(self, sockets) -> None:
        ours, theirs = sockets
        stream = stream_maker()(theirs)
        await stream.send(b"x" * 10_000)
        await anyio.aclose_forcefully(stream)
        assert await receive_all(ours, 10_000) == b"x" * 10_000

    async def test_what_could_not_be_sent_is_dropped_when_the_stream_is_closed(self, sockets) -> None:
        ours, theirs = sockets
        stream = stream_maker()(theirs)
        with anyio.move_on_after(0.05):
            await stream.send(bytes(LARGE))
        await anyio.aclose_forcefully(stream)
        received = 0
        with anyio.fail_after(SECONDS):
            while True:
                try:
                    data = ours.recv(65_536)
                except BlockingIOError:
                    await anyio.lowlevel.checkpoint()
                    continue
                received += len(data)
                if not data:
                    break
        assert received < LARGE


class TestCancellation:
    @pytest.mark.parametrize("native", [False, True])
    async def test_a_read_that_is_cancelled_at_any_moment_loses_no_byte(self, sockets, native, anyio_backend) -> None:
        if native and anyio_backend == "trio":
            pytest.skip("cannot run anywhere here: trio has no other cancellation than its scopes")
        ours, theirs = sockets
        async with connected(theirs) as stream:
            for before in range(6):
                for after in range(6):
                    received = await self._cancelled(stream, ours, before, after, native=native)
                    assert received or await stream.receive() == b"x"

    async def _cancelled(
        self, stream: ByteStream, ours: socket.socket, before: int, after: int, *, native: bool
    ) -> bytes:
        """Start a read, send a byte after some turns and cancel after others. Returns what the read returned."""
        received, task = b"", None

        async def read() -> None:
            nonlocal received
            received = await stream.receive()

        if native:
            task = asyncio.ensure_future(read())
            await turns(before)
            ours.send(b"x")
            await turns(after)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            return received
        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await turns(before)
            ours.send(b"x")
            await turns(after)
            group.cancel_scope.cancel()
        return received

    async def test_cancelled_reads_and_writes_end_at_once_and_the_stream_can_be_closed(self, sockets) -> None:
        _ours, theirs = sockets
        async with connected(theirs) as stream:
            for use in (stream.receive, lambda: stream.send(bytes(LARGE))):
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await use()
                assert scope.cancelled_caught


class TestAccepting:
    async def test_connections_have_the_addresses_of_their_peers(self) -> None:
        bound = await listen("127.0.0.1", 0)
        with socket.create_connection(("127.0.0.1", bound.port)) as ours, anyio.fail_after(SECONDS):
            (listener,) = bound.listener.listeners  # type: ignore[attr-defined]
            stream = await listener.accept()
            assert stream.extra(SocketAttribute.remote_address) == ours.getsockname()
            assert stream.extra(SocketAttribute.family) == socket.AF_INET
            assert stream.extra(SocketAttribute.raw_socket).getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            await stream.aclose()
        await bound.listener.aclose()

    @pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="cannot run anywhere here: UNIX sockets")
    async def test_several_listeners_of_one_socket_share_its_connections(self, tmp_path) -> None:
        one = socket.socket(socket.AF_UNIX)
        one.bind(str(tmp_path / "s"))
        one.listen(100)
        bounds = [await listen_on([each], "") for each in (one, one.dup())]
        taken: list[ByteStream] = []
        with anyio.fail_after(SECONDS):
            async with anyio.create_task_group() as group:

                async def take(stream: ByteStream) -> None:
                    taken.append(stream)
                    if len(taken) == 20:
                        group.cancel_scope.cancel()

                for bound in bounds:
                    group.start_soon(bound.listener.serve, take)
                peers = [socket.socket(socket.AF_UNIX) for _ in range(20)]
                for peer in peers:
                    peer.connect(str(tmp_path / "s"))
        assert {stream.extra(SocketAttribute.family) for stream in taken} == {socket.AF_UNIX}
        for each in (*taken, *(bound.listener for bound in bounds)):
            await each.aclose()
        for peer in peers:
            peer.close()

    async def test_many_are_accepted_in_a_round_and_the_others_have_their_turn(self) -> None:
        bound = await listen("127.0.0.1", 0)
        (listener,) = bound.listener.listeners  # type: ignore[attr-defined]
        rounds, accepted_in = 0, []
        with contextlib.ExitStack() as peers:
            for _ in range(64):
                peers.enter_context(socket.create_connection(("127.0.0.1", bound.port)))
            with anyio.fail_after(SECONDS):
                async with anyio.create_task_group() as group:

                    async def count() -> None:
                        nonlocal rounds
                        while True:
                            rounds += 1
                            await anyio.lowlevel.checkpoint()

                    group.start_soon(count)
                    for _ in range(64):
                        stream = await listener.accept()
                        accepted_in.append(rounds)
                        group.start_soon(stream.aclose)
                    group.cancel_scope.cancel()
        assert accepted_in[-1] - accepted_in[0] <= 20
        # Trio runs the tasks of a round in any order: the counter may be first in one and last in the next.
        assert max(collections.Counter(accepted_in).values()) <= 32
        await bound.listener.aclose()

    async def test_newcomers_have_their_answers_soon_while_others_ask_all_the_time(self, agent, echo_handlers) -> None:
        answers, served = collections.Counter[str](), agent(peer_limits=(), trusted_proxies=("127.0.0.1",))

        async def ask(port: int, name: str, times: float) -> None:
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                while answers[name] < times:
                    await stream.send(b"GET /.well-known/asap/health HTTP/1.1\r\nHost: a\r\n\r\n")
                    assert b"200 OK" in await stream.receive()
                    answers[name] += 1

        with anyio.fail_after(SECONDS):
            async with anyio.create_task_group() as group:
                bound = await listen("127.0.0.1", 0)
                await group.start(partial(serve, served, echo_handlers, at=bound))
                for number in range(100):
                    group.start_soon(ask, bound.port, f"busy {number}", math.inf)
                while len(answers) < 100:
                    await turns(1)
                before = answers.total()
                async with anyio.create_task_group() as newcomers:
                    for number in range(30):
                        newcomers.start_soon(ask, bound.port, f"new {number}", 1)
                # If one connection were accepted in a round, each of the others would have 20 answers meanwhile.
                assert (answers.total() - before) / 100 <= 10
                group.cancel_scope.cancel()

    async def test_a_server_that_is_cancelled_while_it_accepts_closes_all(self, agent, echo_handlers) -> None:
        for steps in range(12):
            bound = await listen("127.0.0.1", 0)
            with contextlib.ExitStack() as stack:
                peers = [stack.enter_context(socket.create_connection(("127.0.0.1", bound.port))) for _ in range(40)]
                with anyio.fail_after(SECONDS):
                    async with anyio.create_task_group() as group:
                        await group.start(partial(serve, agent(), echo_handlers, at=bound))
                        await turns(steps)
                        group.cancel_scope.cancel()
                for peer in peers:
                    assert await self._closed(peer)

    async def test_accepting_may_be_cancelled_at_any_moment(self) -> None:
        bound = await listen("127.0.0.1", 0)
        (listener,) = bound.listener.listeners  # type: ignore[attr-defined]
        for steps in range(8):
            with socket.create_connection(("127.0.0.1", bound.port)) as ours, anyio.fail_after(SECONDS):
                accepted: list[ByteStream] = []

                async def accept(into: list[ByteStream]) -> None:
                    into.append(await listener.accept())

                async with anyio.create_task_group() as group:
                    group.start_soon(accept, accepted)
                    await turns(steps)
                    group.cancel_scope.cancel()
                stream = accepted[0] if accepted else None
                if stream is None and (await self._closed(ours)):
                    continue
                await (stream or await listener.accept()).aclose()
        await bound.listener.aclose()

    async def _closed(self, ours: socket.socket) -> bool:
        """Whether the connection was accepted and dropped, as its peer sees it."""
        ours.setblocking(False)
        await turns(5)
        try:
            return not ours.recv(1)
        except BlockingIOError:
            return False
        except ConnectionError:
            return True
