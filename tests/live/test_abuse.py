"""Abuse of a real server, small enough for CI: its memory stays within its policy's bounds, an honest client is served.

Sizes and sums are in `benchmarks/abuse`; `python -m benchmarks.abuse` does the same at full size.
"""

import contextlib
import functools
import gzip
import sys
import time
from collections import Counter

import brotli
import pytest

from benchmarks.abuse import cases, tables
from benchmarks.abuse.cases import CI
from benchmarks.abuse.world import Peer, Report, Server, envelope_of, measured, post, served

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(sys.platform != "linux", reason="memory is read in /proc, and 127.0.0.0/8 bound, on Linux only"),
]

both = pytest.mark.parametrize("backend", ["trio", "asyncio"])


def run(case, backend: str) -> Report:
    report: Report = case(backend, CI, lambda _: None)
    assert report.growth <= report.bound, f"grew by {report.growth:,} bytes"
    # All of what the honest client asked was answered, with what it asked for.
    assert (report.failed, report.told_to_wait) == ((), 0)
    assert report.served > 0
    return report


def test_a_nonce_of_10_mb_is_kept_as_a_short_one() -> None:
    assert run(cases.long_nonces, "asyncio").answers == {"served": CI.nonces}


@both
def test_an_address_has_one_share_under_any_sender_names(backend) -> None:
    report = run(cases.many_senders_limited, backend)
    assert report.answered == CI.senders
    # The share, and what grows back while it takes.
    assert report.answers["served"] <= 100 + report.seconds * 10


def test_each_sender_without_limits_costs_a_nonce() -> None:
    assert run(cases.many_senders, "trio").answers == {"served": CI.senders}


def test_each_address_behind_a_proxy_costs_a_share_and_a_nonce() -> None:
    assert run(cases.many_peers, "asyncio").answers == {"served": CI.peers}


@both
def test_bombs_of_10_gb_are_refused_at_the_limit(backend) -> None:
    report = run(cases.bombs, backend)
    # Who sends 10 MB more after it was refused may lose the answer to the reset.
    assert report.answers["413"] + report.answers["cut off"] == report.requests
    assert report.answers["413"] >= report.requests / 2


@both
@pytest.mark.parametrize(
    ("coding", "start", "nothing"),
    [
        # Empty blocks: stored ones (RFC 1951 §3.2.4), and of metadata (RFC 7932 §9.2).
        ("gzip", gzip.compress(b"")[:10], b"\x00\x00\x00\xff\xff"),
        ("br", brotli.Compressor().flush(), b"\x06"),
    ],
)
def test_coded_bodies_that_decode_to_nothing_are_refused_at_the_limit(backend, coding, start, nothing) -> None:
    block, taken = nothing * (50_000 // len(nothing)), 0
    head = f"POST /asap HTTP/1.1\r\nHost: a\r\nContent-Encoding: {coding}\r\nTransfer-Encoding: chunked\r\n\r\n"
    with served(backend=backend, max_body=1_000_000) as server, Peer(server).connect() as connection:
        connection.sendall(head.encode() + b"%x\r\n%s\r\n" % (len(start), start))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while taken < 100_000_000:
                connection.sendall(b"%x\r\n%s\r\n" % (len(block), block))
                taken += len(block)
    # What the server read, and what kernels buffer between the two.
    assert taken < 20_000_000


@both
def test_slow_bodies_are_answered_408(backend) -> None:
    assert run(cases.slow_bodies, backend).answers == {"408": CI.slow}


@both
def test_unread_answers_are_bounded_and_released(backend) -> None:
    report = run(cases.unread_answers, backend)
    # All 60 answers are 480 MB.
    assert report.growth < 300_000_000
    assert report.left < 30_000_000
    # Who reads gets all of it, from among those who don't.
    assert report.answers == {"served": 1}


@both
def test_connections_without_a_request_do_not_block_others(backend) -> None:
    report = run(cases.half_open, backend)
    assert report.requests > 4 * CI.places


def test_json_of_any_shape_gets_an_answer() -> None:
    report = run(cases.odd_json, "trio")
    assert report.answered == report.requests == len(cases.ODD)
    assert report.answers["refused"] >= 7


@pytest.mark.parametrize(
    "table",
    [
        # As many as there's room for, of a fifth of the usual room: each is known by name, with a table of its own.
        functools.partial(tables.known_senders, 200_000, capacity=200_000),
        functools.partial(tables.unknown_senders, CI.asked),
        functools.partial(tables.addresses, CI.asked),
    ],
    ids=tables.TABLES,
)
def test_the_tables_of_the_core_keep_to_their_bounds(table) -> None:
    result = table()
    assert result.growth <= result.bound, f"grew by {result.growth:,} bytes"
    assert sum(result.answers.values()) == result.asked


def test_the_benchmark_measures_memory_growth_and_waiting_clients() -> None:
    """The measure itself, on a server whose share is small and whose bound is nothing."""

    def attack(server: Server) -> tuple[int, Counter[str]]:
        peer = Peer(server)
        sent = peer.send_all([post(envelope_of(given='"' + "x" * 9_000_000 + '"'))], bunch=1)
        time.sleep(1)  # long enough for the honest client, which asks every 10 ms, to use its share up
        return sent, peer.answers

    with served(backend="trio", limits="6/minute") as server:
        report = measured("planted", server, attack, backend="trio", bound=0, pause=0.01)
    assert report.growth > 9_000_000
    assert report.told_to_wait > 0
