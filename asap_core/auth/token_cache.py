"""Access tokens of a client, cached by what they were issued for, and fetched once for all who need them.

Rule 1: a token for one scope is never used for another. Secrets aren't in any repr.

Rule 2: a token is renewed ahead of its end, by a margin that is a part of its lifetime at most, so that short-lived
tokens aren't fetched with every call. While the endpoint fails, a token that is still good serves, and the endpoint is
asked less and less often.
"""

from collections.abc import Hashable
from typing import Final, Generic, TypeVar, assert_never

from attrs import field, frozen

from asap_core.clock import Instant, Moment, WallTime
from asap_core.errors import NotAllowed, NoToken
from asap_core.flights import LONGEST_PAUSE, BackOff, Crowded, Failure, Flight, Flights, Joined, Leading, doubled
from asap_core.lru import Lru
from asap_core.net.urls import without_credentials

W = TypeVar("W", bound=Hashable)

# The reference renews 30 s ahead. A fifth of the lifetime at most: a token of two minutes would be mostly unused.
MARGIN: Final = 30.0
MARGIN_PART: Final = 0.2
# One per peer and scope; a process that talks to more peers is a gateway, and fetches some tokens again.
MAX_TOKENS: Final = 1_000
# How long a caller waits for a new token while the old one is good; longer after each failure.
_PATIENCE: Final = 1.0
# A peer that refuses every token would cause two fetches with each message.
DROP_PAUSE: Final = 10.0


NoTokenReason = NoToken | NotAllowed
"""Why there is no token."""


@frozen
class TokenKey:
    """What a token was issued for: endpoint, client, scope, audience, and the key that it is bound to, if any."""

    endpoint: str
    client_id: str
    scope: str = ""
    audience: str = ""
    bound: str = ""


@frozen
class Token:
    """An access token.

    due: when it is to be renewed
    expires, ends: when it ends, on whichever clock that comes first: monotonic time may stand still while a machine
        sleeps, wall time may be set
    """

    value: str = field(repr=False)
    due: Instant
    expires: Instant
    ends: WallTime

    def is_good(self, *, at: Moment) -> bool:
        """Whether the token hasn't ended."""
        return at.now < self.expires and at.wall < self.ends

    def is_due(self, *, at: Moment) -> bool:
        """Whether the token is to be renewed."""
        return at.now >= self.due or at.wall >= self.ends - (self.expires - self.due)


@frozen
class Issued:
    """The endpoint issued a token, good for `lifetime` seconds."""

    value: str = field(repr=False)
    lifetime: float


@frozen
class NotIssued:
    """The endpoint refused, or couldn't be reached.

    retry_after: seconds for which the endpoint asks to be left alone
    crowded: it wasn't asked, since this client had no free connection; that isn't remembered as its failure
    """

    error: NoTokenReason
    retry_after: float | None = None
    crowded: bool = False


@frozen
class TokenGiven(Generic[W]):
    """Give this token to this waiter."""

    waiter: W
    token: Token


@frozen
class TokenFailed(Generic[W]):
    """Tell this waiter that there is no token; the endpoint may be asked again in `next_try` seconds."""

    waiter: W
    error: NoTokenReason
    next_try: float = 0.0


@frozen
class TokenLead(Generic[W]):
    """This waiter must fetch a token, and settle the flight.

    patience: seconds to wait for it, since the old token is good meanwhile; after that, `outwait`. None: as long as it
        takes
    """

    waiter: W
    flight: Flight[TokenKey, W]
    patience: float | None = None


TokenEffect = TokenGiven[W] | TokenFailed[W] | TokenLead[W]


class TokenCache(Generic[W]):
    """The tokens of one client. One event loop owns it; its methods return at once."""

    def __init__(self) -> None:
        self._flights: Flights[TokenKey, W] = Flights()
        self._tokens: Lru[TokenKey, Token] = Lru(MAX_TOKENS)
        self._failures: BackOff[TokenKey, NoTokenReason] = BackOff(most=MAX_TOKENS)
        self._dropped: Lru[TokenKey, Instant] = Lru(MAX_TOKENS)

    def __len__(self) -> int:
        """How many tokens are cached."""
        return len(self._tokens)

    @property
    def waiting(self) -> int:
        """How many wait for a token, those who fetch included."""
        return self._flights.waiting

    def lookup(self, key: TokenKey, waiter: W, *, at: Moment) -> tuple[TokenEffect[W], ...]:
        """Ask for a token: get it, lead a fetch, or (no effect) wait for the fetch under way."""
        token, failure = self._good(key, at=at), self._failures.current(key, now=at.now)
        if token is not None and (
            not token.is_due(at=at) or failure is not None or self._flights.flight(key) is not None
        ):
            # If it is due, another is being fetched already, or the endpoint fails; this one is still good.
            self._tokens.touch(key)
            return (TokenGiven(waiter, token),)
        if failure is not None:
            return (TokenFailed(waiter, failure.cause, failure.until - at.now),)
        joined = self._flights.join(key, waiter)
        match joined:
            case Leading():
                return (TokenLead(waiter, joined.flight, self._patience(key, token, now=at.now)),)
            case Joined():
                return ()
            case Crowded():
                crowded = "more tokens are being fetched than is allowed at once"
                return (TokenFailed(waiter, NoToken(without_credentials(key.endpoint), crowded)),)
            case _:
                assert_never(joined)

    def _good(self, key: TokenKey, *, at: Moment) -> Token | None:
        token = self._tokens.peek(key)
        return token if token is not None and token.is_good(at=at) else None

    def _patience(self, key: TokenKey, old: Token | None, *, now: Instant) -> float | None:
        # A slow endpoint gets more time after each failure, or its answer would never be awaited.
        last = self._failures.last(key)
        patience = doubled(_PATIENCE, 0 if last is None else last.in_a_row, most=LONGEST_PAUSE)
        return None if old is None or old.expires - now <= patience else patience

    def settle(
        self, flight: Flight[TokenKey, W], outcome: Issued | NotIssued, *, at: Moment, jitter: float
    ) -> tuple[TokenEffect[W], ...]:
        """The fetch is over: one answer for all who wait. A late one changes nothing. `jitter` is in [0, 1)."""
        if not self._flights.is_live(flight):
            return ()
        waiters = self._flights.land(flight)
        match outcome:
            case Issued(value, lifetime):
                token = self._keep(flight.key, value, lifetime, at=at, jitter=jitter)
                return tuple(TokenGiven(waiter, token) for waiter in waiters)
            case NotIssued():
                failure = self._fail(flight.key, outcome, now=at.now, jitter=jitter)
                old = self._good(flight.key, at=at)
                if old is not None:
                    return tuple(TokenGiven(waiter, old) for waiter in waiters)
                return tuple(TokenFailed(waiter, failure.cause, failure.until - at.now) for waiter in waiters)
            case _:
                assert_never(outcome)

    def outwait(
        self, flight: Flight[TokenKey, W], error: NoTokenReason, *, at: Moment, jitter: float
    ) -> tuple[TokenEffect[W], ...]:
        """The leader waits no longer: it gets the old token, and the next waiter leads.

        If the old token was dropped meanwhile, the leader goes on. If nobody else waits, the fetch has failed.
        """
        if not self._flights.is_live(flight):
            return ()
        leader, old = flight.leader, self._good(flight.key, at=at)
        if old is None:
            return (TokenLead(leader, flight),)
        if len(flight.waiters) == 1:
            return self.settle(flight, NotIssued(error), at=at, jitter=jitter)
        return (TokenGiven(leader, old), *self.abandon(leader))

    def abandon(self, waiter: W) -> tuple[TokenEffect[W], ...]:
        """`waiter` was cancelled; idempotent. If it led, the next in line leads."""
        leading = self._flights.leave(waiter)
        return () if leading is None else (TokenLead(leading.waiter, leading.flight),)

    def drop(self, key: TokenKey, token: Token, *, now: Instant) -> bool:
        """Drop this token, which the peer refused. Returns whether a retry with another token may help.

        A newer token stays. At most one token is dropped in `DROP_PAUSE` seconds, so that a peer that refuses every
        token can't decide how often the endpoint is asked.
        """
        if self._tokens.peek(key) != token:
            # Another call was refused with it first: there is a newer one, or soon will be.
            return True
        paused_until = self._dropped.peek(key)
        if paused_until is not None and now < paused_until:
            return False
        self._tokens.pop(key)
        self._dropped.put(key, Instant(now + DROP_PAUSE))
        return True

    def _keep(self, key: TokenKey, value: str, lifetime: float, *, at: Moment, jitter: float) -> Token:
        life = max(lifetime, 0.0)
        # Up to twice the margin ahead, so that clients that started together don't renew together.
        margin = min(MARGIN, MARGIN_PART * life) * (1.0 + jitter)
        token = Token(value, Instant(at.now + life - margin), Instant(at.now + life), WallTime(at.wall + life))
        self._tokens.put(key, token)
        self._failures.forget(key)
        return token

    def _fail(self, key: TokenKey, outcome: NotIssued, *, now: Instant, jitter: float) -> Failure[NoTokenReason]:
        if outcome.crowded:
            return Failure(outcome.error, now, now, 0)
        return self._failures.failed(key, outcome.error, now=now, retry_after=outcome.retry_after, jitter=jitter)
