"""Agents on the local network: names, TXT records and announcements as data (RFC 6763), and who is there right now.

Anyone on the link can announce anything: reading never raises, and what can't be used says why. A manifest URL must
point at the host that announced it; whether the agent behind it is the one it claims to be is found out by fetching it.
"""

import hashlib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

from attrs import define, field, frozen

from asap_core.model.rules import URN

__all__ = [
    "SERVICE_TYPE",
    "Added",
    "Announcement",
    "Event",
    "Ignored",
    "Neighbourhood",
    "Removed",
    "Target",
    "Txt",
    "Unusable",
    "Updated",
    "advertised_addresses",
    "instance_name",
    "read_announcement",
    "service_target",
    "txt_record",
]

SERVICE_TYPE: Final = "_asap._tcp.local."
# RFC 6763 §4.1.1: one DNS label, at most 63 bytes of UTF-8; less by what an engine appends where the name is taken
# (`-2` and up), or the second of two agents with a long name couldn't be announced at all.
_MAX_LABEL: Final = 63 - len("-999")
# RFC 6763 §6.1: key, "=" and value together, since a length byte stands before each.
_MAX_STRING: Final = 255
# A dot would begin a new label in libraries that don't escape it; the reference keeps dots, and its browser any name.
_NOT_IN_NAMES: Final = re.compile(r"[^\w-]")
# Of one announcement: a machine with more usable addresses than this has the best ones among the first.
_MAX_ADDRESSES: Final = 32

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


# --- to announce -----------------------------------------------------------------------------------------------------


def instance_name(name: str) -> str:
    """The DNS-SD instance name of an agent called `name`: as the reference makes it, but cut by bytes (fault 112)."""
    plain = _NOT_IN_NAMES.sub("-", name).strip("-")
    cut = plain.encode("utf-8", "replace")[:_MAX_LABEL].decode("utf-8", "ignore").strip("-")
    return cut or "asap-agent"


@frozen
class Txt:
    """A TXT record, and the keys that were left out because their values don't fit."""

    strings: Mapping[str, str]
    left_out: tuple[str, ...] = ()


def txt_record(*, agent_id: str, manifest_url: str, version: str, skills: Sequence[str]) -> Txt:
    """Make the TXT record: the reference's three keys and our `id`.

    A version or skills that don't fit are left out, never cut (fault 111). Raises ValueError where it's the manifest
    URL or the id: without them nobody finds the agent, or takes it for the one it is.
    """
    wanted = {"manifest_url": manifest_url, "id": agent_id, "version": version, "capabilities": ",".join(skills)}
    fitting = {key: value for key, value in wanted.items() if _fits(key, value)}
    for key, what in (("manifest_url", "a manifest URL"), ("id", "an agent id")):
        if key not in fitting:
            longest = _MAX_STRING - len(f"{key}=")
            raise ValueError(f"expected {what} of at most {longest} bytes: longer ones can't be announced by mDNS")
    return Txt(fitting, tuple(key for key in wanted if key not in fitting))


def _fits(key: str, value: str) -> bool:
    return len(f"{key}={value}".encode("utf-8", "replace")) <= _MAX_STRING


@frozen
class Target:
    """Where an SRV record points: a host's name under `.local.`, and the addresses to announce for it."""

    name: str
    addresses: tuple[str, ...]


def service_target(manifest_url: str, addresses: Sequence[str]) -> Target:
    """The SRV target of a server at these addresses.

    Where the manifest URL names a `.local` host, that host: its own responder answers for its addresses, and a second
    voice would be a conflict (RFC 6762 §9). Otherwise a name made of the addresses, so that two machines never share
    one, as they would with the name of an agent, or with an operating system's default host name (fault 115).
    """
    host = _host_of(manifest_url) or ""
    if _is_local_name(host):
        return Target(f"{host.rstrip('.')}.", ())
    digest = hashlib.sha256(" ".join(sorted(addresses)).encode()).hexdigest()
    return Target(f"asap-{digest[:16]}.local.", tuple(addresses))


def advertised_addresses(bind_host: str, interface_addresses: Sequence[str]) -> tuple[str, ...]:
    """Which addresses to announce for a server bound to `bind_host`, given those that the machine has.

    The one it's bound to; for a wildcard all but loopback, link-local ones last; for `localhost` those of loopback.
    Nothing where there's none: an address that others can't reach is never announced (fault 114).
    """
    machine = [address for text in interface_addresses if (address := _address(text)) is not None]
    bound = _address(bind_host)
    if bound is None:
        return tuple(str(address) for address in machine if address.is_loopback and bind_host.lower() == "localhost")
    if not bound.is_unspecified:
        return (str(bound),)
    usable = [
        address
        for address in machine
        # A server on the IPv6 wildcard takes IPv4 too, where the system lets it.
        if _is_of_a_host(address) and not address.is_loopback and address.version <= bound.version
    ]
    return tuple(str(address) for address in sorted(usable, key=lambda one: (one.is_link_local, one.version)))


# --- to read ---------------------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class Announcement:
    """An agent as announced. `agent_id` is None from the reference, which doesn't say; `skills` None if left out.

    `host` is the manifest URL's, `port` the SRV record's (0 if there's none). All of it is what the announcer says:
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


@frozen
class Unusable:
    """A record that isn't an agent's announcement; `reason` says what it should have been."""

    instance: str
    reason: str


def read_announcement(
    *,
    instance: str,
    server: str | None,
    port: int | None,
    addresses: Sequence[str],
    txt: Mapping[bytes, bytes | None],
) -> Announcement | Unusable:
    """Read a resolved service. Never raises, whatever the record says."""
    values = _texts(txt)
    url = values.get("manifest_url", "")
    host = _host_of(url)
    if host is None:
        return Unusable(instance, "expected a manifest_url with http or https, a host, and no credentials")
    if not _is_announcer(host, server, addresses[:_MAX_ADDRESSES]):
        return Unusable(instance, "expected a manifest_url on the host that announces it")
    agent_id = values.get("id")
    if agent_id is not None and not URN.fits(agent_id):
        return Unusable(instance, f"expected as id {URN.expected}")
    skills = values.get("capabilities")
    return Announcement(
        instance=instance,
        agent_id=agent_id,
        version=values.get("version", ""),
        skills=None if skills is None else tuple(skill for skill in skills.split(",") if skill),
        manifest_url=url,
        host=host,
        port=port or 0,
        addresses=tuple(addresses[:_MAX_ADDRESSES]),
    )


def _texts(txt: Mapping[bytes, bytes | None]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in txt.items():
        # RFC 6763 §6.4: keys are case-insensitive, and of several alike the first counts.
        found.setdefault(key.decode("utf-8", "replace").lower(), (value or b"").decode("utf-8", "replace"))
    return found


def _host_of(url: str) -> str | None:
    if not url.isprintable() or " " in url or "\\" in url:
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or parts.username is not None or parts.password is not None or port == 0:
        return None
    return parts.hostname or None


def _is_announcer(host: str, server: str | None, addresses: Sequence[str]) -> bool:
    # The SRV target is the announcer's own word. Only a name that this link alone can answer for (RFC 6762 §3) is
    # proof: `169.254.169.254.` or a name in the DNS would let any neighbour send us anywhere (fault 116).
    if _is_local_name(host):
        return server is not None and host.rstrip(".") == server.lower().rstrip(".")
    announced = {address for text in addresses if (address := _address(text)) is not None and _is_of_a_host(address)}
    if host == "localhost":
        return any(address.is_loopback for address in announced)
    return _address(host) in announced


def _is_local_name(host: str) -> bool:
    return host.lower().rstrip(".").endswith(".local")


def _is_of_a_host(address: _Address) -> bool:
    return not (address.is_multicast or address.is_unspecified)


def _address(text: str) -> _Address | None:
    """An address without its scope, which means something on its own machine only; IPv4 in IPv6 is IPv4."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


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

    unusable: Unusable


Event = Added | Updated | Removed | Ignored

# A link with more agents than this is a test or an attack. An announcement takes 1 to 3 KB, so 6 MB at worst.
MAX_AGENTS: Final = 1_000


@define(eq=False)
class Neighbourhood:
    """Who is announced right now, and what of it the reader hasn't been told yet.

    Rule: it keeps states, not a backlog. An engine's repeated and unordered reports go in, `take` says how the present
    differs from what was last told. So a reader who is slow, or stops, costs no memory and misses no change that lasts.
    At most `MAX_AGENTS` are known; past that newcomers aren't, until one leaves and they announce themselves again.
    """

    _now: dict[str, Announcement | Unusable] = field(factory=dict, init=False)
    _told: dict[str, Announcement | Unusable] = field(factory=dict, init=False)
    # A set in order of arrival: names whose state differs from what was told. Each is in one of the two above.
    _changed: dict[str, None] = field(factory=dict, init=False)

    def __len__(self) -> int:
        """How many instances are there, usable or not."""
        return len(self._now)

    def has_room_for(self, instance: str) -> bool:
        """Whether a report about this instance would be kept: it's known, or there's room."""
        return instance in self._now or len(self._now) < MAX_AGENTS

    def seen(self, found: Announcement | Unusable) -> bool:
        """The engine resolved this instance, for the first time or again. Whether `take` has something new now."""
        if not self.has_room_for(found.instance) or self._now.get(found.instance) == found:
            return False
        self._now[found.instance] = found
        return self._note(found.instance)

    def gone(self, instance: str) -> bool:
        """The engine says that this instance is no longer there. Whether `take` has something new now."""
        if self._now.pop(instance, None) is None:
            return False
        return self._note(instance)

    def take(self) -> tuple[Event, ...]:
        """What changed since it was asked last: at most two events for each instance."""
        changed, self._changed = self._changed, {}
        return tuple(event for instance in changed for event in self._tell(instance))

    def _note(self, instance: str) -> bool:
        if self._now.get(instance) == self._told.get(instance):
            self._changed.pop(instance, None)  # back to what was told: no news
            return False
        self._changed[instance] = None
        return True

    def _tell(self, instance: str) -> tuple[Event, ...]:
        before, found = self._told.pop(instance, None), self._now.get(instance)
        if found is not None:
            self._told[instance] = found
        match before, found:
            case Announcement(), Announcement():
                return (Updated(found),)
            case Announcement(), Unusable():
                return (Removed(before), Ignored(found))
            case Announcement(), None:
                return (Removed(before),)
            case _, Announcement():
                return (Added(found),)
            case _, Unusable():
                return (Ignored(found),)
            case _:
                return ()  # something unusable has gone: nobody waits for that
