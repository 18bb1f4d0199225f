"""Decides what to announce of an agent on each link: its name, its TXT record and its addresses (docs/wire.md §7).

Values are never truncated: optional ones that don't fit are omitted, required ones raise ValueError. An address that
isn't on the link, or that others can't reach, is never announced.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Final

from attrs import frozen

from asap_core.mdns.dnssd import host_of, is_announcer, is_local_name, is_of_a_host
from asap_core.net.addresses import read_without_zone
from asap_core.net.interfaces import Link
from asap_core.net.urls import is_loopback, read_url, without_zone

# RFC 6763 §4.1.1: one DNS label, at most 63 bytes of UTF-8. Some are reserved for the number that is appended if the
# name is taken (`-2` and up); otherwise a second agent with a long name couldn't be announced.
_MAX_LABEL: Final = 63 - len("-999")
# RFC 6763 §6.1: of key, "=" and value together; each string is preceded by one byte for its length.
_MAX_STRING: Final = 255
# Libraries that don't escape a dot would start a new label there. The reference keeps dots; its browser accepts any.
_NOT_IN_NAMES: Final = re.compile(r"[^\w-]")
# Bind hosts that aren't a single address, and the IP versions that they include. asyncio and anyio set IPV6_V6ONLY, so
# `::` doesn't include IPv4; they use "" for both.
_WILDCARDS: Final[Mapping[str, frozenset[int]]] = {
    "": frozenset({4, 6}),
    "*": frozenset({4, 6}),
    "0.0.0.0": frozenset({4}),  # noqa: S104 - named, not bound
    "0": frozenset({4}),
    "::": frozenset({6}),
}


def instance_name(name: str) -> str:
    """Make the DNS-SD instance name of an agent, as the reference does, but shortened by bytes."""
    plain = _NOT_IN_NAMES.sub("-", name).strip("-")
    cut = plain.encode("utf-8", "replace")[:_MAX_LABEL].decode("utf-8", "ignore").strip("-")
    return cut or "asap-agent"


@frozen
class Txt:
    """A TXT record, and the keys that were omitted because their values are too long."""

    strings: Mapping[str, str]
    left_out: tuple[str, ...] = ()


def txt_record(*, agent_id: str, manifest_url: str, version: str, skills: Sequence[str]) -> Txt:
    """Make the TXT record: the reference's three keys, and `id`, which this library adds.

    A version or skills that are too long are omitted, never truncated.
    Raises: ValueError if the manifest URL or the id is too long: without them the agent can't be found or recognised.
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
    """The target of an SRV record: a host name under `.local.`, and the addresses to announce for it."""

    name: str
    addresses: tuple[str, ...]


def srv_target(manifest_url: str, addresses: Sequence[str]) -> SrvTarget:
    """Return the SRV target of a server at these addresses.

    If the manifest URL names a `.local` host, the target is that host, without addresses: its own responder announces
    them, and a second announcement would be a conflict (RFC 6762 §9).

    Otherwise the target is a new name, derived from URL and addresses. So two machines with the same
    default host name don't share a target, and the goodbye of one agent on a machine doesn't remove another's
    addresses.
    """
    host = host_of(manifest_url) or ""
    if is_local_name(host):
        return SrvTarget(f"{host.rstrip('.')}.", ())
    digest = hashlib.sha256(" ".join([manifest_url, *sorted(addresses)]).encode("utf-8", "replace")).hexdigest()
    return SrvTarget(f"asap-{digest[:16]}.local.", tuple(addresses))


def advertised_addresses(bind_host: str, interface_addresses: Sequence[str]) -> tuple[str, ...]:
    """Return the addresses to announce for a server bound to `bind_host`.

    interface_addresses: the machine's addresses on the link.
    For a wildcard, all addresses of its IP versions except loopback, link-local ones last; for `localhost`, those of
    loopback; else the bound address. May be empty: unreachable addresses are never announced.
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
    """What to announce on one link: the manifest's URL as peers on this link reach it, and the SRV target."""

    link: Link
    manifest_url: str
    target: SrvTarget


@frozen(kw_only=True)
class Announced:
    """A current announcement on one link: the instance name there, and what was announced."""

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
    """Decide what a server bound to `bind_host` announces on this link: the link's own addresses only.

    RFC 6762 §6.2 requires all addresses that are valid on the link and forbids others. In a `manifest_url` with a
    wildcard host (`http://*:8000/…`, `http://0.0.0.0:8000/…`, `http://[::]:8000/…`) the host is replaced by the link's
    best address; otherwise only a zone is removed. Returns `Unannounced` if browsers would ignore the announcement.
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
