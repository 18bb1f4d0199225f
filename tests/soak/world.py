"""What the soak runs against: two `asap serve` with workers, one of them with TLS, and a Redis with a log on the disk.

Also what is done to them: workers are killed, Redis is killed and restarted, certificates are renewed.
"""

import contextlib
import math
import os
import re
import signal
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from attrs import define, evolve, field, frozen

from tests.live.command import COMMAND
from tests.live.redis_server import Server, server

ROOT = Path(__file__).parent.parent.parent
# Seconds. A worker ends its requests when it's told to stop, and what was queued takes its turn.
ENDS = 40.0


@frozen
class Outage:
    """From when to when something was killed; `process` of a worker, 0 for Redis. Seconds of the monotonic clock."""

    process: int
    begins: float
    ends: float

    def overlaps(self, begins: float, ends: float) -> bool:
        return self.begins <= ends and begins <= self.ends


@frozen
class Vitals:
    """What a worker holds."""

    resident: float
    descriptors: int


@define
class Served:
    """One `asap serve` and its workers."""

    process: subprocess.Popen[str]
    port: int
    tls: bool
    # A worker that is never killed, to see what a long life does to it.
    survivor: int = 0

    def workers(self) -> list[int]:
        number = self.process.pid
        return [int(each) for each in Path(f"/proc/{number}/task/{number}/children").read_text("ascii").split()]


def vitals_of(process: int) -> Vitals:
    status = Path(f"/proc/{process}/status").read_text("ascii")
    resident = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert resident is not None
    return Vitals(int(resident[1]) / 1024, len(list(Path(f"/proc/{process}/fd").iterdir())))


@define(eq=False)
class World:
    """The servers, and what was done to them."""

    folder: Path
    redis: Server
    served: list[Served] = field(factory=list)
    outages: list[Outage] = field(factory=list)
    renewals: int = 0

    def start(self, backend: str, workers: int, *, tls: bool) -> None:
        options = ["--tls-cert", "used.pem", "--tls-key", "used.key"] if tls else []
        command = [*COMMAND, "serve", "tests.soak.served:agent", "--port", "0", "--redis", self.redis.url]
        with (self.folder / f"stderr-{tls:d}").open("w") as complaints:
            process = subprocess.Popen(
                [*command, "--workers", str(workers), "--backend", backend, *options],
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
                cwd=self.folder,
                env={**os.environ, "SOAK_RUNS": str(self.folder), "PYTHONPATH": str(ROOT)},
            )
        assert process.stdout is not None
        found = re.search(r":(\d+)\s*$", process.stdout.readline())
        assert found is not None, self.complaints()
        one = Served(process, int(found[1]), tls)
        one.survivor = min(one.workers())
        self.served.append(one)

    def complaints(self) -> str:
        """What the servers wrote to stderr."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("stderr-*")))

    # --- what is done to them ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _outage(self, process: int, *, after: float) -> Iterator[None]:
        """An outage while the block runs and `after` seconds longer. It's noted first: callers see it at once."""
        outage = Outage(process, time.monotonic(), math.inf)
        self.outages.append(outage)
        try:
            yield
        finally:
            self.outages[self.outages.index(outage)] = evolve(outage, ends=time.monotonic() + after)

    def kill_a_worker(self, number: int) -> None:
        """Kill one that isn't the survivor, in turns of both servers."""
        one = self.served[number % len(self.served)]
        victims = [each for each in one.workers() if each != one.survivor]
        if victims:
            with self._outage(victims[0], after=1):
                os.kill(victims[0], signal.SIGKILL)

    def restart_redis(self, number: int) -> None:
        """Kill it, and start it again after 0.2, 1.2 or 2.2 s. Blocks for that long."""
        # A call whose second is over has been answered.
        with self._outage(0, after=2):
            self.redis.kill()
            time.sleep(0.2 + number % 3)
            self.redis.start()

    def put_certificate(self, number: int) -> None:
        for suffix in ("pem", "key"):
            (self.folder / f"used.{suffix}").write_bytes((self.folder / f"cert-{number % 2}.{suffix}").read_bytes())

    def renew_certificate(self, number: int) -> None:
        self.renewals += 1
        self.put_certificate(number + 1)
        for one in self.served:
            if one.tls:
                one.process.send_signal(signal.SIGHUP)

    # --- what is left ------------------------------------------------------------------------------------------------

    def runs(self) -> dict[str, list[tuple[str, int, float]]]:
        """All runs of each piece of work: name, process, and when it began."""
        found: dict[str, list[tuple[str, int, float]]] = defaultdict(list)
        for path in self.folder.glob("runs-*"):
            for line in path.read_text().splitlines():
                work, run, process, began = line.split()
                found[work].append((run, int(process), float(began)))
        return found

    def stop(self) -> list[int | None]:
        """End the servers in order; returns their exit codes, None for one that didn't end."""
        for one in self.served:
            one.process.terminate()
        codes: list[int | None] = []
        for one in self.served:
            try:
                codes.append(one.process.wait(ENDS))
            except subprocess.TimeoutExpired:
                codes.append(None)
        return codes


@contextlib.contextmanager
def made(backend: str, *, workers: int) -> Iterator[World]:
    """Start it all in a folder of its own."""
    durable = ("--appendonly", "yes", "--appendfsync", "always")
    with tempfile.TemporaryDirectory() as name, server(Path(name), *durable) as redis:
        folder = Path(name)
        for number in range(2):
            subprocess.run(
                ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                 "-days", "2", "-keyout", f"cert-{number}.key", "-out", f"cert-{number}.pem", "-subj", "/CN=localhost"],
                cwd=folder, capture_output=True, check=True,
            )  # fmt: skip
        world = World(folder, redis)
        world.put_certificate(0)
        try:
            for tls in (False, True):
                world.start(backend, workers, tls=tls)
            yield world
        finally:
            for one in world.served:
                if one.process.poll() is None:
                    one.process.kill()
                assert one.process.stdout is not None
                one.process.stdout.close()
                one.process.wait()
