"""The rules for fields: each has a predicate, and words for errors.

A rule is written once, here or beside its field, and used in two places: attrs calls it as the field's validator when a
value is made in Python; the codec calls `read` when it comes from JSON.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from typing import Any, Final, TypeVar

from asap_core.arguments import NamedField

T = TypeVar("T")

# The longest that the reference accepts (docs/wire.md §1.3). RFC 8141 has no limit.
MAX_URN: Final = 256


class InvalidValue(ValueError):
    """A value breaks a rule. `expected` completes "expected …"; the value itself isn't stored."""

    def __init__(self, expected: str, *, name: str = "") -> None:
        super().__init__(f"{name}: expected {expected}" if name else f"expected {expected}")
        self.expected = expected


class Rule:
    """What a field may hold.

    expected: the rule in words; completes "expected …".
    fits: the predicate.
    convert: makes the Python value from the JSON one, if they differ.
    leaf: false if the field holds another class of the model, which the codec reads by that class's own rules.
    exact: the type, if the rule is no more than a type.
    nullable: whether null is valid too.
    """

    __slots__ = ("convert", "exact", "expected", "fits", "leaf", "nullable")

    def __init__(
        self,
        expected: str,
        fits: Callable[[object], bool],
        *,
        convert: Callable[[object], object] | None = None,
        leaf: bool = True,
        exact: type | None = None,
        nullable: bool = False,
    ) -> None:
        self.expected = expected
        self.fits = fits
        self.convert = convert
        self.leaf = leaf
        self.exact = exact
        self.nullable = nullable

    def __call__(self, _instance: object, attribute: NamedField, value: Any) -> None:
        """Validate: attrs' interface of a validator. Raises `InvalidValue`.

        value: `Any`, since type checkers take the field's type for this one.
        """
        if not self.fits(value):
            raise InvalidValue(self.expected, name=attribute.name)

    def read(self, value: object, _type: object = None) -> object:
        """Read the value from JSON: cattrs' interface of a structure hook. Raises `InvalidValue`."""
        if self.convert is not None:
            value = self.convert(value)
        if not self.fits(value):
            raise InvalidValue(self.expected)
        return value


def array(value: object) -> Any:
    """Convert a list to a tuple. Returns anything else unchanged, for the rule to refuse."""
    return tuple(value) if type(value) is list else value


def absent_or(rule: Rule) -> Rule:
    """Accept null, or a value that obeys `rule`."""
    convert = rule.convert
    return Rule(
        f"{rule.expected}, or null",
        lambda value: value is None or rule.fits(value),
        convert=None if convert is None else lambda value: None if value is None else convert(value),
        leaf=rule.leaf,
        exact=rule.exact,
        nullable=True,
    )


def made_of(kind: type, expected: str) -> Rule:
    """Accept an instance of `kind`, a class of the model."""
    return Rule(expected, lambda value: isinstance(value, kind), leaf=False)


def array_of(kind: type, expected: str) -> Rule:
    """Accept an array of instances of `kind`, a class of the model."""
    return Rule(
        expected, lambda value: type(value) is tuple and all(isinstance(item, kind) for item in value), leaf=False
    )


def matching(pattern: re.Pattern[str], expected: str, *, longest: int) -> Rule:
    """Accept text of at most `longest` characters that `pattern` matches whole."""
    # The same few names recur, and a cache look-up takes a third of the time of a match. At most 0.3 MB.
    matches = lru_cache(maxsize=1024)(lambda value: pattern.fullmatch(value) is not None)
    return Rule(expected, lambda value: type(value) is str and len(value) <= longest and matches(value))


def one_of(kind: type[Enum]) -> Rule:
    """Accept one of an enumeration's values, converted to its member."""
    words = ", ".join(str(member.value) for member in kind)
    members = {member.value: member for member in kind}
    return Rule(
        f"one of {words}",
        lambda value: isinstance(value, kind),
        convert=lambda value: members.get(value, value) if type(value) is str else value,
    )


def integer(*, least: int | None = None, most: int | None = None) -> Rule:
    """Accept an integer within bounds. true, false and 1.0 aren't integers here."""
    return Rule(
        _bounded("a whole number", least, most),
        lambda value: type(value) is int and (least is None or value >= least) and (most is None or value <= most),
    )


# The largest double. Most peers read a larger integer as infinity (RFC 8259 §6).
_HUGE: Final = 1.7976931348623157e308


def number(*, least: float | None = None, most: float | None = None) -> Rule:
    """Accept a finite number within bounds."""
    return Rule(
        _bounded("a number", least, most),
        lambda value: (
            (type(value) is int or type(value) is float)
            and -_HUGE < value < _HUGE
            and (least is None or value >= least)
            and (most is None or value <= most)
        ),
    )


def _bounded(noun: str, least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f"{noun} from {least} to {most}"
    if least is not None:
        return f"{noun}, {least} or more"
    return noun if most is None else f"{noun}, {most} or less"


def several(rule: Rule) -> Rule:
    """Accept an array whose items all obey `rule`, converted to a tuple."""
    convert = rule.convert or (lambda item: item)
    return Rule(
        f"an array, each item {rule.expected}",
        lambda value: type(value) is tuple and all(map(rule.fits, value)),
        convert=lambda value: tuple(map(convert, value)) if type(value) is list or type(value) is tuple else value,
    )


def one_or_more(rule: Rule) -> Rule:
    """As `several`, with at least one item."""
    array = several(rule)
    return Rule(
        f"a non-empty array, each item {rule.expected}",
        lambda value: array.fits(value) and value != (),
        convert=array.convert,
    )


_LENIENT: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[Tt ](\d\d:\d\d)(:\d\d)?(?:\.(\d{1,18}))?(?:([Zz])|([+-]\d\d:?\d\d))?)?", re.ASCII
)
_UNIX: Final = re.compile(r"-?\d{1,15}(?:\.\d{1,9})?", re.ASCII)
# The reference reads larger numbers as milliseconds: as seconds they are beyond the year 2600.
_MILLISECONDS_ABOVE: Final = 2e10
# The form that nearly every peer sends, 2026-11-23T09:15:52.739152Z: `fromisoformat` alone reads it in a third of the
# time.
_CANONICAL: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII).fullmatch
_CANONICAL_LENGTH: Final = 27


def parse_timestamp(value: object) -> Any:
    """Read a timestamp in any form that peers send. Returns other values unchanged, for the rule to refuse.

    RFC 3339 with `Z` or an offset; a space instead of `T`; seconds may be missing; fractions are cut to microseconds;
    no offset means UTC; numbers and digit strings are Unix seconds, or milliseconds above 2e10; a bare date is midnight
    UTC. ISO's basic format and booleans aren't timestamps. Source: docs/wire.md §1.2.
    """
    if type(value) is str:
        if len(value) == _CANONICAL_LENGTH and _CANONICAL(value) is not None:
            try:
                return datetime.fromisoformat(value)  # in UTC, since it ends in Z
            except ValueError:
                return value
        return _parse_text(value)
    if type(value) is int or type(value) is float:
        return _from_unix(value, value)
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return value


def _parse_text(text: str) -> datetime | str:
    match = _LENIENT.fullmatch(text)
    if match is None:
        return _from_unix(float(text), text) if _UNIX.fullmatch(text) else text
    date, minutes, seconds, fraction, zulu, offset = match.groups()
    if minutes is None:
        return _from_iso(f"{date}T00:00:00+00:00", text)
    if fraction is not None and seconds is None:
        return text
    micros = f".{fraction[:6]:0<6}" if fraction else ""
    zone = "+00:00" if zulu or not offset else offset
    return _from_iso(f"{date}T{minutes}{seconds or ':00'}{micros}{zone}", text)


def _from_iso(iso: str, otherwise: str) -> datetime | str:
    try:
        parsed = datetime.fromisoformat(iso)
        # An offset may move the calendar's first or last day out of its range: OverflowError.
        return parsed.astimezone(UTC)
    except (ValueError, OverflowError):
        return otherwise


def _from_unix(seconds: float, otherwise: T) -> datetime | T:
    if not -_HUGE < seconds < _HUGE:
        return otherwise
    if abs(seconds) > _MILLISECONDS_ABOVE:
        seconds /= 1000
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return otherwise


TEXT: Final = Rule("a string", lambda value: type(value) is str, exact=str)
NONEMPTY: Final = Rule("a string that isn't empty", lambda value: type(value) is str and value != "")
TEXTS: Final = several(TEXT)
BOOLEAN: Final = Rule("true or false", lambda value: value is True or value is False, exact=bool)
OBJECT: Final = Rule("an object", lambda value: type(value) is dict, exact=dict)
URN: Final = matching(
    # One or two lower-case segments. `matching` uses fullmatch: `$` would accept a trailing newline.
    re.compile(r"urn:asap:agent:[a-z0-9-]+(?::[a-z0-9-]+)?"),
    "an agent URN such as urn:asap:agent:name or urn:asap:agent:name:v1, at most 256 characters",
    longest=MAX_URN,
)
TEXTS_BY_NAME: Final = Rule(
    "an object whose values are strings",
    lambda value: type(value) is dict and all(type(item) is str for item in value.values()),
)
DATE_TIME: Final = Rule(
    "an RFC 3339 date and time such as 2026-02-10T12:00:00.123456Z",
    lambda value: isinstance(value, datetime) and value.tzinfo is not None,
    convert=parse_timestamp,
)
