"""Which key set serves now, and when the provider may be asked for another: whoever sends tokens doesn't decide that.

    kept, fresh ─▶ use it        past `fresh_for` ─▶ one caller asks, all others use it      past `stale_for` ─▶ nothing
    key unknown ─▶ ask again, at most once per cool-down; whoever comes while it's asked waits for the same answer

Rule of this module: a forged signature asks for nothing, a forged key id at most once per cool-down (fault 20).
"""

from enum import Enum
from typing import Final

from attrs import define, frozen

from asap_core.auth.claims import TokenPolicy
from asap_core.auth.jwks import KeySet
from asap_core.clock import Instant


@frozen
class FetchKeys:
    """FetchKeys the provider; `again` past what is kept, since a key is missing there, unless it was just asked.

    `patience` is how long the answer is worth waiting for, in seconds; None: as long as a fetch may take.
    """

    again: bool
    patience: float | None
    round: int


class NoFetch(Enum):
    """Why the provider isn't asked."""

    UNKNOWN = "unknown"
    """It was, not long ago, and it answered: there's no such key."""
    UNREACHABLE = "unreachable"
    """It was, not long ago, and it didn't answer."""


# As the client's directory asks a host that failed: again after a second.
_FIRST_PAUSE: Final = 1.0
# 2**5 times: half a minute.
_DOUBLINGS: Final = 5
_NEVER: Final = Instant(float("-inf"))


@define(eq=False)
class KeyRing:
    """The keys of one issuer. One event loop owns it; its methods return at once."""

    policy: TokenPolicy
    keys: KeySet | None = None
    _vouched: Instant = _NEVER
    _next_refresh: Instant = _NEVER
    _next_again: Instant = _NEVER
    _failures: int = 0
    # Of the question under way: its number, and how many wait for the answer.
    _round: int = 0
    _waiting: int = 0

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
            if self._waiting == 0 and now < self._next_refresh:
                return NoFetch.UNREACHABLE
            return self._ask(again=False, patience=None)
        if now < self._next_refresh:
            return None
        # One caller asks; until it's answered, or the cool-down is over, the others use what there is.
        self._next_refresh = Instant(now + self.policy.cool_down)
        # A provider that's merely slow gets longer each time, or it would never be heard.
        return self._ask(again=False, patience=self.policy.patience * 2.0 ** min(self._failures, _DOUBLINGS))

    def missing(self, *, now: Instant) -> FetchKeys | NoFetch:
        """A token names a key that isn't in the set."""
        if self._waiting:
            # As whoever asked first: it may come to the fetch before that one does.
            return self._ask(again=True, patience=None)
        if now < self._next_again:
            return NoFetch.UNREACHABLE if self._failures else NoFetch.UNKNOWN
        self._next_again = Instant(now + self.policy.cool_down)
        return self._ask(again=True, patience=None)

    def _ask(self, *, again: bool, patience: float | None) -> FetchKeys:
        self._waiting += 1
        return FetchKeys(again, patience, self._round)

    def fetched(self, fetch: FetchKeys, keys: KeySet, *, age: float, now: Instant) -> None:
        """The provider answered, `age` seconds ago. All who waited for it may say so."""
        self._over(fetch)
        vouched = Instant(now - age)
        # An answer that comes after others gave up on it is news all the same.
        if vouched >= self._vouched:
            self.keys, self._vouched, self._failures = keys, vouched, 0
            # What it has just said it needn't say again for a key that it doesn't have.
            self._next_again = max(self._next_again, Instant(vouched + self.policy.cool_down))

    def failed(self, fetch: FetchKeys, *, now: Instant) -> None:
        """It didn't, or with something else."""
        if self._over(fetch):
            self._failures += 1
            pause = self.policy.cool_down
            if self.usable(now=now) is None:
                # Nobody gets in meanwhile: ask soon, then less and less often.
                pause = min(pause, _FIRST_PAUSE * 2.0 ** min(self._failures - 1, _DOUBLINGS))
            self._next_refresh = Instant(now + pause)
            self._next_again = max(self._next_again, self._next_refresh)

    def abandoned(self, fetch: FetchKeys, *, now: Instant) -> None:
        """Who waited left. Whoever waits with it goes on; where nobody does, it counts as no answer.

        Else who sends forged tokens and hangs up would have the provider asked for each.
        """
        if fetch.round == self._round:
            self._waiting -= 1
            if not self._waiting:
                self.failed(fetch, now=now)

    def _over(self, fetch: FetchKeys) -> bool:
        if fetch.round != self._round:
            return False
        self._round += 1
        self._waiting = 0
        return True
