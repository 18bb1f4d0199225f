"""The HTTP server, over anyio streams on trio and asyncio: it binds, accepts, limits and ends connections.

What happens on a connection is in `asap_adapters.server.connection`, what happens with a request in
`asap_adapters.server.driver`.
"""

import errno
import logging
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import anyio
import anyio.abc
from anyio.abc import ByteStream, SocketAttribute, SocketListener, TaskStatus
from anyio.streams.stapled import MultiListener
from attrs import define, field, frozen

from asap_adapters.auth.authenticator import Authenticator, VerifyCredential
from asap_adapters.server.connection import serve_connection
from asap_adapters.server.connection_limits import ConnectionSlot, ConnectionSlots, Sweeper, sweeping
from asap_adapters.server.driver import Driver
from asap_adapters.server.handlers import Handler, Handlers
from asap_adapters.server.heap import give_back_large_blocks
from asap_adapters.server.logs import log_decision
from asap_adapters.server.running import stop_of_program, stop_on_sigterm
from asap_adapters.server.sockets import PlainListener
from asap_adapters.server.startup import NO_ADDRESS, bind_agent, load_the_rest, warn_if_elsewhere
from asap_adapters.server.storage import Storage, expect_storage, opened, shared_limits
from asap_adapters.server.tls import TLS, Certificates, ServerTLS, accept_tls, certificates_of
from asap_adapters.server.user_code import is_async, mark_own_task, must_propagate, pending_cancellations, report
from asap_core.admission.ratelimit import peer_key
from asap_core.arguments import expect_kind, expect_whole, replaced
from asap_core.http.proxies import is_trusted
from asap_core.server.agent import Agent
from asap_core.server.events import Observer
from asap_core.server.metrics import Counters

log: Final = logging.getLogger("asap.serve")

# TLS handshakes are two round trips; nginx allows 60 s, which is a connection slot for a minute.
_HANDSHAKE_SECONDS: Final = 10.0
# A close_notify has 30 bytes, which the kernel takes at once unless the peer reads nothing.
_GOODBYE_SECONDS: Final = 0.5
# What accept() says when the process has too many open files: a pause lets some close.
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_EXHAUSTED_PAUSE: Final = 0.1
# Errors of the listener itself. All others are about one connection (accept(2)), and the next may work.
_BROKEN: Final = frozenset({errno.EBADF, errno.EFAULT, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP})
_INTERNET: Final = frozenset({socket.AF_INET, socket.AF_INET6})
# How a connection ends if its peer gives it up. That's no error of this server.
_ENDED: Final = (
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    anyio.EndOfStream,
    ssl.SSLError,
    TimeoutError,
    ConnectionError,
)


@frozen
class Bound:
    """A bound listener.

    listener: any listener of anyio's, such as that of a UNIX socket, whose callers have no address.
    url: where it listens, with the real port.
    host: the bound address; `url` has it in brackets if it's IPv6.
    port: the real port; 0 if it has none.
    """

    listener: anyio.abc.Listener[ByteStream] = field(repr=False)
    url: str
    host: str
    port: int


async def listen(host: str, port: int, *, tls: bool = False) -> Bound:
    """Bind a TCP port without serving it yet, so that a manifest can name the real port.

    host: the address or name to bind.
    port: 0 for any free port.
    tls: whether https will be served there: for the scheme in `Bound.url`.

    Raises OSError if it can't be bound, ValueError if host and port aren't an address.
    """
    _expect_address(host, port)
    bound = await anyio.create_tcp_listener(local_host=host, local_port=port, reuse_port=False)
    listener = MultiListener([PlainListener(each) for each in bound.listeners])
    real_port = listener.extra(SocketAttribute.local_port)  # noqa: S610 - anyio's, not Django's
    return Bound(listener, url_of(host, real_port, tls=tls), host, real_port)


async def listen_on(sockets: Sequence[socket.socket], host: str, *, tls: bool = False) -> Bound:
    """Accept connections from sockets that listen already, such as those that processes share.

    sockets: all on one port, or UNIX sockets.
    host: the address that they are bound to.
    """
    listener = MultiListener([PlainListener(await SocketListener.from_socket(each)) for each in sockets])
    name = sockets[0].getsockname()
    if sockets[0].family not in _INTERNET:
        return Bound(listener, f"unix:{name}", "", 0)
    port = int(name[1])
    return Bound(listener, url_of(host, port, tls=tls), host, port)


def url_of(host: str, port: int, *, tls: bool) -> str:
    """Return the URL of an address, with IPv6 in brackets (RFC 3986 §3.2.2)."""
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{shown}:{port}"


@replaced(
    host="at=(host, port)",
    port="at=(host, port)",
    bound="at=bound",
    on="Handlers(handlers, on=…) for the handlers",
    threads="Handlers(handlers, threads=…) for the handlers",
    tls_cert="tls=TLS(cert, key)",
    tls_key="tls=TLS(cert, key)",
    state="storage=StateFile(path)",
    redis="storage=Redis(url)",
    share_peer_limits="storage=Redis(url, share_peer_limits=True)",
)
async def serve(
    agent: Agent,
    handlers: Mapping[str, Handler] | Handlers,
    *,
    at: tuple[str, int] | Bound = ("127.0.0.1", 8000),
    tls: TLS | Certificates | None = None,
    authenticate: Authenticator | VerifyCredential | None = None,
    storage: Storage = None,
    observe: Observer = log_decision,
    metrics: bool | Counters = False,
    stop: anyio.Event | None = None,
    task_status: TaskStatus[str] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve an agent until cancelled, or until `stop` is set and the requests in flight are done.

    handlers: for each skill, a function `(request, context) -> result`, async or not; `Handlers` has further options.
    at: the host and port to listen on (port 0: any free one), or what `listen()` returned.
    tls: the certificate to serve https with; without one it's http. A function is called for each connection, and
        returns its `ssl.SSLContext`, such as `TLS(…).context()` of renewed files.
    authenticate: says whom a bearer token stands for, such as `TokenTable({…})`.
    storage: where admission is remembered: `StateFile(path)`, `Redis(url)`; by default in this process. Without a state
        file, `Policy.start` says what happens after a restart.
    observe: is told every decision of admission; by default each is logged.
    metrics: True counts the decisions and shows them at /asap/metrics; `Counters` may count for several processes.
    stop: set it to stop: no new connections are accepted, and running requests get `Policy.drain` seconds. Without it
        SIGTERM does that, if `run` runs the program.
    task_status: is told the URL once the server listens, as `await task_group.start(serve, …)` returns it.

    Raises OSError if the port or the server of `storage` is unavailable, `BadState` or `BadStore` if what's remembered
    can't be used, ValueError if an argument is wrong, or handlers and manifest disagree.
    """
    certificates = certificates_of(tls)
    if stop is not None and not is_async(getattr(stop, "wait", None)):
        raise ValueError("stop: expected an event that tasks wait for, such as anyio.Event()")
    _expect_place(at)
    expect_storage(storage)
    # First what needs no clock: an agent is bound once, and what's refused here may be mended and tried again.
    driver = Driver(agent, Handlers.of(handlers), authenticate=authenticate)
    bind_agent(
        agent,
        observe=observe,
        metrics=metrics,
        shared_admission=storage is not None,
        shared_limits=shared_limits(storage, driver.agent),
    )
    give_back_large_blocks()
    async with opened(storage, driver):
        bound = at if isinstance(at, Bound) else await listen(*at, tls=certificates is not None)
        await _serve(driver, bound, certificates, stop or stop_of_program(), task_status)


async def _serve(
    driver: Driver, bound: Bound, tls: Certificates | None, stop: anyio.Event, task_status: TaskStatus[str]
) -> None:
    agent = driver.agent
    if not agent.authenticates:
        log.warning(
            "%s serves without authentication: anyone who can reach %s can call it", agent.manifest.id, bound.url
        )
    if bound.port:  # UNIX sockets have none
        scheme = "http" if tls is None else "https"
        warn_if_elsewhere(agent, log, host=bound.host, port=bound.port, scheme=scheme)
    no_address = any(_family(one) not in {*_INTERNET, None} for one in _listeners(bound.listener))
    if no_address and not is_trusted("", agent.policy.trusted_proxies):
        log.warning("connections to %s have no address: %s", bound.url, NO_ADDRESS)
    async with bound.listener:
        server = _Server(driver, bound.listener, tls, stop, local=bound.host)
        await server.run(lambda: task_status.started(bound.url))


def _expect_place(at: object) -> None:
    match at:
        case Bound():
            return
        case (host, port):
            _expect_address(host, port)
        case _:
            expect_kind("at", at, tuple | Bound, '("127.0.0.1", 8000)')
            raise ValueError('at: expected a host and a port, such as ("127.0.0.1", 8000)')


def _expect_address(host: object, port: object) -> None:
    expect_kind("host", host, str, '"127.0.0.1"')
    expect_whole("port", port, least=0, most=65_535)


def _listeners(listener: object) -> list[Any]:
    return list(getattr(listener, "listeners", [listener]))


def _family(sockets: anyio.TypedAttributeProvider) -> socket.AddressFamily | None:
    """Return the address family of a listener or stream. Returns None if it isn't a socket."""
    try:
        family: socket.AddressFamily = sockets.extra(SocketAttribute.family)  # noqa: S610 - anyio's, not Django's
    except (AttributeError, LookupError):
        return None
    return family


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
    return None if _family(stream) in _INTERNET else ""


@define(eq=False)
class _Server:
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
