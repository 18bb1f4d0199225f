"""The client, the outermost object of the client side: its options, `bind`, and its methods, which return programs.

It may be made before anything runs. `bind` gives it clocks and randomness; from then on one event loop, or one lock,
owns it. A driver runs its programs (`asap_core.client.programs`).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NoReturn

from asap_core.auth.authorization import ClientCredentials
from asap_core.auth.token_cache import Token
from asap_core.client.announced_manifests import Links
from asap_core.client.breaker import BreakerPolicy
from asap_core.client.delivery import RetryPolicy
from asap_core.client.discovery import MAX_REGISTRY, DiscoveredAgent, Discovery, join
from asap_core.client.messages import OutgoingMessage, read_batch, read_key, read_message
from asap_core.client.options import DiscoveryOptions, Location, RequestOptions, TrustPolicy, as_text, check
from asap_core.client.programs import Program, Ticket
from asap_core.client.registry_cache import RegistryCache
from asap_core.client.requests import Requests
from asap_core.client.runtime import Remark, Runtime
from asap_core.client.search import Resolved, Unresolved
from asap_core.client.sending import Sender
from asap_core.client.tokens import Authorizer, Destination, TokenSource
from asap_core.client.trust import Wanted
from asap_core.errors import NotResolved, RemoteError
from asap_core.http.messages import Codings
from asap_core.mdns.dnssd import Announcement
from asap_core.net.outbound import Allowed, OutboundPolicy, known_origin
from asap_core.net.urls import in_zone_of
from asap_core.wire.envelope import Envelope
from asap_core.wire.manifest import MANIFEST_PATH, Health, Manifest
from asap_core.wire.payloads import Payload
from asap_core.wire.registry import RegistryEntry
from asap_core.wire.registry_index import RegistryIndex
from asap_core.wire.rules import URN
from asap_core.wire.signing import Ed25519Verifier


class Client:
    """Finds agents and sends them envelopes.

    sender: the URN that envelopes are sent as.
    token: a bearer token for the origins of URLs given to `discover`, `get_manifest` or `send`. It's never sent to an
        origin learned from a registry or the local network, nor over plain http except to this machine.
    auth: tokens for further origins, or the `ClientCredentials` that get tokens for them, by origin.
    outbound: what it may connect to.
    trust: which agents it trusts.
    discovery: where it looks for agents, and how long documents are cached.
    http: how it makes requests.
    retry: how often a request is sent again, and after what delays.
    breaker: when an agent that keeps failing is no longer called for a while. By default all are called.

    Raises ValueError if an argument is invalid.
    """

    def __init__(
        self,
        sender: str,
        *,
        token: str | None = None,
        auth: Mapping[str, str | ClientCredentials] | None = None,
        outbound: OutboundPolicy | None = None,
        trust: TrustPolicy | None = None,
        discovery: DiscoveryOptions | None = None,
        http: RequestOptions | None = None,
        retry: RetryPolicy | None = None,
        breaker: BreakerPolicy | None = None,
    ) -> None:
        if not URN.fits(sender):
            raise ValueError(f"expected as sender {URN.expected}")
        check(
            token=token, auth=auth, outbound=outbound, trust=trust, discovery=discovery, http=http, retry=retry,
            breaker=breaker,
        )  # fmt: skip
        self.sender = sender
        self._token = token
        self._auth = dict(auth or {})
        self._outbound = outbound or OutboundPolicy()
        self._trust = trust or TrustPolicy()
        self._options = discovery or DiscoveryOptions()
        self._http = http or RequestOptions()
        self._retry = retry or RetryPolicy()
        self._breaker = breaker

    def __repr__(self) -> str:
        return f"{type(self).__name__}(sender={self.sender!r})"

    def bind(
        self,
        runtime: Runtime,
        *,
        codings: Codings | None = None,
        links: Links = lambda _: ((), ()),
        verify: Ed25519Verifier | None = None,
    ) -> "Client":
        """Give the client what it needs to run, once. Returns the client.

        runtime: its clock and randomness. One event loop, or one lock, owns the client from now on.
        codings: further content codings of responses, such as `br`, with their decoders.
        links: returns networks and scopes of an interface of this machine, to follow announcements on it.
        verify: checks Ed25519 signatures of manifests. None: agents with trusted keys aren't accepted.

        Raises ValueError if an argument is invalid, RuntimeError if the client is bound already.
        """
        if "_runtime" in vars(self):
            raise RuntimeError("this client is bound already; make another Client for another loop")
        check(runtime=runtime, codings=codings or {}, links=links, verify=verify)
        options, trust = self._options, self._trust
        tokens = {origin: given for origin, given in self._auth.items() if isinstance(given, str)}
        credentials = {
            known_origin(origin): given for origin, given in self._auth.items() if not isinstance(given, str)
        }
        registries = tuple(map(as_text, options.registries))
        self._requests = Requests(
            runtime,
            policy=self._outbound,
            token=self._token,
            auth=tokens,
            timeout=self._http.timeout,
            compress=self._http.compress,
            codings=codings,
            named=(*registries, *credentials, *(each.asked for each in credentials.values())),
        )
        directory = self._options.registry_cache
        copies = (
            None if directory is None else RegistryCache(as_text(directory), runtime, self._requests, most=MAX_REGISTRY)
        )
        self._discovery = Discovery(
            runtime,
            self._requests,
            links=links,
            verify=verify,
            registries=registries,
            revocations=None if options.revocations is None else as_text(options.revocations),
            registry_cache=copies,
            allow_changed_agents=trust.allow_changed_agents,
            trusted_keys=trust.trusted_keys,
            require_signed=trust.require_signed,
            policy=options.cache,
        )
        self._tokens = TokenSource(runtime, self._requests)
        authorizer = Authorizer(runtime, self._tokens, credentials)
        self._sending = Sender(runtime, self._requests, self._retry, self._breaker, authorizer)
        self._runtime = runtime
        return self

    def take_wakes(self) -> tuple[Ticket, ...]:
        """Return the tickets to wake. Call it after each step of a program, and after each `close`."""
        return self._runtime.take_wakes()

    def take_removals(self) -> tuple[str, ...]:
        """Return the files to remove now. Call it as `take_wakes`, and after `forget` and `reset`."""
        return self._runtime.take_removals()

    def take_remarks(self) -> tuple[Remark, ...]:
        """Return what is to be logged, once. Call it as `take_wakes`."""
        return self._runtime.take_remarks()

    def _name(self, parameter: str, url: str) -> None:
        """Note that the caller named this URL: credentials may be sent to its origin."""
        if type(url) is not str:  # tested first: `check` takes longer than the look-up of a cached manifest
            check(**{parameter: url})
        self._requests.name_origin(url)

    # --- finding -----------------------------------------------------------------------------------------------------

    def discover(
        self,
        base_url: str,
        *,
        expect: str | None = None,
        require_skill: str | None = None,
        require_version: str | None = None,
    ) -> Program[Manifest]:
        """Return the manifest of the agent at `base_url`, from the cache or fetched.

        expect: the agent's URN, if it's known.
        require_skill: the id of a skill that the agent must have.
        require_version: the earliest version of ASAP that the agent must speak.

        Raises: WrongAgent if another agent than expected answers, AgentChanged if another one answered there before,
        Unsuitable if it lacks what is required; Unreachable, TimedOut, BadReply, InvalidDocument, NotAllowed.
        """
        self._name("base_url", base_url)
        url, wanted = join(base_url, MANIFEST_PATH), _wanted(expect, require_skill, require_version)
        manifest = self._discovery.at_hand(url, wanted)
        return (yield from self._discovery.find(url, wanted)).document if manifest is None else manifest

    def look_up(
        self,
        base_url: str,
        *,
        expect: str | None = None,
        require_skill: str | None = None,
        require_version: str | None = None,
    ) -> Program[DiscoveredAgent]:
        """As `discover`; also returns where the manifest came from and how old it is."""
        self._name("base_url", base_url)
        wanted = _wanted(expect, require_skill, require_version)
        return (yield from self._discovery.look_up(join(base_url, MANIFEST_PATH), wanted))

    def get_manifest(self, url: str, *, expect: str | None = None) -> Program[Manifest]:
        """Return the manifest at exactly this URL. Raises as `discover` does."""
        self._name("url", url)
        return (yield from self._discovery.look_up(url, _wanted(expect, None, None))).manifest

    def keep_fresh(self, base_urls: Collection[str]) -> list[Program[None]]:
        """Fetch the manifests of the agents at these URLs before they expire, until closed: a program for each URL.

        A failed fetch is logged (`asap.discovery`) and retried. What `forget` or `reset` removed is fetched anew. No
        manifest is requested more often than every 10 s, however many programs keep it fresh.
        Raises NotAllowed if a URL may not be requested; ValueError for more URLs than the cache has room for.
        """
        check(base_urls=base_urls)
        for base_url in base_urls:
            self._name("base_url", base_url)
        urls = [join(base_url, MANIFEST_PATH) for base_url in base_urls]
        self._discovery.check_kept_fresh(urls)
        return [self._discovery.keep_fresh(url) for url in urls]

    def get_document(self, url: str) -> Program[bytes]:
        """Return the body at a URL, at most 1 MiB, and don't cache it. Raises as `discover` does."""
        self._name("url", url)
        return (yield from self._discovery.document(url))

    def cached(self, base_url: str) -> Manifest | None:
        """Return the cached manifest of the agent at `base_url`, without waiting. Returns None if none is fresh."""
        if type(base_url) is not str:  # as in `_name`
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

    def health_check(self, base_url: str) -> Program[Health]:
        """Return the health report of the agent at `base_url`. An unhealthy agent raises no error."""
        self._name("base_url", base_url)
        return (yield from self._discovery.health(base_url))

    def registry(self, location: Location) -> Program[RegistryIndex]:
        """Read a registry from a URL or a file, and index it. Unreadable entries are listed in `skipped`.

        Other tasks wait for it some milliseconds at most. Raises as `discover` does; OSError if a file can't be read.
        """
        check(location=location)
        read = yield from self._discovery.registry(as_text(location))
        return read if isinstance(read, RegistryIndex) else read.index

    def stands_in(self, location: Location) -> float | None:
        """Return the age in seconds of the copy last used in place of this registry; None if it wasn't needed."""
        check(location=location)
        return self._discovery.stands_in(as_text(location))

    def find(
        self, location: Location, *, skill: str | None = None, agent_id: str | None = None
    ) -> Program[tuple[RegistryEntry, ...]]:
        """Return the entries of a registry that have this skill, or this id, in file order."""
        check(skill=skill, agent_id=agent_id)
        return (yield from self.registry(location)).find(skill=skill, agent_id=agent_id)

    def resolve(
        self, urn: str, *, wait: float = 3.0, require_skill: str | None = None, require_version: str | None = None
    ) -> Program[Manifest]:
        """Find an agent by its URN: the registries in order, then, for `wait` seconds, the local network.

        The agent found must have this URN, and what is required.

        Raises: NotResolved, which says what was tried and why each candidate was refused.
        """
        end = yield from self.explain(urn, wait=wait, require_skill=require_skill, require_version=require_version)
        if isinstance(end, Unresolved):
            raise NotResolved(urn, end.trace)
        return end.manifest

    def explain(
        self, urn: str, *, wait: float = 3.0, require_skill: str | None = None, require_version: str | None = None
    ) -> Program[Resolved | Unresolved]:
        """As `resolve`; also returns the `trace`: what was tried, and why each candidate was accepted or refused."""
        check(urn=urn, wait=wait)
        return (yield from self._discovery.resolve(_wanted(urn, require_skill, require_version), wait=wait))

    def follow(self, announcement: Announcement, *, expect: str | None = None) -> Program[Manifest]:
        """Return the manifest of an announced agent. Plain http is allowed, since it's on the same link."""
        check(announcement=announcement)
        wanted = _wanted(expect or announcement.agent_id, None, None)
        return (yield from self._discovery.follow(announcement, wanted)).document

    def token(self, credentials: ClientCredentials) -> Program[Token]:
        """Return an access token for these credentials' own scopes, from the cache or their provider.

        Raises: NoToken if the provider gives none; NotAllowed.
        """
        check(credentials=credentials)
        self._requests.name_origin(credentials.asked)
        return (yield from self._tokens.get(credentials, credentials.scopes)).token

    # --- sending -----------------------------------------------------------------------------------------------------

    def send(
        self,
        target: Manifest | str,
        payload_type: str,
        payload: Payload | Mapping[str, object],
        *,
        idempotency_key: str | None = None,
        nonce: str | None = None,
        sender: str | None = None,
        trace_id: str | None = None,
    ) -> Program[Envelope]:
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
        manifest = yield from self._agent(target)
        to = self._destination(manifest)
        envelope = self._envelope(manifest, to.allowed, message, self.sender if sender is None else sender)
        key = self._runtime.new_id() if message.key is None else message.key
        return (yield from self._sending.deliver(to, envelope, key, keyed=message.key is not None, nonce=nonce))

    def post(self, manifest: Manifest, envelope: Envelope, *, idempotency_key: str | None = None) -> Program[Envelope]:
        """Send an envelope of your own, unchanged and once. Raises as `send` does."""
        check(manifest=manifest, envelope=envelope)
        key = self._runtime.new_id() if idempotency_key is None else read_key(idempotency_key)
        return (yield from self._sending.once(self._destination(manifest), envelope, key))

    def send_batch(
        self, target: Manifest | str, messages: Sequence[tuple[str, Payload | Mapping[str, object]]]
    ) -> Program[list[Envelope | RemoteError]]:
        """Send up to 50 messages, each `(payload_type, payload)`, as one batch. Returns each reply or error, in order.

        Raises: as `send` does, if the batch as a whole fails.
        """
        check(target=target)
        read = read_batch(messages)
        manifest = yield from self._agent(target)
        to = self._destination(manifest)
        envelopes = [self._envelope(manifest, to.allowed, message, self.sender) for message in read]
        return (yield from self._sending.batch(to, envelopes))

    def _agent(self, target: Manifest | str) -> Program[Manifest]:
        return target if isinstance(target, Manifest) else (yield from self.discover(target))

    def _envelope(self, manifest: Manifest, allowed: Allowed, message: OutgoingMessage, sender: str) -> Envelope:
        return message.envelope(
            sender=sender,
            recipient=manifest.id,
            ids=self._runtime.new_id,
            wall=self._sending.wall(allowed),
            nonce=self._runtime.new_token(),
        )

    def _destination(self, manifest: Manifest) -> Destination:
        """Return the agent's endpoint, if it's at the manifest's origin or the caller allows it."""
        origin, announced = self._discovery.origin(manifest), self._discovery.announced_at(manifest)
        allowed = self._requests.judge_endpoint(in_zone_of(manifest.endpoints.asap, origin or ""), origin, announced)
        return Destination(allowed, manifest.id, manifest.auth)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            # Called only for attributes that don't exist. `bind` makes these.
            if name in ("_runtime", "_requests", "_discovery", "_tokens", "_sending"):
                raise RuntimeError("this client isn't bound; call bind() first")
            raise AttributeError(name, name=name, obj=self)


# The default: any agent matches. Shared, since creating one is slow.
_ANYONE: Final = Wanted()


def _wanted(urn: str | None, skill: str | None, version: str | None) -> Wanted:
    if urn is skill is version is None:
        return _ANYONE
    check(expect=urn, require_skill=skill, require_version=version)
    return Wanted(urn=urn, skill=skill, least_version=version)
