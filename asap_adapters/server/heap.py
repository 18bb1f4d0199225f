"""Returns memory to the system: that of large bodies and answers as soon as it's free, and what a start leaves.

Once a large block was freed, glibc takes later ones from its heap. There a small block above them keeps them from the
system: hundreds of megabytes stay long after their use. glibc's own remedy is to fix the threshold (mallopt(3)). Other
C libraries don't need it.
"""

import linecache
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import ctypes

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
    with suppress(AttributeError, OSError):  # not glibc
        library = _c_library()
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT)
        library.mallopt(_M_MMAP_THRESHOLD, _LARGE)


def give_back_free_blocks() -> None:
    """Return blocks that are free now, such as those that imports have left."""
    with suppress(AttributeError, OSError):  # not glibc
        _c_library().malloc_trim(0)


def forget_generated_sources() -> None:
    """Drop the source of the methods that attrs generates: half a megabyte, which only tracebacks show."""
    for name in [each for each in linecache.cache if each.startswith("<attrs generated ")]:
        del linecache.cache[name]


def _c_library() -> "ctypes.CDLL":
    import ctypes  # noqa: PLC0415 - servers only, and only here

    return ctypes.CDLL(None)
