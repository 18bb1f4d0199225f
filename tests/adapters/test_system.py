"""Ids: their form, their order, and that no two are alike, whatever threads and forks make them."""

import multiprocessing
import re
import time
from concurrent.futures import ThreadPoolExecutor

from asap_adapters.system import new_id


def ids(_: object = None) -> list[str]:
    return [new_id() for _ in range(1_000)]


def test_an_id_is_a_ulid_that_sorts_by_time(monkeypatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_469_918_176_385 * 1_000_000)
    earlier = new_id()
    # The timestamp of the ULID specification's example.
    assert re.fullmatch("01ARYZ6S41[0-9A-HJKMNP-TV-Z]{16}", earlier)
    monkeypatch.setattr(time, "time_ns", lambda: 1_469_918_176_386 * 1_000_000)
    assert new_id() > earlier


def test_threads_make_different_ids() -> None:
    with ThreadPoolExecutor(8) as threads:
        made = [one for several in threads.map(ids, range(16)) for one in several]
    assert len(set(made)) == len(made) == 16_000


def test_forked_processes_make_different_ids() -> None:
    new_id()  # so that there is randomness that a child could share
    with multiprocessing.get_context("fork").Pool(2) as children:
        made = [one for several in children.map(ids, range(2)) for one in several]
    made += ids()
    assert len(set(made)) == len(made) == 3_000
