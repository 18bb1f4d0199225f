"""Laws of replay: an envelope is accepted once."""

import json
from typing import Final

from asap_core.testing.laws.checks import accepted, check, refused
from asap_core.testing.laws.effects import AdvanceClock, Pause, ResetTarget, SendTogether, Steps
from asap_core.testing.laws.lab import Change, Lab, changed, to_body
from asap_core.testing.laws.law import LawGroup
from asap_core.testing.laws.verdicts import Need
from asap_core.wire.json_values import JsonObject

REPLAY: Final = LawGroup("replay", "an envelope is accepted once")

_MANY_CHARACTERS: Final = 1_000


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


@REPLAY.law(
    clause="docs/wire.md §5; docs/security.md 2", expected="each is refused: the nonce was used", needs={Need.SKILL}
)
def same_nonce_other_content(lab: Lab) -> Steps[None]:
    """A nonce that was accepted isn't accepted with another date, payload or spelling of the type."""
    nonce = lab.fresh()
    first = lab.envelope(nonce=nonce)
    yield from lab.succeed(first)
    for name, value in (
        ("timestamp", lab.timestamp(5)),
        ("payload", lab.task()),
        ("payload_type", "TaskRequest"),
        ("trace_id", lab.fresh()),
    ):
        refused((yield from lab.send({**first, name: value})), f"another {name}")


@REPLAY.law(
    clause="docs/security.md 1, 2",
    expected="the second one is refused: without a nonce the id counts",
    needs={Need.SKILL},
    strict=True,
)
def without_a_nonce_the_id_counts(lab: Lab) -> Steps[None]:
    """An envelope without a nonce isn't accepted a second time under its id, whatever other extensions it has."""
    examples: tuple[JsonObject | None, ...] = (None, {}, {"trace_id": "a"}, {"span_id": "b"}, {"x_other": 1})
    for extensions in examples:
        name = lab.fresh()
        yield from lab.succeed(lab.envelope(id=name, extensions=extensions))
        again = yield from lab.send(lab.envelope(id=name, extensions=extensions))
        refused(again, f"extensions: {json.dumps(extensions)}")


@REPLAY.law(clause="docs/security.md 1", expected="it's accepted", needs={Need.SKILL}, strict=True)
def ids_and_nonces_are_distinct(lab: Lab) -> Steps[None]:
    """A nonce that equals the id of another envelope is accepted."""
    name = lab.fresh()
    yield from lab.succeed(lab.envelope(id=name, extensions=None))
    accepted((yield from lab.send(lab.envelope(nonce=name))))


@REPLAY.law(clause="docs/wire.md §5", expected="each is accepted: it's another nonce", needs={Need.SKILL})
def nonces_are_compared_whole(lab: Lab) -> Steps[None]:
    """Nonces that differ in case, or after many characters, are two nonces."""
    nonce = f"{lab.fresh()}-{'a' * 100}"
    yield from lab.succeed(lab.envelope(nonce=nonce))
    for example, other in (
        ("upper case", nonce.upper()),
        ("longer", f"{nonce}b"),
        ("shorter", nonce[:-1]),
        ("a blank", f" {nonce}"),
    ):
        accepted((yield from lab.send(lab.envelope(nonce=other))), example)
    nonce = lab.fresh()
    for example, letter in (("one character", "\xe9"), ("the same as two characters", "e\u0301")):
        accepted((yield from lab.send(lab.envelope(nonce=f"{nonce}{letter}"))), example)
    long = f"{lab.fresh()}{'a' * _MANY_CHARACTERS}"
    for letter in "ab":
        accepted((yield from lab.send(lab.envelope(nonce=f"{long}{letter}"))), "another last character of 1,000")


@REPLAY.law(clause="docs/wire.md §5", expected="each is refused, by Invalid params (-32602)", needs={Need.SKILL})
def nonces_are_text(lab: Lab) -> Steps[None]:
    """A nonce that isn't text, or is empty, is refused."""
    wrong: tuple[JsonObject, ...] = ({"nonce": 7}, {"nonce": True}, {"nonce": [lab.fresh()]}, {"nonce": ""})
    for extensions in wrong:
        refused((yield from lab.send(lab.envelope(extensions=extensions))), f"nonce {extensions['nonce']!r}")


@REPLAY.law(
    clause="docs/security.md 5",
    expected="the second call is accepted: the first one was refused, and used nothing up",
    needs={Need.SKILL},
    strict=True,
)
def refused_calls_use_no_nonce(lab: Lab) -> Steps[None]:
    """A call that is refused doesn't use up its nonce."""
    nonce = lab.fresh()
    changes: tuple[dict[str, Change], ...] = (
        {"payload": lab.task(skill_id=lab.fresh())},
        {"payload": {}},
        {"timestamp": lab.timestamp(-3600)},
        {"recipient": "urn:asap:agent:somebody-else"},
        {"payload_type": "conform.unknown"},
    )
    for change in changes:
        refused((yield from lab.send(changed(lab.envelope(nonce=nonce), change))), ", ".join(change))
    accepted((yield from lab.send(lab.envelope(nonce=nonce))))


@REPLAY.law(
    clause="docs/security.md 4, 7",
    expected="the caller's own call is accepted: the stranger's was refused, and used nothing up",
    needs={Need.SKILL, Need.AUTH, Need.OTHER},
    strict=True,
)
def strangers_use_no_nonce(lab: Lab) -> Steps[None]:
    """A call in the caller's name by somebody else doesn't use up the caller's nonce."""
    nonce = lab.fresh()
    refused((yield from lab.send(lab.envelope(nonce=nonce), caller=lab.second_caller())))
    accepted((yield from lab.send(lab.envelope(nonce=nonce))))


@REPLAY.law(
    clause="docs/security.md 2",
    expected="it's refused for as long as its date is in the window",
    needs={Need.SKILL, Need.CLOCK},
    strict=True,
)
def nonces_are_kept_for_the_window(lab: Lab) -> Steps[None]:
    """A nonce is remembered until the date of its envelope is too old, also if that was dated ahead."""
    envelope = lab.envelope(timestamp=lab.timestamp(25))
    yield from lab.succeed(envelope)
    passed = 0
    for seconds in (70, 200, 40, 7, 7):
        passed += seconds
        yield from AdvanceClock(seconds)
        refused((yield from lab.send(envelope)), f"{passed} s after it was accepted")


@REPLAY.law(
    clause="docs/security.md 2", expected="it's refused, whatever the wall clock says",
    needs={Need.SKILL, Need.CLOCK}, strict=True,
)  # fmt: skip
def a_clock_that_is_set_back(lab: Lab) -> Steps[None]:
    """An envelope whose nonce was forgotten isn't accepted if the wall clock is set back."""
    envelope = lab.envelope()
    yield from lab.succeed(envelope)
    yield from AdvanceClock(1_000)
    yield from lab.succeed(lab.envelope())
    yield from AdvanceClock(step_wall=-1_000)
    refused((yield from lab.send(envelope)))


@REPLAY.law(
    clause="docs/security.md 2", expected="it's refused, whatever the wall clock says",
    needs={Need.SKILL, Need.CLOCK}, strict=True,
)  # fmt: skip
def a_clock_that_jumps_and_returns(lab: Lab) -> Steps[None]:
    """A nonce isn't forgotten because the wall clock was ahead for a while."""
    envelope = lab.envelope()
    yield from lab.succeed(envelope)
    yield from AdvanceClock(step_wall=1_000)
    yield from lab.send(lab.envelope())
    yield from AdvanceClock(step_wall=-1_000)
    refused((yield from lab.send(envelope)))


@REPLAY.law(clause="docs/security.md 2", expected="it's refused", needs={Need.SKILL, Need.IDEMPOTENCY}, strict=True)
def with_a_key_too(lab: Lab) -> Steps[None]:
    """A nonce that was accepted isn't accepted again under an idempotency key."""
    nonce = lab.fresh()
    yield from lab.succeed(lab.envelope(nonce=nonce))
    refused((yield from lab.send(lab.envelope(nonce=nonce), key=lab.fresh())))


@REPLAY.law(clause="docs/security.md 2, 4", expected="it's refused", needs={Need.SKILL}, strict=True)
def many_calls_later(lab: Lab) -> Steps[None]:
    """A nonce is remembered also after a thousand further calls."""
    envelope = lab.envelope()
    yield from lab.succeed(envelope)

    def judge() -> Steps[None]:
        refused((yield from lab.send(envelope)))

    yield from lab.many_later(lambda: lab.rpc(lab.envelope()), judge)


@REPLAY.law(
    clause="docs/security.md 2",
    expected="one is accepted, and all others are refused",
    needs={Need.SKILL},
)
def one_envelope_many_times_at_once(lab: Lab) -> Steps[None]:
    """The same envelope sent ten times at once is accepted once."""
    envelope = lab.envelope()
    requests = tuple(lab.post_request(to_body(lab.rpc(envelope))) for _ in range(10))
    answers = yield from SendTogether(requests)
    count = sum(each.is_success for each in answers)
    check(count <= 1, f"{count} were accepted")


@REPLAY.law(
    clause="docs/security.md 3; docs/restarts.md",
    expected="it's refused: it's dated before the start, or is remembered",
    needs={Need.SKILL, Need.RESET},
    strict=True,
)
def envelopes_from_before_a_start(lab: Lab) -> Steps[None]:
    """An envelope that was accepted isn't accepted again after the agent was started again."""
    envelope = lab.envelope()
    yield from lab.succeed(envelope)
    yield from Pause(0.1)  # so that its date, in microseconds, is before the start
    yield from ResetTarget()
    refused((yield from lab.send(envelope)))
