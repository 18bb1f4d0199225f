"""Zones of link-local IPv6 addresses in URLs.

`fe80::1` may be another host on each interface, so a machine adds which interface it means: `fe80::1%eth0` (RFC 4007
§11). A zone is the machine's own name for the link and never leaves it: it is removed from what is sent, and a
document's link-local addresses get the zone that the document was fetched from.
"""

import re
from typing import Final

from asap_core.net.addresses import is_link_local_ipv6

# Both spellings: `%eth0` (RFC 9844 §6), and `%25eth0` (RFC 6874 §2). `%25` alone is the zone `25`.
_LITERAL: Final = re.compile(
    r"(?P<before>[A-Za-z][A-Za-z0-9+.-]*://\[)(?P<address>[0-9A-Fa-f:.]+)"
    r"(?:%(?:25(?=[^\]]))?(?P<zone>[^\]/?#]+))?(?P<after>\].*)",
    re.DOTALL,
)


def in_zone(url: str, zone: str) -> str:
    """Return the URL with its host's zone set to `zone`; unchanged if its host isn't a link-local IPv6 address."""
    match = _LITERAL.fullmatch(url)
    if match is None or not is_link_local_ipv6(match["address"]):
        return url
    return f"{match['before']}{match['address']}{f'%{zone}' if zone else ''}{match['after']}"


def canonical(url: str) -> str:
    """Return the URL with its zone, if it has one, written as `%eth0` (RFC 9844 §6)."""
    match = _LITERAL.fullmatch(url)
    return url if match is None or match["zone"] is None else in_zone(url, match["zone"])


def without_zone(url: str) -> str:
    """Return the URL as it goes into documents and onto the wire: a client must remove the zone (RFC 6874 §4)."""
    return in_zone(url, "")


def in_zone_of(url: str, source: str) -> str:
    """Return the URL as a document fetched from `source` means it: a link-local host is in the zone of `source`."""
    match = _LITERAL.fullmatch(source)
    if match is None or match["zone"] is None or not is_link_local_ipv6(match["address"]):
        return url
    return in_zone(url, match["zone"])
