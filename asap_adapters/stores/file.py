"""A state file: admission in this process's memory, and on disk what a crash must not lose.

`asap_core.admission.journal` decides what is written, when, and what it means after a crash. This module writes and
syncs it in a worker thread. Callers that wait at the same time share one sync.
"""

import errno
import fcntl
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import anyio

from asap_adapters.files import FileThreads, open_itself, sync_directory
from asap_adapters.system import new_secret
from asap_core.admission.admission import AdmissionAnswer, AdmissionQuestion, Admitted, Reservation, StoreUnavailable
from asap_core.admission.journal import Journal
from asap_core.admission.state_file import write_batch
from asap_core.errors import BadState
from asap_core.server.agent import Agent

log: Final = logging.getLogger("asap.state")

# Past this size the file is rewritten without expired records. It holds some 100,000 keys.
_COMPACT_BYTES: Final = 4_194_304
# Replaced files that are kept open, and so locked, because they still have another name. One more appears only if
# someone makes a hard link between two rewrites of the file.
_MOST_LINKED: Final = 64


class Disk(Protocol):
    """One file, read as a whole and written safely. All methods block."""

    def read(self) -> bytes | None:
        """Return the whole file, or None if it doesn't exist."""
        ...

    def replace(self, data: bytes) -> None:
        """Replace the file by `data`, atomically and synced. Raises OSError."""
        ...

    def append(self, data: bytes) -> None:
        """Append `data`, synced. Raises OSError."""
        ...

    def close(self) -> None:
        """Close the file and release its locks."""
        ...


class FileDisk:
    """A file that one process at a time may use. Its mode is 0600, since it holds a secret.

    It holds two locks. The lock of the file `….lock` beside it exists before the state file does; its name follows from
    the real path, whatever symbolic links lead there. The lock of the state file itself holds under every name of the
    file, and is kept on a replaced file that still has another name.
    """

    def __init__(self, path: Path) -> None:
        """Open and lock the file.

        Raises BadState if another process has it, or if it isn't a regular file with exactly one name. Raises OSError.
        """
        self._path = Path(os.path.realpath(path))
        # Files that were replaced, and still exist under another name.
        self._linked: list[int] = []
        self._file: int | None = None
        try:
            self._lock = open_itself(self._path.with_name(f"{self._path.name}.lock"), os.O_RDWR | os.O_CREAT)
            try:
                _lock(self._lock, path)
                self._file = _taken(self._path, path)
            except BaseException:
                os.close(self._lock)
                raise
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None  # the name that the user gave

    def read(self) -> bytes | None:
        """See `Disk`."""
        if self._file is None:
            return None
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(0)
            return file.read()

    def replace(self, data: bytes) -> None:
        """See `Disk`."""
        beside = self._path.with_name(f"{self._path.name}.new")
        beside.unlink(missing_ok=True)  # left by a crash, or a link to something else
        file = open_itself(beside, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL)
        try:
            _lock(file, self._path)
            _write_all(file, data)
            os.fsync(file)
            beside.replace(self._path)
        except BaseException:
            os.close(file)
            raise
        self._let_go_of_old()
        self._file = file
        sync_directory(self._path.parent)

    def append(self, data: bytes) -> None:
        """See `Disk`."""
        if self._file is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._path))
        _write_all(self._file, data)
        os.fsync(self._file)

    def _let_go_of_old(self) -> None:
        if self._file is None:
            return
        if os.fstat(self._file).st_nlink == 0:
            os.close(self._file)
            return
        self._linked.append(self._file)
        if len(self._linked) > _MOST_LINKED:
            os.close(self._linked.pop(0))

    def close(self) -> None:
        """See `Disk`."""
        for each in (*self._linked, self._file, self._lock):
            if each is not None:
                os.close(each)
        self._linked, self._file = [], None


def _taken(real: Path, path: Path) -> int | None:
    """Open and lock the file. Returns None if it doesn't exist."""
    try:
        file = open_itself(real, os.O_RDWR | os.O_APPEND)
    except FileNotFoundError:
        return None
    try:
        _lock(file, path)
        _check(os.fstat(file), path)
    except BaseException:
        os.close(file)
        raise
    return file


def _check(there: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(there.st_mode):
        raise BadState(f"{path} isn't a file: expected one, or a name for a new one")
    if there.st_nlink != 1:
        raise BadState(f"{path} has other names (hard links): expected a file that has one only, and so one owner")


def _lock(file: int, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BadState(f"{path} is in use by another process: each agent needs a state file of its own") from None


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


class FileStore:
    """Answers admission for an agent bound with `shared_admission=True`. Made by `open`, closed by `aclose`."""

    def __init__(self, disk: Disk, agent: Agent, journal: Journal, threads: FileThreads) -> None:
        self._disk = disk
        self._threads = threads
        self._agent = agent
        self._journal = journal
        self._file = _JournalFile(disk, threads, lambda: journal.compacted(now=agent.now()))

    @classmethod
    async def open(cls, file: Path | Disk, agent: Agent) -> "FileStore":
        """Open the file and take over its state.

        Raises BadState, with the file's name, if it can't be used; ValueError if the agent wasn't bound with
        `shared_admission=True`; and OSError.
        """
        if agent.admission is not None:
            raise ValueError(
                "expected an agent that isn't bound, or is bound with shared_admission=True: others don't ask a store"
            )
        threads = FileThreads(most=1)  # one thread, so that operations on the file don't overlap
        disk = await threads.run(FileDisk, file) if isinstance(file, Path) else file
        try:
            data = await threads.run(disk.read)
            journal = Journal.begin(
                data,
                agent_id=agent.manifest.id,
                policy=agent.policy,
                key=new_secret(),
                at=agent.moment(),
            )
            store = cls(disk, agent, journal, threads)
            await store._file.rewrite()
        except BaseException as error:
            disk.close()
            if isinstance(error, BadState) and isinstance(file, Path):
                raise BadState(f"{file}: {error}") from None
            raise
        return store

    async def ask(self, question: AdmissionQuestion) -> AdmissionAnswer:
        """Answer one question, after what the answer implies is on disk. Never raises OSError."""
        lease = self._journal.lease_for(question)
        if lease is not None:
            if not await self._file.append(lease.record):
                return self._unavailable()
            self._journal.leased(lease)
        answer = self._journal.ask(question, at=self._agent.moment())
        record = self._journal.reservation_record(question, answer)
        if record is None or not isinstance(answer, Admitted) or answer.reservation is None:
            return answer
        written = False
        try:
            written = await self._file.append(record)
        finally:
            # The record isn't on disk, or the caller was cancelled: the work never begins.
            if not written:
                await self.give_back(answer.reservation)
        return answer if written else self._unavailable()

    def _unavailable(self) -> StoreUnavailable:
        return StoreUnavailable(self._agent.policy.retry_after_unavailable)

    async def record(self, reservation: Reservation, outcome: object, size: int) -> None:
        """Keep the outcome for retries."""
        self._journal.record(reservation, outcome, size=size, now=self._agent.now())

    async def lose(self, reservation: Reservation) -> None:
        """Note that the work was cut off."""
        self._journal.lose(reservation, now=self._agent.now())

    async def give_back(self, reservation: Reservation) -> None:
        """Note that the work never began."""
        self._journal.give_back(reservation, now=self._agent.now())

    async def aclose(self) -> None:
        """Write everything that is remembered into the file, and close it. Raises OSError."""
        data = self._journal.final(now=self._agent.now())
        with anyio.CancelScope(shield=True):
            try:
                await self._file.rewrite(data)
            finally:
                await self._threads.run(self._disk.close)


class _JournalFile:
    """Appends records to the file with one sync for all waiting callers, and rewrites it when it's long or torn."""

    def __init__(self, disk: Disk, threads: FileThreads, compacted: Callable[[], bytes]) -> None:
        self._disk = disk
        self._threads = threads
        self._compacted = compacted
        self._lock = anyio.Lock()
        self._batch = _Batch()
        self._size = 0
        # After a failed write the end of the file is unknown, so the next write replaces the file.
        self._torn = False

    async def append(self, record: bytes) -> bool:
        """Return whether the record is on disk now. If the caller is cancelled, it may be or not."""
        mine = self._batch
        mine.records.append(record)
        async with self._lock:
            if mine is self._batch:
                self._batch = _Batch()
                # Shielded: the next record must not follow half of this one.
                with anyio.CancelScope(shield=True):
                    mine.written = await self._write(write_batch(mine.records))
        return mine.written

    async def _write(self, data: bytes) -> bool:
        try:
            if self._torn or self._size > _COMPACT_BYTES:
                await self._threads.run(self._disk.replace, self._compacted() + data)
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
        """Replace the file by `data` or, if it's None, by the compacted journal. Raises OSError."""
        async with self._lock:
            with anyio.CancelScope(shield=True):
                await self._threads.run(self._disk.replace, self._compacted() if data is None else data)


class _Batch:
    """The records that go to disk with one write."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.written = False
