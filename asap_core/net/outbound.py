"""Where the library may go: one policy for every URL that it fetches or posts to, and for every address behind one.

https, unless the host is this machine or allowed by name; no credentials in URLs; nothing but http and https; no ports
of other services; the internet only, unless a network is allowed; and nothing that's nearer to us than who named it.
What a name resolves to is judged before it's connected to, and nothing else is connected to.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, assert_never
from urllib.parse import SplitResult, urljoin

from attrs import Attribute, field, frozen

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
"""A server that has moved needs one, or two where it also adds a slash; more is a loop or a game (issue 4)."""
# Below it only a machine's administrator may listen (RFC 6335 §6): services to which a request may be a command.
_FIRST_USER_PORT: Final = 1024
_MAX_PORT: Final = 65_535
# This library's servers bind 127.0.0.1 unless told otherwise; RFC 6761 §6.3 says that no resolver is asked.
_LOOPBACK: Final = ("127.0.0.1", "::1")
# Names have a few addresses. All that a resolver answers are judged; each that's tried takes its share of the time.
_MAX_TRIED: Final = 8
_FILE: Final = "file:"
_CREDENTIALS: Final = Advice(
    "leave them out: `AgentClient` takes auth={origin: token}, `asap send` takes --token and --client-id"
)
# As much of an address that somebody else chose as an error repeats.
_MAX_SHOWN: Final = 200


@frozen
class Allowed:
    """The library may go there. `url` is without fragment, `origin` as RFC 6454 §4 has it, port always written.

    `addresses` are those that it was announced at, if that's why: it's connected to there and nowhere else.
    """

    url: str
    origin: str
    host: str
    encrypted: bool
    addresses: tuple[str, ...] = ()


@frozen
class UrlRefused:
    """The library doesn't go there. `shown` is the URL without credentials, safe for logs."""

    shown: str
    reason: str
    remedy: Remedy


@frozen
class Dial:
    """Connect to one of these addresses, in this order, and to nothing else."""

    addresses: tuple[str, ...]


@frozen
class Resolve:
    """Ask a resolver for this name, and then `choose` about what it answers."""

    name: str


@frozen
class AddressRefused:
    """A host isn't connected to because of where its address leads."""

    reason: str
    remedy: Remedy


_Refusal = tuple[str, Remedy]  # reason and remedy


def known_origin(url: str) -> str:
    """The origin of a URL that a user configured. Raises ValueError where it has none."""
    found = origin_of(url)
    if found is None:
        raise ValueError("expected an origin such as https://agent.example")
    return found


def _list(texts: object, name: str, example: str) -> tuple[str, ...]:
    # A text is several, too: its characters would each be taken for an item.
    several = tuple(texts) if isinstance(texts, Iterable) and not isinstance(texts, str | bytes) else (None,)
    if not all(isinstance(text, str) for text in several):
        raise ValueError(f"{name}: expected a list, such as [{example!r}]")
    return several


def _hosts(texts: Iterable[str]) -> frozenset[str]:
    return frozenset(text.lower() for text in _list(texts, "allow_http", "agent.lan"))


def _networks(texts: Iterable[str]) -> tuple[Network, ...]:
    return tuple(map(read_network, _list(texts, "allow_networks", "10.0.0.0/8")))


def _origins(texts: Iterable[str]) -> frozenset[str]:
    return frozenset(map(known_origin, _list(texts, "allow_endpoints", "https://agent.lan")))


def _ports(ports: object) -> frozenset[int]:
    several = tuple(ports) if isinstance(ports, Iterable) and not isinstance(ports, str | bytes) else (0,)
    if not all(type(port) is int and 0 < port <= _MAX_PORT for port in several):
        raise ValueError(f"allow_ports: expected a list of ports from 1 to {_MAX_PORT}, such as [81]")
    return frozenset(several)


def _are_few(_policy: object, _attribute: "Attribute[Any]", redirects: int) -> None:
    if type(redirects) is not int or not 0 <= redirects <= MAX_REDIRECTS:
        raise ValueError(f"redirects: expected 0 to {MAX_REDIRECTS}")


@frozen(kw_only=True)
class OutboundPolicy:
    """What the library may connect to; each option allows something more. Raises ValueError on what can't be meant.

    `allow_http`: hosts that may be reached without TLS. `allow_networks`: networks beside the internet, such as
    `10.0.0.0/8`, that hosts may be in. `allow_ports`: ports below 1024 beside 80 and 443. `allow_endpoints`: origins
    that may be gone to whoever names them, as if the caller had. `redirects`: how many of a GET's are followed, within
    its origin.
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

        `reach` is how near it may lead, which depends on who named it. `announced` are the addresses, on the link, in
        the announcement that is followed, if one is. `vouched` says that its host was judged before. In either case
        neither its address nor TLS is a question.
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
        # Where it leads before how: who allows plain http to an address would learn only then that it may not be there.
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
        """Whether a manifest that came from this origin may say that its agent takes envelopes there."""
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
        """Whether a redirect is followed: a GET's, within its origin, and so often. Never raises.

        What is posted goes where the caller meant it to: a 307 to elsewhere would carry it there, a 303 lose it.
        """
        target = _joined(asked.url, location)
        shown, elsewhere = without_credentials(asked.url), origin_of(target)
        there = "what isn't a web URL" if elsewhere is None else without_credentials(target)
        reason = f"it redirects to {there if len(there) <= _MAX_SHOWN else f'{there[:_MAX_SHOWN]}…'}"
        if method != "GET":
            return UrlRefused(shown, reason, Advice(f"redirects aren't followed by a {method}"))
        if elsewhere != asked.origin:
            return UrlRefused(
                shown, reason, Advice("redirects aren't followed to another origin: ask there, if that's meant")
            )
        if not self.redirects:
            reason = f"{reason}, and redirects aren't followed"
            return UrlRefused(shown, reason, Allow("redirects", MAX_REDIRECTS))
        if followed >= self.redirects:
            return UrlRefused(shown, reason, Advice(f"no more than {self.redirects} redirects are followed"))
        return self.judge(target, announced=asked.addresses, vouched=True)

    # --- addresses ---------------------------------------------------------------------------------------------------

    def destination(self, host: str) -> Dial | Resolve:
        """How to get at this host's addresses: names of this machine and literal addresses need no resolver."""
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
        """Which of these addresses to connect to: all, or none where one of them may not be.

        `scheme` is the URL's; it's in the words for what would allow it, and decides nothing.
        A name with a good and a bad address is how a stranger gets a browser to turn inwards; no honest one needs it.
        Never raises.
        """
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        for answer in answers:
            refused = self._refusal(host, answer, f"{scheme}://{shown}", reach)
            if refused is not None:
                return AddressRefused(*refused)
        tried = dict.fromkeys(str(address) for answer in answers if (address := read_address(answer)) is not None)
        return Dial(tuple(tried)[:_MAX_TRIED])

    def _refusal(self, host: str, address: str, found: str, reach: Proximity) -> _Refusal | None:
        """ObstacleKind this host isn't connected to at this address, or None."""
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
    return UrlRefused("the URL", "its scheme is missing", Advice(f"expected {scheme}://{netloc}, if that's meant"))


def _in_words(met: Obstacle, named: str, found: str) -> _Refusal:
    what = f"{named} is {met.special}"
    network = str(met.special.network)
    match met.kind:
        case ObstacleKind.NOBODY:
            return what, Advice("nothing allows it: no agent can be there")
        case ObstacleKind.TOO_NEAR:
            return f"{what}, inside, and what names it isn't", Allow("allow_endpoints", found)
        case ObstacleKind.NOT_ALLOWED if met.special.proximity is Proximity.MACHINE:
            return what, Allow("allow_networks", network, instead="name this machine localhost")
        case ObstacleKind.NOT_ALLOWED:
            return what, Allow("allow_networks", network)
        case _:
            assert_never(met.kind)


def judge_url(url: str, *, allow_http: Collection[str] = ()) -> Allowed | UrlRefused:
    """Judge one URL that the caller named, by its text, where nothing more is allowed. Never raises."""
    return OutboundPolicy(allow_http=allow_http).judge(url)
