"""The data of one call, which its states (`call`) share and its checks (`checks`) fill in."""

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
    """A driver moved from a state that it had left already: a bug in the driver."""


class _State(Protocol):
    """A state of a call, as its run sees it."""

    _step: int


@define(eq=False)
class CallRun:
    """What the states of one call share.

    States hold the run, and the run holds only their number: no reference cycle is left for the garbage collector.

    asking: a store is being asked. Like a running handler it counts towards `Policy.concurrent`.
    running: a handler may be running, for `reservation` if there is one.
    held: the ticket that the call waits for, in `Hold`.
    hold_until: when it stops waiting.
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
    """Whose running handlers it counts among: the principal's, or the peer's if it's anonymous."""

    def __attrs_post_init__(self) -> None:
        self.caller = self.principal.urn if isinstance(self.principal, Authenticated) else peer_key(self.peer)

    @property
    def skill(self) -> str | None:
        """The skill of a task request. None for other payloads."""
        return self.request.skill_id if isinstance(self.request, TaskRequest) else None

    def leave(self, state: _State) -> None:
        """Leave this state: it allows no further move. Raises IllegalMove if it was left already."""
        if state._step != self.step:  # noqa: SLF001 - states and their run are one machine
            raise IllegalMove(f"this {type(state).__name__} was left already; go on from the state that it returned")
        self.step += 1

    def tell(self, what: What, kind: Kind | None = None, age: float | None = None) -> None:
        """Tell the observers about this call."""
        self.agent.tell(what, peer=self.peer, principal=self.principal, payload_type=self.kind, kind=kind, age=age)

    def let_go(self) -> None:
        """Stop waiting for other work to end."""
        if self.held is not None and self.agent.admission is not None:
            self.agent.admission.let_go(self.held)
        self.held = None

    def start_asking(self) -> None:
        """Count the call as running while the store is asked, so that others don't take its place meanwhile."""
        self.agent.enter(self.caller)
        self.asking = True

    def stop_asking(self) -> None:
        """The store has answered: stop counting the call as running."""
        if self.asking:
            self.agent.leave(self.caller)
        self.asking = False

    def end_work(self, *, ran: bool, keep: bool = False) -> None:
        """The handler has ended, or never ran. `keep`: its answer is about to be recorded, so the reservation stays."""
        self.running = False
        self.agent.finished(self.caller, None if keep else self.reservation, ran=ran)
