"""What `python -m benchmarks server` compares: servers as commands, with an environment of its own for those of others.

Environments are made once, in the user's cache directory. A contender whose environment can't be made is left out.
"""

import functools
import hashlib
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

from attrs import field, frozen

from benchmarks import ROOT, reference_python

__all__ = ["REFERENCE", "Contender", "contenders"]

REFERENCE: Final = "reference, uvicorn"
_ECHO: Final = "urn:asap:agent:echo-agent"
# High enough that none of them refuses anything, so that what they cost is seen: as many limits as by default.
_LIMITS: Final = "10000000/second;100000000/minute"
_ASGI: Final = ("uvicorn", "httptools", "uvloop", "granian", "hypercorn[trio]")
_A2A: Final = ("a2a-sdk[http-server]==1.3.0", "uvicorn", "httptools", "uvloop")
_REFERENCE: Final = ("asap-protocol==2.5.10",)
_MINUTES: Final = 10 * 60


@frozen
class Contender:
    """A server, as a command that prints its URL.

    agent: whom requests are for; "floor" echoes any request, "a2a" speaks A2A.
    floor: the name of the contender that it's compared with.
    gets: whether it has a manifest.
    crowds: whether it's also measured with many connections.
    """

    command: list[str]
    agent: str
    floor: str
    gets: bool = True
    crowds: bool = False
    variables: dict[str, str] = field(factory=dict)


def environment(name: str, packages: tuple[str, ...], python: str) -> str | None:
    """Return the interpreter of an environment with these packages, which is made if need be. None if it can't be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(repr((packages, python, sys.version)).encode()).hexdigest()[:8]
    folder = cache / "asap-benchmarks" / f"{name}-{digest}"
    interpreter, done = folder / "bin" / "python", folder / "complete"
    if done.exists():
        return str(interpreter)
    print(f"makes {folder} with {', '.join(packages)}", file=sys.stderr, flush=True)
    try:
        for command in (
            [python, "-m", "venv", "--clear", str(folder)],
            [str(interpreter), "-m", "pip", "install", "-q", *packages],
        ):
            subprocess.run(command, check=True, capture_output=True, timeout=_MINUTES)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"can't have {', '.join(packages)}, so what needs them is left out: {error}", file=sys.stderr)
        return None
    done.touch()
    return str(interpreter)


def _python_3_13() -> str | None:
    """The reference needs it. From PATH or pyenv."""
    for variables in ({}, {"PYENV_VERSION": "3.13.0"}):
        try:
            done = subprocess.run(
                ["python3.13", "-c", "import sys; print(sys.executable)"],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, **variables},
            )
        except (OSError, subprocess.CalledProcessError):
            continue
        return done.stdout.strip()
    return None


@functools.cache
def contenders() -> dict[str, Contender]:
    """All of them by name, floors first."""
    return {**_floors(), **_ours(), **_under_asgi(), **_others()}


def _floors() -> dict[str, Contender]:
    return {
        f"{title}, {backend}": Contender(
            [sys.executable, "-m", "benchmarks.server_floor", kind, backend],
            "floor",
            f"h11, {backend}",
            crowds=kind == "h11",
        )
        for kind, title in (("bytes", "read and write"), ("h11", "h11"))
        for backend in ("trio", "asyncio", "uvloop")
    }


def _ours() -> dict[str, Contender]:
    serve = [sys.executable, "-m", "asap_adapters.cli", "serve", "--port", "0"]
    free = [*serve, "--rate-limit", "off", "--backend"]
    limited = [*serve, "--rate-limit", _LIMITS, "--backend", "trio"]
    return {
        "ours, trio": Contender([*free, "trio"], _ECHO, "h11, trio", crowds=True),
        "ours, asyncio": Contender([*free, "asyncio"], _ECHO, "h11, asyncio", crowds=True),
        "ours, uvloop": Contender([*free, "asyncio", "--uvloop"], _ECHO, "h11, uvloop", crowds=True),
        "ours with limits, trio": Contender(limited, _ECHO, "h11, trio", gets=False),
    }


def _under_asgi() -> dict[str, Contender]:
    python = environment("asgi", _ASGI, sys.executable)
    if python is None:
        return {}
    # Ours, and what it needs, from here; the servers from there.
    variables = {"PYTHONPATH": os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])}
    return {
        f"{title}, {server}": Contender(
            [python, "-m", "benchmarks.foreign_asgi", server, name],
            _ECHO if name == "ours" else "floor",
            f"trivial ASGI, {server}",
            variables=variables,
        )
        for server in ("uvicorn", "granian", "hypercorn")
        for name, title in (("trivial", "trivial ASGI"), ("ours", "ours as ASGI"))
    }


def _others() -> dict[str, Contender]:
    found = {}
    base = _python_3_13()
    python = reference_python() or (base and environment("reference", _REFERENCE, base))
    if python:
        script = str(ROOT / "tests" / "interop" / "reference_server.py")
        agent = "urn:asap:agent:reference-server"
        command = [python, "-W", "ignore", script]
        found[REFERENCE] = Contender(command, agent, "h11, asyncio", gets=False, crowds=True)
    python = environment("a2a", _A2A, sys.executable)
    if python:
        script = str(ROOT / "benchmarks" / "foreign_a2a.py")
        found["a2a-sdk, uvicorn"] = Contender([python, "-W", "ignore", script], "a2a", "h11, asyncio", gets=False)
    return found
