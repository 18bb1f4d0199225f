"""Laws of idempotency: work under a key is done once."""

import json
from typing import Final

from asap_core.testing.laws.checks import accepted, check, refused, repeated
from asap_core.testing.laws.effects import AdvanceClock, SendTogether, Steps
from asap_core.testing.laws.http_messages import Answer
from asap_core.testing.laws.lab import TOO_MANY_REQUESTS, Change, Lab, changed, to_body
from asap_core.testing.laws.law import LawGroup, Severity
from asap_core.testing.laws.survey import HARMLESS_SKILL
from asap_core.testing.laws.verdicts import Need
from asap_core.wire.json_values import Json, JsonObject

IDEMPOTENCY: Final = LawGroup("idempotency", "work under a key is done once")

_NEEDS: Final = frozenset({Need.SKILL, Need.IDEMPOTENCY})


@IDEMPOTENCY.law(
    clause="docs/wire.md §9.3; docs/security.md 5",
    expected="the second answer has the payload of the first one, with the same task id",
    needs=_NEEDS,
    strict=True,
)
def the_same_answer(lab: Lab) -> Steps[None]:
    """A repeated request under one key gets the first answer: the work isn't done again."""
    key, name, payload = lab.fresh(), lab.fresh(), lab.task()
    first = yield from lab.succeed(lab.envelope(id=name, payload=payload), key=key)
    retry = lab.envelope(id=name, payload=payload, timestamp=lab.timestamp(1))
    repeated((yield from lab.send(retry, key=key)), first)


# Inputs that a careless reader takes for equal.
_ALIKE: Final[tuple[tuple[JsonObject, JsonObject], ...]] = (
    ({"n": 1}, {"n": True}), ({"n": 0}, {"n": False}), ({"n": 1}, {"n": "1"}), ({"n": None}, {}),
    ({"n": "\xe9"}, {"n": "e\u0301"}), ({"n": [1, 2]}, {"n": [2, 1]}),
)  # fmt: skip


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
    answer = yield from lab.send(other, key=key)
    refused(answer, "another conversation_id and the same input", codes=["asap:admission/key_mismatch"])
    # Another skill may refuse such an input.
    for first, second in _ALIKE if lab.skill == HARMLESS_SKILL else ():
        key, payload = lab.fresh(), lab.task(input=first)
        yield from lab.succeed(lab.envelope(payload=payload), key=key)
        answer = yield from lab.send(lab.envelope(payload={**payload, "input": second}), key=key)
        example = f"input: {json.dumps(second)} for {json.dumps(first)}"
        refused(answer, example, codes=["asap:admission/key_mismatch"])


@IDEMPOTENCY.law(
    clause="docs/security.md 6",
    expected="the second caller gets an answer of its own: keys belong to their caller",
    needs=_NEEDS | {Need.AUTH, Need.OTHER},
    strict=True,
)
def keys_belong_to_their_caller(lab: Lab) -> Steps[None]:
    """A key that one caller used is free for another, and shows it nothing."""
    key, other, name, is_echo = lab.fresh(), lab.second_caller(), lab.fresh(), lab.skill == HARMLESS_SKILL
    payloads = [lab.task(input={"text": lab.fresh()}) if is_echo else lab.task() for _ in range(2)]
    first = accepted((yield from lab.succeed(lab.envelope(payload=payloads[0]), key=key)))
    second = lab.envelope(id=name, caller=other, payload=payloads[1])
    reply = accepted((yield from lab.send(second, key=key, caller=other)))
    check(reply.get("correlation_id") == name, f"correlation_id {reply.get('correlation_id')!r}")
    # Another skill may answer all callers alike, and an agent may give all replies one id: both together are a leak.
    is_own = reply.get("payload") != first.get("payload") or (not is_echo and reply.get("id") != first.get("id"))
    check(is_own, f"the first caller's answer: {reply.get('payload')}")


def _reordered(value: Json) -> Json:
    """Return the same value with the keys of each object in the opposite order."""
    if isinstance(value, dict):
        return {key: _reordered(value[key]) for key in reversed(value)}
    return [_reordered(each) for each in value] if isinstance(value, list) else value


@IDEMPOTENCY.law(
    clause="docs/security.md 5; RFC 8259 §4",
    expected="the first answer: it's the same request",
    needs=_NEEDS,
    strict=True,
)
def retries_are_compared_by_value(lab: Lab) -> Steps[None]:
    """A retry that is written as other JSON text, in order of keys or in blanks, gets the first answer."""
    key, payload = lab.fresh(), lab.task()
    first = yield from lab.send(lab.envelope(payload=payload), key=key)
    again = lab.rpc(lab.envelope(payload=payload), key=key)
    reordered = _reordered(lab.rpc(lab.envelope(payload=payload), key=key))
    for example, body in (("other blanks", json.dumps(again, indent=3).encode()), ("other order", to_body(reordered))):
        repeated((yield from lab.post(body)), first, example)
    other = lab.envelope(payload=payload, payload_type="TaskRequest")
    repeated((yield from lab.send(other, key=key)), first, "another spelling of the payload type")


_HEADER: Final = "X-Idempotency-Key"
# Requests that are sent at once.
_MANY: Final = 8
_REFUSED: Final = "each is refused, by Invalid params (-32602)"


def _with_header(lab: Lab, envelope: JsonObject, *keys: str, key: str | None = None) -> Steps[Answer]:
    """Send an envelope with these keys in the head, and one in the body."""
    return (yield from lab.call(lab.rpc(envelope, key=key), headers=[(_HEADER, each) for each in keys]))


@IDEMPOTENCY.law(
    clause="docs/security.md 5",
    expected="the first answer: a retry isn't a replay",
    needs=_NEEDS,
    strict=True,
)
def the_very_same_request(lab: Lab) -> Steps[None]:
    """The very same request under a key, with its nonce, gets the first answer."""
    call = lab.rpc(lab.envelope(), key=lab.fresh())
    first = yield from lab.call(call)
    repeated((yield from lab.call(call)), first)


@IDEMPOTENCY.law(clause="docs/wire.md §4.1", expected="the first answer", needs=_NEEDS, strict=True)
def keys_in_the_head(lab: Lab) -> Steps[None]:
    """A key in the header X-Idempotency-Key, in any case, counts like one in the body."""
    key, payload = lab.fresh(), lab.task()
    first = yield from _with_header(lab, lab.envelope(payload=payload), key)
    repeated((yield from _with_header(lab, lab.envelope(payload=payload), key)), first)
    repeated((yield from lab.send(lab.envelope(payload=payload), key=key)), first, "in the body")
    for name in (_HEADER.lower(), _HEADER.upper()):
        again = yield from lab.call(lab.rpc(lab.envelope(payload=payload)), headers=[(name, key)])
        repeated(again, first, name)


@IDEMPOTENCY.law(
    clause="docs/wire.md §4.1", expected="it's refused", severity=Severity.HARDENING, needs=_NEEDS, strict=True
)
def head_and_body_agree(lab: Lab) -> Steps[None]:
    """Two different keys, in head and body, are refused."""
    refused((yield from _with_header(lab, lab.envelope(), lab.fresh(), key=lab.fresh())))


@IDEMPOTENCY.law(
    clause="docs/wire.md §4.1", expected="it's refused", severity=Severity.HARDENING, needs=_NEEDS, strict=True
)
def one_key_in_the_head(lab: Lab) -> Steps[None]:
    """Two headers with different keys are refused."""
    refused((yield from _with_header(lab, lab.envelope(), lab.fresh(), lab.fresh())))


@IDEMPOTENCY.law(clause="docs/wire.md §4.1", expected=_REFUSED, needs=_NEEDS, strict=True)
def keys_are_text(lab: Lab) -> Steps[None]:
    """A key that isn't text, or is empty, is refused."""
    wrong: tuple[JsonObject, ...] = ({"key": 7}, {"key": True}, {"key": [lab.fresh()]}, {"key": ""})
    for each in wrong:
        params: JsonObject = {"envelope": lab.envelope(), "idempotency_key": each["key"]}
        refused((yield from lab.call(lab.rpc(lab.envelope(), params=params))), f"key {each['key']!r}")


@IDEMPOTENCY.law(
    clause="docs/security.md 6", expected="it's refused", severity=Severity.HARDENING, needs=_NEEDS, strict=True
)
def keys_are_bounded(lab: Lab) -> Steps[None]:
    """A key of a thousand characters is refused."""
    refused((yield from lab.send(lab.envelope(), key=lab.fresh() + "a" * 1_000)))


@IDEMPOTENCY.law(
    clause="docs/errors.md; docs/security.md 6", expected="it's accepted, in the body and in the head",
    severity=Severity.SHOULD, needs=_NEEDS, strict=True,
)  # fmt: skip
def keys_at_the_bound(lab: Lab) -> Steps[None]:
    """A key of 256 characters is accepted."""
    accepted((yield from lab.send(lab.envelope(), key=lab.fresh().ljust(256, "\u6f22"))), "in the body")
    accepted((yield from _with_header(lab, lab.envelope(), lab.fresh().ljust(256, "a"))), "in the head")


@IDEMPOTENCY.law(clause="docs/security.md 5", expected="an answer of its own for each: it's another key", needs=_NEEDS)
def keys_are_compared_whole(lab: Lab) -> Steps[None]:
    """Keys that differ in case, or after many characters, are two keys."""
    key = f"{lab.fresh()}-{'a' * 50}"
    accepted((yield from lab.send(lab.envelope(), key=key)))
    for example, other in (("upper case", key.upper()), ("longer", f"{key}b"), ("shorter", key[:-1])):
        accepted((yield from lab.send(lab.envelope(), key=other)), example)
    for length in (150, 256):
        for place in ("in the body", "in the head"):
            example, key = f"another last character of {length}, {place}", lab.fresh().ljust(length - 1, "a")
            for letter in "ab":
                if place == "in the head":
                    answer = yield from _with_header(lab, lab.envelope(), f"{key}{letter}")
                else:
                    answer = yield from lab.send(lab.envelope(), key=f"{key}{letter}")
                accepted(answer, example)


@IDEMPOTENCY.law(
    clause="docs/security.md 5", expected="an answer of its own for each: it's another key", needs=_NEEDS, strict=True
)
def characters_of_keys(lab: Lab) -> Steps[None]:
    """Keys that differ in a blank, or in Unicode's form only, are two keys."""
    key = lab.fresh()
    for other in (f"{key}\xe9", f"{key}e\u0301", f"{key} \xe9", f" {key}\xe9", f"{key}\xe9 "):
        accepted((yield from lab.send(lab.envelope(), key=other)), ascii(other))


@IDEMPOTENCY.law(
    clause="docs/security.md 5",
    expected="one answer for all, or asap:admission/still_running (-32062): the work is done once",
    needs=_NEEDS,
    strict=True,
)
def many_at_once(lab: Lab) -> Steps[None]:
    """Many requests under one key at once have the work done once."""
    key, payload = lab.fresh(), lab.task()
    calls = [to_body(lab.rpc(lab.envelope(payload=payload), key=key)) for _ in range(_MANY)]
    answers = yield from SendTogether(tuple(lab.post_request(each) for each in calls))
    done = [each for each in answers if each.error is None]
    check(done, f"none was accepted: {answers[0]}")
    for each in answers:
        if each.error is None:
            repeated(each, done[0], "the work was done more than once")
        elif each.status != TOO_MANY_REQUESTS:
            refused(each, codes=["asap:admission/still_running"])


@IDEMPOTENCY.law(
    clause="docs/security.md 5",
    expected="one answer for both, or asap:admission/still_running (-32062): the work is done once",
    needs=_NEEDS | {Need.BATCH},
    strict=True,
)
def within_a_batch(lab: Lab) -> Steps[None]:
    """Two requests of a batch under one key have the work done once."""
    key, payload = lab.fresh(), lab.task()
    answer = yield from lab.call([lab.rpc(lab.envelope(payload=payload), key=key) for _ in range(2)])
    results = [each.get("result") for each in answer.items]
    replies = [each.get("envelope") for each in results if isinstance(each, dict)]
    payloads = [each.get("payload") for each in replies if isinstance(each, dict)]
    check(len(answer.items) == 2 and payloads, answer)  # noqa: PLR2004 - both requests'
    check(all(each == payloads[0] for each in payloads), f"two payloads, the work was done twice: {payloads}")


@IDEMPOTENCY.law(
    clause="docs/security.md 5",
    expected="the first answer, nine minutes later",
    needs=_NEEDS | {Need.CLOCK},
    strict=True,
)
def answers_are_kept(lab: Lab) -> Steps[None]:
    """An answer is kept for retries for ten minutes."""
    key, payload = lab.fresh(), lab.task()
    first = yield from lab.send(lab.envelope(payload=payload), key=key)
    accepted(first)
    yield from AdvanceClock(540)
    repeated((yield from lab.send(lab.envelope(payload=payload), key=key)), first)


@IDEMPOTENCY.law(clause="docs/security.md 5", expected="the first answer", needs=_NEEDS, strict=True)
def many_calls_later(lab: Lab) -> Steps[None]:
    """An answer is kept for retries also after a thousand calls under other keys."""
    key, payload = lab.fresh(), lab.task()
    first = yield from lab.succeed(lab.envelope(payload=payload), key=key)

    def judge() -> Steps[None]:
        repeated((yield from lab.send(lab.envelope(payload=payload), key=key)), first)

    yield from lab.many_later(lambda: lab.rpc(lab.envelope(), key=lab.fresh()), judge)


@IDEMPOTENCY.law(
    clause="docs/wire.md §1.5, §4.1, §9.3; docs/security.md 28",
    expected="the retry's own JSON-RPC id and `trace_id`, and the retry's envelope id as `correlation_id`",
    needs=_NEEDS,
    strict=True,
)
def retries_have_answers_of_their_own(lab: Lab) -> Steps[None]:
    """The answer to a retry names the retry, not the first request."""
    key, payload, name, call = lab.fresh(), lab.task(), lab.fresh(), lab.fresh()
    traces = [lab.fresh(), lab.fresh()]
    accepted((yield from lab.send(lab.envelope(payload=payload, trace_id=traces[0]), key=key)))
    envelope = lab.envelope(id=name, payload=payload, trace_id=traces[1])
    answer = yield from lab.call(lab.rpc(envelope, key=key, id=call))
    reply = accepted(answer)
    check(answer.document.get("id") == call, f"id: {answer.document.get('id')!r}")
    check(reply.get("correlation_id") == name, f"correlation_id: {reply.get('correlation_id')!r}")
    got = reply.get("trace_id")
    whose = "the first request's" if got == traces[0] else "neither request's"
    check(got == traces[1], f"trace_id: {got!r}, {whose}")


@IDEMPOTENCY.law(
    clause="docs/security.md 1, 5",
    expected="each is refused, by asap:protocol/invalid_timestamp (-32002), and the key is still good for a new date",
    needs=_NEEDS,
    strict=True,
)
def retries_have_a_date(lab: Lab) -> Steps[None]:
    """A retry whose date is outside the window is refused, though its answer is kept."""
    key, payload = lab.fresh(), lab.task()
    first = yield from lab.succeed(lab.envelope(payload=payload), key=key)
    for example, seconds in (("an hour old", -3600), ("an hour ahead", 3600)):
        retry = lab.envelope(payload=payload, timestamp=lab.timestamp(seconds))
        refused((yield from lab.send(retry, key=key)), example, codes=[-32002, "asap:protocol/invalid_timestamp"])
    repeated((yield from lab.send(lab.envelope(payload=payload), key=key)), first, "a present date")


@IDEMPOTENCY.law(clause="docs/security.md 5", expected="the corrected request is accepted", needs=_NEEDS, strict=True)
def refused_calls_use_no_key(lab: Lab) -> Steps[None]:
    """A call that is refused doesn't use up its key."""
    payload = lab.task()
    changes: dict[str, dict[str, Change]] = {
        "its skill": {"payload": {**payload, "skill_id": lab.fresh()}},
        "its date": {"timestamp": lab.timestamp(-3600)},
    }
    for what, change in changes.items():
        key, name = lab.fresh(), lab.fresh()
        wrong = changed(lab.envelope(id=name, payload=payload), change)
        refused((yield from lab.send(wrong, key=key)), f"a call that is wrong in {what}")
        answer = yield from lab.send(lab.envelope(id=name, payload=payload), key=key)
        check(answer.is_success, f"after a refusal for {what}, the key counts as used: {answer}", at=answer)
        accepted(answer)


@IDEMPOTENCY.law(
    clause="docs/security.md 5",
    expected="the same envelope is accepted under a key of its own: a request that can't run uses no nonce up",
    needs=_NEEDS,
    strict=True,
)
def mismatches_use_no_nonce(lab: Lab) -> Steps[None]:
    """A request that its key refuses doesn't use up its nonce."""
    key = lab.fresh()
    yield from lab.succeed(lab.envelope(), key=key)
    envelope = lab.envelope()
    refused((yield from lab.send(envelope, key=key)), codes=["asap:admission/key_mismatch"])
    accepted((yield from lab.send(envelope, key=lab.fresh())), "under a new key")
