"""A process that serves an agent with Redis and writes down each run of its handler."""

import os
import sys
from functools import partial

import anyio

from asap_adapters import Redis, serve
from asap_adapters.cli.echo_agent import echo_manifest
from asap_core import Agent, Policy

__all__ = ["SKEW"]

# `exact` refuses what's dated up to this long after a start: short, so that the proof doesn't wait for long.
SKEW = 2.0


async def main(url: str, file: int) -> None:
    policy = Policy(start="exact", skew=SKEW, peer_limits=(), concurrent=100_000)
    agent = Agent(echo_manifest("urn:asap:agent:shop", "http://127.0.0.1:1"), policy=policy)

    async def echo(request, _context):
        # With what the kernel has, it's safe from whatever happens to this process.
        os.write(file, f"{request.input['nonce']}\n".encode())
        return {}

    async with anyio.create_task_group() as group:
        print(
            await group.start(partial(serve, agent, {"echo": echo}, at=("127.0.0.1", 0), storage=Redis(url))),
            flush=True,
        )


if __name__ == "__main__":
    written = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    anyio.run(main, sys.argv[1], written, backend=sys.argv[2])
