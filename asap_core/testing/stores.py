"""Tests a store of your own against a naive model: nothing is admitted twice, no key is worked on twice, none is lost.

Laws. (1) The same sender, nonce and timestamp are admitted at most once, ever. (2) A nonce of a sender is admitted at
most once within `max_age + skew` seconds. (3) A key is looked up before the nonce: known keys use up no nonce. (4) A
used nonce reserves no key. (5) A key belongs to its caller. (6) While work runs its key answers `Running`; then what
was recorded, for `idempotency_ttl` seconds; or `OutcomeUnknown` if it was lost, or never reported. (7) All this holds
for all processes together, and if they ask at the same moment.
"""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier
from typing import Final, Protocol

from attrs import define, evolve
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from asap_core.admission.admission import (
    AdmissionAnswer,
    AdmissionQuestion,
    Admitted,
    Future,
    Mismatch,
    OutcomeUnknown,
    Reservation,
    Running,
    Stale,
    Stored,
)
from asap_core.admission.policy import Policy
from asap_core.admission.replay import Floored, Replayed
from asap_core.clock import ManualClock, WallTime
from asap_core.refusals import HANDLER_FAILED, Refusal
from asap_core.wire.handler_reply import Replied

_START: Final = WallTime(1_800_000_000.0)
_DEADLINE: Final = 30.0
# Seconds by which a store may notice late that time is over: a grace for work, rounding, a purge now and then.
_LATE: Final = 60.0
_RACES: Final = 10
# Seconds between changes of threads during a race: as often as Python can.
_SWITCH: Final = 1e-6
# A store whose clock was set back may refuse what is dated by another.
_BY_CLOCK: Final = (Stale, Future, Floored)


class AdmissionStore(Protocol):
    """What is tested. A store for an event loop is wrapped: each method runs its coroutine to the end."""

    def ask(self, question: AdmissionQuestion) -> AdmissionAnswer:
        """Answer one question, atomically."""
        ...

    def record(self, reservation: Reservation, outcome: Replied | Refusal, size: int) -> None:
        """Keep what the handler answered."""
        ...

    def lose(self, reservation: Reservation) -> None:
        """Note that the handler was stopped midway."""
        ...

    def give_back(self, reservation: Reservation) -> None:
        """Note that the handler never ran."""
        ...


PrepareStore = Callable[[ManualClock], Callable[[], AdmissionStore]]


def check_store(prepare: PrepareStore, *, policy: Policy | None = None, examples: int = 100, threads: int = 8) -> None:
    """Check a store of your own: random questions against a model, then questions from many threads at once.

    prepare: called with a clock that the test moves; makes an empty memory, and returns a function that opens a store
        over it, as every process does. If a store has `close()`, it's called in the end.
    policy: the one that the store was made for; `max_age`, `skew` and `idempotency_ttl` count.
    examples: how many random sequences of up to 40 steps are tried.
    threads: how many ask at once, each with a store opened in its thread. 0: none, for a store of one event loop.

    Raises: AssertionError, which says which law is broken; Hypothesis prints the shortest sequence that breaks it.
    """
    run_state_machine_as_test(
        store_machine(prepare, policy or Policy()),
        settings=settings(
            max_examples=examples, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
    if threads:
        race(prepare, threads)


def store_machine(prepare: PrepareStore, policy: Policy) -> type[RuleBasedStateMachine]:
    """Return the machine that `check_store` runs."""

    class StoreMachine(_StoreMachine):
        def __init__(self) -> None:
            super().__init__(prepare, policy)

    return StoreMachine


@define
class _Key:
    """What the model knows of a key. `sure`: whether the store must know it too."""

    question: AdmissionQuestion
    since: float
    reservation: Reservation
    state: str = "running"
    outcome: object = None
    sure: bool = True


def _nonce_of(question: AdmissionQuestion) -> tuple[object, ...]:
    return question.authenticated, question.sender, question.nonce


def _key_of(question: AdmissionQuestion) -> tuple[object, ...]:
    peer = "" if question.authenticated else question.peer
    return question.authenticated, peer, question.sender, question.idempotency_key


class _StoreMachine(RuleBasedStateMachine):
    """Two processes over one memory, and the model."""

    def __init__(self, prepare: PrepareStore, policy: Policy) -> None:
        super().__init__()
        self.clock, self.policy = ManualClock(wall=_START), policy
        opened = prepare(self.clock)
        self.stores = [opened(), opened()]
        self.asked: list[AdmissionQuestion] = []
        self.admitted: set[tuple[object, ...]] = set()
        self.nonces: dict[tuple[object, ...], float] = {}
        self.keys: dict[tuple[object, ...], _Key] = {}
        self.set_back = False

    def teardown(self) -> None:
        """Close both stores."""
        for store in self.stores:
            getattr(store, "close", lambda: None)()

    # --- rules -------------------------------------------------------------------------------------------------------

    @rule(
        which=st.integers(0, 1),
        sender=st.sampled_from(["urn:asap:agent:alice", "urn:asap:agent:bob"]),
        authenticated=st.booleans(),
        peer=st.sampled_from(["192.0.2.1", "192.0.2.2"]),
        nonce=st.none() | st.sampled_from(["n1", "n2", "n3"]),
        age=st.sampled_from([0.0, 1.0, -0.9, 0.9]),
        key=st.none() | st.sampled_from(["k1", "k2"]),
        digest=st.sampled_from([b"d1" * 8, b"d2" * 8]),
    )
    def a_request_arrives(  # noqa: PLR0917 - what a question consists of
        self,
        which: int,
        sender: str,
        authenticated: bool,  # noqa: FBT001 - by name, as Hypothesis calls it
        peer: str,
        nonce: str | None,
        age: float,
        key: str | None,
        digest: bytes,
    ) -> None:
        """A question whose timestamp is within the window by this process's clock: the core asks no others."""
        back = age * (self.policy.max_age if age > 0.0 else self.policy.skew)
        self.ask(
            which,
            AdmissionQuestion(
                sender=sender, authenticated=authenticated, peer=peer, nonce=nonce,
                issued=WallTime(self.clock.wall() - back * 0.99), idempotency_key=key,
                digest=b"" if key is None else digest, deadline=_DEADLINE,
            ),
        )  # fmt: skip

    @precondition(lambda self: self.asked)
    @rule(which=st.integers(0, 1), data=st.data(), keyed=st.booleans())
    def the_same_arrives_again(self, which: int, data: st.DataObject, *, keyed: bool) -> None:
        """A copy of an earlier question, with its key or without."""
        question = data.draw(st.sampled_from(self.asked))
        question = question if keyed else evolve(question, idempotency_key=None, digest=b"")
        wall = self.clock.wall()
        if wall - self.policy.max_age <= question.issued <= wall + self.policy.skew:
            self.ask(which, question)

    @precondition(lambda self: self.keys)
    @rule(which=st.integers(0, 1), data=st.data())
    def a_retry_arrives(self, which: int, data: st.DataObject) -> None:
        """A request with a key that was used, dated now, with a nonce of its own."""
        key = data.draw(st.sampled_from(list(self.keys.values())))
        self.ask(which, evolve(key.question, issued=self.clock.wall(), nonce=f"n{len(self.asked)} again"))

    @precondition(lambda self: self.running())
    @rule(which=st.integers(0, 1), data=st.data(), how=st.sampled_from(["replied", "refused", "lost", "free"]))
    def work_ends(self, which: int, data: st.DataObject, how: str) -> None:
        """The handler answers or refuses, is stopped midway, or never ran."""
        name = data.draw(st.sampled_from(self.running()))
        key, store = self.keys[name], self.stores[which]
        # Work that ends after its deadline: the store may know it as lost, and keep that.
        key.sure = key.sure and self.clock.monotonic() < key.since + _DEADLINE
        key.since = self.clock.monotonic()
        if how == "free":
            store.give_back(key.reservation)
            key.state = "free"
        elif how == "lost":
            store.lose(key.reservation)
            key.state = "lost"
        else:
            reply = Replied("task.response", {"task_id": "t", "status": "completed", "result": {"n": len(self.asked)}})
            outcome = reply if how == "replied" else Refusal(kind=HANDLER_FAILED, note="no", details={"why": "ü"})
            store.record(key.reservation, outcome, 100)
            key.state, key.outcome = "answered", outcome

    @rule(seconds=st.sampled_from([0.1, 10.0, 40.0, 200.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        """Time passes on both clocks."""
        self.clock.advance(seconds)

    @rule()
    def the_time_of_keys_passes(self) -> None:
        """So long that answers are forgotten."""
        self.clock.advance(self.policy.idempotency_ttl + 2 * _LATE + _DEADLINE)

    @precondition(lambda self: self.asked)
    @rule(which=st.integers(0, 1), data=st.data())
    def the_wall_clock_is_set_back(self, which: int, data: st.DataObject) -> None:
        """By an operator, or NTP: to the date of an earlier question, of which a copy then arrives."""
        question = data.draw(st.sampled_from(self.asked))
        wall = self.clock.wall()
        if question.issued < wall:
            # The store may use this moment to forget.
            self.ask(which, evolve(question, nonce=None, idempotency_key=None, digest=b"", issued=wall))
            self.clock.step_wall(question.issued - wall)
            self.set_back = True
            self.ask(which, evolve(question, idempotency_key=None, digest=b""))

    # --- the model ---------------------------------------------------------------------------------------------------

    def running(self) -> list[tuple[object, ...]]:
        """The keys whose work runs, as far as the model knows."""
        return [name for name, key in self.keys.items() if key.state == "running"]

    def ask(self, which: int, question: AdmissionQuestion) -> None:
        """Ask, and compare the answer with the model's."""
        self.asked.append(question)
        answer = self.stores[which].ask(question)
        if question.idempotency_key is not None and self.is_answer_of_key(question, answer):
            return
        self.expect_claim(question, answer)

    def is_answer_of_key(self, question: AdmissionQuestion, answer: AdmissionAnswer) -> bool:
        """Return whether the store knows the key. Fails if it must know it and doesn't, or the other way round."""
        key = self.keys.get(_key_of(question))
        of_keys = isinstance(answer, Stored | Running | Mismatch | OutcomeUnknown)
        if key is None or key.state == "free":
            assert not of_keys, f"a key that nobody of this caller has used is answered with {answer}"
            return False
        past = self.clock.monotonic() - key.since
        ends = self.policy.idempotency_ttl + (_DEADLINE if key.state == "running" else 0.0)
        if not of_keys:
            late = past >= ends - 1.0 or not key.sure
            assert late, f"a key whose work is {key.state} is forgotten after {past:g} s: {answer}"
            return False
        forgotten = past > ends + _LATE and not self.set_back
        assert not forgotten, f"a key is still known {past:g} s after its work, with a ttl of {ends:g} s: {answer}"
        if key.question.digest != question.digest:
            assert answer == Mismatch(), f"something else under a known key is answered with {answer}"
        elif key.state == "answered":
            known = answer == Stored(key.outcome) or (not key.sure and answer == OutcomeUnknown())
            assert known, f"expected the answer that was recorded, {key.outcome}, not {answer}"
        elif key.state == "lost":
            assert answer == OutcomeUnknown(), f"work that was lost is answered with {answer}"
        elif past < _DEADLINE:
            assert isinstance(answer, Running), f"running work is answered with {answer}"
        else:
            may_run = past < _DEADLINE + _LATE or self.set_back
            fits = answer == OutcomeUnknown() or (may_run and isinstance(answer, Running))
            assert fits, f"work that didn't end by its deadline is answered with {answer}"
        return True

    def expect_claim(self, question: AdmissionQuestion, answer: AdmissionAnswer) -> None:
        """Compare the answer to a question whose key isn't known, or that has none."""
        now, nonce = self.clock.monotonic(), _nonce_of(question)
        seen = question.nonce is not None and nonce in self.nonces
        window = self.policy.max_age + self.policy.skew
        if isinstance(answer, Admitted):
            again = (*nonce, question.issued) in self.admitted
            assert question.nonce is None or not again, "the same sender, nonce and timestamp are admitted twice"
            soon = seen and now < self.nonces[nonce] + window - 1.0
            assert not soon, "a nonce is admitted twice within max_age + skew"
            has = answer.reservation is not None
            assert has == (question.idempotency_key is not None), "a reservation is for a question with a key"
            self.nonces[nonce] = now
            self.admitted.add((*nonce, question.issued))
            if answer.reservation is not None:
                self.keys[_key_of(question)] = _Key(question, now, answer.reservation)
            return
        refused = seen and isinstance(answer, Replayed | Floored | Stale)
        by_clock = self.set_back and isinstance(answer, _BY_CLOCK)
        assert refused or by_clock, f"expected Admitted, since neither nonce nor key is known, not {answer}"


def race(prepare: PrepareStore, threads: int) -> None:
    """Ask from many threads at the same moment. Raises AssertionError if not exactly one is admitted."""
    clock = ManualClock(wall=_START)
    opened, start = prepare(clock), Barrier(threads)
    question = AdmissionQuestion(
        sender="urn:asap:agent:alice", authenticated=True, peer="192.0.2.1", nonce="", issued=_START,
        idempotency_key=None, digest=b"", deadline=_DEADLINE,
    )  # fmt: skip

    def one(number: int) -> list[AdmissionAnswer]:
        store, answers = opened(), []
        try:
            for race in range(_RACES):
                start.wait()
                answers.append(store.ask(evolve(question, nonce=f"n{race}")))
                keyed = evolve(question, nonce=f"k{race}-{number}", idempotency_key=f"k{race}", digest=b"d" * 16)
                start.wait()
                answers.append(store.ask(keyed))
        finally:
            start.abort() if len(answers) < 2 * _RACES else None
            with suppress(AttributeError):
                store.close()  # type: ignore[attr-defined]
        return answers

    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH)
    try:
        with ThreadPoolExecutor(threads) as pool:
            answers = list(zip(*pool.map(one, range(threads)), strict=True))
    finally:
        sys.setswitchinterval(before)
    for place, given in enumerate(answers):
        admitted = sum(isinstance(answer, Admitted) for answer in given)
        what = "key" if place % 2 else "nonce"
        assert admitted == 1, f"{threads} threads ask at once with one {what}; {admitted} are admitted: {given}"
