"""A handler's reply, as the text that is sent and as the copy that is saved for retries.

Whatever a handler returns, either a strict JSON reader accepts the text, or `NotWritable` says where the value isn't
JSON. Dataclasses and attrs classes are written as objects of their fields, enums as their values.
"""

from collections.abc import Callable
from dataclasses import fields as dataclass_fields, is_dataclass
from enum import Enum
from json.encoder import encode_basestring as quoted
from typing import Any, Final

from attrs import evolve, fields, has

from asap_core.clock import WallTime
from asap_core.refusals import Refusal
from asap_core.request_values import frozen
from asap_core.wire.codec import format_timestamp, to_json
from asap_core.wire.envelope import ASAP_VERSION, ID, PAYLOAD_TYPE, Envelope, utc
from asap_core.wire.json import MAX_DEPTH, read_json, write_json
from asap_core.wire.json_values import JsonObject, NotWritable, plain_json
from asap_core.wire.jsonrpc import CallId
from asap_core.wire.payloads import WIRE_NAMES
from asap_core.wire.rules import InvalidValue

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
        return _written(request, replied.payload_type, payload, call_id, sender=sender, id_=ids(), wall=wall)

    try:
        return text(replied.payload)
    except Exception:  # noqa: BLE001 - a user's value may raise anything; the strict way finds the place
        payload = plain_json(replied.payload, max_depth=_PAYLOAD_DEPTH, convert=fields_of)
    if type(payload) is not dict:
        raise NotWritable((), f"an object as the payload, not {type(replied.payload).__name__}")
    return text(payload)


# The response with the envelope of `Envelope.reply`, as `encode_envelope` orders it. Only what users' code made needs
# checks: the other values are this library's own, or were read from the request by the same rules. There's no key
# `error`, even null: peers of both generations test its presence.
_BEFORE_PAYLOAD: Final = (
    '{"jsonrpc":"2.0","result":{"envelope":{"id":%s,"asap_version":"'
    + ASAP_VERSION
    + '","timestamp":"%s","sender":%s,"recipient":%s,"payload_type":%s,"payload":'
)
_AFTER_PAYLOAD: Final = ',"correlation_id":%s,"trace_id":%s,"requires_ack":false,"extensions":null}},"id":%s}'


def _written(
    request: Envelope, payload_type: str, payload: JsonObject, call_id: CallId, *, sender: str, id_: str, wall: WallTime
) -> bytes:
    for name, rule, value in (("payload_type", PAYLOAD_TYPE, payload_type), ("id", ID, id_)):
        if not rule.fits(value):
            raise InvalidValue(rule.expected, name=name)
    written = write_json(dict(payload), max_depth=_PAYLOAD_DEPTH)
    before = _BEFORE_PAYLOAD % (
        quoted(id_),
        format_timestamp(utc(wall)),
        quoted(sender),
        quoted(request.sender),
        quoted(payload_type),
    )
    after = _AFTER_PAYLOAD % (
        quoted(request.id),
        "null" if request.trace_id is None else quoted(request.trace_id),
        quoted(call_id) if type(call_id) is str else call_id,
    )
    return b"".join((before.encode(), written, after.encode()))


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
