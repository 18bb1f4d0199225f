"""Laws of replies: an answer says what it answers, who answers, and to whom."""

import json
import re
from datetime import datetime
from typing import Final

from asap_core.testing.laws.checks import accepted, check
from asap_core.testing.laws.effects import Pause, Steps
from asap_core.testing.laws.lab import Lab
from asap_core.testing.laws.law import LawGroup, Severity
from asap_core.testing.laws.survey import HARMLESS_SKILL
from asap_core.testing.laws.verdicts import LawNotTried, Need
from asap_core.wire.json_values import JsonObject

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
    for example, chained in (("", None), ("a request with a correlation_id of its own", lab.fresh())):
        sent = lab.fresh()
        reply = accepted((yield from lab.send(lab.envelope(id=sent, correlation_id=chained))), example)
        got = reply.get("correlation_id")
        check(got == sent, f"correlation_id: {got!r}, sent id: {sent!r}", example)


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


@REPLIES.law(
    clause="docs/wire.md §9.4; docs/security.md 9, 28",
    expected="`recipient` is the caller of this call",
    needs={Need.SKILL, Need.AUTH, Need.OTHER},
)
def replies_to_two_callers(lab: Lab) -> Steps[None]:
    """Each of two callers gets replies to itself."""
    for caller in (lab.caller, lab.second_caller(), lab.caller):
        reply = accepted((yield from lab.send(lab.envelope(caller=caller), caller=caller)), caller.urn)
        check(reply.get("recipient") == caller.urn, f"recipient: {reply.get('recipient')!r}", caller.urn)


_STATUSES: Final = frozenset({"submitted", "working", "input_required", "completed", "failed", "cancelled"})
_FIELDS: Final = frozenset(
    {
        *("id", "asap_version", "timestamp", "sender", "recipient", "payload_type", "payload"),
        *("correlation_id", "trace_id", "requires_ack", "extensions"),
    }
)
# A call is dated so far ahead that its date can't be mistaken for the reply's.
_AHEAD: Final = 20
# Seconds between two replies: the dates of both differ, also if they're whole seconds.
_LATER: Final = 1.1
# What two clocks may differ by, and a slow agent may take.
_MOST_OFF: Final = 60
_RFC_3339: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)


@REPLIES.law(clause="docs/wire.md §1.1", expected="the eleven fields of an envelope, and no other", needs={Need.SKILL})
def fields(lab: Lab) -> Steps[None]:
    """A reply has every field of an envelope, null where it has no value, and no other."""
    reply = accepted((yield from lab.send(lab.envelope())))
    missing, unknown = _FIELDS - reply.keys(), reply.keys() - _FIELDS
    check(not missing, f"without {', '.join(sorted(missing))}")
    check(not unknown, f"with {', '.join(sorted(unknown))}")


@REPLIES.law(clause="docs/wire.md §1.4, §2.1", expected="`payload_type` is task.response", needs={Need.SKILL})
def payload_type(lab: Lab) -> Steps[None]:
    """A task request is answered by a task response."""
    reply = accepted((yield from lab.send(lab.envelope())))
    got = reply.get("payload_type")
    name = "".join(c for c in str(got).lower() if c.isalnum())
    check(name == "taskresponse", f"payload_type: {got!r}")


@REPLIES.law(
    clause="docs/wire.md §2.1, §2.4", expected="`task_id` is text, `status` is one of §2.4", needs={Need.SKILL}
)
def payload(lab: Lab) -> Steps[None]:
    """A task response names its task and one of the statuses of a task."""
    got = accepted((yield from lab.send(lab.envelope()))).get("payload")
    check(isinstance(got, dict), f"payload: {got!r}")
    answer = got if isinstance(got, dict) else {}
    check(isinstance(answer.get("task_id"), str), f"task_id: {answer.get('task_id')!r}")
    check(answer.get("status") in _STATUSES, f"status: {answer.get('status')!r}")


@REPLIES.law(
    clause="docs/wire.md §2.1", expected="each answer has a `task_id` of its own", needs={Need.SKILL}, strict=True
)
def task_ids_are_new(lab: Lab) -> Steps[None]:
    """Two tasks of one conversation have two ids."""
    conversation, found = lab.fresh(), []
    for _ in range(2):
        task = lab.task(conversation_id=conversation)
        payload = accepted((yield from lab.send(lab.envelope(payload=task)))).get("payload")
        found.append(payload.get("task_id") if isinstance(payload, dict) else None)
    check(found[0] != found[1] and conversation not in found, f"task ids: {found}, conversation_id: {conversation}")


@REPLIES.law(
    clause="docs/conformance.md, The skill echo",
    expected="the reply's result contains the input, unchanged",
    severity=Severity.SHOULD,
    needs={Need.SKILL},
)
def an_echo(lab: Lab) -> Steps[None]:
    """The skill echo answers with its own call's input."""
    if lab.skill != HARMLESS_SKILL:
        raise LawNotTried(f"the skill that may be run isn't {HARMLESS_SKILL}")
    for _ in range(2):
        sent: JsonObject = {"text": f"{lab.fresh()} ü 漢", "number": 3, "items": [1.5, None, True]}
        reply = accepted((yield from lab.send(lab.envelope(payload=lab.task(input=sent)))))
        wanted, got = (json.dumps(each, sort_keys=True) for each in (sent, reply.get("payload")))
        check(wanted in got, f"payload: {got}, sent: {wanted}")


# An agent that keeps `json_text.depth` refuses so many levels: if it counts brackets in text too, it refuses the text.
_BRACKETS: Final = "[" * 500
# Every reader can hold each of these: there's no integer that a double can't, and no double without a fraction.
_INPUTS: Final[tuple[tuple[str, JsonObject], ...]] = (
    ("a null", {"a": None}),
    ("an empty object", {}),
    ("empty values", {"a": {}, "b": [], "c": "", "": 0}),
    ("1 and true", {"a": [1, True], "b": [True, 1], "c": [0, False]}),
    ("arrays within arrays", {"a": [[[]], [[1, [None]]], []]}),
    ("brackets in a text", {"t": _BRACKETS}),
    ("brackets after a quotation mark in a text", {"t": f'"{_BRACKETS}'}),
    ("brackets after a backslash and a quotation mark in a text", {"t": f'\\"{_BRACKETS}'}),
    ("U+0000", {"t": "\0"}),
    ("U+1F600", {"t": "\U0001f600"}),
    ("a letter and its accent as two characters", {"t": "e\u0301", "e\u0301": 1}),
    ("keys that are names in JavaScript", {"__proto__": {"a": 1}, "constructor": 1, "toString": 2}),
)


@REPLIES.law(
    clause="docs/conformance.md, The skill echo; RFC 8259",
    expected="the reply's result, or the value of one of its keys, is the input, unchanged",
    severity=Severity.SHOULD,
    needs={Need.SKILL},
)
def echoes_are_unchanged(lab: Lab) -> Steps[None]:
    """The skill echo answers with its input unchanged, whatever JSON object it is."""
    if lab.skill != HARMLESS_SKILL:
        raise LawNotTried(f"the skill that may be run isn't {HARMLESS_SKILL}")
    for example, sent in _INPUTS:
        reply = accepted((yield from lab.send(lab.envelope(payload=lab.task(input=sent)))), example)
        payload = reply.get("payload")
        result = payload.get("result") if isinstance(payload, dict) else None
        values = [result, *result.values()] if isinstance(result, dict) else []
        # As texts, since to Python 1 is true.
        texts = [json.dumps(each, sort_keys=True) for each in values]
        check(json.dumps(sent, sort_keys=True) in texts, f"result: {json.dumps(result)[:80]}", example)


@REPLIES.law(clause="docs/wire.md §1.1", expected="each reply has an id of its own", needs={Need.SKILL})
def ids_are_new(lab: Lab) -> Steps[None]:
    """A reply has an id of its own: not the request's, and not another reply's."""
    sent = [lab.fresh(), lab.fresh()]
    first = accepted((yield from lab.send(lab.envelope(id=sent[0]))))
    second = accepted((yield from lab.send(lab.envelope(id=sent[1]))))
    got = [first.get("id"), second.get("id")]
    check(all(isinstance(each, str) and each for each in got), f"ids: {got}")
    check(len({*sent, *map(str, got)}) == len(sent) + len(got), f"ids: {got}, sent: {sent}")


@REPLIES.law(
    clause="docs/wire.md §1.2, §5",
    expected="`timestamp` is the agent's present time, at most a minute off",
    needs={Need.SKILL},
)
def dates(lab: Lab) -> Steps[None]:
    """A reply is dated when it's written."""
    sent = lab.timestamp(_AHEAD)
    reply = accepted((yield from lab.send(lab.envelope(timestamp=sent))))
    got = str(reply.get("timestamp"))
    check(got != sent, f"timestamp: the request's, {got}")
    at = datetime.fromisoformat(got).timestamp() if _RFC_3339.fullmatch(got) else None
    check(at is not None and abs(at - lab.wall()) < _MOST_OFF, f"timestamp: {got}, at {lab.timestamp()}")
    yield from Pause(_LATER)
    later = str(accepted((yield from lab.send(lab.envelope()))).get("timestamp"))
    then = datetime.fromisoformat(later).timestamp() if _RFC_3339.fullmatch(later) else None
    check(at is not None and then is not None and then > at, f"timestamp: {later}, {_LATER} s after {got}")


@REPLIES.law(clause="docs/wire.md §1.1", expected="`asap_version` is 0.1", needs={Need.SKILL})
def versions_of_replies(lab: Lab) -> Steps[None]:
    """A reply is of the version that peers read."""
    got = accepted((yield from lab.send(lab.envelope()))).get("asap_version")
    check(got == "0.1", f"asap_version: {got!r}")


@REPLIES.law(
    clause="docs/wire.md §1.1",
    expected="`trace_id` is the request's",
    severity=Severity.SHOULD,
    needs={Need.SKILL},
)
def trace_ids(lab: Lab) -> Steps[None]:
    """A reply has the trace_id of the envelope that it answers."""
    sent = lab.fresh()
    got = accepted((yield from lab.send(lab.envelope(trace_id=sent)))).get("trace_id")
    check(got == sent, f"trace_id: {got!r}, sent: {sent!r}")


@REPLIES.law(
    clause="docs/wire.md §5",
    expected="`extensions` doesn't contain the request's nonce",
    severity=Severity.HARDENING,
    needs={Need.SKILL},
)
def nonces_are_not_repeated(lab: Lab) -> Steps[None]:
    """A reply doesn't repeat the request's nonce."""
    nonce = lab.fresh()
    reply = accepted((yield from lab.send(lab.envelope(nonce=nonce))))
    check(nonce not in str(reply.get("extensions")), f"extensions: {reply.get('extensions')!r}")
