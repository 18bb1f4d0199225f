"""Plain sockets of a server as anyio's streams, with fewer steps for each read and write than anyio's own.

A read waits for the socket first, as nothing is there yet when a server reads again. A write that the kernel takes at
once doesn't wait: what sends without an end calls `anyio.lowlevel.checkpoint()` itself. `send` returns when the kernel
has all bytes, so what's unsent never exceeds what one call was given.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final, cast

import anyio
from anyio.abc import ByteStream, Listener, SocketAttribute, SocketStream, TaskGroup

# What anyio reads at once by default. Received bytes that nobody has asked for are twice as many at most.
_READ: Final = 65_536
# What trio sets: the kernel says that more can be written once it has less than this left to send.
_LEAST_UNSENT: Final = 16_384
_INTERNET: Final = frozenset({socket.AF_INET, socket.AF_INET6})


class PlainListener(Listener[ByteStream]):
    """Accepts the connections of one socket, in place of an anyio listener that it takes over."""

    def __init__(self, listener: Listener[SocketStream]) -> None:
        self._listener = listener
        self._socket: socket.socket = listener.extra(SocketAttribute.raw_socket)  # noqa: S610 - anyio's, not Django's
        self._connected = stream_maker()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """See anyio."""
        return self._listener.extra_attributes

    async def accept(self) -> ByteStream:
        """Wait for a connection. Raises OSError if it fails early, or the process has no room for it."""
        while True:
            await anyio.wait_readable(self._socket)
            with suppress(BlockingIOError):  # another process has accepted it
                connection, _ = self._socket.accept()
                break
        try:
            connection.setblocking(False)  # noqa: FBT003 - its only argument
            if connection.family in _INTERNET:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with suppress(AttributeError, OSError):  # not all systems have it
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _LEAST_UNSENT)
            return await self._connected(connection)
        except BaseException:
            connection.close()
            raise

    async def serve(self, handler: Callable[[ByteStream], Any], task_group: TaskGroup | None = None) -> None:
        """See anyio."""
        if task_group is None:
            async with anyio.create_task_group() as group:
                await self.serve(handler, group)
            return
        while True:
            task_group.start_soon(handler, await self.accept())

    async def aclose(self) -> None:
        """See anyio."""
        await self._listener.aclose()


StreamMaker = Callable[[socket.socket], Awaitable[ByteStream]]


def stream_maker() -> StreamMaker:
    """Return what makes streams of connected, non-blocking sockets in the running loop."""
    if asyncio._get_running_loop() is not None:  # noqa: SLF001 - documented, in spite of its name
        return _ConnectedOnAsyncio()
    from trio.lowlevel import notify_closing, wait_readable, wait_writable  # noqa: PLC0415 - on asyncio it's not loaded

    async def connected(connection: socket.socket) -> ByteStream:
        return _TrioStream(connection, wait_readable, wait_writable, notify_closing)

    return connected


def _attributes(connection: socket.socket) -> Mapping[Any, Callable[[], Any]]:
    """What a server asks of a stream. Raises OSError for the address of a peer that has left."""
    return {
        SocketAttribute.family: lambda: connection.family,
        SocketAttribute.raw_socket: lambda: connection,
        SocketAttribute.remote_address: lambda: _address(connection.getpeername()),
    }


def _address(name: object) -> object:
    match name:
        case (str() as host, int() as port, int(), int() as zone):  # IPv6
            return (f"{host}%{zone}" if zone else host), port
        case _:
            return name


class _TrioStream(ByteStream):
    def __init__(
        self,
        connection: socket.socket,
        readable: Callable[[socket.socket], Awaitable[None]],
        writable: Callable[[socket.socket], Awaitable[None]],
        closing: Callable[[socket.socket], None],
    ) -> None:
        self._socket = connection
        self._readable, self._writable, self._closing = readable, writable, closing

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return _attributes(self._socket)

    async def receive(self, max_bytes: int = _READ) -> bytes:
        self._expect_open()
        while True:
            await self._readable(self._socket)
            try:
                data = self._socket.recv(max_bytes)
            except BlockingIOError:
                continue
            except OSError as error:
                raise anyio.BrokenResourceError from error
            if not data:
                raise anyio.EndOfStream
            return data

    async def send(self, item: bytes) -> None:
        self._expect_open()
        sent = self._sent(item)
        while sent < len(item):
            await self._writable(self._socket)
            sent += self._sent(memoryview(item)[sent:])

    def _sent(self, data: bytes | memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise anyio.BrokenResourceError from error

    async def send_eof(self) -> None:
        self._expect_open()
        self._socket.shutdown(socket.SHUT_WR)
        await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        if self._socket.fileno() >= 0:
            self._closing(self._socket)
            self._socket.close()
        await anyio.lowlevel.checkpoint()

    def _expect_open(self) -> None:
        if self._socket.fileno() < 0:
            raise anyio.ClosedResourceError


class _ConnectedOnAsyncio:
    """Makes streams of sockets. They read into one buffer: each takes its bytes out before another one reads."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray(_READ)

    async def __call__(self, connection: socket.socket) -> ByteStream:
        stream = _AsyncioStream(connection, self._loop, self._buffer)
        await self._loop.connect_accepted_socket(lambda: stream, connection)
        return stream


class _AsyncioStream(asyncio.BufferedProtocol, ByteStream):
    _transport: asyncio.Transport

    def __init__(self, connection: socket.socket, loop: asyncio.AbstractEventLoop, buffer: bytearray) -> None:
        self._socket, self._loop = connection, loop
        self._buffer = memoryview(buffer)
        self._received = b""
        self._ended = self._lost = self._closed = self._paused = self._full = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return _attributes(self._socket)

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(0)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - as the protocol has it
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self._buffer[:nbytes])
        self._received = self._received + data if self._received else data
        if self._reader is None or self._reader.done():
            # Nobody has asked for it: the rest stays in the kernel, whose window slows the peer down.
            self._paused = True
            self._transport.pause_reading()
        else:
            self._reader.set_result(None)

    def eof_received(self) -> bool:
        self._ended = True
        _wake(self._reader)
        return True  # our side stays open

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - it's over, for whatever reason
        self._lost, self._full = True, False
        _wake(self._reader)
        _wake(self._writer)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        _wake(self._writer)

    # What the server calls.

    async def receive(self, max_bytes: int = _READ) -> bytes:
        if self._received or self._ended or self._lost:
            await anyio.lowlevel.checkpoint()
        while not self._received:
            self._expect_open()
            if self._ended:
                raise anyio.EndOfStream
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        data = self._received
        data, self._received = (data, b"") if len(data) <= max_bytes else (data[:max_bytes], data[max_bytes:])
        if self._paused and not self._received and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()
        return data

    async def send(self, item: bytes) -> None:
        self._expect_open()
        self._transport.write(item)
        while self._full:
            self._writer = self._loop.create_future()
            try:
                await self._writer
            finally:
                self._writer = None
        self._expect_open()

    async def send_eof(self) -> None:
        self._expect_open()
        self._transport.write_eof()
        await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self._closed = True
        self._transport.abort()  # the kernel has what was sent, and goes on sending it
        await anyio.lowlevel.checkpoint()

    def _expect_open(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
        if self._lost or self._transport.is_closing():
            raise anyio.BrokenResourceError


def _wake(waiter: "asyncio.Future[None] | None") -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
