"""Fetches manifests of announced agents at their announced addresses, and caches them for that announcement only.

An announcement allows plain http and addresses of its link, but only for following it. The same host in a URL from
another source, on any port, is judged as if nothing had been announced.
"""

from collections.abc import Callable
from typing import Final

from attrs import frozen

from asap_adapters.net.documents import Documents, LocatedDocument, WholeReader
from asap_adapters.net.transport import HttpTransport
from asap_adapters.system import LoopClock
from asap_core.client.document_cache import DocumentCachePolicy
from asap_core.client.trust import ReceivedManifest, read_received
from asap_core.errors import Advice, NotAllowed
from asap_core.lru import Lru
from asap_core.mdns.dnssd import Announcement, host_of
from asap_core.net.outbound import Allowed
from asap_core.net.provenance import MAX_REMEMBERED
from asap_core.net.urls import normal, with_plain_zone

# A manifest has a few kilobytes; with the schemas of hundreds of skills, some 100.
MAX_MANIFEST: Final = 1_048_576


def manifest_documents(
    http: HttpTransport,
    clock: LoopClock,
    *,
    judge: Callable[[str], Allowed] | None = None,
    accept: Callable[[str, ReceivedManifest, bool], ReceivedManifest],
    policy: DocumentCachePolicy | None,
) -> Documents[ReceivedManifest]:
    """Return `Documents` that fetches and caches manifests. The parameters are those of `Documents`."""
    return Documents(
        http,
        clock,
        reader=lambda: WholeReader(read_received),
        judge=judge,
        accept=accept,
        limit=MAX_MANIFEST,
        ttl=lambda received: received.manifest.ttl_seconds,
        policy=policy,
    )


@frozen
class AnnouncedLocation:
    """Where an agent was announced: its manifest's URL, and the addresses to connect to."""

    url: str
    addresses: tuple[str, ...]

    @property
    def key(self) -> str:
        """The key of its manifest in the cache. Contains a space, so it can't equal a URL."""
        return f"{self.url} at {' '.join(self.addresses)}"


def _url_in(key: str) -> str:
    # Not from `_places`, which may have evicted the location while its manifest was fetched.
    return key.partition(" ")[0]


class AnnouncedManifests:
    """The manifests of announced agents. `accept` is called as by `Documents`, with the location's key in addition."""

    def __init__(
        self,
        http: HttpTransport,
        clock: LoopClock,
        *,
        accept: Callable[[str, ReceivedManifest, bool, str], ReceivedManifest],
        policy: DocumentCachePolicy | None,
    ) -> None:
        self._http = http
        self._places: Lru[str, AnnouncedLocation] = Lru(MAX_REMEMBERED)
        self._documents = manifest_documents(
            http,
            clock,
            judge=self._judge,
            accept=lambda key, received, keep: accept(_url_in(key), received, keep, key),
            policy=policy,
        )

    async def find(self, announcement: Announcement) -> tuple[LocatedDocument[ReceivedManifest], AnnouncedLocation]:
        """Return the manifest of an announced agent, cached or fetched. Raises `NotAllowed` if it isn't on the link."""
        # Use the host of the URL itself, which is what is connected to, not the announcement's `host`.
        host = host_of(announcement.manifest_url) or "the URL"
        addresses = self._http.announced_addresses(host, announcement.addresses, link=announcement.link)
        place = AnnouncedLocation(normal(with_plain_zone(announcement.manifest_url)), addresses)
        self._places.put(place.key, place)
        return await self._documents.find(place.key), place

    def forget(self, url: str) -> list[str]:
        """Forget the manifests of this URL at all announced locations. Returns their keys."""
        keys = [key for key, place in self._places.items() if place.url == url]
        for key in keys:
            self._documents.forget(key)
        return keys

    def clear(self) -> None:
        """Forget all manifests."""
        self._documents.clear()

    def _judge(self, key: str) -> Allowed:
        place = self._places.peek(key)
        if place is None:
            raise NotAllowed("the URL", "its announcement was forgotten", Advice("follow its announcement again"))
        return self._http.judge(place.url, announced=place.addresses)
