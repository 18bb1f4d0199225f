"""A claim in Redis or Valkey against a bare `SET … NX PX` over the same connection, in turns."""

import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import anyio
from coredis.connection import BaseConnection

from asap_adapters.cli.echo_agent import echo_manifest
from asap_adapters.stores.redis import RedisStore
from asap_adapters.system import new_id
from asap_core.admission.admission import AdmissionQuestion, Admitted
from asap_core.admission.policy import Policy
from asap_core.clock import WallTime
from asap_core.server.agent import Agent

ROUNDS: Final = 15
STRETCH: Final = 200
AT_ONCE: Final = 20
_KEEP: Final = b"330000"


def question(nonce: str, key: str | None) -> AdmissionQuestion:
    return AdmissionQuestion(
        sender="urn:asap:agent:alice",
        authenticated=True,
        peer="127.0.0.1",
        nonce=nonce,
        issued=WallTime(time.time()),
        idempotency_key=key,
        digest=b"" if key is None else bytes(16),
        deadline=30.0,
    )


class _Bench:
    """The three kinds of claims, each with a new name."""

    def __init__(self, store: RedisStore, connection: BaseConnection, scope: bytes) -> None:
        self.store, self.connection, self.scope = store, connection, scope
        self.serial = 0

    async def bare(self) -> None:
        self.serial += 1
        name = b"asap-bench:%s:%d" % (self.scope, self.serial)
        await self.connection.create_request(b"SET", name, b"1", b"NX", b"PX", _KEEP)

    async def claim(self) -> None:
        self.serial += 1
        assert isinstance(await self.store.ask(question(f"n{self.serial}", None)), Admitted)

    async def with_key(self) -> None:
        self.serial += 1
        assert isinstance(await self.store.ask(question(f"n{self.serial}", f"k{self.serial}")), Admitted)


async def one_by_one(act: Callable[[], Awaitable[None]], times: int) -> None:
    for _ in range(times):
        await act()


async def at_once(act: Callable[[], Awaitable[None]], times: int) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(AT_ONCE):
            group.start_soon(one_by_one, act, times // AT_ONCE)


_Way: TypeAlias = Callable[[Callable[[], Awaitable[None]], int], Awaitable[None]]
_Times: TypeAlias = dict[tuple[_Way, str], list[float]]
"""Microseconds of each round."""


async def measure(url: str) -> None:
    # An agent with a new name: its keys are deleted afterwards, and those of other agents aren't touched.
    manifest = echo_manifest(f"urn:asap:agent:bench:{new_id().lower()}", "http://127.0.0.1:1")
    agent = Agent(manifest, policy=Policy(start="open"))
    async with RedisStore.open(url, agent, timeout=5.0) as store:
        connection = await store.connection()
        bench = _Bench(store, connection, manifest.id.encode("ascii"))
        acts = {"SET … NX PX": bench.bare, "a claim": bench.claim, "a claim under a key": bench.with_key}
        times: _Times = {(way, name): [] for way in (one_by_one, at_once) for name in acts}
        # In turns, so that other load on the machine affects all of them alike.
        for _ in range(ROUNDS):
            for (way, name), found in times.items():
                began = time.perf_counter()
                await way(acts[name], STRETCH)
                found.append((time.perf_counter() - began) / STRETCH * 1e6)
        await connection.create_request(b"DEL", *store.keys)
    for name in acts:
        print(f"{name:<22}{_cell(times, one_by_one, name)}   {_cell(times, at_once, name)}", flush=True)


def _cell(times: _Times, way: _Way, name: str) -> str:
    pairs = zip(times[way, name], times[way, "SET … NX PX"], strict=True)
    ratio = statistics.median([mine / bare for mine, bare in pairs])
    return f"{statistics.median(times[way, name]):8.0f} µs {ratio:5.2f}x"


def print_table(url: str) -> None:
    """Measure on both backends, and print the table."""
    for backend in ("trio", "asyncio"):
        print(f"Redis, {backend:<13} one after another   {AT_ONCE} at once, each")
        anyio.run(measure, url, backend=backend)
