"""Laws of skills that fail: the caller gets an error that tells nothing of the cause, and others notice nothing."""

import re
from typing import Final

from asap_core.testing.laws.checks import accepted, check, refused
from asap_core.testing.laws.effects import Steps
from asap_core.testing.laws.http_messages import Answer
from asap_core.testing.laws.lab import Lab
from asap_core.testing.laws.law import LawGroup, Severity
from asap_core.testing.laws.verdicts import Need
from asap_core.wire.json_values import JsonObject

FAILURES: Final = LawGroup("failures", "a skill that fails harms only its own call")

_INTERNAL_ERROR: Final = -32603
# Failures one after the other: more than a small pool of workers has.
_MANY: Final = 20
# What errors of common languages look like: names of exceptions and of source files, and the first words of a trace.
_INTERNALS: Final = re.compile(
    rb"Traceback|goroutine \d|panicked at|[a-z](?:Error|Exception)\b|\.(?:py|go|rs|java|js|ts|rb|cs)\b"
)


def _failing(lab: Lab, marker: str = "fail") -> JsonObject:
    """Return an envelope whose work fails. marker: it's in the input."""
    return lab.envelope(payload=lab.task(skill_id=lab.failing, input={**lab.input, "text": marker}))


def _failed(answer: Answer, example: str = "") -> JsonObject:
    """Check that the work failed and that the answer says so. Returns the error."""
    check(answer.code == _INTERNAL_ERROR, answer, example)
    return answer.error or {}


@FAILURES.law(
    clause="docs/errors.md; JSON-RPC 2.0 §5.1",
    expected="status 200 and Internal error (-32603), with the request's id and a message, without a result",
    needs={Need.FAILING},
)
def failures_are_errors(lab: Lab) -> Steps[None]:
    """A call whose skill fails is answered by an error of JSON-RPC."""
    call = lab.rpc(_failing(lab))
    answer = yield from lab.call(call)
    error = _failed(answer)
    check(answer.status == 200, answer)  # noqa: PLR2004 - HTTP's
    check(isinstance(error.get("message"), str), f"message: {error.get('message')!r}")
    check(answer.document.get("id") == call["id"], f"id: {answer.document.get('id')!r}")
    check("result" not in answer.document, "a key `result` beside the error")


@FAILURES.law(
    clause="docs/security.md 22",
    expected="no part of the input, no name of an exception or of a source file, no trace",
    severity=Severity.HARDENING,
    needs={Need.FAILING},
)
def causes_are_not_told(lab: Lab) -> Steps[None]:
    """The answer to a call whose skill fails tells nothing of the cause."""
    marker = f"zqx{lab.fresh()}"
    answer = yield from lab.send(_failing(lab, marker))
    _failed(answer)
    check(marker.encode() not in answer.raw, "the answer repeats the input")
    shown = _INTERNALS.search(answer.body)
    check(shown is None, f"the answer contains {shown and shown[0]!r}")


@FAILURES.law(
    clause="docs/errors.md",
    expected="`data.code` is asap:rpc/internal_error, and `data.recoverable` is false",
    severity=Severity.SHOULD,
    needs={Need.FAILING},
    strict=True,
)
def failures_have_a_code(lab: Lab) -> Steps[None]:
    """A failure is named in `data.code`, and the caller is told not to try again."""
    answer = yield from lab.send(_failing(lab))
    _failed(answer)
    check(answer.taxonomy == "asap:rpc/internal_error", f"data.code: {answer.taxonomy!r}")
    check(answer.data.get("recoverable") is False, f"recoverable: {answer.data.get('recoverable')!r}")


@FAILURES.law(
    clause="docs/security.md 16",
    expected="each is accepted",
    needs={Need.FAILING, Need.SKILL},
)
def calls_after_a_failure(lab: Lab) -> Steps[None]:
    """Calls after one whose skill failed are answered as before, also after many."""
    for number in range(_MANY):
        _failed((yield from lab.send(_failing(lab))), f"failure {number + 1}")
        accepted((yield from lab.send(lab.envelope())), f"the call after failure {number + 1}")


@FAILURES.law(
    clause="docs/wire.md §4.1; JSON-RPC 2.0 §6",
    expected="an error in its place, and results in the others'",
    needs={Need.FAILING, Need.SKILL, Need.BATCH},
)
def failures_in_a_batch(lab: Lab) -> Steps[None]:
    """A skill that fails in a batch harms no other request of it."""
    answer = yield from lab.call([lab.rpc(lab.envelope()), lab.rpc(_failing(lab)), lab.rpc(lab.envelope())])
    kinds = ["result" if "result" in each else "error" for each in answer.items]
    check(kinds == ["result", "error", "result"], f"{answer}: {kinds}")


@FAILURES.law(
    clause="docs/security.md 2",
    expected="it's refused: the work was begun, and may have been done in part",
    needs={Need.FAILING},
)
def failed_calls_are_used_up(lab: Lab) -> Steps[None]:
    """An envelope whose skill failed isn't accepted again."""
    envelope = _failing(lab)
    _failed((yield from lab.send(envelope)))
    refused((yield from lab.send(envelope)))


@FAILURES.law(
    clause="docs/security.md 5; docs/wire.md §9.3",
    expected="the retry gets the first answer, also with the same nonce; another request under the key is refused",
    needs={Need.FAILING, Need.SKILL, Need.IDEMPOTENCY},
    strict=True,
)
def failures_are_kept(lab: Lab) -> Steps[None]:
    """A failure is kept under its key like any answer."""
    key = lab.fresh()
    call = lab.rpc(_failing(lab), key=key)
    first = _failed((yield from lab.call(call)))
    second = _failed((yield from lab.call(call)), "the very same request")
    check(second == first, f"another error: {second}", "the very same request")
    refused((yield from lab.send(lab.envelope(), key=key)), "another request", codes=["asap:admission/key_mismatch"])
