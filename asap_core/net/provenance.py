"""Who named a server to us, and so how near it may be: nothing names what is nearer to us than itself.

What the caller names may be anywhere that policy allows. What a document names may not be nearer than where the
document came from: a registry on the internet names nothing in our network, one in our network nothing on this machine.
"""

from typing import Final

from attrs import define, field

from asap_core.lru import Lru
from asap_core.net.addresses import Proximity, proximity_of, read_address
from asap_core.net.urls import authority_of, host_in, is_loopback

# Origins and hosts remembered, some 100 bytes each; past it the oldest are forgotten, which only ever allows less.
MAX_REMEMBERED: Final = 1_000
# Learned from a document that was further away than this machine. More aren't kept apart: see `_unknown`.
_MAX_LEARNED: Final = 10_000


@define(eq=False)
class Provenance:
    """Who named which server, for one client.

    `trusted` are authorities (host and port) that the caller allowed for good. `unknown` is how near a server may be
    that nobody was said to have named: it's the caller's, unless all are strangers', as those of webhooks are.
    """

    trusted: frozenset[str] = frozenset()
    # The internet only, once one that was learned had to be forgotten.
    _unknown: Proximity = field(default=Proximity.MACHINE, kw_only=True)
    _learned: Lru[str, Proximity] = field(factory=lambda: Lru(_MAX_LEARNED), init=False)
    _named: Lru[str, None] = field(factory=lambda: Lru(MAX_REMEMBERED), init=False)
    _seen: Lru[str, Proximity] = field(factory=lambda: Lru(MAX_REMEMBERED), init=False)

    # --- who named it ------------------------------------------------------------------------------------------------

    def name(self, url: str) -> None:
        """The caller named this URL."""
        self.name_authority(authority_of(url))

    def name_authority(self, authority: str | None) -> None:
        """The caller named a URL with this authority, None where it has none."""
        if authority is not None:
            self._named.put(authority, None)

    def learn(self, url: str, *, source: str) -> None:
        """A document named this URL; `source` is the document's URL, or its file's name."""
        authority, zone = authority_of(url), self.proximity_of(source)
        if authority is None or zone is Proximity.MACHINE:
            return
        before = self._learned.peek(authority)
        evicted = self._learned.put(authority, zone if before is None else max(zone, before))
        if evicted is not None:
            self._unknown = Proximity.INTERNET

    def proximity_of(self, source: str) -> Proximity:
        """How near a document is: a file is on this machine, a URL where its server was connected to last."""
        authority = authority_of(source)
        if authority is None:
            return Proximity.INTERNET if "://" in source else Proximity.MACHINE
        host = host_in(authority)
        address = read_address(host)
        if is_loopback(host):
            return Proximity.MACHINE
        return (self._seen.peek(authority) or Proximity.INTERNET) if address is None else proximity_of(address)

    def reach_from(self, source: str, url: str) -> Proximity:
        """How near the server of this URL may be for the document at `source`, which names it.

        That the caller named the same server, for a use of its own, opens it to no document.
        """
        return Proximity.MACHINE if authority_of(url) in self.trusted else self.proximity_of(source)

    def reach(self, authority: str) -> Proximity:
        """How near this server may be."""
        if authority in self.trusted or authority in self._named:
            return Proximity.MACHINE
        learned = self._learned.peek(authority)
        return self._unknown if learned is None else learned

    def connected(self, authority: str, address: str) -> None:
        """This server was connected to at this address. Of several the furthest counts."""
        read = read_address(address)
        zone = Proximity.INTERNET if read is None else proximity_of(read)
        before = self._seen.peek(authority)
        self._seen.put(authority, zone if before is None else min(zone, before))

    def recall(self, url: str, zone: Proximity) -> None:
        """This server was as near as that when it was connected to by an earlier process. What is seen since counts."""
        authority = authority_of(url)
        if authority is not None and authority not in self._seen:
            self._seen.put(authority, zone)
