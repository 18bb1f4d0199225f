"""What an answer to a sent envelope means: the reply, the agent's refusal, or nothing that can be trusted.

A reply is taken only if it answers this call, this envelope, and comes from the agent that was asked (fault 47); an
error only if it names this call, or no call at all. Errors of both generations are read: 1.1's codes with `data.code`,
2.x's own; the taxonomy string is what they're classified by.

An answer is the agent's *own* if it's a JSON-RPC error, or a body whose `code` begins with `asap:`. Anything else may
come from a proxy in front of it, which doesn't know what became of the message. `docs/outbound.md` has the table.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from attrs import frozen

from asap_core.clock import WallTime
from asap_core.errors import InvalidDocument, RemoteError
from asap_core.http.dates import parse_http_date
from asap_core.http.freshness import parse_retry_after
from asap_core.wire.codec import decode_envelope
from asap_core.wire.envelope import Envelope
from asap_core.wire.json import NotJson, read_json
from asap_core.wire.jsonrpc import CallId

# What remote text may fill of an error message; more is a mistake or a flood.
_MAX_MESSAGE: Final = 500


@frozen
class SentCall:
    """What a reply must fit: the JSON-RPC id and the envelope that were sent."""

    call_id: CallId
    envelope: Envelope


@frozen
class UnusableReply:
    """An answer that can't be taken; `reason` says what it should have been."""

    reason: str


ReplyOutcome = Envelope | RemoteError | UnusableReply


# A refusal of the whole request is short; what's longer is a reply, and isn't read twice.
_MAX_REFUSAL: Final = 4_096
_OK: Final = 200
_UNAUTHORIZED: Final = 401
_LIMITED: Final = 429
_BUSY: Final = 503
_ANOTHER: Final = UnusableReply("expected the answer to this call: the JSON-RPC id is another")


def is_unauthorized(status: int, body: bytes, call_id: CallId | None = None) -> bool:
    """Whether the answer to this call says that the credential isn't good. Never raises.

    The reference says so inside HTTP 200, in `error.data.status_code` (fault 25).
    """
    if status == _UNAUTHORIZED or len(body) > _MAX_REFUSAL or b"401" not in body:
        return status == _UNAUTHORIZED
    try:
        value = read_json(body)
    except NotJson:
        return False
    error = value.get("error") if type(value) is dict else None
    data = error.get("data") if type(error) is dict else None
    return type(data) is dict and data.get("status_code") == _UNAUTHORIZED and not _is_anothers(value, call_id)


def retry_after_of(headers: Iterable[tuple[str, str]], *, wall: WallTime) -> float | None:
    """The seconds that an answer's `Retry-After` asks to wait, the longest if there are several; None without one.

    A date is counted from the answer's own `Date`, if it has one: the local clock may be wrong. `wall` is that clock.
    """
    fields = [(name.lower(), value) for name, value in headers]
    dates = [parse_http_date(value.strip(), wall=wall) for name, value in fields if name == "date"]
    now = next((date for date in dates if date is not None), wall)
    waits = [_wait(value, now) for name, value in fields if name == "retry-after"]
    return max((wait for wait in waits if wait is not None), default=None)


def _wait(value: str, now: WallTime) -> float | None:
    # RFC 9110 §10.2.3 has whole seconds; some limiters send fractions, and so reads the reference.
    return float(value) if _FRACTION.fullmatch(value) else parse_retry_after(value, wall=now)


_FRACTION: Final = re.compile(r"\s*\d{1,9}\.\d{1,9}\s*", re.ASCII)


def read_reply(sent: SentCall, *, status: int, body: bytes, retry_after: float | None = None) -> ReplyOutcome:
    """Read the answer to one call; `retry_after` is what its headers say. Never raises, whatever the bytes."""
    value = _read(status, body)
    return value if isinstance(value, UnusableReply) else _judge(sent, value, status, retry_after)


def read_batch_reply(
    sent: tuple[SentCall, ...], *, status: int, body: bytes, retry_after: float | None = None
) -> tuple[ReplyOutcome, ...] | RemoteError | UnusableReply:
    """Read the answer to a batch: one outcome for each call, in order; or one for the whole request. Never raises.

    Answers are matched by JSON-RPC id (JSON-RPC 2.0 §6 lets a server reorder them), and by place if they have none. If
    two answers have the same id, neither is taken.
    """
    value = _read(status, body)
    if isinstance(value, UnusableReply):
        return value
    if type(value) is not list:
        return _judge_refusal(None, value, status, retry_after)
    by_id: dict[CallId, Any] = {}
    by_place = {}
    for place, item in enumerate(value):
        if _is_anothers(item, None):
            key = item["id"] if type(item["id"]) in (str, int) else ""
            by_id[key] = _TWICE if key in by_id else item
        else:
            by_place[place] = item
    return tuple(_judge(one, by_id.get(one.call_id, by_place.get(place)), status) for place, one in enumerate(sent))


# In place of answers with the same id: it's no answer.
_TWICE: Final = "two answers to one call"


def _is_anothers(value: Any, call_id: CallId | None) -> bool:
    """Whether an answer names another call than this one; None is no call in particular.

    JSON-RPC 2.0 §5.1: null if the request's id couldn't be read. The reference has an empty string there too.
    """
    named = value.get("id") if type(value) is dict else None
    # By its type too: 1, 1.0 and true are the same to Python.
    return named is not None and named != "" and not (type(named) is type(call_id) and named == call_id)


def _read(status: int, body: bytes) -> Any:
    try:
        return read_json(body)
    except NotJson as error:
        # 3xx included: redirects aren't followed, and aren't parsed as answers (fault 42).
        return UnusableReply(
            f"expected {error.expected}{'' if status == _OK else f' with HTTP 200, not HTTP {status}'}"
        )


def _judge(sent: SentCall, value: Any, status: int, retry_after: float | None = None) -> ReplyOutcome:
    if type(value) is dict and type(value.get("result")) is dict and "error" not in value:
        return _judge_result(sent, value, value["result"].get("envelope"))
    return _judge_refusal(sent.call_id, value, status, retry_after)


def _judge_result(sent: SentCall, value: dict[str, Any], document: Any) -> ReplyOutcome:
    if value.get("id") in (None, "") or _is_anothers(value, sent.call_id):
        return _ANOTHER
    try:
        reply = decode_envelope(document, path=("result", "envelope"))
    except InvalidDocument as error:
        return UnusableReply(f"expected an envelope: {error}")
    for fits, expected in _CHECKS:
        if not fits(sent.envelope, reply):
            return UnusableReply(expected)
    return reply


_CHECKS: Final[tuple[tuple[Callable[[Envelope, Envelope], bool], str], ...]] = (
    (lambda asked, reply: reply.correlation_id == asked.id, "expected correlation_id to be the id of what was sent"),
    (lambda asked, reply: reply.sender == asked.recipient, "expected the reply to come from the agent that was asked"),
    (lambda asked, reply: reply.recipient == asked.sender, "expected the reply to be addressed to the sender"),
)


def _judge_refusal(
    call_id: CallId | None, value: Any, status: int, retry_after: float | None
) -> RemoteError | UnusableReply:
    if type(value) is not dict:
        return UnusableReply("expected a JSON-RPC answer")
    error = value.get("error")
    if type(error) is dict:
        return _ANOTHER if _is_anothers(value, call_id) else _remote_error(value, error, status, retry_after)
    detail, taxonomy = value.get("detail", error), _text(value.get("code"))
    own = taxonomy.startswith(_OWN)
    if type(detail) is str or own:
        # Refusals below JSON-RPC: 400, 401, 403, 413, 415, 503 (wire-protocol §4.2).
        return RemoteError(
            code=status,
            message=_text(detail) or _text(value.get("message")) or "refused",
            taxonomy=taxonomy,
            recoverable=_is_recoverable(value, status, own=own),
            retry_after=_longer(retry_after, _retry_after(value)),
            status=status,
            own=own,
        )
    return UnusableReply("expected a JSON-RPC answer with a result or an error")


def _remote_error(value: dict[str, Any], error: dict[str, Any], status: int, retry_after: float | None) -> RemoteError:
    data = error.get("data") if type(error.get("data")) is dict else {}
    assert data is not None  # noqa: S101 - for the type checker: the line above made it a dict
    code = error.get("code")
    taxonomy = _text(data.get("code")) or _text(data.get("asap_taxonomy_code"))
    # Others than JSON-RPC have an object `error` too, cloud gateways among them.
    own = (value.get("jsonrpc") == "2.0" and type(code) is int) or taxonomy.startswith(_OWN)
    note = _text(data.get("error"))
    message = _text(error.get("message")) or "refused"
    details = dict(data["details"]) if type(data.get("details")) is dict else {}
    if type(data.get("validation_errors")) is list:
        # Beside `details` on the wire; to a caller they're the details that matter.
        details["validation_errors"] = data["validation_errors"]
    return RemoteError(
        code=code if type(code) is int else 0,
        message=f"{message} ({note})" if note and note != message else message,
        taxonomy=taxonomy,
        recoverable=_is_recoverable(data, status, own=own),
        retry_after=_longer(retry_after, _retry_after(data)),
        details=details,
        status=status,
        own=own,
    )


_OWN: Final = "asap:"


def _is_recoverable(said: dict[str, Any], status: int, *, own: bool) -> bool:
    """Whether asking again may help and does no harm: nothing was carried out."""
    if status == _LIMITED or not own:
        return status == _LIMITED
    word = said.get("recoverable")
    return word if type(word) is bool else status == _BUSY


def _longer(told: float | None, said: float | None) -> float | None:
    """A header counts whole seconds, and a body may be more precise: neither is undercut."""
    return max((each for each in (told, said) if each is not None), default=None)


def _retry_after(data: dict[str, Any]) -> float | None:
    for key, unit in (("retry_after_ms", 1000), ("retry_after", 1)):
        value: Any = data.get(key)
        if type(value) in (int, float) and 0 <= value < _LONGEST:
            return float(value) / unit
    return None


# A year; what is longer is no advice.
_LONGEST: Final = 31_536_000_000


def _text(value: Any) -> str:
    """Remote text, fit to be shown: short and on one line."""
    if type(value) is not str:
        return ""
    return "".join(character if character.isprintable() else " " for character in value[:_MAX_MESSAGE])
