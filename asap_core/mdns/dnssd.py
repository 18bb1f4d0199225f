"""DNS-SD announcements of agents on the local network: read, checked, and tracked (RFC 6763, docs/wire.md §7).

Names of types, instances and hosts are compared without regard to the case of ASCII letters (RFC 6762 §16).

Anyone on the link can announce anything. So reading never raises: a record that can't be used becomes an
`UnusableRecord` with the reason. A manifest URL must be on the host that announced it. Only fetching the manifest shows
whether the agent is the one that the announcement claims.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from attrs import define, evolve, field, frozen

from asap_core.net.addresses import Address, is_link_local_ipv6, read_without_zone
from asap_core.net.interfaces import Link
from asap_core.net.urls import DEFAULT_PORTS, in_zone, is_plain, read_url
from asap_core.wire.rules import URN

SERVICE_TYPE: Final = "_asap._tcp.local."
# The most addresses of one announcement that are used; the best ones come first.
_MAX_ADDRESSES: Final = 32


_LOWER: Final = {upper: upper + 32 for upper in b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"}


def fold(name: str) -> str:
    """Return the form in which names are compared: ASCII letters in lower case, others unchanged (RFC 4343 §3)."""
    return name.translate(_LOWER)


def instance_of(name: str) -> str | None:
    """Return the instance in a service's full name, unchanged. Returns None if it isn't an agent's service."""
    end = len(name) - len(f".{SERVICE_TYPE}")
    return name[:end] if end > 0 and fold(name[end:]) == f".{SERVICE_TYPE}" else None


# --- reading announcements -------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class Announcement:
    """An announced agent. All values are the announcer's claims, and texts may hold any character.

    agent_id: None from the reference, which doesn't announce it.
    skills: None if omitted.
    host: the manifest URL's.
    port: the SRV record's, 0 if there is none.
    addresses: link-local ones have a zone, also in the URL: `http://[fe80::1%eth0]:8000/…`.
    link: the interface that received it. An agent may be on several, and a name may be different agents' on two.
    """

    instance: str
    agent_id: str | None
    version: str
    skills: tuple[str, ...] | None
    manifest_url: str
    host: str
    port: int
    addresses: tuple[str, ...]
    link: str = ""


@frozen
class UnusableRecord:
    """A record that can't be used as an announcement. `reason` says what was expected."""

    instance: str
    reason: str
    link: str = ""


def read_announcement(
    *,
    instance: str,
    server: str | None,
    port: int | None,
    addresses: Sequence[str],
    txt: Mapping[bytes, bytes | None],
    link: Link | None = None,
) -> Announcement | UnusableRecord:
    """Read a service that was resolved on `link`. Never raises, whatever the record says.

    server: the SRV record's target.
    txt: the TXT record's strings.
    """
    values, name, zone = _texts(txt), "" if link is None else link.name, "" if link is None else link.zone
    addresses = addresses[:_MAX_ADDRESSES]
    # A zone in the announcer's URL is one of the announcer's machine: replace it by this machine's.
    url = in_zone(values.get("manifest_url", ""), zone)
    host = host_of(url)
    if host is None:
        return UnusableRecord(instance, "expected a manifest_url with http or https, a host, and no credentials", name)
    if not is_announcer(host, server, addresses):
        return UnusableRecord(instance, "expected a manifest_url on the host that announces it", name)
    agent_id = values.get("id")
    if agent_id is not None and not URN.fits(agent_id):
        return UnusableRecord(instance, f"expected as id {URN.expected}", name)
    skills = values.get("capabilities")
    return Announcement(
        instance=instance,
        agent_id=agent_id,
        version=values.get("version", ""),
        skills=None if skills is None else tuple(skill for skill in skills.split(",") if skill),
        manifest_url=url,
        host=host,
        port=port or 0,
        addresses=tuple(_zoned(text, zone) for text in addresses),
        link=name,
    )


def _zoned(text: str, zone: str) -> str:
    return f"{text.partition('%')[0]}%{zone}" if zone and is_link_local_ipv6(text) else text


def _texts(txt: Mapping[bytes, bytes | None]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in txt.items():
        # RFC 6763 §6.4: keys are case-insensitive, and the first of equal keys counts.
        found.setdefault(fold(key.decode("utf-8", "replace")), (value or b"").decode("utf-8", "replace"))
    return found


def host_of(url: str) -> str | None:
    """The host of a manifest URL, or None where it can't be one."""
    parts = read_url(url) if is_plain(url) else None
    if parts is None or parts.scheme not in DEFAULT_PORTS or "@" in parts.netloc:
        return None
    return parts.hostname or None


def is_announcer(host: str, server: str | None, addresses: Sequence[str]) -> bool:
    """Return whether a manifest URL's host is the one that announced it.

    server: the SRV record's target.
    addresses: those announced for it.
    """
    # The announcer chooses the SRV target freely. So only a `.local` name counts, which this link alone answers for
    # (RFC 6762 §3): with `169.254.169.254.` or a DNS name any neighbour could make this client request any host.
    if is_local_name(host):
        return server is not None and fold(host).rstrip(".") == fold(server).rstrip(".")
    announced = {
        address for text in addresses if (address := read_without_zone(text)) is not None and is_of_a_host(address)
    }
    if host == "localhost":
        return any(address.is_loopback for address in announced)
    return read_without_zone(host) in announced


def is_local_name(host: str) -> bool:
    """Return whether a host's name is under `.local`, which only its own link answers for."""
    return fold(host).rstrip(".").endswith(".local")


def is_of_a_host(address: Address) -> bool:
    """Return whether a host can have this address."""
    return not (address.is_multicast or address.is_unspecified)


# --- tracking the announced agents -----------------------------------------------------------------------------------


@frozen
class Added:
    """An agent is announced that wasn't before."""

    announcement: Announcement


@frozen
class Updated:
    """An agent's announcement has changed."""

    announcement: Announcement


@frozen
class Removed:
    """An agent is no longer announced: it sent a goodbye, or its records expired."""

    announcement: Announcement


@frozen
class Ignored:
    """A record of an agent's service type can't be used."""

    unusable: UnusableRecord


Event = Added | Updated | Removed | Ignored

# More agents are a test or an attack. An announcement takes 1 to 3 KB and is stored at most twice: 6 MB at worst.
MAX_AGENTS: Final = 1_000


# (link, folded instance name): a name is unique on its link only.
_Key = tuple[str, str]


def _key(link: str, instance: str) -> _Key:
    return link, fold(instance)


@define(eq=False)
class AnnouncedAgents:
    """The announced agents on all links, and the changes that the reader hasn't taken yet.

    Rule: it stores states, not a queue. The engine reports instances repeatedly and in any order; `take` returns the
    difference between the current state and the last one taken. So a slow reader costs no memory, and misses only
    changes that were reverted.

    At most `MAX_AGENTS` are tracked. Further ones are ignored until another leaves and they are announced again.
    """

    _now: dict[_Key, Announcement | UnusableRecord] = field(factory=dict, init=False)
    _told: dict[_Key, Announcement | UnusableRecord] = field(factory=dict, init=False)
    # An ordered set of the keys whose state differs from the one taken. Each is in at least one of the two above.
    _changed: dict[_Key, None] = field(factory=dict, init=False)
    # Instances on links that were joined again, until they are seen again.
    _doubted: set[_Key] = field(factory=set, init=False)

    def __len__(self) -> int:
        """Return how many instances are announced, usable or not."""
        return len(self._now)

    def has_room_for(self, instance: str, link: str = "") -> bool:
        """Return whether a report about this instance would be stored: it's known, or there is room."""
        return _key(link, instance) in self._now or len(self._now) < MAX_AGENTS

    def on(self, link: str) -> tuple[str, ...]:
        """Return the instances on this link, usable or not."""
        return tuple(found.instance for (place, _), found in self._now.items() if place == link)

    def agents_on(self, link: str) -> tuple[str, ...]:
        """Return the instances on this link that are usable announcements."""
        return tuple(instance for instance in self.on(link) if self.is_agent(instance, link))

    def is_agent(self, instance: str, link: str = "") -> bool:
        """Return whether this instance is a usable announcement at the moment."""
        return isinstance(self._now.get(_key(link, instance)), Announcement)

    def seen(self, found: Announcement | UnusableRecord) -> bool:
        """Store what the engine resolved. Returns whether `take` has something new."""
        key = _key(found.link, found.instance)
        self._doubted.discard(key)
        known = self._now.get(key) or self._told.get(key)
        if known is not None:
            # Keep the spelling that was reported first: the name's case may differ now.
            found = evolve(found, instance=known.instance)
        if not self.has_room_for(found.instance, found.link) or self._now.get(key) == found:
            return False
        self._now[key] = found
        return self._note(key)

    def gone(self, instance: str, link: str = "") -> bool:
        """Remove an instance that the engine reports as gone. Returns whether `take` has something new."""
        key = _key(link, instance)
        self._doubted.discard(key)
        if self._now.pop(key, None) is None:
            return False
        return self._note(key)

    def lost(self, link: str) -> bool:
        """Remove all instances on a link that is gone. Returns whether `take` has something new."""
        return self._all_gone(link, self.on(link))

    def doubt(self, link: str) -> None:
        """Mark the instances on a link that was joined again. `drop_doubted` removes those not seen again by then."""
        self._doubted |= {key for key in self._now if key[0] == link}

    def drop_doubted(self, link: str) -> bool:
        """Remove the marked instances on this link. Returns whether `take` has something new."""
        doubted = [instance for place, instance in self._doubted if place == link]
        return self._all_gone(link, doubted)

    def take(self) -> tuple[Event, ...]:
        """Return the changes since the last call: at most two events for each instance."""
        changed, self._changed = self._changed, {}
        return tuple(event for key in changed for event in self._tell(key))

    def _all_gone(self, link: str, instances: Iterable[str]) -> bool:
        news = False
        for instance in instances:
            news |= self.gone(instance, link)
        return news

    def _note(self, key: _Key) -> bool:
        if self._now.get(key) == self._told.get(key):
            self._changed.pop(key, None)  # the change was reverted
            return False
        self._changed[key] = None
        return True

    def _tell(self, key: _Key) -> tuple[Event, ...]:
        before, found = self._told.pop(key, None), self._now.get(key)
        if found is not None:
            self._told[key] = found
        match before, found:
            case Announcement(), Announcement():
                return (Updated(found),)
            case Announcement(), UnusableRecord():
                return (Removed(before), Ignored(found))
            case Announcement(), None:
                return (Removed(before),)
            case _, Announcement():
                return (Added(found),)
            case _, UnusableRecord():
                return (Ignored(found),)
            case _:
                return ()  # an unusable record is gone: not worth an event
