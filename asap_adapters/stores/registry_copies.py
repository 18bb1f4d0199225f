"""Registry copies in files, read and written atomically. All functions block. POSIX systems only.

`asap_core.client.registry_cache` decides what a copy contains and whether it can be used, and
`asap_adapters.client.registry_cache` when one is written.
"""

import os
import stat
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from attrs import define, field, frozen

from asap_core.client.registry_cache import LONGEST, MAX_HEAD, Copy, file_name, measure, read_copy, write_head
from asap_core.clock import WallTime
from asap_core.net.addresses import Proximity
from asap_core.wire.registry_index import RegistryIndex

# Copies in one directory, which several programs may share: 2 GB at most.
_MAX_FILES: Final = 32
# Seconds after which an unchanged copy that its server confirmed is written again, so its age is known to the hour.
WRITE_AGAIN: Final = 3_600.0
# Age in seconds of a temporary file that a killed process must have left, since writing one takes seconds.
_LEFT_OVER: Final = 600.0
# Bytes from which a removed file is closed in a thread: closing it frees its pages, which takes 8 ms for 44 MB.
_LARGE: Final = 1_048_576

FileIdentity = tuple[int, int, int, int]
"""Inode, size, mtime and ctime: they change if the file is replaced or written to."""


@frozen
class LoadedCopy:
    """A usable copy, and its content."""

    copy: Copy
    body: memoryview
    identity: FileIdentity


@frozen
class UnusableCopy:
    """A file that can't be used as a copy. `spoilt`: it can't become usable unless the file changes."""

    reason: str
    identity: FileIdentity | None = None
    spoilt: bool = False


@define(eq=False)
class CopyFiles:
    """The copies in one directory, which other processes may share. `most`: the largest copy, in bytes."""

    directory: Path
    most: int
    # Held while a file is renamed or removed: writers run in threads, `remove` in the event loop.
    _placing: threading.Lock = field(factory=threading.Lock, init=False)

    # --- writing -----------------------------------------------------------------------------------------------------

    def write(
        self,
        url: str,
        index: RegistryIndex,
        *,
        dated: WallTime,
        serves: float,
        zone: Proximity,
        wall: WallTime,
        wanted: Callable[[], bool],
    ) -> None:
        """Write a copy beside the old one, and put it in its place when it's whole and on disk, if it's `wanted` then.

        Does nothing where the same is there already. Raises OSError.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = file_name(url)
        length, digest = measure(index.written())
        new = Copy(max(wall - dated, 0.0), serves, zone, length, digest)
        _tidy(self.directory, wall)
        if _is_there(self.directory / name, url, new, wall):
            return
        # Mode 0600: other users of this machine may not be allowed to read the registry.
        descriptor, made = tempfile.mkstemp(prefix=f"{name}.", suffix=".tmp", dir=self.directory)
        placed = False
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(write_head(url, vouched=dated, serves=serves, zone=zone, length=length, digest=digest))
                file.writelines(index.written())
                file.flush()
                os.fsync(file.fileno())
            with self._placing:
                if wanted():
                    Path(made).replace(self.directory / name)
                    placed = True
        finally:
            if not placed:
                _quietly(Path(made))
        _sync(self.directory)

    def remove(self, url: str) -> None:
        """Take the copy away, if there's one. This alone may be called from an event loop: it takes microseconds."""
        path = self.directory / file_name(url)
        with self._placing, suppress(OSError):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                path.unlink()  # a link, say
                return
            path.unlink()
            # As long as it's open it keeps its pages.
            if os.fstat(descriptor).st_size < _LARGE:
                os.close(descriptor)
            else:
                threading.Thread(target=os.close, args=(descriptor,), daemon=True).start()

    # --- reading -----------------------------------------------------------------------------------------------------

    def load(self, url: str, *, wall: WallTime, known: UnusableCopy | None = None) -> LoadedCopy | UnusableCopy | None:
        """Read the copy for `url`; returns None if there's none.

        known: the result of the last attempt; an unusable file that hasn't changed since isn't read again.
        """
        path = self.directory / file_name(url)
        identity = None
        try:
            identity = _identity(path)
            if known is not None and known.spoilt and known.identity == identity:
                return known
            return self._load(path, url, wall, identity)
        except FileNotFoundError:
            return None
        except OSError as error:
            return UnusableCopy(error.strerror or "it can't be read", identity)

    def _load(self, path: Path, url: str, wall: WallTime, identity: FileIdentity) -> LoadedCopy | UnusableCopy:
        descriptor = _open_ours(path)
        if descriptor is None:
            return UnusableCopy("it isn't a file that only its owner may write", identity, spoilt=True)
        with os.fdopen(descriptor, "rb") as file:
            copy = read_copy(file.readline(MAX_HEAD), url, wall=wall)
            if isinstance(copy, str):
                return UnusableCopy(copy, identity)
            if copy.length > self.most:
                return UnusableCopy("it's too large", identity, spoilt=True)
            body = memoryview(file.read(copy.length + 1))
        # The digest of 50 MB takes 50 ms, in which the interpreter is free.
        return (
            LoadedCopy(copy, body, identity)
            if copy.holds(body)
            else UnusableCopy("it isn't whole", identity, spoilt=True)
        )


def _identity(path: Path) -> FileIdentity:
    there = path.lstat()
    return there.st_ino, there.st_size, there.st_mtime_ns, there.st_ctime_ns


def _open_ours(path: Path) -> int | None:
    """Open a file. Returns None unless it's a regular file that only we may write. Raises OSError."""
    # No symbolic link, which another user may have made, and no pipe, since opening one blocks.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    there = os.fstat(descriptor)
    if stat.S_ISREG(there.st_mode) and there.st_uid == os.geteuid() and not there.st_mode & 0o022:
        return descriptor
    os.close(descriptor)
    return None


def _is_there(path: Path, url: str, new: Copy, wall: WallTime) -> bool:
    """Whether the same is on disk already, hardly older: another process may have written it."""
    descriptor = None
    with suppress(OSError):
        descriptor = _open_ours(path)
    if descriptor is None:
        return False
    with os.fdopen(descriptor, "rb") as file:
        first = file.readline(MAX_HEAD)
        size = os.fstat(file.fileno()).st_size
    old = read_copy(first, url, wall=wall)
    return (
        isinstance(old, Copy)
        and size == len(first) + new.length
        and (old.length, old.digest, old.serves, old.zone) == (new.length, new.digest, new.serves, new.zone)
        and old.age - new.age < WRITE_AGAIN
    )


def _tidy(directory: Path, wall: WallTime) -> None:
    """Remove what was left half written, copies that no longer count, and the oldest of too many."""
    written = {path: when for path in directory.iterdir() if (when := _written(path)) is not None}
    for path, when in written.items():
        if path.suffix == ".tmp" and wall - when > _LEFT_OVER:
            _quietly(path)
    copies = sorted((path for path in written if path.suffix == ".registry"), key=lambda path: -written[path])
    for place, path in enumerate(copies, start=1):
        # One is about to come.
        if place >= _MAX_FILES or wall - written[path] > LONGEST:
            _quietly(path)


def _written(path: Path) -> float | None:
    """Return when a copy was written, or None if the file isn't a copy."""
    with suppress(OSError):
        return path.lstat().st_mtime if ".registry" in path.suffixes else None
    return None


def _quietly(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
