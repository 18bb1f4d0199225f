"""Reading and writing files in worker threads of their own.

anyio's default threads, 40 of them, are the user's as well: code that fills them must not keep a request waiting for a
file. Each owner of files has its own few, so that a disk that hangs stops nothing but its own files.
"""

import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

import anyio
import anyio.to_thread

from asap_core.errors import BadReply

# A disk isn't faster for more of them; one that hangs holds no more.
_MOST: Final = 4

T = TypeVar("T")


class FileThreads:
    """Worker threads for one owner's files, `most` at once. It belongs to the event loop in which it's first used."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._limiter: anyio.CapacityLimiter | None = None

    async def run(self, work: Callable[..., T], *args: Any, abandon_on_cancel: bool = False) -> T:
        """Call `work(*args)` in a thread. If abandoned, it goes on there, and its result is dropped."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self._most)
        return await anyio.to_thread.run_sync(work, *args, abandon_on_cancel=abandon_on_cancel, limiter=self._limiter)

    @asynccontextmanager
    async def reading(self, path: Path) -> AsyncIterator[Callable[[int], Awaitable[bytes]]]:
        """Open a file; yields a function that reads so many bytes of it, none at its end.

        Raises OSError, and `BadReply` if it's a pipe or a socket: nobody can end a thread that waits for one.
        """
        file = await self.run(_opened, path)
        try:
            yield lambda size: self.run(file.read, size)
        finally:
            file.close()  # nothing was written: it doesn't block


def _opened(path: Path) -> BinaryIO:
    if "\0" in str(path) or path.is_socket():
        raise BadReply(str(path), "expected a file")
    # Opened first and looked at then: a pipe that takes its place in between would be waited for.
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - Path.open takes no opener
    if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
        file.close()
        raise BadReply(str(path), "expected a file")
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
