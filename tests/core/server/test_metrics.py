"""Counters in memory that processes share: each process shows the sum of all, and no counter decreases."""

import pytest

from asap_core import (
    Agent,
    WallTime,
)
from asap_core.server.events import Decision, What
from asap_core.server.metrics import Counters, counters_size
from tests.builders import bound, call, manifest
from tests.core.server.exchanges import finish, head, post, serve


def shown(counters: Counters, **now) -> dict[str, float]:
    text = counters.text(**{"active": 0, "uptime": 0.0, **now}).decode()
    return {name: float(value) for line in text.splitlines() if line[0] != "#" for name, value in [line.split()]}


def accepted(kind: str | None = "taskrequest") -> Decision:
    return Decision(what=What.ACCEPTED, peer="", payload_type=kind)


class World:
    """Some processes, each with its row; one that dies leaves its row to the next."""

    def __init__(self, processes: int) -> None:
        self.memory = bytearray(counters_size(processes))
        self.processes = [self.started(row) for row in range(processes)]

    def started(self, row: int) -> Counters:
        return Counters(self.memory, row=row)


def test_each_process_shows_the_sum_of_all() -> None:
    world = World(3)
    for number, counters in enumerate(world.processes):
        for _ in range(number + 1):
            counters(accepted())
        counters(accepted(f"own{number}"))
        counters(Decision(what=What.LIMITED, peer=""))
    for counters in world.processes:
        told = shown(counters)
        assert counters[What.ACCEPTED] == told['asap_decisions_total{what="accepted"}'] == 9
        assert told['asap_decisions_total{what="limited"}'] == 3
        assert told['asap_decisions_total{what="stale"}'] == 0
        assert told['asap_accepted_total{payload_type="taskrequest"}'] == 6
        assert [told[f'asap_accepted_total{{payload_type="own{number}"}}'] for number in range(3)] == [1, 1, 1]


def test_a_replaced_process_continues_the_row_of_its_predecessor() -> None:
    world = World(2)
    first, other = world.processes
    first(accepted())
    first(accepted("x.first"))
    first.set_now(active=5, observer_failures=2)
    assert shown(other)["asap_handlers_active"] == 5
    before = shown(other)
    again = world.started(0)
    after = shown(other)
    assert {name for name in before if after[name] < before[name]} == {"asap_handlers_active"}
    assert (after["asap_handlers_active"], after["asap_observer_failures_total"]) == (0, 2)
    again(accepted("x.second"))
    again(accepted("x.first"))
    again.set_now(active=1, observer_failures=1)
    told = shown(other, active=2, observer_failures=4)
    assert told['asap_accepted_total{payload_type="x.first"}'] == 2
    assert told['asap_accepted_total{payload_type="x.second"}'] == 1
    assert (told["asap_handlers_active"], told["asap_observer_failures_total"]) == (3, 7)


def test_the_uptime_is_that_of_the_first_process() -> None:
    world = World(3)
    for counters, wall in zip(world.processes, (1_000.0, 1_002.5, 1_001.0), strict=True):
        counters.began(WallTime(wall))
    assert shown(world.processes[1], uptime=10.0)["asap_uptime_seconds"] == 12.5
    again = world.started(0)
    again.began(WallTime(1_100.0))
    assert shown(again, uptime=1.0)["asap_uptime_seconds"] == 101.0
    assert shown(Counters(), uptime=1.5)["asap_uptime_seconds"] == 1.5


@pytest.mark.parametrize("kind", ["x" * 97, "x" * 96])
def test_payload_types_without_a_cell_are_counted_together(kind: str) -> None:
    counters = Counters()
    for number in range(70):
        counters(accepted(f"own{number}"))
    counters(accepted(kind))
    counters(accepted(None))
    told = shown(counters)
    assert told['asap_decisions_total{what="accepted"}'] == 72
    assert len([name for name in told if name.startswith("asap_accepted")]) == 64


def test_a_name_that_fills_its_cell_is_read_whole() -> None:
    counters = Counters()
    for kind in ("x" * 96, "y" * 97, "z"):
        counters(accepted(kind))
    names = {name for name in shown(counters) if name.startswith("asap_accepted")}
    assert names == {f'asap_accepted_total{{payload_type="{kind}"}}' for kind in ("x" * 96, "z")}


@pytest.mark.parametrize(
    ("size", "row"), [(0, 0), (counters_size(1) - 8, 0), (1, 0), (counters_size(2), 2), (counters_size(2), -1)]
)
def test_memory_of_another_size_is_refused(size: int, row: int) -> None:
    with pytest.raises(ValueError, match="counters_size"):
        Counters(bytearray(size), row=row)


def test_an_agent_bound_anew_with_the_same_counters_continues_them() -> None:
    counters = Counters()

    def observe(_decision: Decision) -> None:
        raise ValueError("mine")

    for life in (1, 2):
        agent = bound(Agent(manifest()), observe=observe, counters=counters)
        agent.tell(What.STALE, peer="", principal=None)  # type: ignore[arg-type] # nobody
        assert f"asap_observer_failures_total {life}\n".encode() in agent.metrics().body
        assert counters[What.STALE] == life


class TestCounters:
    def test_counters_count_and_are_shown(self) -> None:
        counters = Counters()
        agent = serve(counters=counters)
        post(agent, call(key="k"))
        post(agent, call(key="k"))
        post(agent, b"{")
        assert (counters[What.ACCEPTED], counters[What.REPEATED], counters[What.MALFORMED]) == (1, 1, 1)
        response = finish(agent.open(head("GET", "/asap/metrics")))
        assert dict(response.headers)[b"content-type"].startswith(b"application/openmetrics-text; version=1.0.0")
        lines = response.body.decode().splitlines()
        assert 'asap_decisions_total{what="accepted"} 1' in lines
        assert 'asap_decisions_total{what="spoofed"} 0' in lines
        assert 'asap_accepted_total{payload_type="taskrequest"} 1' in lines
        assert lines[-1] == "# EOF"

    def test_counters_are_not_shown_by_default(self) -> None:
        assert finish(serve().open(head("GET", "/asap/metrics"))).status == 404
        assert finish(serve(counters=Counters()).open(head("POST", "/asap/metrics"))).status == 405

    def test_all_counters_start_at_zero(self) -> None:
        text = Counters().text(active=0, uptime=1.5).decode()
        assert all(f'{{what="{what.value}"}} 0\n' in text for what in What)
        assert "asap_uptime_seconds 1.500\n" in text
