"""A state file: admission in this process's memory, and as much of it on disk as no crash may lose.

What is written, when, and what it means after a crash is decided in `asap_core.admission.journal`; here it's written
and synced, in worker threads, many waiting callers with one sync.
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

from asap_adapters.entropy import new_secret
from asap_adapters.files import FileThreads
from asap_core.admission.admission import AdmissionAnswer, AdmissionQuestion, Admitted, Reservation, StoreUnavailable
from asap_core.admission.journal import Journal
from asap_core.admission.state_file import write_batch
from asap_core.errors import BadState
from asap_core.server.agent import Agent

log: Final = logging.getLogger("asap.state")

# Past it the file is written anew with what still counts: 100,000 keys.
_COMPACT_BYTES: Final = 4_194_304
# Each needs somebody who makes a hard link between two rewritings of the file; an open file for each is kept.
_MOST_LINKED: Final = 64


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
    """A file that one process at a time may have. Only its owner may read it: there's a secret in it.

    Two locks are held. That of the file `.lock` beside it is there before the file is, and its name follows from the
    file's real one, whatever symbolic links lead there. That of the file itself goes with it wherever it has a name,
    and is kept on a file that was replaced while it had another one.
    """

    def __init__(self, path: Path) -> None:
        """Take the file. Raises BadState if another process has it or it isn't a file with one name, and OSError."""
        self._path = Path(os.path.realpath(path))
        # Files that were replaced, and are still there under another name.
        self._linked: list[int] = []
        self._file: int | None = None
        try:
            self._lock = _opened(self._path.with_name(f"{self._path.name}.lock"), os.O_RDWR | os.O_CREAT)
            try:
                _lock(self._lock, path)
                self._file = _taken(self._path, path)
            except BaseException:
                os.close(self._lock)
                raise
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None  # the name that was asked for

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
        beside.unlink(missing_ok=True)  # what a crash left, or a link to something else
        file = _opened(beside, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL)
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
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)  # the name is in the folder
        finally:
            os.close(folder)

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


def _opened(path: Path, flags: int) -> int:
    # No link, which may lead anywhere, and no pipe, for which one waits.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)


def _taken(real: Path, path: Path) -> int | None:
    """Open the file and lock it; None if there's none yet."""
    try:
        file = _opened(real, os.O_RDWR | os.O_APPEND)
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
    """Answers admission for an agent that was bound with `shared_admission=True`; made by `open`, ended by `aclose`."""

    def __init__(self, disk: Disk, agent: Agent, journal: Journal, threads: FileThreads) -> None:
        self._disk = disk
        self._threads = threads
        self._agent = agent
        self._journal = journal
        self._file = _JournalFile(disk, threads, lambda: journal.compacted(now=agent.now()))

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
        """Answer one question; what follows from the answer is on disk by then. Never raises OSError."""
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
            # Not on disk, or nobody waits any longer: the work never begins.
            if not written:
                await self.give_back(answer.reservation)
        return answer if written else self._unavailable()

    def _unavailable(self) -> StoreUnavailable:
        return StoreUnavailable(self._agent.policy.retry_after_unavailable)

    async def record(self, reservation: Reservation, outcome: object, size: int) -> None:
        """Keep an answer."""
        self._journal.record(reservation, outcome, size=size, now=self._agent.now())

    async def lose(self, reservation: Reservation) -> None:
        """The work was cut off midway."""
        self._journal.lose(reservation, now=self._agent.now())

    async def give_back(self, reservation: Reservation) -> None:
        """The work never began."""
        self._journal.give_back(reservation, now=self._agent.now())

    async def aclose(self) -> None:
        """The orderly end: everything that's remembered goes into the file. Raises OSError where it can't."""
        data = self._journal.final(now=self._agent.now())
        with anyio.CancelScope(shield=True):
            try:
                await self._file.rewrite(data)
            finally:
                await self._threads.run(self._disk.close)


class _JournalFile:
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
                    mine.written = await self._write(write_batch(mine.records))
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
