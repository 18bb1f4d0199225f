"""The planted agent reads the same bytes as this library's server, and decides alike: statuses, and what ends."""

import re

import anyio
import pytest
from hypothesis import given, strategies as st

from asap_adapters.server.connection import serve_connection
from asap_adapters.server.connection_limits import sweeping
from asap_adapters.server.driver import Driver
from asap_adapters.server.handlers import Handlers
from asap_adapters.server.startup import bind_agent
from asap_core.testing.planted.agent import PlantedAgent
from asap_core.testing.planted.connection import PlantedConnection
from asap_core.testing.planted.messages import PlantedOptions

MAX_BODY = 2_000
GET = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"


def head(*fields: bytes, line: bytes = b"POST /asap HTTP/1.1", host: bytes = b"Host: a\r\n") -> bytes:
    return line + b"\r\n" + host + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


CHUNKED = b"Transfer-Encoding: chunked"
ONE = b"Content-Length: 2"

BYTES = {
    "one request": GET,
    "two requests": GET + GET,
    "an empty line first": b"\r\n" + GET,
    "two empty lines first": b"\r\n\r\n" + GET,
    "an empty line between": GET + b"\r\n" + GET,
    "close": head(b"Connection: close", line=b"GET /health HTTP/1.1") + GET,
    "close in a list": head(b"Connection: x, Close", line=b"GET /health HTTP/1.1") + GET,
    "HTTP/1.0": head(line=b"GET /health HTTP/1.0") + GET,
    "HTTP/1.0 without Host": head(line=b"GET /health HTTP/1.0", host=b"") + GET,
    "no Host": head(line=b"GET /health HTTP/1.1", host=b""),
    "two Hosts": head(b"Host: a", line=b"GET /health HTTP/1.1"),
    "an empty Host": head(line=b"GET /health HTTP/1.1", host=b"Host:\r\n"),
    **{
        f"Host {host.decode()}": head(line=b"GET /health HTTP/1.1", host=b"Host: " + host + b"\r\n")
        for host in [b"a:80", b"a:", b"[::1]:80", b"a b", b"a/b", b"u@a", b"a:b", b"a:999999", b"%61", b"a,b", b"[a"]
    },
    **{
        f"line {line.decode('latin-1')!r}": head(line=line)
        for line in [
            b"GET  /health HTTP/1.1", b"GET /health HTTP/1.1 ", b"GET /health", b"GET /health HTTP/2.0",
            b"GET /health HTTP/1.2", b"GET /health http/1.1", b"GET /health HTTP/1.", b"get /health HTTP/1.1",
            b"G@T /health HTTP/1.1", b" GET /health HTTP/1.1", b"GET\t/health HTTP/1.1", b"GET /health?x HTTP/1.1",
            b"GET /health#x HTTP/1.1", b"GET http://a/health HTTP/1.1", b"GET https://b:1/health HTTP/1.1",
            b"GET http:///health HTTP/1.1", b"GET ftp://a/health HTTP/1.1", b"GET http://a HTTP/1.1",
            b"GET * HTTP/1.1", b"OPTIONS * HTTP/1.1", b"CONNECT a:1 HTTP/1.1", b"GET health HTTP/1.1",
            b"GET /%zz HTTP/1.1", b"GET /he%61lth HTTP/1.1", b"GET /\xe9 HTTP/1.1", b"GET /a\\b HTTP/1.1",
            b"GET /../health HTTP/1.1", b"GET //health HTTP/1.1", b"GET /health\x00 HTTP/1.1", b"\x16\x03\x01", b"1",
        ]
    },
    **{
        f"field {field.decode('latin-1')!r}": head(field, line=b"GET /health HTTP/1.1")
        for field in [
            b"X: \xe9", b"X:", b"X:y", b"X: y ", b"X : y", b" X: y", b"\tX: y", b"X", b": y", b"X\x00: y", b"X: \x00",
            b"X: y\x7f", b"X: a\tb", b"(X): y", b"X: y\rz", b"X: y\r", b"X: \x01",
        ]
    },
    "bare line feeds": GET.replace(b"\r\n", b"\n"),
    "one bare line feed": b"GET /health HTTP/1.1\nHost: a\r\n\r\n",
    "a bare line feed at the end": b"GET /health HTTP/1.1\r\nHost: a\r\n\n",
    "a body": head(ONE) + b"{}" + GET,
    "a body of nothing": head(b"Content-Length: 0") + GET,
    "no length": head() + GET,
    "a body for GET": head(ONE, line=b"GET /health HTTP/1.1") + b"{}" + GET,
    **{
        f"length {length.decode('latin-1')!r}": head(b"Content-Length: " + length) + b"{}" + GET
        for length in [b"+2", b"-2", b"2,2", b"2, 2", b"02", b"0x2", b"2 2", b"", b"2;", b"\xb2", b"2.0", b"1_0"]
    },
    "two equal lengths": head(ONE, ONE) + b"{}" + GET,
    "two lengths": head(ONE, b"Content-Length: 3") + b"{}" + GET,
    "a length and chunked": head(ONE, CHUNKED) + b"2\r\n{}\r\n0\r\n\r\n" + GET,
    "chunked and a length": head(CHUNKED, ONE) + b"2\r\n{}\r\n0\r\n\r\n" + GET,
    "too large": head(b"Content-Length: 2001") + b" " * 2001 + GET,
    "as large as may be": head(b"Content-Length: 2000") + b" " * 2000 + GET,
    "huge": head(b"Content-Length: " + b"9" * 30) + b"{}",
    "chunked": head(CHUNKED) + b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n" + GET,
    "chunked in capitals": head(b"Transfer-Encoding: CHUNKED") + b"2\r\n{}\r\n0\r\n\r\n" + GET,
    "chunked in HTTP/1.0": head(CHUNKED, line=b"POST /asap HTTP/1.0") + b"2\r\n{}\r\n0\r\n\r\n",
    "chunked twice": head(CHUNKED, CHUNKED) + b"2\r\n{}\r\n0\r\n\r\n" + GET,
    **{
        f"coding {coding.decode('latin-1')!r}": head(b"Transfer-Encoding: " + coding) + b"2\r\n{}\r\n0\r\n\r\n" + GET
        for coding in [
            b"gzip", b"gzip, chunked", b"chunked, chunked", b"identity", b"xchunked", b"chunked;x", b"\x0bchunked",
        ]
    },
    **{
        f"chunks {chunks.decode('latin-1')!r}"[:60]: head(CHUNKED) + chunks + b"\r\n" + GET
        for chunks in [
            b"2;a=b\r\n{}\r\n0\r\n", b'2;a="b"\r\n{}\r\n0\r\n', b"2 \r\n{}\r\n0\r\n", b" 2\r\n{}\r\n0\r\n",
            b"0x2\r\n{}\r\n0\r\n", b"+2\r\n{}\r\n0\r\n", b"-2\r\n{}\r\n0\r\n", b"2\n{}\r\n0\r\n", b"2\r\n{}\n0\r\n",
            b"2\r\n{}x\r\n0\r\n", b"2\r\n{}\r\n0;x\r\n", b"2;\r\n{}\r\n0\r\n", b"2; a\r\n{}\r\n0\r\n", b"g\r\n",
            b"\r\n{}\r\n0\r\n", b"02\r\n{}\r\n00\r\n", b"2\r\n{}\r\n0\r\nX: y\r\n", b"2\r\n{}\r\n0\r\nX\r\n",
            b"2\r\n{}\r\n0\r\nContent-Length: 5\r\n", b"2\r\n{}\r\n0\r\nX: \x01\r\n", b"2\r\n{}\r\n0\r\n X: y\r\n",
            b"11111111111111111\r\n", b"7d1\r\n" + b" " * 2001 + b"\r\n0\r\n", b"7d0\r\n" + b" " * 2000 + b"\r\n0\r\n",
        ]
    },
    "a target that is too long": head(line=b"GET /" + b"a" * 20_000 + b" HTTP/1.1"),
    "a field that is too long": head(b"X: " + b"a" * 20_000, line=b"GET /health HTTP/1.1"),
    "too many fields": head(*[b"X: y"] * 100, line=b"GET /health HTTP/1.1"),
    "as many fields as may be": head(*[b"X: y"] * 99, line=b"GET /health HTTP/1.1"),
    "an unknown path with a body": head(ONE, line=b"POST /x HTTP/1.1") + b"{}" + GET,
    "HEAD": head(line=b"HEAD /health HTTP/1.1") + GET,
    "Expect": head(b"Expect: 100-continue", ONE) + b"{}" + GET,
}  # fmt: skip

# Both are right in these cases, and differ: what the planted agent does and what ours does.
DIFFERENT = {
    "line 'CONNECT a:1 HTTP/1.1'": (([404], False), ([404], True), "ours ends the connection after any CONNECT"),
    "a body for GET": (([200, 200], False), ([200], True), "ours doesn't read it, and ends the connection"),
    "huge": (([413], True), ([400], True), "h11 reads at most 20 digits"),
    "Expect": (([200, 200], False), ([100, 200, 200], False), "RFC 9110 §10.1.1: 100 may be left out if the body came"),
}


def planted(*pieces: bytes, chunk: int = 65_536) -> tuple[list[int], bool]:
    options = PlantedOptions(urn="urn:asap:agent:echo-agent", tokens=(), max_body=MAX_BODY)
    connection = PlantedConnection(PlantedAgent(options))
    out = b""
    for piece in pieces:
        for at in range(0, len(piece), chunk):
            out += connection.receive(piece[at : at + chunk])
    return statuses(out), connection.closed


def statuses(data: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", data)]


@pytest.fixture
def ours(pipe, agent, echo_handlers):
    async def run(data: bytes) -> tuple[list[int], bool]:
        client, server = pipe()
        driver = Driver(bind_agent(agent(max_body=MAX_BODY, peer_limits=())), Handlers(echo_handlers))
        received = bytearray()
        ended = False

        async def serving() -> None:
            async with sweeping() as sweeper:
                await serve_connection(server, driver, peer="127.0.0.1", sweeper=sweeper)
            await server.aclose()

        with anyio.fail_after(1000):
            async with anyio.create_task_group() as group:
                group.start_soon(serving)
                with anyio.move_on_after(1):
                    try:
                        await client.send(data)
                        while True:
                            received += await client.receive()
                    except (anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
                        ended = True
                group.cancel_scope.cancel()
        return statuses(bytes(received)), ended

    return run


@pytest.mark.anyio
@pytest.mark.parametrize("name", [*BYTES])
async def test_the_same_bytes_are_decided_alike(ours, name) -> None:
    theirs = await ours(BYTES[name])
    if name in DIFFERENT:
        assert (planted(BYTES[name]), theirs) == DIFFERENT[name][:2]
    else:
        assert planted(BYTES[name]) == theirs


PIECES = st.lists(st.sampled_from([*BYTES.values()]) | st.binary(max_size=20), max_size=3).map(b"".join)


@given(PIECES, st.integers(1, 50))
def test_it_does_not_matter_how_bytes_are_cut(data, chunk) -> None:
    assert planted(data) == planted(data, chunk=chunk)
