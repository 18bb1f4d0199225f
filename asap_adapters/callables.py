"""What a function is that a user gives: async or not, and whether it takes what it will be given."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

__all__ = ["is_async"]


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine: an async function or method, an object with one, or a partial of those."""
    return _is(inspect.iscoroutinefunction, function)


def _is(asks: Callable[[Any], bool], function: Any) -> bool:
    while isinstance(function, partial):
        function = function.func
    return asks(function) or asks(getattr(function, "__call__", None))  # noqa: B004 - what it is, not whether it can
