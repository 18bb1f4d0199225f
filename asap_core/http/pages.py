"""Requests that web pages make: which of them may call this agent.

A page of any origin may make its visitor's browser post to any address, also to one that only the visitor can reach,
such as an agent on the visitor's own machine. The browser then adds `Origin` (the Fetch standard, §3.1), and hardly
anything else does. So a request with an `Origin` is let in only if that names this agent or is listed by policy.

Rule of this module: `Origin` and `Host` are each held to what the agent knows, and never compared with each other. The
owner of `evil.example` may have that name resolve to 127.0.0.1 (DNS rebinding), and then the two agree.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from attrs import field, frozen

from asap_core.http.messages import Headers

# RFC 3986 §3.2.2 without what no browser writes. Nothing in it needs more than ASCII: browsers write names in it.
_HOST: Final = r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?"
_AUTHORITY: Final = re.compile(_HOST)
_ORIGIN: Final = re.compile(rf"([a-z][a-z0-9+.-]*)://{_HOST}")
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}
# Applications have origins of other schemes, such as app://localhost, whose content may come from anywhere.
_OF_WEB_PAGES: Final = ("http://", "https://")
# Of an http URL, all up to the end of its authority.
_BASE: Final = re.compile(r"[^/]*//[^/?#]*")

# What a page may send and read beyond what every page may: the headers that this protocol uses.
_REQUEST_HEADERS: Final = b"asap-version, authorization, content-encoding, content-type, dpop, x-idempotency-key"
_RESPONSE_HEADERS: Final = (
    b"accept-encoding, asap-version, dpop-nonce, ratelimit, ratelimit-policy, retry-after, www-authenticate"
)
_VARY: Final[Headers] = ((b"vary", b"origin"),)
PREFLIGHT: Final[Headers] = (
    (b"access-control-allow-methods", b"POST"),
    (b"access-control-allow-headers", _REQUEST_HEADERS),
    # Ten minutes: a page asks seldom, and an origin that's taken off the list is out soon. Browsers allow two hours.
    (b"access-control-max-age", b"600"),
)
"""The answer to "may I?" (https://fetch.spec.whatwg.org/#cors-preflight-fetch), beside what every answer has."""


@frozen
class Welcome:
    """The page may call. `headers` let it read the answers, if policy lists its origin."""

    headers: Headers = ()


@frozen
class Foreign:
    """The page may not call: `note` says which of the two headers is why."""

    note: str


_FOREIGN_ORIGIN: Final = Foreign("The request comes from a web page whose origin isn't listed")
_FOREIGN_HOST: Final = Foreign("The request comes from a web page, and Host isn't a name of this agent")


def _host(text: str) -> str:
    """A host as it's compared: without the final dot, an address in its one spelling."""
    address = _address(text)
    return text.removesuffix(".") if address is None else str(address)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    """Whether a host is this machine by its name (RFC 6761 §6.3) or address. 0.0.0.0 isn't: any page may name it."""
    name = _host(host.lower())
    address = _address(name)
    return name == "localhost" or name.endswith(".localhost") or (address is not None and address.is_loopback)


def _origin(text: str) -> str | None:
    """An origin as it's compared; None if it isn't one, as `null`."""
    found = _ORIGIN.fullmatch(text.lower())
    if found is None:
        return None
    scheme, host, port = found.groups()
    shown = host if _address(host) is None else _literal(_host(host))
    return f"{scheme}://{shown}" + ("" if port in (None, _DEFAULT_PORTS.get(scheme)) else f":{port}")


def _literal(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def read_origins(values: Iterable[str]) -> tuple[str, ...]:
    """Check origins such as `https://app.example`, and return them as browsers write them. Raises ValueError."""
    found = tuple(_origin(value) if isinstance(value, str) else None for value in _some(values))
    if None in found:
        raise ValueError("origins: expected origins such as https://app.example, without path; not null or *")
    return tuple(each for each in found if each is not None)


def read_hosts(values: Iterable[str]) -> tuple[str, ...]:
    """Check hosts such as `agent.example`, and return them as they're compared. Raises ValueError."""
    given = tuple(value.lower() if isinstance(value, str) else "" for value in _some(values))
    if not all((found := _AUTHORITY.fullmatch(value)) and found[2] is None for value in given):
        raise ValueError("hosts: expected host names such as agent.example, without scheme and port")
    return tuple(map(_host, given))


def _some(values: Any) -> tuple[Any, ...]:
    return tuple(values) if isinstance(values, Iterable) and not isinstance(values, str) else (values,)


@frozen
class Pages:
    """The origins and hosts by which web pages may call one agent."""

    _own: str | None
    _listed: Mapping[str, Headers] = field(repr=False)
    _hosts: frozenset[str]

    @classmethod
    def of(cls, url: str, *, origins: Iterable[str], hosts: Iterable[str]) -> "Pages":
        """Those of an agent that is called at `url`, and those that policy lists."""
        base = _BASE.match(url)
        own = None if base is None else _origin(base[0])
        names = frozenset(hosts) if own is None else frozenset({*hosts, _host_of(own)})
        return cls(own, {origin: _readable_by(origin) for origin in origins}, names)

    def judge(self, origins: Sequence[bytes], hosts: Sequence[str], *, local: str) -> "Welcome | Foreign":
        """Judge a request by its `Origin` headers and by the hosts that it names; `local` is where it came in."""
        origin = _only(origins)
        if origin is None or not (origin in self._listed or origin == self._own or self._is_here(origin, local)):
            return _FOREIGN_ORIGIN
        if not hosts or not all(map(self._is_host, hosts)):
            return _FOREIGN_HOST
        return Welcome(self._listed.get(origin, ()))

    def readers(self, origins: Sequence[bytes]) -> Headers:
        """What a document says to the page that fetches it: anyone may, and pages of listed origins read it."""
        # Who caches documents is told even of requests without an origin that the answer depends on it.
        return self._listed.get(_only(origins) or "", _VARY) if self._listed else ()

    def _is_here(self, origin: str, local: str) -> bool:
        """Whether the page is this machine's, and the agent serves this machine."""
        return _is_loopback(local) and origin.startswith(_OF_WEB_PAGES) and _is_loopback(_host_of(origin))

    def _is_host(self, authority: str) -> bool:
        found = _AUTHORITY.fullmatch(authority.lower())
        if found is None:
            return False
        # A literal address isn't a name that somebody could have resolve to it.
        return _address(found[1]) is not None or _is_loopback(found[1]) or _host(found[1]) in self._hosts


def _only(origins: Sequence[bytes]) -> str | None:
    return _origin(origins[0].decode("latin-1")) if len(origins) == 1 else None


def _host_of(origin: str) -> str:
    found = _ORIGIN.fullmatch(origin)
    return "" if found is None else _host(found[2])


def _readable_by(origin: str) -> Headers:
    return (
        (b"access-control-allow-origin", origin.encode("ascii")),
        (b"access-control-expose-headers", _RESPONSE_HEADERS),
        *_VARY,
    )
