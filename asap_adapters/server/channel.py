"""The bytes of one HTTP/1 connection: each wait has its time limit, and responses are written here."""

import logging
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

import anyio
from anyio.abc import ByteStream, SocketAttribute
from attrs import define

from asap_adapters.server.connection_slots import ConnectionSlot
from asap_adapters.server.driver import WRITE_SIZE, PeerGone
from asap_adapters.system import LoopClock
from asap_core.admission.policy import Policy
from asap_core.http.messages import Response
from asap_core.server.exchange import Respond, refuse_head

log: Final = logging.getLogger("asap.serve")

# What anyio reads at once by default. A larger buffer would be allocated for every read, and rarely be filled.
READ_SIZE: Final = 65_536
# After an early refusal: what a peer may still send, and for how long, before the reset that would lose it the answer
# (RFC 9112 §9.6). nginx lingers 5 s per read and 30 s in all; a refusal isn't worth that.
_LINGER_BYTES: Final = 65_536
_LINGER_SECONDS: Final = 1.0
# SO_LINGER with no seconds (socket(7)): closing resets the connection, and what wasn't sent is dropped.
_NO_LINGER: Final = struct.pack("ii", 1, 0)


class PeerEnded(PeerGone):
    """The peer sends nothing more, but may still read."""


class Unreadable(PeerGone):
    """The peer sent something that isn't a request. `response` is the refusal, after which the connection ends."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.response = refuse_head(status, detail)


@define(eq=False)
class Channel:
    """One connection's stream, with the time limits of the policy.

    slot: the connection's slot, which it may lose to another connection while it waits for a request.
    stop: set when the server stops.
    """

    stream: ByteStream
    policy: Policy
    slot: ConnectionSlot
    stop: anyio.Event

    async def receive(self) -> bytes:
        """Return the next bytes. Raises `PeerEnded` and `PeerGone`."""
        try:
            return await self.stream.receive(READ_SIZE)
        except anyio.EndOfStream as error:
            raise PeerEnded from error
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise PeerGone from error

    async def first_bytes(self) -> bytes | None:
        """Wait for a request. Returns None if the connection is over."""
        if self.stop.is_set():
            return None
        with anyio.move_on_after(self.policy.idle_timeout):
            try:
                return await self.receive()
            except PeerGone:
                return None
        return None

    async def more_of_head(self, deadline: float) -> bytes:
        """Return more of a head. Raises `Unreadable` at `deadline`, or if the peer ends midway."""
        with self.slot.reading(deadline):
            try:
                return await self.receive()
            except PeerEnded:
                raise Unreadable(400, "Expected the whole head of a request") from None
        raise self._too_late("the whole head of a request", self.policy.head_timeout)

    async def more_of_body(self, deadline: float) -> bytes:
        """Return more of a body. Raises `Unreadable` at `deadline`, or if the peer ends midway."""
        with self.slot.reading(deadline):
            try:
                return await self.receive()
            except PeerEnded:
                raise Unreadable(400, "Expected the whole body") from None
        raise self._too_late("the whole body", self.policy.body_timeout)

    def _too_late(self, what: str, seconds: float) -> Unreadable:
        """RFC 9110 §15.5.9. A server that stops waits less."""
        limit = "before this server stops" if self.stop.is_set() else f"within {seconds:g} s"
        return Unreadable(408, f"Expected {what} {limit}")

    def ends_after(self, response: Response) -> bool:
        """Whether this server closes the connection after a response."""
        return response.close or self.stop.is_set() or self.slot.wanted

    async def respond(self, answer: Respond, *, close: bool) -> None:
        """Send a response as `Wire.send` asks. `close`: say that the connection ends after it."""
        head, body = _head_of(answer.response, close=close), answer.response.body
        with self._must_be_taken():
            fits = max(0, WRITE_SIZE - len(head))
            await self.stream.send(head + body[:fits])
            for start in range(fits, len(body), WRITE_SIZE):
                answer.progressed()
                await self.stream.send(body[start : start + WRITE_SIZE])

    async def send_continue(self) -> None:
        """Ask for the body (RFC 9110 §15.2.1)."""
        await self._send(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def send_last(self, response: Response) -> None:
        """Send a response after which the connection ends, if the peer still reads."""
        try:
            await self._send(_head_of(response, close=True) + response.body)
        except PeerGone:
            log.debug("the peer left before it was refused")

    async def linger(self) -> None:
        """Let the peer read the refusal: end our side, and drop a little of what it still sends."""
        left = _LINGER_BYTES
        with anyio.move_on_after(_LINGER_SECONDS):
            try:
                await self.stream.send_eof()
                while left > 0:
                    left -= len(await self.receive())
            except (PeerGone, anyio.BrokenResourceError, anyio.ClosedResourceError, NotImplementedError, OSError):
                return  # OSError: trio's, where the peer has reset the connection meanwhile

    async def _send(self, data: bytes) -> None:
        with self._must_be_taken():
            await self.stream.send(data)

    @contextmanager
    def _must_be_taken(self) -> Iterator[None]:
        """A block in which the peer must take what's sent in time, or the connection is reset and `PeerGone` raised."""
        taken = False
        try:
            with anyio.move_on_after(self.policy.write_timeout):
                yield
                taken = True
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise PeerGone from error
        finally:
            if not taken:
                _reset_on_close(self.stream)
        if not taken:
            raise PeerGone


_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode("ascii")) for status in HTTPStatus
}


def _reset_on_close(stream: ByteStream) -> None:
    """Have the kernel drop what the peer hasn't taken, up to megabytes, when the connection is closed."""
    connection = stream.extra(SocketAttribute.raw_socket, None)  # noqa: S610 - anyio's, not Django's
    if connection is not None:
        with suppress(OSError):  # it's closed already
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)


def _head_of(response: Response, *, close: bool) -> bytes:
    """Write the head of a response. Not by h11, which takes 0.1 ms: nothing in it comes from a peer."""
    headers = [b"%s: %s\r\n" % header for header in response.headers]
    connection = b"connection: close\r\n" if close else b""
    status = _STATUS_LINES[response.status]
    return b"".join([status, *headers, b"date: ", _http_date(), b"\r\n", connection, b"\r\n"])


_date: tuple[int, bytes] = (0, b"")


def _http_date() -> bytes:
    """The Date header (RFC 9110 §6.6.1), written once a second."""
    global _date  # noqa: PLW0603 - one value, replaced as a whole
    now = int(LoopClock().wall())
    if _date[0] != now:
        _date = (now, formatdate(now, usegmt=True).encode("ascii"))
    return _date[1]
