"""Files: how they're opened and put in place safely, and worker threads, with a limiter for each owner of files.

anyio's 40 default threads are shared with the user's code, which may keep all of them busy: a request must not wait for
that. With its own limiter, a disk that hangs blocks only the files on it.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple

import anyio
import anyio.to_thread

# More threads don't make a disk faster, and a disk that hangs blocks all of them.
_MOST: Final = 4

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class FileThreads:
    """Worker threads for one owner's files. Belongs to the event loop that uses it first.

    most: how many threads run at once.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._limiter: anyio.CapacityLimiter | None = None

    async def run(self, work: Callable[[*Ts], T], *args: *Ts, abandon_on_cancel: bool = False) -> T:
        """Call `work(*args)` in a thread and return its result.

        abandon_on_cancel: if the caller is cancelled, don't wait: the thread continues and its result is dropped.
        """
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self._most)
        return await anyio.to_thread.run_sync(work, *args, abandon_on_cancel=abandon_on_cancel, limiter=self._limiter)


def open_itself(path: Path, flags: int) -> int:
    """Open a file, for its owner only if it's made. Raises OSError for a link, which may lead anywhere."""
    # It doesn't wait either, as for the other end of a pipe.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)


def sync_directory(path: Path) -> None:
    """Let renamings in a directory survive a power failure."""
    directory = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
