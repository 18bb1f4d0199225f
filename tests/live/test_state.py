"""`asap serve --state`: killed in the middle, or stopped in order, and started again."""

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from typing import Any

import pytest

from asap_core import Envelope, encode_envelope

pytestmark = pytest.mark.live

MODULE = """
from pathlib import Path
from asap_core import Agent, Capabilities, Endpoints, Manifest, Skill
import anyio
agent = Agent(Manifest(
    id="urn:asap:agent:counting", name="c", version="1.0.0", description="",
    capabilities=Capabilities(skills=(Skill(id="count", description=""), Skill(id="hang", description=""))),
    endpoints=Endpoints(asap="http://127.0.0.1:1/asap"),
))
async def count(request, context):
    with Path("runs").open("a") as file:
        file.write("x")
    return {"runs": len(Path("runs").read_text())}
async def hang(request, context):
    await count(request, context)
    await anyio.sleep(60)
handlers = {"count": count, "hang": hang}
"""


@pytest.mark.parametrize("link", ["symbolic", "hard"])
def test_a_second_process_is_refused_through_any_link_to_the_file(tmp_path, link: str) -> None:
    command = [sys.executable, "-m", "asap_adapters.cli", "serve", "--port", "0", "--state"]
    first = subprocess.Popen([*command, "s"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert first.stdout is not None
        assert b" listens on " in first.stdout.readline()
        if link == "hard":
            (tmp_path / "other").hardlink_to(tmp_path / "s")
        else:
            (tmp_path / "other").symlink_to("s")
        done = subprocess.run([*command, "other"], cwd=tmp_path, capture_output=True, check=False, timeout=60)
        assert done.returncode == 1
        assert b"in use by another process" in done.stderr
    finally:
        first.terminate()
        first.communicate(timeout=60)


@pytest.fixture
def world(tmp_path):
    (tmp_path / "counting.py").write_text(MODULE)
    (tmp_path / "runs").write_text("")
    running: list[Any] = []

    def start(backend: str):
        command = [sys.executable, "-m", "asap_adapters.cli", "serve", "counting:agent", "--port", "0", "--state", "s",
                   "--rate-limit", "off", "--backend", backend]  # fmt: skip
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )
        running.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        url = re.search(r"http://\S+", line)
        assert url is not None, process.stderr and process.stderr.read()
        return process, url[0]

    yield start, lambda: len((tmp_path / "runs").read_text())
    for process in running:
        process.kill()
        process.communicate()


def envelope(skill: str = "count"):
    return Envelope.new(
        sender="urn:asap:agent:me", recipient="urn:asap:agent:counting", payload_type="task.request",
        payload={"conversation_id": "c", "skill_id": skill, "input": {}}, ids=lambda: f"e{time.monotonic_ns()}",
        wall=time.time(), nonce=f"n{time.monotonic_ns()}",  # type: ignore[arg-type]
    )  # fmt: skip


def send(url: str, sent, key: str | None = None, *, wait: float = 60):
    params = {"envelope": encode_envelope(sent), **({"idempotency_key": key} if key else {})}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "asap.send", "params": params}).encode()
    request = urllib.request.Request(f"{url}/asap", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=wait) as response:
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        answer = json.load(error)
    except TimeoutError:
        return None
    return answer["error"]["data"]["code"] if "error" in answer else answer["result"]["envelope"]["payload"]["result"]


def until(true) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def once_the_lease_is_over(ask):
    """Ask until it's no longer what may have been accepted before the crash: five seconds, and a little."""
    for _ in range(100):
        answer = ask()
        if answer != "asap:admission/restarted":
            return answer
        time.sleep(0.5)  # the real clock: dates are what this is about
    raise AssertionError("refused for longer than a lease")


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_nothing_is_done_twice_after_a_kill(world, backend) -> None:
    start, runs = world
    process, url = start(backend)
    plain, keyed, hanging = envelope(), envelope(), envelope("hang")
    assert send(url, plain) == {"runs": 1}
    assert send(url, keyed, "k") == {"runs": 2}
    assert send(url, hanging, "h", wait=1) is None
    until(lambda: runs() >= 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process, url = start(backend)
    assert send(url, plain) == "asap:admission/restarted"
    # A retry has a date of its own. Within the lease it's told to come again; then it's told what nobody knows.
    answer = once_the_lease_is_over(lambda: send(url, envelope(), "k"))
    assert answer == "asap:admission/outcome_unknown"
    assert send(url, envelope("hang"), "h") == "asap:admission/outcome_unknown"
    assert send(url, plain) == "asap:admission/restarted"
    assert runs() == 3
    answer = once_the_lease_is_over(lambda: send(url, envelope()))
    assert answer == {"runs": 4}


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_nothing_is_forgotten_after_an_orderly_stop(world, backend) -> None:
    start, runs = world
    process, url = start(backend)
    plain, keyed = envelope(), envelope()
    assert send(url, plain) == {"runs": 1}
    assert send(url, keyed, "k") == {"runs": 2}
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    process, url = start(backend)
    assert send(url, plain) == "asap:protocol/invalid_nonce"
    assert send(url, envelope(), "k") == {"runs": 2}
    assert send(url, envelope()) == {"runs": 3}
    assert runs() == 3


def test_an_invalid_file_or_one_in_use_is_named(world, tmp_path) -> None:
    start, _ = world
    start("trio")
    command = [sys.executable, "-m", "asap_adapters.cli", "serve", "counting:agent", "--port", "0", "--state", "s"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "in use by another process" in done.stderr
    (tmp_path / "other").write_text("not a state file")
    done = subprocess.run(
        [*command[:-1], "other"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert "other: expected a state file" in done.stderr.splitlines()[-1]
