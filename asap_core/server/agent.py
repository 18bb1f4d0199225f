"""The agent: what it is, what it lets in, and the memory behind those decisions.

It is the outermost object of the server side: it alone holds a clock, and reads it once per input. It may be built
before anything runs; `bind` gives it time, ids and a secret, and from then on one event loop owns it.
"""

from collections.abc import Callable, Collection, Iterable
from types import CoroutineType
from typing import Final, NoReturn, Self

from attrs import evolve

from asap_core.arguments import expect_function, expect_kind, expect_mapping, expect_observer, expect_texts
from asap_core.clock import Clock, Instant, WallTime
from asap_core.errors import Kind
from asap_core.http import Codings, Gzip, Request, Response
from asap_core.interrupts import is_interrupt
from asap_core.model.envelope import normalise_payload_type
from asap_core.model.manifest import Manifest, publishable_version
from asap_core.server import exchange
from asap_core.server.admission import LocalAdmission, Reservation
from asap_core.server.call import Answered, Record
from asap_core.server.events import Decision, Observer, What
from asap_core.server.identity import Authenticated, Principal, ProofOffer
from asap_core.server.metrics import CONTENT_TYPE, Counters
from asap_core.server.outgoing import OutgoingAnswers
from asap_core.server.pages import Pages
from asap_core.server.policy import Policy
from asap_core.server.ratelimit import Left, Limited, Limiter
from asap_core.server.wellknown import ManifestDocument, health_response

__all__ = ["Agent"]

# 128 bits and more can't be guessed; blake2b takes up to 64 bytes.
_LEAST_KEY: Final = 16


class Agent:
    """An agent to be served: its manifest, the payload types it takes, its policy.

    `payload_types` are the types it has handlers for, in any spelling; `task.request` has the manifest's skills.
    `aliases` are further URNs that it answers to. Callers must authenticate where `manifest.auth` is there.

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
        self.manifest = manifest
        self.policy = Policy() if policy is None else policy
        self.payload_types = frozenset(map(normalise_payload_type, payload_types))
        self.skills = frozenset(manifest.skill_ids)
        here = {*self.payload_types, *(f"taskrequest/{skill}" for skill in self.skills)}
        if not all(key in here for key, _ in self.policy.scopes):
            raise ValueError("scopes: expected payload types and skills that this agent has")
        self.pages: Pages = Pages.of(manifest.endpoints.asap, origins=self.policy.origins, hosts=self.policy.hosts)
        """Which web pages may call it."""
        self.document: ManifestDocument = ManifestDocument.of(manifest)
        self.authenticates: bool = manifest.auth is not None
        """Whether callers must authenticate."""
        self.proofs: ProofOffer | None = None
        """What proofs (RFC 9449) whoever authenticates takes; None: none. Set it before the agent is served."""
        self.draining: bool = False
        self.active = 0
        self.body_bytes = 0
        self.outgoing: OutgoingAnswers = OutgoingAnswers(self.policy.max_answers)
        """The large answers that callers are still to take."""
        self._callers: dict[str, int] = {}
        self._addresses = frozenset({manifest.id, *aliases})
        self.bound: bool = False
        """Whether it has its clock."""
        self.now: Callable[[], Instant] = _no_clock
        """Read the monotonic clock. The clock's own method, as are the other two: asked several times a request."""
        self.wall: Callable[[], WallTime] = _no_clock
        """Read the wall clock."""
        self.new_id: Callable[[], str] = _no_clock
        """Mint an id from the injected source."""
        self.admission: LocalAdmission | None = None
        """This process's memory of what was admitted; None where the driver asks a store."""
        self._peers: Limiter | None = None
        self._principals: Limiter | None = None
        self.codings: Codings = {}
        self.counters: Counters | None = None
        self._observers: tuple[Observer, ...] = ()
        self.observer_failures: int = 0
        """How often `observe` has raised."""
        self._observer_error: BaseException | None = None

    def bind(
        self,
        *,
        clock: Clock,
        ids: Callable[[], str],
        key: bytes,
        codings: Codings | None = None,
        shared_admission: bool = False,
        shared_limits: Collection["exchange.Scope"] = (),
        observe: Observer | None = None,
        counters: Counters | None = None,
    ) -> "Agent":
        """Give the agent its clock, its source of ids and a secret `key` (16 to 64 random bytes), once; returns it.

        `codings` maps further content codings (`br`) to decoders. With `shared_admission` the driver meets `Admit` and
        `Record`, with `shared_limits` (`"peer"`, `"principal"`, or both) it meets `TakeLimit` of that scope, and asks a
        store that other processes share.

        `observe` is told every decision of admission. With `counters` they're counted, and shown at /asap/metrics to
        whoever asks; processes that serve the agent together may share them.
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
        policy, (now, wall) = self.policy, _read(clock)
        self.counters = counters
        if counters is not None:
            counters.began(wall)
        self._observers = tuple(each for each in (counters, observe) if each is not None)
        self.now, self.wall, self.new_id = clock.monotonic, clock.wall, ids
        self.bound, self._started = True, now
        self.codings = {b"gzip": Gzip, b"x-gzip": Gzip, **(codings or {})}
        if not shared_admission:
            self.admission = LocalAdmission.of(policy, key=key, now=now, wall=wall)
        capacity = policy.limiter_capacity
        if "peer" not in shared_limits:
            self._peers = Limiter(policy.peer_limits, capacity=capacity)
        if "principal" not in shared_limits:
            self._principals = Limiter(policy.principal_limits, capacity=capacity)
        return self

    def unbound(self) -> Self:
        """Return an agent like this one that isn't bound and remembers nothing: for another loop or another test."""
        other = object.__new__(type(self))
        # A class of the user's may hold more than this one does.
        vars(other).update(vars(self))
        Agent.__init__(
            other, self.manifest, policy=self.policy, payload_types=self.payload_types, aliases=self._addresses
        )
        return other

    @property
    def url(self) -> str:
        """Where it's called: what a proof must be for."""
        return self.manifest.endpoints.asap

    @property
    def addresses(self) -> frozenset[str]:
        """The URNs that it answers to: its id, and its aliases."""
        return self._addresses

    def open(self, request: Request) -> "exchange.Exchange":
        """Begin an exchange: the first state for this request. Never raises, whatever the request says."""
        return exchange.open_exchange(self, request, now=self.now())

    def answers_to(self, recipient: str) -> bool:
        """Whether `recipient` is this agent or one of its aliases."""
        return recipient in self._addresses

    def drain(self) -> None:
        """Take no new work from probes' point of view: /ready and the health report say so. Running work goes on."""
        self.draining = True

    def health(self) -> Response:
        """Report its health now."""
        uptime = max(0.0, self.now() - self._started)
        return health_response(self.manifest, uptime=uptime, active=self.active, healthy=not self.draining)

    def metrics(self) -> Response:
        """Show the counters, in the format that Prometheus reads."""
        counters = Counters() if self.counters is None else self.counters
        uptime = max(0.0, self.now() - self._started)
        text = counters.text(active=self.active, uptime=uptime, observer_failures=self.observer_failures)
        return Response(
            status=200, headers=((b"content-type", CONTENT_TYPE), (b"cache-control", b"no-store")), body=text
        )

    def tell(
        self,
        what: What,
        *,
        peer: str,
        principal: Principal,
        payload_type: str | None = None,
        kind: Kind | None = None,
        age: float | None = None,
    ) -> None:
        """Tell whoever watches what was decided."""
        if not self._observers:
            return
        decision = Decision(
            what=what,
            peer=peer,
            principal=principal.urn if isinstance(principal, Authenticated) else None,
            payload_type=payload_type if payload_type in self.payload_types else None,
            kind=kind,
            age=age,
        )
        for observe in self._observers:
            try:
                _nothing(observe(decision))
            except BaseException as error:
                if is_interrupt(error):
                    raise
                self._observer_failed(error)

    def _observer_failed(self, error: BaseException) -> None:
        if not self.observer_failures:
            self._observer_error = error
        self.observer_failures += 1
        self._count()

    def _count(self) -> None:
        if self.counters is not None:
            self.counters.set_now(active=self.active, observer_failures=self.observer_failures)

    def take_observer_error(self) -> BaseException | None:
        """The first thing that an observer raised, once, for whoever has a log; None if none has, or it was taken."""
        error, self._observer_error = self._observer_error, None
        return error

    # --- what the states ask of it: answered here, or left to the driver's shared store ------------------------------

    def record_here(self, record: Record) -> Record | Answered:
        """Keep an answer in memory, or leave it to the driver."""
        if self.admission is None:
            return record
        self.admission.record(record.reservation, record.outcome, size=record.size, now=self.now())
        return record.recorded()

    def take_here(self, state: "exchange.TakeLimit", *, now: Instant) -> "exchange.Exchange":
        """Answer a question of shares from memory, or leave it to the driver."""
        limiter = self._peers if state.scope == "peer" else self._principals
        if limiter is None:
            return state
        if state.partial:
            return state.taken(limiter.take_up_to(state.key, cost=state.cost, now=now))
        outcome = limiter.take(state.key, cost=state.cost, now=now)
        if isinstance(outcome, Limited):
            return state.limited(outcome.retry_after, outcome.limit)
        return state.taken()

    def take_wakes(self) -> tuple[bytes, ...]:
        """The tickets of calls to be woken from `Hold`: the work they wait for has ended. Ask after every move."""
        return () if self.admission is None else self.admission.take_wakes()

    def left(self, scope: "exchange.Scope", key: str, *, now: Instant) -> tuple[Left, ...]:
        """What's left of a share; nothing is known of those that a shared limiter keeps."""
        limiter = self._peers if scope == "peer" else self._principals
        return () if limiter is None else limiter.left(key, now=now)

    def has_room_for(self, caller: str) -> bool:
        """Whether another handler may run for this caller."""
        return self._callers.get(caller, 0) < self.policy.concurrent

    def enter(self, caller: str) -> None:
        """Take one of the caller's places."""
        self._callers[caller] = self._callers.get(caller, 0) + 1

    def leave(self, caller: str) -> None:
        """Give it back."""
        still = self._callers.pop(caller) - 1
        if still:
            self._callers[caller] = still

    def started(self, caller: str) -> None:
        """A handler is about to run for this caller."""
        self.active += 1
        self._count()
        self.enter(caller)

    def finished(self, caller: str, reservation: Reservation | None, *, ran: bool) -> None:
        """A handler is over, or never ran: an open reservation is lost, or given back."""
        self.active -= 1
        self._count()
        self.leave(caller)
        if reservation is None or self.admission is None:
            return
        settle = self.admission.lose if ran else self.admission.give_back
        settle(reservation, now=self.now())


def _nothing(told: object) -> None:
    if type(told) is CoroutineType:  # of a function that calls an async one: nobody would await it
        told.close()
        raise TypeError("observe: expected a function that isn't async")


def _read(clock: Clock) -> tuple[Instant, WallTime]:
    hands = [getattr(clock, name, None) for name in ("monotonic", "wall")]
    read = () if isinstance(clock, type) else [hand() for hand in hands if callable(hand)]
    match read:
        case [float() | int() as now, float() | int() as wall]:
            return Instant(now), WallTime(wall)
        case _:
            raise ValueError("clock: expected an object with monotonic() and wall() in seconds, such as ManualClock()")


def _no_clock() -> NoReturn:
    raise RuntimeError("this agent has no clock yet; serve it, or call agent.bind(clock=…, ids=…, key=…)")
