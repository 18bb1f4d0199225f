"""Which proxy the environment names for a request (`http_proxy`, …), and which hosts need none (`no_proxy`)."""

import re
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_network
from typing import Final
from urllib.parse import unquote

from attrs import field, frozen

from asap_core.errors import Advice, Remedy
from asap_core.net.addresses import read_without_zone
from asap_core.net.outbound import Dial, OutboundPolicy, Resolve
from asap_core.net.urls import DEFAULT_PORTS, is_loopback, split_url

# RFC 1928 §3: SOCKS conventionally listens on 1080.
_PORTS: Final = {**DEFAULT_PORTS, "socks5": 1080, "socks5h": 1080}
_REMEDY: Final = Advice("set it to a URL such as http://proxy.example:3128, or list this host in no_proxy")


@frozen
class ProxyUrl:
    """A proxy. `variable`: what names it, such as `https_proxy`. `login`: user and password, if it has them."""

    variable: str
    scheme: str
    host: str
    port: int
    login: tuple[str, str] | None = field(default=None, repr=False)

    @property
    def speaks_socks(self) -> bool:
        """Whether it's a SOCKS proxy, not an HTTP one."""
        return self.scheme not in DEFAULT_PORTS

    @property
    def name(self) -> str | None:
        """The name to resolve, whose addresses `choose` takes. None if nothing is to be resolved."""
        way = OutboundPolicy().destination(self.host)
        return way.name if isinstance(way, Resolve) else None

    def choose(self, answers: Sequence[str] = ()) -> Dial:
        """Return the addresses to connect to: any, since the user chose the proxy.

        answers: what `name` resolved to.
        """
        way = OutboundPolicy().destination(self.host)
        return way if isinstance(way, Dial) else Dial(tuple(answers))


class UnusableProxy:
    """The environment names a proxy that can't be used. Neither text repeats its URL, which may contain a password."""

    def __init__(self, variable: str, why: str, remedy: Remedy = _REMEDY) -> None:
        self.reason = f"{variable} names a proxy that can't be used: {why}"
        self.remedy = remedy


@frozen
class Proxies:
    """The proxies of an environment.

    urls: by scheme; `all` is for both.
    no_proxy: the list of hosts that need none.
    bypasses: says whether a host, or a host with a port, needs none by the system's own rules.
    """

    urls: Mapping[str, str] = field(factory=dict, repr=False)
    no_proxy: str = ""
    bypasses: Callable[[str], object] = lambda _host: None

    def proxy_for(self, scheme: str, host: str, port: int) -> ProxyUrl | UnusableProxy | None:
        """Return the proxy for a request, or None if it needs none. This machine needs none."""
        name = next((name for name in (scheme, "all") if self.urls.get(name)), None)
        if name is None or is_loopback(host) or self._is_exempt(host, port):
            return None
        return _read(f"{name}_proxy", self.urls[name].strip())

    def _is_exempt(self, host: str, port: int) -> bool:
        """Return whether the list names this host: by name, with or without a port, by address or network, or as `*`.

        Domains are left to the system's own rule (`urllib.request.proxy_bypass`).
        """
        shown = f"[{host}]" if ":" in host else host
        entries = [entry.strip().lower() for entry in self.no_proxy.split(",")]
        return (
            any(entry in ("*", shown, f"{shown}:{port}") or _is_in(host, entry) for entry in entries)
            or bool(self.bypasses(host))
            or bool(self.bypasses(f"{shown}:{port}"))
        )


def _is_in(host: str, network: str) -> bool:
    try:
        listed = ip_network(network, strict=False)
    except ValueError:
        return False
    address = read_without_zone(host)
    return address is not None and address in listed


def _read(variable: str, text: str) -> ProxyUrl | UnusableProxy:
    scheme, _, rest = (text if "://" in text else f"http://{text}").partition("://")
    user, _, authority = re.split("[/?#]", rest)[0].rpartition("@")
    parts = split_url(f"{scheme}://{authority}")
    if parts is None:
        return UnusableProxy(variable, "it isn't a URL with a host and a valid port")
    if parts.scheme not in _PORTS:
        return UnusableProxy(variable, "its scheme isn't http, https or socks5")
    login, _, password = user.partition(":")
    return ProxyUrl(
        variable,
        parts.scheme,
        str(parts.hostname),
        parts.port or _PORTS[parts.scheme],
        (unquote(login), unquote(password)) if user else None,
    )
