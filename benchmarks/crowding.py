"""2,000 connections on 1,000 places, and on 2,000: `python -m benchmarks.crowding [trio|asyncio|alone]`.

All connect within two seconds. Each sends three calls, two seconds apart, on one connection as long as the server keeps
it. Prints how long answers take, with the wait for a place, how many calls were sent again, and how many got no result.

On a busy machine those are the times of a process that seldom runs. `alone` has the server and the callers in one
asyncio loop, whose clock counts the processor's time and skips what it would wait: one processor without other work.
"""

import asyncio
import logging
import os
import random
import resource
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import anyio
from anyio.abc import TaskStatus
from attrs import define, field

from asap_adapters import run, serve
from asap_adapters.cli.echo_agent import ECHO_ID, echo_manifest
from asap_adapters.server.listener import listen
from asap_core import Agent, Policy
from benchmarks.server_load import posts

__all__ = ["CALLS", "CONNECTIONS", "PLACES", "Crowd", "crowd", "main", "server"]

CONNECTIONS: Final = 2_000
PLACES: Final = 1_000
CALLS: Final = 3
# Seconds between two calls of one connection.
_PAUSE: Final = 2.0
_ATTEMPTS: Final = 3
_LIMIT: Final = 60.0
# Seconds that the kernel may take to pass on what was sent to a socket of this machine.
_KERNEL: Final = 0.0005
# Sockets, and what Python has open.
_DESCRIPTORS: Final = 2 * CONNECTIONS + 200


@define
class Crowd:
    """What came of it.

    seconds: of each call.
    retried: calls that were sent again, since their connection ended without an answer.
    unanswered: calls that got no result in the end.
    """

    seconds: list[float] = field(factory=list)
    retried: int = 0
    unanswered: int = 0


@contextmanager
def server(backend: str, places: int = PLACES) -> Iterator[int]:
    """Start a server with so many places, for any number of callers from this machine."""
    _allow_descriptors()
    command = [sys.executable, "-m", "benchmarks.crowding", "serve", backend, str(places)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def _allow_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(_DESCRIPTORS, hard), hard))


async def _serve(places: int, task_status: TaskStatus[int] = anyio.TASK_STATUS_IGNORED) -> None:
    bound = await listen("127.0.0.1", 0)
    policy = Policy(max_connections=places, peer_limits=(), trusted_proxies=("127.0.0.1",))

    async def echo(request: Any, _context: Any) -> Any:
        return request.input

    async with anyio.create_task_group() as group:
        agent = Agent(echo_manifest(ECHO_ID, bound.url), policy=policy)
        await group.start(partial(serve, agent, {"echo": echo}, at=bound))
        task_status.started(bound.port)


async def _serve_and_say(places: int) -> None:
    async with anyio.create_task_group() as group:
        print(await group.start(_serve, places), flush=True)


class _Selector(selectors.DefaultSelector):
    """Waits for nothing: if no socket is ready, the time until the next timer is skipped."""

    skipped = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout:
            ready = super().select(_KERNEL)
            self.skipped += 0.0 if ready else timeout
        return ready


class _LoopAlone(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._selecting = _Selector()
        super().__init__(self._selecting)

    def time(self) -> float:
        return time.process_time() + self._selecting.skipped


async def _alone(places: int) -> Crowd:
    async with anyio.create_task_group() as group:
        found = await crowd(await group.start(_serve, places))
        group.cancel_scope.cancel()
    return found


async def crowd(port: int) -> Crowd:
    """Let all of them call."""
    found, post = Crowd(), posts(ECHO_ID, 1_024)
    async with asyncio.timeout(_LIMIT), asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):
            group.create_task(_caller(port, [post() for _ in range(CALLS)], found))
    return found


async def _caller(port: int, calls: list[bytes], found: Crowd) -> None:
    clock = asyncio.get_running_loop().time
    await asyncio.sleep(random.uniform(0, _PAUSE))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for call in calls:
        began, answer = clock(), None
        for _ in range(_ATTEMPTS):
            if _has_ended(writer):  # another connection got its place
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(call)
            try:
                answer = await _answer(reader)
                break
            except (asyncio.IncompleteReadError, ConnectionError):
                # The call crossed with the end of the connection (RFC 9112 §9.5). If it ran, it's a replay now.
                found.retried += 1
        if answer is None or b'"result"' not in answer:
            found.unanswered += 1
        found.seconds.append(clock() - began)
        await asyncio.sleep(_PAUSE)
    writer.close()


async def _answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    return await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]))


def _has_ended(writer: asyncio.StreamWriter) -> bool:
    """Whether the server has closed: the kernel knows before the loop."""
    try:
        connection = socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno()))
        with connection:
            return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _measured(how: str, places: int) -> Crowd:
    random.seed(places)
    if how == "alone":
        _allow_descriptors()
        return anyio.run(_alone, places, backend_options={"loop_factory": _LoopAlone})
    with server(how, places) as port:
        return asyncio.run(crowd(port))


def main() -> None:
    """Print the table."""
    logging.disable()
    print("2,000 connections            places     p50     p99   worst   calls   retried   unanswered")
    for how in sys.argv[1:] or ["trio", "asyncio", "alone"]:
        for places in (PLACES, CONNECTIONS):
            found = _measured(how, places)
            cuts = statistics.quantiles(found.seconds, n=100)
            times = "".join(f"{seconds:7.2f}s" for seconds in (cuts[49], cuts[98], max(found.seconds)))
            print(
                f"{how:<29}{places:6}{times}{len(found.seconds):8}{found.retried:10}{found.unanswered:13}", flush=True
            )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", backend, number]:
            run(_serve_and_say, int(number), backend=backend)
        case _:
            main()
