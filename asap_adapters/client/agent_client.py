"""The client: finds agents and sends them messages, over httpx, on trio and asyncio.

`asap_core.client` decides what is cached, who fetches and what an answer means, `asap_core.net.outbound` where requests
may go. A fetch runs in the task of one of its callers: the client has no tasks that outlive a call.
"""

import ssl
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx

from asap_adapters.auth.authorizer import Authorizer, Destination
from asap_adapters.auth.client_credentials import TokenSource
from asap_adapters.client.argument_checks import check
from asap_adapters.client.discovery import DiscoveredAgent, Discovery, join
from asap_adapters.client.sender import Sender
from asap_adapters.net.resolving import Resolver
from asap_adapters.net.transport import HttpTransport
from asap_adapters.system import LoopClock, new_id, new_token
from asap_core.auth.authorization import ClientCredentials
from asap_core.client.breaker import BreakerPolicy
from asap_core.client.delivery import RetryPolicy
from asap_core.client.document_cache import DocumentCachePolicy
from asap_core.client.messages import OutgoingMessage, read_batch, read_key, read_message
from asap_core.client.registry_cache import CachedCopy
from asap_core.client.resolution import Resolved, Unresolved, Wanted
from asap_core.errors import NotResolved, RemoteError
from asap_core.mdns.dnssd import Announcement
from asap_core.net.outbound import Allowed, OutboundPolicy, known_origin
from asap_core.net.urls import in_zone_of
from asap_core.wire.envelope import Envelope
from asap_core.wire.manifest import MANIFEST_PATH, Health, Manifest
from asap_core.wire.payloads import Payload
from asap_core.wire.registry import RegistryEntry
from asap_core.wire.registry_index import RegistryIndex
from asap_core.wire.rules import URN


class AgentClient:
    """Finds agents and sends them envelopes.

    Use it as `async with AgentClient(…) as client`, or close it with `aclose()`.

    sender: the URN that envelopes are sent as.
    token: a bearer token for the origins of URLs given to `discover`, `get_manifest` or `send`. It's never sent to an
        origin learned from a registry or the local network, nor over plain http except to this machine.
    auth: tokens for further origins, or the `ClientCredentials` that get tokens for them, by origin.
    allow_http: hosts that may be reached without TLS.
    allow_networks: networks other than the internet that hosts may be in, such as `10.0.0.0/8`.
    allow_ports: ports below 1024 that may be used besides 80 and 443.
    allow_endpoints: origins that may be requested whatever document names them.
    redirects: how many redirects of a document are followed, at most 2, all within its origin.
    allow_changed_agents: accept that another agent answers at a URL. Otherwise `AgentChanged` is raised.
    trusted_keys: public keys in base64 by URN: one, or up to 8 while keys change. The manifest of such an agent must be
        signed by one of them. Otherwise it's `Unverified` and isn't cached. The same holds for an agent found by a
        registry's entry with a `public_key`. Signed manifests have at most 64 KiB, and need the extra `keys`.
    require_signed: require a signed manifest of every agent.
    registries: URLs or files that `resolve` reads, in order of precedence.
    revocations: the URL or file of a revocation list. If the list is unavailable, `resolve` fails.
    registry_cache: a directory for the last good copy of each registry, used up to a week if it's unreachable.
    timeout: seconds for a whole request.
    trust_env: use the proxies and certificates that the environment names.
    compress: send large bodies gzipped.
    verify: the TLS context, or False to verify no certificates.
    transport: an httpx transport to use instead of the client's own, such as an `InProcessTransport`.
    resolver: looks up names instead of the operating system.
    policy: how long documents are cached.
    retry: how often a request is sent again, and after what delays.
    breaker: when an agent that keeps failing is no longer called for a while. By default all are called.
    clock: for simulations.
    """

    def __init__(
        self,
        *,
        sender: str,
        token: str | None = None,
        auth: Mapping[str, str | ClientCredentials] | None = None,
        allow_http: Collection[str] = (),
        allow_networks: Collection[str] = (),
        allow_ports: Collection[int] = (),
        allow_endpoints: Collection[str] = (),
        redirects: int = 0,
        allow_changed_agents: bool = False,
        trusted_keys: Mapping[str, str | Sequence[str]] | None = None,
        require_signed: bool = False,
        registries: Sequence[str | Path] = (),
        revocations: str | Path | None = None,
        registry_cache: str | Path | None = None,
        timeout: float = 60.0,
        trust_env: bool = False,
        compress: bool = True,
        verify: ssl.SSLContext | bool = True,
        transport: httpx.AsyncBaseTransport | None = None,
        resolver: Resolver | None = None,
        policy: DocumentCachePolicy | None = None,
        retry: RetryPolicy | None = None,
        breaker: BreakerPolicy | None = None,
        clock: LoopClock | None = None,
    ) -> None:
        if not URN.fits(sender):
            raise ValueError(f"expected as sender {URN.expected}")
        check(**{name: value for name, value in locals().items() if name != "self"})
        self.sender = sender
        self._clock = LoopClock() if clock is None else clock
        tokens = {origin: given for origin, given in (auth or {}).items() if isinstance(given, str)}
        credentials = {
            known_origin(origin): given for origin, given in (auth or {}).items() if not isinstance(given, str)
        }
        self._http = HttpTransport(
            token=token,
            auth=tokens,
            policy=OutboundPolicy(
                allow_http=allow_http,
                allow_networks=allow_networks,
                allow_ports=allow_ports,
                allow_endpoints=allow_endpoints,
                redirects=redirects,
            ),
            timeout=timeout,
            trust_env=trust_env,
            compress=compress,
            verify=verify,
            transport=transport,
            resolver=resolver,
            named=(*registries, *credentials, *(each.asked for each in credentials.values())),
        )
        self._discovery = Discovery(
            self._http,
            self._clock,
            registries=registries,
            revocations=revocations,
            registry_cache=registry_cache,
            allow_changed_agents=allow_changed_agents,
            trusted_keys=trusted_keys or {},
            require_signed=require_signed,
            policy=policy,
        )
        authorizer = Authorizer(TokenSource(self._http, self._clock), credentials)
        self._sending = Sender(self._http, self._clock, RetryPolicy() if retry is None else retry, breaker, authorizer)

    async def __aenter__(self) -> Self:
        """Open it."""
        self._http.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections. Any task may call it; a second call does nothing."""
        await self._http.aclose()

    def __del__(self) -> None:
        http = getattr(self, "_http", None)
        if http is not None and http.is_open:
            warnings.warn(f"{self!r} was never closed; use async with", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        return f"AgentClient(sender={self.sender!r})"

    def _name(self, parameter: str, url: str) -> None:
        """Note that the caller named this URL: credentials may be sent to its origin."""
        if type(url) is not str:  # tested first: `check` takes longer than the look-up of a cached manifest
            check(**{parameter: url})
        self._http.name_origin(url)

    # --- finding -----------------------------------------------------------------------------------------------------

    async def discover(
        self,
        base_url: str,
        *,
        expect: str | None = None,
        require_skill: str | None = None,
        require_version: str | None = None,
    ) -> Manifest:
        """Return the manifest of the agent at `base_url`, from the cache or fetched.

        expect: the agent's URN, if it's known.
        require_skill: the id of a skill that the agent must have.
        require_version: the earliest version of ASAP that the agent must speak.

        Raises: WrongAgent if another agent than expected answers, AgentChanged if another one answered there before,
        Unsuitable if it lacks what is required; Unreachable, TimedOut, BadReply, InvalidDocument, NotAllowed.
        """
        self._name("base_url", base_url)
        wanted = _wanted(expect, require_skill, require_version)
        return (await self._discovery.find(join(base_url, MANIFEST_PATH), wanted)).document

    async def look_up(
        self,
        base_url: str,
        *,
        expect: str | None = None,
        require_skill: str | None = None,
        require_version: str | None = None,
    ) -> DiscoveredAgent:
        """As `discover`; also returns where the manifest came from and how old it is."""
        self._name("base_url", base_url)
        wanted = _wanted(expect, require_skill, require_version)
        return await self._discovery.look_up(join(base_url, MANIFEST_PATH), wanted)

    async def get_manifest(self, url: str, *, expect: str | None = None) -> Manifest:
        """Return the manifest at exactly this URL. Raises as `discover` does."""
        self._name("url", url)
        return (await self._discovery.look_up(url, _wanted(expect, None, None))).manifest

    async def keep_fresh(self, base_urls: Collection[str]) -> None:
        """Fetch the manifests of the agents at these URLs before they expire, until cancelled.

        Run it in a task group of your own: `group.start_soon(client.keep_fresh, ["https://agent.example"])`. A failed
        fetch is logged (`asap.discovery`) and retried. No manifest is requested more often than every 10 s.
        Raises NotAllowed, at once, if a URL may not be requested; ValueError for more URLs than the cache has room for.
        """
        check(base_urls=base_urls)
        for base_url in base_urls:
            self._name("base_url", base_url)
        await self._discovery.keep_fresh([join(base_url, MANIFEST_PATH) for base_url in base_urls])

    async def get_document(self, url: str) -> bytes:
        """Return the body at a URL, at most 1 MiB, and don't cache it. Raises as `discover` does."""
        self._name("url", url)
        return await self._discovery.document(url)

    def cached(self, base_url: str) -> Manifest | None:
        """Return the cached manifest of the agent at `base_url`, without waiting. Returns None if none is fresh."""
        check(base_url=base_url)
        return self._discovery.cached(join(base_url, MANIFEST_PATH))

    def forget(self, url: str) -> None:
        """Remove the cache entries of an agent (by its base URL), or of a manifest or registry (by its own URL).

        These are the document, a remembered failure, and which agent answered there.
        """
        check(url=url)
        self._discovery.forget(url)
        if not {"?", "#"} & set(url):
            self._discovery.forget(join(url, MANIFEST_PATH))

    def reset(self) -> None:
        """Remove all cache entries of all agents and registries. Requests under way continue."""
        self._discovery.reset()

    async def health_check(self, base_url: str) -> Health:
        """Return the health report of the agent at `base_url`. An unhealthy agent raises no error."""
        self._name("base_url", base_url)
        return await self._discovery.health(base_url)

    async def registry(self, location: str | Path) -> RegistryIndex:
        """Read a registry from a URL or a file, and index it. Unreadable entries are listed in `skipped`.

        Other tasks wait for it some milliseconds at most. Raises as `discover` does; OSError if a file can't be read.
        """
        check(location=location)
        read = await self._discovery.registry(location)
        return read.index if isinstance(read, CachedCopy) else read

    def stands_in(self, location: str | Path) -> float | None:
        """Return the age in seconds of the copy last used in place of this registry; None if it wasn't needed."""
        check(location=location)
        return self._discovery.stands_in(location)

    async def find(
        self, location: str | Path, *, skill: str | None = None, agent_id: str | None = None
    ) -> tuple[RegistryEntry, ...]:
        """Return the entries of a registry that have this skill, or this id, in file order."""
        check(skill=skill, agent_id=agent_id)
        return (await self.registry(location)).find(skill=skill, agent_id=agent_id)

    async def resolve(
        self, urn: str, *, wait: float = 3.0, require_skill: str | None = None, require_version: str | None = None
    ) -> Manifest:
        """Find an agent by its URN: the registries in order, then, for `wait` seconds, the local network.

        The agent found must have this URN, and what is required.

        Raises: NotResolved, which says what was tried and why each candidate was refused.
        """
        end = await self.explain(urn, wait=wait, require_skill=require_skill, require_version=require_version)
        if isinstance(end, Unresolved):
            raise NotResolved(urn, end.trace)
        return end.manifest

    async def explain(
        self, urn: str, *, wait: float = 3.0, require_skill: str | None = None, require_version: str | None = None
    ) -> Resolved | Unresolved:
        """As `resolve`; also returns the `trace`: what was tried, and why each candidate was accepted or refused."""
        check(urn=urn, wait=wait)
        return await self._discovery.resolve(_wanted(urn, require_skill, require_version), wait=wait)

    def browse(self, *, interfaces: Sequence[str] | None = None) -> AbstractAsyncContextManager[Any]:
        """Watch the agents on the local network: `async with client.browse() as events: async for event in events: …`.

        Events are `Added`, `Updated`, `Removed` and `Ignored` of `asap_core.mdns.dnssd`.

        interfaces: names or addresses of this machine's interfaces; None means all.
        """
        check(interfaces=interfaces)
        return self._discovery.browse(interfaces=interfaces)

    async def follow(self, announcement: Announcement, *, expect: str | None = None) -> Manifest:
        """Return the manifest of an announced agent. Plain http is allowed, since it's on the same link."""
        check(announcement=announcement)
        found = await self._discovery.follow(announcement, _wanted(expect or announcement.agent_id, None, None))
        return found.document

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

        The reply is checked: it must answer this call and this envelope, and come from the agent that was called.

        It's sent again, as `retry` says, if the agent asks for that (busy, limited, still running) or no connection is
        made; if the reply is lost, only with an `idempotency_key`. Each attempt has its own timestamp and nonce.

        target: a manifest, or the base URL of an agent to discover first.
        payload: a task request without `conversation_id` gets a new one, or one derived from the `idempotency_key`.
        idempotency_key: an agent that honours these, as this library's do, does the work once.
        sender: by default the client's.

        Raises: RemoteError if the agent refuses, TimedOut if the work may have been done, NoToken if the provider gives
        no access token, Unsuitable if the agent accepts none of it; Unreachable, BadReply, NotAllowed.
        """
        check(target=target)
        message = read_message(payload_type, payload, key=idempotency_key, nonce=nonce, trace_id=trace_id)
        manifest = await self._agent(target)
        to = self._destination(manifest)
        envelope = self._envelope(manifest, to.allowed, message, self.sender if sender is None else sender)
        key = new_id() if message.key is None else message.key
        return await self._sending.deliver(to, envelope, key, keyed=message.key is not None, nonce=nonce)

    async def post(self, manifest: Manifest, envelope: Envelope, *, idempotency_key: str | None = None) -> Envelope:
        """Send an envelope of your own, unchanged and once. Raises as `send` does."""
        check(manifest=manifest, envelope=envelope)
        key = new_id() if idempotency_key is None else read_key(idempotency_key)
        return await self._sending.once(self._destination(manifest), envelope, key)

    async def send_batch(
        self, target: Manifest | str, messages: Sequence[tuple[str, Payload | Mapping[str, Any]]]
    ) -> list[Envelope | RemoteError]:
        """Send up to 50 messages, each `(payload_type, payload)`, as one batch. Returns each reply or error, in order.

        Raises: as `send` does, if the batch as a whole fails.
        """
        check(target=target)
        read = read_batch(messages)
        manifest = await self._agent(target)
        to = self._destination(manifest)
        envelopes = [self._envelope(manifest, to.allowed, message, self.sender) for message in read]
        return await self._sending.batch(to, envelopes)

    async def _agent(self, target: Manifest | str) -> Manifest:
        return target if isinstance(target, Manifest) else await self.discover(target)

    def _envelope(self, manifest: Manifest, allowed: Allowed, message: OutgoingMessage, sender: str) -> Envelope:
        return message.envelope(
            sender=sender,
            recipient=manifest.id,
            ids=new_id,
            wall=self._sending.wall(allowed),
            nonce=new_token(),
        )

    def _destination(self, manifest: Manifest) -> Destination:
        """Return the agent's endpoint, if it's at the manifest's origin or the caller allows it."""
        origin, announced = self._discovery.origin(manifest), self._discovery.announced_at(manifest)
        allowed = self._http.judge_endpoint(in_zone_of(manifest.endpoints.asap, origin or ""), origin, announced)
        return Destination(allowed, manifest.id, manifest.auth)


# The default: any agent matches. Shared, since creating one is slow.
_ANYONE: Final = Wanted()


def _wanted(urn: str | None, skill: str | None, version: str | None) -> Wanted:
    if urn is skill is version is None:
        return _ANYONE
    check(expect=urn, require_skill=skill, require_version=version)
    return Wanted(urn=urn, skill=skill, least_version=version)
