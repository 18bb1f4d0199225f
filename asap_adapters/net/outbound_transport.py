"""Carries out a `Fetch` over connections of its own, which lead only where a `Route` allows: names are resolved once.

A network backend for httpcore, in which the addresses checked are those connected to, and a transport over it. TLS and
the `Host` header use the URL's host. The pool stays consistent after any cancellation (`asap_core.client.connections`
has its rules), and no single origin can use it up: places are taken before the request, and given back on every way
out. No socket stays open if an attempt to connect ends early: each await is inside a `try` that closes the socket,
whether the cancellation is anyio's or asyncio's own `task.cancel()`.

httpcore's own pool isn't used: it keeps a connection for ever if it was cancelled between assignment and use, or while
its response was being closed, and one origin may take all connections. The only time limit is that of the whole
request, which `fetch` sets.
"""

import errno
import math
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, Final

import anyio
import httpcore
import httpx
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSAttribute, TLSStream
from attrs import define, field, frozen

from asap_adapters.net.http_requests import (
    ATTEMPT_DELAY,
    FAILURES,
    ConnectionOptions,
    Ways,
    as_httpcore_error,
    begin_connecting,
    check_connected,
    check_plain,
    chosen,
    failed,
    httpcore_request,
    httpx_request,
    is_readable,
    resolving,
    through,
    words_of,
)
from asap_adapters.net.resolving import Resolver, SystemResolver, wait_for_place
from asap_core.arguments import ArgumentRule, has_methods, is_instance, is_or_none
from asap_core.client.body_reader import BodyReader
from asap_core.client.connections import PLACES, ConnectionKey, Connections, Pooled, Progress
from asap_core.client.places import PlaceQueue
from asap_core.client.programs import Barred, Expired, Fetch, Received, Stage, Unanswered

# --- connecting -------------------------------------------------------------------------------------------------------

Dialler = Callable[[str, int], Awaitable[httpcore.AsyncNetworkStream]]
"""Connects to one address and port. Raises `httpcore.ConnectError`, OSError."""


async def dial(address: str, port: int) -> httpcore.AsyncNetworkStream:
    """Connect to a literal address, with its scope. No name is resolved."""
    sock = begin_connecting(address, port)
    try:
        await anyio.wait_writable(sock)
        check_connected(sock)
        return _TcpStream(await anyio.abc.SocketStream.from_socket(sock))
    except ValueError:  # anyio's exception for a socket that was reset meanwhile
        sock.close()
        raise OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)) from None
    except BaseException:
        sock.close()
        raise


@define(eq=False)
class _TcpStream(httpcore.AsyncNetworkStream):
    """A connection, with TLS or without. The limit of the whole request applies, not those of httpcore."""

    stream: ByteStream
    fresh: bool = True

    async def read(self, max_bytes: int, *_: Any, **__: Any) -> bytes:
        with as_httpcore_error(httpcore.ReadError):
            try:
                data = await self.stream.receive(max_bytes)
            except anyio.EndOfStream:
                return b""
        if self.fresh:
            check_plain(data)
        self.fresh = False
        return data

    async def write(self, buffer: bytes, *_: Any, **__: Any) -> None:
        if buffer:
            with as_httpcore_error(httpcore.WriteError):
                await self.stream.send(buffer)

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, *_: Any, **__: Any
    ) -> httpcore.AsyncNetworkStream:
        with as_httpcore_error(httpcore.ConnectError):
            tls = await TLSStream.wrap(
                self.stream, ssl_context=ssl_context, hostname=server_hostname, standard_compatible=False
            )
        return _TcpStream(tls, fresh=False)

    async def aclose(self) -> None:
        await self.stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        if info == "ssl_object":
            return self.stream.extra(TLSAttribute.ssl_object, None)  # noqa: S610 - not Django's
        if info == "is_readable":
            return is_readable(self.stream.extra(SocketAttribute.raw_socket, None))  # noqa: S610 - not Django's
        return None


async def connect_first(addresses: Sequence[str], port: int, dial: Dialler) -> tuple[str, httpcore.AsyncNetworkStream]:
    """Connect to the first of these addresses that answers (RFC 8305 §5): if one fails or takes long, try the next too.

    Raises: httpcore.ConnectError, which names the reason for each address.
    """
    made: list[tuple[str, httpcore.AsyncNetworkStream]] = []
    failures: list[str] = []

    async def attempt(address: str, ended: anyio.Event, all_attempts: anyio.CancelScope) -> None:
        try:
            made.append((address, await dial(address, port)))
            all_attempts.cancel()
        except (httpcore.ConnectError, OSError) as error:
            failures.append(f"{address}: {words_of(error)}")
        finally:
            ended.set()

    try:
        if len(addresses) == 1:  # no race, so no task is needed
            await attempt(addresses[0], anyio.Event(), anyio.CancelScope())
        else:
            async with anyio.create_task_group() as group:
                for address in addresses:
                    ended = anyio.Event()
                    group.start_soon(attempt, address, ended, group.cancel_scope)
                    with anyio.move_on_after(ATTEMPT_DELAY):
                        await ended.wait()
        await close_all([stream for _, stream in made[1:]])
    except BaseException:  # the caller was cancelled
        await close_all([stream for _, stream in made])
        raise
    if not made:
        raise httpcore.ConnectError("; ".join(failures))
    return made[0]


async def close_all(streams: Sequence[httpcore.AsyncNetworkStream]) -> None:
    """Close all of them, even if asyncio's own cancellation, which no shield stops, interrupts one."""
    with anyio.CancelScope(shield=True):
        async with AsyncExitStack() as closing:
            for stream in streams:
                closing.push_async_callback(_close_one, stream)


async def _close_one(stream: httpcore.AsyncNetworkStream) -> None:
    with suppress(Exception):  # it's closed although it failed
        await stream.aclose()


_Connection = Pooled[httpcore.AsyncConnectionInterface, httpcore.AsyncNetworkStream]


@frozen
class _Backend(httpcore.AsyncNetworkBackend):
    """The network backend of one connection: resolves, checks, connects.

    A proxy was configured on this machine, so its addresses aren't checked, and the system resolves its name.
    """

    resolver: Resolver
    dial: Dialler
    connection: _Connection

    async def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        """See httpcore. The request says where, and how long it may take."""
        del host
        proxy, progress = self.connection.key.proxy, self.connection.progress
        way = proxy or progress.route
        with through(proxy):
            addresses = chosen(way, () if way.name is None else await self._ask(way.name, port))
            address, stream = await connect_first(addresses, port, self.dial)
        progress.address = address if proxy is None else None
        self.connection.streams.append(stream)
        return stream

    async def _ask(self, name: str, port: int) -> Sequence[str]:
        progress = self.connection.progress
        with resolving():
            if not isinstance(self.resolver, SystemResolver):
                return await self.resolver.resolve(name, port)
            progress.stage = Stage.QUEUED
            return await self.resolver.resolve(name, port, begins=lambda: setattr(progress, "stage", Stage.CONNECTING))


# --- requests ---------------------------------------------------------------------------------------------------------

_TRANSPORT: Final = ArgumentRule(
    "an httpx.AsyncBaseTransport, or None", is_or_none(is_instance(httpx.AsyncBaseTransport))
)
_RESOLVER: Final = ArgumentRule(
    "an object with a method resolve(host, port), or None", is_or_none(has_methods("resolve"))
)


@frozen(kw_only=True)
class HttpOptions(ConnectionOptions):
    """How an `AgentClient` makes requests. Raises ValueError if an option is invalid."""

    transport: httpx.AsyncBaseTransport | None = field(default=None, validator=_TRANSPORT)
    """An httpx transport to use instead of the client's own, such as an `InProcessTransport`. It gets only URLs that
    the policy allows. Addresses aren't checked."""
    resolver: Resolver | None = field(default=None, validator=_RESOLVER)
    """Looks up names instead of the operating system."""


class OutboundTransport:
    """Makes requests, and connects only where each request's `Route` allows. Raises `NotAllowed` otherwise.

    With `trust_env`, proxies of the environment are used, but not for this machine. A proxy resolves names itself, so
    the addresses behind it aren't checked. The constructor reads the environment's certificates, and does no other
    I/O. Raises OSError if they are unreadable. For one event loop.
    """

    def __init__(self, options: HttpOptions) -> None:
        self._ways = Ways(options)
        self._system = SystemResolver()
        self._resolver = options.resolver or self._system
        self._dial: Dialler = dial
        self._places: PlaceQueue[ConnectionKey] = PlaceQueue(PLACES)
        self._connections = Connections(self._connection)

    def _connection(self, connection: _Connection) -> httpcore.AsyncConnectionInterface:
        resolver = self._resolver if connection.key.proxy is None else self._system
        backend = _Backend(resolver, self._dial, connection)
        pool = httpcore.AsyncConnectionPool(**self._ways.arguments(connection.key), network_backend=backend)
        return pool.create_connection(httpcore.Origin(*connection.key.origin))

    async def exchange(self, asked: Fetch, progress: Progress) -> None:
        """Make one request, and read its response. Nothing of it is open afterwards. Raises one of `FAILURES`."""
        request, key = httpcore_request(asked, progress), self._ways.key(asked.route)
        progress.stage = Stage.QUEUED
        if not self._places.take(key):
            with anyio.fail_after(progress.patience - anyio.current_time()):
                await wait_for_place(self._places, key)
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


# Chunks after which other tasks get a turn: tiny ones, of which h11 has thousands at once, take some 20 µs each.
_TURN: Final = 64
# Closing takes no time, except in a custom transport.
_END_SECONDS: Final = 1.0

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
    chunks = response.aiter_bytes() if whole else response.aiter_raw()
    asked.reader.begin(response.status_code, response.headers.multi_items(), decoded=whole)
    await _read(asked.reader, chunks, response.aclose)


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
