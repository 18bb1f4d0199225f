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

import httpx

from asap_adapters.auth.authorizer import Authorizer, Destination
from asap_adapters.auth.client_credentials import TokenSource
from asap_adapters.client.argument_checks import check
from asap_adapters.client.discovery import DiscoveredAgent, Discovery, join
from asap_adapters.client.registry_cache import CachedCopy
from asap_adapters.client.sender import Sender
from asap_adapters.net.resolving import Resolver
from asap_adapters.net.transport import HttpTransport
from asap_adapters.system import LoopClock, new_id, new_token
from asap_core.auth.authorization import ClientCredentials
from asap_core.client.breaker import BreakerPolicy
from asap_core.client.delivery import RetryPolicy
from asap_core.client.document_cache import DocumentCachePolicy
from asap_core.client.messages import OutgoingMessage, read_batch, read_key, read_message
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
    """Finds agents and sends them envelopes, as `sender`.

    `token` is sent to origins that the caller names (by the URL given to `discover`, `get_manifest` or `send`), `auth`
    maps further origins to tokens, or to the `ClientCredentials` that tokens for them are got with; neither goes to an
    origin learned from a registry or the local network unless listed there, and none over plain http except on this
    machine. `allow_http` names hosts that may be reached without TLS, `allow_networks` networks beside the internet
    that they may be in (`10.0.0.0/8`), `allow_ports` ports below 1024 beside 80 and 443, `allow_endpoints` origins that
    may be gone to whoever names them; `redirects` is how many of a document's are followed, at most 2, within its
    origin. `resolver` answers names instead of the system. `registries` are URLs or files for `resolve`, in order of
    precedence; `revocations` is the URL or file of a revocation list that it asks first: an agent on it isn't found,
    nor any while the list can't be had. `registry_cache` is a directory for the last good copy of each registry, which
    stands in for up to a week where that can't be reached. A URL that becomes another agent's is refused
    (`AgentChanged`) unless `allow_changed_agents` says otherwise. `trusted_keys` maps URNs to public keys (base64; one,
    or up to 8 while keys change): such an agent's manifest must be signed by one of them, else it's `Unverified` and
    not kept. So must one that was found by a registry's entry with a `public_key`; and with `require_signed`, every
    one. Signed ones have at most 64 KiB, and need the extra `keys`. With `trust_env` false, proxies and certificates of
    the environment don't apply. `timeout` bounds a whole request, in seconds; `retry` says how often one is made again;
    with `breaker` an agent that keeps failing is left alone for a while. `clock` is for those who simulate.

    Use it as `async with AgentClient(…) as client`, or close it with `aclose()`: from any task, twice is fine.
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
        """Close all connections. From any task; a second time does nothing."""
        await self._http.aclose()

    def __del__(self) -> None:
        http = getattr(self, "_http", None)
        if http is not None and http.is_open:
            warnings.warn(f"{self!r} was never closed; use async with", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        return f"AgentClient(sender={self.sender!r})"

    def _name(self, parameter: str, url: str) -> None:
        """The caller names this URL, by this parameter: credentials may go to its origin."""
        if type(url) is not str:  # first: a manifest at hand is found in microseconds
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
        """Return the manifest of the agent at `base_url`, kept or fetched.

        `expect` is the agent's URN where it's known: another one there is `WrongAgent`, as is one that was another
        before (`AgentChanged`). An agent that lacks the skill, or speaks only earlier versions of ASAP, is
        `Unsuitable`. Raises `Unreachable`, `TimedOut`, `BadReply`, `InvalidDocument`, `NotAllowed`.
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
        """`discover`, with where the manifest came from and how old it is."""
        self._name("base_url", base_url)
        wanted = _wanted(expect, require_skill, require_version)
        return await self._discovery.look_up(join(base_url, MANIFEST_PATH), wanted)

    async def get_manifest(self, url: str, *, expect: str | None = None) -> Manifest:
        """Return the manifest at exactly this URL. As `discover` otherwise."""
        self._name("url", url)
        return (await self._discovery.look_up(url, _wanted(expect, None, None))).manifest

    async def keep_fresh(self, base_urls: Collection[str]) -> None:
        """Keep the manifests of the agents at these URLs good until cancelled: each is fetched ahead of its time.

        Run it in a task group of your own: `group.start_soon(client.keep_fresh, ["https://agent.example"])`. An agent
        that can't be had is logged (`asap.discovery`) and tried again. No agent is asked more often than each 10 s.
        Raises `NotAllowed` at once where one may not be asked, ValueError where there are more than manifests are kept.
        """
        check(base_urls=base_urls)
        for base_url in base_urls:
            self._name("base_url", base_url)
        await self._discovery.keep_fresh([join(base_url, MANIFEST_PATH) for base_url in base_urls])

    async def get_document(self, url: str) -> bytes:
        """Return what is at a URL, as it comes, at most 1 MiB of it; nothing is kept. Raises as `discover`."""
        self._name("url", url)
        return await self._discovery.document(url)

    def cached(self, base_url: str) -> Manifest | None:
        """The manifest of the agent at `base_url` if it's kept and good, without waiting for anything."""
        check(base_url=base_url)
        return self._discovery.cached(join(base_url, MANIFEST_PATH))

    def forget(self, url: str) -> None:
        """Drop what is kept of an agent (by its base URL), or of a manifest or registry (by its own).

        That is the document, the failure that's remembered, and which agent was there.
        """
        check(url=url)
        self._discovery.forget(url)
        if not {"?", "#"} & set(url):
            self._discovery.forget(join(url, MANIFEST_PATH))

    def reset(self) -> None:
        """Drop all that is kept of all agents and registries; what is under way goes on."""
        self._discovery.reset()

    async def health_check(self, base_url: str) -> Health:
        """Return the health report of the agent at `base_url`; an unhealthy one is an answer too, not an error."""
        self._name("base_url", base_url)
        return await self._discovery.health(base_url)

    async def registry(self, location: str | Path) -> RegistryIndex:
        """Read a registry from a URL or a file, indexed. Entries that can't be read are reported in `skipped`.

        However large, no other task waits for it longer than some milliseconds. Raises as `discover` does; OSError
        where the file can't be read.
        """
        check(location=location)
        read = await self._discovery.registry(location)
        return read.index if isinstance(read, CachedCopy) else read

    def stands_in(self, location: str | Path) -> float | None:
        """How many seconds old the copy is that stood in for this registry when it was last asked; else None."""
        check(location=location)
        return self._discovery.stands_in(location)

    async def find(
        self, location: str | Path, *, skill: str | None = None, agent_id: str | None = None
    ) -> tuple[RegistryEntry, ...]:
        """The entries of a registry that have this skill, or this id, in file order."""
        check(skill=skill, agent_id=agent_id)
        return (await self.registry(location)).find(skill=skill, agent_id=agent_id)

    async def resolve(
        self, urn: str, *, wait: float = 3.0, require_skill: str | None = None, require_version: str | None = None
    ) -> Manifest:
        """Find an agent by its URN: the registries in order, then, for `wait` seconds, the local network.

        What answers must say that it's this agent, and be what is required. Raises `NotResolved`, which says what was
        asked and what came of each.
        """
        end = await self.explain(urn, wait=wait, require_skill=require_skill, require_version=require_version)
        if isinstance(end, Unresolved):
            raise NotResolved(urn, end.trace)
        return end.manifest

    async def explain(
        self, urn: str, *, wait: float = 3.0, require_skill: str | None = None, require_version: str | None = None
    ) -> Resolved | Unresolved:
        """`resolve`, told as it went: `trace` says what was asked, and why each candidate was taken or refused."""
        check(urn=urn, wait=wait)
        return await self._discovery.resolve(_wanted(urn, require_skill, require_version), wait=wait)

    def browse(self, *, interfaces: Sequence[str] | None = None) -> AbstractAsyncContextManager[Any]:
        """Watch the agents on the local network: `async with client.browse() as events: async for event in events: …`.

        `interfaces` are names or addresses of this machine's interfaces; None means all. Events are `Added`,
        `Updated`, `Removed` and `Ignored` of `asap_core.mdns.dnssd`.
        """
        check(interfaces=interfaces)
        return self._discovery.browse(interfaces=interfaces)

    async def follow(self, announcement: Announcement, *, expect: str | None = None) -> Manifest:
        """Fetch the manifest of an announced agent. It may be plain http: the announcement came from the same link."""
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

        `target` is a manifest, or the base URL of an agent to discover first. A task request without `conversation_id`
        gets a new one, or one that follows from the `idempotency_key`, so that the same call is the same request. The
        reply is checked: it answers this call and this envelope, and comes from the agent asked.

        It's sent again, as `retry` says, where the agent asks for that (busy, limited, still running) or can't be
        connected to; and where its answer was lost, if there's an `idempotency_key`: give one to an agent that honours
        them, as this library's do, and the work is done once. Each attempt has its own timestamp and nonce.

        Raises `RemoteError` where the agent refuses, `TimedOut` where it may have been carried out, `Unreachable`,
        `BadReply`, `NotAllowed`; `NoToken` where there's none to show it, `Unsuitable` where it takes none.
        """
        check(target=target)
        message = read_message(payload_type, payload, key=idempotency_key, nonce=nonce, trace_id=trace_id)
        manifest = await self._agent(target)
        to = self._destination(manifest)
        envelope = self._envelope(manifest, to.allowed, message, self.sender if sender is None else sender)
        key = new_id() if message.key is None else message.key
        return await self._sending.deliver(to, envelope, key, keyed=message.key is not None, nonce=nonce)

    async def post(self, manifest: Manifest, envelope: Envelope, *, idempotency_key: str | None = None) -> Envelope:
        """Send an envelope as it is, once; for those who make their own. As `send` otherwise."""
        check(manifest=manifest, envelope=envelope)
        key = new_id() if idempotency_key is None else read_key(idempotency_key)
        return await self._sending.once(self._destination(manifest), envelope, key)

    async def send_batch(
        self, target: Manifest | str, messages: Sequence[tuple[str, Payload | Mapping[str, Any]]]
    ) -> list[Envelope | RemoteError]:
        """Send up to 50 messages, each `(payload_type, payload)`, as one batch; what came of each, in order.

        Raises as `send` does where the batch as a whole fails.
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
        """Where this agent takes envelopes: where its manifest came from, unless the caller allows more."""
        origin, announced = self._discovery.origin(manifest), self._discovery.announced_at(manifest)
        allowed = self._http.judge_endpoint(in_zone_of(manifest.endpoints.asap, origin or ""), origin, announced)
        return Destination(allowed, manifest.id, manifest.auth)


# The default: any agent matches. Shared, since making one takes longer than the rest of a look-up.
_ANYONE: Final = Wanted()


def _wanted(urn: str | None, skill: str | None, version: str | None) -> Wanted:
    if urn is skill is version is None:
        return _ANYONE
    check(expect=urn, require_skill=skill, require_version=version)
    return Wanted(urn=urn, skill=skill, least_version=version)
