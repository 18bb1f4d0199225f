"""What exchanges and calls need of the agent while they run: its facts, clocks, memory and limiters.

`asap_core.server.agent.Agent` adds `bind` and `open`. The states of exchanges and calls use this base class only, so no
module below the agent imports the agent.
"""

from collections.abc import Callable
from types import CoroutineType
from typing import Literal, NoReturn

from asap_core.admission.admission import LocalAdmission, Reservation
from asap_core.admission.policy import Policy
from asap_core.admission.ratelimit import Left, Limited, Limiter
from asap_core.auth.principal import Authenticated, Principal, ProofOffer
from asap_core.clock import Instant, Moment, WallTime
from asap_core.http.messages import Codings, Response
from asap_core.http.pages import Pages
from asap_core.keyboard_interrupt import is_interrupt
from asap_core.refusals import Kind
from asap_core.server.events import Decision, Observer, What
from asap_core.server.metrics import CONTENT_TYPE, Counters
from asap_core.server.outgoing import OutgoingAnswers
from asap_core.server.wellknown import ManifestDocument, health_response
from asap_core.wire.manifest import Manifest

Scope = Literal["peer", "principal"]


class Serving:
    """One agent's facts, clocks, memory and limiters while requests run."""

    def __init__(
        self, manifest: Manifest, *, policy: Policy, payload_types: frozenset[str], addresses: frozenset[str]
    ) -> None:
        self.manifest = manifest
        self.policy = policy
        self.payload_types = payload_types
        self.skills = frozenset(manifest.skill_ids)
        self.pages: Pages = Pages.of(manifest.endpoints.asap, origins=policy.origins, hosts=policy.hosts)
        """Which web pages may call it."""
        self.document: ManifestDocument = ManifestDocument.of(manifest)
        self.authenticates: bool = manifest.auth is not None
        """Whether callers must authenticate."""
        self.proofs: ProofOffer | None = None
        """Which proofs (RFC 9449) the authenticator verifies, or None. Set it before the agent is served."""
        self.draining: bool = False
        self.active = 0
        self.body_bytes = 0
        self.outgoing: OutgoingAnswers = OutgoingAnswers(policy.max_answers)
        """The large answers that are being sent."""
        self._callers: dict[str, int] = {}
        self._addresses = addresses
        self.bound: bool = False
        """Whether it has its clock."""
        self.now: Callable[[], Instant] = _no_clock
        """Read the monotonic clock. It's the clock's own method, since it's called several times a request."""
        self.wall: Callable[[], WallTime] = _no_clock
        """Read the wall clock."""
        self.new_id: Callable[[], str] = _no_clock
        """Make a new id."""
        self.admission: LocalAdmission | None = None
        """This process's memory of what was admitted. None if the driver asks a store."""
        self._peers: Limiter | None = None
        self._principals: Limiter | None = None
        self.codings: Codings = {}
        self.counters: Counters | None = None
        self._started = Instant(0.0)
        self.observed: bool = False
        """Whether anyone is told the decisions."""
        self._observers: tuple[Observer, ...] = ()
        self.observer_failures: int = 0
        """How often `observe` has raised."""
        self._observer_error: BaseException | None = None

    def moment(self) -> Moment:
        """Read both clocks."""
        return Moment(self.now(), self.wall())

    @property
    def url(self) -> str:
        """The URL at which it's called. Proofs of possession must be made for it."""
        return self.manifest.endpoints.asap

    @property
    def addresses(self) -> frozenset[str]:
        """The URNs that it answers to: its id, and its aliases."""
        return self._addresses

    def answers_to(self, recipient: str) -> bool:
        """Whether `recipient` is this agent or one of its aliases."""
        return recipient in self._addresses

    def drain(self) -> None:
        """Report "not ready" to health probes (/ready, and the health report). Running requests continue."""
        self.draining = True

    def health(self) -> Response:
        """Return the health report."""
        uptime = max(0.0, self.now() - self._started)
        return health_response(self.manifest, uptime=uptime, active=self.active, healthy=not self.draining)

    def metrics(self) -> Response:
        """Return the counters, in the format that Prometheus reads."""
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
        """Tell the observers what was decided."""
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
                _expect_none(observe(decision))
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
        """Return the first exception that an observer raised, for a driver to log; after that, None."""
        error, self._observer_error = self._observer_error, None
        return error

    def take_wakes(self) -> tuple[bytes, ...]:
        """Return the tickets of calls in `Hold` whose work has ended. Ask after every move, and wake them."""
        return () if self.admission is None else self.admission.take_wakes()

    def take(self, scope: Scope, key: str, cost: int, *, partial: bool, now: Instant) -> int | Limited | None:
        """Take `cost` from a share or, if `partial`, as much as there is. Returns None if the driver must ask."""
        limiter = self._peers if scope == "peer" else self._principals
        if limiter is None:
            return None
        if partial:
            return limiter.take_up_to(key, cost=cost, now=now)
        outcome = limiter.take(key, cost=cost, now=now)
        return outcome if isinstance(outcome, Limited) else cost

    def left(self, scope: Scope, key: str, *, now: Instant) -> tuple[Left, ...]:
        """Return what is left of a share. Returns nothing for shares in a shared limiter."""
        limiter = self._peers if scope == "peer" else self._principals
        return () if limiter is None else limiter.left(key, now=now)

    def has_room_for(self, caller: str) -> bool:
        """Whether another handler may run for this caller."""
        return self._callers.get(caller, 0) < self.policy.concurrent

    def enter(self, caller: str) -> None:
        """Count another call of this caller as running."""
        self._callers[caller] = self._callers.get(caller, 0) + 1

    def leave(self, caller: str) -> None:
        """Stop counting a call of this caller as running."""
        still = self._callers.pop(caller) - 1
        if still:
            self._callers[caller] = still

    def started(self, caller: str) -> None:
        """Count a handler that is about to run for this caller."""
        self.active += 1
        if self.counters is not None:
            self._count()
        self.enter(caller)

    def finished(self, caller: str, reservation: Reservation | None, *, ran: bool) -> None:
        """Stop counting a handler. Its open reservation is lost if it ran, and given back if it never did."""
        self.active -= 1
        if self.counters is not None:
            self._count()
        self.leave(caller)
        if reservation is None or self.admission is None:
            return
        settle = self.admission.lose if ran else self.admission.give_back
        settle(reservation, now=self.now())

    def hold_body(self, more: int) -> bool:
        """Count `more` bytes of bodies. Returns False, and counts nothing, if that exceeds `Policy.max_bodies`."""
        if self.body_bytes + more > self.policy.max_bodies:
            return False
        self.body_bytes += more
        return True

    def free_body(self, size: int) -> None:
        """Stop counting `size` bytes of bodies."""
        self.body_bytes -= size


def _expect_none(returned: object) -> None:
    # From a function that calls an async one. Nobody would await it.
    if type(returned) is CoroutineType:
        returned.close()
        raise TypeError("observe: expected a function that isn't async")


def _no_clock() -> NoReturn:
    raise RuntimeError("this agent has no clock yet; serve it, or call agent.bind(clock=…, ids=…, key=…)")
