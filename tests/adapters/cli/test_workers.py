"""Workers that die are replaced, each time later; a place that never lasts ends them all, and says so."""

import os
import subprocess
import sys

import pytest

from asap_adapters.cli.workers import _Place

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="cannot run anywhere here: fork")
# Worker 0 serves until it's told to end; worker 1 dies a moment after each start.
SUPERVISED = """
import os, signal, time
from asap_adapters.cli import workers
workers._PAUSE = 0.01

def run(place):
    place.ready()
    if place.number == 0:
        signal.pause()
    time.sleep(0.01)
    return 7

raise SystemExit(workers.supervise([], 2, run, lambda: print("started", flush=True)))
"""


def test_the_pause_before_the_next_start_doubles_until_a_worker_lasts() -> None:
    place = _Place(started=100.0)
    assert [place.died(101.0) for _ in range(6)] == [0, 1, 2, 4, 8, 16]
    place.started = 200.0
    assert (place.died(260.0), place.deaths) == (0, 1)


def test_a_worker_that_never_lasts_ends_all_with_an_error() -> None:
    done = subprocess.run([sys.executable, "-c", SUPERVISED], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "started\n")
    lines = done.stderr.splitlines()
    assert len(lines) == 6
    assert lines[0].endswith("ended with exit code 7; another takes its place")
    assert lines[1].endswith("another takes its place in 0.01 s")
    assert lines[5].endswith("ended with exit code 7, the 6th in a row within 60 s of its start: giving up")
