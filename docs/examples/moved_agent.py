"""An agent with hooks for `asap conform`: a file says how far its clocks are moved, and how often it was started.

    python docs/examples/moved_agent.py serve moved.json 8000 &
    asap conform http://127.0.0.1:8000 --token t-alice --as urn:asap:agent:alice --failing-skill fail
        --clock-hook 'python docs/examples/moved_agent.py move moved.json'
        --reset-hook 'python docs/examples/moved_agent.py restart moved.json'

In an agent of your own, only the clock that it's given and what starts it again are needed.
"""

import json
import secrets
import sys
import time
from functools import partial
from pathlib import Path
from uuid import uuid4

import anyio

from asap_adapters import Context, serve
from asap_core import (
    Agent,
    AuthScheme,
    Capabilities,
    Endpoints,
    FunctionClock,
    Manifest,
    Policy,
    Skill,
    TaskRequest,
    TokenTable,
)

SKILLS = tuple(Skill(id=name, description=name) for name in ("echo", "fail"))
TOKENS = TokenTable({"t-alice": "urn:asap:agent:alice", "t-bob": "urn:asap:agent:bob"})


async def echo(request: TaskRequest, _context: Context) -> dict[str, object]:
    """Return the input."""
    return {"echoed": request.input}


async def fail(_request: TaskRequest, _context: Context) -> dict[str, object]:
    """Fail, whatever the input."""
    raise RuntimeError("the work can't be done")


def read(file: Path) -> dict[str, int]:
    """Return what the hooks have written: seconds on both clocks, on the wall clock only, and the number of starts."""
    written: dict[str, int] = {"advance": 0, "step": 0, "starts": 0}
    return {**written, **json.loads(file.read_text())} if file.exists() else written


def change(file: Path, **added: int) -> None:
    """Add to what's written. The file is replaced at once: the agent never reads half of it."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps({name: value + added.get(name, 0) for name, value in read(file).items()}))
    new.replace(file)


def run(file: Path, port: int) -> None:
    """Serve the agent. After each reset it's another one, which remembers nothing."""
    clock = FunctionClock(
        lambda: time.monotonic() + read(file)["advance"],
        lambda: time.time() + read(file)["advance"] + read(file)["step"],
    )

    async def main(port: int) -> None:
        while True:
            endpoints = Endpoints(asap=f"http://127.0.0.1:{port}/asap")
            manifest = Manifest(
                id="urn:asap:agent:moved", name="Moved", version="1.0.0", description="An agent with hooks",
                capabilities=Capabilities(skills=SKILLS), endpoints=endpoints, auth=AuthScheme(schemes=("bearer",)),
            )  # fmt: skip
            agent = Agent(manifest, policy=Policy(peer_limits=()))
            agent.bind(clock=clock, ids=lambda: uuid4().hex, key=secrets.token_bytes(32))
            stop, starts = anyio.Event(), read(file)["starts"]
            serving = partial(serve, agent, {"echo": echo, "fail": fail}, authenticate=TOKENS, stop=stop)
            async with anyio.create_task_group() as tasks:
                url = await tasks.start(partial(serving, at=("127.0.0.1", port)))
                port = int(url.rpartition(":")[2])
                file.with_suffix(".started").write_text(str(starts))
                print(url, flush=True)
                while read(file)["starts"] == starts:  # noqa: ASYNC110 - another process says it
                    await anyio.sleep(0.05)
                stop.set()

    anyio.run(main, port)


def restart(file: Path) -> None:
    """Have the agent started again, and wait until it is."""
    change(file, starts=1)
    while file.with_suffix(".started").read_text() != str(read(file)["starts"]):
        time.sleep(0.05)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", file, port]:
            run(Path(file), int(port))
        case ["move", file, "advance" | "step" as how, seconds]:
            change(Path(file), **{how: int(seconds)})
        case ["restart", file]:
            restart(Path(file))
        case _:
            sys.exit(__doc__)
