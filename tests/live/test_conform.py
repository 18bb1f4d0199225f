"""`asap conform` against servers of ours: they keep all laws, and nothing but a loopback address is tested unasked."""

import itertools
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from asap_adapters.conform import sockets
from tests.live.command import ALICE, Serve, asap, backend, served  # noqa: F401

pytestmark = pytest.mark.live
BOB = "urn:asap:agent:bob"


def outcomes(shown) -> dict[str, list[str]]:
    """The ids of the laws, by outcome."""
    found: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    for each in json.loads(shown.stdout):
        found[each["outcome"]].append(each["id"])
    return found


def test_an_agent_with_tokens_keeps_every_law(served: Serve, tmp_path: Path) -> None:  # noqa: F811
    tokens = ["--token", f"t-alice={ALICE}", "--token", f"t-bob={BOB}"]
    url, _ = served("--rate-limit", "off", *tokens)
    callers = ["--token", "t-alice", "--as", ALICE, "--other-token", "t-bob", "--other-as", BOB]
    files = ["--html", str(tmp_path / "page.html"), "--junit", str(tmp_path / "junit.xml")]
    # The limits of 10 s for a head and 30 s for a body have tests of their own.
    slow = ["--except", "connections.slow_heads", "--except", "connections.slow_bodies"]
    shown = asap("conform", url, *callers, "--direct", "--json", *files, *slow)
    found = outcomes(shown)
    laws = sum(map(len, found.values()))
    assert (tmp_path / "page.html").read_text("utf-8").count("<details") == laws
    assert ET.parse(tmp_path / "junit.xml").getroot().get("tests") == str(laws)
    assert (found["failed"], shown.returncode) == ([], 0)
    assert not [law for law in found["skipped"] if law.startswith("compression.")]  # it knows br
    assert len(found["skipped"]) <= len(found["passed"]) / 9, found["skipped"]


def test_an_open_agent_with_rate_limits_keeps_every_law_in_the_profile_reference(served: Serve) -> None:  # noqa: F811
    url, _ = served("--profile", "reference")
    shown = asap("conform", url, "--profile", "reference", "--only", "replay", "--only", "replies", "--json")
    assert (outcomes(shown)["failed"], shown.returncode) == ([], 0)


def test_nothing_is_sent_to_another_machine_unasked() -> None:
    shown = asap("conform", "http://192.0.2.1:9")
    assert (shown.returncode, "--i-own-this-host" in shown.stderr) == (2, True)


def test_without_a_manifest_the_exit_code_is_3(unused_port) -> None:
    assert asap("conform", f"http://127.0.0.1:{unused_port}").returncode == 3


def test_a_token_that_the_agent_refuses_is_named_before_any_law(served: Serve) -> None:  # noqa: F811
    url, _ = served("--token", f"t-alice={ALICE}", "--token", f"t-bob={BOB}")
    callers = ["--token", "t-alice", "--as", ALICE, "--other-token", "t-bop", "--other-as", BOB]
    shown = asap("conform", url, *callers)
    said = f"the agent refuses the token that was given for {BOB} (401)"
    assert (shown.returncode, shown.stdout, said in shown.stderr) == (2, "", True)


# Shows a manifest, and dies of the first call.
_DIES = """
import http.server, json, os

class Agent(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"id": "urn:asap:agent:dies", "capabilities": {"skills": [{"id": "echo"}]}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        os._exit(1)

server = http.server.HTTPServer(("127.0.0.1", 0), Agent)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@pytest.mark.parametrize("command", [["conform", "--only", "replay", "--only", "replies"], ["fuzz", "--seed", "1"]])
def test_an_agent_that_stops_ends_the_run(command: list[str]) -> None:
    with subprocess.Popen([sys.executable, "-c", _DIES], stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        shown = asap(*command[:1], f"http://127.0.0.1:{agent.stdout.readline().strip()}", *command[1:])
    assert "the agent has answered nothing since" in shown.stderr
    assert shown.returncode == 3


def test_an_agent_that_stops_behind_a_socket_that_stays_open_ends_the_run(monkeypatch) -> None:
    """Another process holds the socket, so the system accepts connections, on which nobody answers."""
    monkeypatch.setattr(sockets, "_LONGEST_SILENCE", 0.1)
    manifest = json.dumps({"id": "urn:asap:agent:stops", "capabilities": {"skills": [{"id": "echo"}]}}).encode()

    def show_the_manifest() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(manifest), manifest))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        agent = threading.Thread(target=show_the_manifest)
        agent.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        shown = asap("conform", url, "--direct", "--only", "bodies.bodies_of_other_methods", "--only", "replies")
        agent.join()
    said = "the agent has answered nothing since bodies.bodies_of_other_methods"
    assert (shown.returncode, said in shown.stderr) == (3, True), shown.stderr


class Endless:
    """A connection on which a byte comes whenever one is asked for, so no call of the system ever waits."""

    received = 0

    def settimeout(self, _seconds: float) -> None:
        pass

    def recv(self, _most: int) -> bytes:
        self.received += 1
        assert self.received < 100
        return b"x"


def test_a_peer_that_never_pauses_gets_no_more_time() -> None:
    times = itertools.count()
    connection: Any = Endless()
    talk = sockets._Conversation(connection, 20.0, lambda: float(next(times)), answers=0, methods=())
    talk.run([10.0])
    assert talk.problem == "the time was over"


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_without_a_token_nothing_fails_and_the_user_is_told(served: Serve) -> None:  # noqa: F811
    url, _ = served("--rate-limit", "off", "--token", f"t-alice={ALICE}")
    shown = asap("conform", url, "--only", "replay")
    assert shown.returncode == 1
    assert "without --token and --as no law about calls is tried" in shown.stderr
    assert "no law could be tried" in shown.stderr
    assert asap("fuzz", url).returncode == 2


def test_a_host_that_cannot_be_resolved_is_no_agent() -> None:
    shown = asap("conform", "http://nosuch.invalid:8000")
    assert (shown.returncode, "no agent at http://nosuch.invalid:8000" in shown.stderr) == (3, True)


def test_an_id_that_no_law_has_is_no_expected_failure(tmp_path, unused_port) -> None:
    (tmp_path / "expected.txt").write_text("http.nosuch\n")
    shown = asap("conform", f"http://127.0.0.1:{unused_port}", "--expected-failures", tmp_path / "expected.txt")
    assert (shown.returncode, "no law has the id http.nosuch" in shown.stderr) == (2, True)


def test_a_file_that_cannot_be_used_says_nothing_of_the_agent(
    served: Serve,  # noqa: F811
    tmp_path: Path,
) -> None:
    url, _ = served("--rate-limit", "off")
    for option in ("--expected-failures", "--html", "--junit"):
        shown = asap("conform", url, "--only", "http.head", option, tmp_path / "nowhere" / "file")
        assert (shown.returncode, shown.stderr.endswith("file: No such file or directory\n")) == (2, True)


def test_an_expected_failure_that_is_kept_is_an_error_and_one_that_is_not_tried_is_none(
    served: Serve,  # noqa: F811
    tmp_path: Path,
) -> None:
    url, _ = served("--rate-limit", "off")
    (tmp_path / "expected.txt").write_text("http.one_host  # which needs --direct\n")
    conform = ["conform", url, "--only", "http", "--expected-failures", str(tmp_path / "expected.txt")]
    assert asap(*conform).returncode == 0
    shown = asap(*conform, "--direct")
    assert (shown.returncode, "expected to fail, and didn't: http.one_host" in shown.stderr) == (1, True)
