"""Whose request it is when it comes through a proxy: the nearest address that no trusted proxy has.

A proxy appends the address that it saw; what stands left of that came from the caller, who may write anything. So the
list is read from its right end, as far as the addresses are of proxies that policy trusts, and not one step further.
"""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final, Literal

from asap_core.http import Headers, header_values

__all__ = ["ForwardedHeader", "client_of", "is_trusted", "read_networks"]

ForwardedHeader = Literal["x-forwarded-for", "forwarded"]
"""The one that the proxies write. Only that one is read: they pass the other on as the caller wrote it."""

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Proxies in a row; more addresses than this are somebody's invention.
_MAX_HOPS: Final = 20
# RFC 7239 §4 and §6: the parameter `for`, a token or a quoted string; IPv6 in brackets, quoted; perhaps with a port.
_FOR: Final = re.compile(r'(?:^|;)\s*for="?\[?([^\]";,]*)', re.IGNORECASE)


def read_networks(texts: Iterable[str]) -> tuple[str, ...]:
    """Check networks such as `10.0.0.0/8` and addresses such as `::1`, and return them. Raises ValueError."""
    checked = tuple(texts)
    for text in checked:
        try:
            ipaddress.ip_network(text)
        except ValueError:
            raise ValueError("expected addresses or networks such as 10.0.0.0/8 or ::1") from None
    return checked


def is_trusted(peer: str, trusted: Sequence[str]) -> bool:
    """Whether `peer` is one of the trusted proxies."""
    address = _address(peer)
    return address is not None and any(address in network for network in _networks(tuple(trusted)))


def client_of(peer: str, headers: Headers, *, trusted: Sequence[str], header: ForwardedHeader) -> str:
    """The address that a request comes from, where `peer` connected and `trusted` are the proxies' networks.

    Never raises. Where a trusted proxy passes on what is no address, it's the proxy's own.
    """
    if not is_trusted(peer, trusted):
        return peer
    values = header_values(headers, header.encode("ascii"))
    text = ",".join(value.decode("latin-1") for value in values)
    nearest = peer
    for hop in reversed(text.split(",")[-_MAX_HOPS:]):
        address = _address(_node(hop, header))
        if address is None:
            break
        nearest = str(address)
        if not is_trusted(nearest, trusted):
            break
    return nearest


def _node(hop: str, header: ForwardedHeader) -> str:
    if header == "x-forwarded-for":
        return hop.strip()
    found = _FOR.search(hop)
    return "" if found is None else found[1].strip()


def _address(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        # IPv4 with a port, as some proxies write it; an IPv6 address with one stands in brackets.
        host, _, port = text.partition(":")
        if not (port.isdecimal() and host.count(".") == 3):  # noqa: PLR2004 - an IPv4 address has three
            return None
        return _address(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


@lru_cache(maxsize=16)
def _networks(texts: tuple[str, ...]) -> tuple[_Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)
