"""Reads the interfaces of this machine from the system: names, addresses, networks and capabilities.

On Linux, tentative and deprecated addresses are ignored, and flags tell whether an interface supports multicast. On
other systems every interface with an address is assumed to support it; joining it shows whether it does.
"""

import ipaddress
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Self

import ifaddr

from asap_core.net.interfaces import Link
from asap_core.net.urls import is_loopback

_LINUX: Final = sys.platform == "linux"
# net/if.h and linux/sockios.h
_SIOCGIFFLAGS: Final = 0x8913
_UP, _LOOPBACK, _POINT_TO_POINT, _RUNNING, _MULTICAST = 0x1, 0x8, 0x10, 0x40, 0x1000
_CAN_MULTICAST: Final = _UP | _RUNNING | _MULTICAST
_MAX_NAME: Final = 15
# linux/if_addr.h: temporary (for calling out, RFC 8981), failed, deprecated, tentative (RFC 4862).
_NOT_FOR_SERVERS: Final = 0x01 | 0x08 | 0x20 | 0x40


def machine_links() -> tuple[Link, ...]:
    """Return all interfaces that have an address. Blocks for less than a millisecond."""
    found: dict[str, tuple[int, list[str]]] = {}
    unsettled = _unsettled()
    for adapter in ifaddr.get_adapters():
        # On Linux an alias such as `eth0:1` is an address of eth0.
        name = adapter.name.partition(":")[0] if _LINUX else adapter.nice_name
        _, addresses = found.setdefault(name, (adapter.index or 0, []))
        addresses += _addresses(adapter, unsettled)
    with _Flags() as flags:
        return tuple(
            _link(name, index, addresses, flags.of(name, addresses))
            for name, (index, addresses) in found.items()
            # A port of a bridge receives nothing itself: its packets are the bridge's.
            if addresses and not (_LINUX and Path("/sys/class/net", name, "brport").exists())
        )


def _link(name: str, index: int, addresses: list[str], flags: int) -> Link:
    return Link(
        name=name,
        index=index,
        # IPv4 first, each in the system's order.
        addresses=tuple(sorted(addresses, key=lambda text: ":" in text)),
        loopback=flags & _LOOPBACK > 0,
        multicast=flags & _CAN_MULTICAST == _CAN_MULTICAST,
        point_to_point=flags & _POINT_TO_POINT > 0,
    )


def _addresses(adapter: ifaddr.Adapter, unsettled: frozenset[tuple[int, str]]) -> Iterator[str]:
    for ip in adapter.ips:
        if isinstance(ip.ip, str):
            yield ip.ip
        elif (adapter.index or 0, text := ip.ip[0].partition("%")[0]) not in unsettled:
            yield text


def _unsettled() -> frozenset[tuple[int, str]]:
    """Return the IPv6 addresses, with their interfaces' indices, that must not be announced."""
    try:
        lines = Path("/proc/net/if_inet6").read_text("ascii").splitlines()
    except OSError:  # another system, or no IPv6
        return frozenset()
    fields = [line.split() for line in lines]
    return frozenset(
        (int(index, 16), str(ipaddress.IPv6Address(bytes.fromhex(address))))
        for address, index, _, _, flags, _ in fields
        if int(flags, 16) & _NOT_FOR_SERVERS
    )


class _Flags:
    """Reads interfaces' flags (SIOCGIFFLAGS) through a socket that isn't used for anything else."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        if _LINUX:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        return self

    def __exit__(self, *_error: object) -> None:
        if self._socket is not None:
            self._socket.close()

    def of(self, name: str, addresses: Sequence[str]) -> int:
        if self._socket is None:
            loopback = all(map(is_loopback, addresses))
            return _LOOPBACK if loopback else _CAN_MULTICAST
        import fcntl  # noqa: PLC0415 - not on every system

        try:
            answer = fcntl.ioctl(self._socket, _SIOCGIFFLAGS, struct.pack("16s16x", name.encode()[:_MAX_NAME]))
        except OSError:  # the interface is gone meanwhile
            return 0
        return int(struct.unpack_from("16xH", answer)[0])


# --- for requests to what was announced -------------------------------------------------------------------------------


def links(link: str = "") -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the networks and the scopes of an interface, or of all interfaces."""
    return link_networks(link), link_scopes(link)


def link_networks(link: str = "") -> tuple[str, ...]:
    """Return the networks of an interface, or of all interfaces, such as `192.0.2.7/24`."""
    addresses = [
        ip
        for adapter in ifaddr.get_adapters()
        # An alias such as `eth0:1` is a further address of eth0.
        if not link or link in (adapter.nice_name, adapter.name, adapter.name.partition(":")[0])
        for ip in adapter.ips
    ]
    return tuple(
        f"{ip.ip if isinstance(ip.ip, str) else ip.ip[0]}/{ip.network_prefix}" for ip in addresses if ip.network_prefix
    )


def link_scopes(link: str = "") -> frozenset[str]:
    """Return the names and indices of an interface, or of all interfaces, as used in scoped addresses."""
    found = [(name, str(index)) for index, name in socket.if_nameindex() if not link or name == link]
    return frozenset(text for pair in found for text in pair)
