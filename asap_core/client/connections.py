"""Which connections of a client are idle and which are in use, and which requests may share one.

Rules. A connection carries one request at a time, and the request owns its sockets: if the exchange ends early for any
reason, they are closed. Only a connection whose last exchange was complete is kept.
"""

import math
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

from attrs import define, field, frozen

from asap_core.client.programs import Route, Stage
from asap_core.net.environment_proxies import ProxyUrl

# Concurrent requests. One origin alone gets a fifth, which is httpx's own number, 100. The sum stays below the 1,024
# files that a process may open on most systems.
PLACES: Final = 500
# Idle connections kept: httpx's own number.
MAX_IDLE: Final = 20
# For how many seconds an idle connection is kept: httpx's own number. This library's servers keep it for longer.
IDLE_SECONDS: Final = 5.0


@define(eq=False)
class Progress:
    """How far a request has got. The default is for transports that don't report it: it may have been sent.

    patience: until when, by the loop's clock, the request may wait for a connection. It leaves time for the exchange,
        since the response to a message sent at the last moment would be lost.
    end: until when blocking sockets may wait, by the system's monotonic clock.
    """

    stage: Stage = Stage.SENT
    patience: float = math.inf
    end: float = math.inf
    route: Route = field(factory=lambda: Route("", 0, ""))
    address: str | None = None
    """What this request connected to, if it made a connection."""


@frozen
class ConnectionKey:
    """Requests with equal keys may share connections.

    origin: scheme, host and port.
    proxy: the environment's, if one is used.
    addresses: those at which the host was announced, for requests that follow the announcement. A connection to an
        announced address must not serve other requests to the host, nor vice versa.
    """

    origin: tuple[bytes, bytes, int]
    proxy: ProxyUrl | None = None
    addresses: tuple[str, ...] = ()


class HttpConnection(Protocol):
    """The state of an HTTP/1.1 connection, such as httpcore's."""

    def is_closed(self) -> bool:
        """Return whether it was closed here."""

    def has_expired(self) -> bool:
        """Return whether it has been idle for too long, or was closed by the server."""

    def is_idle(self) -> bool:
        """Return whether its last exchange was complete, and another one may follow."""


C = TypeVar("C", bound=HttpConnection)
S = TypeVar("S")


@define(eq=False)
class Pooled(Generic[C, S]):
    """A connection, the sockets that were opened for it, and the request on it."""

    key: ConnectionKey
    progress: Progress
    streams: list[S] = field(factory=list)
    inner: C = field(init=False)


class Connections(Generic[C, S]):
    """Which connections are idle, and which in use. Opens and closes none. For one event loop, or under one lock.

    connect: makes a connection without opening it.
    """

    def __init__(self, connect: Callable[[Pooled[C, S]], C]) -> None:
        self._connect = connect
        # The most recently used is the last.
        self._idle: list[Pooled[C, S]] = []
        self._busy: set[Pooled[C, S]] = set()
        self.closed = False

    def begin(self, key: ConnectionKey, progress: Progress) -> tuple[Pooled[C, S], list[Pooled[C, S]]]:
        """Return a connection for this request, and the idle connections to close. Not after `close`."""
        stale = [each for each in self._idle if each.inner.is_closed() or each.inner.has_expired()]
        self._idle = [each for each in self._idle if each not in stale]
        connection = next((each for each in reversed(self._idle) if each.key == key), None)
        if connection is None:
            connection = Pooled[C, S](key, progress)
            connection.inner = self._connect(connection)
        else:
            self._idle.remove(connection)
            connection.progress = progress
        self._busy.add(connection)
        return connection, stale

    def end(self, connection: Pooled[C, S]) -> list[Pooled[C, S]]:
        """End an exchange, however it went: keep its connection if it's reusable. Returns the connections to close."""
        self._busy.discard(connection)
        # httpcore's are idle too if they couldn't connect.
        if self.closed or connection.inner.is_closed() or not connection.inner.is_idle():
            return [connection]
        self._idle.append(connection)
        surplus = self._idle[:-MAX_IDLE]
        self._idle = self._idle[-MAX_IDLE:]
        return surplus

    def close(self) -> tuple[list[Pooled[C, S]], list[Pooled[C, S]]]:
        """Keep no connection from now on. Returns the idle ones and those in use."""
        self.closed = True
        idle, self._idle = self._idle, []
        return idle, list(self._busy)
