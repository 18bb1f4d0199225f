"""HTTP requests within the outbound policy, as programs: where they may go, with which credential, and what came of it.

`asap_core.net.outbound` decides where requests may go. A driver makes them, and connects only where a `Route` allows.
"""

import gzip
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, assert_never
from urllib.parse import urlencode, urlsplit

from attrs import evolve, field, frozen

from asap_core.auth.bearer import is_token
from asap_core.auth.client_credentials import PostForm
from asap_core.client.body_reader import BodyReader, DocumentParser
from asap_core.client.programs import Barred, Expired, Fetch, Program, Received, Route, Stage, Unanswered
from asap_core.client.runtime import Runtime
from asap_core.clock import Instant
from asap_core.errors import Advice, BadReply, NotAllowed, TimedOut, Unreachable
from asap_core.http.messages import Codings
from asap_core.lru import Lru
from asap_core.net.addresses import Proximity, on_link, read_address, read_without_zone
from asap_core.net.outbound import Allowed, OutboundPolicy, UrlRefused, known_origin
from asap_core.net.provenance import MAX_REMEMBERED, Provenance
from asap_core.net.urls import (
    DEFAULT_PORTS,
    authority_of,
    is_loopback,
    is_this_machine,
    origin_of,
    with_plain_zone,
    without_credentials,
    without_zone,
)
from asap_core.wire.envelope import SUPPORTED_VERSIONS
from asap_core.wire.json import write_json

# The reference's limit on a message.
MAX_REPLY: Final = 10_485_760
# Tokens have at most 8 KiB; id tokens, or an introspection response's data on a user, need some more.
MAX_FORM_ANSWER: Final = 65_536
# The reference's limit for a manifest or health report, in seconds.
DOCUMENT_SECONDS: Final = 10.0
# In bytes. Below it gzip saves less than its header and a packet cost: the reference's threshold.
_COMPRESS_FROM: Final = 1_024
_VERSIONS: Final = ", ".join(SUPPORTED_VERSIONS)
_USER_AGENT: Final = ("user-agent", "asap-sansio")
# RFC 9110 §15.5.22: the response of a TLS port to a plain request, which it hasn't read.
_UPGRADE: Final = 426
SPEAKS_TLS: Final = "it speaks TLS there: use https://"
_PERHAPS_TLS: Final = "; if it speaks TLS, use https://"
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
# Of a response. Python's http.client accepts 100 fields too, node 16 KiB. httpcore itself accepts up to 164 KiB.
_MAX_FIELDS: Final = 100
_MAX_HEAD: Final = 65_536
# Fraction of the time that isn't spent waiting for a connection: the response to a message that is sent at the last
# moment would be lost.
_EXCHANGE: Final = 0.1


@frozen
class HttpAnswer:
    """A response. `body` is empty if a parser got it."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes = field(repr=False)


@frozen
class _Call:
    """A request, which a redirect may send elsewhere. `seconds`: the limit that error messages name."""

    allowed: Allowed
    method: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    content: bytes | None = field(default=None, repr=False)
    parser: DocumentParser[object] | None = None
    # Those whose body was requested, and so must be readable.
    statuses: Collection[int] = range(200, 300)
    limit: int = MAX_REPLY
    seconds: float = DOCUMENT_SECONDS

    @property
    def shown(self) -> str:
        return without_credentials(self.allowed.url)


class Requests:
    """Makes the requests of one client, where its policy allows.

    token: for the origins of URLs that the caller names.
    auth: further tokens, by origin.
    timeout: seconds for a whole request.
    compress: whether large bodies are sent gzipped.
    codings: further content codings that are accepted, such as br, with their decoders.
    named: URLs that the user configured.

    Raises: ValueError for an invalid token or origin.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        policy: OutboundPolicy,
        token: str | None = None,
        auth: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        compress: bool = True,
        codings: Codings | None = None,
        named: Iterable[str] = (),
    ) -> None:
        auth = auth or {}
        if not all(map(is_token, [*([] if token is None else [token]), *auth.values()])):
            raise ValueError("expected tokens of visible ASCII characters")
        self.policy = policy
        self._runtime = runtime
        self._token = token
        self._auth = {known_origin(origin): value for origin, value in auth.items()}
        self._timeout = timeout
        self._compress = compress
        self._codings = codings or {}
        accepted = ", ".join(["gzip", *(name.decode("ascii") for name in self._codings)])
        self._accept_encoding = ("accept-encoding", accepted)
        configured = (*policy.allow_endpoints, *self._auth, *named)
        self._provenance = Provenance(frozenset(authority_of(url) or "" for url in configured) - {""})
        # Origins that the caller named, to which the token may be sent.
        self._named: Lru[str, None] = Lru(MAX_REMEMBERED)
        # Origin and authority of each URL that the caller named, since the same ones are named again and again.
        self._names: Lru[str, tuple[str | None, str | None]] = Lru(MAX_REMEMBERED)

    # --- where, and with what ----------------------------------------------------------------------------------------

    def judge(self, url: str, *, named_by: str | None = None, announced: tuple[str, ...] = ()) -> Allowed:
        """Check a URL. Raises `NotAllowed`.

        named_by: the URL or file of the document that named it; None if the caller did.
        announced: the `announced_addresses` of the announcement that is followed, if one is.
        """
        if named_by is None:
            reach = self._provenance.reach(authority_of(url) or "")
        else:
            self._provenance.learn(url, source=named_by)
            reach = self._provenance.reach_from(named_by, url)
        return _allowed(self.policy.judge(url, reach=reach, announced=announced))

    def judge_endpoint(self, url: str, came_from: str | None, announced: tuple[str, ...] = ()) -> Allowed:
        """Check a manifest's endpoint URL. Raises as `judge`.

        came_from: the manifest's origin; None if the caller made the manifest.
        announced: the addresses at which the origin was announced, if the manifest was found by an announcement.
        """
        endpoint = self.judge(url, announced=announced if origin_of(url) == came_from else ())
        refused = None if came_from is None else self.policy.judge_endpoint(endpoint, came_from=came_from)
        return _allowed(refused or endpoint)

    def name_origin(self, url: str) -> None:
        """Note that the caller named this URL, so that the token may be sent to its origin."""
        name = self._names.peek(url)
        if name is None:
            name = origin_of(with_plain_zone(url)), authority_of(url)
            self._names.put(url, name)
        origin, authority = name
        if origin is not None:
            self._named.put(origin, None)
            self._provenance.name_authority(authority)

    def proximity_of(self, url: str) -> Proximity:
        """Return how near the server of this URL was at the last connection."""
        return self._provenance.proximity_of(url)

    def recall(self, url: str, proximity: Proximity) -> None:
        """Restore the proximity that an earlier process measured."""
        self._provenance.recall(url, proximity)

    def _credential(self, allowed: Allowed) -> dict[str, str]:
        token = self._auth.get(allowed.origin)
        if token is None and allowed.origin in self._named:
            token = self._token
        if token is None or not allowed.is_confidential:
            return {}
        return {"authorization": f"Bearer {token}"}

    # --- requests ----------------------------------------------------------------------------------------------------

    def get(
        self,
        allowed: Allowed,
        headers: Iterable[tuple[str, str]],
        limit: int,
        *,
        parser: DocumentParser[object] | None = None,
        statuses: Collection[int] = (200,),
        seconds: float = DOCUMENT_SECONDS,
    ) -> Program[HttpAnswer]:
        """GET a document of at most `limit` bytes. Raises `TimedOut`, `Unreachable`, `BadReply`, `NotAllowed`.

        parser: gets the body if the status is one of `statuses`. Its `InvalidDocument` propagates.
        """
        fields = (("accept", "application/json"), self._accept_encoding, *headers)
        seconds = min(self._timeout, seconds)
        return self._exchange(_Call(allowed, "GET", fields, None, parser, statuses, limit, seconds))

    def post(
        self,
        allowed: Allowed,
        document: object,
        headers: Mapping[str, str],
        *,
        compress: bool = True,
        credential: Mapping[str, str] | None = None,
    ) -> Program[HttpAnswer]:
        """POST a JSON document, with this credential or the origin's token. Returns any status. Raises as `get`."""
        content = write_json(document)
        extra = dict([self._accept_encoding])
        if compress and self._compress and len(content) >= _COMPRESS_FROM:
            # gzip, which peers of both protocol versions accept; not all accept brotli.
            content, extra["content-encoding"] = gzip.compress(content, 6, mtime=0), "gzip"
        fields = {
            "accept": "application/json",
            "content-type": "application/json",
            "asap-version": _VERSIONS,
            **extra,
            **headers,
            **(self._credential(allowed) if credential is None else credential),
        }
        return self._exchange(_Call(allowed, "POST", tuple(fields.items()), content, seconds=self._timeout))

    def post_form(
        self,
        allowed: Allowed,
        form: PostForm,
        headers: Mapping[str, str] | None = None,
        *,
        limit: int = MAX_FORM_ANSWER,
        seconds: float = DOCUMENT_SECONDS,
    ) -> Program[HttpAnswer]:
        """POST a form with the client's authentication, and no other credential. Returns any status. Raises as `get`.

        Without TLS only to this machine, even where the policy allows plain http for documents.
        """
        if not allowed.is_confidential:
            reason = "it isn't encrypted, and the form contains the client's credentials"
            raise NotAllowed(without_credentials(allowed.url), reason, Advice("use https"))
        fields = {
            "accept": "application/json",
            "content-type": "application/x-www-form-urlencoded",
            **dict([self._accept_encoding]),
            **dict(form.headers),
            **(headers or {}),
        }
        content, seconds = urlencode(form.fields).encode("ascii"), min(self._timeout, seconds)
        call = _Call(allowed, "POST", tuple(fields.items()), content, limit=limit, seconds=seconds)
        return self._exchange(call)

    def _exchange(self, call: _Call) -> Program[HttpAnswer]:
        """Return the response, after following redirects within the policy."""
        end, followed = Instant(self._runtime.now() + call.seconds), 0
        while True:
            reader = BodyReader(
                call.limit,
                codings=self._codings,
                parser=call.parser,
                statuses=call.statuses,
                drain=call.method == "GET",
            )
            yield from self._fetch(call, reader, end)
            locations = [value for name, value in reader.headers if name == "location"]
            if reader.status not in REDIRECTS or not locations:
                return HttpAnswer(reader.status, reader.headers, reader.body)
            # RFC 9110 §5.3: several fields are a list, and a list is no URL. Which one counts isn't guessed.
            location = ", ".join(locations)
            judged = self.policy.judge_redirect(call.allowed, location, followed=followed, method=call.method)
            match judged:
                case Allowed():
                    call, followed = evolve(call, allowed=judged), followed + 1
                case UrlRefused(shown, reason, remedy):
                    raise BadReply(shown, reason, reader.status, remedy=remedy)
                case _:
                    assert_never(judged)

    def _fetch(self, call: _Call, reader: BodyReader, end: Instant) -> Program[None]:
        """Make one request. Raises if there's no usable response in `reader` then."""
        url, authority = call.allowed.url, authority_of(call.allowed.url) or ""
        parts = urlsplit(url)
        port = parts.port or DEFAULT_PORTS[parts.scheme]
        headers = (_USER_AGENT, *call.headers)
        if "%" in call.allowed.host:
            # RFC 6874 §4: a zone is meaningless to the server, which may refuse it.
            headers = (("host", urlsplit(without_zone(url)).netloc), *headers)
        reach = self._provenance.reach(authority)
        route = Route(call.allowed.host, port, parts.scheme, call.allowed.addresses, self.policy, reach)
        seconds = max(end - self._runtime.now(), 0.0)
        patience = max(seconds - _EXCHANGE * call.seconds, 0.0)
        outcome = yield from Fetch(call.method, url, headers, call.content, seconds, patience, route, reader)
        match outcome:
            case Received() if reader.status == 0:
                raise RuntimeError("a driver answered Received before BodyReader.begin: the reader has no response")
            case Received() if not reader.complete:
                raise RuntimeError("a driver answered Received before BodyReader.end: the reader wants the rest")
            case Received(address):
                if address is not None and not route.announced:
                    self._provenance.connected(authority, address)
            case Unanswered(Stage.ANSWERED) | Expired(Stage.ANSWERED) if reader.optional:
                pass  # the status decides
            case Unanswered() | Expired():
                raise _failure(outcome, call)
            case Barred(reason, remedy):
                raise NotAllowed(call.shown, reason, remedy)
            case _:
                assert_never(outcome)
        _check_head(reader, call)
        reader.check(call.shown)


def _allowed(judged: Allowed | UrlRefused) -> Allowed:
    match judged:
        case Allowed():
            return judged
        case UrlRefused(shown, reason, remedy):
            raise NotAllowed(shown, reason, remedy)
        case _:
            assert_never(judged)


def _check_head(reader: BodyReader, call: _Call) -> None:
    fields = reader.headers
    if reader.status == _UPGRADE and any(name == "upgrade" and "tls" in value.lower() for name, value in fields):
        raise Unreachable(call.shown, f"can't connect: {SPEAKS_TLS}", sent=False)
    size = sum(len(name) + len(value) for name, value in fields)
    if len(fields) > _MAX_FIELDS or size > _MAX_HEAD:
        expected = f"expected at most {_MAX_FIELDS} header fields, of {_MAX_HEAD} bytes together"
        raise BadReply(call.shown, expected, reader.status)


def _failure(outcome: Unanswered | Expired, call: _Call) -> Unreachable | TimedOut:
    """Return the exception for a request that got no response."""
    shown, seconds = call.shown, call.seconds
    if outcome.stage is Stage.QUEUED:
        reason = (
            f"no connection became free within {seconds:g} s: too many requests to it are running, or too many names "
            "are being resolved; nothing was sent"
        )
        return Unreachable(shown, reason, sent=False, crowded=True)
    connecting = outcome.stage is Stage.CONNECTING
    match outcome:
        case Expired():
            if connecting:
                return Unreachable(shown, f"can't connect within {seconds:g} s", sent=False)
            what = "no complete answer" if outcome.stage is Stage.ANSWERED else "nothing"
            return TimedOut(shown, f"{what} within {seconds:g} s")
        case Unanswered(_, problem, silent):
            # A TLS server that gets a plain request often closes the connection.
            perhaps = _PERHAPS_TLS if silent and shown.startswith("http://") else ""
            return Unreachable(shown, problem + perhaps, sent=not connecting)
        case _:
            assert_never(outcome)


def announced_addresses(
    host: str, addresses: Sequence[str], *, networks: Collection[str], scopes: Collection[str]
) -> tuple[str, ...]:
    """Return those of a host's announced addresses that requests may connect to: the ones on the link.

    networks: those of the interface that received the announcement, such as `192.0.2.7/24`.
    scopes: the names and the index of the interface, as used in addresses with a zone.
    Raises `NotAllowed` if no address is left, or if the host is neither one of them nor a name under `.local`, which
    only this link resolves (RFC 6762 §3).
    """
    near = [address for address in addresses if on_link(address, networks, scopes=scopes)]
    if is_this_machine(host):
        near = [address for address in near if is_loopback(address)]
    elif read_address(host) is not None:
        near = [address for address in near if read_without_zone(address) == read_without_zone(host)]
    elif not host.lower().removesuffix(".").endswith(".local"):
        near = []
    if not near:
        reason = "it was announced on the local network, and isn't on it"
        raise NotAllowed(host, reason, Advice("request it by its URL if this is intended"))
    return tuple(near)
