"""The last good copies of registries, without a loop: which failure is bridged, for how long, and what is on disk."""

import errno
import json
from hashlib import blake2b
from typing import Any
from unittest.mock import ANY

import pytest
from attrs import frozen

from asap_core import BadReply, InvalidDocument, NotAllowed, TimedOut, Unreachable
from asap_core.client.programs import Completed, Expired, FileIdentity, ReadFile, Unavailable, Wait, WriteFile
from asap_core.client.registry_cache import CachedCopy, RegistryCache, serves_for
from asap_core.client.registry_copies import LONGEST, CopyHead, _hash, file_name, read_head
from asap_core.client.requests import Requests
from asap_core.clock import WallTime
from asap_core.errors import Advice, AsapError
from asap_core.flights import Flights
from asap_core.http.caching import Freshness, FreshnessPolicy, freshness_of
from asap_core.net.addresses import Proximity
from asap_core.net.outbound import OutboundPolicy
from asap_core.wire.registry_index import RegistryIndex
from asap_core.wire.registry_reader import RegistryReader
from tests.core.client.scripted import HELD, After, Answer, Driver, Reply, Run

URL, OTHER = "https://r.example:443/registry.json?key=s3cret", "https://other.example:443/r.json"
DOWN = Unreachable("https://r.example:443/registry.json", "can't connect: refused")
WORDS = f"{DOWN}; its last good copy"
UNUSED = "the copy of https://r.example:443/registry.json isn't used: "


def index(name: str = "a") -> RegistryIndex:
    entry = {
        "id": f"urn:asap:agent:{name}", "name": name, "description": "", "asap_version": "1", "skills": [],
        "endpoints": {"manifest": "https://a.example/m"},
    }  # fmt: skip
    reader = RegistryReader()
    reader.feed(json.dumps({"version": "1", "updated_at": "2026-01-01T00:00:00Z", "agents": [entry]}).encode())
    return reader.close()


def freshness(control: str = "", **options: float) -> Freshness:
    return freshness_of([("cache-control", control)], policy=FreshnessPolicy(**options), wall=WallTime(0.0))


@frozen
class File:
    data: bytes
    modified: float
    identity: FileIdentity


class Copies(Driver):
    """A client's copies, and their directory.

    seconds: how long each file takes.
    outcome: what comes instead, if it's set.
    most: the largest registry.
    """

    def __init__(self, files: dict[str, File] | None = None, *, wall: float | None = None, most: int = 10_000) -> None:
        super().__init__(self._reply)
        self.clock.advance(10_000.0)
        if wall is not None:
            self.clock.step_wall(wall - self.clock.wall())
        self.files = {} if files is None else files
        self.seconds = 0.0
        self.outcome: Reply | After | None = None
        self.requests = Requests(self.runtime, policy=OutboundPolicy())
        self.cache = RegistryCache("/copies", self.runtime, self.requests, most=most)

    def _reply(self, effect: ReadFile | WriteFile) -> Reply | After:
        if self.outcome is not None:
            return self.outcome
        if isinstance(effect, WriteFile):
            return After(self.seconds, Completed())
        file = self.files.get(effect.path)
        if file is None:
            return After(self.seconds, Unavailable("No such file or directory", errno.ENOENT))
        unread = effect.unless == file.identity
        return After(self.seconds, Answer(body=b"" if unread else file.data, identity=file.identity))

    def answer(self, run: Run[Any], reply: Reply) -> None:
        if isinstance(run.effect, WriteFile) and isinstance(reply, Completed):
            self.write(run.effect)
        super().answer(run, reply)

    def write(self, effect: WriteFile) -> None:
        """Write a file as a driver does."""
        old = self.files.get(effect.path)
        if old is None or not effect.file.is_written(old.data[:1_024], len(old.data)):
            data = b"".join(effect.file.pieces())
            if effect.file.wanted():
                self.change(effect.path, data)

    def change(self, path: str, data: bytes) -> None:
        """Replace a file."""
        inode = 1 + max((file.identity.inode for file in self.files.values()), default=0)
        self.files[path] = File(data, self.clock.wall(), FileIdentity(inode, len(data), 0, 0))

    def _wake(self) -> None:
        super()._wake()
        while self.removed:
            self.files.pop(self.removed.pop(), None)

    def put(self, value: RegistryIndex, control: str = "", *, age: float = 0.0, url: str = URL) -> None:
        self.run(self.cache.put(url, value, freshness(control), age=age))

    def take(self, error: Exception = DOWN, *, url: str = URL) -> CachedCopy | None:
        return self.run(self.cache.take(url, error))

    def drop(self, url: str = URL) -> None:
        self.cache.drop(url)
        self._wake()

    def restarted(self, *, after: float = 0.0, most: int = 10_000) -> "Copies":
        """Return another process with the same directory."""
        return Copies(self.files, wall=self.clock.wall() + after, most=most)

    @property
    def path(self) -> str:
        return f"/copies/{file_name(URL)}"

    @property
    def file(self) -> bytes:
        return self.files[self.path].data

    @property
    def logged(self) -> list[str]:
        remarks = self.runtime.take_remarks()
        assert {(remark.logger, remark.level) for remark in remarks} <= {("asap.discovery", "warning")}
        return [remark.text for remark in remarks]

    @property
    def actions(self) -> str:
        """What was done with files: r for a read, w for a write."""
        return "".join({ReadFile: "r", WriteFile: "w"}.get(type(effect), "") for effect in self.effects)

    def is_idle(self) -> bool:
        return not self.runs and not len(self.cache._reads) and not self.cache._reads.waiting


@pytest.fixture
def copies() -> Copies:
    return Copies()


@pytest.fixture
def stored(copies: Copies) -> Copies:
    """A process that starts while there is a copy on disk."""
    copies.put(index())
    return copies.restarted()


def ids(copy: CachedCopy | None) -> list[str] | None:
    return None if copy is None else [entry.id for entry in copy.index.agents]


A = ["urn:asap:agent:a"]


class TestFailures:
    @pytest.mark.parametrize(
        "error", [DOWN, TimedOut("u", "r"), *(BadReply("u", "r", status) for status in (500, 502, 503, 504))], ids=str
    )
    def test_a_copy_is_used_in_an_outage(self, stored: Copies, error: AsapError) -> None:
        assert ids(stored.take(error)) == A
        assert stored.logged == [f"{error}; its last good copy on disk, 0 s old, serves"]

    @pytest.mark.parametrize(
        "error",
        [
            *(BadReply("u", "r", status) for status in (200, 302, 400, 429, 501, None)),
            InvalidDocument("registry", ()),
            NotAllowed("u", "r", Advice("m")),
        ],
        ids=str,
    )
    def test_a_copy_is_kept_and_not_used_after_an_unusable_answer(self, copies: Copies, error: AsapError) -> None:
        copies.put(index())
        assert (copies.take(error), copies.actions, copies.logged) == (None, "w", [])
        assert ids(copies.take()) == A
        assert copies.restarted().take() is not None

    @pytest.mark.parametrize("status", [401, 403, 404, 410])
    def test_a_copy_is_deleted_if_its_registry_is_gone(self, copies: Copies, status: int) -> None:
        copies.put(index())
        assert copies.take(BadReply("u", "r", status)) is None
        assert copies.files == {}
        assert (copies.take(), copies.logged) == (None, [])

    def test_without_a_copy_nothing_is_logged(self, copies: Copies) -> None:
        assert (copies.take(), copies.actions, copies.logged) == (None, "r", [])
        assert copies.cache.stands_in(URL) is None


class TestAge:
    @pytest.mark.parametrize(
        ("control", "serves"),
        [
            ("", LONGEST), ("max-age=60", LONGEST), ("no-store", 0.0), ("no-cache", 0.0),
            ("max-age=0, must-revalidate", 0.0),
            ("max-age=60, must-revalidate", 60.0), ("max-age=60, stale-if-error=0", 60.0),
            ("max-age=60, stale-if-error=3600", 3_660.0), ("max-age=60, stale-if-error=nonsense", 60.0),
        ],
    )  # fmt: skip
    def test_the_server_decides_how_long_a_copy_serves_up_to_a_week(self, control: str, serves: float) -> None:
        assert serves_for(freshness(control)) == serves
        wide = freshness("max-age=1, stale-if-error=99999999", most=10 * LONGEST, stale_if_error=10 * LONGEST)
        assert serves_for(wide) == LONGEST

    def test_a_copy_serves_from_its_confirmation(self, copies: Copies) -> None:
        copies.put(index(), "max-age=60, must-revalidate", age=20.0)
        copies.clock.advance(40.0)
        assert copies.take() == CachedCopy(copies.cache._copies.peek(URL).index, 60.0)  # type: ignore[union-attr]
        assert copies.cache.stands_in(URL) == 60.0
        copies.clock.advance(0.1)
        assert (copies.cache.stands_in(URL), copies.take()) == (None, None)
        assert copies.logged == [f"{WORDS}, 60 s old, serves", f"{UNUSED}it's too old"]

    def test_the_clock_that_makes_a_copy_older_counts(self, copies: Copies) -> None:
        copies.put(index())
        copies.clock.step_wall(-LONGEST)
        copies.clock.advance(LONGEST)
        assert copies.take() is not None
        copies.clock.step_wall(LONGEST + 1.0)
        assert copies.take() is None
        copies = Copies()
        copies.clock.advance(0.0006)  # a file says milliseconds
        copies.put(index())
        copies.clock.step_wall(-LONGEST)
        copies.clock.advance(LONGEST + 1.0)
        # Its file looks new.
        assert copies.take() is None

    def test_a_newer_copy_of_another_process_replaces_an_expired_one(self, copies: Copies) -> None:
        copies.put(index())
        copies.clock.advance(LONGEST + 1.0)
        copies.restarted().put(index("new"))
        assert ids(copies.take()) == ["urn:asap:agent:new"]

    @pytest.mark.parametrize(
        ("age", "words"),
        [
            (LONGEST, "7 days"), (2 * 86_400, "2 days"), (86_400, "24 hours"), (7_200, "2 hours"),
            (7_199, "120 minutes"), (120, "2 minutes"), (119, "119 s"), (0, "0 s"),
        ],
    )  # fmt: skip
    def test_another_process_uses_the_copy_and_says_its_age(self, stored: Copies, age: float, words: str) -> None:
        copies = stored.restarted(after=age)
        found = copies.take()
        assert found is not None
        assert (found.age, found.words) == (age, f"its last good copy on disk, {words} old")
        assert copies.cache.stands_in(URL) == age
        assert stored.restarted(after=LONGEST + 1.0).take() is None

    def test_a_copy_dated_a_little_ahead_is_new(self, stored: Copies) -> None:
        copies = stored.restarted(after=-30.0)
        found = copies.take()
        assert (found and found.age, copies.cache.stands_in(URL)) == (0.0, 0.0)


class TestReading:
    def test_a_copy_is_read_once_and_then_in_memory(self, stored: Copies) -> None:
        first = stored.take()
        assert first is not None
        assert (stored.take(), stored.actions) == (first, "r")
        assert stored.effects == [ReadFile(stored.path, ANY, private=True)]
        assert stored.logged == [f"{WORDS} on disk, 0 s old, serves"]

    def test_many_callers_share_one_read(self, stored: Copies) -> None:
        stored.seconds = 1.0
        runs = [stored.start(stored.cache.take(URL, DOWN)) for _ in range(50)]
        stored.advance(1.0)
        assert [ids(run.result()) for run in runs] == [A] * 50
        assert (stored.actions, len(stored.logged), stored.is_idle()) == ("r", 1, True)

    def test_two_registries_are_read_at_once(self, stored: Copies) -> None:
        stored.seconds = 1.0
        runs = [stored.start(stored.cache.take(url, DOWN)) for url in (URL, OTHER)]
        stored.advance(1.0)
        assert [ids(run.result()) for run in runs] == [A, None]

    @pytest.mark.parametrize("leave", [Driver.close, Driver.lose])
    def test_if_the_reading_caller_leaves_the_next_one_reads(self, stored: Copies, leave: Any) -> None:
        stored.seconds = 1.0
        first, second, third = [stored.start(stored.cache.take(URL, DOWN)) for _ in range(3)]
        leave(stored, second)
        leave(stored, first)
        stored.advance(2.0)
        assert (ids(third.result()), stored.actions, stored.is_idle()) == (A, "rr", True)

    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
    def test_nothing_is_left_if_all_callers_leave(self, stored: Copies, order: tuple[int, ...]) -> None:
        stored.outcome = HELD
        runs = [stored.start(stored.cache.take(URL, DOWN)) for _ in range(3)]
        for each in order:
            stored.close(runs[each])
        assert stored.is_idle()
        stored.outcome = None
        assert ids(stored.take()) == A

    def test_callers_beyond_the_limit_get_no_copy(self, stored: Copies) -> None:
        stored.seconds = 1.0
        stored.cache._reads = Flights(max_waiters=1)
        runs = [stored.start(stored.cache.take(URL, DOWN)) for _ in range(2)]
        stored.advance(1.0)
        assert [ids(run.result()) for run in runs] == [A, None]

    def test_the_proximity_of_the_server_is_restored(self, copies: Copies) -> None:
        copies.requests.recall(URL, Proximity.NETWORK)
        copies.put(index())
        restarted = copies.restarted()
        assert restarted.requests.proximity_of(URL) is Proximity.INTERNET
        restarted.take()
        assert restarted.requests.proximity_of(URL) is Proximity.NETWORK

    def test_a_copy_that_is_confirmed_during_a_read_is_used(self, stored: Copies) -> None:
        stored.seconds = 1.0
        run = stored.start(stored.cache.take(URL, DOWN))
        stored.start(stored.cache.put(URL, index("new"), freshness(), age=0.0))
        stored.advance(1.0)
        assert ids(run.result()) == ["urn:asap:agent:new"]
        assert ids(stored.restarted().take()) == ["urn:asap:agent:new"]

    def test_a_read_that_expires_returns_no_copy(self, stored: Copies) -> None:
        stored.outcome = Expired()
        assert (stored.take(), stored.logged) == (None, [])
        stored.outcome = None
        assert ids(stored.take()) == A


class TestUnusableFiles:
    def test_an_unusable_file_is_logged_once_and_read_once(self, stored: Copies) -> None:
        whole = stored.file
        stored.change(stored.path, whole[:-1])
        assert [stored.take() for _ in range(3)] == [None] * 3
        assert stored.logged == [f"{UNUSED}it isn't whole"]
        reads = [effect.unless for effect in stored.effects if isinstance(effect, ReadFile)]
        identity = stored.files[stored.path].identity
        assert reads == [None, identity, identity]
        stored.change(stored.path, whole[:-2])
        assert (stored.take(), stored.logged) == (None, [f"{UNUSED}it isn't whole"])
        stored.change(stored.path, whole)
        assert ids(stored.take()) == A

    def test_a_file_without_identity_is_read_each_time(self, stored: Copies) -> None:
        stored.outcome = Answer(body=stored.file[:-1])
        assert [stored.take() for _ in range(2)] == [None] * 2
        stored.outcome = Answer(body=stored.file)
        assert ids(stored.take()) == A

    def test_a_file_from_the_future_is_used_when_the_clock_is_right(self, stored: Copies) -> None:
        copies = stored.restarted(after=-86_400.0)
        assert [copies.take() for _ in range(2)] == [None] * 2
        assert copies.logged == [f"{UNUSED}it's from the future"]
        copies.clock.step_wall(86_400.0)
        assert ids(copies.take()) == A

    def test_a_too_large_file_is_refused(self, stored: Copies) -> None:
        copies = stored.restarted(most=100)
        assert (copies.take(), copies.logged) == (None, [f"{UNUSED}it's too large"])

    @pytest.mark.parametrize("extra", [1, 100_000])
    def test_a_file_with_trailing_bytes_is_refused(self, stored: Copies, extra: int) -> None:
        length = stored.file.partition(b"\n")[2]
        copies = stored.restarted(most=len(length))
        copies.change(copies.path, copies.file + b" " * extra)
        assert (copies.take(), copies.logged) == (None, [f"{UNUSED}it isn't whole"])

    def test_a_file_of_another_registry_is_refused(self, stored: Copies) -> None:
        stored.put(index(), url=OTHER)
        stored.change(stored.path, stored.files[f"/copies/{file_name(OTHER)}"].data)
        assert (stored.take(), stored.logged) == (None, [f"{UNUSED}it's a copy of another registry"])

    def test_a_whole_file_without_a_registry_is_refused(self, stored: Copies) -> None:
        head = json.loads(stored.file.partition(b"\n")[0].rpartition(b" ")[0])
        digest = blake2b(b"[]", digest_size=32).hexdigest()
        text = json.dumps({**head, "length": 2, "digest": digest}).encode()
        stored.change(stored.path, text + b" " + _hash(text).encode() + b"\n[]")
        assert stored.take() is None
        (logged,) = stored.logged
        assert logged.startswith(f"{UNUSED}not a valid registry: ")

    def test_a_file_that_cannot_be_read_is_logged_once(self, stored: Copies) -> None:
        stored.outcome = Unavailable("Permission denied", errno.EACCES)
        assert [stored.take() for _ in range(2)] == [None] * 2
        assert stored.logged == [f"{UNUSED}Permission denied"]
        stored.outcome = Unavailable("No such file or directory", errno.ENOENT)
        assert (stored.take(), stored.logged) == (None, [])
        stored.outcome = Unavailable("Permission denied", errno.EACCES)
        assert (stored.take(), stored.logged) == (None, [f"{UNUSED}Permission denied"])


class TestWriting:
    def test_a_copy_is_written_once_for_all_who_share_a_fetch(self, copies: Copies) -> None:
        copies.seconds, value = 1.0, index()
        runs = [copies.start(copies.cache.put(URL, value, freshness(), age=0.0)) for _ in range(50)]
        assert [run.end is None for run in runs] == [True] + [False] * 49
        copies.advance(1.0)
        assert (copies.actions, list(copies.files), copies.is_idle()) == ("w", [copies.path], True)
        assert isinstance(read_head(copies.file, URL, wall=copies.clock.wall()), CopyHead)

    def test_a_confirmed_copy_is_written_again_after_an_hour(self, copies: Copies) -> None:
        value = index()
        copies.put(value)
        copies.clock.advance(3_599.0)
        copies.put(value)
        copies.put(value, age=3_599.0)
        assert copies.actions == "w"
        copies.clock.advance(1.0)
        copies.put(value, age=1.0)
        assert copies.actions == "w"
        copies.put(value)
        assert copies.actions == "ww"
        assert read_head(copies.file, URL, wall=copies.clock.wall()).confirmed == copies.clock.wall()

    def test_a_new_registry_or_term_is_written_at_once(self, copies: Copies) -> None:
        value = index()
        copies.put(value)
        copies.put(value, "max-age=60, must-revalidate")
        assert read_head(copies.file, URL, wall=copies.clock.wall()).serves == 60.0
        copies.put(index("new"))
        assert copies.actions == "www"
        assert ids(copies.restarted().take()) == ["urn:asap:agent:new"]

    def test_a_copy_that_another_process_wrote_is_not_written_again(self, copies: Copies) -> None:
        copies.put(index())
        before = copies.files[copies.path]
        copies.restarted(after=3_599.0).put(index())
        assert copies.files[copies.path] is before
        copies.restarted(after=3_600.0).put(index())
        assert copies.files[copies.path] is not before

    def test_a_write_of_a_replaced_copy_has_no_effect(self, copies: Copies) -> None:
        copies.seconds = 2.0
        copies.start(copies.cache.put(URL, index("old"), freshness(), age=0.0))
        copies.seconds = 1.0
        copies.start(copies.cache.put(URL, index("new"), freshness(), age=0.0))
        copies.advance(3.0)
        assert ids(copies.restarted().take()) == ["urn:asap:agent:new"]

    @pytest.mark.parametrize("leave", [Driver.close, Driver.lose, None])
    def test_an_interrupted_write_may_go_on_and_the_next_caller_writes_the_same_copy(
        self, copies: Copies, leave: Any
    ) -> None:
        copies.outcome, value = HELD, index()
        run = copies.start(copies.cache.put(URL, value, freshness(), age=0.0))
        effect = run.effect
        assert isinstance(effect, WriteFile)
        if leave is None:
            copies.answer(run, Expired())
        else:
            leave(copies, run)
            copies.turn()
        copies.outcome = Unavailable("No space left on device", errno.ENOSPC)
        copies.put(value)
        assert (copies.actions, copies.effects[-1]) == ("ww", effect)
        # One that failed isn't repeated.
        copies.put(value)
        assert copies.actions == "ww"
        copies.outcome = None
        copies.write(effect)
        assert ids(copies.restarted().take()) == A

    def test_a_copy_that_serves_for_a_second_is_kept(self, copies: Copies) -> None:
        copies.put(index(), "max-age=1, must-revalidate")
        copies.clock.advance(1.0)
        assert ids(copies.take()) == A

    @pytest.mark.parametrize("control", ["no-store", "no-cache", "max-age=0, stale-if-error=0"])
    def test_a_copy_that_its_server_forbids_is_deleted(self, copies: Copies, control: str) -> None:
        copies.put(index())
        copies.put(index(), control)
        assert (copies.files, copies.take(), copies.actions) == ({}, None, "wr")

    def test_a_failed_write_is_logged_and_the_copy_serves_from_memory(self, copies: Copies) -> None:
        copies.outcome = Unavailable("No space left on device", errno.ENOSPC)
        copies.put(index())
        assert copies.logged == ["no copy of https://r.example:443/registry.json is kept: No space left on device"]
        assert ids(copies.take()) == A

    def test_an_expired_write_is_not_logged(self, copies: Copies) -> None:
        copies.outcome = Expired()
        copies.put(index())
        assert copies.logged == []

    def test_at_most_16_copies_are_in_memory(self, copies: Copies) -> None:
        urls = [f"https://r.example/{number}" for number in range(17)]
        for url in urls:
            copies.put(index(), url=url)
        assert list(copies.cache._copies) == urls[1:]
        assert len(copies.files) == 17


class TestLogging:
    def test_an_outage_is_logged_once_until_the_server_is_back(self, copies: Copies) -> None:
        value = index()
        copies.put(value)
        assert copies.cache.stands_in(URL) is None
        for _ in range(3):
            copies.clock.advance(10.0)
            copies.take()
        assert copies.logged == [f"{WORDS}, 10 s old, serves"]
        assert copies.cache.stands_in(URL) == 30.0
        copies.put(value)
        assert copies.cache.stands_in(URL) is None
        copies.take()
        assert copies.logged == [f"{WORDS}, 0 s old, serves"]


class TestDropping:
    def test_drop_deletes_the_file_at_once(self, copies: Copies) -> None:
        copies.put(index())
        copies.drop()
        assert (copies.files, copies.take()) == ({}, None)
        copies.drop()

    def test_a_copy_that_is_dropped_during_its_write_stays_deleted(self, copies: Copies) -> None:
        copies.seconds = 1.0
        copies.start(copies.cache.put(URL, index(), freshness(), age=0.0))
        copies.drop()
        copies.advance(1.0)
        assert (copies.files, copies.take()) == ({}, None)

    def test_a_copy_that_is_dropped_during_a_read_is_not_used(self, stored: Copies) -> None:
        stored.seconds = 1.0
        runs = [stored.start(stored.cache.take(URL, DOWN)) for _ in range(3)]
        stored.drop()
        stored.advance(1.0)
        assert [run.result() for run in runs] == [None] * 3
        assert (stored.files, stored.logged, stored.is_idle(), stored.take()) == ({}, [], True, None)

    def test_after_drop_the_next_caller_reads_again(self, stored: Copies) -> None:
        stored.seconds, data = 1.0, stored.file
        before = stored.start(stored.cache.take(URL, DOWN))
        stored.drop()
        stored.change(stored.path, data)
        after = stored.start(stored.cache.take(URL, DOWN))
        stored.advance(1.0)
        assert (before.result() is None, ids(after.result()), stored.actions) == (True, A, "rr")

    def test_drop_forgets_the_problem_of_a_file(self, stored: Copies) -> None:
        stored.change(stored.path, b"")
        stored.take()
        stored.drop()
        stored.change(stored.path, b"")
        stored.take()
        assert stored.logged == [f"{UNUSED}it isn't a copy of a registry"] * 2

    def test_clear_deletes_copies_that_were_written_used_or_are_being_read(self, stored: Copies) -> None:
        stored.put(index(), url=OTHER)
        stored.seconds = 1.0
        run = stored.start(stored.cache.take(URL, DOWN))
        stored.cache.clear()
        stored.advance(1.0)
        assert (run.result(), stored.files) == (None, {})
        assert [stored.take(url=url) for url in (URL, OTHER)] == [None, None]
        assert not any(isinstance(effect, Wait) for effect in stored.effects)
