"""What one call knows from its first check to its answer: the states of `call` share it, the checks fill it in."""

from typing import Protocol

from attrs import define, field

from asap_core.admission.admission import Reservation
from asap_core.admission.ratelimit import peer_key
from asap_core.auth.principal import Authenticated, Principal
from asap_core.clock import Instant, WallTime
from asap_core.refusals import Kind
from asap_core.server.events import What
from asap_core.server.serving import Serving
from asap_core.wire.envelope import Envelope
from asap_core.wire.jsonrpc import Call
from asap_core.wire.payloads import Payload, TaskRequest


class IllegalMove(RuntimeError):
    """A driver made a move on a state that it had already left: a bug in the driver."""


class _State(Protocol):
    """A state of a call, as its run sees it."""

    _step: int


@define(eq=False)
class CallRun:
    """What one call knows; it moves the states along and is nobody else's business.

    States hold the run, and the run holds their number only: no reference cycle is left for the garbage collector.
    `asking` says that a store is asked, `running` that a handler may be at work, for `reservation` if there's one; both
    take a place among the caller's.
    """

    agent: Serving
    call: Call
    principal: Principal
    peer: str
    wall: WallTime
    envelope: Envelope
    issued: WallTime
    peer_known: bool
    request: Payload | None = None
    kind: str = ""
    step: int = 0
    asking: bool = False
    running: bool = False
    reservation: Reservation | None = None
    held: bytes | None = None
    hold_until: Instant | None = None
    caller: str = field(init=False)
    """Whose share of the handlers it takes: the principal's, or the peer's where nobody proved anything."""

    def __attrs_post_init__(self) -> None:
        self.caller = self.principal.urn if isinstance(self.principal, Authenticated) else peer_key(self.peer)

    @property
    def skill(self) -> str | None:
        """The skill that's asked for, if it's a task."""
        return self.request.skill_id if isinstance(self.request, TaskRequest) else None

    def leave(self, state: _State) -> None:
        """Leave this state: it allows no further move."""
        if state._step != self.step:  # noqa: SLF001 - states and their run are one machine
            raise IllegalMove(f"this {type(state).__name__} was left already; go on from the state that it returned")
        self.step += 1

    def tell(self, what: What, kind: Kind | None = None, age: float | None = None) -> None:
        """Tell whoever watches about this call."""
        self.agent.tell(what, peer=self.peer, principal=self.principal, payload_type=self.kind, kind=kind, age=age)

    def let_go(self) -> None:
        """It no longer waits for other work to end."""
        if self.held is not None and self.agent.admission is not None:
            self.agent.admission.let_go(self.held)
        self.held = None

    def start_asking(self) -> None:
        """The driver is about to ask. Until the answer it has its place already: others mustn't take it meanwhile."""
        self.agent.enter(self.caller)
        self.asking = True

    def stop_asking(self) -> None:
        """The store was asked."""
        if self.asking:
            self.agent.leave(self.caller)
        self.asking = False

    def end_work(self, *, ran: bool, keep: bool = False) -> None:
        """The handler is over, or never ran; `keep` where its answer is about to be recorded."""
        self.running = False
        self.agent.finished(self.caller, None if keep else self.reservation, ran=ran)
