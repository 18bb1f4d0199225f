"""Reads and writes files in worker threads, with a limiter for each owner of files.

anyio's 40 default threads are shared with the user's code, which may keep all of them busy: a request must not wait for
that. With its own limiter, a disk that hangs blocks only the files on it.
"""

import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO, Final, TypeVar, TypeVarTuple

import anyio
import anyio.to_thread

from asap_core.errors import BadReply

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

    @asynccontextmanager
    async def reading(self, path: Path) -> AsyncIterator[Callable[[int], Awaitable[bytes]]]:
        """Open a file. Yields a function that reads up to a number of bytes; it returns b"" at the end of the file.

        Raises: OSError; BadReply if it's a pipe or a socket, since a thread that waits for one can't be ended.
        """
        file = await self.run(open_regular_file, path)
        try:
            yield lambda size: self.run(file.read, size)
        finally:
            file.close()  # nothing was written: it doesn't block


def open_regular_file(path: Path) -> BinaryIO:
    """Open a file to read. Raises OSError; BadReply if it's a pipe or a socket."""
    if "\0" in str(path) or path.is_socket():
        raise BadReply(str(path), "expected a file")
    # Open first, then check: another process could replace the file by a pipe between a check and the opening.
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - Path.open takes no opener
    if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
        file.close()
        raise BadReply(str(path), "expected a file")
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
