"""What `request_bodies` draws, measured on this library's agent: the share it admits, and why it refuses others."""

import itertools
import json
from collections import Counter
from functools import cache

import pytest
from hypothesis import Phase, given, settings, strategies as st

from asap_core import ManualClock
from asap_core.testing import local_target, request_bodies
from asap_core.testing.bodies import REFUSED
from asap_core.testing.machine import AGENT, ALICE, TOKEN
from asap_core.testing.nearly_valid import ENVELOPE_RULES

EXAMPLES = 300
# An agent refuses what is dated before its start, which most timestamps aren't.
NOW, UPTIME = 1_750_000_000.0, 1_000.0
MALFORMED = "asap:protocol/malformed_envelope"
# What each reason is called on the wire.
TAXONOMIES = {
    "too old": "asap:protocol/invalid_timestamp",
    "in the future": "asap:protocol/invalid_timestamp",
    "another sender": "asap:auth/sender_mismatch",
    "another recipient": "asap:admission/misaddressed",
    "a nonce that isn't text": MALFORMED,
    "an id again, without a nonce": "asap:protocol/invalid_nonce",
    "a nonce again": "asap:protocol/invalid_nonce",
    "a key again, for another request": "asap:admission/key_mismatch",
    "an unknown payload type": "asap:transport/handler_not_found",
    "an unknown skill": "asap:transport/handler_not_found",
    "an unknown version": "asap:protocol/version_incompatible",
    "another method": "asap:rpc/method_not_found",
}


def answered(body: bytes) -> list[str]:
    """How an agent that has run for a while answers a body, or each call of a batch."""
    clock = ManualClock(wall=NOW - UPTIME)
    target = local_target(clock)
    clock.advance(UPTIME - 1)  # the target has let a second pass
    answers = json.loads(target(body, TOKEN).body)
    items = answers if isinstance(answers, list) else [answers]
    return [each["error"]["data"]["code"] if "error" in each else "admitted" for each in items]


@cache  # a strategy that is made again for each example takes twice as long
def bodies(only: str | None = None) -> st.SearchStrategy[bytes]:
    numbers = itertools.count()
    return request_bodies(
        recipient=AGENT, sender=ALICE, wall=lambda: NOW, ids=lambda: f"drawn-{next(numbers)}", only=only
    )


def test_a_known_share_is_admitted_refused_and_malformed() -> None:
    outcomes = Counter[str]()

    @settings(max_examples=EXAMPLES, database=None, derandomize=True, phases=[Phase.generate])
    @given(bodies())
    def measure(body) -> None:
        outcomes[answered(body)[-1]] += 1

    measure()
    shown, total = outcomes.most_common(), outcomes.total()
    reasons = ({*TAXONOMIES.values()} - {MALFORMED}) & outcomes.keys()
    assert outcomes["admitted"] >= 0.15 * total, shown
    assert sum(outcomes[each] for each in reasons) >= 0.1 * total, shown
    assert len(reasons) >= 5, shown
    assert outcomes[MALFORMED] >= 0.1 * total, shown


@given(bodies("admitted"))
def test_a_call_that_is_to_be_admitted_is(body) -> None:
    assert answered(body) == ["admitted"]


@pytest.mark.parametrize("reason", REFUSED)
@given(st.data())
def test_a_call_is_refused_for_the_reason(reason, data) -> None:
    assert answered(data.draw(bodies(reason))) in ([TAXONOMIES[reason]], ["admitted", TAXONOMIES[reason]])


@pytest.mark.parametrize("rule", ENVELOPE_RULES)
@settings(max_examples=5)
@given(st.data())
def test_an_envelope_that_breaks_a_rule_is_malformed(rule, data) -> None:
    assert answered(data.draw(bodies(rule))) == [MALFORMED]


def test_a_kind_that_is_unknown_is_refused() -> None:
    with pytest.raises(KeyError):
        bodies("no such kind")


@given(request_bodies())
def test_without_an_agent_nothing_is_admitted(body) -> None:
    assert "admitted" not in answered(body)
