"""The state file under crashes: nothing is admitted twice after a kill at any write, however much reached the disk."""

import errno
import itertools
import os
from pathlib import Path

import anyio
import pytest
from attrs import evolve

from asap_adapters.server.startup import bind_agent
from asap_adapters.stores.file import FileDisk, FileStore
from asap_core import BadState, WallTime
from asap_core.admission.admission import AdmissionQuestion, Admitted, OutcomeUnknown, Stored, StoreUnavailable
from asap_core.admission.replay import Floored, Replayed
from tests.moments import moment

pytestmark = pytest.mark.anyio

ALICE = "urn:asap:agent:alice"


class Power(Exception):
    """It went out."""


class Memory:
    """A disk in memory. The operation number `dies` goes wrong: `part` of what it was to write is there afterwards."""

    def __init__(self, data: bytes | None = None) -> None:
        self.data = data
        self.operations = 0
        self.dies: int | None = None
        self.part = 0.0
        self.dead = False
        self.fails: OSError | None = None
        self.closed = False

    def read(self) -> bytes | None:
        return self.data

    def _step(self) -> bool:
        """Whether the power goes out now."""
        if self.dead:
            raise Power
        if self.fails is not None:
            raise self.fails
        self.operations += 1
        self.dead = self.operations == self.dies
        return self.dead

    def replace(self, data: bytes) -> None:
        if self._step():
            # Atomic: all of it, or none.
            self.data = data if self.part >= 1.0 else self.data
            raise Power
        self.data = data

    def append(self, data: bytes) -> None:
        if self.fails is not None:
            # Full: some of it was written before that was known.
            self.data = (self.data or b"") + data[: int(len(data) * self.part)]
        if self._step():
            self.data = (self.data or b"") + data[: int(len(data) * self.part)]
            raise Power
        self.data = (self.data or b"") + data

    def close(self) -> None:
        self.closed = True


class World:
    """Runs of an agent, one after another on one disk; its wall clock continues, its monotonic clock restarts."""

    def __init__(self, agent) -> None:
        self.make = agent
        self.disk = Memory()
        self.numbers = itertools.count()
        self.admitted: list[AdmissionQuestion] = []
        self.began: set[str] = set()

    async def open(self):
        served = bind_agent(self.make(), shared_admission=True)
        self.agent = served
        return await FileStore.open(self.disk, served)

    def question(self, *, key: str | None = None) -> AdmissionQuestion:
        number = next(self.numbers)
        return AdmissionQuestion(
            sender=ALICE, authenticated=True, peer="x", nonce=f"n{number}", idempotency_key=key, digest=b"d" * 16,
            issued=WallTime(self.agent.wall() + number / 1000), deadline=30.0,
        )  # fmt: skip

    async def ask(self, store, question: AdmissionQuestion):
        answer = await store.ask(question)
        if isinstance(answer, Admitted):
            assert question not in self.admitted, "admitted twice"
            assert question.idempotency_key not in self.began, "run twice"
            self.admitted.append(question)
            if question.idempotency_key is not None:
                self.began.add(question.idempotency_key)
        return answer

    async def live(self, store, *, in_order: bool) -> None:
        """Some of everything, then the end."""
        for number in range(3):
            await self.ask(store, self.question())
            keyed = self.question(key=f"k{next(self.numbers)}")
            answer = await self.ask(store, keyed)
            if isinstance(answer, Admitted) and answer.reservation is not None and number != 1:
                await store.record(answer.reservation, None, 10)
        if in_order:
            await store.aclose()

    async def try_all_again(self, store) -> None:
        for question in list(self.admitted):
            answer = await store.ask(question)
            assert not isinstance(answer, Admitted), answer
            if question.idempotency_key is not None:
                # Long after, when no lease stands in the way: asked in memory, so that the lease isn't moved by it.
                later = evolve(self.question(key=question.idempotency_key), issued=WallTime(question.issued + 1000))
                answer = store._journal.ask(later, at=moment(self.agent.now(), later.issued))
                assert not isinstance(answer, Admitted), answer


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 1.0])
async def test_nothing_is_admitted_twice_after_a_kill_at_any_write(agent, part) -> None:
    for in_order, dies in itertools.product((True, False), range(1, 14)):
        world = World(agent)
        for life in range(3):
            if life == 1:
                world.disk.dies, world.disk.part = world.disk.operations + dies, part
            world.disk.dead = False
            try:
                store = await world.open()
                await world.try_all_again(store)
                await world.live(store, in_order=in_order)
            except Power:
                continue
        world.disk.dead, world.disk.dies = False, None
        await world.try_all_again(await world.open())
        assert len(world.admitted) >= 6


async def test_nothing_is_forgotten_after_an_orderly_end(agent) -> None:
    world = World(agent)
    store = await world.open()
    plain, keyed, lost = world.question(), world.question(key="k"), world.question(key="l")
    assert await world.ask(store, plain) == Admitted(None)
    done = await world.ask(store, keyed)
    await world.ask(store, lost)
    from asap_core import Replied

    answer = Replied("task.response", {"task_id": "t", "status": "completed"})
    await store.record(done.reservation, answer, 10)
    await store.aclose()
    again = await world.open()
    assert await again.ask(plain) == Replayed()
    assert await again.ask(keyed) == Stored(answer)
    assert await again.ask(lost) == OutcomeUnknown()
    # No floor stands in the way of what is fresh.
    assert isinstance(await world.ask(again, world.question()), Admitted)


async def test_after_a_crash_the_lease_covers_what_was_accepted(agent) -> None:
    world = World(agent)
    store = await world.open()
    first = world.question()
    await world.ask(store, first)
    again = await world.open()
    assert isinstance(await again.ask(first), Floored)
    assert isinstance(await again.ask(world.question()), Floored)  # within the lease: five seconds at most
    later = AdmissionQuestion(
        sender=ALICE, authenticated=True, peer="x", nonce="new", issued=WallTime(first.issued + 5.1),
        idempotency_key=None, digest=b"", deadline=1.0,
    )  # fmt: skip
    assert await again.ask(later) == Admitted(None)


async def test_a_store_on_a_full_disk_admits_nothing_and_recovers(agent) -> None:
    world = World(agent)
    store = await world.open()
    world.disk.fails = OSError(errno.ENOSPC, "No space left on device")
    refused, keyed = world.question(), world.question(key="k")
    assert isinstance(await store.ask(refused), StoreUnavailable)
    assert isinstance(await store.ask(keyed), StoreUnavailable)
    world.disk.fails = None
    assert isinstance(await world.ask(store, refused), Admitted)
    world.disk.fails = OSError(errno.ENOSPC, "No space left on device")
    assert isinstance(await store.ask(world.question(key="other")), StoreUnavailable)
    world.disk.fails = None
    assert isinstance(await world.ask(store, world.question(key="other")), Admitted)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 1.0])
async def test_the_file_is_readable_after_a_write_that_a_full_disk_cut_off(agent, part) -> None:
    world = World(agent)
    store = await world.open()
    await world.ask(store, world.question(key="before"))
    world.disk.fails, world.disk.part = OSError(errno.ENOSPC, "No space left on device"), part
    for _ in range(2):
        assert isinstance(await store.ask(world.question(key="full")), StoreUnavailable)
    world.disk.fails = None
    assert isinstance(await world.ask(store, world.question(key="after")), Admitted)
    # And then the power goes out.
    await world.try_all_again(await world.open())


async def test_a_file_rewritten_in_between_has_all_records(agent, monkeypatch) -> None:
    monkeypatch.setattr("asap_adapters.stores.file._COMPACT_BYTES", 0)
    world = World(agent)
    store = await world.open()

    async def one(question: AdmissionQuestion) -> None:
        await world.ask(store, question)

    async with anyio.create_task_group() as group:
        for number in range(50):
            later = evolve(world.question(key=f"k{number}" if number % 2 else None), issued=WallTime(1e9 + 10 * number))
            group.start_soon(one, later)
    assert len(world.admitted) == 50
    await world.try_all_again(await world.open())


async def test_an_agent_without_shared_admission_is_refused(agent) -> None:
    with pytest.raises(ValueError, match="shared_admission=True"):
        await FileStore.open(Memory(), bind_agent(agent()))


async def test_a_caller_that_leaves_during_a_write_has_begun_nothing(agent) -> None:
    world = World(agent)
    store = await world.open()
    await store.ask(world.question())
    keyed = world.question(key="k")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await store.ask(keyed)
    assert isinstance(await world.ask(store, world.question(key="k")), Admitted)


async def test_a_failed_final_write_closes_the_file(agent) -> None:
    world = World(agent)
    store = await world.open()
    await world.ask(store, world.question())
    world.disk.fails = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space"):
        await store.aclose()
    assert world.disk.closed
    world.disk.fails = None
    await world.try_all_again(await world.open())


async def test_concurrent_writes_share_their_syncs(agent) -> None:
    world = World(agent)
    store = await world.open()
    before, answers = world.disk.operations, []

    async def one(question: AdmissionQuestion) -> None:
        answers.append(await world.ask(store, question))

    async with anyio.create_task_group() as group:
        for number in range(200):
            group.start_soon(one, world.question(key=f"k{number}"))
    assert sum(isinstance(answer, Admitted) for answer in answers) == 200
    assert world.disk.operations - before < 100


async def test_a_file_that_grew_is_rewritten(agent, monkeypatch) -> None:
    monkeypatch.setattr("asap_adapters.stores.file._COMPACT_BYTES", 2000)
    world = World(agent)
    store = await world.open()
    for number in range(100):
        answer = await world.ask(store, world.question(key=f"k{number}"))
        await store.give_back(answer.reservation)
    assert len(world.disk.data or b"") < 5000


class TestTheFile:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "agent.state"

    async def open(self, path: Path, agent, **policy):
        return await FileStore.open(path, bind_agent(agent(**policy), shared_admission=True))

    async def test_the_file_is_readable_by_its_owner_and_open_in_one_process_only(self, path, agent) -> None:
        store = await self.open(path, agent)
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(BadState, match="in use by another process"):
            await self.open(path, agent)
        await store.aclose()
        await (await self.open(path, agent)).aclose()
        assert {entry.name for entry in path.parent.iterdir()} == {"agent.state", "agent.state.lock"}

    @pytest.mark.parametrize("compacted", [False, True])
    @pytest.mark.parametrize("link", ["symbolic", "of the folder", "hard", "dots", "a link to a link"])
    async def test_the_file_is_open_in_one_process_only_under_any_name(self, path, agent, link, compacted) -> None:
        store = await self.open(path, agent)
        elsewhere = path.parent / "elsewhere"
        elsewhere.mkdir()
        other = elsewhere / "other.state"
        match link:
            case "symbolic":
                other.symlink_to(path)
            case "of the folder":
                (elsewhere / "folder").symlink_to(path.parent)
                other = elsewhere / "folder" / path.name
            case "hard":
                other.hardlink_to(path)
            case "dots":
                other = elsewhere / ".." / path.name
            case _:
                (elsewhere / "first").symlink_to("../agent.state")
                other.symlink_to("first")
        if compacted:
            await store._file.rewrite()
            await store._file.rewrite()
        with pytest.raises(BadState, match="in use by another process"):
            await self.open(other, agent)
        await store.aclose()

    async def test_a_file_behind_a_symbolic_link_is_replaced_and_the_link_stays(self, path, agent) -> None:
        link = path.parent / "link"
        link.symlink_to(path.name)  # to what isn't there yet
        store = await self.open(link, agent)
        await store._file.rewrite()
        await store.aclose()
        assert link.is_symlink()
        assert path.is_file()
        assert not path.is_symlink()
        assert {each.name for each in path.parent.iterdir()} == {"link", "agent.state", "agent.state.lock"}

    async def test_a_file_with_another_hard_link_is_refused(self, path, agent) -> None:
        await (await self.open(path, agent)).aclose()
        before = path.read_bytes()
        other = path.parent / "other"
        other.hardlink_to(path)
        for name in (path, other):
            with pytest.raises(BadState, match="has other names"):
                await self.open(name, agent)
        assert path.read_bytes() == before
        other.unlink()
        await (await self.open(path, agent)).aclose()

    async def test_the_file_is_written_where_it_was_opened_in_any_working_directory(
        self, path, agent, monkeypatch, tmp_path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        store = await self.open(Path("agent.state"), agent)
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
        await store.aclose()
        assert path.stat().st_size > 0
        assert list((tmp_path / "other").iterdir()) == []

    @pytest.mark.parametrize("suffix", [".lock", ".new"])
    async def test_nothing_is_written_through_a_link_beside_it(self, path, agent, suffix) -> None:
        precious = path.parent / "precious"
        precious.write_text("mine")
        (path.parent / f"agent.state{suffix}").symlink_to(precious)
        if suffix == ".lock":
            with pytest.raises(OSError, match=r"agent\.state"):
                await self.open(path, agent)
        else:
            await (await self.open(path, agent)).aclose()
            assert not path.is_symlink()
        assert precious.read_text() == "mine"

    @pytest.mark.parametrize("kind", ["pipe", "folder", "loop"])
    async def test_a_path_that_is_no_regular_file_is_refused_at_once(self, path, agent, kind) -> None:
        match kind:
            case "pipe":
                os.mkfifo(path)
            case "folder":
                path.mkdir()
            case _:
                path.symlink_to(path.name)
        with pytest.raises((BadState, OSError), match=r"agent\.state"):
            await self.open(path, agent)

    @pytest.mark.parametrize("data", [b"", b"something else", b"asap-sansio state 1\n"])
    async def test_a_file_of_another_kind_is_refused_and_unchanged(self, path, agent, data) -> None:
        path.write_bytes(data)
        with pytest.raises(BadState, match=r"agent\.state: expected"):
            await self.open(path, agent)
        assert path.read_bytes() == data
        path.unlink()
        await (await self.open(path, agent)).aclose()

    async def test_a_file_with_another_window_is_refused(self, path, agent) -> None:
        await (await self.open(path, agent)).aclose()
        with pytest.raises(BadState, match="max_age=200"):
            await self.open(path, agent, max_age=200.0)

    async def test_a_file_of_another_agent_is_refused(self, path, agent, manifest) -> None:
        from asap_core import Agent

        await (await self.open(path, agent)).aclose()
        other = Agent(manifest(id="urn:asap:agent:other"))
        with pytest.raises(BadState, match="expected the state of urn:asap:agent:other"):
            await FileStore.open(path, bind_agent(other, shared_admission=True))

    async def test_a_missing_folder_is_an_error(self, path, agent) -> None:
        with pytest.raises(OSError, match="No such file"):
            await self.open(path / "x", agent)

    async def test_a_real_disk_appends_and_replaces(self, path) -> None:
        disk = FileDisk(path)
        assert disk.read() is None
        disk.replace(b"a")
        disk.append(b"b")
        disk.append(b"c")
        assert disk.read() == b"abc"
        disk.replace(b"d")
        disk.append(b"e")
        disk.close()
        assert path.read_bytes() == b"de"
