"""Laws of the envelope: what it must have, and what it may not have."""

from typing import Final

from asap_core.testing.laws.checks import accepted, refused
from asap_core.testing.laws.effects import Steps
from asap_core.testing.laws.lab import ABSENT, Change, Lab, changed
from asap_core.testing.laws.law import LawGroup, Severity
from asap_core.testing.laws.verdicts import Need
from asap_core.wire.json_values import JsonObject

ENVELOPE: Final = LawGroup("envelope", "what an envelope has")

_REQUIRED: Final = ("sender", "recipient", "payload_type", "payload")
_WRONG: Final[dict[str, Change]] = {
    "id": 7, "asap_version": 0.1, "sender": ["urn:asap:agent:a"], "recipient": {}, "payload_type": 1, "payload": "text",
    "extensions": [], "correlation_id": 5, "timestamp": {}, "trace_id": 7, "requires_ack": "yes",
}  # fmt: skip


@ENVELOPE.law(clause="docs/wire.md §1.1", expected="each is refused, by Invalid params (-32602)", needs={Need.SKILL})
def required_fields(lab: Lab) -> Steps[None]:
    """An envelope without a required field is refused."""
    for name in _REQUIRED:
        for value in (ABSENT, None):
            refused((yield from lab.send(changed(lab.envelope(), {name: value}))), f"{name}: {value}")
    refused((yield from lab.send(lab.envelope(asap_version=None))), "asap_version: None")


@ENVELOPE.law(clause="docs/wire.md §1.1", expected="each is refused, by Invalid params (-32602)", needs={Need.SKILL})
def types_of_fields(lab: Lab) -> Steps[None]:
    """A field of another type than its own is refused."""
    for name, value in _WRONG.items():
        refused((yield from lab.send(changed(lab.envelope(), {name: value}))), f"{name}: {value}")


@ENVELOPE.law(clause="docs/wire.md §1.1", expected="it's refused, by Invalid params (-32602)", needs={Need.SKILL})
def unknown_fields(lab: Lab) -> Steps[None]:
    """An envelope with a field that the protocol doesn't know is refused."""
    refused((yield from lab.send(lab.envelope(x_unknown="a value"))))


_MALFORMED: Final = (-32602, "asap:protocol/malformed_envelope")
_MALFORMED_ONLY: Final = ("asap:protocol/malformed_envelope",)
_NO_HANDLER: Final = (-32601, -32012, "asap:transport/handler_not_found")
_REFUSED: Final = "each is refused, by Invalid params (-32602)"
_LONGEST: Final = 256
# Between a character of ASCII and its full-width form.
_FULL_WIDTH: Final = 0xFEE0


@ENVELOPE.law(clause="docs/security.md 1", expected=_REFUSED, needs={Need.SKILL}, strict=True)
def an_id_is_required(lab: Lab) -> Steps[None]:
    """An envelope without an id is refused."""
    for value in (ABSENT, None):
        refused((yield from lab.send(lab.envelope(id=value))), f"id: {value}", codes=_MALFORMED)


@ENVELOPE.law(clause="docs/wire.md §1.1", expected=_REFUSED, needs={Need.SKILL})
def a_version_is_required(lab: Lab) -> Steps[None]:
    """An envelope without asap_version is refused."""
    for value in (ABSENT, None):
        refused((yield from lab.send(lab.envelope(asap_version=value))), f"asap_version: {value}", codes=_MALFORMED)


@ENVELOPE.law(
    clause="docs/security.md 21", expected=_REFUSED, severity=Severity.HARDENING, needs={Need.SKILL}, strict=True
)
def ids_are_bounded_and_printable(lab: Lab) -> Steps[None]:
    """An id that is empty, very long, or has control characters is refused."""
    for example, value in (
        ("empty", ""), ("1,000 characters", lab.fresh() + "a" * 1_000), ("a line feed", f"{lab.fresh()}\nx"),
        ("a NUL", f"{lab.fresh()}\0"), ("an escape", f"{lab.fresh()}\x1b[2J"),
    ):  # fmt: skip
        refused((yield from lab.send(lab.envelope(id=value))), example, codes=_MALFORMED)


@ENVELOPE.law(
    clause="docs/security.md 21", expected="it's accepted", severity=Severity.SHOULD, needs={Need.SKILL}, strict=True
)
def ids_at_the_bound(lab: Lab) -> Steps[None]:
    """An id of 256 characters, of any script, is accepted."""
    accepted((yield from lab.send(lab.envelope(id=lab.fresh().ljust(_LONGEST, "\u6f22")))))


@ENVELOPE.law(clause="docs/wire.md §1.5", expected=_REFUSED, needs={Need.SKILL})
def answers_name_what_they_answer(lab: Lab) -> Steps[None]:
    """A task response without a correlation_id is refused as malformed."""
    answer: JsonObject = {"task_id": lab.fresh(), "status": "completed"}
    for value in (ABSENT, None):
        envelope = lab.envelope(payload_type="TaskResponse", payload=answer, correlation_id=value)
        refused((yield from lab.send(envelope)), f"correlation_id: {value}", codes=_MALFORMED)


@ENVELOPE.law(clause="docs/wire.md §1.4", expected="each is accepted", needs={Need.SKILL}, strict=True)
def spellings_of_payload_types(lab: Lab) -> Steps[None]:
    """The three spellings of a payload type mean the same type."""
    for spelling in ("task.request", "TaskRequest", "task_request"):
        accepted((yield from lab.send(lab.envelope(payload_type=spelling))), spelling)


@ENVELOPE.law(
    clause="docs/errors.md",
    expected="each is refused, by asap:transport/handler_not_found",
    needs={Need.SKILL},
)
def other_payload_types(lab: Lab) -> Steps[None]:
    """A payload type that the agent doesn't handle is refused, whatever its payload."""
    for name in ("conform.unknown", "task.requests", "xtask.request"):
        refused((yield from lab.send(lab.envelope(payload_type=name))), name, codes=_NO_HANDLER)


@ENVELOPE.law(
    clause="docs/errors.md", expected="each is refused, by asap:transport/handler_not_found", needs={Need.SKILL}
)
def other_skills(lab: Lab) -> Steps[None]:
    """A skill that the agent doesn't have is refused."""
    own = lab.skill or ""
    # In full-width characters, which some forms of Unicode take for the same.
    wide = "".join(chr(ord(each) + _FULL_WIDTH) if "!" <= each <= "~" else each for each in own)
    for name in (lab.fresh(), "", f"{own}x", f"{own} ", own.swapcase(), wide):
        if name != own:
            refused((yield from lab.send(lab.envelope(payload=lab.task(skill_id=name)))), f"skill {name!a}")


@ENVELOPE.law(clause="docs/wire.md §1.1, §2.1", expected="each is accepted", needs={Need.SKILL}, strict=True)
def optional_fields(lab: Lab) -> Steps[None]:
    """An envelope may have every optional field, or none; and so may a task."""
    extensions: JsonObject = {"nonce": lab.fresh(), "trace_id": "a", "span_id": "b", "x_other": {"a": [1, None]}}
    changes: dict[str, dict[str, Change]] = {
        "a correlation_id": {"correlation_id": lab.fresh()},
        "a trace_id": {"trace_id": lab.fresh()},
        "requires_ack": {"requires_ack": True},
        "further extensions": {"extensions": extensions},
        "none of them": dict.fromkeys(("correlation_id", "trace_id", "requires_ack", "extensions"), ABSENT),
        "a task with a parent": {"payload": lab.task(parent_task_id=lab.fresh())},
        "a task with a configuration": {"payload": lab.task(config={"timeout_seconds": 5})},
        "nulls in a task": {"payload": lab.task(parent_task_id=None, config=None)},
    }
    for example, some in changes.items():
        accepted((yield from lab.send(changed(lab.envelope(), some))), example)


@ENVELOPE.law(clause="docs/wire.md §2.1", expected=_REFUSED, needs={Need.SKILL})
def fields_of_tasks(lab: Lab) -> Steps[None]:
    """A task request without a required field, or with one of another type, is refused."""
    for name, value in (
        ("conversation_id", ABSENT), ("skill_id", ABSENT), ("input", ABSENT), ("conversation_id", 7), ("input", "text"),
        ("skill_id", None), ("config", []), ("parent_task_id", 1),
    ):  # fmt: skip
        task = changed(lab.task(), {name: value})
        refused((yield from lab.send(lab.envelope(payload=task))), f"{name}: {value}")


@ENVELOPE.law(clause="docs/wire.md §2.1", expected=_REFUSED, severity=Severity.SHOULD, needs={Need.SKILL}, strict=True)
def unknown_fields_of_tasks(lab: Lab) -> Steps[None]:
    """A task request with a field that the protocol doesn't know is refused."""
    refused((yield from lab.send(lab.envelope(payload=lab.task(x_unknown="a value")))), codes=_MALFORMED)


@ENVELOPE.law(clause="docs/wire.md §1.3; docs/security.md 21", expected=_REFUSED, needs={Need.SKILL}, strict=True)
def urns_have_a_grammar(lab: Lab) -> Steps[None]:
    """A recipient that isn't an agent URN is refused as malformed, not as another agent."""
    for text in (
        "", "somebody", "urn:asap:agent:", "urn:asap:agent:a b", "urn:asap:agent:a:", "urn:asap:agent:ü",
        "urn:asap:skill:a", "urn:asap:agent:a_b", "urn:asap:agent:a:b:c",
    ):  # fmt: skip
        refused((yield from lab.send(lab.envelope(recipient=text))), f"recipient {text!r}", codes=_MALFORMED_ONLY)


@ENVELOPE.law(clause="docs/security.md 21", expected=_REFUSED, needs={Need.SKILL}, strict=True)
def urns_have_one_spelling(lab: Lab) -> Steps[None]:
    """Another spelling of the agent's URN is refused as malformed."""
    own = lab.recipient
    for text in (own.upper(), own.replace("urn:", "URN:"), f"{own}\n", f" {own}", own.replace("agent", "%61gent")):
        refused((yield from lab.send(lab.envelope(recipient=text))), f"recipient {text!r}", codes=_MALFORMED_ONLY)


@ENVELOPE.law(clause="docs/wire.md §1.3", expected=_REFUSED, severity=Severity.HARDENING, needs={Need.SKILL})
def urns_are_bounded(lab: Lab) -> Steps[None]:
    """A URN of more than 256 characters is refused as malformed."""
    long = f"urn:asap:agent:{'a' * _LONGEST}"
    refused((yield from lab.send(lab.envelope(recipient=long))), codes=_MALFORMED)
