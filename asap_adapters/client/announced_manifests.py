"""Manifests of announced agents, each asked for at the addresses announced, and kept for that announcement alone.

What an announcement allows (plain http, addresses of this link) is for following it and for nothing else: whoever names
the same host otherwise, on whatever port, is judged as if nothing had been announced.
"""

from collections.abc import Callable
from typing import Any

from attrs import frozen

from asap_adapters.clock import LoopClock
from asap_adapters.net.documents import Documents, LocatedDocument
from asap_adapters.net.transport import HttpTransport
from asap_core.client.trust import ReceivedManifest
from asap_core.errors import Advice, NotAllowed
from asap_core.lru import Lru
from asap_core.mdns.dnssd import Announcement, host_of
from asap_core.net.ipv6_zones import canonical
from asap_core.net.outbound import Allowed
from asap_core.net.provenance import MAX_REMEMBERED
from asap_core.net.urls import normal


@frozen
class AnnouncedLocation:
    """Where an agent was announced: its manifest's URL, and the addresses that are connected to for it."""

    url: str
    addresses: tuple[str, ...]

    @property
    def key(self) -> str:
        """Under what its manifest is kept. No URL has a blank, so that none that anybody names is one of these."""
        return f"{self.url} at {' '.join(self.addresses)}"


def _url_in(key: str) -> str:
    # Not by the table: while this was fetched, a thousand others may have been announced.
    return key.partition(" ")[0]


class AnnouncedManifests:
    """Announced agents' manifests. `accept` is asked as `Documents` does, and told the place's key as well."""

    def __init__(
        self,
        http: HttpTransport,
        clock: LoopClock,
        *,
        accept: Callable[[str, ReceivedManifest, bool, str], ReceivedManifest],
        **options: Any,
    ) -> None:
        self._http = http
        self._places: Lru[str, AnnouncedLocation] = Lru(MAX_REMEMBERED)
        self._documents: Documents[ReceivedManifest] = Documents(
            http,
            clock,
            judge=self._judge,
            accept=lambda key, published, keep: accept(_url_in(key), published, keep, key),
            **options,
        )

    async def find(self, announcement: Announcement) -> tuple[LocatedDocument[ReceivedManifest], AnnouncedLocation]:
        """The manifest of an announced agent, kept or fetched. Raises `NotAllowed` if it isn't on the link."""
        # The URL's own host is what's connected to at these addresses, whatever else is written beside it.
        host = host_of(announcement.manifest_url) or "the URL"
        addresses = self._http.announced_addresses(host, announcement.addresses, link=announcement.link)
        place = AnnouncedLocation(normal(canonical(announcement.manifest_url)), addresses)
        self._places.put(place.key, place)
        return await self._documents.find(place.key), place

    def forget(self, url: str) -> list[str]:
        """Forget what is kept of this URL wherever it was announced; return the keys that it was kept under."""
        keys = [key for key, place in self._places.items() if place.url == url]
        for key in keys:
            self._documents.forget(key)
        return keys

    def clear(self) -> None:
        """Forget all."""
        self._documents.clear()

    def _judge(self, key: str) -> Allowed:
        place = self._places.peek(key)
        if place is None:
            raise NotAllowed(
                "the URL", "it was announced before a thousand others", Advice("follow its announcement again")
            )
        return self._http.judge(place.url, announced=place.addresses)
