"""The one question, asked atomically: the key first, then the nonce."""

import pytest
from attrs import evolve

from asap_core.admission.admission import (
    AdmissionQuestion,
    Admitted,
    AnswerGone,
    LocalAdmission,
    Mismatch,
    OutcomeUnknown,
    Running,
    Stored,
)
from asap_core.admission.policy import Policy
from asap_core.admission.replay import Floored, Replayed, Saturated, StartPolicy
from tests.moments import moment

START = 1_750_000_000.0
QUESTION = AdmissionQuestion(
    sender="urn:asap:agent:a", authenticated=True, peer="192.0.2.1", nonce="n", issued=START,  # type: ignore[arg-type]
    idempotency_key="k", digest=b"d", deadline=30.0,
)  # fmt: skip


@pytest.fixture
def admission():
    def make(**policy):
        fields = Policy(**{"start": StartPolicy.OPEN, **policy})
        return LocalAdmission.of(fields, key=b"k" * 32, wall=START)  # type: ignore[arg-type]

    return make


def ask(admission, *, at=0.0, **changes):
    question = evolve(QUESTION, **{"issued": START + at, **changes})
    return admission.ask(question, at=moment(at, START + at))


def test_without_a_key_only_the_nonce_counts(admission) -> None:
    asked = admission()
    assert ask(asked, idempotency_key=None) == Admitted(None)
    assert ask(asked, idempotency_key=None) == Replayed()
    assert ask(asked, idempotency_key=None, nonce=None) == Admitted(None)


def test_a_retry_gets_the_first_answer_even_with_the_same_nonce(admission) -> None:
    asked = admission()
    reservation = ask(asked).reservation
    assert ask(asked) == Running(0.5)
    asked.record(reservation, "answer", size=6, now=0.0)
    assert ask(asked) == Stored("answer")
    assert ask(asked, nonce="fresh") == Stored("answer")


def test_a_new_key_with_a_used_nonce_is_a_replay_and_reserves_nothing(admission) -> None:
    asked = admission()
    ask(asked)
    assert ask(asked, idempotency_key="k2") == Replayed()
    assert isinstance(ask(asked, idempotency_key="k2", nonce="n2"), Admitted)


def test_another_digest_under_the_key_is_a_mismatch_and_uses_no_nonce(admission) -> None:
    asked = admission()
    ask(asked)
    assert ask(asked, digest=b"other", nonce="n2") == Mismatch()
    assert isinstance(ask(asked, idempotency_key="k2", nonce="n2"), Admitted)


@pytest.mark.parametrize(
    "changes",
    [
        {"sender": "urn:asap:agent:b"},
        {"authenticated": False},
        {"idempotency_key": "k2"},
    ],
)
def test_a_key_belongs_to_the_caller_that_used_it(admission, changes) -> None:
    asked = admission()
    ask(asked)
    assert isinstance(ask(asked, nonce="n2", **changes), Admitted)


def test_an_anonymous_key_belongs_to_its_address_too(admission) -> None:
    asked = admission()
    ask(asked, authenticated=False)
    assert isinstance(ask(asked, authenticated=False, nonce="n2", peer="192.0.2.2"), Admitted)
    assert ask(asked, authenticated=False, nonce="n3") == Running(0.5)


def test_a_caller_without_an_address_is_distinct_from_an_authenticated_one(admission) -> None:
    asked = admission()
    ask(asked, peer="")
    assert isinstance(ask(asked, authenticated=False, peer="", nonce="n2"), Admitted)


def test_an_authenticated_caller_may_change_its_address(admission) -> None:
    asked = admission()
    ask(asked)
    assert ask(asked, peer="192.0.2.2") == Running(0.5)


def test_a_lost_call_is_outcome_unknown_and_a_call_that_never_ran_frees_its_key(admission) -> None:
    asked = admission()
    asked.lose(ask(asked).reservation, now=1.0)
    assert ask(asked, at=2.0) == OutcomeUnknown()
    asked.give_back(ask(asked, idempotency_key="k2", nonce="n2").reservation, now=1.0)
    assert ask(asked, idempotency_key="k2", nonce="n2") == Replayed()
    assert isinstance(ask(asked, idempotency_key="k2", nonce="n3"), Admitted)


def test_an_evicted_answer_is_reported_as_gone(admission) -> None:
    asked = admission(idempotency_bytes=10)
    asked.record(ask(asked).reservation, "answer", size=11, now=0.0)
    assert ask(asked) == AnswerGone()


def test_a_table_full_of_keys_is_saturated_and_uses_no_nonce(admission) -> None:
    asked = admission(idempotency_entries=1)
    ask(asked)
    assert isinstance(ask(asked, idempotency_key="k2", nonce="n2"), Saturated)
    assert ask(asked, idempotency_key=None, nonce="n2") == Admitted(None)


def test_the_start_policy_exact_refuses_envelopes_dated_before_the_start(admission) -> None:
    assert isinstance(ask(admission(start=StartPolicy.EXACT)), Floored)


def test_a_snapshot_carries_over_all_nonces_and_keys(admission) -> None:
    before = admission()
    before.record(ask(before).reservation, "answer", size=6, now=0.0)
    ask(before, idempotency_key="running", nonce="other")
    guard, kept = before.snapshot(now=5.0)
    assert len(kept) == len(before.snapshot_of_keys(now=5.0)) == 2
    after = admission()
    after.restore(guard, kept, floor=START + 1000, now=0.0)
    assert ask(after, idempotency_key=None) == Replayed()
    assert ask(after) == Stored("answer")
    assert ask(after, idempotency_key="running") == OutcomeUnknown()
    assert ask(after, idempotency_key=None, nonce="fresh") == Admitted(None)


def test_without_a_snapshot_a_floor_is_restored(admission) -> None:
    after = admission()
    after.restore(None, (), floor=START + 10, now=0.0)
    assert isinstance(ask(after), Floored)
    assert isinstance(ask(after, at=11), Admitted)
    nothing = admission()
    nothing.restore(None, (), floor=None, now=0.0)
    assert isinstance(ask(nothing), Admitted)
    with pytest.raises(ValueError, match="snapshot"):
        nothing.restore(b"x", (), floor=None, now=0.0)


def test_all_anonymous_callers_share_one_quota_of_answers(admission) -> None:
    """An anonymous caller with ever new names evicts answers of anonymous callers, and none of a principal."""
    asked = admission(idempotency_bytes=100)

    def answered(key: str, size: int, **who) -> None:
        reservation = ask(asked, nonce=key, idempotency_key=key, **who).reservation
        asked.record(reservation, "answer", size=size, now=0.0)

    answered("mine", 40)
    for number in range(6):
        answered(f"other{number}", 30, sender=f"urn:asap:agent:stranger{number}", authenticated=False)
    assert ask(asked, nonce="retry", idempotency_key="mine") == Stored("answer")
