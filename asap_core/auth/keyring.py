"""The key set of one issuer: which one serves now, and when the provider may be asked for another.

    fresh ─▶ use it       past `fresh_for` ─▶ one caller fetches, all others use it       past `stale_for` ─▶ no keys
    unknown key ─▶ fetch again, at most once per cool-down; callers that come meanwhile wait for the same answer

Rule of this module: senders of tokens don't decide how often the provider is asked. A forged signature causes no fetch,
a forged key id at most one per cool-down.
"""

from enum import Enum
from typing import Final

from attrs import define, field, frozen

from asap_core.auth.claims import TokenPolicy
from asap_core.auth.jwks import KeySet
from asap_core.clock import Instant
from asap_core.flights import FIRST_PAUSE, LONGEST_PAUSE, BackOff, Flights, doubled


@frozen(eq=False)
class FetchKeys:
    """Fetch the key set; compared by identity.

    again: past what is cached, since a key is missing there
    patience: how many seconds the answer is worth waiting for; None: as long as a fetch may take
    """

    again: bool
    patience: float | None


class NoFetch(Enum):
    """Why the provider isn't asked now."""

    UNKNOWN = "unknown"
    """It has answered within the cool-down: there is no such key."""
    UNREACHABLE = "unreachable"
    """It was asked within the cool-down and didn't answer."""


# Patience doubles while the provider doesn't answer in time, up to 32 times the policy's.
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
        """Return the keys if they are fresh, or may serve while the provider is asked or unreachable; else None."""
        age = now - self._vouched
        return self.keys if age < self.policy.fresh_for + self.policy.stale_for else None

    def due(self, *, now: Instant) -> FetchKeys | NoFetch | None:
        """Return whether keys must be fetched before a token is judged. None: the usable ones will do."""
        if now - self._vouched < self.policy.fresh_for:
            return None
        old = self.usable(now=now)
        if old is None:
            # All callers wait for one fetch; a failed one isn't repeated at once.
            if not self.waiting and now < self._next_refresh:
                return NoFetch.UNREACHABLE
            return self._join(again=False, patience=None)
        if now < self._next_refresh:
            return None
        # This caller fetches; until that is over, or the cool-down is, the others use the keys there are.
        self._next_refresh = Instant(now + self.policy.cool_down)
        # A slow provider gets more time after each failure, or no answer would ever be awaited.
        last, patience = self._failures.last(None), self.policy.patience
        longer = doubled(patience, 0 if last is None else last.in_a_row, most=patience * _MOST_PATIENCE)
        return self._join(again=False, patience=longer)

    def missing(self, *, now: Instant) -> FetchKeys | NoFetch:
        """Return whether keys must be fetched for a token that names a key that isn't in the set."""
        if self.waiting:
            # Like the first one to wait: this caller may come to the fetch before that one does.
            return self._join(again=True, patience=None)
        if now < self._next_again:
            return NoFetch.UNREACHABLE if len(self._failures) else NoFetch.UNKNOWN
        self._next_again = Instant(now + self.policy.cool_down)
        return self._join(again=True, patience=None)

    def fetched(self, fetch: FetchKeys, keys: KeySet, *, age: float, now: Instant) -> None:
        """The provider answered, `age` seconds ago. Each caller that waited may report it.

        An answer to `fetch.again` from before the cool-down counts as a failure: the provider gave no new one.
        """
        if fetch.again and age >= self.policy.cool_down:
            self.failed(fetch, now=now)
            return
        self._land(fetch)
        vouched = Instant(now - age)
        # An answer after others gave up on it counts all the same.
        if vouched >= self._vouched:
            self.keys, self._vouched = keys, vouched
            self._failures.forget(None)
            # It needn't be asked again at once for a key that isn't in this set.
            self._next_again = max(self._next_again, Instant(vouched + self.policy.cool_down))

    def failed(self, fetch: FetchKeys, *, now: Instant) -> None:
        """The provider didn't answer, or not with a key set."""
        if self._land(fetch):
            self._fail(now=now)

    def abandoned(self, fetch: FetchKeys, *, now: Instant) -> None:
        """A caller that waited has left. The others go on waiting; if there are none, it counts as a failure.

        Otherwise a caller that sends forged tokens and hangs up would cause a fetch with each of them.
        """
        if self._flights.flight_of(fetch) is not None:
            self._flights.leave(fetch)
            if not self.waiting:
                self._fail(now=now)

    def _join(self, *, again: bool, patience: float | None) -> FetchKeys:
        fetch = FetchKeys(again, patience)
        # If the flight is full this caller isn't counted; it fetches all the same, from the cache that all share.
        self._flights.join(None, fetch)
        return fetch

    def _land(self, fetch: FetchKeys) -> bool:
        """End the flight that `fetch` waits for. Returns whether it was still under way."""
        flight = self._flights.flight_of(fetch)
        return flight is not None and bool(self._flights.land(flight))

    def _fail(self, *, now: Instant) -> None:
        soon = self._failures.failed(None, None, now=now).until
        # Without usable keys: soon, then less and less often. While older keys serve: after the cool-down.
        self._next_refresh = soon if self.usable(now=now) is None else Instant(now + self.policy.cool_down)
        self._next_again = max(self._next_again, self._next_refresh)
