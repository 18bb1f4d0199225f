"""Requests over connections of httpcore, through proxies or not: what the transports for event loops and threads share.

Proxies and certificates of the environment are read only with `trust_env`. A proxy's URL is read when a request would
use it, so that an invalid one doesn't affect other requests.
"""

import errno
import os
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Final, Protocol, TypeVar, assert_never
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from asap_adapters.net.dialling import words_of
from asap_core.client.connections import IDLE_SECONDS, ConnectionKey
from asap_core.client.programs import Barred, Route, Unanswered
from asap_core.errors import Advice, NotAllowed
from asap_core.net.environment_proxies import Proxies, ProxyUrl, UnusableProxy
from asap_core.net.outbound import Dial

# --- the environment --------------------------------------------------------------------------------------------------

_SOCKS: Final = Advice("install httpx[socks], or use one over http")


def certificates(verify: ssl.SSLContext | bool, *, trust_env: bool) -> ssl.SSLContext:  # noqa: FBT001 - httpx's own
    """Return the TLS context. Raises OSError, which names the variable if the environment's files are unreadable."""
    try:
        return httpx.create_ssl_context(verify=verify, trust_env=trust_env)
    except OSError as error:  # ssl.SSLError is one
        named = [name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if trust_env and os.environ.get(name)]
        if not named:
            raise
        reason = f"the certificates that {' and '.join(named)} names can't be read"
        raise OSError(error.errno or errno.EINVAL, reason) from None


# --- connections ------------------------------------------------------------------------------------------------------

C_co = TypeVar("C_co", covariant=True)

# For connections without TLS.
_NO_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class _Makes(Protocol[C_co]):
    def create_connection(self, origin: httpcore.Origin) -> C_co: ...


class Ways:
    """How servers are reached: with which TLS context, and through which proxies.

    With `trust_env`, it reads the environment's certificates and proxies at once. Raises OSError if the certificates
    are unreadable. The system's are read for the first connection with TLS: it takes 33 ms.
    """

    def __init__(self, verify: ssl.SSLContext | bool, *, trust_env: bool) -> None:  # noqa: FBT001 - httpx's own
        self._verify = verify
        self._context = certificates(verify, trust_env=True) if trust_env else None
        no_proxy = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
        self._proxies = Proxies(getproxies(), no_proxy, proxy_bypass) if trust_env else Proxies()

    def key(self, route: Route) -> ConnectionKey:
        """Return which connections a request may use. Raises `NotAllowed` if its proxy can't be used."""
        proxy = None if route.announced else self._proxies.proxy_for(route.scheme, route.host, route.port)
        if isinstance(proxy, ProxyUrl) and proxy.speaks_socks and find_spec("socksio") is None:
            proxy = UnusableProxy(proxy.variable, "it speaks SOCKS, which needs another package", _SOCKS)
        if isinstance(proxy, UnusableProxy):
            raise NotAllowed(route.host, proxy.reason, proxy.remedy)
        origin = route.scheme.encode("ascii"), route.host.encode("ascii"), route.port
        return ConnectionKey(origin, proxy, route.announced)

    def connection(self, pool: Callable[..., _Makes[C_co]], key: ConnectionKey, backend: Any) -> C_co:
        """Return a connection that isn't open yet. `pool`: httpcore's, which is used only as a factory."""
        makes = pool(
            # httpcore reads certificates itself if it's given no context.
            ssl_context=_NO_TLS if key.origin[0] == b"http" else self._tls(),
            proxy=None if key.proxy is None else self._proxy(key.proxy),
            keepalive_expiry=IDLE_SECONDS,
            network_backend=backend,
        )
        return makes.create_connection(httpcore.Origin(*key.origin))

    def _proxy(self, proxy: ProxyUrl) -> httpcore.Proxy:
        return httpcore.Proxy(
            httpcore.URL(scheme=proxy.scheme, host=proxy.host, port=proxy.port, target="/"),
            auth=None if proxy.login is None else (proxy.login[0].encode(), proxy.login[1].encode()),
            ssl_context=self._tls() if proxy.scheme == "https" else None,
        )

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = certificates(self._verify, trust_env=False)
        return self._context


def chosen(way: Route | ProxyUrl, answers: Sequence[str]) -> Sequence[str]:
    """Return the addresses to connect to. Raises `NotAllowed` if they are refused, httpcore's ConnectError if none.

    answers: what the name of `way`, if it has one, resolved to.
    """
    found = way.choose(answers)
    match found:
        case Dial(addresses):
            return addresses
        case Barred(reason, remedy):
            raise NotAllowed(way.host, reason, remedy)
        case Unanswered(_, problem):
            raise httpcore.ConnectError(problem)
        case _:
            assert_never(found)


@contextmanager
def connecting(proxy: ProxyUrl | None) -> Iterator[None]:
    """Raise httpcore's ConnectTimeout for TimeoutError; name the proxy that can't be connected to."""
    try:
        yield
    except TimeoutError:
        raise httpcore.ConnectTimeout from None
    except httpcore.ConnectError as error:
        if proxy is None:
            raise
        raise httpcore.ConnectError(f"the proxy that {proxy.variable} names: {error}") from None


@contextmanager
def resolving() -> Iterator[None]:
    """Raise httpcore's ConnectError for the errors of resolvers."""
    try:
        yield
    except OSError as error:  # socket.gaierror is one
        raise httpcore.ConnectError(f"its name can't be resolved: {words_of(error)}") from None
    except UnicodeError:  # some resolvers can't encode some names
        raise httpcore.ConnectError("its name can't be resolved: it can't be a host's") from None
