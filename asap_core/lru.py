"""A bounded mapping that evicts its least recently used entry.

Rule: an entry becomes the most recently used one by `put` and `touch`, and by nothing else. Reading is not use: most
callers look at an entry first (has it expired?) and decide then whether it counts as used.
"""

from collections import OrderedDict
from collections.abc import ItemsView, Iterator
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Lru(Generic[K, V]):
    """A mapping of at most `most` entries."""

    __slots__ = ("_entries", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        # Not a dict: `next(iter(…))` on one that entries left from the front walks over all the holes they left.
        self._entries: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        """Whether there is an entry for this key. It doesn't count as use."""
        return key in self._entries

    def __iter__(self) -> Iterator[K]:
        """Iterate over the keys, the least recently used first."""
        return iter(self._entries)

    def items(self) -> ItemsView[K, V]:
        """Return all entries, the least recently used first. It doesn't count as use."""
        return self._entries.items()

    def peek(self, key: K) -> V | None:
        """Return the value for this key, or None. It doesn't count as use."""
        return self._entries.get(key)

    def touch(self, key: K) -> None:
        """Count this entry as used now. Raises KeyError if there is none."""
        self._entries.move_to_end(key)

    def put(self, key: K, value: V) -> tuple[K, V] | None:
        """Set the value for this key, which counts as use. Returns the entry that was evicted for it, or None."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        return self._entries.popitem(last=False) if len(self._entries) > self._most else None

    def pop(self, key: K) -> V | None:
        """Remove the entry for this key. Returns its value, or None if there was none."""
        return self._entries.pop(key, None)

    def clear(self) -> None:
        """Remove all entries."""
        self._entries.clear()
