"""Requests over connections of httpcore: what the transports for event loops and for threads share."""

import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol, Self, TypeVar, assert_never

import httpcore
import httpx
from attrs import define, frozen

from asap_adapters.net.dialling import words_of
from asap_adapters.net.environment import BadProxy, Proxies, certificates
from asap_core.client.connections import IDLE_SECONDS, ConnectionKey, Progress
from asap_core.client.programs import Barred, Route, Stage, Unanswered
from asap_core.errors import NotAllowed
from asap_core.net.outbound import Dial

ROUTE: Final = "asap_route"
"""The request extension with its `Route`."""
PROGRESS: Final = "asap_progress"
"""The request extension that holds a `Progress`, in which the transport notes how far the request has got."""

C_co = TypeVar("C_co", covariant=True)


class _Makes(Protocol[C_co]):
    def create_connection(self, origin: httpcore.Origin) -> C_co: ...


@frozen
class Ways:
    """How servers are reached: with which TLS context, and through which proxies."""

    context: ssl.SSLContext
    proxies: Proxies

    @classmethod
    def of(cls, verify: ssl.SSLContext | bool, *, trust_env: bool) -> Self:  # noqa: FBT001 - httpx's own
        """Read certificates and, with `trust_env`, proxies. Raises OSError if certificates are unreadable."""
        context = certificates(verify, trust_env=trust_env)
        return cls(context, Proxies.of_environment() if trust_env else Proxies())

    def key(self, route: Route, origin: httpcore.Origin) -> ConnectionKey:
        """Return which connections a request may use. Raises `NotAllowed` if its proxy can't be used."""
        try:
            proxy = "" if route.announced else self.proxies.name_for(route.scheme, route.host, route.port)
            self.proxies.proxy(proxy, self.context)
        except BadProxy as bad:
            raise NotAllowed(route.host, bad.reason, bad.remedy) from None
        return ConnectionKey((origin.scheme, origin.host, origin.port), proxy, route.announced)

    def connection(self, pool: Callable[..., _Makes[C_co]], key: ConnectionKey, backend: Any) -> C_co:
        """Return a connection that isn't open yet. `pool`: httpcore's, which is used only as a factory."""
        makes = pool(
            ssl_context=self.context,
            proxy=self.proxies.proxy(key.proxy, self.context),
            keepalive_expiry=IDLE_SECONDS,
            network_backend=backend,
        )
        return makes.create_connection(httpcore.Origin(*key.origin))


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
