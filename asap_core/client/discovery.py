"""Finds agents for a client, as programs: manifests by URL, registries, announced agents, and an agent by its URN.

`document_cache` decides what is cached, and which callers share a fetch; `search` in which order an agent's URN is
looked for; `trust` which keys must have signed its manifest.
"""

import weakref
from collections.abc import Collection, Mapping, Sequence
from typing import Final, TypeVar, assert_never

from attrs import evolve, frozen

from asap_core.client.announced_manifests import AnnouncedManifests, Links
from asap_core.client.body_reader import BodyReader, DocumentParser, WholeParser
from asap_core.client.document_cache import DocumentCachePolicy
from asap_core.client.documents import MAX_MANIFEST, Documents, LocatedDocument, manifest_documents
from asap_core.client.fetch_results import Source
from asap_core.client.programs import Expired, FileRead, Program, ReadFile, Unavailable
from asap_core.client.registry_cache import CachedCopy, RegistryCache
from asap_core.client.requests import Requests
from asap_core.client.runtime import Runtime
from asap_core.client.search import Resolved, Unresolved, resolve
from asap_core.client.trust import FirstSeen, NamedKeys, ReceivedManifest, TrustedKeys, Wanted
from asap_core.errors import Advice, AsapError, BadReply, InvalidDocument, NotAllowed, TimedOut, Unverified
from asap_core.http.caching import Freshness
from asap_core.mdns.dnssd import Announcement
from asap_core.net.urls import normal, origin_of, with_plain_zone, without_credentials
from asap_core.wire.codec import read_health
from asap_core.wire.manifest import HEALTH_PATH, Health, Manifest
from asap_core.wire.registry import RegistryEntry
from asap_core.wire.registry_index import RegistryIndex
from asap_core.wire.registry_reader import RegistryReader
from asap_core.wire.revocation import RevocationList, read_revocations
from asap_core.wire.signing import Ed25519Verifier

T = TypeVar("T")

# In bytes. A registry of 100,000 agents has some 50 MB.
MAX_REGISTRY: Final = 67_108_864
# In bytes: some 8,000 revoked agents. Reading them takes 10 ms, in one piece.
MAX_REVOCATIONS: Final = 1_048_576
# In bytes. A health report has less than a kilobyte.
_MAX_HEALTH: Final = 65_536
# The reference's limit, in seconds. A registry may have 50 MB.
_REGISTRY_SECONDS: Final = 30.0
_OK: Final = 200
# An unhealthy agent reports that, too.
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
    """Finds agents for one client.

    links: the networks of this machine's interfaces.
    verify: checks Ed25519 signatures. If None, no manifest of an agent with trusted keys is accepted.
    registries: URLs and files that `resolve` reads, in order of precedence.
    revocations: the URL or file of the revocation list. If the list is unavailable, `resolve` fails.
    registry_cache: the last good copies of registries.
    allow_changed_agents: accept that another agent answers at a URL.
    trusted_keys: public keys in base64, by URN.
    require_signed: require a signed manifest of every agent.
    policy: how long documents are cached.

    Raises: ValueError for an invalid URN or key, and if keys are given without `verify`.
    """

    def __init__(
        self,
        runtime: Runtime,
        requests: Requests,
        *,
        links: Links,
        verify: Ed25519Verifier | None,
        registries: Sequence[str] = (),
        revocations: str | None = None,
        registry_cache: RegistryCache | None = None,
        allow_changed_agents: bool = False,
        trusted_keys: Mapping[str, str | Sequence[str]] | None = None,
        require_signed: bool = False,
        policy: DocumentCachePolicy | None = None,
    ) -> None:
        self._trusted = TrustedKeys(trusted_keys or {}, require_signed=require_signed, verify=verify)
        self._runtime = runtime
        self._requests = requests
        self._locations = tuple(registries)
        self._allow_changed_agents = allow_changed_agents
        self._first_seen = FirstSeen()
        self._most = (policy or DocumentCachePolicy()).max_entries
        self._manifests = manifest_documents(runtime, requests, accept=self._accept, policy=policy)
        self._announced_manifests = AnnouncedManifests(
            runtime, requests, links=links, accept=self._accept, policy=policy
        )
        self._registries: Documents[RegistryIndex] = Documents(
            runtime, requests, parser=RegistryReader, limit=MAX_REGISTRY, seconds=_REGISTRY_SECONDS, policy=policy
        )
        self._copies = registry_cache
        self._reports: Documents[Health] = Documents(
            runtime,
            requests,
            parser=lambda: WholeParser(read_health),
            limit=_MAX_HEALTH,
            policy=policy,
            keep=False,
            statuses=_HEALTH_STATUSES,
        )
        self._revocations = revocations
        self._revoked: Documents[RevocationList] = Documents(
            runtime, requests, parser=lambda: WholeParser(read_revocations), limit=MAX_REVOCATIONS, policy=policy
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

    def at_hand(self, url: str, wanted: Wanted) -> Manifest | None:
        """Return the manifest that `find` would return at once, without a program; None if it would fetch."""
        received = self._manifests.at_hand(url)
        return None if received is None else self._admit(url, (), received, wanted)

    def find(
        self, url: str, wanted: Wanted, *, named: NamedKeys | None = None, named_by: str | None = None
    ) -> Program[LocatedDocument[Manifest]]:
        """Return the manifest at this URL, cached or fetched.

        named: the keys that a registry names for the agent.
        named_by: the URL or file of the registry that named the URL; None if the caller did.
        """
        if named_by is not None:
            self._requests.judge(url, named_by=named_by)
        url = with_plain_zone(url)
        found = yield from self._manifests.find(url)
        manifest = self._admit(found.url, (), found.document, wanted, named)
        return LocatedDocument(manifest, found.url, found.source, found.age)

    def follow(
        self, announcement: Announcement, wanted: Wanted, *, named: NamedKeys | None = None
    ) -> Program[LocatedDocument[Manifest]]:
        """Return the manifest of an announced agent. Otherwise as `find`."""
        found, place = yield from self._announced_manifests.find(announcement)
        manifest = self._admit(place.url, place.addresses, found.document, wanted, named)
        return LocatedDocument(manifest, place.url, found.source, found.age)

    def _admit(
        self,
        url: str,
        addresses: tuple[str, ...],
        received: ReceivedManifest,
        wanted: Wanted,
        named: NamedKeys | None = None,
    ) -> Manifest:
        # Verified before caching; verify again, since a registry may have named other keys meanwhile.
        manifest = self._trusted.admit(url, received, named).manifest
        self._came_from(url, addresses, manifest)
        wrong = wanted.judge(manifest, url)
        if wrong is not None:
            raise wrong
        return manifest

    def _came_from(self, url: str, addresses: tuple[str, ...], manifest: Manifest) -> None:
        key, origins = id(manifest), self._origins
        known = origins.get(key)
        if known is None or known[0]() is not manifest:
            there = origin_of(url) or "", addresses
            origins[key] = weakref.ref(manifest, lambda _: origins.pop(key, None)), there

    def look_up(self, url: str, wanted: Wanted) -> Program[DiscoveredAgent]:
        """As `find`, with source and age."""
        found = yield from self.find(url, wanted)
        return DiscoveredAgent(found.document, found.url, found.source, found.age, self._manifests.freshness(found.url))

    def check_kept_fresh(self, urls: Collection[str]) -> None:
        """Check the URLs of all manifests that are to be kept fresh together.

        Raises: ValueError for more than the cache holds; `NotAllowed` if one may not be requested.
        """
        if len(urls) > self._most:
            raise ValueError(f"expected at most {self._most} agents: the cache holds no more manifests")
        for url in urls:
            self._requests.judge(url)

    def keep_fresh(self, url: str) -> Program[None]:
        """Fetch the manifest at this URL before it expires, until closed."""
        return self._manifests.keep_fresh(with_plain_zone(url))

    def cached(self, url: str) -> Manifest | None:
        """Return the manifest at this URL if a fresh one is cached; else None."""
        received = self._manifests.cached(url)
        if received is None:
            return None
        try:
            manifest = self._trusted.admit(url, received).manifest
        except (Unverified, InvalidDocument):
            # It was cached before a registry named the agent's keys.
            return None
        self._came_from(url, (), manifest)
        return manifest

    def _accept(self, url: str, received: ReceivedManifest, keep: bool, at: str = "") -> ReceivedManifest:  # noqa: FBT001 - as Documents asks
        """Verify a manifest before it's cached or returned. `at`: the key of its announced location, if any."""
        try:
            received = self._trusted.admit(url, received)
        except Unverified as error:
            self._runtime.warn("asap.discovery", error)
            raise
        if not keep:  # the URL was forgotten meanwhile: any agent may answer there next
            return received
        if self._allow_changed_agents:
            self._first_seen.forget(at or url)
        changed = self._first_seen.check(at or url, received.manifest.id)
        if changed is not None:
            changed = evolve(changed, url=without_credentials(url))
            self._runtime.warn("asap.discovery", changed)
            raise changed
        return received

    def health(self, base_url: str) -> Program[Health]:
        """Return the current health report of the agent at `base_url`. Concurrent callers share one request."""
        found = yield from self._reports.find(join(base_url, HEALTH_PATH))
        return found.document

    def document(self, url: str) -> Program[bytes]:
        """Return the document at this URL, without caching it."""
        allowed = self._requests.judge(url)
        answer = yield from self._requests.get(allowed, (), MAX_MANIFEST)
        if answer.status != _OK:
            raise BadReply(without_credentials(allowed.url), "expected the document with HTTP 200", answer.status)
        return answer.body

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

    # --- registries and revocations ----------------------------------------------------------------------------------

    def registry(self, location: str) -> Program[RegistryIndex | CachedCopy]:
        """Read a registry from a URL or a file. Returns a copy if it's unavailable. Raises OSError for a file."""
        if "://" not in location:
            return (yield from _read_file(location, RegistryReader(), MAX_REGISTRY))
        try:
            found = yield from self._registries.find(location)
        except AsapError as error:
            copy = None if self._copies is None else (yield from self._copies.take(normal(location), error))
            if copy is None:
                raise
            return copy
        if self._copies is not None:
            yield from self._store_copy(normal(location), found, self._copies)
        return found.document

    def _store_copy(self, url: str, found: LocatedDocument[RegistryIndex], copies: RegistryCache) -> Program[None]:
        """Store a copy if the document is cached in memory. What may not be cached isn't written to disk either."""
        freshness = self._registries.kept_as(url, found.document)
        if freshness is not None:
            yield from copies.put(url, found.document, freshness, age=found.age)
        elif self._registries.freshness(url) is None:
            # It was forgotten meanwhile, or its server says no-store.
            copies.drop(url)

    def stands_in(self, location: str) -> float | None:
        """Return the age in seconds of the copy in use instead of this registry; None if none is in use."""
        return None if self._copies is None else self._copies.stands_in(normal(location))

    def learn(self, urn: str, entries: Sequence[RegistryEntry], *, rank: int) -> None:
        """Learn the keys that the registry of this rank, in order of precedence, names for an agent."""
        self._trusted.learn(urn, entries, rank=rank)

    def revocations(self, location: str) -> Program[RevocationList]:
        """Read a revocation list from a URL or a file. Raises OSError for a file."""
        if "://" not in location:
            return (yield from _read_file(location, WholeParser(read_revocations), MAX_REVOCATIONS))
        found = yield from self._revoked.find(location)
        return found.document

    # --- an agent by its URN -----------------------------------------------------------------------------------------

    def resolve(self, wanted: Wanted, *, wait: float) -> Program[Resolved | Unresolved]:
        """Search for an agent in the registries in order, then for `wait` seconds on the local network."""
        return resolve(
            wanted,
            sources=self,
            clock=self._runtime.clock,
            registries=self._locations,
            revoked=self._revocations,
            wait=wait,
        )


def _read_file(path: str, parser: DocumentParser[T], limit: int) -> Program[T]:
    """Read a document of at most `limit` bytes from a file. Raises OSError, `BadReply`, `InvalidDocument`."""
    reader = BodyReader(limit, parser=parser)
    outcome = yield from ReadFile(path, reader)
    match outcome:
        case FileRead():
            reader.check(path)
            return parser.close()
        case Unavailable(reason, None):
            raise BadReply(path, reason)
        case Unavailable(reason, number):
            raise OSError(number, reason, path)
        case Expired():
            raise TimedOut(path, "it wasn't read in time")
        case _:
            assert_never(outcome)


def join(base_url: str, path: str) -> str:
    """Append a well-known path to a base URL. Raises `NotAllowed` if that has a query or a fragment."""
    if "?" in base_url or "#" in base_url:
        reason = "a base URL has no query and no fragment"
        raise NotAllowed(without_credentials(base_url), reason, Advice("expected one such as https://agent.example"))
    return with_plain_zone(base_url.rstrip("/") + path)
