"""Decides whether a message is sent again after a failed attempt, and when (docs/wire.md §9.3)."""

from enum import Enum
from typing import Final, assert_never

from attrs import field, frozen, validators

from asap_core.errors import GATEWAY, BadReply, NoToken, RemoteError, Unreachable
from asap_core.refusals import TIMESTAMP
from asap_core.wire.rules import integer, number


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
