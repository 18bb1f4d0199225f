"""A pool of HTTP/1.1 connections that is whole after any cancellation, and that no origin can use up.

Rules. A line (a connection) carries one request at a time, and who carries it owns its sockets: if anything ends the
exchange early, they're closed, whatever state httpcore has it in. Only a line whose last exchange came to its end is
kept. Places are counted without an await: taken before the request, given back on every way out, first of all.

httpcore's own pool isn't used: it keeps a connection for ever that was cancelled between being assigned and used, or
while its response was being closed, and lets one origin have all.
"""

import math
from collections.abc import AsyncIterator, Callable
from enum import Enum
from typing import Any, Final

import anyio
import httpcore
from attrs import define, field, frozen

from asap_adapters.net.dialling import close_all
from asap_adapters.net.turns import Turns

# Requests at once. One origin alone gets a fifth of it, which is httpx's own number, 100; all together stay below the
# 1,024 files that a process may have open on most systems.
_PLACES: Final = 500
# Idle connections kept: httpx's own number.
_IDLE: Final = 20


class Stage(Enum):
    """How far a request has got."""

    QUEUED = "queued"
    """It waits for a place of this client's own: a connection, or a thread to look its name up in."""
    CONNECTING = "connecting"
    SENT = "sent"
    """Its head has been written, and its body is next: the server may carry it out."""
    ANSWERED = "answered"
    """The head of an answer has come."""


@define(eq=False)
class Progress:
    """How far a request has got: what its end says of it. A transport that doesn't tell may have sent it.

    Until `patience`, by the loop's clock, it may wait for a connection. The rest of its time is for the exchange: a
    message that's sent in the last moment is one whose answer nobody hears.
    """

    stage: Stage = Stage.SENT
    patience: float = math.inf


@frozen
class Route:
    """Where requests go (scheme, host, port), and by which proxy of the environment; "" is none.

    `addresses` are those that the host was announced at, for requests that follow the announcement.
    """

    origin: tuple[bytes, bytes, int]
    proxy: str = ""
    addresses: tuple[str, ...] = ()


@define(eq=False)
class Line:
    """A connection, the sockets that were opened for it, and the request on it."""

    route: Route
    progress: Progress
    streams: list[httpcore.AsyncNetworkStream] = field(factory=list)
    connection: httpcore.AsyncConnectionInterface = field(init=False)


class Pool:
    """Connections for one client. `connect` makes one for a line, without opening it. One event loop owns it."""

    def __init__(self, connect: Callable[[Line], httpcore.AsyncConnectionInterface]) -> None:
        self._connect = connect
        self._turns: Turns[Route] = Turns(_PLACES)
        # Those used last at the end.
        self._idle: list[Line] = []
        self._busy: set[Line] = set()
        self._closed = False

    async def exchange(self, route: Route, request: httpcore.Request, progress: Progress) -> "Held":
        """Make a request. What comes back holds its connection until it's closed. Raises httpcore's errors."""
        progress.stage = Stage.QUEUED
        with anyio.CancelScope(deadline=progress.patience) as waiting:
            await self._turns.take(route)
        if waiting.cancelled_caught:
            raise httpcore.PoolTimeout
        progress.stage = Stage.CONNECTING
        try:
            line, stale = self._line(route, progress)
        except BaseException:
            self._turns.give_back(route)
            raise
        try:
            await close_lines(stale)
            response = await line.connection.handle_async_request(request)
            progress.stage = Stage.ANSWERED
        except BaseException:
            self._leave(line)
            await close_lines([line])
            raise
        return Held(self, line, response)

    def _line(self, route: Route, progress: Progress) -> tuple[Line, list[Line]]:
        """A line for this request, and those that are of no more use."""
        if self._closed:
            raise httpcore.ConnectError("this client was closed")
        stale = [line for line in self._idle if line.connection.is_closed() or line.connection.has_expired()]
        self._idle = [line for line in self._idle if line not in stale]
        line = next((line for line in reversed(self._idle) if line.route == route), None)
        if line is None:
            line = Line(route, progress)
            line.connection = self._connect(line)
        else:
            self._idle.remove(line)
            line.progress = progress
        self._busy.add(line)
        return line, stale

    def _leave(self, line: Line) -> None:
        self._busy.discard(line)
        self._turns.give_back(line.route)

    def take_back(self, line: Line) -> list[Line]:
        """The exchange is over: keep the line if it can be used again. Returns those to be closed. No checkpoint."""
        self._leave(line)
        if self._closed or not line.connection.is_idle():
            return [line]
        self._idle.append(line)
        surplus = self._idle[:-_IDLE]
        self._idle = self._idle[-_IDLE:]
        return surplus

    async def aclose(self) -> None:
        """Close all connections, those in use too."""
        self._closed = True
        lines, self._idle = [*self._idle, *self._busy], []
        await close_lines(lines)


async def close_lines(lines: list[Line]) -> None:
    """Close the sockets of these."""
    if lines:
        await close_all([stream for line in lines for stream in line.streams])


class Held:
    """A response, and the line that it comes over."""

    def __init__(self, pool: Pool, line: Line, response: httpcore.Response) -> None:
        self.response = response
        self._pool = pool
        self._line: Line | None = line
        self._parts: AsyncIterator[bytes] | None = None

    async def part(self) -> bytes:
        """The next part of its body. Raises StopAsyncIteration at its end, httpcore's errors."""
        if self._parts is None:
            stream: Any = self.response.stream
            self._parts = aiter(stream)
        return await anext(self._parts)

    async def aclose(self) -> None:
        """Be done with it. A second time does nothing."""
        line, self._line = self._line, None
        if line is None:
            return
        try:
            with anyio.CancelScope(shield=True):
                await self.response.aclose()
        finally:
            await close_lines(self._pool.take_back(line))
