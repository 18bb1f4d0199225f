"""What an answer to a sent envelope means: the reply, the agent's refusal, or nothing that can be trusted.

A reply is taken only if it answers this call, this envelope, and comes from the agent that was asked (fault 47). Errors
of both generations are read: 1.1's codes with `data.code`, 2.x's own; the taxonomy string is what they're classified
by.
"""

from collections.abc import Callable
from typing import Any, Final

from attrs import frozen

from asap_core.codec import decode_envelope
from asap_core.errors import InvalidDocument, RemoteError
from asap_core.jsonrpc import CallId
from asap_core.jsontext import NotJson, read_json
from asap_core.model.envelope import Envelope

__all__ = ["Outcome", "Sent", "Unusable", "is_unauthorized", "read_batch_reply", "read_reply"]

# What remote text may fill of an error message; more is a mistake or a flood.
_MAX_MESSAGE: Final = 500


@frozen
class Sent:
    """What a reply must fit: the JSON-RPC id and the envelope that were sent."""

    call_id: CallId
    envelope: Envelope


@frozen
class Unusable:
    """An answer that can't be taken; `reason` says what it should have been."""

    reason: str


Outcome = Envelope | RemoteError | Unusable


# A refusal of the whole request is short; what's longer is a reply, and isn't read twice.
_MAX_REFUSAL: Final = 4_096
_UNAUTHORIZED: Final = 401


def is_unauthorized(status: int, body: bytes) -> bool:
    """Whether an answer says that the credential isn't good. Never raises.

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
    return type(data) is dict and data.get("status_code") == _UNAUTHORIZED


def read_reply(sent: Sent, *, status: int, body: bytes) -> Outcome:
    """Read the answer to one call. Never raises, whatever the bytes."""
    value = _read(status, body)
    return value if isinstance(value, Unusable) else _judge(sent, value, status)


def read_batch_reply(sent: tuple[Sent, ...], *, status: int, body: bytes) -> tuple[Outcome, ...]:
    """Read the answer to a batch: one outcome for each call, in order. Never raises.

    Answers are matched by JSON-RPC id (JSON-RPC 2.0 §6 lets a server reorder them), and by place where they have none.
    """
    value = _read(status, body)
    if isinstance(value, Unusable):
        return (value,) * len(sent)
    if type(value) is not list:
        return (_judge_refusal(value, status),) * len(sent)
    by_id = {item["id"]: item for item in value if type(item) is dict and type(item.get("id")) in (str, int)}
    by_place = dict(enumerate(value))
    return tuple(_judge(one, by_id.get(one.call_id, by_place.get(place)), status) for place, one in enumerate(sent))


def _read(status: int, body: bytes) -> Any:
    try:
        return read_json(body)
    except NotJson as error:
        # 3xx included: redirects aren't followed, and aren't parsed as answers (fault 42).
        return Unusable(f"expected {error.expected} with HTTP 200, not HTTP {status}")


def _judge(sent: Sent, value: Any, status: int) -> Outcome:
    if type(value) is dict and type(value.get("result")) is dict and "error" not in value:
        return _judge_result(sent, value, value["result"].get("envelope"))
    return _judge_refusal(value, status)


def _judge_result(sent: Sent, value: dict[str, Any], document: Any) -> Outcome:
    if value.get("id") != sent.call_id:
        return Unusable("expected the answer to this call: the JSON-RPC id is another")
    try:
        reply = decode_envelope(document, path=("result", "envelope"))
    except InvalidDocument as error:
        return Unusable(f"expected an envelope: {error}")
    for fits, expected in _CHECKS:
        if not fits(sent.envelope, reply):
            return Unusable(expected)
    return reply


_CHECKS: Final[tuple[tuple[Callable[[Envelope, Envelope], bool], str], ...]] = (
    (lambda asked, reply: reply.correlation_id == asked.id, "expected correlation_id to be the id of what was sent"),
    (lambda asked, reply: reply.sender == asked.recipient, "expected the reply to come from the agent that was asked"),
    (lambda asked, reply: reply.recipient == asked.sender, "expected the reply to be addressed to the sender"),
)


def _judge_refusal(value: Any, status: int) -> RemoteError | Unusable:
    if type(value) is not dict:
        return Unusable("expected a JSON-RPC answer")
    error = value.get("error")
    if type(error) is dict:
        return _remote_error(error, status)
    detail = value.get("detail", error)
    if type(detail) is str:
        # Refusals below JSON-RPC: 400, 401, 403, 413, 415, 503 (wire-protocol §4.2).
        taxonomy = value.get("code")
        return RemoteError(
            code=status,
            message=_text(detail) or "refused",
            taxonomy=_text(taxonomy),
            recoverable=status in (429, 503),
            status=status,
        )
    return Unusable("expected a JSON-RPC answer with a result or an error")


def _remote_error(error: dict[str, Any], status: int) -> RemoteError:
    data = error.get("data") if type(error.get("data")) is dict else {}
    assert data is not None  # noqa: S101 - for the type checker: the line above made it a dict
    code = error.get("code")
    note = _text(data.get("error"))
    message = _text(error.get("message")) or "refused"
    details = dict(data["details"]) if type(data.get("details")) is dict else {}
    if type(data.get("validation_errors")) is list:
        # Beside `details` on the wire; to a caller they're the details that matter.
        details["validation_errors"] = data["validation_errors"]
    return RemoteError(
        code=code if type(code) is int else 0,
        message=f"{message} ({note})" if note and note != message else message,
        taxonomy=_text(data.get("code")) or _text(data.get("asap_taxonomy_code")),
        recoverable=data.get("recoverable") is True or status in (429, 503),
        retry_after=_retry_after(data),
        details=details,
        status=status,
    )


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
