"""`asap serve` where it listens elsewhere than at a port of its own: a UNIX socket, inherited sockets, renewed TLS."""

import contextlib
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.live.command import COMMAND, SECONDS

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="cannot run anywhere here: UNIX sockets"),
]
PUBLIC = ["--public-url", "https://agent.example"]
# Opens a socket as systemd does, and becomes `asap serve`: LISTEN_PID must be the process that serves.
AS_SYSTEMD = """
import os, socket, sys
one = socket.create_server(("127.0.0.1", 0)) if sys.argv[1] == "tcp" else socket.socket(socket.AF_UNIX)
if sys.argv[1] != "tcp":
    one.bind(sys.argv[1])
    one.listen() if sys.argv[2] != "closed" else None
os.dup2(one.fileno(), 3)
os.set_inheritable(3, True)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.executable, [sys.executable, "-m", "asap_adapters.cli", "serve", *sys.argv[3:]])
"""


@pytest.fixture
def start() -> Iterator[Any]:
    """Start a command; returns its first line and its process."""
    running = []

    def run(*command: str, **options: Any) -> tuple[str, subprocess.Popen[str]]:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        running.append(process)
        assert process.stdout is not None
        return process.stdout.readline(), process

    yield run
    for process in running:
        process.kill()
        process.communicate()


def serve(*options: str) -> list[str]:
    return [*COMMAND, "serve", *options]


def health(path: Path) -> int:
    transport = httpx.HTTPTransport(uds=str(path))
    with httpx.Client(transport=transport, base_url="http://agent.example", trust_env=False) as client:
        return client.get("/health").status_code


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_unix_socket_is_for_its_user_and_group_and_goes_with_the_server(start, tmp_path: Path, backend: str) -> None:
    path = tmp_path / "asap.sock"
    line, process = start(*serve("--unix", str(path), *PUBLIC, "--backend", backend))
    assert line == f"urn:asap:agent:echo-agent listens on unix:{path}, reached by https://agent.example\n"
    assert path.stat().st_mode & 0o777 == 0o660
    assert health(path) == 200
    second = subprocess.run(serve("--unix", str(path), *PUBLIC), capture_output=True, text=True, check=False)
    assert (second.returncode, second.stderr) == (1, f"asap: can't listen on {path}: Address already in use\n")
    assert health(path) == 200
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=SECONDS)
    assert (process.returncode, path.exists()) == (0, False)


def test_a_socket_that_a_killed_server_left_is_replaced_and_a_file_is_not(start, tmp_path: Path) -> None:
    path, file = tmp_path / "asap.sock", tmp_path / "file"
    _, killed = start(*serve("--unix", str(path), *PUBLIC))
    killed.kill()
    killed.wait()
    assert path.exists()
    line, _ = start(*serve("--unix", str(path), *PUBLIC))
    assert "listens on" in line
    assert health(path) == 200
    file.write_text("kept")
    refused = subprocess.run(serve("--unix", str(file), *PUBLIC), capture_output=True, text=True, check=False)
    assert (refused.returncode, file.read_text()) == (1, "kept")
    assert "Address already in use" in refused.stderr


def test_the_address_of_a_caller_behind_a_trusted_proxy_on_a_unix_socket(start, tmp_path: Path) -> None:
    path = tmp_path / "asap.sock"
    trust = ["--trusted-proxy", "unix:", "--rate-limit", "2/minute"]
    start(*serve("--unix", str(path), *PUBLIC, *trust))
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://a", trust_env=False) as client:
        post = [
            client.post("/asap", content=b"{", headers={"x-forwarded-for": peer, "content-type": "application/json"})
            for peer in ["192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2"]
        ]
    assert [one.status_code == 429 for one in post] == [False, False, True, False]


@pytest.mark.parametrize("workers", [1, 2])
def test_inherited_sockets_are_served(start, workers: int, tmp_path_factory) -> None:
    more: list[str] = []
    with contextlib.ExitStack() as stack:
        if workers > 1:
            from tests.live.redis_server import server

            more = ["--workers", "2", "--redis", stack.enter_context(server(tmp_path_factory.mktemp("valkey"))).url]
        line, process = start(sys.executable, "-c", AS_SYSTEMD, "tcp", "", *more)
        assert "listen" in line
        url = line.split()[-1]
        assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=SECONDS)
        assert process.returncode == 0


def test_inherited_unix_sockets_need_a_url_and_are_left_in_place(start, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    line, process = start(sys.executable, "-c", AS_SYSTEMD, path, "open", *PUBLIC)
    assert f"unix:{path}" in line
    assert health(Path(path)) == 200
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=SECONDS)
    assert Path(path).exists()  # systemd's


@pytest.mark.parametrize(
    ("how", "options", "says"),
    [
        ("open", [], "a UNIX socket needs --public-url"),
        ("closed", PUBLIC, "expected descriptor 3 to be a listening stream socket"),
        ("open", ["--port", "1234", *PUBLIC], "not several of them"),
    ],
)
def test_what_is_wrong_with_inherited_sockets_is_one_line(tmp_path: Path, how: str, options: list[str], says) -> None:
    command = [sys.executable, "-c", AS_SYSTEMD, str(tmp_path / "s"), how, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode in (1, 2)
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


# --- TLS -------------------------------------------------------------------------------------------------------------


def make(folder: Path, name: str, *options: str) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
         "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}", *options],
        cwd=folder, capture_output=True, check=True,
    )  # fmt: skip


def certified_as(port: int, ca: Path, client: Path | None = None) -> str:
    """The name in the server's certificate, after a request over TLS."""
    context = ssl.create_default_context(cafile=str(ca))
    context.check_hostname = False
    if client is not None:
        context.load_cert_chain(client, client.with_suffix(".key"))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as plain,
        context.wrap_socket(plain, server_hostname="a") as peer,
    ):
        peer.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert peer.recv(65_536).startswith(b"HTTP/1.1 200")
        subject: Any = peer.getpeercert()
        return str(dict(part[0] for part in subject["subject"])["commonName"])


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_renews_the_certificate_and_bad_files_change_nothing(start, tmp_path: Path, workers: int) -> None:
    from tests.live.redis_server import server

    for name in ("old", "new"):
        make(tmp_path, name)
    used, key = tmp_path / "used.pem", tmp_path / "used.key"

    def put(name: str) -> None:
        used.write_bytes((tmp_path / f"{name}.pem").read_bytes())
        key.write_bytes((tmp_path / f"{name}.key").read_bytes())

    put("old")
    with contextlib.ExitStack() as stack:
        more: list[str] = []
        if workers > 1:
            more = ["--workers", str(workers), "--redis", stack.enter_context(server(tmp_path)).url]
        line, process = start(*serve("--port", "0", "--tls-cert", str(used), "--tls-key", str(key), *more))
        port = int(line.split(":")[-1])
        assert certified_as(port, tmp_path / "old.pem") == "old"

        def told(count: int) -> list[str]:
            return [process.stderr.readline() for _ in range(count)]

        told(1)  # who may call
        put("new")
        process.send_signal(signal.SIGHUP)
        lines = told(workers)
        assert ["certificate is read again" in each for each in lines] == [True] * workers, lines
        assert {certified_as(port, tmp_path / "new.pem") for _ in range(8)} == {"new"}
        used.write_text("nothing")
        process.send_signal(signal.SIGHUP)
        assert all("isn't replaced" in each for each in told(workers))
        assert {certified_as(port, tmp_path / "new.pem") for _ in range(8)} == {"new"}
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=SECONDS)
        assert process.returncode == 0


def test_clients_need_a_certificate_of_the_authority(start, tmp_path: Path) -> None:
    for name in ("server", "stranger"):
        make(tmp_path, name)
    make(tmp_path, "friend")
    options = ["--tls-cert", "server.pem", "--tls-key", "server.key", "--client-ca", "friend.pem"]
    line, _ = start(*serve("--port", "0", *options), cwd=tmp_path)
    port = int(line.split(":")[-1])
    for _ in range(3):  # also if a session is resumed
        assert certified_as(port, tmp_path / "server.pem", tmp_path / "friend.pem") == "server"
    for client in (None, tmp_path / "stranger.pem"):
        with pytest.raises((ssl.SSLError, OSError, AssertionError)):
            certified_as(port, tmp_path / "server.pem", client)


def test_asyncio_runs_on_uvloop(start) -> None:
    pytest.importorskip("uvloop", reason="cannot run here: the extra uvloop isn't installed")
    line, process = start(*serve("--port", "0", "--backend", "asyncio", "--uvloop"))
    url = line.split()[-1]
    assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
    maps = Path(f"/proc/{process.pid}/maps")
    if maps.exists():
        assert "uvloop" in maps.read_text()
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=SECONDS)
    assert process.returncode == 0


def test_the_access_log_has_a_line_for_each_response_and_no_secrets(start) -> None:
    line, process = start(*serve("--port", "0", "--access-log", "-vv"))
    url = line.split()[-1]
    with httpx.Client(base_url=url, trust_env=False) as client:
        client.get("/health?token=secret", headers={"authorization": "Bearer secret"})
        client.post("/asap", content=b"{secret", headers={"content-type": "application/json"})
        client.get("/" + "x" * 200)
    with socket.create_connection(("127.0.0.1", int(url.split(":")[-1]))) as peer:
        peer.sendall(b"GET secret\r\n\r\n")
        assert peer.recv(4096).startswith(b"HTTP/1.1 400")
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=SECONDS)
    assert "secret" not in told
    lines = [line.split(" ") for line in told.splitlines() if not line.startswith("asap:")]
    assert [line[1:5] for line in lines] == [
        ["127.0.0.1", "GET", "/health", "200"],
        ["127.0.0.1", "POST", "/asap", "200"],
        ["127.0.0.1", "GET", "/" + "x" * 99, "404"],
        ["127.0.0.1", "-", "-", "400"],
    ]
    for time, *_, size, seconds in lines:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time)
        assert int(size) > 0
        assert re.fullmatch(r"\d+\.\dms", seconds)
