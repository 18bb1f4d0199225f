"""Run by the reference implementation's interpreter: how long its client takes to find a manifest that's kept."""

import asyncio
import json
import logging
import sys
import time
import tracemalloc
from pathlib import Path

__all__: list[str] = []

logging.disable(logging.CRITICAL)

from asap.models.entities import Manifest  # type: ignore[import-not-found]  # noqa: E402
from asap.transport.cache import ManifestCache  # type: ignore[import-not-found]  # noqa: E402
from asap.transport.client import ASAPClient  # type: ignore[import-not-found]  # noqa: E402

BASE = "http://localhost:9"
URL = f"{BASE}/.well-known/asap/manifest.json"


async def times(document: bytes, rounds: int, calls: int) -> tuple[float, float]:
    """Seconds for its cache alone, and for `get_manifest`."""
    cached, found = float("inf"), float("inf")
    async with ASAPClient(BASE) as client:
        cache = client._manifest_cache  # noqa: SLF001 - what is measured
        cache.set(URL, Manifest.model_validate(json.loads(document)), ttl=1e6)
        get = cache.get
        for _ in range(rounds):
            began = time.process_time()
            for _ in range(calls):
                get(URL)
            cached = min(cached, (time.process_time() - began) / calls)
            began = time.process_time()
            for _ in range(calls):
                await client.get_manifest(URL)
            found = min(found, (time.process_time() - began) / calls)
    return cached, found


def memory(document: bytes, many: int) -> float:
    """Bytes for each manifest kept."""
    cache = ManifestCache(max_size=many)
    tracemalloc.start()
    for number in range(many):
        cache.set(f"{URL}?{number}", Manifest.model_validate(json.loads(document)))
    return tracemalloc.get_traced_memory()[0] / many


if __name__ == "__main__":
    body = Path(sys.argv[1]).read_bytes()
    print(json.dumps([*asyncio.run(times(body, int(sys.argv[2]), int(sys.argv[3]))), memory(body, 1_000)]))
