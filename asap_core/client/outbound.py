"""Where the library may go: one judgement for every URL that it fetches or posts to.

https, unless the host is this machine or allowed by name; no credentials in URLs; nothing but http and https. What a
resolver answers is the adapters' to check, later; this is what the URL alone tells.
"""

import ipaddress
import re
from collections.abc import Collection
from typing import Final
from urllib.parse import SplitResult, urlsplit, urlunsplit

from attrs import frozen

__all__ = [
    "Allowed",
    "Refused",
    "is_inside",
    "is_loopback",
    "judge_url",
    "may_name",
    "origin_of",
    "without_credentials",
]

_PORTS: Final = {"http": 80, "https": 443}
# Longer URLs are refused by common servers (nginx: 8 KiB for the request line).
_MAX_URL: Final = 8000


@frozen
class Allowed:
    """The library may go there. `url` is without fragment, `origin` as RFC 6454 §4 has it, port always written."""

    url: str
    origin: str
    host: str
    encrypted: bool


@frozen
class Refused:
    """The library doesn't go there. `shown` is the URL without credentials, safe for logs; `remedy` what allows it."""

    shown: str
    reason: str
    remedy: str


def judge_url(url: str, *, allow_http: Collection[str] = ()) -> Allowed | Refused:
    """Judge one URL. `allow_http` are host names that may be reached without TLS. Never raises."""
    parts = _split(url)
    if parts is None:
        return Refused("the URL", "it can't be read as a URL", "expected one such as https://agent.example")
    shown = without_credentials(url)
    if parts.scheme not in _PORTS:
        return Refused(shown, "its scheme is neither https nor http", "expected a URL such as https://agent.example")
    if parts.username is not None or parts.password is not None:
        return Refused(shown, "it carries credentials", "pass them as auth={origin: token}")
    host = parts.hostname or ""
    if parts.scheme == "http" and not (is_loopback(host) or host in allow_http):
        return Refused(shown, "it isn't encrypted", f"use https, or allow plain http to it with allow_http={[host]!r}")
    return Allowed(urlunsplit(parts._replace(fragment="")), _origin(parts), host, parts.scheme == "https")


def _split(url: str) -> SplitResult | None:
    if len(url) > _MAX_URL or not url.isprintable() or " " in url or "\\" in url:
        return None
    try:
        parts = urlsplit(url)
        port = parts.port  # reading it is what checks it
    except ValueError:
        return None
    return parts if _HOST.fullmatch(_without_user(parts.netloc)) and port != 0 else None


# A name in ASCII (others have a form in it, RFC 5891), or a literal address; then a port, perhaps. urlsplit takes the
# host of `[::1]evil.example` for `::1`, and other readers don't.
_HOST: Final = re.compile(
    r"(?:(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~-]+)?\])(?::[0-9]*)?",
    re.ASCII,
)


def _without_user(netloc: str) -> str:
    return netloc.rpartition("@")[2]


def _origin(parts: SplitResult) -> str:
    host = parts.hostname or ""
    shown = f"[{host}]" if ":" in host else host
    port = parts.port or _PORTS.get(parts.scheme)
    return f"{parts.scheme}://{shown}" if port is None else f"{parts.scheme}://{shown}:{port}"


def origin_of(url: str) -> str | None:
    """The origin of a URL with its port written out, or None where it has none."""
    parts = _split(url)
    return None if parts is None or parts.scheme not in _PORTS else _origin(parts)


def without_credentials(url: str) -> str:
    """The URL as it may be shown: without user, password, query and fragment."""
    parts = _split(url)
    return "the URL" if parts is None else f"{_origin(parts)}{parts.path}"


def is_loopback(host: str) -> bool:
    """Whether a host name or literal address is this machine, by its name alone (RFC 6761 §6.3, RFC 1122 §3.2.1.3)."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def may_name(registry: str, named: Allowed) -> bool:
    """Whether a registry at this URL (or file) may name that address.

    One elsewhere can't send us to this machine or into its network, where it couldn't go itself.
    """
    judged = judge_url(registry)
    return not is_inside(named.host) or not isinstance(judged, Allowed) or is_inside(judged.host)


def is_inside(host: str) -> bool:
    """Whether a host is this machine, or a literal address that isn't on the public internet: nowhere to be sent to.

    By the text alone; what a name resolves to is another question.
    """
    if is_loopback(host):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        # IPv4 in disguise: mapped (RFC 4291 §2.5.5.2), or behind a translator (RFC 6052 §2.1).
        embedded = address.ipv4_mapped or (
            ipaddress.IPv4Address(int(address) & _LAST_32) if address in _NAT64 else None
        )
        address = embedded or address
    return not address.is_global or address.is_multicast


_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_LAST_32: Final = 2**32 - 1
