"""The same bytes, cut anywhere, get the same decisions on each way to the core.

The ways: heads that the core reads itself; heads and bodies that h11 reads; and the ASGI application, under a server
that has h11 for its parser.

By construction they differ in this:

* Our readers of heads and chunks refuse some of what h11 accepts (`tests/fuzz/test_head_oracle.py` has the list). The
  connection ends there, and an ASGI server goes on.
* A head that can't be read, and a body that is cut off, get their answer from the server, not from the core. Under ASGI
  that is the ASGI server's.
* A request with `Upgrade` is the last one on a connection of ours. An ASGI server may go on.
* The bytes of a response: under ASGI the server writes its head.
"""

import gzip
import itertools
import json
import re
from collections.abc import Sequence
from typing import Any, Final

import anyio
import h11
import pytest
from anyio.abc import ByteStream
from attrs import define, evolve, field
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from asap_adapters.server import asgi, connection, h11_wire
from asap_adapters.server.connection_limits import sweeping
from asap_adapters.server.driver import Driver
from asap_adapters.server.handlers import Handlers
from asap_core import TokenTable, parse_limits
from asap_core.http.head import BadHead, read_plain_head
from tests import builders

PEER: Final = "192.0.2.1"
TABLE: Final = TokenTable({"t0ken": builders.ALICE})


# --- streams of requests ---------------------------------------------------------------------------------------------


def call(number: int, key: str | None, **changes: Any) -> dict[str, Any]:
    return builders.call(number, key=key, envelope_changes={"id": f"e-{number}", **changes})


CALLS: Final = st.builds(call, st.integers(0, 2), st.sampled_from([None, None, "k"]))
ODD_CALLS: Final = st.builds(
    call,
    st.integers(0, 2),
    st.sampled_from([None, "k"]),
    sender=st.sampled_from([builders.ALICE, "urn:asap:agent:eve", 1, ...]),
    recipient=st.sampled_from([builders.AGENT, "urn:asap:agent:other"]),
    payload_type=st.sampled_from(["task.request", "state.query", "nonsense"]),
    timestamp=st.sampled_from([builders.STAMP, "2020-01-01T00:00:00Z", "soon"]),
)
LARGE: Final = st.builds(call, st.just(3), st.none(), payload=st.just({"text": "x" * 3_000}))
JUNK: Final = st.sampled_from([b"", b"{", b"\xff", b"[[[[", b"null", b"[]", b"{}", b"1"])


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Calls, some of them twice, with and without keys; batches; and what is no call."""
    kinds = [CALLS] * 8 + [st.lists(CALLS, min_size=1, max_size=3), ODD_CALLS, ODD_CALLS, LARGE, JUNK]
    value: object = draw(draw(st.sampled_from(kinds)))
    return value if isinstance(value, bytes) else json.dumps(value, indent=draw(st.sampled_from([None, 1]))).encode()


def framed(body: bytes, framing: str) -> tuple[list[bytes], bytes]:
    """The headers that say how long a body is, rightly or not, and the body as it's sent."""
    half = len(body) // 2
    chunks = b"%x;a=b\r\n%b\r\n%x\r\n%b\r\n0\r\nt: u\r\n\r\n" % (half, body[:half], len(body) - half, body[half:])
    length = b"Content-Length: %d" % len(body)
    lengths = {
        "short": [b"content-length: %d" % max(0, len(body) - 1)],
        "long": [b"content-length: %d" % (len(body) + 1)],
        "twice": [length, length],
        "none": [],
        "signed": [b"content-length: +%d" % len(body)],
    }
    codings = {
        "chunks": ([b"Transfer-Encoding: chunked"], chunks),
        "broken chunks": ([b"transfer-encoding: chunked"], chunks.replace(b";a=b", b" ")),
        "both": ([length, b"transfer-encoding: chunked"], chunks),
    }
    return codings[framing] if half and framing in codings else (lengths.get(framing, [length]), body)


# For each part of a request: what it usually is, and what it may be.
FRAMINGS: Final = ["length", "length", "chunks"], ["short", "long", "twice", "none", "signed", "broken chunks", "both"]
CODINGS: Final = ["plain", "plain", "plain", "gzip"], ["gzip by name", "zstd"]
METHODS: Final = [b"POST"], [b"GET", b"HEAD", b"OPTIONS", b"PUT", b"post"]
TARGETS: Final = [b"/asap"], [
    b"/asap?a=b", b"/", b"/health", b"/ready", b"/.well-known/asap/manifest.json", b"/.well-known/asap/health",
    b"/%61sap", b"http://a.example/asap", b"*", b"/asap#x", b"/metrics",
]  # fmt: skip
VERSIONS: Final = [b"HTTP/1.1"], [b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0"]
HOSTS: Final = [[b"Host: a.example"]], [[b"host: localhost"], [], [b"Host: a", b"Host: a"], [b"Host: a b"]]
TOKENS: Final = [[b"Authorization: Bearer t0ken"]], [
    [], [b"authorization: Bearer wrong"], [b"Authorization: Basic eA=="], [b"Authorization: Bearer t0ken"] * 2,
]  # fmt: skip
HEADERS: Final = [[], [b"Content-Type: application/json"], [b"Connection: keep-alive"]], [
    [one] for one in (
        b"Origin: http://a.example", b"Origin: https://a.example", b"Sec-Fetch-Site: cross-site", b"Connection: close",
        b"connection: x, close", b"Expect: 100-continue", b"Upgrade: websocket", b"ASAP-Version: 9.9", b"X: \xff",
        b"If-None-Match: *", b"Accept-Encoding: gzip", b"X-Long: " + b"y" * 5_000, b"X : a", b"X:\ta ", b" folded",
        b"X-Forwarded-For: 203.0.113.9",
    )
]  # fmt: skip
MARKS: Final = [b"", b"\n", b" ", b"\x00", b"7"]
# One part in so many is unusual.
ODDS: Final = 8


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One request: valid, nearly, or broken."""

    def part(choices: tuple[list[Any], list[Any]]) -> Any:
        usual, odd = choices
        return draw(st.sampled_from(odd if draw(st.integers(1, ODDS)) == ODDS else usual))

    body, coding = draw(bodies()), part(CODINGS)
    framing, sent = framed(gzip.compress(body, mtime=0) if coding == "gzip" else body, part(FRAMINGS))
    codings = [] if coding == "plain" else [b"Content-Encoding: " + coding.encode()[:4]]
    line = b" ".join([part(METHODS), part(TARGETS), part(VERSIONS)])
    data = b"\r\n".join([line, *part(HOSTS), *part(TOKENS), *part(HEADERS), *codings, *framing, b"", sent])
    if draw(st.integers(1, ODDS)) == ODDS:
        at = draw(st.integers(0, len(data) - 1))
        data = data[:at] + draw(st.sampled_from(MARKS)) + data[at + 1 :]
    return data


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Some requests on one connection, cut at any places."""
    data = b"".join(draw(st.lists(requests(), min_size=1, max_size=4)))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=6)))
    return [data[start:end] for start, end in itertools.pairwise([0, *cuts, len(data)]) if start < end]


# --- the ways --------------------------------------------------------------------------------------------------------


@define
class Seen:
    """What came of a stream: the core's answers and decisions; whether the connection refused something by itself."""

    answers: list[tuple[int, bytes | memoryview]] = field(factory=list)
    decisions: list[Any] = field(factory=list)
    refused: bool = False
    sent: bytes = b""


class Recording(Driver):
    """Notes each answer of the core."""

    seen: Seen

    async def _respond(self, state, wire):
        self.seen.answers.append((state.response.status, state.response.body))
        return await super()._respond(state, wire)


async def echo(request, _context):
    return {"echoed": request.input}


def driver_of(seen: Seen, *, auth: bool) -> Recording:
    numbers = itertools.count()

    def new_id() -> str:
        return f"id-{next(numbers)}"

    policy: dict[str, Any] = {"max_body": 2_000, "max_head": 4_000, "peer_limits": parse_limits("3/minute")}
    agent = builders.agent(builders.manifest(auth=auth), **policy)
    builders.bound(agent, ids=new_id, observe=seen.decisions.append)
    driver = Recording(agent, Handlers({"echo": echo}, new_id=new_id), authenticate=TABLE if auth else None)
    driver.seen = seen
    return driver


class Pieces(ByteStream):
    """A peer that sends these pieces, and ends its side."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = iter(pieces)
        self.sent = b""

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        await anyio.lowlevel.checkpoint()
        for piece in self.pieces:
            return piece
        raise anyio.EndOfStream

    async def send(self, item: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        self.sent += item

    async def send_eof(self) -> None:
        await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()


async def over_a_connection(pieces: Sequence[bytes], seen: Seen, *, auth: bool, long_way: bool = False) -> None:
    stream = Pieces(pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "log_unreadable", lambda *_: setattr(seen, "refused", True))
        if long_way:
            patch.setattr(connection, "read_plain_head", lambda *_, **__: None)
        async with sweeping() as sweeper:
            await connection.serve_connection(stream, driver_of(seen, auth=auth), peer=PEER, sweeper=sweeper)
    seen.sent = re.sub(rb"\r\ndate: [^\r]*", b"", stream.sent)


class AsgiServer:
    """As little of an ASGI server as there can be: h11, one connection, requests in turn."""

    def __init__(self, pieces: Sequence[bytes], app: asgi.AsgiApp) -> None:
        self.pieces, self.app, self.sent = iter(pieces), app, b""
        self.h11 = h11.Connection(h11.SERVER)

    def event(self) -> Any:
        try:
            while (event := self.h11.next_event()) is h11.NEED_DATA:
                self.h11.receive_data(next(self.pieces, b""))
        except h11.RemoteProtocolError:
            return h11.PAUSED
        return event

    async def serve(self) -> None:
        while isinstance(request := self.event(), h11.Request):
            await self.app(self.scope(request), self.receive, self.send)
            if self.h11.our_state is not h11.DONE or self.h11.their_state is not h11.DONE:
                return
            self.h11.start_next_cycle()

    def scope(self, request: h11.Request) -> dict[str, Any]:
        path, _, query = request.target.partition(b"?")
        return {
            "type": "http", "method": request.method.decode("ascii"), "path": path.decode("latin-1"), "raw_path": path,
            "query_string": query, "headers": list(request.headers), "client": (PEER, 5), "server": None,
            "http_version": request.http_version.decode("ascii"),
        }  # fmt: skip

    async def receive(self) -> dict[str, Any]:
        match self.event():
            case h11.Data(data=data):
                return {"type": "http.request", "body": bytes(data), "more_body": True}
            case h11.EndOfMessage():
                return {"type": "http.request", "body": b"", "more_body": False}
            case _:
                return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.write(h11.Response(status_code=message["status"], headers=message["headers"]))
            return
        if message["body"]:
            self.write(h11.Data(data=bytes(message["body"])))
        if not message["more_body"]:
            self.write(h11.EndOfMessage())

    def write(self, event: Any) -> None:
        self.sent += self.h11.send(event) or b""


async def over_asgi(pieces: Sequence[bytes], seen: Seen, *, auth: bool) -> None:
    driver = driver_of(seen, auth=auth)
    app = asgi.AsgiApp(driver.agent, {"echo": echo}, authenticate=TABLE if auth else None)
    app._driver = driver
    server = AsgiServer(pieces, app)
    await server.serve()
    seen.sent = server.sent


def compare(pieces: Sequence[bytes], *, auth: bool) -> None:
    plain, long, under_asgi = Seen(), Seen(), Seen()

    async def main() -> None:
        await over_a_connection(pieces, plain, auth=auth)
        await over_a_connection(pieces, long, auth=auth, long_way=True)
        await over_asgi(pieces, under_asgi, auth=auth)

    # On asyncio, whose tasks run in turn: trio's order is random, and so are the ids that the calls of a batch get.
    anyio.run(main, backend="asyncio")
    assert (plain.answers, plain.decisions, plain.refused) == (long.answers, long.decisions, long.refused)
    assert plain.sent == long.sent
    count = len(plain.answers)
    assert under_asgi.answers[:count] == plain.answers
    assert under_asgi.decisions[: len(plain.decisions)] == plain.decisions
    if not plain.refused and b"upgrade:" not in b"".join(pieces).lower():
        assert (under_asgi.answers, under_asgi.decisions) == (plain.answers, plain.decisions)


@given(streams(), st.booleans())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_every_way_decides_alike(pieces, auth) -> None:
    compare(pieces, auth=auth)


# --- planted defects -------------------------------------------------------------------------------------------------


@given(streams(), st.booleans())
@settings(max_examples=300, derandomize=True, database=None, deadline=None, phases=[Phase.generate])
def search(pieces, auth) -> None:
    compare(pieces, auth=auth)


def plain_loses_a_piece(patch: pytest.MonkeyPatch) -> None:
    """A body that comes in several pieces loses the last byte of each but the last."""
    receive = connection._PlainWire.receive

    async def wrong(self, *, expect_continue):
        data = await receive(self, expect_continue=expect_continue)
        return data[:-1] if data and self._left else data

    patch.setattr(connection._PlainWire, "receive", wrong)


def without_token(read: Any) -> Any:
    """Forget the header `authorization` of what this reads."""

    def wrong(*args: Any, **options: Any) -> Any:
        found = read(*args, **options)
        if found is None or isinstance(found, BadHead):
            return found
        return evolve(found, headers=tuple(each for each in found.headers if each[0] != b"authorization"))

    return wrong


def plain_forgets_the_token(patch: pytest.MonkeyPatch) -> None:
    """The quick reader forgets a header."""
    patch.setattr(connection, "read_plain_head", without_token(read_plain_head))


def h11_is_another_peer(patch: pytest.MonkeyPatch) -> None:
    """Requests that h11 reads have another peer, so other limits."""
    parse = h11_wire.H11Wire.parse

    def wrong(self, head, *, peer, local):
        return parse(self, head, peer="192.0.2.9", local=local)

    patch.setattr(h11_wire.H11Wire, "parse", wrong)


def h11_loses_a_chunk(patch: pytest.MonkeyPatch) -> None:
    """A body in chunks loses its second one."""
    receive = h11_wire.H11Wire.receive

    async def wrong(self, *, expect_continue):
        before, data = self._meant, await receive(self, expect_continue=expect_continue)
        return b"" if before and data else data

    patch.setattr(h11_wire.H11Wire, "receive", wrong)


def asgi_forgets_the_token(patch: pytest.MonkeyPatch) -> None:
    """The application forgets a header."""
    patch.setattr(asgi, "_request", without_token(asgi._request))


def asgi_takes_one_piece(patch: pytest.MonkeyPatch) -> None:
    """The body ends with its first message."""
    receive = asgi._AsgiWire.receive

    async def wrong(self, *, expect_continue):
        data = await receive(self, expect_continue=expect_continue)
        self._more = False
        return data

    patch.setattr(asgi._AsgiWire, "receive", wrong)


@pytest.mark.planted
@pytest.mark.parametrize(
    "plant",
    [
        plain_loses_a_piece, plain_forgets_the_token, h11_is_another_peer, h11_loses_a_chunk,
        asgi_forgets_the_token, asgi_takes_one_piece,
    ],
)  # fmt: skip
def test_a_way_that_differs_is_noticed(plant, monkeypatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        search()
