"""JSON values in Python: their types, and a copy of any value into these types, or where it isn't JSON.

Rule of the copy: none of the value's own methods run (`==`, `__class__`, `__iter__`, `__str__`), so a value that a
user's handler returns can neither misstate its type nor raise. Only `convert`, if given, may run user code.
"""

import json
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
"""A value read from JSON. Type checkers require that its type is tested before it's used."""

JsonObject = dict[str, Any]
"""A JSON object of which only its readers know the shape: a payload, metadata, claims that were checked.

Its values are `Any`: readers write `payload["city"]["name"]` without a test at each level, and writers pass any dict
with string keys.
"""

Path = tuple[str | int, ...]
Convert = Callable[[object], object]
"""Called with a value that isn't JSON. Returns its replacement, or the same object if it has none."""


class NotWritable(ValueError):
    """A value isn't JSON. `path` is its place; `expected` completes "expected …"."""

    def __init__(self, path: Path, expected: str) -> None:
        super().__init__(f"{_shown(path)}: expected {expected}")
        self.path = path
        self.expected = expected


# A path goes into one line of a log, but keys may hold any characters and have any length.
_SHOWN_STEPS: Final = 12
_SHOWN_LETTERS: Final = 40
_PLAIN_NAME: Final = re.compile(rf"[A-Za-z_][A-Za-z0-9_-]{{0,{_SHOWN_LETTERS}}}").fullmatch


def _shown(path: Path) -> str:
    """Return the path as RFC 9535 writes it, shortened. A key that isn't a plain name is escaped."""
    return "$" + "".join(map(_shown_step, path[:_SHOWN_STEPS])) + ("…" if len(path) > _SHOWN_STEPS else "")


def _shown_step(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step}" if _PLAIN_NAME(step) else f"[{step[:_SHOWN_LETTERS]!a}]"


def plain_json(value: object, *, max_depth: int, convert: Convert | None = None) -> Json:
    """Copy a value into JSON's own types. A strict reader accepts the text written from the copy.

    Tuples become arrays; keys that are numbers, true, false or null become strings, as the standard library writes
    them.
    max_depth: how many arrays and objects may be nested.
    convert: replaces values that aren't JSON.
    Raises: NotWritable for the first value that isn't JSON: NaN, sets, other objects, lone surrogates, cycles, a
    repeated key.
    """
    return _plain(value, (), max_depth, convert)


JSON_VALUES: Final = "values that JSON has (objects, arrays, strings, numbers, true, false, null)"


def _plain(value: object, path: Path, room: int, convert: Convert | None) -> Json:
    if value is None or type(value) is bool:
        return value
    kind = type(value)
    for base, copied in _SCALARS:
        if issubclass(kind, base):
            return copied(value, path)
    if not room:
        raise NotWritable(path, "fewer arrays and objects within each other, and none within itself")
    for base, members in _CONTAINERS:
        if issubclass(kind, base):
            return members(value, path, room - 1, convert)
    converted = _converted(value, path, convert)
    # An object counts as a level by itself. Any other result counts as one too, so that no chain of conversions is
    # endless.
    return _plain(converted, path, room if type(converted) is dict else room - 1, convert)


def _text(value: str, path: Path) -> str:
    text = str.__str__(value)  # a subclass's characters, whatever its own __str__ says
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise NotWritable(path, "strings without lone surrogates (RFC 7493 §2.1)") from None
    return text


# CPython refuses to read longer integers, since reading them takes quadratic time.
_TOO_LONG: Final = 10**4_300


def _integer(value: int, path: Path) -> int:
    number = int.__pos__(value)
    if not -_TOO_LONG < number < _TOO_LONG:
        raise NotWritable(path, "numbers of at most 4,300 digits")
    return number


def _number(value: float, path: Path) -> float:
    number = float.__pos__(value)
    if not math.isfinite(number):
        raise NotWritable(path, "finite numbers; NaN and Infinity aren't JSON")
    return number


_SCALARS: Final[tuple[tuple[type, Callable[[Any, Path], Json]], ...]] = (
    (str, _text),
    (int, _integer),
    (float, _number),
)


def _object(value: dict[object, object], path: Path, room: int, convert: Convert | None) -> dict[str, Json]:
    made: dict[str, Json] = {}
    for key, item in dict.items(value):
        name = _key(key, path)
        if name in made:
            raise NotWritable((*path, name), "keys that are unique within their object, also once they're strings")
        made[name] = _plain(item, (*path, name), room, convert)
    return made


def _key(key: Any, path: Path) -> str:
    kind = type(key)
    if issubclass(kind, str):
        return _text(key, path)
    if key is None or issubclass(kind, (int, float)):
        return json.dumps(_plain(key, path, 0, None))
    raise NotWritable(path, f"keys that are strings, not {kind.__name__}")


def _array(items: Iterable[object], path: Path, room: int, convert: Convert | None) -> list[Json]:
    return [_plain(item, (*path, index), room, convert) for index, item in enumerate(items)]


_CONTAINERS: Final[tuple[tuple[type, Callable[[Any, Path, int, Convert | None], Json]], ...]] = (
    (dict, _object),
    (list, lambda value, *rest: _array(list.__iter__(value), *rest)),
    (tuple, lambda value, *rest: _array(tuple.__iter__(value), *rest)),
)


def _converted(value: object, path: Path, convert: Convert | None) -> object:
    kind = type(value).__name__
    try:
        converted = value if convert is None else convert(value)
    except Exception as error:  # noqa: BLE001 - a user's properties may raise anything
        raise NotWritable(path, f"a {kind} whose fields can be read; {type(error).__name__} was raised") from None
    if converted is value:
        raise NotWritable(path, f"{JSON_VALUES}, not {kind}")
    return converted
