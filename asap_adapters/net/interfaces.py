"""This machine's interfaces, as following an announcement needs them: their networks, and the names of their links."""

import socket


def links(link: str = "") -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the networks and the scopes of an interface, or of all interfaces."""
    return link_networks(link), link_scopes(link)


def link_networks(link: str = "") -> tuple[str, ...]:
    """Return the networks of an interface, or of all interfaces, such as `192.0.2.7/24`."""
    import ifaddr  # noqa: PLC0415 - a dependency of zeroconf, needed only for announcements

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
