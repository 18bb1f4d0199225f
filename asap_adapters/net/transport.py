"""HTTP requests within the outbound policy.

`asap_core.net.outbound` decides where requests may go; `asap_core.http.body` decodes bodies within a limit.
"""

import gzip
import ssl
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Final, assert_never
from urllib.parse import urlencode, urlsplit

import anyio
import httpx
from attrs import evolve, field, frozen

from asap_adapters.net.bodies import drain, read_body, read_body_if_possible
from asap_adapters.net.connecting import ADDRESSES, PROGRESS, OutboundTransport, link_networks, link_scopes
from asap_adapters.net.dialling import SPEAKS_TLS
from asap_adapters.net.pool import Progress
from asap_adapters.net.resolving import Resolver
from asap_adapters.net.transport_errors import failure_of
from asap_core.auth.bearer import is_token
from asap_core.auth.client_credentials import PostForm
from asap_core.errors import Advice, BadReply, NotAllowed, Unreachable
from asap_core.http.body import BadCoding, BodyTooLarge
from asap_core.lru import Lru
from asap_core.net.addresses import Proximity, on_link, read_address, read_without_zone
from asap_core.net.outbound import Allowed, OutboundPolicy, UrlRefused, known_origin
from asap_core.net.provenance import MAX_REMEMBERED, Provenance
from asap_core.net.urls import (
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
# The reference's limit for a manifest or health report.
DOCUMENT_SECONDS: Final = 10.0
# Below it gzip saves less than its header and a packet cost: the reference's threshold.
_COMPRESS_FROM: Final = 1_024
_VERSIONS: Final = ", ".join(SUPPORTED_VERSIONS)
_ACCEPT_ENCODING: Final = ("accept-encoding", "gzip, br")
_USER_AGENT: Final = ("user-agent", "asap-sansio")
# RFC 9110 §15.5.22: the response of a TLS port to a plain request, which it hasn't read.
_UPGRADE: Final = 426
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
# Of a response. Python's http.client accepts 100 fields too, node 16 KiB. httpcore itself accepts up to 164 KiB.
_MAX_FIELDS: Final = 100
_MAX_HEAD: Final = 65_536

# Fraction of the timeout that may be spent waiting for a connection.
_QUEUED: Final = 0.9

Answer = tuple[int, Sequence[tuple[str, str]], bytes]
"""Status, headers, body."""


class HttpTransport:
    """Sends requests where the policy allows. Opened and closed by the client that owns it.

    The parameters are `AgentClient`'s.
    named: further URLs and files that the user configured.
    transport: URLs are checked before a custom transport gets them; the addresses aren't.
    """

    def __init__(
        self,
        *,
        token: str | None,
        auth: Mapping[str, str],
        policy: OutboundPolicy,
        timeout: float,
        trust_env: bool,
        compress: bool,
        verify: ssl.SSLContext | bool,
        transport: httpx.AsyncBaseTransport | None,
        resolver: Resolver | None = None,
        named: Sequence[str | Path] = (),
    ) -> None:
        if not all(map(is_token, [*([] if token is None else [token]), *auth.values()])):
            raise ValueError("expected tokens of visible ASCII characters")
        self._token = token
        self._auth = {known_origin(origin): value for origin, value in auth.items()}
        self.policy = policy
        self._timeout = timeout
        self._compress = compress
        configured = map(str, (*policy.allow_endpoints, *self._auth, *named))
        self._provenance = Provenance(frozenset(authority_of(url) or "" for url in configured) - {""})
        self._make: Callable[[], httpx.AsyncBaseTransport] = lambda: (
            transport
            or OutboundTransport(policy, self._provenance, resolver=resolver, verify=verify, trust_env=trust_env)
        )
        self._transport: httpx.AsyncBaseTransport | None = None
        # Origins that the caller named, to which the token may be sent.
        self._named: Lru[str, None] = Lru(MAX_REMEMBERED)
        # Origin and authority of each URL that the caller named, since the same ones are named again and again.
        self._names: Lru[str, tuple[str | None, str | None]] = Lru(MAX_REMEMBERED)

    @property
    def is_open(self) -> bool:
        """Return whether requests can be made."""
        return self._transport is not None

    def open(self) -> None:
        """Prepare for requests. Raises RuntimeError if it's open already."""
        if self._transport is not None:
            raise RuntimeError("this client is open already")
        self._transport = self._make()

    async def aclose(self) -> None:
        """Close all connections. May be called from any task. A second call does nothing."""
        transport, self._transport = self._transport, None
        if transport is not None:
            with anyio.CancelScope(shield=True):
                await transport.aclose()

    def _opened(self) -> httpx.AsyncBaseTransport:
        if self._transport is None:
            raise RuntimeError("this client isn't open; write: async with AgentClient(sender=…) as client: …")
        return self._transport

    # --- where, and with what ----------------------------------------------------------------------------------------

    def judge(self, url: str, *, named_by: str | None = None, announced: tuple[str, ...] = ()) -> Allowed:
        """Check a URL. Raises `NotAllowed`, and RuntimeError if the client isn't open.

        named_by: the URL or file of the document that named it; None if the caller did.
        announced: the `announced_addresses` of the announcement that is followed, if one is.
        """
        self._opened()
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

    def announced_addresses(
        self, host: str, addresses: Sequence[str], *, link: str = "", networks: Collection[str] | None = None
    ) -> tuple[str, ...]:
        """Return those of a host's announced addresses that requests may connect to: the ones on the link.

        link: the interface that received the announcement, if it's known.
        networks: those of the interface, such as `192.0.2.7/24`. The default is to ask the system.
        Raises `NotAllowed` if no address is left, or if the host is neither one of them nor a name under `.local`,
        which only this link resolves (RFC 6762 §3).
        """
        here, scopes = link_networks(link) if networks is None else networks, link_scopes(link)
        near = [address for address in addresses if on_link(address, here, scopes=scopes)]
        if is_this_machine(host):
            near = [address for address in near if is_loopback(address)]
        elif read_address(host) is not None:
            near = [address for address in near if _without_scope(address) == _without_scope(host)]
        elif not host.lower().removesuffix(".").endswith(".local"):
            near = []
        if not near:
            reason = "it was announced on the local network, and isn't on it"
            raise NotAllowed(host, reason, Advice("request it by its URL if this is intended"))
        return tuple(near)

    def _credential(self, allowed: Allowed) -> dict[str, str]:
        token = self._auth.get(allowed.origin)
        if token is None and allowed.origin in self._named:
            token = self._token
        if token is None or not (allowed.encrypted or is_loopback(allowed.host)):
            return {}
        return {"authorization": f"Bearer {token}"}

    # --- requests ----------------------------------------------------------------------------------------------------

    async def get(
        self,
        allowed: Allowed,
        headers: Sequence[tuple[str, str]],
        limit: int,
        *,
        into: Callable[[bytes], object] | None = None,
        statuses: Collection[int] = (200,),
        seconds: float = DOCUMENT_SECONDS,
    ) -> Answer:
        """GET a document of at most `limit` bytes. Raises `TimedOut`, `Unreachable`, `BadReply`, `NotAllowed`.

        into: called with small pieces of the body if the status is one of `statuses`. The body isn't returned then.
            Its exceptions propagate. Yields to other tasks between pieces.
        """
        call = _Call(allowed, "GET", [("accept", "application/json"), _ACCEPT_ENCODING, *headers], None, into, statuses)
        return await self._exchange(call, limit, min(self._timeout, seconds))

    async def post(
        self,
        allowed: Allowed,
        document: object,
        headers: Mapping[str, str],
        *,
        compress: bool = True,
        credential: Mapping[str, str] | None = None,
    ) -> Answer:
        """POST a JSON document, with this credential or the origin's token. Returns any status. Raises as `get`."""
        content = write_json(document)
        extra = dict([_ACCEPT_ENCODING])
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
        return await self._exchange(_Call(allowed, "POST", list(fields.items()), content), MAX_REPLY, self._timeout)

    async def post_form(
        self,
        allowed: Allowed,
        form: PostForm,
        headers: Mapping[str, str] | None = None,
        *,
        limit: int = MAX_FORM_ANSWER,
        seconds: float = DOCUMENT_SECONDS,
    ) -> Answer:
        """POST a form with the client's authentication, and no other credential. Returns any status. Raises as `get`.

        Without TLS only to this machine, even where the policy allows plain http for documents.
        """
        if not (allowed.encrypted or is_loopback(allowed.host)):
            reason = "it isn't encrypted, and the form contains the client's credentials"
            raise NotAllowed(without_credentials(allowed.url), reason, Advice("use https"))
        fields = {
            "accept": "application/json",
            "content-type": "application/x-www-form-urlencoded",
            **dict([_ACCEPT_ENCODING]),
            **dict(form.headers),
            **(headers or {}),
        }
        call = _Call(allowed, "POST", list(fields.items()), urlencode(form.fields).encode("ascii"))
        return await self._exchange(call, limit, min(self._timeout, seconds))

    async def _exchange(self, call: "_Call", limit: int, seconds: float) -> Answer:
        progress = Progress(patience=anyio.current_time() + _QUEUED * seconds)
        try:
            with anyio.fail_after(seconds):
                return await self._answer(call, limit, progress)
        except (TimeoutError, httpx.HTTPError) as error:
            raise failure_of(error, call.shown, progress.stage, seconds) from None
        except BodyTooLarge as error:
            raise BadReply(call.shown, f"expected at most {error.limit} bytes") from None
        except BadCoding as error:
            raise BadReply(call.shown, str(error)) from None

    async def _answer(self, call: "_Call", limit: int, progress: Progress) -> Answer:
        """Return the response, after following redirects within the policy."""
        followed = 0
        while True:
            # Not by httpx's client, which stores cookies, and logs URLs with their secrets.
            response = await self._opened().handle_async_request(_request(call, self._timeout, progress))
            try:
                _check_head(response, call)
                location = response.headers.get("location")
                if response.status_code not in _REDIRECTS or location is None:
                    body = await _body_of(response, call, limit)
                    return response.status_code, tuple(response.headers.multi_items()), body
                call = self._redirected(call, response.status_code, location, followed)
                followed += 1
            finally:
                with anyio.CancelScope(shield=True):
                    await response.aclose()

    def _redirected(self, call: "_Call", status: int, location: str, followed: int) -> "_Call":
        judged = self.policy.judge_redirect(call.allowed, location, followed=followed, method=call.method)
        match judged:
            case Allowed():
                return evolve(call, allowed=judged)
            case UrlRefused(shown, reason, remedy):
                raise BadReply(shown, reason, status, remedy=remedy)
            case _:
                assert_never(judged)


@frozen
class _Call:
    """A request, which a redirect may send elsewhere."""

    allowed: Allowed
    method: str
    headers: Sequence[tuple[str, str]] = field(repr=False)
    content: bytes | None = field(default=None, repr=False)
    into: Callable[[bytes], object] | None = None
    # Those whose body was requested, and so must be readable.
    statuses: Collection[int] = range(200, 300)

    @property
    def shown(self) -> str:
        return without_credentials(self.allowed.url)


async def _body_of(response: httpx.Response, call: _Call, limit: int) -> bytes:
    """Return the body. An unreadable body of an error response is ignored."""
    if response.status_code in call.statuses:
        return await read_body(response, limit, call.into)
    if call.method == "GET":
        await drain(response)
        return b""
    return await read_body_if_possible(response, limit)


def _allowed(judged: Allowed | UrlRefused) -> Allowed:
    match judged:
        case Allowed():
            return judged
        case UrlRefused(shown, reason, remedy):
            raise NotAllowed(shown, reason, remedy)
        case _:
            assert_never(judged)


def _request(call: _Call, seconds: float, progress: Progress | None = None) -> httpx.Request:
    try:
        request = httpx.Request(
            call.method,
            call.allowed.url,
            headers=[_USER_AGENT, *call.headers],
            content=call.content,
            extensions={
                "timeout": dict.fromkeys(("connect", "read", "write", "pool"), seconds),
                PROGRESS: progress or Progress(),
                ADDRESSES: call.allowed.addresses,
            },
        )
    except (httpx.InvalidURL, UnicodeError):  # idna's errors are UnicodeErrors
        request = None
    # If httpx parses another host from the URL than the policy did, the request would go to an unchecked host.
    if request is None or request.url.raw_host.decode("ascii").lower() != call.allowed.host.lower():
        reason = "its host is not a valid host name"
        raise NotAllowed(call.shown, reason, Advice("expected a URL such as https://agent.example"))
    if "%" in request.url.host:
        # RFC 6874 §4: a zone is meaningless to the server, which may refuse it (httpx issue 2174).
        request.headers["host"] = urlsplit(without_zone(call.allowed.url)).netloc
    return request


def _check_head(response: httpx.Response, call: _Call) -> None:
    if response.status_code == _UPGRADE and "tls" in response.headers.get("upgrade", "").lower():
        raise Unreachable(call.shown, f"can't connect: {SPEAKS_TLS}", sent=False)
    fields = response.headers.raw
    size = sum(len(name) + len(value) for name, value in fields)
    if len(fields) > _MAX_FIELDS or size > _MAX_HEAD:
        expected = f"expected at most {_MAX_FIELDS} header fields, of {_MAX_HEAD} bytes together"
        raise BadReply(call.shown, expected, response.status_code)


def _without_scope(address: str) -> object:
    return read_without_zone(address)
