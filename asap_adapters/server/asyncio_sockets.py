"""Plain sockets as streams of anyio on asyncio, by a protocol of the server's own."""

import asyncio
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, cast

import anyio
from anyio.abc import ByteStream

_Attributes = Callable[[socket.socket], Mapping[Any, Callable[[], Any]]]


class ConnectedOnAsyncio:
    """Makes streams of sockets. They read into one buffer: each takes its bytes out before another one reads.

    size: of that buffer, in bytes.
    attributes: what a server asks of a stream, as anyio's `extra_attributes`.
    """

    def __init__(self, size: int, attributes: _Attributes) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray(size)
        self._attributes = attributes

    def __call__(self, connection: socket.socket) -> ByteStream:
        """Make the stream of a connected, non-blocking socket."""
        return _AsyncioStream(connection, self._loop, self._buffer, self._attributes)


class _AsyncioStream(asyncio.BufferedProtocol, ByteStream):
    _transport: asyncio.Transport  # if `_made`

    def __init__(
        self, connection: socket.socket, loop: asyncio.AbstractEventLoop, buffer: bytearray, attributes: _Attributes
    ) -> None:
        self._socket, self._loop, self._attributes = connection, loop, attributes
        self._buffer = memoryview(buffer)
        self._received = b""
        self._made = self._ended = self._lost = self._closed = self._paused = self._full = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        # It takes rounds of the loop: in a task of its own, so that the next connection isn't accepted after them.
        self._connecting = loop.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: self, self._socket)
        except OSError:
            self._socket.close()
            self.connection_lost(None)
            return
        if self._closed:
            self._transport.abort()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return self._attributes(self._socket)

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(0)
        self._made = True

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

    async def receive(self, max_bytes: int = 65_536) -> bytes:
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
        return self._taken(max_bytes)

    def receive_nowait(self, max_bytes: int) -> bytes:
        if not (self._received or self._ended or self._lost or self._closed):
            try:
                return self._socket.recv(max_bytes)  # what the loop hasn't seen yet
            except OSError:  # BlockingIOError is one
                return b""
        return self._taken(max_bytes)

    def _taken(self, max_bytes: int) -> bytes:
        data = self._received
        data, self._received = (data, b"") if len(data) <= max_bytes else (data[:max_bytes], data[max_bytes:])
        if self._paused and not self._received and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()
        return data

    async def send(self, item: bytes) -> None:
        if not self._made:
            await self._connected()
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
        if not self._made:
            await self._connected()
        self._expect_open()
        self._transport.write_eof()
        await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self._closed = True
        # Otherwise `_connect` does it: before that uvloop closes the descriptor, but not the socket object.
        if self._made and self._connecting.done():
            # The transport closes the socket in another round of the loop: until then a peer would send in vain.
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
            self._transport.abort()  # the kernel has what was sent, and goes on sending it
        await anyio.lowlevel.checkpoint()

    async def _connected(self) -> None:
        self._expect_open()
        await asyncio.wait([self._connecting])

    def _expect_open(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
        if self._lost or (self._made and self._transport.is_closing()):
            raise anyio.BrokenResourceError


def _wake(waiter: "asyncio.Future[None] | None") -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
