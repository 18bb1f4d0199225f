"""Reads a registry as its bytes arrive, in pieces cut anywhere, into a `RegistryIndex` (docs/wire.md §8).

A registry of 100,000 agents is 50 MB: reading it at once would block an event loop for seconds. The text is read by one
generator, `_document`, which yields wherever it needs more text, so that no piece takes longer than its share.
"""

import codecs
import json
import re
from collections.abc import Generator
from typing import Any, Final

from attrs import NOTHING, fields

from asap_core.errors import InvalidDocument, Problem
from asap_core.wire.json import NotJson, read_json_at
from asap_core.wire.json_values import Json, Path
from asap_core.wire.registry import Registry, RegistryEntry, Skipped, decode_registry_entry
from asap_core.wire.registry_index import RegistryIndex, WordIndex

# In characters. An entry is some 500; one this long takes about a millisecond to read.
MAX_ENTRY: Final = 65_536
# An agent has a handful. Each adds some 100 bytes to the index.
MAX_SKILLS: Final = 256
# Ten for each of 100,000 agents: some 100 MB.
MAX_SKILLS_IN_ALL: Final = 1_000_000
# One unreadable entry must not hide the rest of a long registry; with more than this it's another format.
MAX_SKIPPED: Final = 1_000


def read_registry(data: bytes) -> Registry:
    """Read a whole registry from bytes. Unreadable entries are reported in `skipped`.

    Raises: InvalidDocument if it isn't a registry, and nothing else whatever the bytes.
    """
    reader = RegistryReader()
    reader.feed(data)
    index = reader.close()
    return Registry(
        version=index.version,
        updated_at=index.updated_at,
        agents=tuple(index.agents),
        skipped=index.skipped,
        extra=index.extra,
    )


_ILL_FORMED: Final = "ill_formed"
_TOO_MUCH: Final = "too_much"
_BLANK: Final = re.compile(r"[ \t\n\r]*")  # RFC 8259 §2
# The characters that decide where a value ends: quotes, brackets, and runs of escapes.
_MARKS: Final = re.compile(r'(?:\\.)+|[\\"{}\[\]]', re.DOTALL)
_DEEPER: Final = {"{": 1, "[": 1, "}": -1, "]": -1}
_IN_NUMBERS: Final = re.compile(r"[-+.eE0-9]*")  # always matches
_AFTER_SCALAR: Final = re.compile(r"[,\]} \t\n\r]")
# Keys of the root that a problem may name.
_ROOT: Final = frozenset({"version", "updated_at"})


class RegistryReader:
    """Reads one registry: `feed` each piece, then `close`. A piece of 64 KiB takes about 2 ms.

    Tolerant of entries: one that breaks a rule, repeats a key or is longer than `MAX_ENTRY` is skipped and reported.
    Strict about the text: if it isn't JSON, the whole registry is refused.

    Both methods raise `InvalidDocument`, and nothing else whatever the bytes. A reader that raised can't be used again.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0
        self._ended = False
        self._root: dict[str, Json] = {}
        self._beside = 0
        self._skills = 0
        self._texts: list[bytes] = []
        self._by_id = WordIndex()
        self._by_skill = WordIndex()
        self._skipped: list[Skipped] = []
        self._failed: InvalidDocument | None = None
        self._steps = self._document()
        next(self._steps)

    def feed(self, data: bytes) -> None:
        """Read the next piece of the text."""
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
        """End the text and return the index."""
        self._ended = True
        self.feed(b"")
        return RegistryIndex(
            self._root, texts=self._texts, by_id=self._by_id, by_skill=self._by_skill, skipped=self._skipped
        )

    # --- each generator below yields where it needs more of the text -------------------------------------------------

    def _document(self) -> Generator[None, None, None]:
        yield  # `feed` resumes here with the first piece
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
        # Small values take many times the memory of their text: one megabyte of them takes fifty.
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
            decode_registry_entry(entry, path=("agents", index))  # raises, with every problem
        skills = dict.fromkeys(entry.get("skills", ()))
        if len(skills) > MAX_SKILLS:
            problem = Problem(("agents", index, "skills"), f"at most {MAX_SKILLS} skills")
            raise InvalidDocument("registry entry", (problem,))
        self._skills += len(skills)
        if self._skills > MAX_SKILLS_IN_ALL:
            # This kind of problem ends the reading; others skip one entry.
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

    def _value(self, path: Path) -> Generator[None, None, tuple[Json, str]]:
        """Read the next value; return it and its text. Raises `InvalidDocument` at its end if it breaks a rule."""
        yield from self._peek()
        tried = 0
        while True:
            size = len(self._text) - self._at
            # Each attempt reads all the text so far, so try again only when it has doubled: linear in total.
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
        # A number may continue in the next piece: `1` may become `10`, or `1e5`.
        return _IN_NUMBERS.match(self._text, end).end() < len(self._text)  # type: ignore[union-attr]

    def _pass_over(self, path: Path, expected: str | None) -> Generator[None, None, InvalidDocument]:
        """Skip the value that begins here without reading it; return its problem as the error to raise."""
        begins = self._text[self._at]
        marks = _MARKS if begins in '{["' else _AFTER_SCALAR
        passed, depth, in_string = 0, 0, False
        while True:
            for mark in marks.finditer(self._text, self._at):
                sign = mark[0]
                if marks is _AFTER_SCALAR:
                    return self._passed(path, passed, mark.start(), expected)
                if sign == "\\":
                    # The escaped character is in the next piece.
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
        """Consume and return the next character that isn't white space; "" at the end of the text."""
        character = yield from self._peek()
        self._at += len(character)
        return character

    def _peek(self) -> Generator[None, None, str]:
        """As `_next`, but don't consume the character."""
        while True:
            self._at = _BLANK.match(self._text, self._at).end()  # type: ignore[union-attr]  # always matches
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            yield

    def _expect(self, either: str) -> Generator[None, None, str]:
        character = yield from self._next()
        if not character or character not in either:
            raise _ill_formed("one JSON text")
        return character


_ENTRY_RULES: Final[list[tuple[str, Any, bool]]] = [
    (a.name, a.validator, a.default is not NOTHING) for a in fields(RegistryEntry) if a.name != "extra"
]


def _is_entry(value: Json) -> bool:
    """Whether `decode_registry_entry` would accept it. Asks the same rules, but builds no object."""
    return type(value) is dict and all(
        rule.fits(value[key] if rule.convert is None else rule.convert(value[key])) if key in value else optional
        for key, rule, optional in _ENTRY_RULES
    )


def _ill_formed(expected: str) -> InvalidDocument:
    return InvalidDocument("registry", (Problem((), expected, _ILL_FORMED),))


def _too_long(path: Path) -> InvalidDocument:
    return InvalidDocument("registry", (Problem(path, f"at most {MAX_ENTRY} characters"),))
