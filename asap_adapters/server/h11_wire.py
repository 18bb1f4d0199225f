"""The bytes of one exchange as h11 reads them: heads that aren't plain, and bodies in chunks.

Each exchange has an h11 connection of its own, so that what h11 buffers never crosses from one request to the next.
"""

from typing import Final

import h11

from asap_adapters.server.channel import READ_SIZE, Channel, UnreadableRequest
from asap_adapters.server.driver import PeerGone
from asap_core.http.framing import ChunkFrames
from asap_core.http.head import Head
from asap_core.http.messages import Request, Response
from asap_core.server.exchange import Respond

# Chunk sizes, extensions and trailers of honest senders are a few bytes each.
_FRAMING: Final = 65_536
# As h11 has it, which takes no other coding and no second one.
_CHUNKED: Final = (b"transfer-encoding", b"chunked")


class H11Wire:
    """One exchange's bytes, framed by h11. See `Wire`.

    reusable: whether another request may follow.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._policy = channel.policy
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=channel.policy.max_head)
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
                raise UnreadableRequest(400, "Expected an HTTP/1.1 request")
        except h11.RemoteProtocolError as error:
            raise UnreadableRequest(error.error_status_hint, "Expected an HTTP/1.1 request") from None
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
            self._body_deadline = self._channel.body_begins()
            if expect_continue and self._h11.they_are_waiting_for_100_continue:
                await self._channel.send_continue()
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
                    self._take(await self._channel.more_of_body(self._body_deadline))
                case _:
                    raise PeerGone

    def _take(self, data: bytes) -> None:
        expected = None if self._frames is None else self._frames.feed(data)
        if expected is not None:
            raise UnreadableRequest(400, f"Expected {expected}")
        self._raw += len(data)
        self._h11.receive_data(data)

    def _check_framing(self) -> None:
        """Refuse a body whose chunks have more framing than 64 KiB and the size of their content."""
        if self._raw > _FRAMING + 2 * self._meant + READ_SIZE:
            raise UnreadableRequest(
                400, "Expected a body in chunks of 8 bytes or more, without long extensions or trailers"
            )

    def _next_event(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        try:
            return self._h11.next_event()
        except h11.RemoteProtocolError:
            raise UnreadableRequest(400, "Expected a body framed as its headers say") from None

    async def send(self, answer: Respond) -> None:
        """See `Wire`."""
        open_still = not self._channel.ends_after(answer.response) and self._body_is_over()
        # DONE: the request is complete, and the peer hasn't asked to close after it (h11's state machine).
        self.reusable = open_still and self._h11.their_state is h11.DONE
        await self._channel.respond(answer, close=not self.reusable)

    def _body_is_over(self) -> bool:
        """Whether nothing of the request is left to read, so that the next one can follow."""
        if self._h11.their_state is not h11.SEND_BODY:
            return True
        # The body wasn't read (a GET has none): h11 knows that it's over once it has returned EndOfMessage.
        return isinstance(self._next_event(), h11.EndOfMessage)

    async def send_last(self, response: Response) -> None:
        """See `Wire`."""
        await self._channel.send_last(response)
