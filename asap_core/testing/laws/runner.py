"""Runs laws: carries each one's effects to an executor, records the exchanges, and makes the report.

Pure: what does I/O is the executor. There is one over sockets (`asap_adapters.conform`), and one in this process.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from typing import Final, Protocol, TypeVar, assert_never

from attrs import Factory, define, evolve, field, frozen

from asap_core.testing.laws.effects import (
    AdvanceClock,
    AnswersToBytes,
    Conversations,
    ConverseTogether,
    LawEffect,
    LawOutcome,
    Pause,
    ResetTarget,
    SendBytes,
    SendRequest,
    SendTogether,
    Steps,
    Together,
)
from asap_core.testing.laws.http_messages import Answer, HttpRequest
from asap_core.testing.laws.lab import PATIENCE, TOO_MANY_REQUESTS, Lab, asked_pause
from asap_core.testing.laws.law import Law
from asap_core.testing.laws.token_mask import TokenMask
from asap_core.testing.laws.verdicts import Breach, Kept, LawBroken, LawNotTried, Need, NotTried, Verdict

T = TypeVar("T")
# Bounds of one law: more is a mistake in the law, or a law that can't end.
_MOST_EFFECTS: Final = 2_000
_MOST_SECONDS: Final = 120.0
# Of a run: an agent that answers no call keeps most laws waiting for 10 s, and one that limits the rate for longer.
_LONGEST_RUN: Final = 3_600.0
# A rate limit has refused the one request.
_LIMITED: Final = [TOO_MANY_REQUESTS]
# An envelope counts for 300 s, and 30 s ahead; and a second, since dates are compared.
_WINDOW: Final = 331.0
# Of a remark, which may quote what the agent sent. The exchanges have all of it.
_LONGEST_REMARK: Final = 2_000


class Executor(Protocol):
    """Carries out effects on one agent. It never raises for what the agent does: that is an `Answer` too."""

    @property
    def offers(self) -> frozenset[Need]:
        """What this way of running can do: `Need.BYTES`, `Need.CLOCK`, `Need.RESET`."""
        ...

    def perform(self, effect: LawEffect) -> LawOutcome:
        """Carry out one effect."""
        ...


@frozen
class HookRun:
    """A hook of the agent's owner, which ran between two exchanges.

    what: what it did, for people.
    line: the command, as a line for a shell; empty if it's no command.
    """

    what: str
    line: str = ""


@frozen
class RecordedExchange:
    """What was sent on one connection, and what came back: exact bytes.

    request: if it was one request that a tool such as curl can repeat.
    pieces: if it wasn't: the bytes, and the pauses between them in seconds.
    at: when it was sent, in seconds since the Unix epoch, as if this law hadn't moved the clocks.
    seconds: how long it took, if it wasn't one request.
    failing: whether this is the one that breaks the law.
    hooks: which ran since the exchange before it.

    Names stand in place of callers' tokens, since reports are shown to others: see `TokenMask`.
    """

    sent: bytes = field(repr=False)
    received: bytes = field(repr=False)
    answer: str
    request: HttpRequest | None = field(default=None, repr=False)
    pieces: tuple[bytes | float, ...] = field(default=(), repr=False)
    at: float = 0.0
    seconds: float = 0.0
    failing: bool = False
    hooks: tuple[HookRun, ...] = ()


class LawResult(Enum):
    """How a law ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@frozen
class Result:
    """One law, what came out, and every exchange on the way."""

    law: Law
    verdict: Verdict
    exchanges: tuple[RecordedExchange, ...] = ()
    seconds: float = 0.0

    @property
    def outcome(self) -> LawResult:
        """The verdict in one word."""
        match self.verdict:
            case Kept():
                return LawResult.PASSED
            case Breach():
                return LawResult.FAILED
            case NotTried():
                return LawResult.SKIPPED
            case _:
                assert_never(self.verdict)

    @property
    def remark(self) -> str:
        """What was got instead, or why the law wasn't tried; empty if it's kept."""
        match self.verdict:
            case Kept():
                return ""
            case Breach(got):
                return got
            case NotTried(why):
                return why
            case _:
                assert_never(self.verdict)


@frozen
class Report:
    """All results of one run, in order.

    url: the agent's, as the user wrote it.
    """

    url: str
    agent: str
    profile: str
    results: tuple[Result, ...]
    seconds: float = 0.0

    def by_outcome(self, outcome: LawResult) -> list[Result]:
        """Return the results with this outcome."""
        return [each for each in self.results if each.outcome is outcome]

    def counts(self) -> dict[str, Counter[LawResult]]:
        """Return how many laws of each group ended how."""
        found: dict[str, Counter[LawResult]] = {}
        for each in self.results:
            found.setdefault(each.law.group, Counter())[each.outcome] += 1
        return found


@define
class Recorder:
    """Carries out effects and keeps the exchanges. Past its bounds it ends the law."""

    executor: Executor
    now: Callable[[], float]
    secrets: Mapping[str, str] = field(factory=dict, repr=False)
    wall: Callable[[], float] = lambda: 0.0
    exchanges: list[RecordedExchange] = field(factory=list)
    heard: list[tuple[Answer, ...]] = field(factory=list, repr=False)
    """The answers of each exchange, as laws have them."""
    clock_hook: str = ""
    reset_hook: str = ""
    hooks: list[HookRun] = field(factory=list)
    """Those that ran since the last exchange."""
    moved: float = 0.0
    """How far the wall clock was moved, in seconds."""
    set_back: float = 0.0
    """How far of it back."""
    began: float = 0.0
    effects: int = 0
    mask: TokenMask = Factory(lambda self: TokenMask.of(self.secrets), takes_self=True)

    def perform(self, effect: LawEffect) -> LawOutcome:
        """Carry out one effect. Raises LawNotTried if this law has done too much."""
        self.effects += 1
        if self.effects > _MOST_EFFECTS or self.now() - self.began > _MOST_SECONDS:
            raise LawNotTried(f"it took more than {_MOST_EFFECTS} effects or {_MOST_SECONDS:.0f} s")
        outcome, at, before = self._performed(effect)
        if isinstance(effect, AdvanceClock | ResetTarget):  # `now` may read the clock that is moved
            self.began += self.now() - before
            self._record_hook(effect)
        match effect, outcome:
            case SendRequest(request), Answer():
                self._record(request, outcome, at)
            case SendTogether(requests), Together(answers):
                for request, answer in zip(requests, answers, strict=True):
                    self._record(request, answer, at)
            case SendBytes(pieces), AnswersToBytes():
                self._record_bytes(pieces, outcome, at, self.now() - before)
            case ConverseTogether(conversations), Conversations(found):
                for each, got in zip(conversations, found, strict=True):
                    self._record_bytes(each.pieces, got, at, self.now() - before)
            case _:
                pass
        return outcome

    def _record_hook(self, effect: AdvanceClock | ResetTarget) -> None:
        match effect:
            case AdvanceClock(seconds, step_wall):
                for how, by in (("advance", round(seconds)), ("step", round(step_wall))):
                    if by:
                        self.hooks.append(
                            HookRun(f"clock: {how} {by}", _line(self.mask, self.clock_hook, f"{how} {by}"))
                        )
                self.moved += seconds + step_wall
                self.set_back += max(-step_wall, 0.0)
            case ResetTarget():
                self.hooks.append(HookRun("the agent is started again", _line(self.mask, self.reset_hook)))
            case _:
                assert_never(effect)

    def _keep(self, exchange: RecordedExchange) -> None:
        self.exchanges.append(evolve(exchange, at=exchange.at - self.moved, hooks=tuple(self.hooks)))
        self.hooks.clear()

    def _record_bytes(self, pieces: tuple[bytes | float, ...], got: AnswersToBytes, at: float, took: float) -> None:
        shown = self.mask.pieces(pieces)
        sent = b"".join(each for each in shown if isinstance(each, bytes))
        remark = self.mask.text("; ".join(map(str, got.answers)) or f"no whole answer, {len(got.rest)} bytes")
        received = self.mask.data(got.raw)
        self._keep(RecordedExchange(sent, received, remark, pieces=shown, at=at, seconds=took))
        self.heard.append(got.answers or (got.first,))

    def _performed(self, effect: LawEffect) -> tuple[LawOutcome, float, float]:
        """Return the outcome, and when the effect began by both clocks.

        Bytes that the rate limit refuses are sent again. A law that sends a request does so itself, since it may be
        about the limit.
        """
        attempts = 1
        while True:
            at, before = self.wall(), self.now()
            outcome = self.executor.perform(effect)
            if not isinstance(outcome, AnswersToBytes) or [each.status for each in outcome.answers] != _LIMITED:
                return outcome, at, before
            if attempts == PATIENCE:
                return outcome, at, before
            self.executor.perform(Pause(asked_pause(outcome.first)))
            attempts += 1

    def _record(self, request: HttpRequest, answer: Answer, at: float) -> None:
        shown = evolve(
            request,
            target=self.mask.text(request.target),
            headers=tuple((name, self.mask.text(value)) for name, value in request.headers),
            body=self.mask.data(request.body),
        )
        sent, received = self.mask.data(request.to_bytes()), self.mask.data(answer.raw)
        self._keep(RecordedExchange(sent, received, self.mask.text(str(answer)), shown, at=at))
        self.heard.append((answer,))

    def place(self, answer: Answer | None) -> int | None:
        """Return the index of the exchange that had this answer. None if none had it, as if a law made it of others."""
        same = (place for place, heard in enumerate(self.heard) if any(each is answer for each in heard))
        alike = (place for place, heard in enumerate(self.heard) if answer in heard)
        return next(same, next(alike, None))

    def breach(self, broken: LawBroken) -> Breach:
        """Mark the exchange that breaks the law, and return the verdict."""
        place, first = self.place(broken.answer), self.place(broken.unlike)
        example = f"{broken.example}: " if broken.example else ""
        got = f"{example}{broken.got}"
        if self.exchanges:
            place = -1 if place is None else place
            self.exchanges[place] = evolve(self.exchanges[place], failing=True)
        if broken.unlike is not None:
            other = "another" if first is None else f"exchange {first + 1}"
            got = f"{example}it differs from {other} in {broken.got}"
        return Breach(self.mask.text(got)[:_LONGEST_REMARK])

    def run(self, steps: Steps[T]) -> T:
        """Run a program to its end. Raises what it raises."""
        self.began = self.now()
        outcome: LawOutcome | None = None
        try:
            while True:
                effect = next(steps) if outcome is None else steps.send(outcome)
                outcome = self.perform(effect)
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            steps.close()


def _line(mask: TokenMask, command: str, arguments: str = "") -> str:
    return mask.text(f"{command} {arguments}".strip()) if command else ""


def run_law(law: Law, lab: Lab, executor: Executor, now: Callable[[], float]) -> Result:
    """Try one law. `now`: returns seconds on a monotonic clock."""
    missing = sorted(need.value for need in law.needs - lab.has)
    if missing:
        return Result(law, NotTried(f"it needs {' and '.join(missing)}"))
    recorder = Recorder(executor, now, lab.secrets, lab.wall, clock_hook=lab.clock_hook, reset_hook=lab.reset_hook)
    try:
        recorder.run(law.provoke(lab))
        verdict: Verdict = Kept()
    except LawBroken as broken:
        verdict = recorder.breach(broken)
    except LawNotTried as skipped:
        verdict = NotTried(recorder.mask.text(skipped.why)[:_LONGEST_REMARK])
    result = Result(law, verdict, tuple(recorder.exchanges), now() - recorder.began)
    if recorder.set_back:
        _let_it_pass(recorder.set_back, executor)
    return result


def _let_it_pass(set_back: float, executor: Executor) -> None:
    """Let the time pass in which an agent may refuse what is dated before the moment that its clock was set back from.

    The laws that follow aren't about that.
    """
    with suppress(LawNotTried):  # the hook fails: the next law that needs it says so
        executor.perform(AdvanceClock(set_back + _WINDOW))


def run_laws(laws: Sequence[Law], lab: Lab, executor: Executor, now: Callable[[], float]) -> Iterator[Result]:
    """Try laws, one after the other, for at most an hour. Those that are left then aren't tried."""
    spent = 0.0
    for law in laws:
        if spent < _LONGEST_RUN:
            result = run_law(law, lab, executor, now)
            spent += result.seconds
        else:
            result = Result(law, NotTried(f"the laws before it took more than {_LONGEST_RUN:.0f} s"))
        yield result
