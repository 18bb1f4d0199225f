"""The web as the client may use it: where it may go, with which credential, within which limits, over httpx.

Where is decided by `asap_core.net.outbound`; bodies are decoded within a limit by `asap_core.http.body`.
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
# Tokens have at most 8 KiB, and what is said beside them some more: id tokens, what introspection knows of a user.
MAX_FORM_ANSWER: Final = 65_536
# The reference's: a manifest or health report that takes longer is as good as none.
DOCUMENT_SECONDS: Final = 10.0
# Below it gzip saves less than its header and a packet cost: the reference's threshold.
_COMPRESS_FROM: Final = 1_024
_VERSIONS: Final = ", ".join(SUPPORTED_VERSIONS)
_ACCEPT_ENCODING: Final = ("accept-encoding", "gzip, br")
_USER_AGENT: Final = ("user-agent", "asap-sansio")
# RFC 9110 §15.5.22: what a port that speaks TLS says to a plain request, and hasn't read.
_UPGRADE: Final = 426
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
# Of an answer. Python's http.client takes 100 fields too, node 16 KiB; as they arrive httpcore keeps at most 164 KiB.
_MAX_FIELDS: Final = 100
_MAX_HEAD: Final = 65_536

# Of a request's time: how much of it may go by while it waits for a connection.
_QUEUED: Final = 0.9

Answer = tuple[int, Sequence[tuple[str, str]], bytes]
"""Status, headers, body."""


class HttpTransport:
    """Requests to origins that may be asked. Opened and closed by the client that owns it.

    The parameters are `AgentClient`'s; `named` are further URLs and files that its user configured. A `transport` of
    the caller's own is given what policy allows of the URLs; to what addresses it connects is its business.
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
        # Origins that the caller named: the token may go there.
        self._named: Lru[str, None] = Lru(MAX_REMEMBERED)
        # What each URL that the caller named says: it names the same ones again and again.
        self._names: Lru[str, tuple[str | None, str | None]] = Lru(MAX_REMEMBERED)

    @property
    def is_open(self) -> bool:
        """Whether requests can be made."""
        return self._transport is not None

    def open(self) -> None:
        """Get ready. Raises RuntimeError where it's open already."""
        if self._transport is not None:
            raise RuntimeError("this client is open already")
        self._transport = self._make()

    async def aclose(self) -> None:
        """Close all connections. From any task; a second time does nothing."""
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
        """Return the URL if it may be asked. Raises `NotAllowed`, and RuntimeError where the client isn't open.

        `named_by` is the URL or file of the document that named it, where it wasn't the caller. `announced` are the
        `announced_addresses` of the announcement that is followed, if one is.
        """
        self._opened()
        if named_by is None:
            reach = self._provenance.reach(authority_of(url) or "")
        else:
            self._provenance.learn(url, source=named_by)
            reach = self._provenance.reach_from(named_by, url)
        return _allowed(self.policy.judge(url, reach=reach, announced=announced))

    def judge_endpoint(self, url: str, came_from: str | None, announced: tuple[str, ...] = ()) -> Allowed:
        """Return where an agent takes envelopes, if its manifest, which came from that origin, may say so.

        Raises as `judge`. None is a manifest of the caller's own making. `announced` are the addresses that the origin
        was announced at, if the manifest was found by that.
        """
        endpoint = self.judge(url, announced=announced if origin_of(url) == came_from else ())
        refused = None if came_from is None else self.policy.judge_endpoint(endpoint, came_from=came_from)
        return _allowed(refused or endpoint)

    def name_origin(self, url: str) -> None:
        """The caller named this URL: the token may go to its origin."""
        name = self._names.peek(url)
        if name is None:
            name = origin_of(with_plain_zone(url)), authority_of(url)
            self._names.put(url, name)
        origin, authority = name
        if origin is not None:
            self._named.put(origin, None)
            self._provenance.name_authority(authority)

    def proximity_of(self, url: str) -> Proximity:
        """How near the server of this URL was, when it was connected to."""
        return self._provenance.proximity_of(url)

    def recall(self, url: str, proximity: Proximity) -> None:
        """It was as near as that, as an earlier process found."""
        self._provenance.recall(url, proximity)

    def announced_addresses(
        self, host: str, addresses: Sequence[str], *, link: str = "", networks: Collection[str] | None = None
    ) -> tuple[str, ...]:
        """Where to connect to for the agent at this host, which was announced at these addresses.

        `link` is the interface that heard the announcement, where it's known, and `networks` those that it's on
        (`192.0.2.7/24`; asked of the system where they aren't given). Addresses that aren't on it don't count. Raises
        `NotAllowed` where none is left, or the host is neither one of them nor a name under `.local`, for which this
        link alone can answer (RFC 6762 §3).
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

        The body of an answer with one of the `statuses` goes to `into`, where that's given, in small pieces as they
        come, and isn't in the answer; what it raises is raised. Other tasks have their turns in between.
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
        """POST a JSON document, with this credential or the static one of that origin; any status. Raises as `get`."""
        content = write_json(document)
        extra = dict([_ACCEPT_ENCODING])
        if compress and self._compress and len(content) >= _COMPRESS_FROM:
            # gzip, which peers of both generations read; brotli isn't everywhere.
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
        """POST a form with what it proves itself by, and with no other credential; any status. Raises as `get`.

        Never in the clear, but to this machine: whatever policy allows is meant for documents.
        """
        if not (allowed.encrypted or is_loopback(allowed.host)):
            reason = "it isn't encrypted, and a form carries what proves who we are"
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
        """What is answered, redirects followed as far as policy goes."""
        followed = 0
        while True:
            # Not by httpx's client, which would keep cookies, and log URLs with what they may hold.
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
    """A request that may be made again elsewhere."""

    allowed: Allowed
    method: str
    headers: Sequence[tuple[str, str]] = field(repr=False)
    content: bytes | None = field(default=None, repr=False)
    into: Callable[[bytes], object] | None = None
    # Those whose body must be readable: it's what was asked for.
    statuses: Collection[int] = range(200, 300)

    @property
    def shown(self) -> str:
        return without_credentials(self.allowed.url)


async def _body_of(response: httpx.Response, call: _Call, limit: int) -> bytes:
    """The body, as far as the status leaves it anything to say: what can't be read makes no other answer of a 503."""
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
    # Where httpx reads another host out of a URL than the policy did, what was judged isn't what would be asked.
    if request is None or request.url.raw_host.decode("ascii").lower() != call.allowed.host.lower():
        reason = "its host can't be a host's name"
        raise NotAllowed(call.shown, reason, Advice("expected a URL such as https://agent.example"))
    if "%" in request.url.host:
        # RFC 6874 §4: a zone means nothing at the other end, and servers refuse it (httpx issue 2174).
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
