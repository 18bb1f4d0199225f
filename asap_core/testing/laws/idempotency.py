"""Laws of idempotency: work under a key is done once."""

from typing import Final

from asap_core.testing.laws.checks import accepted, check, refused
from asap_core.testing.laws.effects import Steps
from asap_core.testing.laws.lab import Lab
from asap_core.testing.laws.law import LawGroup
from asap_core.testing.laws.verdicts import Need

IDEMPOTENCY: Final = LawGroup("idempotency", "work under a key is done once")

_NEEDS: Final = frozenset({Need.SKILL, Need.IDEMPOTENCY})


@IDEMPOTENCY.law(
    clause="docs/wire.md §9.3; docs/security.md 5",
    expected="the second answer is the first one, with the same envelope id and task id",
    needs=_NEEDS,
    strict=True,
)
def the_same_answer(lab: Lab) -> Steps[None]:
    """A repeated request under one key gets the first answer: the work isn't done again."""
    key, name, payload = lab.fresh(), lab.fresh(), lab.task()
    first = accepted((yield from lab.succeed(lab.envelope(id=name, payload=payload), key=key)))
    again = yield from lab.send(lab.envelope(id=name, payload=payload), key=key)
    second = accepted(again)
    check(second.get("payload") == first.get("payload"), f"another payload: {second.get('payload')}")


@IDEMPOTENCY.law(
    clause="docs/security.md 5",
    expected="it's refused, by asap:admission/key_mismatch (-32063), and not answered with the first answer",
    needs=_NEEDS,
    strict=True,
)
def another_request_under_the_key(lab: Lab) -> Steps[None]:
    """Another request under a key that was used is refused."""
    key = lab.fresh()
    yield from lab.succeed(lab.envelope(), key=key)
    other = lab.envelope(payload=lab.task(conversation_id=lab.fresh()))
    refused((yield from lab.send(other, key=key)))


@IDEMPOTENCY.law(
    clause="docs/security.md 6",
    expected="the second caller gets an answer of its own: keys belong to their caller",
    needs=_NEEDS | {Need.AUTH, Need.OTHER},
    strict=True,
)
def keys_belong_to_their_caller(lab: Lab) -> Steps[None]:
    """A key that one caller used is free for another, and shows it nothing."""
    key, other, name = lab.fresh(), lab.second_caller(), lab.fresh()
    first = accepted((yield from lab.succeed(lab.envelope(), key=key)))
    reply = accepted((yield from lab.send(lab.envelope(id=name, caller=other), key=key, caller=other)))
    check(reply.get("correlation_id") == name, f"correlation_id {reply.get('correlation_id')!r}")
    check(reply.get("id") != first.get("id"), "the first caller's answer")
