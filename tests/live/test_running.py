"""Programs that `run` runs, and what SIGTERM does to them: in child processes."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import anyio
import anyio.to_thread
import httpx
import pytest

from asap_adapters import run
from asap_adapters.server.running import stop_of_program
from tests.builders import call
from tests.live.command import SECONDS

pytestmark = pytest.mark.live

PROGRAM = """
import os, signal, sys
import anyio
from asap_adapters import run, serve
from asap_adapters.cli.echo_agent import ECHO_ID, echo_manifest
from asap_core import Agent

async def wait(request, context):
    print("begun", flush=True)
    await anyio.sleep(request.input["seconds"])
    return {}

def agent():
    return Agent(echo_manifest(ECHO_ID, "http://127.0.0.1:1"))

async def two_servers(stop=None):
    async with anyio.create_task_group() as group:
        for _ in range(2):
            await group.start(one_server, stop)

async def one_server(stop, *, task_status):
    async with anyio.create_task_group() as group:
        print(await group.start(lambda **given: serve(
            agent(), {"echo": wait}, at=("127.0.0.1", 0), stop=stop, **given)), flush=True)
        task_status.started()

async def ended_as_it_starts():
    async with anyio.create_task_group() as group:
        url = await group.start(lambda **given: serve(agent(), {"echo": wait}, at=("127.0.0.1", 0), **given))
        os.kill(os.getpid(), signal.SIGTERM)
        print(url)
        print(url, flush=True)

async def with_a_stop():
    await two_servers(anyio.Event())

async def with_a_handler():
    signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
    await two_servers()

run(globals()[sys.argv[1]], backend=sys.argv[2])
print("over", flush=True)
"""
Start = Callable[[str], tuple["subprocess.Popen[str]", str]]


@pytest.fixture
def start(anyio_backend_name: str) -> Iterator[Start]:
    running = []

    def begin(main: str) -> tuple["subprocess.Popen[str]", str]:
        command = [sys.executable, "-c", PROGRAM, main, anyio_backend_name]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert process.stdout.readline().startswith("http://"), process.communicate()
        return process, url

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def calling(url: str, seconds: float, statuses: list[int | None]) -> threading.Thread:
    """Call in a thread, and note the answer's status: None if there was none."""
    payload = {"conversation_id": "c", "skill_id": "echo", "input": {"seconds": seconds}}
    changes = {"timestamp": datetime.now(UTC).isoformat(), "payload": payload}

    def post() -> None:
        try:
            statuses.append(httpx.post(f"{url}/asap", json=call(envelope_changes=changes), timeout=SECONDS).status_code)
        except httpx.TransportError:
            statuses.append(None)

    thread = threading.Thread(target=post)
    thread.start()
    return thread


def begun(process: "subprocess.Popen[str]") -> bool:
    assert process.stdout is not None
    return process.stdout.readline() == "begun\n"


def test_sigterm_ends_all_servers_and_running_requests_are_answered(start: Start) -> None:
    process, url = start("two_servers")
    statuses: list[int | None] = []
    thread = calling(url, 1.0, statuses)
    assert begun(process)
    process.send_signal(signal.SIGTERM)
    thread.join(SECONDS)
    assert statuses == [200]
    out, _ = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (0, "over\n")
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_sigterm_ends_a_server_in_order_as_soon_as_it_has_started(start: Start) -> None:
    process, _ = start("ended_as_it_starts")
    out, _ = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (0, "over\n")


def test_a_second_sigterm_ends_the_program_at_once(start: Start) -> None:
    process, url = start("two_servers")
    thread = calling(url, 600.0, [])
    assert begun(process)
    process.send_signal(signal.SIGTERM)
    while True:  # until it no longer accepts: the first signal has arrived
        try:
            httpx.get(f"{url}/ready")
        except httpx.TransportError:
            break
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == -signal.SIGTERM
    thread.join(SECONDS)


@pytest.mark.parametrize(("main", "code"), [("with_a_stop", -signal.SIGTERM), ("with_a_handler", 7)])
def test_a_program_that_stops_by_itself_keeps_sigterm(start: Start, main: str, code: int) -> None:
    process, _ = start(main)
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == code


def test_a_server_in_an_event_loop_of_another_thread_isnt_stopped_by_the_program(anyio_backend_name: str) -> None:
    async def event() -> anyio.Event:
        return stop_of_program()

    async def main() -> tuple[anyio.Event, anyio.Event, anyio.Event]:
        in_thread = await anyio.to_thread.run_sync(lambda: anyio.run(event, backend=anyio_backend_name))
        return await event(), await event(), in_thread

    mine, mine_again, in_thread = run(main, backend=anyio_backend_name)
    assert mine is mine_again
    assert mine is not in_thread
