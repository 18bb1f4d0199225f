"""The HTTP server, over anyio streams on trio and asyncio: `serve`, and the ports that it binds.

What is accepted there is in `asap_adapters.server.acceptor`, what happens on a connection in
`asap_adapters.server.connection`, what happens with a request in `asap_adapters.server.driver`.
"""

import logging
import socket
from collections.abc import Mapping, Sequence
from typing import Final

import anyio
import anyio.abc
from anyio.abc import ByteStream, SocketAttribute, SocketListener, TaskStatus
from anyio.streams.stapled import MultiListener
from attrs import field, frozen

from asap_adapters.auth.authenticator import Authenticator, VerifyCredential
from asap_adapters.server.acceptor import INTERNET, Acceptor, PlainListener, have_no_address
from asap_adapters.server.driver import Driver
from asap_adapters.server.handlers import Handler, Handlers
from asap_adapters.server.heap import give_back_large_blocks
from asap_adapters.server.logs import log_decision
from asap_adapters.server.running import stop_of_program
from asap_adapters.server.startup import NO_ADDRESS, bind_agent, warn_if_elsewhere
from asap_adapters.server.storage import Storage, expect_storage, opened, shared_limits
from asap_adapters.server.tls import TLS, Certificates, certificates_of
from asap_adapters.server.user_code import is_async
from asap_core.arguments import expect_kind, expect_whole, replaced
from asap_core.http.proxies import is_trusted
from asap_core.server.agent import Agent
from asap_core.server.events import Observer
from asap_core.server.metrics import Counters

log: Final = logging.getLogger("asap.serve")


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
    if sockets[0].family not in INTERNET:
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
    if have_no_address(bound.listener) and not is_trusted("", agent.policy.trusted_proxies):
        log.warning("connections to %s have no address: %s", bound.url, NO_ADDRESS)
    async with bound.listener:
        acceptor = Acceptor(driver, bound.listener, tls, stop, local=bound.host)
        await acceptor.run(lambda: task_status.started(bound.url))


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
