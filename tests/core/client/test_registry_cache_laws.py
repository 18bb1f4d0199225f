"""The laws of registries' copies, for any outcomes in any order, closed or collected at any yield, and restarts.

(a) When nobody waits any longer, no flight, waiter, wake or undo is left.
(b) There's one live read of each file, and one live write of each copy. A copy that was interrupted is written again.
(g) The same script gives the same effects.

A copy is used only in an outage, if its server confirmed it, within its time, and never after it was dropped. A file
that isn't exactly what was written isn't used.
"""

import errno
from typing import Any

import pytest
from attrs import evolve, frozen
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from asap_core.client import registry_cache, registry_copies
from asap_core.client.programs import (
    Completed,
    Expired,
    FileIdentity,
    FileRead,
    ReadFile,
    Returned,
    Unavailable,
    Wait,
    WriteFile,
)
from asap_core.client.registry_cache import CachedCopy, RegistryCache, serves_for
from asap_core.client.registry_copies import WRITE_AGAIN, Copy, CopyParser, file_name
from asap_core.client.requests import Requests
from asap_core.errors import BadReply, InvalidDocument
from asap_core.net.outbound import OutboundPolicy
from tests.core.client.laws import (
    NUMBERS,
    TABLE_DEFECTS,
    Defects,
    ProgramMachine,
    World,
    is_caught,
    keeps_its_laws,
)
from tests.core.client.scripted import Answer, Reply, Run
from tests.core.client.test_registry_cache import DOWN, freshness, index

URLS = ("https://r.example:443/registry.json", "https://other.example:443/registry.json")
REGISTRIES = tuple(map(index, "abc"))
# What a server says of its registry, and for how long its copy may be used.
CONTROLS = {control: serves_for(freshness(control)) for control in ("", "max-age=60, must-revalidate", "no-store")}
ERRORS = {
    "down": DOWN, "busy": BadReply("u", "r", 503), "gone": BadReply("u", "r", 404),
    "odd": BadReply("u", "r", 400), "invalid": InvalidDocument("registry", ()),
}  # fmt: skip
OUTAGES, GONE = ("down", "busy"), ("gone",)
READS: dict[str, Reply] = {
    "absent": Unavailable("No such file or directory", errno.ENOENT),
    "broken": Unavailable("Input/output error", errno.EIO),
    "late": Expired(),
}
WRITES: dict[str, Reply] = {"full": Unavailable("No space left on device", errno.ENOSPC), "late": Expired()}
TOLERANCE = 0.002  # a file says milliseconds


@frozen
class Stored:
    """A registry that a server sent or confirmed."""

    version: int
    confirmed: float
    serves: float


@frozen
class File:
    data: bytes
    identity: FileIdentity


@frozen
class Written:
    """The copy that belongs on disk: of which registry, and since when. `writing`: live, ended or interrupted."""

    version: int
    serves: float
    since: float
    file: object
    writing: str = "live"


class Copies(World):
    """A client's copies and their directory; what interrupted writes do, their threads decide."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = Requests(self.runtime, policy=OutboundPolicy())
        self.cache = self.made()
        self.files: dict[str, File] = {}
        self.numbers = 0
        self.threads: list[WriteFile] = []
        # By URL: what its server sent since it was last dropped, the copy in memory, and the one on disk.
        self.sent: dict[str, list[Stored]] = {url: [] for url in URLS}
        self.memory: dict[str, Stored] = {}
        self.written: dict[str, Written] = {}
        # Who takes which copy, and how often it had been dropped before; the files that are being read.
        self.takers: dict[Run[Any], tuple[str, int]] = {}
        self.drops = dict.fromkeys(URLS, 0)
        self.opened: dict[Run[Any], File | None] = {}

    def made(self) -> RegistryCache:
        return RegistryCache("/copies", self.runtime, self.requests, most=10_000)

    @property
    def tables(self) -> tuple[int, ...]:
        return len(self.cache._reads), self.cache._reads.waiting

    # --- commands ----------------------------------------------------------------------------------------------------

    def put(self, url: str, version: int, control: str, age: float) -> None:
        self._wake()
        now, serves = self.clock.monotonic(), CONTROLS[control]
        if serves:
            self.memory[url] = Stored(version, now - age, serves)
            self.sent[url].append(self.memory[url])
        else:
            self.forgotten(url)
        run = self.start(self.cache.put(url, REGISTRIES[version], freshness(control), age=age))
        old = self.written.get(url)
        same = old is not None and (old.version, old.serves) == (version, serves)
        if isinstance(run.effect, WriteFile):
            assert serves, "written, and not to be stored"
            recent = old is not None and now - age - old.since < WRITE_AGAIN and old.writing != "interrupted"
            assert not (same and recent), "written a second time"
            again = same and old is not None and old.writing == "interrupted"
            since = old.since if again and old is not None else now
            self.written[url] = Written(version, serves, since, run.effect.file)
        elif serves:
            assert same, "it isn't written"
            assert old is not None
            assert old.writing != "interrupted", "an interrupted write counts as written"

    def take(self, url: str, error: str) -> None:
        known, now = self.memory.get(url), self.clock.monotonic()
        if error in GONE:
            self.forgotten(url)
        run = self.start(self.cache.take(url, ERRORS[error]))
        self.takers[run] = url, self.drops[url]
        if error not in OUTAGES:
            assert run.end == Returned(None), "used without an outage"
        elif known is not None and now - known.confirmed <= known.serves:
            assert isinstance(run.end, Returned), "read, with a copy at hand"
            assert run.end.value is not None
            assert run.end.value.index is REGISTRIES[known.version], "another copy than the last one"
        self.look(run)

    def drop(self, url: str) -> None:
        self.forgotten(url)
        self.cache.drop(url)
        self._wake()

    def clear(self) -> None:
        for url in (*self.cache._copies, *self.cache._reads):
            self.forgotten(url)
        self.cache.clear()
        self._wake()

    def file_says(self, which: int, name: str) -> None:
        run = self.chosen(which, ReadFile)
        if run is not None:
            assert isinstance(run.effect, ReadFile)
            self.answer(run, READS[name] if name in READS else self.read(run))

    def write_ends(self, which: int, name: str) -> None:
        run = self.chosen(which, WriteFile)
        if run is not None:
            assert isinstance(run.effect, WriteFile)
            if name == "done":
                self.write(run.effect)
            self.answer(run, WRITES.get(name, Completed()))

    def thread_ends(self, which: int) -> None:
        """A write goes on after its program was closed."""
        if self.threads:
            self.write(self.threads.pop(which % len(self.threads)))

    def damage(self, url: str, how: str) -> None:
        """Another program changes the file."""
        file = self.files.get(path_of(url))
        if file is not None:
            data = file.data
            match how:
                case "cut off":
                    data = data[:-1]
                case "longer":
                    data += b" "
                case "another head":
                    data = data.replace(b"vouched", b"touched")
                case "another body":
                    data = data.replace(b"agent:", b"Agent:")
                case _:
                    data = self.files.get(path_of(URLS[URLS[0] == url]), file).data
            self.numbers += 1
            self.files[path_of(url)] = File(data, FileIdentity(self.numbers, len(data), 0, 0))

    def restart(self) -> None:
        """Another process begins, with the same directory."""
        while self.runs:
            self.leave(0, lost=False)
        self.threads.clear()
        self.memory.clear()
        self.written.clear()
        self.cache = self.made()

    # --- files -------------------------------------------------------------------------------------------------------

    def read(self, run: Run[Any]) -> Reply:
        """The file as it was when it was opened: it may be removed meanwhile."""
        assert isinstance(run.effect, ReadFile)
        file = self.opened[run]
        if file is None:
            return READS["absent"]
        unread = run.effect.unless == file.identity
        return FileRead(file.identity) if unread else Answer(body=file.data, identity=file.identity)

    def write(self, effect: WriteFile) -> None:
        old = self.files.get(effect.path)
        if old is None or not effect.file.is_written(old.data[:1_024], len(old.data)):
            data = b"".join(effect.file.pieces())
            if effect.file.wanted():
                self.numbers += 1
                self.files[effect.path] = File(data, FileIdentity(self.numbers, len(data), 0, 0))

    def _wake(self) -> None:
        super()._wake()
        while self.removed:
            self.files.pop(self.removed.pop(), None)

    # --- the model ---------------------------------------------------------------------------------------------------

    def forgotten(self, url: str) -> None:
        self.drops[url] += 1
        self.sent[url].clear()
        self.memory.pop(url, None)
        self.written.pop(url, None)

    def left(self, run: Run[Any]) -> None:
        self.takers.pop(run, None)
        if isinstance(run.effect, WriteFile):
            self.threads.append(run.effect)
            self.write_is(run.effect, "interrupted")

    def write_is(self, effect: WriteFile, what: str) -> None:
        for url, written in self.written.items():
            if written.file is effect.file:
                self.written[url] = evolve(written, writing=what)

    def answer(self, run: Run[Any], reply: Reply) -> None:
        if isinstance(run.effect, WriteFile):
            self.write_is(run.effect, "interrupted" if isinstance(reply, Expired) else "ended")
        super().answer(run, reply)
        self.look(run)

    def look(self, run: Run[Any]) -> None:
        if isinstance(run.effect, ReadFile):
            self.opened[run] = self.files.get(run.effect.path)
        if run.effect is not None:
            return
        (url, _), end = self.takers.pop(run, (None, 0)), run.end
        assert isinstance(end, Returned)
        if url is None or end.value is None:
            self.ends.append("nothing")
            return
        found, now = end.value, self.clock.monotonic()
        assert isinstance(found, CachedCopy)
        possible = [
            one
            for one in self.sent[url]
            if abs(now - one.confirmed - found.age) <= TOLERANCE
            and list(found.index.agents) == list(REGISTRIES[one.version].agents)
        ]
        assert possible, "a copy that its server didn't send, or of another age"
        assert any(found.age <= one.serves + TOLERANCE for one in possible), "it's too old"
        self.ends.append(f"{found.age:.3f} {found.from_disk} {possible[0].version}")


def path_of(url: str) -> str:
    return f"/copies/{file_name(url)}"


# --- the laws --------------------------------------------------------------------------------------------------------

# The first one more often.
URL = st.sampled_from([URLS[0], *URLS])
DAMAGES = st.sampled_from(["cut off", "longer", "another head", "another body", "another registry's"])


class CopyLaws(ProgramMachine):
    world_of: Any = staticmethod(Copies)

    @initialize(control=st.sampled_from(sorted(CONTROLS)), restarted=st.booleans())
    def one_was_stored(self, control: str, restarted: bool) -> None:
        self.do("put", URLS[0], 0, control, 0.0)
        self.do("write_ends", 0, "done")
        if restarted:
            self.do("restart")

    @rule(
        url=URL, version=st.integers(0, 2), control=st.sampled_from(["", *CONTROLS]), age=st.sampled_from([0.0, 20.0])
    )
    def put(self, url: str, version: int, control: str, age: float) -> None:
        self.do("put", url, version, control, age)

    @rule(url=URL, version=st.integers(0, 1), lost=st.booleans())
    def a_write_is_interrupted(self, url: str, version: int, lost: bool) -> None:
        self.do("put", url, version, "", 0.0)
        self.do("leave", -1, lost)
        self.do("put", url, version, "", 0.0)

    @rule(url=URL, error=st.sampled_from(["down", "down", *ERRORS]))
    def take(self, url: str, error: str) -> None:
        self.do("take", url, error)

    @rule(url=URL, reply=st.sampled_from(["as it was", "as it was", *READS]))
    def several_take(self, url: str, reply: str) -> None:
        for _ in range(3):
            self.do("take", url, "down")
        self.do("file_says", 0, reply)

    @rule(url=URL, again=st.booleans())
    def a_file_is_dropped_while_it_is_read(self, url: str, again: bool) -> None:
        self.another_process_stores(url)
        self.do("take", url, "down")
        self.do("drop", url)
        if again:
            self.do("take", url, "down")
        self.do("file_says", 0, "as it was")

    @rule(url=URL)
    def drop(self, url: str) -> None:
        self.do("drop", url)

    @rule()
    def clear(self) -> None:
        self.do("clear")

    @rule(which=NUMBERS, reply=st.sampled_from(["as it was", "as it was", *READS]))
    def file_says(self, which: int, reply: str) -> None:
        self.do("file_says", which, reply)

    @rule(which=NUMBERS, outcome=st.sampled_from(["done", "done", *WRITES]))
    def write_ends(self, which: int, outcome: str) -> None:
        self.do("write_ends", which, outcome)

    def another_process_stores(self, url: str) -> None:
        self.do("restart")
        self.do("put", url, 2, "", 0.0)
        self.do("write_ends", 0, "done")
        self.do("restart")

    @rule(which=NUMBERS)
    def thread_ends(self, which: int) -> None:
        self.do("thread_ends", which)

    @rule(url=URL, how=DAMAGES)
    def a_damaged_file_is_read_after_a_restart(self, url: str, how: str) -> None:
        self.another_process_stores(url)
        self.do("damage", url, how)
        self.do("take", url, "down")
        self.do("file_says", 0, "as it was")

    @rule(url=URL, seconds=st.sampled_from([0.0, 50.0, 61.0, 604_801.0]))
    def an_outage_after_some_time(self, url: str, seconds: float) -> None:
        self.do("advance", seconds)
        self.do("take", url, "down")

    @rule(seconds=st.sampled_from([1.0, 61.0, WRITE_AGAIN, 604_801.0]))
    def time_passes(self, seconds: float) -> None:
        self.do("advance", seconds)

    @rule()
    def all_who_can_go_on_do(self) -> None:
        self.do("settle")
        if self.world.requested(Wait):
            assert self.world.requested(ReadFile), "all wait, and nobody reads"

    @invariant()
    def there_is_one_live_read_of_each_file_and_one_live_write_of_each_copy(self) -> None:
        # Who reads what was dropped meanwhile reads for those who came before.
        reads = [self.world.takers[run] for run in self.world.runs if isinstance(run.effect, ReadFile)]
        assert len(reads) == len(set(reads)), "a second read of one file"
        copies = [id(effect.file) for effect in self.world.requested(WriteFile)]
        assert len(copies) == len(set(copies)), "a second write of one copy"

    @invariant()
    def nothing_is_on_disk_that_was_dropped(self) -> None:
        for url in URLS:
            assert self.world.sent[url] or path_of(url) not in self.world.files, "a dropped copy is on disk"

    @invariant()
    def nobody_waits_who_left(self) -> None:
        if not self.world.runtime._undone:
            assert self.world.cache._reads.waiting <= len(self.world.runs), "who left still waits"


def test_copies_keep_their_laws() -> None:
    keeps_its_laws(CopyLaws)


# --- planted defects -------------------------------------------------------------------------------------------------


def takes_any_file(self):
    return registry_copies.read_head(self._start, self._url, wall=self._wall), self._registry.close()


def reads_for_each(self, url):
    self._reads.detach(url)
    yield from read_once(self, url)


def drops_only_in_memory(self, url):
    self._copies.pop(url)
    self._reads.detach(url)


def lets_writes_go_on(self, url):
    copy = self._copies.peek(url)
    drop(self, url)
    if copy is not None:
        copy.current = True


def uses_what_was_dropped_meanwhile(self, url):
    drop(self, url)
    self._reads._flights.update({flight.key: flight for flight in self._reads._detached})
    self._reads._detached.clear()


def bridges_any_failure(self, url, _error):
    return take(self, url, DOWN)


def writes_each_time(self, url, registry, fresh, *, age):
    self._copies.pop(url)
    return put(self, url, registry, fresh, age=age)


read_once, drop = RegistryCache._read_once, RegistryCache.drop
take, put = RegistryCache.take, RegistryCache.put
DEFECTS: Defects = {
    **{name: each for name, each in TABLE_DEFECTS.items() if name != "each caller fetches"},
    "an interrupted write counts as written": (Copy, "interrupt", lambda _self: None),
    "what is gone is kept": (registry_cache, "GONE", frozenset()),
    "damaged files are used": (CopyParser, "close", takes_any_file),
    "each caller reads": (RegistryCache, "_read_once", reads_for_each),
    "files outlive their copies": (RegistryCache, "drop", drops_only_in_memory),
    "a write goes on after its copy was dropped": (RegistryCache, "drop", lets_writes_go_on),
    "a read goes on after its copy was dropped": (RegistryCache, "drop", uses_what_was_dropped_meanwhile),
    "copies are used without an outage": (RegistryCache, "take", bridges_any_failure),
    "each caller writes": (RegistryCache, "put", writes_each_time),
    "copies are used for ever": (Copy, "age", lambda _self, _at: 0.0),
}


@pytest.mark.planted
@pytest.mark.long
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_caught(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*DEFECTS[defect])
    is_caught(CopyLaws)
