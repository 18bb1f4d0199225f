"""The state file: what was written is found, what was cut off wasn't acted upon, and nothing else is taken for one."""

import contextlib
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from asap_core import Policy, Refusal, Replied, StartPolicy
from asap_core.admission import state_file as state
from asap_core.admission.admission import AdmissionQuestion, Admitted, OutcomeUnknown, Stored
from asap_core.admission.idempotency import IdempotencyTable, SavedKey
from asap_core.admission.journal import Journal
from asap_core.admission.replay import Floored
from asap_core.admission.state_file import SavedState, StateOwner, read_state
from asap_core.errors import BadState
from asap_core.refusals import HANDLER_FAILED
from tests.moments import moment

WHO = StateOwner("urn:asap:agent:a", b"k" * 32, 300.0, 30.0)
REPLIED = Replied("task.response", {"task_id": "t", "status": "completed"})
KEPT = (
    SavedKey(b"a" * 16, b"A" * 16, REPLIED, 100, 12.5, answered=True),
    SavedKey(b"b" * 16, b"B" * 16, Refusal(kind=HANDLER_FAILED, note="no", details={"x": 1}), 50, 1.0, answered=True),
    SavedKey(b"c" * 16, b"C" * 16, None, 0, 600.0, answered=False),
)


found: Any = SavedState


def lease(until):
    return state.lease_record(until)


def whole(*records):
    return state.write_state([state.identity_record(WHO), *records])


def test_what_was_written_is_found() -> None:
    assert read_state(whole()) == SavedState(WHO, None, None, ())
    written = whole(lease(5.0), state.snapshot_record(b"guard", KEPT))
    assert read_state(written) == found(WHO, 5.0, b"guard", KEPT)


def test_a_file_of_the_first_version_is_read() -> None:
    written = (
        b'asap-sansio state 1\n\x00\x00\x01_\xc3\x8b\xa28Q-\x96|I\x00\x00\x00\x81{"agent":"urn:asap:agent:a"'
        b',"key":"6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b'
        b'6b6b6b6b","max_age":300.0,"skew":30.0}L\x00\x00\x00\x08@\x14\x00\x00\x00\x00\x00\x00R\x00\x00\x00 dddddddd'
        b'ddddddddDDDDDDDDDDDDDDDDS\x00\x00\x00\xa2\x00\x00\x00\x99[["6262626262626262626262626262'
        b'6262","42424242424242424242424242424242",{"refused":"asap:rpc/in'
        b'ternal_error","note":"no","details":{"x":1}},50,1.0,true]]guard'
    )  # fmt: skip
    kept = (SavedKey(b"d" * 16, b"D" * 16, None, 0, 0.0, answered=False), KEPT[1])
    assert read_state(written) == found(WHO, 5.0, b"guard", kept)


def test_what_was_appended_is_found_and_ends_the_snapshot() -> None:
    written = whole(lease(5.0), state.snapshot_record(b"guard", KEPT[:1]))
    written += state.write_batch([lease(9.0), state.reservation_record(b"d" * 16, b"D" * 16)]) + state.write_batch(
        [lease(7.0)]
    )
    found = read_state(written)
    assert (found.leased, found.guard) == (9.0, None)
    assert found.kept == (KEPT[0], SavedKey(b"d" * 16, b"D" * 16, None, 0, 0.0, answered=False))


def test_a_batch_that_was_cut_off_was_not_acted_upon() -> None:
    start = whole(lease(5.0))
    last = state.write_batch([lease(9.0), state.reservation_record(b"d" * 16, b"D" * 16)])
    for cut in range(len(last)):
        assert read_state(start + last[:cut]) == found(WHO, 5.0, None, ())
        # A file system may have made room for what it didn't write.
        assert read_state(start + last[:cut] + bytes(len(last) - cut)).leased in (5.0, 9.0)
    assert read_state(start + last).leased == 9.0


def test_damage_anywhere_else_is_refused() -> None:
    start, middle, last = whole(lease(5.0)), state.write_batch([lease(9.0)]), state.write_batch([lease(11.0)])
    written = start + middle + last
    for at in range(len(start + middle)):
        damaged = written[:at] + bytes([written[at] ^ 0x40]) + written[at + 1 :]
        with pytest.raises(BadState):
            read_state(damaged)
    for cut in range(len(start)):
        with pytest.raises(BadState):
            read_state(written[:cut])


def test_damage_in_the_last_batch_never_makes_more_of_it() -> None:
    start, last = whole(lease(5.0)), state.write_batch([lease(9.0)])
    for at in range(len(last)):
        damaged = last[:at] + bytes([last[at] ^ 0x40]) + last[at + 1 :]
        with contextlib.suppress(BadState):
            assert read_state(start + damaged).leased == 5.0


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"asap-sansio state 2\n", state.write_state([]), state.write_state([lease(1.0)]),
     state.write_state([state._record(b"I", b"{}")]), whole(state._record(b"X", b"")), whole(state._record(b"L", b"x")),
     whole(state._record(b"S", b"\x00\x00\x00\x05[[1]]")), whole(state._record(b"R", b"short")),
     whole(state._record(b"S", b"\x00\x00\x00\x03[1]")), whole() + bytes(11) + b"!?",
     state.write_state([state._record(b"L", state.identity_record(WHO)[5:])])],
)  # fmt: skip
def test_what_is_no_state_file_is_refused(data) -> None:
    with pytest.raises(BadState, match="expected"):
        read_state(data)


@given(st.binary(max_size=300), st.booleans())
@example(b"", True)
def test_any_bytes_are_a_state_file_or_refused(data, named) -> None:
    with contextlib.suppress(BadState):
        read_state((b"asap-sansio state 1\n" if named else b"") + data)


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_any_records_are_read_or_refused(records) -> None:
    with contextlib.suppress(BadState):
        read_state(whole(*records))


def test_a_table_carries_its_keys_over() -> None:
    def table():
        return IdempotencyTable(ttl=600.0, max_entries=10, max_bytes=1000)

    before, now = table(), 0.0
    for number, key in enumerate((b"done", b"running", b"lost")):
        before.begin(key, b"d", deadline=30.0, now=float(number))
    before.finish(b"done", REPLIED, size=10, now=10.0)
    before.lose(b"lost", now=10.0)
    kept = before.export(now=100.0)
    after = table()
    for one in kept:
        after.load(one, now=now)
    assert type(after.find(b"done", b"d", now=0.0)).__name__ == "Finished"
    assert (
        type(after.find(b"running", b"d", now=0.0)).__name__ == "Lost" if b"running" in {k.key for k in kept} else True
    )
    assert type(after.find(b"lost", b"d", now=0.0)).__name__ == "Lost"
    assert type(after.find(b"done", b"other", now=0.0)).__name__ == "KeyReused"
    assert after.size == 10
    assert type(after.find(b"done", b"d", now=509.9)).__name__ == "Finished"
    assert type(after.find(b"done", b"d", now=510.1)).__name__ == "Free"


class TestJournal:
    """What must be on disk when, and what a start makes of it."""

    POLICY = Policy(start=StartPolicy.OPEN)

    def begin(self, data=None, **changes):
        fields: Any = {"agent_id": WHO.agent_id, "policy": self.POLICY, "key": b"k" * 32, "at": moment(0.0, 1000.0)}
        return Journal.begin(data, **{**fields, **changes})

    def question(self, **changes):
        fields: Any = {
            "sender": "s", "authenticated": True, "peer": "", "nonce": "n", "issued": 1000.0, "idempotency_key": None,
            "digest": b"d" * 16, "deadline": 30.0,
        }  # fmt: skip
        return AdmissionQuestion(**{**fields, **changes})

    def ask(self, journal, question, *, at=0.0):
        return journal.ask(question, at=moment(at, 1000.0 + at))

    def test_a_lease_is_asked_for_before_it_is_needed_and_counts_once_it_is_written(self) -> None:
        journal, asked = self.begin(), self.question()
        promise = journal.lease_for(asked)
        assert promise.until == 1005.0
        assert journal.lease_for(asked) == promise
        journal.leased(promise)
        assert journal.lease_for(asked) is None
        assert journal.lease_for(self.question(issued=1005.0)) is None
        assert journal.lease_for(self.question(issued=1005.1)).until == pytest.approx(1010.1)
        # A late word of an earlier one takes nothing back.
        journal.leased(journal.lease_for(self.question(issued=1020.0)))
        journal.leased(promise)
        assert journal.lease_for(self.question(issued=1025.0)) is None

    def test_a_file_has_what_was_promised_before_that_was_written(self) -> None:
        journal = self.begin()
        journal.lease_for(self.question(issued=1020.0))
        journal.lease_for(self.question(issued=1010.0))
        assert read_state(journal.compacted(now=0.0)).leased == 1025.0

    def test_a_key_is_written_before_its_work_begins(self) -> None:
        journal, keyed = self.begin(), self.question(idempotency_key="k")
        assert journal.reservation_record(self.question(), self.ask(journal, self.question())) is None
        answer = self.ask(journal, self.question(idempotency_key="k", nonce="m"))
        record = journal.reservation_record(keyed, answer)
        assert read_state(whole(record)).kept[0].digest == keyed.digest
        assert journal.reservation_record(keyed, self.ask(journal, keyed)) is None

    @pytest.mark.parametrize(
        ("start", "leased"), [(StartPolicy.OPEN, None), (StartPolicy.FLOOR, 1000.0), (StartPolicy.EXACT, 1030.0)]
    )
    def test_without_a_file_policy_says_what_counts_as_accepted(self, start, leased) -> None:
        journal = self.begin(policy=Policy(start=start))
        assert read_state(journal.compacted(now=0.0)).leased == leased

    def test_an_orderly_end_and_a_crash_are_told_apart(self) -> None:
        journal, asked = self.begin(), self.question(idempotency_key="k")
        journal.leased(journal.lease_for(asked))
        reservation = self.ask(journal, asked).reservation
        journal.record(reservation, REPLIED, size=5, now=1.0)
        crashed = self.begin(journal.compacted(now=1.0), policy=Policy())
        assert self.ask(crashed, asked) == OutcomeUnknown()
        assert isinstance(self.ask(crashed, self.question(nonce="new")), Floored)
        ended = self.begin(journal.final(now=1.0), policy=Policy())
        assert self.ask(ended, asked) == Stored(REPLIED)
        assert self.ask(ended, self.question(nonce="new")) == Admitted(None)

    def test_after_an_orderly_end_an_answer_is_kept_no_longer_than_before(self) -> None:
        policy, asked = Policy(start=StartPolicy.OPEN, idempotency_ttl=100.0), self.question(idempotency_key="k")
        journal = self.begin(policy=policy)
        journal.record(self.ask(journal, asked).reservation, REPLIED, size=5, now=1.0)
        again = self.begin(journal.final(now=91.0), policy=policy)
        assert self.ask(again, asked, at=9.9) == Stored(REPLIED)
        assert isinstance(self.ask(again, self.question(idempotency_key="k", nonce="m"), at=10.0), Admitted)

    def test_what_never_began_is_free_and_what_was_cut_off_is_not(self) -> None:
        journal = self.begin()
        for leave, then in ((journal.give_back, Admitted), (journal.lose, OutcomeUnknown)):
            keyed = self.question(idempotency_key=leave.__name__, nonce=leave.__name__)
            leave(self.ask(journal, keyed).reservation, now=1.0)
            again = self.question(idempotency_key=leave.__name__, nonce=f"{leave.__name__} again")
            assert type(self.ask(journal, again, at=1.0)) is then

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [({"agent_id": "urn:asap:agent:b"}, "state of urn:asap:agent:b"), ({"policy": Policy(skew=10.0)}, "skew=10")],
    )
    def test_somebody_elses_is_refused(self, changes, expected) -> None:
        data = self.begin().compacted(now=0.0)
        with pytest.raises(BadState, match=expected):
            self.begin(data, **changes)

    def test_a_snapshot_that_is_none_is_refused(self) -> None:
        with pytest.raises(BadState, match="snapshot"):
            self.begin(whole(state.snapshot_record(b"x", ())))
