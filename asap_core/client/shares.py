"""Shares a bounded number of places among keys, so that no key can take them all."""

from collections.abc import Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

# A key may hold at most a quarter of the number of free places.
_PART: Final = 4


class PlaceShares(Generic[K]):
    """Places, held under keys. A key gets one more only while it holds less than a quarter of those that are free.

    So one key alone gets a fifth of all, the next a fifth of what that leaves: of 500 places 100, 80, 64. After ten
    that take all they can, a tenth of the places is left, and the last four are only for keys that have none. (As
    buffers are shared in switches: Choudhury and Hahne, "Dynamic queue length thresholds", 1998.)
    """

    __slots__ = ("_free", "_held")

    def __init__(self, places: int) -> None:
        self._free = places
        self._held: dict[K, int] = {}

    def held(self, key: K) -> int:
        """Return how many places are held under this key."""
        return self._held.get(key, 0)

    @property
    def keys(self) -> int:
        """How many keys hold places."""
        return len(self._held)

    def take(self, key: K) -> bool:
        """Take a place under this key. Returns whether the key may hold one more and the place was taken."""
        held = self._held.get(key, 0)
        if _PART * held >= self._free:
            return False
        self._free -= 1
        self._held[key] = held + 1
        return True

    def give_back(self, key: K) -> None:
        """Give back a place that was taken under this key. Raises KeyError if there is none."""
        left = self._held[key] - 1
        self._free += 1
        if left:
            self._held[key] = left
        else:
            del self._held[key]
