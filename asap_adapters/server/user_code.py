"""Calls of a user's functions: whether they take the arguments, and which of their exceptions must propagate.

Handlers, authenticators, stores, limiters, clocks and sources of ids are the user's code, and run in the middle of a
request. These exceptions must propagate, and no others:

* our own cancellation: by a scope or, in a task that isn't marked with `mark_own_task`, by `task.cancel()`;
* Ctrl-C;
* `GeneratorExit`, if the coroutine is being closed.

Anything else is a failure of the one request, SystemExit and a stray cancellation included:

    before = pending_cancellations()
    try:
        await something_of_the_users()
    except BaseException as error:
        if must_propagate(error, before):
            raise
        report(log, "…", error=error)
"""

import inspect
import logging
import math
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from types import GetSetDescriptorType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio
import anyio.lowlevel

from asap_core.arguments import expect_function, expect_mapping
from asap_core.keyboard_interrupt import is_interrupt, leaves

if TYPE_CHECKING:
    import asyncio

Q = TypeVar("Q")
A = TypeVar("A")

# Whether this library started the task (a connection's, say), not an ASGI server or a user.
_OURS: Final = ContextVar("our_task", default=False)
_TRACEBACK: Final[GetSetDescriptorType] = BaseException.__dict__["__traceback__"]


def mark_own_task() -> None:
    """Mark the current task as one that this library ends by scopes only. Then `task.cancel()` is a user's call."""
    _OURS.set(True)


def pending_cancellations() -> int:
    """Return how many cancellations of this asyncio task are pending. If it's more later, the task was cancelled.

    Returns 0 on trio, and in a task marked with `mark_own_task`, since no number of them counts there.
    """
    task = None if _OURS.get() else _asyncio_task()
    return 0 if task is None else task.cancelling()


def _asyncio_task() -> "asyncio.Task[object] | None":
    # Not imported here: a server on trio starts without asyncio. Another thread may be importing it at this moment.
    running = getattr(sys.modules.get("asyncio.events"), "_get_running_loop", None)
    loop = None if running is None else running()
    if loop is None:
        return None
    import asyncio  # noqa: PLC0415 - it's loaded, since a loop of it runs

    return asyncio.current_task(loop)


async def forget_cancellations() -> None:
    """Undo `task.cancel()` calls of a user's code, in a marked task, unless a scope has been cancelled."""
    if not _OURS.get():
        return
    task = _asyncio_task()
    if task is None or not task.cancelling():
        return
    if anyio.current_effective_deadline() == -math.inf:
        return
    with suppress(anyio.get_cancelled_exc_class()):
        await anyio.lowlevel.checkpoint()
    while task.cancelling():
        task.uncancel()


def must_propagate(error: BaseException, before: int) -> bool:
    """Whether a caught exception has to be raised again. `before` is what `pending_cancellations()` was at first."""
    kind = type(error)
    if issubclass(kind, Exception):
        return False
    if is_interrupt(error):
        return True
    if issubclass(kind, GeneratorExit):
        # Closing raises a new one in each coroutine, at its await; a user's has come up from a frame below.
        # The descriptor: the attribute may be one of the exception's class.
        traceback = _TRACEBACK.__get__(error)
        return traceback is None or traceback.tb_next is None
    cancelled = anyio.get_cancelled_exc_class()
    if not any(issubclass(type(leaf), cancelled) for leaf in leaves(error)):
        return False
    return anyio.current_effective_deadline() == -math.inf or pending_cancellations() > before


def is_cancellation(error: BaseException) -> bool:
    """Whether an exception is a cancellation, or a group of nothing else."""
    cancelled = anyio.get_cancelled_exc_class()
    return all(issubclass(type(leaf), cancelled) for leaf in leaves(error))


Group = BaseExceptionGroup[BaseException]


def partition(error: BaseException) -> tuple[Group, Group] | None:
    """Split a group that must propagate into its cancellations and its failures. Returns None unless it has both.

    The failures must not propagate too: the cancelled scope, perhaps the server's, would be left with them.
    """
    if not issubclass(type(error), BaseExceptionGroup) or is_interrupt(error):
        return None
    cancelled = anyio.get_cancelled_exc_class()
    ours = [leaf for leaf in leaves(error) if issubclass(type(leaf), cancelled)]
    failures = [leaf for leaf in leaves(error) if not issubclass(type(leaf), cancelled)]
    if not ours or not failures:
        return None
    return BaseExceptionGroup("cancelled", ours), BaseExceptionGroup("failed while being cancelled", failures)


def report(log: logging.Logger, message: str, *args: object, error: BaseException | None = None) -> None:
    """Log a failure, with its traceback if that can be formatted. A logging handler that raises changes nothing."""
    try:
        log.error(message, *args, exc_info=error, stacklevel=2)
    except BaseException as worse:
        if is_interrupt(worse):
            raise
        if error is not None:
            report(log, f"{message}: %s, which can't be shown", *args, type(error).__name__)


async def ask_user_code(
    log: logging.Logger,
    what: str,
    ask: Callable[[Q], Awaitable[A]],
    question: Q,
    *,
    kinds: tuple[type, ...],
    otherwise: A,
) -> A:
    """Return what `ask` answers. If it raises, or the answer isn't of these types, log that and return `otherwise`."""
    before = pending_cancellations()
    try:
        answer = await ask(question)
    except BaseException as error:
        if must_propagate(error, before):
            raise
        report(log, "%s broke, so the request is refused", what, error=error)
        return otherwise
    if issubclass(type(answer), kinds):
        return answer
    words = "%s returned %s, so the request is refused: expected %s"
    report(log, words, what, type(answer).__name__, _named(kinds))
    return otherwise


def _named(kinds: tuple[type, ...]) -> str:
    return ", ".join("None" if kind is type(None) else kind.__name__ for kind in kinds if kind.__name__[0] != "_")


async def tell_user_code(log: logging.Logger, what: str, tell: Callable[..., Awaitable[None]], *facts: object) -> None:
    """Call a user's function for its effect. If it raises, that is only logged: the request's work is done already."""
    before = pending_cancellations()
    try:
        await tell(*facts)
    except BaseException as error:
        if must_propagate(error, before):
            raise
        report(log, "%s broke; the answer is given all the same", what, error=error)


# --- checks before it's called ----------------------------------------------------------------------------------------


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
