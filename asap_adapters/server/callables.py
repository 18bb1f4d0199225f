"""Checks of a user's functions: whether they're async, and whether they take the arguments that they'll get.

With `inspect`, which the core's `asap_core.arguments` can't use.
"""

import inspect
from functools import partial
from typing import Any

from asap_core.arguments import expect_function, expect_mapping


def is_async(function: object) -> bool:
    """Whether calling it returns a coroutine. Sees through partials and objects with an async `__call__`."""
    while isinstance(function, partial):
        function = function.func
    is_one = inspect.iscoroutinefunction
    return is_one(function) or is_one(getattr(function, "__call__", None))  # noqa: B004 - what it is, not whether it can


def expect_callable(name: str, function: object, form: str) -> None:
    """Raise ValueError if it can't be called with the arguments of `form`, such as `(request, context)`."""
    expect_function(name, function, form)
    if not _takes(function, form.count(",") + 1):
        raise ValueError(f"{name}: expected a function {form}, async or not; this one takes other arguments")


def _takes(function: Any, arguments: int) -> bool:
    try:
        # Not what it wraps: the wrapper is what is called.
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # some that are written in C have none
        return True
    try:
        signature.bind(*[None] * arguments)
    except TypeError:
        return False
    return True


def expect_handlers(name: str, handlers: object, example: str) -> None:
    """Raise ValueError if it isn't a mapping from texts to handlers."""
    expect_mapping(name, handlers, str, example)
    for key, handler in dict(handlers).items():  # type: ignore[call-overload] # it is a mapping
        expect_callable(f"{name}[{key!r}]", handler, "(request, context)")
