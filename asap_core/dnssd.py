"""Agents on the local network: names, TXT records and announcements as data (RFC 6763), and who is there right now.

Anyone on the link can announce anything: reading never raises, and what can't be used says why. A manifest URL must
point at the host that announced it; whether the agent behind it is the one it claims to be is found out by fetching it.
"""

import ipaddress
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

from attrs import field, frozen

from asap_core.model.rules import URN

__all__ = [
    "SERVICE_TYPE",
    "Added",
    "Announcement",
    "Event",
    "Ignored",
    "Neighbourhood",
    "Removed",
    "Txt",
    "Unusable",
    "Updated",
    "advertised_addresses",
    "instance_name",
    "read_announcement",
    "txt_record",
]

SERVICE_TYPE: Final = "_asap._tcp.local."
# RFC 6763 §4.1.1: one DNS label, in UTF-8.
_MAX_LABEL: Final = 63
# RFC 6763 §6.1: key, "=" and value together, since a length byte stands before each.
_MAX_STRING: Final = 255
# A dot would begin a new label in libraries that don't escape it; the reference keeps dots, and its browser any name.
_NOT_IN_NAMES: Final = re.compile(r"[^\w-]")


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

    What doesn't fit is left out, never cut (fault 111). Raises ValueError where it's the manifest URL, without which
    the rest is no use.
    """
    wanted = {"manifest_url": manifest_url, "id": agent_id, "version": version, "capabilities": ",".join(skills)}
    fitting = {key: value for key, value in wanted.items() if _fits(key, value)}
    if "manifest_url" not in fitting:
        longest = _MAX_STRING - len("manifest_url=")
        raise ValueError(f"expected a manifest URL of at most {longest} bytes: longer ones can't be announced by mDNS")
    return Txt(fitting, tuple(key for key in wanted if key not in fitting))


def _fits(key: str, value: str) -> bool:
    return len(f"{key}={value}".encode("utf-8", "replace")) <= _MAX_STRING


@frozen(kw_only=True)
class Announcement:
    """An agent as announced. `agent_id` is None from the reference, which doesn't say; `skills` None if left out."""

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
    values = {
        key.decode("utf-8", "replace").lower(): (value or b"").decode("utf-8", "replace") for key, value in txt.items()
    }
    url = values.get("manifest_url", "")
    host = _host_of(url)
    if host is None:
        return Unusable(instance, "expected a manifest_url with http or https, a host, and no credentials")
    if not _is_announcer(host, server, addresses):
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
        addresses=tuple(addresses),
    )


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
    if server is not None and host.rstrip(".") == server.lower().rstrip("."):
        return True
    return any(_same_address(host, address) for address in addresses)


def _same_address(one: str, other: str) -> bool:
    try:
        return ipaddress.ip_address(one.partition("%")[0]) == ipaddress.ip_address(other.partition("%")[0])
    except ValueError:
        return False


def advertised_addresses(bind_host: str, interface_addresses: Sequence[str]) -> tuple[str, ...]:
    """Which addresses to announce for a server bound to `bind_host`, given those that the machine has.

    The one it's bound to; for a wildcard all but loopback, link-local ones last. Nothing where there's none: an
    address that others can't reach is never announced (fault 114).
    """
    try:
        bound = ipaddress.ip_address(bind_host.partition("%")[0])
    except ValueError:
        return ()
    if not bound.is_unspecified:
        return (str(bound),)
    addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in interface_addresses]
    usable = [
        address
        for address in addresses
        if not (address.is_loopback or address.is_multicast or address.is_unspecified)
        # A server on the IPv6 wildcard takes IPv4 too, where the system lets it.
        and address.version <= bound.version
    ]
    return tuple(str(address) for address in sorted(usable, key=lambda one: (one.is_link_local, one.version)))


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

# A link with more agents than this is a test or an attack; about 1 KB each.
MAX_AGENTS: Final = 1_000


@frozen
class Neighbourhood:
    """Who is announced right now. Turns an engine's repeated and unordered reports into events without repeats."""

    _known: OrderedDict[str, Announcement | Unusable] = field(factory=OrderedDict, init=False)

    def __len__(self) -> int:
        """How many instances are known, usable or not."""
        return len(self._known)

    def seen(self, found: Announcement | Unusable) -> tuple[Event, ...]:
        """The engine resolved this instance, for the first time or again."""
        before = self._known.get(found.instance)
        if before == found or (before is None and len(self._known) >= MAX_AGENTS):
            return ()
        self._known[found.instance] = found
        match before, found:
            case Announcement(), Announcement():
                return (Updated(found),)
            case _, Announcement():
                return (Added(found),)
            case Announcement(), Unusable():
                return (Removed(before), Ignored(found))
            case _:
                return (Ignored(found),)

    def gone(self, instance: str) -> tuple[Event, ...]:
        """The engine says that this instance is no longer there."""
        before = self._known.pop(instance, None)
        return (Removed(before),) if isinstance(before, Announcement) else ()
