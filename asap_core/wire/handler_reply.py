"""A handler's reply, as the text that is sent and as the copy that is saved for retries.

Whatever a handler returns, either a strict JSON reader accepts the text, or `NotWritable` says where the value isn't
JSON. Dataclasses and attrs classes are written as objects of their fields, enums as their values.
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
from asap_core.wire.json_types import JsonObject
from asap_core.wire.jsonrpc import CallId, result_body
from asap_core.wire.payloads import WIRE_NAMES
from asap_core.wire.writable import NotWritable, plain_json

# A batch puts its answers into an array, which is one more level; the payload is at `result.envelope.payload`.
_ANSWER_DEPTH: Final = MAX_DEPTH - 1
_PAYLOAD_DEPTH: Final = _ANSWER_DEPTH - 3


@frozen
class Replied:
    """A handler's reply: a payload and its type on the wire."""

    payload_type: str
    payload: JsonObject


def reply_of(payload: object) -> Replied:
    """Return a handler's value as a reply. Raises TypeError if it isn't `Replied` or one of the protocol's payloads."""
    kind: type = type(payload)
    if issubclass(kind, Replied):
        return payload  # type: ignore[return-value] # it is one
    if kind not in WIRE_NAMES:
        raise TypeError(f"expected Replied or one of the protocol's payloads, not {kind.__name__}")
    return Replied(WIRE_NAMES[kind], to_json(payload))


def reply_text(
    request: Envelope, replied: Replied, *, call_id: CallId, sender: str, ids: Callable[[], str], wall: WallTime
) -> bytes:
    """Write the JSON-RPC response to `request`.

    sender: this agent.
    wall: the reply's timestamp.
    Raises: NotWritable if the payload isn't JSON, with the place in the payload.
    """

    def text(payload: JsonObject) -> bytes:
        envelope = request.reply(replied.payload_type, payload, ids=ids, wall=wall, sender=sender)
        return write_json(result_body(call_id, encode_envelope(envelope)), max_depth=_ANSWER_DEPTH)

    try:
        return text(replied.payload)
    except Exception:  # noqa: BLE001 - a user's value may raise anything; the strict way finds the place
        payload = plain_json(replied.payload, max_depth=_PAYLOAD_DEPTH, convert=fields_of)
    if type(payload) is not dict:
        raise NotWritable((), f"an object as the payload, not {type(replied.payload).__name__}")
    return text(payload)


def fields_of(value: Any) -> object:
    """Convert a value that isn't JSON: to its fields, or to an enum's value. Returns anything else unchanged."""
    kind = type(value)
    if has(kind):
        ours = kind.__module__.startswith("asap_core.")
        return to_json(value) if ours else {each.name: getattr(value, each.name) for each in fields(kind)}
    if is_dataclass(kind):
        return {each.name: getattr(value, each.name) for each in dataclass_fields(kind)}
    return value.value if issubclass(kind, Enum) else value


def copy_of_reply(body: bytes, outcome: Replied | Refusal) -> Replied | Refusal:
    """Return a copy of the outcome that doesn't change if the handler changes its own objects later."""
    if isinstance(outcome, Replied):
        document: Any = read_json(body)  # as `reply_text` wrote it
        return Replied(outcome.payload_type, document["result"]["envelope"]["payload"])
    if not outcome.details:
        return outcome
    details: Any = read_json(write_json(dict(outcome.details)))
    return evolve(outcome, details=details)
