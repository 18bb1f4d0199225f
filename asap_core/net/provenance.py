"""What named each server, and so how near it may be.

Rule: nothing names what is nearer to this process than itself. A server that the caller names may be anywhere that
policy allows. A server that a document names may not be nearer than the document's own server: a registry on the
internet can't name a host in a private network, and one in a private network can't name this machine.
"""

from typing import Final

from attrs import define, field

from asap_core.lru import Lru
from asap_core.net.addresses import Proximity, proximity_of, read_address
from asap_core.net.urls import authority_of, host_in, is_loopback

# Origins and hosts remembered, some 100 bytes each. Forgetting the oldest only ever allows less.
MAX_REMEMBERED: Final = 1_000
# Servers named by documents from elsewhere than this machine. If one is forgotten, unknown servers are trusted less:
# see `_unknown`.
_MAX_LEARNED: Final = 10_000


@define(eq=False)
class Provenance:
    """What named each server, for one client.

    `trusted`: authorities (host and port) that the caller allowed, whatever names them.
    `unknown`: how near a server may be of which it isn't known what named it. By default it counts as named by the
        caller; where all URLs come from strangers, as those of webhooks do, pass `Proximity.INTERNET`.
    """

    trusted: frozenset[str] = frozenset()
    # Set to the internet once a learned server was forgotten: an unknown server may be that one.
    _unknown: Proximity = field(default=Proximity.MACHINE, kw_only=True)
    _learned: Lru[str, Proximity] = field(factory=lambda: Lru(_MAX_LEARNED), init=False)
    _named: Lru[str, None] = field(factory=lambda: Lru(MAX_REMEMBERED), init=False)
    _seen: Lru[str, Proximity] = field(factory=lambda: Lru(MAX_REMEMBERED), init=False)

    # --- who named it ------------------------------------------------------------------------------------------------

    def name(self, url: str) -> None:
        """The caller named this URL."""
        self.name_authority(authority_of(url))

    def name_authority(self, authority: str | None) -> None:
        """The caller named a URL with this authority; None if it has none."""
        if authority is not None:
            self._named.put(authority, None)

    def learn(self, url: str, *, source: str) -> None:
        """A document named this URL; `source` is the document's URL, or its file's name."""
        authority, near = authority_of(url), self.proximity_of(source)
        if authority is None or near is Proximity.MACHINE:
            return
        before = self._learned.peek(authority)
        evicted = self._learned.put(authority, near if before is None else max(near, before))
        if evicted is not None:
            self._unknown = Proximity.INTERNET

    def proximity_of(self, source: str) -> Proximity:
        """How near a document is: a file is on this machine, a URL where its server was connected to."""
        authority = authority_of(source)
        if authority is None:
            return Proximity.INTERNET if "://" in source else Proximity.MACHINE
        host = host_in(authority)
        address = read_address(host)
        if is_loopback(host):
            return Proximity.MACHINE
        return (self._seen.peek(authority) or Proximity.INTERNET) if address is None else proximity_of(address)

    def reach_from(self, source: str, url: str) -> Proximity:
        """How near the server of this URL may be, if the document at `source` names it.

        That the caller named the same server as well, for its own use, doesn't allow more.
        """
        return Proximity.MACHINE if authority_of(url) in self.trusted else self.proximity_of(source)

    def reach(self, authority: str) -> Proximity:
        """How near this server may be."""
        if authority in self.trusted or authority in self._named:
            return Proximity.MACHINE
        learned = self._learned.peek(authority)
        return self._unknown if learned is None else learned

    def connected(self, authority: str, address: str) -> None:
        """This server was connected to at this address. Of several addresses the furthest counts."""
        read = read_address(address)
        near = Proximity.INTERNET if read is None else proximity_of(read)
        before = self._seen.peek(authority)
        self._seen.put(authority, near if before is None else min(near, before))

    def recall(self, url: str, near: Proximity) -> None:
        """An earlier process found this server to be this near. Ignored if this process has connected to it."""
        authority = authority_of(url)
        if authority is not None and authority not in self._seen:
            self._seen.put(authority, near)
