"""Checks of arguments: a wrong one raises ValueError, in one line that says what was expected.

Every check of a user's argument is one of these, so that the errors read alike. Rules:

* The value isn't shown: it may be a key, a token or a whole manifest. Its type may be.
* A wrong type is a ValueError too, as the README promises: callers have one exception to catch.
* A check is made where the argument is passed, before anything is asked or sent: by a program, at its first step.

An `ArgumentRule` is made of predicates (`is_…`). The `expect_…` functions have sentences of their own.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial, wraps
from types import UnionType
from typing import Any, Final, ParamSpec, Protocol, TypeVar

from attrs import AttrsInstance, fields, frozen

P = ParamSpec("P")
T = TypeVar("T")


Fits = Callable[[object], bool]


class NamedField(Protocol):
    """A field, as attrs passes it to the field's validator."""

    @property
    def name(self) -> str:
        """The field's name."""


@frozen
class ArgumentRule:
    """What an argument has to be. `expected` completes "expected …", and `fits` decides."""

    expected: str
    fits: Fits

    def check(self, name: str, value: object) -> None:
        """Raise ValueError if the value of the argument `name` isn't that."""
        if not self.fits(value):
            raise ValueError(f"{name}: expected {self.expected}")

    def __call__(self, _instance: object, attribute: NamedField, value: Any) -> None:
        """Check a field: attrs calls its validators so, and takes the field's type from `value`."""
        self.check(attribute.name, value)


def is_instance(*kinds: type) -> Fits:
    """Whether a value is of one of these types."""
    return lambda value: isinstance(value, kinds)


def is_or_none(fits: Fits) -> Fits:
    """Whether a value is None or fits."""
    return lambda value: value is None or fits(value)


def is_list_of(fits: Fits) -> Fits:
    """Whether a value is a collection whose items fit. One text or mapping isn't: iterating it gives other items."""
    return lambda value: (
        isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping) and all(map(fits, value))
    )


def is_dict_of(fits: Fits) -> Fits:
    """Whether a value is a mapping from texts to values that fit."""
    return lambda value: (
        isinstance(value, Mapping)
        and all(isinstance(key, str) for key in value)
        and all(fits(each) for each in value.values())
    )


def has_methods(*names: str) -> Fits:
    """Whether a value is an object, not a class, with these methods."""
    return lambda value: all(callable(getattr(value, name, None)) for name in names) and not isinstance(value, type)


def replaced(**now: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function that had other keyword arguments in an earlier version.

    now: for each old keyword, what to write instead. A call that still passes one raises a TypeError that says so.
    """

    def decorated(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> T:
            for name in kwargs:
                if name in now:
                    raise TypeError(f"{name}= has been replaced: write {now[name]}")
            return function(*args, **kwargs)

        return called

    return decorated


def moved_to(argument: str, options: type[AttrsInstance]) -> dict[str, str]:
    """Return, for `replaced`, that the options of this class were keywords. `argument`: how it's written now."""
    return dict.fromkeys((option.name for option in fields(options)), f"{argument}, which has an option of this name")


def expect_kind(name: str, value: object, kind: type | UnionType, example: str) -> None:
    """Raise ValueError if `value` isn't of this type; `example` shows one that would do."""
    if not isinstance(value, kind):
        raise ValueError(f"{name}: expected {_of(kind)}, such as {example}; not {_described(value)}")  # noqa: TRY004 - README


def _of(kind: type | UnionType) -> str:
    kinds = [kind] if isinstance(kind, type) else [one for one in kind.__args__ if one is not type(None)]
    return " or ".join(one.__name__ for one in kinds)


def _described(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def expect_texts(name: str, values: Iterable[str], example: str) -> tuple[str, ...]:
    """Return several strings, or raise ValueError: one alone would be read as its letters."""
    if not isinstance(values, str | bytes) and isinstance(values, Iterable):
        texts = tuple(values)
        if all(isinstance(each, str) for each in texts):
            return texts
    raise ValueError(f"{name}: expected strings, such as {example}")


def expect_whole(name: str, value: object, *, least: int, most: int) -> None:
    """Raise ValueError if `value` isn't a whole number in this range."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        shown = "" if isinstance(value, int) else f"; not {_described(value)}"
        raise ValueError(f"{name}: expected a whole number from {least} to {most}{shown}")


def expect_mapping(name: str, value: object, key: type, example: str) -> None:
    """Raise ValueError if `value` isn't a mapping whose keys are of this type."""
    if not isinstance(value, Mapping) or not all(isinstance(each, key) for each in value):
        shown = "" if isinstance(value, Mapping) else f"; not {_described(value)}"
        raise ValueError(f"{name}: expected a mapping with keys of {key.__name__}, such as {example}{shown}")


# The flags of code objects, as the language reference lists them (§3.2.13.1); `inspect` does more than this core may.
_GENERATOR: Final = 0x20
_COROUTINE: Final = 0x80
_ASYNC_GENERATOR: Final = 0x200


def expect_function(name: str, function: object, form: str, *, asynchronous: bool = True) -> None:
    """Raise ValueError if it can't be called as `form` says, such as `(request, context)`.

    Generator functions return nothing before they're iterated, so they're refused; async ones too, unless
    `asynchronous`. How many arguments it takes isn't asked here.
    """
    expected = f"{name}: expected a function {form}" + (", async or not" if asynchronous else " that isn't async")
    if not callable(function):
        raise ValueError(f"{expected}; not {_described(function)}")  # noqa: TRY004 - README
    if _has(function, _GENERATOR | _ASYNC_GENERATOR):
        raise ValueError(f"{expected}, that returns its result; this is a generator function, with `yield` in it")
    if not asynchronous and _has(function, _COROUTINE):
        raise ValueError(f"{expected}; this is an async one")


def expect_observer(observe: object) -> None:
    """Raise ValueError if it's neither None nor a function of a decision that isn't async."""
    if observe is not None:
        expect_function("observe", observe, "(decision)", asynchronous=False)


def _has(function: object, flags: int) -> bool:
    while isinstance(function, partial):
        function = function.func
    return any(_flags(each) & flags for each in (function, getattr(function, "__call__", None)))  # noqa: B004 - what it is


def _flags(function: object) -> int:
    flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
    return flags if isinstance(flags, int) else 0
