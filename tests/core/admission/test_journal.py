"""The journal: what must be on disk before an answer, and what a start makes of it."""

from typing import Any

import pytest

from asap_core import Policy, Replied, StartPolicy
from asap_core.admission.admission import AdmissionQuestion, Admitted, OutcomeUnknown, Stored
from asap_core.admission.journal import Journal
from asap_core.admission.replay import Floored
from asap_core.admission.state_file import (
    StateOwner,
    identity_record,
    read_state,
    snapshot_record,
    write_state,
)
from asap_core.errors import BadState
from tests.moments import moment

OWNER = StateOwner("urn:asap:agent:a", b"k" * 32, 300.0, 30.0)
REPLIED = Replied("task.response", {"task_id": "t", "status": "completed"})
POLICY = Policy(start=StartPolicy.OPEN)


def whole(*records):
    return write_state([identity_record(OWNER), *records])


def begin(data=None, **changes):
    fields: Any = {"agent_id": OWNER.agent_id, "policy": POLICY, "key": b"k" * 32, "at": moment(0.0, 1000.0)}
    return Journal.begin(data, **{**fields, **changes})


def question_of(**changes):
    fields: Any = {
        "sender": "s", "authenticated": True, "peer": "", "nonce": "n", "issued": 1000.0, "idempotency_key": None,
        "digest": b"d" * 16, "deadline": 30.0,
    }  # fmt: skip
    return AdmissionQuestion(**{**fields, **changes})


def ask(journal, question, *, at=0.0):
    return journal.ask(question, at=moment(at, 1000.0 + at))


def test_a_lease_is_requested_before_it_is_needed_and_counts_once_written() -> None:
    journal, asked = begin(), question_of()
    lease = journal.lease_for(asked)
    assert lease.until == 1005.0
    assert journal.lease_for(asked) == lease
    journal.leased(lease)
    assert journal.lease_for(asked) is None
    assert journal.lease_for(question_of(issued=1005.0)) is None
    assert journal.lease_for(question_of(issued=1005.1)).until == pytest.approx(1010.1)
    # A late word of an earlier one takes nothing back.
    journal.leased(journal.lease_for(question_of(issued=1020.0)))
    journal.leased(lease)
    assert journal.lease_for(question_of(issued=1025.0)) is None


def test_a_compacted_file_has_a_lease_that_is_not_written_yet() -> None:
    journal = begin()
    journal.lease_for(question_of(issued=1020.0))
    journal.lease_for(question_of(issued=1010.0))
    assert read_state(journal.compacted(now=0.0)).leased == 1025.0


def test_a_key_is_written_before_its_work_begins() -> None:
    journal, keyed = begin(), question_of(idempotency_key="k")
    assert journal.reservation_record(question_of(), ask(journal, question_of())) is None
    answer = ask(journal, question_of(idempotency_key="k", nonce="m"))
    record = journal.reservation_record(keyed, answer)
    assert read_state(whole(record)).kept[0].digest == keyed.digest
    assert journal.reservation_record(keyed, ask(journal, keyed)) is None


@pytest.mark.parametrize(
    ("start", "leased"), [(StartPolicy.OPEN, None), (StartPolicy.FLOOR, 1000.0), (StartPolicy.EXACT, 1030.0)]
)
def test_without_a_file_the_start_policy_sets_the_first_lease(start, leased) -> None:
    journal = begin(policy=Policy(start=start))
    assert read_state(journal.compacted(now=0.0)).leased == leased


def test_an_orderly_end_is_distinct_from_a_crash() -> None:
    journal, asked = begin(), question_of(idempotency_key="k")
    journal.leased(journal.lease_for(asked))
    reservation = ask(journal, asked).reservation
    journal.record(reservation, REPLIED, size=5, now=1.0)
    crashed = begin(journal.compacted(now=1.0), policy=Policy())
    assert ask(crashed, asked) == OutcomeUnknown()
    assert isinstance(ask(crashed, question_of(nonce="new")), Floored)
    ended = begin(journal.final(now=1.0), policy=Policy())
    assert ask(ended, asked) == Stored(REPLIED)
    assert ask(ended, question_of(nonce="new")) == Admitted(None)


def test_after_an_orderly_end_an_answer_is_kept_no_longer_than_before() -> None:
    policy, asked = Policy(start=StartPolicy.OPEN, idempotency_ttl=100.0), question_of(idempotency_key="k")
    journal = begin(policy=policy)
    journal.record(ask(journal, asked).reservation, REPLIED, size=5, now=1.0)
    again = begin(journal.final(now=91.0), policy=policy)
    assert ask(again, asked, at=9.9) == Stored(REPLIED)
    assert isinstance(ask(again, question_of(idempotency_key="k", nonce="m"), at=10.0), Admitted)


def test_a_call_that_never_began_frees_its_key_and_a_lost_call_does_not() -> None:
    journal = begin()
    for leave, then in ((journal.give_back, Admitted), (journal.lose, OutcomeUnknown)):
        keyed = question_of(idempotency_key=leave.__name__, nonce=leave.__name__)
        leave(ask(journal, keyed).reservation, now=1.0)
        again = question_of(idempotency_key=leave.__name__, nonce=f"{leave.__name__} again")
        assert type(ask(journal, again, at=1.0)) is then


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"agent_id": "urn:asap:agent:b"}, "state of urn:asap:agent:b"), ({"policy": Policy(skew=10.0)}, "skew=10")],
)
def test_the_file_of_another_agent_or_window_is_refused(changes, expected) -> None:
    data = begin().compacted(now=0.0)
    with pytest.raises(BadState, match=expected):
        begin(data, **changes)


def test_an_invalid_snapshot_is_refused() -> None:
    with pytest.raises(BadState, match="snapshot"):
        begin(whole(snapshot_record(b"x", ())))
