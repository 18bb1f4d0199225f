"""The last good copy of each registry, in memory and in files: used if the registry is unavailable.

`asap_core.client.registry_cache` decides whether a copy is usable. Files (`asap_adapters.stores.registry_copies`) are
read and written in a worker thread. An unusable file counts as missing, and is logged.
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

# Registries. A client has one or a few, each with some 50 MB at most.
_MAX_HELD: Final = 16
_HOUR: Final = 3_600.0
_MINUTE: Final = 60.0


@frozen
class CachedCopy:
    """A copy used instead of an unavailable registry, which confirmed it `age` seconds ago."""

    index: RegistryIndex
    age: float
    from_disk: bool = False

    @property
    def words(self) -> str:
        """Describe it for people, with its age."""
        units = ((_HOUR * 24, "days"), (_HOUR, "hours"), (_MINUTE, "minutes"), (1.0, "s"))
        unit, name = next((one for one in units if self.age >= 2 * one[0]), units[-1])
        return f"its last good copy{' on disk' if self.from_disk else ''}, {self.age / unit:.0f} {name} old"


@define(eq=False)
class _Held:
    """A copy in memory."""

    index: RegistryIndex
    vouched: Instant
    dated: WallTime
    """The same moment by the wall clock: the monotonic clock may stop during suspend, and the wall clock be set."""
    serves: float
    written: Instant
    """`vouched` of the copy in the file."""
    from_disk: bool = False
    told: bool = False
    """Whether it's in use instead of the registry, and this was logged."""
    current: bool = True
    """Whether it belongs on disk: it wasn't forgotten or replaced."""


class RegistryCache:
    """The copies of one client's registries. Several clients may share the directory."""

    def __init__(self, directory: str | Path, http: HttpTransport, clock: LoopClock, *, most: int) -> None:
        self._files = CopyFiles(Path(directory), most)
        self._threads = FileThreads()
        self._http = http
        self._clock = clock
        self._held: Lru[str, _Held] = Lru(_MAX_HELD)
        # Unusable files, so that each is logged once.
        self._unused: Lru[str, UnusableCopy] = Lru(_MAX_HELD)
        # The URL whose copy is being read; None once it's forgotten.
        self._read_for: str | None = None
        # Only one caller reads from disk at a time.
        self._reading = anyio.Lock()

    async def put(self, url: str, index: RegistryIndex, freshness: Freshness, *, age: float) -> None:
        """Store a copy of this registry, which its server confirmed `age` seconds ago. A failed write is logged.

        freshness: from the response. If it forbids using a stale copy, the copy is deleted.
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
        # Before the write, which awaits: all callers who share the fetch come here, and only the first may write.
        held = _Held(index, vouched, dated, serves, written=vouched)
        self._hold(url, held)
        options: Any = {"dated": dated, "serves": serves, "zone": self._http.proximity_of(url), "wall": wall}
        work = functools.partial(self._files.write, url, index, **options, wanted=lambda: held.current)
        try:
            # An abandoned thread ends by itself, with a complete file or none.
            await self._threads.run(work, abandon_on_cancel=True)
        except OSError as error:
            _log.warning("no copy of %s is kept: %s", without_credentials(url), error.strerror or error)

    async def take(self, url: str, error: Exception) -> CachedCopy | None:
        """Return the copy to use if reading the registry failed with `error`; None if there's no usable one."""
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
            # Logged once for each outage.
            held.told = True
            _log.warning("%s; %s, serves", error, found.words)
        return found

    def stands_in(self, url: str) -> float | None:
        """Return the age in seconds of the copy in use instead of this registry; None if none is in use."""
        held = self._held.peek(url)
        age = None if held is None or not held.told else self._age(held)
        return None if held is None or age is None or age > held.serves else age

    def drop(self, url: str) -> None:
        """Delete the copy, also one being written."""
        held = self._held.pop(url)
        self._unused.pop(url)
        if self._read_for == url:
            self._read_for = None
        if held is not None:
            held.current = False
        self._files.remove(url)

    def clear(self) -> None:
        """Delete the copies that this client wrote or used."""
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
        """Log why a file is unusable, unless that was logged of the same file."""
        said = self._unused.pop(url)
        if unused is None:
            return
        self._unused.put(url, unused)
        if said is None or (said.reason, said.identity) != (unused.reason, unused.identity):
            _log.warning("the copy of %s isn't used: %s", without_credentials(url), unused.reason)


async def _parsed(body: memoryview) -> RegistryIndex | InvalidDocument:
    """Read a registry piece by piece, so that other tasks run in between."""
    reader = RegistryReader()
    try:
        for start in range(0, len(body), READ_PIECE):
            reader.feed(bytes(body[start : start + READ_PIECE]))
            await anyio.lowlevel.checkpoint()
        return reader.close()
    except InvalidDocument as error:
        return error
