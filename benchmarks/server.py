"""The server under load, beside others: `python -m benchmarks server`; `--quick` takes minutes instead of an hour.

Contenders take turns, each on one core with the load on another; figures are medians of all turns. Ratios are those of
the turns of one round, which follow each other, and their medians: what else the machine does changes them least. The
processor's time is each server's own, and steadier than rates where a machine is shared.
"""

import argparse
import contextlib
import functools
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from attrs import frozen

from benchmarks import ROOT, server_stages
from benchmarks.server_contenders import REFERENCE, Contender, contenders
from benchmarks.server_load import CASES
from benchmarks.server_plot import Bar, Span, draw

__all__ = ["run"]

# Each case with these numbers of connections.
PLAN = [("post 1 KB", 16), ("post 1 KB", 128), ("post 1 KB", 512), *((case, 16) for case in CASES[1:])]
# Seconds until a server must answer.
_STARTS = 60.0


@frozen
class Measured:
    """One turn.

    rate: requests a second.
    processor: microseconds of the server's processor for each request.
    p50, p99, worst: seconds of waiting.
    idle, after: resident megabytes before the turn and after it.
    load: microseconds of the load's own processor for each request; rates can't be higher than it allows.
    """

    rate: float
    processor: float
    p50: float
    p99: float
    worst: float
    idle: float
    after: float
    load: float


Turns = dict[str, list[Measured]]


def pinned(which: int) -> Callable[[], None] | None:
    """What a new process calls to stay on one core: on the first (0) or the last (-1) that this one may use."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    return functools.partial(os.sched_setaffinity, 0, {sorted(os.sched_getaffinity(0))[which]})


def tree(process: int) -> list[int]:
    """A process and its children, and theirs."""
    found = [process]
    for each in found:
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{each}/task/{each}/children").read_text("ascii").split()
            found += map(int, children)
    return found


def seconds_of(process: int) -> float:
    """Seconds of processor time that a process has taken, with all its threads and children."""
    total = 0.0
    for each in tree(process):
        for thread in Path(f"/proc/{each}/task").iterdir():
            with contextlib.suppress(OSError):  # it ended
                total += int((thread / "schedstat").read_text("ascii").split()[0]) / 1e9
    return total


def resident(process: int) -> float:
    """Megabytes of a process and its children."""
    total = 0
    for each in tree(process):
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{each}/status").read_text("ascii"))
        total += int(found[1]) if found else 0
    return total / 1024


def wait_for(port: int) -> None:
    """Wait until a server takes connections."""
    until = time.monotonic() + _STARTS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return


@contextlib.contextmanager
def served(contender: Contender) -> Iterator[tuple[int, int]]:
    """Start a server on the first core; yields its process and its port."""
    process = subprocess.Popen(
        contender.command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **contender.variables},
        cwd=ROOT,
        preexec_fn=pinned(0),  # noqa: PLW1509 - this process has no threads
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        line = next(line for line in process.stdout if re.search(r"(?:^|:)\d+\s*$", line))
        port = int(line.strip().rsplit(":", 1)[-1])
        wait_for(port)
        yield process.pid, port
    finally:
        process.terminate()
        try:
            process.wait(10)
        finally:
            with contextlib.suppress(ProcessLookupError):  # what a server left of its own processes
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()


def turn(contender: Contender, case: str, connections: int, seconds: float) -> Measured:
    load = [sys.executable, "-m", "benchmarks.server_load"]
    with served(contender) as (process, port):
        idle, began = resident(process), seconds_of(process)
        command = [*load, str(port), case, contender.agent, str(connections), str(seconds)]
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            preexec_fn=pinned(-1),
        )  # fmt: skip
        found = json.loads(done.stdout)
        took, after = seconds_of(process) - began, resident(process)
    if found["refused"]:
        print(f"{found['refused']} of {found['asked']} requests were refused", file=sys.stderr)
    return Measured(
        found["rate"], took / found["asked"] * 1e6, found["p50"], found["p99"], found["worst"], idle, after,
        found["load"],
    )  # fmt: skip


def takes_part(contender: Contender, case: str, connections: int) -> bool:
    return (contender.gets or case.startswith("post")) and (contender.crowds or connections <= 16)


def measure(case: str, *, connections: int, turns: int, seconds: float, only: list[str]) -> Turns:
    """Let all that take part in a case have their turns."""
    chosen = {
        name: one
        for name, one in contenders().items()
        if (not only or any(each in name for each in only)) and takes_part(one, case, connections)
    }
    measured: Turns = {name: [] for name in chosen}
    for number in range(turns):
        for name, contender in dict(chosen).items():
            print(f"\r{case}, {connections} connections, turn {number + 1}: {name:<30}", end="", file=sys.stderr)
            try:
                measured[name].append(turn(contender, case, connections, seconds))
            except (OSError, subprocess.SubprocessError, StopIteration) as error:
                print(f"\n{name} is left out: {error}", file=sys.stderr)
                chosen = {each: one for each, one in chosen.items() if each != name}
                del measured[name]
    print(f"\r{'':<80}\r", end="", file=sys.stderr, flush=True)
    return measured


def median(turns: list[Measured], what: str) -> float:
    values: list[float] = [getattr(each, what) for each in turns]
    return statistics.median(values)


def ratio(ones: list[Measured], others: list[Measured], what: str) -> float:
    """The median of the ratios of turns that followed each other."""
    values: list[float] = [getattr(one, what) / getattr(other, what) for one, other in zip(ones, others, strict=True)]
    return statistics.median(values)


def show(case: str, connections: int, measured: Turns) -> None:
    """Print a table for Markdown."""
    known = contenders()
    turns = len(next(iter(measured.values())))
    load = statistics.median(each.load for all_turns in measured.values() for each in all_turns)
    print(f"\n{case}, {connections} connections, median of {turns}; the load took {load:.0f} µs for each request\n")
    print("| server | requests/s | of floor | of reference | CPU µs | floor's CPU / its | p50, p99, worst ms | MB |")
    print("|---|---|---|---|---|---|---|---|")
    for name, turns_of in measured.items():
        floor, reference = measured.get(known[name].floor), measured.get(REFERENCE)
        rates = f"{ratio(turns_of, floor, 'rate'):.2f}" if floor else ""
        processors = f"{ratio(floor, turns_of, 'processor'):.2f}" if floor else ""
        against = f"{ratio(turns_of, reference, 'rate'):.1f}x" if reference else ""
        times = ", ".join(f"{median(turns_of, which) * 1000:.1f}" for which in ("p50", "p99", "worst"))
        print(
            f"| {name} | {median(turns_of, 'rate'):,.0f} | {rates} | {against} "
            f"| {median(turns_of, 'processor'):.0f} | {processors} "
            f"| {times} | {median(turns_of, 'idle'):.0f} → {median(turns_of, 'after'):.0f} |"
        )


def run(case: str, *, connections: int, turns: int, seconds: float, only: list[str]) -> Turns:
    """Measure one case, and print its table."""
    measured = measure(case, connections=connections, turns=turns, seconds=seconds, only=only)
    if measured:
        show(case, connections, measured)
    return measured


def remember(requests: int, only: list[str]) -> None:
    """Print what ours holds, idle and after so many requests of 1 KB."""
    print(f"\nresident MB, idle and after {requests:,} requests of 1 KB\n\n| server | idle | after |\n|---|---|---|")
    for name, contender in contenders().items():
        if name.startswith("ours, ") and (not only or any(each in name for each in only)):
            seconds, idle, after, asked = 10.0, 0.0, 0.0, 0
            with served(contender) as (process, port):
                idle = resident(process)
                while asked < requests:
                    command = [sys.executable, "-m", "benchmarks.server_load", str(port), "post 1 KB", contender.agent]
                    done = subprocess.run(
                        [*command, "16", str(seconds)], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT
                    )
                    asked += int(json.loads(done.stdout)["asked"])
                after = resident(process)
            print(f"| {name} | {idle:.1f} | {after:.1f} |", flush=True)


def plot(path: Path, found: dict[tuple[str, int], Turns]) -> None:
    """Draw the rates of POST, and how long callers wait with many connections."""
    bars = [
        Bar(name, median(turns, "rate"), median(turns, "processor"))
        for name, turns in found.get(("post 1 KB", 16), {}).items()
    ]
    spans = [
        Span(name, connections, *(median(turns, which) * 1000 for which in ("p50", "p99", "worst")))
        for (case, connections), all_turns in found.items()
        if case == "post 1 KB"
        for name, turns in all_turns.items()
        if takes_part(contenders()[name], case, 512)
    ]
    path.write_text(draw(bars, spans), "utf-8")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks server", description=__doc__)
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    parser.add_argument("--connections", type=int, action="append", help="default: 16; 128 and 512 for POSTs of 1 KB")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn")
    parser.add_argument("--quick", action="store_true", help="one turn of half a second")
    parser.add_argument("--only", action="append", default=[], help="contenders whose name has this in it")
    parser.add_argument("--plot", type=Path, help="draw the POSTs of 1 KB to this SVG file")
    parser.add_argument("--memory", type=int, metavar="N", help="print what ours holds after N requests instead")
    parser.add_argument("--stages", action="store_true", help="print where the time of a POST goes instead")
    asked = parser.parse_args(arguments)
    if asked.stages:
        server_stages.run()
        return
    if asked.memory is not None:
        remember(asked.memory, asked.only)
        return
    turns, seconds = (1, 0.5) if asked.quick else (asked.turns, asked.seconds)
    plan = [
        (case, connections)
        for case, connections in PLAN
        if (not asked.case or case in asked.case) and (not asked.connections or connections in asked.connections)
    ]
    if asked.connections:  # others than those of the plan too
        cases = asked.case or CASES
        plan += [(case, each) for case in cases for each in asked.connections if (case, each) not in plan]
    found = {}
    for case, connections in plan:
        found[case, connections] = run(case, connections=connections, turns=turns, seconds=seconds, only=asked.only)
        if asked.plot is not None:  # as far as it's known
            plot(asked.plot, found)


if __name__ == "__main__":
    main(sys.argv[1:])
