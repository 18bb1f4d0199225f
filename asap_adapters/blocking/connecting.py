"""Blocking connections for httpcore, which lead only where a `Route` allows: names are resolved once.

All waiting is bounded by the time that the request's `Progress` has left, may be interrupted by Ctrl-C, and ends if the
client is closed.
"""

import math
import selectors
import socket
import ssl
import time
from collections import deque
from collections.abc import Hashable, Sequence
from contextlib import suppress
from threading import Lock
from typing import Any, Final, Generic, Protocol, TypeVar

import httpcore
from attrs import define, field, frozen

from asap_adapters.blocking.interrupts import Closing, Flag, interruptible
from asap_adapters.net.http_requests import (
    ATTEMPT_DELAY,
    as_httpcore_error,
    begin_connecting,
    check_connected,
    check_plain,
    chosen,
    is_readable,
    resolving,
    through,
    words_of,
)
from asap_adapters.net.resolving import THREADS, Question
from asap_core.client.connections import Pooled, Progress
from asap_core.client.places import PlaceQueue
from asap_core.client.programs import Stage
from asap_core.net.urls import domain_of

K = TypeVar("K", bound=Hashable)

_TLS_IN_TLS: Final = "a blocking client can't request https URLs through a proxy that is reached by https"


def left(progress: Progress) -> float:
    """Return the seconds that blocking sockets may still wait. Raises TimeoutError if there are none."""
    seconds = progress.end - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


class Places(Generic[K]):
    """A bounded number of places, shared fairly among keys, for threads."""

    def __init__(self, places: int, closing: Closing) -> None:
        self._queue: PlaceQueue[K] = PlaceQueue(places)
        self._closing = closing
        self._lock = Lock()

    def take(self, key: K, seconds: float) -> bool:
        """Wait until this key may have a place, for at most so many seconds. Returns whether it has one.

        Raises RuntimeError if the client is closed meanwhile.
        """
        with self._lock:
            if self._queue.take(key):
                return True
            flag = Flag()
            waiter = self._queue.line_up(key, flag.set)
        try:
            self._closing.wait(flag, seconds)
        except BaseException:
            with self._lock:
                self._queue.leave(waiter)
            raise
        with self._lock:
            if not waiter.granted:
                self._queue.leave(waiter)
            return waiter.granted

    def give_back(self, key: K) -> None:
        """Give a place back."""
        with self._lock:
            self._queue.give_back(key)


# --- names -----------------------------------------------------------------------------------------------------------


class BlockingResolver(Protocol):
    """Resolves names. Give one to `BlockingClient` to use another than the system's."""

    def resolve(self, host: str, port: int) -> Sequence[str]:
        """Return addresses as text, with scopes, in the order to try them. Raises OSError if there's none."""
        ...


class LookUps:
    """Look-ups of names. Few resolvers can be interrupted, so each look-up has a thread, which ends with it."""

    def __init__(self, closing: Closing) -> None:
        self._places: Places[str] = Places(THREADS, closing)
        self._closing = closing

    def ask(self, host: str, port: int, resolver: BlockingResolver | None, progress: Progress) -> Sequence[str]:
        """Resolve a name, in the time that is left. Raises what the resolver raises, and httpcore's ConnectTimeout.

        Raises RuntimeError if the client is closed meanwhile. The thread goes on.

        resolver: None is the system's.
        """
        key, answered = domain_of(host), Flag()
        progress.stage = Stage.QUEUED
        if not self._places.take(key, progress.end - time.monotonic()):
            raise httpcore.ConnectTimeout

        def ended() -> None:
            self._places.give_back(key)
            answered.set()

        question = Question(host, port, lambda call: call(), ended)
        if resolver is not None:
            question.look_up = resolver.resolve
        try:
            question.begin()
        except BaseException:
            self._places.give_back(key)
            raise
        progress.stage = Stage.CONNECTING
        if not self._closing.wait(answered, progress.end - time.monotonic()):
            raise httpcore.ConnectTimeout
        return question.answer()


# --- sockets ---------------------------------------------------------------------------------------------------------


def connect_first(
    addresses: Sequence[str], port: int, progress: Progress, closing: Closing
) -> tuple[str, socket.socket]:
    """Connect to the first of these addresses that answers (RFC 8305 §5): if one fails or takes long, try the next too.

    Raises: httpcore.ConnectError, which names the reason for each address; TimeoutError; RuntimeError if it's closed.
    """
    race, untried = _Race(port, progress, closing), deque(addresses)
    try:
        with closing.ending(race.wake):
            while untried or race.running:
                if untried:
                    race.begin(untried.popleft())
                winner = race.wait(ATTEMPT_DELAY if untried else math.inf)
                if winner is not None:
                    return winner
        raise httpcore.ConnectError("; ".join(race.failures))
    finally:
        race.close()


@define(eq=False)
class _Race:
    port: int
    progress: Progress
    closing: Closing
    failures: list[str] = field(factory=list)
    running: dict[socket.socket, str] = field(factory=dict)
    selector: selectors.BaseSelector = field(factory=selectors.DefaultSelector)
    # What another thread writes to one end wakes the selector at the other.
    waker: tuple[socket.socket, socket.socket] = field(factory=socket.socketpair)

    def __attrs_post_init__(self) -> None:
        self.selector.register(self.waker[0], selectors.EVENT_READ)

    def wake(self) -> None:
        self.waker[1].send(b"\0")

    def begin(self, address: str) -> None:
        try:
            sock = begin_connecting(address, self.port)
        except OSError as error:
            self.failures.append(f"{address}: {words_of(error)}")
            return
        self.running[sock] = address
        self.selector.register(sock, selectors.EVENT_WRITE, sock)

    def wait(self, seconds: float) -> tuple[str, socket.socket] | None:
        """Wait until one is connected or has failed; return it if it's connected."""
        if not self.running:
            return None
        ready = interruptible(self.selector.select, min(seconds, left(self.progress)))
        self.closing.check()
        for key, _ in ready:
            sock: socket.socket = key.data
            self.selector.unregister(sock)
            address = self.running.pop(sock)
            try:
                check_connected(sock)
            except OSError as error:
                sock.close()
                self.failures.append(f"{address}: {words_of(error)}")
            else:
                return address, sock
        return None

    def close(self) -> None:
        for sock in (*self.running, *self.waker):
            sock.close()
        self.selector.close()


@define(eq=False)
class BlockingStream(httpcore.NetworkStream):
    """A connection, with TLS or without. The limits of its connection's request apply, not those of httpcore."""

    sock: socket.socket
    connection: "BlockingConnection"
    closing: Closing
    fresh: bool = True

    def read(self, max_bytes: int, *_: Any, **__: Any) -> bytes:
        """See httpcore."""
        with as_httpcore_error(httpcore.ReadError):
            data = interruptible(self._limited().recv, max_bytes)
        if self.fresh:
            check_plain(data)
        self.fresh = False
        return data

    def write(self, buffer: bytes, *_: Any, **__: Any) -> None:
        """See httpcore."""
        rest = memoryview(buffer)
        with as_httpcore_error(httpcore.WriteError):
            while rest:
                rest = rest[interruptible(self._limited().send, rest) :]

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, *_: Any, **__: Any
    ) -> httpcore.NetworkStream:
        """See httpcore. Returns this stream."""
        if isinstance(self.sock, ssl.SSLSocket):
            raise httpcore.ConnectError(_TLS_IN_TLS)
        with as_httpcore_error(httpcore.ConnectError):
            self.sock = tls = ssl_context.wrap_socket(
                self.sock, server_hostname=server_hostname, do_handshake_on_connect=False
            )
            self._limited()
            interruptible(tls.do_handshake)
        self.fresh = False
        return self

    def close(self) -> None:
        """See httpcore."""
        with suppress(OSError):
            self.sock.close()

    def end(self) -> None:
        """End a connection that another thread uses, after its client was closed.

        Only the other thread closes it: after a close, the descriptor may belong to another file.
        """
        with suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)  # not TLS's own, which takes TLS off

    def get_extra_info(self, info: str) -> Any:
        """See httpcore."""
        if info == "ssl_object":
            return self.sock if isinstance(self.sock, ssl.SSLSocket) else None
        return is_readable(self.sock) if info == "is_readable" else None

    def _limited(self) -> socket.socket:
        self.sock.settimeout(left(self.connection.progress))
        self.closing.check()  # `end` has no effect while a socket is being wrapped for TLS
        return self.sock


BlockingConnection = Pooled[httpcore.ConnectionInterface, BlockingStream]


@frozen
class BlockingBackend(httpcore.NetworkBackend):
    """The network backend of one connection: resolves, checks, connects.

    A proxy was configured on this machine, so its addresses aren't checked, and the system resolves its name.

    resolver: None is the system's.
    """

    resolver: BlockingResolver | None
    look_ups: LookUps
    connection: BlockingConnection
    closing: Closing

    def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore.NetworkStream:
        """See httpcore. The request says where, and how long it may take."""
        del host
        proxy, progress = self.connection.key.proxy, self.connection.progress
        way = proxy or progress.route
        with through(proxy):
            addresses = chosen(way, () if way.name is None else self._ask(way.name, port))
            address, sock = connect_first(addresses, port, progress, self.closing)
        progress.address = address if proxy is None else None
        stream = BlockingStream(sock, self.connection, self.closing)
        self.connection.streams.append(stream)
        return stream

    def _ask(self, name: str, port: int) -> Sequence[str]:
        with resolving():
            return self.look_ups.ask(name, port, self.resolver, self.connection.progress)
