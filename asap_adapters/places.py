"""The places of connections: so many at once, and who has been longest without a request gives way to a newcomer.

Else whoever opens them all, from a few addresses, and says nothing keeps everybody out for as long as it likes. nginx
does the same with its reusable connections; RFC 9112 §9.5 lets a server end an idle connection at any time.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
from attrs import define, field

__all__ = ["Place", "Places"]


@define(eq=False)
class Place:
    """One connection's place. While it waits for a request it may have to give way."""

    _places: "Places"
    _scope: anyio.CancelScope | None = None
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
            self._places.stays()

    def give_way(self) -> None:
        """End the wait."""
        self.leaving = True
        if self._scope is not None:
            self._scope.cancel()

    def give_back(self) -> None:
        """The connection is over."""
        self._places.given_back(self)


@define(eq=False)
class Places:
    """As many places as `most`; any number may queue for them."""

    most: int
    _free: anyio.Semaphore = field(init=False)
    _waiting: dict[Place, None] = field(factory=dict, init=False)  # in order of how long
    _queueing: int = field(default=0, init=False)
    _leaving: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._free = anyio.Semaphore(self.most)

    @property
    def short(self) -> bool:
        """Whether more queue than are leaving."""
        return self._queueing > self._leaving

    async def take(self) -> Place:
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
        return Place(self)

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

    def end_idle(self) -> None:
        """End all waits in which nothing of a request has come."""
        for place in [place for place in self._waiting if not place.begun]:
            self._dismiss(place)

    def _make_room(self) -> None:
        while self.short and self._waiting:
            self._dismiss(next(iter(self._waiting)))

    def _dismiss(self, place: Place) -> None:
        del self._waiting[place]
        self._leaving += 1
        place.give_way()
