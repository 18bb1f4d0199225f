"""Connection slots. When all are taken, the connection that has been idle longest is closed for a new one.

Otherwise a few addresses that open all connections and send nothing would keep everyone else out. The same holds for
the connections of one address, which have a limit of their own. nginx does this with its reusable connections; RFC 9112
§9.5 lets a server end an idle connection at any time. One that is told to close and finds a request in its socket
stays, and the next one is told.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import anyio
from attrs import define, field

# A connection without a request yet counts as idle from this long after it came: its peer needs a round trip to write.
# Longer, and peers that only connect would outlast those that call now and then.
_GRACE: Final = 1.0


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
    """The slots of one server, `most` of them; any number of new connections may queue for one."""

    most: int
    _free: anyio.Semaphore = field(init=False)
    # Each in the order of `idle_since`.
    _waiting_first: dict[ConnectionSlot, None] = field(factory=dict, init=False)
    _waiting_again: dict[ConnectionSlot, None] = field(factory=dict, init=False)
    _queueing: int = field(default=0, init=False)
    _leaving: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._free = anyio.Semaphore(self.most)

    @property
    def short(self) -> bool:
        """Whether more connections queue than are closing."""
        return self._queueing > self._leaving

    async def take(self, address: str = "") -> ConnectionSlot:
        """Take a slot: a free one, or that of the connection that has been idle longest, or the next that is freed."""
        try:
            self._free.acquire_nowait()
        except anyio.WouldBlock:
            self._queueing += 1
            try:
                self._make_room()
                await self._free.acquire()
            finally:
                self._queueing -= 1
        return ConnectionSlot(self, address)

    def waits(self, slot: ConnectionSlot, now: float) -> None:
        """A connection waits for a request, or still does."""
        waiting = self._waiting(slot)
        if slot not in waiting:
            slot.idle_since = now if slot.served else now + _GRACE
            waiting[slot] = None
        if self._queueing:
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
        self._free.release()

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
