"""Connections that go where policy says and nowhere else: resolve, judge every answer, connect to what was judged.

A network backend for httpcore, so that names are resolved once and the addresses judged are those connected to; and an
httpx transport over it. The URL's host stays what TLS checks the certificate for, and what the `Host` header says.
"""

import functools
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol, Self
from urllib.request import getproxies, proxy_bypass

import anyio
import httpcore
import httpx
from attrs import define, field, frozen

from asap_core.client.outbound import AddressRefused, Dial, OutboundPolicy, is_loopback, without_credentials
from asap_core.client.provenance import Provenance
from asap_core.errors import NotAllowed

__all__ = ["OutboundTransport", "Resolver", "SystemResolver", "link_networks", "link_scopes"]

# RFC 8305 §5: how long one attempt to connect is given before the next address is tried as well.
_ATTEMPT_DELAY: Final = 0.25
# httpx's own: so many connections, so many of them idle, for so long. A server of ours keeps an idle one for longer.
_CONNECTIONS: Final = 100
_IDLE_CONNECTIONS: Final = 20
_IDLE_SECONDS: Final = 5.0


class Resolver(Protocol):
    """Answers what addresses a name has. Give one to `AgentClient` to use another than the system's."""

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """Return addresses as text, scopes included, those to try first in front. Raises OSError where there's none."""
        ...


class SystemResolver:
    """The operating system's: `/etc/hosts`, DNS, and whatever else it's configured for."""

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """Ask it. Raises OSError."""
        answers = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [address[0] for *_, address in answers]


Dialler = Callable[[str, int], Awaitable[httpcore.AsyncNetworkStream]]
"""Connects to one address and port. Raises `httpcore.ConnectError`."""


async def _dial(address: str, port: int) -> httpcore.AsyncNetworkStream:
    return await httpcore.AnyIOBackend().connect_tcp(address, port)


class _TurnedAway(Exception):
    """Policy keeps an address from being connected to."""

    def __init__(self, refused: AddressRefused, judge: Callable[..., Dial | AddressRefused]) -> None:
        super().__init__(refused.reason)
        self._refused = refused
        self._judge = judge

    def refused(self, scheme: str) -> AddressRefused:
        """Why, and what would allow it, of a URL with this scheme: who connects isn't told which."""
        judged = self._judge(scheme=scheme)
        return judged if isinstance(judged, AddressRefused) else self._refused


@frozen
class _Backend(httpcore.AsyncNetworkBackend):
    """What httpcore connects by: it names a host, and gets a stream to an address that was judged."""

    policy: OutboundPolicy
    provenance: Provenance
    resolver: Resolver
    dial: Dialler

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        del local_address, socket_options  # not used by a pool that was given none
        try:
            with anyio.fail_after(timeout):
                return await self._connect(host, port)
        except TimeoutError:
            raise httpcore.ConnectTimeout from None

    async def _connect(self, host: str, port: int) -> httpcore.AsyncNetworkStream:
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        addresses = self.provenance.pinned(host)
        if not addresses:
            way = self.policy.destination(host)
            answers = way.addresses if isinstance(way, Dial) else await self._ask(way.name, port)
            reach = self.provenance.reach(authority)
            judge = functools.partial(self.policy.choose, host, answers, port=port, reach=reach)
            chosen = judge()
            if isinstance(chosen, AddressRefused):
                raise _TurnedAway(chosen, judge)
            addresses = chosen.addresses
        address, stream = await _first(addresses, port, self.dial)
        self.provenance.connected(authority, address)
        return _Stream(stream)

    async def _ask(self, name: str, port: int) -> Sequence[str]:
        try:
            answers = await self.resolver.resolve(name, port)
        except OSError as error:  # socket.gaierror is one
            raise httpcore.ConnectError(f"its name can't be resolved: {_words(error)}") from None
        except UnicodeError:  # of names that some resolvers can't encode
            raise httpcore.ConnectError("its name can't be resolved: it can't be a host's") from None
        if not answers:
            raise httpcore.ConnectError("its name can't be resolved: it has no address")
        return answers

    async def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        raise httpcore.UnsupportedProtocol("only TCP")  # nothing configures one

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


@frozen
class _Stream(httpcore.AsyncNetworkStream):
    """A connection that's closed where TLS over it comes to nothing: httpcore leaves it open where it's cancelled."""

    inner: httpcore.AsyncNetworkStream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's
        return await self.inner.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - httpcore's
        await self.inner.write(buffer, timeout)

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's
    ) -> httpcore.AsyncNetworkStream:
        try:
            return await self.inner.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            await _close(self.inner)
            raise

    async def aclose(self) -> None:
        await self.inner.aclose()

    def get_extra_info(self, info: str) -> Any:
        return self.inner.get_extra_info(info)


async def _first(addresses: Sequence[str], port: int, dial: Dialler) -> tuple[str, httpcore.AsyncNetworkStream]:
    """Connect to the first of these that answers (RFC 8305 §5): the next is tried when one fails, or takes long.

    Raises `httpcore.ConnectError` that says what each came to.
    """
    race = _Race(port, dial)
    try:
        if len(addresses) == 1:  # nobody to race with: a task less
            await race.attempt(addresses[0], anyio.Event(), anyio.CancelScope())
        else:
            await race.run(addresses)
    except BaseException:
        await race.abandon()
        raise
    if race.won is None:
        raise httpcore.ConnectError("; ".join(race.failures))
    return race.won


@define(eq=False)
class _Race:
    port: int
    dial: Dialler
    won: tuple[str, httpcore.AsyncNetworkStream] | None = None
    failures: list[str] = field(factory=list)

    async def run(self, addresses: Sequence[str]) -> None:
        async with anyio.create_task_group() as group:
            for address in addresses:
                ended = anyio.Event()
                group.start_soon(self.attempt, address, ended, group.cancel_scope)
                with anyio.move_on_after(_ATTEMPT_DELAY):
                    await ended.wait()
                if self.won is not None:
                    return

    async def attempt(self, address: str, ended: anyio.Event, others: anyio.CancelScope) -> None:
        try:
            stream = await self.dial(address, self.port)
        except (httpcore.ConnectError, httpcore.ConnectTimeout, OSError) as error:
            self.failures.append(f"{address}: {_words(error)}")
        else:
            if self.won is None:
                self.won = address, stream
                others.cancel()
            else:
                await _close(stream)
        finally:
            ended.set()

    async def abandon(self) -> None:
        """Nobody wants it any more."""
        if self.won is not None:
            await _close(self.won[1])


async def _close(stream: httpcore.AsyncNetworkStream) -> None:
    with anyio.CancelScope(shield=True):
        await stream.aclose()


def _words(error: BaseException | None) -> str:
    """The operating system's words for what happened: it stands at the bottom of a heap of errors with other words."""
    text = "no connection"
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            # A resolver's numbers are negative, and their words its own.
            text = os.strerror(error.errno) if error.errno > 0 else error.strerror or text
        error = error.__cause__ or error.__context__
    return text


# --- the link --------------------------------------------------------------------------------------------------------


def link_networks(link: str = "") -> tuple[str, ...]:
    """The networks that an interface is on, or all of this machine's are, such as `192.0.2.7/24`."""
    import ifaddr  # noqa: PLC0415 - zeroconf brings it, and only who follows announcements needs it

    addresses = [
        ip
        for adapter in ifaddr.get_adapters()
        # An alias such as `eth0:1` is an address of eth0's.
        if not link or link in (adapter.nice_name, adapter.name, adapter.name.partition(":")[0])
        for ip in adapter.ips
    ]
    return tuple(
        f"{ip.ip if isinstance(ip.ip, str) else ip.ip[0]}/{ip.network_prefix}" for ip in addresses if ip.network_prefix
    )


def link_scopes(link: str = "") -> frozenset[str]:
    """The scopes that addresses on an interface's link, or on all of this machine's, may have: names and indices."""
    found = [(name, str(index)) for index, name in socket.if_nameindex() if not link or name == link]
    return frozenset(text for pair in found for text in pair)


# --- for httpx -------------------------------------------------------------------------------------------------------


class OutboundTransport(httpx.AsyncBaseTransport):
    """An httpx transport that connects where policy allows. Raises `NotAllowed` where an address isn't.

    It judges addresses, not URLs: what's asked of it has been through `OutboundPolicy.judge`. With `trust_env` proxies
    of the environment are used, but not for this machine: a proxy resolves names itself, so what they resolve to is its
    to judge. The constructor does no I/O beyond reading certificates.
    """

    def __init__(
        self,
        policy: OutboundPolicy,
        provenance: Provenance | None = None,
        *,
        resolver: Resolver | None = None,
        verify: ssl.SSLContext | bool = True,
        trust_env: bool = False,
        dial: Dialler | None = None,
    ) -> None:
        context = httpx.create_ssl_context(verify=verify, trust_env=trust_env)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=_CONNECTIONS,
            max_keepalive_connections=_IDLE_CONNECTIONS,
            keepalive_expiry=_IDLE_SECONDS,
            network_backend=_Backend(policy, provenance or Provenance(), resolver or SystemResolver(), dial or _dial),
        )
        self._proxies = _proxies(context) if trust_env else {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Make one request."""
        proxy = self._proxy_for(request.url)
        if proxy is not None:
            return await proxy.handle_async_request(request)
        host = request.url.raw_host.decode("ascii")
        # Names in certificates have no dot at the end (RFC 6066 §3), and an address in one no scope.
        name = host.partition("%")[0].removesuffix(".")
        extensions = request.extensions if name == host else {**request.extensions, "sni_hostname": name}
        asked = httpcore.Request(
            request.method,
            httpcore.URL(
                scheme=request.url.raw_scheme,
                host=request.url.raw_host,
                port=request.url.port,
                target=request.url.raw_path,
            ),
            headers=request.headers.raw,
            content=_Content(await request.aread()),
            extensions=extensions,
        )
        try:
            with _as_httpx_errors():
                response = await self._pool.handle_async_request(asked)
        except _TurnedAway as turned:
            refused = turned.refused(request.url.scheme)
            raise NotAllowed(without_credentials(str(request.url)), refused.reason, refused.remedy) from None
        return httpx.Response(
            response.status, headers=response.headers, stream=_Body(response), extensions=response.extensions
        )

    def _proxy_for(self, url: httpx.URL) -> httpx.AsyncBaseTransport | None:
        found = self._proxies.get(url.scheme) or self._proxies.get("all")
        return None if found is None or is_loopback(url.host) or proxy_bypass(url.host) else found

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.aclose()
        for proxy in self._proxies.values():
            await proxy.aclose()


@define(eq=False)
class _Content:
    """A request's body in one piece. No generator, which cancelled halfway would be left to the garbage collector."""

    rest: bytes

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        part, self.rest = self.rest, b""
        if not part:
            raise StopAsyncIteration
        return part


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx_errors():
            async for part in self._response.aiter_stream():
                yield part

    async def aclose(self) -> None:
        with _as_httpx_errors():
            await self._response.aclose()


@contextmanager
def _as_httpx_errors() -> Iterator[None]:
    try:
        yield
    except (
        httpcore.NetworkError,
        httpcore.TimeoutException,
        httpcore.ProtocolError,
        httpcore.UnsupportedProtocol,
    ) as e:
        # Both libraries have the same names for the same errors.
        raise getattr(httpx, type(e).__name__)(str(e)) from e


def _proxies(context: ssl.SSLContext) -> dict[str, httpx.AsyncBaseTransport]:
    """The proxies of the environment (and of the system's settings, where it has any), by scheme."""
    found = {scheme: url for scheme, url in getproxies().items() if scheme in ("http", "https", "all") and url}
    return {
        scheme: httpx.AsyncHTTPTransport(proxy=url if "://" in url else f"http://{url}", verify=context)
        for scheme, url in found.items()
    }
