"""Carries out effects on files: `ReadFile`, `WriteFile`, and removals. All functions block. POSIX systems only."""

import errno
import os
import stat
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from asap_adapters.files import open_itself, sync_directory
from asap_core.client.file_to_write import HEAD_BYTES, FileToWrite
from asap_core.client.programs import Completed, Expired, FileIdentity, FileRead, ReadFile, Unavailable, WriteFile

# Bytes read at once. Each read in a thread may wait 5 ms for a busy event loop, Python's switch interval.
PIECE: Final = 1_048_576
# Bytes from which a removed file is closed in a thread: closing it frees its pages, which takes 8 ms for 44 MB.
_LARGE: Final = 1_048_576
_NO_FILE: Final = "expected a file"
# Held while a file is put in place or removed, since writers run in threads.
_placing: Final = threading.Lock()


def open_to_read(effect: ReadFile) -> tuple[BinaryIO | None, FileRead]:
    """Open the file of a `ReadFile`, unless it needn't be read. Returns it with the outcome. Raises OSError."""
    path = Path(effect.path)
    if not effect.private:
        return _open(path), FileRead()
    there = path.lstat()
    outcome = FileRead(FileIdentity(there.st_ino, there.st_size, there.st_mtime_ns, there.st_ctime_ns))
    return None if outcome.identity == effect.unless else _open_private(path), outcome


def write(effect: WriteFile, check: Callable[[], object] = lambda: None) -> Completed | Unavailable | Expired:
    """Carry out a `WriteFile`. `check` is called before each piece; it raises TimeoutError if the time is over."""
    path = Path(effect.path)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.scandir(path.parent) as entries:
            listed = [(entry.name, when) for entry in entries if (when := _modified(entry)) is not None]
        for name in effect.file.surplus(listed):
            with suppress(OSError):
                path.with_name(name).unlink()
        if not _is_written(path, effect.file):
            _write(path, effect.file, check)
    except TimeoutError:
        return Expired()
    except OSError as error:
        return unavailable(error)
    return Completed()


def remove(path: str) -> None:
    """Remove a file, if it exists. An event loop may call it: it takes microseconds."""
    with _placing, suppress(OSError):
        try:
            descriptor = open_itself(Path(path), os.O_RDONLY)
        except OSError:
            Path(path).unlink()  # a link, say
            return
        Path(path).unlink()
        # As long as it's open it keeps its pages.
        if os.fstat(descriptor).st_size < _LARGE:
            os.close(descriptor)
        else:
            threading.Thread(target=os.close, args=(descriptor,), daemon=True).start()


def unavailable(error: OSError) -> Unavailable:
    """Return the outcome for an error of the operating system."""
    return Unavailable(error.strerror or str(error), error.errno)


def _open(path: Path) -> BinaryIO:
    """Open a file. Raises OSError if it's a pipe or a socket too, since a thread that waits for one can't be ended."""
    if "\0" in str(path) or path.is_socket():
        raise OSError(_NO_FILE)
    # Open first, then check: another process could replace the file by a pipe between a check and the opening.
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115 - returned
    if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(_NO_FILE)
    return file


def _open_private(path: Path) -> BinaryIO:
    descriptor = open_itself(path, os.O_RDONLY)
    there = os.fstat(descriptor)
    if stat.S_ISREG(there.st_mode) and there.st_uid == os.geteuid() and not there.st_mode & 0o022:
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise PermissionError(errno.EPERM, "it isn't a file that only its owner may write")


def _is_written(path: Path, file: FileToWrite) -> bool:
    with suppress(OSError), _open_private(path) as there:
        return file.is_written(there.read(HEAD_BYTES), os.fstat(there.fileno()).st_size)
    return False


def _write(path: Path, file: FileToWrite, check: Callable[[], object]) -> None:
    # Mode 0600: other users of this machine may not be allowed to read it.
    descriptor, made = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as new:
            for piece in file.pieces():
                check()
                new.write(piece)
            new.flush()
            os.fsync(new.fileno())
        with _placing:
            if file.wanted():
                Path(made).replace(path)
    finally:
        with suppress(OSError):  # it's in its place
            Path(made).unlink()
    sync_directory(path.parent)


def _modified(entry: "os.DirEntry[str]") -> float | None:
    with suppress(OSError):
        return entry.stat(follow_symlinks=False).st_mtime
    return None
