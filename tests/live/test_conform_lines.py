"""Each failure that `asap conform` reports is reproduced by the lines that it prints, also later."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from asap_core.testing.laws.records import from_json
from asap_core.testing.laws.shell_lines import PREPARE as PREPARED
from asap_core.testing.planted.agent import PlantedAgent
from asap_core.testing.planted.messages import PlantedOptions
from asap_core.testing.planted.serving import PlantedServer
from tests.live.command import ALICE, SECONDS, asap, line_of
from tests.live.repeated_lines import repetitions

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(shutil.which("curl") is None, reason="needs the command curl"),
    pytest.mark.skipif(
        subprocess.run(["date", "-u", "-d", "0 seconds"], capture_output=True, check=False).returncode != 0,
        reason="needs a command date that adds seconds",
    ),
]
CALLERS = [
    *("--token", "token-of-alice", "--as", "urn:asap:agent:alice"),
    *("--other-token", "token-of-bob", "--other-as", "urn:asap:agent:bob", "--direct"),
]
PREPARE, LINE = re.compile(r"  (NOW=|RUN=|at\(\))"), re.compile(r"    .*curl -")


@pytest.mark.parametrize(
    ("switch", "law", "shown"),
    [
        ("replay.accepted", "replay.same_envelope", '"result"'),
        ("time.old", "time.old_envelopes", '"result"'),
        ("json_text.control_character", "json_text.no_control_characters", '"result"'),
        ("compression.case", "compression.names_of_codings", "415"),
        ("http.bare_line_feed", "heads.line_ends", "200 OK"),
        ("http.chunk_end", "bodies.ends_of_chunks", '"result"'),
        ("identity.rebound_page", "identity.rebound_pages", '"result"'),
    ],
)
def test_a_failure_is_reproduced_by_the_lines(switch: str, law: str, shown: str) -> None:
    with PlantedServer(PlantedAgent(breaks=[switch])) as server:
        server.agent = PlantedAgent(PlantedOptions(url=server.url), breaks=[switch])
        report = asap("conform", server.url, *CALLERS, "--only", law).stdout.splitlines()
        assert f"BROKEN  {law}" in "\n".join(report)
        lines = [each.strip() for each in report if PREPARE.match(each) or LINE.match(each)]
        tokens = {"TOKEN": "token-of-alice", "OTHER_TOKEN": "token-of-bob", "PATH": "/usr/bin:/bin"}
        again = subprocess.run(["sh", "-c", "\n".join(lines)], env=tokens, capture_output=True, text=True, check=True)
    assert shown in again.stdout.strip().splitlines()[-1] + again.stdout[again.stdout.rfind("HTTP/1.1 ") :]


def test_what_stands_before_the_lines_keeps_lengths() -> None:
    shown = subprocess.run(
        ["sh", "-c", "\n".join([*PREPARED, "printf %s $RUN; at -310"])], capture_output=True, text=True, check=True
    ).stdout
    assert len(shown) == len("a5yOjcFM") + len("2025-12-31T23:59:50.000001Z\n")


# Its only ids: the agent has seen them in the run.
WITHOUT_FRESH_IDS = {"envelope.types_of_fields", "envelope.ids_are_bounded_and_printable"}
# Laws that send raw bytes wait some seconds each; `python -m tests.live.repeated_lines` takes any report.
SLOW = [word for group in ("connections", "heads", "bodies", "limits", "http") for word in ("--except", group)]


@pytest.mark.long
def test_all_lines_of_the_sloppy_agents_failures_reproduce_the_answers(tmp_path, monkeypatch) -> None:
    """Of most laws: status and shape of the body are those of the report."""
    command = [sys.executable, str(ROOT / "docs/examples/sloppy_agent.py"), "0"]
    callers = ["--token", "secret", "--as", ALICE, "--other-token", "secret2", "--other-as", "urn:asap:agent:bob"]
    monkeypatch.setenv("TOKEN", "secret")
    monkeypatch.setenv("OTHER_TOKEN", "secret2")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            shown = asap("conform", line_of(process).strip(), *callers, *SLOW, "--json")
            found = repetitions(from_json(shown.stdout))
        finally:
            process.terminate()
            process.wait(SECONDS)
    assert len({each.law for each in found}) > 100
    assert {each.law for each in found if not each.is_same} == WITHOUT_FRESH_IDS
