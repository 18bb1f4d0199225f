"""A state file: admission in this process's memory, and as much of it on disk as no crash may lose.

What is written, when, and what it means after a crash is decided in `asap_core.server.ledger`; here it's written and
synced, in worker threads, many waiting callers with one sync.
"""

import fcntl
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import anyio

from asap_adapters.entropy import new_secret
from asap_adapters.files import FileThreads
from asap_core.errors import BadState
from asap_core.server.admission import Admitted, Answer, Question, Reservation, Unavailable
from asap_core.server.agent import Agent
from asap_core.server.ledger import Ledger
from asap_core.server.state import batch

__all__ = ["Disk", "FileDisk", "FileStore"]

log: Final = logging.getLogger("asap.state")

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
        try:
            self._lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None  # the name that was asked for
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
        self._forget_file()  # it's the old one
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)  # the name is in the folder
        finally:
            os.close(folder)

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

    def __init__(self, disk: Disk, agent: Agent, ledger: Ledger, threads: FileThreads) -> None:
        self._disk = disk
        self._threads = threads
        self._agent = agent
        self._ledger = ledger
        self._journal = _Journal(disk, threads, lambda: ledger.whole(now=agent.now()))

    @classmethod
    async def open(cls, file: Path | Disk, agent: Agent) -> "FileStore":
        """Take over what the file says.

        Raises BadState, with its name, where it can't be used, OSError, and ValueError where the agent asks nobody.
        """
        if agent.admission is not None:
            raise ValueError(
                "expected an agent that wasn't bound, or was with shared_admission=True: else it asks nobody"
            )
        threads = FileThreads(most=1)  # whatever is done with the file, it's done in turn
        disk = await threads.run(FileDisk, file) if isinstance(file, Path) else file
        try:
            data = await threads.run(disk.read)
            ledger = Ledger.begin(
                data,
                agent_id=agent.manifest.id,
                policy=agent.policy,
                key=new_secret(),
                now=agent.now(),
                wall=agent.wall(),
            )
            store = cls(disk, agent, ledger, threads)
            await store._journal.rewrite()
        except BaseException as error:
            disk.close()
            if isinstance(error, BadState) and isinstance(file, Path):
                raise BadState(f"{file}: {error}") from None
            raise
        return store

    async def ask(self, question: Question) -> Answer:
        """Answer one question; what follows from the answer is on disk by then. Never raises OSError."""
        promise = self._ledger.before(question)
        if promise is not None:
            if not await self._journal.append(promise.record):
                return self._unavailable()
            self._ledger.promised(promise)
        answer = self._ledger.ask(question, now=self._agent.now(), wall=self._agent.wall())
        record = self._ledger.after(question, answer)
        if record is None or not isinstance(answer, Admitted) or answer.reservation is None:
            return answer
        written = False
        try:
            written = await self._journal.append(record)
        finally:
            # Not on disk, or nobody waits any longer: the work never begins.
            if not written:
                await self.give_back(answer.reservation)
        return answer if written else self._unavailable()

    def _unavailable(self) -> Unavailable:
        return Unavailable(self._agent.policy.retry_after_unavailable)

    async def record(self, reservation: Reservation, outcome: object, size: int) -> None:
        """Keep an answer."""
        self._ledger.record(reservation, outcome, size=size, now=self._agent.now())

    async def lose(self, reservation: Reservation) -> None:
        """The work was cut off midway."""
        self._ledger.lose(reservation, now=self._agent.now())

    async def give_back(self, reservation: Reservation) -> None:
        """The work never began."""
        self._ledger.give_back(reservation, now=self._agent.now())

    async def aclose(self) -> None:
        """The orderly end: everything that's remembered goes into the file. Raises OSError where it can't."""
        data = self._ledger.final(now=self._agent.now())
        with anyio.CancelScope(shield=True):
            try:
                await self._journal.rewrite(data)
            finally:
                await self._threads.run(self._disk.close)


class _Journal:
    """Appends with one sync for all who wait meanwhile, and keeps the file short and whole."""

    def __init__(self, disk: Disk, threads: FileThreads, whole: Callable[[], bytes]) -> None:
        self._disk = disk
        self._threads = threads
        self._whole = whole
        self._lock = anyio.Lock()
        self._round = _Round()
        self._size = 0
        # After a failed write nobody knows where the file ends: it's written anew, not appended to.
        self._torn = False

    async def append(self, record: bytes) -> bool:
        """Return when this record is on disk, or can't be. Cancelled, it may be there or not."""
        mine = self._round
        mine.records.append(record)
        async with self._lock:
            if mine is self._round:
                self._round = _Round()
                # Not to be left halfway: the next record would stand behind half of this one.
                with anyio.CancelScope(shield=True):
                    mine.written = await self._write(batch(mine.records))
        return mine.written

    async def _write(self, data: bytes) -> bool:
        try:
            if self._torn or self._size > _COMPACT_BYTES:
                await self._threads.run(self._disk.replace, self._whole() + data)
                self._size = 0
            else:
                await self._threads.run(self._disk.append, data)
        except OSError as error:
            log.error("the state file can't be written, so nothing is admitted: %s", error.strerror)  # noqa: TRY400 - no bug
            self._torn = True
            return False
        except BaseException:
            self._torn = True
            raise
        self._torn = False
        self._size += len(data)
        return True

    async def rewrite(self, data: bytes | None = None) -> None:
        """Write the file anew: with `data`, or all that counts now. Raises OSError."""
        async with self._lock:
            with anyio.CancelScope(shield=True):
                await self._threads.run(self._disk.replace, self._whole() if data is None else data)


class _Round:
    """Those whose records go to disk with one write."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.written = False
