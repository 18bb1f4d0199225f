"""What a user passes, checked where it is passed: a ValueError in one line that says the right form.

The values themselves aren't shown: among them are keys, tokens and manifests. ValueError for a wrong type too, as the
README promises: a caller has one exception to catch.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial, wraps
from types import UnionType
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def replaced(**now: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function that had other keyword arguments in an earlier version.

    now: for each of these, what a caller writes instead. Whoever still passes one gets a TypeError that says so.
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


# The flags of code objects, as the language reference lists them (§3.2.13.1); `inspect` does more than this core may.
_GENERATOR: Final = 0x20
_COROUTINE: Final = 0x80
_ASYNC_GENERATOR: Final = 0x200


def _has(function: Any, flags: int) -> bool:
    while isinstance(function, partial):
        function = function.func
    return any(_flags(each) & flags for each in (function, getattr(function, "__call__", None)))  # noqa: B004 - what it is


def _flags(function: Any) -> int:
    flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
    return flags if isinstance(flags, int) else 0
