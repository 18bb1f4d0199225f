"""Requests made by web pages: which pages may call this agent.

A page of any origin can make its visitor's browser post to any address, also to one that only the visitor can reach,
such as an agent on the visitor's own machine. The browser then adds `Origin` (the Fetch standard, §3.1), and hardly any
other client does. So a request with an `Origin` is accepted only if that is this agent's or listed by policy.

Rule: `Origin` and `Host` are each compared with what the agent knows, never with each other. The owner of
`evil.example` can make that name resolve to 127.0.0.1 (DNS rebinding), and then the two agree.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from attrs import field, frozen

from asap_core.http.messages import Headers
from asap_core.net.addresses import Address, read_literal
from asap_core.net.urls import is_loopback

# RFC 3986 §3.2.2 as browsers write it: an ASCII name or an address, without a zone, which is another machine's word.
_HOST: Final = r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?"
_AUTHORITY: Final = re.compile(_HOST)
_ORIGIN: Final = re.compile(rf"([a-z][a-z0-9+.-]*)://{_HOST}")
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}
# Applications have origins of other schemes, such as app://localhost, whose content may come from anywhere.
_WEB_PAGES: Final = ("http://", "https://")
# A URL up to the end of its authority.
_BASE: Final = re.compile(r"[^/]*//[^/?#]*")

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
    address = _literal(host)
    return host.removesuffix(".") if address is None else str(address)


def _literal(host: str) -> Address | None:
    return read_literal(host.removeprefix("[").removesuffix("]"))


def _read_origin(text: str) -> str | None:
    """Return an origin (RFC 6454 §6.2) in the form in which it's compared; None for any other text, such as `null`."""
    found = _ORIGIN.fullmatch(text.lower())
    if found is None:
        return None
    scheme, host, port = found.groups()
    shown = host if _literal(host) is None else _same_host(host)
    shown = f"[{shown}]" if ":" in shown and not shown.startswith("[") else shown
    return f"{scheme}://{shown}" + ("" if port in (None, _DEFAULT_PORTS.get(scheme)) else f":{port}")


def _host_of(origin: str) -> str:
    found = _ORIGIN.fullmatch(origin)
    return "" if found is None else _same_host(found[2])


def read_origins(values: Iterable[str]) -> tuple[str, ...]:
    """Check origins such as `https://app.example`, and return them as browsers write them. Raises ValueError."""
    found = tuple(_read_origin(value) if isinstance(value, str) else None for value in _several(values))
    if None in found:
        raise ValueError("origins: expected origins such as https://app.example, without path; not null or *")
    return tuple(each for each in found if each is not None)


def read_hosts(values: Iterable[str]) -> tuple[str, ...]:
    """Check hosts such as `agent.example`, and return them in the form in which they're compared. Raises ValueError."""
    hosts = tuple(value.lower() if isinstance(value, str) else "" for value in _several(values))
    if not all((found := _AUTHORITY.fullmatch(host)) and found[2] is None for host in hosts):
        raise ValueError("hosts: expected host names such as agent.example, without scheme and port")
    return tuple(map(_same_host, hosts))


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
        base = _BASE.match(url)
        own = None if base is None else _read_origin(base[0])
        names = frozenset(hosts) if own is None else frozenset({*hosts, _host_of(own)})
        return cls(own, {origin: _readable_by(origin) for origin in origins}, names)

    def judge(self, origins: Sequence[bytes], hosts: Sequence[str], *, local: str) -> "PageAllowed | PageRefused":
        """Judge a request by the values of `Origin` and by the hosts that it names.

        `local`: the address that the request was received at. If it's loopback, pages of this machine may call.
        """
        origin = _only(origins)
        if origin is None or not (origin in self._listed or origin == self._own or _is_here(origin, local)):
            return _FOREIGN_ORIGIN
        if not hosts or not all(map(self._is_host, hosts)):
            return _FOREIGN_HOST
        return PageAllowed(self._listed.get(origin, ()))

    def readers(self, origins: Sequence[bytes]) -> Headers:
        """Return the headers of a published document. Everyone may fetch it; pages of listed origins may read it."""
        # Fetch, "CORS protocol and HTTP caches": Vary is sent even without an Origin, since caches store that answer.
        if not self._listed:
            return ()
        return self._listed.get(_only(origins) or "", _VARY)

    def _is_host(self, authority: str) -> bool:
        found = _AUTHORITY.fullmatch(authority.lower())
        if found is None:
            return False
        host = _same_host(found[1])
        # Nobody can make a literal address resolve to another one, so DNS rebinding doesn't concern it.
        return _literal(found[1]) is not None or is_loopback(host) or host in self._hosts


def _is_here(origin: str, local: str) -> bool:
    """Whether both the page and the address at which the agent was called are this machine's."""
    return is_loopback(local) and origin.startswith(_WEB_PAGES) and is_loopback(_host_of(origin))


def _only(origins: Sequence[bytes]) -> str | None:
    return _read_origin(origins[0].decode("latin-1")) if len(origins) == 1 else None


def _readable_by(origin: str) -> Headers:
    return (
        (b"access-control-allow-origin", origin.encode("ascii")),
        (b"access-control-expose-headers", _RESPONSE_HEADERS),
        *_VARY,
    )
