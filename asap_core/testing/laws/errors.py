"""Laws of errors: a refusal has one shape, and repeats nothing of what was sent."""

from collections.abc import Iterator, Sequence
from typing import Final

from asap_core.testing.laws.checks import check, refused
from asap_core.testing.laws.effects import Pause, ResetTarget, Steps
from asap_core.testing.laws.http_messages import Answer
from asap_core.testing.laws.lab import Caller, Lab, changed, to_body
from asap_core.testing.laws.law import LawGroup, Severity
from asap_core.testing.laws.verdicts import LawBroken, LawNotTried, Need
from asap_core.wire.json_values import Json, JsonObject

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


def _places(value: Json, marker: str, place: str = "") -> Iterator[str]:
    """Yield where in a JSON value a text occurs: keys and indexes, joined."""
    if isinstance(value, dict):
        for key, each in value.items():
            if marker in key:
                yield f"a name in {place or 'the body'}"
            yield from _places(each, marker, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _places(each, marker, f"{place}[{number}]")
    elif isinstance(value, str) and marker in value:
        yield place or "the body"


def _repeats_nothing(answer: Answer, marker: str, example: str) -> None:
    """Check that an answer doesn't contain a text that was sent; if it does, say where."""
    if marker.encode() in answer.raw:
        place = "the body" if marker.encode() in answer.body else "the head"
        place = next(_places(answer.json, marker), place)
        raise LawBroken(f"the answer repeats what was sent, in {place}", answer, example=example)


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
        _repeats_nothing(answer, marker, example)


@ERRORS.law(
    clause="JSON-RPC 2.0 §5.1; docs/wire.md §4.2",
    expected="`jsonrpc`, the request's `id`, and an `error` with an integer code and a message; no `result`",
    needs={Need.SKILL},
)
def shape(lab: Lab) -> Steps[None]:
    """An error has an integer code, a message, and the id of its request."""
    calls = _refusals(lab, "marker")
    calls |= {f"the id {value!r}": lab.rpc(lab.envelope(payload=1), id=value) for value in (0, "")}
    for example, call in calls.items():
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
    needs={Need.ADMITTED},
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
        "asap:admission/misaddressed": lab.rpc(lab.envelope(recipient="urn:asap:agent:somebody-else")),
    }.items():
        answer = yield from lab.post(to_body(call))
        refused(answer, code, codes=[code])


@ERRORS.law(
    clause="docs/security.md 22",
    expected="the refusal of a replay doesn't contain the nonce",
    severity=Severity.HARDENING,
    needs={Need.SKILL},
)
def no_nonce_is_repeated(lab: Lab) -> Steps[None]:
    """The refusal of a replay doesn't repeat the nonce."""
    twice = lab.envelope(nonce=f"zqx{lab.fresh()}")
    yield from lab.succeed(twice)
    yield from _is_not_repeated(lab, to_body(lab.rpc(twice)))


@ERRORS.law(
    clause="docs/security.md 22",
    expected="the refusal doesn't contain what was sent",
    severity=Severity.HARDENING,
    needs={Need.ADMITTED},
)
def no_text_is_repeated(lab: Lab) -> Steps[None]:
    """The refusal of what isn't JSON doesn't repeat it."""
    yield from _is_not_repeated(lab, b"zqx a text that is no JSON")
    yield from _is_not_repeated(lab, b'{"zqx": 1, "a": zqx}')


@ERRORS.law(
    clause="docs/security.md 11, 22",
    expected="the refusal of a token doesn't contain it",
    needs={Need.AUTH},
)
def no_token_is_repeated(lab: Lab) -> Steps[None]:
    """The refusal of an unknown token doesn't repeat it."""
    stranger = Caller(lab.caller.urn, "zqx-nobody-issued-this")
    yield from _is_not_repeated(lab, to_body(lab.rpc(lab.envelope())), caller=stranger)


@ERRORS.law(
    clause="docs/security.md 22",
    expected="the refusal of a version doesn't contain it",
    severity=Severity.HARDENING,
    needs={Need.SKILL},
    strict=True,
)
def no_version_is_repeated(lab: Lab) -> Steps[None]:
    """The refusal of an unknown version doesn't repeat it."""
    yield from _is_not_repeated(lab, to_body(lab.rpc(lab.envelope())), headers=[("ASAP-Version", "zqx")])


def _is_not_repeated(
    lab: Lab, body: bytes, *, headers: Sequence[tuple[str, str]] = (), caller: Caller | None = None
) -> Steps[None]:
    answer = yield from lab.post(body, headers=headers, caller=caller)
    refused(answer)
    check(b"zqx" not in answer.raw, "the answer repeats what was sent")


@ERRORS.law(
    clause="docs/errors.md; docs/security.md 22",
    expected="`data.validation_errors` has a member for each field that is wrong, with the field's name in its place",
    severity=Severity.SHOULD,
    needs={Need.SKILL},
)
def every_problem_is_named(lab: Lab) -> Steps[None]:
    """A malformed envelope is refused with a list of everything that is wrong, and where."""
    answer = yield from lab.send(lab.envelope(payload_type=7, requires_ack="yes"))
    refused(answer)
    problems = answer.data.get("validation_errors")
    check(isinstance(problems, list), f"data: {answer.data}")
    for name in ("payload_type", "requires_ack"):
        check(f"'{name}'" in str(problems), f"validation_errors: {problems}", name)


@ERRORS.law(
    clause="docs/errors.md",
    expected="`data.recoverable` is true for an old date, and false for what stays wrong",
    severity=Severity.SHOULD,
    needs={Need.SKILL},
    strict=True,
)
def recoverable(lab: Lab) -> Steps[None]:
    """A refusal says whether the same request may succeed later."""
    for example, envelope, again in (
        ("an old date", lab.envelope(timestamp=lab.timestamp(-3600)), True),
        ("a malformed envelope", lab.envelope(payload=1), False),
        ("an unknown skill", lab.envelope(payload=lab.task(skill_id=lab.fresh())), False),
    ):
        answer = yield from lab.send(envelope)
        refused(answer, example)
        check(answer.data.get("recoverable") is again, f"recoverable: {answer.data.get('recoverable')!r}", example)


@ERRORS.law(
    clause="docs/errors.md",
    expected="`data.retry_after_ms` is a number of milliseconds",
    severity=Severity.SHOULD,
    needs={Need.SKILL},
    strict=True,
)
def when_to_try_again(lab: Lab) -> Steps[None]:
    """A refusal that may pass says when to try again."""
    answer = yield from lab.send(lab.envelope(timestamp=lab.timestamp(-3600)))
    refused(answer)
    after = answer.data.get("retry_after_ms")
    check(isinstance(after, int) and after >= 0, f"retry_after_ms: {after!r}")


@ERRORS.law(
    clause="RFC 9110 §10.2.3; docs/errors.md",
    expected="Retry-After in whole seconds, as long as `data.retry_after_ms`",
    severity=Severity.SHOULD,
    needs={Need.SKILL, Need.RESET},
    strict=True,
)
def retry_after(lab: Lab) -> Steps[None]:
    """A refusal with the status 503 says in its head, too, when to try again."""
    envelope = lab.envelope()
    yield from lab.succeed(envelope)
    yield from Pause(0.1)
    yield from ResetTarget()
    answer = yield from lab.send(envelope)
    if answer.status != 503:  # noqa: PLR2004 - HTTP's
        raise LawNotTried(f"the agent doesn't answer 503 to what is dated before its start: {answer}")
    header, wanted = answer.header("retry-after") or "", answer.data.get("retry_after_ms")
    check(header.isdecimal(), f"{answer}, Retry-After: {header!r}")
    is_same = isinstance(wanted, int | float) and abs(int(header) * 1000 - wanted) <= 1_000  # noqa: PLR2004 - rounded up
    check(is_same, f"Retry-After: {header}, retry_after_ms: {wanted}")


@ERRORS.law(
    clause="docs/wire.md §4.2; docs/errors.md",
    expected="status 200, which is not an error of HTTP: docs/errors.md lists the refusals that have another one",
    needs={Need.SKILL},
)
def status_of_refusals(lab: Lab) -> Steps[None]:
    """A malformed envelope, or an unknown method, payload type or skill, is refused with the HTTP status 200."""
    for example, call in _refusals(lab, "marker").items():
        answer = yield from lab.call(call)
        refused(answer, example, statuses=[200])


@ERRORS.law(
    clause="docs/security.md 22",
    expected="no refusal contains a traceback or the name of a source file",
    severity=Severity.HARDENING,
    needs={Need.SKILL},
)
def no_traceback(lab: Lab) -> Steps[None]:
    """A refusal tells nothing of the agent's code."""
    for example, call in _refusals(lab, "marker").items():
        answer = yield from lab.call(call)
        shown = [text for text in (b"Traceback", b'File \\"', b".py") if text in answer.raw]
        check(not shown, f"the answer contains {shown}", example)


@ERRORS.law(
    clause="docs/wire.md §4.2; docs/errors.md",
    expected="a JSON object with `detail` or `error`",
    severity=Severity.SHOULD,
    needs={Need.ADMITTED},
)
def refusals_below_json_rpc(lab: Lab) -> Steps[None]:
    """What is refused before JSON-RPC is read has a JSON body too."""
    for example, request in (
        ("an unknown path", lab.request("GET", f"{lab.root}/conform-unknown")),
        ("another method", lab.request("GET", lab.path, headers=lab.caller.credentials)),
        ("an unknown coding", lab.post_request(b"{}", headers=[("Content-Encoding", "x-unknown")])),
    ):
        answer = yield from lab.fetch(request)
        check({"detail", "error"} & answer.document.keys(), f"{answer}: {answer.body[:100]!r}", example)


@ERRORS.law(
    clause="docs/security.md 22",
    expected="the refusal repeats neither sender nor recipient, and doesn't tell whose the token is",
    severity=Severity.HARDENING,
    needs={Need.SKILL},
    strict=True,
)
def no_urn_is_repeated(lab: Lab) -> Steps[None]:
    """The refusal of a sender or a recipient repeats no URN that was sent, and doesn't tell the right one."""
    marker = f"urn:asap:agent:{lab.fresh()}".lower().replace("_", "-")[:200]
    for example, envelope in (
        ("a recipient", lab.envelope(recipient=marker)),
        ("a sender", lab.envelope(sender=marker)),
    ):
        answer = yield from lab.send(envelope)
        if answer.error is not None:
            _repeats_nothing(answer, marker, example)
            check(lab.caller.urn.encode() not in answer.raw, "the answer names the caller", example)


@ERRORS.law(
    clause="docs/security.md 22",
    expected="the body doesn't repeat the path",
    severity=Severity.HARDENING,
    strict=True,
)
def no_path_is_repeated(lab: Lab) -> Steps[None]:
    """The answer to an unknown path doesn't repeat it."""
    marker = f"zqx{lab.fresh()}"
    answer = yield from lab.get(f"/{marker}")
    check(marker.encode() not in answer.raw, f"{answer}: the answer repeats the path")
