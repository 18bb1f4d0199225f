"""Finds agents for a client: manifests by URL, registries, the local network, and an agent's URN through all of them.

`asap_core.client.resolution` decides what is asked in which order, and which agent is accepted;
`asap_core.client.document_cache` what is cached, and which callers share a fetch.
"""

import logging
import weakref
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, assert_never

import anyio
from attrs import evolve, frozen

from asap_adapters.client.announced_manifests import (
    MAX_MANIFEST,
    AnnouncedLocation,
    AnnouncedManifests,
    manifest_documents,
)
from asap_adapters.client.local_files import (
    MAX_REGISTRY,
    MAX_REVOCATIONS,
    read_registry_file,
    read_revocations_file,
)
from asap_adapters.client.registry_cache import RegistryCache
from asap_adapters.files import FileThreads
from asap_adapters.net.documents import Documents, LocatedDocument, WholeReader
from asap_adapters.net.transport import HttpTransport
from asap_adapters.system import LoopClock
from asap_core.client.document_cache import DocumentCachePolicy
from asap_core.client.fetch_results import Source
from asap_core.client.registry_cache import CachedCopy
from asap_core.client.resolution import (
    MAX_LISTED,
    Browse,
    CheckRevoked,
    FetchManifest,
    ReadRegistry,
    ResolutionState,
    Resolved,
    Unresolved,
    Wanted,
    resolve,
)
from asap_core.client.trust import FirstSeen, NamedKeys, ReceivedManifest, TrustedKeys
from asap_core.errors import Advice, AsapError, BadReply, InvalidDocument, NotAllowed, TimedOut, Unverified
from asap_core.http.caching import Freshness
from asap_core.mdns.dnssd import Added, Announcement, Updated
from asap_core.net.urls import normal, origin_of, with_plain_zone, without_credentials
from asap_core.wire.codec import read_health
from asap_core.wire.manifest import HEALTH_PATH, Health, Manifest
from asap_core.wire.registry_index import RegistryIndex
from asap_core.wire.registry_reader import RegistryReader
from asap_core.wire.revocation import RevocationList, read_revocations

_log = logging.getLogger("asap.discovery")

# In bytes. A health report has less than a kilobyte.
_MAX_HEALTH: Final = 65_536
# The reference's limit, in seconds. A registry may have 50 MB.
_REGISTRY_SECONDS: Final = 30.0
_HEALTH_STATUSES: Final = frozenset({200, 503})


@frozen
class DiscoveredAgent:
    """An agent found by its URL. Its server confirmed the manifest `age` seconds ago."""

    manifest: Manifest
    url: str
    source: Source
    age: float
    freshness: Freshness | None = None
    """How long it may be used, from `age` seconds ago; None if its server forbids caching it."""


class Discovery:
    """Finds agents for one client. The parameters are `AgentClient`'s."""

    def __init__(
        self,
        http: HttpTransport,
        clock: LoopClock,
        *,
        registries: Sequence[str | Path],
        revocations: str | Path | None,
        allow_changed_agents: bool,
        trusted_keys: Mapping[str, str | Sequence[str]],
        require_signed: bool,
        registry_cache: str | Path | None,
        policy: DocumentCachePolicy | None,
    ) -> None:
        if trusted_keys or require_signed:
            import asap_adapters.auth.signing_key  # noqa: F401, PLC0415 - a missing extra is reported at once
        self._trusted = TrustedKeys(trusted_keys, require_signed=require_signed, verify=_verify)
        self._http = http
        self._files = FileThreads()
        self._locations = tuple(map(str, registries))
        self._allow_changed_agents = allow_changed_agents
        self._first_seen = FirstSeen()
        self._most = (policy or DocumentCachePolicy()).max_entries
        self._manifests = manifest_documents(http, clock, accept=self._accept, policy=policy)
        self._announced_manifests = AnnouncedManifests(http, clock, accept=self._accept, policy=policy)
        self._registries: Documents[RegistryIndex] = Documents(
            http, clock, reader=RegistryReader, limit=MAX_REGISTRY, seconds=_REGISTRY_SECONDS, policy=policy
        )
        self._copies = None if registry_cache is None else RegistryCache(registry_cache, http, clock, most=MAX_REGISTRY)
        self._reports: Documents[Health] = Documents(
            http,
            clock,
            reader=lambda: WholeReader(read_health),
            limit=_MAX_HEALTH,
            policy=policy,
            keep=False,
            statuses=_HEALTH_STATUSES,
        )
        self._revocations = None if revocations is None else str(revocations)
        self._revoked: Documents[RevocationList] = Documents(
            http, clock, reader=lambda: WholeReader(read_revocations), limit=MAX_REVOCATIONS, policy=policy
        )
        # The origin of each live manifest: its agent's envelopes are sent to that origin only.
        self._origins: dict[int, tuple[weakref.ref[Manifest], tuple[str, tuple[str, ...]]]] = {}

    def origin(self, manifest: Manifest) -> str | None:
        """Return the origin of this manifest object; None if this client didn't fetch it."""
        return self._where(manifest)[0]

    def announced_at(self, manifest: Manifest) -> tuple[str, ...]:
        """Return the addresses at which its agent was announced, if it was found by an announcement."""
        return self._where(manifest)[1]

    def _where(self, manifest: Manifest) -> tuple[str | None, tuple[str, ...]]:
        known = self._origins.get(id(manifest))
        return known[1] if known is not None and known[0]() is manifest else (None, ())

    # --- one agent ---------------------------------------------------------------------------------------------------

    async def find(self, url: str, wanted: Wanted, *, named: NamedKeys | None = None) -> LocatedDocument[Manifest]:
        """Return the manifest at this URL, cached or fetched. `named` are the keys that a registry names for it."""
        found = await self._manifests.find(with_plain_zone(url))
        return self._given(found, AnnouncedLocation(found.url, ()), wanted, named)

    async def follow(
        self, announcement: Announcement, wanted: Wanted, *, named: NamedKeys | None = None
    ) -> LocatedDocument[Manifest]:
        """Return the manifest of an announced agent. Otherwise as `find`."""
        found, place = await self._announced_manifests.find(announcement)
        return self._given(found, place, wanted, named)

    def _given(
        self,
        found: LocatedDocument[ReceivedManifest],
        place: AnnouncedLocation,
        wanted: Wanted,
        named: NamedKeys | None,
    ) -> LocatedDocument[Manifest]:
        # Verified before caching; verify again, since a registry may have named other keys meanwhile.
        manifest = self._trusted.admit(place.url, found.document, named).manifest
        self._came_from(place, manifest)
        wrong = wanted.judge(manifest, place.url)
        if wrong is not None:
            raise wrong
        return LocatedDocument(manifest, place.url, found.source, found.age)

    def _came_from(self, place: AnnouncedLocation, manifest: Manifest) -> None:
        key, origins = id(manifest), self._origins
        known = origins.get(key)
        if known is None or known[0]() is not manifest:
            there = origin_of(place.url) or "", place.addresses
            origins[key] = weakref.ref(manifest, lambda _: origins.pop(key, None)), there

    async def look_up(self, url: str, wanted: Wanted) -> DiscoveredAgent:
        """As `find`, with source and age."""
        found = await self.find(url, wanted)
        return DiscoveredAgent(found.document, found.url, found.source, found.age, self._manifests.freshness(found.url))

    async def keep_fresh(self, urls: Collection[str]) -> None:
        """Fetch the manifests at these URLs before they expire, until cancelled."""
        if len(urls) > self._most:
            raise ValueError(f"expected at most {self._most} agents: the cache holds no more manifests")
        for url in urls:
            self._http.judge(url)
        async with anyio.create_task_group() as group:
            for url in urls:
                group.start_soon(self._manifests.keep_fresh, with_plain_zone(url))

    def cached(self, url: str) -> Manifest | None:
        """Return the manifest at this URL if a fresh one is cached, without waiting; else None."""
        received = self._manifests.cached(url)
        if received is None:
            return None
        try:
            manifest = self._trusted.admit(url, received).manifest
        except (Unverified, InvalidDocument):
            # It was cached before a registry named the agent's keys.
            return None
        self._came_from(AnnouncedLocation(url, ()), manifest)
        return manifest

    def _accept(self, url: str, received: ReceivedManifest, keep: bool, at: str = "") -> ReceivedManifest:  # noqa: FBT001 - as Documents asks
        """Verify a manifest before it's cached or returned. `at`: the key of its announced location, if any."""
        try:
            received = self._trusted.admit(url, received)
        except Unverified as error:
            _log.warning("%s", error)
            raise
        if not keep:  # the URL was forgotten meanwhile: any agent may answer there next
            return received
        if self._allow_changed_agents:
            self._first_seen.forget(at or url)
        changed = self._first_seen.check(at or url, received.manifest.id)
        if changed is not None:
            changed = evolve(changed, url=without_credentials(url))
            _log.warning("%s", changed)
            raise changed
        return received

    async def health(self, base_url: str) -> Health:
        """Return the current health report of the agent at `base_url`. Concurrent callers share one request."""
        return (await self._reports.find(join(base_url, HEALTH_PATH))).document

    async def document(self, url: str) -> bytes:
        """Return the document at this URL, without caching it."""
        allowed = self._http.judge(url)
        status, _, body = await self._http.get(allowed, (), MAX_MANIFEST)
        if status != HTTPStatus.OK:
            raise BadReply(without_credentials(allowed.url), "expected the document with HTTP 200", status)
        return body

    def forget(self, url: str) -> None:
        """Forget this URL: cached documents and failures, and which agent was seen there."""
        self._manifests.forget(url)
        for key in self._announced_manifests.forget(normal(url)):
            self._first_seen.forget(key)
        self._registries.forget(url)
        if self._copies is not None:
            self._copies.drop(normal(url))
        self._revoked.forget(url)
        self._first_seen.forget(normal(url))
        self._trusted.forget(normal(url))

    def reset(self) -> None:
        """Forget all URLs."""
        self._manifests.clear()
        self._announced_manifests.clear()
        self._registries.clear()
        if self._copies is not None:
            self._copies.clear()
        self._revoked.clear()
        self._first_seen.clear()
        self._trusted.clear()

    # --- registries --------------------------------------------------------------------------------------------------

    async def registry(self, location: str | Path) -> RegistryIndex | CachedCopy:
        """Read a registry from a URL or a file. Returns a `CachedCopy` if it's unavailable."""
        if not (isinstance(location, str) and "://" in location):
            return await read_registry_file(Path(location), self._files)
        if self._copies is None:
            return (await self._registries.find(location)).document
        try:
            found = await self._registries.find(location)
        except AsapError as error:
            stand_in = await self._copies.take(normal(location), error)
            if stand_in is None:
                raise
            return stand_in
        await self._store_copy(normal(location), found)
        return found.document

    async def _store_copy(self, url: str, found: LocatedDocument[RegistryIndex]) -> None:
        """Store a copy if the document is cached in memory. What may not be cached isn't written to disk either."""
        if self._copies is None:
            return
        freshness = self._registries.kept_as(url, found.document)
        if freshness is not None:
            await self._copies.put(url, found.document, freshness, age=found.age)
        elif self._registries.freshness(url) is None:
            # It was forgotten meanwhile, or its server says no-store.
            self._copies.drop(url)

    def stands_in(self, location: str | Path) -> float | None:
        """Return the age in seconds of the copy in use instead of this registry; None if none is in use."""
        return None if self._copies is None else self._copies.stands_in(normal(str(location)))

    # --- an agent by its URN -----------------------------------------------------------------------------------------

    async def resolve(self, wanted: Wanted, *, wait: float) -> Resolved | Unresolved:
        """Look for an agent in the registries in order, then for `wait` seconds on the local network."""
        step = resolve(wanted, registries=self._locations, revoked=self._revocations, browse=wait > 0)
        while True:
            match step:
                case ReadRegistry():
                    step = await self._ask(step)
                case FetchManifest():
                    step = await self._fetch(step)
                case Browse():
                    step = await self._listen(step, wait)
                case CheckRevoked():
                    step = await self._check(step)
                case Resolved() | Unresolved():
                    return step
                case _:
                    assert_never(step)

    async def _check(self, step: CheckRevoked) -> ResolutionState:
        try:
            if "://" in step.location:
                revoked = (await self._revoked.find(step.location)).document
            else:
                revoked = await read_revocations_file(Path(step.location), self._files)
        except AsapError as error:
            return step.failed(error)
        except OSError as error:
            return step.failed(OSError(error.strerror or str(error)))
        why = revoked.why(step.wanted.urn or "")
        return step.clear() if why is None else step.revoked(why)

    async def _ask(self, step: ReadRegistry) -> ResolutionState:
        try:
            read = await self.registry(step.location)
            index, copied = (read.index, read.words) if isinstance(read, CachedCopy) else (read, "")
            urn = step.wanted.urn or ""
            listed = tuple(index.of_agent(urn)[:MAX_LISTED])
            self._trusted.learn(urn, listed, rank=self._locations.index(step.location))
            return step.read(index, copied=copied)
        except AsapError as error:
            return step.failed(error)
        except OSError as error:
            # Without the error number and the file name: the trace names the location already.
            return step.failed(OSError(error.strerror or str(error)))

    async def _fetch(self, step: FetchManifest) -> ResolutionState:
        try:
            # The step checks whether it's the wanted agent, so that the trace shows the reason.
            if isinstance(step.named_by, Announcement):
                return step.fetched((await self.follow(step.named_by, Wanted(), named=step.keys)).document)
            self._http.judge(step.url, named_by=step.source)
            return step.fetched((await self.find(step.url, Wanted(), named=step.keys)).document)
        except AsapError as error:
            return step.failed(error)

    async def _listen(self, step: Browse, wait: float) -> ResolutionState:
        after: Browse | ResolutionState = step
        with anyio.move_on_after(wait):
            try:
                async with self.browse() as events:
                    async for event in events:
                        if isinstance(event, Added | Updated):
                            after = step.announced(event.announcement)
                            if isinstance(after, FetchManifest):
                                after = await self._fetch(after)
                            if not isinstance(after, Browse):
                                return after
                            step = after
            except AsapError as error:
                return step.failed(error)
        if isinstance(after, FetchManifest):
            # It was announced, but its manifest didn't arrive in time.
            late = after.failed(TimedOut(without_credentials(after.url), f"no manifest within {wait:g} s"))
            step = late if isinstance(late, Browse) else step
        return step.ended(wait)

    def browse(self, *, interfaces: Sequence[str] | None = None) -> AbstractAsyncContextManager[Any]:
        """Watch the agents on the local network."""
        from asap_adapters.mdns.local_network import browse  # noqa: PLC0415 - importing zeroconf takes 80 ms, and few callers need it

        return browse(interfaces=interfaces)


def _verify(public_key: bytes, signature: bytes, message: bytes) -> bool:
    from asap_adapters.auth.signing_key import verify  # noqa: PLC0415 - an optional extra

    return verify(public_key, signature, message)


def join(base_url: str, path: str) -> str:
    """Append a well-known path to a base URL. Raises `NotAllowed` if that has a query or a fragment."""
    if "?" in base_url or "#" in base_url:
        reason = "a base URL has no query and no fragment"
        raise NotAllowed(without_credentials(base_url), reason, Advice("expected one such as https://agent.example"))
    return with_plain_zone(base_url.rstrip("/") + path)
