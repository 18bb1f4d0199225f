"""The places of connections. When full, the connection that has been idle longest is closed for a new one.

Otherwise a few addresses that open all connections and say nothing would keep everybody out. The same holds among the
connections of one address, which have a limit of their own. nginx does this with its reusable connections; RFC 9112
§9.5 lets a server end an idle connection at any time.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import anyio
from attrs import define, field


@define(eq=False)
class Place:
    """One connection's place. While it waits for a request it may have to give way."""

    _places: "Places"
    address: str = ""
    """Whose it is: those of one address have a limit together."""
    _scope: anyio.CancelScope | None = None
    _settled: anyio.Event | None = None
    begun: bool = False
    """Whether something of a request is there: when the server stops, it may still come."""
    leaving: bool = False
    """Whether it was told to give way."""

    @property
    def wanted(self) -> bool:
        """Whether somebody needs a place, and nobody's leaving for it."""
        return self._places.short

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait for a request in here; it's cancelled, and `leaving` set, where a newcomer needs the place."""
        with anyio.CancelScope() as scope:
            self._scope, self.begun = scope, False
            self._places.waits(self)
            try:
                yield
            finally:
                self._places.waits_no_more(self)
        if self.leaving and not scope.cancelled_caught:  # its request came at the very moment
            self.leaving = False
            self._settle()
            self._places.stays()

    def reading(self, deadline: float) -> AbstractContextManager[None]:
        """Read a head or a body in here, until `deadline`, or until the server that stops has waited long enough."""
        return self._places.reading(deadline)

    def give_way(self) -> anyio.Event:
        """End the wait. What is returned is set when the connection is over, or stays after all."""
        self.leaving, self._settled = True, anyio.Event()
        if self._scope is not None:
            self._scope.cancel()
        return self._settled

    def give_back(self) -> None:
        """The connection is over."""
        self._settle()
        self._places.given_back(self)

    def _settle(self) -> None:
        if self._settled is not None:
            self._settled.set()


@define(eq=False)
class Places:
    """As many places as `most`; any number may queue for them."""

    most: int
    _free: anyio.Semaphore = field(init=False)
    _waiting: dict[Place, None] = field(factory=dict, init=False)  # in order of how long
    _reading: set[anyio.CancelScope] = field(factory=set, init=False)
    _last: float = field(default=math.inf, init=False)
    _queueing: int = field(default=0, init=False)
    _leaving: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._free = anyio.Semaphore(self.most)

    @property
    def short(self) -> bool:
        """Whether more queue than are leaving."""
        return self._queueing > self._leaving

    async def take(self, address: str = "") -> Place:
        """Have a place: a free one, or that of whoever waits longest for a request, or the next to be given back."""
        try:
            self._free.acquire_nowait()
        except anyio.WouldBlock:
            self._queueing += 1
            try:
                self._make_room()
                await self._free.acquire()
            finally:
                self._queueing -= 1
        return Place(self, address)

    def waits(self, place: Place) -> None:
        """Somebody begins to wait for a request."""
        self._waiting[place] = None
        self._make_room()

    def waits_no_more(self, place: Place) -> None:
        """The request is there, or the wait is over."""
        self._waiting.pop(place, None)

    def stays(self) -> None:
        """Who was told to give way doesn't: somebody else must."""
        self._leaving -= 1
        self._make_room()

    def given_back(self, place: Place) -> None:
        """A connection is over."""
        self._leaving -= place.leaving
        self._free.release()

    @contextmanager
    def reading(self, deadline: float) -> Iterator[None]:
        """See `Place.reading`."""
        with anyio.CancelScope(deadline=min(deadline, self._last)) as scope:
            self._reading.add(scope)
            try:
                yield
            finally:
                self._reading.discard(scope)

    def end_reading(self, deadline: float) -> None:
        """End all waits in which nothing of a request has come, and at `deadline` those for the rest of one."""
        for place in [place for place in self._waiting if not place.begun]:
            self._dismiss(place)
        self._last = deadline
        for scope in self._reading:
            scope.deadline = min(scope.deadline, deadline)

    def dismiss(self, address: str) -> anyio.Event | None:
        """Have the connection of `address` give way that waits longest for a request; see `Place.give_way`.

        Returns None if none of them waits for one.
        """
        longest = next((place for place in self._waiting if place.address == address), None)
        return None if longest is None else self._dismiss(longest)

    def _make_room(self) -> None:
        while self.short and self._waiting:
            self._dismiss(next(iter(self._waiting)))

    def _dismiss(self, place: Place) -> anyio.Event:
        del self._waiting[place]
        self._leaving += 1
        return place.give_way()
