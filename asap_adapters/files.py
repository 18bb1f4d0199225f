"""Worker threads for reading and writing files, with a limiter for each owner of files.

anyio's 40 default threads are shared with the user's code, which may keep all of them busy: a request must not wait for
that. With its own limiter, a disk that hangs blocks only the files on it.
"""

from collections.abc import Callable
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
