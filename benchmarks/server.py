"""The server under load, against bare h11 over anyio and the reference: `python -m benchmarks server`.

Contenders take turns, each on one core with the load on the other; figures are medians of all turns. Ratios are within
one run. The time of the processor is each server's own, and steadier than rates where a machine is shared.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator

from attrs import frozen

from benchmarks import ROOT, reference_python, server_stages
from benchmarks.server_load import CASES

__all__ = ["run"]

ECHO = "urn:asap:agent:echo-agent"


@frozen
class Contender:
    """A server, as a command that prints its URL; `floor` names the contender that it's compared with."""

    command: list[str]
    agent: str
    floor: str


@frozen
class Measured:
    """One turn: requests a second, microseconds of the server's processor for each, seconds of waiting."""

    rate: float
    processor: float
    p50: float
    p99: float
    worst: float


def contenders() -> dict[str, Contender]:
    asap = [sys.executable, "-m", "asap_adapters.cli", "serve", "--port", "0", "--rate-limit", "off", "--backend"]
    floor = [sys.executable, "-m", "benchmarks.server_floor"]
    found = {}
    for backend in ("trio", "asyncio"):
        found[f"h11, {backend}"] = Contender([*floor, backend], "floor", f"h11, {backend}")
        found[f"ours, {backend}"] = Contender([*asap, backend], ECHO, f"h11, {backend}")
    python = reference_python()
    if python is not None:
        script = str(ROOT / "tests" / "interop" / "reference_server.py")
        agent = "urn:asap:agent:reference-server"
        found["reference, uvicorn"] = Contender([python, "-W", "ignore", script], agent, "h11, asyncio")
    return found


def pinned(core: int) -> list[str]:
    return [] if shutil.which("taskset") is None else ["taskset", "-c", str(core)]


@contextlib.contextmanager
def served(contender: Contender) -> Iterator[tuple[int, int]]:
    """Start a server on the first core; yields its process and its port."""
    process = subprocess.Popen(
        [*pinned(0), *contender.command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        cwd=ROOT,
    )
    assert process.stdout is not None
    try:
        line = next(line for line in process.stdout if re.search(r":\d+\s*$", line))
        yield process.pid, int(line.strip().rsplit(":", 1)[-1])
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def seconds_of(process: int) -> float:
    """Seconds of processor time that a process has taken."""
    with open(f"/proc/{process}/schedstat", encoding="ascii") as file:  # noqa: PTH123 - not a path of ours
        return int(file.read().split()[0]) / 1e9


def turn(contender: Contender, case: str, connections: int, seconds: float) -> Measured:
    load = [*pinned(1), sys.executable, "-m", "benchmarks.server_load"]
    with served(contender) as (process, port):
        began = seconds_of(process)
        command = [*load, str(port), case, contender.agent, str(connections), str(seconds)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)
        took = seconds_of(process) - began
    if found["refused"]:
        print(f"{found['refused']} requests were refused", file=sys.stderr)
    every = found["asked"]
    return Measured(found["rate"], took / every * 1e6, found["p50"], found["p99"], found["worst"])


def run(case: str, *, connections: int, turns: int, seconds: float, only: list[str]) -> None:
    """Print the table of one case."""
    chosen = {name: one for name, one in contenders().items() if not only or any(each in name for each in only)}
    if case in ("manifest", "304"):
        chosen = {name: one for name, one in chosen.items() if "reference" not in name}
    measured: dict[str, list[Measured]] = {name: [] for name in chosen}
    for _ in range(turns):
        for name, contender in chosen.items():
            measured[name].append(turn(contender, case, connections, seconds))
    print(f"{case}, {connections} connections, median of {turns}")
    heads = ("requests/s", "of h11", "µs of CPU", "of h11", "p50 ms", "p99 ms", "worst")
    print(" " * 20 + "".join(f"{head:>11}" for head in heads))
    for name, all_turns in measured.items():
        rate, processor = median(all_turns, "rate"), median(all_turns, "processor")
        floor = measured.get(chosen[name].floor, all_turns)
        rates, processors = rate / median(floor, "rate"), median(floor, "processor") / processor
        times = "".join(f"{median(all_turns, which) * 1000:11.1f}" for which in ("p50", "p99", "worst"))
        print(f"{name:<20}{rate:11.0f}{rates:11.2f}{processor:11.0f}{processors:11.2f}{times}")


def median(turns: list[Measured], what: str) -> float:
    values: list[float] = [getattr(each, what) for each in turns]
    return statistics.median(values)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks server")
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    parser.add_argument("--only", action="append", default=[], help="contenders whose name has this in it")
    parser.add_argument("--stages", action="store_true", help="print where the time of a POST goes instead")
    asked = parser.parse_args(arguments)
    if asked.stages:
        server_stages.run()
        return
    for case in asked.case or CASES:
        run(case, connections=asked.connections, turns=asked.turns, seconds=asked.seconds, only=asked.only)
        print(flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
