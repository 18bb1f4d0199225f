"""One HTTP/1 connection over any byte stream: request after request, until either side is done with it.

The core reads the heads of most requests, and their bodies have a length. h11 reads all others (`h11_wire`). Each head
has one reader: h11 never sees what the core accepted.
"""

from typing import assert_never

import anyio
from anyio.abc import ByteStream
from attrs import define

from asap_adapters.server.channel import Channel, Unreadable
from asap_adapters.server.connection_slots import ConnectionSlot, ConnectionSlots
from asap_adapters.server.driver import Driver, PeerGone
from asap_adapters.server.h11_wire import H11Wire
from asap_core.http.head import BadHead, Head, HeadReader, PlainHead, read_plain_head
from asap_core.http.messages import Request, Response
from asap_core.server.exchange import Respond


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
    slot = slot or ConnectionSlot(ConnectionSlots(1))
    channel = Channel(stream, driver.agent.policy, slot, stop or anyio.Event())
    connection = _Connection(channel, driver, peer, local)
    rest: bytes | None = b""
    while rest is not None:
        rest = await connection.serve_one(rest)


@define(eq=False)
class _Connection:
    channel: Channel
    driver: Driver
    peer: str
    local: str

    async def serve_one(self, buffered: bytes) -> bytes | None:
        """Serve the next request. Returns the bytes that came after it, or None if the connection is over."""
        try:
            found = await self._read_head(buffered)
            if found is None:
                return None
            request, wire = self._opened(*found)
            await self.driver.run(request, wire)
        except Unreadable as unreadable:
            await self.channel.send_last(unreadable.response)
            await self.channel.linger()
            return None
        except PeerGone:
            return None
        if wire.reusable:
            return wire.rest
        if wire.unread:
            await self.channel.linger()
        return None

    def _opened(self, head: PlainHead | Head, data: bytes) -> "tuple[Request, _PlainWire | H11Wire]":
        match head:
            case PlainHead(method, target, headers):
                request = Request(method=method, target=target, headers=headers, peer=self.peer, local=self.local)
                return request, _PlainWire(self.channel, head, data)
            case Head():
                wire = H11Wire(self.channel)
                return wire.parse(head, peer=self.peer, local=self.local), wire
            case _:
                assert_never(head)

    async def _read_head(self, data: bytes) -> tuple[PlainHead | Head, bytes] | None:
        """Return a head, and the bytes that begin with it. None if the connection is over."""
        policy = self.channel.policy
        reader = HeadReader(max_size=policy.max_head, max_fields=policy.max_headers)
        head = self._plain(data) or reader.feed(data)
        if head is None:
            # One wait from the end of the last request to the end of the next head: bytes that trickle renew nothing.
            with self.channel.slot.waiting():
                head, data = await self._wait_for_head(reader, data)
        match head:
            case None:  # it's over, or had to give way
                return None
            case BadHead():
                raise Unreadable(head.status, f"Expected {head.expected}")
            case Head():
                # A head that arrived in pieces is read like one that arrived whole.
                return self._plain(head.data) or head, head.data + head.rest
            case PlainHead():
                return head, data
            case _:
                assert_never(head)

    async def _wait_for_head(self, reader: HeadReader, data: bytes) -> tuple[PlainHead | Head | BadHead | None, bytes]:
        if not data:
            data = await self.channel.first_bytes() or b""
            if not data:
                return None, data
            head = self._plain(data) or reader.feed(data)
            if head is not None:
                return head, data
        self.channel.slot.begun = True
        deadline = anyio.current_time() + self.channel.policy.head_timeout
        while (found := reader.feed(await self.channel.more_of_head(deadline))) is None:
            pass
        return found, data

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
                self._body_deadline = anyio.current_time() + self._channel.policy.body_timeout
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
