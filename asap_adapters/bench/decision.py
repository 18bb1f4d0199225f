"""From request bytes to `Dispatch`, against the reference's parse, models and validators, in one run."""

import json
import subprocess
import time
from pathlib import Path
from typing import Final

from asap_core import (
    Agent,
    Capabilities,
    Endpoints,
    Envelope,
    Manifest,
    ManualClock,
    Policy,
    ReadBody,
    Request,
    Skill,
    WallTime,
)
from asap_core.admission.replay import StartPolicy
from asap_core.server.call import Dispatch
from asap_core.server.exchange import Fork
from asap_core.wire.codec import encode_envelope

ROUNDS: Final = 2_000
REPEATS: Final = 5
# Requests that are timed together: few enough that one stretch in each run isn't disturbed by other load.
STRETCH: Final = 200
HEAD = Request(method="POST", target="/asap", headers=((b"content-type", b"application/json"),), peer="127.0.0.1")


def agent() -> Agent:
    manifest = Manifest(
        id="urn:asap:agent:echo-agent",
        name="Echo",
        version="1.0.0",
        description="",
        capabilities=Capabilities(skills=(Skill(id="echo", description=""),)),
        endpoints=Endpoints(asap="https://a.example/asap"),
    )
    policy = Policy(
        peer_limits=(), start=StartPolicy.OPEN, nonces_per_sender=10**6, nonce_capacity=2 * 10**6, concurrent=10**6
    )
    made = Agent(manifest, policy=policy)
    return made.bind(clock=ManualClock(wall=time.time()), ids=lambda: "id", key=b"k" * 32)


def body(size: int, number: int, *, key: bool = False) -> bytes:
    """A request of about `size` bytes, as httpx writes it: compact."""
    envelope = Envelope.new(
        sender="urn:asap:agent:alice",
        recipient="urn:asap:agent:echo-agent",
        payload_type="task.request",
        payload={"conversation_id": "c1", "skill_id": "echo", "input": {"text": ""}},
        ids=lambda: f"01HX5K4N{number:018}",
        wall=WallTime(time.time()),
        nonce=f"nonce-{number:020}",
        trace_id="trace-1",
    )
    params: dict[str, object] = {"envelope": encode_envelope(envelope)}
    if key:
        params["idempotency_key"] = f"key-{number:020}"
    document = {"jsonrpc": "2.0", "method": "asap.send", "id": f"req-{number}", "params": params}
    filler = size - len(json.dumps(document, separators=(",", ":")))
    envelope.payload["input"]["text"] = "x" * max(filler, 0)
    return json.dumps(document, separators=(",", ":")).encode()


def to_dispatch(served: Agent, data: bytes) -> None:
    state = served.open(HEAD)
    assert isinstance(state, ReadBody)
    state.feed(data)
    fork = state.end()
    assert isinstance(fork, Fork)
    assert isinstance(fork.calls[0], Dispatch)


def best(bodies: list[bytes]) -> float:
    """Return the least mean time of a stretch, in microseconds."""
    found = float("inf")
    for _ in range(REPEATS):
        served = agent()
        for start in range(0, len(bodies), STRETCH):
            began = time.perf_counter()
            for data in bodies[start : start + STRETCH]:
                to_dispatch(served, data)
            found = min(found, (time.perf_counter() - began) / STRETCH * 1e6)
    return found


def print_table(python: str | None = None) -> None:
    """Measure, and print the table. `python` is an interpreter that has the reference implementation."""
    kinds = {"1 KB": (1_000, False), "1 KB with an idempotency key": (1_000, True), "64 KB": (64_000, False)}
    bodies = [[body(size, number, key=key) for number in range(ROUNDS)] for size, key in kinds.values()]
    ours = dict(zip(kinds, map(best, bodies), strict=True))
    theirs: list[float | None] = [None] * len(kinds)
    if python is not None:
        script = str(Path(__file__).with_name("reference_decision.py"))
        data = json.dumps([[one.hex() for one in several] for several in bodies])
        done = subprocess.run([python, "-W", "ignore", script], input=data, capture_output=True, text=True, check=True)
        theirs = json.loads(done.stdout.splitlines()[-1])
    print("bytes -> decision          ours      reference   ratio")
    for (name, mine), other in zip(ours.items(), theirs, strict=True):
        told = "            -" if other is None else f"{other:8.1f} µs   {other / mine:4.1f}x"
        print(f"{name:<30}{mine:8.1f} µs{told}")
