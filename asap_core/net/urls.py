"""URLs as text: the one reader of them, their hosts, IPv6 zones and origins, and what of them may be logged.

`read_url` reads as urllib does. `split_url` accepts only URLs whose host is the same to every reader: what is connected
to, compared or let in is read by it.

`fe80::1` may be another host on each interface, so a machine adds which interface it means: `fe80::1%eth0` (RFC 4007
§11). A zone is the machine's own name for the link and never leaves it: it is removed from what is sent, and a
document's link-local addresses get the zone that the document was fetched from.
"""

import re
from ipaddress import IPv4Address
from typing import Final
from urllib.parse import SplitResult, urlsplit, urlunsplit

from asap_core.net.addresses import Proximity, is_link_local_ipv6, read_address, special_of

DEFAULT_PORTS: Final = {"http": 80, "https": 443}
"""The schemes that the library uses, and their default ports (RFC 9110 §4.2)."""
# Common servers refuse longer URLs (nginx: 8 KiB for the request line).
_MAX_URL: Final = 8000
# A name in ASCII (other names have an ASCII form, RFC 5891) or a literal address, then optionally a port. urlsplit
# reads the host of `[::1]evil.example` as `::1`; other readers don't.
_HOST: Final = re.compile(
    r"(?:(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~-]+)?\])(?::[0-9]*)?",
    re.ASCII,
)
# Resolvers read `127.1`, `2130706433` and `0x7f.0.0.1` as addresses, and so does the URL standard: a name whose last
# label is a number is an address (https://url.spec.whatwg.org/#ends-in-a-number-checker).
_ENDS_IN_A_NUMBER: Final = re.compile(r"(?:^|\.)(?:[0-9]+|0x[0-9a-f]*)\.?$", re.IGNORECASE | re.ASCII)


def read_url(url: str) -> SplitResult | None:
    """Return the parts of a URL as `urlsplit` reads them. Never raises.

    Returns None if it can't, or if the port isn't a number from 1 to 65,535.
    """
    try:
        parts = urlsplit(url)
        port = parts.port  # reading it is what checks it
    except ValueError:
        return None
    return None if port == 0 else parts


def is_plain(url: str) -> bool:
    """Whether a URL is free of blanks, control characters and backslashes: some readers drop or replace them."""
    return url.isprintable() and " " not in url and "\\" not in url


def split_url(url: str) -> SplitResult | None:
    """Return the parts of a URL, or None if readers may disagree about its host. Never raises."""
    parts = read_url(url) if len(url) <= _MAX_URL and is_plain(url) else None
    if parts is None or not _HOST.fullmatch(parts.netloc.rpartition("@")[2]):
        return None
    host = parts.hostname or ""
    if (":" in host or _ENDS_IN_A_NUMBER.search(host)) and read_address(host) is None:
        return None
    return parts


def origin_of_parts(parts: SplitResult) -> str:
    """The origin (RFC 6454 §4), with its port if that is known."""
    host, port = parts.hostname or "", parts.port or DEFAULT_PORTS.get(parts.scheme)
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}" if port is None else f"{parts.scheme}://{shown}:{port}"


def normal(url: str) -> str:
    """Return the URL in the form in which it is requested and cached; unchanged if it can't be read.

    Host in lower case, no default port, no empty path, no fragment. Source: RFC 3986 §6.2.2.1, §6.2.3.
    """
    parts = split_url(url)
    if parts is None or "@" in parts.netloc:
        # A URL with credentials is refused later; it mustn't become one without.
        return url
    default = DEFAULT_PORTS.get(parts.scheme)
    netloc = origin_of_parts(parts).partition("://")[2].removesuffix("" if default is None else f":{default}")
    return urlunsplit(parts._replace(netloc=netloc, path=parts.path or "/", fragment=""))


# An agent's paths below its base URL: the endpoints `/asap` and `/asap/…`, and its documents.
_BELOW_BASE: Final = re.compile(r"(.*?)/(?:asap(?:/[^/]*)?|\.well-known(?:/.*)?|health|ready)/?")


def meant_base(document_url: str) -> str | None:
    """Return the base URL that a user probably meant, if a document's URL was built on an endpoint's URL; else None.

    `https://a.example` for `https://a.example/asap/.well-known/asap/manifest.json`.
    """
    given, found, _ = document_url.rpartition("/.well-known/")
    parts = split_url(given) if found else None
    below = None if parts is None else _BELOW_BASE.fullmatch(parts.path)
    if parts is None or below is None:
        return None
    host = parts.netloc.rpartition("@")[2]
    return normal(urlunsplit(parts._replace(netloc=host, path=below[1]))).rstrip("/")


def authority_of(url: str) -> str | None:
    """Return host and port of a URL, or None if it isn't an http or https URL."""
    found = origin_of(url)
    return None if found is None else found.partition("://")[2]


def host_in(authority: str) -> str:
    """Return the host of an authority (host and port), without brackets."""
    return authority.rpartition(":")[0].removeprefix("[").removesuffix("]")


def origin_of(url: str) -> str | None:
    """Return the origin of a URL, always with its port, or None if it isn't an http or https URL."""
    parts = split_url(url)
    return None if parts is None or parts.scheme not in DEFAULT_PORTS else origin_of_parts(parts)


def is_web_url(value: object) -> bool:
    """Whether a value is an http or https URL."""
    return isinstance(value, str) and origin_of(value) is not None


def domain_of(host: str) -> str:
    """Return a name's last two labels, by which look-ups are shared. They needn't be a registrable domain."""
    return ".".join(host.removesuffix(".").lower().rsplit(".", 2)[-2:])


def without_credentials(url: str) -> str:
    """Return the URL as it may be logged: without user, password, query and fragment."""
    parts = split_url(url)
    return "the URL" if parts is None else f"{origin_of_parts(parts)}{parts.path}"


def is_this_machine(host: str) -> bool:
    """Whether a host is a name of this machine. Such names are never resolved (RFC 6761 §6.3)."""
    name = host.lower().removesuffix(".")
    return name == "localhost" or name.endswith(".localhost")


def is_loopback(host: str) -> bool:
    """Whether a host, a name or a literal address, is this machine: `localhost`, 127.0.0.0/8, `::1`.

    False for an IPv4 loopback address inside an IPv6 one, such as `::ffff:127.0.0.1`.
    Source: RFC 6761 §6.3, RFC 1122 §3.2.1.3, RFC 4291 §2.5.3.
    """
    if is_this_machine(host):
        return True
    address = read_address(host)
    if address is None or (isinstance(address, IPv4Address) and ":" in host):
        return False
    special = special_of(address)
    return special is not None and special.proximity is Proximity.MACHINE


def leads_elsewhere(url: str, *, port: int, scheme: str | None = None, path: str | None = None) -> bool:
    """Whether `url`, on this machine, leads to another port, scheme or path than these. None stands for any.

    For a warning only: a proxy or a port mapping may lead on from there.
    """
    parts = read_url(url)
    return parts is not None and (
        (parts.port or DEFAULT_PORTS.get(parts.scheme)) != port
        or scheme not in (None, parts.scheme)
        or path not in (None, parts.path.rstrip("/"))
    )


# Both spellings: `%eth0` (RFC 9844 §6), and `%25eth0` (RFC 6874 §2). `%25` alone is the zone `25`.
_ZONED: Final = re.compile(
    r"(?P<before>[A-Za-z][A-Za-z0-9+.-]*://\[)(?P<address>[0-9A-Fa-f:.]+)"
    r"(?:%(?:25(?=[^\]]))?(?P<zone>[^\]/?#]+))?(?P<after>\].*)",
    re.DOTALL,
)


def in_zone(url: str, zone: str) -> str:
    """Return the URL with its host's zone set to `zone`; unchanged if its host isn't a link-local IPv6 address."""
    match = _ZONED.fullmatch(url)
    if match is None or not is_link_local_ipv6(match["address"]):
        return url
    return f"{match['before']}{match['address']}{f'%{zone}' if zone else ''}{match['after']}"


def with_plain_zone(url: str) -> str:
    """Return the URL with its zone, if it has one, written as `%eth0` (RFC 9844 §6)."""
    match = _ZONED.fullmatch(url) if "%" in url else None
    return url if match is None or match["zone"] is None else in_zone(url, match["zone"])


def without_zone(url: str) -> str:
    """Return the URL as it goes into documents and onto the wire: a client must remove the zone (RFC 6874 §4)."""
    return in_zone(url, "")


def in_zone_of(url: str, source: str) -> str:
    """Return the URL as a document fetched from `source` means it: a link-local host is in the zone of `source`."""
    match = _ZONED.fullmatch(source)
    if match is None or match["zone"] is None or not is_link_local_ipv6(match["address"]):
        return url
    return in_zone(url, match["zone"])
