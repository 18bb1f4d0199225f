"""Fetches manifests of announced agents at their announced addresses, and caches them for that announcement only.

An announcement allows plain http and addresses of its link, but only for following it. The same host in a URL from
another source, on any port, is judged as if nothing had been announced.
"""

from collections.abc import Callable, Collection

from attrs import frozen

from asap_core.client.document_cache import DocumentCachePolicy
from asap_core.client.documents import LocatedDocument, manifest_documents
from asap_core.client.programs import Program
from asap_core.client.requests import Requests, announced_addresses
from asap_core.client.runtime import Runtime
from asap_core.client.trust import ReceivedManifest
from asap_core.errors import Advice, NotAllowed
from asap_core.lru import Lru
from asap_core.mdns.dnssd import Announcement, host_of
from asap_core.net.outbound import Allowed
from asap_core.net.provenance import MAX_REMEMBERED
from asap_core.net.urls import normal, with_plain_zone

Links = Callable[[str], tuple[Collection[str], Collection[str]]]
"""Called with the name of an interface of this machine, "" for all. Returns its networks, such as `192.0.2.7/24`, and
its scopes: the names and the index that zones of addresses may name it by."""


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
    """The manifests of announced agents.

    links: the networks of this machine's interfaces.
    accept: called as by `Documents`, with the location's key in addition.
    """

    def __init__(
        self,
        runtime: Runtime,
        requests: Requests,
        *,
        links: Links,
        accept: Callable[[str, ReceivedManifest, bool, str], ReceivedManifest],
        policy: DocumentCachePolicy | None,
    ) -> None:
        self._requests = requests
        self._links = links
        self._places: Lru[str, AnnouncedLocation] = Lru(MAX_REMEMBERED)
        self._documents = manifest_documents(
            runtime,
            requests,
            judge=self._judge,
            accept=lambda key, received, keep: accept(_url_in(key), received, keep, key),
            policy=policy,
        )

    def find(self, announcement: Announcement) -> Program[tuple[LocatedDocument[ReceivedManifest], AnnouncedLocation]]:
        """Return the manifest of an announced agent, cached or fetched. Raises `NotAllowed` if it isn't on the link."""
        # Use the host of the URL itself, which is what is connected to, not the announcement's `host`.
        host = host_of(announcement.manifest_url) or "the URL"
        networks, scopes = self._links(announcement.link)
        addresses = announced_addresses(host, announcement.addresses, networks=networks, scopes=scopes)
        place = AnnouncedLocation(normal(with_plain_zone(announcement.manifest_url)), addresses)
        self._places.put(place.key, place)
        found = yield from self._documents.find(place.key)
        return found, place

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
        return self._requests.judge(place.url, announced=place.addresses)
