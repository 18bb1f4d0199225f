"""The planted agent over HTTP: this library's client and commands get along with it, and its command breaks it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from asap_adapters import BlockingClient, RemoteError
from asap_core.testing.planted.agent import PlantedAgent
from asap_core.testing.planted.messages import PlantedOptions
from asap_core.testing.planted.serving import PlantedServer
from tests.live.command import ALICE, SECONDS, asap

pytestmark = pytest.mark.live

ROOT = Path(__file__).parent.parent.parent
BOB = "urn:asap:agent:bob"
TASK = ("task.request", {"skill_id": "echo", "input": {"text": "hello"}})


@pytest.fixture
def url() -> Iterator[str]:
    with PlantedServer(PlantedAgent()) as server:
        server.agent = PlantedAgent(PlantedOptions(url=server.url))
        yield server.url


def test_the_client_discovers_it_and_calls_it(url: str) -> None:
    with BlockingClient(ALICE, auth={url: "token-of-alice"}) as client:
        manifest = client.discover(url)
        assert manifest.id == "urn:asap:agent:planted"
        assert client.discover(url) == manifest
        assert client.health_check(url).status == "healthy"
        first = client.send(manifest, *TASK, idempotency_key="a-key")
        again = client.send(manifest, *TASK, idempotency_key="a-key")
        assert first.payload["result"] == {"text": "hello"}
        assert again.payload == first.payload
        large = {"skill_id": "echo", "input": {"text": "x" * 100_000}}
        assert client.send(manifest, "task.request", large).payload["result"] == large["input"]
        with pytest.raises(RemoteError):
            client.send(manifest, "task.request", {"skill_id": "fail", "input": {}})


def test_the_client_is_refused_without_a_token(url: str) -> None:
    with BlockingClient(ALICE) as client, pytest.raises(RemoteError, match="Authentication required"):
        client.send(url, *TASK)


def test_the_commands_get_along_with_it(url: str) -> None:
    discovered = asap("discover", url)
    assert discovered.returncode == 0, discovered.stderr
    assert "urn:asap:agent:planted" in discovered.stdout
    call = ["--skill", "echo", "--input", '{"text": "hello"}', "--sender", ALICE, "--token", "token-of-alice"]
    sent = asap("send", url, *call)
    assert sent.returncode == 0, sent.stderr
    assert '"text": "hello"' in sent.stdout


def test_its_command_serves_a_broken_agent() -> None:
    command = [sys.executable, "-m", "asap_core.testing.planted", "--port", "0", "--break", "discovery.health_agent_id"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url, named = process.stdout.readline().split()
            assert named == "discovery.health_agent_id"
            with BlockingClient(ALICE) as client:
                assert client.health_check(url).agent_id == "urn:asap:agent:other"
        finally:
            process.terminate()
            process.wait(SECONDS)


def test_asap_conform_says_what_is_wrong_with_the_sloppy_agent() -> None:
    command = [sys.executable, str(ROOT / "docs/examples/sloppy_agent.py"), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            callers = ["--token", "secret", "--as", ALICE, "--other-token", "secret2", "--other-as", BOB]
            tried = asap("conform", url, *callers, "--only", "identity", "--only", "replay", "--json")
        finally:
            process.terminate()
            process.wait(SECONDS)
    assert tried.returncode == 1, tried.stderr
    broken = {each["id"] for each in json.loads(tried.stdout) if each["outcome"] == "failed"}
    assert {"identity.the_sender_is_the_tokens", "replay.same_nonce_other_id"} <= broken


def test_it_needs_only_the_standard_library() -> None:
    code = (
        "import sys; import asap_core.testing.planted.__main__; "
        "print([name for name in sys.modules if name.split('.')[0] in ('attrs', 'attr', 'hypothesis', 'msgspec')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
