"""Calls in the form that most clients write, read by msgspec straight into objects.

It only accepts. What it read counts only if msgspec writes the same text from it: then no key is repeated, none is
unknown, and no number or string has an unusual form. Everything else is read by `read_json`, `parse_call` and
`decode_envelope`, which also say what is wrong with it. Each call that is accepted here means the same to them.

Importing this module needs msgspec.
"""

from datetime import UTC, datetime
from typing import Annotated, Final, Literal

from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.json import Decoder, Encoder, format as reformat

from asap_core.wire.envelope import ANSWERS, Envelope, normalise_payload_type
from asap_core.wire.json import COUNTED, opened
from asap_core.wire.json_values import JsonObject
from asap_core.wire.jsonrpc import MAX_ID, MAX_ID_NUMBER, MIN_ID_NUMBER, Call
from asap_core.wire.rules import URN

_Short = Annotated[str, Meta(min_length=1, max_length=MAX_ID)]
_CallId = Annotated[str, Meta(max_length=MAX_ID)] | Annotated[int, Meta(ge=MIN_ID_NUMBER, le=MAX_ID_NUMBER)]


class _PlainEnvelope(Struct, gc=False):
    """The keys in the order in which clients write them. Clients of 1.1 leave out those that are null."""

    id: _Short
    asap_version: str
    timestamp: datetime
    sender: str
    recipient: str
    payload_type: _Short
    payload: JsonObject
    correlation_id: str | UnsetType | None = UNSET
    trace_id: str | UnsetType | None = UNSET
    requires_ack: bool | UnsetType = UNSET
    extensions: JsonObject | UnsetType | None = UNSET


class _PlainParams(Struct, gc=False):
    envelope: _PlainEnvelope
    idempotency_key: _Short | UnsetType | None = UNSET


class _PlainCall(Struct, gc=False):
    """As clients of this project write it."""

    jsonrpc: Literal["2.0"]
    method: Literal["asap.send"]
    id: _CallId
    params: _PlainParams


class _ReferenceCall(Struct, gc=False):
    """As clients of the reference write it: the id is last."""

    jsonrpc: Literal["2.0"]
    method: Literal["asap.send"]
    params: _PlainParams
    id: _CallId


_decode: Final = Decoder(_PlainCall).decode
_decode_reference: Final = Decoder(_ReferenceCall).decode
_encode: Final = Encoder().encode


def read_plain_call(data: bytes, max_depth: int, /) -> Call | None:
    """Read a call, with its envelope decoded, if it's valid and in the form of most calls. Returns None otherwise.

    max_depth: as in `read_json`.
    """
    if len(data) > COUNTED or opened(data) > max_depth:
        return None
    try:
        call = _decode(data) if data.endswith(b"}}") else _decode_reference(data)
        written = _encode(call)
        # The reference writes a blank after each comma and colon.
        if written != data and (len(written) == len(data) or written != reformat(data, indent=-1)):
            return None
    except (ValueError, RecursionError):  # msgspec.ValidationError is a ValueError
        return None
    envelope, key = _checked(call.params.envelope), call.params.idempotency_key
    return None if envelope is None else Call(call.id, envelope, None if key is UNSET else key)


_new: Final = object.__new__
# The __init__ of a frozen class takes five times as long, and would check each rule again.
(
    _set_id,
    _set_asap_version,
    _set_timestamp,
    _set_sender,
    _set_recipient,
    _set_payload_type,
    _set_payload,
    _set_correlation_id,
    _set_trace_id,
    _set_requires_ack,
    _set_extensions,
) = (Envelope.__dict__[name].__set__ for name in _PlainEnvelope.__struct_fields__)


def _checked(read: _PlainEnvelope) -> Envelope | None:
    """Return the envelope if it also obeys the rules that aren't in the types above."""
    correlation_id = None if read.correlation_id is UNSET else read.correlation_id
    if not (
        read.id.isprintable()
        and read.timestamp.tzinfo is UTC
        and URN.fits(read.sender)
        and URN.fits(read.recipient)
        and (correlation_id or normalise_payload_type(read.payload_type) not in ANSWERS)
    ):
        return None
    made = _new(Envelope)
    _set_id(made, read.id)
    _set_asap_version(made, read.asap_version)
    _set_timestamp(made, read.timestamp)
    _set_sender(made, read.sender)
    _set_recipient(made, read.recipient)
    _set_payload_type(made, read.payload_type)
    _set_payload(made, read.payload)
    _set_correlation_id(made, correlation_id)
    _set_trace_id(made, None if read.trace_id is UNSET else read.trace_id)
    _set_requires_ack(made, read.requires_ack is True)
    _set_extensions(made, None if read.extensions is UNSET else read.extensions)
    return made
