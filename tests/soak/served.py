"""The agent that the soak serves: it writes each run down before it works, and says how many tasks its process has.

The folder for what is written is in the environment, as `SOAK_RUNS`.
"""

import functools
import os
import secrets
import time
from pathlib import Path

import anyio

from asap_adapters import Context
from asap_core import Agent, Capabilities, Endpoints, Manifest, Policy, Skill, TaskRequest

AGENT = "urn:asap:agent:soaked"
# Short limits, so that tables are full and peers are given up many times in one run. A caller gives up long before
# its key is forgotten.
POLICY = Policy(
    peer_limits=(),
    connections_per_peer=500,
    max_age=20,
    skew=5,
    idempotency_ttl=120,
    handler_deadline=5,
    hold=2,
    head_timeout=3,
    body_timeout=4,
    write_timeout=4,
    idle_timeout=20,
)


@functools.cache
def _runs(process: int) -> int:
    """The file of this process, which isn't the one that imported this module."""
    return os.open(Path(os.environ["SOAK_RUNS"]) / f"runs-{process}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


async def work(request: TaskRequest, _context: Context) -> dict[str, object]:
    """Write the run down, take as long as the caller says, and name the run."""
    run, process = secrets.token_hex(8), os.getpid()
    # What the kernel has is safe if this process is killed.
    os.write(_runs(process), f"{request.input['id']} {run} {process} {time.monotonic():.3f}\n".encode())
    await anyio.sleep(float(str(request.input["seconds"])))
    return {"id": request.input["id"], "run": run}


async def large(_request: TaskRequest, _context: Context) -> dict[str, object]:
    """Return a megabyte, for those who read slowly."""
    return {"text": "x" * 1_000_000}


async def tasks(_request: TaskRequest, _context: Context) -> dict[str, object]:
    """Say which process this is, and how many tasks it has."""
    return {"process": os.getpid(), "tasks": len(anyio.get_running_tasks())}


handlers = {"work": work, "large": large, "tasks": tasks}
manifest = Manifest(
    id=AGENT,
    name="Soaked",
    version="1.0.0",
    description="Works, and writes down what it did",
    capabilities=Capabilities(skills=[Skill(id=each, description=each) for each in handlers]),
    endpoints=Endpoints(asap="http://127.0.0.1:1/asap"),
)
agent = Agent(manifest, policy=POLICY)
