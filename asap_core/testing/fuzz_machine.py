"""Draws sequences of moves against a live agent, and shrinks one that breaks a law to the shortest that still does."""

from collections.abc import Callable, Iterator
from typing import ClassVar, Final, ParamSpec, TypeVar

import hypothesis
from attrs import define, evolve, field, frozen
from hypothesis import HealthCheck, Phase, Verbosity, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from asap_core.testing.fuzz_moves import BROKEN, BROKEN_CALLS, BROKEN_STRICTLY, FORGED, TEXTS, VALID, Coverage, Session
from asap_core.testing.laws.lab import Lab
from asap_core.testing.laws.runner import Executor, RecordedExchange, Recorder
from asap_core.testing.laws.verdicts import LawBroken, Need, RateLimited
from asap_core.testing.strategies import any_bodies

P = ParamSpec("P")
F = TypeVar("F", bound=Callable[..., object])
# Sequences between two looks at the clock and two lines of progress.
_BATCH: Final = 10
_INDICES: Final = st.integers(0, 9)


@frozen
class Finding:
    """A sequence that was answered wrongly.

    got: what the agent did at the last move.
    expected: what that move expects, as a sentence.
    test: a pytest test that repeats the sequence.
    again: whether it happened each time that it was repeated.
    """

    got: str
    expected: str
    test: str
    exchanges: tuple[RecordedExchange, ...]
    again: bool = True


@define
class FuzzRun:
    """One run of `asap fuzz`. `strict`: as in the profile strict."""

    lab: Lab
    executor: Executor
    now: Callable[[], float]
    strict: bool = True
    steps: int = 15
    coverage: Coverage = field(factory=Coverage)
    finding: Finding | None = None
    sequences: int = 0
    """Those that were tried, without those that shrink a finding."""
    most: int = 0

    def batches(self, count: int, seconds: float, seed: int) -> Iterator[int]:
        """Try sequences, and yield their number so far, until one breaks a law, or `count` or the time is reached."""
        end, self.most = self.now() + seconds, count
        while self.sequences < count and self.now() < end and self.finding is None:
            self._try(min(_BATCH, count - self.sequences), seed + self.sequences)
            yield self.sequences

    def _try(self, examples: int, seed: int) -> None:
        chosen = settings(
            max_examples=examples, stateful_step_count=self.steps, deadline=None, database=None,
            suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
            verbosity=Verbosity.quiet, report_multiple_bugs=False, print_blob=False,
        )  # fmt: skip
        try:
            machine = type("FuzzMachine", (FuzzMachine,), {"run": self})
            run_state_machine_as_test(hypothesis.seed(seed)(machine), settings=chosen)
        except (LawBroken, hypothesis.errors.Unsatisfiable):  # or no sequence was left
            pass
        except hypothesis.errors.Flaky:
            self.finding = None if self.finding is None else evolve(self.finding, again=False)

    @property
    def requests(self) -> int:
        """How many requests were sent."""
        return sum(outcomes.total() for outcomes in self.coverage.outcomes.values())

    def begin(self) -> tuple[Session, Recorder]:
        """Begin a sequence. Hypothesis draws some more than it was asked for: past `most`, they're dropped."""
        if self.finding is None:  # or else it's being shrunk
            hypothesis.assume(self.sequences < self.most)
            self.sequences += 1
        recorder = Recorder(self.executor, self.now, self.lab.secrets, self.lab.wall)
        return Session(self.lab, recorder.run, self.coverage), recorder


def _if(*needs: Need, strict: bool = False, called: bool = False, keyed: bool = False) -> Callable[[F], F]:
    """Make the precondition of a rule: what the run has, and whether this session has sent a call (under a key)."""

    def holds(machine: "FuzzMachine") -> bool:
        run = machine.run
        if not set(needs) <= run.lab.has or (strict and not run.strict):
            return False
        return bool(machine.keyed if keyed else machine.session.calls if called else True)

    return precondition(holds)


class FuzzMachine(RuleBasedStateMachine):
    """Draws moves. A subclass for each run has its `run`."""

    run: ClassVar[FuzzRun]

    def __init__(self) -> None:
        super().__init__()
        self.session, self.recorder = self.run.begin()

    @property
    def keyed(self) -> list[int]:
        """The indices of calls under a key."""
        return [index for index, call in enumerate(self.session.calls) if call.key is not None]

    def _do(self, move: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            move(*args, **kwargs)
        except RateLimited:  # this move says nothing about the agent
            return
        except LawBroken as broken:
            found = Finding(broken.got, move.__doc__ or "", self.session.test(), tuple(self.recorder.exchanges))
            shortest = self.run.finding
            if shortest is None or len(found.exchanges) <= len(shortest.exchanges):
                self.run.finding = found
            raise

    @_if(Need.SKILL)
    @rule()
    def a_plain_call(self) -> None:
        """A valid call. See `Session`, as for all others.

        Hypothesis draws the rule most that has no arguments and the first name. Others need such calls before them.
        """
        self._do(self.session.honest_call, "plain")

    @_if(Need.SKILL)
    @rule(variant=st.sampled_from([*VALID]))
    def honest_call(self, variant: str) -> None:
        """A valid call, with fields left out or set."""
        self._do(self.session.honest_call, variant)

    @_if(Need.SKILL)
    @rule(variant=st.sampled_from([*TEXTS]))
    def other_text(self, variant: str) -> None:
        """The same call, written otherwise."""
        self._do(self.session.other_text, variant)

    @_if(called=True)
    @rule(index=_INDICES)
    def same_again(self, index: int) -> None:
        """A replay."""
        self._do(self.session.same_again, index)

    @_if(called=True)
    @rule(index=_INDICES)
    def nonce_again(self, index: int) -> None:
        """A nonce that was used."""
        self._do(self.session.nonce_again, index)

    @rule(variant=st.sampled_from([*BROKEN]))
    def broken_call(self, variant: str) -> None:
        """An envelope that breaks one rule."""
        self._do(self.session.broken_call, variant)

    @_if(strict=True)
    @rule(variant=st.sampled_from([*BROKEN_STRICTLY]))
    def strictly_broken_call(self, variant: str) -> None:
        """An envelope that breaks one rule of the profile strict."""
        self._do(self.session.broken_call, variant)

    @rule(variant=st.sampled_from([*BROKEN_CALLS]))
    def broken_request(self, variant: str) -> None:
        """A request that isn't JSON-RPC's."""
        self._do(self.session.broken_request, variant)

    @rule(body=any_bodies())
    def any_body(self, body: bytes) -> None:
        """Any bytes."""
        self._do(self.session.any_body, body)

    @rule()
    def manifest(self) -> None:
        """The manifest."""
        self._do(self.session.manifest)

    @_if(Need.SKILL, Need.IDEMPOTENCY)
    @rule(variant=st.sampled_from([*VALID]))
    def keyed_call(self, variant: str) -> None:
        """A call under a key."""
        self._do(self.session.keyed_call, variant)

    @_if(Need.IDEMPOTENCY, strict=True, keyed=True)
    @rule(index=_INDICES)
    def key_again(self, index: int) -> None:
        """The same request under its key."""
        self._do(self.session.key_again, self.keyed[index % len(self.keyed)])

    @_if(Need.IDEMPOTENCY, strict=True, keyed=True)
    @rule(index=_INDICES)
    def key_of_another(self, index: int) -> None:
        """Another request under a key."""
        self._do(self.session.key_of_another, self.keyed[index % len(self.keyed)])

    @_if(Need.AUTH)
    @rule()
    def anonymous(self) -> None:
        """A call without a token."""
        self._do(self.session.anonymous)

    @_if(Need.AUTH, Need.OTHER)
    @rule()
    def forged_sender(self) -> None:
        """Another sender than the token's."""
        self._do(self.session.forged_sender)

    @_if(Need.OTHER, strict=True, called=True)
    @rule(index=_INDICES)
    def same_nonce_of_another(self, index: int) -> None:
        """A nonce that another caller used."""
        self._do(self.session.same_nonce_of_another, index)

    @_if(Need.BATCH, called=True)
    @rule(chosen=st.lists(st.sampled_from([*VALID, FORGED, *BROKEN]) | _INDICES, min_size=1, max_size=4))
    def batch(self, chosen: list[str | int]) -> None:
        """Several requests at once."""
        self._do(self.session.batch, chosen)
