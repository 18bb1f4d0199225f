"""`asap fuzz`: finds nothing in our agent, and shrinks what it finds in a broken one to a test that fails."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from asap_core.testing.planted.agent import PlantedAgent
from asap_core.testing.planted.messages import PlantedOptions
from asap_core.testing.planted.serving import PlantedServer
from tests.live.command import ALICE, Serve, asap, backend, served  # noqa: F401

pytestmark = pytest.mark.live
BOB = "urn:asap:agent:bob"
README = Path(__file__).parents[2] / "README.md"


def test_nothing_is_found_in_an_agent_of_ours(served: Serve) -> None:  # noqa: F811
    url, _ = served("--rate-limit", "off", "--token", f"t-alice={ALICE}", "--token", f"t-bob={BOB}")
    callers = ["--token", "t-alice", "--as", ALICE, "--other-token", "t-bob", "--other-as", BOB]
    shown = asap("fuzz", url, *callers, "--sequences", "40", "--seed", "1")
    assert shown.returncode == 0, shown.stdout
    assert "nothing found" in shown.stdout
    assert "\n40 sequences, " in shown.stdout
    moves = {line[:24].strip() for line in shown.stdout.splitlines()}
    assert {"honest call", "same again", "key again", "no token", "forged sender", "batch", "any body"} <= moves


@pytest.mark.parametrize(
    ("switch", "line"),
    [
        ("replay.accepted", "envelope1)"),
        ("replay.same_nonce_other_id", 'asap_lab.envelope(extensions=envelope1["extensions"])'),
        ("envelope.unknown_keys", "{'x_unknown': 1}"),
    ],
)
def test_what_is_found_is_the_shortest_sequence_and_a_test(switch, line, tmp_path) -> None:
    with PlantedServer(PlantedAgent(PlantedOptions(tokens=()), breaks=[switch]), port=0) as server:
        test = tmp_path / "test_found.py"
        shown = asap("fuzz", server.url, "--seed", "2", "--test", test)
        assert shown.returncode == 1, shown.stdout
        assert line in test.read_text()
        assert len(test.read_text().split("asap_fuzz(asap_lab, asap_run):\n")[1].splitlines()) <= 5
        assert shown.stdout.count("    curl -i") <= 2
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "found_by", "--asap-url", server.url]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert "1 failed" in run.stdout, run.stdout
        assert "\n  exchange 1: " in run.stdout
        assert "← this one" in run.stdout
        assert "checks.py" not in run.stdout
        assert re.search(r"\n  test_found\.py:\d+: ", run.stdout)
    with PlantedServer(PlantedAgent(PlantedOptions(tokens=())), port=0) as correct:
        command[-1] = correct.url
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert run.returncode == 0, run.stdout


def test_one_seed_draws_the_same_sequences() -> None:
    shown = []
    for _ in range(2):
        with PlantedServer(PlantedAgent(PlantedOptions(tokens=())), port=0) as server:
            text = asap("fuzz", server.url, "--seed", "7", "--sequences", "10").stdout
            shown.append(text.replace(server.url, ""))
    assert shown[0] == shown[1]


@pytest.mark.parametrize("backend", ["trio"])  # the laws are kept on both: test_conform.py
def test_the_commands_of_the_readme_work_as_written(served: Serve) -> None:  # noqa: F811
    url, _ = served("--rate-limit", "off")
    section = README.read_text("utf-8").split("## An implementation of your own")[1]
    lines = section.split("```sh\n")[1].split("```")[0].replace("http://127.0.0.1:8000", url).splitlines()
    commands = [line.partition("#")[0].split() for line in lines]
    assert [words[:2] for words in commands[:2]] == [["asap", "conform"], ["asap", "fuzz"]]
    for words in commands[:2]:
        shown = asap(*words[1:])
        assert shown.returncode == 0, shown.stdout
