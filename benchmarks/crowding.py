"""2,000 connections on the 1,000 places of `asap serve`: `python -m benchmarks.crowding [trio|asyncio]`.

All connect within two seconds. Each sends three calls, two seconds apart, on one connection as long as the server keeps
it. Prints how long answers take, with the wait for a place, how many calls were sent again, and how many got no result.
"""

import asyncio
import os
import random
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from attrs import define, field

from asap_adapters.cli.echo_agent import ECHO_ID
from benchmarks.server_load import posts

__all__ = ["CALLS", "CONNECTIONS", "Crowd", "crowd", "main", "server"]

CONNECTIONS: Final = 2_000
CALLS: Final = 3
# Seconds between two calls of one connection.
_PAUSE: Final = 2.0
_ATTEMPTS: Final = 3
_LIMIT: Final = 60.0
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
def server(backend: str) -> Iterator[int]:
    """Start a server with the default 1,000 places, for any number of callers from this machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(_DESCRIPTORS, hard), hard))
    command = [sys.executable, "-m", "asap_adapters.cli", "serve", "--port", "0", "--no-mdns", "--rate-limit", "off"]
    with subprocess.Popen(
        [*command, "--trusted-proxy", "127.0.0.1", "--backend", backend],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline().rpartition(":")[2])
        finally:
            process.terminate()


async def crowd(port: int) -> Crowd:
    """Let all of them call."""
    found, post = Crowd(), posts(ECHO_ID, 1_024)
    async with asyncio.timeout(_LIMIT), asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):
            group.create_task(_caller(port, [post() for _ in range(CALLS)], found))
    return found


async def _caller(port: int, calls: list[bytes], found: Crowd) -> None:
    await asyncio.sleep(random.uniform(0, _PAUSE))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for call in calls:
        began, answer = time.perf_counter(), None
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
        found.seconds.append(time.perf_counter() - began)
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


def main() -> None:
    """Print the table."""
    print("2,000 connections, 1,000 places     p50     p99   worst   calls   retried   unanswered")
    for backend in sys.argv[1:] or ["trio", "asyncio"]:
        with server(backend) as port:
            found = asyncio.run(crowd(port))
        cuts = statistics.quantiles(found.seconds, n=100)
        times = "".join(f"{seconds:7.2f}s" for seconds in (cuts[49], cuts[98], max(found.seconds)))
        print(f"{backend:<32}{times}{len(found.seconds):8}{found.retried:10}{found.unanswered:13}")


if __name__ == "__main__":
    main()
