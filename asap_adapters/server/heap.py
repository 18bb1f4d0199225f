"""Memory of large bodies and answers goes back to the system as soon as it's free.

By default glibc learns from the first large block that was freed to take later ones from its heap, where whatever small
lies above them keeps them: hundreds of megabytes of what was ended long ago. Its own remedy is to fix the threshold
(mallopt(3)). Other C libraries don't learn.
"""

import os
import sys
from contextlib import suppress
from typing import Final

# mallopt's numbers for the two.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
# Above what asyncio allocates for every read (256 KiB), which is to stay quick: a mapping costs microseconds.
_LARGE: Final = 327_680
# Free memory at the heap's end that's kept for the next reads: a few of those.
_KEPT: Final = 1_048_576


def give_back_large_blocks() -> None:
    """Have freed blocks of 320 KiB and more returned at once, in the whole process; unless its environment says how."""
    tuned = any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"))
    if sys.platform != "linux" or tuned:
        return
    import ctypes  # noqa: PLC0415 - servers only, and only here

    with suppress(AttributeError, OSError):  # not glibc
        library = ctypes.CDLL(None)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT)
        library.mallopt(_M_MMAP_THRESHOLD, _LARGE)
