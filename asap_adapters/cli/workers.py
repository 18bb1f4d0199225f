"""Several worker processes that serve one agent on one port: starts, watches, replaces and ends them.

The parent binds and forks, and never runs an event loop. The workers accept connections from the shared sockets; what
they must remember together is in Redis.
"""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final, NoReturn

import anyio
from attrs import define, field

from asap_adapters.cli.exit_codes import UserError
from asap_adapters.cli.output import complain

# Seconds. A worker that dies at its start is replaced at most once in this time, instead of in a busy loop.
_PAUSE: Final = 1.0
# anyio's backlog; the kernel reduces it to its own limit (net.core.somaxconn).
_BACKLOG: Final = 65_536
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


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


def listening_sockets(host: str, port: int) -> list[socket.socket]:
    """Bind every address of `host`, on one port (0: any free one). Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            # With port 0 the first socket takes any free port, and the others the same.
            wanted = (address[0], sockets[0].getsockname()[1] if sockets else port, *address[2:])
            sockets.append(socket.socket(family, kind, protocol))
            sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sockets[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sockets[-1].bind(wanted)
            sockets[-1].listen(_BACKLOG)
            sockets[-1].setblocking(False)  # noqa: FBT003 - the standard library's
    except BaseException:
        for each in sockets:
            each.close()
        raise
    return sockets


def supervise(
    host: str, port: int, count: int, run: Callable[[WorkerPlace], int], started: Callable[[int], None]
) -> int:
    """Run `count` workers until a signal; returns the exit code.

    run: what each worker runs; returns its exit code.
    started: called with the bound port once all workers serve.

    If a worker doesn't start, all are ended, and its exit code is returned.

    Raises: UserError if the port can't be bound.
    """
    if not hasattr(os, "fork"):
        raise UserError("--workers needs a POSIX system", usage=True)
    try:
        sockets = listening_sockets(host, port)
    except OSError as error:
        raise UserError(f"can't listen on {host}, port {port}: {error.strerror or error}") from None
    workers = _Workers(run, sockets)
    with workers.forwarding_signals():
        for number in range(count):
            # One after the other: an error that they all have is reported once.
            if not workers.start(number):
                return workers.end()
        if not workers.stopping:
            started(sockets[0].getsockname()[1])
        workers.watch()
    return 0


@define(eq=False)
class _Workers:
    run: Callable[[WorkerPlace], int]
    sockets: list[socket.socket]
    stopping: bool = False
    # The kernel closes the write end when this process ends, however it ends.
    alive: tuple[int, int] = field(factory=os.pipe)
    # By process id: the worker's number, and when it was started.
    by_pid: dict[int, tuple[int, float]] = field(factory=dict)

    def start(self, number: int, *, wait: bool = True) -> bool:
        """Start a worker. With `wait`, returns whether it serves."""
        read, write = os.pipe()
        # Else a signal between the fork and the worker's own handlers would run the parent's handler in the worker.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                os.close(read)
                self._be_worker(WorkerPlace(number, self.sockets, write, self.alive[0]))
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.close(write)
        self.by_pid[pid] = number, time.monotonic()
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
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            os.close(self.alive[1])
            code = self.run(place)
        except BaseException:  # noqa: BLE001 - below is the parent's stack, which mustn't see it
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def watch(self) -> None:
        """Wait until all have ended after a signal; replace those that die before."""
        while self.by_pid:
            pid, status = os.wait()
            number, since = self.by_pid.pop(pid, (0, 0.0))
            if self.stopping:
                continue
            complain(f"worker {pid} {_how_it_ended(status)}; another takes its place")
            if time.monotonic() - since < _PAUSE:
                time.sleep(_PAUSE)
            if not self.stopping:
                self.start(number, wait=False)

    def end(self) -> int:
        """End all workers because one didn't start; returns its exit code."""
        stopped, self.stopping = self.stopping, True
        self._kill(signal.SIGTERM)
        codes = []
        while self.by_pid:
            pid, status = os.wait()
            del self.by_pid[pid]
            codes.append(os.waitstatus_to_exitcode(status))
        return 0 if stopped else max((code for code in codes if code > 0), default=1)

    @contextmanager
    def forwarding_signals(self) -> Iterator[None]:
        """Forward SIGINT and SIGTERM to the workers, each time they come."""

        def forward(_number: int, _frame: FrameType | None) -> None:
            self.stopping = True
            for each in self.sockets:
                each.close()
            self._kill(signal.SIGTERM)

        before = {number: signal.signal(number, forward) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(self.alive[1])
            os.close(self.alive[0])

    def _kill(self, number: signal.Signals) -> None:
        for pid in list(self.by_pid):
            os.kill(pid, number)


def _how_it_ended(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
