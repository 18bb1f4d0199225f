"""IP addresses: how they are read, and where each leads: to the internet, a private network or this machine.

The table `SPECIAL_RANGES` has a row for each range that isn't the internet. It is part of this library because what
`ipaddress.is_global` answers changes between releases of Python. Two rules go with it: of IPv6 only 2000::/3 is the
internet at all, and an IPv4 address inside an IPv6 one (NAT64, 6to4, Teredo) is judged as well.
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
    """How near to this process something is. Nothing may name what is nearer than itself."""

    INTERNET = 0
    NETWORK = 1
    """A network other than the internet: a private one, a link, a range reserved for other uses."""
    MACHINE = 2
    """This machine."""


@frozen
class SpecialRange:
    """A range of addresses that isn't the internet, what it is, and the document that says so.

    `proximity` is None if no host can be there.
    """

    network: Network
    what: str
    source: str
    proximity: Proximity | None = Proximity.NETWORK

    def __str__(self) -> str:
        return f"{self.what} ({self.source})"


def _special(network: str, what: str, source: str, proximity: Proximity | None = Proximity.NETWORK) -> SpecialRange:
    return SpecialRange(ip_network(network), what, source, proximity)


# IANA's special-purpose registries (RFC 6890, RFC 8190), multicast, and deprecated IPv6 ranges. The first row that
# contains an address applies. The ranges for protocols (192.0.0.0/24, 2001::/23) are listed whole: the few globally
# reachable anycast services in them aren't agents.
SPECIAL_RANGES: Final = (
    _special("0.0.0.0/8", "this network, not a host in it", "RFC 1122 §3.2.1.3", None),
    _special("10.0.0.0/8", "private", "RFC 1918"),
    _special("100.64.0.0/10", "shared behind a carrier's NAT", "RFC 6598"),
    _special("127.0.0.0/8", "this machine", "RFC 1122 §3.2.1.3", Proximity.MACHINE),
    _special("169.254.0.0/16", "link-local", "RFC 3927"),
    _special("172.16.0.0/12", "private", "RFC 1918"),
    _special("192.0.0.0/24", "reserved for protocols", "RFC 6890 §2.1"),
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
    _special("::/96", "an IPv4-compatible form, deprecated", "RFC 4291 §2.5.5.1"),
    _special("64:ff9b:1::/48", "a network's own NAT64", "RFC 8215"),
    _special("100::/64", "discard-only", "RFC 6666"),
    _special("100:0:0:1::/64", "a dummy prefix", "RFC 9780"),
    _special("2001::/32", "Teredo", "RFC 4380"),
    _special("2001:2::/48", "for benchmarks", "RFC 5180"),
    _special("2001:10::/28", "an ORCHID, deprecated", "RFC 4843"),
    _special("2001:20::/28", "an ORCHID, not a host's address", "RFC 7343"),
    _special("2001:30::/28", "a drone's identity, not a host's address", "RFC 9374"),
    _special("2001::/23", "reserved for protocols", "RFC 2928"),
    _special("2001:db8::/32", "for documentation", "RFC 3849"),
    _special("2002::/16", "6to4, deprecated", "RFC 7526"),
    _special("3fff::/20", "for documentation", "RFC 9637"),
    _special("5f00::/16", "a segment's identity", "RFC 9602"),
    _special("fc00::/7", "unique local", "RFC 4193"),
    _special("fe80::/10", "link-local", "RFC 4291 §2.5.6"),
    _special("fec0::/10", "site-local, deprecated", "RFC 3879"),
    _special("ff00::/8", "multicast", "RFC 4291 §2.7", None),
)
_OUTSIDE: Final = _special("::/0", "not of the internet's range 2000::/3", "RFC 4291 §2.4")
_UNICAST: Final = IPv6Network("2000::/3")
# The one prefix outside 2000::/3 that leads to the internet: on an IPv6-only network, DNS64 resolves every name
# without an IPv6 address into it (RFC 6052 §2.1, RFC 6147).
_NAT64: Final = IPv6Network("64:ff9b::/96")
_LOCAL_NAT64: Final = IPv6Network("64:ff9b:1::/48")
_COMPATIBLE: Final = IPv6Network("::/96")
_TEREDO: Final = IPv6Network("2001::/32")
_6TO4: Final = IPv6Network("2002::/16")
_LINK_LOCAL: Final = IPv6Network("fe80::/10")
_LAST_32: Final = 2**32 - 1
# The longest address has 45 characters; a zone is an interface's name or number: 15 on Linux, elsewhere a few more.
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
    """Read a network or a single address. Raises ValueError; its message doesn't repeat the text."""
    try:
        return ip_network(text)
    except ValueError:
        raise ValueError("expected a network such as 10.0.0.0/8 or fd00::/8, no bits set beyond its length") from None


@lru_cache(maxsize=1_024)
def special_of(address: Address) -> SpecialRange | None:
    """Return the special range that contains this address, or None. An IPv4 address inside it isn't looked at."""
    found = next((special for special in SPECIAL_RANGES if address in special.network), None)
    if found is None and isinstance(address, IPv6Address) and address not in _UNICAST and address not in _NAT64:
        return _OUTSIDE
    return found


def _layers(address: Address) -> Iterator[Address]:
    """The address, and every IPv4 address in it that a translator or tunnel on the way would connect to."""
    yield address
    if not isinstance(address, IPv6Address):
        return
    number = int(address)
    if number <= 1:  # RFC 4291 §2.5.5.1: `::` and `::1` aren't IPv4-compatible addresses
        return
    if address in _NAT64 or address in _COMPATIBLE or address in _LOCAL_NAT64:
        # RFC 6052 §2.2: a network may use a shorter NAT64 prefix. Then these bits are no usable address, and it's
        # refused.
        yield IPv4Address(number & _LAST_32)
    elif address in _6TO4:
        yield IPv4Address(number >> 80 & _LAST_32)  # RFC 3056 §2
    elif address in _TEREDO:
        yield IPv4Address(number >> 64 & _LAST_32)  # the server, RFC 4380 §4
        yield IPv4Address(~number & _LAST_32)  # the client, each bit inverted


class ObstacleKind(Enum):
    """Why the library doesn't connect to an address."""

    NOBODY = "nobody can be there"
    TOO_NEAR = "it's nearer than who named it"
    NOT_ALLOWED = "it isn't allowed"


@frozen
class Obstacle:
    """Why an address isn't connected to. `special` is the range of the address, or of an IPv4 address inside it."""

    kind: ObstacleKind
    special: SpecialRange


def obstacle(
    address: Address,
    *,
    allowed: Iterable[Network] = (),
    reach: Proximity = Proximity.MACHINE,
    this_machine: bool = False,
) -> Obstacle | None:
    """Return why this address may not be connected to, or None if it may.

    `allowed`: networks that are allowed beside the internet.
    `reach`: how near the address may be at most; `allowed` doesn't override it.
    `this_machine`: whether loopback was asked for by name (`localhost`), which allows it.
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
    """How near an address is: the nearest of it and the IPv4 addresses inside it.

    A range where no host can be counts as a network.
    """
    specials = map(special_of, _layers(address))
    return max(
        (Proximity.NETWORK if one.proximity is None else one.proximity for one in specials if one is not None),
        default=Proximity.INTERNET,
    )


def on_link(address: str, networks: Collection[str], *, scopes: Collection[str] = ()) -> bool:
    """Whether an address is on the link of an interface: in one of its networks, or IPv6 link-local.

    IPv4 link-local addresses count only if the interface has such an address itself: elsewhere they are routed like
    any other, for example to a cloud's metadata service. Never raises, whatever the text of the address.

    `networks`: the interface's, in any form that `ip_network` reads (`192.0.2.7/24`).
    `scopes`: the interface's name and index; a zone in the address must be one of them.
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
    # The first and the last address are the network and its broadcast (RFC 922 §7), except in the smallest networks
    # (RFC 3021). A link's IPv6 network has 64 bits and no broadcast.
    ends = () if network.prefixlen > 30 else (network[0], network[-1])  # noqa: PLR2004
    return address not in ends
