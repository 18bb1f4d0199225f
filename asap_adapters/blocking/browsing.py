"""Watches the agents on the local network for a thread that waits for events. The engine has its own thread."""

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from threading import Lock
from types import TracebackType
from typing import Self

from asap_adapters.blocking.interrupts import Flag
from asap_adapters.mdns.browsing import WatchingEngine
from asap_core.mdns.dnssd import AnnouncedAgents, Event
from asap_core.net.interfaces import INTERFACES


class BlockingBrowser:
    """The agents on the local network, as an iterator of events, inside `with`. One thread reads them.

    interfaces: names or addresses of this machine's interfaces; None means all.
    """

    def __init__(self, interfaces: Sequence[str] | None = None) -> None:
        INTERFACES.check("interfaces", interfaces)
        self._agents = AnnouncedAgents()
        self._lock = Lock()  # around the agents, which the engine's thread fills
        self._events: deque[Event] = deque()
        self._news = Flag()
        self._closed = False
        self._engine = WatchingEngine(interfaces, self._agents, self._lock, self._news.set)

    def __enter__(self) -> Self:
        """Start watching."""
        try:
            self._engine.open()
            self._joined = self._engine.begin()
        except BaseException:
            self._engine.close()
            raise
        self._joined.add_done_callback(lambda _: self._news.set())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop watching. Iterations end."""
        self.end()
        self._engine.close()

    def end(self) -> None:
        """End iterations, in any thread."""
        self._closed = True
        self._news.set()

    def __iter__(self) -> Iterator[Event]:
        """Yield events until the block is left. Raises `MdnsUnavailable`."""
        while (event := self.next(math.inf)) is not None:
            yield event

    def next(self, end: float) -> Event | None:
        """Wait for the next event until `end`, by the system's monotonic clock. Raises `MdnsUnavailable`."""
        while not self._events:
            if self._joined.done():
                self._joined.result()
            with self._lock:
                self._events.extend(self._agents.take())
            if not self._events and (self._closed or not self._news.wait(end - time.monotonic())):
                return None
        return self._events.popleft()
