"""The client: finds agents and talks to them, over httpx, on trio and asyncio.

What is kept, who fetches, what an answer means and where it may go is decided in `asap_core.client`; here it's carried
out. A fetch runs in the task of the caller who leads it: no task of the client's own outlives a call.
"""

import ssl
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import anyio
import httpx
from attrs import frozen

from asap_adapters.clock import LoopClock
from asap_adapters.courier import Courier, call_of, taken
from asap_adapters.documents import Documents
from asap_adapters.entropy import new_id, new_token
from asap_adapters.web import Web, known_origin, remember
from asap_core.client.delivery import RetryPolicy
from asap_core.client.directory import DirectoryPolicy, Source
from asap_core.client.freshness import Freshness
from asap_core.client.outbound import Allowed, may_name, origin_of, without_credentials
from asap_core.client.replies import Sent, read_batch_reply
from asap_core.codec import read_health, read_manifest, read_registry, to_json
from asap_core.dnssd import Added, Announcement, Updated
from asap_core.errors import AsapError, BadReply, NotAllowed, RemoteError, Unreachable, WrongAgent
from asap_core.jsonrpc import MAX_ID
from asap_core.model.envelope import Envelope
from asap_core.model.manifest import Health, Manifest
from asap_core.model.payloads import Payload
from asap_core.model.registry import Registry, RegistryEntry
from asap_core.model.rules import URN
from asap_core.registry import find, manifest_url
from asap_core.server.wellknown import HEALTH_PATH, MANIFEST_PATH

__all__ = ["AgentClient", "Discovery"]

# A manifest is a few kilobytes, a health report less; a registry of 100,000 agents is some 50 MB.
MAX_MANIFEST: Final = 1_048_576
MAX_HEALTH: Final = 65_536
MAX_REGISTRY: Final = 67_108_864
_MAX_BATCH: Final = 50
_HEALTH_STATUSES: Final = frozenset({200, 503})


@frozen
class Discovery:
    """An agent found by its URL: its manifest, and how that was had."""

    manifest: Manifest
    url: str
    source: Source
    age: float
    freshness: Freshness | None = None
    """How long it may be used, from `age` seconds ago; None where its server says that it isn't to be kept."""


class AgentClient:
    """Finds agents and sends them envelopes, as `sender`.

    `token` is sent to origins that the caller names (by the URL given to `discover`, `get_manifest` or `send`), `auth`
    maps further origins to tokens; neither goes to an origin learned from a registry or the local network unless listed
    there, and none over plain http except on this machine. `allow_http` names hosts that may be reached without TLS.
    `registries` are URLs or files for `resolve`, in order of precedence. With `trust_env` false, proxies and
    certificates of the environment don't apply. `timeout` bounds a whole request, in seconds; `retry` says how often
    one is made again.

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
        retry: RetryPolicy | None = None,
    ) -> None:
        if not URN.fits(sender):
            raise ValueError(f"expected as sender {URN.expected}")
        self.sender = sender
        self._allow_endpoints = frozenset(map(known_origin, allow_endpoints))
        self._registry_locations = tuple(registries)
        self._clock = LoopClock()
        self._web = Web(
            token=token,
            auth=auth or {},
            allow_http=allow_http,
            timeout=timeout,
            trust_env=trust_env,
            compress=compress,
            verify=verify,
            transport=transport,
        )
        self._manifests = Documents(
            self._web,
            self._clock,
            read=read_manifest,
            limit=MAX_MANIFEST,
            ttl=lambda manifest: manifest.ttl_seconds,
            policy=policy,
        )
        self._registries = Documents(
            self._web, self._clock, read=read_registry, limit=MAX_REGISTRY, ttl=lambda _: None, policy=policy
        )
        self._courier = Courier(self._web, self._clock, RetryPolicy() if retry is None else retry)
        # Where each manifest came from: what it names elsewhere isn't posted to. The latest thousand.
        self._origins: dict[int, tuple[Manifest, str]] = {}

    async def __aenter__(self) -> Self:
        """Open it."""
        self._web.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections. From any task; a second time does nothing."""
        await self._web.aclose()

    def __del__(self) -> None:
        web = getattr(self, "_web", None)
        if web is not None and web.is_open:
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
        self._web.name_origin(base_url)
        return await self._look_up(_join(base_url, MANIFEST_PATH), expect)

    async def get_manifest(self, url: str, *, expect: str | None = None) -> Manifest:
        """Return the manifest at exactly this URL. As `discover` otherwise."""
        self._web.name_origin(url)
        return (await self._look_up(url, expect)).manifest

    def cached(self, base_url: str) -> Manifest | None:
        """The manifest of the agent at `base_url` if it's kept and good, without waiting for anything."""
        return self._manifests.cached(_join(base_url, MANIFEST_PATH))

    async def _look_up(self, url: str, expect: str | None) -> Discovery:
        found = await self._manifests.find(url)
        manifest = found.document
        remember(self._origins, id(manifest), (manifest, origin_of(url) or ""))
        if expect is not None and manifest.id != expect:
            raise WrongAgent(without_credentials(url), expect, manifest.id)
        return Discovery(manifest, found.url, found.source, found.age, self._manifests.freshness(found.url))

    async def health_check(self, base_url: str) -> Health:
        """Return the health report of the agent at `base_url`; an unhealthy one is an answer too, not an error."""
        self._web.name_origin(base_url)
        allowed = self._web.judge(_join(base_url, HEALTH_PATH))
        status, _, body = await self._web.get(allowed, (), MAX_HEALTH)
        if status not in _HEALTH_STATUSES:
            raise BadReply(without_credentials(allowed.url), "expected a health report", status)
        return read_health(body)

    async def registry(self, location: str | Path) -> Registry:
        """Read a registry from a URL or a file. Entries that can't be read are reported in `skipped`.

        Raises as `discover` does; OSError where the file can't be read.
        """
        if isinstance(location, str) and "://" in location:
            return (await self._registries.find(location)).document
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
                    self._check_named_by(location, url)
                    return (await self._look_up(url, urn)).manifest
                tried.append(f"{location}: not listed" if not listed else f"{location}: listed without a URL")
            except (AsapError, OSError) as error:
                tried.append(f"{location}: {error}")
        found = await self._resolve_on_link(urn, wait, tried)
        if found is None:
            raise Unreachable(urn, "; ".join(tried) or "no registry is configured, and nothing answers here")
        return found

    def _check_named_by(self, location: str | Path, url: str) -> None:
        named = self._web.judge(url)
        if not may_name(str(location), named) and named.origin not in self._allow_endpoints:
            raise NotAllowed(
                without_credentials(url),
                "it's inside, and the registry that names it isn't",
                f"allow it with allow_endpoints=[{named.origin!r}]",
            )

    async def _resolve_on_link(self, urn: str, wait: float, tried: list[str]) -> Manifest | None:
        if wait <= 0:
            return None
        with anyio.move_on_after(wait):
            try:
                return await self._first_on_link(urn, tried)
            except AsapError as error:
                tried.append(f"local network: {error}")
                return None
        tried.append(f"local network: not announced within {wait:g} s")
        return None

    async def _first_on_link(self, urn: str, tried: list[str]) -> Manifest | None:
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
        return None

    def browse(self, *, interfaces: Sequence[str] | None = None) -> AbstractAsyncContextManager[Any]:
        """Watch the agents on the local network: `async with client.browse() as events: async for event in events: …`.

        Events are `Added`, `Updated`, `Removed` and `Ignored` of `asap_core.dnssd`.
        """
        from asap_adapters.mdns import browse  # noqa: PLC0415 - zeroconf takes 80 ms to import, and few need it

        return browse(interfaces=interfaces)

    async def follow(self, announcement: Announcement, *, expect: str | None = None) -> Manifest:
        """Fetch the manifest of an announced agent. It may be plain http: the announcement came from the same link."""
        self._web.trust_on_link(announcement.host)
        return (await self._look_up(announcement.manifest_url, expect or announcement.agent_id)).manifest

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

        It's sent again, as `retry` says, where the agent asks for that (busy, limited, still running) or can't be
        connected to; and where its answer was lost, if there's an `idempotency_key`: give one to an agent that honours
        them, as this library's do, and the work is done once. Each attempt has its own timestamp and nonce.

        Raises `RemoteError` where the agent refuses, `TimedOut` where it may have been carried out, `Unreachable`,
        `BadReply`, `NotAllowed`.
        """
        key = _key(idempotency_key)
        manifest = target if isinstance(target, Manifest) else await self.discover(target)
        allowed = self._endpoint(manifest)
        envelope = self._envelope(
            manifest, allowed, payload_type, payload, nonce=nonce, sender=sender, trace_id=trace_id
        )
        return await self._courier.deliver(allowed, envelope, key, keyed=idempotency_key is not None, nonce=nonce)

    async def post(self, manifest: Manifest, envelope: Envelope, *, idempotency_key: str | None = None) -> Envelope:
        """Send an envelope as it is, once; for those who make their own. As `send` otherwise."""
        key = _key(idempotency_key)
        return await self._courier.once(self._endpoint(manifest), envelope, key)

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
        sent = tuple(Sent(f"req-{new_id()}", self._envelope(manifest, allowed, *message)) for message in messages)
        # Plain: the reference refuses a compressed batch (fault 88).
        status, body = await self._web.post(allowed, [call_of(one, new_id()) for one in sent], {}, compress=False)
        outcomes = read_batch_reply(sent, status=status, body=body)
        return [
            outcome if isinstance(outcome, RemoteError) else taken(outcome, allowed, status) for outcome in outcomes
        ]

    def _envelope(
        self,
        manifest: Manifest,
        allowed: Allowed,
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
            wall=self._courier.wall(allowed),
            nonce=nonce or new_token(),
            trace_id=trace_id,
        )

    def _endpoint(self, manifest: Manifest) -> Allowed:
        """Where this agent takes envelopes: where its manifest came from, unless the caller allows more."""
        allowed = self._web.judge(manifest.endpoints.asap)
        known = self._origins.get(id(manifest))
        origin = known[1] if known is not None and known[0] is manifest else allowed.origin
        if allowed.origin != origin and allowed.origin not in self._allow_endpoints:
            raise NotAllowed(
                without_credentials(allowed.url),
                f"the manifest that names it came from {origin}",
                f"allow it with allow_endpoints=[{allowed.origin!r}]",
            )
        return allowed


_TASK_REQUESTS: Final = frozenset({"task.request", "TaskRequest", "task_request"})


async def _read_file(path: Path) -> bytes:
    async with await anyio.open_file(path, "rb") as file:
        data: bytes = await file.read(MAX_REGISTRY + 1)
    if len(data) > MAX_REGISTRY:
        raise BadReply(str(path), f"expected at most {MAX_REGISTRY} bytes")
    return data


def _key(given: str | None) -> str:
    """An idempotency key that can go into a header; httpx would repeat one that can't in its error."""
    if given is None:
        return new_id()
    if not (0 < len(given) <= MAX_ID and given.isascii() and given.isprintable() and given == given.strip()):
        raise ValueError(f"expected an idempotency key of 1 to {MAX_ID} visible ASCII characters")
    return given


def _join(base_url: str, path: str) -> str:
    if "?" in base_url or "#" in base_url:
        reason = "a base URL has no query and no fragment"
        raise NotAllowed(without_credentials(base_url), reason, "expected one such as https://agent.example")
    return base_url.rstrip("/") + path
