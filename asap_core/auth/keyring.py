"""Which key set serves now, and when the provider may be asked for another: whoever sends tokens doesn't decide that.

    kept, fresh ─▶ use it        past `fresh_for` ─▶ one caller asks, all others use it      past `stale_for` ─▶ nothing
    key unknown ─▶ ask again, at most once per cool-down; whoever comes while it's asked waits for the same answer

Rule of this module: a forged signature asks for nothing, a forged key id at most once per cool-down (fault 20).
"""

from enum import Enum
from typing import Final

from attrs import define, field, frozen

from asap_core.auth.claims import TokenPolicy
from asap_core.auth.jwks import KeySet
from asap_core.client.flights import FIRST_PAUSE, LONGEST_PAUSE, BackOff, Flights, doubled
from asap_core.clock import Instant


@frozen(eq=False)
class FetchKeys:
    """Fetch the key set; compared by identity.

    again: past what is cached, since a key is missing there
    patience: how many seconds the answer is worth waiting for; None: as long as a fetch may take
    """

    again: bool
    patience: float | None


class NoFetch(Enum):
    """Why the provider isn't asked."""

    UNKNOWN = "unknown"
    """It was, not long ago, and it answered: there's no such key."""
    UNREACHABLE = "unreachable"
    """It was, not long ago, and it didn't answer."""


# A slow provider gets longer each time, up to 32 times.
_MOST_PATIENCE: Final = 32.0
_NEVER: Final = Instant(float("-inf"))


@define(eq=False)
class KeyRing:
    """The keys of one issuer. One event loop owns it; its methods return at once."""

    policy: TokenPolicy
    keys: KeySet | None = None
    _vouched: Instant = _NEVER
    _next_refresh: Instant = _NEVER
    _next_again: Instant = _NEVER
    # One flight at most: all callers for whom keys are being fetched.
    _flights: Flights[None, FetchKeys] = field(factory=Flights, init=False)
    _failures: BackOff[None, None] = field(init=False)

    @_failures.default
    def _make_back_off(self) -> BackOff[None, None]:
        return BackOff(most=1, first=FIRST_PAUSE, longest=min(self.policy.cool_down, LONGEST_PAUSE))

    @property
    def waiting(self) -> int:
        """How many callers wait for keys."""
        return self._flights.waiting

    def usable(self, *, now: Instant) -> KeySet | None:
        """The keys, if they may serve now: fresh, or not fresh and the provider out of reach or being asked."""
        age = now - self._vouched
        return self.keys if age < self.policy.fresh_for + self.policy.stale_for else None

    def due(self, *, now: Instant) -> FetchKeys | NoFetch | None:
        """Whether keys must be asked for before any token is looked at. None: what's kept does."""
        if now - self._vouched < self.policy.fresh_for:
            return None
        old = self.usable(now=now)
        if old is None:
            # Whoever waits joins one question; a failed one isn't repeated at once.
            if not self.waiting and now < self._next_refresh:
                return NoFetch.UNREACHABLE
            return self._join(again=False, patience=None)
        if now < self._next_refresh:
            return None
        # One caller asks; until it's answered, or the cool-down is over, the others use what there is.
        self._next_refresh = Instant(now + self.policy.cool_down)
        # A provider that's merely slow gets longer each time, or it would never be heard.
        last, patience = self._failures.last(None), self.policy.patience
        longer = doubled(patience, 0 if last is None else last.in_a_row, most=patience * _MOST_PATIENCE)
        return self._join(again=False, patience=longer)

    def missing(self, *, now: Instant) -> FetchKeys | NoFetch:
        """A token names a key that isn't in the set."""
        if self.waiting:
            # As whoever asked first: it may come to the fetch before that one does.
            return self._join(again=True, patience=None)
        if now < self._next_again:
            return NoFetch.UNREACHABLE if len(self._failures) else NoFetch.UNKNOWN
        self._next_again = Instant(now + self.policy.cool_down)
        return self._join(again=True, patience=None)

    def fetched(self, fetch: FetchKeys, keys: KeySet, *, age: float, now: Instant) -> None:
        """The provider answered, `age` seconds ago. All who waited for it may say so."""
        self._land(fetch)
        vouched = Instant(now - age)
        # An answer that comes after others gave up on it is news all the same.
        if vouched >= self._vouched:
            self.keys, self._vouched = keys, vouched
            self._failures.forget(None)
            # What it has just said it needn't say again for a key that it doesn't have.
            self._next_again = max(self._next_again, Instant(vouched + self.policy.cool_down))

    def failed(self, fetch: FetchKeys, *, now: Instant) -> None:
        """It didn't, or with something else."""
        if self._land(fetch):
            self._fail(now=now)

    def abandoned(self, fetch: FetchKeys, *, now: Instant) -> None:
        """Who waited left. Whoever waits with it goes on; where nobody does, it counts as no answer.

        Else who sends forged tokens and hangs up would have the provider asked for each.
        """
        if self._flights.flight_of(fetch) is not None:
            self._flights.leave(fetch)
            if not self.waiting:
                self._fail(now=now)

    def _join(self, *, again: bool, patience: float | None) -> FetchKeys:
        fetch = FetchKeys(again, patience)
        # One too many isn't counted as waiting; it fetches all the same, from the cache that all share.
        self._flights.join(None, fetch)
        return fetch

    def _land(self, fetch: FetchKeys) -> bool:
        """End the flight that `fetch` waits for. Returns whether it was still under way."""
        flight = self._flights.flight_of(fetch)
        return flight is not None and bool(self._flights.land(flight))

    def _fail(self, *, now: Instant) -> None:
        soon = self._failures.failed(None, None, now=now).until
        # While nobody gets in, ask soon, then less and less often; while older keys serve, after the cool-down.
        self._next_refresh = soon if self.usable(now=now) is None else Instant(now + self.policy.cool_down)
        self._next_again = max(self._next_again, self._next_refresh)
