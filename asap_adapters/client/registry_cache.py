"""Registries' last good copies, in files: for a start without the network.

What a copy says of itself, and whether it counts, is decided in `asap_core.client.registry_cache`. The files of
`asap_adapters.stores.registry_copies` are read and written in a worker thread; nothing wrong with them is worse than
having none, but for a line in the log.
"""

import functools
import logging
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.lowlevel
from attrs import define, frozen

from asap_adapters.files import FileThreads
from asap_adapters.net.bodies import READ_PIECE
from asap_adapters.net.transport import HttpTransport
from asap_adapters.stores.registry_copies import WRITE_AGAIN, CopyFiles, LoadedCopy, UnusableCopy
from asap_adapters.system import LoopClock
from asap_core.client.registry_cache import CopyAction, copy_action, serves_for
from asap_core.clock import Instant, WallTime
from asap_core.errors import InvalidDocument
from asap_core.http.caching import Freshness
from asap_core.lru import Lru
from asap_core.net.urls import without_credentials
from asap_core.wire.registry_index import RegistryIndex
from asap_core.wire.registry_reader import RegistryReader

_log = logging.getLogger("asap.discovery")

# Registries; a client has one or a few, each of some 50 MB at most.
_MAX_HELD: Final = 16
_HOUR: Final = 3_600.0
_MINUTE: Final = 60.0


@frozen
class CachedCopy:
    """A copy that stands in for a registry: its server vouched for it `age` seconds ago."""

    index: RegistryIndex
    age: float
    from_disk: bool = False

    @property
    def words(self) -> str:
        """What it is and how old, to be read by people."""
        units = ((_HOUR * 24, "days"), (_HOUR, "hours"), (_MINUTE, "minutes"), (1.0, "s"))
        unit, name = next((one for one in units if self.age >= 2 * one[0]), units[-1])
        return f"its last good copy{' on disk' if self.from_disk else ''}, {self.age / unit:.0f} {name} old"


@define(eq=False)
class _Held:
    """A copy that's in memory as well."""

    index: RegistryIndex
    vouched: Instant
    dated: WallTime
    """The same moment on the other clock: monotonic time may stop in suspend, and civil time be set."""
    serves: float
    written: Instant
    """What was vouched for when it was written."""
    from_disk: bool = False
    told: bool = False
    """Whether it stands in at the moment, and that was said."""
    current: bool = True
    """Whether it's to be on disk: it wasn't forgotten, and nothing newer came."""


class RegistryCache:
    """The copies of one client's registries, in a directory that may be shared with others."""

    def __init__(self, directory: str | Path, http: HttpTransport, clock: LoopClock, *, most: int) -> None:
        self._files = CopyFiles(Path(directory), most)
        self._threads = FileThreads()
        self._http = http
        self._clock = clock
        self._held: Lru[str, _Held] = Lru(_MAX_HELD)
        # What was said of files that can't be used, so that it's said once.
        self._unused: Lru[str, UnusableCopy] = Lru(_MAX_HELD)
        # Whose copy is being read, and not forgotten meanwhile.
        self._read_for: str | None = None
        # Of those who need a copy one reads it.
        self._reading = anyio.Lock()

    async def put(self, url: str, index: RegistryIndex, freshness: Freshness, *, age: float) -> None:
        """Keep this registry, for which its server vouched `age` seconds ago. Doesn't raise where it can't be.

        `freshness` is what the server said of keeping it: where it mayn't stand in, its copy goes.
        """
        serves = serves_for(freshness)
        if serves <= 0.0:
            self.drop(url)
            return
        now, wall = self._clock.monotonic(), self._clock.wall()
        vouched, dated = Instant(now - age), WallTime(wall - age)
        held = self._held.peek(url)
        if held is not None and held.index is index and held.serves == serves:
            held.vouched, held.dated, held.told = vouched, dated, False
            if vouched - held.written < WRITE_AGAIN:
                return
        # Before it's written: all who got it come here.
        held = _Held(index, vouched, dated, serves, written=vouched)
        self._hold(url, held)
        options: Any = {"dated": dated, "serves": serves, "zone": self._http.proximity_of(url), "wall": wall}
        work = functools.partial(self._files.write, url, index, **options, wanted=lambda: held.current)
        try:
            # A thread that's left behind ends by itself, and puts a whole copy there or none.
            await self._threads.run(work, abandon_on_cancel=True)
        except OSError as error:
            _log.warning("no copy of %s is kept: %s", without_credentials(url), error.strerror or error)

    async def take(self, url: str, error: Exception) -> CachedCopy | None:
        """What stands in for the registry, which can't be had because of `error`; None where nothing does."""
        match copy_action(error):
            case CopyAction.SERVES:
                pass
            case CopyAction.STAYS:
                return None
            case CopyAction.GOES:
                self.drop(url)
                return None
        async with self._reading:
            found = self._at_hand(url)
            if found is None:
                found = await self._read(url)
        held = self._held.peek(url)
        if found is not None and held is not None and not held.told:
            # Once for each outage.
            held.told = True
            _log.warning("%s; %s, serves", error, found.words)
        return found

    def stands_in(self, url: str) -> float | None:
        """How many seconds old the copy is that stands in for this registry at the moment; None where none does."""
        held = self._held.peek(url)
        age = None if held is None or not held.told else self._age(held)
        return None if held is None or age is None or age > held.serves else age

    def drop(self, url: str) -> None:
        """Forget the copy, and take it away; what is being written of it doesn't come."""
        held = self._held.pop(url)
        self._unused.pop(url)
        if self._read_for == url:
            self._read_for = None
        if held is not None:
            held.current = False
        self._files.remove(url)

    def clear(self) -> None:
        """Forget the copies in memory, and take away those that this client wrote or used."""
        for url in tuple(self._held):
            self.drop(url)

    def _hold(self, url: str, held: _Held) -> None:
        before = self._held.peek(url)
        if before is not None:
            before.current = False
        self._held.put(url, held)

    def _age(self, held: _Held) -> float:
        return max(self._clock.monotonic() - held.vouched, self._clock.wall() - held.dated, 0.0)

    def _at_hand(self, url: str) -> CachedCopy | None:
        held = self._held.peek(url)
        if held is None or (age := self._age(held)) > held.serves:
            return None
        return CachedCopy(held.index, age, held.from_disk)

    async def _read(self, url: str) -> CachedCopy | None:
        self._read_for = url
        load = functools.partial(self._files.load, url, wall=self._clock.wall(), known=self._unused.peek(url))
        loaded = await self._threads.run(load, abandon_on_cancel=True)
        index = await _parsed(loaded.body) if isinstance(loaded, LoadedCopy) else None
        if self._read_for != url:
            return None
        if not isinstance(loaded, LoadedCopy):
            self._cannot_use(url, loaded)
            return None
        if not isinstance(index, RegistryIndex):
            self._cannot_use(url, UnusableCopy(str(index), loaded.identity, spoilt=True))
            return None
        copy = loaded.copy
        self._http.recall(url, copy.zone)
        dated = WallTime(self._clock.wall() - copy.age)
        vouched = Instant(self._clock.monotonic() - copy.age)
        self._hold(url, _Held(index, vouched, dated, copy.serves, written=vouched, from_disk=True))
        return CachedCopy(index, copy.age, from_disk=True)

    def _cannot_use(self, url: str, unused: UnusableCopy | None) -> None:
        """Say why, unless it was said of this very file, or there's none."""
        said = self._unused.pop(url)
        if unused is None:
            return
        self._unused.put(url, unused)
        if said is None or (said.reason, said.identity) != (unused.reason, unused.identity):
            _log.warning("the copy of %s isn't used: %s", without_credentials(url), unused.reason)


async def _parsed(body: memoryview) -> RegistryIndex | InvalidDocument:
    """Read a registry, with turns for other tasks in between."""
    reader = RegistryReader()
    try:
        for start in range(0, len(body), READ_PIECE):
            reader.feed(bytes(body[start : start + READ_PIECE]))
            await anyio.lowlevel.checkpoint()
        return reader.close()
    except InvalidDocument as error:
        return error
