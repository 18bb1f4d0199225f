"""The cases: what is sent, how much of it, and by which of the policy's numbers the memory is bounded."""

import select
import socket
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

import brotli
from attrs import frozen

from asap_core import Policy
from benchmarks.abuse.world import ATTACKER, Peer, Report, Server, envelope_of, measured, post, served, stamp

__all__ = ["CASES", "CI", "FULL", "Sizes"]

POLICY: Final = Policy()
"""Its bounds are what the sums below are made of: the servers here change what they say they change."""

Told = Callable[[int], None]

MB: Final = 1_000_000
ANYWAY: Final = 16 * MB
"""Whatever is asked: buffers, the allocator's arenas, code that runs for the first time."""
CONNECTION: Final = 60_000
"""By `max_connections`."""
NONCE: Final = 180
"""By `nonce_capacity`: 180 MB for a million."""
SHARE: Final = 300
"""By `limiter_capacity`: 30 MB for a hundred thousand."""
COPIES: Final = 8
"""Of a body while it's judged: as it came, joined, as text, written out again, digested."""
PARSED: Final = 64
"""Bytes of memory for a byte of JSON, at worst: `{"":0},` takes 210 in memory, and an echo reads what it writes."""
BATCH: Final = POLICY.max_batch


@frozen
class Sizes:
    """How many of each."""

    nonces: int
    senders: int
    peers: int
    slow: int
    unread: int
    half_open: int
    places: int
    odd: int
    asked: int


CI: Final = Sizes(
    nonces=25, senders=20_000, peers=4_000, slow=50, unread=60, half_open=500, places=100, odd=1, asked=150_000
)
FULL: Final = Sizes(
    nonces=300,
    senders=1_000_000,
    peers=1_000_000,
    slow=900,
    unread=900,
    half_open=10_000,
    places=POLICY.max_connections,
    odd=10,
    asked=2_000_000,
)

LIMITS: Final = "10/second;100/minute"
PAUSE_WITHIN_LIMITS: Final = 0.7
"""For an honest client that keeps to them."""


def long_nonces(backend: str, sizes: Sizes, told: Told) -> Report:
    """Nonces of nearly 10 MB, each of which must be remembered: by its digest."""

    def attack(server: Server) -> tuple[int, Counter[str]]:
        peer, filler = Peer(server), "n" * (POLICY.max_body - 1_000)
        bodies = (post(envelope_of(nonce=f"{filler}{number}")) for number in range(sizes.nonces))
        return peer.send_all(bodies, bunch=1, told=told), peer.answers

    bound = COPIES * POLICY.max_body + sizes.nonces * NONCE + ANYWAY
    with served(backend=backend) as server:
        return measured("10 MB nonces", server, attack, backend=backend, bound=bound)


def _batches(senders: int) -> Iterator[bytes]:
    """Calls of so many senders, as many in one request as may be."""
    for first in range(0, senders, BATCH):
        now = stamp()
        calls = [
            envelope_of(sender=f"urn:asap:agent:s{number}", now=now)
            for number in range(first, min(first + BATCH, senders))
        ]
        yield post(b"[" + b",".join(calls) + b"]")


def many_senders_limited(backend: str, sizes: Sizes, told: Told) -> Report:
    """Every call from a sender of its own, all from one address with a share."""

    def attack(server: Server) -> tuple[int, Counter[str]]:
        peer = Peer(server, calls=BATCH)
        sent = peer.send_all(_batches(sizes.senders), bunch=1, told=lambda sent: told(sent * BATCH))
        return sent * BATCH, peer.answers

    # One address has one record, however many names it uses.
    bound = POLICY.connections_per_peer * CONNECTION + SHARE + ANYWAY
    with served(backend=backend, limits=LIMITS) as server:
        return measured(
            "senders from one address, limits on", server, attack, backend=backend, bound=bound,
            pause=PAUSE_WITHIN_LIMITS,
        )  # fmt: skip


def many_senders(backend: str, sizes: Sizes, told: Told) -> Report:
    """The same where the address has no share: half of the nonces' room is for those who prove nothing."""

    def attack(server: Server) -> tuple[int, Counter[str]]:
        peer = Peer(server)
        sent = peer.send_all(_batches(sizes.senders), bunch=1, told=lambda sent: told(sent * BATCH))
        return sent * BATCH, peer.answers

    bound = min(sizes.senders, POLICY.nonce_capacity // 2) * NONCE + ANYWAY
    with served(backend=backend) as server:
        return measured("senders from one address, limits off", server, attack, backend=backend, bound=bound)


def many_peers(backend: str, sizes: Sizes, told: Told) -> Report:
    """Every call from an address of its own, as a proxy tells it."""

    def attack(server: Server) -> tuple[int, Counter[str]]:
        peer = Peer(server)
        calls = (
            post(envelope_of(), f"X-Forwarded-For: 10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}")
            for number in range(sizes.peers)
        )
        return peer.send_all(calls, told=told), peer.answers

    shares = min(sizes.peers, POLICY.limiter_capacity) * SHARE
    nonces = min(sizes.peers, POLICY.nonce_capacity // 2) * NONCE
    with served("--trusted-proxy", ATTACKER, backend=backend, limits=LIMITS) as server:
        return measured(
            "addresses, as a proxy tells", server, attack, backend=backend, bound=shares + nonces + ANYWAY,
            pause=PAUSE_WITHIN_LIMITS,
        )  # fmt: skip


def _gzip_bomb(size: int) -> bytes:
    """10 MB of gzip (RFC 1952) that unfolds a thousandfold: the same piece over and over, never read to its end."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = deflate.compress(bytes(100 * MB)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08" + bytes(6) + b"\xff" + (piece * (size // len(piece) + 1))[: size - 10]


def _brotli_bomb(size: int) -> bytes:
    """Brotli (RFC 7932) that unfolds to 10 GB and more, as large as wanted: one piece, over and over."""
    compressor = brotli.Compressor(quality=5, lgwin=24)
    first = compressor.process(bytes(100 * MB)) + compressor.flush()
    piece = compressor.process(bytes(100 * MB)) + compressor.flush()
    return bytes(first + piece * (size // len(piece) + 1))


def bombs(backend: str, sizes: Sizes, told: Told) -> Report:
    """10 MB of gzip and 100 kB of brotli, each of which unfolds to 10 GB."""
    coded = {"gzip": _gzip_bomb(10 * MB), "br": _brotli_bomb(100_000)}

    def attack(server: Server) -> tuple[int, Counter[str]]:
        peer = Peer(server)
        requests = [post(bomb, f"Content-Encoding: {coding}") for coding, bomb in coded.items()] * (5 * sizes.odd)
        return peer.send_all(requests, bunch=1, told=told), peer.answers

    # What was inflated so far, put together; and what came.
    with served(backend=backend) as server:
        return measured("bombs, to 10 GB", server, attack, backend=backend, bound=3 * POLICY.max_body + ANYWAY)


def slow_bodies(backend: str, sizes: Sizes, told: Told) -> Report:
    """Bodies that come a byte a second, until they've taken too long."""

    def attack(server: Server) -> tuple[int, Counter[str]]:
        # From as many addresses as it takes to have so many connections.
        per_address = POLICY.connections_per_peer // 2
        peers = [Peer(server, f"127.0.1.{number + 1}") for number in range(-(-sizes.slow // per_address))]
        connections = [
            (peers[number // per_address], peers[number // per_address].connect()) for number in range(sizes.slow)
        ]
        for _, connection in connections:
            connection.sendall(b"POST /asap HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
        left, until = dict(enumerate(connections)), time.monotonic() + 60
        while left and time.monotonic() < until:
            for number, (peer, connection) in list(left.items()):
                if select.select([connection], [], [], 0)[0]:
                    peer.read_answers(connection, 1)
                    del left[number]
                else:
                    connection.sendall(b" ")
            told(sizes.slow - len(left))
            time.sleep(1)
        for _, connection in connections:
            connection.close()
        return sizes.slow, sum((peer.answers for peer in peers), Counter())

    with served(backend=backend, body_timeout=2.0) as server:
        return measured("slow bodies", server, attack, backend=backend, bound=sizes.slow * CONNECTION + ANYWAY)


def half_open(backend: str, sizes: Sizes, told: Told) -> Report:
    """Connections that say nothing, or half a head, in turn; many more than there are places."""

    def attack(server: Server) -> tuple[int, Counter[str]]:
        # Addresses enough that `connections_per_peer` stops none of them.
        per_address = max(sizes.places // 20, 1)
        opened: list[socket.socket] = []
        for number in range(sizes.half_open):
            address = number // per_address
            connection = Peer(server, f"127.0.{2 + address // 250}.{1 + address % 250}").connect()
            if number % 2:
                connection.sendall(b"POST /asap HTTP/1.1\r\nHost: a\r\n")
            opened.append(connection)
            told(number + 1)
        time.sleep(1)  # and they stay
        for connection in opened:
            connection.close()
        return sizes.half_open, Counter()

    bound = min(sizes.half_open, sizes.places) * CONNECTION + ANYWAY
    policy: dict[str, Any] = {"max_connections": sizes.places, "idle_timeout": 600.0, "head_timeout": 600.0}
    with served(backend=backend, **policy) as server:
        return measured("half-open connections", server, attack, backend=backend, bound=bound)


def unread_answers(backend: str, sizes: Sizes, told: Told) -> Report:
    """Callers within all shares, each of whom has 8 MB echoed, reads nothing, and leaves in the end."""
    large = f'{{"text":"{"x" * 8 * MB}"}}'

    def attack(server: Server) -> tuple[int, Counter[str]]:
        # From as many addresses as it takes, and no quicker than each may ask.
        per_address = POLICY.connections_per_peer * 3 // 4
        waiting: list[socket.socket] = []
        try:
            for number in range(sizes.unread):
                waiting.append(Peer(server, f"127.0.1.{number // per_address + 1}").connect(window=4_096))
                waiting[-1].sendall(post(envelope_of(given=large)))
                told(number + 1)
                time.sleep(0.1)
            honest = Peer(server)
            honest.send_all([post(envelope_of(given=large))])
            time.sleep(1)
        finally:
            for connection in waiting:
                connection.close()
        return sizes.unread, honest.answers

    bound = POLICY.max_answers + (COPIES // 2) * 8 * MB + sizes.unread * CONNECTION
    with served(backend=backend, limits=LIMITS) as server:
        return measured(
            "answers that nobody reads", server, attack, backend=backend, bound=bound, pause=PAUSE_WITHIN_LIMITS
        )


# By name, functions that make them: they are tens of megabytes.
ODD: Final[dict[str, Callable[[], str]]] = {
    "arrays 10^6 deep": lambda: "[" * 10**6 + "]" * 10**6,
    "objects 10^6 deep": lambda: '{"a":' * 10**6 + "1" + "}" * 10**6,
    "brackets that never close": lambda: "[" * 10**6,
    "10^6 digits": lambda: "9" * 10**6,
    "10^6 decimals": lambda: "0." + "9" * 10**6,
    "1e400": lambda: "1e400",
    "1e-400": lambda: "1e-400",
    "a huge exponent": lambda: "1e" + "9" * 10**6,
    "minus a huge exponent": lambda: "-1e-" + "9" * 10**6,
    "a key of 9 MB": lambda: '{"' + "k" * 9 * MB + '":0}',
    "10^6 keys": lambda: "{" + ",".join(f'"{number:x}":0' for number in range(10**6)) + "}",
    "10^6 times one key": lambda: "{" + ",".join(['"a":0'] * 10**6) + "}",
    "10^6 objects of one": lambda: "[" + ",".join(['{"":0}'] * 10**6) + "]",
    "3 * 10^6 empty ones": lambda: "[" + ",".join(["{}"] * (3 * 10**6)) + "]",
    "10^6 escapes": lambda: '"' + "\\u0041" * 10**6 + '"',
    "half a surrogate": lambda: '"\\ud800"',
}


def odd_json(backend: str, sizes: Sizes, told: Told) -> Report:
    """JSON that's deep, long, wide, or says what no number can."""

    def attack(server: Server) -> tuple[int, Counter[str]]:
        peer = Peer(server)
        bodies = (post(envelope_of(given=f'{{"x":{made()}}}')) for _ in range(sizes.odd) for made in ODD.values())
        return peer.send_all(bodies, bunch=1, told=told), peer.answers

    with served(backend=backend) as server:
        return measured(
            "JSON deep, wide, odd", server, attack, backend=backend, bound=PARSED * POLICY.max_body + ANYWAY
        )


CASES: Final = (
    long_nonces,
    many_senders_limited,
    many_senders,
    many_peers,
    bombs,
    slow_bodies,
    unread_answers,
    half_open,
    odd_json,
)
