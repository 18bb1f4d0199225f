"""Requests made by web pages: which pages may call this agent.

A page of any origin can make its visitor's browser post to any address, also to one that only the visitor can reach,
such as an agent on the visitor's own machine. The browser then adds `Origin` (the Fetch standard, §3.1), and hardly any
other client does. So a request with an `Origin` is accepted only if that is this agent's or listed by policy.

Rule: `Origin` and `Host` are each compared with what the agent knows, never with each other. The owner of
`evil.example` can make that name resolve to 127.0.0.1 (DNS rebinding), and then the two agree.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final
from urllib.parse import SplitResult

from attrs import field, frozen

from asap_core.http.messages import Headers
from asap_core.net.addresses import read_literal
from asap_core.net.urls import DEFAULT_PORTS, is_loopback, split_url

# The headers that this protocol uses and that pages may send and read only if the answer allows it.
_REQUEST_HEADERS: Final = b"asap-version, authorization, content-encoding, content-type, dpop, x-idempotency-key"
_RESPONSE_HEADERS: Final = (
    b"accept-encoding, asap-version, dpop-nonce, ratelimit, ratelimit-policy, retry-after, www-authenticate"
)
_VARY: Final[Headers] = ((b"vary", b"origin"),)
PREFLIGHT: Final[Headers] = (
    (b"access-control-allow-methods", b"POST"),
    (b"access-control-allow-headers", _REQUEST_HEADERS),
    # Ten minutes: pages ask seldom, and an origin removed from the list is refused soon. Browsers allow two hours.
    (b"access-control-max-age", b"600"),
)
"""What answers to CORS preflights have beside the usual headers (https://fetch.spec.whatwg.org/#cors-preflight-fetch)."""


@frozen
class PageAllowed:
    """The page may call. `headers` allow it to read the answers; they are empty unless policy lists its origin."""

    headers: Headers = ()


@frozen
class PageRefused:
    """The page may not call. `note` says which of the two headers is the reason."""

    note: str


_FOREIGN_ORIGIN: Final = PageRefused("The request comes from a web page whose origin isn't listed")
_FOREIGN_HOST: Final = PageRefused("The request comes from a web page, and Host isn't a name of this agent")


def _same_host(host: str) -> str:
    """Return a host in the form in which it's compared: without a final dot, an address in its canonical spelling."""
    address = read_literal(host)
    return host.removesuffix(".") if address is None else str(address)


def _origin_of(parts: SplitResult) -> str:
    """Return the origin as browsers write it: without the scheme's default port (RFC 6454 §6.2)."""
    host, port = _same_host(parts.hostname or ""), parts.port
    shown = f"[{host}]" if ":" in host else parts.hostname
    return f"{parts.scheme}://{shown}" + ("" if port in (None, DEFAULT_PORTS.get(parts.scheme)) else f":{port}")


def _read_origin(text: str) -> SplitResult | None:
    """Read an origin (RFC 6454 §6.2): scheme, host and port. Returns None for any other text, such as `null`."""
    return split_url(text) if _read_authority(text.partition("://")[2]) is not None else None


def _read_authority(text: str) -> SplitResult | None:
    """Read a host with or without a port, as in `Host` (RFC 9110 §7.2). Returns None for any other text."""
    parts = split_url(f"http://{text}")
    is_whole = parts is not None and parts.netloc == text and "@" not in text and not text.endswith(":")
    return parts if is_whole else None


def read_origins(values: Iterable[str]) -> tuple[str, ...]:
    """Check origins such as `https://app.example`, and return them as browsers write them. Raises ValueError."""
    found = [_read_origin(value) if isinstance(value, str) else None for value in _several(values)]
    if None in found:
        raise ValueError("origins: expected origins such as https://app.example, without path; not null or *")
    return tuple(_origin_of(parts) for parts in found if parts is not None)


def read_hosts(values: Iterable[str]) -> tuple[str, ...]:
    """Check hosts such as `agent.example`, and return them in the form in which they're compared. Raises ValueError."""
    found = [_read_authority(value) if isinstance(value, str) else None for value in _several(values)]
    # A colon inside brackets is part of an IPv6 address.
    hosts = [parts.hostname for parts in found if parts is not None and not parts.netloc.rpartition("]")[2].count(":")]
    if len(hosts) < len(found):
        raise ValueError("hosts: expected host names such as agent.example, without scheme and port")
    return tuple(_same_host(host) for host in hosts if host is not None)


def _several(values: object) -> tuple[object, ...]:
    return tuple(values) if isinstance(values, Iterable) and not isinstance(values, str) else (values,)


@frozen
class Pages:
    """The origins and hosts by which web pages may call one agent."""

    _own: str | None
    _listed: Mapping[str, Headers] = field(repr=False)
    _hosts: frozenset[str]

    @classmethod
    def of(cls, url: str, *, origins: Iterable[str], hosts: Iterable[str]) -> "Pages":
        """Take the URL at which the agent is called, and the origins and hosts that policy lists."""
        parts = split_url(url)
        own = None if parts is None else _origin_of(parts)
        names = frozenset(hosts) if parts is None else frozenset({*hosts, _same_host(parts.hostname or "")})
        return cls(own, {origin: _readable_by(origin) for origin in origins}, names)

    def judge(self, origins: Sequence[bytes], hosts: Sequence[str], *, local: str) -> "PageAllowed | PageRefused":
        """Judge a request by the values of `Origin` and by the hosts that it names.

        `local`: the address that the request was received at. If it's loopback, pages of this machine may call.
        """
        parts = _only(origins)
        origin = "" if parts is None else _origin_of(parts)
        listed = origin in self._listed or origin == self._own
        if parts is None or not (listed or _is_here(parts, local)):
            return _FOREIGN_ORIGIN
        if not hosts or not all(map(self._is_host, hosts)):
            return _FOREIGN_HOST
        return PageAllowed(self._listed.get(origin, ()))

    def readers(self, origins: Sequence[bytes]) -> Headers:
        """Return the headers of a published document. Everyone may fetch it; pages of listed origins may read it."""
        # Fetch, "CORS protocol and HTTP caches": Vary is sent even without an Origin, since caches store that answer.
        if not self._listed:
            return ()
        parts = _only(origins)
        return _VARY if parts is None else self._listed.get(_origin_of(parts), _VARY)

    def _is_host(self, authority: str) -> bool:
        parts = _read_authority(authority)
        host = "" if parts is None else parts.hostname or ""
        # Nobody can make a literal address resolve to another one, so DNS rebinding doesn't concern it.
        return bool(host) and (read_literal(host) is not None or is_loopback(host) or _same_host(host) in self._hosts)


def _is_here(page: SplitResult, local: str) -> bool:
    """Whether both the page and the address at which the agent was called are this machine's."""
    # Applications have origins of other schemes, such as app://localhost, whose content may come from anywhere.
    return is_loopback(local) and page.scheme in DEFAULT_PORTS and is_loopback(page.hostname or "")


def _only(origins: Sequence[bytes]) -> SplitResult | None:
    return _read_origin(origins[0].decode("latin-1")) if len(origins) == 1 else None


def _readable_by(origin: str) -> Headers:
    return (
        (b"access-control-allow-origin", origin.encode("ascii")),
        (b"access-control-expose-headers", _RESPONSE_HEADERS),
        *_VARY,
    )
