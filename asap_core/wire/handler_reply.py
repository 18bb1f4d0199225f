"""What a handler answered, as the text that's sent and as the copy that's kept.

Whatever a handler returns, its answer is one that a strict reader reads, or `NotWritable` with the place of what JSON
can't say. Dataclasses, attrs classes and enums are written as their fields and values.
"""

from collections.abc import Callable
from dataclasses import fields as dataclass_fields, is_dataclass
from enum import Enum
from typing import Any, Final

from attrs import evolve, fields, frozen, has

from asap_core.clock import WallTime
from asap_core.refusals import Refusal
from asap_core.wire.codec import encode_envelope, to_json
from asap_core.wire.envelope import Envelope
from asap_core.wire.json import MAX_DEPTH, read_json, write_json
from asap_core.wire.jsonrpc import CallId, result_body
from asap_core.wire.payloads import WIRE_NAMES
from asap_core.wire.writable import NotWritable, plain_json

# A batch puts its answers into one array, which counts as well; the payload stands in `result.envelope.payload`.
_ANSWER_DEPTH: Final = MAX_DEPTH - 1
_PAYLOAD_DEPTH: Final = _ANSWER_DEPTH - 3


@frozen
class Replied:
    """What a handler answered: a payload and its type on the wire."""

    payload_type: str
    payload: dict[str, Any]


def reply_of(payload: object) -> Replied:
    """What a handler's value says, and of which type it is. Raises TypeError if it isn't a payload."""
    kind: type[Any] = type(payload)
    if issubclass(kind, Replied):
        return payload  # type: ignore[return-value] # it is one
    if kind not in WIRE_NAMES:
        raise TypeError(f"expected Replied or one of the protocol's payloads, not {kind.__name__}")
    return Replied(WIRE_NAMES[kind], to_json(payload))


def reply_text(
    request: Envelope, replied: Replied, *, call_id: CallId, sender: str, ids: Callable[[], str], wall: WallTime
) -> bytes:
    """The text of the answer that `sender` gives to `request` now.

    Raises `NotWritable` with the place within the payload, or what else is wrong with it.
    """

    def text(payload: dict[str, Any]) -> bytes:
        envelope = request.reply(replied.payload_type, payload, ids=ids, wall=wall, sender=sender)
        return write_json(result_body(call_id, encode_envelope(envelope)), max_depth=_ANSWER_DEPTH)

    try:
        return text(replied.payload)
    except Exception:  # noqa: BLE001 - a user's value; what is wrong with it is found the thorough way
        payload = plain_json(replied.payload, max_depth=_PAYLOAD_DEPTH, convert=fields_of)
    if type(payload) is not dict:
        raise NotWritable((), f"an object as the payload, not {type(replied.payload).__name__}")
    return text(payload)


def fields_of(value: Any) -> Any:
    """What stands for a value that JSON doesn't have: its fields, or the enum's value; else the same object."""
    kind = type(value)
    if has(kind):
        ours = kind.__module__.startswith("asap_core.")
        return to_json(value) if ours else {each.name: getattr(value, each.name) for each in fields(kind)}
    if is_dataclass(kind):
        return {each.name: getattr(value, each.name) for each in dataclass_fields(kind)}
    return value.value if issubclass(kind, Enum) else value


def copy_of_reply(body: bytes, outcome: Replied | Refusal) -> Replied | Refusal:
    """A copy of what was answered, which no later change of the handler's own objects reaches."""
    if isinstance(outcome, Replied):
        return Replied(outcome.payload_type, read_json(body)["result"]["envelope"]["payload"])
    return evolve(outcome, details=read_json(write_json(dict(outcome.details)))) if outcome.details else outcome
