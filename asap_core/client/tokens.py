"""Access tokens, kept by where and for what they were issued, fetched once however many need them.

A token for one scope is never handed out for another (fault 28). Refresh is ahead of expiry, by a margin that's never
more than a part of the token's life, so that a short-lived one isn't fetched on every call. Secrets aren't in any repr.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Generic, TypeVar, assert_never

from attrs import field, frozen

from asap_core.client.coalesce import Coalescer, Crowded, Flight, Joined, Leading
from asap_core.clock import Instant

__all__ = [
    "Issued",
    "NotIssued",
    "Token",
    "TokenEffect",
    "TokenFailed",
    "TokenGiven",
    "TokenKey",
    "TokenLead",
    "Tokens",
]

W = TypeVar("W", bound=Hashable)

# The reference refreshes 30 s ahead; more than a fifth of its life would make a token of two minutes mostly unused.
MARGIN: Final = 30.0
MARGIN_PART: Final = 0.2
# One per peer and scope; a process that talks to more is a gateway, and fetches again.
MAX_TOKENS: Final = 1_000


@frozen
class TokenKey:
    """What a token was issued for."""

    endpoint: str
    client_id: str
    scope: str = ""


@frozen
class Token:
    """An access token and when it ends, on the monotonic clock."""

    value: str = field(repr=False)
    fetched: Instant
    expires: Instant

    def is_fresh(self, now: Instant) -> bool:
        """Whether it's good and not yet due for a refresh."""
        return now < self.expires - min(MARGIN, MARGIN_PART * (self.expires - self.fetched))


@frozen
class Issued:
    """The endpoint issued a token, good for `lifetime` seconds."""

    value: str = field(repr=False)
    lifetime: float


@frozen
class NotIssued:
    """The endpoint refused, or could not be reached."""

    error: Exception


@frozen
class TokenGiven(Generic[W]):
    """Give this token to this waiter."""

    waiter: W
    token: Token


@frozen
class TokenFailed(Generic[W]):
    """Tell this waiter that there's none."""

    waiter: W
    error: Exception


@frozen
class TokenLead(Generic[W]):
    """This waiter fetches a token now, and settles the flight."""

    waiter: W
    flight: Flight[TokenKey, W]


TokenEffect = TokenGiven[W] | TokenFailed[W] | TokenLead[W]


class Tokens(Generic[W]):
    """The tokens of one client."""

    def __init__(self) -> None:
        self._flights: Coalescer[TokenKey, W] = Coalescer()
        self._tokens: OrderedDict[TokenKey, Token] = OrderedDict()

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._tokens)

    def lookup(self, key: TokenKey, waiter: W, *, now: Instant) -> tuple[TokenEffect[W], ...]:
        """Ask for a token: have it, lead a fetch, or (nothing) wait for the one under way."""
        token = self._tokens.get(key)
        if token is not None and (token.is_fresh(now) or (now < token.expires and self._flights.flight(key))):
            # Due for a refresh that's under way already: the old one is good until then.
            self._tokens.move_to_end(key)
            return (TokenGiven(waiter, token),)
        joined = self._flights.join(key, waiter)
        match joined:
            case Leading():
                return (TokenLead(waiter, joined.flight),)
            case Joined():
                return ()
            case Crowded():
                return (TokenFailed(waiter, RuntimeError("more tokens are being fetched than is allowed at once")),)
            case _:
                assert_never(joined)

    def settle(
        self, flight: Flight[TokenKey, W], outcome: Issued | NotIssued, *, now: Instant
    ) -> tuple[TokenEffect[W], ...]:
        """The fetch is over: one answer for all who wait. A late one changes nothing."""
        if not self._flights.is_live(flight):
            return ()
        waiters = self._flights.land(flight)
        match outcome:
            case Issued(value, lifetime):
                token = Token(value, now, Instant(now + max(lifetime, 0.0)))
                self._keep(flight.key, token)
                return tuple(TokenGiven(waiter, token) for waiter in waiters)
            case NotIssued(error):
                old = self._tokens.get(flight.key)
                if old is not None and now < old.expires:
                    # Refreshing ahead failed: the old one is still good.
                    return tuple(TokenGiven(waiter, old) for waiter in waiters)
                return tuple(TokenFailed(waiter, error) for waiter in waiters)
            case _:
                assert_never(outcome)

    def abandon(self, waiter: W) -> tuple[TokenEffect[W], ...]:
        """`waiter` was cancelled; idempotent. Where it led, the next in line leads."""
        leading = self._flights.leave(waiter)
        return () if leading is None else (TokenLead(leading.waiter, leading.flight),)

    def drop(self, key: TokenKey, token: Token) -> None:
        """The peer refused exactly this token: don't hand it out again. A newer one stays."""
        if self._tokens.get(key) == token:
            del self._tokens[key]

    def _keep(self, key: TokenKey, token: Token) -> None:
        self._tokens[key] = token
        self._tokens.move_to_end(key)
        if len(self._tokens) > MAX_TOKENS:
            self._tokens.popitem(last=False)
