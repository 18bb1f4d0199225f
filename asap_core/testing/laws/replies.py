"""Laws of replies: an answer says what it answers, who answers, and to whom."""

from typing import Final

from asap_core.testing.laws.checks import accepted, check
from asap_core.testing.laws.effects import Steps
from asap_core.testing.laws.lab import Lab
from asap_core.testing.laws.law import LawGroup
from asap_core.testing.laws.verdicts import Need

REPLIES: Final = LawGroup("replies", "what an answer answers, and whose it is")


@REPLIES.law(
    clause="docs/wire.md §4.1",
    expected="status 200 and a result with an envelope",
    needs={Need.SKILL},
)
def a_valid_call_is_accepted(lab: Lab) -> Steps[None]:
    """A valid call is accepted. Most laws begin with one: if this law is broken, mend it first."""
    accepted((yield from lab.send(lab.envelope())))


@REPLIES.law(
    clause="docs/wire.md §1.5; docs/security.md 28",
    expected="`correlation_id` is the `id` of the envelope that was sent",
    needs={Need.SKILL},
)
def correlation(lab: Lab) -> Steps[None]:
    """A reply's correlation_id is the id of the envelope that it answers."""
    sent = lab.fresh()
    reply = accepted((yield from lab.send(lab.envelope(id=sent))))
    check(reply.get("correlation_id") == sent, f"correlation_id: {reply.get('correlation_id')!r}, sent id: {sent!r}")


@REPLIES.law(
    clause="docs/security.md 9, 28",
    expected="`sender` is the id in the agent's manifest, `recipient` is the caller",
    needs={Need.SKILL},
)
def sender_and_recipient(lab: Lab) -> Steps[None]:
    """A reply comes from this agent and goes to the caller."""
    reply = accepted((yield from lab.send(lab.envelope())))
    check(reply.get("sender") == lab.recipient, f"sender: {reply.get('sender')!r}, not {lab.recipient!r}")
    check(reply.get("recipient") == lab.caller.urn, f"recipient: {reply.get('recipient')!r}, not {lab.caller.urn!r}")
