"""How answers are judged: each function returns if the answer is right, and raises `LawBroken` if not.

example: which variant of the input it was; it stands in the report.
"""

from collections.abc import Collection

from asap_core.testing.laws.http_messages import Answer
from asap_core.testing.laws.verdicts import LawBroken
from asap_core.wire.json_types import JsonObject

_INTERNAL_ERROR = -32603
_SERVER_ERROR = 500


def check(condition: object, got: object, example: str = "") -> None:
    """Check any condition. `got`: what the agent did, if the condition is false."""
    if not condition:
        raise LawBroken(f"{example}: {got}" if example else str(got))


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


def answered(answer: Answer, example: str = "") -> None:
    """Check that there is an answer, whichever, that isn't a crash."""
    check(not answer.problem and answer.status != _SERVER_ERROR and answer.code != _INTERNAL_ERROR, answer, example)
