"""Runs laws in this process: on any callable that answers a request, under a clock that the laws move.

    executor = CallableExecutor(send=my_agent, clock=clock, restart=my_restart)

`local_executor` makes one of this library's agent.
"""

import itertools
from collections.abc import Callable
from typing import Final, assert_never

from attrs import define, field, frozen

from asap_core.admission.policy import Policy
from asap_core.auth.principal import TokenTable
from asap_core.clock import ManualClock
from asap_core.http.messages import Request
from asap_core.server.agent import Agent
from asap_core.testing.driven_agent import answer
from asap_core.testing.laws.effects import (
    AdvanceClock,
    ConverseTogether,
    LawEffect,
    LawOutcome,
    Passed,
    Pause,
    ResetTarget,
    SendBytes,
    SendRequest,
    SendTogether,
    Together,
)
from asap_core.testing.laws.http_messages import Answer, HttpRequest
from asap_core.testing.laws.verdicts import Need
from asap_core.wire.manifest import AuthScheme, Capabilities, Endpoints, Manifest, Skill

ALICE: Final = "urn:asap:agent:alice"
BOB: Final = "urn:asap:agent:bob"
TOKENS: Final = {"token-of-alice": ALICE, "token-of-bob": BOB}  # of an agent in a test
# The agent has started so long ago that a floor at its start refuses nothing.
_UP_FOR: Final = 1_000.0


@define
class CallableExecutor:
    """An executor over a callable.

    send: answers one request.
    clock: the agent's; laws move it. None: the agent reads another one.
    restart: starts the agent again, so that it remembers nothing. None: it can't.
    """

    send: Callable[[HttpRequest], Answer]
    clock: ManualClock | None = None
    restart: Callable[[], None] | None = None

    @property
    def offers(self) -> frozenset[Need]:
        """See `Executor`."""
        clock = set() if self.clock is None else {Need.CLOCK}
        return frozenset(clock | (set() if self.restart is None else {Need.RESET}))

    def perform(self, effect: LawEffect) -> LawOutcome:
        """See `Executor`."""
        match effect:
            case SendRequest(request):
                return self.send(request)
            case SendTogether(requests):  # one thread: they come one after the other
                return Together(tuple(self.send(each) for each in requests))
            case Pause(seconds):
                self._advance(seconds, 0.0)
            case AdvanceClock(seconds, step_wall):
                self._advance(seconds, step_wall)
            case ResetTarget():
                if self.restart is not None:
                    self.restart()
            case SendBytes() | ConverseTogether():
                raise NotImplementedError("there is no connection that could carry any bytes")
            case _:
                assert_never(effect)
        return Passed()

    def _advance(self, seconds: float, step_wall: float) -> None:
        if self.clock is not None:
            self.clock.advance(seconds)
            self.clock.step_wall(step_wall)


@frozen
class LocalAgent:
    """This library's agent in this process. Its skill `echo` answers, `fail` fails; `TOKENS` are its callers'.

    policy: without limits of rates, since laws send many requests at one moment.
    """

    clock: ManualClock
    policy: Policy = field(factory=lambda: Policy(peer_limits=()))

    def start(self) -> Agent:
        """Return the agent as it is after a start."""
        numbers = itertools.count()
        manifest = Manifest(
            id="urn:asap:agent:under-test", name="Under test", version="1.0.0", description="",
            capabilities=Capabilities(skills=tuple(Skill(id=each, description="") for each in ("echo", "fail"))),
            endpoints=Endpoints(asap="https://agent.example/asap"), auth=AuthScheme(schemes=("bearer",)),
        )  # fmt: skip
        agent = Agent(manifest, policy=self.policy)
        agent.bind(clock=self.clock, ids=lambda: f"made-{next(numbers)}", key=b"k" * 32)
        self.clock.advance(_UP_FOR)
        return agent


def local_executor(clock: ManualClock, *, policy: Policy | None = None) -> CallableExecutor:
    """Return an executor of this library's agent, without I/O.

    clock: the agent's clock.
    """
    made = LocalAgent(clock, *(() if policy is None else (policy,)))
    running = [made.start()]
    tokens = TokenTable(TOKENS)

    def send(request: HttpRequest) -> Answer:
        headers = tuple((name.lower().encode("latin-1"), text.encode("latin-1")) for name, text in request.headers)
        head = Request(method=request.method, target=request.target, headers=headers, peer="192.0.2.1")
        response = answer(running[0], tokens, head, request.body)
        fields = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers)
        raw = "".join([f"HTTP/1.1 {response.status}\r\n", *(f"{name}: {text}\r\n" for name, text in fields), "\r\n"])
        return Answer(response.status, fields, response.body, raw.encode("latin-1") + response.body)

    def restart() -> None:
        running[0] = made.start()

    return CallableExecutor(send, clock, restart)
