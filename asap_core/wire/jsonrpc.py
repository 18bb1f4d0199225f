"""JSON-RPC 2.0 as ASAP uses it: one method, ids always, errors that carry a taxonomy (docs/wire.md §4)."""

from math import ceil
from typing import Final, TypeGuard

from asap_core.errors import Problem
from asap_core.refusals import (
    INVALID_REQUEST,
    MALFORMED_ENVELOPE,
    METHOD_NOT_FOUND,
    RATE_LIMITED,
    VERSION_INCOMPATIBLE,
    Refusal,
)
from asap_core.request_values import frozen
from asap_core.wire.envelope import Envelope
from asap_core.wire.json_values import Json

METHOD: Final = "asap.send"
# Ids are echoed, so they must be short. Integers must fit into 64 bits, which every peer's JSON reader can hold.
MAX_ID: Final = 256
MAX_ID_NUMBER: Final = 2**63 - 1
MIN_ID_NUMBER: Final = -(2**63)
_KEYS: Final = frozenset({"jsonrpc", "method", "params", "id"})

CallId = str | int


@frozen
class Call:
    """A well-formed call. `envelope` is plain JSON that hasn't been decoded yet, or is decoded (`read_plain_call`)."""

    id: CallId
    envelope: dict[str, Json] | Envelope
    idempotency_key: str | None


@frozen
class RefusedCall:
    """A call that isn't well-formed. `id` is None if that couldn't be read either."""

    id: CallId | None
    refusal: Refusal


def parse_call(value: Json) -> Call | RefusedCall:
    """Read one JSON-RPC request object. Never raises."""
    if type(value) is dict and value.get("method") == METHOD and value.get("jsonrpc", "2.0") == "2.0":
        params = value.get("params")
        call_id = value.get("id")
        if type(params) is dict and _is_id(call_id) and _KEYS.issuperset(value):
            envelope, key = params.get("envelope"), params.get("idempotency_key")
            if type(envelope) is dict and (key is None or _is_key(key)):
                return Call(call_id, envelope, key)
    return _why_not(value)


def _why_not(value: Json) -> RefusedCall:
    """Return the refusal of a value that isn't a well-formed call."""
    if type(value) is not dict:
        return RefusedCall(None, _invalid("JSON-RPC request must be an object", Problem((), "an object")))
    call_id = value.get("id")
    known_id: CallId | None = call_id if _is_id(call_id) else None
    if known_id is None or not _is_well_formed(value):
        return RefusedCall(known_id, _invalid("Invalid JSON-RPC structure", *_structural_problems(value, known_id)))
    if value["method"] != METHOD:
        return RefusedCall(known_id, Refusal(kind=METHOD_NOT_FOUND, details={"supported": [METHOD]}))
    return _malformed(known_id, value["params"])


def _is_well_formed(value: dict[str, Json]) -> bool:
    return (
        value.get("jsonrpc", "2.0") == "2.0"
        and type(value.get("method")) is str
        and "params" in value
        and _KEYS.issuperset(value)
    )


def _is_id(value: Json) -> TypeGuard[CallId]:
    if type(value) is str:
        return len(value) <= MAX_ID
    return type(value) is int and MIN_ID_NUMBER <= value <= MAX_ID_NUMBER


def _structural_problems(value: dict[str, Json], known_id: CallId | None) -> list[Problem]:
    problems = []
    if value.get("jsonrpc", "2.0") != "2.0":
        problems.append(Problem(("jsonrpc",), '"2.0"'))
    if type(value.get("method")) is not str:
        problems.append(Problem(("method",), "a string", "wrong" if "method" in value else "missing"))
    if known_id is None:
        # Notifications (without id) aren't supported: each envelope is answered. null is the id of answers to calls
        # whose id can't be read (JSON-RPC 2.0 §5).
        kind = "wrong" if "id" in value else "missing"
        problems.append(Problem(("id",), f"a string of at most {MAX_ID} characters, or a 64-bit integer", kind))
    if "params" not in value:
        problems.append(Problem(("params",), "an object with the key envelope", "missing"))
    if not _KEYS.issuperset(value):
        problems.append(Problem((), "no keys but jsonrpc, method, params, id", "unknown_keys"))
    return problems


def _is_key(value: Json) -> TypeGuard[str]:
    return type(value) is str and 0 < len(value) <= MAX_ID


def _malformed(call_id: CallId, params: Json) -> RefusedCall:
    note, problem = _problem_of_params(params)
    return RefusedCall(call_id, Refusal(kind=MALFORMED_ENVELOPE, note=note, problems=(problem,)))


def _problem_of_params(params: Json) -> tuple[str, Problem]:
    if type(params) is not dict:
        return "JSON-RPC 'params' must be an object", Problem(("params",), "an object")
    envelope, place = params.get("envelope"), ("params", "envelope")
    if envelope is None:
        return "Missing 'envelope' in params", Problem(place, "an object", "missing")
    if type(envelope) is not dict:
        return "'envelope' must be a JSON object", Problem(place, "an object")
    expected = f"a non-empty string of at most {MAX_ID} characters"
    return "Invalid idempotency key", Problem(("params", "idempotency_key"), expected)


def _invalid(note: str, *problems: Problem) -> Refusal:
    return Refusal(kind=INVALID_REQUEST, note=note, problems=problems)


def error_body(call_id: CallId | None, refusal: Refusal) -> dict[str, object]:
    """Return the error response, as 2.5 clients expect it. 1.1 clients read `data.error` and `data.code` of it."""
    kind = refusal.kind
    note = refusal.note or kind.message
    data: dict[str, object] = {
        "code": kind.taxonomy,
        "rpc_code": kind.code,
        "message": note,
        "details": dict(refusal.details),
        "recoverable": kind.recoverable,
        "asap_taxonomy_code": kind.taxonomy,
        "error": note,
        "advice": kind.advice,
    }
    if refusal.problems:
        data["validation_errors"] = [_validation_error(problem) for problem in refusal.problems]
    if refusal.retry_after is not None:
        data["retry_after_ms"] = ceil(refusal.retry_after * 1000)
        data["retry_after"] = max(1, ceil(refusal.retry_after))
    if kind in (RATE_LIMITED, VERSION_INCOMPATIBLE):
        # The reference has `limit`, `requested` and `supported` at this level too. They don't replace keys of `data`.
        data = {**refusal.details, **data}
    if kind.status in (401, 403):
        data["status_code"] = kind.status
    return {"jsonrpc": "2.0", "error": {"code": kind.code, "message": kind.message, "data": data}, "id": call_id}


def _validation_error(problem: Problem) -> dict[str, object]:
    return {
        "type": problem.kind,
        "loc": list(problem.path),
        "msg": f"expected {problem.expected}",
        "path": problem.json_path,
    }
