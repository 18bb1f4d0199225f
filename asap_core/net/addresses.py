"""Where an IP address leads: the internet, a network of somebody's own, this machine, or nowhere an agent could be.

The table is ours, a row for each range that isn't the internet: what `ipaddress.is_global` answers changes between
releases of Python. Of IPv6 only 2000::/3 is the internet at all; an IPv4 address inside an IPv6 one is judged too.
"""

from collections.abc import Collection, Iterable, Iterator
from enum import Enum, IntEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from attrs import frozen

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Proximity(IntEnum):
    """How near to us something is. Nothing may name what is nearer to us than itself."""

    INTERNET = 0
    NETWORK = 1
    """Some network that isn't the internet: a private one, a link, a range set apart for other things."""
    MACHINE = 2
    """This machine."""


@frozen
class Special:
    """A range of addresses that isn't the internet: what it is, and who says so. `zone` is None where nobody can be."""

    network: Network
    what: str
    source: str
    proximity: Proximity | None = Proximity.NETWORK

    def __str__(self) -> str:
        return f"{self.what} ({self.source})"


def _special(network: str, what: str, source: str, proximity: Proximity | None = Proximity.NETWORK) -> Special:
    return Special(ip_network(network), what, source, proximity)


# The IANA's special-purpose registries (RFC 6890, RFC 8190), and what others set apart: multicast, and IPv6 ranges that
# were given up. Of several that hold an address the first counts. Ranges for protocols (192.0.0.0/24, 2001::/23) are
# in as wholes: the few anycast services in them that are globally reachable aren't agents.
SPECIAL: Final = (
    _special("0.0.0.0/8", "this network, not a host in it", "RFC 1122 §3.2.1.3", None),
    _special("10.0.0.0/8", "private", "RFC 1918"),
    _special("100.64.0.0/10", "shared behind a carrier's NAT", "RFC 6598"),
    _special("127.0.0.0/8", "this machine", "RFC 1122 §3.2.1.3", Proximity.MACHINE),
    _special("169.254.0.0/16", "link-local", "RFC 3927"),
    _special("172.16.0.0/12", "private", "RFC 1918"),
    _special("192.0.0.0/24", "set apart for protocols", "RFC 6890 §2.1"),
    _special("192.0.2.0/24", "for documentation", "RFC 5737"),
    _special("192.88.99.0/24", "a 6to4 relay", "RFC 7526"),
    _special("192.168.0.0/16", "private", "RFC 1918"),
    _special("198.18.0.0/15", "for benchmarks", "RFC 2544"),
    _special("198.51.100.0/24", "for documentation", "RFC 5737"),
    _special("203.0.113.0/24", "for documentation", "RFC 5737"),
    _special("224.0.0.0/4", "multicast", "RFC 5771", None),
    _special("255.255.255.255/32", "broadcast", "RFC 919 §7", None),
    _special("240.0.0.0/4", "reserved", "RFC 1112 §4"),
    _special("::/128", "unspecified", "RFC 4291 §2.5.2", None),
    _special("::1/128", "this machine", "RFC 4291 §2.5.3", Proximity.MACHINE),
    _special("::/96", "an IPv4-compatible form, given up", "RFC 4291 §2.5.5.1"),
    _special("64:ff9b:1::/48", "a network's own NAT64", "RFC 8215"),
    _special("100::/64", "for discarding", "RFC 6666"),
    _special("100:0:0:1::/64", "a dummy", "RFC 9780"),
    _special("2001::/32", "Teredo", "RFC 4380"),
    _special("2001:2::/48", "for benchmarks", "RFC 5180"),
    _special("2001:10::/28", "an ORCHID, given up", "RFC 4843"),
    _special("2001:20::/28", "an ORCHID, not a host's address", "RFC 7343"),
    _special("2001:30::/28", "a drone's identity, not a host's address", "RFC 9374"),
    _special("2001::/23", "set apart for protocols", "RFC 2928"),
    _special("2001:db8::/32", "for documentation", "RFC 3849"),
    _special("2002::/16", "6to4, given up", "RFC 7526"),
    _special("3fff::/20", "for documentation", "RFC 9637"),
    _special("5f00::/16", "a segment's identity", "RFC 9602"),
    _special("fc00::/7", "unique local", "RFC 4193"),
    _special("fe80::/10", "link-local", "RFC 4291 §2.5.6"),
    _special("fec0::/10", "site-local, given up", "RFC 3879"),
    _special("ff00::/8", "multicast", "RFC 4291 §2.7", None),
)
_OUTSIDE: Final = _special("::/0", "not of the internet's range 2000::/3", "RFC 4291 §2.4")
_UNICAST: Final = IPv6Network("2000::/3")
# The one prefix outside of it that leads to the internet: where there's only IPv6, every name that has no IPv6 address
# resolves into it (RFC 6052 §2.1, RFC 6147).
_NAT64: Final = IPv6Network("64:ff9b::/96")
_LOCAL_NAT64: Final = IPv6Network("64:ff9b:1::/48")
_COMPATIBLE: Final = IPv6Network("::/96")
_TEREDO: Final = IPv6Network("2001::/32")
_6TO4: Final = IPv6Network("2002::/16")
_LINK_LOCAL: Final = IPv6Network("fe80::/10")
_LAST_32: Final = 2**32 - 1
# The longest address has 45 characters; a scope is an interface's name or number: 15 on Linux, elsewhere a few more.
_LONGEST: Final = 100


def read_literal(text: str) -> Address | None:
    """Read an address as it's written, with its zone (RFC 4007 §11) if it has one. Never raises.

    Returns None if `text` isn't an address in the form of RFC 4291 §2.2, or of four decimal numbers.
    """
    if ":" not in text and not text[-1:].isdigit():
        return None  # a name, as most hosts are: a failed attempt takes 5 µs
    return _read(text) if len(text) <= _LONGEST else None


# A judgement reads the same host several times, and a client asks the same few hosts.
@lru_cache(maxsize=1_024)
def _read(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def read_address(text: str) -> Address | None:
    """Read an address as `read_literal` does, but an IPv4 address mapped into IPv6 (RFC 4291 §2.5.5.2) as IPv4."""
    address = read_literal(text)
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def read_without_zone(text: str) -> Address | None:
    """Read an address as `read_address` does, but without its zone."""
    return read_address(text.partition("%")[0])


def zone_of(text: str) -> str:
    """Return the zone of a literal address, or an empty string."""
    return text.partition("%")[2]


def is_link_local_ipv6(text: str) -> bool:
    """Whether this is an address that needs a zone. IPv4 has link-local addresses as well (RFC 3927), but no zones."""
    address = read_without_zone(text)
    return isinstance(address, IPv6Address) and address in _LINK_LOCAL


def read_network(text: str) -> Network:
    """Read a network or one address. Raises ValueError that says what was expected, without repeating the text."""
    try:
        return ip_network(text)
    except ValueError:
        raise ValueError("expected a network such as 10.0.0.0/8 or fd00::/8, no bits set beyond its length") from None


@lru_cache(maxsize=1_024)
def special_of(address: Address) -> Special | None:
    """The range that this address is in, where that isn't the internet. What's inside it is another question."""
    found = next((special for special in SPECIAL if address in special.network), None)
    if found is None and isinstance(address, IPv6Address) and address not in _UNICAST and address not in _NAT64:
        return _OUTSIDE
    return found


def _layers(address: Address) -> Iterator[Address]:
    """The address, and every IPv4 address in it that a translator or tunnel on the way would go on to."""
    yield address
    if not isinstance(address, IPv6Address):
        return
    number = int(address)
    if number <= 1:  # `::` and `::1` have nothing inside, RFC 4291 §2.5.5.1
        return
    if address in _NAT64 or address in _COMPATIBLE or address in _LOCAL_NAT64:
        # A network may also cut its own NAT64 shorter (RFC 6052 §2.2): then these bits aren't an address that can be,
        # and it's refused.
        yield IPv4Address(number & _LAST_32)
    elif address in _6TO4:
        yield IPv4Address(number >> 80 & _LAST_32)  # RFC 3056 §2
    elif address in _TEREDO:
        yield IPv4Address(number >> 64 & _LAST_32)  # the server, RFC 4380 §4
        yield IPv4Address(~number & _LAST_32)  # the client, each bit of it turned


class ObstacleKind(Enum):
    """ObstacleKind an address isn't gone to."""

    NOBODY = "nobody can be there"
    TOO_NEAR = "it's nearer than who named it"
    NOT_ALLOWED = "it isn't allowed"


@frozen
class Obstacle:
    """What keeps an address from being gone to: the range it's in, or the range that an address inside it is in."""

    kind: ObstacleKind
    special: Special


def obstacle(
    address: Address,
    *,
    allowed: Iterable[Network] = (),
    reach: Proximity = Proximity.MACHINE,
    this_machine: bool = False,
) -> Obstacle | None:
    """What keeps this address from being gone to, or None.

    `allowed` are networks that may be gone to beside the internet; `this_machine` says that loopback was asked for by
    its name; neither opens what is nearer than `reach`, or where nobody can be.
    """
    networks = tuple(allowed)
    for layer in _layers(address):
        special = special_of(layer)
        if special is None:
            continue
        if special.proximity is None:
            return Obstacle(ObstacleKind.NOBODY, special)
        if special.proximity > reach:
            return Obstacle(ObstacleKind.TOO_NEAR, special)
        by_name = this_machine and special.proximity is Proximity.MACHINE
        if not (by_name or any(layer in network for network in networks)):
            return Obstacle(ObstacleKind.NOT_ALLOWED, special)
    return None


def proximity_of(address: Address) -> Proximity:
    """How near an address is: it itself, or what's inside it. Where nobody can be counts as a network."""
    specials = map(special_of, _layers(address))
    return max(
        (Proximity.NETWORK if one.proximity is None else one.proximity for one in specials if one is not None),
        default=Proximity.INTERNET,
    )


def on_link(address: str, networks: Collection[str], *, scopes: Collection[str] = ()) -> bool:
    """Whether an address is on the link of an interface that has these networks (`192.0.2.7/24` will do).

    That is: in one of its networks, or IPv6 link-local. IPv4 link-local counts only on an interface that has such an
    address itself: elsewhere it's routed like any other, to a cloud's metadata service for one. A scope in the address
    must be one of `scopes`, the interface's name and index. Never raises on an address, whatever it says.
    """
    found = read_address(address)
    if found is None or _is_of_nobody(found):
        return False
    if isinstance(found, IPv6Address):
        if found.scope_id is not None and found.scope_id not in scopes:
            return False
        if found in _LINK_LOCAL:
            return True
    return any(_is_host_of(found, ip_network(network, strict=False)) for network in networks)


def _is_of_nobody(address: Address) -> bool:
    special = special_of(address)
    return special is not None and special.proximity is None


def _is_host_of(address: Address, network: Network) -> bool:
    if address not in network:
        return False
    # The first and the last are the network and its broadcast (RFC 922 §7), but for the smallest (RFC 3021). A link's
    # network in IPv6 has 64 bits.
    ends = () if network.prefixlen > 30 else (network[0], network[-1])  # noqa: PLR2004
    return address not in ends
