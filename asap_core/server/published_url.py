"""Whether the URL that an agent publishes leads to where it's served.

For a warning only: a proxy or a port mapping may lead on from there.
"""

from asap_core.net.urls import DEFAULT_PORTS, read_url


def leads_elsewhere(url: str, *, port: int, scheme: str | None = None, path: str | None = None) -> bool:
    """Whether `url`, on this machine, leads to another port, scheme or path than these. None stands for any."""
    parts = read_url(url)
    return parts is not None and (
        (parts.port or DEFAULT_PORTS.get(parts.scheme)) != port
        or scheme not in (None, parts.scheme)
        or path not in (None, parts.path.rstrip("/"))
    )
