"""What a user's code raises, told apart: what ends this task by right, and what is that code's own failure.

Handlers, authenticators, stores, shares, clocks and ids are the user's, and run in the middle of somebody's request. By
right pass: our own cancellation, by a scope or, in a task that isn't ours (`our_task`), by `task.cancel()`; Ctrl-C; and
`GeneratorExit`, if the coroutine is being closed. Anything else is a failure of the one
request, SystemExit and a stray cancellation included:

    before = cancels()
    try:
        await something_of_the_users()
    except BaseException as error:
        if passes(error, before):
            raise
        report(log, "…", error=error)
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final, TypeVar

import anyio

from asap_core.interrupts import is_interrupt, leaves

Q = TypeVar("Q")
A = TypeVar("A")

# Whether a task is one of ours: of a server's connection, not of an ASGI server or of a user.
_OURS: Final = ContextVar("our_task", default=False)
_TRACEBACK: Final[Any] = BaseException.__dict__["__traceback__"]


def our_task() -> None:
    """Say that the current task is ended by scopes only, so that only a user's code in it calls its `cancel()`."""
    _OURS.set(True)


def cancels() -> float:
    """How many cancellations of this asyncio task are pending; 0 on trio. More of them later means it was cancelled.

    In a task of ours it's infinite: no number of them means that.
    """
    task = _asyncio_task()
    if task is None:
        return 0
    return math.inf if _OURS.get() else task.cancelling()


def _asyncio_task() -> "asyncio.Task[Any] | None":
    # It's None on trio; asking that way costs a twentieth of what an exception or the name of the backend does.
    loop = asyncio._get_running_loop()  # noqa: SLF001 - documented, in spite of its name
    return None if loop is None else asyncio.current_task(loop)


async def forget_cancels() -> None:
    """In a task of ours, end what a user's code began by `task.cancel()`, if no scope has been cancelled."""
    task = _asyncio_task()
    if task is None or not task.cancelling() or not _OURS.get():
        return
    if anyio.current_effective_deadline() == -math.inf:
        return
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    while task.cancelling():
        task.uncancel()


def passes(error: BaseException, before: float) -> bool:
    """Whether an exception that was caught here has to be raised again. `before` is what `cancels()` said at first."""
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
    return anyio.current_effective_deadline() == -math.inf or cancels() > before


Group = BaseExceptionGroup[BaseException]


def parted(error: BaseException) -> tuple[Group, Group] | None:
    """The cancellations and the failures in an exception that passes; None unless it's a group that has both.

    If the failures passed along, they would be what is left in the scope that is cancelled, perhaps the server's.
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
    """Log a failure, with its traceback if it has one that can be shown. A log that fails itself changes nothing."""
    try:
        log.error(message, *args, exc_info=error, stacklevel=2)
    except BaseException as worse:
        if is_interrupt(worse):
            raise
        if error is not None:
            report(log, f"{message}: %s, which can't be shown", *args, type(error).__name__)


async def asked(
    log: logging.Logger,
    what: str,
    ask: Callable[[Q], Awaitable[A]],
    question: Q,
    *,
    kinds: tuple[type, ...],
    otherwise: A,
) -> A:
    """What `ask` answers; or, logged, `otherwise`, if it breaks in any way or its answer is of none of `kinds`."""
    before = cancels()
    try:
        answer = await ask(question)
    except BaseException as error:
        if passes(error, before):
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


async def told(log: logging.Logger, what: str, tell: Callable[..., Awaitable[None]], *facts: object) -> None:
    """Tell somebody something; if that breaks, it's logged: what has been done is done."""
    before = cancels()
    try:
        await tell(*facts)
    except BaseException as error:
        if passes(error, before):
            raise
        report(log, "%s broke; the answer is given all the same", what, error=error)
