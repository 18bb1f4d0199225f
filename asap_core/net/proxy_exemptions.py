"""Which hosts are reached without a proxy: the list in `no_proxy`."""

from ipaddress import ip_network

from asap_core.net.addresses import read_without_zone


def is_exempt(host: str, port: int, no_proxy: str) -> bool:
    """Return whether a list names this host: by name, with or without a port, by address or network, or as `*`.

    Domains are left to the system's own rule (`urllib.request.proxy_bypass`).
    """
    entries = [entry.strip().lower() for entry in no_proxy.split(",")]
    shown = f"[{host}]" if ":" in host else host
    return any(entry in ("*", shown, f"{shown}:{port}") or _is_in(host, entry) for entry in entries)


def _is_in(host: str, network: str) -> bool:
    try:
        listed = ip_network(network, strict=False)
    except ValueError:
        return False
    address = read_without_zone(host)
    return address is not None and address in listed
