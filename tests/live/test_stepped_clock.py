"""A whole server whose wall clock steps, under Debian's libfaketime; monotonic time is left alone."""

import email.utils
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from asap_core import Envelope, encode_envelope

FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(FAKETIME is None, reason="libfaketime isn't installed (apt-get install faketime)"),
    pytest.mark.parametrize("backend", ["trio", "asyncio"]),
]

MODULE = """
from asap_adapters.cli.echo_agent import echo_manifest
from asap_core import Agent, Policy
agent = Agent(echo_manifest("urn:asap:agent:echo-agent", "http://127.0.0.1:1"), policy=Policy(**{policy!r}))
runs = 0
async def echo(request, context):
    global runs
    runs += 1
    return {{"runs": runs}}
handlers = {{"echo": echo}}
"""

HOUR, YEAR = 3600.0, 365 * 86_400.0
REPLAYED = "asap:protocol/invalid_nonce"
FLOORED = "asap:admission/restarted"
OUT_OF_WINDOW = "asap:protocol/invalid_timestamp"
LIMITED = "asap:transport/rate_limited"

numbers = count()


@define
class World:
    """A server, and the clock on its wall: the real one, and `offset` seconds."""

    folder: Path
    backend: str
    offset: float = 0.0
    url: str = ""
    process: Any = None
    options: list[str] = field(factory=list)

    def start(self) -> None:
        environment = {
            **os.environ,
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(self.folder / "wall"),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",  # the name up to 0.9.9, and the one since
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "asap_adapters.cli", "serve", "stepped:agent", "--port", "0",
             "--backend", self.backend, *self.options],
            cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        url = re.search(r"http://\S+", self.process.stdout.readline())
        assert url is not None, self.process.stderr.read()
        self.url = url[0]

    def end(self, how: signal.Signals) -> None:
        self.process.send_signal(how)
        self.process.communicate(timeout=30)

    def step(self, offset: float) -> None:
        """Set the wall clock, and see that the server has it: it dates its answers."""
        self.offset = offset
        (self.folder / "new").write_text(f"{offset:+.3f}", "ascii")
        (self.folder / "new").rename(self.folder / "wall")
        if self.process is not None and self.process.poll() is None:
            assert any(abs(self.date() - self.wall()) < 5 for _ in range(10)), "the server has another clock"

    def wall(self) -> float:
        return time.time() + self.offset

    def date(self) -> float:
        with urllib.request.urlopen(f"{self.url}/health", timeout=20) as response:
            return email.utils.parsedate_to_datetime(response.headers["date"]).timestamp()

    def captured(self, *, issued: float | None = None) -> dict[str, Any]:
        """An envelope dated by the server's own wall, unless another date is wanted."""
        number = next(numbers)
        return encode_envelope(
            Envelope.new(
                sender="urn:asap:agent:me", recipient="urn:asap:agent:echo-agent", payload_type="task.request",
                payload={"conversation_id": "c", "skill_id": "echo", "input": {}}, ids=lambda: f"e{number}",
                wall=self.wall() if issued is None else issued, nonce=f"n{number}",  # type: ignore[arg-type]
            )
        )  # fmt: skip

    def send(self, envelope=None, *, key: str | None = None):
        """How it's answered: by which run of the handler, or which refusal."""
        params = {"envelope": envelope or self.captured(), **({"idempotency_key": key} if key else {})}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "asap.send", "params": params}).encode()
        request = urllib.request.Request(f"{self.url}/asap", body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            answer = json.load(error)
        if "error" in answer:
            return answer["error"]["data"]["code"]
        return answer["result"]["envelope"]["payload"]["result"]["runs"]

    # A short window may pass while a slow machine carries an envelope: then it's the next one's turn.

    def accepted(self) -> tuple[float, dict[str, Any]]:
        """An envelope that was accepted, and when it was issued."""
        for _ in range(10):
            issued = self.wall()
            captured = self.captured(issued=issued)
            answer = self.send(captured)
            if answer != OUT_OF_WINDOW:
                assert isinstance(answer, int), answer
                return issued, captured
        raise AssertionError("never within its window")

    def refusal_at(self, wall: float, captured: dict[str, Any]):
        """How a captured envelope is refused while the wall says this, which is within its window."""
        answer = OUT_OF_WINDOW
        for _ in range(10):
            self.step(wall - time.time())
            answer = self.send(captured)
            if answer != OUT_OF_WINDOW:
                break
        return answer


@pytest.fixture
def world(tmp_path, backend):
    made: list[World] = []

    def make(*options: str, **policy) -> World:
        policy = {"peer_limits": "", **policy}
        (tmp_path / "stepped.py").write_text(MODULE.format(policy=policy), "utf-8")
        one = World(tmp_path, backend, options=list(options))
        one.step(0)
        made.append(one)
        one.start()
        one.step(0)
        return one

    yield make
    for one in made:
        one.process.kill()
        one.process.communicate()


def test_a_captured_envelope_is_never_accepted_again(world) -> None:
    here = world()
    captured = here.captured()
    assert here.send(captured) == 1
    assert here.send(captured) == REPLAYED
    for offset in (-HOUR, HOUR, -HOUR, YEAR, -YEAR):
        here.step(offset)
        assert here.send(captured) == OUT_OF_WINDOW
        here.step(0)
        assert here.send(captured) == REPLAYED
    for seconds in range(-30, 300, 30):  # all over the window
        here.step(seconds)
        assert here.send(captured) == REPLAYED


def test_honest_callers_are_served_after_a_step_forward_and_after_a_step_back_again(world) -> None:
    here = world()
    for run, offset in enumerate((0, HOUR, YEAR, HOUR, 0), start=1):
        here.step(offset)
        assert here.send() == run


def test_after_a_step_back_before_the_start_callers_wait_for_the_time_of_the_start(world) -> None:
    """`Policy.start` refuses envelopes dated before the start, since they may have been accepted before it."""
    here = world()
    assert here.send() == 1
    here.step(-HOUR)
    assert here.send() == FLOORED
    here.step(0)
    assert here.send() == 2


def test_with_an_open_start_a_step_back_refuses_no_honest_caller(world) -> None:
    here = world(start="open")
    captured = here.captured()
    assert here.send(captured) == 1
    here.step(-HOUR)
    assert here.send() == 2
    assert here.send(captured) == OUT_OF_WINDOW


def test_answers_are_kept_by_monotonic_time(world) -> None:
    here = world()
    assert here.send(key="k") == 1
    for offset in (YEAR, HOUR):
        here.step(offset)
        assert here.send(key="k") == 1


def test_limits_are_not_reset_by_a_step_of_the_wall_clock(world) -> None:
    here = world("--rate-limit", "5/day")
    assert [here.send() for _ in range(6)] == [1, 2, 3, 4, 5, LIMITED]
    for offset in (YEAR, -YEAR):
        here.step(offset)
        assert here.send() == LIMITED


def test_uptime_is_measured_by_monotonic_time(world) -> None:
    here, began = world(), time.monotonic()
    for offset in (YEAR, -HOUR):
        here.step(offset)
        with urllib.request.urlopen(f"{here.url}/.well-known/asap/health", timeout=20) as response:
            assert 0 <= json.load(response)["uptime_seconds"] <= time.monotonic() - began + 60


SHORT = {"max_age": 3.0, "skew": 0.5}
REMEMBERED = 4.0
"""Seconds of the real clock: longer than such a window, back and ahead."""


def test_a_forgotten_nonce_is_refused_by_the_floor(world) -> None:
    here = world(**SHORT)
    issued, captured = here.accepted()
    time.sleep(REMEMBERED)
    for _ in range(3):  # the nonce is forgotten on the way
        here.accepted()
    for age in (0.0, 0.5, 1.0):
        assert here.refusal_at(issued + age, captured) == FLOORED
    here.step(0)
    here.accepted()


def test_a_nonce_dated_ahead_of_the_clock_is_not_forgotten(world) -> None:
    here = world(**SHORT, start="open")
    issued, captured = here.accepted()
    here.step(-HOUR)
    time.sleep(REMEMBERED)
    # Nobody is locked out for the hour: what is dated ahead is held back, and no floor rises to it.
    for _ in range(3):
        here.accepted()
    assert here.refusal_at(issued + 0.5, captured) == REPLAYED


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("offset", [-HOUR, HOUR])
def test_with_a_state_file_a_forgotten_nonce_is_refused_after_a_restart(world, how, offset: float) -> None:
    here = world("--state", "state")
    captured = here.captured()
    assert here.send(captured) == 1
    here.end(how)
    here.step(offset)
    here.start()
    assert here.send(captured) == OUT_OF_WINDOW
    here.step(0)
    assert here.send(captured) == (REPLAYED if how is signal.SIGTERM else FLOORED)
    here.step(20)  # past the lease of a crash
    assert here.send() == 1  # the first run of this process
    assert here.send(captured) in (REPLAYED, FLOORED)
