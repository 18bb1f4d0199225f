"""Connects to the first of several addresses that answers, for httpcore.

No socket stays open if an attempt ends early: each await is inside a `try` that closes the socket, whether the
cancellation is anyio's or asyncio's own `task.cancel()`.
"""

import errno
import os
import select
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import anyio
import httpcore
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSAttribute, TLSStream
from attrs import define

# RFC 8305 §5: seconds after which the next address is tried too.
ATTEMPT_DELAY: Final = 0.25
# RFC 8446 §5.1: the type of an alert record, and the first byte of all versions.
TLS_ALERT: Final = b"\x15\x03"
SPEAKS_TLS: Final = "it speaks TLS there: use https://"
SPEAKS_NO_TLS: Final = "it doesn't speak TLS there: use http:// if this is intended"
# OpenSSL's reasons, by version, for bytes that aren't a TLS record.
_NO_TLS: Final = frozenset(
    {"WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}
)

# Of POSIX and of Windows.
_UNDER_WAY: Final = frozenset({errno.EINPROGRESS, errno.EWOULDBLOCK, 10_035})

Dialler = Callable[[str, int], Awaitable[httpcore.AsyncNetworkStream]]
"""Connects to one address and port. Raises `httpcore.ConnectError`, `httpcore.ConnectTimeout`, OSError."""


def begin_connecting(address: str, port: int) -> tuple[socket.socket, bool]:
    """Begin to connect to a literal address, with its scope. No name is resolved. Raises OSError.

    Returns a socket that doesn't block, and whether it's still to be waited for: until it's writable.
    """
    family, *_, target = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        # Nagle's algorithm would delay the second half of a request until the first is acknowledged.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        number = sock.connect_ex(target)
    except BaseException:
        sock.close()
        raise
    if number and number not in _UNDER_WAY:
        sock.close()
        raise OSError(number, os.strerror(number))
    return sock, bool(number)


def check_connected(sock: socket.socket) -> None:
    """Raise OSError if the connection failed."""
    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number:
        raise OSError(number, os.strerror(number))


async def dial(address: str, port: int) -> httpcore.AsyncNetworkStream:
    """Connect to a literal address, with its scope. No name is resolved."""
    sock, under_way = begin_connecting(address, port)
    try:
        if under_way:
            await anyio.wait_writable(sock)
            check_connected(sock)
        return _TcpStream(await anyio.abc.SocketStream.from_socket(sock))
    except ValueError:  # anyio's exception for a socket that was reset meanwhile
        sock.close()
        raise OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)) from None
    except BaseException:
        sock.close()
        raise


@define(eq=False)
class _TcpStream(httpcore.AsyncNetworkStream):
    """A connection, with TLS or without. The limit of the whole request applies, not those of httpcore."""

    stream: ByteStream
    fresh: bool = True

    async def read(self, max_bytes: int, *_: Any, **__: Any) -> bytes:
        with as_httpcore_errors(httpcore.ReadError, httpcore.ReadTimeout):
            try:
                data = await self.stream.receive(max_bytes)
            except anyio.EndOfStream:
                return b""
        if self.fresh and data.startswith(TLS_ALERT):
            raise httpcore.ConnectError(SPEAKS_TLS)
        self.fresh = False
        return data

    async def write(self, buffer: bytes, *_: Any, **__: Any) -> None:
        if buffer:
            with as_httpcore_errors(httpcore.WriteError, httpcore.WriteTimeout):
                await self.stream.send(buffer)

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, *_: Any, **__: Any
    ) -> httpcore.AsyncNetworkStream:
        with as_httpcore_errors(httpcore.ConnectError, httpcore.ConnectTimeout):
            tls = await TLSStream.wrap(
                self.stream,
                ssl_context=ssl_context,
                hostname=server_hostname,
                standard_compatible=False,
                server_side=False,
            )
        return _TcpStream(tls, fresh=False)

    async def aclose(self) -> None:
        await self.stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        if info == "ssl_object":
            return self.stream.extra(TLSAttribute.ssl_object, None)  # noqa: S610 - not Django's
        if info == "is_readable":
            return is_readable(self.stream.extra(SocketAttribute.raw_socket, None))  # noqa: S610 - not Django's
        return None


@contextmanager
def as_httpcore_errors(broken: type[Exception], late: type[Exception]) -> Iterator[None]:
    """Raise `broken` or `late`, with this library's words, for the errors of sockets, TLS and anyio."""
    try:
        yield
    except TimeoutError as error:
        raise late from error
    except ssl.SSLError as error:
        raise broken(_tls_words(error)) from error
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError) as error:
        cause = error.__cause__
        ended = "it ended the connection instead of beginning TLS" if broken is httpcore.ConnectError else ""
        raise broken(_tls_words(cause) if isinstance(cause, ssl.SSLError) else ended) from error


def _tls_words(error: ssl.SSLError) -> str:
    reason = error.reason or ""
    if reason in _NO_TLS:
        return SPEAKS_NO_TLS
    return f"TLS failed: {reason.replace('_', ' ').lower()}" if reason else "TLS failed"


def is_readable(sock: Any) -> bool:
    """Return whether an idle connection is readable, which means that the server closed it."""
    if sock is None or sock.fileno() < 0:
        return True
    if not hasattr(select, "poll"):
        return bool(select.select([sock.fileno()], [], [], 0)[0])
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


async def connect_first(addresses: Sequence[str], port: int, dial: Dialler) -> tuple[str, httpcore.AsyncNetworkStream]:
    """Connect to the first of these addresses that answers (RFC 8305 §5): if one fails or takes long, try the next too.

    Raises: httpcore.ConnectError, which names the reason for each address.
    """
    made: list[tuple[str, httpcore.AsyncNetworkStream]] = []
    failures: list[str] = []

    async def attempt(address: str, ended: anyio.Event, all_attempts: anyio.CancelScope) -> None:
        try:
            made.append((address, await dial(address, port)))
            all_attempts.cancel()
        except (httpcore.ConnectError, httpcore.ConnectTimeout, OSError) as error:
            failures.append(f"{address}: {words_of(error)}")
        finally:
            ended.set()

    try:
        if len(addresses) == 1:  # no race, so no task is needed
            await attempt(addresses[0], anyio.Event(), anyio.CancelScope())
        else:
            async with anyio.create_task_group() as group:
                for address in addresses:
                    ended = anyio.Event()
                    group.start_soon(attempt, address, ended, group.cancel_scope)
                    with anyio.move_on_after(ATTEMPT_DELAY):
                        await ended.wait()
        await close_all([stream for _, stream in made[1:]])
    except BaseException:  # the caller was cancelled
        await close_all([stream for _, stream in made])
        raise
    if not made:
        raise httpcore.ConnectError("; ".join(failures))
    return made[0]


async def close_all(streams: Sequence[httpcore.AsyncNetworkStream]) -> None:
    """Close all of them, even if asyncio's own cancellation, which no shield stops, interrupts one."""
    interrupted: BaseException | None = None
    for stream in streams:
        try:
            with anyio.CancelScope(shield=True):
                await stream.aclose()
        except Exception:  # noqa: BLE001, S110 - it's closed although it failed
            pass
        except BaseException as error:  # noqa: BLE001 - raised after all are closed
            interrupted = error
    if interrupted is not None:
        raise interrupted


def words_of(error: BaseException | None) -> str:
    """Return the operating system's message: it belongs to the innermost of several chained exceptions."""
    text = "no connection"
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.errno is not None:
            # A resolver's error numbers are negative, with messages of its own.
            text = os.strerror(cause.errno) if cause.errno > 0 else cause.strerror or text
    return text


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and what it came of, down to the innermost."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
