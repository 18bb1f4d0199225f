"""Circuit breakers: a host that keeps failing isn't asked for a while (docs/wire.md §9.5).

    CLOSED ─▶ OPEN: `threshold` failures in a row
    OPEN ─▶ HALF_OPEN: after `rest` seconds; one request, the probe, may pass
    HALF_OPEN ─▶ CLOSED if the probe succeeds, ─▶ OPEN if it fails

The end of an older request counts in any state: its success closes the breaker, and its failure opens it again.
Every permit is given back, however its request ended. Otherwise a breaker could stay half open for ever.
"""

from enum import Enum
from typing import Final, assert_never

from attrs import define, field, frozen, validators

from asap_core.clock import Instant
from asap_core.errors import GATEWAY, BadReply, RemoteError, Unreachable
from asap_core.lru import Lru
from asap_core.wire.rules import integer, number


@frozen(kw_only=True)
class BreakerPolicy:
    """When a host isn't asked any more, and for how long. The defaults are the reference's."""

    threshold: int = field(default=5, validator=integer(least=1))
    """Failures in a row that open the breaker."""
    rest: float = field(default=60.0, validator=[number(), validators.gt(0)])
    """Seconds until one request may probe whether the host has recovered."""


# Seconds to wait while another caller's probe is under way: about as long as a request takes.
_PROBE: Final = 1.0


class BreakerState(Enum):
    """The state of a breaker; see the module's docstring for its transitions."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


class RequestOutcome(Enum):
    """What a request says about its host."""

    OK = "ok"
    FAILED = "failed"
    ABANDONED = "abandoned"
    """Nothing: it was cancelled, or refused for a reason of its own."""


@define(eq=False)
class Permit:
    """Permission for one request, to be given back exactly once.

    probe: the request finds out whether the host has recovered.
    """

    probe: bool
    given_back: bool = False


@frozen
class BreakerOpen:
    """The breaker is open. A probe may be allowed in `retry_after` seconds."""

    retry_after: float


class Breaker:
    """The breaker of one host. Its time is monotonic."""

    def __init__(self, policy: BreakerPolicy | None = None) -> None:
        policy = BreakerPolicy() if policy is None else policy
        self._threshold = policy.threshold
        self._rest = policy.rest
        self._failures = 0
        self._opened: Instant | None = None
        self._probing = False

    @property
    def pristine(self) -> bool:
        """Whether it's in the state of a new one, so that it needn't be stored."""
        return self._failures == 0 and self._opened is None and not self._probing

    def state(self, *, now: Instant) -> BreakerState:
        """Return its state."""
        if self._opened is None:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if now >= self._opened + self._rest else BreakerState.OPEN

    def _until_probe(self, now: Instant) -> float:
        opened = now if self._opened is None else self._opened
        return opened + self._rest - now

    def ask(self, *, now: Instant) -> Permit | BreakerOpen:
        """Ask for permission to send a request."""
        state = self.state(now=now)
        match state:
            case BreakerState.CLOSED:
                return Permit(probe=False)
            case BreakerState.OPEN:
                return BreakerOpen(self._until_probe(now))
            case BreakerState.HALF_OPEN if self._probing:
                # Another caller's probe is under way.
                return BreakerOpen(_PROBE)
            case BreakerState.HALF_OPEN:
                self._probing = True
                return Permit(probe=True)
            case _:
                assert_never(state)

    def give_back(self, permit: Permit, outcome: RequestOutcome, *, now: Instant) -> None:
        """Give a permit back with its request's outcome. Does nothing if it was given back before."""
        if permit.given_back:
            return
        permit.given_back = True
        if permit.probe:
            self._probing = False
        match outcome:
            case RequestOutcome.OK:
                self._failures, self._opened = 0, None
            case RequestOutcome.FAILED:
                self._failures += 1
                # A failed probe too: `_failures` is still at the threshold, unless an older request closed the breaker.
                if self._failures >= self._threshold:
                    self._opened = now
            case RequestOutcome.ABANDONED:
                pass
            case _:
                assert_never(outcome)


# Some 200 bytes each, and only for hosts that fail.
_MOST: Final = 1_000
# Statuses of the agent's own answers: from 500 on they say that it failed, but 503 is a deliberate refusal.
_BROKEN: Final = 500
_BUSY: Final = 503


def request_outcome(error: BaseException | None) -> RequestOutcome:
    """Classify how a request ended; None means with a reply.

    FAILED: no answer in time, or a proxy's answer that there was none (502, 503, 504).
    OK: a reply, or the agent's own refusal. One bad request must not open the breaker for others.
    ABANDONED: everything else. Cancellations and a lack of free connections don't concern the host. A 500, a filter's
    page or an unreadable answer may be caused by one message, whose sender could then block the host for all users of
    this client.
    """
    match error:
        case None:
            return RequestOutcome.OK
        case RemoteError(own=True):
            return RequestOutcome.OK if error.status < _BROKEN or error.status == _BUSY else RequestOutcome.ABANDONED
        case RemoteError() | BadReply():
            return RequestOutcome.FAILED if error.status in GATEWAY else RequestOutcome.ABANDONED
        case Unreachable(crowded=False):
            return RequestOutcome.FAILED
        case _:
            return RequestOutcome.ABANDONED


class Breakers:
    """The breakers of one client, by origin. Only those of failing hosts are stored."""

    def __init__(self, policy: BreakerPolicy, *, most: int = _MOST) -> None:
        self._policy = policy
        # The evicted one is the one that nothing was heard of for longest; its host is asked again as a new one.
        self._breakers: Lru[str, Breaker] = Lru(most)

    def __len__(self) -> int:
        """Return how many breakers are stored."""
        return len(self._breakers)

    def ask(self, origin: str, *, now: Instant) -> Permit | BreakerOpen:
        """Ask for permission to send a request to `origin`."""
        breaker = self._breakers.peek(origin)
        return Permit(probe=False) if breaker is None else breaker.ask(now=now)

    def give_back(self, origin: str, permit: Permit, outcome: RequestOutcome, *, now: Instant) -> None:
        """Give a permit back with its request's outcome."""
        breaker = self._breakers.peek(origin)
        breaker = Breaker(self._policy) if breaker is None else breaker
        breaker.give_back(permit, outcome, now=now)
        if breaker.pristine:
            self._breakers.pop(origin)
        else:
            self._breakers.put(origin, breaker)
