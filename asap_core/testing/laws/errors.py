"""Laws of errors: a refusal has one shape, and repeats nothing of what was sent."""

from typing import Final

from asap_core.testing.laws.checks import check, refused
from asap_core.testing.laws.effects import Steps
from asap_core.testing.laws.http_messages import Answer
from asap_core.testing.laws.lab import Lab, changed, to_body
from asap_core.testing.laws.law import LawGroup, Severity
from asap_core.testing.laws.verdicts import Need
from asap_core.wire.json_types import JsonObject

ERRORS: Final = LawGroup("errors", "a refusal has one shape and repeats nothing")

_FIELDS: Final = ("id", "timestamp", "sender", "payload_type", "payload", "extensions", "correlation_id")


def _refusals(lab: Lab, marker: str) -> dict[str, JsonObject]:
    """Return calls that are refused, each with the marker somewhere."""
    calls = {name: lab.rpc(changed(lab.envelope(), {name: [marker]})) for name in _FIELDS}
    calls["an unknown field"] = lab.rpc(changed(lab.envelope(), {marker: marker}))
    calls["the method"] = lab.rpc(lab.envelope(), method=marker)
    calls["the payload type"] = lab.rpc(lab.envelope(payload_type=marker))
    calls["the skill"] = lab.rpc(lab.envelope(payload=lab.task(skill_id=marker)))
    return calls


@ERRORS.law(
    clause="docs/security.md 22",
    expected="the refusal says what would have been right, and repeats nothing of what was sent",
    severity=Severity.HARDENING,
    needs={Need.SKILL},
    strict=True,
)
def nothing_is_repeated(lab: Lab) -> Steps[None]:
    """A refusal repeats no value and no name that was sent."""
    marker = f"zqx{lab.fresh()}"
    for example, call in _refusals(lab, marker).items():
        answer = yield from lab.call(call)
        refused(answer, example)
        check(marker.encode() not in answer.raw, "the answer repeats what was sent", example)


@ERRORS.law(
    clause="JSON-RPC 2.0 §5.1; docs/wire.md §4.2",
    expected="`jsonrpc`, the request's `id`, and an `error` with an integer code and a message; no `result`",
    needs={Need.SKILL},
)
def shape(lab: Lab) -> Steps[None]:
    """An error has an integer code, a message, and the id of its request."""
    for example, call in _refusals(lab, "marker").items():
        answer = yield from lab.call(call)
        refused(answer, example)
        _check_shape(answer, call, example)


def _check_shape(answer: Answer, call: JsonObject, example: str) -> None:
    error = answer.error or {}
    check(type(error.get("code")) is int, f"code: {error.get('code')!r}", example)
    check(isinstance(error.get("message"), str), f"message: {error.get('message')!r}", example)
    check(answer.document.get("jsonrpc") == "2.0", f"jsonrpc: {answer.document.get('jsonrpc')!r}", example)
    check(answer.document.get("id") == call["id"], f"id: {answer.document.get('id')!r}", example)
    check("result" not in answer.document, "a key `result` beside the error", example)


@ERRORS.law(
    clause="JSON-RPC 2.0 §5; docs/errors.md",
    expected="status 200 and Parse error (-32700) with the id null",
)
def unreadable_bodies(lab: Lab) -> Steps[None]:
    """A body that isn't JSON is answered by Parse error, with a null id."""
    for example, body in (("nothing", b""), ("text", b"hello"), ("half an object", b'{"jsonrpc": ')):
        answer = yield from lab.post(body)
        check(answer.code == -32700, answer, example)  # noqa: PLR2004 - JSON-RPC's
        check(answer.document.get("id", 0) is None, f"id: {answer.document.get('id')!r}", example)


@ERRORS.law(
    clause="docs/errors.md",
    expected="each has the `data.code` of docs/errors.md",
    severity=Severity.SHOULD,
    needs={Need.SKILL},
    strict=True,
)
def taxonomy(lab: Lab) -> Steps[None]:
    """A refusal names its reason in `data.code`."""
    twice = lab.envelope()
    yield from lab.succeed(twice)
    for code, call in {
        "asap:protocol/invalid_nonce": lab.rpc(twice),
        "asap:protocol/invalid_timestamp": lab.rpc(lab.envelope(timestamp=lab.timestamp(-3600))),
        "asap:protocol/malformed_envelope": lab.rpc(lab.envelope(payload=1)),
        "asap:transport/handler_not_found": lab.rpc(lab.envelope(payload_type="x.unknown", payload={})),
        "asap:rpc/method_not_found": lab.rpc(lab.envelope(), method="asap.other"),
    }.items():
        answer = yield from lab.post(to_body(call))
        refused(answer, code, codes=[code])
