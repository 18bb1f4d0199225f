"""TLS on the server's side: the certificate, and a proper end of connections (close_notify)."""

import ssl
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import AnyByteStream, ByteStream
from anyio.streams.tls import TLSAttribute, TLSStream
from attrs import frozen

from asap_core.arguments import expect_kind

# What anyio reads at once.
_READ: Final = 65_536
# RFC 9110 §15.5.22: 426 names "the required protocol(s)" in an Upgrade field.
_DETAIL: Final = b'{"detail":"This port speaks TLS: use https://"}'
_SPEAKS_TLS: Final = (
    b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: TLS/1.3, HTTP/1.1\r\nConnection: upgrade, close\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(_DETAIL), _DETAIL)
)


@frozen
class TLS:
    """What https is served with.

    cert: the file of the certificate chain, in PEM.
    key: the file of its private key, in PEM, if it isn't in the same file.
    """

    cert: str | Path
    key: str | Path | None = None

    def __attrs_post_init__(self) -> None:
        expect_kind("cert", self.cert, str | Path, '"server.pem"')
        expect_kind("key", self.key, str | Path | None, '"server-key.pem"')


def server_context(tls: TLS) -> ssl.SSLContext:
    """Make the server's context. Raises ValueError if the files aren't a certificate chain and its key."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(tls.cert, tls.key)
    except OSError as error:  # ssl.SSLError is one; neither names the file
        raise ValueError(f"expected a certificate chain and its key as PEM in {tls.cert}: {error.strerror}") from error
    return context


async def accept_tls(stream: ByteStream, context: ssl.SSLContext) -> TLSStream:
    """Shake hands. A client that speaks plain HTTP gets a plain 426. Raises what anyio does."""
    try:
        return await ServerTLS.wrap(stream, server_side=True, ssl_context=context)
    except ssl.SSLError as error:
        if error.reason == "HTTP_REQUEST":
            await stream.send(_SPEAKS_TLS)
        raise


class ServerTLS(TLSStream):
    """A TLS stream that ends with close_notify, and doesn't wait for the peer's (RFC 9112 §9.8).

    Without it the peer can't tell the end of an answer from an attack that cuts it off (RFC 8446 §6.1). anyio sends it
    as well, and then waits for as long as the peer likes.
    """

    _ended = False

    async def send_eof(self) -> None:
        """Send close_notify, once. What is received after it isn't decrypted, and must be dropped."""
        if self._ended:
            return
        self._ended = True
        with suppress(ssl.SSLError):  # SSLWantReadError, at the latest: nothing more is there
            # With data left to be read unwrap() fails, and anyio then sends nothing of what it wrote.
            while self.extra(TLSAttribute.ssl_object).read(_READ):  # noqa: S610 - anyio's, not Django's
                pass
        transport = self.transport_stream
        self.transport_stream = _Deaf(transport)  # type: ignore[assignment]
        try:
            await self.unwrap()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):  # ssl.SSLError is one: no answer came
            pass
        finally:
            self.transport_stream = transport

    async def receive(self, max_bytes: int = _READ) -> bytes:
        """See anyio. After `send_eof` it returns what the peer sends, still encrypted."""
        if not self._ended:
            return await super().receive(max_bytes)
        return bytes(await self.transport_stream.receive())

    async def aclose(self) -> None:
        """Send close_notify, and close the transport."""
        await self.send_eof()
        await self.transport_stream.aclose()


class _Deaf:
    """A stream that can only be written to. Reading says that it has ended."""

    def __init__(self, stream: AnyByteStream) -> None:
        self.send = stream.send

    async def receive(self, _max_bytes: int = _READ) -> bytes:
        raise anyio.EndOfStream
