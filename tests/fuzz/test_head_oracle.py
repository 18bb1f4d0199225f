"""Heads by another reader: what ours accepts, h11 accepts and reads the same, with the same body and the same end."""

import re
from enum import Enum
from typing import Any

import h11
import pytest
from hypothesis import given, strategies as st

from asap_core.http.head import BadHead, Head, HeadReader, PlainHead, judge, read_plain_head
from asap_core.http.messages import collect
from tests.core.http.test_plain_head import almost_heads


class Reason(Enum):
    """Why a head is left to h11 although it's a valid request."""

    VERSION = rb"^[^\r]* HTTP/1\.0\r\n"
    CONNECT = rb"^CONNECT "
    TARGET = rb"^(?!CONNECT )[^ ]+ [^/]"
    EMPTY_LINE = rb"^\r\n"
    TRANSFER_CODING = rb"(?i)\r\ntransfer-encoding:"
    EXPECT = rb"(?i)\r\nexpect:"
    UPGRADE = rb"(?i)\r\nupgrade:"
    CONNECTION = rb"(?i)\r\nconnection:[ \t]*+(?!(?:close|keep-alive)[ \t]*\r\n)"
    CONNECTIONS = rb"(?i)\r\nconnection:(?s:.*)\r\nconnection:"


def by_ours(data: bytes) -> PlainHead | None:
    return read_plain_head(data, max_size=300, max_fields=6)


def by_h11(data: bytes, body: int) -> tuple[h11.Request, int, bool, bytes] | None:
    """The request, the size of its body, whether another may follow, and what does. None if h11 refuses it."""
    server = h11.Connection(h11.SERVER, max_incomplete_event_size=300)
    size, request = 0, None
    try:
        server.receive_data(data)
        while not isinstance(event := server.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                size += len(event.data)
            elif event is h11.NEED_DATA and request is not None and size < body:
                server.receive_data(b"x" * min(1_000, body - size))
            else:
                return None
    except h11.RemoteProtocolError:
        return None
    assert request is not None
    return request, size, server.their_state is h11.DONE, server.trailing_data[0]


@given(almost_heads() | st.binary(max_size=100))
def test_a_head_that_ours_accepts_means_the_same_to_h11(data) -> None:
    plain = by_ours(data)
    if plain is None or plain.length > 5_000:
        return
    found = by_h11(data, plain.length)
    assert found is not None
    request, size, another, rest = found
    assert (request.method.decode(), request.target.decode()) == (plain.method, plain.target)
    assert tuple(request.headers) == plain.headers
    assert (size, another) == (plain.length, plain.stays_open)
    assert rest == data[plain.end + plain.length :]


def general(data: bytes) -> bool:
    """Whether the general way accepts it: the head reader, h11, and what's checked of any request."""
    head = HeadReader(max_size=300, max_fields=6).feed(data)
    if not isinstance(head, Head):
        return False
    server = h11.Connection(h11.SERVER, max_incomplete_event_size=300)
    server.receive_data(head.data)
    try:
        request: Any = server.next_event()
    except h11.RemoteProtocolError:
        return False
    judged = judge(request.method.decode(), request.target.decode(), collect(request.headers))
    return not isinstance(judged, BadHead)


@given(almost_heads())
def test_a_head_that_only_the_general_way_accepts_has_a_named_reason(data) -> None:
    if general(data) and by_ours(data) is None:
        assert any(re.search(reason.value, data) for reason in Reason), data


GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
EXAMPLES = {
    Reason.VERSION: b"GET / HTTP/1.0\r\n\r\n",
    Reason.CONNECT: b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    Reason.TARGET: b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    Reason.EMPTY_LINE: b"\r\n" + GET + b"\r\n",
    Reason.TRANSFER_CODING: GET + b"Transfer-Encoding: chunked\r\n\r\n",
    Reason.EXPECT: GET + b"Expect: 100-continue\r\n\r\n",
    Reason.UPGRADE: GET + b"Upgrade: h2c\r\n\r\n",
    Reason.CONNECTION: GET + b"Connection: close, x\r\n\r\n",
    Reason.CONNECTIONS: GET + b"Connection: close\r\nConnection: close\r\n\r\n",
}


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_needed(reason) -> None:
    data = EXAMPLES[reason]
    assert [each for each in Reason if re.search(each.value, data)] == [reason]
    assert general(data)
    assert by_ours(data) is None
