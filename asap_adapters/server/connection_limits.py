"""How many connections a server has, and how long each may wait: by `ConnectionSlots`, and one `Sweeper` for all waits.

When all slots are taken, the connection that has been idle longest is closed for a new one. Otherwise a few
addresses that open all connections and send nothing would keep everyone else out. The same holds for the connections of
one address, which have a limit of their own. nginx does this with its reusable connections; RFC 9112 §9.5 lets a server
end an idle connection at any time. One that is told to close and finds a request in its socket stays, and the next one
is told.

The sweeper ends waits that have lasted too long: one task looks at all connections, instead of a timer for each wait.
"""

import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final, Protocol

import anyio
from attrs import define, field

from asap_adapters.system import loop_time, runs_on_asyncio

# A connection without a request yet counts as idle from this long after it came: its peer needs a round trip to write.
# Longer, and peers that only connect would outlast those that call now and then.
_GRACE: Final = 1.0
# Accepted connections that queue for a slot. It takes three rounds of the event loop until an idle connection has ended
# and another is served in its place, and at most 16 are accepted in a round. All others wait in the kernel.
_QUEUE: Final = 64


@define(eq=False)
class ConnectionSlot:
    """One connection's slot. While the connection waits for a request, it may be closed for another one."""

    _slots: "ConnectionSlots"
    address: str = ""
    """The key of the peer's address: the connections of one address have a limit of their own."""
    _cancel: Callable[[], None] | None = None
    _settled: anyio.Event | None = None
    begun: bool = False
    """Whether part of a request has arrived: a server that stops still reads the rest of it."""
    leaving: bool = False
    """Whether it was told to close for another connection."""
    served: bool = False
    """Whether a request has come."""
    idle_since: float = 0.0
    """When it began to wait for a request; `_GRACE` later if it's the first."""

    @property
    def wanted(self) -> bool:
        """Whether a new connection needs a slot that no closing connection is about to free."""
        return self._slots.short

    async def taken(self) -> None:
        """Wait until the connection has its slot."""
        await self._slots.taken(self)

    def waits(self, cancel: Callable[[], None], now: float) -> None:
        """Wait for a request. If a new connection needs the slot, `leaving` is set and `cancel` called."""
        self._cancel, self.begun = cancel, False
        self._slots.waits(self, now)

    def waits_no_more(self) -> None:
        """The wait is over, for whatever reason."""
        self._slots.waits_no_more(self)

    def stays(self) -> None:
        """The request has come. The connection isn't closed, even if it was told to close at the very moment."""
        self._keep()
        self.served = True

    def _keep(self) -> None:
        self._slots.waits_no_more(self)
        if self.leaving:
            self.leaving = False
            self._settle()
            self._slots.stays()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A block that waits for what precedes a request, and is cancelled if a new connection needs the slot."""
        with anyio.CancelScope() as scope:
            self.waits(scope.cancel, anyio.current_time())
            try:
                yield
            finally:
                self.waits_no_more()
        if not scope.cancelled_caught:
            self._keep()

    def give_way(self) -> anyio.Event:
        """End the wait for a request. The event is set when the connection is closed, or stays after all."""
        self.leaving, self._settled = True, anyio.Event()
        if self._cancel is not None:
            self._cancel()
        return self._settled

    def give_back(self) -> None:
        """The connection is over."""
        self._settle()
        self._slots.given_back(self)

    def _settle(self) -> None:
        if self._settled is not None:
            self._settled.set()


@define(eq=False)
class ConnectionSlots:
    """The slots of one server, `most` of them."""

    most: int
    _taken: int = field(default=0, init=False)
    # In the order in which they came. The event is set when the connection has its slot.
    _queue: dict[ConnectionSlot, anyio.Event] = field(factory=dict, init=False)
    _queue_moved: anyio.Event | None = field(default=None, init=False)
    # Each in the order of `idle_since`.
    _waiting_first: dict[ConnectionSlot, None] = field(factory=dict, init=False)
    _waiting_again: dict[ConnectionSlot, None] = field(factory=dict, init=False)
    _leaving: int = field(default=0, init=False)

    @property
    def short(self) -> bool:
        """Whether more connections queue than are closing."""
        return len(self._queue) > self._leaving

    def enter(self, address: str = "") -> ConnectionSlot:
        """Return the slot of a new connection, which isn't served before `ConnectionSlot.taken`.

        It's a free one, or that of the connection that has been idle longest, or the next that is freed.
        """
        slot = ConnectionSlot(self, address)
        if self._taken < self.most:
            self._taken += 1
        else:
            self._queue[slot] = anyio.Event()
            self._make_room()
        return slot

    async def taken(self, slot: ConnectionSlot) -> None:
        """Wait until a connection has its slot."""
        if slot in self._queue:
            await self._queue[slot].wait()

    async def queue_has_room(self) -> None:
        """Wait until another connection may queue."""
        while len(self._queue) >= _QUEUE:
            self._queue_moved = self._queue_moved or anyio.Event()
            await self._queue_moved.wait()

    def waits(self, slot: ConnectionSlot, now: float) -> None:
        """A connection waits for a request, or still does."""
        waiting = self._waiting(slot)
        if slot not in waiting:
            slot.idle_since = now if slot.served else now + _GRACE
            waiting[slot] = None
        if self._queue:
            self._make_room()

    def waits_no_more(self, slot: ConnectionSlot) -> None:
        """The request is there, or the wait is over."""
        self._waiting(slot).pop(slot, None)

    def stays(self) -> None:
        """A connection that was told to close stays, so another one must close."""
        self._leaving -= 1
        self._make_room()

    def given_back(self, slot: ConnectionSlot) -> None:
        """A connection is over."""
        self._leaving -= slot.leaving
        if slot in self._queue:
            del self._queue[slot]
        elif self._queue:
            self._queue.pop(next(iter(self._queue))).set()
        else:
            self._taken -= 1
        if self._queue_moved is not None and len(self._queue) < _QUEUE:
            self._queue_moved.set()
            self._queue_moved = None

    def end_waiting(self) -> None:
        """Close the connections that have no part of a request now."""
        for slot in [slot for slot in (*self._waiting_first, *self._waiting_again) if not slot.begun]:
            self._dismiss(slot)

    def dismiss(self, address: str) -> anyio.Event | None:
        """Close the connection of `address` that has waited longest for a request; see `ConnectionSlot.give_way`.

        Returns None if none of them waits for a request.
        """
        longest = self._longest_idle(lambda slot: slot.address == address)
        return None if longest is None else self._dismiss(longest)

    def _make_room(self) -> None:
        while self.short and (longest := self._longest_idle(lambda _: True)) is not None:
            self._dismiss(longest)

    def _longest_idle(self, may_be: Callable[[ConnectionSlot], bool]) -> ConnectionSlot | None:
        first = next(filter(may_be, self._waiting_first), None)
        again = next(filter(may_be, self._waiting_again), None)
        if first is None or again is None:
            return first or again
        return min(first, again, key=lambda slot: slot.idle_since)

    def _waiting(self, slot: ConnectionSlot) -> dict[ConnectionSlot, None]:
        return self._waiting_again if slot.served else self._waiting_first

    def _dismiss(self, slot: ConnectionSlot) -> anyio.Event:
        del self._waiting(slot)[slot]
        self._leaving += 1
        return slot.give_way()


# --- deadlines --------------------------------------------------------------------------------------------------------

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
