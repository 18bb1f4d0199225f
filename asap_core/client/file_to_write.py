"""What a `WriteFile` writes: a protocol between a program and a driver's threads."""

from collections.abc import Iterable, Iterator
from typing import Final, Protocol

HEAD_BYTES: Final = 1_024
"""The bytes that `FileToWrite.is_written` gets. The first line of a registry's copy has some 350; a longer one wasn't
written by this library."""


class FileToWrite(Protocol):
    """What `WriteFile` writes. A driver may call these methods in any thread, also after the program has ended.

    It calls them in this order: `surplus`, `is_written`, `pieces`, `wanted`. It may leave out the first two.
    """

    def surplus(self, files: Iterable[tuple[str, float]]) -> Iterable[str]:
        """Return which of the files in the directory are to be removed first, by name.

        files: their names, and when they were last modified, in seconds since the Unix epoch.
        """
        ...

    def is_written(self, head: bytes, size: int) -> bool:
        """Return whether the file that is there needn't be replaced.

        head: its first 1,024 bytes. size: its own, in bytes. Called only if the file passes the checks of a private
        `ReadFile`.
        """
        ...

    def pieces(self) -> Iterator[bytes]:
        """Return the content. 44 MB take some 100 ms."""
        ...

    def wanted(self) -> bool:
        """Return whether the file is still to be put in place. Asked immediately before that."""
        ...
