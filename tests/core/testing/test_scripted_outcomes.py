"""Scripts of outcomes: any of them brings a client's programs to an end, and the same one to the same end."""

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, strategies as st

from asap_core.client.client import Client
from asap_core.client.programs import (
    Expired,
    Fetch,
    LocalNetwork,
    Next,
    ReadFile,
    Ticket,
    Unanswered,
    Unavailable,
    Wait,
)
from asap_core.testing import Delayed, OutcomeScript, ScriptedAnswer, ScriptedDriver, outcome_scripts
from asap_core.wire.codec import to_json
from tests.builders import manifest
from tests.core.testing.measured import examples_of

MANIFEST = json.dumps(to_json(manifest())).encode()
BODIES = st.sampled_from([MANIFEST, MANIFEST, MANIFEST, b"{}"])
URL = "http://localhost"
# Longer than all attempts of one call may take, with all their pauses.
LONG = 3_600.0


def played(script: OutcomeScript, *names: str) -> tuple[list[str], ScriptedDriver]:
    """How each call ends, and the driver."""
    driver = ScriptedDriver(script.play())
    client = Client("urn:asap:agent:me").bind(driver.runtime)
    calls: dict[str, Any] = {
        "discover": lambda: client.discover(URL),
        "send": lambda: client.send(URL, "task.request", {"skill_id": "echo", "input": {}}),
    }
    runs = [driver.start(calls[name]()) for name in names]
    while driver.turn():
        pass
    assert not driver.runs, "it waits for ever"
    return [type(run.end).__name__ for run in runs], driver


CALLS = st.lists(st.sampled_from(["discover", "send"]), min_size=1, max_size=3)


@given(outcome_scripts(BODIES), CALLS)
def test_every_call_ends_with_a_result_or_an_error_and_always_the_same(script, names) -> None:
    ends, driver = played(script, *names)
    again, other = played(script, *names)
    assert ends == again
    assert driver.clock.monotonic() == other.clock.monotonic() < LONG
    assert [*map(str, driver.effects)] == [*map(str, other.effects)]


def test_when_the_script_is_over_nothing_can_be_reached() -> None:
    script = OutcomeScript(fetches=(ScriptedAnswer(404),), reads=(Expired(),))
    fetch = next(effect for effect in played(script, "discover")[1].effects if isinstance(effect, Fetch))
    read, ticket = ReadFile("/a", fetch.reader), Wait(Ticket())
    reply = script.play()
    assert reply(fetch) == ScriptedAnswer(404)
    assert isinstance(reply(fetch), Unanswered)
    assert reply(read) == Expired()
    assert all(isinstance(reply(effect), Unavailable) for effect in (read, Next(LocalNetwork())))
    with pytest.raises(TypeError):
        reply(ticket)


def test_several_calls_share_the_fetch_of_one_manifest() -> None:
    ends, driver = played(OutcomeScript(fetches=(Delayed(1.0, ScriptedAnswer(body=MANIFEST)),)), *["discover"] * 3)
    assert ends == ["Returned"] * 3
    assert sum(isinstance(effect, Fetch) for effect in driver.effects) == 1


# --- what is drawn, counted ------------------------------------------------------------------------------------------


def kind_of(reply: object) -> str:
    inner = reply.reply if isinstance(reply, Delayed) else reply
    if isinstance(inner, ScriptedAnswer) and inner.failure is None:
        return "good" if inner.status == 200 else "whole"
    return "cut off" if isinstance(inner, ScriptedAnswer) else type(inner).__name__


def test_requests_are_answered_and_fail_in_each_way() -> None:
    drawn = Counter(kind_of(reply) for script in examples_of(outcome_scripts()) for reply in script.fetches)
    assert drawn.keys() == {"good", "whole", "cut off", "Unanswered", "Expired", "Barred"}
    assert drawn["good"] >= 0.2 * drawn.total(), drawn
    assert min(drawn.values()) >= 0.03 * drawn.total(), drawn


def test_calls_end_well_and_badly() -> None:
    ends = Counter(played(script, "discover")[0][0] for script in examples_of(outcome_scripts(BODIES), 150))
    assert ends["Returned"] >= 0.15 * ends.total(), ends
    assert len(ends) >= 4, ends
