"""What is at hand: how long a kept manifest takes to be found, what it weighs, and 10,000 who wait for one fetch.

Times are the processor's, so that other processes don't count.
"""

import json
import subprocess
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx

from asap_adapters import AgentClient, HttpOptions
from asap_core import Capabilities, Endpoints, Manifest, Skill
from asap_core.client.document_cache import DocumentCache, Lead
from asap_core.client.fetch_results import Fetched
from asap_core.clock import Instant, Moment, WallTime
from asap_core.server.wellknown import publish
from benchmarks import reference_python

BASE = "http://localhost"
ROUNDS, CALLS = 5, 5_000
# Ours and the reference's take turns, so that a machine's better and worse moments come to both.
TURNS = 3
WAITERS = 10_000
MANIFESTS = 1_000


def document() -> bytes:
    skills = [Skill(id=f"skill-{number}", description="Does something useful for people") for number in range(10)]
    manifest = Manifest(
        id="urn:asap:agent:measured",
        name="Measured",
        version="1.0.0",
        description="An agent with ten skills",
        capabilities=Capabilities(skills=skills),
        endpoints=Endpoints(asap=f"{BASE}/asap"),
    )
    return publish(manifest)


def client_of(body: bytes) -> AgentClient:
    async def answer(_request: httpx.Request) -> httpx.Response:
        await anyio.lowlevel.checkpoint()
        return httpx.Response(200, content=body, headers={"cache-control": "max-age=86400"})

    return AgentClient(sender="urn:asap:agent:bench", http=HttpOptions(transport=httpx.MockTransport(answer)))


async def times(body: bytes) -> tuple[float, float, float]:
    """Seconds for `cached`, for `discover`, and for the checkpoint in it: the best of some rounds."""
    best = [float("inf")] * 3
    async with client_of(body) as client:
        await client.discover(BASE)
        for _ in range(ROUNDS):
            began = time.process_time()
            for _ in range(CALLS):
                client.cached(BASE)
            then = time.process_time()
            for _ in range(CALLS):
                await client.discover(BASE)
            later = time.process_time()
            for _ in range(CALLS):
                await anyio.lowlevel.checkpoint()
            took = then - began, later - then, time.process_time() - later
            best = [min(pair) for pair in zip(best, (one / CALLS for one in took), strict=True)]
    return best[0], best[1], best[2]


async def crowd(body: bytes) -> float:
    """Seconds until 10,000 who ask at once have one answer."""
    async with client_of(body) as client:
        began = time.process_time()
        async with anyio.create_task_group() as group:
            for _ in range(WAITERS):
                group.start_soon(client.discover, BASE)
        return time.process_time() - began


async def bare_crowd() -> float:
    """The same without a client: tasks, and an event for each."""
    events: list[anyio.Event] = []

    async def wait() -> None:
        events.append(anyio.Event())
        await events[-1].wait()

    began = time.process_time()
    async with anyio.create_task_group() as group:
        for _ in range(WAITERS):
            group.start_soon(wait)
        while len(events) < WAITERS:
            await anyio.lowlevel.checkpoint()
        for event in events:
            event.set()
    return time.process_time() - began


def crowd_in_core() -> tuple[float, float]:
    """Seconds to let 10,000 join a flight, and to answer them all: a loop waits for the second."""
    directory: DocumentCache[str, int] = DocumentCache()
    began = time.process_time()
    (lead,) = directory.lookup(BASE, 0, now=Instant(0.0))
    for waiter in range(1, WAITERS):
        directory.lookup(BASE, waiter, now=Instant(0.0))
    joined = time.process_time()
    assert isinstance(lead, Lead)
    assert len(directory.settle(lead.flight, Fetched("v"), at=Moment(Instant(0.0), WallTime(0.0)))) == WAITERS
    return joined - began, time.process_time() - joined


async def memory(body: bytes) -> float:
    """Bytes for each manifest kept, with all that its client remembers of it."""
    async with client_of(body) as client:
        await client.discover(BASE)  # what is made once
        tracemalloc.start()
        for number in range(MANIFESTS - 1):
            await client.get_manifest(f"{BASE}/{number}")
        traced = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    return traced / MANIFESTS


def reference(python: str, body: bytes) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.json"
        path.write_bytes(body)
        script = Path(__file__).parent / "reference_discovery.py"
        command = [python, "-W", "ignore", str(script), str(path), str(ROUNDS), str(CALLS)]
        return list(
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        )


def best(measure: Callable[[], Any]) -> list[float]:
    return [min(column) for column in zip(*(measure() for _ in range(TURNS)), strict=True)]


def crowds(body: bytes, backend: str) -> tuple[float, float]:
    return anyio.run(crowd, body, backend=backend), anyio.run(bare_crowd, backend=backend)


def main() -> None:
    body, python = document(), reference_python()
    measured: dict[str, list[float]] = {}
    turns: list[tuple[str, Callable[[], Sequence[float]]]] = [
        (name, partial(anyio.run, times, body, backend=name)) for name in ("asyncio", "trio")
    ]
    if python is not None:
        turns.append(("reference", partial(reference, python, body)))
    for _ in range(TURNS):
        for name, measure in turns:
            found = list(measure())
            measured[name] = [min(pair) for pair in zip(measured.get(name, found), found, strict=True)]
    theirs = measured.get("reference")
    print(f"a manifest of {len(body):,} bytes that's kept: the best of {TURNS * ROUNDS} rounds")
    for name in ("asyncio", "trio"):
        cached, discover, checkpoint = (1e6 * seconds for seconds in measured[name])
        print(f"  {name:<9} client.cached(url)        {cached:6.1f} µs   (goal 3)")
        print(f"  {name:<9} await client.discover(url) {discover:5.1f} µs   (goal 10; a checkpoint {checkpoint:.1f})")
    if theirs is not None:
        print(f"  reference its cache alone           {1e6 * theirs[0]:6.1f} µs   (keyed by the manifest's URL)")
        print(f"  reference await client.get_manifest {1e6 * theirs[1]:6.1f} µs   (no checkpoint)")
    joined, answered = best(crowd_in_core)
    print(f"{WAITERS:,} who wait for one fetch")
    print(f"  core      join {1e6 * joined / WAITERS:.1f} µs each, answered in {1e3 * answered:.1f} ms together")
    for name in ("asyncio", "trio"):
        took, bare = best(partial(crowds, body, name))
        shown = f"{1e3 * took:.0f} ms from the first to the last; {1e3 * bare:.0f} ms of it tasks and events"
        print(f"  {name:<9} {shown}, {took / bare:.2f}x")
    kept = anyio.run(memory, body)
    print(f"memory for each of {MANIFESTS:,} manifests kept: {kept:,.0f} bytes", end="")
    print("" if theirs is None else f"; the reference's {theirs[2]:,.0f}")


if __name__ == "__main__":
    main()
