"""One HTTP/1 connection over any byte stream: request after request, until either side is done with it.

The core reads the heads of most requests, and their bodies have a length. h11 reads all others (`h11_wire`). Each head
has one reader: h11 never sees what the core accepted.
"""

from typing import TYPE_CHECKING, assert_never

import anyio
from anyio.abc import ByteStream
from attrs import define

from asap_adapters.server.channel import Channel, UnreadableRequest
from asap_adapters.server.connection_limits import ConnectionSlot, ConnectionSlots, Sweeper
from asap_adapters.server.driver import Driver, PeerGone, Rest
from asap_adapters.server.logs import is_logged, log_unreadable, run_logged
from asap_core.http.head import BadHead, Head, HeadReader, PlainHead, read_plain_head
from asap_core.http.messages import Request, Response
from asap_core.server.exchange import Respond

if TYPE_CHECKING:
    from asap_adapters.server.h11_wire import H11Wire


async def serve_connection(
    stream: ByteStream,
    driver: Driver,
    *,
    peer: str,
    sweeper: Sweeper,
    local: str = "",
    slot: ConnectionSlot | None = None,
    stop: anyio.Event | None = None,
) -> None:
    """Serve one connection over any byte stream, request by request, until either side ends it.

    peer: the address that it came from.
    sweeper: ends its waits; it must run until the connection is over.
    local: the address that it was accepted on.
    slot: its slot, which it may lose to another connection while it waits for a request.
    stop: set when the server stops.
    """
    slot = slot or ConnectionSlot(ConnectionSlots(1))
    channel = Channel(stream, driver.agent.policy, slot, stop or anyio.Event(), sweeper)
    await _Connection(channel, driver, peer, local).serve()


@define(eq=False)
class _Connection:
    channel: Channel
    driver: Driver
    peer: str
    local: str
    _left: "tuple[Rest, _PlainWire | H11Wire] | None" = None
    """What is left of an exchange whose handler's time was over."""

    async def serve(self) -> None:
        channel = self.channel
        data: bytes | None = b""
        channel.sweeper.add(channel)
        try:
            while data is not None:
                # One scope for all requests, until a wait expires: at the very moment when it ends, or for good.
                with channel.scope() as scope:
                    data = await self._serve_in_scope(data)
                if scope.cancelled_caught:
                    if (unreadable := channel.ended()) is not None:
                        raise unreadable
                    data = channel.arrived()
        except UnreadableRequest as unreadable:
            log_unreadable(self.peer, unreadable.response)
            await channel.send_last(unreadable.response)
            await channel.linger()
        except PeerGone:
            return
        finally:
            channel.close()

    async def _serve_in_scope(self, data: bytes) -> bytes | None:
        """Serve requests. Returns None if the connection is over, or what was read if a wait expired."""
        rest: bytes | None = data
        if self._left is not None:
            (run, wire), self._left = self._left, None
            rest = await self._ended(await run(), wire)
        while rest is not None and not self.channel.expired:
            rest = await self._serve_one(rest)
            if rest and not self.channel.expired:
                await anyio.lowlevel.checkpoint()  # the next request is at hand, and nothing needs to be awaited
        return rest

    async def _serve_one(self, data: bytes) -> bytes | None:
        """Serve the next request. Returns the bytes that came after it, or None if the connection is over."""
        channel = self.channel
        if not data:
            # One wait from the end of the last request to the end of the next head: bytes that trickle renew nothing.
            data = await channel.first_bytes() or b""
            if not data:
                return None
        head: PlainHead | Head | None = self._plain(data)
        if head is None:
            found = await self._read_head(data)
            if found is None or isinstance(found, bytes):
                return found
            head, data = found
        elif channel.expired:
            return data
        channel.slot.stays()
        request, wire = self._opened(head, data)
        if is_logged():
            left = await run_logged(self.driver, request, wire, channel)
        else:
            left = await self.driver.run(request, wire, channel)
        return wire.rest if wire.reusable else await self._ended(left, wire)

    async def _ended(self, left: Rest | None, wire: "_PlainWire | H11Wire") -> bytes | None:
        """Keep what is left of an exchange, or end the connection if no request may follow."""
        if left is not None:
            self._left = left, wire
            return b""
        if wire.reusable:
            return wire.rest
        if wire.unread:
            await self.channel.linger()
        return None

    def _opened(self, head: PlainHead | Head, data: bytes) -> "tuple[Request, _PlainWire | H11Wire]":
        match head:
            case PlainHead():
                return head.request(peer=self.peer, local=self.local), _PlainWire(self.channel, head, data)
            case Head():
                from asap_adapters.server.h11_wire import H11Wire  # noqa: PLC0415 - loaded when the server has started

                wire = H11Wire(self.channel)
                return wire.parse(head, peer=self.peer, local=self.local), wire
            case _:
                assert_never(head)

    async def _read_head(self, data: bytes) -> tuple[PlainHead | Head, bytes] | bytes | None:
        """Return a head, and the bytes that begin with it; these alone if the scope expired. None if it's all over."""
        channel, policy = self.channel, self.channel.policy
        reader = HeadReader(max_size=policy.max_head, max_fields=policy.max_headers)
        head = reader.feed(data)
        if head is None:
            if channel.slot.leaving:
                if not channel.stop.is_set():
                    return None
                channel.slot.stays()  # a server that stops still reads the rest
            if channel.expired:
                return data
            head = await self._rest_of_head(reader)
        match head:
            case BadHead():
                raise UnreadableRequest(head.status, f"Expected {head.expected}")
            case Head():
                # A head that arrived in pieces is read like one that arrived whole.
                data = head.data + head.rest
                return data if channel.expired else (self._plain(head.data) or head, data)
            case _:
                assert_never(head)

    async def _rest_of_head(self, reader: HeadReader) -> Head | BadHead:
        deadline = self.channel.head_begins()
        while (head := reader.feed(await self.channel.more_of_head(deadline))) is None:
            pass
        return head

    def _plain(self, data: bytes) -> PlainHead | None:
        policy = self.channel.policy
        return read_plain_head(data, max_size=policy.max_head, max_fields=policy.max_headers)


class _PlainWire:
    """One exchange's bytes: a plain head, and a body of a known length. See `Wire`.

    rest: the bytes that came after the request.
    reusable: whether another request may follow.
    """

    def __init__(self, channel: Channel, head: PlainHead, data: bytes) -> None:
        end = head.end + head.length
        self._channel = channel
        self._head = head
        self._at_hand = data[head.end : end]
        self._left = head.length
        self._body_deadline: float | None = None
        self.rest = data[end:]
        self.reusable = False

    @property
    def unread(self) -> bool:
        """Whether the peer may still be sending the body."""
        return self._left > 0

    async def receive(self, *, expect_continue: bool) -> bytes | None:  # noqa: ARG002 - always False here
        """See `Wire`. A head that expects 100 Continue isn't plain."""
        if not self._left:
            return None
        data, self._at_hand = self._at_hand, b""
        if not data:
            if self._body_deadline is None:
                self._body_deadline = self._channel.body_begins()
            data = await self._channel.more_of_body(self._body_deadline)
            data, self.rest = data[: self._left], data[self._left :]
        self._left -= len(data)
        return data

    async def send(self, answer: Respond) -> None:
        """See `Wire`."""
        self.reusable = not (self._left or self._channel.ends_after(answer.response)) and self._head.stays_open
        await self._channel.respond(answer, close=not self.reusable)

    async def send_last(self, response: Response) -> None:
        """See `Wire`."""
        await self._channel.send_last(response)
