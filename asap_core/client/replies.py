"""Reads the response to a sent envelope: the reply, the agent's refusal, or why it can't be used (docs/wire.md §9.4).

A reply is accepted only if it answers this call and this envelope and comes from the agent that was asked.
An error is accepted only if it names this call, or no call at all. Errors of both generations are read: 1.1's codes
with `data.code`, and 2.x's own. They are classified by the taxonomy string.

A refusal is the agent's *own* if it's a JSON-RPC error, or a body whose `code` begins with `asap:`. Others may come
from a proxy, which doesn't know whether the agent carried the message out. `docs/outbound.md` has the table.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from attrs import frozen

from asap_core.clock import WallTime
from asap_core.errors import InvalidDocument, RemoteError
from asap_core.http.caching import parse_retry_after
from asap_core.http.fields import parse_http_date
from asap_core.wire.codec import decode_envelope
from asap_core.wire.envelope import Envelope
from asap_core.wire.json import NotJson, read_json
from asap_core.wire.jsonrpc import CallId

# The longest remote text in an error message.
_MAX_MESSAGE: Final = 500


@frozen
class SentCall:
    """A call that was sent: its JSON-RPC id and its envelope. The reply must match both."""

    call_id: CallId
    envelope: Envelope


@frozen
class UnusableReply:
    """A response that can't be used. `reason` says what was expected."""

    reason: str


ReplyOutcome = Envelope | RemoteError | UnusableReply


# A refusal of the whole request is short. A longer body is a reply, which mustn't be parsed twice.
_MAX_REFUSAL: Final = 4_096
_OK: Final = 200
_UNAUTHORIZED: Final = 401
_LIMITED: Final = 429
_BUSY: Final = 503
_ANOTHER: Final = UnusableReply("expected the answer to this call: the JSON-RPC id is another")


def is_unauthorized(status: int, body: bytes, call_id: CallId | None = None) -> bool:
    """Return whether the response to this call refuses the credential. Never raises.

    The reference does so with HTTP 200 and 401 in `error.data.status_code`.
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
    """Return the seconds that `Retry-After` asks to wait, the longest if there are several. Returns None without one.

    wall: the local time. A date is relative to the response's own `Date` if it has one: the local clock may be wrong.
    """
    fields = [(name.lower(), value) for name, value in headers]
    wanted = [value for name, value in fields if name == "retry-after"]
    if not wanted:
        return None
    dates = [parse_http_date(value.strip(), wall=wall) for name, value in fields if name == "date"]
    now = next((date for date in dates if date is not None), wall)
    waits = [_wait(value, now) for value in wanted]
    return max((wait for wait in waits if wait is not None), default=None)


_FRACTION: Final = re.compile(r"\s*\d{1,9}\.\d{1,9}\s*", re.ASCII)


def _wait(value: str, now: WallTime) -> float | None:
    # RFC 9110 §10.2.3 allows whole seconds only; some limiters send fractions, which the reference reads too.
    return float(value) if _FRACTION.fullmatch(value) else parse_retry_after(value, wall=now)


def read_reply(sent: SentCall, *, status: int, body: bytes, retry_after: float | None = None) -> ReplyOutcome:
    """Read the response to one call. Never raises, whatever the bytes.

    retry_after: seconds, from the response's headers.
    """
    value = _read(status, body)
    return value if isinstance(value, UnusableReply) else _judge(sent, value, status, retry_after)


# Replaces answers with the same id. As it's no object, it's read as unusable.
_TWICE: Final = "two answers to one call"


def read_batch_reply(
    sent: tuple[SentCall, ...], *, status: int, body: bytes, retry_after: float | None = None
) -> tuple[ReplyOutcome, ...] | RemoteError | UnusableReply:
    """Read the response to a batch: one outcome for each call, in order, or one for the whole request. Never raises.

    Answers are matched by JSON-RPC id, since a server may reorder them (JSON-RPC 2.0 §6); those without an id by
    position. If two answers have the same id, neither is accepted.
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


def _is_anothers(value: Any, call_id: CallId | None) -> bool:
    """Return whether an answer names another call than this one. An answer may name none.

    JSON-RPC 2.0 §5: the id is null if the request's couldn't be read. The reference also sends an empty string.
    """
    named = value.get("id") if type(value) is dict else None
    # Compare the types too: 1 == 1.0 == True in Python.
    return named is not None and named != "" and not (type(named) is type(call_id) and named == call_id)


def _read(status: int, body: bytes) -> Any:
    try:
        return read_json(body)
    except NotJson as error:
        # This includes 3xx: redirects of a POST aren't followed.
        return UnusableReply(
            f"expected {error.expected}{'' if status == _OK else f' with HTTP 200, not HTTP {status}'}"
        )


def _judge(sent: SentCall, value: Any, status: int, retry_after: float | None = None) -> ReplyOutcome:
    if type(value) is dict and type(value.get("result")) is dict and "error" not in value:
        return _judge_result(sent, value, value["result"].get("envelope"))
    return _judge_refusal(sent.call_id, value, status, retry_after)


_CHECKS: Final[tuple[tuple[Callable[[Envelope, Envelope], bool], str], ...]] = (
    (lambda asked, reply: reply.correlation_id == asked.id, "expected correlation_id to be the id of what was sent"),
    (lambda asked, reply: reply.sender == asked.recipient, "expected the reply to come from the agent that was asked"),
    (lambda asked, reply: reply.recipient == asked.sender, "expected the reply to be addressed to the sender"),
)


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


_OWN: Final = "asap:"


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
        # Refusals before JSON-RPC is read: 400, 401, 403, 413, 415, 503 (docs/wire.md §4.2).
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
    # Cloud gateways also send an object `error`.
    own = (value.get("jsonrpc") == "2.0" and type(code) is int) or taxonomy.startswith(_OWN)
    note = _text(data.get("error"))
    message = _text(error.get("message")) or "refused"
    details = dict(data["details"]) if type(data.get("details")) is dict else {}
    if type(data.get("validation_errors")) is list:
        # On the wire they are beside `details`; for callers they belong to the details.
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


def _is_recoverable(said: dict[str, Any], status: int, *, own: bool) -> bool:
    """Return whether a retry may help and is safe, since nothing was carried out."""
    if status == _LIMITED or not own:
        return status == _LIMITED
    word = said.get("recoverable")
    return word if type(word) is bool else status == _BUSY


def _longer(told: float | None, said: float | None) -> float | None:
    """Return the longer wait: a header has whole seconds, and a body may be more precise."""
    return max((each for each in (told, said) if each is not None), default=None)


# A year, in milliseconds. Longer values are ignored.
_LONGEST: Final = 31_536_000_000


def _retry_after(data: dict[str, Any]) -> float | None:
    for key, unit in (("retry_after_ms", 1000), ("retry_after", 1)):
        value: Any = data.get(key)
        if type(value) in (int, float) and 0 <= value < _LONGEST:
            return float(value) / unit
    return None


def _text(value: Any) -> str:
    """Make remote text safe to show: shortened, and on one line."""
    if type(value) is not str:
        return ""
    return "".join(character if character.isprintable() else " " for character in value[:_MAX_MESSAGE])
