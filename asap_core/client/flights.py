"""One flight per key: whoever asks first fetches, everyone else waits for the same answer.

Laws: at most one flight per key that can be joined; every waiter ends exactly once; nobody waits without a flight; a
leader that's cancelled hands over to the next waiter; a flight ends with its last waiter; a late result is refused;
when nobody waits, nothing is left. A flight that's detached goes on for those who wait, and whoever comes afterwards
begins another. Methods return their effects; nothing is awaited here.
"""

from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from attrs import define, field, frozen

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
    """`waiter` fetches: it carries the flight."""

    waiter: W
    flight: Flight[K, W]


@frozen
class Joined:
    """Somebody fetches already; wait."""


@frozen
class Crowded:
    """There are too many flights, or too many waiters for this one."""


class Flights(Generic[K, W]):
    """The flights of one client."""

    def __init__(self, *, max_flights: int = MAX_FLIGHTS, max_waiters: int = MAX_WAITERS) -> None:
        self._max_flights = max_flights
        self._max_waiters = max_waiters
        self._flights: dict[K, Flight[K, W]] = {}
        self._detached: set[Flight[K, W]] = set()
        self._by_waiter: dict[W, Flight[K, W]] = {}

    def __len__(self) -> int:
        """How many flights are live."""
        return len(self._flights) + len(self._detached)

    @property
    def waiting(self) -> int:
        """How many wait, leaders included."""
        return len(self._by_waiter)

    def flight(self, key: K) -> Flight[K, W] | None:
        """The flight that who asks for `key` joins, if there's one."""
        return self._flights.get(key)

    def flight_of(self, waiter: W) -> Flight[K, W] | None:
        """What `waiter` waits for, if it waits."""
        return self._by_waiter.get(waiter)

    def is_live(self, flight: Flight[K, W]) -> bool:
        """Whether a result of this flight would be taken."""
        return self._flights.get(flight.key) is flight or flight in self._detached

    def detach(self, key: K) -> None:
        """Let nobody else join the flight for `key`: those who wait have its answer, whoever comes has another's."""
        flight = self._flights.pop(key, None)
        if flight is not None:
            self._detached.add(flight)

    def join(self, key: K, waiter: W) -> Leading[K, W] | Joined | Crowded:
        """Wait for `key`: as the leader where nobody fetches it yet. One waiter waits for one key at a time."""
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
        """The flight is over: everyone who waited for it, in order of coming; nobody where it was over before."""
        if not self.is_live(flight):
            return ()
        self._end(flight)
        waiters = tuple(flight.waiters)
        for waiter in waiters:
            del self._by_waiter[waiter]
        return waiters

    def leave(self, waiter: W) -> Leading[K, W] | None:
        """`waiter` was cancelled. Idempotent. Where it led, the next in line leads a flight of its own from now on."""
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
        """The flight isn't live any more; whether it could be joined."""
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
            return True
        self._detached.remove(flight)
        return False
