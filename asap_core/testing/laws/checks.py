"""How answers are judged: each function returns if the answer is right, and raises `LawBroken` if not.

example: which variant of the input it was; it stands in the report.
"""

import json
from collections.abc import Collection
from typing import Final

from asap_core.testing.laws.http_messages import Answer
from asap_core.testing.laws.verdicts import LawBroken
from asap_core.wire.json_values import Json, JsonObject

_INTERNAL_ERROR = -32603
_SERVER_ERROR = 500
# Characters of a value that a remark quotes.
_SHOWN: Final = 80


def check(condition: object, got: object, example: str = "", *, at: Answer | None = None) -> None:
    """Check any condition.

    got: what the agent did, if the condition is false.
    at: the answer in which it did; by default `got`, if that is one, or else the last one.
    """
    if not condition:
        raise LawBroken(f"{example}: {got}" if example else str(got), got if isinstance(got, Answer) else at)


def accepted(answer: Answer, example: str = "") -> JsonObject:
    """Check that a call was accepted, and return the reply's envelope."""
    check(answer.is_success and answer.envelope is not None, answer, example)
    return answer.envelope or {}


def refused(
    answer: Answer, example: str = "", *, statuses: Collection[int] = (), codes: Collection[int | str] = ()
) -> None:
    """Check that a call was refused on purpose: by a JSON-RPC error or a status 4xx or 503, never by a crash.

    statuses: if given, the HTTP status must be one of them.
    codes: if given, the error's number or `data.code` must be one of them.
    """
    check(not answer.problem and answer.result is None, answer, example)
    check(answer.status != _SERVER_ERROR and answer.code != _INTERNAL_ERROR, answer, example)
    by_status = answer.status is not None and (400 <= answer.status < _SERVER_ERROR or answer.status == 503)  # noqa: PLR2004 - HTTP's
    check(answer.error is not None or by_status, answer, example)
    check(not statuses or answer.status in statuses, answer, example)
    check(not codes or answer.code in codes or answer.taxonomy in codes, answer, example)


def repeated(answer: Answer, first: Answer, example: str = "") -> None:
    """Check that a call was accepted, and that its reply has the payload of the first one."""
    payloads: list[Json] = [accepted(each, example).get("payload") for each in (first, answer)]
    if found := _difference(payloads[1], payloads[0], "payload"):
        raise LawBroken(found, answer, unlike=first, example=example)


def _difference(value: Json, wanted: Json, place: str) -> str:
    """Say where a value first differs from what was wanted; empty if it doesn't."""
    if isinstance(value, dict) and isinstance(wanted, dict) and value.keys() == wanted.keys():
        return next(filter(None, (_difference(value[key], wanted[key], f"{place}.{key}") for key in wanted)), "")
    return "" if value == wanted else f"{place}: {json.dumps(value)[:_SHOWN]}, not {json.dumps(wanted)[:_SHOWN]}"


def answered(answer: Answer, example: str = "") -> None:
    """Check that there is an answer, whichever, that isn't a crash."""
    check(not answer.problem and answer.status != _SERVER_ERROR and answer.code != _INTERNAL_ERROR, answer, example)
