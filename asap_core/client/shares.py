"""How many of a bounded number of places each of several parties may hold: nobody's number decides for another."""

from collections.abc import Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

# A key holds a quarter of what is free, at most.
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
        """How many places are held under this key."""
        return self._held.get(key, 0)

    @property
    def keys(self) -> int:
        """Under how many keys places are held."""
        return len(self._held)

    def take(self, key: K) -> bool:
        """Take a place, if the key may have one more: whether it was taken."""
        held = self._held.get(key, 0)
        if _PART * held >= self._free:
            return False
        self._free -= 1
        self._held[key] = held + 1
        return True

    def give_back(self, key: K) -> None:
        """Give a place back that was taken under this key. Raises KeyError if none was."""
        left = self._held[key] - 1
        self._free += 1
        if left:
            self._held[key] = left
        else:
            del self._held[key]
