"""The driver: carries out what the states of an exchange ask, over any transport. One match per machine, no decisions.

The HTTP server, the ASGI application and the in-process client differ only in how they read a body and send a response:
each has a `Wire` of its own.
"""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from inspect import isawaitable
from typing import Final, Protocol, assert_never, get_args

import anyio
from attrs import frozen

from asap_adapters.auth.authenticator import Authenticator, VerifyCredential, as_authenticator
from asap_adapters.server.handlers import Handlers, Timer
from asap_adapters.server.user_code import (
    ask_user_code,
    expect_callable,
    mark_own_task,
    must_propagate,
    pending_cancellations,
    report,
    tell_user_code,
)
from asap_adapters.stores.protocols import SharedLimiter, Store
from asap_core.admission.admission import AdmissionAnswer, AdmissionQuestion, StoreUnavailable
from asap_core.admission.ratelimit import Granted, Limited
from asap_core.arguments import expect_kind
from asap_core.auth.principal import (
    Authenticated,
    AuthenticationResult,
    Credential,
    InsufficientScope,
    ProofRefused,
    Proven,
)
from asap_core.http.messages import Request, Response
from asap_core.keyboard_interrupt import is_interrupt
from asap_core.server.agent import Agent
from asap_core.server.call import Admit, Answered, CallState, Dispatch, Hold, Record, broken_call
from asap_core.server.exchange import (
    Authenticate,
    ClaimProof,
    Done,
    Exchange,
    Fork,
    ReadBody,
    Respond,
    TakeLimit,
    refuse_head,
)

log: Final = logging.getLogger("asap.drive")


# What is written at once. One read and one TCP window of most peers; smaller responses leave in one piece, as the core
# expects: they aren't counted there.
WRITE_SIZE: Final = 65_536


class PeerGone(Exception):
    """The peer left in the middle of an exchange. That isn't an error: the exchange is abandoned, and no more."""


class Wire(Protocol):
    """How the bytes of one exchange are read and written."""

    async def receive(self, *, expect_continue: bool) -> bytes | None:
        """Return the next bytes of the request's body, or None after the last. Raises `PeerGone`.

        `expect_continue`: the peer waits for 100 Continue before it sends any.
        """
        ...

    async def send(self, answer: Respond) -> None:
        """Send `answer.response`: in pieces if it exceeds `WRITE_SIZE`, with `answer.progressed()` after each.

        Raises `PeerGone`. Keep no other reference to a large body than `answer`, which gives it up in the end. If this
        is cancelled midway, reset the connection.
        """
        ...

    async def send_last(self, response: Response) -> None:
        """Send a response to a request that can't be driven to its end, if the peer still reads."""
        ...


Rest = Callable[[], Awaitable["Rest | None"]]
"""What is left of an exchange after a `Timer` has expired, to be run outside of the timer's scope."""

_ANSWERS: Final = get_args(AdmissionAnswer)
_Taken = Granted | Limited | StoreUnavailable
_TAKEN: Final = get_args(_Taken)


class Driver:
    """Drives the exchanges of one agent, with its handlers, its authenticator and its stores."""

    def __init__(
        self,
        agent: Agent,
        handlers: Handlers,
        *,
        authenticate: Authenticator | VerifyCredential | None = None,
        store: Store | None = None,
        shares: SharedLimiter | None = None,
    ) -> None:
        expect_kind("agent", agent, Agent, "Agent(manifest)")
        handlers.check(agent)
        authenticator = None if authenticate is None else as_authenticator(authenticate)
        if authenticator is not None:
            expect_callable("authenticate", authenticator.verify, "(credential)")
        if agent.authenticates and authenticator is None:
            raise ValueError("the manifest asks callers to authenticate: expected authenticate=TokenTable(…)")
        if authenticator is not None and not agent.authenticates:
            # It would never be called, although its author expects it to verify every caller.
            raise ValueError("authenticate is given, and the manifest asks nobody for it: expected auth=AuthScheme(…)")
        agent.proofs = None if authenticator is None else authenticator.proofs
        self.agent = agent
        self._handlers = handlers
        self._verify_credential = None if authenticator is None else authenticator.verify
        self.store = store
        self.shares = shares
        self._held: dict[bytes, set[anyio.Event]] = {}

    async def run(  # noqa: C901, PLR0912 - one branch for each state
        self, exchange: Request | Respond, wire: Wire, timer: Timer | None = None
    ) -> Rest | None:
        """Drive one exchange to its end. If it's cancelled, or the peer leaves, what was reserved is given back.

        What breaks on the way (a clock, a decoder, a bug here) costs this request, and no other.

        exchange: its request, or the answer that was left.
        timer: keeps the deadline of its handler. If it expires, the rest must run outside of the timer's scope.
        """
        before, state = pending_cancellations(), None
        try:
            state = exchange if isinstance(exchange, Respond) else self.agent.open(exchange)
            while True:
                # The states of every call come first: a pattern that doesn't match takes time too. None binds a name,
                # which would keep a request's values while its answer is sent.
                match state:
                    case ReadBody():
                        chunk = await wire.receive(expect_continue=state.expect_continue)
                        state = state.end() if chunk is None else state.feed(chunk)
                    case Fork():
                        one = len(state.calls) == 1
                        state = state.answered(
                            [await self.answer(state.calls[0], timer)] if one else await self._answers(state.calls)
                        )
                    case Respond():
                        if timer is not None and timer.expired:
                            return partial(self.run, state, wire)
                        state = await self._respond(state, wire)
                    case Done():
                        return None
                    case TakeLimit():
                        state = await self._take(state)
                    case Authenticate():
                        state = await self._verify(state, state.credential)
                    case ClaimProof():
                        state = state.answered(await self._ask(state.question))
                    case _:
                        assert_never(state)
        except BaseException as error:
            self._abandon(state)
            # In Respond the wire itself has failed, so no more can be sent.
            if issubclass(type(error), PeerGone) or isinstance(state, Respond) or must_propagate(error, before):
                raise
            report(log, "an exchange broke", error=error)
        finally:
            self._report_observer()
        await wire.send_last(refuse_head(500, "Internal server error"))
        return None

    def _abandon(self, state: Exchange | None) -> None:
        if state is None or isinstance(state, Done):
            return
        try:
            state.abandon()
            self._wake()
        except BaseException as error:
            # A move that raised halfway has left its state already; or the clock raises.
            if is_interrupt(error):
                raise
            log.debug("an exchange can't be abandoned: %s", type(error).__name__)

    def _report_observer(self) -> None:
        if self.agent.observer_failures and (error := self.agent.take_observer_error()) is not None:
            report(log, "observe broke, and may again: from now on it's only counted", error=error)

    async def _respond(self, state: Respond, wire: Wire) -> Exchange:
        if state.fault is not None:
            log.error("an answer can't be sent: %s", state.fault)
        if state.outgoing is None:
            await wire.send(state)
            return state.sent()
        for slow in state.ends:
            slow.reset()
        with anyio.CancelScope() as scope:
            state.outgoing.reset = scope.cancel
            await wire.send(state)
        if scope.cancelled_caught:
            log.debug("a peer took its answer too slowly, and others needed the room")
            raise PeerGone
        return state.sent()

    async def _take(self, state: TakeLimit) -> Exchange:
        if self.shares is None:
            return state.unavailable()
        unavailable: _Taken = StoreUnavailable(self.agent.policy.retry_after_unavailable)
        match await ask_user_code(log, "shares.take", self.shares.take, state, kinds=_TAKEN, otherwise=unavailable):
            case Granted(amount, left):
                return state.taken(amount, left)
            case Limited(retry_after, limit):
                return state.limited(retry_after, limit)
            case StoreUnavailable():
                return state.unavailable()
            case other:
                assert_never(other)

    async def _verify(self, state: Authenticate, credential: Credential) -> Exchange:
        unknown: AuthenticationResult | _Unknown = _UNKNOWN
        match await ask_user_code(log, "authenticate", self._judge, credential, kinds=_VERDICTS, otherwise=unknown):
            case None:
                return state.refused()
            case InsufficientScope() as missing:
                return state.insufficient(missing)
            case ProofRefused() as proof:
                return state.refused(proof)
            case Authenticated() | Proven() as principal:
                return state.verified(principal)
            case _Unknown():
                return state.unavailable()
            case other:
                assert_never(other)

    async def _judge(self, credential: Credential) -> "AuthenticationResult | _Unknown":
        try:
            principal = None if self._verify_credential is None else self._verify_credential(credential)
            return (await principal) if isawaitable(principal) else principal
        except OSError:
            return _UNKNOWN

    async def _answers(self, calls: tuple[CallState, ...]) -> list[Answered]:
        answers: dict[int, Answered] = {}

        async def one(index: int, call: CallState) -> None:
            mark_own_task()
            answers[index] = await self.answer(call)

        async with anyio.create_task_group() as group:
            for index, call in enumerate(calls):
                group.start_soon(one, index, call)
        return [answers[index] for index in range(len(calls))]

    async def answer(self, opened: CallState, timer: Timer | None = None) -> Answered:
        """Drive one call to its answer. If anything raises on the way, the answer is an internal error.

        timer: keeps the deadline of its handler. If it has expired, nothing can be awaited next.
        """
        before, state = pending_cancellations(), opened
        try:
            while True:
                match state:
                    case Dispatch():
                        state = await self._dispatch(state, timer)
                    case Answered():
                        if state.fault is not None:
                            log.error("a handler's answer can't be sent: %s", state.fault)
                        return state
                    case Admit(question):
                        state = state.answered(await self._ask(question))
                    case Hold():
                        state = await self._hold(state, opened)
                    case Record():
                        state = await self._record(state)
                    case _:
                        assert_never(state)
        except BaseException as error:
            if must_propagate(error, before):
                raise
            report(log, "a call broke", error=error)
            return broken_call(opened)

    async def _record(self, state: Record) -> Answered:
        if self.store is not None:
            facts = state.reservation, state.outcome, state.size
            await tell_user_code(log, "store.record", self.store.record, *facts)
        return state.recorded()

    async def _ask(self, question: AdmissionQuestion) -> AdmissionAnswer:
        unavailable: AdmissionAnswer = StoreUnavailable(self.agent.policy.retry_after_unavailable)
        if self.store is None:
            return unavailable
        return await ask_user_code(log, "store.ask", self.store.ask, question, kinds=_ANSWERS, otherwise=unavailable)

    async def _dispatch(self, state: Dispatch, timer: Timer | None) -> Record | Answered:
        reservation, store = state.reservation, self.store
        try:
            after = await self._handlers.run(state, timer)
        except BaseException as error:
            # A coroutine that's being closed can't await. The reservation expires by itself.
            if store is not None and reservation is not None and not isinstance(error, GeneratorExit):
                await tell_user_code(log, "store.lose", store.lose, reservation)
            raise
        finally:
            if self._held:
                self._wake()
        if isinstance(after, Answered) and store is not None and reservation is not None:
            # `turned_away` is the one move from Dispatch to Answered with a reservation: what ran is recorded first.
            await tell_user_code(log, "store.give_back", store.give_back, reservation)
        return after

    async def _hold(self, state: Hold, opened: CallState) -> CallState:
        """Wait until the same request, which another call runs, has ended."""
        if state is opened:  # it may have ended already, before the task of this call began
            return state.again()
        if state.ticket is None:
            await anyio.sleep(state.seconds)
            return state.again()
        woken = anyio.Event()
        waiting = self._held.setdefault(state.ticket, set())
        waiting.add(woken)
        try:
            with anyio.move_on_after(state.seconds):
                await woken.wait()
        finally:
            waiting.discard(woken)
            if not waiting:
                del self._held[state.ticket]
        return state.again()

    def _wake(self) -> None:
        for ticket in self.agent.take_wakes():
            for event in self._held.get(ticket, ()):
                event.set()


@frozen
class _Unknown:
    """The authenticator can't answer now."""


_UNKNOWN: Final = _Unknown()
_VERDICTS: Final = (*get_args(AuthenticationResult), _Unknown)
