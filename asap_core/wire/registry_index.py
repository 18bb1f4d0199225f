"""A registry read as it arrives, piece by piece, into an index: no piece takes longer than its share of the text.

A registry of 100,000 agents is 50 MB: read at once it would hold an event loop for seconds, and 100,000 objects would
make every later garbage collection slow. So `RegistryReader` is fed the bytes as they come, and `RegistryIndex` keeps
each entry as the text that it was, indexed by id and skill, and makes an object of it when it's asked for.
"""

import codecs
import json
import re
from array import array
from collections.abc import Generator, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, overload

from attrs import NOTHING, fields

from asap_core.errors import InvalidDocument, Problem
from asap_core.wire.codec import MAX_SKIPPED, decode_registry, decode_registry_entry, format_timestamp
from asap_core.wire.json import MAX_DEPTH, NotJson, read_json, read_json_at, write_json
from asap_core.wire.registry import RegistryEntry, Skipped
from asap_core.wire.writable import Path

# In characters. An entry is some 500; one this long takes about a millisecond to read.
MAX_ENTRY: Final = 65_536
# An agent has a handful; the most that one line of a registry may add to the index, some 100 bytes each.
MAX_SKILLS: Final = 256
# Ten for each of 100,000 agents: some 100 MB.
MAX_SKILLS_IN_ALL: Final = 1_000_000
# Of an index: of 200,000 words, some 3,000 in each.
_SHARDS: Final = 64
# Entries that are written: half a megabyte, in half a millisecond.
_AT_ONCE: Final = 1_000


class _Index:
    """Where in a catalogue each word stands: in order, at one place or several.

    In shards, since a dictionary that grows is copied whole, and of 200,000 words that takes 10 ms.
    """

    __slots__ = ("_shards",)

    def __init__(self) -> None:
        self._shards: tuple[dict[str, int | array[int]], ...] = tuple({} for _ in range(_SHARDS))

    def add(self, word: str, place: int) -> None:
        """`word` stands at `place` as well."""
        shard = self._shards[hash(word) % _SHARDS]
        places = shard.get(word)
        # A word at one place needs no array: 100,000 of those would be as many objects for the garbage collector.
        if places is None:
            shard[word] = place
        elif isinstance(places, int):
            shard[word] = array("L", (places, place))
        else:
            places.append(place)

    def places(self, word: str) -> Sequence[int]:
        """Where `word` stands."""
        places = self._shards[hash(word) % _SHARDS].get(word, ())
        return (places,) if isinstance(places, int) else places


class RegistryEntries(Sequence[RegistryEntry]):
    """Some entries of a catalogue, in its order; each is made when it's asked for, in some 20 µs."""

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


class RegistryIndex:
    """A registry, indexed: a look-up takes the time of a dictionary's and of making the entries found.

    `skipped` says which entries could not be read and why; `extra` holds keys of the root that this version doesn't
    know. A catalogue is made by `RegistryReader` and doesn't change.
    """

    __slots__ = ("_by_id", "_by_skill", "_texts", "extra", "skipped", "updated_at", "version")

    def __init__(
        self,
        root: Mapping[str, Any],
        *,
        texts: Sequence[bytes],
        by_id: _Index,
        by_skill: _Index,
        skipped: Sequence[Skipped],
    ) -> None:
        read = decode_registry({**root, "agents": []})
        self.version: str = read.version
        self.updated_at: datetime = read.updated_at
        self.extra: dict[str, Any] = read.extra
        self.skipped: tuple[Skipped, ...] = tuple(skipped)
        self._texts = texts
        self._by_id = by_id
        self._by_skill = by_skill

    def __len__(self) -> int:
        """How many entries there are."""
        return len(self._texts)

    def __repr__(self) -> str:
        return f"<Catalog of {len(self)} agents, {len(self.skipped)} skipped>"

    @property
    def agents(self) -> RegistryEntries:
        """All entries, in the registry's order."""
        return RegistryEntries(self._texts, range(len(self._texts)))

    def written(self) -> Iterator[bytes]:
        """The registry as JSON, in pieces: its entries as they came, without those that were skipped."""
        root = {"version": self.version, "updated_at": format_timestamp(self.updated_at), **self.extra}
        yield write_json(root, max_depth=MAX_DEPTH + 1)[:-1] + b',"agents":['
        for start in range(0, len(self._texts), _AT_ONCE):
            yield (b"," if start else b"") + b",".join(self._texts[start : start + _AT_ONCE])
        yield b"]}"

    def by_id(self, agent_id: str) -> RegistryEntry | None:
        """The entry with exactly this id, or None; the first of several, as the reference finds it."""
        return next(iter(self.of_agent(agent_id)), None)

    def by_skill(self, skill: str) -> RegistryEntries:
        """The entries with exactly this skill, in the registry's order."""
        return RegistryEntries(self._texts, self._by_skill.places(skill))

    def of_agent(self, agent_id: str) -> RegistryEntries:
        """The entries with exactly this id, in the registry's order."""
        return RegistryEntries(self._texts, self._by_id.places(agent_id))

    def find(self, *, skill: str | None = None, agent_id: str | None = None) -> tuple[RegistryEntry, ...]:
        """The entries that have this skill and this id (exactly; None is any), in the registry's order."""
        if agent_id is None:
            return tuple(self.agents if skill is None else self.by_skill(skill))
        return tuple(entry for entry in self.of_agent(agent_id) if skill is None or skill in entry.skills)


class RegistryReader:
    """Reads a registry from its bytes, in pieces cut anywhere: `feed` each, then `close` for the catalogue.

    Tolerant of entries: one that's no entry, that says a key twice or is longer than `MAX_ENTRY`, is skipped and
    reported. Not of the text: what isn't JSON is no registry. Both methods raise `InvalidDocument`, and nothing else
    whatever the bytes; after that the reader is of no more use. A piece of 64 KiB takes about 2 ms.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0
        self._ended = False
        self._root: dict[str, Any] = {}
        self._beside = 0
        self._skills = 0
        self._texts: list[bytes] = []
        self._by_id = _Index()
        self._by_skill = _Index()
        self._skipped: list[Skipped] = []
        self._failed: InvalidDocument | None = None
        self._steps = self._document()
        next(self._steps)

    def feed(self, data: bytes) -> None:
        """Take the next piece of the text."""
        if self._failed is not None:
            raise self._failed
        try:
            self._text = self._text[self._at :] + self._decoder.decode(data, final=self._ended)
            self._at = 0
            next(self._steps, None)
        except UnicodeDecodeError:
            self._failed = _ill_formed("UTF-8")
            raise self._failed from None
        except InvalidDocument as error:
            self._failed = error
            raise

    def close(self) -> RegistryIndex:
        """The text is over: return what was read of it."""
        self._ended = True
        self.feed(b"")
        return RegistryIndex(
            self._root, texts=self._texts, by_id=self._by_id, by_skill=self._by_skill, skipped=self._skipped
        )

    # --- the text: each step yields where it needs more of it --------------------------------------------------------

    def _document(self) -> Generator[None, None, None]:
        yield  # begins with the first piece
        if (yield from self._next()) != "{":
            raise InvalidDocument("registry", (Problem((), "an object"),))
        yield from self._members()
        if (yield from self._next()):
            raise _ill_formed("one JSON text, and nothing after it")

    def _members(self) -> Generator[None, None, None]:
        if (yield from self._peek()) == "}":
            self._at += 1
            return
        while True:
            key, text = yield from self._value(())
            self._count_beside(text)
            if type(key) is not str:
                raise _ill_formed("an object whose keys are strings")
            if key in self._root:
                raise _ill_formed("keys that are unique within their object")
            yield from self._expect(":")
            if key == "agents":
                self._root[key] = []
                yield from self._agents()
            else:
                self._root[key], text = yield from self._value((key,) if key in _ROOT else ())
                self._count_beside(text)
            if (yield from self._expect(",}")) == "}":
                return

    def _count_beside(self, text: str) -> None:
        # Small values become many times their text: a megabyte of them, fifty.
        self._beside += len(text)
        if self._beside > MAX_ENTRY:
            raise InvalidDocument("registry", (Problem((), f"at most {MAX_ENTRY} characters beside its agents"),))

    def _agents(self) -> Generator[None, None, None]:
        if (yield from self._next()) != "[":
            raise InvalidDocument("registry", (Problem(("agents",), "an array of entries"),))
        if (yield from self._peek()) == "]":
            self._at += 1
            return
        index = 0
        while True:
            try:
                entry, text = yield from self._value(("agents", index))
                self._keep(entry, text, index)
            except InvalidDocument as error:
                if any(problem.kind in (_ILL_FORMED, _TOO_MUCH) for problem in error.problems):
                    raise
                self._skip(index, error.problems)
            index += 1
            if (yield from self._expect(",]")) == "]":
                return

    def _keep(self, entry: Any, text: str, index: int) -> None:
        if not _is_entry(entry):
            decode_registry_entry(entry, path=("agents", index))  # which says what is wrong
        skills = dict.fromkeys(entry.get("skills", ()))
        if len(skills) > MAX_SKILLS:
            problem = Problem(("agents", index, "skills"), f"at most {MAX_SKILLS} skills")
            raise InvalidDocument("registry entry", (problem,))
        self._skills += len(skills)
        if self._skills > MAX_SKILLS_IN_ALL:
            # Of this kind, so that it ends the reading and isn't one entry's.
            problem = Problem(("agents",), f"at most {MAX_SKILLS_IN_ALL} skills in all", _TOO_MUCH)
            raise InvalidDocument("registry", (problem,))
        place = len(self._texts)
        self._texts.append(text.encode("utf-8"))
        self._by_id.add(entry["id"], place)
        for skill in skills:
            self._by_skill.add(skill, place)

    def _skip(self, index: int, problems: tuple[Problem, ...]) -> None:
        self._skipped.append(Skipped(index, problems))
        if len(self._skipped) > MAX_SKIPPED:
            expected = f"entries of which at most {MAX_SKIPPED} can't be read"
            raise InvalidDocument("registry", (Problem(("agents",), expected),)) from None

    def _value(self, path: Path) -> Generator[None, None, tuple[Any, str]]:
        """The next value and its text. Raises `InvalidDocument` at its end if it's JSON that can't be taken."""
        yield from self._peek()
        tried = 0
        while True:
            size = len(self._text) - self._at
            # Each attempt costs what is there already: only twice as much is worth another.
            if size >= 2 * tried or self._ended:
                tried = size
                try:
                    value, end = read_json_at(self._text, self._at)
                except NotJson as error:
                    raise (yield from self._pass_over(path, error.expected)) from None
                except json.JSONDecodeError:
                    pass
                else:
                    if self._is_whole(end):
                        text, self._at = self._text[self._at : end], end
                        if len(text) > MAX_ENTRY:
                            raise _too_long(path)
                        return value, text
                if size > MAX_ENTRY:
                    raise (yield from self._pass_over(path, None))
                if self._ended:
                    raise _ill_formed("one JSON text")
            yield

    def _is_whole(self, end: int) -> bool:
        # A number may go on in the next piece, and what looks like its end be an exponent's beginning.
        return _IN_NUMBERS.match(self._text, end).end() < len(self._text)  # type: ignore[union-attr]

    def _pass_over(self, path: Path, expected: str | None) -> Generator[None, None, InvalidDocument]:
        """Go to where the value ends that begins here, without reading it; return what is wrong with it."""
        begins = self._text[self._at]
        marks = _MARKS if begins in '{["' else _AFTER_SCALAR
        passed, depth, in_string = 0, 0, False
        while True:
            for mark in marks.finditer(self._text, self._at):
                sign = mark[0]
                if marks is _AFTER_SCALAR:
                    return self._passed(path, passed, mark.start(), expected)
                if sign == "\\":
                    # What it escapes is in the next piece.
                    passed += mark.start() - self._at
                    self._at = mark.start()
                    break
                if in_string:
                    in_string = sign != '"'
                else:
                    in_string = sign == '"'
                    depth += _DEEPER.get(sign, 0)
                if depth == 0 and not in_string:
                    return self._passed(path, passed, mark.end(), expected)
            else:
                passed += len(self._text) - self._at
                self._at = len(self._text)
            if self._ended:
                return _ill_formed("one JSON text")
            yield

    def _passed(self, path: Path, passed: int, end: int, expected: str | None) -> InvalidDocument:
        passed, self._at = passed + end - self._at, end
        if passed > MAX_ENTRY:
            return _too_long(path)
        if expected is None:
            return _ill_formed("one JSON text")
        return InvalidDocument("registry", (Problem(path, expected),))

    def _next(self) -> Generator[None, None, str]:
        """The next character that isn't blank, taken; "" at the end of the text."""
        character = yield from self._peek()
        self._at += len(character)
        return character

    def _peek(self) -> Generator[None, None, str]:
        while True:
            self._at = _BLANK.match(self._text, self._at).end()  # type: ignore[union-attr]  # it always matches
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            yield

    def _expect(self, either: str) -> Generator[None, None, str]:
        character = yield from self._next()
        if not character or character not in either:
            raise _ill_formed("one JSON text")
        return character


def _is_entry(value: Any) -> bool:
    """Whether `decode_registry_entry` would take it: the same rules asked, and nothing made."""
    return type(value) is dict and all(
        rule.fits(value[key] if rule.convert is None else rule.convert(value[key])) if key in value else optional
        for key, rule, optional in _ENTRY_RULES
    )


_ENTRY_RULES: Final[list[tuple[str, Any, bool]]] = [
    (a.name, a.validator, a.default is not NOTHING) for a in fields(RegistryEntry) if a.name != "extra"
]
_ILL_FORMED: Final = "ill_formed"
_TOO_MUCH: Final = "too_much"
_BLANK: Final = re.compile(r"[ \t\n\r]*")  # RFC 8259 §2
# What tells where a value ends: quotes, brackets, and what is escaped, of that as much at once as there is.
_MARKS: Final = re.compile(r'(?:\\.)+|[\\"{}\[\]]', re.DOTALL)
_DEEPER: Final = {"{": 1, "[": 1, "}": -1, "]": -1}
_IN_NUMBERS: Final = re.compile(r"[-+.eE0-9]*")  # it always matches
_AFTER_SCALAR: Final = re.compile(r"[,\]} \t\n\r]")
# Keys of the root that a problem may name.
_ROOT: Final = frozenset({"version", "updated_at"})


def _ill_formed(expected: str) -> InvalidDocument:
    return InvalidDocument("registry", (Problem((), expected, _ILL_FORMED),))


def _too_long(path: Path) -> InvalidDocument:
    return InvalidDocument("registry", (Problem(path, f"at most {MAX_ENTRY} characters"),))
