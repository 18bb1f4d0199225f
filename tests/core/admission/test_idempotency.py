"""Calls under a key: running, answered, cut off, forgotten in order."""

import tracemalloc

from asap_core.admission.idempotency import Finished, Free, Gone, IdempotencyTable, KeyReused, Lost, SavedKey, Working

TTL = 600.0


def table(**changes):
    return IdempotencyTable(**{"ttl": TTL, "max_entries": 10, "max_bytes": 1000, **changes})


def test_a_free_key_is_held_and_then_answered() -> None:
    keys = table()
    assert keys.find(b"k", b"d", now=0.0) == Free()
    keys.begin(b"k", b"d", deadline=30, now=0.0)
    assert keys.find(b"k", b"d", now=10.0) == Working(25.0)
    keys.finish(b"k", "answer", size=6, now=20.0)
    assert keys.find(b"k", b"d", now=20.0) == Finished("answer")
    assert (len(keys), keys.size) == (1, 6)


def test_another_digest_under_the_key_is_reported_as_reuse() -> None:
    keys = table()
    keys.begin(b"k", b"d", deadline=30, now=0.0)
    assert keys.find(b"k", b"other", now=0.0) == KeyReused()
    keys.finish(b"k", "answer", size=1, now=0.0)
    assert keys.find(b"k", b"other", now=0.0) == KeyReused()


def test_work_that_is_never_reported_counts_as_cut_off() -> None:
    keys = table()
    keys.begin(b"k", b"d", deadline=30, now=0.0)
    assert keys.find(b"k", b"d", now=34.9) == Working(34.9 * 0 + 35 - 34.9)
    assert keys.find(b"k", b"d", now=35.0) == Lost()
    assert keys.find(b"k", b"d", now=35.0 + TTL - 1) == Lost()
    assert keys.find(b"k", b"d", now=35.0 + TTL) == Free()


def test_work_that_was_killed_is_cut_off_at_once() -> None:
    keys = table()
    keys.begin(b"k", b"d", deadline=30, now=0.0)
    keys.lose(b"k", now=1.0)
    assert keys.find(b"k", b"d", now=2.0) == Lost()
    keys.lose(b"unknown", now=1.0)


def test_work_that_never_began_leaves_the_key_free() -> None:
    keys = table()
    keys.begin(b"k", b"d", deadline=30, now=0.0)
    keys.free(b"k")
    keys.free(b"k")
    assert keys.find(b"k", b"d", now=0.0) == Free()
    keys.finish(b"k", "late", size=1, now=0.0)
    assert keys.find(b"k", b"d", now=0.0) == Free()
    assert keys.size == 0


def test_an_answer_is_kept_for_its_time() -> None:
    keys = table()
    keys.begin(b"k", b"d", deadline=30, now=0.0)
    keys.finish(b"k", "answer", size=1, now=10.0)
    assert keys.find(b"k", b"d", now=10.0 + TTL - 0.1) == Finished("answer")
    assert keys.find(b"k", b"d", now=10.0 + TTL) == Free()
    assert (len(keys), keys.size) == (0, 0)


def test_an_answer_behind_a_longer_lived_entry_expires_on_time() -> None:
    keys = table(ttl=10.0)
    keys.begin(b"long", b"d", deadline=1000, now=0.0)
    keys.begin(b"short", b"d", deadline=1, now=0.0)
    keys.finish(b"short", "answer", size=1, now=0.0)
    assert keys.find(b"short", b"d", now=9.9) == Finished("answer")
    assert keys.find(b"short", b"d", now=10.0) == Free()
    assert keys.find(b"short", b"d", now=11.0) == Free()
    keys.begin(b"short", b"d2", deadline=1, now=11.0)
    assert keys.find(b"short", b"d2", now=11.0) == Working(6.0)
    assert keys.size == 0


def test_if_bytes_run_out_the_oldest_answers_become_tombstones() -> None:
    keys = table(max_bytes=100)
    for number, name in enumerate((b"a", b"b", b"c")):
        keys.begin(name, b"d", deadline=30, now=float(number))
        keys.finish(name, name, size=40, now=float(number))
    assert keys.find(b"a", b"d", now=3.0) == Gone()
    assert keys.find(b"b", b"d", now=3.0) == Finished(b"b")
    assert keys.size == 80
    # A tombstone weighs nothing, then and when it goes.
    keys.find(b"x", b"d", now=601.0)
    assert keys.size == 40


def test_large_answers_of_an_owner_evict_its_own_answers() -> None:
    keys = table(max_bytes=100, max_entries=1000)

    def answered(key: bytes, size: int, owner: str) -> None:
        keys.begin(key, b"d", deadline=10.0, now=0.0, owner=owner)
        keys.finish(key, "answer", size=size, now=0.0)

    answered(b"mine", 40, "me")
    for number in range(50):
        answered(b"other%d" % number, 30, "stranger")
        assert keys.find(b"mine", b"d", now=1.0) == Finished("answer")
        assert keys.size <= 100
    assert keys.find(b"other49", b"d", now=1.0) == Finished("answer")
    assert keys.find(b"other40", b"d", now=1.0) == Gone()
    answered(b"huge", 101, "stranger")
    assert keys.find(b"huge", b"d", now=1.0) == Gone()
    assert keys.find(b"mine", b"d", now=1.0) == Finished("answer")
    # Within half of the room the oldest of all goes.
    for owner in ("a", "b", "c"):
        answered(owner.encode(), 30, owner)
    assert keys.find(b"mine", b"d", now=1.0) == Gone()


def test_an_owner_with_exactly_half_of_all_bytes_does_not_evict_its_own_answers() -> None:
    keys = table(max_bytes=100)
    for name, owner, size in ((b"mine", "me", 60), (b"theirs", "them", 50)):
        keys.begin(name, b"d", deadline=30, now=0.0, owner=owner)
        keys.finish(name, "answer", size=size, now=0.0)
    assert keys.find(b"mine", b"d", now=0.0) == Gone()
    assert keys.find(b"theirs", b"d", now=0.0) == Finished("answer")


def test_bytes_of_a_freed_answer_do_not_count_for_its_owner() -> None:
    keys = table(max_bytes=100)

    def answered(name: bytes, size: int, owner: str) -> None:
        keys.begin(name, b"d", deadline=30, now=0.0, owner=owner)
        keys.finish(name, name, size=size, now=0.0)

    answered(b"mine", 60, "me")
    answered(b"freed", 30, "them")
    answered(b"first", 10, "them")
    keys.free(b"freed")
    answered(b"second", 40, "them")
    assert keys.find(b"mine", b"d", now=0.0) == Gone()
    assert keys.find(b"first", b"d", now=0.0) == Finished(b"first")


def test_an_answer_recorded_twice_counts_once() -> None:
    keys = table()
    keys.begin(b"k", b"d", deadline=30, now=0.0)
    for size in (10, 30):
        keys.finish(b"k", size, size=size, now=0.0)
    assert (keys.find(b"k", b"d", now=0.0), keys.size) == (Finished(30), 30)


def test_owners_without_answers_take_no_memory() -> None:
    keys = table()

    def serve(owners: range) -> None:
        for owner in owners:
            keys.begin(b"k", b"d", deadline=30, now=0.0, owner=f"owner {owner}")
            keys.finish(b"k", "answer", size=1, now=0.0)
            keys.free(b"k")

    serve(range(10))
    tracemalloc.start()
    serve(range(10, 2010))
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 50_000


def test_keys_without_an_answer_are_exported_with_size_0() -> None:
    keys = table(max_bytes=10)
    for name in (b"gone", b"running"):
        keys.begin(name, b"d", deadline=30, now=0.0)
    keys.finish(b"gone", "huge", size=11, now=0.0)
    assert [(one.key, one.answer, one.size, one.answered) for one in keys.export(now=0.0)] == [
        (b"running", None, 0, False),
        (b"gone", None, 0, False),
    ]


def test_answers_may_fill_all_the_room_there_is() -> None:
    keys = table(max_bytes=100)
    for name in (b"a", b"b"):
        keys.begin(name, b"d", deadline=30, now=0.0)
        keys.finish(name, name, size=50, now=0.0)
    assert keys.find(b"a", b"d", now=1.0) == Finished(b"a")


def test_an_expired_answer_is_not_counted_among_the_oldest() -> None:
    keys = table(max_bytes=100)
    for name, now in ((b"a", 0.0), (b"b", 601.0), (b"c", 602.0)):
        keys.find(name, b"d", now=now)
        keys.begin(name, b"d", deadline=30, now=now)
        keys.finish(name, name, size=60, now=now)
    assert keys.find(b"a", b"d", now=603.0) == Free()
    assert keys.find(b"b", b"d", now=603.0) == Gone()
    assert keys.find(b"c", b"d", now=603.0) == Finished(b"c")


def test_an_answer_larger_than_all_the_room_is_a_tombstone_at_once() -> None:
    keys = table(max_bytes=100)
    keys.begin(b"k", b"d", deadline=30, now=0.0)
    keys.finish(b"k", "huge", size=101, now=0.0)
    assert keys.find(b"k", b"d", now=0.0) == Gone()
    assert keys.size == 0


def test_a_full_table_says_when_there_is_room() -> None:
    keys = table(max_entries=2)
    assert (keys.room(), keys.until_room(0.0)) == (True, 0.0)
    for name in (b"a", b"b"):
        keys.begin(name, b"d", deadline=30, now=0.0)
    assert not keys.room()
    assert keys.until_room(0.0) == 35 + TTL
    assert keys.until_room(10_000.0) == 1.0


def test_a_backlog_shrinks_with_every_call() -> None:
    keys = table()
    for name in (b"a", b"b", b"c", b"e"):
        keys.begin(name, b"d", deadline=30, now=0.0)
        keys.finish(name, name, size=1, now=0.0)
    keys.find(b"x", b"d", now=TTL)
    assert len(keys) == 2
    keys.find(b"x", b"d", now=TTL)
    assert len(keys) == 0


def test_exported_keys_are_in_the_order_in_which_they_expire() -> None:
    keys = table()
    for name in (b"a", b"b"):
        keys.begin(name, b"d", deadline=1000, now=0.0)
    keys.finish(b"b", "answer", size=1, now=1.0)
    keys.finish(b"a", "answer", size=1, now=100.0)
    assert [(one.key, one.seconds) for one in keys.export(now=101.0)] == [(b"b", 500.0), (b"a", 599.0)]


def test_a_key_loaded_twice_is_kept_once() -> None:
    keys = table()
    for _ in range(2):
        keys.load(SavedKey(b"k", b"d", "answer", 10, 5.0, answered=True), now=0.0)
    assert (len(keys), keys.size) == (1, 10)


def test_expired_keys_are_not_exported() -> None:
    keys = table()
    for name in (b"a", b"b", b"c", b"e"):
        keys.begin(name, b"d", deadline=30, now=0.0)
    for name, now in ((b"a", 0.0), (b"b", 0.0), (b"c", 0.0), (b"e", 1.0)):
        keys.finish(name, name, size=1, now=now)
    assert [one.key for one in keys.export(now=TTL)] == [b"e"]


def test_a_table_exports_its_keys_to_another() -> None:
    def table():
        return IdempotencyTable(ttl=600.0, max_entries=10, max_bytes=1000)

    before, now = table(), 0.0
    for number, key in enumerate((b"done", b"running", b"lost")):
        before.begin(key, b"d", deadline=30.0, now=float(number))
    before.finish(b"done", "answer", size=10, now=10.0)
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
