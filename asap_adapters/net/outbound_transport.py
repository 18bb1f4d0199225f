"""Makes requests over connections of its own, which lead only where a `Route` allows: names are resolved once.

A network backend for httpcore, in which the addresses checked are those connected to, and an httpx transport over it.
TLS and the `Host` header use the URL's host.
"""

import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Self, assert_never

import anyio
import httpcore
import httpx
from attrs import define, frozen

from asap_adapters.net.dialling import Dialler, connect_first, dial as dial_address, words_of
from asap_adapters.net.environment import BadProxy, Proxies, certificates
from asap_adapters.net.pool import ConnectionKey, ConnectionPool, HeldResponse, PooledConnection, Progress
from asap_adapters.net.resolving import Resolver, SystemResolver
from asap_core.client.programs import Barred, Route, Stage, Unanswered
from asap_core.errors import NotAllowed
from asap_core.net.outbound import Dial, OutboundPolicy

# For how many seconds an idle connection is kept: httpx's own number. This library's servers keep it for longer.
IDLE_SECONDS: Final = 5.0
ROUTE: Final = "asap_route"
"""The request extension with its `Route`."""
PROGRESS: Final = "asap_progress"
"""The request extension that holds a `Progress`, in which the transport notes how far the request has got."""


@frozen
class _Backend(httpcore.AsyncNetworkBackend):
    """The network backend of one connection: resolves, checks, connects.

    A proxy was configured on this machine, so its addresses aren't checked, and the system resolves its name.
    """

    resolver: Resolver
    system: SystemResolver
    dial: Dialler
    connection: PooledConnection

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        del local_address, socket_options  # the pool gives none
        try:
            with anyio.fail_after(timeout):
                stream = await (self._connect_proxy(host, port) if self.connection.key.proxy else self._connect(port))
        except TimeoutError:
            raise httpcore.ConnectTimeout from None
        self.connection.streams.append(stream)
        return stream

    async def _connect_proxy(self, host: str, port: int) -> httpcore.AsyncNetworkStream:
        way = OutboundPolicy().destination(host)
        try:
            addresses = way.addresses if isinstance(way, Dial) else await self._ask(way.name, port, self.system)
            return (await connect_first(addresses, port, self.dial))[1]
        except httpcore.ConnectError as error:
            raise httpcore.ConnectError(f"the proxy that {self.connection.key.proxy}_proxy names: {error}") from None

    async def _connect(self, port: int) -> httpcore.AsyncNetworkStream:
        progress = self.connection.progress
        name = progress.route.name
        addresses = chosen(progress.route, () if name is None else await self._ask(name, port))
        progress.address, stream = await connect_first(addresses, port, self.dial)
        return stream

    async def _ask(self, name: str, port: int, resolver: Resolver | None = None) -> Sequence[str]:
        with resolving():
            return await self._resolve(name, port, resolver or self.resolver)

    async def _resolve(self, name: str, port: int, resolver: Resolver) -> Sequence[str]:
        if not isinstance(resolver, SystemResolver):
            return await resolver.resolve(name, port)
        progress = self.connection.progress
        progress.stage = Stage.QUEUED
        return await resolver.resolve(name, port, begins=lambda: setattr(progress, "stage", Stage.CONNECTING))

    async def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        raise httpcore.UnsupportedProtocol("only TCP")  # never configured

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


class OutboundTransport(httpx.AsyncBaseTransport):
    """An httpx transport that connects only where each request's `Route` allows. Raises `NotAllowed` otherwise.

    With `trust_env`, proxies of the environment are used, but not for this machine. A proxy resolves names itself, so
    the addresses behind it aren't checked. The constructor reads certificates, and does no other I/O. Raises OSError if
    they are unreadable.
    """

    def __init__(
        self,
        *,
        resolver: Resolver | None = None,
        verify: ssl.SSLContext | bool = True,
        trust_env: bool = False,
        dial: Dialler | None = None,
    ) -> None:
        self._context = certificates(verify, trust_env=trust_env)
        self._proxies = Proxies.of_environment() if trust_env else Proxies()
        system = SystemResolver()
        self._backend: Callable[[PooledConnection], _Backend] = lambda connection: _Backend(
            resolver or system, system, dial or dial_address, connection
        )
        self._pool = ConnectionPool(self._connection)

    def _connection(self, connection: PooledConnection) -> httpcore.AsyncConnectionInterface:
        # httpcore's pool is used only as a factory.
        makes = httpcore.AsyncConnectionPool(
            ssl_context=self._context,
            proxy=self._proxies.proxy(connection.key.proxy, self._context),
            keepalive_expiry=IDLE_SECONDS,
            network_backend=self._backend(connection),
        )
        scheme, host, port = connection.key.origin
        return makes.create_connection(httpcore.Origin(scheme, host, port))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Make one request, whose extensions have its `Route` and its `Progress`."""
        progress: Progress = request.extensions[PROGRESS]
        progress.route = route = request.extensions[ROUTE]
        asked = httpcore_request(request, await request.aread(), progress)
        key = connection_key(route, asked.url.origin, self._proxies, self._context)
        with as_httpx_errors():
            held = await self._pool.exchange(key, asked, progress)
        response = held.response
        return httpx.Response(
            response.status, headers=response.headers, stream=_Body(held), extensions=response.extensions
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.aclose()


def connection_key(route: Route, origin: httpcore.Origin, proxies: Proxies, context: ssl.SSLContext) -> ConnectionKey:
    """Return which connections a request may use. Raises `NotAllowed` if its proxy can't be used."""
    try:
        proxy = "" if route.announced else proxies.name_for(route.scheme, route.host, route.port)
        proxies.proxy(proxy, context)
    except BadProxy as bad:
        raise NotAllowed(route.host, bad.reason, bad.remedy) from None
    return ConnectionKey((origin.scheme, origin.host, origin.port), proxy, route.announced)


def chosen(route: Route, answers: Sequence[str]) -> Sequence[str]:
    """Return the addresses to connect to. Raises `NotAllowed` if they are refused, httpcore's ConnectError if none.

    answers: what the route's name, if it has one, resolved to.
    """
    found = route.choose(answers)
    match found:
        case Dial(addresses):
            return addresses
        case Barred(reason, remedy):
            raise NotAllowed(route.host, reason, remedy)
        case Unanswered(_, problem):
            raise httpcore.ConnectError(problem)
        case _:
            assert_never(found)


@contextmanager
def resolving() -> Iterator[None]:
    """Raise httpcore's ConnectError for the errors of resolvers."""
    try:
        yield
    except OSError as error:  # socket.gaierror is one
        raise httpcore.ConnectError(f"its name can't be resolved: {words_of(error)}") from None
    except UnicodeError:  # some resolvers can't encode some names
        raise httpcore.ConnectError("its name can't be resolved: it can't be a host's") from None


def httpcore_request(request: httpx.Request, content: bytes, progress: Progress) -> httpcore.Request:
    """Return the same request for httpcore, which notes in `progress` that it's sent."""
    # Only if it's needed: httpcore would give the name to a proxy that speaks TLS too.
    route = progress.route
    named = {} if route.server_name == route.host else {"sni_hostname": route.server_name}
    url = httpcore.URL(
        scheme=request.url.raw_scheme, host=request.url.raw_host, port=request.url.port, target=request.url.raw_path
    )
    body = _Content(content, progress)
    return httpcore.Request(
        request.method, url, headers=request.headers.raw, content=body, extensions={**request.extensions, **named}
    )


@define(eq=False)
class _Content:
    """A request's body in one piece. Not a generator, which a cancellation would leave to the garbage collector.

    httpcore asks for it after writing the head: from then on the server may act on the request.
    """

    rest: bytes
    progress: Progress

    def __iter__(self) -> Self:
        return self

    def __aiter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        self.progress.stage = Stage.SENT
        part, self.rest = self.rest, b""
        if not part:
            raise StopIteration
        return part

    async def __anext__(self) -> bytes:
        for part in self:
            return part
        raise StopAsyncIteration


@define(eq=False)
class _Body(httpx.AsyncByteStream):
    held: HeldResponse

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        with as_httpx_errors():
            return await self.held.part()

    async def aclose(self) -> None:
        with as_httpx_errors():
            await self.held.aclose()


@contextmanager
def as_httpx_errors() -> Iterator[None]:
    """Raise httpx's errors instead of httpcore's."""
    try:
        yield
    except (
        httpcore.NetworkError,
        httpcore.TimeoutException,
        httpcore.ProtocolError,
        httpcore.ProxyError,
        httpcore.UnsupportedProtocol,
    ) as e:
        # The errors have the same names in both libraries.
        raise getattr(httpx, type(e).__name__)(str(e)) from e
