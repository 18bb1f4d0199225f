"""A registry in memory, indexed by id and skill; `asap_core.wire.registry_reader` fills it.

Each entry stays JSON text and is decoded when a caller asks for it: 100,000 decoded entries would make every later
garbage collection slow.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final, overload

from asap_core.wire.codec import format_timestamp
from asap_core.wire.json import MAX_DEPTH, read_json, write_json
from asap_core.wire.json_values import JsonObject
from asap_core.wire.registry import RegistryEntry, Skipped, decode_registry_entry, decode_registry_root

# Of 200,000 words some 3,000 are in each shard.
_SHARDS: Final = 64


class WordIndex:
    """Maps each word to the positions of the entries that have it, in the registry's order.

    The words are spread over several dictionaries: one of 200,000 words takes 10 ms each time that it grows, since it
    is then copied whole.
    """

    __slots__ = ("_shards",)

    def __init__(self) -> None:
        self._shards: tuple[dict[str, int | array[int]], ...] = tuple({} for _ in range(_SHARDS))

    def add(self, word: str, place: int) -> None:
        """Note that the entry at `place` has `word`."""
        shard = self._shards[hash(word) % _SHARDS]
        places = shard.get(word)
        # A word at one place needs no array: 100,000 arrays would be as many objects for the garbage collector.
        if places is None:
            shard[word] = place
        elif isinstance(places, int):
            shard[word] = array("L", (places, place))
        else:
            places.append(place)

    def places(self, word: str) -> Sequence[int]:
        """Return the positions of the entries that have `word`."""
        places = self._shards[hash(word) % _SHARDS].get(word, ())
        return (places,) if isinstance(places, int) else places


class RegistryEntries(Sequence[RegistryEntry]):
    """Some entries of a registry, in its order. Each is decoded when it's accessed, in some 20 µs."""

    __slots__ = ("_places", "_texts")

    def __init__(self, texts: Sequence[bytes], places: Sequence[int]) -> None:
        self._texts = texts
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> RegistryEntry: ...
    @overload
    def __getitem__(self, place: slice) -> "RegistryEntries": ...
    def __getitem__(self, place: int | slice) -> "RegistryEntry | RegistryEntries":
        if isinstance(place, slice):
            return RegistryEntries(self._texts, self._places[place])
        return decode_registry_entry(read_json(self._texts[self._places[place]]))

    def __repr__(self) -> str:
        return f"<{len(self)} registry entries>"


# Entries written in one piece: half a megabyte, in half a millisecond.
_AT_ONCE: Final = 1_000


class RegistryIndex:
    """A registry, indexed. Immutable. A look-up costs a dictionary look-up and decoding the entries it returns.

    skipped: the entries that could not be read, with their problems.
    extra: keys of the registry's root that this version doesn't know.
    """

    __slots__ = ("_by_id", "_by_skill", "_texts", "extra", "skipped", "updated_at", "version")

    def __init__(
        self,
        root: Mapping[str, object],
        *,
        texts: Sequence[bytes],
        by_id: WordIndex,
        by_skill: WordIndex,
        skipped: Sequence[Skipped],
    ) -> None:
        read = decode_registry_root(root)
        self.version: str = read.version
        self.updated_at: datetime = read.updated_at
        self.extra: JsonObject = read.extra
        self.skipped: tuple[Skipped, ...] = tuple(skipped)
        self._texts = texts
        self._by_id = by_id
        self._by_skill = by_skill

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._texts)

    def __repr__(self) -> str:
        return f"<RegistryIndex of {len(self)} agents, {len(self.skipped)} skipped>"

    @property
    def agents(self) -> RegistryEntries:
        """All entries, in the registry's order."""
        return RegistryEntries(self._texts, range(len(self._texts)))

    def written(self) -> Iterator[bytes]:
        """Yield the registry as JSON, in pieces: the entries' own texts, without the skipped ones."""
        root = {"version": self.version, "updated_at": format_timestamp(self.updated_at), **self.extra}
        yield write_json(root, max_depth=MAX_DEPTH + 1)[:-1] + b',"agents":['
        for start in range(0, len(self._texts), _AT_ONCE):
            yield (b"," if start else b"") + b",".join(self._texts[start : start + _AT_ONCE])
        yield b"]}"

    def by_id(self, agent_id: str) -> RegistryEntry | None:
        """Return the first entry with exactly this id, as the reference does, or None."""
        return next(iter(self.of_agent(agent_id)), None)

    def by_skill(self, skill: str) -> RegistryEntries:
        """Return the entries with exactly this skill, in the registry's order."""
        return RegistryEntries(self._texts, self._by_skill.places(skill))

    def of_agent(self, agent_id: str) -> RegistryEntries:
        """Return the entries with exactly this id, in the registry's order."""
        return RegistryEntries(self._texts, self._by_id.places(agent_id))

    def find(self, *, skill: str | None = None, agent_id: str | None = None) -> tuple[RegistryEntry, ...]:
        """Return the entries with exactly this skill and exactly this id, in the registry's order. None matches any."""
        if agent_id is None:
            return tuple(self.agents if skill is None else self.by_skill(skill))
        return tuple(entry for entry in self.of_agent(agent_id) if skill is None or skill in entry.skills)
