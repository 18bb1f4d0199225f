"""The last good copies of registries for `AgentClient`: runs the programs of `asap_core.client.registry_cache`."""

from pathlib import Path
from typing import cast

import httpx

from asap_adapters.driver import ProgramDriver
from asap_adapters.net.transport import HttpTransport
from asap_adapters.system import LoopClock
from asap_core.client import registry_cache
from asap_core.client.registry_cache import CachedCopy
from asap_core.client.requests import Requests
from asap_core.http.caching import Freshness
from asap_core.wire.registry_index import RegistryIndex


class RegistryCache:
    """See `asap_core.client.registry_cache.RegistryCache`."""

    def __init__(self, directory: str | Path, http: HttpTransport, clock: LoopClock, *, most: int) -> None:
        self._driver = ProgramDriver(httpx.AsyncBaseTransport, owner="AgentClient", clock=clock)
        self._driver.open()
        # Of the requests only how near a server was is asked, which both can say.
        requests = cast(Requests, http)
        self._cache = registry_cache.RegistryCache(str(directory), self._driver.runtime, requests, most=most)

    async def put(self, url: str, index: RegistryIndex, freshness: Freshness, *, age: float) -> None:
        """Store a copy."""
        await self._driver.run(self._cache.put(url, index, freshness, age=age))

    async def take(self, url: str, error: Exception) -> CachedCopy | None:
        """Return the copy to use."""
        return await self._driver.run(self._cache.take(url, error))

    def stands_in(self, url: str) -> float | None:
        """Return the age of the copy in use."""
        return self._cache.stands_in(url)

    def drop(self, url: str) -> None:
        """Delete a copy."""
        self._cache.drop(url)
        self._driver.settle()

    def clear(self) -> None:
        """Delete all copies."""
        self._cache.clear()
        self._driver.settle()
