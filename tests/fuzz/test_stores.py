"""`check_store` accepts this library's own store and the guide's, and catches stores that break one law each."""

import re
import sqlite3
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from asap_core.admission.admission import (
    AdmissionAnswer,
    AdmissionQuestion,
    Admitted,
    LocalAdmission,
    Mismatch,
    Reservation,
    Running,
    Stored,
)
from asap_core.admission.policy import Policy
from asap_core.admission.replay import Replayed, StartPolicy
from asap_core.clock import ManualClock, Moment, WallTime
from asap_core.refusals import Refusal
from asap_core.testing import check_store
from asap_core.testing.stores import race, store_machine
from asap_core.wire.handler_reply import Replied

GUIDE = Path(__file__).parents[2] / "docs" / "stores.md"
Opener = Callable[[], Any]
# To catch a broken store is enough; the shortest way to it is of no interest.
HUNT = settings(
    max_examples=400, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck),
    phases=[Phase.generate], derandomize=True, database=None, print_blob=False, report_multiple_bugs=False,
)  # fmt: skip


class Local:
    """This library's own memory as a store."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        policy = Policy(start=StartPolicy.OPEN)
        self.admission = LocalAdmission.of(policy, key=b"k" * 32, wall=clock.wall())

    def ask(self, question: AdmissionQuestion) -> AdmissionAnswer:
        return self.admission.ask(question, at=Moment.read(self.clock))

    def record(self, reservation: Reservation, outcome: Replied | Refusal, size: int) -> None:
        self.admission.record(reservation, outcome, size=size, now=self.clock.monotonic())

    def lose(self, reservation: Reservation) -> None:
        self.admission.lose(reservation, now=self.clock.monotonic())

    def give_back(self, reservation: Reservation) -> None:
        self.admission.give_back(reservation, now=self.clock.monotonic())


def shared(kind: Callable[[ManualClock], Any]) -> Callable[[ManualClock], Opener]:
    """One store for all processes."""

    def prepare(clock: ManualClock) -> Opener:
        store = kind(clock)
        return lambda: store

    return prepare


def guide() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "stores"}
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL):
        exec(compile(block, "stores.md", "exec"), names)
    return names


def test_our_own_memory_is_right() -> None:
    check_store(shared(Local), examples=50, threads=0)


def test_the_guides_store_is_right(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names, numbers = guide(), count()
    monkeypatch.setitem(names, "mkdtemp", lambda: made(tmp_path / str(next(numbers))))
    names["test_my_store_is_right"]()


def made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def test_the_guides_store_refuses_what_it_cannot_decide(tmp_path: Path) -> None:
    names, clock = guide(), ManualClock(wall=WallTime(1_800_000_000.0))
    store = names["SqliteStore"](tmp_path / "a", clock)
    question = AdmissionQuestion(
        sender="urn:asap:agent:a", authenticated=True, peer="", nonce="n", issued=clock.wall(), idempotency_key=None,
        digest=b"", deadline=30.0,
    )  # fmt: skip
    assert type(store.ask(evolve(question, issued=WallTime(clock.wall() + 31)))).__name__ == "Future"
    names["MOST"] = 0
    assert type(store.ask(question)).__name__ == "Saturated"
    other = sqlite3.connect(tmp_path / "a", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store.db.execute("PRAGMA busy_timeout = 1")
    assert type(store.ask(question)).__name__ == "StoreUnavailable"
    store.close()
    other.close()


# --- defects, each against one law -----------------------------------------------------------------------------------


class Forgetful(Local):
    """Nonces are forgotten as soon as time passes."""

    def ask(self, question: AdmissionQuestion) -> AdmissionAnswer:
        if getattr(self, "last", None) not in (None, self.clock.monotonic()):
            self.__init__(self.clock)  # type: ignore[misc]
        self.last = self.clock.monotonic()
        return super().ask(question)


class NonceFirst(Local):
    """The nonce is claimed before the key is looked up."""

    def ask(self, question: AdmissionQuestion) -> AdmissionAnswer:
        claimed = super().ask(evolve(question, idempotency_key=None))
        return claimed if isinstance(claimed, Replayed) else super().ask(evolve(question, nonce=None))


class AnyDigest(Local):
    """Something else under the same key gets the first one's answer."""

    def ask(self, question: AdmissionQuestion) -> AdmissionAnswer:
        return super().ask(evolve(question, digest=b"" if question.idempotency_key is None else b"d"))


class KeysOfAll(Local):
    """Anonymous callers of several addresses share their keys."""

    def ask(self, question: AdmissionQuestion) -> AdmissionAnswer:
        return super().ask(evolve(question, peer=""))


class LosesAnswers(Local):
    """Answers aren't kept: the key is free again."""

    def record(self, reservation: Reservation, outcome: Replied | Refusal, size: int) -> None:
        self.give_back(reservation)


class RunsAgain(Local):
    """Work that was lost may be done again."""

    def lose(self, reservation: Reservation) -> None:
        self.give_back(reservation)


class RunsForEver(Local):
    """Work whose end nobody reports is said to run for ever."""

    def ask(self, question: AdmissionQuestion) -> AdmissionAnswer:
        answer = super().ask(question)
        return Running(0.5) if type(answer).__name__ == "OutcomeUnknown" else answer


class KeepsKeys(Local):
    """Answers are never forgotten."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        policy = Policy(start=StartPolicy.OPEN, idempotency_ttl=80_000.0)
        self.admission = LocalAdmission.of(policy, key=b"k" * 32, wall=clock.wall())


class RefusesAll(Local):
    """Nothing is admitted."""

    def ask(self, question: AdmissionQuestion) -> AdmissionAnswer:
        return Replayed()


class ChangesAnswers(Local):
    """What is kept isn't what was recorded."""

    def ask(self, question: AdmissionQuestion) -> AdmissionAnswer:
        answer = super().ask(question)
        return Stored(Replied("task.response", {})) if isinstance(answer, Stored) else answer


class NoReservation(Local):
    """A request with a key gets no reservation."""

    def ask(self, question: AdmissionQuestion) -> AdmissionAnswer:
        answer = super().ask(question)
        return Admitted(None) if isinstance(answer, Admitted) else answer


class Confused(Local):
    """A retry is taken for a misuse of its key."""

    def ask(self, question: AdmissionQuestion) -> AdmissionAnswer:
        answer = super().ask(question)
        return Mismatch() if isinstance(answer, Running | Stored) else answer


def prepare_apart(clock: ManualClock) -> Opener:
    """Each process remembers for itself."""
    return lambda: Local(clock)


def prepare_by_the_wall_clock(clock: ManualClock) -> Opener:
    """The guide's store, with a clock that runs backwards if the wall clock does."""
    names = guide()
    names["SCHEMA"] += "CREATE TRIGGER backwards AFTER DELETE ON nonces BEGIN UPDATE clock SET latest = 0; END;"
    store = names["SqliteStore"](":memory:", clock)
    store.close = lambda: None
    return lambda: store


@pytest.mark.planted
@pytest.mark.long
@pytest.mark.parametrize(
    "prepare",
    [
        *(
            pytest.param(shared(kind), id=kind.__name__)
            for kind in (
                Forgetful, NonceFirst, AnyDigest, KeysOfAll, LosesAnswers, RunsAgain, RunsForEver, KeepsKeys,
                RefusesAll, ChangesAnswers, NoReservation, Confused,
            )
        ),
        prepare_apart,
        prepare_by_the_wall_clock,
    ],
)  # fmt: skip
def test_a_store_that_breaks_a_law_is_caught(prepare: Callable[[ManualClock], Opener]) -> None:
    with pytest.raises(AssertionError, match=r"admitted|answered|expected|forgotten|known|reservation"):
        run_state_machine_as_test(store_machine(prepare, Policy()), settings=HUNT)


class LooksThenWrites(Local):
    """The nonce is looked up, and claimed later."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.seen: set[str | None] = set()

    def ask(self, question: AdmissionQuestion) -> AdmissionAnswer:
        if question.nonce in self.seen:
            return Replayed()
        time.sleep(0)
        self.seen.add(question.nonce)
        return Admitted(None)


@pytest.mark.planted
def test_a_store_that_looks_and_then_writes_is_caught_by_threads() -> None:
    with pytest.raises(AssertionError, match="threads ask at once with one nonce"):
        race(shared(LooksThenWrites), 8)
