"""`asap serve --workers`: real processes on one port; they're replaced when they die, and end when they're told to."""

import os
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.live.command import COMMAND, SECONDS, asap
from tests.live.redis_server import Server, server

# For plain HTTP. Otherwise httpx reads the system's certificates for each request, which takes 30 ms.
NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

pytestmark = [pytest.mark.live, pytest.mark.skipif(not hasattr(os, "fork"), reason="cannot run anywhere here: fork")]


@pytest.fixture(scope="module")
def redis(tmp_path_factory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("valkey")) as running:
        yield running


@pytest.fixture(params=["trio", "asyncio"])
def start(request, redis: Server) -> Iterator[Any]:
    """Start `asap serve` with three workers; returns (URL, process)."""
    running = []

    def run(*options: str):
        command = [*COMMAND, "serve", "--port", "0", "--workers", "3", "--rate-limit", "off"]
        process = subprocess.Popen(
            [*command, "--redis", redis.url, "--backend", request.param, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("3 workers listen on "), process.stderr and process.stderr.read()
        return line.split()[-1], process

    yield run
    for process in running:
        process.kill()
        process.communicate()


def workers_of(process) -> set[int]:
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=False)
    return set(map(int, done.stdout.split()))


def send(url: str, *options: str):
    return asap("send", url, "--skill", "echo", "--input", "{}", *options)


def eventually(what) -> bool:
    for _ in range(1_200):
        if what():
            return True
        time.sleep(0.05)
    return False


def test_one_worker_accepts_an_envelope_and_a_killed_worker_is_replaced(start) -> None:
    url, process = start()
    before = workers_of(process)
    assert len(before) == 3
    nonce = f"once-{process.pid}"
    assert send(url, "--nonce", nonce).returncode == 0
    for _ in range(3):
        assert "seen before" in send(url, "--nonce", nonce).stderr
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    assert eventually(lambda: len(workers_of(process) - {victim}) == 3)
    assert "seen before" in send(url, "--nonce", nonce).stderr
    assert send(url).returncode == 0
    complaints = ""
    while complaints.count("serves without authentication") < 2:  # the first worker complains, and who replaces it
        complaints += (line := process.stderr.readline())
        assert line, complaints
    process.send_signal(signal.SIGTERM)
    complaints += process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 0
    assert complaints.count("serves without authentication") == 2
    assert complaints.count(f"worker {victim} was ended by signal 9; another takes its place") == 1
    assert "Traceback" not in complaints


def scrape(url: str) -> dict[str, float]:
    # A connection of its own each time: whichever worker takes it.
    answer = httpx.get(f"{url}/asap/metrics", trust_env=False, verify=NO_AUTHORITIES, headers={"connection": "close"})
    lines = [line.split() for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_every_scrape_counts_all_workers_also_after_one_is_killed(start) -> None:
    url, process = start("--metrics")
    accepted, kinds = 'asap_decisions_total{what="accepted"}', 'asap_accepted_total{payload_type="taskrequest"}'
    malformed = 'asap_decisions_total{what="malformed"}'
    assert {scrape(url)[accepted] for _ in range(8)} == {0}
    for number in range(1, 4):
        assert send(url).returncode == 0
        assert {scrape(url)[accepted] for _ in range(8)} == {number}
    for _ in range(20):
        httpx.post(f"{url}/asap", content=b"{", trust_env=False, verify=NO_AUTHORITIES)
    before = scrape(url)
    assert (before[accepted], before[kinds], before[malformed]) == (3, 3, 20)
    for victim in workers_of(process):
        os.kill(victim, signal.SIGKILL)
        assert eventually(lambda gone=victim: len(workers_of(process) - {gone}) == 3)
        for _ in range(4):
            after = scrape(url)
            counted = [name for name in before if name.split("{")[0].endswith("_total")]
            assert [name for name in counted if after[name] != before[name]] == []
            assert after["asap_uptime_seconds"] >= before["asap_uptime_seconds"]
    httpx.post(f"{url}/asap", content=b"{", trust_env=False, verify=NO_AUTHORITIES)
    assert {scrape(url)[malformed] for _ in range(8)} == {21}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_end_when_the_parent_is_signalled(start, number: signal.Signals) -> None:
    url, process = start()
    workers = workers_of(process)
    process.send_signal(number)
    _, complaints = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert not [pid for pid in workers if alive(pid)]
    assert "takes its place" not in complaints
    assert send(url).returncode == 1  # the port is closed


def test_workers_end_when_the_parent_is_killed(start) -> None:
    _, process = start()
    workers = workers_of(process)
    process.kill()
    assert eventually(lambda: not [pid for pid in workers if alive(pid)])


def alive(pid: int) -> bool:
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(done.stdout.strip()) and not done.stdout.strip().startswith("Z")


def test_an_error_of_the_first_worker_is_printed_once_and_ends_all(redis: Server) -> None:
    for options, says in (
        (["--redis", "redis://127.0.0.1:1"], "asap: redis at 127.0.0.1:1: "),
        (["--redis", redis.url, "no.such:agent"], "asap: can't import no.such: "),
    ):
        command = [*COMMAND, "serve", "--port", "0", "--workers", "3", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(says)
        assert done.stderr.count("\n") == 1


def test_a_used_port_is_reported_before_anything_starts(start, redis: Server) -> None:
    url, _ = start()
    port = url.rpartition(":")[2]
    command = [*COMMAND, "serve", "--port", port, "--workers", "2", "--redis", redis.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 1
    assert done.stderr.startswith(f"asap: can't listen on 127.0.0.1, port {port}: ")


def test_the_url_of_redis_may_come_from_a_file(redis: Server, tmp_path) -> None:
    (tmp_path / "url").write_text(f"{redis.url}\n")
    (tmp_path / "wrong").write_text("http://user:opensesame@x\n")
    command = [*COMMAND, "serve", "--port", "0", "--redis-file"]
    process = subprocess.Popen(
        [*command, str(tmp_path / "url")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert " listens on " in process.stdout.readline()
    process.terminate()
    process.communicate(timeout=SECONDS)
    done = subprocess.run([*command, str(tmp_path / "wrong")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "expected one URL such as redis://" in done.stderr
    assert "opensesame" not in done.stderr


@pytest.mark.long
def test_the_benchmark_measures_claims_as_well(redis: Server) -> None:
    command = [*COMMAND, "bench", "admission", "--live", "1000", "--redis", redis.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * SECONDS)
    assert (done.returncode, done.stderr) == (0, "")
    for part in ("1 KB with an idempotency key", "live nonces", "bytes per key", "SET … NX PX", "a claim under a key"):
        assert part in done.stdout
    assert not redis.client().keys("asap:{*bench*")
