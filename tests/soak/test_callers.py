"""What the soak calls a fault. The soak itself is a command."""

import pytest

from tests.soak.callers import Tally, Work, judge
from tests.soak.world import Outage

RUN = ("run-1", 7, 10.0)


def work(*, answered: tuple[str, ...] = (), unknown: bool = False) -> Work:
    return Work("w", "key", 0.5, 9.0, 20.0, 2, set(answered), unknown)


@pytest.mark.parametrize(
    ("done", "runs", "outages"),
    [
        (work(answered=("run-1",)), [RUN], []),
        (work(unknown=True), [RUN], [Outage(7, 10.2, 11.2)]),
        (work(unknown=True), [RUN], [Outage(0, 11, 12)]),
        (work(unknown=True), [], [Outage(8, 15, 16)]),
        (work(), [RUN], []),
    ],
    ids=["answered", "its worker was killed", "Redis was away", "killed before it ran", "given up by its caller"],
)
def test_one_right_answer_or_an_unknown_outcome_with_a_reason_is_no_fault(done, runs, outages) -> None:
    assert judge(Tally(works=[done]), {"w": runs}, outages) == []


@pytest.mark.parametrize(
    ("done", "runs", "outages", "says"),
    [
        (work(answered=("run-1",)), [RUN, ("run-2", 7, 11.0)], [], "done 2 times"),
        (work(answered=("run-2",)), [RUN], [], "which no handler returned"),
        (work(answered=("run-1", "run-2")), [RUN], [], "has several answers"),
        (work(unknown=True), [RUN], [], "nothing was killed"),
        (work(unknown=True), [RUN], [Outage(8, 10.2, 11.2)], "nothing was killed"),
        (work(unknown=True), [RUN], [Outage(0, 15, 16)], "nothing was killed"),
        (work(unknown=True), [], [Outage(8, 1, 2)], "nothing was killed"),
    ],
    ids=["twice", "wrong", "two answers", "no reason", "another worker", "Redis later", "long before"],
)
def test_anything_else_is_a_fault(done, runs, outages, says: str) -> None:
    assert any(says in fault for fault in judge(Tally(works=[done]), {"w": runs}, outages))


def test_what_a_caller_saw_itself_is_a_fault() -> None:
    assert judge(Tally(faults=["w: closed without an answer"]), {}, []) == ["w: closed without an answer"]
