"""How long `asap serve` takes from its start to its first answer, and its memory then: `python -m benchmarks start`."""

import re
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

__all__ = ["main"]

ROUNDS: Final = 7
_GET: Final = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
_LIMIT: Final = 20.0
# Seconds between two attempts to connect, so the figures are this coarse.
_ATTEMPT: Final = 0.005


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _first_answer(port: int, until: float) -> bytes:
    while time.perf_counter() < until:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=_LIMIT) as connection:
                connection.sendall(_GET)
                return connection.recv(65_536)
        except ConnectionRefusedError:
            time.sleep(_ATTEMPT)
    raise TimeoutError("the server hasn't answered")


def start(backend: str) -> tuple[float, float]:
    """Start a server once. Returns the milliseconds to its first answer, and its resident megabytes after it."""
    port = _free_port()
    command = [sys.executable, "-m", "asap_adapters.cli", "serve", "--port", str(port), "--no-mdns"]
    began = time.perf_counter()
    with subprocess.Popen(
        [*command, "--backend", backend], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            answer = _first_answer(port, began + _LIMIT)
            taken = (time.perf_counter() - began) * 1000
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"expected status 200, not {answer[:40]!r}")
            resident = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{server.pid}/status").read_text("ascii"))
            return taken, int(resident[1]) / 1024 if resident else float("nan")
        finally:
            server.terminate()


def main() -> None:
    """Print the table."""
    print("asap serve      first answer   resident")
    for backend in ("trio", "asyncio"):
        times, sizes = zip(*(start(backend) for _ in range(ROUNDS)), strict=True)
        print(f"{backend:<14}{statistics.median(times):10.0f} ms{statistics.median(sizes):8.1f} MB")


if __name__ == "__main__":
    main()
