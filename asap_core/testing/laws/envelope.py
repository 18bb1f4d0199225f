"""Laws of the envelope: what it must have, and what it may not have."""

from typing import Final

from asap_core.testing.laws.checks import refused
from asap_core.testing.laws.effects import Steps
from asap_core.testing.laws.lab import ABSENT, Change, Lab, changed
from asap_core.testing.laws.law import LawGroup
from asap_core.testing.laws.verdicts import Need

ENVELOPE: Final = LawGroup("envelope", "what an envelope has")

_REQUIRED: Final = ("sender", "recipient", "payload_type", "payload")
_WRONG: Final[dict[str, Change]] = {
    "id": 7, "asap_version": 0.1, "sender": ["urn:asap:agent:a"], "recipient": {}, "payload_type": 1, "payload": "text",
    "extensions": [], "correlation_id": 5, "timestamp": {},
}  # fmt: skip


@ENVELOPE.law(clause="docs/wire.md §1.1", expected="each is refused, by Invalid params (-32602)", needs={Need.SKILL})
def required_fields(lab: Lab) -> Steps[None]:
    """An envelope without a required field is refused."""
    for name in _REQUIRED:
        for value in (ABSENT, None):
            refused((yield from lab.send(changed(lab.envelope(), {name: value}))), f"{name}: {value}")


@ENVELOPE.law(clause="docs/wire.md §1.1", expected="each is refused, by Invalid params (-32602)", needs={Need.SKILL})
def types_of_fields(lab: Lab) -> Steps[None]:
    """A field of another type than its own is refused."""
    for name, value in _WRONG.items():
        refused((yield from lab.send(changed(lab.envelope(), {name: value}))), f"{name}: {value}")


@ENVELOPE.law(clause="docs/wire.md §1.1", expected="it's refused, by Invalid params (-32602)", needs={Need.SKILL})
def unknown_fields(lab: Lab) -> Steps[None]:
    """An envelope with a field that the protocol doesn't know is refused."""
    refused((yield from lab.send(lab.envelope(x_unknown="a value"))))
