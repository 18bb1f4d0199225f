"""Accepts a server's connections, counts those of each address, and serves each until it ends."""

import errno
import logging
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final

import anyio
import anyio.abc
from anyio.abc import ByteStream, Listener, SocketAttribute, SocketStream, TaskGroup
from attrs import define, field

from asap_adapters.server.connection import serve_connection
from asap_adapters.server.connection_limits import ConnectionSlot, ConnectionSlots, Sweeper, sweeping
from asap_adapters.server.driver import Driver
from asap_adapters.server.running import stop_on_sigterm
from asap_adapters.server.startup import load_the_rest
from asap_adapters.server.tls import Certificates, ServerTLS, accept_tls
from asap_adapters.server.user_code import mark_own_task, must_propagate, pending_cancellations, report
from asap_adapters.system import runs_on_asyncio
from asap_core.admission.ratelimit import peer_key
from asap_core.http.proxies import is_trusted

log: Final = logging.getLogger("asap.serve")

# What anyio reads at once by default. Received bytes that nobody has asked for are twice as many at most.
_READ: Final = 65_536
# What trio sets: the kernel says that more can be written once it has less than this left to send.
_LEAST_UNSENT: Final = 16_384
# Between two waits a busy server serves all its connections: one new connection for each wait would be few. To accept
# this many takes about a millisecond, for which the others wait.
_ACCEPTED_AT_ONCE: Final = 16
# The families of addresses that peers have; those of UNIX sockets have none.
INTERNET: Final = frozenset({socket.AF_INET, socket.AF_INET6})


class PlainListener(Listener[ByteStream]):
    """Accepts the connections of one socket, in place of an anyio listener that it takes over."""

    def __init__(self, listener: Listener[SocketStream]) -> None:
        self._listener = listener
        self._socket: socket.socket = listener.extra(SocketAttribute.raw_socket)  # noqa: S610 - anyio's, not Django's
        self._connected = stream_maker()
        self._before_wait = 0

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """See anyio."""
        return self._listener.extra_attributes

    async def accept(self) -> ByteStream:
        """Return the next connection; wait for it if none is there, or many have been returned since the last wait.

        It can be cancelled while it waits, and not once it has a connection.

        Raises OSError if the connection fails early, or the process has no room for it.
        """
        connection = await self._next()
        try:
            connection.setblocking(False)  # noqa: FBT003 - its only argument
            if connection.family in INTERNET:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with suppress(AttributeError, OSError):  # not all systems have it
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _LEAST_UNSENT)
            return self._connected(connection)
        except BaseException:
            connection.close()
            raise

    async def _next(self) -> socket.socket:
        while True:
            if not self._before_wait:
                await anyio.wait_readable(self._socket)
                self._before_wait = _ACCEPTED_AT_ONCE
            self._before_wait -= 1
            try:
                return self._socket.accept()[0]
            except BlockingIOError:  # it was the last one, or another process was faster
                self._before_wait = 0

    async def serve(self, handler: Callable[[ByteStream], Any], task_group: TaskGroup | None = None) -> None:
        """See anyio."""
        if task_group is None:
            async with anyio.create_task_group() as group:
                await self.serve(handler, group)
            return
        while True:
            task_group.start_soon(handler, await self.accept())

    async def aclose(self) -> None:
        """See anyio."""
        await self._listener.aclose()


StreamMaker = Callable[[socket.socket], ByteStream]


def stream_maker() -> StreamMaker:
    """Return what makes streams of connected, non-blocking sockets in the running loop."""
    if runs_on_asyncio():
        from asap_adapters.server.asyncio_sockets import ConnectedOnAsyncio  # noqa: PLC0415 - on trio it's not loaded

        return ConnectedOnAsyncio(_READ, _attributes)
    from asap_adapters.server.trio_sockets import TrioStream  # noqa: PLC0415 - on asyncio it's not loaded

    return partial(TrioStream, attributes=_attributes)


def _attributes(connection: socket.socket) -> Mapping[Any, Callable[[], Any]]:
    """What a server asks of a stream. Raises OSError for the address of a peer that has left."""
    return {
        SocketAttribute.family: lambda: connection.family,
        SocketAttribute.raw_socket: lambda: connection,
        SocketAttribute.remote_address: lambda: _address(connection.getpeername()),
    }


def _address(name: object) -> object:
    match name:
        case (str() as host, int() as port, int(), int() as zone):  # IPv6
            return (f"{host}%{zone}" if zone else host), port
        case _:
            return name


# --- from accepted to ended -------------------------------------------------------------------------------------------

# TLS handshakes are two round trips; nginx allows 60 s, which is a connection slot for a minute.
_HANDSHAKE_SECONDS: Final = 10.0
# A close_notify has 30 bytes, which the kernel takes at once unless the peer reads nothing.
_GOODBYE_SECONDS: Final = 0.5
# What accept() says when the process has too many open files: a pause lets some close.
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_EXHAUSTED_PAUSE: Final = 0.1
# Errors of the listener itself. All others are about one connection (accept(2)), and the next may work.
_BROKEN: Final = frozenset({errno.EBADF, errno.EFAULT, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP})
# How a connection ends if its peer gives it up. That's no error of this server.
_ENDED: Final = (
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    anyio.EndOfStream,
    ssl.SSLError,
    TimeoutError,
    ConnectionError,
)


def _listeners(listener: object) -> list[Any]:
    return list(getattr(listener, "listeners", [listener]))


def _family(sockets: anyio.TypedAttributeProvider) -> socket.AddressFamily | None:
    """Return the address family of a listener or stream. Returns None if it isn't a socket."""
    try:
        family: socket.AddressFamily = sockets.extra(SocketAttribute.family)  # noqa: S610 - anyio's, not Django's
    except (AttributeError, LookupError):
        return None
    return family


def have_no_address(listener: object) -> bool:
    """Whether some of the listener's connections have no address: those of a UNIX socket."""
    return any(_family(one) not in {*INTERNET, None} for one in _listeners(listener))


def _peer_of(stream: anyio.TypedAttributeProvider) -> str | None:
    """Return the address of a connection's peer: empty if its family has none, None if the peer has left already.

    If a peer resets before its connection is accepted, its address is lost. Served without one, it would share limits
    and idempotency keys with all callers whose address isn't known.
    """
    try:
        address = stream.extra(SocketAttribute.remote_address)  # noqa: S610 - anyio's, not Django's
    except (OSError, LookupError):
        address = None  # as asyncio gives it
    if isinstance(address, tuple):
        return str(address[0])
    return None if _family(stream) in INTERNET else ""


@define(eq=False)
class Acceptor:
    """Accepts connections, and serves each until it ends.

    local: the address that the listener is bound to.
    peers: how many connections each address has, by `peer_key`.
    """

    driver: Driver
    listener: anyio.abc.Listener[ByteStream]
    tls: Certificates | None
    stop: anyio.Event
    local: str = ""
    peers: dict[str, int] = field(factory=dict)
    slots: ConnectionSlots = field(init=False)
    sweeper: Sweeper = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.slots = ConnectionSlots(self.driver.agent.policy.max_connections)

    async def run(self, started: Callable[[], None]) -> None:
        """Accept until `stop` is set, then end in order. `started`: called once connections are accepted."""
        policy = self.driver.agent.policy
        # The sweeper runs until the last connection is over.
        async with sweeping() as self.sweeper, anyio.create_task_group() as connections:
            async with anyio.create_task_group() as accepting:
                for listener in _listeners(self.listener):
                    accepting.start_soon(self._accept, listener, connections)
                accepting.start_soon(stop_on_sigterm, self.stop, decided := anyio.Event())
                await decided.wait()  # a program that sees it started may end it at once
                started()
                accepting.start_soon(load_the_rest)
                await self.stop.wait()
                accepting.cancel_scope.cancel()
            # Otherwise the kernel goes on accepting connections, and their peers wait in vain.
            await self.listener.aclose()
            self.driver.agent.drain()
            now = anyio.current_time()
            self.slots.end_waiting()
            self.sweeper.end_reading(now + policy.drain_incomplete)
            connections.cancel_scope.deadline = now + policy.drain

    async def _accept(self, listener: Any, connections: anyio.abc.TaskGroup) -> None:
        mark_own_task()  # the tasks that it starts inherit the mark
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if error.errno in _BROKEN:
                    raise
                if error.errno not in _EXHAUSTED:
                    log.debug("a connection failed before it was accepted: %s", error.strerror)
                    continue
                log.error("no more connections for now: %s", error.strerror)  # noqa: TRY400 - no traceback needed
                await anyio.sleep(_EXHAUSTED_PAUSE)
                continue
            peer, leaving = _peer_of(stream), None
            # An address at its limit loses its longest idle connection; if none is idle, the new one is closed.
            if peer is None or not (self._counted(peer) or (leaving := self.slots.dismiss(peer_key(peer)))):
                connections.start_soon(anyio.aclose_forcefully, stream)
                continue
            # Accepted first: only a peer that is really there, and may connect, takes the slot of another.
            connections.start_soon(self._connection, stream, peer, self.slots.enter(peer_key(peer)), leaving)
            await self.slots.queue_has_room()

    def _counted(self, peer: str) -> bool:
        """Count a new connection of this address. Returns False, without counting, if the address is at its limit."""
        policy, key = self.driver.agent.policy, peer_key(peer)
        count = self.peers.get(key, 0)
        if count >= policy.connections_per_peer and not is_trusted(peer, policy.trusted_proxies):
            log.debug("%s has %d connections already", peer, count)
            return False
        self.peers[key] = count + 1
        return True

    def _disconnected(self, peer: str) -> None:
        key = peer_key(peer)
        left = self.peers.pop(key) - 1
        if left:
            self.peers[key] = left

    async def _connection(
        self, stream: ByteStream, peer: str, slot: ConnectionSlot, leaving: anyio.Event | None
    ) -> None:
        counted = leaving is None
        try:
            await slot.taken()
            while not counted and leaving is not None:
                await leaving.wait()
                # The dismissed connection stays open if a request arrived on it at that moment.
                counted = self._counted(peer)
                leaving = None if counted else self.slots.dismiss(slot.address)
            if counted:
                await self._serve(stream, peer, slot)
        except _ENDED:
            log.debug("a connection ended early", exc_info=True)
        except BaseException as error:
            # Only a bug in this library gets here. It ends one connection, not the server.
            if must_propagate(error, pending_cancellations()):
                raise
            report(log, "a connection broke", error=error)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(stream)
            if counted:
                self._disconnected(peer)
            slot.give_back()

    async def _serve(self, stream: ByteStream, peer: str, slot: ConnectionSlot) -> None:
        if self.tls is None:
            await self._serve_http(stream, peer, slot)
            return
        if self.stop.is_set():
            return
        with slot.waiting(), anyio.fail_after(_HANDSHAKE_SECONDS):
            stream = await accept_tls(stream, self.tls())
        if not isinstance(stream, ServerTLS):  # dismissed during the handshake
            return
        try:
            if not slot.leaving:
                await self._serve_http(stream, peer, slot)
        finally:
            with anyio.move_on_after(_GOODBYE_SECONDS, shield=True):
                await stream.send_eof()

    async def _serve_http(self, stream: ByteStream, peer: str, slot: ConnectionSlot) -> None:
        await serve_connection(
            stream, self.driver, peer=peer, sweeper=self.sweeper, local=self.local, slot=slot, stop=self.stop
        )
