"""Several processes that serve one agent on one port: they're started, watched, replaced when they die, and ended.

The parent binds and forks, and never runs an event loop. Each worker takes connections from the shared socket; what
they must know of each other is in Redis.
"""

import argparse
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NoReturn

import anyio
from attrs import define, field

from asap_adapters.cli.output import UserError, complain

# A worker that can't start is tried again, not in a circle.
_PAUSE: Final = 1.0
# As anyio's: the kernel cuts it to what it allows (net.core.somaxconn).
_BACKLOG: Final = 65_536
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@define(eq=False)
class WorkerPlace:
    """What a worker has from its parent: which one it is, the sockets, and two pipes."""

    number: int
    sockets: list[socket.socket]
    _ready: int
    _parent: int

    def ready(self) -> None:
        """Tell the parent that this worker serves."""
        with suppress(BrokenPipeError):  # it only waits for the first ones
            os.write(self._ready, b".")

    async def parent_gone(self) -> None:
        """Return when the parent is no more: nobody would end this worker."""
        await anyio.wait_readable(self._parent)


def listening_sockets(host: str, port: int) -> list[socket.socket]:
    """Bind every address of `host`, on one port (0: any free one). Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            # The first takes any free port, the others that one.
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
    arguments: argparse.Namespace, run: Callable[[argparse.Namespace], int], started: Callable[[int], None]
) -> int:
    """Run `arguments.workers` workers until a signal; returns the exit code.

    Each worker is `run(arguments)` with `arguments.worker` for its `WorkerPlace`. `started` is told the bound port
    once all of them serve. What doesn't start at all ends everything, with its code.
    """
    if not hasattr(os, "fork"):
        raise UserError("--workers needs a POSIX system", usage=True)
    try:
        sockets = listening_sockets(arguments.host, arguments.port)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"can't listen on {arguments.host}, port {arguments.port}: {reason}") from None
    crew = _Crew(arguments, run, sockets)
    with crew.forwarding_signals():
        for number in range(arguments.workers):
            # One after the other: what's wrong with the first is said once.
            if not crew.start(number):
                return crew.end()
        if not crew.stopping:
            started(sockets[0].getsockname()[1])
        crew.watch()
    return 0


@define(eq=False)
class _Crew:
    arguments: argparse.Namespace
    run: Callable[[argparse.Namespace], int]
    sockets: list[socket.socket]
    stopping: bool = False
    # The write end is closed by whatever ends this process.
    alive: tuple[int, int] = field(factory=os.pipe)
    workers: dict[int, tuple[int, float]] = field(factory=dict)
    code: int = 0

    def start(self, number: int, *, wait: bool = True) -> bool:
        """Start a worker; whether it serves, where we wait for that."""
        read, write = os.pipe()
        # A signal between the fork and the worker's own handlers would be handled there as the parent does.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                os.close(read)
                self._be_worker(WorkerPlace(number, self.sockets, write, self.alive[0]))
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.close(write)
        self.workers[pid] = number, time.monotonic()
        if self.stopping:  # the signal came before this one was there
            os.kill(pid, signal.SIGTERM)
        serves = not wait or os.read(read, 1) != b""
        os.close(read)
        return serves

    def _be_worker(self, place: WorkerPlace) -> NoReturn:
        code = 1
        try:
            # Of its own group: what the terminal sends to all is the parent's to pass on, once.
            os.setpgid(0, 0)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            os.close(self.alive[1])
            self.arguments.worker = place
            code = self.run(self.arguments)
        except BaseException:  # noqa: BLE001 - the parent's stack is below: nothing may get there
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def watch(self) -> None:
        """Until all have ended after a signal; those that die before are replaced."""
        while self.workers:
            pid, status = os.wait()
            number, since = self.workers.pop(pid, (0, 0.0))
            if self.stopping:
                continue
            complain(f"worker {pid} {_how_it_ended(status)}; another takes its place")
            if time.monotonic() - since < _PAUSE:
                time.sleep(_PAUSE)
            if not self.stopping:
                self.start(number, wait=False)

    def end(self) -> int:
        """End all, since one didn't start; returns that one's exit code."""
        stopped, self.stopping = self.stopping, True
        self._kill(signal.SIGTERM)
        codes = []
        while self.workers:
            pid, status = os.wait()
            del self.workers[pid]
            codes.append(os.waitstatus_to_exitcode(status))
        return 0 if stopped else max((code for code in codes if code > 0), default=1)

    @contextmanager
    def forwarding_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the workers; each counts there as it does here."""

        def forward(_number: int, _frame: Any) -> None:
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
        for pid in list(self.workers):
            os.kill(pid, number)


def _how_it_ended(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
