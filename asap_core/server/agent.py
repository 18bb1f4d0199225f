"""The agent, the outermost object of the server side: its facts, `bind`, and `open`, which begins an exchange.

It may be made before any event loop runs. `bind` gives it clocks, ids and a secret; from then on one loop owns it.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Final, Self

from attrs import evolve

from asap_core.admission.admission import LocalAdmission
from asap_core.admission.policy import Policy
from asap_core.admission.ratelimit import Limiter
from asap_core.arguments import expect_function, expect_kind, expect_mapping, expect_observer, expect_texts
from asap_core.clock import Clock, Instant, Moment, WallTime
from asap_core.http.messages import Codings, Gzip, Request
from asap_core.server.events import Observer
from asap_core.server.exchange import Exchange, open_exchange
from asap_core.server.metrics import Counters
from asap_core.server.serving import Scope, Serving
from asap_core.wire.envelope import normalise_payload_type
from asap_core.wire.manifest import Manifest, publishable_version

# 128 bits and more can't be guessed; blake2b takes up to 64 bytes.
_LEAST_KEY: Final = 16


class Agent(Serving):
    """An agent to be served.

    manifest: what it publishes. If it has `auth`, callers must authenticate.
    policy: what it accepts; by default `Policy()`.
    payload_types: the types that it has handlers for, in any spelling. `task.request` has the manifest's skills.
    aliases: further URNs that it answers to.

    Raises ValueError if an argument is wrong, or the manifest can't be served.

    >>> from asap_core import Agent, ManualClock
    >>> agent = Agent(manifest)                                             # doctest: +SKIP
    >>> agent.bind(clock=ManualClock(), ids=iter_of_ids, key=secret)        # doctest: +SKIP
    >>> exchange = agent.open(Request(method="GET", target="/health"))      # doctest: +SKIP
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        policy: Policy | None = None,
        payload_types: Iterable[str] = ("task.request",),
        aliases: Iterable[str] = (),
    ) -> None:
        expect_kind("manifest", manifest, Manifest, "Manifest(id=…, …) or read_manifest(…)")
        expect_kind("policy", policy, Policy | None, "Policy(max_body=…)")
        payload_types = expect_texts("payload_types", payload_types, '["task.request"]')
        aliases = expect_texts("aliases", aliases, '["urn:asap:agent:other-name"]')
        if not publishable_version(manifest.version):
            raise ValueError("expected a manifest version such as 1.4.2, which SemVer and PEP 440 both read")
        if manifest.auth is not None and not manifest.auth.accepts("bearer"):
            raise ValueError("expected bearer among manifest.auth.schemes: the one scheme that can be checked")
        evolve(manifest.endpoints)  # raises ValueError: one that was read from a file isn't checked yet
        policy = Policy() if policy is None else policy
        normalised = frozenset(map(normalise_payload_type, payload_types))
        here = {*normalised, *(f"taskrequest/{skill}" for skill in manifest.skill_ids)}
        if not all(key in here for key, _ in policy.scopes):
            raise ValueError("scopes: expected payload types and skills that this agent has")
        addresses = frozenset({manifest.id, *aliases})
        super().__init__(manifest, policy=policy, payload_types=normalised, addresses=addresses)

    def bind(
        self,
        *,
        clock: Clock,
        ids: Callable[[], str],
        key: bytes,
        codings: Codings | None = None,
        shared_admission: bool = False,
        shared_limits: Collection[Scope] = (),
        observe: Observer | None = None,
        counters: Counters | None = None,
    ) -> "Agent":
        """Give the agent what it needs to run, once. Returns the agent.

        clock: read for every decision. One event loop owns the agent from now on.
        ids: makes the ids of envelopes.
        key: 16 to 64 random bytes, for the hashes of nonces and keys in memory: callers can't choose collisions.
        codings: further content codings, such as `br`, with their decoders.
        shared_admission: admission is remembered in a store: the driver meets `Admit`, `Record` and `ClaimProof`.
        shared_limits: the scopes ("peer", "principal") whose shares are in a limiter: the driver meets `TakeLimit`.
        observe: is told every decision of admission. It must be quick, and isn't async.
        counters: count the decisions, and are shown at /asap/metrics to anyone. Processes may share them.

        Raises ValueError if an argument is wrong, RuntimeError if the agent is bound already.
        """
        if self.bound:
            raise RuntimeError("this agent is served already; make another Agent for another loop")
        expect_kind("key", key, bytes, "16 to 64 random bytes, as secrets.token_bytes(32) gives")
        if not _LEAST_KEY <= len(key) <= 64:  # noqa: PLR2004 - blake2b's own bound
            raise ValueError("expected a key of 16 to 64 random bytes")
        expect_function("ids", ids, "() -> str", asynchronous=False)
        expect_observer(observe)
        expect_mapping("codings", codings or {}, bytes, '{b"br": Brotli}')
        if any(name != name.lower() for name in codings or {}):
            raise ValueError("codings: expected names that are bytes in lower case, such as b'br'")
        if not all(map(callable, (codings or {}).values())):
            raise ValueError("codings: expected a function for each, such as Gzip, that makes a decoder")
        expect_kind("counters", counters, Counters | None, "Counters()")
        if not set(expect_texts("shared_limits", shared_limits, '["principal"]')) <= {"peer", "principal"}:
            raise ValueError('shared_limits: expected some of "peer" and "principal", such as ["principal"]')
        policy, at = self.policy, _read(clock)
        self.counters = counters
        if counters is not None:
            counters.began(at.wall)
        self._observers = tuple(each for each in (counters, observe) if each is not None)
        self.observed = bool(self._observers)
        self.now, self.wall, self.new_id = clock.monotonic, clock.wall, ids
        self.bound, self._started = True, at.now
        self.codings = {b"gzip": Gzip, b"x-gzip": Gzip, **(codings or {})}
        if not shared_admission:
            self.admission = LocalAdmission.of(policy, key=key, wall=at.wall)
        capacity = policy.limiter_capacity
        if "peer" not in shared_limits:
            self._peers = Limiter(policy.peer_limits, capacity=capacity)
        if "principal" not in shared_limits:
            self._principals = Limiter(policy.principal_limits, capacity=capacity)
        return self

    def unbound(self) -> Self:
        """Return a copy that isn't bound and remembers nothing: for another loop or another test."""
        other = object.__new__(type(self))
        # A user's subclass may have attributes of its own.
        vars(other).update(vars(self))
        Agent.__init__(
            other, self.manifest, policy=self.policy, payload_types=self.payload_types, aliases=self._addresses
        )
        return other

    def open(self, request: Request) -> Exchange:
        """Begin an exchange and return its first state. Never raises, whatever the request contains."""
        return open_exchange(self, request, self.now())


def _read(clock: Clock) -> Moment:
    hands = [getattr(clock, name, None) for name in ("monotonic", "wall")]
    read = () if isinstance(clock, type) else [hand() for hand in hands if callable(hand)]
    match read:
        case [float() | int() as now, float() | int() as wall]:
            return Moment(Instant(now), WallTime(wall))
        case _:
            raise ValueError("clock: expected an object with monotonic() and wall() in seconds, such as ManualClock()")
