"""`pytest --asap-url`: each law is a test; and the fixtures for tests of one's own."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from asap_core.testing.planted.agent import PlantedAgent
from asap_core.testing.planted.messages import PlantedOptions
from asap_core.testing.planted.serving import PlantedServer

pytestmark = pytest.mark.live
PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"


def run_pytest(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in a process of its own, as a user would."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", *arguments]
    return subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def broken_agent() -> Iterator[str]:
    with PlantedServer(PlantedAgent(PlantedOptions(tokens=()), breaks=["replay.accepted"]), port=0) as server:
        yield server.url


def test_each_law_is_a_test_and_a_broken_one_shows_its_report(broken_agent, tmp_path) -> None:
    run = run_pytest(tmp_path, "--asap-url", broken_agent, "-k", "replay")
    assert run.returncode == 1, run.stdout + run.stderr
    assert "asap::replay.nonces_belong_to_their_sender PASSED" in run.stdout
    assert "asap::replay.same_envelope FAILED" in run.stdout
    assert "BROKEN  replay.same_envelope  (must)" in run.stdout
    [summary] = [line for line in run.stdout.splitlines() if line.startswith("FAILED asap::replay.same_envelope")]
    assert "expected the second one is refused" in summary
    assert "\n  NOW=$(date" in run.stdout
    assert "\n  at() {" in run.stdout
    assert "    curl -i" in run.stdout
    assert "Traceback" not in run.stdout


def test_laws_run_beside_tests_of_ones_own(broken_agent, tmp_path) -> None:
    (tmp_path / "test_own.py").write_text("def test_own():\n    pass\n")
    run = run_pytest(tmp_path, "--asap-url", broken_agent, "-k", "own or test_own or identity", "-rs")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "test_own.py::test_own PASSED" in run.stdout
    assert "it needs an agent that authenticates its callers, and a token" in run.stdout


def test_laws_are_chosen_by_id_group_and_feature(broken_agent, tmp_path) -> None:
    chosen = ["--asap-only", "batch", "--asap-only", "jsonrpc.responses", "--asap-except", "batch.sizes"]
    run = run_pytest(tmp_path, "--asap-url", broken_agent, *chosen, "--asap-without", "batch", "-rs")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "asap::jsonrpc.responses PASSED" in run.stdout
    assert "asap::batch.a_batch_of_one SKIPPED" in run.stdout
    assert "batch.sizes" not in run.stdout
    assert "envelope." not in run.stdout


def test_failures_that_are_expected_are_no_failures_and_stale_ones_are(broken_agent, tmp_path) -> None:
    known = tmp_path / "known.txt"
    known.write_text("replay.same_envelope  # since 1.2\n")
    arguments = ["--asap-url", broken_agent, "--asap-only", "replay", "--asap-expected-failures", str(known)]
    assert "replay.same_envelope XFAIL" in run_pytest(tmp_path, *arguments).stdout
    known.write_text("replay.same_envelope\nreplay.nonces_belong_to_their_sender\n")
    run = run_pytest(tmp_path, *arguments)
    assert (run.returncode, "replay.nonces_belong_to_their_sender FAILED" in run.stdout) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--asap-url", "http://127.0.0.1:1", "--asap-expected-failures", "nosuch"], "No such file"),
        (["--asap-url", "nonsense"], "expected a URL"),
        (["--asap-url", "http://192.0.2.1:9"], "--asap-i-own-this-host"),
        (["--asap-url", "http://127.0.0.1:1"], "no manifest of an agent"),
        (["--asap-url", "http://127.0.0.1:1", "--asap-token", "x"], "--asap-token and --asap-as together"),
        (["--asap-url", "http://127.0.0.1:1", "--asap-input", "[]"], "expected a JSON object"),
        (["--asap-url", "http://127.0.0.1:1", "--asap-only", "nosuch"], "no law or group is named nosuch"),
        (["--asap-url", "http://127.0.0.1:1", "--asap-without", "nosuch"], "expected one of batch"),
    ],
)
def test_a_wrong_option_is_one_line(arguments, message, tmp_path) -> None:
    run = run_pytest(tmp_path, *arguments)
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    [line] = [line for line in run.stderr.splitlines() if line.strip()]
    assert message in line


PREAMBLE = """
import pytest
from asap_core import Agent, Capabilities, Endpoints, Manifest, Skill

manifest = Manifest(
    id="urn:asap:agent:doubler", name="Doubler", version="1.0.0", description="Doubles",
    capabilities=Capabilities(skills=[Skill(id="double", description="Twice input.number")]),
    endpoints=Endpoints(asap="http://127.0.0.1:8000/asap"),
)
agent = Agent(manifest)


async def double(request, context):
    return {"doubled": 2 * request.input["number"]}


"""


def test_a_test_of_ones_own_gets_a_client_of_its_agent(tmp_path) -> None:
    example = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)[0]
    (tmp_path / "test_own.py").write_text(PREAMBLE + example)
    run = run_pytest(tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 passed" in run.stdout  # on asyncio and on trio


def test_without_an_agent_the_fixture_says_what_to_write(tmp_path) -> None:
    own = "import pytest\n\n\n@pytest.mark.anyio\nasync def test_x(asap_client):\n    pass\n"
    (tmp_path / "test_own.py").write_text(own)
    run = run_pytest(tmp_path)
    assert run.returncode == 1
    assert "expected a fixture asap_agent of yours" in run.stdout
