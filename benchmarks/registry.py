"""A registry of 100,000 agents: reading it, the longest it holds a loop meanwhile, and finding one agent in it.

Also through a client, over HTTP and from its copy on disk. Those times are the processor's: of all threads for reading,
and of the loop's thread for how long it runs before other tasks do.
"""

import gc
import json
import logging
import re
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio

from asap_adapters import AgentClient, DiscoveryOptions
from asap_core.client.body_reader import PIECE as READ_PIECE
from asap_core.wire.codec import warm_up
from asap_core.wire.registry_index import RegistryIndex
from asap_core.wire.registry_reader import RegistryReader
from benchmarks import reference_python

AGENTS = 100_000
LOOK_UPS = 1_000


def registry() -> bytes:
    """Some 440 bytes an agent: two skills shared by many, one of its own."""
    agents = [
        {
            "id": f"urn:asap:agent:agent-{number}",
            "name": f"Agent {number}",
            "description": "An agent that does something useful for people, and says so in a sentence or two. " * 2,
            "asap_version": "2.1",
            "skills": ["echo", f"only-{number}", f"kind-{number % 100}"],
            "endpoints": {
                "http": f"https://agent-{number}.example",
                "manifest": f"https://agent-{number}.example/.well-known/asap/manifest.json",
            },
        }
        for number in range(AGENTS)
    ]
    return json.dumps({"version": "1.0", "updated_at": "2026-01-01T00:00:00Z", "agents": agents}).encode()


def read(data: bytes) -> tuple[RegistryIndex, float, float]:
    """The catalogue, how long it took, and the longest piece of that."""
    reader, longest = RegistryReader(), 0.0
    began = last = time.perf_counter()
    for start in range(0, len(data), READ_PIECE):
        reader.feed(data[start : start + READ_PIECE])
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    catalog = reader.close()
    now = time.perf_counter()
    return catalog, now - began, max(longest, now - last)


def collection() -> float:
    """How long a full garbage collection takes."""
    gc.collect()
    began = time.perf_counter()
    gc.collect()
    return time.perf_counter() - began


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A server of the files in this folder, in a process of its own."""
    command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(folder), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            port = re.search(r"port (\d+)", process.stdout.readline())
            assert port is not None
            yield f"http://127.0.0.1:{port[1]}"
        finally:
            process.terminate()


async def through_client(url: str, copies: Path) -> tuple[float, float]:
    """Seconds of the processor to read the registry, and the most that the loop's thread takes between two ticks."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            before = time.thread_time()
            await anyio.sleep(0.001)
            longest = max(longest, time.thread_time() - before)

    gc.collect()
    options = DiscoveryOptions(registry_cache=copies)
    async with AgentClient("urn:asap:agent:bench", discovery=options) as client, anyio.create_task_group() as group:
        group.start_soon(tick)
        began = time.process_time()
        assert len(await client.registry(url)) == AGENTS
        took = time.process_time() - began
        group.cancel_scope.cancel()
    return took, longest


def print_clients(data: bytes) -> None:
    logging.getLogger("asap").addHandler(logging.NullHandler())  # the client warns that it uses a copy
    began = time.process_time()
    read(data)
    bare = time.process_time() - began
    print(f"{'through a client':<40}{'processor':>12}   reading     longest")
    for backend in ("asyncio", "trio"):
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as copies:
            (Path(folder) / "registry.json").write_bytes(data)
            with served(Path(folder)) as server:
                url = f"{server}/registry.json"
                over_http = anyio.run(through_client, url, Path(copies), backend=backend)
            # The server is gone now.
            from_copy = anyio.run(through_client, url, Path(copies), backend=backend)
        for name, (took, longest) in (("over HTTP, and a copy written", over_http), ("from the copy", from_copy)):
            shown = f"{backend:<8} {name}"
            print(f"{shown:<40}{took * 1e3:>9,.0f} ms   {took / bare:6.2f}x  {longest * 1e3:7.1f} ms")


def main() -> None:
    """Print the table."""
    warm_up()
    data = registry()
    gc.collect()
    runs = [read(data) for _ in range(3)]
    seconds, longest = min(run[1] for run in runs), min(run[2] for run in runs)
    catalog = runs[0][0]
    del runs
    gc.collect()
    wanted = [f"urn:asap:agent:agent-{number * 97 % AGENTS}" for number in range(LOOK_UPS)]
    began = time.perf_counter()
    assert all(catalog.by_id(one) is not None for one in wanted)
    by_id = (time.perf_counter() - began) / LOOK_UPS
    began = time.perf_counter()
    assert all(catalog.by_skill(f"only-{number}")[0] is not None for number in range(LOOK_UPS))
    by_skill = (time.perf_counter() - began) / LOOK_UPS
    with_it = collection()
    del catalog
    collected = with_it - collection()
    tracemalloc.start()
    kept = read(data)[0]
    memory = tracemalloc.get_traced_memory()[0] / len(kept)
    tracemalloc.stop()
    theirs: list[float | None] = [None, None, None]
    python = reference_python()
    if python is not None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            script = str(Path(__file__).with_name("reference_registry.py"))
            command = [python, "-W", "ignore", script, file.name, wanted[-1], "only-50000"]
            theirs = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    print(f"a registry of {AGENTS:,} agents, {len(data) / 1e6:.0f} MB    ours       reference")
    for name, mine, other in zip(
        ("reading it", "one agent by its id", "by a skill"), (seconds, by_id, by_skill), theirs, strict=True
    ):
        told = "-" if other is None else f"{other * 1e6:,.0f} µs   {other / mine:,.1f}x"
        print(f"{name:<40}{mine * 1e6:>12,.0f} µs   {told}")
    print(f"{'longest piece of reading, of ' + format(READ_PIECE, ',') + ' bytes':<40}{longest * 1e3:>12.1f} ms")
    print(f"{'what it adds to a garbage collection':<40}{collected * 1e3:>12.1f} ms")
    print(f"{'memory for each agent':<40}{memory:>12,.0f} bytes")
    del kept
    print_clients(data)


if __name__ == "__main__":
    main()
