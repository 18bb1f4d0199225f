"""Laws of identity: who may call, as whom, and whom."""

from typing import Final

from asap_core.testing.laws.checks import check, refused
from asap_core.testing.laws.effects import Steps
from asap_core.testing.laws.lab import Caller, Lab
from asap_core.testing.laws.law import LawGroup
from asap_core.testing.laws.verdicts import Need

IDENTITY: Final = LawGroup("identity", "who may call, as whom, and whom")


@IDENTITY.law(
    clause="docs/wire.md §4.2; docs/security.md 11",
    expected="each is refused with 401 and WWW-Authenticate (RFC 6750 §3)",
    needs={Need.SKILL, Need.AUTH},
)
def a_token_is_required(lab: Lab) -> Steps[None]:
    """A call without a token, or with one that nobody issued, is refused."""
    for example, token in (("no token", None), ("an unknown token", lab.fresh())):
        stranger = Caller(lab.caller.urn, token)
        refused((yield from lab.send(lab.envelope(), caller=stranger)), example)


@IDENTITY.law(
    clause="docs/security.md 7",
    expected="each is refused: the sender must be exactly the agent that the token stands for",
    needs={Need.SKILL, Need.AUTH},
)
def the_sender_is_the_tokens(lab: Lab) -> Steps[None]:
    """An envelope from another agent than the token's is refused, however much its name resembles."""
    own = lab.caller.urn
    for sender in (f"{own}x", own[:-1], "urn:asap:agent:somebody-else", lab.recipient):
        refused((yield from lab.send(lab.envelope(sender=sender))), f"sender {sender}")


@IDENTITY.law(
    clause="docs/security.md 9",
    expected="each is refused: the envelope is for another agent",
    needs={Need.SKILL},
    strict=True,
)
def the_recipient_is_this_agent(lab: Lab) -> Steps[None]:
    """An envelope for another agent is refused."""
    for recipient in ("urn:asap:agent:somebody-else", f"{lab.recipient}x", lab.caller.urn):
        if recipient != lab.recipient:
            refused((yield from lab.send(lab.envelope(recipient=recipient))), f"recipient {recipient}")


@IDENTITY.law(
    clause="RFC 6750 §3; docs/security.md 11",
    expected="status 401, and the header WWW-Authenticate with the scheme Bearer",
    needs={Need.AUTH},
    strict=True,
)
def missing_tokens_are_challenged(lab: Lab) -> Steps[None]:
    """A call without a token is answered 401 with a challenge."""
    answer = yield from lab.send(lab.envelope(), caller=Caller(lab.caller.urn))
    check(answer.status == 401, answer)  # noqa: PLR2004 - HTTP's
    challenge = answer.header("www-authenticate") or ""
    check("bearer" in challenge.lower(), f"WWW-Authenticate: {challenge!r}")
