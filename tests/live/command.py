"""The command `asap` for live tests: servers in processes of their own, everything else in this one."""

import contextlib
import io
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from asap_adapters.cli import main

SECONDS = 60
ALICE = "urn:asap:agent:alice"
COMMAND = (sys.executable, "-m", "asap_adapters.cli")
Process: TypeAlias = "subprocess.Popen[str]"
Serve: TypeAlias = Callable[..., tuple[str, Process]]


def asap(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command in this process: starting another one takes a second, and only signals and pipes need it."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(each) for each in arguments])
        except SystemExit as exited:  # argparse's way
            code = int(exited.code or 0)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def started(*arguments: str | Path, cwd: Path | None = None) -> Process:
    """Start a command in a process of its own."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd
    )


def line_of(process: Process) -> str:
    """Wait for a process to print a line."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"{shlex.join(map(str, process.args))}: {process.communicate(timeout=SECONDS)[1]}"  # type: ignore[arg-type]
    return line


@pytest.fixture(params=["trio", "asyncio"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def served(backend: str) -> Iterator[Serve]:
    """`asap serve` on a free port, with these options; returns (URL, process)."""
    running = []

    def start(*options: str, cwd: Path | None = None) -> tuple[str, Process]:
        process = started("serve", "--port", "0", "--backend", backend, *options, cwd=cwd)
        running.append(process)
        line = line_of(process)
        assert " listens on " in line
        return line.split()[-1], process

    yield start
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=SECONDS)
