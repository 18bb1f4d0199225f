"""The client: finds agents and talks to them, over httpx, on trio and asyncio.

What is kept, who fetches, what an answer means and where it may go is decided in `asap_core.client`; here it's carried
out. A fetch runs in the task of the caller who leads it: no task of the client's own outlives a call.
"""

import gzip
import ssl
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar, assert_never

import anyio
import httpx
from attrs import define, frozen

from asap_adapters.clock import LoopClock
from asap_adapters.coding import CODINGS
from asap_adapters.entropy import new_id, new_token, random_fraction
from asap_core.client.directory import (
    Deliver,
    Directory,
    DirectoryPolicy,
    Effect,
    Failed,
    FailureKind,
    Fetched,
    Found,
    Lead,
    NotModified,
    Outcome,
    Source,
    Unfound,
)
from asap_core.client.freshness import parse_retry_after
from asap_core.client.outbound import Allowed, Refused, is_loopback, judge_url, origin_of, without_credentials
from asap_core.client.replies import Outcome as ReplyOutcome
from asap_core.client.replies import Sent, Unusable, read_batch_reply, read_reply
from asap_core.codec import encode_envelope, read_health, read_manifest, read_registry, to_json
from asap_core.dnssd import Added, Announcement, Updated
from asap_core.errors import (
    AsapError,
    BadReply,
    InvalidDocument,
    NotAllowed,
    RemoteError,
    TimedOut,
    Unreachable,
    WrongAgent,
)
from asap_core.http import BadCoding, Body, BodyTooLarge, Gzip
from asap_core.jsonrpc import METHOD
from asap_core.jsontext import write_json
from asap_core.model.envelope import Envelope
from asap_core.model.manifest import Health, Manifest
from asap_core.model.payloads import Payload
from asap_core.model.registry import Registry, RegistryEntry
from asap_core.model.rules import URN
from asap_core.registry import find, manifest_url
from asap_core.server.wellknown import HEALTH_PATH, MANIFEST_PATH

__all__ = ["AgentClient", "Discovery", "Lookup"]

T = TypeVar("T")

# The reference's limit on a message; a manifest is a few kilobytes, a registry of 100,000 agents some 50 MB.
MAX_REPLY: Final = 10_485_760
MAX_MANIFEST: Final = 1_048_576
MAX_REGISTRY: Final = 67_108_864
MAX_HEALTH: Final = 65_536
# The reference's: a manifest or health report that takes longer is as good as none.
_DISCOVERY_SECONDS: Final = 10.0
# How long a caller waits for a fresh document where a stale one would do.
_REVALIDATION_SECONDS: Final = 1.0
# Below it gzip saves less than its header and a packet cost: the reference's threshold.
_COMPRESS_FROM: Final = 1_024
_MAX_BATCH: Final = 50
_MAX_REMEMBERED: Final = 1_000
_VERSIONS: Final = "2.2, 2.1"
_SERVER_TROUBLE: Final = frozenset({500, 502, 503, 504})
_GONE: Final = frozenset({401, 403, 404, 410})
_OK: Final = 200
_NOT_MODIFIED: Final = 304


@frozen
class Lookup(Generic[T]):
    """A document found: where it was asked for, where it came from, how many seconds ago its server vouched for it."""

    document: T
    url: str
    source: Source
    age: float


@frozen
class Discovery:
    """An agent found by its URL: its manifest, and how that was had."""

    manifest: Manifest
    url: str
    source: Source
    age: float


@define(eq=False)
class _Waiter:
    """A task that waits for a document: woken when it has something to do."""

    woken: anyio.Event
    effect: Deliver[Any, Any] | Lead[Any] | None = None


class _NotOpen(RuntimeError):
    def __init__(self) -> None:
        super().__init__("this client isn't open; write: async with AgentClient(sender=…) as client: …")


class AgentClient:
    """Finds agents and sends them envelopes, as `sender`.

    `token` is sent to origins that the caller names (by the URL given to `discover`, `get_manifest` or `send`), `auth`
    maps further origins to tokens; neither goes to an origin learned from a registry or the local network unless listed
    there, and none over plain http except on this machine. `allow_http` names hosts that may be reached without TLS.
    `registries` are URLs or files for `resolve`, in order of precedence. With `trust_env` false, proxies and
    certificates of the environment don't apply. `timeout` bounds a whole request, in seconds.

    Use it as `async with AgentClient(…) as client`, or close it with `aclose()`: from any task, twice is fine.
    """

    def __init__(
        self,
        *,
        sender: str,
        token: str | None = None,
        auth: Mapping[str, str] | None = None,
        allow_http: Collection[str] = (),
        allow_endpoints: Collection[str] = (),
        registries: Sequence[str | Path] = (),
        timeout: float = 60.0,
        trust_env: bool = False,
        compress: bool = True,
        verify: ssl.SSLContext | bool = True,
        transport: httpx.AsyncBaseTransport | None = None,
        policy: DirectoryPolicy | None = None,
    ) -> None:
        if not URN.fits(sender):
            raise ValueError(f"expected as sender {URN.expected}")
        self.sender = sender
        self._token = token
        self._auth = {_known_origin(origin): value for origin, value in (auth or {}).items()}
        self._allow_http = frozenset(allow_http)
        self._allow_endpoints = frozenset(map(_known_origin, allow_endpoints))
        self._registry_locations = tuple(registries)
        self._timeout = timeout
        self._compress = compress
        self._make: Callable[[], httpx.AsyncClient] = lambda: httpx.AsyncClient(
            trust_env=trust_env, verify=verify, transport=transport, follow_redirects=False, timeout=timeout
        )
        self._http: httpx.AsyncClient | None = None
        self._clock = LoopClock()
        self._manifests: Directory[Manifest, _Waiter] = Directory(policy)
        self._registries: Directory[Registry, _Waiter] = Directory(policy)
        # Origins that the caller named, hosts announced on this link, and where each manifest came from. Bounded.
        self._named: dict[str, None] = {}
        self._on_link: dict[str, None] = {}
        self._origins: dict[int, tuple[Manifest, str]] = {}

    async def __aenter__(self) -> Self:
        """Open it."""
        if self._http is not None:
            raise RuntimeError("this client is open already")
        self._http = self._make()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections. From any task; a second time does nothing."""
        http, self._http = self._http, None
        if http is not None:
            with anyio.CancelScope(shield=True):
                await http.aclose()

    def __del__(self) -> None:
        if getattr(self, "_http", None) is not None:
            warnings.warn(f"{self!r} was never closed; use async with", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        return f"AgentClient(sender={self.sender!r})"

    # --- finding -----------------------------------------------------------------------------------------------------

    async def discover(self, base_url: str, *, expect: str | None = None) -> Manifest:
        """Return the manifest of the agent at `base_url`, kept or fetched.

        `expect` is the agent's URN where it's known: another one there is `WrongAgent`. Raises `Unreachable`,
        `TimedOut`, `BadReply`, `InvalidDocument`, `NotAllowed`.
        """
        return (await self.look_up(base_url, expect=expect)).manifest

    async def look_up(self, base_url: str, *, expect: str | None = None) -> Discovery:
        """`discover`, with where the manifest came from and how old it is."""
        self._name_origin(base_url)
        return await self._look_up(_join(base_url, MANIFEST_PATH), expect)

    async def get_manifest(self, url: str, *, expect: str | None = None) -> Manifest:
        """Return the manifest at exactly this URL. As `discover` otherwise."""
        self._name_origin(url)
        return (await self._look_up(url, expect)).manifest

    def cached(self, base_url: str) -> Manifest | None:
        """The manifest of the agent at `base_url` if it's kept and good, without waiting for anything."""
        return self._manifests.cached(_join(base_url, MANIFEST_PATH), now=self._clock.monotonic())

    async def _look_up(self, url: str, expect: str | None) -> Discovery:
        found = await self._find(
            self._manifests, url, read_manifest, MAX_MANIFEST, lambda manifest: manifest.ttl_seconds
        )
        manifest = found.document
        _remember(self._origins, id(manifest), (manifest, origin_of(url) or ""))
        if expect is not None and manifest.id != expect:
            raise WrongAgent(without_credentials(url), expect, manifest.id)
        return Discovery(manifest, found.url, found.source, found.age)

    async def health_check(self, base_url: str) -> Health:
        """Return the health report of the agent at `base_url`; an unhealthy one is an answer too, not an error."""
        self._name_origin(base_url)
        allowed = self._judge(_join(base_url, HEALTH_PATH))
        status, _, body = await self._get(allowed, (), MAX_HEALTH)
        if status not in (_OK, 503):
            raise BadReply(without_credentials(allowed.url), "expected a health report", status)
        return read_health(body)

    async def registry(self, location: str | Path) -> Registry:
        """Read a registry from a URL or a file. Entries that can't be read are reported in `skipped`.

        Raises as `discover` does; OSError where the file can't be read.
        """
        if isinstance(location, str) and "://" in location:
            return (await self._find(self._registries, location, read_registry, MAX_REGISTRY, lambda _: None)).document
        return read_registry(await _read_file(Path(location)))

    async def find(
        self, location: str | Path, *, skill: str | None = None, agent_id: str | None = None
    ) -> tuple[RegistryEntry, ...]:
        """The entries of a registry that have this skill, or this id, in file order."""
        return find(await self.registry(location), skill=skill, agent_id=agent_id)

    async def resolve(self, urn: str, *, wait: float = 3.0) -> Manifest:
        """Find an agent by its URN: the registries in order, then, for `wait` seconds, the local network.

        What answers must say that it's this agent. Raises `Unreachable` that says what was asked where nobody does.
        """
        tried: list[str] = []
        for location in self._registry_locations:
            try:
                listed = await self.find(location, agent_id=urn)
                url = manifest_url(listed[0]) if listed else None
                if url is not None:
                    return (await self._look_up(url, urn)).manifest
                tried.append(f"{location}: not listed" if not listed else f"{location}: listed without a URL")
            except (AsapError, OSError) as error:
                tried.append(f"{location}: {error}")
        found = await self._resolve_on_link(urn, wait, tried)
        if found is None:
            raise Unreachable(urn, "; ".join(tried) or "no registry is configured, and nothing answers here")
        return found

    async def _resolve_on_link(self, urn: str, wait: float, tried: list[str]) -> Manifest | None:
        if wait <= 0:
            return None
        with anyio.move_on_after(wait):
            async with self.browse() as events:
                async for event in events:
                    match event:
                        case Added(announcement) | Updated(announcement) if announcement.agent_id == urn:
                            try:
                                return await self.follow(announcement, expect=urn)
                            except AsapError as error:
                                tried.append(f"local network: {error}")
                        case _:
                            continue
        tried.append(f"local network: not announced within {wait:g} s")
        return None

    def browse(self, *, interfaces: Sequence[str] | None = None) -> AbstractAsyncContextManager[Any]:
        """Watch the agents on the local network: `async with client.browse() as events: async for event in events: …`.

        Events are `Added`, `Updated`, `Removed` and `Ignored` of `asap_core.dnssd`.
        """
        from asap_adapters.mdns import browse  # noqa: PLC0415 - zeroconf takes 80 ms to import, and few need it

        return browse(interfaces=interfaces)

    async def follow(self, announcement: Announcement, *, expect: str | None = None) -> Manifest:
        """Fetch the manifest of an announced agent. It may be plain http: the announcement came from the same link."""
        _remember(self._on_link, announcement.host, None)
        return (await self._look_up(announcement.manifest_url, expect or announcement.agent_id)).manifest

    async def _find(
        self,
        directory: Directory[T, _Waiter],
        url: str,
        read: Callable[[bytes], T],
        limit: int,
        ttl: Callable[[T], float | None],
    ) -> Lookup[T]:
        self._open_http()
        allowed = self._judge(url)
        waiter = _Waiter(anyio.Event())
        _carry_out(directory.lookup(allowed.url, waiter, now=self._clock.monotonic()))
        try:
            while True:
                effect, waiter.effect = waiter.effect, None
                match effect:
                    case Deliver(_, Found(value, source, age)):
                        return Lookup(value, allowed.url, source, age)
                    case Deliver(_, Unfound(error, next_try)):
                        raise _with_next_try(error, next_try)  # noqa: TRY301 - an abandoned waiter that was served is no one
                    case Lead():
                        outcome = await self._fetch(allowed, effect, read, limit, ttl)
                        _carry_out(
                            directory.settle(
                                effect.flight,
                                outcome,
                                now=self._clock.monotonic(),
                                wall=self._clock.wall(),
                                jitter=random_fraction(),
                            )
                        )
                    case None:
                        await waiter.woken.wait()
                        waiter.woken = anyio.Event()
        except BaseException:
            _carry_out(directory.abandon(waiter))
            raise

    async def _fetch(
        self,
        allowed: Allowed,
        lead: Lead[Any],
        read: Callable[[bytes], T],
        limit: int,
        ttl: Callable[[T], float | None],
    ) -> Outcome[T]:
        shown = without_credentials(allowed.url)
        try:
            with anyio.move_on_after(_REVALIDATION_SECONDS if lead.stale_at_hand else None) as scope:
                status, headers, body = await self._get(allowed, lead.headers, limit)
                return self._outcome(shown, (status, headers, body), read, ttl)
        except TimedOut as error:
            return Failed(error, FailureKind.TIMEOUT)
        except Unreachable as error:
            return Failed(error, FailureKind.UNREACHABLE)
        except (BadReply, InvalidDocument) as error:
            return Failed(error, FailureKind.UNUSABLE)
        assert scope.cancelled_caught  # noqa: S101 - the only way out of the block without an outcome
        return Failed(TimedOut(shown, "no fresh document in time"), FailureKind.TIMEOUT)

    def _outcome(
        self, shown: str, answer: "_Answer", read: Callable[[bytes], T], ttl: Callable[[T], float | None]
    ) -> Outcome[T]:
        status, headers, body = answer
        if status == _NOT_MODIFIED:
            return NotModified(headers)
        if status == _OK:
            value = read(body)
            return Fetched(value, headers, ttl(value))
        error = BadReply(shown, "expected the document with HTTP 200; redirects aren't followed", status)
        if status in _GONE:
            return Failed(error, FailureKind.GONE)
        retry_after = next((value for name, value in headers if name.lower() == "retry-after"), None)
        wait = None if retry_after is None else parse_retry_after(retry_after, wall=self._clock.wall())
        return Failed(error, FailureKind.SERVER if status in _SERVER_TROUBLE else FailureKind.UNUSABLE, wait)

    # --- sending -----------------------------------------------------------------------------------------------------

    async def send(
        self,
        target: Manifest | str,
        payload_type: str,
        payload: Payload | Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
        nonce: str | None = None,
        sender: str | None = None,
        trace_id: str | None = None,
    ) -> Envelope:
        """Send one envelope and return the reply.

        `target` is a manifest, or the base URL of an agent to discover first. A task request without `conversation_id`
        gets a new one. The reply is checked: it answers this call and this envelope, and comes from the agent asked.

        Raises `RemoteError` where the agent refuses, `TimedOut` where it may have been carried out, `Unreachable`,
        `BadReply`, `NotAllowed`.
        """
        manifest = target if isinstance(target, Manifest) else await self.discover(target)
        envelope = self._envelope(manifest, payload_type, payload, nonce=nonce, sender=sender, trace_id=trace_id)
        return await self.post(manifest, envelope, idempotency_key=idempotency_key)

    async def post(self, manifest: Manifest, envelope: Envelope, *, idempotency_key: str | None = None) -> Envelope:
        """Send an envelope as it is; for those who make their own. As `send` otherwise."""
        key = idempotency_key or new_id()
        sent = Sent(f"req-{new_id()}", envelope)
        allowed = self._endpoint(manifest)
        status, body = await self._post(allowed, _call(sent, key), {"x-idempotency-key": key})
        return _taken(read_reply(sent, status=status, body=body), allowed, status)

    async def send_batch(
        self, target: Manifest | str, messages: Sequence[tuple[str, Payload | Mapping[str, Any]]]
    ) -> list[Envelope | RemoteError]:
        """Send up to 50 messages, each `(payload_type, payload)`, as one batch; what came of each, in order.

        Raises as `send` does where the batch as a whole fails.
        """
        if not 0 < len(messages) <= _MAX_BATCH:
            raise ValueError(f"expected 1 to {_MAX_BATCH} messages in a batch")
        manifest = target if isinstance(target, Manifest) else await self.discover(target)
        allowed = self._endpoint(manifest)
        sent = tuple(Sent(f"req-{new_id()}", self._envelope(manifest, *message)) for message in messages)
        # Plain: the reference refuses a compressed batch (fault 88).
        status, body = await self._post(allowed, [_call(one, new_id()) for one in sent], {}, compress=False)
        outcomes = read_batch_reply(sent, status=status, body=body)
        return [
            outcome if isinstance(outcome, RemoteError) else _taken(outcome, allowed, status) for outcome in outcomes
        ]

    def _envelope(
        self,
        manifest: Manifest,
        payload_type: str,
        payload: Payload | Mapping[str, Any],
        *,
        nonce: str | None = None,
        sender: str | None = None,
        trace_id: str | None = None,
    ) -> Envelope:
        document = dict(payload) if isinstance(payload, Mapping) else to_json(payload)
        if payload_type in _TASK_REQUESTS:
            document.setdefault("conversation_id", f"conv_{new_id()}")
        return Envelope.new(
            sender=sender or self.sender,
            recipient=manifest.id,
            payload_type=payload_type,
            payload=document,
            ids=new_id,
            wall=self._clock.wall(),
            nonce=nonce or new_token(),
            trace_id=trace_id,
        )

    def _endpoint(self, manifest: Manifest) -> Allowed:
        """Where this agent takes envelopes: where its manifest came from, unless the caller allows more."""
        allowed = self._judge(manifest.endpoints.asap)
        known = self._origins.get(id(manifest))
        origin = known[1] if known is not None and known[0] is manifest else allowed.origin
        if allowed.origin != origin and allowed.origin not in self._allow_endpoints:
            raise NotAllowed(
                without_credentials(allowed.url),
                f"the manifest that names it came from {origin}",
                f"allow it with allow_endpoints=[{allowed.origin!r}]",
            )
        return allowed

    # --- HTTP --------------------------------------------------------------------------------------------------------

    def _open_http(self) -> httpx.AsyncClient:
        if self._http is None:
            raise _NotOpen
        return self._http

    def _judge(self, url: str) -> Allowed:
        judged = judge_url(url, allow_http=self._allow_http | self._on_link.keys())
        match judged:
            case Allowed():
                return judged
            case Refused(shown, reason, remedy):
                raise NotAllowed(shown, reason, remedy)
            case _:
                assert_never(judged)

    def _name_origin(self, url: str) -> None:
        origin = origin_of(url)
        if origin is not None:
            _remember(self._named, origin, None)

    def _credential(self, allowed: Allowed) -> dict[str, str]:
        token = self._auth.get(allowed.origin)
        if token is None and allowed.origin in self._named:
            token = self._token
        if token is None or not (allowed.encrypted or is_loopback(allowed.host)):
            return {}
        return {"authorization": f"Bearer {token}"}

    async def _get(self, allowed: Allowed, headers: Sequence[tuple[str, str]], limit: int) -> "_Answer":
        request = self._open_http().build_request(
            "GET", allowed.url, headers=[("accept", "application/json"), _ACCEPT_ENCODING, *headers]
        )
        return await self._exchange(request, limit, min(self._timeout, _DISCOVERY_SECONDS))

    async def _post(
        self, allowed: Allowed, document: object, headers: Mapping[str, str], *, compress: bool = True
    ) -> tuple[int, bytes]:
        content = write_json(document)
        extra = dict([_ACCEPT_ENCODING])
        if compress and self._compress and len(content) >= _COMPRESS_FROM:
            # gzip, which peers of both generations read; brotli isn't everywhere.
            content, extra["content-encoding"] = gzip.compress(content, 6, mtime=0), "gzip"
        request = self._open_http().build_request(
            "POST",
            allowed.url,
            content=content,
            headers={
                "accept": "application/json",
                "content-type": "application/json",
                "asap-version": _VERSIONS,
                **extra,
                **headers,
                **self._credential(allowed),
            },
        )
        status, _, body = await self._exchange(request, MAX_REPLY, self._timeout)
        return status, body

    async def _exchange(self, request: httpx.Request, limit: int, seconds: float) -> "_Answer":
        http, shown = self._open_http(), without_credentials(str(request.url))
        try:
            with anyio.fail_after(seconds):
                response = await http.send(request, stream=True)
                try:
                    return response.status_code, tuple(response.headers.multi_items()), await _body(response, limit)
                finally:
                    with anyio.CancelScope(shield=True):
                        await response.aclose()
        except (TimeoutError, httpx.TimeoutException):
            raise TimedOut(shown, f"nothing within {seconds:g} s") from None
        except httpx.HTTPError as error:
            raise Unreachable(shown, _reason(error)) from error
        except BodyTooLarge as error:
            raise BadReply(shown, f"expected at most {error.limit} bytes") from None
        except BadCoding as error:
            raise BadReply(shown, str(error)) from None


_Answer = tuple[int, Sequence[tuple[str, str]], bytes]
"""Status, headers, body."""

_ACCEPT_ENCODING: Final = ("accept-encoding", "gzip, br")
_TASK_REQUESTS: Final = frozenset({"task.request", "TaskRequest", "task_request"})
_CODINGS: Final[dict[str, Callable[[], Any]]] = {"gzip": Gzip, "br": CODINGS[b"br"]}


async def _body(response: httpx.Response, limit: int) -> bytes:
    """Read a response's body, inflated within the limit: httpx would inflate first and count never (fault 43)."""
    coding = response.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity", *_CODINGS):
        raise BadCoding("expected a body in gzip, br, or plain")
    make = _CODINGS.get(coding)
    if response.is_stream_consumed:
        # A transport that makes whole responses, as mocks do: httpx has read and inflated it already.
        make = None
        chunks: AsyncIterable[bytes] = _in_one_piece(response.content)
    else:
        chunks = response.aiter_raw()
    body = Body(limit=limit, inflater=None if make is None else make())
    async for chunk in chunks:
        body.feed(chunk)
    return body.end()


async def _in_one_piece(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def _read_file(path: Path) -> bytes:
    async with await anyio.open_file(path, "rb") as file:
        data: bytes = await file.read(MAX_REGISTRY + 1)
    if len(data) > MAX_REGISTRY:
        raise BadReply(str(path), f"expected at most {MAX_REGISTRY} bytes")
    return data


def _carry_out(effects: tuple[Effect[Any, Any], ...]) -> None:
    """Hand every effect to the task it's for. No checkpoint here: what was decided is done before all else."""
    for effect in effects:
        waiter: _Waiter = effect.waiter
        waiter.effect = effect
        waiter.woken.set()


def _with_next_try(error: Exception, next_try: float) -> Exception:
    # One error object answers many waiters; each raises a copy, so that tracebacks don't pile up on it.
    if isinstance(error, TimedOut | Unreachable):
        return type(error)(error.url, error.reason, round(next_try, 1))
    if isinstance(error, BadReply):
        return BadReply(error.url, error.reason, error.status)
    if isinstance(error, InvalidDocument):
        return InvalidDocument(error.what, error.problems)
    return Unreachable("the directory", str(error), round(next_try, 1))


def _taken(outcome: ReplyOutcome, allowed: Allowed, status: int) -> Envelope:
    match outcome:
        case Envelope():
            return outcome
        case RemoteError():
            raise outcome
        case Unusable(reason):
            raise BadReply(without_credentials(allowed.url), reason, status)
        case _:
            assert_never(outcome)


def _call(sent: Sent, key: str) -> dict[str, Any]:
    params = {"envelope": encode_envelope(sent.envelope), "idempotency_key": key}
    return {"jsonrpc": "2.0", "method": METHOD, "id": sent.call_id, "params": params}


def _join(base_url: str, path: str) -> str:
    return base_url.rstrip("/") + path


def _known_origin(url: str) -> str:
    origin = origin_of(url)
    if origin is None:
        raise ValueError("expected an origin such as https://agent.example")
    return origin


def _remember(table: dict[Any, Any], key: Any, value: Any) -> None:
    table.pop(key, None)
    table[key] = value
    if len(table) > _MAX_REMEMBERED:
        del table[next(iter(table))]


def _reason(error: httpx.HTTPError) -> str:
    """What happened, in words: httpx's own are often empty, and never name the host."""
    words = " ".join(str(error).split())
    kinds = {
        httpx.ConnectError: "can't connect",
        httpx.RemoteProtocolError: "the connection ended without an answer",
        httpx.ReadError: "the connection broke",
        httpx.WriteError: "the connection broke",
    }
    kind = next((text for known, text in kinds.items() if isinstance(error, known)), "the request failed")
    return f"{kind}: {words}" if words else kind
