"""One fetch per key, handed over to the next waiter if its leader is cancelled, and pauses after fetches that failed.

A flight is one fetch under way and its waiters. The first caller for a key leads: it fetches. Others join and
wait for the same answer. A flight lands when its answer is there.

Laws: at most one flight per key can be joined; every waiter ends exactly once; nobody waits without a flight; a leader
that leaves hands over to the next waiter; a flight ends with its last waiter; a late result is refused; when nobody
waits, nothing is left. A detached flight goes on for those who wait, and the next caller begins another.

`BackOff` remembers which keys failed last. Callers look there before they join, since what they do meanwhile differs: a
document or token at hand may still serve.

Nothing is awaited here: methods return what the caller must do.
"""

from collections.abc import Hashable, Iterator
from typing import Final, Generic, TypeVar

from attrs import define, field, frozen

from asap_core.clock import Instant
from asap_core.lru import Lru

E = TypeVar("E")
K = TypeVar("K", bound=Hashable)
W = TypeVar("W", bound=Hashable)

# A flight is one request and some kilobytes; a process that has a thousand under way is in trouble of another kind.
MAX_FLIGHTS: Final = 1_024
# About 100 bytes each, and each is a task of the caller's own.
MAX_WAITERS: Final = 100_000


@define(eq=False)
class Flight(Generic[K, W]):
    """One fetch under way. Compared by identity: a second flight for the same key is another one."""

    key: K
    leader: W
    waiters: dict[W, None] = field(factory=dict, repr=False)


@frozen
class Leading(Generic[K, W]):
    """`waiter` leads `flight`: it must fetch, and then land the flight."""

    waiter: W
    flight: Flight[K, W]


@frozen
class Joined:
    """Another waiter fetches already; wait."""


@frozen
class Crowded:
    """Not joined: too many flights, or too many waiters for this one."""


class Flights(Generic[K, W]):
    """The flights of one client.

    max_flights: flights at once
    max_waiters: waiters of one flight
    """

    def __init__(self, *, max_flights: int = MAX_FLIGHTS, max_waiters: int = MAX_WAITERS) -> None:
        self._max_flights = max_flights
        self._max_waiters = max_waiters
        self._flights: dict[K, Flight[K, W]] = {}
        self._detached: set[Flight[K, W]] = set()
        self._by_waiter: dict[W, Flight[K, W]] = {}

    def __len__(self) -> int:
        """How many flights are under way, detached ones included."""
        return len(self._flights) + len(self._detached)

    @property
    def waiting(self) -> int:
        """How many wait, leaders included."""
        return len(self._by_waiter)

    def flight(self, key: K) -> Flight[K, W] | None:
        """Return the flight for `key` that can be joined, or None."""
        return self._flights.get(key)

    def flight_of(self, waiter: W) -> Flight[K, W] | None:
        """Return the flight that `waiter` waits for, or None."""
        return self._by_waiter.get(waiter)

    def __iter__(self) -> Iterator[K]:
        """Iterate over the keys of the flights that can be joined."""
        return iter(self._flights)

    def is_live(self, flight: Flight[K, W]) -> bool:
        """Whether this flight is under way: its result would be accepted."""
        return self._flights.get(flight.key) is flight or flight in self._detached

    def detach(self, key: K) -> None:
        """Let nobody else join the flight for `key`. Its waiters get its answer; the next caller begins another."""
        flight = self._flights.pop(key, None)
        if flight is not None:
            self._detached.add(flight)

    def join(self, key: K, waiter: W) -> Leading[K, W] | Joined | Crowded:
        """Wait for `key`: as the leader, if nobody fetches it yet. Raises ValueError if `waiter` waits already."""
        if waiter in self._by_waiter:
            raise ValueError("this waiter waits already; expected a new one for each look-up")
        flight = self._flights.get(key)
        full = len(self) >= self._max_flights if flight is None else len(flight.waiters) >= self._max_waiters
        if full:
            return Crowded()
        if flight is None:
            flight = self._flights[key] = Flight(key, waiter)
        flight.waiters[waiter] = None
        self._by_waiter[waiter] = flight
        return Leading(waiter, flight) if flight.leader == waiter else Joined()

    def land(self, flight: Flight[K, W]) -> tuple[W, ...]:
        """End a flight. Returns its waiters in the order in which they came; none if it was over before."""
        if not self.is_live(flight):
            return ()
        self._end(flight)
        waiters = tuple(flight.waiters)
        for waiter in waiters:
            del self._by_waiter[waiter]
        return waiters

    def leave(self, waiter: W) -> Leading[K, W] | None:
        """`waiter` was cancelled. Idempotent. If it led, the next waiter leads a new flight, which is returned."""
        flight = self._by_waiter.pop(waiter, None)
        if flight is None:
            return None
        del flight.waiters[waiter]
        if not flight.waiters:
            self._end(flight)
            return None
        if flight.leader != waiter:
            return None
        return self._hand_over(flight)

    def _hand_over(self, flight: Flight[K, W]) -> Leading[K, W]:
        # A new flight, so that what the old leader may still bring is late.
        leader = next(iter(flight.waiters))
        successor = Flight(flight.key, leader, flight.waiters)
        if self._end(flight):
            self._flights[flight.key] = successor
        else:
            self._detached.add(successor)
        for waiter in successor.waiters:
            self._by_waiter[waiter] = successor
        return Leading(leader, successor)

    def _end(self, flight: Flight[K, W]) -> bool:
        """End a flight. Returns whether it could be joined."""
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
            return True
        self._detached.remove(flight)
        return False


# --- back-off ---------------------------------------------------------------------------------------------------------

# A host that's down is asked once a second, a host that's back is noticed within half a minute: 32 s is the fifth
# doubling of 1 s. The option `DocumentCachePolicy.longest_failure` has 30 instead, a round number for users.
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 32.0
# A tenth, as the reference spreads its retries.
SPREAD: Final = 0.1
# 2**20 seconds is past any bound on pauses; beyond it only overflow waits.
_DOUBLINGS: Final = 20


def doubled(seconds: float, times: int, *, most: float) -> float:
    """Return `seconds` doubled that many times, but at most `most`."""
    return min(seconds * 2.0 ** min(times, _DOUBLINGS), most)


@frozen(eq=False)
class Failure(Generic[E]):
    """The last of `in_a_row` failures: its `cause`, when it was, and until when its key is left alone."""

    cause: E
    since: Instant
    until: Instant
    in_a_row: int


class BackOff(Generic[K, E]):
    """How long each key is left alone after failures: twice as long after each one in a row.

    first: the pause after one failure, in seconds
    longest: the longest pause, whatever a server asks for; jitter comes on top
    most: keys remembered; the one that failed longest ago is forgotten for a new one
    """

    def __init__(self, *, most: int, first: float = FIRST_PAUSE, longest: float = LONGEST_PAUSE) -> None:
        self._first = first
        self._longest = longest
        self._failures: Lru[K, Failure[E]] = Lru(most)

    def __len__(self) -> int:
        """How many keys failed last."""
        return len(self._failures)

    def __iter__(self) -> Iterator[K]:
        """Iterate over the keys that failed last."""
        return iter(self._failures)

    def last(self, key: K) -> Failure[E] | None:
        """Return the failure that `key` ended with, or None if it never failed or has succeeded since."""
        return self._failures.peek(key)

    def current(self, key: K, *, now: Instant) -> Failure[E] | None:
        """Return the failure for which `key` is left alone now, or None if it may be tried."""
        failure = self._failures.peek(key)
        return failure if failure is not None and now < failure.until else None

    def failed(
        self, key: K, cause: E, *, now: Instant, retry_after: float | None = None, jitter: float = 0.0
    ) -> Failure[E]:
        """Remember a failure.

        retry_after: seconds for which the server asks to be left alone; it may prolong the pause up to the longest
        jitter: in [0, 1); spreads the next tries of clients that failed together
        """
        before = self._failures.peek(key)
        in_a_row = 1 if before is None else before.in_a_row + 1
        pause = doubled(self._first, in_a_row - 1, most=self._longest)
        if retry_after is not None:
            pause = min(max(pause, retry_after), self._longest)
        failure = Failure(cause, now, Instant(now + pause * (1.0 + SPREAD * jitter)), in_a_row)
        self._failures.put(key, failure)
        return failure

    def forget(self, key: K) -> None:
        """Forget the failures of `key`: it succeeded, or it is no longer the same."""
        self._failures.pop(key)
