"""Registries' last good copies, in files: for a start without the network.

What a copy says of itself, and whether it counts, is decided in `asap_core.client.copies`. Files are read and written
in a worker thread; nothing that's wrong with them is worse than having none, but for a line in the log.
"""

import logging
import os
import stat
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
from attrs import define, frozen

from asap_adapters.bodies import PIECE
from asap_adapters.clock import LoopClock
from asap_adapters.web import Web
from asap_core.catalog import Catalog, CatalogReader
from asap_core.client.copies import LONGEST, MAX_HEAD, Copy, Kept, kept_after, measure, name_of, read_copy, write_head
from asap_core.client.outbound import without_credentials
from asap_core.clock import Instant, WallTime
from asap_core.errors import BadReply, InvalidDocument

__all__ = ["Shelf", "StandIn"]

_log = logging.getLogger("asap.discovery")

# Registries; a client has one or a few, each of some 50 MB at most.
_MAX_HELD: Final = 16
# What a server confirms again and again is written down again so often: its age is known to the hour.
_WRITE_AGAIN: Final = 3_600.0
# What was left by a process that was killed while it wrote.
_LEFT_OVER: Final = 3_600.0
_HOUR: Final = 3_600.0
_MINUTE: Final = 60.0


@frozen
class StandIn:
    """A copy that stands in for a registry: its server vouched for it `age` seconds ago."""

    catalog: Catalog
    age: float

    @property
    def words(self) -> str:
        """How old it is, to be read by people."""
        for unit, name in ((_HOUR * 24, "days"), (_HOUR, "hours"), (_MINUTE, "minutes")):
            if self.age >= 2 * unit:
                return f"a copy that's {self.age / unit:.0f} {name} old"
        return f"a copy that's {self.age:.0f} s old"


@define(eq=False)
class _Held:
    """A copy that's in memory as well."""

    catalog: Catalog
    vouched: WallTime
    written: Instant | None = None
    serves: bool = False
    """Whether it stands in at the moment, and that was said."""


class Shelf:
    """The copies of one client's registries, in a directory that may be shared with others."""

    def __init__(self, directory: str | Path, web: Web, clock: LoopClock, *, most: int) -> None:
        self._directory = Path(directory)
        self._web = web
        self._clock = clock
        self._most = most
        self._held: OrderedDict[str, _Held] = OrderedDict()
        # Of those who need a copy one reads it.
        self._reading = anyio.Lock()

    async def put(self, url: str, catalog: Catalog, *, age: float) -> None:
        """Keep this registry, for which its server vouched `age` seconds ago. Doesn't raise where it can't be."""
        now, vouched = self._clock.monotonic(), WallTime(self._clock.wall() - age)
        held = self._held.get(url)
        if held is not None and held.catalog is catalog:
            held.vouched = max(held.vouched, vouched)
            held.serves = False
            if held.written is not None and now - held.written < _WRITE_AGAIN:
                return
        # Before it's written: all who got it come here.
        self._hold(url, _Held(catalog, vouched, now))
        zone = self._web.zone_of(url)

        def head(length: int, digest: str) -> bytes:
            return write_head(url, vouched=vouched, zone=zone, length=length, digest=digest)

        try:
            # A thread that's left behind ends by itself, and puts a whole copy there or none.
            await anyio.to_thread.run_sync(
                _write, self._directory, name_of(url), head, catalog, self._clock.wall(), abandon_on_cancel=True
            )
        except OSError as error:
            _log.warning("no copy of %s is kept: %s", without_credentials(url), error.strerror or error)

    async def take(self, url: str, error: Exception) -> StandIn | None:
        """What stands in for the registry, which can't be had because of `error`; None where nothing does."""
        match kept_after(error):
            case Kept.SERVES:
                pass
            case Kept.STAYS:
                return None
            case Kept.GOES:
                self.drop(url)
                return None
        async with self._reading:
            found = self._at_hand(url)
            if found is None:
                found = await self._read(url)
        held = self._held.get(url)
        if found is not None and held is not None and not held.serves:
            # Once for each outage.
            held.serves = True
            _log.warning("%s; %s serves", error, found.words)
        return found

    def drop(self, url: str) -> None:
        """Forget the copy, and take it away."""
        self._held.pop(url, None)
        with suppress(OSError):
            (self._directory / name_of(url)).unlink()

    def clear(self) -> None:
        """Forget the copies in memory, and take away those that this client wrote or used."""
        for url in tuple(self._held):
            self.drop(url)

    def _hold(self, url: str, held: _Held) -> None:
        self._held[url] = held
        self._held.move_to_end(url)
        if len(self._held) > _MAX_HELD:
            self._held.popitem(last=False)

    def _at_hand(self, url: str) -> StandIn | None:
        held = self._held.get(url)
        age = LONGEST if held is None else max(self._clock.wall() - held.vouched, 0.0)
        return None if held is None or age >= LONGEST else StandIn(held.catalog, age)

    async def _read(self, url: str) -> StandIn | None:
        path = self._directory / name_of(url)
        try:
            data = await anyio.to_thread.run_sync(_read, path, self._most + MAX_HEAD, abandon_on_cancel=True)
            copy = read_copy(data[:MAX_HEAD], url, wall=self._clock.wall())
            wrong = copy if isinstance(copy, str) else await self._check(copy, data)
            if isinstance(wrong, str):
                raise BadReply(str(path), wrong)  # noqa: TRY301 - one place says what is wrong with a copy
            assert isinstance(copy, Copy)  # noqa: S101 - for the type checker: else it was wrong
            catalog = await _parse(memoryview(data)[len(data) - copy.length :])
        except FileNotFoundError:
            return None
        except (OSError, BadReply, InvalidDocument) as error:
            reason = error.reason if isinstance(error, BadReply) else getattr(error, "strerror", None) or str(error)
            _log.warning("the copy of %s isn't used: %s", without_credentials(url), reason)
            return None
        self._web.recall(url, copy.zone)
        self._hold(url, _Held(catalog, WallTime(self._clock.wall() - copy.age)))
        return StandIn(catalog, copy.age)

    async def _check(self, copy: Copy, data: bytes) -> str | None:
        body = memoryview(data)[data.index(b"\n") + 1 :]
        # The digest of 50 MB takes 50 ms, in which the interpreter is free.
        whole = await anyio.to_thread.run_sync(copy.holds, body, abandon_on_cancel=True)
        return None if whole else "it isn't whole"


async def _parse(body: memoryview) -> Catalog:
    """Read a registry, with turns for other tasks in between."""
    reader = CatalogReader()
    for start in range(0, len(body), PIECE):
        reader.feed(bytes(body[start : start + PIECE]))
        await anyio.lowlevel.checkpoint()
    return reader.close()


# --- in a thread -----------------------------------------------------------------------------------------------------


def _write(directory: Path, name: str, head: Callable[[int, str], bytes], catalog: Catalog, wall: float) -> None:
    """Write a copy beside the old one, and put it in its place when it's whole and on disk."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    _tidy(directory, name, wall)
    length, digest = measure(catalog.written())
    first = head(length, digest)
    # For its owner only (0600): a registry may not be for all who use this machine.
    descriptor, made = tempfile.mkstemp(prefix=f"{name}.", suffix=".tmp", dir=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(first)
            file.writelines(catalog.written())
            file.flush()
            os.fsync(file.fileno())
        Path(made).replace(directory / name)
    except BaseException:
        with suppress(OSError):
            Path(made).unlink()
        raise
    _sync(directory)


def _tidy(directory: Path, name: str, wall: float) -> None:
    for path in directory.glob(f"{name}.*.tmp"):
        with suppress(OSError):
            if wall - path.stat().st_mtime > _LEFT_OVER:
                path.unlink()


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path, most: int) -> bytes:
    """Read a copy that's ours. Raises OSError, `BadReply` where it isn't."""
    # No link, which somebody else may have put there, and no pipe, for which one waits.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        there = os.fstat(file.fileno())
        if not stat.S_ISREG(there.st_mode) or there.st_uid != os.geteuid() or there.st_mode & 0o022:
            raise BadReply(str(path), "it isn't a file that only its owner may write")
        data = file.read(most + 1)
    if len(data) > most:
        raise BadReply(str(path), "it's too large")
    return data
