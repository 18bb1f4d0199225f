"""Laws that need a hook, on a live agent whose clocks and memory the example's commands change."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.command import ALICE, SECONDS, asap, line_of
from tests.live.test_conform import outcomes, unused_port  # noqa: F401 - a fixture
from tests.live.test_pytest_plugin import run_pytest

pytestmark = pytest.mark.live
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "moved_agent.py"
CALLER = ["--token", "t-alice", "--as", ALICE]
NEED_HOOKS = [
    "replay.nonces_are_kept_for_the_window",
    "replay.a_clock_that_is_set_back",
    "idempotency.answers_are_kept",
    "replay.envelopes_from_before_a_start",
]
ONLY = [word for law in NEED_HOOKS for word in ("--only", law)]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "moved.json"


@pytest.fixture
def url(state: Path, unused_port: int) -> Iterator[str]:  # noqa: F811
    """The example, as its docstring says."""
    command = [sys.executable, str(EXAMPLE), "serve", str(state), str(unused_port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield line_of(process).strip()
        finally:
            process.terminate()
            process.wait(SECONDS)


def hook(state: Path, name: str) -> str:
    return shlex.join([sys.executable, str(EXAMPLE), name, str(state)])


def test_laws_that_need_hooks_are_tried_with_them(url: str, state: Path) -> None:
    hooks = ["--clock-hook", hook(state, "move"), "--reset-hook", hook(state, "restart")]
    shown = asap("conform", url, *CALLER, *ONLY, "--only", "failures", "--failing-skill", "fail", *hooks, "--json")
    found = outcomes(shown)
    assert (found["failed"], found["skipped"], shown.returncode) == ([], [], 0)
    assert found["passed"][-1] == "replay.envelopes_from_before_a_start"  # a start comes last
    assert json.loads(state.read_text())["starts"] == 1
    ran = {each["id"]: [one["hooks"] for one in each["exchanges"]] for each in json.loads(shown.stdout)}
    moved = {"what": "clock: advance 70", "line": f"{hook(state, 'move')} advance 70"}
    assert ran[NEED_HOOKS[0]][:2] == [[], [moved]]
    assert ran[NEED_HOOKS[-1]][-1] == [{"what": "the agent is started again", "line": hook(state, "restart")}]


def test_without_hooks_they_are_skipped_by_name(url: str) -> None:
    shown = asap("conform", url, *CALLER, *ONLY, "--json")
    assert {each["outcome"] for each in json.loads(shown.stdout)} == {"skipped"}
    remarks = {each["id"]: each["remark"] for each in json.loads(shown.stdout)}
    assert "--clock-hook" in remarks[NEED_HOOKS[0]]
    assert "--reset-hook" in remarks[NEED_HOOKS[-1]]


@pytest.mark.parametrize(
    ("command", "remark"),
    [("false", "the hook false failed: it ended with 1"), ("/nosuch", "the hook /nosuch failed: [Errno 2]")],
)
def test_a_hook_that_fails_is_no_verdict(url: str, command: str, remark: str) -> None:
    shown = asap("conform", url, *CALLER, *ONLY, "--clock-hook", command, "--reset-hook", command, "--json")
    found = json.loads(shown.stdout)
    assert {each["outcome"] for each in found} == {"skipped"}
    assert all(each["remark"].startswith(remark) for each in found), found


@pytest.mark.parametrize("command", ["", "'"])
def test_a_hook_is_a_command(command: str) -> None:
    assert asap("conform", "http://127.0.0.1:1", "--clock-hook", command).returncode == 2


def test_in_pytest_a_conftest_defines_them(url: str, state: Path, tmp_path: Path) -> None:
    moved, restarted = shlex.split(hook(state, "move")), shlex.split(hook(state, "restart"))
    (tmp_path / "conftest.py").write_text(
        f"""
import subprocess


def pytest_asap_move_clock(how, seconds):
    subprocess.run([*{moved!r}, how, str(seconds)], check=True)


def pytest_asap_restart():
    subprocess.run({restarted!r}, check=True)
"""
    )
    options = [f"--asap-{word.removeprefix('--')}" if word.startswith("--") else word for word in (*CALLER, *ONLY)]
    run = run_pytest(tmp_path, "--asap-url", url, *options)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{len(NEED_HOOKS)} passed" in run.stdout
