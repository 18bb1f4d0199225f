"""A state file: admission in this process's memory, and as much of it on disk as no crash may lose.

What is written, when, and what it means after a crash stands in `asap_core.server.state`; here it's written and synced,
in worker threads, many waiting callers with one sync.
"""

import fcntl
import os
from pathlib import Path
from typing import Final, Protocol

import anyio
import anyio.to_thread
from attrs import evolve

from asap_adapters.entropy import new_secret
from asap_core.clock import WallTime
from asap_core.server.admission import Admitted, Answer, LocalAdmission, Question, Reservation, Unavailable
from asap_core.server.agent import Agent
from asap_core.server.idempotency import Kept
from asap_core.server.replay import StartPolicy
from asap_core.server.state import (
    BadState,
    Found,
    Identity,
    batch,
    identity,
    lease,
    read_state,
    reserved,
    snapshot,
    state_file,
)

__all__ = ["Disk", "FileDisk", "FileStore"]

# A lease is a sync; one every five seconds is no load, and five seconds of refusals after a crash are soon over.
_LEASE_SECONDS: Final = 5.0
# Past it the file is written anew with what still counts: 100,000 keys.
_COMPACT_BYTES: Final = 4_194_304


class Disk(Protocol):
    """One file, read as a whole and written safely. All methods block."""

    def read(self) -> bytes | None:
        """All of it, or None where there's none."""
        ...

    def replace(self, data: bytes) -> None:
        """Put `data` in its place, whole or not at all, synced. Raises OSError."""
        ...

    def append(self, data: bytes) -> None:
        """Add `data` at its end, synced. Raises OSError."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class FileDisk:
    """A file that one process at a time may have. Only its owner may read it: there's a secret in it."""

    def __init__(self, path: Path) -> None:
        """Take the file. Raises BadState where another process has it, OSError where it can't be had."""
        self._path = path
        self._lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise BadState(f"{path} is in use by another process: each agent needs a state file of its own") from None
        self._file: int | None = None

    def read(self) -> bytes | None:
        """See `Disk`."""
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def replace(self, data: bytes) -> None:
        """See `Disk`."""
        beside = self._path.with_name(f"{self._path.name}.new")
        file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_all(file, data)
            os.fsync(file)
        finally:
            os.close(file)
        beside.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)  # the name is in the folder
        finally:
            os.close(folder)
        self._forget_file()

    def append(self, data: bytes) -> None:
        """See `Disk`."""
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        _write_all(self._file, data)
        os.fsync(self._file)

    def _forget_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def close(self) -> None:
        """See `Disk`."""
        self._forget_file()
        os.close(self._lock)


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


class FileStore:
    """Answers admission for an agent that was bound with `shared_admission=True`; made by `open`, ended by `aclose`."""

    def __init__(self, disk: Disk, agent: Agent, local: LocalAdmission, who: Identity, leased: WallTime | None) -> None:
        self._disk = disk
        self._agent = agent
        self._local = local
        self._identity = who
        self._leased = leased
        self._journal = _Journal(disk)

    @classmethod
    async def open(cls, file: Path | Disk, agent: Agent) -> "FileStore":
        """Take over what the file says. Raises BadState, with its name, where it can't be used, or OSError."""
        disk = await anyio.to_thread.run_sync(FileDisk, file) if isinstance(file, Path) else file
        try:
            return await cls._open(disk, agent)
        except BaseException as error:
            disk.close()
            if isinstance(error, BadState) and isinstance(file, Path):
                raise BadState(f"{file}: {error}") from None
            raise

    @classmethod
    async def _open(cls, disk: Disk, agent: Agent) -> "FileStore":
        data = await anyio.to_thread.run_sync(disk.read)
        policy, now = agent.policy, agent.now()
        if data is None:
            found = None
            who = Identity(agent.manifest.id, new_secret(), policy.max_age, policy.skew)
            local = LocalAdmission.of(policy, key=who.key, now=now, wall=agent.wall())
        else:
            found = read_state(data)
            who = found.identity
            _check(who, agent)
            open_policy = evolve(policy, start=StartPolicy.OPEN)  # the file knows better
            local = LocalAdmission.of(open_policy, key=who.key, now=now, wall=agent.wall())
            try:
                local.restore(found.guard, _kept(found, policy.idempotency_ttl), floor=found.leased, now=now)
            except ValueError as error:
                raise BadState(str(error)) from None
        store = cls(disk, agent, local, who, _start_floor(agent) if found is None else found.leased)
        # From here on the old snapshot is gone: a crash must not bring it back.
        await anyio.to_thread.run_sync(disk.replace, store._whole_file())
        return store

    def _whole_file(self) -> bytes:
        kept = self._local.snapshot_of_keys(now=self._agent.now())
        leases = [] if self._leased is None else [lease(self._leased)]
        return state_file([identity(self._identity), *leases, *(reserved(one.key, one.digest) for one in kept)])

    # --- what admission asks -----------------------------------------------------------------------------------------

    async def ask(self, question: Question) -> Answer:
        """Answer one question; what follows from the answer is on disk by then."""
        unavailable = Unavailable(self._agent.policy.retry_after_unavailable)
        if self._leased is None or question.issued > self._leased:
            until = WallTime(question.issued + _LEASE_SECONDS)
            try:
                await self._journal.append(lease(until))
            except OSError:
                return unavailable
            self._leased = WallTime(max(until, self._leased or until))
        answer = self._local.ask(question, now=self._agent.now(), wall=self._agent.wall())
        if not isinstance(answer, Admitted) or answer.reservation is None:
            return answer
        try:
            await self._journal.append(reserved(answer.reservation.key, question.digest))
        except OSError:
            self.give_back(answer.reservation)
            return unavailable
        except BaseException:
            self.give_back(answer.reservation)
            raise
        if self._journal.size > _COMPACT_BYTES:
            await self._journal.rewrite(self._whole_file)
        return answer

    def record(self, reservation: Reservation, outcome: object, size: int) -> None:
        """Keep an answer, in memory: on disk its key is kept from a second run already."""
        self._local.record(reservation, outcome, size=size, now=self._agent.now())

    def lose(self, reservation: Reservation) -> None:
        """The work was cut off midway."""
        self._local.lose(reservation, now=self._agent.now())

    def give_back(self, reservation: Reservation) -> None:
        """The work never began."""
        self._local.give_back(reservation, now=self._agent.now())

    async def aclose(self) -> None:
        """The orderly end: everything that's remembered goes into the file."""
        guard, kept = self._local.snapshot(now=self._agent.now())
        leases = [] if self._leased is None else [lease(self._leased)]
        data = state_file([identity(self._identity), *leases, snapshot(guard, kept)])
        with anyio.CancelScope(shield=True):
            await self._journal.rewrite(lambda: data)
            await anyio.to_thread.run_sync(self._disk.close)


def _start_floor(agent: Agent) -> WallTime | None:
    """What policy takes for accepted where there's no file yet: before it, the agent may have run without one."""
    ahead = {StartPolicy.EXACT: agent.policy.skew, StartPolicy.FLOOR: 0.0, StartPolicy.OPEN: None}[agent.policy.start]
    return None if ahead is None else WallTime(agent.wall() + ahead)


def _check(who: Identity, agent: Agent) -> None:
    if who.agent_id != agent.manifest.id:
        raise BadState(f"expected the state of {agent.manifest.id}; it's that of another agent")
    if (who.max_age, who.skew) != (agent.policy.max_age, agent.policy.skew):
        raise BadState(f"expected the state of an agent with max_age={agent.policy.max_age}, skew={agent.policy.skew}")


def _kept(found: Found, ttl: float) -> list[Kept]:
    # Of what was reserved nobody knows for how long yet: the time in between counts as none.
    return [one if found.guard is not None else evolve(one, seconds=ttl) for one in found.kept]


class _Journal:
    """Appends with one sync for all who wait meanwhile."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._lock = anyio.Lock()
        self._waiting: list[bytes] = []
        self._round = _Round()
        self.size = 0

    async def append(self, record: bytes) -> None:
        """Return when this record is on disk. Raises OSError where it can't be."""
        self._waiting.append(record)
        mine = self._round
        async with self._lock:
            if not mine.done:
                await self._write(mine)
        if mine.failed is not None:
            raise OSError(mine.failed.errno, mine.failed.strerror)

    async def _write(self, mine: "_Round") -> None:
        records, self._waiting, self._round = self._waiting, [], _Round()
        data = batch(records)
        try:
            # Not to be left halfway: a record that's half on disk would be a torn one in the middle after the next.
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._disk.append, data)
        except OSError as error:
            mine.failed = error
        self.size += len(data)
        mine.done = True

    async def rewrite(self, whole: "_Whole") -> None:
        """Write the file anew."""
        async with self._lock:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._disk.replace, whole())
            self.size = 0


class _Round:
    """Those whose records go to disk with one write."""

    def __init__(self) -> None:
        self.done = False
        self.failed: OSError | None = None


class _Whole(Protocol):
    def __call__(self) -> bytes: ...
