"""The targets of `python -m tests.fuzz`: seeds keep the invariants, and a short search finds a planted defect."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.fuzz.__main__ import PARTS, ROOT
from tests.fuzz.targets import TARGETS


def test_the_command_offers_every_target() -> None:
    assert list(PARTS) == list(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_keep_the_invariant(name: str) -> None:
    for data in (b"", *TARGETS[name].seeds):
        TARGETS[name].check(data)


@pytest.mark.planted
@pytest.mark.long
@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris isn't here")
@pytest.mark.parametrize("name", TARGETS)
def test_a_short_search_finds_a_planted_defect(name: str, tmp_path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", name, "60", "--planted", "--seed", "1", "--corpus", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert f"{name}: a finding" in done.stdout
    assert done.returncode == 1
    found = list(tmp_path.glob(f"{name}-found-*"))
    assert len(found) == 1
    # Without the defect the same input is all right.
    TARGETS[name].check(found[0].read_bytes())
