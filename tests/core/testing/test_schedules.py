"""Schedules, valid and counted; and callers who come and go by them, whatever happens to their requests."""

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import Phase, find, given, settings, strategies as st

from asap_core.client.client import Client
from asap_core.client.programs import Fetch
from asap_core.errors import AsapError
from asap_core.flights import Flights
from asap_core.testing import (
    CallerArrives,
    CallerLeaves,
    OutcomeScript,
    Schedule,
    ScriptedDriver,
    TimePasses,
    WallClockSteps,
    outcome_scripts,
    schedules,
)
from asap_core.wire.codec import to_json
from tests.builders import manifest
from tests.core.testing.measured import examples_of

MANIFEST = json.dumps(to_json(manifest())).encode()
SCRIPTS = outcome_scripts(st.sampled_from([MANIFEST, MANIFEST, b"{}"]))


@given(schedules(callers=3))
def test_a_caller_leaves_only_after_it_arrived(schedule) -> None:
    there: set[int] = set()
    for step in schedule:
        if isinstance(step, CallerArrives):
            assert step.caller not in there
            there.add(step.caller)
        elif isinstance(step, CallerLeaves):
            there.remove(step.caller)
    assert there <= {0, 1, 2}


def test_a_schedule_shrinks_to_the_steps_that_matter() -> None:
    cancelled = find(schedules(), lambda steps: any(isinstance(step, CallerLeaves) for step in steps))
    assert cancelled == (CallerArrives(0), CallerLeaves(0))


def test_callers_come_and_go_and_clocks_move() -> None:
    drawn = examples_of(schedules())
    kinds = Counter(type(step) for schedule in drawn for step in schedule)
    assert kinds[CallerArrives] >= 0.25 * kinds.total(), kinds
    assert min(kinds[kind] for kind in (CallerLeaves, TimePasses, WallClockSteps)) >= 0.07 * kinds.total(), kinds
    together = sum(_most_together(schedule) > 1 for schedule in drawn)
    assert together >= 0.4 * len(drawn)


def test_the_wall_clock_may_be_left_alone() -> None:
    steps = [step for schedule in examples_of(schedules(wall=False), 60) for step in schedule]
    assert not any(isinstance(step, WallClockSteps) for step in steps)


def _most_together(schedule: Schedule) -> int:
    most = there = 0
    for step in schedule:
        there += isinstance(step, CallerArrives) - isinstance(step, CallerLeaves)
        most = max(most, there)
    return most


# --- a client's look-ups, by any schedule ----------------------------------------------------------------------------

# Three callers want two documents.
URLS = ("http://localhost:1", "http://localhost:2", "http://localhost:1")


class Watching(ScriptedDriver):
    """Sees that no document is requested twice at the same time."""

    def _suspend(self, run, effect) -> None:
        if isinstance(effect, Fetch):
            under_way = [each.effect.url for each in self.runs if isinstance(each.effect, Fetch)]
            assert effect.url not in under_way, "requested twice"
        super()._suspend(run, effect)


def comes_to_an_end(schedule: Schedule, script: OutcomeScript) -> None:
    """One request for each document at any time; each caller has an answer, or has left; and nothing is left."""
    driver = Watching(script.play())
    client = Client("urn:asap:agent:me").bind(driver.runtime)
    runs = driver.follow(schedule, lambda caller: client.discover(URLS[caller]))
    while driver.turn():
        pass
    assert driver.runs == [], "it waits for ever"
    for run in runs:
        assert not isinstance(run.end, Exception) or isinstance(run.end, AsapError)
    documents: Any = client._discovery._manifests
    assert documents.waiting == 0, "something is left"


@given(schedules(callers=3), SCRIPTS)
def test_look_ups_come_to_an_end_by_any_schedule(schedule, script) -> None:
    comes_to_an_end(schedule, script)


class HandsOverToNobody(Flights[Any, Any]):
    def leave(self, waiter):
        super().leave(waiter)


class FliesForEach(Flights[Any, Any]):
    def join(self, key, waiter):
        self.detach(key)
        return super().join(key, waiter)


@pytest.mark.planted
@pytest.mark.parametrize("mutant", [HandsOverToNobody, FliesForEach])
def test_broken_flights_are_caught(mutant, monkeypatch) -> None:
    monkeypatch.setattr("asap_core.client.document_cache.Flights", mutant)

    @settings(max_examples=500, phases=[Phase.generate], derandomize=True, database=None)
    @given(schedules(callers=3), SCRIPTS)
    def hunt(schedule, script) -> None:
        comes_to_an_end(schedule, script)

    with pytest.raises((AssertionError, KeyError)):
        hunt()
