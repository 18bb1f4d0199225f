"""Whether a message is tried again, and when: a retry budget. Pure: jitter is a number that's passed in."""

from enum import Enum
from typing import Final, assert_never

from attrs import field, frozen, validators

from asap_core.errors import GATEWAY, BadReply, NoToken, RemoteError, Unreachable
from asap_core.refusals import TIMESTAMP
from asap_core.wire.rules import integer, number


class Attempt(Enum):
    """How one attempt ended."""

    ANSWERED = "answered"
    """With a reply, or a refusal that asking again can't change."""
    RECOVERABLE = "recoverable"
    """With a refusal that says so (2.x `recoverable`, the agent's own 503), or by a limit (429): nobody ran it."""
    UNSENT = "unsent"
    """Before it was sent: nobody has it."""
    LOST = "lost"
    """Without an answer, or with one by a proxy that doesn't know: it may have been carried out.

    Safe to repeat only under an idempotency key.
    """


_LIMITED: Final = 429


def classify_failure(error: RemoteError | Unreachable | NoToken | BadReply) -> Attempt:
    """What an attempt that failed with this error was: `docs/outbound.md` has it as a table."""
    match error:
        case NoToken():
            return Attempt.ANSWERED if error.refused else Attempt.UNSENT
        case Unreachable():
            return Attempt.LOST if error.sent else Attempt.UNSENT
        case _ if error.status == _LIMITED:
            # Whoever limits hasn't begun: RFC 6585 §4.
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
    # A timestamp is recoverable by a right one, and the next would be of the same clock.
    recoverable = error.recoverable and error.taxonomy != TIMESTAMP.taxonomy
    return Attempt.RECOVERABLE if recoverable else Attempt.ANSWERED


@frozen(kw_only=True)
class RetryPolicy:
    """How often and how long."""

    retries: int = field(default=2, validator=integer(least=0))
    """Attempts after the first: three in all, as the reference makes (its `max_retries` counts the first)."""
    first_delay: float = field(default=1.0, validator=[number(), validators.gt(0)])
    """Seconds before the first retry, doubled for each: the reference's."""
    longest_delay: float = field(default=60.0, validator=[number(), validators.gt(0)])
    """No wait is longer: the reference's cap. A server that asks for more isn't asked again (fault 48)."""
    spread: float = field(default=0.1, validator=number(least=0))
    """Up to this part of a delay is taken off, so that clients that failed together don't return together."""


@frozen
class RetryAfter:
    """Try again in `seconds`: same envelope id and idempotency key, fresh timestamp and nonce."""

    seconds: float


@frozen
class GiveUp:
    """Don't: `reason` says why."""

    reason: str


def next_step(
    ended: Attempt,
    *,
    attempts: int,
    keyed: bool,
    policy: RetryPolicy,
    jitter: float,
    retry_after: float | None = None,
) -> RetryAfter | GiveUp:
    """What to do after the attempt number `attempts` (from 1) ended so.

    `keyed`: the message has an idempotency key that the peer honours. `retry_after` is the peer's own word, in seconds.
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


# Past it only overflow waits: every cap is below 2**30 seconds.
_DOUBLINGS: Final = 30
