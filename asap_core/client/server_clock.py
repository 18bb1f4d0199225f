"""Learns the time of servers that refused a timestamp, for clients whose own clock is wrong.

A server's time is stored relative to the monotonic clock, so later changes of the local wall clock don't matter. It's
learned only from a refusal that is authenticated by TLS or comes from this machine.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from asap_core.clock import Instant, Moment, WallTime
from asap_core.errors import RemoteError
from asap_core.lru import Lru
from asap_core.net.outbound import Allowed
from asap_core.refusals import TIMESTAMP
from asap_core.wire.rules import parse_timestamp

# Some 200 bytes each. Beyond that the oldest is forgotten, and learned again from its next refusal.
_MAX_SERVERS: Final = 1_000
# A quartz clock drifts a second in a day. A server whose own clock was wrong may have corrected it since.
_KEPT_SECONDS: Final = 3_600.0
# 2025, when the protocol was published, to 2100. Another date is a mistake, or an attempt to move this client's clock.
_EARLIEST: Final = 1_735_689_600.0
_LATEST: Final = 4_102_444_800.0


def read_server_time(details: Mapping[str, object]) -> WallTime | None:
    """Read `server_time` from the details of a refusal. Returns None if it's missing, malformed or implausible."""
    value = details.get("server_time")
    found = parse_timestamp(value) if isinstance(value, str) else None
    seconds = found.timestamp() if isinstance(found, datetime) else 0.0
    return WallTime(seconds) if _EARLIEST < seconds < _LATEST else None


def server_time_in(error: Exception, asked: Allowed) -> WallTime | None:
    """Return the server's time if `error` is an authenticated refusal of a timestamp, else None.

    asked: the request's URL. Without TLS, and not on this machine, anybody on the way could forge the refusal.
    """
    if not isinstance(error, RemoteError) or error.taxonomy != TIMESTAMP.taxonomy:
        return None
    return read_server_time(error.details) if asked.is_confidential else None


class ServerClocks:
    """The known times of servers, by origin."""

    def __init__(self) -> None:
        # The server's wall time at zero of the local monotonic clock, and when it was learned.
        self._learned: Lru[str, tuple[float, Instant]] = Lru(_MAX_SERVERS)

    def __len__(self) -> int:
        """Return how many servers' times are known."""
        return len(self._learned)

    def learn(self, origin: str, server_time: WallTime, *, now: Instant) -> None:
        """This server said that it's `server_time` just now."""
        self._learned.put(origin, (server_time - now, now))

    def wall(self, origin: str, *, at: Moment) -> WallTime:
        """Return the server's estimated time. Returns `at.wall` if its time isn't known."""
        zero, learned = self._learned.peek(origin) or (None, at.now)
        if zero is None:
            return at.wall
        if at.now - learned > _KEPT_SECONDS:
            self._learned.pop(origin)
            return at.wall
        return WallTime(zero + at.now)
