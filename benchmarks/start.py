"""How long `asap serve` takes to its first answer, and its memory when idle: `python -m benchmarks start`.

Processor time is less than the time to the first answer on a quiet machine, and says more on a busy one.
"""

import os
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
# Seconds after the first answer: the server has loaded the rest then, and is idle.
_IDLE: Final = 1.0


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


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(backend: str) -> tuple[float, float, float]:
    """Start a server. Returns milliseconds to its first answer, those of the processor, and megabytes when idle."""
    port = _free_port()
    command = [sys.executable, "-m", "asap_adapters.cli", "serve", "--port", str(port), "--no-mdns"]
    began = time.perf_counter()
    # pip compiles what it installs; here the first start does.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with subprocess.Popen(
        [*command, "--backend", backend], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    ) as server:
        try:
            answer = _first_answer(port, began + _LIMIT)
            taken = (time.perf_counter() - began) * 1000
            worked = _processor_seconds(server.pid) * 1000
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"expected status 200, not {answer[:40]!r}")
            time.sleep(_IDLE)
            resident = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{server.pid}/status").read_text("ascii"))
            return taken, worked, int(resident[1]) / 1024 if resident else float("nan")
        finally:
            server.terminate()


def main() -> None:
    """Print the table."""
    print("asap serve      first answer   processor   resident")
    for backend in ("trio", "asyncio"):
        start(backend)
        times, works, sizes = map(statistics.median, zip(*(start(backend) for _ in range(ROUNDS)), strict=True))
        print(f"{backend:<14}{times:11.0f} ms{works:9.0f} ms{sizes:8.1f} MB")


if __name__ == "__main__":
    main()
