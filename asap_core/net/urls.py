"""A URL as text: its host, its origin, what of it may be shown; strict where readers of URLs disagree."""

import re
from ipaddress import IPv4Address
from typing import Final
from urllib.parse import SplitResult, urlsplit, urlunsplit

from asap_core.net.addresses import Proximity, read_address, special_of

DEFAULT_PORTS: Final = {"http": 80, "https": 443}
"""Which schemes there are, and their ports (RFC 9110 §4.2)."""
# Longer URLs are refused by common servers (nginx: 8 KiB for the request line).
_MAX_URL: Final = 8000
# A name in ASCII (others have a form in it, RFC 5891), or a literal address; then a port, perhaps. urlsplit takes the
# host of `[::1]evil.example` for `::1`, and other readers don't.
_HOST: Final = re.compile(
    r"(?:(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~-]+)?\])(?::[0-9]*)?",
    re.ASCII,
)
# Resolvers read `127.1`, `2130706433` and `0x7f.0.0.1` as addresses; the URL standard takes a name that ends in a
# number for an address as well (https://url.spec.whatwg.org/#ends-in-a-number-checker).
_ENDS_IN_A_NUMBER: Final = re.compile(r"(?:^|\.)(?:[0-9]+|0x[0-9a-f]*)\.?$", re.IGNORECASE | re.ASCII)


def read_url(url: str) -> SplitResult | None:
    """The parts of a URL, as `urlsplit` reads them, its port a number but 0; None if it can't. Never raises.

    Readers of URLs disagree about the host: use `split_url` for what is connected to.
    """
    try:
        parts = urlsplit(url)
        port = parts.port  # reading it is what checks it
    except ValueError:
        return None
    return None if port == 0 else parts


def is_plain(url: str) -> bool:
    """Whether a URL has no blanks, control characters or backslashes, which some readers drop or turn into slashes."""
    return url.isprintable() and " " not in url and "\\" not in url


def split_url(url: str) -> SplitResult | None:
    """The parts of a URL whose host is one to every reader; None for all else. Never raises."""
    parts = read_url(url) if len(url) <= _MAX_URL and is_plain(url) else None
    if parts is None or not _HOST.fullmatch(parts.netloc.rpartition("@")[2]):
        return None
    host = parts.hostname or ""
    if (":" in host or _ENDS_IN_A_NUMBER.search(host)) and read_address(host) is None:
        return None
    return parts


def origin_of_parts(parts: SplitResult) -> str:
    """The origin, its port written out where it's known."""
    host, port = parts.hostname or "", parts.port or DEFAULT_PORTS.get(parts.scheme)
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}" if port is None else f"{parts.scheme}://{shown}:{port}"


def normal(url: str) -> str:
    """The URL as it's kept and asked: host in lower case, no default port, no fragment; as it is where it's none.

    RFC 3986 §6.2.2.1, §6.2.3: two that differ in nothing else are one.
    """
    parts = split_url(url)
    if parts is None or "@" in parts.netloc:
        # With credentials it's refused, and mustn't become one that isn't.
        return url
    default = DEFAULT_PORTS.get(parts.scheme)
    netloc = origin_of_parts(parts).partition("://")[2].removesuffix("" if default is None else f":{default}")
    return urlunsplit(parts._replace(netloc=netloc, path=parts.path or "/", fragment=""))


# Below a base URL an agent has its endpoints, `/asap` and what's under it, and documents about itself.
_BELOW_BASE: Final = re.compile(r"(.*?)/(?:asap(?:/[^/]*)?|\.well-known(?:/.*)?|health|ready)/?")


def meant_base(document_url: str) -> str | None:
    """The base URL that was meant, if a document's URL was made of an endpoint's or another document's; else None.

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
    """Host and port, which is what's connected to; None where the URL has none."""
    found = origin_of(url)
    return None if found is None else found.partition("://")[2]


def host_in(authority: str) -> str:
    """The host of an authority."""
    return authority.rpartition(":")[0].removeprefix("[").removesuffix("]")


def origin_of(url: str) -> str | None:
    """The origin of a URL with its port written out, or None where it has none."""
    parts = split_url(url)
    return None if parts is None or parts.scheme not in DEFAULT_PORTS else origin_of_parts(parts)


def without_credentials(url: str) -> str:
    """The URL as it may be shown: without user, password, query and fragment."""
    parts = split_url(url)
    return "the URL" if parts is None else f"{origin_of_parts(parts)}{parts.path}"


def is_this_machine(host: str) -> bool:
    """Whether a host is a name of this machine (RFC 6761 §6.3): never asked of a resolver."""
    name = host.lower().removesuffix(".")
    return name == "localhost" or name.endswith(".localhost")


def is_loopback(host: str) -> bool:
    """Whether a host name or literal address is this machine, by its name alone (RFC 6761 §6.3, RFC 1122 §3.2.1.3).

    An address in disguise, such as `::ffff:127.0.0.1`, isn't a name of it.
    """
    if is_this_machine(host):
        return True
    address = read_address(host)
    if address is None or (isinstance(address, IPv4Address) and ":" in host):
        return False
    special = special_of(address)
    return special is not None and special.proximity is Proximity.MACHINE
