"""A bounded number of places, shared among keys so that no key can take all of them, and those who wait for one."""

from collections import deque
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

from attrs import define

K = TypeVar("K", bound=Hashable)

# A key may hold at most a quarter of the number of free places.
_PART: Final = 4


@define(eq=False)
class PlaceWaiter(Generic[K]):
    """One who waits for a place. `wake` is called once it's `granted`."""

    key: K
    wake: Callable[[], object]
    granted: bool = False


class PlaceQueue(Generic[K]):
    """Places, held under keys. A key gets one more only while it holds less than a quarter of those that are free.

    So one key alone gets a fifth of all, the next a fifth of what that leaves: of 500 places 100, 80, 64. After ten
    that take all they can, a tenth of the places is left, and the last four are only for keys that have none. (As
    buffers are shared in switches: Choudhury and Hahne, "Dynamic queue length thresholds", 1998.)

    For one event loop, or under one lock.
    """

    __slots__ = ("_free", "_held", "_waiting")

    def __init__(self, places: int) -> None:
        self._free = places
        self._held: dict[K, int] = {}
        self._waiting: dict[K, deque[PlaceWaiter[K]]] = {}

    def held(self, key: K) -> int:
        """Return how many places are held under this key."""
        return self._held.get(key, 0)

    @property
    def keys(self) -> int:
        """How many keys hold places."""
        return len(self._held)

    def take(self, key: K) -> bool:
        """Take a place if this key may hold one more. Returns whether it did.

        It may not while others wait for one under this key: they would have been given it.
        """
        held = self._held.get(key, 0)
        if _PART * held >= self._free:
            return False
        self._free -= 1
        self._held[key] = held + 1
        return True

    def line_up(self, key: K, wake: Callable[[], object]) -> PlaceWaiter[K]:
        """Begin to wait for a place. A waiter that gives up must `leave`."""
        waiter = PlaceWaiter(key, wake)
        self._waiting.setdefault(key, deque()).append(waiter)
        return waiter

    def leave(self, waiter: PlaceWaiter[K]) -> None:
        """Wait no longer; give the place back if it was granted."""
        if waiter.granted:
            self.give_back(waiter.key)
            return
        self._waiting[waiter.key].remove(waiter)
        if not self._waiting[waiter.key]:
            del self._waiting[waiter.key]

    def give_back(self, key: K) -> None:
        """Give a place back, and wake those who may have it. Raises KeyError if none was taken under this key."""
        left = self._held[key] - 1
        self._free += 1
        if left:
            self._held[key] = left
        else:
            del self._held[key]
        # One more place is free: a key that waits gets no second one.
        for line, waiters in list(self._waiting.items()):
            if self.take(line):
                waiter = waiters.popleft()
                if not waiters:
                    del self._waiting[line]
                waiter.granted = True
                waiter.wake()
