"""The command, as a user types it: servers in real processes, on real ports."""

import http.server
import json
import os
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from asap_adapters.cli import main
from asap_core import MdnsUnavailable
from tests.live.command import ALICE, COMMAND, SECONDS, Process, Serve, asap, backend, line_of, served, started

__all__ = ["backend", "served"]
pytestmark = pytest.mark.live


def test_serve_runs_an_agent_that_answers_and_stops_on_a_signal(served: Serve) -> None:
    url, process = served("--token", f"t={ALICE}")
    card = asap("discover", url)
    assert (card.returncode, "urn:asap:agent:echo-agent" in card.stdout) == (0, True)
    assert json.loads(asap("discover", url, "--json").stdout)["manifest"]["name"] == "Echo Agent"
    assert json.loads(asap("health", url, "--json").stdout)["status"] == "healthy"
    sent = asap("send", url, "--skill", "echo", "--input", '{"a": 1}', "--token", "t", "--sender", ALICE)
    assert (sent.returncode, sent.stdout) == (0, 'completed: {"echoed": {"a": 1}}\n')
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 0


def test_a_replay_and_a_forged_sender_are_refused(served: Serve) -> None:
    url, _ = served("--token", f"t={ALICE}")
    send = ("send", url, "--skill", "echo", "--token", "t", "--sender")
    assert asap(*send, ALICE, "--nonce", "n").returncode == 0
    replayed = asap(*send, ALICE, "--nonce", "n")
    assert (replayed.returncode, "seen before" in replayed.stderr) == (1, True)
    forged = asap(*send, "urn:asap:agent:mallory")
    assert (forged.returncode, "Sender does not match" in forged.stderr) == (1, True)


def test_the_same_command_under_a_key_has_the_work_done_once(served: Serve) -> None:
    url, _ = served("--token", f"t={ALICE}")
    send = ("send", url, "--skill", "echo", "--token", "t", "--sender", ALICE, "--json")
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
def own(served: Serve, tmp_path: Path) -> Serve:
    """An agent of one's own, as `served`."""
    (tmp_path / "mine.py").write_text(OWN)
    return lambda *options: served("mine:agent", *options, cwd=tmp_path)


def test_serve_runs_an_imported_agent_at_its_address(own: Serve) -> None:
    url, _ = own()
    sent = asap("send", url, "--skill", "up", "--input", '{"text": "hi"}', "--expect", "urn:asap:agent:mine")
    assert (sent.returncode, sent.stdout) == (0, 'completed: {"up": "HI"}\n')


def test_options_apply_to_an_imported_agent(own: Serve) -> None:
    url, _ = own("--token", f"t={ALICE}", "--max-body", "1000")
    send = ("send", url, "--skill", "up", "--sender", ALICE, "--input")
    refused = asap(*send, '{"text": "hi"}')
    assert (refused.returncode, "give --token" in refused.stderr) == (1, True)
    assert asap(*send, '{"text": "hi"}', "--token", "t").returncode == 0
    large = asap(*send, json.dumps({"text": "x" * 2000}), "--token", "t")
    assert (large.returncode, "413" in large.stderr) == (1, True)


@pytest.mark.parametrize("options", [(), ("--allow-origin", "https://app.example", "--allow-host", "agent.lan")])
def test_web_pages_may_call_if_they_are_listed(own: Serve, options: tuple[str, ...]) -> None:
    url, _ = own(*options)

    def status(host: str) -> int:
        request = urllib.request.Request(f"{url}/asap", b"{}", {"Origin": "https://app.example", "Host": host})
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert [status("agent.lan"), status("evil.example")] == [200 if options else 403, 403]


def test_a_public_url_is_published_and_the_real_port_printed(served: Serve) -> None:
    public, process = served("--public-url", "https://agent.example/")
    assert public == "https://agent.example"
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 0


def test_serve_warns_of_everything_that_is_accepted_without_proof(served: Serve) -> None:
    _, process = served("--profile", "reference", "--nonce", "off")
    process.send_signal(signal.SIGTERM)
    warned = process.communicate(timeout=SECONDS)[1]
    assert ("profile reference" in warned, "replays are accepted" in warned, "without authentication" in warned) == (
        True,
        True,
        True,
    )


def test_serve_runs_an_agent_over_tls(served: Serve, tmp_path: Path, backend: str) -> None:
    try:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
             "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=localhost",
             "-addext", "subjectAltName=IP:127.0.0.1"],
            check=True, capture_output=True, cwd=tmp_path,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("openssl, which makes the certificate, isn't installed")
    url, _ = served("--tls-cert", "cert.pem", "--tls-key", "key.pem", cwd=tmp_path)
    assert url.startswith("https://127.0.0.1:")
    untrusted = asap("discover", url, "--backend", backend)
    assert (untrusted.returncode, "its certificate isn't trusted: self-signed" in untrusted.stderr) == (1, True)
    sent = asap("send", url, "--skill", "echo", "--ca-file", tmp_path / "cert.pem", "--backend", backend)
    assert (sent.returncode, sent.stdout) == (0, 'completed: {"echoed": {}}\n')


def test_browse_watches_until_interrupted(served: Serve, backend: str) -> None:
    url, process = served("--mdns")
    watching = started("browse", "--watch", "--loopback", "--json", "--backend", backend)
    while (seen := json.loads(line_of(watching)))["manifest_url"] != f"{url}/.well-known/asap/manifest.json":
        pass
    assert (seen["event"], seen["agent_id"]) == ("added", "urn:asap:agent:echo-agent")
    process.send_signal(signal.SIGTERM)
    while json.loads(line_of(watching))["event"] != "removed":
        pass
    watching.send_signal(signal.SIGINT)
    said = "asap: mDNS: listening on lo; this reaches the local network only\n"
    assert (watching.communicate(timeout=SECONDS)[1], watching.returncode) == (said, 130)


def test_a_closed_standard_output_is_no_error(served: Serve) -> None:
    url, _ = served()
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, "discover", url], stdout=writer, stderr=subprocess.PIPE, check=False, timeout=SECONDS
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_used_port_is_named(served: Serve) -> None:
    url, _ = served()
    port = url.rsplit(":", 1)[-1]
    taken = asap("serve", "--port", port)
    assert (taken.returncode, port in taken.stderr, taken.stderr.count("\n")) == (1, True, 1)


def listed(file: Path, *entries: object) -> Path:
    """Write a registry."""
    file.write_text(json.dumps({"version": "1", "updated_at": "2026-01-01T00:00:00Z", "agents": entries}))
    return file


def test_registry_find_finds_what_registry_entry_writes(served: Serve, tmp_path: Path) -> None:
    url, _ = served()
    entry = json.loads(asap("registry", "entry", url).stdout)
    found = asap("registry", "find", listed(tmp_path / "registry.json", entry), "--skill", "echo", "--json")
    assert json.loads(found.stdout) == [entry]


@pytest.fixture
def file_server(tmp_path: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    """Serves the files of the test; `shutdown` and `server_close` take it down."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(SECONDS)


def test_a_cached_copy_replaces_a_registry_that_is_down(
    served: Serve, tmp_path: Path, file_server: http.server.ThreadingHTTPServer
) -> None:
    url, _ = served()
    entry = json.loads(asap("registry", "entry", url).stdout)
    listed(tmp_path / "registry.json", entry)
    there = f"http://127.0.0.1:{file_server.server_port}/registry.json"
    ask = ("resolve", entry["id"], "--registry", there, "--no-mdns", "--explain")
    cached = (*ask, "--registry-cache", tmp_path / "copies")
    # Several processes may share the directory.
    for process in [started(*cached), started(*cached)]:
        told = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, told
    assert len(list((tmp_path / "copies").iterdir())) == 1
    file_server.shutdown()
    file_server.server_close()
    assert asap(*ask).returncode == 1
    process = started(*cached)
    # A warning of the library is on stderr because no logging is set up; pytest sets it up in this process.
    out, err = process.communicate(timeout=SECONDS)
    shown = f"+ {there}: listed, in its last good copy on disk, "
    assert (process.returncode, out.startswith(shown)) == (0, True)
    assert f"no answer from {there}: can't connect" in err
    assert " s old, serves" in err
    found = asap("registry", "find", there, "--registry-cache", tmp_path / "copies", "--json")
    assert json.loads(found.stdout) == [entry]


def test_resolve_explains_its_steps(served: Serve, tmp_path: Path, backend: str) -> None:
    url, _ = served()
    entry = json.loads(asap("registry", "entry", url).stdout)
    empty, full = listed(tmp_path / "empty.json"), listed(tmp_path / "full.json", entry)
    where = ("--registry", empty, "--registry", full, "--no-mdns", "--backend", backend)
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


def test_the_demo_runs_all_its_steps(backend: str) -> None:
    done = asap("demo", "--backend", backend)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\nok ") == 14
    assert "FAILED" not in done.stdout


def test_the_demo_names_the_step_that_failed_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_multicast(**_: object) -> None:
        raise MdnsUnavailable("mDNS needs multicast, and 127.0.0.1 has none")

    monkeypatch.setattr("asap_adapters.cli.demo.Advertiser", no_multicast)
    assert main(["demo"]) == 1
    out = capsys.readouterr().out
    assert "FAILED  discover by mDNS        mDNS needs multicast" in out
    assert (out.count("\nok "), "FAILED: discover by mDNS, in" in out) == (13, True)


class TestSignals:
    def call(self, url: str, seconds: float) -> Process:
        return started("send", url, "--skill", "wait", "--input", json.dumps({"seconds": seconds}))

    @pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
    def test_running_calls_are_finished(self, own: Serve, stop: signal.Signals) -> None:
        url, process = own()
        caller = self.call(url, 1)
        assert line_of(process) == "began\n"
        process.send_signal(stop)
        assert caller.communicate(timeout=SECONDS)[0] == 'completed: {"waited": true}\n'
        assert process.wait(SECONDS) == 0

    def test_a_second_signal_ends_the_process_at_once(self, own: Serve) -> None:
        url, process = own()
        caller = self.call(url, 25)
        assert line_of(process) == "began\n"
        process.send_signal(signal.SIGINT)
        # The first signal closes the port; only then is the second one a second.
        while asap("health", url).returncode == 0:
            pass
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=SECONDS)[1]
        assert (process.returncode, "Traceback" in errors) == (130, False)
        assert "Traceback" not in caller.communicate(timeout=SECONDS)[1]
        assert caller.returncode == 1
