"""Carries out a `Fetch` in the calling thread, over a pool of blocking connections.

The pool follows the rules of `asap_core.client.connections`.
"""

import ssl
import time
from collections.abc import Iterator
from threading import Lock

import httpcore
import httpx

from asap_adapters.blocking.connecting import (
    BlockingBackend,
    BlockingConnection,
    BlockingResolver,
    BlockingStream,
    LookUps,
    Places,
    left,
)
from asap_adapters.blocking.interrupts import Closing, interruptible
from asap_adapters.net.fetching import failed, httpx_request
from asap_adapters.net.httpcore_requests import PROGRESS, ROUTE, Ways, as_httpx_errors, httpcore_request
from asap_core.client.body_reader import BodyReader
from asap_core.client.connections import PLACES, ConnectionKey, Connections, Progress
from asap_core.client.programs import Barred, Expired, Fetch, Received, Stage, Unanswered
from asap_core.errors import NotAllowed


def fetch(transport: httpx.BaseTransport, asked: Fetch) -> Received | Unanswered | Expired | Barred:
    """Make the request that `asked` describes. Nothing of it is open afterwards."""
    now = time.monotonic()
    progress = Progress(patience=now + min(asked.patience, asked.seconds), end=now + asked.seconds)
    request = httpx_request(asked, progress)
    if isinstance(request, Barred):
        return request
    try:
        # Not by httpx's client, which stores cookies, and logs URLs with their secrets.
        # This module's transport lets signals through where it waits. Another one doesn't, so all of it is interrupted.
        own = isinstance(transport, BlockingTransport)
        response = transport.handle_request(request) if own else interruptible(transport.handle_request, request)
        progress.stage = Stage.ANSWERED
        try:
            _read(response, _chunks(response, own=own), asked.reader, progress)
        finally:
            response.close()
    except (NotAllowed, TimeoutError, httpx.HTTPError) as error:
        return failed(error, progress.stage)
    return Received(progress.address)


def _chunks(response: httpx.Response, *, own: bool) -> Iterator[bytes]:
    if response.is_stream_consumed:
        yield response.content
        return
    chunks = response.iter_raw()
    if own:
        yield from chunks
    else:
        while (chunk := interruptible(lambda: next(chunks, None))) is not None:
            yield chunk


def _read(response: httpx.Response, chunks: Iterator[bytes], reader: BodyReader, progress: Progress) -> None:
    # From a transport that makes complete responses, such as a mock: httpx has read and decompressed it already.
    whole = response.is_stream_consumed
    reader.begin(response.status_code, response.headers.multi_items(), decoded=whole)
    if reader.patience is not None:
        progress.end = min(progress.end, time.monotonic() + reader.patience)
    for chunk in chunks:
        left(progress)
        reader.feed(chunk)
        while reader.work():
            interruptible(left, progress)
        if not reader.wants:
            return
    reader.end()


class BlockingTransport(httpx.BaseTransport):
    """An httpx transport that connects only where each request's `Route` allows. Raises `NotAllowed` otherwise.

    With `trust_env`, proxies of the environment are used, as by `OutboundTransport`. Any thread may use it. The
    constructor reads certificates, and does no other I/O. Raises OSError if they are unreadable.

    resolver: None is the system's.
    """

    def __init__(
        self,
        *,
        resolver: BlockingResolver | None = None,
        verify: ssl.SSLContext | bool = True,
        trust_env: bool = False,
    ) -> None:
        self._ways = Ways.of(verify, trust_env=trust_env)
        self._resolver = resolver
        self._closing = Closing()
        self._look_ups = LookUps(self._closing)
        self._places: Places[ConnectionKey] = Places(PLACES, self._closing)
        self._lock = Lock()  # around the connections' bookkeeping
        self._connections: Connections[httpcore.ConnectionInterface, BlockingStream] = Connections(self._connection)

    def _connection(self, connection: BlockingConnection) -> httpcore.ConnectionInterface:
        backend = BlockingBackend(self._resolver, self._look_ups, connection, self._closing)
        return self._ways.connection(httpcore.ConnectionPool, connection.key, backend)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Make one request, whose extensions have its `Route` and its `Progress`."""
        progress: Progress = request.extensions[PROGRESS]
        progress.route = route = request.extensions[ROUTE]
        asked = httpcore_request(request, request.read(), progress)
        key = self._ways.key(route, asked.url.origin)
        progress.stage = Stage.QUEUED
        if not self._places.take(key, progress.patience - time.monotonic()):
            raise httpx.PoolTimeout("no free connection")
        try:
            return self._exchange(key, asked, progress)
        except BaseException:
            self._places.give_back(key)
            raise

    def _exchange(self, key: ConnectionKey, asked: httpcore.Request, progress: Progress) -> httpx.Response:
        progress.stage = Stage.CONNECTING
        with as_httpx_errors():
            with self._lock:
                self._closing.check()
                connection, stale = self._connections.begin(key, progress)
            _close(stale)
            try:
                response = connection.inner.handle_request(asked)
            except BaseException:
                with self._lock:
                    self._connections.drop(connection)
                _close([connection])
                raise
        body = _Body(self, connection, response)
        return httpx.Response(response.status, headers=response.headers, stream=body, extensions=response.extensions)

    def take_back(self, connection: BlockingConnection) -> None:
        """End an exchange."""
        with self._lock:
            surplus = self._connections.end(connection)
        _close(surplus)
        self._places.give_back(connection.key)

    def close(self) -> None:
        """Close all connections. Requests of other threads end, whatever they wait for. They raise RuntimeError."""
        # First, so that no connection that is made later can be missed below.
        self._closing.close()
        with self._lock:
            idle, busy = self._connections.close()
        _close(idle)
        for connection in busy:
            for stream in list(connection.streams):
                stream.end()


class _Body(httpx.SyncByteStream):
    """The body of a response. It holds the connection until it's closed."""

    def __init__(
        self, transport: BlockingTransport, connection: BlockingConnection, response: httpcore.Response
    ) -> None:
        self._transport = transport
        self._connection: BlockingConnection | None = connection
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        with as_httpx_errors():
            yield from self._response.iter_stream()

    def close(self) -> None:
        """Release the connection. A second call does nothing."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            self._response.close()
        finally:
            self._transport.take_back(connection)


def _close(connections: list[BlockingConnection]) -> None:
    for connection in connections:
        for stream in connection.streams:
            stream.close()
