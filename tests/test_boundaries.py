"""Law 1: the core is pure. Its imports are on a list; it reads no clock, no randomness, nothing outside."""

import ast
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import asap_core

ROOT = Path(__file__).parent.parent
CORE = ROOT / "asap_core"

ALLOWED = {
    "array", "asap_core", "attrs", "base64", "binascii", "cattrs", "codecs", "collections", "dataclasses", "datetime",
    "enum", "errno", "functools", "gzip", "hashlib", "heapq", "ipaddress", "itertools", "json", "math", "msgspec",
    "operator", "re", "struct", "types", "typing", "weakref", "zlib",
}  # fmt: skip
# Of packages with more than data handling in them, the modules and names that are meant.
ALLOWED_MODULES = {
    "contextlib": {"suppress"},
    "email.utils": {"parsedate_to_datetime"},
    "urllib.parse": None,  # all of it
}
# Names that reach for the outside, wherever they come from.
FORBIDDEN_CALLS = {"open", "print", "input", "exec", "eval", "compile", "__import__", "breakpoint"}
FORBIDDEN_NAMES = {"__builtins__", "__loader__"}
FORBIDDEN_ATTRIBUTES = {
    "open", "file_digest",
    "now", "utcnow", "today", "monotonic_ns", "perf_counter", "time_ns", "urandom", "uuid1", "uuid4", "getenv",
    "environ", "import_module", "getLogger", "token_bytes", "token_hex", "token_urlsafe",
}  # fmt: skip
# `at.now`, `since.now`, `confirmed.now` and `context.now` are instants that were passed in, `agent.now` and
# `runtime.now` read the injected clock; `datetime.now`, by any name, is an offence. A `JwtVerifier` opens tokens.
PASSED_IN = {
    "now": {"at", "confirmed", "since", "context", "_context", "self", "agent", "runtime", "_runtime"},
    "open": {"self", "_verifier"},
}


def is_passed_in(node: ast.Attribute) -> bool:
    return ast.unparse(node.value).split(".")[-1] in PASSED_IN.get(node.attr, set())


def is_foreign_module(thing) -> bool:
    return isinstance(thing, types.ModuleType) and thing.__name__.split(".")[0] not in ALLOWED


def reached(imported: dict[str, Any], node: ast.Attribute):
    """The object that `gzip.time` refers to, if `gzip` was imported."""
    return getattr(imported.get(ast.unparse(node.value)), node.attr, None)


# Faces import each public name on its first use, from tables of this project's modules.
LAZY_IMPORTS = CORE / "lazy_imports.py"
LAZY = {"importlib.import_module", "sys"}


def modules():
    return [path for path in CORE.rglob("*.py") if "testing" not in path.relative_to(CORE).parts]


def offences(source):
    """Everything in a module that law 1 forbids, as (line, what)."""
    tree = ast.parse(source)
    imported: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.asname or alias.name: sys.modules.get(alias.name) for alias in node.names}
    return [(getattr(node, "lineno", 0), what) for node in ast.walk(tree) for what in offences_of(node, imported)]


def offences_of(node: ast.AST, imported: dict[str, Any]):
    match node:
        case ast.Import():
            yield from (alias.name for alias in node.names if not allowed(alias.name, None))
        case ast.ImportFrom():
            home = sys.modules.get(node.module or "")
            for name in (alias.name for alias in node.names):
                if node.level or not allowed(node.module, name) or is_foreign_module(getattr(home, name, None)):
                    yield f"{node.module}.{name}"
        case ast.AsyncFunctionDef() | ast.Await() | ast.AsyncFor() | ast.AsyncWith() | ast.comprehension(is_async=1):
            yield "async"
        case ast.Call(func=ast.Name(id=name)) if name in FORBIDDEN_CALLS or is_lookup(node):
            yield name
        case ast.Name(id=name) if name in FORBIDDEN_NAMES:
            yield name
        case ast.Attribute(attr=name) if name in FORBIDDEN_ATTRIBUTES and not is_passed_in(node):
            yield name
        case ast.Attribute(attr=name) if is_foreign_module(reached(imported, node)):
            yield name


def is_lookup(node: ast.AST) -> bool:
    """`getattr(datetime, "now")`: an attribute by its name."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "getattr"
        and isinstance(node.args[1], ast.Constant)
        and node.args[1].value in FORBIDDEN_ATTRIBUTES
    )


def allowed(module, name):
    if module == "asap_core" and name == "testing":
        return False
    if module.startswith("asap_core.testing"):
        return False
    if module.split(".")[0] in ("contextlib", "email", "urllib"):
        names = ALLOWED_MODULES.get(module, set())
        return names is None or name in names
    return module.split(".")[0] in ALLOWED


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_core_module_does_no_io(path) -> None:
    found = {what for _, what in offences(path.read_text("utf-8"))}
    assert found == (LAZY if path == LAZY_IMPORTS else set())


def test_the_face_imports_only_from_its_own_package() -> None:
    assert {home.split(".")[0] for home in asap_core._HOMES} == {"asap_core"}


@pytest.mark.planted
@pytest.mark.parametrize(
    "planted",
    [
        "import time\ntime.time()",
        "from time import monotonic",
        "import datetime\ndatetime.datetime.now()",
        "from datetime import datetime\ndatetime.utcnow()",
        "from datetime import date\ndate.today()",
        "import socket",
        "import threading",
        "import asyncio",
        "import random",
        "import secrets",
        "from uuid import uuid4",
        "import os\nos.environ",
        "import logging\nlogging.getLogger('x')",
        "def f():\n    import time",
        "__import__('time')",
        "import importlib\nimportlib.import_module('time')",
        "async def f(): pass",
        "open('x')",
        "print('x')",
        "from asap_core.testing import strategies",
        "import asap_adapters",
        "import anyio",
        "from email import message",
        "from urllib import request",
        "import urllib.request",
        "from . import clock",
        "from datetime import datetime as dt\ndt.now()",
        "from datetime import datetime\ngetattr(datetime, 'now')()",
        "from gzip import time",
        "import gzip\ngzip.time.time()",
        "import gzip\ngzip.open('x')",
        "import json\njson.codecs.open('x')",
        "import hashlib\nhashlib.file_digest(x, 'sha256')",
        "__builtins__['open']('x')",
        "from asap_core import testing",
        "def f(): return [x async for x in y]",
    ],
)
def test_a_planted_offence_is_caught(planted) -> None:
    assert offences(planted) != []


SCENARIO = """
import socket, time, random, os
import attrs, cattrs, hashlib, json, asap_core
from asap_core import *
from asap_core.wire.codec import warm_up
warm_up()

def forbidden(*args, **kwargs):
    raise AssertionError("the core reached outside")

for module, names in ((socket, ["socket", "create_connection"]), (time, ["time", "monotonic", "sleep", "time_ns"]),
                      (random, ["random"]), (os, ["urandom", "getenv"])):
    for name in names:
        setattr(module, name, forbidden)
import builtins
builtins.open = forbidden

clock = ManualClock()
count = iter(range(10**6))
manifest = Manifest(id="urn:asap:agent:a", name="a", version="1.0.0", description="",
                    capabilities=Capabilities(skills=(Skill(id="echo", description=""),)),
                    endpoints=Endpoints(asap="https://a.example/asap"))
agent = Agent(manifest).bind(clock=clock, ids=lambda: f"id-{next(count)}", key=b"k" * 32)
clock.advance(1)

def post(body, **headers):
    state = agent.open(Request(method="POST", target="/asap", peer="192.0.2.1"))
    assert isinstance(state, ReadBody), state
    state = state.feed(body).end()
    answers = []
    for call in getattr(state, "calls", ()):
        if isinstance(call, Dispatch):
            call = call.replied(Replied("task.response", {"task_id": "t", "status": "completed"}))
        answers.append(call)
    state = state.answered(answers) if answers else state
    response = state.response
    assert state.sent() == Done()
    return response

import json
envelope = Envelope.new(sender="urn:asap:agent:b", recipient="urn:asap:agent:a", payload_type="task.request",
                        payload={"conversation_id": "c", "skill_id": "echo", "input": {}}, ids=lambda: "e1",
                        wall=clock.wall())
body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "asap.send",
                   "params": {"envelope": encode_envelope(envelope)}}).encode()
assert "result" in json.loads(post(body).body)
assert json.loads(post(body).body)["error"]["code"] == -32003
assert json.loads(post(b"nonsense").body)["error"]["code"] == -32700
assert agent.open(Request(method="GET", target="/.well-known/asap/manifest.json")).response.status == 200
print("whole")
"""


def test_a_whole_scenario_runs_with_sockets_and_clocks_taken_away() -> None:
    done = subprocess.run([sys.executable, "-c", SCENARIO], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout == "whole\n", done.stderr


def test_the_import_contracts_are_kept() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout
