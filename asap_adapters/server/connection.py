"""One HTTP/1 connection over any byte stream: request after request, until either side is done with it.

Collect a head that the core approves, let h11 parse it, drive the exchange, go on or close. Each exchange has an h11
connection of its own, so that what h11 buffers never crosses from one request to the next.
"""

import logging
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

import anyio
import h11
from anyio.abc import ByteStream, SocketAttribute
from attrs import define

from asap_adapters.server.connection_slots import ConnectionSlot, ConnectionSlots
from asap_adapters.server.driver import WRITE_SIZE, Driver, PeerGone
from asap_adapters.system import LoopClock
from asap_core.admission.policy import Policy
from asap_core.http.chunks import ChunkFrames
from asap_core.http.head import BadHead, Head, HeadReader
from asap_core.http.messages import Request, Response
from asap_core.server.exchange import Respond, refuse_head

log: Final = logging.getLogger("asap.serve")

# What anyio reads at once by default. A larger buffer would be allocated for every read, and rarely be filled.
_READ: Final = 65_536
# Chunk sizes, extensions and trailers of honest senders are a few bytes each.
_FRAMING: Final = 65_536
# As h11 has it, which takes no other coding and no second one.
_CHUNKED: Final = (b"transfer-encoding", b"chunked")
# After an early refusal: what a peer may still send, and for how long, before the reset that would lose it the answer
# (RFC 9112 §9.6). nginx lingers 5 s per read and 30 s in all; a refusal isn't worth that.
_LINGER_BYTES: Final = 65_536
_LINGER_SECONDS: Final = 1.0
# SO_LINGER with no seconds (socket(7)): closing resets the connection, and what wasn't sent is dropped.
_NO_LINGER: Final = struct.pack("ii", 1, 0)


async def serve_connection(
    stream: ByteStream,
    driver: Driver,
    *,
    peer: str,
    local: str = "",
    slot: ConnectionSlot | None = None,
    stop: anyio.Event | None = None,
) -> None:
    """Serve one connection over any byte stream, request by request, until either side ends it.

    peer: the address that it came from.
    local: the address that it was accepted on.
    slot: its slot, which it may lose to another connection while it waits for a request.
    stop: set when the server stops.
    """
    connection = _Connection(
        stream, driver, peer, local, slot or ConnectionSlot(ConnectionSlots(1)), stop or anyio.Event()
    )
    rest: bytes | None = b""
    while rest is not None:
        rest = await connection.serve_one(rest)


class _Unreadable(PeerGone):
    """The peer sent something that isn't a request. `response` is the refusal, after which the connection ends."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.response = refuse_head(status, detail)


def _too_late(what: str, seconds: float, stop: anyio.Event) -> _Unreadable:
    """RFC 9110 §15.5.9. A server that stops waits less."""
    return _Unreadable(
        408, f"Expected {what} {'before this server stops' if stop.is_set() else f'within {seconds:g} s'}"
    )


@define(eq=False)
class _Connection:
    stream: ByteStream
    driver: Driver
    peer: str
    local: str
    slot: ConnectionSlot
    stop: anyio.Event

    @property
    def policy(self) -> Policy:
        return self.driver.agent.policy

    async def serve_one(self, buffered: bytes) -> bytes | None:
        """Serve the next request. Returns the bytes that came after it, or None if the connection is over."""
        wire = _H11Wire(self.stream, self.policy, self.slot, self.stop)
        try:
            head = await self._read_head(buffered)
            if head is None:
                return None
            request = wire.parse(head, peer=self.peer, local=self.local)
            await self.driver.run(request, wire)
        except _Unreadable as unreadable:
            await wire.send_last(unreadable.response)
            await self._linger()
            return None
        except PeerGone:
            return None
        if wire.reusable:
            return wire.rest
        if wire.unread:
            await self._linger()
        return None

    async def _read_head(self, buffered: bytes) -> Head | None:
        reader = HeadReader(max_size=self.policy.max_head, max_fields=self.policy.max_headers)
        outcome = reader.feed(buffered)
        if outcome is None:
            # One wait from the end of the last request to the end of the next head: bytes that trickle renew nothing.
            with self.slot.waiting():
                outcome = await self._receive_head(reader)
        if isinstance(outcome, BadHead):
            raise _Unreadable(outcome.status, f"Expected {outcome.expected}")
        return outcome

    async def _receive_head(self, reader: HeadReader) -> Head | BadHead | None:
        if not reader.started:
            data = await self._first_bytes()
            if data is None:
                return None
            outcome = reader.feed(data)
            if outcome is not None:
                return outcome
        self.slot.begun = True
        return await self._rest_of_head(reader)

    async def _rest_of_head(self, reader: HeadReader) -> Head | BadHead:
        with self.slot.reading(anyio.current_time() + self.policy.head_timeout):
            while True:
                try:
                    outcome = reader.feed(await _receive(self.stream))
                except _Ended:
                    raise _Unreadable(400, "Expected the whole head of a request") from None
                if outcome is not None:
                    return outcome
        raise _too_late("the whole head of a request", self.policy.head_timeout, self.stop)

    async def _first_bytes(self) -> bytes | None:
        if self.stop.is_set():
            return None
        with anyio.move_on_after(self.policy.idle_timeout):
            try:
                return await _receive(self.stream)
            except PeerGone:
                return None
        return None

    async def _linger(self) -> None:
        """Let the peer read the refusal: end our side, and drop a little of what it still sends."""
        left = _LINGER_BYTES
        with anyio.move_on_after(_LINGER_SECONDS):
            try:
                await self.stream.send_eof()
                while left > 0:
                    left -= len(await _receive(self.stream))
            except (PeerGone, anyio.BrokenResourceError, anyio.ClosedResourceError, NotImplementedError, OSError):
                return  # OSError: trio's, where the peer has reset the connection meanwhile


class _Ended(PeerGone):
    """The peer sends nothing more, but may still read."""


async def _receive(stream: ByteStream) -> bytes:
    try:
        return await stream.receive(_READ)
    except anyio.EndOfStream as error:
        raise _Ended from error
    except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
        raise PeerGone from error


class _H11Wire:
    """One exchange's bytes, framed by h11."""

    def __init__(self, stream: ByteStream, policy: Policy, slot: ConnectionSlot, stop: anyio.Event) -> None:
        self._stream = stream
        self._policy = policy
        self._slot = slot
        self._stop = stop
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=policy.max_head)
        self._frames: ChunkFrames | None = None
        self._body_deadline: float | None = None
        # Bytes of the body as they arrived, and of its content alone: chunks have sizes, extensions and trailers.
        self._raw = 0
        self._meant = 0
        self.reusable = False

    def parse(self, head: Head, *, peer: str, local: str) -> Request:
        """Let h11 read a head that the core has approved."""
        try:
            self._h11.receive_data(head.data)
            event = self._h11.next_event()
            if not isinstance(event, h11.Request):
                raise _Unreadable(400, "Expected an HTTP/1.1 request")
        except h11.RemoteProtocolError as error:
            raise _Unreadable(error.error_status_hint, "Expected an HTTP/1.1 request") from None
        headers = tuple(event.headers)
        if _CHUNKED in headers:
            self._frames = ChunkFrames(max_line=self._policy.max_head, max_fields=self._policy.max_headers)
        self._take(head.rest) if head.rest else None
        return Request(
            method=event.method.decode("latin-1"),
            target=event.target.decode("latin-1"),
            headers=headers,
            peer=peer,
            local=local,
        )

    @property
    def rest(self) -> bytes:
        """The bytes that came after the request."""
        return self._h11.trailing_data[0]

    @property
    def unread(self) -> bool:
        """Whether the peer may still be sending the body."""
        return self._h11.their_state is h11.SEND_BODY

    async def receive(self, *, expect_continue: bool) -> bytes | None:
        """See `Wire`."""
        if self._body_deadline is None:
            self._body_deadline = anyio.current_time() + self._policy.body_timeout
            if expect_continue and self._h11.they_are_waiting_for_100_continue:
                await self._send(b"HTTP/1.1 100 Continue\r\n\r\n")
        while True:
            event = self._next_event()
            match event:
                case h11.Data():
                    self._meant += len(event.data)
                    return bytes(event.data)
                case h11.EndOfMessage():
                    return None
                case h11.NEED_DATA:
                    self._check_framing()
                    self._take(await self._more())
                case _:
                    raise PeerGone

    def _take(self, data: bytes) -> None:
        expected = None if self._frames is None else self._frames.feed(data)
        if expected is not None:
            raise _Unreadable(400, f"Expected {expected}")
        self._raw += len(data)
        self._h11.receive_data(data)

    def _check_framing(self) -> None:
        """Refuse a body whose chunks have more framing than 64 KiB and the size of their content."""
        if self._raw > _FRAMING + 2 * self._meant + _READ:
            raise _Unreadable(400, "Expected a body in chunks of 8 bytes or more, without long extensions or trailers")

    def _next_event(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        try:
            return self._h11.next_event()
        except h11.RemoteProtocolError:
            raise _Unreadable(400, "Expected a body framed as its headers say") from None

    async def _more(self) -> bytes:
        with self._slot.reading(self._body_deadline or 0.0):
            try:
                return await _receive(self._stream)
            except _Ended:
                raise _Unreadable(400, "Expected the whole body") from None
        raise _too_late("the whole body", self._policy.body_timeout, self._stop)

    async def send(self, answer: Respond) -> None:
        """See `Wire`."""
        ends = answer.response.close or self._stop.is_set() or self._slot.wanted
        open_still = not ends and self._body_is_over()
        # DONE: the request is complete, and the peer hasn't asked to close after it (h11's state machine).
        self.reusable = open_still and self._h11.their_state is h11.DONE
        head = _head_of(answer.response, close=not self.reusable)
        with self._must_be_taken():
            fits = max(0, WRITE_SIZE - len(head))
            await self._stream.send(head + answer.response.body[:fits])
            for start in range(fits, len(answer.response.body), WRITE_SIZE):
                answer.progressed()
                await self._stream.send(answer.response.body[start : start + WRITE_SIZE])

    def _body_is_over(self) -> bool:
        """Whether nothing of the request is left to read, so that the next one can follow."""
        if self._h11.their_state is not h11.SEND_BODY:
            return True
        # The body wasn't read (a GET has none): h11 knows that it's over once it has returned EndOfMessage.
        return isinstance(self._next_event(), h11.EndOfMessage)

    async def send_last(self, response: Response) -> None:
        """See `Wire`. Also refuses what isn't a request."""
        try:
            await self._send(_head_of(response, close=True) + response.body)
        except PeerGone:
            log.debug("the peer left before it was refused")

    async def _send(self, data: bytes) -> None:
        with self._must_be_taken():
            await self._stream.send(data)

    @contextmanager
    def _must_be_taken(self) -> Iterator[None]:
        """A block in which the peer must take what's sent in time, or the connection is reset and `PeerGone` raised."""
        taken = False
        try:
            with anyio.move_on_after(self._policy.write_timeout):
                yield
                taken = True
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise PeerGone from error
        finally:
            if not taken:
                _reset_on_close(self._stream)
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
