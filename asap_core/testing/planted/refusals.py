"""Refusals: for each its code, taxonomy, status and message (docs/errors.md), and the JSON-RPC error that says it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from asap_core.testing.planted.switches import Breaks

# name: (code, taxonomy, status, whether a retry may succeed, message)
_ROWS: Final = {
    "parse": (-32700, "asap:rpc/parse_error", 200, False, "Parse error"),
    "request": (-32600, "asap:rpc/invalid_request", 200, False, "Invalid request"),
    "batch_size": (-32600, "asap:rpc/batch_size", 200, False, "Invalid request"),
    "method": (-32601, "asap:rpc/method_not_found", 200, False, "Method not found"),
    "malformed": (-32602, "asap:protocol/malformed_envelope", 200, False, "Invalid params"),
    "internal": (-32603, "asap:rpc/internal_error", 200, False, "Internal error"),
    "version": (-32000, "asap:protocol/version_incompatible", 200, False, "ASAP protocol version incompatible"),
    "timestamp": (
        -32002,
        "asap:protocol/invalid_timestamp",
        200,
        True,
        "Envelope timestamp is outside the accepted window",
    ),
    "replayed": (-32003, "asap:protocol/invalid_nonce", 200, False, "Envelope was seen before"),
    "handler": (
        -32012,
        "asap:transport/handler_not_found",
        200,
        False,
        "No handler registered for this payload type or skill",
    ),
    "unauthenticated": (-32600, "asap:auth/required", 401, False, "Authentication required"),
    "token": (-32600, "asap:auth/invalid_token", 401, False, "Invalid authentication token"),
    "credential": (-32600, "asap:auth/invalid_token", 401, False, "Invalid authentication token"),
    "sender": (-32602, "asap:auth/sender_mismatch", 403, False, "Sender does not match authenticated identity"),
    "misaddressed": (-32060, "asap:admission/misaddressed", 200, False, "The recipient is another agent"),
    "saturated": (-32061, "asap:admission/saturated", 503, True, "No room to remember this envelope"),
    "running": (
        -32062,
        "asap:admission/still_running",
        200,
        True,
        "The first request with this idempotency key is still running",
    ),
    "key": (
        -32063,
        "asap:admission/key_mismatch",
        200,
        False,
        "Another request was made under this idempotency key",
    ),
    "restarted": (
        -32067,
        "asap:admission/restarted",
        503,
        True,
        "The envelope is dated before this agent's last start, and may have been accepted before it",
    ),
    "page": (-32068, "asap:admission/foreign_page", 403, False, "This web page may not call this agent"),
}


class CallFault(Exception):
    """A call that is refused.

    kind: a row of the table.
    problems: for each what is wrong, its place and what would have been right; never the value itself.
    details: more members of `data.details`.
    retry_after: seconds.
    """

    def __init__(
        self,
        kind: str,
        *problems: "Misfit",
        details: Mapping[str, object] | None = None,
        retry_after: float | None = None,
        note: str | None = None,
    ) -> None:
        super().__init__(kind)
        self.kind = kind
        self.problems = problems
        self.details = details or {}
        self.retry_after = retry_after
        self.note = note
        self.code, self.taxonomy, self.status, self.recoverable, self.message = _ROWS[kind]


@dataclass(frozen=True)
class Misfit:
    """One thing that is wrong in a request: where, and what would have been right. `kind`: missing, wrong, unknown."""

    place: tuple[str | int, ...]
    expected: str
    kind: str = "wrong"
    value: object = field(default=None, repr=False)


# What some implementations send instead, by switch: the code that clients classify by would be lost.
_OTHER_CODES: Final = {
    "json_text.code": ("parse", -32600),
    "jsonrpc.invalid_request_code": ("request", -32602),
    "jsonrpc.method_code": ("method", -32600),
    "envelope.malformed_code": ("malformed", -32603),
    "time.code": ("timestamp", -32602),
    "replay.code": ("replayed", -32602),
    "envelope.handler_code": ("handler", -32601),
    "envelope.misaddressed_code": ("misaddressed", -32602),
    "idempotency.mismatch_code": ("key", -32602),
    "versions.code": ("version", -32600),
    "failures.code": ("internal", -32000),
}


def error_object(call_id: object, fault: CallFault, broken: Breaks) -> dict[str, object]:
    """Return the JSON-RPC response that refuses a call."""
    code, taxonomy = fault.code, fault.taxonomy
    for switch, (kind, other) in _OTHER_CODES.items():
        if kind == fault.kind and broken(switch):
            code, taxonomy = other, "asap:rpc/error"
    note = fault.note or fault.message
    data: dict[str, Any] = {
        "code": taxonomy,
        "rpc_code": code,
        "message": note,
        "details": dict(fault.details),
        "recoverable": _is_recoverable(fault, broken),
        "asap_taxonomy_code": taxonomy,
        "error": note,
    }
    if fault.problems:
        data["validation_errors"] = [_problem(problem, broken) for problem in fault.problems]
    if fault.retry_after is not None and not broken("errors.retry_after_ms"):
        data["retry_after_ms"] = int(fault.retry_after * 1000)
    if fault.kind == "version":
        data = {**fault.details, **data}
    if fault.status in (401, 403):
        data["status_code"] = fault.status
    error: dict[str, object] = {"code": code, "message": fault.message, "data": data}
    _disfigure(error, data, broken)
    answer: dict[str, object] = {"jsonrpc": "2.0", "error": error, "id": call_id}
    if broken("jsonrpc.result_beside_error"):
        answer["result"] = None
    if broken("jsonrpc.error_id_lost"):
        answer["id"] = None
    if broken("errors.falsy_id"):
        answer["id"] = call_id or None
    return answer


def _is_recoverable(fault: CallFault, broken: Breaks) -> bool:
    if fault.kind == "internal" and broken("failures.recoverable"):
        return True
    return fault.recoverable is not broken("errors.recoverable")


def _problem(problem: Misfit, broken: Breaks) -> dict[str, object]:
    written: dict[str, object] = {
        "type": problem.kind,
        "loc": list(problem.place),
        "msg": f"expected {problem.expected}",
    }
    if broken("errors.echo_value"):
        written["input"] = problem.value
    return written


def _disfigure(error: dict[str, object], data: dict[str, Any], broken: Breaks) -> None:
    if broken("errors.data_missing"):
        del error["data"]
    if broken("errors.taxonomy_missing"):
        del data["code"], data["asap_taxonomy_code"]
    if broken("errors.message_missing"):
        del error["message"]
    if broken("errors.code_is_text"):
        error["code"] = str(error["code"])
    if broken("errors.problems_missing"):
        data.pop("validation_errors", None)
    if broken("errors.traceback"):
        data["traceback"] = 'Traceback (most recent call last):\n  File "agent.py", line 1, in answer\nValueError'
