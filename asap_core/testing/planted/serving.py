"""Serves a planted agent over HTTP: a thread for each connection, on blocking sockets."""

import socket
from contextlib import suppress
from threading import BoundedSemaphore, Thread
from time import monotonic
from typing import Final, Self

from asap_core.testing.planted.agent import PlantedAgent
from asap_core.testing.planted.connection import PlantedConnection

_READ: Final = 65_536
_MOST_CONNECTIONS: Final = 200
# Seconds to go on reading after a refusal, so that the peer gets the response before the reset (RFC 9112 §9.6).
_LINGER: Final = 2.0


class PlantedServer:
    """Listens on a port of this machine until `close`. Use it in a `with` statement.

    port: 0 for any free one; `url` says which.
    """

    def __init__(self, agent: PlantedAgent, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.agent = agent
        self._socket = socket.create_server((host, port), backlog=100)
        self._places = BoundedSemaphore(_MOST_CONNECTIONS)
        self.url = f"http://{host}:{self._socket.getsockname()[1]}"
        self._thread = Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening. Connections end when their peers leave."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                accepted, address = self._socket.accept()
            except OSError:
                return
            if not self._places.acquire(blocking=False):
                accepted.close()
                continue
            Thread(target=self._serve, args=(accepted, str(address[0])), daemon=True).start()

    def _serve(self, accepted: socket.socket, peer: str) -> None:
        try:
            with accepted, suppress(OSError):
                self._converse(accepted, PlantedConnection(self.agent, peer=peer))
        finally:
            self._places.release()

    def _converse(self, accepted: socket.socket, connection: PlantedConnection) -> None:
        phase, since = connection.phase, monotonic()
        while not connection.closed:
            if connection.phase != phase:
                phase, since = connection.phase, monotonic()
            accepted.settimeout(max(0.001, connection.seconds_left(monotonic() - since)))
            try:
                data = accepted.recv(_READ)
            except TimeoutError:
                accepted.sendall(connection.timed_out())
                break
            if not data:
                return
            sent = connection.receive(data)
            if sent:
                accepted.sendall(sent)
                phase = ""  # a response ends the phase, also if the next one has the same name
        _linger(accepted)


def _linger(accepted: socket.socket) -> None:
    """Send the end, and read what the peer was still sending."""
    accepted.shutdown(socket.SHUT_WR)
    until = monotonic() + _LINGER
    while (left := until - monotonic()) > 0:
        accepted.settimeout(left)
        if not accepted.recv(_READ):
            return
