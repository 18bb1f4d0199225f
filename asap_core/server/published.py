"""Whether the URL that an agent publishes leads to where it's served.

For a warning only: a proxy or a port mapping may lead on from there.
"""

from typing import Final
from urllib.parse import urlsplit

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def host_of(url: str) -> str:
    """The host of a URL, an address without brackets; empty if there's none."""
    return urlsplit(url).hostname or ""


def leads_elsewhere(url: str, *, port: int, scheme: str | None = None, path: str | None = None) -> bool:
    """Whether `url`, on this machine, is another place than this port, scheme and path; None is any."""
    parts = urlsplit(url)
    return (
        (parts.port or _DEFAULT_PORTS.get(parts.scheme)) != port
        or scheme not in (None, parts.scheme)
        or path not in (None, parts.path.rstrip("/"))
    )
