"""The bytes of one HTTP/1 connection: each wait has its time limit, and responses are written here.

A wait sets `phase` and `until`, and puts them back when it ends well. A `Sweeper` cancels the connection's one scope at
`until`; the phase that's found then says what was awaited in vain, and what to answer. Whether the wait has ended at
that very moment is seen from `expired`: nothing can be awaited in that scope any more, and a new one is needed.
"""

import logging
import socket
import struct
import time
from contextlib import suppress
from enum import Enum, auto
from http import HTTPStatus
from typing import Final, Protocol, runtime_checkable

import anyio
from anyio.abc import ByteStream, SocketAttribute
from attrs import define

from asap_adapters.server.connection_limits import NEVER, ConnectionSlot, Sweeper
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


class UnreadableRequest(PeerGone):
    """The peer sent something that isn't a request. `response` is the refusal, after which the connection ends."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.response = refuse_head(status, detail)


class Phase(Enum):
    """What a connection waits for."""

    IDLE = auto()
    """A request."""
    HEAD = auto()
    """The rest of a head."""
    BODY = auto()
    """The rest of a body."""
    BUSY = auto()
    """What users' code decides before a handler runs. It has no time limit here."""
    HANDLER = auto()
    """A handler."""
    WRITE = auto()
    """The peer, to take what is sent."""


@runtime_checkable
class ReadsNow(Protocol):
    """A stream that can be read without waiting, while no task is in its `receive`."""

    def receive_nowait(self, max_bytes: int) -> bytes:
        """Return the bytes that have arrived: none if nothing is there, or the stream is over."""
        ...


@define(eq=False)
class Channel:
    """One connection's stream, with the time limits of the policy.

    slot: the connection's slot, which it may lose to another connection while it waits for a request.
    stop: set when the server stops.
    until: when the present wait ends.
    expired: whether a wait was ended in the present scope.
    """

    stream: ByteStream
    policy: Policy
    slot: ConnectionSlot
    stop: anyio.Event
    sweeper: Sweeper
    phase: Phase = Phase.BUSY
    until: float = NEVER
    expired: bool = False
    _scope: anyio.CancelScope | None = None

    def expire(self) -> None:
        """End the present wait."""
        self.until, self.expired = NEVER, True
        if self._scope is not None:
            self._scope.cancel()

    def hasten(self, deadline: float) -> None:
        """Let the rest of a request take until `deadline` at most."""
        if self.phase in (Phase.HEAD, Phase.BODY):
            self.until = min(self.until, deadline)

    def scope(self) -> anyio.CancelScope:
        """Return a new scope, for all waits until one expires."""
        self._scope, self.expired = anyio.CancelScope(), False
        return self._scope

    def begin_handler(self, seconds: float) -> None:
        """See `Timer`. The next phase begins before anything else is awaited: the answer's."""
        self.phase, self.until = Phase.HANDLER, self.sweeper.time() + seconds

    def ended(self) -> UnreadableRequest | None:
        """Return the answer to the wait that has ended the scope: None in IDLE, where nothing is owed, and in WRITE."""
        if self.phase is Phase.HEAD and not self.slot.leaving:
            return self._too_late("the whole head of a request", self.policy.head_timeout)
        return self._body_too_late() if self.phase is Phase.BODY else None

    def close(self) -> None:
        """The connection is over: what the peer hasn't taken in time is dropped."""
        self.sweeper.discard(self)
        self.slot.waits_no_more()
        if self.phase is Phase.WRITE:
            _reset_on_close(self.stream)

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
        now = self.sweeper.time()
        self.slot.waits(self.expire, now)
        self.phase, self.until = Phase.IDLE, now + self.policy.idle_timeout
        if self.stop.is_set():
            return self.arrived()
        try:
            data = await self.stream.receive(READ_SIZE)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return None
        self.phase, self.until = Phase.BUSY, NEVER
        return data

    def arrived(self) -> bytes | None:
        """Return what arrived on an idle connection just before it ends, or None: one look at the socket.

        Closed with bytes in the kernel, the socket would reset the connection, and the peer would lose its request.
        """
        if self.phase is not Phase.IDLE or not isinstance(self.stream, ReadsNow):
            return None
        data = self.stream.receive_nowait(READ_SIZE)
        self.phase, self.until = Phase.BUSY, NEVER
        return data or None

    def head_begins(self) -> float:
        """Part of a head is there. Returns until when the rest may take: bytes that trickle renew nothing."""
        now = self.sweeper.time()
        self.slot.waits(self.expire, now)
        self.slot.begun = True
        return now + self.policy.head_timeout

    async def more_of_head(self, deadline: float) -> bytes:
        """Return more of a head. Raises `UnreadableRequest` if the peer ends midway."""
        self.phase, self.until = Phase.HEAD, min(deadline, self.sweeper.last)
        try:
            data = await self.receive()
        except PeerEnded:
            raise UnreadableRequest(400, "Expected the whole head of a request") from None
        if not self.expired:
            self.phase, self.until = Phase.BUSY, NEVER
        return data

    def body_begins(self) -> float:
        """The body isn't there yet. Returns until when all of it may take."""
        return self.sweeper.time() + self.policy.body_timeout

    async def more_of_body(self, deadline: float) -> bytes:
        """Return more of a body. Raises `UnreadableRequest` at `deadline`, or if the peer ends midway."""
        self.phase, self.until = Phase.BODY, min(deadline, self.sweeper.last)
        try:
            data = await self.receive()
        except PeerEnded:
            raise UnreadableRequest(400, "Expected the whole body") from None
        if self.expired:
            raise self._body_too_late()
        self.phase, self.until = Phase.BUSY, NEVER
        return data

    def _body_too_late(self) -> UnreadableRequest:
        return self._too_late("the whole body", self.policy.body_timeout)

    def _too_late(self, what: str, seconds: float) -> UnreadableRequest:
        """RFC 9110 §15.5.9. A server that stops waits less."""
        limit = "before this server stops" if self.stop.is_set() else f"within {seconds:g} s"
        return UnreadableRequest(408, f"Expected {what} {limit}")

    def ends_after(self, response: Response) -> bool:
        """Whether this server closes the connection after a response."""
        return response.close or self.stop.is_set() or self.slot.wanted

    async def respond(self, answer: Respond, *, close: bool) -> None:
        """Send a response as `Wire.send` asks. `close`: say that the connection ends after it."""
        head = head_of(answer.response, close=close)
        self.phase, self.until = Phase.WRITE, self.sweeper.time() + self.policy.write_timeout
        fits = max(0, WRITE_SIZE - len(head))
        try:
            # The body has no name here: the traceback of a cancelled connection would keep it.
            await self.stream.send(head + answer.response.body[:fits])
            for start in range(fits, len(answer.response.body), WRITE_SIZE):
                answer.progressed()
                await anyio.lowlevel.checkpoint()  # a socket that takes everything at once doesn't wait
                await self.stream.send(answer.response.body[start : start + WRITE_SIZE])
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise PeerGone from error
        self.phase, self.until = Phase.BUSY, NEVER

    async def send_continue(self) -> None:
        """Ask for the body (RFC 9110 §15.2.1)."""
        self.phase, self.until = Phase.WRITE, self.sweeper.time() + self.policy.write_timeout
        await self._send(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.phase, self.until = Phase.BUSY, NEVER

    async def send_last(self, response: Response) -> None:
        """Send a response after which the connection ends, if the peer still reads."""
        self.phase, self.until = Phase.WRITE, NEVER
        with anyio.move_on_after(self.policy.write_timeout):
            try:
                await self._send(head_of(response, close=True) + response.body)
            except PeerGone:
                log.debug("the peer left before it was refused")
            else:
                self.phase = Phase.BUSY

    async def _send(self, data: bytes) -> None:
        try:
            await self.stream.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise PeerGone from error

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


_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode("ascii")) for status in HTTPStatus
}


def _reset_on_close(stream: ByteStream) -> None:
    """Have the kernel drop what the peer hasn't taken, up to megabytes, when the connection is closed."""
    connection = stream.extra(SocketAttribute.raw_socket, None)  # noqa: S610 - anyio's, not Django's
    if connection is not None:
        with suppress(OSError):  # it's closed already
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)


def head_of(response: Response, *, close: bool) -> bytes:
    """Write the head of a response. Not by h11, which takes 0.1 ms: nothing in it comes from a peer."""
    headers = [b"%s: %s\r\n" % header for header in response.headers]
    connection = b"connection: close\r\n" if close else b""
    status = _STATUS_LINES[response.status]
    return b"".join([status, *headers, b"date: ", _http_date(), b"\r\n", connection, b"\r\n"])


# RFC 9110 §5.6.7: in English, so not by `strftime`. email.utils would do, but brings eight modules.
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_CLOCK: Final = LoopClock()
_date: tuple[int, bytes] = (0, b"")


def _http_date() -> bytes:
    """The Date header (RFC 9110 §6.6.1), written once a second."""
    global _date  # noqa: PLW0603 - one value, replaced as a whole
    now = int(_CLOCK.wall())
    if _date[0] != now:
        _date = (now, http_date(now).encode("ascii"))
    return _date[1]


def http_date(now: int) -> str:
    """Return seconds since the Unix epoch as an HTTP date (RFC 9110 §5.6.7)."""
    at = time.gmtime(now)
    return f"{_DAYS[at.tm_wday]}, {at.tm_mday:02} {_MONTHS[at.tm_mon - 1]} {time.strftime('%Y %H:%M:%S GMT', at)}"
