"""Carries out a `Fetch` over connections of its own, which lead only where a `Route` allows: names are resolved once.

A network backend for httpcore, in which the addresses checked are those connected to, and a transport over it. TLS and
the `Host` header use the URL's host. The pool stays consistent after any cancellation (`asap_core.client.connections`
has its rules), and no single origin can use it up: places are taken before the request, without an await, and given
back on every way out.

httpcore's own pool isn't used: it keeps a connection for ever if it was cancelled between assignment and use, or while
its response was being closed, and one origin may take all connections. The only time limit is that of the whole
request, which `fetch` sets.
"""

import math
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import anyio
import httpcore
import httpx
from attrs import frozen

from asap_adapters.net.dialling import Dialler, close_all, connect_first, dial as dial_address
from asap_adapters.net.http_requests import FAILURES, failed, httpcore_request, httpx_request
from asap_adapters.net.httpcore_requests import Ways, chosen, connecting, resolving
from asap_adapters.net.place_queue import PlaceQueue
from asap_adapters.net.resolving import Resolver, SystemResolver
from asap_core.client.body_reader import BodyReader
from asap_core.client.connections import PLACES, ConnectionKey, Connections, Pooled, Progress
from asap_core.client.programs import Barred, Expired, Fetch, Received, Stage, Unanswered

# Chunks after which other tasks get a turn: tiny ones, of which h11 has thousands at once, take some 20 µs each.
_TURN: Final = 64
# Closing takes no time, except in a custom transport.
_END_SECONDS: Final = 1.0

_Connection = Pooled[httpcore.AsyncConnectionInterface, httpcore.AsyncNetworkStream]


@frozen
class _Backend(httpcore.AsyncNetworkBackend):
    """The network backend of one connection: resolves, checks, connects.

    A proxy was configured on this machine, so its addresses aren't checked, and the system resolves its name.
    """

    resolver: Resolver
    system: SystemResolver
    dial: Dialler
    connection: _Connection

    async def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        """See httpcore. The request says where, and how long it may take."""
        del host
        with connecting(self.connection.key.proxy):
            stream = await self._connect(port)
        self.connection.streams.append(stream)
        return stream

    async def _connect(self, port: int) -> httpcore.AsyncNetworkStream:
        proxy, progress = self.connection.key.proxy, self.connection.progress
        way = proxy or progress.route
        addresses = chosen(way, () if way.name is None else await self._ask(way.name, port))
        address, stream = await connect_first(addresses, port, self.dial)
        progress.address = address if proxy is None else None
        return stream

    async def _ask(self, name: str, port: int) -> Sequence[str]:
        resolver = self.resolver if self.connection.key.proxy is None else self.system
        progress = self.connection.progress
        with resolving():
            if not isinstance(resolver, SystemResolver):
                return await resolver.resolve(name, port)
            progress.stage = Stage.QUEUED
            return await resolver.resolve(name, port, begins=lambda: setattr(progress, "stage", Stage.CONNECTING))


class OutboundTransport:
    """Makes requests, and connects only where each request's `Route` allows. Raises `NotAllowed` otherwise.

    With `trust_env`, proxies of the environment are used, but not for this machine. A proxy resolves names itself, so
    the addresses behind it aren't checked. The constructor reads the environment's certificates, and does no other
    I/O. Raises OSError if they are unreadable. For one event loop.
    """

    def __init__(
        self, *, resolver: Resolver | None = None, verify: ssl.SSLContext | bool = True, trust_env: bool = False
    ) -> None:
        self._ways = Ways(verify, trust_env=trust_env)
        self._system = SystemResolver()
        self._resolver = resolver or self._system
        self._dial: Dialler = dial_address
        self._places: PlaceQueue[ConnectionKey] = PlaceQueue(PLACES)
        self._connections = Connections(self._connection)

    def _connection(self, connection: _Connection) -> httpcore.AsyncConnectionInterface:
        backend = _Backend(self._resolver, self._system, self._dial, connection)
        return self._ways.connection(httpcore.AsyncConnectionPool, connection.key, backend)

    async def exchange(self, asked: Fetch, progress: Progress) -> None:
        """Make one request, and read its response. Nothing of it is open afterwards. Raises one of `FAILURES`."""
        request, key = httpcore_request(asked, progress), self._ways.key(asked.route)
        progress.stage = Stage.QUEUED
        with anyio.CancelScope(deadline=progress.patience) as waiting:
            await self._places.take(key)
        if waiting.cancelled_caught:
            raise httpcore.PoolTimeout
        try:
            await self._exchange(key, request, asked.reader, progress)
        finally:
            self._places.give_back(key)

    async def _exchange(
        self, key: ConnectionKey, request: httpcore.Request, reader: BodyReader, progress: Progress
    ) -> None:
        progress.stage = Stage.CONNECTING
        if self._connections.closed:
            raise httpcore.ConnectError("this client was closed")
        connection, stale = self._connections.begin(key, progress)
        try:
            await _close(stale)
            response = await connection.inner.handle_async_request(request)
            progress.stage = Stage.ANSWERED
            reader.begin(response.status, httpx.Headers(response.headers).multi_items())
            stream: Any = response.stream
            await _read(reader, aiter(stream), response.aclose)
        finally:
            await _close(self._connections.end(connection))

    async def aclose(self) -> None:
        """Close all connections, also those in use."""
        idle, busy = self._connections.close()
        await _close([*idle, *busy])


async def _close(connections: list[_Connection]) -> None:
    if connections:
        await close_all([stream for connection in connections for stream in connection.streams])


AnyTransport = OutboundTransport | httpx.AsyncBaseTransport


async def fetch(transport: AnyTransport, asked: Fetch) -> Received | Unanswered | Expired | Barred:
    """Make the request that `asked` describes. Nothing of it is open afterwards."""
    progress = Progress(patience=anyio.current_time() + asked.patience, route=asked.route)
    with anyio.move_on_after(asked.seconds):
        try:
            if isinstance(transport, OutboundTransport):
                await transport.exchange(asked, progress)
            else:
                await _exchange_by_httpx(transport, asked, progress)
        except FAILURES as error:
            return failed(error, progress.stage)
        return Received(progress.address)
    return Expired(progress.stage)


async def _exchange_by_httpx(transport: httpx.AsyncBaseTransport, asked: Fetch, progress: Progress) -> None:
    # Not by httpx's client, which stores cookies, and logs URLs with their secrets.
    response = await transport.handle_async_request(httpx_request(asked))
    progress.stage = Stage.ANSWERED
    # From a transport that makes complete responses, such as a mock: httpx has read and decompressed it already.
    whole = response.is_stream_consumed
    chunks = _in_one_piece(response.content) if whole else response.aiter_raw()
    asked.reader.begin(response.status_code, response.headers.multi_items(), decoded=whole)
    await _read(asked.reader, chunks, response.aclose)


async def _in_one_piece(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def _read(reader: BodyReader, chunks: AsyncIterator[bytes], close: Callable[[], Awaitable[None]]) -> None:
    """Read a body as far as it's wanted, and close it. Raises TimeoutError if the rest isn't worth waiting for."""
    count = 0
    try:
        with anyio.fail_after(reader.patience):
            async for chunk in chunks:
                reader.feed(chunk)
                count += 1
                await _work(reader, turn=count % _TURN == 0)
                if not reader.wants:
                    return
            reader.end()
    finally:
        # Otherwise the unfinished generators of httpx and httpcore warn at garbage collection. After the close, `anext`
        # ends them.
        with anyio.move_on_after(_END_SECONDS, shield=True):
            await close()
            with suppress(Exception):
                await anext(chunks)


async def _work(reader: BodyReader, *, turn: bool) -> None:
    """Let the reader work, and yield to other tasks in between, at least once if it's their `turn`.

    A cancellation is delivered at the next read instead, since an exception inside `async for` would leave httpx's
    generators unfinished.
    """
    while reader.work() or turn:
        turn = False
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
        if anyio.current_effective_deadline() == -math.inf:
            return
