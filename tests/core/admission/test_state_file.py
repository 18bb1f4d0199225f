"""The state file: what was written is found, what was cut off wasn't acted upon, and nothing else is taken for one."""

import contextlib
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from asap_core import Refusal, Replied
from asap_core.admission import state_file as state
from asap_core.admission.idempotency import SavedKey
from asap_core.admission.state_file import SavedState, StateOwner, read_state
from asap_core.errors import BadState
from asap_core.refusals import HANDLER_FAILED

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


def test_written_records_are_read_back() -> None:
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


def test_an_unwritable_answer_is_saved_as_unknown_and_all_others_as_they_are() -> None:
    unwritable = SavedKey(b"d" * 16, b"D" * 16, Replied("task.response", {"x": object()}), 70, 5.0, answered=True)
    unknown = SavedKey(b"d" * 16, b"D" * 16, None, 0, 5.0, answered=False)
    saved = read_state(whole(state.snapshot_record(b"guard", [KEPT[0], unwritable, *KEPT[1:]])))
    assert saved.kept == (KEPT[0], unknown, *KEPT[1:])


def test_the_deepest_answers_are_saved_beside_an_unwritable_one() -> None:
    def nested(depth: int) -> SavedKey:
        payload: Any = {}
        for _ in range(depth):
            payload = {"x": payload}
        return SavedKey(b"%16d" % depth, b"D" * 16, Replied("task.response", payload), 70, 5.0, answered=True)

    deepest = next(depth for depth in range(1000) if not read_state(saved([nested(depth + 1)])).kept[0].answered)
    kept = read_state(saved([nested(deepest), nested(deepest + 1)])).kept
    assert [one.answered for one in kept] == [True, False]
    assert kept[0] == nested(deepest)


def saved(kept: list[SavedKey]):
    return whole(state.snapshot_record(b"guard", kept))


def test_appended_records_are_read_and_end_the_snapshot() -> None:
    written = whole(lease(5.0), state.snapshot_record(b"guard", KEPT[:1]))
    written += state.write_batch([lease(9.0), state.reservation_record(b"d" * 16, b"D" * 16)]) + state.write_batch(
        [lease(7.0)]
    )
    found = read_state(written)
    assert (found.leased, found.guard) == (9.0, None)
    assert found.kept == (KEPT[0], SavedKey(b"d" * 16, b"D" * 16, None, 0, 0.0, answered=False))


def test_a_batch_that_was_cut_off_is_ignored() -> None:
    start = whole(lease(5.0))
    last = state.write_batch([lease(9.0), state.reservation_record(b"d" * 16, b"D" * 16)])
    for cut in range(len(last)):
        assert read_state(start + last[:cut]) == found(WHO, 5.0, None, ())
        # A file system may have made room for what it didn't write.
        assert read_state(start + last[:cut] + bytes(len(last) - cut)).leased in (5.0, 9.0)
    assert read_state(start + last).leased == 9.0


def test_damage_before_the_last_batch_is_refused() -> None:
    start, middle, last = whole(lease(5.0)), state.write_batch([lease(9.0)]), state.write_batch([lease(11.0)])
    written = start + middle + last
    for at in range(len(start + middle)):
        damaged = written[:at] + bytes([written[at] ^ 0x40]) + written[at + 1 :]
        with pytest.raises(BadState):
            read_state(damaged)
    for cut in range(len(start)):
        with pytest.raises(BadState):
            read_state(written[:cut])


def test_damage_in_the_last_batch_never_adds_records() -> None:
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
def test_a_file_of_another_kind_is_refused(data) -> None:
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
