"""One caller's failure is that caller's, over real sockets: the server lives on, others get their answers."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asap_adapters import AgentClient, RemoteError, StateFile, TaskFailed, serve
from asap_adapters.cli.echo_agent import ECHO_ID, echo_manifest
from asap_adapters.server.listener import listen
from asap_core import Agent, Capabilities, Policy, Skill, StartPolicy
from asap_core.client.delivery import RetryPolicy

pytestmark = [pytest.mark.anyio, pytest.mark.live]

# Nothing here takes that long, unless it hangs.
SECONDS = 60


class Quiet(TaskFailed):
    """Doesn't call `super().__init__`."""

    def __init__(self) -> None:
        pass


class Unshowable(BaseException):
    def __str__(self) -> str:
        raise SystemExit

    __repr__ = __str__


def group() -> BaseException:
    return BaseExceptionGroup("", [SystemExit(), BaseExceptionGroup("", [GeneratorExit(), ValueError()])])


RAISED = {
    "SystemExit": SystemExit,
    "GeneratorExit": GeneratorExit,
    "group": group,
    "quiet": Quiet,
    "unshowable": Unshowable,
    "cancelled": asyncio.CancelledError,
    "stop iteration": StopIteration,
    "stop async iteration": StopAsyncIteration,
    "recursion": RecursionError,
    "gone": ConnectionResetError,
}


async def cancelled_task(_request, _context):
    """Await a task that is cancelled, without being cancelled itself."""
    work = asyncio.ensure_future(asyncio.sleep(60))
    asyncio.get_running_loop().call_soon(work.cancel)
    await work


def raising(make):
    async def handler(_request, _context):
        raise make()

    return handler


def raising_in_a_thread(make):
    def handler(_request, _context):
        raise make()

    return handler


async def slow(request, _context):
    await anyio.sleep(0.5)
    return {"slept": request.input}


@contextlib.asynccontextmanager
async def serving(handlers, port: int = 0, **options):
    bound = await listen("127.0.0.1", port)
    skills = Capabilities(skills=[Skill(id=name, description="") for name in handlers])
    from attrs import evolve

    manifest = evolve(echo_manifest(ECHO_ID, bound.url), capabilities=skills)
    agent = Agent(manifest, policy=Policy(peer_limits=(), start=StartPolicy.OPEN))
    stop = anyio.Event()
    async with anyio.create_task_group() as tasks:

        async def main(*, task_status) -> None:
            await serve(agent, handlers, at=bound, stop=stop, task_status=task_status, **options)

        await tasks.start(main)
        yield bound.url
        stop.set()


async def refused(client, url: str, skill: str, key=None) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        await client.send(
            url, "task.request", {"skill_id": skill, "input": {}, "conversation_id": "c"}, idempotency_key=key
        )
    return caught.value


async def test_other_calls_are_answered_if_a_handler_raises_anything(anyio_backend_name) -> None:
    bad = {f"{name} async": raising(make) for name, make in RAISED.items()}
    bad |= {f"{name} sync": raising_in_a_thread(make) for name, make in {**RAISED, "ctrl-c": KeyboardInterrupt}.items()}
    if anyio_backend_name == "asyncio":
        bad["a task of its own"] = cancelled_task
    answers: list[Any] = []
    async with (
        serving({**bad, "slow": slow}) as url,
        AgentClient(sender="urn:asap:agent:me", retry=RetryPolicy(retries=0)) as client,
    ):
        manifest = await client.discover(url)

        async def other(number: int) -> None:
            reply = await client.send(manifest, "task.request", {"skill_id": "slow", "input": {"n": number}})
            answers.append(reply.payload["result"]["slept"]["n"])

        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(other, number)
            await anyio.sleep(0.1)
            for name in bad:
                for key in (None, name, name):
                    error = await refused(client, url, name, key)
                    assert (name, error.code, error.status) == (name, -32603, 200)
        assert sorted(answers) == list(range(5))


async def test_a_retry_gets_the_first_answer_also_after_a_restart(tmp_path) -> None:
    kept: dict[str, Any] = {"a": 1}
    runs = []

    async def handler(request, _context):
        runs.append(request.input)
        return kept if request.input else {"odd": {1}}

    async def ask(url: str, key: str, content):
        async with AgentClient(sender="urn:asap:agent:me") as client:
            payload = {"skill_id": "echo", "input": content, "conversation_id": "c"}
            return (await client.send(url, "task.request", payload, idempotency_key=key)).payload["result"]

    port = 0
    for _ in range(2):
        async with serving({"echo": handler}, storage=StateFile(tmp_path / "state"), port=port) as url:
            port = int(url.rpartition(":")[2])
            for _ in range(2):
                assert await ask(url, "k", {"b": 1}) == {"a": 1}
                with pytest.raises(RemoteError) as caught:
                    await ask(url, "odd", {})
                assert caught.value.code == -32603
                kept["a"] = {2}
    assert len(runs) == 2


SCRIPT = """
import sys, time
import anyio
from asap_adapters import serve
from asap_adapters.cli.echo_agent import ECHO_ID, echo_manifest
from asap_core import Agent, Policy, StartPolicy

async def waiting(request, context):
    print("begun", flush=True)
    await anyio.sleep(600)

async def busy(request, context):
    print("begun", flush=True)
    until = time.monotonic() + 600
    while time.monotonic() < until:
        pass

async def shielded_group(request, context):
    async with anyio.create_task_group() as group:
        group.start_soon(waiting, request, context)

async def main():
    from asap_adapters.server.listener import listen
    bound = await listen("127.0.0.1", 0)
    print(bound.port, flush=True)
    policy = Policy(start=StartPolicy.OPEN)
    await serve(Agent(echo_manifest(ECHO_ID, bound.url), policy=policy), {"echo": globals()[sys.argv[2]]}, at=bound)

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.parametrize("handler", ["waiting", "busy", "shielded_group"])
def test_ctrl_c_ends_the_process_while_a_handler_runs(anyio_backend_name, handler) -> None:
    process: Any = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, anyio_backend_name, handler],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        port = int(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(request())
            assert process.stdout.readline() == "begun\n"
            process.send_signal(signal.SIGINT)
            # asyncio's own rule: the first cancels the main task, which waits for the busy one; the second raises. Two
            # that come before the process runs again are one.
            while handler == "busy" and anyio_backend_name == "asyncio" and process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
                process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode != 0
        assert "KeyboardInterrupt" in errors
    finally:
        process.kill()
        process.communicate()


def test_this_suite_passes_if_sigint_is_ignored() -> None:
    """As in the background of a script: `bash -c 'pytest &'`."""
    test = f"{__file__}::test_ctrl_c_ends_the_process_while_a_handler_runs[trio-waiting]"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test],
        capture_output=True, text=True, check=False, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def request() -> bytes:
    from datetime import UTC, datetime

    envelope = {
        "id": "e", "asap_version": "0.1", "timestamp": datetime.now(UTC).isoformat(), "sender": "urn:asap:agent:me",
        "recipient": ECHO_ID, "payload_type": "task.request",
        "payload": {"conversation_id": "c", "skill_id": "echo", "input": {}}, "extensions": {"nonce": "n"},
    }  # fmt: skip
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "asap.send", "params": {"envelope": envelope}}).encode()
    return b"POST /asap HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


class Untraceable(GeneratorExit):
    """Says that it comes from nowhere, as one does that closes a coroutine."""

    @property
    def __traceback__(self) -> None:
        return None

    @__traceback__.setter
    def __traceback__(self, value) -> None: ...


async def cancels_itself(_request, _context):
    asyncio.current_task().cancel()  # type: ignore[union-attr]
    await asyncio.sleep(60)


async def cancels_itself_at_the_end(_request, _context):
    asyncio.current_task().cancel()  # type: ignore[union-attr]
    return {"fine": True}


async def test_a_handler_that_cancels_its_own_task_ends_no_other(anyio_backend_name) -> None:
    handlers: Any = {"slow": slow, "untraceable": raising(Untraceable)}
    if anyio_backend_name == "asyncio":
        handlers |= {"cancels": cancels_itself, "at the end": cancels_itself_at_the_end}
    once = RetryPolicy(retries=0)
    async with serving(handlers) as url, AgentClient(sender="urn:asap:agent:me", retry=once) as client:
        slept = {}

        async def beside() -> None:
            slept.update((await client.send(url, "task.request", {"skill_id": "slow", "input": {"n": 1}})).payload)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(beside)
            await anyio.sleep(0.1)
            for skill in handlers:
                if skill in ("untraceable", "cancels"):
                    for key in (None, skill, skill):
                        assert (await refused(client, url, skill, key)).code == -32603
            if "at the end" in handlers:
                fine = await client.send(url, "task.request", {"skill_id": "at the end", "input": {}})
                assert fine.payload["result"] == {"fine": True}
        assert slept["result"] == {"slept": {"n": 1}}
