"""Chunked bodies by another reader: what ours lets through, h11 reads too, and finds the same end."""

import h11
from hypothesis import given, strategies as st

from asap_core.http.framing import ChunkFrames
from tests.core.http.test_framing import PIECES


def h11_reads(body: bytes) -> bytes | None:
    """The bytes that h11 finds after the end of the body; None if it finds no end."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
    try:
        while not isinstance(event := server.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                return None
    except h11.RemoteProtocolError:
        return None
    return server.trailing_data[0]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join))
def test_accepted_chunks_end_where_h11_finds_their_end(body) -> None:
    frames = ChunkFrames(max_line=100, max_fields=3)
    if frames.feed(body) is not None or not frames.ended:
        return
    behind = h11_reads(body)
    assert behind is not None
    end = len(body) - len(behind)
    for size, ends in ((end - 1, False), (end, True)):
        frames = ChunkFrames(max_line=100, max_fields=3)
        assert (frames.feed(body[:size]), frames.ended) == (None, ends)
