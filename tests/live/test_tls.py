"""TLS connections end with close_notify, and a silent peer doesn't delay it (RFC 9112 §9.8)."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from asap_adapters import TLS, serve
from asap_adapters.cli.echo_agent import ECHO_ID, echo_manifest
from asap_adapters.server import acceptor, connection_limits
from asap_adapters.server.connection_limits import Sweeper
from asap_adapters.server.listener import listen
from asap_core import Agent, Policy, StartPolicy

pytestmark = [pytest.mark.anyio, pytest.mark.live]

GET = b"GET /health HTTP/1.1\r\nHost: a\r\n"
# Nothing here takes that long, unless it hangs.
SECONDS = 60


@pytest.fixture(scope="module")
def cert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
         "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        cwd=folder, capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("openssl, which makes the certificate, isn't installed")
    return folder


@pytest.fixture
def serving(cert: Path):
    """`async with serving(…) as (port, stop)`: our server with TLS and this policy."""

    @asynccontextmanager
    async def run(**policy):
        async def slow(_request, _context):
            await anyio.sleep_forever()

        bound = await listen("127.0.0.1", 0, tls=True)
        fields: Any = {"peer_limits": (), "start": StartPolicy.OPEN, **policy}
        agent = Agent(echo_manifest(ECHO_ID, bound.url), policy=Policy(**fields))
        stop = anyio.Event()
        async with anyio.create_task_group() as group:

            async def main() -> None:
                tls = TLS(cert / "cert.pem", cert / "key.pem")
                await serve(agent, {"echo": slow}, at=bound, tls=tls, stop=stop)

            group.start_soon(main)
            with anyio.fail_after(SECONDS):
                yield bound.port, stop
                stop.set()

    return run


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def client(request, cert: Path):
    """In a thread of its own: connect, send, read to the end, and return how it ended."""
    context = ssl.create_default_context(cafile=str(cert / "cert.pem"))
    context.minimum_version = context.maximum_version = request.param

    def talk(port: int, sent: bytes, then: Callable[[Any], None] = lambda _: None) -> tuple[bytes, str]:
        plain = socket.socket()
        plain.settimeout(SECONDS)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that little goes unread
        plain.connect(("127.0.0.1", port))
        with context.wrap_socket(plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False) as peer:
            peer.sendall(sent)
            received = b""
            try:
                then(peer)
                while data := peer.recv(65_536):
                    received += data
            except ssl.SSLEOFError:
                return received, "cut off"
            except OSError as error:
                return received, type(error).__name__
            return received, "ended"

    async def run(*args) -> tuple[bytes, str]:
        return await anyio.to_thread.run_sync(talk, *args)

    return run


@pytest.fixture
def over(monkeypatch) -> threading.Event:
    """From when it's set, the time for which the server waits goes a thousand times faster."""
    event = threading.Event()
    since: list[float] = []

    def time() -> float:
        now = anyio.current_time()
        if event.is_set() and not since:
            since.append(now)
        return now + 1_000 * (now - since[0]) if since else now

    monkeypatch.setattr(connection_limits, "Sweeper", lambda: Sweeper(time=time))
    return event


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b""),  # it waits for a request in vain
        (GET + b"\r\n", b"200"),  # and for another one
        (b"nonsense", b"408"),
        (b"POST /asap HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n", b"408"),
    ],
)
async def test_a_connection_whose_wait_is_over_gets_close_notify(
    serving, client, over: threading.Event, sent: bytes, status: bytes
) -> None:
    async with serving() as (port, _):
        received, how = await client(port, sent, lambda _: over.set())
    assert (received[9:12], how) == (status, "ended")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (GET + b"Connection: close\r\n\r\n", b"200"),
        (b"\x00", b"400"),
        # Refused while more comes, some of which the server hasn't decrypted when it ends.
        (b"POST /asap HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 50_000, b"413"),
        (GET + b"Connection: close\r\n\r\n" + (GET + b"\r\n") * 20, b"200"),
    ],
)
async def test_a_closed_connection_sends_close_notify(serving, client, sent: bytes, status: bytes) -> None:
    async with serving() as (port, _):
        received, how = await client(port, sent)
    assert (received[9:12], how) == (status, "ended")


@asynccontextmanager
async def connected(client, port: int, sent: bytes):
    """While a client waits for the end; gives the list that will say how it came."""
    ends: list[str] = []
    has_sent = threading.Event()

    def sends(peer) -> None:
        if sent.endswith(b"\r\n\r\n") and b"POST" not in sent:
            peer.recv(1)  # it's answered
        has_sent.set()

    async def one() -> None:
        ends.append((await client(port, sent, sends))[1])

    async with anyio.create_task_group() as group:
        group.start_soon(one)
        await anyio.to_thread.run_sync(has_sent.wait)
        await anyio.sleep(0.3)  # the server has most probably read it; else it reads it after it was told to stop
        yield ends


@pytest.mark.parametrize("sent", [b"", b"POST /a", GET + b"\r\n"])
async def test_a_stopping_server_sends_close_notify(serving, client, sent: bytes) -> None:
    async with serving(drain_incomplete=0.3) as (port, stop):
        async with connected(client, port, sent) as ends:
            stop.set()
        assert ends == ["ended"]


async def test_a_connection_closed_for_another_gets_close_notify(serving, client) -> None:
    async with serving(connections_per_peer=1) as (port, _):
        async with connected(client, port, GET + b"\r\n") as ends:
            assert (await client(port, GET + b"Connection: close\r\n\r\n"))[1] == "ended"
        assert ends == ["ended"]


async def test_a_call_cut_off_at_the_end_of_the_drain_gets_close_notify(serving, client) -> None:
    async with serving(drain=0.3, handler_deadline=0.3) as (port, stop):
        async with connected(client, port, b"POST /asap HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n") as ends:
            stop.set()
        assert ends == ["ended"]


async def test_the_peers_close_notify_is_not_waited_for(serving, client, monkeypatch) -> None:
    monkeypatch.setattr(acceptor, "_GOODBYE_SECONDS", 2 * SECONDS)
    answered, released = threading.Event(), threading.Event()
    after_the_answer: list[bytes] = []

    def silent(peer) -> None:
        """Read the answer. Until the server is gone send no close_notify, and don't close."""
        peer.recv(65_536)
        answered.set()
        after_the_answer.append(peer.recv(1))
        released.wait(2 * SECONDS)

    async with anyio.create_task_group() as group:
        try:
            async with serving(drain=2 * SECONDS) as (port, stop):
                group.start_soon(client, port, GET + b"\r\n", silent)
                await anyio.to_thread.run_sync(answered.wait, SECONDS)
                stop.set()
        finally:
            released.set()
    assert after_the_answer == [b""]


async def test_a_peer_that_reads_nothing_keeps_no_slot(serving, client) -> None:
    """More answers than fit into the kernel's buffers, unread: no close_notify gets through."""
    async with serving(write_timeout=0.3, connections_per_peer=1) as (port, _):
        connected, released = threading.Event(), threading.Event()

        async def served() -> bool:
            """Whether a newcomer is served, and not cut off because its address has no slot left."""
            with suppress(OSError):
                ended: bool = (await client(port, GET + b"Connection: close\r\n\r\n"))[1] == "ended"
                return ended
            return False

        def reads_nothing(peer) -> None:
            connected.set()
            released.wait(SECONDS)
            peer.close()

        many = (GET.replace(b"/health", b"/.well-known/asap/manifest.json") + b"\r\n") * 1000
        async with anyio.create_task_group() as group:
            group.start_soon(client, port, many, reads_nothing)
            await anyio.to_thread.run_sync(connected.wait, SECONDS)
            while not await served():
                pass
            released.set()
