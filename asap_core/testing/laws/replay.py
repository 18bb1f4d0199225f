"""Laws of replay: an envelope is accepted once."""

from typing import Final

from asap_core.testing.laws.checks import accepted, refused
from asap_core.testing.laws.effects import Steps
from asap_core.testing.laws.lab import Lab
from asap_core.testing.laws.law import LawGroup
from asap_core.testing.laws.verdicts import Need

REPLAY: Final = LawGroup("replay", "an envelope is accepted once")


@REPLAY.law(
    clause="docs/wire.md §5; docs/security.md 2",
    expected="the second one is refused, by asap:protocol/invalid_nonce (-32003)",
    needs={Need.SKILL},
)
def same_envelope(lab: Lab) -> Steps[None]:
    """An accepted envelope isn't accepted a second time."""
    envelope = lab.envelope()
    yield from lab.succeed(envelope)
    refused((yield from lab.send(envelope)))


@REPLAY.law(
    clause="docs/wire.md §5; docs/security.md 2",
    expected="the second envelope is refused: its nonce was used, whatever its id",
    needs={Need.SKILL},
)
def same_nonce_other_id(lab: Lab) -> Steps[None]:
    """A nonce that was accepted isn't accepted again under another envelope id."""
    nonce = lab.fresh()
    yield from lab.succeed(lab.envelope(nonce=nonce))
    refused((yield from lab.send(lab.envelope(nonce=nonce))))


@REPLAY.law(
    clause="docs/security.md 4",
    expected="the second sender's call is accepted: each sender has nonces of its own",
    needs={Need.SKILL, Need.OTHER},
    strict=True,
)
def nonces_belong_to_their_sender(lab: Lab) -> Steps[None]:
    """A nonce that one sender used may be used by another."""
    nonce, other = lab.fresh(), lab.second_caller()
    yield from lab.succeed(lab.envelope(nonce=nonce))
    accepted((yield from lab.send(lab.envelope(nonce=nonce, caller=other), caller=other)))
