"""Ends waits that have lasted too long: one task looks at all connections, instead of a timer for each wait."""

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Protocol

import anyio
from attrs import define, field

from asap_adapters.system import loop_time, runs_on_asyncio

# Seconds. A wait that's longer than this ends at its exact time; a shorter one up to so much later. A look at 10,000
# connections takes a millisecond.
TICK: Final = 0.25
NEVER: Final = math.inf


class Waiting(Protocol):
    """What a sweeper looks at: until when its present wait may last, on the loop's clock; `NEVER` if it has no end."""

    until: float

    def expire(self) -> None:
        """End the present wait, which has lasted too long."""
        ...

    def hasten(self, deadline: float) -> None:
        """Let the present wait last until `deadline` at most if it's for the rest of a request."""
        ...


@define(eq=False)
class Sweeper:
    """The deadlines of one server's connections.

    time: the loop's clock.
    last: until when the rest of a request may be awaited at most; a server that stops sets it by `end_reading`.
    """

    time: Callable[[], float] = field(factory=loop_time)
    last: float = NEVER
    _waiting: set[Waiting] = field(factory=set)
    _first: anyio.Event = field(factory=anyio.Event)

    def add(self, waiting: Waiting) -> None:
        """Look at this one from now on."""
        self._waiting.add(waiting)
        self._first.set()

    def discard(self, waiting: Waiting) -> None:
        """Look at it no more."""
        self._waiting.discard(waiting)

    def end_reading(self, deadline: float) -> None:
        """Let nobody wait for the rest of a request after `deadline`."""
        self.last = deadline
        for each in self._waiting:
            each.hasten(deadline)

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            if not self._waiting:
                self._first = anyio.Event()
                await self._first.wait()
            await anyio.sleep(self.sweep())

    def sweep(self) -> float:
        """End every wait that's over. Returns the seconds until the next look."""
        now = self.time()
        soonest = now + TICK
        for each in self._waiting:
            if each.until <= now:
                each.expire()
            elif each.until < soonest:
                soonest = each.until
        return soonest - now


@asynccontextmanager
async def sweeping() -> AsyncIterator[Sweeper]:
    """A block in which a sweeper runs."""
    async with anyio.create_task_group() as group:
        sweeper = Sweeper()
        group.start_soon(sweeper.run)
        yield sweeper
        group.cancel_scope.cancel()


@asynccontextmanager
async def sweeping_beside() -> AsyncIterator[Sweeper]:
    """A block in which a sweeper runs, and whose exceptions no group wraps. On asyncio another task may leave it.

    So does pytest-asyncio, which enters and leaves a fixture in two tasks.
    """
    sweeper = Sweeper()
    if runs_on_asyncio():
        import asyncio  # noqa: PLC0415 - on trio it needn't be loaded

        task = asyncio.create_task(sweeper.run())
        try:
            yield sweeper
        finally:
            task.cancel()
            await asyncio.wait([task])
        return
    group = anyio.create_task_group()
    await group.__aenter__()
    group.start_soon(sweeper.run)
    try:
        yield sweeper
    finally:
        group.cancel_scope.cancel()
        await group.__aexit__(None, None, None)
