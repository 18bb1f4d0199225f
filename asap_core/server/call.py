"""One call, from a parsed JSON-RPC request to its answer, as linked states, whatever carried it.

A single request, an item of a batch, and later a stream or a socket all come through here, with the same checks in the
same order: `call_context.first_refusal` lists them. Everything cheap and everything that could refuse comes before
`Admit`, so that no nonce is used up by a call that can't run.

    Admit ──▶ Dispatch ──▶ Record ──▶ Answered        each state offers only the moves that are legal in it
     │ ▲         └────────────────────▶ Answered
     ▼ │
    Hold ─────────────────────────────▶ Answered

The states obey the rules of `asap_core.server.exchange`. With admission in memory (the default) the core answers
`Admit` and `Record` itself, and a driver meets `Dispatch`, `Hold` and `Answered` only.
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Final, assert_never

from attrs import define, field

from asap_core.admission.admission import (
    AdmissionAnswer,
    AdmissionQuestion,
    Admitted,
    AnswerGone,
    Future,
    Mismatch,
    OutcomeUnknown,
    Reservation,
    Running,
    Stale,
    Stored,
    StoreUnavailable,
)
from asap_core.admission.policy import NoncePolicy
from asap_core.admission.replay import Floored, Replayed, Saturated
from asap_core.auth.principal import Authenticated, Principal
from asap_core.clock import Instant, Moment
from asap_core.errors import InvalidDocument, Problem
from asap_core.keyboard_interrupt import is_interrupt
from asap_core.refusals import (
    ANSWER_GONE,
    HANDLER_FAILED,
    KEY_MISMATCH,
    MALFORMED_ENVELOPE,
    OUTCOME_UNKNOWN,
    RATE_LIMITED,
    REPLAYED,
    RESTARTED,
    SATURATED,
    STILL_RUNNING,
    TIMESTAMP,
    UNAVAILABLE,
    Refusal,
)
from asap_core.server.call_context import (
    CallContext,
    first_refusal,
    malformed,
    timestamp_refusal,
    with_defaults_for_old_peers,
)
from asap_core.server.events import DECISION_OF, What
from asap_core.server.serving import Serving
from asap_core.wire.codec import decode_envelope
from asap_core.wire.envelope import Envelope
from asap_core.wire.handler_reply import Replied, copy_of_reply, reply_of, reply_text
from asap_core.wire.json import stable_json, write_json
from asap_core.wire.jsonrpc import Call, CallId, error_body
from asap_core.wire.payloads import Payload


@define(eq=False)
class Admit:
    """Ask the shared store, as one atomic question, whether this was asked before and whether its nonce is new.

    Leads to Dispatch if it's new, to Hold if the same request is running, to Answered otherwise.
    """

    question: AdmissionQuestion
    _context: CallContext = field(repr=False)
    _step: int = field(repr=False)

    def answered(self, answer: AdmissionAnswer) -> "Hold | Dispatch | Answered":
        """Go on with the store's answer."""
        self._context.leave(self)
        self._context.stop_asking()
        return _after_admission(self._context, self.question, answer, self._context.agent.now())

    def abandon(self) -> None:
        """The caller left. The store may have answered: what the question claimed stays claimed."""
        self._context.leave(self)
        self._context.stop_asking()


@define(eq=False)
class Hold:
    """Wait: the same request, under the same idempotency key, is running.

    Leads to Answered once that is done, to Dispatch if it never ran, or to another Hold or Admit.

    ticket: wait until `Agent.take_wakes` names it. None if another process does the work: then only the time counts.
    seconds: wait this long at most, then call `again()`. A driver that can't wait calls `expired()` at once.
    """

    ticket: bytes | None
    seconds: float
    _question: AdmissionQuestion = field(repr=False)
    _retry_after: float = field(repr=False)
    _context: CallContext = field(repr=False)
    _step: int = field(repr=False)

    def again(self) -> "Admit | Hold | Dispatch | Answered":
        """Ask again: the ticket was named, or the time is over."""
        self._leave()
        agent = self._context.agent
        return _ask_with_key(self._context, self._question, agent.moment())

    def expired(self) -> "Answered":
        """Stop waiting: the caller is told to retry later."""
        self._leave()
        return _refuse(self._context, Refusal(kind=STILL_RUNNING, retry_after=self._retry_after))

    def abandon(self) -> None:
        """The caller left."""
        self._leave()

    def _leave(self) -> None:
        self._context.leave(self)
        self._context.stop_waiting()


@define(eq=False)
class Dispatch:
    """Run the handler: every check has passed.

    Leads to Answered, through Record if the answer is kept under an idempotency key in a shared store.

    kind: the normalised payload type.
    skill: the skill, if it's a task.
    request: the typed payload; None if the protocol doesn't know the type.
    deadline: how many seconds the handler has.
    shielded: its answer is kept under an idempotency key, so the work goes on even if the caller leaves.
    reservation: what the key is reserved by, if there is one.
    """

    envelope: Envelope
    principal: Principal
    kind: str
    skill: str | None
    request: Payload | None
    deadline: float
    shielded: bool
    reservation: Reservation | None
    _context: CallContext = field(repr=False)
    _step: int = field(repr=False)

    def replied(self, payload: Payload | Replied) -> "Record | Answered":
        """The handler answered. If that can't be sent, the answer is an internal error, and kept like any other."""
        return self._finish(payload)

    def failed(self, refusal: Refusal) -> "Record | Answered":
        """The handler refused or raised. The refusal is kept like an answer, so that a retry gets the same."""
        return self._finish(refusal)

    def turned_away(self, refusal: Refusal) -> "Answered":
        """The handler never ran, as no worker was free: the idempotency key is free again, the nonce stays used."""
        self._context.leave(self)
        self._context.end_work(ran=False)
        return refused_call(self._context.call.id, refusal)

    def lost(self) -> None:
        """The handler was stopped midway: from now on the idempotency key answers "outcome unknown"."""
        self._context.leave(self)
        self._context.end_work(ran=True)

    def abandon(self) -> None:
        """The caller left before the handler began: the idempotency key is free again, the nonce stays used.

        Only if that is certain. If the handler may have begun, call `lost()`.
        """
        self._context.leave(self)
        self._context.end_work(ran=False)

    def _finish(self, outcome: "Payload | Replied | Refusal") -> "Record | Answered":
        context = self._context
        context.leave(self)
        answered = _answer_once(context, outcome)
        context.end_work(ran=True, keep=True)
        if self.reservation is None:
            return answered
        copy = copy_of_reply(answered.body, answered.outcome)
        return _record(
            Record(self.reservation, copy, len(answered.body), answered, context, context.step), context.agent
        )


@define(eq=False)
class Record:
    """Keep the answer in the shared store, before its first byte is sent.

    Leads to Answered.

    reservation: what to keep it under.
    outcome: what to keep.
    size: how many bytes it counts for.
    """

    reservation: Reservation
    outcome: Replied | Refusal
    size: int
    _answered: "Answered" = field(repr=False)
    _context: CallContext = field(repr=False)
    _step: int = field(repr=False)

    def recorded(self) -> "Answered":
        """Go on, whether or not it could be kept: the work was done, so the caller gets the answer."""
        self._context.leave(self)
        return self._answered

    def abandon(self) -> None:
        """The caller left. The answer may still be kept."""
        self._context.leave(self)


@define(eq=False)
class Answered:
    """The answer to one call. The call is over.

    body: its JSON text.
    outcome: the reply, or the refusal.
    fault: if set, why a handler's answer couldn't be sent, for the operator's log.
    """

    body: bytes
    outcome: Replied | Refusal
    fault: str | None = None

    @property
    def refusal(self) -> Refusal | None:
        """The refusal, or None if it's a reply."""
        return self.outcome if isinstance(self.outcome, Refusal) else None


CallState = Admit | Hold | Dispatch | Record | Answered


def abandon_call(opened: CallState) -> None:
    """Abandon a call in its present state, given the state it was opened in. Does nothing once it's over.

    It isn't known here whether its handler has begun, so its idempotency key answers "outcome unknown" from then on.
    """
    if not isinstance(opened, Answered):
        context = opened._context  # noqa: SLF001 - one module, one machine
        context.step += 1
        context.stop_waiting()
        context.stop_asking()
        if context.running:
            context.end_work(ran=True)


def broken_call(opened: CallState) -> Answered:
    """Abandon a call that can't be driven to its end, and answer it with an internal error."""
    abandon_call(opened)
    return opened if isinstance(opened, Answered) else _internal_error(opened._context)  # noqa: SLF001 - as above


def id_of(opened: CallState) -> CallId | None:
    """Return the id of a call, given the state it was opened in. Returns None if it was answered then."""
    return None if isinstance(opened, Answered) else opened._context.call.id  # noqa: SLF001 - one module, one machine


# --- the order of the checks -----------------------------------------------------------------------------------------


def open_call(  # noqa: PLR0917 - positional, as all on the path of every request
    agent: Serving,
    call: Call,
    principal: Principal,
    peer: str,
    peer_known: bool,  # noqa: FBT001 - as above
    streamed: bool,  # noqa: FBT001 - as above
    at: Moment,
) -> CallState:
    """Check one call, and ask for its admission if no check refuses it."""
    envelope: Mapping[str, object] | Envelope = call.envelope
    if not isinstance(envelope, Envelope):
        try:
            envelope = _decoded(agent, envelope, at)
        except InvalidDocument as error:
            agent.tell(What.MALFORMED, peer=peer, principal=principal, kind=MALFORMED_ENVELOPE)
            return refused_call(call.id, malformed(error))
    context = CallContext(agent, call, principal, peer, at.wall, envelope, envelope.issued, peer_known, streamed)
    refusal = first_refusal(context)
    return _ask(context, at) if refusal is None else _refuse(context, refusal)


def _decoded(agent: Serving, value: Mapping[str, object], at: Moment) -> Envelope:
    if not (agent.policy.require_id and agent.policy.require_timestamp):
        value = with_defaults_for_old_peers(agent, value, at.wall)
    return decode_envelope(value, path=("params", "envelope"))


# --- admission -------------------------------------------------------------------------------------------------------


def _ask(context: CallContext, at: Moment) -> CallState:
    """Ask this process's memory whether the call is new or, if there's none, let the driver ask."""
    nonce, admission = _nonce(context), context.agent.admission
    if isinstance(nonce, Refusal):
        return _refuse(context, nonce)
    if admission is None or context.call.idempotency_key is not None:
        return _ask_with_key(context, _question(context, nonce), at)
    # Most requests: there's no key to look up, only a nonce to claim, so no question is written down.
    sender, authenticated = context.envelope.sender, isinstance(context.principal, Authenticated)
    answer = admission.claim(sender, authenticated, nonce, context.issued, at)
    return (
        _dispatch(context, None)
        if isinstance(answer, Admitted)
        else _refuse(context, _admission_refusal(context, answer))
    )


def _ask_with_key(context: CallContext, question: AdmissionQuestion, at: Moment) -> Admit | Hold | Dispatch | Answered:
    admission = context.agent.admission
    if admission is None:
        context.start_asking()
        return Admit(question, context, context.step)
    return _after_admission(context, question, admission.ask(question, at), at.now)


def _question(context: CallContext, nonce: str | None) -> AdmissionQuestion:
    key = context.call.idempotency_key
    return AdmissionQuestion(
        context.envelope.sender,
        isinstance(context.principal, Authenticated),
        context.peer,
        nonce,
        context.issued,
        key,
        b"" if key is None else _what_is_asked(context),
        context.agent.policy.handler_deadline,
    )


def _nonce(context: CallContext) -> str | Refusal | None:
    if context.agent.policy.nonce is NoncePolicy.OFF:
        return None
    nonce = context.envelope.nonce
    if type(nonce) is str and nonce:
        # Prefixed, so that a nonce and an envelope id are never the same.
        return "n" + nonce
    if nonce is None and context.agent.policy.nonce is NoncePolicy.OR_ID:
        return "i" + context.envelope.id
    problem = Problem(
        ("params", "envelope", "extensions", "nonce"), "a non-empty string", "missing" if nonce is None else "wrong"
    )
    return Refusal(kind=MALFORMED_ENVELOPE, note="Invalid envelope nonce", problems=(problem,))


def _what_is_asked(context: CallContext) -> bytes:
    # Without timestamp and nonce: a retry has fresh ones, and is still the same request.
    asked = [context.envelope.sender, context.envelope.recipient, context.kind, context.envelope.payload]
    return blake2b(stable_json(asked), digest_size=16).digest()


def _after_admission(
    context: CallContext, question: AdmissionQuestion, answer: AdmissionAnswer, now: Instant
) -> Hold | Dispatch | Answered:
    # isinstance, not match: class patterns with names take four times as long, and every request comes here.
    if isinstance(answer, Admitted):
        return _dispatch(context, answer.reservation)
    if isinstance(answer, Stored):
        context.tell(What.REPEATED)
        return _answer_again(context, answer.outcome)
    if isinstance(answer, Running):
        return _hold(context, question, answer, now)
    return _refuse(context, _admission_refusal(context, answer))


def _hold(context: CallContext, question: AdmissionQuestion, running: Running, now: Instant) -> Hold | Answered:
    if context.hold_until is None:
        context.hold_until = Instant(now + context.agent.policy.hold)
    left = context.hold_until - now
    if left <= 0:
        return _refuse(context, _admission_refusal(context, running))
    if running.ticket is not None and context.agent.admission is not None:
        context.agent.admission.hold(running.ticket)
        context.held = running.ticket
    seconds = left if context.held is not None else min(left, running.retry_after)
    return Hold(context.held, seconds, question, running.retry_after, context, context.step)


def _dispatch(context: CallContext, reservation: Reservation | None) -> Dispatch:
    context.tell(What.ACCEPTED)
    context.agent.started(context.caller)
    context.running, context.reservation = True, reservation
    return Dispatch(
        context.envelope,
        context.principal,
        context.kind,
        context.skill,
        context.request,
        context.agent.policy.handler_deadline,
        reservation is not None,
        reservation,
        context,
        context.step,
    )


_PLAIN_REFUSALS: Final[Mapping[type, Refusal]] = {
    Replayed: Refusal(kind=REPLAYED, note="Invalid envelope nonce"),
    Mismatch: Refusal(kind=KEY_MISMATCH),
    OutcomeUnknown: Refusal(kind=OUTCOME_UNKNOWN),
    AnswerGone: Refusal(kind=ANSWER_GONE),
}


def _admission_refusal(
    context: CallContext,
    answer: (
        Replayed
        | Saturated
        | Floored
        | Running
        | Mismatch
        | OutcomeUnknown
        | AnswerGone
        | Stale
        | Future
        | StoreUnavailable
    ),
) -> Refusal:
    """Return the refusal that a store's answer stands for."""
    match answer:
        case Replayed() | Mismatch() | OutcomeUnknown() | AnswerGone():
            return _PLAIN_REFUSALS[type(answer)]
        case Saturated(retry_after):
            return Refusal(kind=SATURATED, retry_after=retry_after)
        case Floored(retry_after):
            return Refusal(kind=RESTARTED, retry_after=retry_after)
        case Running(retry_after):
            return Refusal(kind=STILL_RUNNING, retry_after=retry_after)
        case Stale(wall) | Future(wall):
            context.wall = wall  # the store's clock decided, so its time is what the caller is told
            return timestamp_refusal(context, wall - context.issued)
        case StoreUnavailable(retry_after):
            return Refusal(kind=UNAVAILABLE, retry_after=retry_after)
        case _:
            assert_never(answer)


def _record(record: Record, agent: Serving) -> Record | Answered:
    """Keep an answer in this process's memory or, if there's none, let the driver keep it."""
    if agent.admission is None:
        return record
    agent.admission.record(record.reservation, record.outcome, size=record.size, now=agent.now())
    return record.recorded()


# --- answers ---------------------------------------------------------------------------------------------------------


def _answer_once(context: CallContext, outcome: "Payload | Replied | Refusal") -> Answered:
    """Answer with what the handler returned. Never raises: the work was done, so this is its answer, once."""
    try:
        return (
            refused_call(context.call.id, outcome)
            if isinstance(outcome, Refusal)
            else _reply(context, reply_of(outcome))
        )
    except BaseException as error:
        if is_interrupt(error):
            raise
        return _internal_error(context, f"{type(error).__name__} was raised while its answer was written")


def _answer_again(context: CallContext, outcome: object) -> Answered:
    """Answer with what a store kept from the first request."""
    match outcome:
        case Replied():
            return _reply(context, outcome)
        case Refusal():
            return refused_call(context.call.id, outcome)
        case _:
            raise TypeError(f"expected what was recorded: Replied or Refusal, not {type(outcome).__name__}")


def _reply(context: CallContext, replied: Replied) -> Answered:
    agent, request = context.agent, context.envelope
    # The policy may accept envelopes for other agents. The answer still names this agent as its sender.
    sender = request.recipient if agent.answers_to(request.recipient) else agent.manifest.id
    try:
        text = reply_text(request, replied, call_id=context.call.id, sender=sender, ids=agent.new_id, wall=agent.wall())
        return Answered(text, replied)
    except ValueError as error:
        return _internal_error(context, str(error))


def _internal_error(context: CallContext, fault: str | None = None) -> Answered:
    refusal = Refusal(kind=HANDLER_FAILED, note="Internal server error")
    return refused_call(
        context.call.id, refusal, fault=None if fault is None else f"{context.skill or context.kind}: {fault}"
    )


def _refuse(context: CallContext, refusal: Refusal) -> Answered:
    """Tell the observers that a call isn't admitted, and return its answer."""
    if refusal.kind is TIMESTAMP:
        age = context.wall - context.issued
        context.tell(What.STALE if age > 0 else What.FUTURE, TIMESTAMP, age)
    else:
        context.tell(DECISION_OF[refusal.kind.taxonomy], refusal.kind)
    return refused_call(context.call.id, refusal)


def refused_call(call_id: CallId | None, refusal: Refusal, *, fault: str | None = None) -> Answered:
    """Return the answer that refuses a call, and tell no observer."""
    return Answered(write_json(error_body(call_id, refusal)), refusal, fault)


def limited_call(call_id: CallId | None, retry_after: float, limit: str) -> Answered:
    """Return the answer to a call, or an item of a batch, that's over its rate limit."""
    return refused_call(call_id, Refusal(kind=RATE_LIMITED, details={"limit": limit}, retry_after=retry_after))
