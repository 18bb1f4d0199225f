"""Runs laws on a planted agent in this process: requests and raw bytes, under a clock that only the laws move.

A wait of a law moves the clock, so that time limits of 60 s cost no time.
"""

import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, assert_never

from attrs import evolve

from asap_core.clock import ManualClock
from asap_core.testing.laws.effects import (
    AdvanceClock,
    AnswersToBytes,
    Conversations,
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
from asap_core.testing.laws.http_messages import Answer, HttpRequest, read_answers
from asap_core.testing.laws.law import Law
from asap_core.testing.laws.runner import Recorder, Result, run_law
from asap_core.testing.laws.survey import AgentUnderTest, NoManifest, survey
from asap_core.testing.laws.verdicts import Breach, Need
from asap_core.testing.planted.agent import PlantedAgent
from asap_core.testing.planted.connection import PlantedConnection
from asap_core.testing.planted.messages import PlantedOptions

HOST: Final = "127.0.0.1:8000"
# Seconds since the agent's start when a law begins: old enough for any date in the window.
_UP_FOR: Final = 1_000.0


class PlantedExecutor:
    """An executor of a planted agent. Each effect has a connection of its own, as over sockets.

    breaks: the switches that are set.
    """

    offers: frozenset[Need] = frozenset({Need.BYTES, Need.CLOCK, Need.RESET, Need.DIRECT})

    def __init__(self, *breaks: str, options: PlantedOptions | None = None) -> None:
        self.clock = ManualClock()
        self.agent = PlantedAgent(options, breaks=breaks, monotonic=self.clock.monotonic, wall=self.clock.wall)

    def perform(self, effect: LawEffect) -> LawOutcome:
        """See `Executor`."""
        match effect:
            case SendRequest(request, seconds):
                return self._answer(request, seconds)
            case SendBytes():
                return self._said(effect)
            case ConverseTogether(conversations):  # one after the other: the clock stands still between them
                return Conversations(tuple(map(self._said, conversations)))
            case SendTogether(requests, seconds):
                with ThreadPoolExecutor(len(requests)) as threads:
                    sent = [threads.submit(self._answer, each, seconds) for each in requests]
                    return Together(tuple(each.result() for each in sent))
            case Pause(seconds):
                self.clock.advance(seconds)
            case AdvanceClock(seconds, step_wall):
                self.clock.advance(seconds)
                self.clock.step_wall(step_wall)
            case ResetTarget():
                self.agent.reset()
            case _:
                assert_never(effect)
        return Passed()

    def _said(self, effect: SendBytes) -> AnswersToBytes:
        return self._converse(effect.pieces, effect.answers, effect.seconds, effect.methods)

    def _answer(self, request: HttpRequest, seconds: float) -> Answer:
        got = self._converse((request.to_bytes(),), 1, seconds, (request.method,))
        return got.answers[0] if got.answers else Answer(raw=got.raw, problem="the answer isn't whole")

    def _converse(
        self, pieces: Sequence[bytes | float], answers: int, seconds: float, methods: Sequence[str]
    ) -> AnswersToBytes:
        talk = _Conversation(PlantedConnection(self.agent), self.clock)
        for piece in pieces:
            if isinstance(piece, bytes):
                talk.send(piece)
            else:
                talk.wait(piece)
        whole, rest = read_answers(bytes(talk.received), methods, closed=talk.connection.closed)
        if not answers or len(whole) < answers:
            talk.wait(max(0.0, seconds - talk.waited))
            whole, rest = read_answers(bytes(talk.received), methods, closed=talk.connection.closed)
        return AnswersToBytes(tuple(whole), rest, talk.connection.closed, bytes(talk.received))


@dataclass
class _Conversation:
    """One connection to the agent. waited: how long all waits took together, by the clock that they moved."""

    connection: PlantedConnection
    clock: ManualClock
    received: bytearray = field(default_factory=bytearray)
    waited: float = 0.0
    # What the agent waits for, and for how long already.
    phase: str = "idle"
    in_phase: float = 0.0

    def send(self, data: bytes) -> None:
        """Send bytes, and take what comes at once."""
        answered = self.connection.receive(data)
        self.received += answered
        if answered or self.connection.phase != self.phase:
            self.phase, self.in_phase = self.connection.phase, 0.0

    def wait(self, seconds: float) -> None:
        """Let time pass. The agent may end the connection meanwhile, because the peer is too slow."""
        if self.connection.closed:
            return
        left = self.connection.seconds_left(self.in_phase)
        passed = min(seconds, max(left, 0.0))
        self.clock.advance(passed)
        self.waited += passed
        self.in_phase += passed
        if left <= seconds:
            self.received += self.connection.timed_out()


# The callers of the agent, as a user of `asap conform` would name them.
_CALLERS: Final = AgentUnderTest(
    host=HOST,
    token="token-of-alice",  # noqa: S106 - of an agent in a test
    urn="urn:asap:agent:alice",
    other_token="token-of-bob",  # noqa: S106 - of an agent in a test
    other_urn="urn:asap:agent:bob",
    failing="fail",
    offers=PlantedExecutor.offers,
)


_GUARDED: Final = (_CALLERS, PlantedOptions())
_UNGUARDED: Final = (evolve(_CALLERS, token=None, other_token=None), PlantedOptions(tokens=()))
_WITHOUT_TOKEN: Final = (evolve(_CALLERS, token=None, urn=None, other_token=None, other_urn=None), PlantedOptions())


def tried(laws: Sequence[Law], *breaks: str) -> list[Result]:
    """Try laws on an agent with these switches set, each after a start.

    Those that need an agent without authentication get one.
    """
    guarded, unguarded = _Trial(breaks, *_GUARDED), _Trial(breaks, *_UNGUARDED)
    return [(unguarded if Need.OPEN in law.needs else guarded).of(law) for law in laws]


def tried_without_a_token(laws: Sequence[Law]) -> list[Result]:
    """Try laws on the correct agent, which requires a token, as if the user had none."""
    trial = _Trial((), *_WITHOUT_TOKEN)
    return [trial.of(law) for law in laws]


def asked_for(law: Law) -> frozenset[str]:
    """Try a law on the correct agent, and return the switches that could have changed anything."""
    trial = _Trial((), *_GUARDED) if Need.OPEN not in law.needs else _Trial((), *_UNGUARDED)
    trial.of(law)
    return frozenset(trial.executor.agent.broken.asked)


class _Trial:
    def __init__(self, breaks: Sequence[str], described: AgentUnderTest, options: PlantedOptions) -> None:
        self.executor = PlantedExecutor(*breaks, options=options)
        self.numbers = itertools.count()
        steps = survey(described, wall=self.executor.clock.wall, ids=self._new_id)
        self.lab = Recorder(self.executor, time.monotonic).run(steps)

    def _new_id(self) -> str:
        """Return an id as they are in use: random text, but the same in each run."""
        return sha256(b"%d" % next(self.numbers)).hexdigest()[:32]

    def of(self, law: Law) -> Result:
        if isinstance(self.lab, NoManifest):
            return Result(law, Breach(self.lab.got))
        self.executor.agent.reset()
        self.executor.clock.advance(_UP_FOR)
        self.numbers = itertools.count()
        return run_law(law, self.lab, self.executor, time.monotonic)
