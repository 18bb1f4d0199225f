"""Requests over httpx and httpcore, their sockets and their failures: what clients for event loops and threads share.

Proxies and certificates of the environment are read only with `trust_env`. A proxy's URL is read when a request would
use it, so that an invalid one doesn't affect other requests.
"""

import errno
import os
import select
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib.util import find_spec
from typing import Any, Final, assert_never
from urllib.request import getproxies, proxy_bypass

import anyio
import httpcore
import httpx
from attrs import define, field, frozen

from asap_core.arguments import ArgumentRule, is_instance
from asap_core.client.connections import IDLE_SECONDS, ConnectionKey, Progress
from asap_core.client.options import FLAG, RequestOptions
from asap_core.client.programs import Barred, Expired, Fetch, Route, Stage, Unanswered
from asap_core.errors import Advice, NotAllowed
from asap_core.net.environment_proxies import Proxies, ProxyUrl, UnusableProxy
from asap_core.net.outbound import Dial

# --- requests ---------------------------------------------------------------------------------------------------------


def _url_of(asked: Fetch) -> httpx.URL:
    """Return the URL as httpx reads it. Raises `NotAllowed` if its host isn't the one that the policy judged."""
    try:
        url = httpx.URL(asked.url)
        if url.host and url.raw_host.decode("ascii").lower() == asked.route.host.lower():
            return url
    except (httpx.InvalidURL, UnicodeError):  # idna's errors are UnicodeErrors
        pass
    advice = Advice("expected a URL such as https://agent.example")
    raise NotAllowed(asked.route.host, "its host is not a valid host name", advice)


def httpx_request(asked: Fetch) -> httpx.Request:
    """Return the request for a transport of httpx. Raises `NotAllowed` if its host isn't one."""
    limits = dict.fromkeys(("connect", "read", "write", "pool"), asked.seconds)
    url, headers = _url_of(asked), list(asked.headers)
    return httpx.Request(asked.method, url, headers=headers, content=asked.body, extensions={"timeout": limits})


def httpcore_request(asked: Fetch, progress: Progress) -> httpcore.Request:
    """Return the request for httpcore, which notes in `progress` that it's sent. Raises as `httpx_request`."""
    url, route, headers = _url_of(asked), asked.route, [*asked.headers]
    if all(name.lower() != "host" for name, _ in headers):
        headers.insert(0, ("Host", url.netloc.decode("ascii")))
    if asked.body is not None:
        headers.append(("Content-Length", str(len(asked.body))))
    # Only if it's needed: httpcore would give the name to a proxy that speaks TLS too.
    named: dict[str, Any] = {} if route.server_name == route.host else {"sni_hostname": route.server_name}
    target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    return httpcore.Request(
        asked.method, target, headers=headers, content=_Content(asked.body or b"", progress), extensions=named
    )


@define(eq=False)
class _Content(Iterator[bytes], AsyncIterator[bytes]):
    """A request's body in one piece. Not a generator, which a cancellation would leave to the garbage collector.

    httpcore asks for it after writing the head: from then on the server may act on the request.
    """

    rest: bytes
    progress: Progress

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


# --- connections ------------------------------------------------------------------------------------------------------

_VERIFY: Final = ArgumentRule("an ssl.SSLContext, True or False", is_instance(bool, ssl.SSLContext))


@frozen(kw_only=True)
class ConnectionOptions(RequestOptions):
    """How a client connects."""

    verify: ssl.SSLContext | bool = field(default=True, validator=_VERIFY)
    """The TLS context, or False to verify no certificates."""
    trust_env: bool = field(default=False, validator=FLAG)
    """Use the proxies and certificates that the environment names."""


_SOCKS: Final = Advice("install httpx[socks], or use one over http")
# For connections without TLS.
_NO_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class Ways:
    """How servers are reached: with which TLS context, and through which proxies.

    With `trust_env`, it reads the environment's certificates and proxies at once. Raises OSError if the certificates
    are unreadable. The system's are read for the first connection with TLS: it takes 33 ms.
    """

    def __init__(self, options: ConnectionOptions) -> None:
        self._options = options
        self._proxies: Proxies | None = None
        if options.trust_env:
            no_proxy = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
            self._proxies = Proxies(getproxies(), no_proxy, proxy_bypass)
            self._tls  # noqa: B018 - read now

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """The TLS context. Raises OSError, which names the variable if the environment's files are unreadable."""
        try:
            return httpx.create_ssl_context(verify=self._options.verify, trust_env=self._options.trust_env)
        except OSError as error:  # ssl.SSLError is one
            named = [name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)]
            if not (self._options.trust_env and named):
                raise
            reason = f"the certificates that {' and '.join(named)} names can't be read"
            raise OSError(error.errno or errno.EINVAL, reason) from None

    def key(self, route: Route) -> ConnectionKey:
        """Return which connections a request may use. Raises `NotAllowed` if its proxy can't be used."""
        proxies = None if route.announced else self._proxies
        proxy = None if proxies is None else proxies.proxy_for(route.scheme, route.host, route.port)
        if isinstance(proxy, ProxyUrl) and proxy.speaks_socks and find_spec("socksio") is None:
            proxy = UnusableProxy(proxy.variable, "it speaks SOCKS, which needs another package", _SOCKS)
        if isinstance(proxy, UnusableProxy):
            raise NotAllowed(route.host, proxy.reason, proxy.remedy)
        origin = route.scheme.encode("ascii"), route.host.encode("ascii"), route.port
        return ConnectionKey(origin, proxy, route.announced)

    def arguments(self, key: ConnectionKey) -> dict[str, Any]:
        """Return the arguments for a pool of httpcore, which is used only to make a connection with this key."""
        return {
            # httpcore reads certificates itself if it's given no context.
            "ssl_context": _NO_TLS if key.origin[0] == b"http" else self._tls,
            "proxy": None if key.proxy is None else self._proxy(key.proxy),
            "keepalive_expiry": IDLE_SECONDS,
        }

    def _proxy(self, proxy: ProxyUrl) -> httpcore.Proxy:
        return httpcore.Proxy(
            httpcore.URL(scheme=proxy.scheme, host=proxy.host, port=proxy.port, target="/"),
            auth=None if proxy.login is None else (proxy.login[0].encode(), proxy.login[1].encode()),
            ssl_context=self._tls if proxy.scheme == "https" else None,
        )


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
def through(proxy: ProxyUrl | None) -> Iterator[None]:
    """Let httpcore's ConnectError name the proxy, if that is what can't be connected to."""
    try:
        yield
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


# --- sockets ----------------------------------------------------------------------------------------------------------

# RFC 8305 §5: seconds after which the next address is tried too.
ATTEMPT_DELAY: Final = 0.25
# RFC 8446 §5.1: the type of an alert record, and the first byte of all versions.
_TLS_ALERT: Final = b"\x15\x03"


def begin_connecting(address: str, port: int) -> socket.socket:
    """Begin to connect to a literal address, with its scope. No name is resolved. Raises OSError.

    Returns a socket that doesn't block. Once it's writable, `check_connected` says whether it's connected.
    """
    family, *_, target = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        # Nagle's algorithm would delay the second half of a request until the first is acknowledged.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(BlockingIOError):
            sock.connect(target)
    except BaseException:
        sock.close()
        raise
    return sock


def check_connected(sock: socket.socket) -> None:
    """Raise OSError if the connection failed."""
    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number:
        raise OSError(number, os.strerror(number))


def check_plain(data: bytes) -> None:
    """Raise httpcore's ConnectError if the first bytes of a connection without TLS are TLS's."""
    if data.startswith(_TLS_ALERT):
        raise httpcore.ConnectError("it speaks TLS there: use https://")


def is_readable(sock: Any) -> bool:
    """Return whether an idle connection is readable, which means that the server closed it."""
    if sock is None or sock.fileno() < 0:
        return True
    if not hasattr(select, "poll"):
        return bool(select.select([sock.fileno()], [], [], 0)[0])
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


# --- failures ---------------------------------------------------------------------------------------------------------
# The messages of h11 and httpx repeat what the peer sent, are empty, or lack the address.

FAILURES: Final = (
    NotAllowed,
    TimeoutError,
    httpx.HTTPError,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.TimeoutException,
)
"""What a request may raise that an outcome says."""
# By the names of exceptions, which httpcore and httpx share.
_WORDS: Final = {
    "ProxyError": "the proxy doesn't connect to it",
    "RemoteProtocolError": "what came back isn't an HTTP answer, or ended early",
    "ReadError": "the connection broke",
    "WriteError": "the connection broke",
}
# OpenSSL's reasons, by version, for bytes that aren't a TLS record.
_NO_TLS_RECORD: Final = frozenset(
    {"WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}
)


def failed(error: Exception, stage: Stage) -> Unanswered | Expired | Barred:
    """Return the outcome of a request that failed at this stage. `error`: one of `FAILURES`."""
    if isinstance(error, NotAllowed):
        return Barred(error.reason, error.remedy)
    kinds = [kind.__name__ for kind in type(error).__mro__]
    if "PoolTimeout" in kinds:
        stage = Stage.QUEUED
    elif ("ConnectError" in kinds or "ConnectTimeout" in kinds) and stage is not Stage.QUEUED:
        stage = Stage.CONNECTING
    if "TimeoutError" in kinds or "TimeoutException" in kinds:
        return Expired(stage)
    # httpcore has no exception of its own for a peer that closes the connection without answering.
    nothing = "ReadError" in kinds or str(error).startswith("Server disconnected without")
    return Unanswered(stage, _words_of_request(error, kinds), silent=stage is Stage.SENT and nothing)


def _words_of_request(error: Exception, kinds: list[str]) -> str:
    untrusted = next((cause for cause in _causes(error) if isinstance(cause, ssl.SSLCertVerificationError)), None)
    if untrusted is not None:
        # On trio it's two causes down, under errors without a message.
        return f"its certificate isn't trusted: {untrusted.verify_message}"
    if "ConnectError" in kinds:
        words = " ".join(str(error).split())  # this module's
        return f"can't connect: {words}" if words else "can't connect"
    return next((_WORDS[kind] for kind in kinds if kind in _WORDS), "the request failed")


@contextmanager
def as_httpcore_error(broken: type[Exception]) -> Iterator[None]:
    """Raise `broken`, with this library's words, for the errors of sockets, TLS and anyio, except TimeoutError."""
    try:
        yield
    except TimeoutError:
        raise
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError) as error:
        ended = "it ended the connection instead of beginning TLS" if broken is httpcore.ConnectError else ""
        reasons = (_words_of_tls(cause) for cause in _causes(error) if isinstance(cause, ssl.SSLError))
        raise broken(next(reasons, ended)) from error


def _words_of_tls(error: ssl.SSLError) -> str:
    reason = error.reason or ""
    if reason in _NO_TLS_RECORD:
        return "it doesn't speak TLS there: use http:// if this is intended"
    return f"TLS failed: {reason.replace('_', ' ').lower()}" if reason else "TLS failed"


def words_of(error: BaseException) -> str:
    """Return the operating system's message: it belongs to the innermost of several chained exceptions."""
    text = "no connection"
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno is not None:
            # A resolver's error numbers are negative, with messages of its own.
            text = os.strerror(cause.errno) if cause.errno > 0 else cause.strerror or text
    return text


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and what it came of, down to the innermost."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
