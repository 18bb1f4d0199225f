"""Searches for a head that two readers read differently: `python -m tests.fuzz.head_fuzzer SECONDS [SEED]`.

Inputs that reach a line, or an outcome, that none has reached before are kept and changed further.
"""

import random
import re
import sys
import time
from collections.abc import Callable
from enum import Enum
from types import FrameType
from typing import Any

import h11

from asap_core.http.head import BadHead, Head, HeadReader, PlainHead, judge, read_plain_head
from asap_core.http.messages import collect


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
    LENGTH = rb"(?i)\r\ncontent-length:[ \t]*+[0-9]{19}"
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


def in_two(data: bytes, cut: int) -> PlainHead | None:
    """Read a head that arrives in two pieces, as a connection does."""
    reader = HeadReader(max_size=300, max_fields=6)
    head = reader.feed(data[:cut])
    if head is None:
        head = reader.feed(data[cut:])
        return by_ours(head.data) if isinstance(head, Head) else None
    return by_ours(head.data) if isinstance(head, Head) else None


def check(data: bytes, cut: int) -> tuple[object, ...]:
    """Raise AssertionError if two readers, or two divisions, differ about a head. Returns what came of it."""
    plain = by_ours(data)
    if plain is None:
        valid = general(data)
        reasons = [reason for reason in Reason if re.search(reason.value, data)]
        assert reasons or not valid, data
        return (valid, *reasons)
    assert in_two(data, cut) == plain, data
    assert general(data), data
    if plain.length > 5_000:
        return ("long",)
    found = by_h11(data, plain.length)
    assert found is not None, data
    request, size, another, rest = found
    assert (request.method.decode(), request.target.decode()) == (plain.method, plain.target), data
    assert tuple(request.headers) == plain.headers, data
    assert (size, another) == (plain.length, plain.stays_open), data
    assert rest == data[plain.end + plain.length :], data
    return (len(plain.headers), min(plain.length, 9), plain.stays_open)


SEEDS = (
    b"POST /asap?a=b HTTP/1.1\r\nHost: a:80\r\nContent-Length: 3\r\n\r\nabc",
    b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAccept: a\r\nAccept: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost:\r\nConnection: keep-alive, close\r\nUpgrade: x\r\n\r\n",
    b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n0\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nHost: [::1%25a]\r\nX-Y:\t\xe9 \r\n\r\n",
    b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length:  26666666666666666665\r\n\r\n",
)
PIECES = (
    b"\r\n", b"\r", b"\n", b" ", b"\t", b"\x00", b"\x0b", b"\x7f", b"\xff", b":", b",", b";", b"0", b"1", b"/", b"%",
    b"Host: b", b"Content-Length: 1", b"content-length:2", b"Transfer-Encoding: chunked", b"Connection: close", b"?",
    b"keep-alive", b"HTTP/1.1", b"HTTP/1.0", b"[::1]", b"Expect: x", b"Upgrade: y", b"close",
)  # fmt: skip


def changed(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """Change a few places: insert, remove, replace, repeat a line, or go on as another input."""
    for _ in range(chance.randint(1, 4)):
        at, size = chance.randint(0, len(data)), chance.randint(0, 3)
        match chance.randint(0, 4):
            case 0:
                data = data[:at] + chance.choice(PIECES) + data[at:]
            case 1:
                data = data[:at] + data[at + size :]
            case 2:
                data = data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
            case 3:
                lines = data.split(b"\r\n")
                lines.insert(chance.randint(1, len(lines)), chance.choice(lines))
                data = b"\r\n".join(lines)
            case _:
                data = data[:at] + other[chance.randint(0, len(other)) :]
    return data[:400]


def lines_of(run: Callable[[], object]) -> set[object]:
    """Run it; return the lines of the readers that were reached, and what it returned."""
    reached: set[object] = set()

    def trace(frame: FrameType, event: str, _value: object) -> Any:
        name = frame.f_code.co_filename
        if "h11" not in name and not name.endswith("http/head.py"):
            return None
        if event == "line":
            reached.add((name, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        reached.add(run())
    finally:
        sys.settrace(before)
    return reached


def fuzz(*, until: Callable[[int], bool], seed: int) -> tuple[int, int]:
    """Search until `until` of the number of inputs is true. Returns that number, and how many inputs were kept."""
    chance, corpus, seen, number = random.Random(seed), list(SEEDS), set[object](), 0
    while not until(number):
        data = SEEDS[number] if number < len(SEEDS) else changed(chance, chance.choice(corpus), chance.choice(corpus))
        cut = chance.randint(0, len(data))
        reached = lines_of(lambda data=data, cut=cut: check(data, cut))  # type: ignore[misc]
        if not reached <= seen:
            seen |= reached
            corpus.append(data)
        number += 1
    return number, len(corpus)


if __name__ == "__main__":
    seconds, seed = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    ends = time.monotonic() + seconds
    number, kept = fuzz(until=lambda _number: time.monotonic() > ends, seed=seed)
    print(f"{number} inputs, {kept} of them kept, seed {seed}: all readers agree")
