"""Laws of time: an envelope counts for 300 s, and 30 s ahead.

Offsets keep 10 s from the limits, since a run and the agent read two clocks, and a rate limit may delay a request.
"""

from typing import Final

from asap_core.testing.laws.checks import accepted, refused
from asap_core.testing.laws.effects import Steps
from asap_core.testing.laws.lab import ABSENT, Lab
from asap_core.testing.laws.law import LawGroup
from asap_core.testing.laws.verdicts import LawNotTried, Need

TIME: Final = LawGroup("time", "the window of timestamps")

_RESTARTED: Final = "asap:admission/restarted"
_EXPECTED: Final = "each is refused, by asap:protocol/invalid_timestamp (-32002)"


@TIME.law(clause="docs/wire.md §5; docs/security.md 1", expected=_EXPECTED, needs={Need.SKILL})
def old_envelopes(lab: Lab) -> Steps[None]:
    """An envelope older than 300 s is refused."""
    for seconds in (-310, -3600, -86400 * 400):
        refused((yield from lab.send(lab.envelope(timestamp=lab.timestamp(seconds)))), f"{seconds} s")


@TIME.law(clause="docs/wire.md §5; docs/security.md 1", expected=_EXPECTED, needs={Need.SKILL})
def future_envelopes(lab: Lab) -> Steps[None]:
    """An envelope dated more than 30 s ahead is refused."""
    for seconds in (40, 3600, 86400 * 400):
        refused((yield from lab.send(lab.envelope(timestamp=lab.timestamp(seconds)))), f"{seconds} s")


@TIME.law(clause="docs/wire.md §5", expected="it's accepted", needs={Need.SKILL})
def clocks_that_are_ahead(lab: Lab) -> Steps[None]:
    """An envelope dated less than 30 s ahead is accepted."""
    accepted((yield from lab.send(lab.envelope(timestamp=lab.timestamp(20)))))


@TIME.law(clause="docs/wire.md §5", expected="it's accepted", needs={Need.SKILL})
def clocks_that_are_behind(lab: Lab) -> Steps[None]:
    """An envelope up to 300 s old is accepted, unless the agent has started since."""
    answer = yield from lab.send(lab.envelope(timestamp=lab.timestamp(-280)))
    if answer.taxonomy == _RESTARTED:
        raise LawNotTried("the agent has started less than 280 s ago, and refuses what is dated before")
    accepted(answer)


@TIME.law(
    clause="docs/security.md 1",
    expected="it's refused: without a date it could be replayed for ever",
    needs={Need.SKILL},
    strict=True,
)
def a_timestamp_is_required(lab: Lab) -> Steps[None]:
    """An envelope without a timestamp is refused."""
    for example, value in (("absent", ABSENT), ("null", None)):
        refused((yield from lab.send(lab.envelope(timestamp=value))), example)
