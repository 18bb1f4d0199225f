"""Hosts that keep failing are left alone for a while: a breaker for each, kept while there's anything to remember.

A permit is always given back, whatever became of its request, so that no breaker stays open for ever (fault 50).
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
    """When a host is left alone, and for how long: the reference's numbers."""

    threshold: int = field(default=5, validator=integer(least=1))
    """Failures in a row."""
    rest: float = field(default=60.0, validator=[number(), validators.gt(0)])
    """Seconds until one request finds out whether the host is back."""


class BreakerState(Enum):
    """Where a breaker is."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


class RequestOutcome(Enum):
    """How what a permit was for ended."""

    OK = "ok"
    FAILED = "failed"
    ABANDONED = "abandoned"
    """It says nothing about the host: cancelled, or refused for the request's own sake (faults 50 and 53)."""


@define(eq=False)
class Permit:
    """Leave to make one request; given back exactly once. `probe`: the one that finds out whether the host is back."""

    probe: bool
    given_back: bool = False


@frozen
class BreakerOpen:
    """The breaker is open; it may let a probe through in `retry_after` seconds."""

    retry_after: float


class Breaker:
    """Lets requests to one host through until some fail in a row, then one probe after each rest.

    Time is monotonic (fault 51).
    """

    def __init__(self, policy: BreakerPolicy | None = None) -> None:
        policy = BreakerPolicy() if policy is None else policy
        self._threshold = policy.threshold
        self._rest = policy.rest
        self._failures = 0
        self._opened: Instant | None = None
        self._probing = False

    @property
    def pristine(self) -> bool:
        """Whether it's as a new one."""
        return self._failures == 0 and self._opened is None

    def state(self, *, now: Instant) -> BreakerState:
        """Where it is."""
        if self._opened is None:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if now >= self._opened + self._rest else BreakerState.OPEN

    def _until_probe(self, now: Instant) -> float:
        opened = now if self._opened is None else self._opened
        return opened + self._rest - now

    def ask(self, *, now: Instant) -> Permit | BreakerOpen:
        """Ask for leave to make a request."""
        state = self.state(now=now)
        match state:
            case BreakerState.CLOSED:
                return Permit(probe=False)
            case BreakerState.OPEN:
                return BreakerOpen(self._until_probe(now))
            case BreakerState.HALF_OPEN if self._probing:
                # Somebody is finding out; a moment is what a probe takes.
                return BreakerOpen(_PROBE)
            case BreakerState.HALF_OPEN:
                self._probing = True
                return Permit(probe=True)
            case _:
                assert_never(state)

    def give_back(self, permit: Permit, outcome: RequestOutcome, *, now: Instant) -> None:
        """Say how it ended; a second time for the same permit changes nothing."""
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
                if permit.probe or self._failures >= self._threshold:
                    self._opened = now
            case RequestOutcome.ABANDONED:
                pass
            case _:
                assert_never(outcome)


_PROBE: Final = 1.0
"""Seconds to wait while another caller's probe is under way."""
# Some 200 bytes each, and only of hosts that fail.
_MOST: Final = 1_000


def request_outcome(error: BaseException | None) -> RequestOutcome:
    """What a request that ended so says about its host; None is a reply.

    That nobody answers in time, or a proxy answers that the host doesn't (502, 503, 504), is the host's failure. The
    agent's own refusal is an answer: one bad request opens nothing for others (fault 53). Anything else says nothing:
    a cancellation; that this client had no connection to spare; a page of a filter, a 500 or an answer that can't be
    read, which one odd message may bring about, so that its sender would close the host to all who use this client.
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


_BROKEN: Final = 500
_BUSY: Final = 503


class Breakers:
    """The breakers of one client's hosts, by origin."""

    def __init__(self, policy: BreakerPolicy, *, most: int = _MOST) -> None:
        self._policy = policy
        # The evicted one is the one that nothing was heard of for longest; its host is asked again as a new one.
        self._breakers: Lru[str, Breaker] = Lru(most)

    def __len__(self) -> int:
        """How many hosts there's anything to remember of."""
        return len(self._breakers)

    def ask(self, origin: str, *, now: Instant) -> Permit | BreakerOpen:
        """Ask for leave to make a request there."""
        breaker = self._breakers.peek(origin)
        return Permit(probe=False) if breaker is None else breaker.ask(now=now)

    def give_back(self, origin: str, permit: Permit, outcome: RequestOutcome, *, now: Instant) -> None:
        """Say how it ended."""
        breaker = self._breakers.peek(origin)
        breaker = Breaker(self._policy) if breaker is None else breaker
        breaker.give_back(permit, outcome, now=now)
        if breaker.pristine:
            self._breakers.pop(origin)
        else:
            self._breakers.put(origin, breaker)
