"""Returns the memory of large bodies and answers to the system as soon as it's free.

Once a large block was freed, glibc takes later ones from its heap. There a small block above them keeps them from the
system: hundreds of megabytes stay long after their use. glibc's own remedy is to fix the threshold (mallopt(3)). Other
C libraries don't need it.
"""

import os
import sys
from contextlib import suppress
from typing import Final

# mallopt's numbers for the two.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
# Above what asyncio allocates for every read (256 KiB): a mapping costs microseconds, so reads stay in the heap.
_LARGE: Final = 327_680
# Free memory at the heap's end that is kept, for the next few reads.
_KEPT: Final = 1_048_576


def give_back_large_blocks() -> None:
    """Have freed blocks of 320 KiB and more returned at once, in the whole process. The environment may overrule it."""
    tuned = any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"))
    if sys.platform != "linux" or tuned:
        return
    import ctypes  # noqa: PLC0415 - servers only, and only here

    with suppress(AttributeError, OSError):  # not glibc
        library = ctypes.CDLL(None)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT)
        library.mallopt(_M_MMAP_THRESHOLD, _LARGE)
