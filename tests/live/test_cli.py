"""The command, as a user types it: real processes, real ports."""

import json
import signal
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.live

ENVELOPE_SECONDS = 60


def asap(*arguments: Any, **options: Any) -> Any:
    command = [sys.executable, "-m", "asap_adapters.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=ENVELOPE_SECONDS, **options)


@pytest.fixture(params=["trio", "asyncio"])
def served(request: Any) -> Any:
    """`asap serve` on a free port, with these options; returns (URL, process)."""
    running = []

    def start(*options: Any, cwd: Any = None) -> Any:
        process = subprocess.Popen(
            [sys.executable, "-m", "asap_adapters.cli", "serve", "--port", "0", "--backend", request.param, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
        )
        running.append(process)
        line = process.stdout.readline()
        assert " listens on " in line, process.stderr.read()
        return line.split()[-1], process

    yield start
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=ENVELOPE_SECONDS)


def test_serves_is_found_answers_and_stops_on_a_signal(served: Any) -> None:
    url, process = served("--token", "t=urn:asap:agent:alice")
    card = asap("discover", url)
    assert (card.returncode, "urn:asap:agent:echo-agent" in card.stdout) == (0, True)
    assert json.loads(asap("discover", url, "--json").stdout)["manifest"]["name"] == "Echo Agent"
    assert json.loads(asap("health", url, "--json").stdout)["status"] == "healthy"
    sent = asap(
        "send", url, "--skill", "echo", "--input", '{"a": 1}', "--token", "t", "--sender", "urn:asap:agent:alice"
    )
    assert (sent.returncode, sent.stdout) == (0, 'completed: {"echoed": {"a": 1}}\n')
    process.send_signal(signal.SIGTERM)
    assert process.wait(ENVELOPE_SECONDS) == 0


def test_a_replay_and_a_forged_sender_are_refused(served: Any) -> None:
    url, _ = served("--token", "t=urn:asap:agent:alice")
    send = ("send", url, "--skill", "echo", "--token", "t", "--sender")
    assert asap(*send, "urn:asap:agent:alice", "--nonce", "n").returncode == 0
    replayed = asap(*send, "urn:asap:agent:alice", "--nonce", "n")
    assert (replayed.returncode, "seen before" in replayed.stderr) == (1, True)
    forged = asap(*send, "urn:asap:agent:mallory")
    assert (forged.returncode, "Sender does not match" in forged.stderr) == (1, True)


def test_serves_an_agent_of_ones_own(served: Any, tmp_path: Any) -> None:
    (tmp_path / "mine.py").write_text(
        "from asap_core import *\n"
        "manifest = Manifest(id='urn:asap:agent:mine', name='Mine', version='1.0.0', description='',\n"
        "    capabilities=Capabilities(skills=[Skill(id='up', description='')]),\n"
        "    endpoints=Endpoints(asap='http://127.0.0.1:1/asap'))\n"
        "agent = Agent(manifest)\n"
        "def up(request, context):\n"
        "    return {'up': request.input['text'].upper()}\n"
        "handlers = {'up': up}\n"
    )
    url, _ = served("mine:agent", cwd=tmp_path)
    assert "urn:asap:agent:mine" in asap("discover", url).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("discover", "http://127.0.0.1:1"), 1, "no answer from"),
        (("discover", "http://example.com"), 1, "allow_http"),
        (("discover", "nonsense"), 1, "can't be read as a URL"),
        (("send", "http://127.0.0.1:1", "--skill", "x", "--input", "{"), 2, "--input"),
        (("send", "http://127.0.0.1:1", "--skill", "x", "--input", "[]"), 2, "--input"),
        (("send", "http://127.0.0.1:1", "--skill", "x", "--sender", "me"), 2, "--sender"),
        (("registry", "find", "no-such-file"), 1, "No such file"),
        (("serve", "no.such.module:agent"), 1, "can't import"),
        (("serve", "json:loads"), 1, "asap_core.Agent"),
        (("serve", "json"), 2, "pkg.module:agent"),
        (("serve", "--host", "0.0.0.0"), 2, "--public-url"),
        (("serve", "--host", "192.0.2.1"), 2, "--token"),
        (("serve", "--token", "x"), 2, "TOKEN=URN"),
        (("serve", "--rate-limit", "many", "--port", "0"), 2, "10/second"),
        (("serve", "--id", "me"), 2, "--id"),
        (("serve", "--manifest", "no-such-file", "--port", "0"), 1, "No such file"),
        (("serve", "--tls-cert", "no-such-file", "--port", "0"), 1, "no-such-file"),
        (("serve", "--tls-key", "x"), 2, "--tls-cert"),
        (("serve", "--port", "x"), 2, "from 0 to 65535"),
        (("serve", "--port", "70000"), 2, "from 0 to 65535"),
        (("serve", "--max-body", "0"), 2, "above 0"),
        (("serve", "--host", "127.0.0.1", "--port", "1", "--public-url", "x"), 2, "--public-url"),
        (("browse", "--wait", "x"), 2, "seconds above 0"),
        (("nonsense",), 2, "invalid choice"),
        ((), 2, "COMMAND"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: Any, code: Any, says: Any) -> None:
    done = asap(*arguments)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    if code == 1:
        assert done.stderr.count("\n") == 1


def test_a_port_that_is_taken_is_named(served: Any) -> None:
    url, _ = served()
    port = url.rsplit(":", 1)[-1]
    taken = asap("serve", "--port", port)
    assert (taken.returncode, port in taken.stderr, taken.stderr.count("\n")) == (1, True, 1)


def test_registry_entry_and_find_fit_together(served: Any, tmp_path: Any) -> None:
    url, _ = served()
    entry = json.loads(asap("registry", "entry", url).stdout)
    file = tmp_path / "registry.json"
    broken = {"version": "1", "updated_at": "2026-01-01T00:00:00Z", "agents": [entry, {"id": 1}]}
    file.write_text(json.dumps(broken))
    found = asap("registry", "find", str(file), "--skill", "echo", "--json")
    assert json.loads(found.stdout) == [entry]
    assert "entry 1 is skipped" in found.stderr
    assert asap("registry", "find", str(file), "--skill", "other").returncode == 1


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_the_demo_tells_the_whole_story(backend: Any) -> None:
    done = asap("demo", "--backend", backend)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\nok ") == 11
    assert "FAILED" not in done.stdout


def test_what_is_in_flight_is_finished_on_a_signal(served: Any, tmp_path: Any) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\n"
        "from asap_core import *\n"
        "manifest = Manifest(id='urn:asap:agent:slow', name='Slow', version='1.0.0', description='',\n"
        "    capabilities=Capabilities(skills=[Skill(id='wait', description='')]),\n"
        "    endpoints=Endpoints(asap='http://127.0.0.1:1/asap'))\n"
        "agent = Agent(manifest)\n"
        "def wait(request, context):\n"
        "    print('began', flush=True)\n"
        "    time.sleep(1)\n"
        "    return {'waited': True}\n"
        "handlers = {'wait': wait}\n"
    )
    url, process = served("slow:agent", cwd=tmp_path)
    body = {
        "jsonrpc": "2.0",
        "method": "asap.send",
        "id": 1,
        "params": {
            "envelope": {
                "id": "e",
                "asap_version": "0.1",
                "timestamp": __import__("time").time() + 1,
                "sender": "urn:asap:agent:me",
                "recipient": "urn:asap:agent:slow",
                "payload_type": "task.request",
                "payload": {"conversation_id": "c", "skill_id": "wait", "input": {}},
            }
        },
    }
    client = subprocess.Popen(
        [sys.executable, "-c", _POST, f"{url}/asap", json.dumps(body)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "began\n"
    process.send_signal(signal.SIGINT)
    answer, _ = client.communicate(timeout=ENVELOPE_SECONDS)
    assert '"waited":true' in answer
    assert process.wait(ENVELOPE_SECONDS) == 0


_POST = (
    "import sys, urllib.request as u; print(u.urlopen(u.Request(sys.argv[1], sys.argv[2].encode())).read().decode())"
)
