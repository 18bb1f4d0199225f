"""Runs a program's async function on trio or asyncio, and ends what it serves in order on SIGTERM."""

import os
import signal
import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from types import CoroutineType
from typing import Final, TypeVar

import anyio
from attrs import field, frozen

T = TypeVar("T")


@frozen(eq=False)
class _Program:
    """What the servers of one `run` share.

    stop: ends those that were given no event to stop by.
    receives: is held by the one of them that receives the signal for all.
    thread: where it runs. Another thread that it starts may inherit its context, and has an event loop of its own.
    """

    stop: anyio.Event = field(factory=anyio.Event)
    receives: anyio.Lock = field(factory=anyio.Lock)
    thread: int = field(factory=threading.get_ident)


_PROGRAM: Final[ContextVar[_Program | None]] = ContextVar("program", default=None)


def run(main: Callable[..., Awaitable[T]], *args: object, backend: str = "trio") -> T:
    """Run an async function on trio (the default) or asyncio, and return what it returns.

    >>> run(serve, agent, {"echo": echo}, backend="asyncio")    # doctest: +SKIP

    While it serves, SIGTERM ends every `serve` in it that was given no `stop`: ports close, and running requests get
    `Policy.drain` seconds. systemd, Docker and Kubernetes end programs so. A second SIGTERM ends the program at once.
    SIGTERM keeps its meaning if the program has a handler for it, or runs this in a thread that isn't its main one.
    """
    if backend not in ("trio", "asyncio"):
        raise ValueError('expected the backend "trio" or "asyncio"')
    _expect_no_coroutine(main)

    async def whole() -> T:
        _PROGRAM.set(_Program())
        return await main(*args)

    return anyio.run(whole, backend=backend)


def _expect_no_coroutine(main: object) -> None:
    if type(main) is CoroutineType:
        main.close()
    if not callable(main):
        raise ValueError("expected a function and its arguments: run(serve, agent, handlers), not run(serve(…))")  # noqa: TRY004 - README


def stop_of_program() -> anyio.Event:
    """Return the event that stops a server that was given none. Unless `run` runs the program, nothing sets it."""
    program = _PROGRAM.get()
    return anyio.Event() if program is None or program.thread != threading.get_ident() else program.stop


async def stop_on_sigterm(stop: anyio.Event, decided: anyio.Event) -> None:
    """Set `stop` on SIGTERM, if it's the program's. Until this is cancelled the signal does nothing else.

    decided: is set when the signal has its meaning.
    """
    program = _PROGRAM.get()
    # Only the main thread can have handlers, and Windows has no such signal.
    if (
        program is not None
        and program.stop is stop
        and os.name == "posix"
        and threading.current_thread() is threading.main_thread()
    ):
        if program.receives.locked():
            decided.set()
        async with program.receives:
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                with anyio.open_signal_receiver(signal.SIGTERM) as signals:
                    decided.set()
                    async for _ in signals:
                        stop.set()
    decided.set()
