"""TLS on the server's side: the certificate, and a proper end of connections (close_notify)."""

import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import AnyByteStream, ByteStream
from anyio.streams.tls import TLSAttribute, TLSStream
from attrs import frozen

from asap_adapters.server.channel import ReadsNow
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
    key: the file of its private key, in PEM and without a pass phrase, if it isn't in the same file.
    client_ca: the file of certificate authorities, in PEM. Only clients with a certificate that one of them issued can
        connect. A certificate names no principal: callers authenticate as they do without one.
    """

    cert: str | Path
    key: str | Path | None = None
    client_ca: str | Path | None = None

    def __attrs_post_init__(self) -> None:
        expect_kind("cert", self.cert, str | Path, '"server.pem"')
        expect_kind("key", self.key, str | Path | None, '"server-key.pem"')
        expect_kind("client_ca", self.client_ca, str | Path | None, '"clients-ca.pem"')

    def context(self) -> ssl.SSLContext:
        """Read the files. Raises ValueError if one doesn't hold what it should."""
        for path in (self.cert, self.key, self.client_ca):
            try:
                if path is not None:  # this error names the file that is missing; that of ssl doesn't
                    Path(path).open("rb").close()
            except OSError as error:
                raise ValueError(f"{path}: {error.strerror}") from None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # An empty pass phrase instead of a prompt: a server starts without a person.
            context.load_cert_chain(self.cert, self.key, password="")
        except ssl.SSLError as error:
            files = f"{self.cert}" if self.key is None else f"{self.cert} and {self.key}"
            raise ValueError(
                f"{files}: expected a certificate chain and its key in PEM, without a pass phrase"
            ) from error
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(self.client_ca)
            except ssl.SSLError as error:
                raise ValueError(f"{self.client_ca}: expected certificates in PEM") from error
            if not context.get_ca_certs():  # such as a certificate that isn't an authority's: it would let nobody in
                raise ValueError(f"{self.client_ca}: expected a certificate of an authority (CA:TRUE)")
        return context


Certificates = Callable[[], ssl.SSLContext]
"""Returns what the next connection is served with, so that certificates can be renewed."""


class CertificateFiles:
    """The files of a `TLS` as they were last read."""

    def __init__(self, tls: TLS) -> None:
        """Read the files. Raises ValueError if one doesn't hold what it should."""
        self._tls: Final = tls
        self._context = tls.context()

    def __call__(self) -> ssl.SSLContext:
        """See `Certificates`."""
        return self._context

    def reload(self) -> None:
        """Read the files again. Raises ValueError, and keeps what it has, if one doesn't hold what it should."""
        self._context = self._tls.context()


def certificates_of(tls: TLS | Certificates | None) -> Certificates | None:
    """Read the argument `tls` of a server. Raises ValueError if it's wrong, or its files are."""
    if tls is None or callable(tls):
        return tls
    expect_kind("tls", tls, TLS, 'TLS("server.pem", "server-key.pem")')
    context = tls.context()
    return lambda: context


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

    def receive_nowait(self, max_bytes: int) -> bytes:
        """Return what has arrived, decrypted: nothing if it's less than a record, or the stream is over."""
        if isinstance(self.transport_stream, ReadsNow):
            self._read_bio.write(self.transport_stream.receive_nowait(_READ))
        try:
            data: bytes = self.extra(TLSAttribute.ssl_object).read(max_bytes)  # noqa: S610 - anyio's, not Django's
        except ssl.SSLError:  # SSLWantReadError, mostly
            return b""
        return data

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
