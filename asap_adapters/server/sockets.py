"""Plain sockets of a server as anyio's streams, with fewer steps for each read and write than anyio's own.

A read on trio lets other tasks run first, and waits for the socket only if nothing is there then: while a busy server
serves others, the next request arrives. A write that the kernel takes at once doesn't wait: what sends without an end
calls `anyio.lowlevel.checkpoint()` itself. `send` returns when the kernel has all bytes, so what's unsent never exceeds
what one call was given.
"""

import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final, Protocol, runtime_checkable

import anyio
from anyio.abc import ByteStream, Listener, SocketAttribute, SocketStream, TaskGroup

from asap_adapters.system import runs_on_asyncio

# What anyio reads at once by default. Received bytes that nobody has asked for are twice as many at most.
_READ: Final = 65_536
# What trio sets: the kernel says that more can be written once it has less than this left to send.
_LEAST_UNSENT: Final = 16_384
# Between two waits a busy server serves all its connections: one new connection for each wait would be few. To accept
# this many takes about a millisecond, for which the others wait.
_ACCEPTED_AT_ONCE: Final = 16
_INTERNET: Final = frozenset({socket.AF_INET, socket.AF_INET6})


@runtime_checkable
class ReadsNow(Protocol):
    """A stream that can be read without waiting, while no task is in its `receive`."""

    def receive_nowait(self, max_bytes: int) -> bytes:
        """Return the bytes that have arrived: none if nothing is there, or the stream is over."""
        ...


class PlainListener(Listener[ByteStream]):
    """Accepts the connections of one socket, in place of an anyio listener that it takes over."""

    def __init__(self, listener: Listener[SocketStream]) -> None:
        self._listener = listener
        self._socket: socket.socket = listener.extra(SocketAttribute.raw_socket)  # noqa: S610 - anyio's, not Django's
        self._connected = stream_maker()
        self._before_wait = 0

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """See anyio."""
        return self._listener.extra_attributes

    async def accept(self) -> ByteStream:
        """Return the next connection; wait for it if none is there, or many have been returned since the last wait.

        It can be cancelled while it waits, and not once it has a connection.

        Raises OSError if the connection fails early, or the process has no room for it.
        """
        connection = await self._next()
        try:
            connection.setblocking(False)  # noqa: FBT003 - its only argument
            if connection.family in _INTERNET:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with suppress(AttributeError, OSError):  # not all systems have it
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _LEAST_UNSENT)
            return self._connected(connection)
        except BaseException:
            connection.close()
            raise

    async def _next(self) -> socket.socket:
        while True:
            if not self._before_wait:
                await anyio.wait_readable(self._socket)
                self._before_wait = _ACCEPTED_AT_ONCE
            self._before_wait -= 1
            try:
                return self._socket.accept()[0]
            except BlockingIOError:  # it was the last one, or another process was faster
                self._before_wait = 0

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


StreamMaker = Callable[[socket.socket], ByteStream]


def stream_maker() -> StreamMaker:
    """Return what makes streams of connected, non-blocking sockets in the running loop."""
    if runs_on_asyncio():
        from asap_adapters.server.asyncio_sockets import ConnectedOnAsyncio  # noqa: PLC0415 - on trio it's not loaded

        return ConnectedOnAsyncio(_READ, _attributes)
    from trio import lowlevel  # noqa: PLC0415 - on asyncio it's not loaded

    waits = lowlevel.checkpoint, lowlevel.wait_readable, lowlevel.wait_writable, lowlevel.notify_closing

    def connected(connection: socket.socket) -> ByteStream:
        return _TrioStream(connection, *waits)

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
        others: Callable[[], Awaitable[None]],
        readable: Callable[[socket.socket], Awaitable[None]],
        writable: Callable[[socket.socket], Awaitable[None]],
        closing: Callable[[socket.socket], None],
    ) -> None:
        self._socket = connection
        self._others, self._readable, self._writable, self._closing = others, readable, writable, closing

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return _attributes(self._socket)

    async def receive(self, max_bytes: int = _READ) -> bytes:
        self._expect_open()
        await self._others()
        while True:
            try:
                data = self._socket.recv(max_bytes)
            except BlockingIOError:
                await self._readable(self._socket)
                continue
            except OSError as error:
                raise anyio.BrokenResourceError from error
            if not data:
                raise anyio.EndOfStream
            return data

    def receive_nowait(self, max_bytes: int) -> bytes:
        try:
            return self._socket.recv(max_bytes)
        except OSError:  # BlockingIOError is one
            return b""

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
