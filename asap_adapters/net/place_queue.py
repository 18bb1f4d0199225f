"""A queue for a bounded number of places, shared fairly between keys (`asap_core.client.shares`); FIFO for each key."""

from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import anyio
from attrs import define

from asap_core.client.shares import PlaceShares

K = TypeVar("K", bound=Hashable)


@define(eq=False)
class PlaceWaiter(Generic[K]):
    """One who waits for a place. `wake` is called once it's `granted`."""

    key: K
    wake: Callable[[], object]
    granted: bool = False


class PlaceQueue(Generic[K]):
    """A bounded number of places, and those who wait for one. For one event loop, or under one lock."""

    def __init__(self, places: int) -> None:
        self._shares: PlaceShares[K] = PlaceShares(places)
        self._waiting: dict[K, deque[PlaceWaiter[K]]] = {}

    def held(self, key: K) -> int:
        """Return how many places are held under this key."""
        return self._shares.held(key)

    async def take(self, key: K) -> None:
        """Wait until this key may have a place, and take it. If one is free, there is no checkpoint."""
        if self.take_free(key):
            return
        woken = anyio.Event()
        waiter = self.line_up(key, woken.set)
        try:
            await woken.wait()
        except BaseException:
            self.leave(waiter)
            raise

    def take_free(self, key: K) -> bool:
        """Take a place if this key may have one, and nobody waits for it. Returns whether it did."""
        return key not in self._waiting and self._shares.take(key)

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
        """Give a place back, and wake those who may have it. No checkpoint."""
        self._shares.give_back(key)
        for waiting in list(self._waiting):
            self._grant(waiting)

    def _grant(self, key: K) -> None:
        waiters = self._waiting[key]
        while waiters and self._shares.take(key):
            waiter = waiters.popleft()
            waiter.granted = True
            waiter.wake()
        if not waiters:
            del self._waiting[key]
