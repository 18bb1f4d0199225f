"""Carries out a `Fetch` in the calling thread, over a pool of blocking connections.

The pool follows the rules of `asap_core.client.connections`.
"""

import time
from collections.abc import Iterable, Iterator
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
from asap_adapters.net.http_requests import FAILURES, ConnectionOptions, Ways, failed, httpcore_request, httpx_request
from asap_core.client.body_reader import BodyReader
from asap_core.client.connections import PLACES, ConnectionKey, Connections, Progress
from asap_core.client.programs import Barred, Expired, Fetch, Received, Stage, Unanswered


def fetch(transport: "AnyBlockingTransport", asked: Fetch) -> Received | Unanswered | Expired | Barred:
    """Make the request that `asked` describes. Nothing of it is open afterwards."""
    now = time.monotonic()
    progress = Progress(patience=now + min(asked.patience, asked.seconds), end=now + asked.seconds, route=asked.route)
    try:
        if isinstance(transport, BlockingTransport):
            transport.exchange(asked, progress)
        else:
            _exchange_by_httpx(transport, asked, progress)
    except FAILURES as error:
        return failed(error, progress.stage)
    return Received(progress.address)


def _exchange_by_httpx(transport: httpx.BaseTransport, asked: Fetch, progress: Progress) -> None:
    # Not by httpx's client, which stores cookies, and logs URLs with their secrets. Unlike this module's transport, it
    # doesn't let signals through where it waits, so all of it is interrupted.
    response = interruptible(transport.handle_request, httpx_request(asked))
    progress.stage = Stage.ANSWERED
    try:
        # A transport that makes complete responses, such as a mock: httpx has read and decompressed it already.
        whole = response.is_stream_consumed
        asked.reader.begin(response.status_code, response.headers.multi_items(), decoded=whole)
        read_body(asked.reader, [response.content] if whole else _interruptible(response.iter_raw()), progress)
    finally:
        response.close()


def _interruptible(chunks: Iterator[bytes]) -> Iterator[bytes]:
    while (chunk := interruptible(lambda: next(chunks, None))) is not None:
        yield chunk


def read_body(reader: BodyReader, chunks: Iterable[bytes], progress: Progress) -> None:
    """Read a body as far as it's wanted. Raises TimeoutError."""
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


class BlockingTransport:
    """Makes requests, and connects only where each request's `Route` allows. Raises `NotAllowed` otherwise.

    With `trust_env`, proxies of the environment are used, as by `OutboundTransport`. Any thread may use it. The
    constructor reads the environment's certificates, and does no other I/O. Raises OSError if they are unreadable.

    resolver: None is the system's.
    """

    def __init__(
        self,
        options: ConnectionOptions,
        resolver: BlockingResolver | None,
    ) -> None:
        self._ways = Ways(options)
        self._resolver = resolver
        self._closing = Closing()
        self._look_ups = LookUps(self._closing)
        self._places: Places[ConnectionKey] = Places(PLACES, self._closing)
        self._lock = Lock()  # around the connections' bookkeeping
        self._connections: Connections[httpcore.ConnectionInterface, BlockingStream] = Connections(self._connection)

    def _connection(self, connection: BlockingConnection) -> httpcore.ConnectionInterface:
        resolver = self._resolver if connection.key.proxy is None else None
        backend = BlockingBackend(resolver, self._look_ups, connection, self._closing)
        pool = httpcore.ConnectionPool(**self._ways.arguments(connection.key), network_backend=backend)
        return pool.create_connection(httpcore.Origin(*connection.key.origin))

    def exchange(self, asked: Fetch, progress: Progress) -> None:
        """Make one request, and read its response. Nothing of it is open afterwards. Raises one of `FAILURES`."""
        request, key = httpcore_request(asked, progress), self._ways.key(asked.route)
        progress.stage = Stage.QUEUED
        if not self._places.take(key, progress.patience - time.monotonic()):
            raise TimeoutError
        try:
            self._exchange(key, request, asked.reader, progress)
        finally:
            self._places.give_back(key)

    def _exchange(self, key: ConnectionKey, request: httpcore.Request, reader: BodyReader, progress: Progress) -> None:
        progress.stage = Stage.CONNECTING
        with self._lock:
            self._closing.check()
            connection, stale = self._connections.begin(key, progress)
        try:
            _close(stale)
            response = connection.inner.handle_request(request)
            progress.stage = Stage.ANSWERED
            try:
                reader.begin(response.status, httpx.Headers(response.headers).multi_items())
                read_body(reader, response.iter_stream(), progress)
            finally:
                response.close()
        finally:
            with self._lock:
                surplus = self._connections.end(connection)
            _close(surplus)

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


AnyBlockingTransport = BlockingTransport | httpx.BaseTransport


def _close(connections: list[BlockingConnection]) -> None:
    for connection in connections:
        for stream in connection.streams:
            stream.close()
