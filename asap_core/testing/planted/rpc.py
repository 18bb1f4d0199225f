"""JSON-RPC 2.0 as ASAP uses it: one method, and an id in every request (docs/wire.md §4.1)."""

from typing import Any, Final

from asap_core.testing.planted.refusals import CallFault, Misfit
from asap_core.testing.planted.switches import Breaks

_METHOD: Final = "asap.send"
_KEYS: Final = frozenset({"jsonrpc", "method", "params", "id"})
_LONGEST: Final = 256
# What every peer's JSON reader can hold.
_MOST: Final = 2**63 - 1
_LEAST: Final = -(2**63)
# Characters, or bytes, that are enough for most callers.
_SHORT: Final = 64


def readable_id(value: Any, broken: Breaks) -> Any:
    """Return the id of a request, for its answer. None if there is none that can be used."""
    call_id = value.get("id") if isinstance(value, dict) else None
    if broken("jsonrpc.id_echoed"):
        return call_id
    return call_id if _is_id(call_id, broken) else None


def _is_id(value: Any, broken: Breaks) -> bool:
    if isinstance(value, bool):
        return broken("jsonrpc.id_boolean")
    if isinstance(value, str) and len(value) > _SHORT and broken("jsonrpc.id_short"):
        return False
    if isinstance(value, str):
        return len(value) <= _LONGEST or broken("jsonrpc.id_length")
    if isinstance(value, int):
        if value == _LEAST and broken("jsonrpc.id_least"):
            return False
        return _LEAST <= value <= _MOST or broken("jsonrpc.id_range")
    if isinstance(value, float):
        return broken("jsonrpc.id_fraction") or (value.is_integer() and broken("jsonrpc.id_whole_fraction"))
    return value is not None and broken("jsonrpc.id_type")


def read_call(value: Any, broken: Breaks) -> tuple[dict[str, Any], Any]:
    """Return the envelope and the idempotency key of a request object. Raises CallFault."""
    if not isinstance(value, dict):
        raise CallFault("request", Misfit((), "an object"), note="JSON-RPC request must be an object")
    if problems := _problems(value, broken):
        raise CallFault("request", *problems, note="Invalid JSON-RPC structure")
    _check_method(value["method"], broken)
    params = value.get("params")
    if isinstance(params, list) and params and broken("jsonrpc.params_by_position"):
        params = {"envelope": params[0]}
    if not isinstance(params, dict):
        raise CallFault(
            "malformed", Misfit(("params",), "an object", value=params), note="JSON-RPC 'params' must be an object"
        )
    return _envelope(params, broken), params.get("idempotency_key")


def _check_method(method: str, broken: Breaks) -> None:
    if broken("jsonrpc.method_trimmed"):
        method = method.strip()
    if broken("jsonrpc.method_case"):
        method = method.lower()
    if method != _METHOD and not broken("jsonrpc.any_method"):
        details: dict[str, object] = {"supported": [_METHOD]}
        if broken("errors.echo_method"):
            details["method"] = method
        raise CallFault("method", details=details)


def _problems(value: dict[str, Any], broken: Breaks) -> list[Misfit]:
    found = []
    version = value.get("jsonrpc", "2.0")
    if version != "2.0" and not (broken("jsonrpc.version") or (broken("jsonrpc.version_number") and version == 2)):
        found.append(Misfit(("jsonrpc",), '"2.0"', value=version))
    if not isinstance(value.get("method"), str):
        found.append(Misfit(("method",), "a string", _kind("method", value), value.get("method")))
    if not _is_id(value.get("id"), broken) and not _is_accepted(value, broken):
        expected = f"a string of at most {_LONGEST} characters, or a 64-bit integer"
        found.append(Misfit(("id",), expected, _kind("id", value)))
    if "params" not in value and not broken("jsonrpc.params_missing"):
        found.append(Misfit(("params",), "an object with the key envelope", "missing"))
    if value.keys() - _KEYS and not broken("jsonrpc.unknown_keys"):
        found.append(Misfit((), "no keys but jsonrpc, method, params, id", "unknown_keys", sorted(value)))
    return found


def _kind(key: str, value: dict[str, Any]) -> str:
    return "wrong" if key in value else "missing"


def _is_accepted(value: dict[str, Any], broken: Breaks) -> bool:
    """Whether a request without an id is accepted: as a notification, or with null."""
    if "id" not in value:
        return broken("jsonrpc.notification")
    return value["id"] is None and broken("jsonrpc.id_null")


def _envelope(params: dict[str, Any], broken: Breaks) -> dict[str, Any]:
    envelope = params.get("envelope")
    if envelope is None and broken("jsonrpc.envelope_in_params"):
        return params
    if not isinstance(envelope, dict):
        note = "Missing 'envelope' in params" if envelope is None else "'envelope' must be a JSON object"
        kind = "missing" if envelope is None else "wrong"
        raise CallFault("malformed", Misfit(("params", "envelope"), "an object", kind, envelope), note=note)
    return envelope
