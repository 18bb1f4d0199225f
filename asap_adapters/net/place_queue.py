"""A queue for a bounded number of places, shared fairly between keys (`asap_core.client.shares`); FIFO for each key."""

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

import anyio
from attrs import define, field

from asap_core.client.shares import PlaceShares

K = TypeVar("K", bound=Hashable)


@define(eq=False)
class _Waiter:
    woken: anyio.Event = field(factory=anyio.Event)
    granted: bool = False


class PlaceQueue(Generic[K]):
    """A bounded number of places, and the tasks that wait for one. For one event loop."""

    def __init__(self, places: int) -> None:
        self._shares: PlaceShares[K] = PlaceShares(places)
        self._waiting: dict[K, deque[_Waiter]] = {}

    def held(self, key: K) -> int:
        """Return how many places are held under this key."""
        return self._shares.held(key)

    async def take(self, key: K) -> None:
        """Wait until this key may have a place, and take it. If one is free, there is no checkpoint."""
        if key not in self._waiting and self._shares.take(key):
            return
        waiter = _Waiter()
        self._waiting.setdefault(key, deque()).append(waiter)
        try:
            await waiter.woken.wait()
        except BaseException:
            if waiter.granted:
                self.give_back(key)
            else:
                self._leave(key, waiter)
            raise

    def give_back(self, key: K) -> None:
        """Give a place back, and wake the tasks that may have it. No checkpoint."""
        self._shares.give_back(key)
        for waiting in list(self._waiting):
            self._grant(waiting)

    def _grant(self, key: K) -> None:
        waiters = self._waiting[key]
        while waiters and self._shares.take(key):
            waiter = waiters.popleft()
            waiter.granted = True
            waiter.woken.set()
        if not waiters:
            del self._waiting[key]

    def _leave(self, key: K, waiter: _Waiter) -> None:
        self._waiting[key].remove(waiter)
        if not self._waiting[key]:
            del self._waiting[key]
