"""The command, as a user types it: real processes, real ports."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any

import pytest

from asap_adapters.cli import main
from asap_core import MdnsUnavailable

pytestmark = pytest.mark.live

SECONDS = 60
ALICE = "urn:asap:agent:alice"
COMMAND = (sys.executable, "-m", "asap_adapters.cli")


def asap(*arguments, **options):
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=SECONDS, **options
    )


@pytest.fixture(params=["trio", "asyncio"])
def served(request):
    """`asap serve` on a free port, with these options; returns (URL, process)."""
    running = []

    def start(*options, cwd=None):
        process: Any = subprocess.Popen(
            [*COMMAND, "serve", "--port", "0", "--backend", request.param, *options],
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
        process.communicate(timeout=SECONDS)


def test_serves_is_found_answers_and_stops_on_a_signal(served) -> None:
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
    assert process.wait(SECONDS) == 0


def test_a_replay_and_a_forged_sender_are_refused(served) -> None:
    url, _ = served("--token", "t=urn:asap:agent:alice")
    send = ("send", url, "--skill", "echo", "--token", "t", "--sender")
    assert asap(*send, "urn:asap:agent:alice", "--nonce", "n").returncode == 0
    replayed = asap(*send, "urn:asap:agent:alice", "--nonce", "n")
    assert (replayed.returncode, "seen before" in replayed.stderr) == (1, True)
    forged = asap(*send, "urn:asap:agent:mallory")
    assert (forged.returncode, "Sender does not match" in forged.stderr) == (1, True)


def test_the_same_command_under_a_key_has_the_work_done_once(served) -> None:
    url, _ = served("--token", "t=urn:asap:agent:alice")
    send = ("send", url, "--skill", "echo", "--token", "t", "--sender", "urn:asap:agent:alice", "--json")
    first, again, other = (
        json.loads(asap(*send, "--idempotency-key", key).stdout)["payload"]["task_id"] for key in ("k", "k", "l")
    )
    assert first == again != other
    changed = asap(*send, "--idempotency-key", "k", "--input", '{"b": 2}')
    assert (changed.returncode, "Another request" in changed.stderr) == (1, True)


OWN = """
from asap_core import Agent, Capabilities, Endpoints, Manifest, Skill
agent = Agent(Manifest(id="urn:asap:agent:mine", name="Mine", version="1.0.0", description="",
    capabilities=Capabilities(skills=[Skill(id="up", description=""), Skill(id="wait", description="")]),
    endpoints=Endpoints(asap="http://127.0.0.1:1/asap")))

def up(request, context):
    return {"up": request.input["text"].upper()}

def wait(request, context):
    import time
    print("began", flush=True)
    time.sleep(request.input["seconds"])
    return {"waited": True}

handlers = {"up": up, "wait": wait}
"""


@pytest.fixture
def own(served, tmp_path):
    """An agent of one's own, as `served`."""
    (tmp_path / "mine.py").write_text(OWN)
    return lambda *options: served("mine:agent", *options, cwd=tmp_path)


def test_serves_an_agent_of_ones_own_where_it_listens(own) -> None:
    url, _ = own()
    sent = asap("send", url, "--skill", "up", "--input", '{"text": "hi"}', "--expect", "urn:asap:agent:mine")
    assert (sent.returncode, sent.stdout) == (0, 'completed: {"up": "HI"}\n')


def test_options_count_for_an_agent_of_ones_own(own) -> None:
    url, _ = own("--token", f"t={ALICE}", "--max-body", "1000")
    send = ("send", url, "--skill", "up", "--sender", ALICE, "--input")
    refused = asap(*send, '{"text": "hi"}')
    assert (refused.returncode, "give --token" in refused.stderr) == (1, True)
    assert asap(*send, '{"text": "hi"}', "--token", "t").returncode == 0
    large = asap(*send, json.dumps({"text": "x" * 2000}), "--token", "t")
    assert (large.returncode, "413" in large.stderr) == (1, True)


@pytest.mark.parametrize("options", [(), ("--allow-origin", "https://app.example", "--allow-host", "agent.lan")])
def test_web_pages_call_if_they_are_listed(own, options) -> None:
    url, _ = own(*options)

    def status(host: str):
        request = urllib.request.Request(f"{url}/asap", b"{}", {"Origin": "https://app.example", "Host": host})
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as reply:
                return reply.status
        except urllib.error.HTTPError as error:
            return error.code

    assert [status("agent.lan"), status("evil.example")] == [200 if options else 403, 403]


def test_a_public_url_is_published_and_the_real_port_printed(served) -> None:
    public, process = served("--public-url", "https://agent.example/")
    assert public == "https://agent.example"
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 0


def test_what_is_let_in_without_proof_is_said_loudly(served) -> None:
    _, process = served("--profile", "reference", "--nonce", "off")
    process.send_signal(signal.SIGTERM)
    warned = process.communicate(timeout=SECONDS)[1]
    assert ("profile reference" in warned, "replays are accepted" in warned, "without authentication" in warned) == (
        True,
        True,
        True,
    )


def test_serves_over_tls(served, tmp_path) -> None:
    try:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
             "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=localhost",
             "-addext", "subjectAltName=IP:127.0.0.1"],
            check=True, capture_output=True, cwd=tmp_path,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("openssl, which makes the certificate, isn't installed")
    url, process = served("--tls-cert", "cert.pem", "--tls-key", "key.pem", cwd=tmp_path)
    assert url.startswith("https://127.0.0.1:")
    backend = ("--backend", process.args[process.args.index("--backend") + 1])
    untrusted = asap("discover", url, *backend)
    assert (untrusted.returncode, "its certificate isn't trusted: self-signed" in untrusted.stderr) == (1, True)
    sent = asap("send", url, "--skill", "echo", "--ca-file", "cert.pem", *backend, cwd=tmp_path)
    assert (sent.returncode, sent.stdout) == (0, 'completed: {"echoed": {}}\n')


def test_browse_watches_until_interrupted(served) -> None:
    url, process = served("--mdns")
    backend = process.args[process.args.index("--backend") + 1]
    watching: Any = subprocess.Popen(
        [*COMMAND, "browse", "--watch", "--loopback", "--json", "--backend", backend],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while (seen := json.loads(watching.stdout.readline()))["manifest_url"] != f"{url}/.well-known/asap/manifest.json":
        pass
    assert (seen["event"], seen["agent_id"]) == ("added", "urn:asap:agent:echo-agent")
    process.send_signal(signal.SIGTERM)
    while json.loads(watching.stdout.readline())["event"] != "removed":
        pass
    watching.send_signal(signal.SIGINT)
    said = "asap: mDNS: listening on lo; this reaches the local network only\n"
    assert (watching.communicate(timeout=SECONDS)[1], watching.returncode) == (said, 130)


def test_a_reader_that_has_had_enough_is_no_error(served) -> None:
    url, _ = served()
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, "discover", url], stdout=writer, stderr=subprocess.PIPE, check=False, timeout=SECONDS
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_port_that_is_taken_is_named(served) -> None:
    url, _ = served()
    port = url.rsplit(":", 1)[-1]
    taken = asap("serve", "--port", port)
    assert (taken.returncode, port in taken.stderr, taken.stderr.count("\n")) == (1, True, 1)


def test_registry_entry_and_find_fit_together(served, tmp_path) -> None:
    url, _ = served()
    entry = json.loads(asap("registry", "entry", url).stdout)
    file = tmp_path / "registry.json"
    broken = {"version": "1", "updated_at": "2026-01-01T00:00:00Z", "agents": [entry, {"id": 1}]}
    file.write_text(json.dumps(broken))
    found = asap("registry", "find", str(file), "--skill", "echo", "--json")
    assert json.loads(found.stdout) == [entry]
    # As people count.
    assert "entry 2 is skipped: id: expected an agent URN" in found.stderr
    assert asap("registry", "find", str(file), "--skill", "other").returncode == 1
    as_url = asap("registry", "find", file.as_uri())
    assert (as_url.returncode, "where a file will do, its path without file://" in as_url.stderr) == (1, True)


def test_a_registry_that_is_down_is_stood_in_for_by_its_copy(served, tmp_path) -> None:
    url, _ = served()
    entry = json.loads(asap("registry", "entry", url).stdout)
    listed = {"version": "1", "updated_at": "2026-01-01T00:00:00Z", "agents": [entry]}
    (tmp_path / "registry.json").write_text(json.dumps(listed))
    command = [sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1) as server:
        assert server.stdout is not None
        port = server.stdout.readline().split("port ")[1].split()[0]
        there = f"http://127.0.0.1:{port}/registry.json"
        ask = ["resolve", entry["id"], "--registry", there, "--no-mdns", "--explain"]
        cached = [*ask, "--registry-cache", str(tmp_path / "copies")]
        try:
            # Several processes may share the directory.
            started: list[Any] = [
                subprocess.Popen([*COMMAND, *cached], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)
            ]
            for process in started:
                told = process.communicate(timeout=SECONDS)
                assert process.returncode == 0, told
            assert len(list((tmp_path / "copies").iterdir())) == 1
        finally:
            server.kill()
    assert asap(*ask).returncode == 1
    found = asap(*cached)
    told = f"+ {there}: listed, in its last good copy on disk, "
    assert (found.returncode, found.stdout.startswith(told)) == (0, True)
    assert f"no answer from {there}: can't connect" in found.stderr
    assert " s old, serves" in found.stderr
    found = asap("registry", "find", there, "--registry-cache", str(tmp_path / "copies"), "--json")
    assert json.loads(found.stdout) == [entry]


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_resolve_explains_itself(served, tmp_path, backend) -> None:
    url, _ = served()
    entry = json.loads(asap("registry", "entry", url).stdout)
    empty, full = tmp_path / "empty.json", tmp_path / "full.json"
    for file, agents in ((empty, []), (full, [entry])):
        file.write_text(json.dumps({"version": "1", "updated_at": "2026-01-01T00:00:00Z", "agents": agents}))
    where = ("--registry", str(empty), "--registry", str(full), "--no-mdns", "--backend", backend)
    found = asap("resolve", entry["id"], *where, "--explain")
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert lines[0] == f"  {empty}: not listed among 0"
    assert lines[1] == f"+ {full}: listed"
    assert lines[2].startswith("+ ")
    assert lines[2].endswith("the agent wanted")
    assert any(line.split() == ["named", "by", str(full)] for line in lines)
    told = json.loads(asap("resolve", entry["id"], *where, "--explain", "--json").stdout)
    assert (told["found"], told["manifest"]["id"], len(told["asked"])) == (True, entry["id"], 3)
    lacking = asap("resolve", entry["id"], *where, "--require-skill", "fly")
    assert (lacking.returncode, "the skill fly" in lacking.stderr, lacking.stderr.count("\n")) == (1, True, 1)
    nobody = asap("resolve", "urn:asap:agent:nobody", *where, "--explain")
    assert (nobody.returncode, nobody.stderr) == (1, "asap: urn:asap:agent:nobody isn't found\n")
    assert json.loads(asap("resolve", "urn:asap:agent:nobody", *where, "--json").stdout) == {"found": False}
    revoked = tmp_path / "revoked.json"
    revoked.write_text(json.dumps({"version": "1.0", "revoked": [{"urn": entry["id"], "reason": "retired"}]}))
    gone = asap("resolve", entry["id"], *where, "--revocations", str(revoked))
    assert (gone.returncode, f"{revoked}: revoked: retired" in gone.stderr) == (1, True)
    for wrong in (("--require-version", "soon"), ("--wait", "0")):
        assert asap("resolve", entry["id"], *wrong).returncode == 2


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_the_demo_tells_the_whole_story(backend) -> None:
    done = asap("demo", "--backend", backend)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\nok ") == 14
    assert "FAILED" not in done.stdout


def test_the_demo_says_which_step_failed_and_fails(monkeypatch, capsys) -> None:
    def no_multicast(**_):
        raise MdnsUnavailable("mDNS needs multicast, and 127.0.0.1 has none")

    monkeypatch.setattr("asap_adapters.cli.demo.Advertiser", no_multicast)
    assert main(["demo"]) == 1
    out = capsys.readouterr().out
    assert "FAILED  discover by mDNS        mDNS needs multicast" in out
    assert (out.count("\nok "), "FAILED: discover by mDNS, in" in out) == (13, True)


class TestSignals:
    def call(self, url, seconds):
        send = ("send", url, "--skill", "wait", "--input", json.dumps({"seconds": seconds}))
        return subprocess.Popen([*COMMAND, *send], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    @pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
    def test_what_is_in_flight_is_finished(self, own, stop) -> None:
        url, process = own()
        caller = self.call(url, 1)
        assert process.stdout.readline() == "began\n"
        process.send_signal(stop)
        assert caller.communicate(timeout=SECONDS)[0] == 'completed: {"waited": true}\n'
        assert process.wait(SECONDS) == 0

    def test_a_second_one_does_not_wait(self, own) -> None:
        url, process = own()
        caller = self.call(url, 8)
        assert process.stdout.readline() == "began\n"
        process.send_signal(signal.SIGINT)
        for _ in range(50):
            # The first signal closes the port; only then is the second one a second.
            if asap("health", url).returncode != 0:
                break
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=SECONDS)[1]
        assert (process.returncode, "Traceback" in errors) == (130, False)
        assert "Traceback" not in caller.communicate(timeout=SECONDS)[1]
        assert caller.returncode == 1
