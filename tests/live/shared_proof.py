"""The proof that many workers are one: every envelope goes to all of them at once, and is accepted exactly once.

`python -m tests.live.shared_proof` sends 100,000 to four workers on each backend, kills a worker in the middle, then
the server with all that it remembers, and sends what was sent again. It takes minutes; the tests send fewer.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx

from asap_adapters.system import new_id
from asap_core import Envelope, encode_envelope
from asap_core.clock import WallTime
from tests.live.redis_server import Server, server
from tests.live.shared_worker import SKEW

__all__ = ["Proof", "prove"]

WORKERS = 4
BATCH = 25


class Worker:
    """One serving process, which may be killed and restarted."""

    def __init__(self, url: str, backend: str, runs: Path) -> None:
        self.command = [sys.executable, "-m", "tests.live.shared_worker", url, backend, str(runs)]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url, "the worker didn't start"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


class Proof:
    """Workers, their server, and what was sent to them."""

    def __init__(self, folder: Path, redis: Server, backend: str, say: Callable[[str], None]) -> None:
        self.folder, self.redis, self.backend, self.say = folder, redis, backend, say
        self.workers = [Worker(redis.url, backend, folder / f"runs-{number}") for number in range(WORKERS)]
        self.sent: list[list[Any]] = []
        self.accepted: Counter[str] = Counter()
        self.unanswered = 0
        time.sleep(SKEW + 0.5)  # what's dated before the start is refused, and `skew` beyond it

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()

    def runs(self) -> Counter[str]:
        """How often a handler ran for each nonce, as the workers wrote it down."""
        found: Counter[str] = Counter()
        for path in self.folder.glob("runs-*"):
            found.update(path.read_text().split())
        return found

    def batch(self) -> list[Any]:
        """Some new envelopes, as a JSON-RPC batch."""
        return [self._item(number) for number in range(BATCH)]

    def _item(self, number: int):
        nonce = new_id()
        envelope = Envelope.new(
            sender="urn:asap:agent:alice",
            recipient="urn:asap:agent:shop",
            payload_type="task.request",
            payload={"conversation_id": "c", "skill_id": "echo", "input": {"nonce": nonce}},
            ids=new_id,
            wall=WallTime(time.time()),
            nonce=nonce,
        )
        params = {"envelope": encode_envelope(envelope)}
        return {"jsonrpc": "2.0", "method": "asap.send", "id": number, "params": params}

    async def send(self, count: int, *, at: dict[int, Callable[[], None]] | None = None) -> None:
        """Send so many envelopes, each to all workers at once; `at` says what happens when so many are sent."""
        done = 0
        # Two batches on their way at a time: while one is judged, the next is sent.
        limit = anyio.CapacityLimiter(2)
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http, anyio.create_task_group() as group:

            async def one(items: list[Any]) -> None:
                async with limit:
                    await self.to_all(http, items)

            while done < count:
                items = self.batch()
                self.sent.append(items)
                async with limit:
                    group.start_soon(one, items)
                done += BATCH
                for when in [when for when in at or {} if when <= done]:
                    await anyio.to_thread.run_sync((at or {}).pop(when))
                if done % 5_000 < BATCH:
                    self.say(f"{self.backend}: {done} of {count} sent")

    async def send_again(self, batches: list[list[Any]]) -> None:
        """Send what was sent before."""
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
            for items in batches:
                await self.to_all(http, items)

    async def to_all(self, http: httpx.AsyncClient, items: list[Any]) -> None:
        async with anyio.create_task_group() as group:
            for worker in self.workers:
                group.start_soon(self._to_one, http, worker.url, items)

    async def _to_one(self, http: httpx.AsyncClient, url: str, items: list[Any]) -> None:
        try:
            answers = (await http.post(f"{url}/asap", json=items)).json()
        except httpx.TransportError:
            self.unanswered += len(items)
            return
        if not isinstance(answers, list):  # refused as a whole
            return
        for item, answer in zip(items, answers, strict=True):
            if "result" in answer:
                self.accepted[item["params"]["envelope"]["extensions"]["nonce"]] += 1


@contextmanager
def prove(backend: str, say: Callable[[str], None] = lambda _line: None) -> Iterator[Proof]:
    """Start a server and workers in a folder of their own."""
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as redis:
        proof = Proof(Path(folder), redis, backend, say)
        try:
            yield proof
        finally:
            proof.close()


def everything_once(proof: Proof, count: int) -> None:
    """All workers alive: each envelope is accepted by one of them, no more, no less."""
    anyio.run(proof.send, count)
    assert proof.accepted.total() == len(proof.accepted) == count == len(proof.sent) * BATCH
    assert proof.runs() == proof.accepted
    assert proof.unanswered == 0


def a_worker_dies(proof: Proof, count: int) -> None:
    """Kill a worker in the middle and restart it: nothing runs twice."""
    victim = proof.workers[1]
    before = len(proof.accepted)

    async def with_a_death() -> None:
        await proof.send(count, at={count // 3: victim.kill, 2 * count // 3: victim.start})

    anyio.run(with_a_death)
    runs = proof.runs()
    assert max(runs.values()) == 1
    # All but what the dead one had begun and couldn't answer any more.
    assert before + count - 2 * BATCH * WORKERS <= len(proof.accepted) <= before + count


def the_server_dies(proof: Proof, count: int) -> None:
    """With all that it remembered; afterwards everything that was ever sent is sent again."""

    def restart() -> None:
        proof.redis.kill()
        proof.redis.start()

    async def with_a_death() -> None:
        await proof.send(count, at={count // 2: restart})
        proof.say(f"{proof.backend}: sends the last {len(proof.sent[-400:]) * BATCH} again")
        await proof.send_again(proof.sent[-400:])

    anyio.run(with_a_death)
    runs = proof.runs()
    assert max(runs.values()) == 1
    assert max(proof.accepted.values()) == 1
    # And it's of use again.
    time.sleep(SKEW + 0.5)
    before = len(proof.accepted)
    anyio.run(proof.send, 4 * BATCH)
    assert len(proof.accepted) == before + 4 * BATCH


def main() -> None:
    """Prove it at full size, and say so."""
    parser = argparse.ArgumentParser(prog="python -m tests.live.shared_proof", description=__doc__)
    parser.add_argument("--envelopes", type=int, default=100_000, help="how many of them (default: 100000)")
    parser.add_argument("--backend", choices=("trio", "asyncio"), action="append", help="default: both")
    arguments = parser.parse_args()
    for backend in arguments.backend or ("trio", "asyncio"):
        with prove(backend, say=lambda line: print(line, flush=True)) as proof:
            for part in (everything_once, a_worker_dies, the_server_dies):
                began = time.monotonic()
                part(proof, arguments.envelopes if part is everything_once else arguments.envelopes // 10)
                took = time.monotonic() - began
                print(f"{backend}: {part.__name__.replace('_', ' ')}: holds, {took:.0f} s", flush=True)


if __name__ == "__main__":
    main()
