"""A pool of HTTP/1.1 connections that stays consistent after any cancellation, and that no single origin can use up.

Rules. A connection carries one request at a time, and the request owns its sockets: if the exchange ends early for any
reason, they are closed, whatever state httpcore's connection is in. Only a connection whose last exchange was complete
is kept. Places are counted without an await: taken before the request, and given back first on every way out.

httpcore's own pool isn't used: it keeps a connection for ever if it was cancelled between assignment and use, or while
its response was being closed, and one origin may take all connections.
"""

import math
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Generic, TypeVar

import anyio
import httpcore
from attrs import define, field, frozen

from asap_adapters.net.dialling import close_all
from asap_adapters.net.place_queue import PlaceQueue
from asap_core.client.programs import Route, Stage

# Concurrent requests. One origin alone gets a fifth, which is httpx's own number, 100. The sum stays below the 1,024
# files that a process may open on most systems.
PLACES: Final = 500
# Idle connections kept: httpx's own number.
_IDLE: Final = 20


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
    proxy: the name of the environment's proxy; "" is none.
    addresses: those at which the host was announced, for requests that follow the announcement. A connection to an
        announced address must not serve other requests to the host, nor vice versa.
    """

    origin: tuple[bytes, bytes, int]
    proxy: str = ""
    addresses: tuple[str, ...] = ()


C = TypeVar("C", bound=httpcore.ConnectionInterface | httpcore.AsyncConnectionInterface)
S = TypeVar("S")


@define(eq=False)
class Pooled(Generic[C, S]):
    """A connection, the sockets that were opened for it, and the request on it."""

    key: ConnectionKey
    progress: Progress
    streams: list[S] = field(factory=list)
    inner: C = field(init=False)


PooledConnection = Pooled[httpcore.AsyncConnectionInterface, httpcore.AsyncNetworkStream]


class Connections(Generic[C, S]):
    """Which connections are idle, and which in use. Opens and closes none. For one event loop, or under one lock.

    connect: makes httpcore's connection without opening it.
    """

    def __init__(self, connect: Callable[[Pooled[C, S]], C]) -> None:
        self._connect = connect
        # The most recently used is the last.
        self._idle: list[Pooled[C, S]] = []
        self._busy: set[Pooled[C, S]] = set()
        self.closed = False

    def begin(self, key: ConnectionKey, progress: Progress) -> tuple[Pooled[C, S], list[Pooled[C, S]]]:
        """Return a connection for this request, and the idle connections to close. Raises httpcore's ConnectError."""
        if self.closed:
            raise httpcore.ConnectError("this client was closed")
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

    def drop(self, connection: Pooled[C, S]) -> None:
        """Note that this connection will be closed."""
        self._busy.discard(connection)

    def end(self, connection: Pooled[C, S]) -> list[Pooled[C, S]]:
        """End an exchange: keep its connection if it's reusable. Returns the connections to close."""
        self._busy.discard(connection)
        if self.closed or not connection.inner.is_idle():
            return [connection]
        self._idle.append(connection)
        surplus = self._idle[:-_IDLE]
        self._idle = self._idle[-_IDLE:]
        return surplus

    def close(self) -> tuple[list[Pooled[C, S]], list[Pooled[C, S]]]:
        """Keep no connection from now on. Returns the idle ones and those in use."""
        self.closed = True
        idle, self._idle = self._idle, []
        return idle, list(self._busy)


class ConnectionPool:
    """The connections of one client. For one event loop.

    connect: makes httpcore's connection without opening it.
    """

    def __init__(self, connect: Callable[[PooledConnection], httpcore.AsyncConnectionInterface]) -> None:
        self._connections = Connections(connect)
        self._places: PlaceQueue[ConnectionKey] = PlaceQueue(PLACES)

    async def exchange(self, key: ConnectionKey, request: httpcore.Request, progress: Progress) -> "HeldResponse":
        """Make a request. The response holds its connection until it's closed. Raises httpcore's errors."""
        progress.stage = Stage.QUEUED
        with anyio.CancelScope(deadline=progress.patience) as waiting:
            await self._places.take(key)
        if waiting.cancelled_caught:
            raise httpcore.PoolTimeout
        progress.stage = Stage.CONNECTING
        try:
            connection, stale = self._connections.begin(key, progress)
        except BaseException:
            self._places.give_back(key)
            raise
        try:
            await close_connections(stale)
            response = await connection.inner.handle_async_request(request)
            progress.stage = Stage.ANSWERED
        except BaseException:
            self._connections.drop(connection)
            self._places.give_back(key)
            await close_connections([connection])
            raise
        return HeldResponse(self, connection, response)

    def take_back(self, connection: PooledConnection) -> list[PooledConnection]:
        """End an exchange: keep its connection if it's reusable. Returns the connections to close. No checkpoint."""
        self._places.give_back(connection.key)
        return self._connections.end(connection)

    async def aclose(self) -> None:
        """Close all connections, also those in use."""
        idle, busy = self._connections.close()
        await close_connections([*idle, *busy])


async def close_connections(connections: list[PooledConnection]) -> None:
    """Close the sockets of these connections."""
    if connections:
        await close_all([stream for connection in connections for stream in connection.streams])


class HeldResponse:
    """A response, and the connection from which it's read."""

    def __init__(self, pool: ConnectionPool, connection: PooledConnection, response: httpcore.Response) -> None:
        self.response = response
        self._pool = pool
        self._connection: PooledConnection | None = connection
        self._parts: AsyncIterator[bytes] | None = None

    async def part(self) -> bytes:
        """Return the next part of its body. Raises StopAsyncIteration at its end, and httpcore's errors."""
        if self._parts is None:
            stream: Any = self.response.stream
            self._parts = aiter(stream)
        return await anext(self._parts)

    async def aclose(self) -> None:
        """Release the connection. A second call does nothing."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            with anyio.CancelScope(shield=True):
                await self.response.aclose()
        finally:
            await close_connections(self._pool.take_back(connection))
