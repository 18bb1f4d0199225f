"""A scripted HTTP server on loopback, in threads: says what it's told, and notes what arrives."""

import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from attrs import define, field

_PIECE: Final = 65_536
# In seconds. A server that is to be silent is so for longer than any check waits.
SILENCE: Final = 60.0

LoopbackScript = Callable[[], Iterable[bytes | float]]
"""What is sent, and how many seconds are waited in between; then the connection is closed."""


@define(eq=False)
class Arrival:
    """One request that arrived, and when its peer closed the connection before all was said."""

    path: str
    head: str
    body: bytes = b""
    left: threading.Event = field(factory=threading.Event)

    def header(self, name: str) -> str | None:
        """Return the value of a header field, or None."""
        fields = (line.partition(":") for line in self.head.splitlines()[1:])
        return next((value.strip() for key, _, value in fields if key.lower() == name), None)


class LoopbackServer:
    """Answers on 127.0.0.1, and on no other address.

    scripts: what it says, by path.
    unread: the paths whose requests aren't read beyond the first bytes.
    """

    def __init__(self, scripts: dict[str, LoopbackScript], *, unread: tuple[str, ...] = ()) -> None:
        self.scripts, self.unread = scripts, unread
        self.arrivals: list[Arrival] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        """Return the server, which runs already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        for each in (self._listener, *self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def paths(self) -> list[str]:
        """Return the paths of the requests that arrived, in order."""
        return [each.path for each in self.arrivals]

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.add(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            arrival = self._read(connection)
            if arrival is not None:
                self._say(connection, arrival)
        self._open.discard(connection)

    def _read(self, connection: socket.socket) -> Arrival | None:
        data = bytearray()
        while b"\r\n\r\n" not in data:
            piece = connection.recv(_PIECE)
            if not piece:
                return None
            data += piece
        head, _, body = bytes(data).partition(b"\r\n\r\n")
        arrival = Arrival(head.split(b" ")[1].decode("latin-1"), head.decode("latin-1"))
        self.arrivals.append(arrival)
        left = int(arrival.header("content-length") or 0) - len(body)
        pieces = [body]
        while left > 0 and arrival.path not in self.unread and (piece := connection.recv(_PIECE)):
            pieces.append(piece)
            left -= len(piece)
        arrival.body = b"".join(pieces)
        return arrival

    def _say(self, connection: socket.socket, arrival: Arrival) -> None:
        try:
            for each in self.scripts[arrival.path]():
                if isinstance(each, bytes):
                    connection.sendall(each)
                elif arrival.path in self.unread:
                    time.sleep(each)
                else:
                    self._wait(connection, each)
        except OSError:
            arrival.left.set()

    def _wait(self, connection: socket.socket, seconds: float) -> None:
        """Wait, unless the peer leaves. Raises OSError then."""
        connection.settimeout(seconds)
        try:
            while connection.recv(_PIECE):
                pass
        except TimeoutError:
            connection.settimeout(None)
        else:
            raise ConnectionResetError
