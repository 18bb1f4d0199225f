"""One call on its way to admission: the data that its states (`call`) share, and the checks that it passes, in order.

The checks: sender, idempotency key, version, recipient, date, payload, scopes, load. They're cheap and leave nothing
behind: no nonce is used up by a call that can't run.
"""

from collections.abc import Mapping
from typing import Final, Protocol

from attrs import define, field

from asap_core.admission.admission import Reservation
from asap_core.admission.ratelimit import peer_key
from asap_core.auth.principal import Authenticated, Principal, insufficient_scope
from asap_core.clock import Instant, WallTime
from asap_core.errors import InvalidDocument, Problem
from asap_core.refusals import (
    HANDLER_NOT_FOUND,
    INSUFFICIENT_SCOPE,
    MALFORMED_ENVELOPE,
    MISADDRESSED,
    RATE_LIMITED,
    SENDER_MISMATCH,
    TIMESTAMP,
    VERSION_INCOMPATIBLE,
    Kind,
    Refusal,
)
from asap_core.server.events import What
from asap_core.server.serving import Serving
from asap_core.wire.codec import decode_payload_of
from asap_core.wire.envelope import ASAP_VERSION, Envelope, normalise_payload_type, utc
from asap_core.wire.jsonrpc import Call
from asap_core.wire.payloads import MessageSend, Payload, TaskRequest


class IllegalMove(RuntimeError):
    """A driver moved from a state that it had left already: a bug in the driver."""


class _State(Protocol):
    """A state of a call, as its context sees it."""

    _step: int


@define(eq=False)
class CallContext:
    """What the states of one call share.

    States hold the context, and it holds only their number: no reference cycle is left for the garbage collector.

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
    streamed: bool
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
        if state._step != self.step:  # noqa: SLF001 - states and their context are one machine
            raise IllegalMove(f"this {type(state).__name__} was left already; go on from the state that it returned")
        self.step += 1

    def tell(self, what: What, kind: Kind | None = None, age: float | None = None) -> None:
        """Tell the observers about this call."""
        if self.agent.observed:
            self.agent.tell(what, peer=self.peer, principal=self.principal, payload_type=self.kind, kind=kind, age=age)

    def stop_waiting(self) -> None:
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


def first_refusal(context: CallContext) -> Refusal | None:
    """Run the checks in order and return the first refusal, or None. Sets `context.kind` and `context.request`."""
    return (
        _sender_is_the_caller(context)
        or _key_has_an_owner(context)
        or _version_is_known(context)
        or _recipient_is_this_agent(context)
        or _timestamp_is_in_window(context)
        or _payload_and_handler_exist(context)
        or _scopes_allow(context)
        or _there_is_room(context)
    )


def malformed(error: InvalidDocument) -> Refusal:
    """Return the refusal of an invalid envelope or payload."""
    return Refusal(kind=MALFORMED_ENVELOPE, note="Invalid envelope structure", problems=error.problems)


def with_defaults_for_old_peers(agent: Serving, value: Mapping[str, object], wall: WallTime) -> Mapping[str, object]:
    """Return the envelope with an id and a timestamp, if the policy lets a peer omit them."""
    # The reference, 1.1 and 2.x, treats a null id or timestamp as absent and fills it in. Here the policy decides.
    if not agent.policy.require_id and value.get("id") is None:
        value = {**value, "id": agent.new_id()}
    if not agent.policy.require_timestamp and value.get("timestamp") is None:
        value = {**value, "timestamp": utc(wall)}
    return value


def _sender_is_the_caller(context: CallContext) -> Refusal | None:
    # An anonymous caller may name any sender.
    if isinstance(context.principal, Authenticated) and context.principal.urn != context.envelope.sender:
        return Refusal(kind=SENDER_MISMATCH)
    return None


def _key_has_an_owner(context: CallContext) -> Refusal | None:
    """Keys belong to a principal or to an address: without either, all callers would share them."""
    if context.call.idempotency_key is None or context.peer_known or isinstance(context.principal, Authenticated):
        return None
    expected = (
        "no key, or a caller who authenticates: the address of this one isn't known. Behind a proxy that connects over "
        "TCP the agent's operator can have it told (trusted_proxies)"
    )
    problem = Problem(("params", "idempotency_key"), expected)
    return Refusal(kind=MALFORMED_ENVELOPE, note="Invalid idempotency key", problems=(problem,))


def _version_is_known(context: CallContext) -> Refusal | None:
    # The envelope format's version: 0.1 in all releases of the reference. The header ASAP-Version is another version.
    if context.envelope.asap_version.startswith("0.") or not context.agent.policy.check_version:
        return None
    return Refusal(kind=VERSION_INCOMPATIBLE, details={"supported": [ASAP_VERSION]})


def _recipient_is_this_agent(context: CallContext) -> Refusal | None:
    if not context.agent.policy.check_recipient or context.agent.answers_to(context.envelope.recipient):
        return None
    return Refusal(kind=MISADDRESSED, details={"agent_id": context.agent.manifest.id})


def _timestamp_is_in_window(context: CallContext) -> Refusal | None:
    age = context.wall - context.issued
    if -context.agent.policy.skew <= age <= context.agent.policy.max_age:
        return None
    return timestamp_refusal(context, age)


# Seconds to wait before a retry, as the reference says.
_AFTER_TIMESTAMP: Final = 5.0


def timestamp_refusal(context: CallContext, age: float) -> Refusal:
    """Return the refusal of a timestamp that's `age` seconds old. It tells the caller the server's time."""
    bounds: dict[str, object] = {
        "server_time": utc(context.wall).isoformat().replace("+00:00", "Z"),
        "max_age_seconds": context.agent.policy.max_age,
        "max_future_tolerance_seconds": context.agent.policy.skew,
    }
    offset = {"age_seconds": round(age, 3)} if age > 0 else {"future_offset_seconds": round(-age, 3)}
    return Refusal(
        kind=TIMESTAMP, note="Invalid envelope timestamp", details=offset | bounds, retry_after=_AFTER_TIMESTAMP
    )


_PAYLOAD: Final = ("params", "envelope", "payload")


def _payload_and_handler_exist(context: CallContext) -> Refusal | None:
    context.kind = normalise_payload_type(context.envelope.payload_type)
    if context.streamed or context.kind not in context.agent.payload_types:
        supported = [] if context.streamed else sorted(context.agent.payload_types)
        return Refusal(kind=HANDLER_NOT_FOUND, details={"supported": supported})
    try:
        context.request = decode_payload_of(context.kind, context.envelope.payload, _PAYLOAD)
    except InvalidDocument as error:
        return malformed(error)
    if isinstance(context.request, MessageSend) and context.request.sender != context.envelope.sender:
        return Refusal(kind=SENDER_MISMATCH) if context.agent.policy.check_payload_sender else None
    if isinstance(context.request, TaskRequest) and context.request.skill_id not in context.agent.skills:
        return Refusal(kind=HANDLER_NOT_FOUND, details={"skills": sorted(context.agent.skills)})
    return None


def _scopes_allow(context: CallContext) -> Refusal | None:
    if not context.agent.policy.scopes:
        return None
    asked = {
        context.kind,
        f"{context.kind}/{context.request.skill_id}" if isinstance(context.request, TaskRequest) else context.kind,
    }
    wanted = frozenset[str]().union(*(scopes for key, scopes in context.agent.policy.scopes if key in asked))
    held = context.principal.scopes if isinstance(context.principal, Authenticated) else frozenset()
    if wanted <= held:
        return None
    proves = isinstance(context.principal, Authenticated) and context.principal.key is not None
    return Refusal(kind=INSUFFICIENT_SCOPE, challenge=insufficient_scope(wanted, proves=proves))


# Seconds. When one of the caller's handlers will end isn't known.
_AFTER_BUSY_CALLER: Final = 1.0


def _there_is_room(context: CallContext) -> Refusal | None:
    if context.agent.has_room_for(context.caller):
        return None
    limit = f"{context.agent.policy.concurrent} at once"
    return Refusal(kind=RATE_LIMITED, details={"limit": limit}, retry_after=_AFTER_BUSY_CALLER)
