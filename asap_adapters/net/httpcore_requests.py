"""Requests over connections of httpcore, through proxies or not: what the transports for event loops and threads share.

Proxies and certificates of the environment are read only with `trust_env`. A proxy's URL is checked when a request
would use it, so that an invalid one doesn't affect other requests.
"""

import errno
import os
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Final, Protocol, Self, TypeVar, assert_never
from urllib.parse import unquote
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx
from attrs import define, field

from asap_adapters.net.dialling import words_of
from asap_core.client.connections import IDLE_SECONDS, ConnectionKey
from asap_core.client.programs import Barred, Route, Unanswered
from asap_core.errors import Advice, NotAllowed, Remedy
from asap_core.net.outbound import Dial
from asap_core.net.proxy_exemptions import is_exempt
from asap_core.net.urls import DEFAULT_PORTS, is_loopback

# --- the environment --------------------------------------------------------------------------------------------------

_PORTS: Final = {**DEFAULT_PORTS, "socks5": 1080, "socks5h": 1080}
_END_OF_PORTS: Final = 65_536
_SOCKS: Final = frozenset({"socks5", "socks5h"})
_REMEDY: Final = Advice("set it to a URL such as http://proxy.example:3128, or list this host in no_proxy")


class BadProxy(Exception):
    """The environment names an unusable proxy."""

    def __init__(self, name: str, why: str, remedy: Remedy = _REMEDY) -> None:
        super().__init__(name)
        self.reason = f"{name}_proxy names a proxy that can't be used: {why}"
        self.remedy = remedy


@define(eq=False)
class Proxies:
    """The proxies of the environment (and of the system's settings, if it has any), by scheme."""

    _urls: Mapping[str, str] = field(factory=dict, repr=False)
    _made: dict[str, httpcore.Proxy] = field(factory=dict, repr=False)

    @classmethod
    def of_environment(cls) -> Self:
        """Read the current environment."""
        return cls({scheme: url for scheme, url in getproxies().items() if scheme in ("http", "https", "all") and url})

    def name_for(self, scheme: str, host: str, port: int) -> str:
        """Return the name of the proxy for a request, or "" for none."""
        name = next((name for name in (scheme, "all") if name in self._urls), "")
        return "" if not name or is_loopback(host) or _needs_none(host, port) else name

    def proxy(self, name: str, context: Callable[[], ssl.SSLContext]) -> httpcore.Proxy | None:
        """Return the proxy of this name. Raises `BadProxy`, which doesn't repeat the URL: it may contain a password."""
        if not name:
            return None
        if name not in self._made:
            self._made[name] = _read(name, self._urls[name].strip(), context)
        return self._made[name]


def _read(name: str, text: str, context: Callable[[], ssl.SSLContext]) -> httpcore.Proxy:
    try:
        url = httpx.URL(text if "://" in text else f"http://{text}")
        host, port, user = url.raw_host, url.port, url.userinfo
    except (httpx.InvalidURL, ValueError):  # idna's errors are ValueErrors
        raise BadProxy(name, "it isn't a URL") from None
    if url.scheme not in _PORTS:
        raise BadProxy(name, "its scheme isn't http, https or socks5")
    if not host or not (port is None or 0 < port < _END_OF_PORTS):
        raise BadProxy(name, "it has no host, or no port that can be connected to")
    if url.scheme in _SOCKS and find_spec("socksio") is None:
        raise BadProxy(
            name, "it speaks SOCKS, which needs another package", Advice("install httpx[socks], or use one over http")
        )
    login, _, password = user.decode("ascii").partition(":")
    return httpcore.Proxy(
        httpcore.URL(scheme=url.raw_scheme, host=host, port=port or _PORTS[url.scheme], target=b"/"),
        auth=(unquote(login).encode(), unquote(password).encode()) if user else None,
        ssl_context=context() if url.scheme == "https" else None,
    )


def _needs_none(host: str, port: int) -> bool:
    """Return whether `no_proxy`, or the system's settings, name it."""
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    shown = f"[{host}]" if ":" in host else host
    return bool(proxy_bypass(host) or proxy_bypass(f"{shown}:{port}")) or is_exempt(host, port, listed)


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
        self._proxies = Proxies.of_environment() if trust_env else Proxies()

    def key(self, route: Route) -> ConnectionKey:
        """Return which connections a request may use. Raises `NotAllowed` if its proxy can't be used."""
        try:
            proxy = "" if route.announced else self._proxies.name_for(route.scheme, route.host, route.port)
            self._proxies.proxy(proxy, self._tls)
        except BadProxy as bad:
            raise NotAllowed(route.host, bad.reason, bad.remedy) from None
        origin = route.scheme.encode("ascii"), route.host.encode("ascii"), route.port
        return ConnectionKey(origin, proxy, route.announced)

    def connection(self, pool: Callable[..., _Makes[C_co]], key: ConnectionKey, backend: Any) -> C_co:
        """Return a connection that isn't open yet. `pool`: httpcore's, which is used only as a factory."""
        makes = pool(
            # httpcore reads certificates itself if it's given no context.
            ssl_context=_NO_TLS if key.origin[0] == b"http" else self._tls(),
            proxy=self._proxies.proxy(key.proxy, self._tls),
            keepalive_expiry=IDLE_SECONDS,
            network_backend=backend,
        )
        return makes.create_connection(httpcore.Origin(*key.origin))

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = certificates(self._verify, trust_env=False)
        return self._context


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
