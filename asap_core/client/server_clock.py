"""What time it is at a server that said so, for clients whose own clock is wrong.

What is learned is anchored to monotonic time: a local clock that is set right meanwhile, or set wrong once more,
changes nothing. It's learned from a refusal of a timestamp alone, which the caller has authenticated (TLS, loopback).
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from asap_core.clock import Instant, Moment, WallTime
from asap_core.errors import RemoteError
from asap_core.lru import Lru
from asap_core.net.outbound import Allowed
from asap_core.net.urls import is_loopback
from asap_core.refusals import TIMESTAMP
from asap_core.wire.rules import parse_timestamp

# Servers remembered, some 200 bytes each; past it the oldest is forgotten, and learned again when it refuses.
_MAX_SERVERS: Final = 1_000
# Quartz drifts a second in a day; a server's clock that was wrong itself may have been set right since.
_KEPT_SECONDS: Final = 3_600.0
# No server's clock is before the protocol (2025) or after 2100: such a date is a mistake, or meant to make one of ours.
_EARLIEST: Final = 1_735_689_600.0
_LATEST: Final = 4_102_444_800.0


def read_server_time(details: Mapping[str, object]) -> WallTime | None:
    """Read `server_time` from the details of a refusal; None where there's none, or none that a clock could show."""
    value = details.get("server_time")
    found = parse_timestamp(value) if isinstance(value, str) else None
    seconds = found.timestamp() if isinstance(found, datetime) else 0.0
    return WallTime(seconds) if _EARLIEST < seconds < _LATEST else None


def server_time_in(error: Exception, asked: Allowed) -> WallTime | None:
    """The server's time, where `error` is its refusal of ours and it's known to be the server that says so.

    That is over TLS, or on this machine: anybody else on the way could move our clock.
    """
    if not isinstance(error, RemoteError) or error.taxonomy != TIMESTAMP.taxonomy:
        return None
    return read_server_time(error.details) if asked.encrypted or is_loopback(asked.host) else None


class ServerClocks:
    """The wall time at each of some servers, by origin."""

    def __init__(self) -> None:
        # The wall time that the server had at the zero of our monotonic clock, and when that was learned.
        self._learned: Lru[str, tuple[float, Instant]] = Lru(_MAX_SERVERS)

    def __len__(self) -> int:
        """How many servers' times are known."""
        return len(self._learned)

    def learn(self, origin: str, server_time: WallTime, *, now: Instant) -> None:
        """This server said that it's `server_time` just now."""
        self._learned.put(origin, (server_time - now, now))

    def wall(self, origin: str, *, at: Moment) -> WallTime:
        """What time it is there: what it said last, carried on, or else the local clock's, `at.wall`."""
        zero, learned = self._learned.peek(origin) or (None, at.now)
        if zero is None:
            return at.wall
        if at.now - learned > _KEPT_SECONDS:
            self._learned.pop(origin)
            return at.wall
        return WallTime(zero + at.now)
