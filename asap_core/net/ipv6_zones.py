"""Addresses that mean something on one link only, and their zones: in text, in URLs, and what goes onto the wire.

`fe80::1` may be somebody else on every interface, so a machine says which it means: `fe80::1%eth0` (RFC 4007 §11). A
zone is that machine's own word and never leaves it; whoever reads such an address puts it into the zone it came from.
"""

import re
from typing import Final

from asap_core.net.addresses import is_link_local_ipv6

# Both spellings: `%eth0` (RFC 9844 §6), and `%25eth0` (RFC 6874 §2), which reads as a zone `25` only where it's all.
_LITERAL: Final = re.compile(
    r"(?P<before>[A-Za-z][A-Za-z0-9+.-]*://\[)(?P<address>[0-9A-Fa-f:.]+)"
    r"(?:%(?:25(?=[^\]]))?(?P<zone>[^\]/?#]+))?(?P<after>\].*)",
    re.DOTALL,
)


def in_zone(url: str, zone: str) -> str:
    """The URL with its host in this zone, whatever it said before; as it is where its host needs none."""
    match = _LITERAL.fullmatch(url)
    if match is None or not is_link_local_ipv6(match["address"]):
        return url
    return f"{match['before']}{match['address']}{f'%{zone}' if zone else ''}{match['after']}"


def canonical(url: str) -> str:
    """The URL with its zone, if any, in the one spelling that is used here: `%eth0` (RFC 9844 §6)."""
    match = _LITERAL.fullmatch(url)
    return url if match is None or match["zone"] is None else in_zone(url, match["zone"])


def without_zone(url: str) -> str:
    """The URL as it goes into documents and onto the wire: a client must remove the zone (RFC 6874 §4)."""
    return in_zone(url, "")


def in_zone_of(url: str, source: str) -> str:
    """The URL as a document from `source` means it: an address on the link is in the zone that it came from."""
    match = _LITERAL.fullmatch(source)
    if match is None or match["zone"] is None or not is_link_local_ipv6(match["address"]):
        return url
    return in_zone(url, match["zone"])
