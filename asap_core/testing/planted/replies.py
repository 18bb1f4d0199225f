"""The reply to a call: an envelope that answers it, in the JSON-RPC response to its request (docs/wire.md §1.5)."""

import json
import unicodedata
from typing import Any, Final

from asap_core.testing.planted.envelopes import written_timestamp
from asap_core.testing.planted.refusals import CallFault
from asap_core.testing.planted.switches import Breaks

# The last character of the Basic Multilingual Plane: two bytes in UTF-16, three in UTF-8.
_LAST_OF_THE_PLANE: Final = "\uffff"


def result_of(asked: dict[str, Any], last: dict[str, Any] | None, broken: Breaks) -> object:
    """Return the result of a task: its input. Raises CallFault.

    last: the input of the task before.
    """
    text = json.dumps(asked, ensure_ascii=False)
    if broken("replies.empty_input") and not asked:
        raise CallFault("internal", note="Internal server error")
    if broken("replies.zero_character") and "\\u0000" in text:
        raise CallFault("internal", note="Internal server error")
    if broken("replies.beyond_the_plane") and max(text) > _LAST_OF_THE_PLANE:
        raise CallFault("internal", note="Internal server error")
    if broken("replies.result"):
        return {}
    if broken("replies.result_of_another"):
        return last or asked
    if broken("replies.result_text"):
        return json.loads(text.encode("ascii", "replace"))
    if broken("replies.result_numbers"):
        return json.loads(text, parse_int=float)
    if broken("replies.result_normalised"):
        return json.loads(unicodedata.normalize("NFC", text))
    if broken("replies.result_prototype"):
        return {key: value for key, value in asked.items() if key != "__proto__"}
    if broken("replies.result_nulls"):
        return {key: value for key, value in asked.items() if value is not None}
    return asked


def reply_object(
    call_id: Any, asked: dict[str, Any], payload: Any, own: str, wall: float, new_id: str, broken: Breaks
) -> dict[str, object]:
    """Return the response object with the reply.

    asked: the envelope that it answers.
    own: this agent's id.
    """
    envelope: dict[str, object] = {
        "id": new_id,
        "asap_version": "0.1",
        "timestamp": written_timestamp(wall),
        "sender": own,
        "recipient": asked["sender"],
        "payload_type": "task.response",
        "payload": payload,
        "correlation_id": asked["id"],
        "trace_id": asked["trace_id"],
        "requires_ack": False,
        "extensions": None,
    }
    envelope |= {key: value for switch, key, value in _wrong(call_id, asked) if broken(switch)}
    if broken("replies.timestamp_missing"):
        del envelope["timestamp"]
    if broken("replies.unknown_key"):
        envelope["status"] = "ok"
    if broken("replies.payload_wrapped"):
        envelope["payload"] = payload["result"]
    if broken("replies.status"):
        envelope["payload"] = {**payload, "status": "done"}
    answer: dict[str, object] = {"jsonrpc": "2.0", "result": {"envelope": envelope}, "id": call_id}
    if broken("replies.envelope_unwrapped"):
        answer["result"] = envelope
    return _with_its_id(answer, call_id, broken)


def _wrong(call_id: Any, asked: dict[str, Any]) -> list[tuple[str, str, object]]:
    return [
        ("replies.correlation_missing", "correlation_id", None),
        ("replies.correlation_is_rpc_id", "correlation_id", str(call_id)),
        ("replies.correlation_of_another", "correlation_id", "another"),
        ("replies.correlation_chained", "correlation_id", asked["correlation_id"] or asked["id"]),
        ("replies.sender_is_the_caller", "sender", asked["sender"]),
        ("replies.sender_of_another", "sender", "urn:asap:agent:another"),
        ("replies.recipient_is_the_agent", "recipient", asked.get("recipient")),
        ("replies.recipient_of_another", "recipient", "urn:asap:agent:another"),
        ("replies.type", "payload_type", "task.request"),
        ("replies.id_reused", "id", asked["id"]),
        ("replies.id_constant", "id", "reply"),
        ("replies.timestamp_repeated", "timestamp", asked.get("timestamp")),
        ("replies.timestamp_stale", "timestamp", "2020-01-01T00:00:00.000000Z"),
        ("replies.trace_lost", "trace_id", None),
        ("replies.asap_version", "asap_version", "1.0"),
        ("replies.nonce_repeated", "extensions", asked["extensions"]),
    ]


def _with_its_id(answer: dict[str, object], call_id: Any, broken: Breaks) -> dict[str, object]:
    """Spoil the members of the JSON-RPC response, by switch."""
    if broken("jsonrpc.error_beside_result"):
        answer["error"] = None
    if broken("jsonrpc.id_as_text"):
        answer["id"] = str(call_id)
    if broken("jsonrpc.id_precision") and isinstance(call_id, int):
        answer["id"] = int(float(call_id))
    if broken("jsonrpc.unknown_key_in_response"):
        answer["status"] = "ok"
    if broken("jsonrpc.id_falsy"):
        answer["id"] = call_id or None
    if broken("jsonrpc.id_of_another"):
        answer["id"] = 1
    if broken("jsonrpc.version_missing"):
        del answer["jsonrpc"]
    return answer
