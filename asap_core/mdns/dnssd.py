"""Agents on the local network: announcements as data (RFC 6763), whom to believe, and who is there right now.

Names on the link, of types, instances and hosts, compare without regard to the case of ASCII letters (RFC 6762 §16).

Anyone on the link can announce anything: reading never raises, and what can't be used says why. A manifest URL must
point at the host that announced it; whether the agent behind it is the one it claims to be is found out by fetching it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from attrs import define, evolve, field, frozen

from asap_core.net.addresses import Address, is_link_local_ipv6, read_without_zone
from asap_core.net.interfaces import Link
from asap_core.net.ipv6_zones import in_zone
from asap_core.net.urls import DEFAULT_PORTS, is_plain, read_url
from asap_core.wire.rules import URN

SERVICE_TYPE: Final = "_asap._tcp.local."
# Of one announcement: a machine with more usable addresses than this has the best ones among the first.
_MAX_ADDRESSES: Final = 32


_LOWER: Final = {upper: upper + 32 for upper in b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"}


def fold(name: str) -> str:
    """A name as it compares: RFC 4343 §3 knows no case but that of ASCII letters."""
    return name.translate(_LOWER)


def instance_of(name: str) -> str | None:
    """The instance in a service's full name, as it's written there; None if the name isn't of an agent's service."""
    end = len(name) - len(f".{SERVICE_TYPE}")
    return name[:end] if end > 0 and fold(name[end:]) == f".{SERVICE_TYPE}" else None


# --- to read ---------------------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class Announcement:
    """An agent as announced. `agent_id` is None from the reference, which doesn't say; `skills` None if left out.

    `link` is the interface it was heard on; the same agent may be on several, and one name may be two agents' on two.
    `host` is the manifest URL's, `port` the SRV record's (0 if there's none). Addresses that mean something on that
    link only carry its zone, in the URL as well: `http://[fe80::1%eth0]:8000/…`. All else is what the announcer says:
    text may hold any character, so take care where it's shown.
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
    """A record that isn't an agent's announcement; `reason` says what it should have been."""

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
    """Read a service as resolved on `link`. Never raises, whatever the record says."""
    values, name, zone = _texts(txt), "" if link is None else link.name, "" if link is None else link.zone
    addresses = addresses[:_MAX_ADDRESSES]
    # A zone that the announcer wrote is one of its own machine.
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
        # RFC 6763 §6.4: keys are case-insensitive, and of several alike the first counts.
        found.setdefault(fold(key.decode("utf-8", "replace")), (value or b"").decode("utf-8", "replace"))
    return found


def host_of(url: str) -> str | None:
    """The host of a manifest URL, or None where it can't be one."""
    parts = read_url(url) if is_plain(url) else None
    if parts is None or parts.scheme not in DEFAULT_PORTS or "@" in parts.netloc:
        return None
    return parts.hostname or None


def is_announcer(host: str, server: str | None, addresses: Sequence[str]) -> bool:
    """Whether a manifest URL's host is who announces it, by the SRV record's target and the addresses announced."""
    # The SRV target is the announcer's own word. Only a name that this link alone can answer for (RFC 6762 §3) is
    # proof: `169.254.169.254.` or a name in the DNS would let any neighbour send us anywhere (fault 116).
    if is_local_name(host):
        return server is not None and fold(host).rstrip(".") == fold(server).rstrip(".")
    announced = {
        address for text in addresses if (address := read_without_zone(text)) is not None and is_of_a_host(address)
    }
    if host == "localhost":
        return any(address.is_loopback for address in announced)
    return read_without_zone(host) in announced


def is_local_name(host: str) -> bool:
    """Whether a host's name is one that only its link can answer for."""
    return fold(host).rstrip(".").endswith(".local")


def is_of_a_host(address: Address) -> bool:
    """Whether somebody can be at this address."""
    return not (address.is_multicast or address.is_unspecified)


# --- who is there ----------------------------------------------------------------------------------------------------


@frozen
class Added:
    """An agent has come."""

    announcement: Announcement


@frozen
class Updated:
    """An agent announces something else than before."""

    announcement: Announcement


@frozen
class Removed:
    """An agent has gone: it said goodbye, or its record ran out."""

    announcement: Announcement


@frozen
class Ignored:
    """Something announces itself as an agent that can't be one."""

    unusable: UnusableRecord


Event = Added | Updated | Removed | Ignored

# A link with more agents than this is a test or an attack. An announcement takes 1 to 3 KB, so 6 MB at worst.
MAX_AGENTS: Final = 1_000


# An instance's name, folded, is one agent's on its link only.
_Key = tuple[str, str]


def _key(link: str, instance: str) -> _Key:
    return link, fold(instance)


@define(eq=False)
class AnnouncedAgents:
    """Who is announced right now, link by link, and what of it the reader hasn't been told yet.

    Rule: it keeps states, not a backlog. An engine's repeated and unordered reports go in, `take` says how the present
    differs from what was last told. So a reader who is slow, or stops, costs no memory and misses no change that lasts.
    At most `MAX_AGENTS` are known; past that newcomers aren't, until one leaves and they announce themselves again.
    """

    _now: dict[_Key, Announcement | UnusableRecord] = field(factory=dict, init=False)
    _told: dict[_Key, Announcement | UnusableRecord] = field(factory=dict, init=False)
    # A set in order of arrival: keys whose state differs from what was told. Each is in one of the two above.
    _changed: dict[_Key, None] = field(factory=dict, init=False)
    # Those on links that were joined anew, until they're seen again.
    _doubted: set[_Key] = field(factory=set, init=False)

    def __len__(self) -> int:
        """How many instances are there, usable or not."""
        return len(self._now)

    def has_room_for(self, instance: str, link: str = "") -> bool:
        """Whether a report about this instance would be kept: it's known, or there's room."""
        return _key(link, instance) in self._now or len(self._now) < MAX_AGENTS

    def on(self, link: str) -> tuple[str, ...]:
        """The instances on this link."""
        return tuple(found.instance for (place, _), found in self._now.items() if place == link)

    def agents_on(self, link: str) -> tuple[str, ...]:
        """Those of them that are agents'."""
        return tuple(instance for instance in self.on(link) if self.is_agent(instance, link))

    def is_agent(self, instance: str, link: str = "") -> bool:
        """Whether an agent is there under this name, as far as is known."""
        return isinstance(self._now.get(_key(link, instance)), Announcement)

    def seen(self, found: Announcement | UnusableRecord) -> bool:
        """The engine resolved this instance, for the first time or again. Whether `take` has something new now."""
        key = _key(found.link, found.instance)
        self._doubted.discard(key)
        known = self._now.get(key) or self._told.get(key)
        if known is not None:
            # However it's written this time.
            found = evolve(found, instance=known.instance)
        if not self.has_room_for(found.instance, found.link) or self._now.get(key) == found:
            return False
        self._now[key] = found
        return self._note(key)

    def gone(self, instance: str, link: str = "") -> bool:
        """The engine says that this instance is no longer there. Whether `take` has something new now."""
        key = _key(link, instance)
        self._doubted.discard(key)
        if self._now.pop(key, None) is None:
            return False
        return self._note(key)

    def lost(self, link: str) -> bool:
        """The link is gone, and everyone on it. Whether `take` has something new now."""
        return self._all_gone(link, self.on(link))

    def doubt(self, link: str) -> None:
        """The link was joined anew: whoever isn't seen again on it until `drop_doubted` has gone meanwhile."""
        self._doubted |= {key for key in self._now if key[0] == link}

    def drop_doubted(self, link: str) -> bool:
        """Those in doubt on this link are gone. Whether `take` has something new now."""
        doubted = [instance for place, instance in self._doubted if place == link]
        return self._all_gone(link, doubted)

    def take(self) -> tuple[Event, ...]:
        """What changed since it was asked last: at most two events for each instance."""
        changed, self._changed = self._changed, {}
        return tuple(event for key in changed for event in self._tell(key))

    def _all_gone(self, link: str, instances: Iterable[str]) -> bool:
        news = False
        for instance in instances:
            news |= self.gone(instance, link)
        return news

    def _note(self, key: _Key) -> bool:
        if self._now.get(key) == self._told.get(key):
            self._changed.pop(key, None)  # back to what was told: no news
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
                return ()  # something unusable has gone: nobody waits for that
