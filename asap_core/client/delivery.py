"""Decides whether a message is sent again after a failed attempt, when (docs/wire.md §9.3), and by which clock.

The clock: a server that refuses a timestamp may state its time. That is stored relative to the monotonic clock, so
later changes of the local wall clock don't matter. It's learned only from a refusal that is authenticated by TLS or
comes from this machine.
"""

from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from typing import Final, assert_never

from attrs import field, frozen, validators

from asap_core.clock import Instant, Moment, WallTime
from asap_core.errors import GATEWAY, BadReply, NoToken, RemoteError, Unreachable
from asap_core.lru import Lru
from asap_core.net.outbound import Allowed
from asap_core.refusals import TIMESTAMP
from asap_core.wire.rules import integer, number, parse_timestamp


class Attempt(Enum):
    """How one attempt ended."""

    ANSWERED = "answered"
    """With a reply, or with a refusal that a retry can't change."""
    RECOVERABLE = "recoverable"
    """With a refusal that a retry may change (2.x `recoverable`, the agent's own 503, 429). It wasn't carried out."""
    UNSENT = "unsent"
    """Before it was sent: the agent doesn't have it."""
    LOST = "lost"
    """Without an answer, or with a proxy's: the agent may have carried it out.

    A retry is safe only with an idempotency key.
    """


_LIMITED: Final = 429


def classify_failure(error: RemoteError | Unreachable | NoToken | BadReply) -> Attempt:
    """Classify the error of a failed attempt. `docs/outbound.md` has the table."""
    match error:
        case NoToken():
            return Attempt.ANSWERED if error.refused else Attempt.UNSENT
        case Unreachable():
            return Attempt.LOST if error.sent else Attempt.UNSENT
        case _ if error.status == _LIMITED:
            # RFC 6585 §4: the limit is checked before the request is carried out.
            return Attempt.RECOVERABLE
        case BadReply():
            return Attempt.LOST if error.status in GATEWAY else Attempt.ANSWERED
        case RemoteError():
            return _classify_refusal(error)
        case _:
            assert_never(error)


def _classify_refusal(error: RemoteError) -> Attempt:
    if not error.own and error.status in GATEWAY:
        return Attempt.LOST
    # A refused timestamp is "recoverable" by a right one, but a retry would use the same wrong clock.
    recoverable = error.recoverable and error.taxonomy != TIMESTAMP.taxonomy
    return Attempt.RECOVERABLE if recoverable else Attempt.ANSWERED


@frozen(kw_only=True)
class RetryPolicy:
    """How often a message is sent again, and after which delays."""

    retries: int = field(default=2, validator=integer(least=0))
    """Attempts after the first: three in all, as the reference makes (its `max_retries` counts the first)."""
    first_delay: float = field(default=1.0, validator=[number(), validators.gt(0)])
    """Seconds before the first retry; doubled for each further one. The reference's default."""
    longest_delay: float = field(default=60.0, validator=[number(), validators.gt(0)])
    """The longest delay in seconds: the reference's cap. If a server asks for more, there is no retry."""
    spread: float = field(default=0.1, validator=number(least=0))
    """A random share of each delay, up to this one, is subtracted, so that clients don't retry at the same moment."""


@frozen
class RetryAfter:
    """Send again in `seconds`, with the same envelope id and idempotency key, a new timestamp and a new nonce."""

    seconds: float


@frozen
class GiveUp:
    """Don't send it again. `reason` says why."""

    reason: str


# Prevents an overflow: every cap is below 2**30 seconds.
_DOUBLINGS: Final = 30


def next_step(
    ended: Attempt,
    *,
    attempts: int,
    keyed: bool,
    policy: RetryPolicy,
    jitter: float,
    retry_after: float | None = None,
) -> RetryAfter | GiveUp:
    """Decide what to do after a failed attempt.

    attempts: how many were made.
    keyed: whether the message has an idempotency key that the peer honours.
    jitter: random, in [0, 1).
    retry_after: seconds that the peer asks to wait.
    """
    if ended is Attempt.ANSWERED:
        return GiveUp("it was answered")
    if ended is Attempt.LOST and not keyed:
        return GiveUp("it may have been carried out, and without an idempotency key it would be done twice")
    if attempts > policy.retries:
        return GiveUp(f"{attempts} attempts were made")
    if retry_after is not None and retry_after > policy.longest_delay:
        return GiveUp(f"it asks to wait for {retry_after:g} s, which is longer than {policy.longest_delay:g} s")
    delay = policy.first_delay * 2.0 ** min(attempts - 1, _DOUBLINGS) * (1.0 - policy.spread * jitter)
    return RetryAfter(min(max(delay, retry_after or 0.0), policy.longest_delay))


# --- servers' clocks --------------------------------------------------------------------------------------------------

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
