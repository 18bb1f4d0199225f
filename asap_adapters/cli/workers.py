"""Several worker processes that serve one agent on one port: starts, watches, replaces and ends them.

The parent has the sockets and forks, and never runs an event loop. The workers accept connections from the shared
sockets: what waits in their queue isn't lost if a worker dies. What they must remember together is in Redis.
"""

import os
import select
import signal
import socket
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final, NoReturn

import anyio
from attrs import define, field

from asap_adapters.cli.failures import UserError
from asap_adapters.cli.output import complain

# Seconds. If a worker lives this long, its place is sound, and its earlier deaths no longer count.
_SOUND: Final = 60.0
# Deaths in a row at one place, each before it was sound. The last pause is 8 s; what isn't over by then (a port of the
# store that's closed, a file that's missing) needs a person, or the service manager's own patience.
_GIVE_UP: Final = 6
# Seconds. The second death in a row is followed by this pause, each later one by twice the last.
_PAUSE: Final = 1.0
_STOPS: Final = (signal.SIGINT, signal.SIGTERM)
_RELOAD: Final = getattr(signal, "SIGHUP", None)
_SIGNALS: Final = tuple(filter(None, (*_STOPS, _RELOAD)))


@define(eq=False)
class WorkerPlace:
    """What a worker has from its parent: its number, the listening sockets, and its ends of two pipes."""

    number: int
    sockets: list[socket.socket]
    _ready: int
    _parent: int

    def ready(self) -> None:
        """Tell the parent that this worker serves."""
        with suppress(BrokenPipeError):  # the parent doesn't wait for a replacement
            os.write(self._ready, b".")

    async def parent_gone(self) -> None:
        """Return when the parent has died: then nothing else ends this worker."""
        await anyio.wait_readable(self._parent)


def supervise(
    sockets: list[socket.socket],
    count: int,
    run: Callable[[WorkerPlace], int],
    started: Callable[[], None],
    *,
    reloads: bool = False,
) -> int:
    """Run `count` workers until a signal; returns the exit code.

    sockets: listen already; a signal closes them.
    run: what each worker runs; returns its exit code.
    started: called once all workers serve.
    reloads: SIGHUP is passed on to the workers, which unblock it when they are ready for it.

    If a worker doesn't start, all are ended, and its exit code is returned. Later, one that dies is replaced: at once,
    then after 1, 2, 4 and 8 seconds. If its place never lasts a minute, all are ended, and the exit code is 1.

    Raises: UserError without fork.
    """
    if not hasattr(os, "fork"):
        raise UserError("--workers needs a POSIX system", usage=True)
    workers = _Workers(run, sockets, reloads)
    with workers.handling_signals():
        for number in range(count):
            # One after the other: an error that they all have is reported once.
            if not workers.start(number):
                return workers.end()
        if not workers.stopping:
            started()
        return workers.watch()


@define(eq=False)
class _Place:
    """What is known of the workers that had one number: when the last was started, and deaths in a row."""

    started: float = 0.0
    deaths: int = 0

    def died(self, now: float) -> float:
        """Count a death; returns the seconds until another worker may be started."""
        self.deaths = 1 if now - self.started >= _SOUND else self.deaths + 1
        return 0.0 if self.deaths == 1 else _PAUSE * 2 ** (self.deaths - 2)


@define(eq=False)
class _Workers:
    run: Callable[[WorkerPlace], int]
    sockets: list[socket.socket]
    reloads: bool
    stopping: bool = False
    # The kernel closes the write end when this process ends, however it ends.
    alive: tuple[int, int] = field(factory=os.pipe)
    # Each signal writes a byte here, so that waiting for the next start ends when a worker dies.
    wakes: tuple[int, int] = field(factory=os.pipe)
    # By process id, the worker's number.
    by_pid: dict[int, int] = field(factory=dict)
    places: defaultdict[int, _Place] = field(factory=lambda: defaultdict(_Place))
    # By number, when a worker is to be started.
    due: dict[int, float] = field(factory=dict)

    def start(self, number: int, *, wait: bool = True) -> bool:
        """Start a worker. With `wait`, returns whether it serves. Raises OSError if there can't be another process."""
        read, write = os.pipe()
        # Else a signal between the fork and the worker's own handlers would run the parent's handler in the worker.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                os.close(read)
                self._be_worker(WorkerPlace(number, self.sockets, write, self.alive[0]))
            self.by_pid[pid] = number
            self.places[number].started = time.monotonic()
        except OSError:
            os.close(read)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            os.close(write)
        if self.stopping:  # the signal came before the worker was listed
            os.kill(pid, signal.SIGTERM)
        serves = not wait or os.read(read, 1) != b""
        os.close(read)
        return serves

    def _be_worker(self, place: WorkerPlace) -> NoReturn:
        code = 1
        try:
            # A process group of its own: Ctrl-C reaches the parent alone, which forwards it once.
            os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            for number in (*_SIGNALS, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS if self.reloads else _SIGNALS)
            for each in (self.alive[1], *self.wakes):
                os.close(each)
            code = self.run(place)
        except BaseException:  # noqa: BLE001 - below is the parent's stack, which mustn't see it
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def watch(self) -> int:
        """Replace workers that die, until a signal; then wait until all have ended. Returns the exit code."""
        while self.by_pid or (self.due and not self.stopping):
            self._sleep()
            for pid, status in _ended():
                if (number := self.by_pid.pop(pid, None)) is not None and not self.stopping:
                    self._died(number, f"worker {pid} {_how_it_ended(status)}")
            if any(place.deaths >= _GIVE_UP for place in self.places.values()):
                self.end()
                return 1
            self._start_those_due()
        return 0

    def _died(self, number: int, what: str) -> None:
        place, now = self.places[number], time.monotonic()
        self.due[number] = now + (pause := place.died(now))
        if place.deaths < _GIVE_UP:
            complain(f"{what}; another takes its place{f' in {pause:g} s' if pause else ''}")
        else:
            complain(f"{what}, the {place.deaths}th in a row within {_SOUND:.0f} s of its start: giving up")

    def _start_those_due(self) -> None:
        now = time.monotonic()
        for number in [number for number, when in self.due.items() if when <= now]:
            if self.stopping:
                return
            del self.due[number]
            try:
                self.start(number, wait=False)
            except OSError as error:
                self._died(number, f"a worker can't be started ({error.strerror})")

    def _sleep(self) -> None:
        """Wait until a signal comes, or a worker is due."""
        soonest = min(self.due.values(), default=None)
        seconds = None if soonest is None or self.stopping else max(0.0, soonest - time.monotonic())
        if select.select([self.wakes[0]], [], [], seconds)[0]:
            os.read(self.wakes[0], 4096)

    def end(self) -> int:
        """End all workers because one didn't start; returns its exit code."""
        stopped, self.stopping = self.stopping, True
        self._kill(signal.SIGTERM)
        codes = []
        while self.by_pid:
            pid, status = os.wait()
            self.by_pid.pop(pid, None)
            codes.append(os.waitstatus_to_exitcode(status))
        return 0 if stopped else max((code for code in codes if code > 0), default=1)

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Pass signals on to the workers, each time they come."""

        def stop(_number: int, _frame: FrameType | None) -> None:
            self.stopping = True
            for each in self.sockets:
                each.close()
            self._kill(signal.SIGTERM)

        def reload(number: int, _frame: FrameType | None) -> None:
            self._kill(number)

        handlers: dict[int, Callable[[int, FrameType | None], None]] = dict.fromkeys(_STOPS, stop)
        if self.reloads and _RELOAD is not None:
            handlers[_RELOAD] = reload
        handlers[signal.SIGCHLD] = lambda _number, _frame: None  # ignored by default: then nothing would be written
        for end in self.wakes:
            os.set_blocking(end, False)
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        wakeup = signal.set_wakeup_fd(self.wakes[1], warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            for each in (*self.alive, *self.wakes):
                os.close(each)

    def _kill(self, number: int) -> None:
        for pid in list(self.by_pid):
            with suppress(ProcessLookupError):  # the signal came between its end and its removal from the table
                os.kill(pid, number)


def _ended() -> Iterator[tuple[int, int]]:
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            yield ended


def _how_it_ended(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
