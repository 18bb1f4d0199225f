"""The h11 server over in-memory streams: every kind of bytes gets a decision, and slow peers get a time-out."""

import contextlib
import errno
import gzip
import json
import re
from typing import Any

import anyio
import brotli
import pytest

from asap_adapters.server.acceptor import Acceptor
from asap_adapters.server.connection import serve_connection
from asap_adapters.server.connection_limits import TICK, Sweeper, sweeping
from asap_adapters.server.driver import Driver
from asap_adapters.server.handlers import Handlers
from asap_adapters.server.startup import bind_agent
from asap_core import Envelope, Policy, encode_envelope

pytestmark = pytest.mark.anyio


def call(number=1, **changes):
    import time

    envelope = Envelope.new(
        sender="urn:asap:agent:tester",
        recipient="urn:asap:agent:echo-agent",
        payload_type="task.request",
        payload={"conversation_id": "c", "skill_id": "echo", "input": {"n": number}},
        ids=lambda: f"id-{number}-{time.monotonic_ns()}",
        wall=time.time(),  # type: ignore[arg-type]
    )
    document = {
        "jsonrpc": "2.0",
        "method": "asap.send",
        "id": number,
        "params": {"envelope": encode_envelope(envelope)},
    }
    return json.dumps({**document, **changes}).encode()


def post(body, *headers, target="/asap"):
    lines = [f"POST {target} HTTP/1.1", "Host: a", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.fixture
def talk(pipe, agent, echo_handlers):
    """Serve one connection: send these bytes, return (the answers, how long it took)."""

    async def run(*pieces, pause=0.0, chunk=65_536, then_eof=True, **policy):
        ours, theirs = pipe()
        theirs.chunk = chunk
        driver = Driver(bind_agent(agent(**policy)), Handlers(echo_handlers))
        received = []
        began = anyio.current_time()

        async def serving() -> None:
            async with sweeping() as sweeper:
                await serve_connection(theirs, driver, peer="192.0.2.1", sweeper=sweeper)
            await theirs.aclose()

        async def reading() -> None:
            try:
                while True:
                    received.append(await ours.receive())
            except (anyio.EndOfStream, anyio.ClosedResourceError):
                return

        with anyio.fail_after(1000):
            async with anyio.create_task_group() as group:
                group.start_soon(serving)
                group.start_soon(reading)
                try:
                    for piece in pieces:
                        await ours.send(piece)
                        await anyio.sleep(pause)
                    if then_eof:
                        await ours.send_eof()
                except anyio.BrokenResourceError:
                    pass  # the server has had enough
        return b"".join(received), anyio.current_time() - began

    return run


def statuses(answer):
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


class TestOneConnection:
    async def test_a_connection_serves_one_request_after_another(self, talk) -> None:
        answer, _ = await talk(post(call(1)), post(call(2)))
        assert statuses(answer) == [200, 200]
        assert answer.count(b'"echoed"') == 2

    async def test_pipelined_requests_are_answered_in_order(self, talk) -> None:
        answer, _ = await talk(post(call(1)) + post(call(2)) + b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert statuses(answer) == [200, 200, 200]
        assert answer.index(b'"id":1') < answer.index(b'"id":2')

    async def test_a_connection_continues_after_a_request_without_a_body(self, talk) -> None:
        get = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
        answer, _ = await talk(get, get + get, post(call(1)))
        assert statuses(answer) == [200, 200, 200, 200]
        assert b"connection: close" not in answer

    async def test_a_connection_with_an_unread_body_is_announced_as_closing(self, talk) -> None:
        get = b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"
        answer, _ = await talk(get, b"12345" + get)
        assert statuses(answer) == [200]
        assert b"connection: close" in answer

    @pytest.mark.parametrize("chunk", [1, 2, 7, 100])
    async def test_requests_are_answered_the_same_for_any_split_of_bytes(self, talk, chunk) -> None:
        answer, _ = await talk(post(call(1)) + post(call(2)), chunk=chunk)
        assert statuses(answer) == [200, 200]

    async def test_connection_close_ends_the_connection(self, talk) -> None:
        answer, _ = await talk(post(call(1), "Connection: close"), post(call(2)))
        assert statuses(answer) == [200]

    async def test_an_http_1_0_request_is_answered_and_the_connection_closed(self, talk) -> None:
        answer, _ = await talk(b"GET /health HTTP/1.0\r\n\r\n", then_eof=False)
        assert statuses(answer) == [200]
        assert b"connection: close" in answer.lower()

    async def test_a_chunked_body_is_read(self, talk) -> None:
        body = call(1)
        chunks = b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (10, body[:10], len(body) - 10, body[10:])
        head = b"POST /asap HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        answer, _ = await talk(head + chunks)
        assert b'"echoed"' in answer

    async def test_continue_is_sent_if_it_is_expected(self, talk) -> None:
        body = call(1)
        answer, _ = await talk(post(body, "Expect: 100-continue").removesuffix(body), body, pause=1)
        assert statuses(answer) == [100, 200]

    async def test_continue_is_sent_even_if_the_body_is_there_already(self, talk) -> None:
        answer, _ = await talk(post(call(1), "Expect: 100-continue") + post(call(2)))
        assert statuses(answer) == [100, 200, 200]

    @pytest.mark.parametrize("options", ["x, close", "close, keep-alive", "Close"])
    async def test_close_among_other_options_ends_the_connection(self, talk, options) -> None:
        answer, _ = await talk(post(call(1), f"Connection: {options}") + post(call(2)))
        assert statuses(answer) == [200]
        assert b"connection: close" in answer

    @pytest.mark.parametrize("options", ["x-close", "keep-alive", "closed, x"])
    async def test_other_options_do_not_end_the_connection(self, talk, options) -> None:
        answer, _ = await talk(post(call(1), f"Connection: {options}") + post(call(2)))
        assert statuses(answer) == [200, 200]

    async def test_requests_read_in_both_ways_follow_each_other(self, talk) -> None:
        body = call(2)
        chunked = b"POST /asap HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
        answer, _ = await talk(post(call(1)) + chunked % (len(body), body) + post(call(3)), chunk=50)
        assert statuses(answer) == [200, 200, 200]
        assert answer.index(b'"id":1') < answer.index(b'"id":2') < answer.index(b'"id":3')

    async def test_a_refused_request_whose_body_is_there_closes_the_connection(self, talk) -> None:
        answer, took = await talk(post(b"x" * 9, target="/nowhere") + post(call(1)), then_eof=False)
        assert (statuses(answer), took) == ([404], pytest.approx(1.0))

    async def test_head_is_answered_without_a_body(self, talk) -> None:
        answer, _ = await talk(b"HEAD /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert statuses(answer) == [200]
        assert b"content-length: 15" in answer
        assert answer.endswith(b"\r\n\r\n")

    @pytest.mark.parametrize(
        ("coding", "start", "nothing"),
        [
            # Empty blocks: stored ones (RFC 1951 §3.2.4), and of metadata (RFC 7932 §9.2).
            ("gzip", gzip.compress(b"")[:10], b"\x00\x00\x00\xff\xff"),
            ("br", brotli.Compressor().flush(), b"\x06"),
        ],
    )
    async def test_a_coded_body_that_decodes_to_nothing_has_a_limit(self, talk, coding, start, nothing) -> None:
        head = f"POST /asap HTTP/1.1\r\nHost: a\r\nContent-Encoding: {coding}\r\nTransfer-Encoding: chunked\r\n\r\n"
        first = b"%x\r\n%s\r\n" % (len(start), start)
        block = nothing * (10_000 // len(nothing))
        chunks = [b"%x\r\n%s\r\n" % (len(block), block)] * 1000
        answer, _ = await talk(head.encode() + first, *chunks, max_body=100_000, then_eof=False)
        assert statuses(answer) == [413]
        assert b"connection: close" in answer

    @pytest.mark.parametrize(("coding", "compress"), [("gzip", gzip.compress), ("br", brotli.compress)])
    async def test_a_compressed_body_is_inflated(self, talk, coding, compress) -> None:
        answer, _ = await talk(post(compress(call(1)), f"Content-Encoding: {coding}"))
        assert b'"echoed"' in answer


class TestInvalidHttp:
    @pytest.mark.parametrize(
        ("data", "status"),
        [
            (b"\x16\x03\x01\x02\x00\x01\x00", 400),
            (b"nonsense\r\n\r\n", 400),
            (b"GET / HTTP/1.1\nHost: a\n\n", 400),
            (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
            (b"GET / HTTP/1.1\r\nHost: a\r\n folded: x\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n", 400),
            (b"POST /asap HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            (b"POST /asap HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            (b"POST /asap HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
            (b"POST /asap HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
            (b"POST /asap HTTP/1.1\r\nHost: a\r\nContent-Length: 150,150\r\n\r\n", 400),
            (b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 0, 0\r\n\r\n", 400),
            (b"GET /health HTTP/1.1\r\nHost: a\r\nX: \x01\r\n\r\n", 400),
            (b"GET /health HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
            (b"GET /health HTTP/1.1\r\nHost: http://a\r\n\r\n", 400),
            (b"POST ?://x/asap HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"POST http://x?/asap HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"POST /asap HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
            (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
            (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 20_000 + b"\r\n\r\n", 431),
            (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
            (b"POST /asap HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        ],
    )
    @pytest.mark.parametrize("chunk", [65_536, 1])
    async def test_an_invalid_request_is_refused_and_the_connection_closed(self, talk, data, status, chunk) -> None:
        answer, _ = await talk(data, chunk=chunk, then_eof=False)
        assert statuses(answer) == [status]
        assert b"connection: close" in answer.lower()

    async def test_after_an_early_refusal_the_rest_is_discarded_for_a_second(self, talk) -> None:
        answer, took = await talk(
            b"POST /asap HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999\r\n\r\n", b"x" * 10, then_eof=False
        )
        assert statuses(answer) == [413]
        assert took == pytest.approx(1.0)

    async def test_an_unreadable_coding_is_refused(self, talk) -> None:
        answer, _ = await talk(post(b"not gzip", "Content-Encoding: gzip"), then_eof=False)
        assert statuses(answer) == [400]

    async def test_a_bomb_is_refused_at_the_limit(self, talk) -> None:
        bomb = gzip.compress(b"0" * 50_000_000)
        answer, _ = await talk(post(bomb, "Content-Encoding: gzip"), then_eof=False)
        assert statuses(answer) == [413]

    async def test_an_unknown_coding_is_refused_with_the_known_ones(self, talk) -> None:
        answer, _ = await talk(post(b"x", "Content-Encoding: zstd"), then_eof=False)
        assert statuses(answer) == [415]
        assert b"accept-encoding: br, gzip, x-gzip" in answer


def large(size, number=1):
    params = json.loads(call(number))["params"]
    params["envelope"]["payload"]["input"]["text"] = "x" * size
    return call(number, params=params)


class TestLargeAnswers:
    async def test_large_answers_are_sent_in_pieces(self, talk) -> None:
        answer, _ = await talk(post(large(1_000_000)), post(call(2)))
        assert statuses(answer) == [200, 200]
        assert b"x" * 1_000_000 in answer

    async def test_large_answers_that_are_not_read_time_out(self, pipe, agent, echo_handlers) -> None:
        ours, theirs = pipe()
        served = bind_agent(agent())
        driver = Driver(served, Handlers(echo_handlers))
        await ours.send(post(large(9_000_000)))
        with anyio.fail_after(100):
            began = anyio.current_time()
            async with sweeping() as sweeper:
                await serve_connection(theirs, driver, peer="192.0.2.1", sweeper=sweeper)
        assert anyio.current_time() - began == Policy().write_timeout
        assert served.outgoing.held == 0

    async def test_large_answers_end_the_slowest_readers_if_they_need_room(self, pipe, agent, echo_handlers) -> None:
        """The kernel, here a pipe, buffers 100 pieces of each answer; they are never read."""
        served = bind_agent(agent(max_answers=94_000_000))
        driver, over = Driver(served, Handlers(echo_handlers)), []

        async def serving(number, stream) -> None:
            async with sweeping() as sweeper:
                await serve_connection(stream, driver, peer="192.0.2.1", sweeper=sweeper)
            over.append(number)

        with anyio.fail_after(25):
            async with anyio.create_task_group() as group:
                ends = []
                for number in range(4):
                    ours, theirs = pipe()
                    ends.append(ours)
                    await ours.send(post(large(9_000_000, number)))
                    group.start_soon(serving, number, theirs)
                    await anyio.sleep(1)
                    if number == 2:
                        assert (over, served.outgoing.held > 27_000_000) == ([], True)
                        await ends[0].receive()  # the first takes a piece: now the second is the slowest
                        await anyio.sleep(1)
                assert (over, served.outgoing.held < 30_000_000) == ([1], True)
                group.cancel_scope.cancel()
        assert served.outgoing.held == 0


class TestSlowPeers:
    async def test_a_silent_connection_is_closed(self, talk) -> None:
        answer, took = await talk(then_eof=False)
        assert (answer, took) == (b"", pytest.approx(Policy().idle_timeout))

    async def test_a_connection_is_closed_after_its_last_request_has_been_idle_for_long(self, talk) -> None:
        answer, took = await talk(post(call(1)), then_eof=False)
        assert (statuses(answer), took) == ([200], pytest.approx(Policy().idle_timeout))

    @pytest.mark.parametrize("seconds", [TICK / 2, TICK * 3])
    async def test_deadlines_are_exact_unless_they_are_shorter_than_a_tick(self, talk, seconds) -> None:
        answer, took = await talk(b"GET /", then_eof=False, head_timeout=seconds)
        assert statuses(answer) == [408]
        assert seconds <= took - 1 <= max(seconds, TICK)  # a second after it the connection is closed

    async def test_a_slow_body_after_a_head_in_pieces_times_out_at_its_own_time(self, talk) -> None:
        head = b"POST /asap HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n"
        answer, took = await talk(head[:20], head[20:] + b"x", pause=4, then_eof=False)
        assert statuses(answer) == [408]
        assert b"the whole body within 30 s" in answer
        assert took == pytest.approx(4 + Policy().body_timeout + 1)

    async def test_a_slow_handler_has_no_deadline_of_its_connection(self, pipe, agent) -> None:
        async def slow(_request, _context):
            await anyio.sleep(25)
            return {}

        ours, theirs = pipe()
        policy = {"idle_timeout": 1.0, "head_timeout": 1.0, "body_timeout": 1.0, "write_timeout": 1.0}
        driver = Driver(bind_agent(agent(**policy)), Handlers({"echo": slow}))
        await ours.send(post(call(1)))
        with anyio.fail_after(100):
            await serve_alone(theirs, driver)
        assert statuses(await ours.receive()) == [200]

    async def test_a_slow_head_times_out(self, talk) -> None:
        answer, took = await talk(*[b"G"] * 30, pause=1, then_eof=False)
        assert statuses(answer) == [408]
        assert Policy().head_timeout <= took <= 31

    async def test_a_slow_body_times_out(self, talk) -> None:
        head = b"POST /asap HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n"
        answer, _ = await talk(head, *[b"x"] * 60, pause=1, then_eof=False)
        assert statuses(answer) == [408]

    @pytest.mark.parametrize("cut", [5, len(call(1)) + 10])
    async def test_a_peer_that_ends_midway_and_still_reads_gets_a_response(self, talk, cut) -> None:
        answer, took = await talk(post(call(1))[:-cut])
        assert (statuses(answer), took) == ([400], 0)

    async def test_a_peer_that_leaves_without_a_request_is_forgotten(self, talk) -> None:
        assert await talk() == (b"", 0)


class Expiring(Sweeper):
    """Ends the present wait of every connection when it's told."""

    def expire(self) -> None:
        for each in self._waiting:
            each.expire()


class Arriving:
    """A stream whose pieces arrive at the very moment when the wait for them expires."""

    def __init__(self, stream, sweeper: Expiring, *pieces: bytes) -> None:
        self.stream, self.sweeper, self.pieces = stream, sweeper, list(pieces)

    def __getattr__(self, name):
        return getattr(self.stream, name)

    async def receive(self, max_bytes=65_536):
        if not self.pieces:
            return await self.stream.receive(max_bytes)
        self.sweeper.expire()
        return self.pieces.pop(0)

    async def send(self, data) -> None:
        await self.stream.send(data)
        self.sweeper.expire()


class TestTheVeryMoment:
    """What has come or gone when a wait expires counts; what hasn't is too late."""

    @pytest.fixture
    def answers(self, pipe, agent, echo_handlers):
        async def run(*pieces: bytes):
            ours, theirs = pipe()
            sweeper = Expiring()
            driver = Driver(bind_agent(agent()), Handlers(echo_handlers))
            with anyio.fail_after(100):
                stream: Any = Arriving(theirs, sweeper, *pieces)
                await ours.send_eof()
                await serve_connection(stream, driver, peer="192.0.2.1", sweeper=sweeper)
            await theirs.aclose()
            received = b""
            with contextlib.suppress(anyio.EndOfStream):
                while True:
                    received += await ours.receive()
            return received

        return run

    async def test_a_whole_request_is_answered_and_the_next_one_too(self, answers) -> None:
        assert statuses(await answers(post(call(1)), post(call(2)) + post(call(3)))) == [200, 200, 200]

    async def test_a_request_for_h11_is_answered(self, answers) -> None:
        assert statuses(await answers(post(call(1), "Connection: x"), post(call(2)))) == [200, 200]

    async def test_the_first_byte_of_a_head_begins_the_wait_for_its_rest(self, answers) -> None:
        request = post(call(1))
        assert statuses(await answers(request[:1], request[1:] + post(call(2)))) == [200, 200]

    async def test_a_head_that_is_still_not_whole_is_too_late(self, answers) -> None:
        request = post(call(1))
        answer = await answers(request[:1], request[1:9])
        assert statuses(answer) == [408]
        assert b"the whole head" in answer

    async def test_a_body_is_too_late(self, answers) -> None:
        request = post(call(1))
        answer = await answers(request[:-9], request[-9:])
        assert statuses(answer) == [408]
        assert b"the whole body" in answer


async def test_a_long_row_of_requests_gives_others_a_turn(pipe, agent, echo_handlers) -> None:
    row, row_served = pipe()
    one, one_served = pipe()
    driver, answered = Driver(bind_agent(agent(peer_limits=())), Handlers(echo_handlers)), []

    async def read(stream, number) -> None:
        for _ in range(number):
            await stream.receive()
            answered.append(stream)
        await stream.send_eof()

    async def serve(stream, sweeper) -> None:
        await serve_connection(stream, driver, peer="192.0.2.1", sweeper=sweeper)

    with anyio.fail_after(10):
        async with sweeping() as sweeper, anyio.create_task_group() as group:
            await row.send(b"".join(post(call(number)) for number in range(50)))
            await one.send(post(call(99)))
            for stream, served, number in ((row, row_served, 50), (one, one_served, 1)):
                group.start_soon(serve, served, sweeper)
                group.start_soon(read, stream, number)
    assert answered.index(one) < 10
    assert len(answered) == 51


class TestChunks:
    """The framing of chunks has a bound of its own."""

    HEAD = b"POST /asap HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

    async def test_chunks_of_usual_size_are_accepted(self, talk) -> None:
        body = call(1)
        chunks = b"".join(b"8\r\n%s\r\n" % body[at : at + 8].ljust(8) for at in range(0, len(body), 8))
        answer, _ = await talk(self.HEAD + chunks + b"0\r\n\r\n")
        assert statuses(answer) == [200]

    async def test_chunks_with_more_framing_than_data_are_refused(self, talk) -> None:
        answer, _ = await talk(self.HEAD + b"1;%s\r\nx\r\n" % (b"e" * 10_000) * 50, b"0\r\n\r\n", chunk=4096)
        assert statuses(answer) == [400]

    @pytest.mark.parametrize(
        "end",
        [
            b"0\r\nX: y\n\n",
            b"0\r\nX: y\r\n\n",
            b"0\n\r\n",
            b"0;a\n\r\n",
            b"0\r\nX: a\rb\r\n\r\n",
            b"0\r\nX: \x00\r\n\r\n",
            b"0\r\nX : y\r\n\r\n",
            b"0\r\nX: y\r\n folded\r\n\r\n",
            b"0\r\nContent-Length: 3\r\n\r\n",
            b"0 \r\n\r\n",
            b"0x0\r\n\r\n",
            b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"+0\r\n\r\n",
            b"0_0\r\n\r\n",
            b"0;a b\r\n\r\n",
        ],
    )
    @pytest.mark.parametrize("chunk", [65_536, 1])
    async def test_chunks_with_an_ambiguous_end_are_refused_and_the_connection_closed(self, talk, end, chunk) -> None:
        body = call(1)
        sent = self.HEAD + b"%x\r\n%s\r\n" % (len(body), body) + end + post(call(2))
        answer, _ = await talk(sent, chunk=chunk, then_eof=False)
        assert (statuses(answer), b"connection: close" in answer) == ([400], True)

    async def test_chunks_with_an_unambiguous_end_are_accepted_and_the_next_request_is_read(self, talk) -> None:
        body = call(1)
        sent = self.HEAD + b'%x;a="b"\r\n%s\r\n0\r\nX: y\r\n\r\n' % (len(body), body) + post(call(2))
        assert statuses((await talk(sent, chunk=7))[0]) == [200, 200]

    @pytest.mark.parametrize(("end", "answers"), [(b"0\r\n\r\n", [200, 200]), (b"0\r\nX: y\n\n", [400])])
    async def test_chunks_of_an_unread_body_obey_the_same_rules(self, talk, end, answers) -> None:
        get = b"GET /health HTTP/1.1\r\nHost: a\r\n"
        sent = get + b"Transfer-Encoding: chunked\r\n\r\n" + end + get + b"\r\n"
        assert statuses((await talk(sent))[0]) == answers

    async def test_chunks_of_one_byte_are_accepted_for_small_bodies_only(self, talk) -> None:
        body = call(1)
        few = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
        assert statuses((await talk(self.HEAD + few + b"0\r\n\r\n", chunk=4096))[0]) == [200]
        many = b"1\r\n \r\n" * 100_000
        assert statuses((await talk(self.HEAD + many, chunk=4096))[0]) == [400]


class FailingListener:
    """A listener whose accept() fails so, and then works."""

    def __init__(self, *numbers: int) -> None:
        self.failures = [OSError(number, "no") for number in numbers]
        self.accepted = 0

    async def accept(self):
        if self.failures:
            raise self.failures.pop(0)
        self.accepted += 1
        await anyio.sleep_forever()

    async def aclose(self) -> None:
        pass


@pytest.mark.parametrize(
    ("number", "goes_on"),
    [
        (errno.ECONNABORTED, True), (errno.EPROTO, True), (errno.EHOSTUNREACH, True), (errno.ENETDOWN, True),
        (errno.EPERM, True), (errno.EMFILE, True), (errno.EBADF, False), (errno.EINVAL, False),
    ],
)  # fmt: skip
async def test_a_connection_that_fails_early_ends_no_other(agent, echo_handlers, number, goes_on) -> None:
    listener, stop = FailingListener(number), anyio.Event()
    server = Acceptor(Driver(bind_agent(agent()), Handlers(echo_handlers)), listener, None, stop)  # type: ignore[arg-type]

    async def run() -> None:
        await server.run(lambda: None)

    async with anyio.create_task_group() as group:
        if goes_on:
            group.start_soon(run)
            await anyio.sleep(1)
            stop.set()
        else:
            with pytest.raises(BaseExceptionGroup):
                await run()
    assert listener.accepted == int(goes_on)


async def serve_alone(stream, driver) -> None:
    async with sweeping() as sweeper:
        await serve_connection(stream, driver, peer="192.0.2.1", sweeper=sweeper)


class TestCancellation:
    async def test_cancellation_at_any_moment_leaves_nothing_running(self, pipe, agent) -> None:
        """Cancel the connection after every number of scheduling steps; the agent always counts nothing as running."""

        async def slow(request, _context):
            await anyio.sleep(1)
            return {}

        for steps in range(12):
            served = bind_agent(agent())
            ours, theirs = pipe()
            driver = Driver(served, Handlers({"echo": slow}))
            async with anyio.create_task_group() as group:
                group.start_soon(serve_alone, theirs, driver)
                await ours.send(post(call(1)))
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
            assert served.active == 0

    async def test_cancellation_of_a_batch_releases_every_call(self, pipe, agent) -> None:
        async def slow(request, _context):
            await anyio.sleep(1)
            return {}

        for steps in range(12):
            served = bind_agent(agent())
            ours, theirs = pipe()
            driver = Driver(served, Handlers({"echo": slow}))
            async with anyio.create_task_group() as group:
                group.start_soon(serve_alone, theirs, driver)
                batch = b"[" + b",".join(call(number) for number in range(5)) + b"]"
                await ours.send(post(batch))
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
            assert served.active == 0
