"""What to announce of an agent on the local network, as data: its name, its TXT record, and its addresses on each link.

Nothing is cut: what doesn't fit is left out, or refused where it can't be. An address that others can't reach, or that
isn't on the link, is never announced.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Final

from attrs import frozen

from asap_core.mdns.dnssd import host_of, is_announcer, is_local_name, is_of_a_host
from asap_core.net.addresses import read_without_zone
from asap_core.net.interfaces import Link
from asap_core.net.ipv6_zones import without_zone
from asap_core.net.urls import is_loopback, read_url

# RFC 6763 §4.1.1: one DNS label, at most 63 bytes of UTF-8; less by what an engine appends where the name is taken
# (`-2` and up), or the second of two agents with a long name couldn't be announced at all.
_MAX_LABEL: Final = 63 - len("-999")
# RFC 6763 §6.1: key, "=" and value together, since a length byte stands before each.
_MAX_STRING: Final = 255
# A dot would begin a new label in libraries that don't escape it; the reference keeps dots, and its browser any name.
_NOT_IN_NAMES: Final = re.compile(r"[^\w-]")
# What a server may be bound to that is no single address, and the families it then takes. asyncio and anyio keep IPv4
# off the IPv6 wildcard (IPV6_V6ONLY), and have the first two for both.
_WILDCARDS: Final[Mapping[str, frozenset[int]]] = {
    "": frozenset({4, 6}),
    "*": frozenset({4, 6}),
    "0.0.0.0": frozenset({4}),  # noqa: S104 - named, not bound
    "0": frozenset({4}),
    "::": frozenset({6}),
}


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
class SrvTarget:
    """Where an SRV record points: a host's name under `.local.`, and the addresses to announce for it."""

    name: str
    addresses: tuple[str, ...]


def srv_target(manifest_url: str, addresses: Sequence[str]) -> SrvTarget:
    """The SRV target of a server at these addresses.

    Where the manifest URL names a `.local` host, that host: its own responder answers for its addresses, and a second
    voice would be a conflict (RFC 6762 §9). Otherwise a name of its own (fault 115): made of URL and addresses, so
    that two machines never share one, as they would with an operating system's default host name; and when one of two
    agents on a machine takes its leave, and its addresses with it, that says nothing about the other's.
    """
    host = host_of(manifest_url) or ""
    if is_local_name(host):
        return SrvTarget(f"{host.rstrip('.')}.", ())
    digest = hashlib.sha256(" ".join([manifest_url, *sorted(addresses)]).encode("utf-8", "replace")).hexdigest()
    return SrvTarget(f"asap-{digest[:16]}.local.", tuple(addresses))


def advertised_addresses(bind_host: str, interface_addresses: Sequence[str]) -> tuple[str, ...]:
    """Which addresses to announce for a server bound to `bind_host`, given those that the machine has.

    The one it's bound to; for a wildcard all of its families but loopback, link-local ones last; for `localhost` those
    of loopback. Nothing where there's none: an address that others can't reach is never announced (fault 114).
    """
    machine = [address for text in interface_addresses if (address := read_without_zone(text)) is not None]
    versions = _WILDCARDS.get(bind_host)
    if versions is not None:
        usable = [one for one in machine if is_of_a_host(one) and not one.is_loopback and one.version in versions]
        return tuple(str(address) for address in sorted(usable, key=lambda one: (one.is_link_local, one.version)))
    bound = read_without_zone(bind_host)
    if bound is None:
        return tuple(str(address) for address in machine if address.is_loopback and bind_host.lower() == "localhost")
    return (str(bound),)


@frozen(kw_only=True)
class Offer:
    """What to announce on one link: the manifest's URL as those on it reach it, and where the SRV record points."""

    link: Link
    manifest_url: str
    target: SrvTarget


@frozen(kw_only=True)
class Announced:
    """What is announced on one link: under which name there, and what those on it are told."""

    link: str
    instance: str
    manifest_url: str
    addresses: tuple[str, ...]


@frozen
class Unannounced:
    """Why nothing is announced on a link."""

    link: Link
    reason: str


def offer_on(link: Link, *, bind_host: str, manifest_url: str) -> Offer | Unannounced:
    """What a server bound to `bind_host` announces on this link: that link's own addresses and no others.

    RFC 6762 §6.2 wants all that are valid on the link and forbids those that aren't. A `manifest_url` at a wildcard
    (`http://*:8000/…`, `http://0.0.0.0:8000/…`, `http://[::]:8000/…`) gets the link's best address; another stays as
    it is, but for a zone. `Unannounced` where it would be ignored, and nobody would know why.
    """
    wanted = None if bind_host in _WILDCARDS else read_without_zone(bind_host)
    if wanted is not None and not (wanted.is_loopback or link.is_meant_by(bind_host)):
        return Unannounced(link, "what the server is bound to isn't here")
    addresses = advertised_addresses(bind_host, link.addresses)
    if not addresses or link.loopback is not all(map(is_loopback, addresses)):
        return Unannounced(link, "what the server is bound to isn't reached from here")
    url = _at(without_zone(manifest_url), addresses[0])
    target = srv_target(url, addresses)
    if not is_announcer(host_of(url) or "", target.name, addresses):
        known = ", ".join(addresses)
        reason = f"browsers take only a manifest URL at an announced address ({known}) or a .local name"
        return Unannounced(link, reason)
    return Offer(link=link, manifest_url=url, target=target)


def _at(url: str, address: str) -> str:
    parts = read_url(url)
    if parts is None or (host_of(url) or "?") not in _WILDCARDS:
        return url
    port = "" if parts.port is None else f":{parts.port}"
    return parts._replace(netloc=(f"[{address}]" if ":" in address else address) + port).geturl()
