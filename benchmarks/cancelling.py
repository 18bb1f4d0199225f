"""A client cancelled ten thousand times at random moments, over real sockets: it stays whole, and as fast.

`python -m benchmarks.cancelling [NUMBER] [SEED]`: asyncio's `wait_for`, and anyio's scopes on both backends. It prints
how many were cancelled, how many sockets are open at the end, and requests a second before and after; it raises
AssertionError if a connection was lost.
"""

import asyncio
import functools
import os
import random
import stat
import sys
import time
from collections.abc import Awaitable, Callable

import anyio

from asap_adapters import AgentClient, HttpOptions, serve
from asap_adapters.cli.echo_agent import ECHO_ID, echo, echo_manifest
from asap_adapters.server.listener import listen
from asap_core import Agent, Policy, StartPolicy

__all__ = ["run"]

# More than one origin may have connections at once: a few that are lost are missed.
AT_ONCE = 150
ROUNDS = 500
Limit = Callable[[Awaitable[object], float], Awaitable[object]]


async def _within(work: Awaitable[object], seconds: float) -> object:
    with anyio.fail_after(seconds):
        return await work


def sockets() -> int:
    """How many this process has open."""
    found = 0
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 - numbers
        try:
            found += stat.S_ISSOCK(os.fstat(int(name)).st_mode)
        except OSError:  # the one that lists them
            continue
    return found


async def run(number: int, seed: int, limit: Limit) -> str:
    """Cancel so many calls; what came of it."""
    bound = await listen("127.0.0.1", 0)
    manifest = echo_manifest(ECHO_ID, bound.url)
    agent = Agent(manifest, policy=Policy(peer_limits=(), start=StartPolicy.OPEN, connections_per_peer=1_000))
    chance = random.Random(seed)
    async with anyio.create_task_group() as group:
        group.start_soon(functools.partial(serve, agent, {"echo": echo}, at=bound))
        before = sockets()
        async with AgentClient(sender="urn:asap:agent:me", http=HttpOptions(timeout=10)) as client:

            async def send() -> object:
                return await client.send(manifest, "task.request", {"skill_id": "echo", "input": {}})

            async def discover() -> object:
                client.forget(bound.url)
                return await client.discover(bound.url)

            first, usual = await _rate(send)
            cancelled = asked = 0
            while cancelled < number:
                asked += 1
                try:
                    await limit(chance.choice((send, discover))(), chance.random() * 2 * usual)
                except TimeoutError:
                    cancelled += 1
            then, _ = await _rate(send)
            with anyio.fail_after(30):
                async with anyio.create_task_group() as all_at_once:
                    for _ in range(AT_ONCE):
                        all_at_once.start_soon(send)
        await anyio.sleep(0.5)
        left = sockets() - before
        group.cancel_scope.cancel()
    assert left <= 0, f"{left} sockets are left"
    return f"{cancelled} of {asked} cancelled, {left} sockets left, {first:.0f} requests/s before, {then:.0f} after"


async def _rate(send: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """Requests a second, one after another, and how long one takes."""
    began = time.perf_counter()
    for _ in range(ROUNDS):
        await send()
    took = time.perf_counter() - began
    return ROUNDS / took, took / ROUNDS


if __name__ == "__main__":
    number, seed = map(int, [*sys.argv[1:], *("10000", "11")[len(sys.argv) - 1 :]])
    ways: tuple[tuple[str, str, Limit], ...] = (
        ("asyncio", "wait_for", asyncio.wait_for),
        ("asyncio", "scopes", _within),
        ("trio", "scopes", _within),
    )
    for backend, name, limit in ways:
        print(f"{backend:8} {name:9}", anyio.run(run, number, seed, limit, backend=backend), flush=True)
