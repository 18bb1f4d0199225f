"""Plain sockets as streams of anyio on trio, with fewer steps for each read and write than anyio's own.

A read lets other tasks run first, and waits for the socket only if nothing is there then: while a busy server serves
others, the next request arrives. A write that the kernel takes at once doesn't wait: what sends without an end calls
`anyio.lowlevel.checkpoint()` itself. `send` returns when the kernel has all bytes, so what's unsent never exceeds what
one call was given.
"""

import socket
from collections.abc import Callable, Mapping
from typing import Any

import anyio
from anyio.abc import ByteStream
from trio.lowlevel import checkpoint, notify_closing, wait_readable, wait_writable

_Attributes = Callable[[socket.socket], Mapping[Any, Callable[[], Any]]]


class TrioStream(ByteStream):
    """A connected, non-blocking socket as a stream.

    attributes: what a server asks of a stream, as anyio's `extra_attributes`.
    """

    def __init__(self, connection: socket.socket, attributes: _Attributes) -> None:
        self._socket, self._attributes = connection, attributes

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """See anyio."""
        return self._attributes(self._socket)

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        """See anyio."""
        self._expect_open()
        await checkpoint()
        while True:
            try:
                data = self._socket.recv(max_bytes)
            except BlockingIOError:
                await wait_readable(self._socket)
                continue
            except OSError as error:
                raise anyio.BrokenResourceError from error
            if not data:
                raise anyio.EndOfStream
            return data

    def receive_nowait(self, max_bytes: int) -> bytes:
        """See `ReadsNow`."""
        try:
            return self._socket.recv(max_bytes)
        except OSError:  # BlockingIOError is one
            return b""

    async def send(self, item: bytes) -> None:
        """See anyio."""
        self._expect_open()
        sent = self._sent(item)
        while sent < len(item):
            await wait_writable(self._socket)
            sent += self._sent(memoryview(item)[sent:])

    def _sent(self, data: bytes | memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise anyio.BrokenResourceError from error

    async def send_eof(self) -> None:
        """See anyio."""
        self._expect_open()
        self._socket.shutdown(socket.SHUT_WR)
        await checkpoint()

    async def aclose(self) -> None:
        """See anyio."""
        if self._socket.fileno() >= 0:
            notify_closing(self._socket)
            self._socket.close()
        await checkpoint()

    def _expect_open(self) -> None:
        if self._socket.fileno() < 0:
            raise anyio.ClosedResourceError
