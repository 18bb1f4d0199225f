"""What the library may connect to: one policy for every URL that it requests and every address that a host has.

Rules: https, unless the host is this machine or allowed by name; no schemes but http and https; no credentials in URLs;
no well-known ports of other services; only the internet, unless a network is allowed; nothing that is nearer to this
process than what named it (`provenance`). Every address that a name resolves to is judged, and only judged addresses
are connected to, so that a second answer of the resolver (DNS rebinding) changes nothing.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Final, assert_never
from urllib.parse import SplitResult, urljoin

from attrs import field, frozen

from asap_core.errors import Advice, Allow, Remedy
from asap_core.net.addresses import (
    Network,
    Obstacle,
    ObstacleKind,
    Proximity,
    obstacle,
    read_address,
    read_network,
)
from asap_core.net.urls import (
    DEFAULT_PORTS,
    is_loopback,
    is_this_machine,
    normal,
    origin_of,
    origin_of_parts,
    split_url,
    without_credentials,
)

MAX_REDIRECTS: Final = 2
"""A server that has moved needs one redirect, or two if it also adds a slash; more are a loop, or an attack."""
# Below 1024 are the system ports (RFC 6335 §6), of services that may take an HTTP request for a command.
_FIRST_USER_PORT: Final = 1024
_MAX_PORT: Final = 65_535
# RFC 6761 §6.3: localhost isn't resolved. 127.0.0.1 first, which this library's servers bind by default.
_LOOPBACK: Final = ("127.0.0.1", "::1")
# Names have a few addresses. All of a resolver's answers are judged; each one that is tried costs time.
_MAX_TRIED: Final = 8
_FILE: Final = "file:"
_CREDENTIALS: Final = Advice(
    "leave them out: `AgentClient` takes auth={origin: token}, `asap send` takes --token and --client-id"
)
# Characters of a redirect's target that an error message repeats: the server chose it.
_MAX_SHOWN: Final = 200


@frozen
class Allowed:
    """The URL may be requested. `url` has no fragment; `origin` always has its port (RFC 6454 §4).

    `addresses`: if not empty, only these are connected to; the host was announced at them on the local network.
    """

    url: str
    origin: str
    host: str
    encrypted: bool
    addresses: tuple[str, ...] = ()

    @property
    def is_confidential(self) -> bool:
        """Whether nobody on the way reads or changes what is sent: it's encrypted, or stays on this machine."""
        return self.encrypted or is_loopback(self.host)


@frozen
class UrlRefused:
    """The URL may not be requested. `shown` is the URL without credentials, for logs; `remedy` is what allows it."""

    shown: str
    reason: str
    remedy: Remedy


@frozen
class Dial:
    """Connect to one of these addresses, in this order, and to nothing else."""

    addresses: tuple[str, ...]


@frozen
class Resolve:
    """Resolve this name, and pass the answers to `OutboundPolicy.choose`."""

    name: str


@frozen
class AddressRefused:
    """The host may not be connected to, because of one of its addresses."""

    reason: str
    remedy: Remedy


_Refusal = tuple[str, Remedy]  # reason and remedy


def known_origin(url: str) -> str:
    """Return the origin of a URL that a user configured. Raises ValueError if it has none."""
    found = origin_of(url)
    if found is None:
        raise ValueError("expected an origin such as https://agent.example")
    return found


def _list(texts: object, name: str, example: str) -> tuple[str, ...]:
    # A string is iterable as well: each of its characters would be taken for an item.
    several = tuple(texts) if isinstance(texts, Iterable) and not isinstance(texts, str | bytes) else (None,)
    if not all(isinstance(text, str) for text in several):
        raise ValueError(f"{name}: expected a list, such as [{example!r}]")
    return several


def _hosts(texts: Iterable[str]) -> frozenset[str]:
    hosts = frozenset(text.lower() for text in _list(texts, "allow_http", "agent.lan"))
    if "" in hosts:
        raise ValueError("allow_http: expected hosts, such as ['agent.lan']")
    return hosts


def _networks(texts: Iterable[str]) -> tuple[Network, ...]:
    return tuple(map(read_network, _list(texts, "allow_networks", "10.0.0.0/8")))


def _origins(texts: Iterable[str]) -> frozenset[str]:
    return frozenset(map(known_origin, _list(texts, "allow_endpoints", "https://agent.lan")))


def _ports(ports: object) -> frozenset[int]:
    several = tuple(ports) if isinstance(ports, Iterable) and not isinstance(ports, str | bytes) else (0,)
    if not all(type(port) is int and 0 < port <= _MAX_PORT for port in several):
        raise ValueError(f"allow_ports: expected a list of ports from 1 to {_MAX_PORT}, such as [81]")
    return frozenset(several)


def _are_few(_policy: object, _attribute: object, redirects: int) -> None:
    if type(redirects) is not int or not 0 <= redirects <= MAX_REDIRECTS:
        raise ValueError(f"redirects: expected 0 to {MAX_REDIRECTS}")


@frozen(kw_only=True)
class OutboundPolicy:
    """What the library may connect to; each option allows something more. Raises ValueError if one is invalid.

    `allow_http`: hosts that may be reached without TLS.
    `allow_networks`: networks beside the internet that hosts may be in, such as `10.0.0.0/8`.
    `allow_ports`: ports below 1024 beside 80 and 443.
    `allow_endpoints`: origins that documents may name wherever they are, as if the caller had named them.
    `redirects`: how many redirects of a GET are followed, within its origin: 0 (the default) to 2.
    """

    allow_http: frozenset[str] = field(default=(), converter=_hosts)
    allow_networks: tuple[Network, ...] = field(default=(), converter=_networks)
    allow_ports: frozenset[int] = field(default=(), converter=_ports)
    allow_endpoints: frozenset[str] = field(default=(), converter=_origins)
    redirects: int = field(default=0, validator=_are_few)

    # --- URLs --------------------------------------------------------------------------------------------------------

    def judge(
        self, url: str, *, reach: Proximity = Proximity.MACHINE, announced: tuple[str, ...] = (), vouched: bool = False
    ) -> Allowed | UrlRefused:
        """Judge one URL by its text alone. Never raises.

        `reach`: how near it may lead; depends on what named it (`Provenance`).
        `announced`: the addresses on the link in the mDNS announcement that named it; empty if none did.
        `vouched`: whether its host was judged before.
        With `announced` or `vouched`, neither the address nor a missing TLS is a reason to refuse.
        """
        parts = split_url(url)
        if parts is None or parts.scheme == "file":
            return _unreadable(url)
        refusal = self._refusal_of(parts, reach, vouched=vouched or bool(announced))
        if refusal is not None:
            return UrlRefused(without_credentials(url), *refusal)
        return Allowed(normal(url), origin_of_parts(parts), parts.hostname or "", parts.scheme == "https", announced)

    def _refusal_of(self, parts: SplitResult, reach: Proximity, *, vouched: bool) -> _Refusal | None:
        host = parts.hostname or ""
        if parts.scheme not in DEFAULT_PORTS:
            return "its scheme is neither https nor http", Advice("expected a URL such as https://agent.example")
        if "@" in parts.netloc:
            return "it carries credentials", _CREDENTIALS
        here, port = is_loopback(host), parts.port or DEFAULT_PORTS[parts.scheme]
        # Address before scheme: otherwise a user who allows plain http learns only then that the address isn't allowed.
        refusal = None if vouched else self._refusal_of_literal(host, origin_of_parts(parts), reach)
        if refusal is not None:
            return refusal
        if parts.scheme == "http" and not (vouched or here or host in self.allow_http):
            return "it isn't encrypted", Allow("allow_http", host, instead="use https")
        if not (here or self._is_open(port)):
            return f"port {port} is another service's", Allow("allow_ports", port)
        return None

    def _is_open(self, port: int) -> bool:
        return port >= _FIRST_USER_PORT or port in DEFAULT_PORTS.values() or port in self.allow_ports

    def _refusal_of_literal(self, host: str, found: str, reach: Proximity) -> _Refusal | None:
        way = self.destination(host)
        return self._refusal(host, way.addresses[0], found, reach) if isinstance(way, Dial) else None

    def judge_endpoint(self, endpoint: Allowed, *, came_from: str) -> UrlRefused | None:
        """Return why a manifest from the origin `came_from` may not name this endpoint, or None if it may."""
        if endpoint.origin == came_from or endpoint.origin in self.allow_endpoints:
            return None
        return UrlRefused(
            without_credentials(endpoint.url),
            f"the manifest that names it came from {came_from}",
            Allow("allow_endpoints", endpoint.origin),
        )

    def judge_redirect(
        self, asked: Allowed, location: str, *, followed: int, method: str = "GET"
    ) -> Allowed | UrlRefused:
        """Judge a redirect. Only redirects of a GET within its origin are followed, at most `redirects`. Never raises.

        A POST isn't repeated elsewhere: a 307 would send its body to another server, a 303 would lose it (RFC 9110
        §15.4.8, §15.4.4).

        `followed`: how many redirects of this request were followed already.
        """
        target = _joined(asked.url, location)
        shown, elsewhere = without_credentials(asked.url), origin_of(target)
        there = "what isn't a web URL" if elsewhere is None else without_credentials(target)
        reason = f"it redirects to {there if len(there) <= _MAX_SHOWN else f'{there[:_MAX_SHOWN]}…'}"
        if method != "GET":
            return UrlRefused(shown, reason, Advice(f"redirects aren't followed by a {method}"))
        if elsewhere != asked.origin:
            return UrlRefused(
                shown,
                reason,
                Advice("redirects aren't followed to another origin: request that URL if this is intended"),
            )
        if not self.redirects:
            reason = f"{reason}, and redirects aren't followed"
            return UrlRefused(shown, reason, Allow("redirects", MAX_REDIRECTS))
        if followed >= self.redirects:
            return UrlRefused(shown, reason, Advice(f"no more than {self.redirects} redirects are followed"))
        return self.judge(target, announced=asked.addresses, vouched=True)

    # --- addresses ---------------------------------------------------------------------------------------------------

    def destination(self, host: str) -> Dial | Resolve:
        """How to get this host's addresses. Names of this machine and literal addresses aren't resolved."""
        if is_this_machine(host):
            return Dial(_LOOPBACK)
        return Resolve(host) if read_address(host) is None else Dial((host,))

    def choose(
        self,
        host: str,
        answers: Sequence[str],
        *,
        port: int,
        reach: Proximity = Proximity.MACHINE,
        scheme: str = "https",
    ) -> Dial | AddressRefused:
        """Choose addresses of a host to connect to: all, or none if one of them is refused. Never raises.

        A name with a public and a private address is an attack (DNS rebinding); no honest server needs it.

        `answers`: what the resolver returned.
        `scheme`: the URL's; only named in the remedy.
        """
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        for answer in answers:
            refused = self._refusal(host, answer, f"{scheme}://{shown}", reach)
            if refused is not None:
                return AddressRefused(*refused)
        tried = dict.fromkeys(str(address) for answer in answers if (address := read_address(answer)) is not None)
        return Dial(tuple(tried)[:_MAX_TRIED])

    def _refusal(self, host: str, address: str, found: str, reach: Proximity) -> _Refusal | None:
        """Return why this host may not be connected to at this address, or None if it may."""
        read = read_address(address)
        if read is None:
            return f"{host} resolves to what isn't an address", Advice("ask the operator of the resolver")
        met = obstacle(read, allowed=self.allow_networks, reach=reach, this_machine=is_loopback(host))
        if met is None:
            return None
        named = "it" if is_this_machine(host) or read_address(host) is not None else f"{host} resolves to {read}, which"
        return _in_words(met, named, found)


def _joined(base: str, location: str) -> str:
    try:
        return urljoin(base, location)
    except ValueError:
        return ""


def _unreadable(url: str) -> UrlRefused:
    if url[: len(_FILE)].lower() == _FILE:
        return UrlRefused(
            "the URL",
            "it's a file's",
            Advice("expected https or http; where a file will do, its path without file://"),
        )
    parts = split_url(f"https://{url}") if "://" not in url else None
    if parts is None or parts.netloc.endswith(":"):
        return UrlRefused("the URL", "it can't be read as a URL", Advice("expected one such as https://agent.example"))
    netloc = parts.netloc.rpartition("@")[2]
    scheme = "http" if is_loopback(parts.hostname or "") else "https"
    return UrlRefused("the URL", "its scheme is missing", Advice(f"expected {scheme}://{netloc}, if this is intended"))


def _in_words(met: Obstacle, named: str, found: str) -> _Refusal:
    what = f"{named} is {met.special}"
    network = str(met.special.network)
    match met.kind:
        case ObstacleKind.NOBODY:
            return what, Advice("nothing allows it: no agent can be there")
        case ObstacleKind.TOO_NEAR:
            return f"{what}; a document from a more distant network may not name it", Allow("allow_endpoints", found)
        case ObstacleKind.NOT_ALLOWED if met.special.proximity is Proximity.MACHINE:
            return what, Allow("allow_networks", network, instead="name this machine localhost")
        case ObstacleKind.NOT_ALLOWED:
            return what, Allow("allow_networks", network)
        case _:
            assert_never(met.kind)


def judge_url(url: str, *, allow_http: Collection[str] = ()) -> Allowed | UrlRefused:
    """Judge one URL that the caller named, by its text, under the default policy. Never raises."""
    return OutboundPolicy(allow_http=allow_http).judge(url)
