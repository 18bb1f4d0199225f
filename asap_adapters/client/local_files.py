"""Reads registries and revocation lists from files of this machine, in a worker thread."""

from pathlib import Path
from typing import Final

from asap_adapters.files import FileThreads
from asap_adapters.net.bodies import READ_PIECE
from asap_core.errors import BadReply
from asap_core.wire.registry_index import RegistryIndex
from asap_core.wire.registry_reader import RegistryReader
from asap_core.wire.revocation import RevocationList, read_revocations

# In bytes. A registry of 100,000 agents has some 50 MB.
MAX_REGISTRY: Final = 67_108_864
# In bytes: some 8,000 revoked agents. Reading them takes 10 ms, in one piece.
MAX_REVOCATIONS: Final = 1_048_576


async def read_registry_file(path: Path, threads: FileThreads) -> RegistryIndex:
    """Read a registry piece by piece, so that other tasks run in between. Raises OSError, `BadReply`."""
    reader, size = RegistryReader(), 0
    async with threads.reading(path) as read:
        while piece := await read(READ_PIECE):
            size += len(piece)
            if size > MAX_REGISTRY:
                raise BadReply(str(path), f"expected at most {MAX_REGISTRY} bytes")
            reader.feed(piece)
    return reader.close()


async def read_revocations_file(path: Path, threads: FileThreads) -> RevocationList:
    """Read a revocation list. Raises OSError, `BadReply`, `InvalidDocument`."""
    async with threads.reading(path) as read:
        data = await read(MAX_REVOCATIONS + 1)
    if len(data) > MAX_REVOCATIONS:
        raise BadReply(str(path), f"expected at most {MAX_REVOCATIONS} bytes")
    return read_revocations(data)
