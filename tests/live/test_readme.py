"""The README as its reader tries it: the shell, the agent, its caller, a driver; and the guide's WSGI application."""

import importlib
import io
import json
import pkgutil
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import anyio
import pytest

import asap_adapters
import asap_core
from asap_core import Envelope, ManualClock, WallTime, encode_envelope

pytestmark = pytest.mark.live

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
EMBEDDING = (Path(__file__).parents[2] / "docs" / "embedding.md").read_text("utf-8")
SECONDS = 60


def block(language: str, containing: str, document: str = README) -> str:
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", document, re.DOTALL)
    return next(text for text in found if containing in text)


@pytest.fixture
def started():
    """Start a process that prints where it listens; returns the URL."""
    running: list[Any] = []

    def start(*command: str, cwd=None):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=cwd)
        running.append(process)
        return process.stdout.readline().split()[-1] if process.stdout is not None else ""

    yield start
    for process in running:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=SECONDS)


def asap(line: str, url: str) -> list[str]:
    """A line of the README as it's run here: with this interpreter, at this URL instead of port 8000."""
    words = shlex.split(line, comments=True)
    assert words[0] == "asap"
    words = [
        url if word == "http://127.0.0.1:8000" else "0" if word == "8000" else word for word in words if word != "&"
    ]
    return [sys.executable, "-m", "asap_adapters.cli", *words[1:]]


def test_every_line_of_the_shell_works(started) -> None:
    serve, *others = block("sh", "asap serve").splitlines()
    url = started(*asap(serve, ""))
    assert {line.split()[1] for line in others} == {"discover", "send", "browse", "registry"}
    for line in others:
        done = subprocess.run(asap(line, url), capture_output=True, text=True, check=False, timeout=SECONDS)
        assert done.returncode == 0, f"{line}: {done.stderr}"


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_the_agent_is_served_and_called(started, tmp_path, backend, capsys) -> None:
    (tmp_path / "mymodule.py").write_text(block("python", "Agent(manifest)"))
    serve = re.search(r"asap serve mymodule:agent", README)
    assert serve is not None
    url = started(*asap(serve[0], ""), "--port", "0", cwd=tmp_path)
    names: dict[str, Any] = {}
    exec(block("python", "async def ask()").replace("http://127.0.0.1:8000", url), names)
    anyio.run(names["ask"], backend=backend)
    assert capsys.readouterr().out == "{'sum': 6}\n"


def test_the_driver_of_the_readme_answers_requests() -> None:
    names: dict[str, Any] = {"__name__": "readme"}
    exec(block("python", "Agent(manifest)"), names)
    exec(block("python", "def respond"), names)
    names["agent"].bind(clock=ManualClock(wall=WallTime(1_800_000_000.0)), ids=lambda: "an-id", key=b"k" * 32)
    envelope = Envelope.new(
        sender="urn:asap:agent:me", recipient="urn:asap:agent:adder", payload_type="task.request",
        payload={"conversation_id": "c", "skill_id": "add", "input": {}}, ids=lambda: "e1",
        wall=WallTime(1_800_000_000.5), nonce="n",
    )  # fmt: skip
    call = {"jsonrpc": "2.0", "method": "asap.send", "id": 1, "params": {"envelope": encode_envelope(envelope)}}
    keyed = {**call, "params": {**call["params"], "idempotency_key": "k"}}  # type: ignore[dict-item]
    respond = names["respond"]

    def ask(value):
        return json.loads(respond("POST", "/asap", [], json.dumps(value).encode(), "192.0.2.1").body)

    # The same key twice in one batch: the second finds the first running.
    first, second = ask([keyed, {**keyed, "id": 2}])
    assert first["result"]["envelope"]["payload"]["result"]["skill_id"] == "add"
    assert second["error"]["code"] == -32062
    assert ask(call)["error"]["code"] == -32003
    assert respond("GET", "/health", [], b"", "192.0.2.1").status == 200


class TestTheWsgiApplication:
    @pytest.fixture
    def ask(self):
        names: dict[str, Any] = {"__name__": "readme"}
        exec(block("python", "Agent(manifest)"), names)
        exec(block("python", "def application", EMBEDDING), names)
        names["agent"].bind(clock=ManualClock(wall=WallTime(1_800_000_000.0)), ids=lambda: "an-id", key=b"k" * 32)
        application = validator(names["application"])  # holds it to PEP 3333

        def ask(path: str, body: bytes = b"", **environ: str):
            seen: list[Any] = []
            given = {
                "PATH_INFO": path,
                "wsgi.input": io.BytesIO(body),
                "REMOTE_ADDR": "192.0.2.1",
                "QUERY_STRING": "",
                "SCRIPT_NAME": "",
                **environ,
            }
            setup_testing_defaults(given)
            answer: Any = application(given, lambda status, headers, _info=None: seen.extend([status, dict(headers)]))  # type: ignore[arg-type]
            content = b"".join(answer)
            answer.close()
            return seen[0], seen[1], content

        return ask

    def post(self, ask, **changes):
        envelope = Envelope.new(
            sender="urn:asap:agent:me", recipient="urn:asap:agent:adder", payload_type="task.request",
            payload={"conversation_id": "c", "skill_id": "add", "input": {}}, ids=lambda: "e1",
            wall=WallTime(1_800_000_000.5), nonce="n",
        )  # fmt: skip
        call = {"jsonrpc": "2.0", "id": 1, "method": "asap.send", "params": {"envelope": encode_envelope(envelope)}}
        body = json.dumps(call).encode()
        length = {"CONTENT_LENGTH": str(len(body)), "CONTENT_TYPE": "application/json"}
        return ask("/asap", body, REQUEST_METHOD="POST", **{**length, **changes})

    def test_the_application_answers_an_envelope_once(self, ask) -> None:
        status, _, body = self.post(ask)
        assert (status, json.loads(body)["result"]["envelope"]["payload"]["status"]) == ("200 ASAP", "completed")
        assert json.loads(self.post(ask)[2])["error"]["code"] == -32003

    def test_the_application_passes_headers_on(self, ask) -> None:
        assert self.post(ask, HTTP_CONTENT_ENCODING="zstd")[0] == "415 ASAP"
        assert b"-32000" in self.post(ask, HTTP_ASAP_VERSION="9.9")[2]
        etag = ask("/.well-known/asap/manifest.json")[1]["etag"]
        assert ask("/.well-known/asap/manifest.json", HTTP_IF_NONE_MATCH=etag)[0] == "304 ASAP"


def test_the_test_passes_on_both_backends_also_beside_others_of_the_same_agent(tmp_path: Path) -> None:
    (tmp_path / "adder.py").write_text(block("python", "Agent(manifest)"))
    tests = block("python", "async def test_adds()")
    body = tests.partition("async def test_adds()")[2]
    others = "".join(f"\n\nasync def test_adds_{number}(){body}" for number in range(2))
    (tmp_path / "test_adder.py").write_text(f"from adder import agent, handlers\n{tests}{others}")
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "--strict-markers", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert "6 passed" in done.stdout, done.stdout


class TestTheTableOfExceptions:
    table = README.partition("## When something goes wrong")[2]
    named = tuple(sorted(set(re.findall(r"^\| `(\w+)", table, re.MULTILINE)) - {"RuntimeError"}))

    def test_the_table_has_all_exceptions(self) -> None:
        for package in (asap_core, asap_adapters):
            for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
                if not module.name.endswith("__main__") and "bench" not in module.name:  # they need the reference
                    importlib.import_module(module.name)
        assert set(self.named) == {each.__name__ for each in descendants(asap_core.AsapError) if is_public(each)}

    @pytest.mark.parametrize("name", ["AsapError", *named])
    def test_both_packages_export_the_same_exceptions(self, name: str) -> None:
        names: dict[str, Any] = {}
        exec(f"from asap_core import {name} as one\nfrom asap_adapters import {name} as other", names)
        assert names["one"] is names["other"]
        assert issubclass(names["one"], asap_core.AsapError)
        assert name in asap_core.__all__
        assert name in asap_adapters.__all__


def descendants(parent) -> set[Any]:
    return {each for child in parent.__subclasses__() for each in (child, *descendants(child))}


def is_public(each: type) -> bool:
    return each.__module__.startswith("asap_") and not each.__name__.startswith("_")
