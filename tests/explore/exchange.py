"""One exchange from the bytes of its head to its response, with every answer of limiter, authenticator and store.

All of them are shared, so the driver meets every state. What it does with bytes is what `docs/embedding.md` asks for.
"""

import gzip
import json
from collections.abc import Hashable, Iterable
from math import isfinite
from typing import Any, Final

from asap_core import (
    Admit,
    Answered,
    Authenticate,
    ClaimProof,
    Dispatch,
    Done,
    Fork,
    Hold,
    ManualClock,
    ReadBody,
    Refusal,
    Respond,
    TakeLimit,
    parse_limits,
)
from asap_core.http.framing import RequestBody
from asap_core.http.head import BadHead, HeadReader
from asap_core.refusals import BUSY
from asap_core.server.call_context import IllegalMove
from asap_core.server.exchange import refuse_head
from tests.core.server.exchanges import serve
from tests.explore.exchange_inputs import BODIES, FREE, HEADS, MOST, MOVES, ROOM
from tests.explore.explorer import Step

HOLD, TICK = 1.0, 1.0
LIMITS: Final = parse_limits("9/second")


class ExchangeWorld:
    """A driver of one exchange."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.agent: Any = serve(
            auth=True, clock=self.clock, shared=True, shared_limits=("peer", "principal"), hold=HOLD, max_body=MOST,
            max_bodies=MOST, peer_limits=LIMITS, principal_limits=LIMITS,
        )  # fmt: skip
        assert self.agent.hold_body(MOST - ROOM), "the bodies of others"
        self.reader = HeadReader(max_size=512, max_fields=9)
        self.state: Any = None
        self.rest = b""
        self.body: Any = None
        self.read_whole = True
        self.calls: list[Any] = []
        self.left: list[Any] = []

    def inputs(self) -> list[Step]:
        names: Iterable[str]
        match self.state:
            case None:
                names = ("rest of the head", "end") if self.reader.started else HEADS
            case ReadBody():
                names = (
                    ("rest of the body", "end", "abandon") if self.rest else (*BODIES, "bad chunk", "end", "abandon")
                )
            case Fork():
                return self.inputs_of_calls()
            case Done():
                names = ()
            case state:
                names = (*MOVES[type(state)], "abandon")
        return [(name,) for name in names]

    def inputs_of_calls(self) -> list[Step]:
        steps: list[Step] = [(name, place) for place, one in enumerate(self.calls) for name in MOVES[type(one)]]
        if any(isinstance(one, Hold) and self.hold_left(one) for one in self.calls):
            steps.append(("tick",))
        if all(isinstance(one, Answered) for one in self.calls):
            steps.append(("answered",))
        return [*steps, ("abandon",)]

    def do(self, step: Step) -> None:
        match step:
            case ("tick",):
                self.clock.advance(TICK)
            case ("abandon",):
                self.go(self.state.abandon())
            case ("answered",):
                self.go(self.state.answered(self.calls))
            case (str(name),) if self.state is None:
                self.feed_head(name)
            case (str(name),) if isinstance(self.state, ReadBody):
                self.feed_body(name)
            case (str(name),):
                self.go(self.moved(self.state, name))
            case (str(name), int(place)):
                self.calls[place] = self.moved(self.calls[place], name)
                if self.calls[place] is None:  # a handler that was stopped: nobody is left to answer
                    self.go(self.state.abandon())

    def moved(self, state: Any, name: str) -> Any:
        move, arguments = MOVES[type(state)][name]
        after = getattr(state, move)(*arguments)
        self.refuses(state)
        self.left.append(state)
        return after

    def refuses(self, state: Any) -> None:
        """A state that was left refuses every move, and nothing comes of it."""
        before = self.counted()
        for move, arguments in [*MOVES[type(state)].values(), ("abandon", ())]:
            try:
                getattr(state, move)(*arguments)
            except IllegalMove:
                continue
            raise AssertionError(f"{type(state).__name__}.{move} is allowed again")
        assert self.counted() == before, "a move that was refused has changed something"

    def feed_head(self, name: str) -> None:
        if name == "end":
            self.go(Done())  # the peer left within the head: nobody is left to answer
            return
        if name in HEADS:
            data = HEADS[name].encode()
            self.rest, data = data[len(data) // 2 :], data[: len(data) // 2]
        else:
            data, self.rest = self.rest, b""
        read = self.reader.feed(data)
        if read is None:
            assert self.rest, "a whole head is incomplete"
            return
        request = read if isinstance(read, BadHead) else read.request(peer="192.0.2.1")
        if isinstance(request, BadHead):
            assert refuse_head(request.status, request.expected).close
            self.go(Done())
            return
        self.body = RequestBody(request)
        self.read_whole = self.body.ended
        self.go(self.agent.open(request))

    def feed_body(self, name: str) -> None:
        state = self.state
        for wrong in ("text", 5, None):
            try:
                state.feed(wrong)
            except ValueError:
                continue
            raise AssertionError("it takes what isn't bytes")
        if name in BODIES:
            content = gzip.compress(BODIES[name], mtime=0) if self.coded() else BODIES[name]
            framed = (b"%x\r\n%b\r\n" % (len(content), content) if content else b"") + b"0\r\n\r\n"
            self.rest, data = framed[len(framed) // 2 :], framed[: len(framed) // 2]
        else:
            data, self.rest = {"rest of the body": self.rest, "bad chunk": b"-1\r\n", "end": b""}[name], b""
        read = self.body.read(data)
        if isinstance(read, BadHead):
            assert name in {"bad chunk", "end"}
            assert refuse_head(read.status, read.expected).close
            self.go(state.abandon())
            return
        fed = state.feed(read)
        self.read_whole = self.body.ended
        self.go(fed.end() if fed is state and self.body.ended else fed)

    def go(self, state: Any) -> None:
        """Take the state that follows."""
        if isinstance(self.state, Fork) and isinstance(state, Respond | Done):
            self.left.append(self.state)
        self.state = state
        if isinstance(state, Fork):
            self.calls = list(state.calls)
            for wrong in ([], None, [5] * len(self.calls), [*self.calls, Answered(b"", Refusal(kind=BUSY))]):
                try:
                    state.answered(wrong)  # type: ignore[arg-type]
                except ValueError:
                    continue
                raise AssertionError("it takes answers that aren't one for each call")
        if isinstance(state, Respond):
            self.judge(state)
        if isinstance(state, Done):
            for one in self.left:
                if not isinstance(one, Fork):
                    self.refuses(one)

    def judge(self, state: Respond) -> None:
        response = state.response
        assert dict(response.headers)[b"content-length"] == b"%d" % len(response.body)
        assert json.loads(response.body), "every answer says what is wrong, or what came of it"
        assert response.close or self.read_whole, "the rest of the body would be read as the next request"

    def counted(self) -> tuple[int, ...]:
        agent = self.agent
        return agent.active, sum(agent._callers.values()), agent.body_bytes - (MOST - ROOM), agent.outgoing.held

    def check(self) -> None:
        running = sum(isinstance(one, Dispatch) for one in self.calls) if isinstance(self.state, Fork) else 0
        asking = sum(isinstance(one, Admit) for one in self.calls) if isinstance(self.state, Fork) else 0
        context = getattr(self.state, "_context", None)
        outgoing = getattr(self.state, "outgoing", None)
        counted = running, running + asking, getattr(context, "held", 0), 0 if outgoing is None else outgoing.size
        assert self.counted() == counted, f"active, callers, body, answers are {self.counted()}, expected {counted}"
        for one in self.calls:
            assert not isinstance(one, Hold) or 0 < one.seconds <= HOLD, "it waits without a deadline"
            assert not isinstance(one, Dispatch) or (one.deadline > 0 and isfinite(one.deadline)), "no deadline"

    def hold_left(self, state: Hold) -> float:
        return max(state._context.hold_until - self.clock.monotonic(), 0)  # type: ignore[operator]

    def fingerprint(self) -> Hashable:
        calls = [self.of_call(one) for one in self.calls] if isinstance(self.state, Fork) else []
        state = self.state
        more: tuple[Hashable, ...] = ()
        match state:
            case None:
                more = (self.rest,)
            case TakeLimit():
                more = state.scope, state.partial, state._context.headers.get(b"asap-version")
            case ReadBody():
                more = state.expect_continue, self.rest
            case Respond():
                more = state.response.status, state.response.close, len(state.response.body) > FREE
        coded = self.coded() if isinstance(state, TakeLimit | Authenticate | ClaimProof | ReadBody) else None
        return type(state).__name__, more, coded, tuple(calls), self.counted()

    def coded(self) -> bool:
        return b"content-encoding" in self.state._context.headers

    def of_call(self, state: Any) -> Hashable:
        match state:
            case Hold():
                return "Hold", state.seconds, self.hold_left(state)
            case Answered():
                return "Answered", len(state.body) > FREE
            case _:
                return type(state).__name__, getattr(state, "reservation", None) is not None

    def is_over(self) -> bool:
        return isinstance(self.state, Done)
