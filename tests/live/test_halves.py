"""A server loads nothing of the client, and a client nothing of the server: in child processes that do their work."""

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import pytest

from tests.builders import call
from tests.live.command import SECONDS

pytestmark = pytest.mark.live

SHOW = "import atexit, sys; atexit.register(lambda: print(*sys.modules, flush=True))\n"
SERVE = SHOW + "from asap_adapters.cli import main; sys.exit(main(['serve', '--port', '0', *sys.argv[1:]]))"
CLIENT = """
import anyio
from asap_adapters import AgentClient
async def main():
    async with AgentClient("urn:asap:agent:alice") as client:
        await client.send(sys.argv[1], "task.request", {"conversation_id": "c", "skill_id": "echo", "input": {}})
anyio.run(main, backend=sys.argv[2])
"""
BLOCKING = """
from asap_adapters import BlockingClient
with BlockingClient("urn:asap:agent:alice") as client:
    client.send(sys.argv[1], "task.request", {"conversation_id": "c", "skill_id": "echo", "input": {}})
"""
CLIENT_HALF = re.compile(
    r"asap_core\.(client|mdns|flights|lru|net\.(outbound|provenance|interfaces|environment_proxies))\b"
    r"|asap_core\.auth\.(?!bearer|principal)|asap_core\.wire\.(registry|signing|revocation|task$)"
    r"|asap_adapters\.(client|blocking|net|mdns|driver|files?|file_effects)\b|asap_adapters\.cli\.(?!serve|failures|c|o|e|a|l|_)"
    r"|(httpx|httpcore|zeroconf|certifi)\b"
)
SERVER_HALF = re.compile(r"(asap_core\.(server|admission)|asap_adapters\.(server|stores)|h11_wire)\b")


def loaded(output: str) -> list[str]:
    return output.splitlines()[-1].split()


@pytest.fixture
def server(anyio_backend: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    command = [sys.executable, "-c", SERVE, "--backend", anyio_backend]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1], process
        process.kill()


def test_a_server_loads_nothing_of_the_client(server, anyio_backend: str) -> None:
    url, process = server
    with httpx.Client(base_url=url) as client:
        assert client.get("/.well-known/asap/manifest.json").status_code == 200
        body = json.dumps(call(envelope_changes={"timestamp": datetime.now(UTC).isoformat()})).encode()
        assert "result" in client.post("/asap", content=body).json()
        # The long ways: h11 reads chunked bodies, cattrs says what is wrong with an envelope.
        assert "error" in client.post("/asap", content=iter([body])).json()
        assert "error" in client.post("/asap", content=json.dumps(call(envelope_changes={"sender": 1})).encode()).json()
    process.send_signal(signal.SIGTERM)
    modules = loaded(process.communicate(timeout=SECONDS)[0])
    assert {"asap_core.server.exchange", "asap_adapters.server.h11_wire", "cattrs"} <= {*modules}
    assert [each for each in modules if CLIENT_HALF.match(each)] == []
    other = {"trio": "asyncio", "asyncio": "trio"}[anyio_backend]
    assert other not in modules


def test_the_command_freezes_what_it_has_loaded(anyio_backend: str) -> None:
    frozen = "import gc; gc.freeze = lambda: print('frozen', flush=True)\n"
    command = [sys.executable, "-c", frozen + SERVE, "--backend", anyio_backend]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        late = threading.Timer(SECONDS, process.kill)
        late.start()
        lines = [process.stdout.readline() for _ in range(2)]
        late.cancel()
        process.kill()
    assert lines[1] == "frozen\n"


@pytest.mark.parametrize("script", [CLIENT, BLOCKING])
def test_a_client_loads_nothing_of_the_server(server, anyio_backend: str, script: str) -> None:
    arguments = [server[0], anyio_backend]
    done = subprocess.run(
        [sys.executable, "-c", SHOW + script, *arguments], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    modules = loaded(done.stdout)
    assert "asap_core.client.client" in modules
    assert [each for each in modules if SERVER_HALF.match(each)] == []
