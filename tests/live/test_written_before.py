"""What an earlier version wrote down is read by this one: state files, a registry's copy, a memory in Redis.

The files under `tests/fixtures/written_by_0_1` were written by version 0.1.0 at commit a155450 and never change. The
`.json` beside each says when it was written (`wall`), and what was asked and answered before (`said`).
"""

import base64
import json
import shutil
import time
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from asap_adapters import AgentClient, DiscoveryOptions, HttpOptions, Redis, StateFile, serve
from asap_adapters.system import LoopClock
from asap_core import Agent, Capabilities, Endpoints, Manifest, Policy, Skill, WallTime
from tests.live.redis_server import server
from tests.live.test_stepped_clock import FAKETIME

pytestmark = [pytest.mark.live, pytest.mark.anyio]

WRITTEN = Path(__file__).parent.parent / "fixtures" / "written_by_0_1"


def facts_of(name: str):
    return json.loads((WRITTEN / f"{name}.json").read_text("utf-8"))


class At(LoopClock):
    """A clock whose wall stands still."""

    def __init__(self, wall: float) -> None:
        super().__init__()
        self._wall = WallTime(wall)

    def wall(self) -> WallTime:
        return self._wall


def agent_at(wall: float) -> Agent:
    """The agent that wrote the files, its clock at `wall`."""
    agent = Agent(
        Manifest(
            id="urn:asap:agent:fixture",
            name="Fixture",
            version="1.0.0",
            description="Writes fixtures",
            capabilities=Capabilities(skills=(Skill(id="echo", description="Echo"),)),
            endpoints=Endpoints(asap="http://127.0.0.1:8000/asap"),
        ),
        policy=Policy(hold=0.1),
    )
    ids = (f"id-{number}" for number in range(1_000))
    return agent.bind(clock=At(wall), ids=lambda: next(ids), key=bytes(32), shared_admission=True)


async def never(_request: object, _context: object) -> object:
    raise AssertionError("the work was done already")


async def answers(facts, storage: StateFile | Redis) -> list[tuple[int, Any]]:
    """Start an agent with this storage, ask again what was asked before, and return the answers."""
    async with anyio.create_task_group() as group, httpx.AsyncClient() as http:
        stop = anyio.Event()
        url = await group.start(lambda *, task_status: serve(
            agent_at(facts["wall"] + 1), {"echo": never}, at=("127.0.0.1", 0), storage=storage, stop=stop,
            task_status=task_status,
        ))  # fmt: skip
        told = [await http.post(f"{url}/asap", json=said["request"]) for said in facts["said"]]
        stop.set()
    return [(reply.status_code, reply.json()) for reply in told]


KNOWN, UNKNOWN = "the same answer", "asap:admission/outcome_unknown"


def fates(facts, told: list[tuple[int, Any]]) -> list[str]:
    """The outcome of each repeated call: the code of its refusal, or the earlier answer."""
    found = []
    for before, (_, reply) in zip(facts["said"], told, strict=True):
        if "error" in reply:
            found.append(reply["error"]["data"]["code"])
        else:
            assert payload_of(reply) == payload_of(before["answer"])
            found.append(KNOWN)
    return found


def payload_of(reply):
    return reply["result"]["envelope"]["payload"]


class TestStateFiles:
    async def test_a_file_of_an_orderly_end_gives_all_answers(self, tmp_path: Path) -> None:
        facts, state = facts_of("ended"), tmp_path / "state"
        shutil.copy(WRITTEN / "ended.state", state)
        assert fates(facts, await answers(facts, StateFile(state))) == ["asap:protocol/invalid_nonce", KNOWN]

    async def test_a_file_of_a_kill_lets_nothing_run_twice(self, tmp_path: Path) -> None:
        facts, state = facts_of("killed"), tmp_path / "state"
        shutil.copy(WRITTEN / "killed.state", state)
        accepted, *keyed = fates(facts, await answers(facts, StateFile(state)))
        assert accepted.startswith("asap:")
        assert keyed == [UNKNOWN, UNKNOWN]


async def test_an_old_copy_of_a_registry_is_used(tmp_path: Path) -> None:
    facts = facts_of("copy")
    shutil.copy(WRITTEN / facts["name"], tmp_path)

    async def nobody(_request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("nobody there")

    async with AgentClient(
        sender="urn:asap:agent:me",
        http=HttpOptions(transport=httpx.MockTransport(nobody)),
        discovery=DiscoveryOptions(registry_cache=tmp_path),
        clock=At(facts["wall"] + 3_600),
    ) as client:
        assert [entry.id for entry in await client.find(facts["url"])] == facts["agents"]
        assert client.stands_in(facts["url"]) == pytest.approx(3_600, abs=5)


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime isn't installed (apt-get install faketime)")
async def test_an_old_memory_in_redis_is_used(tmp_path: Path, monkeypatch) -> None:
    facts = facts_of("redis")
    monkeypatch.setenv("LD_PRELOAD", str(FAKETIME))
    monkeypatch.setenv("FAKETIME", f"{facts['wall'] + 1 - time.time():+.3f}")
    monkeypatch.setenv("DONT_FAKE_MONOTONIC", "1")
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    with server(tmp_path) as redis:
        monkeypatch.undo()
        for each in facts["keys"]:
            redis.client().restore(base64.b64decode(each["key"]), 0, base64.b64decode(each["value"]))
        told = await answers(facts, Redis(redis.url))
    # A server with another memory of its own start refuses what's older than it, and still knows all work.
    accepted, *keyed = fates(facts, told)
    assert accepted.startswith("asap:")
    assert keyed == [KNOWN, "asap:admission/still_running"]
