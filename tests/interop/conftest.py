"""The reference implementation in an environment of its own, built once under .cache; needs Python 3.13."""

import fcntl
import functools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

REFERENCE = "asap-protocol==2.5.10"
HERE = Path(__file__).parent
CACHE = HERE.parent.parent / ".cache" / "interop"
SECONDS = 300


def python_3_13():
    """A Python 3.13, from PATH or pyenv, or None."""
    for command, extra in ((["python3.13"], {}), (["python3.13"], {"PYENV_VERSION": "3.13.0"})):
        if shutil.which(command[0]) is None:
            continue
        probe = subprocess.run(
            [*command, "-c", "import sys; print(sys.executable)"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **extra},
        )
        if probe.returncode == 0:
            return probe.stdout.strip()
    return None


@pytest.fixture(scope="session")
def reference_python():
    """The interpreter that has the reference implementation."""
    interpreter = CACHE / "bin" / "python"
    done = CACHE / REFERENCE
    with one_at_a_time(CACHE.with_suffix(".lock")):
        if not done.exists():
            install(interpreter)
            done.touch()
    return str(interpreter)


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Wait until no other process of the same test run is in here."""
    lock.parent.mkdir(exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def install(interpreter: Path) -> None:
    """Install the reference; Python compiles what the tests import of it, a small part of what it needs."""
    base = python_3_13()
    if base is None:
        pytest.skip(f"{REFERENCE} needs Python 3.13, and there's none on this machine")
    subprocess.run([base, "-m", "venv", "--clear", str(CACHE)], check=True, timeout=SECONDS)
    subprocess.run(
        [str(interpreter), "-m", "pip", "install", "-q", "--no-compile", REFERENCE], check=True, timeout=SECONDS
    )


@pytest.fixture(scope="module")
def reference_client(reference_python):
    """Run the reference's client script against a URL; what each step brought, by its name."""

    def run(base_url, agent_id, *token):
        script = [reference_python, "-W", "ignore", str(HERE / "reference_client.py"), base_url, agent_id, *token]
        done = subprocess.run(script, capture_output=True, text=True, check=False, timeout=SECONDS)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return {line["step"]: line for line in lines}

    return run


@pytest.fixture(scope="module")
def reference_server(reference_python):
    """Start the reference's server, once for the same arguments; returns its base URL. Stopped at the end."""
    running = []

    @functools.cache  # one imports for a second
    def start(*token_and_urn):
        script = [reference_python, "-W", "ignore", str(HERE / "reference_server.py"), *token_and_urn]
        process: Any = subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        running.append(process)
        port = next(int(line) for line in process.stdout if line.strip().isdigit())
        return f"http://127.0.0.1:{port}"

    yield start
    for process in running:
        process.terminate()
        process.wait(SECONDS)
        process.stdout.close()
