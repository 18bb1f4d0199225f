"""Envelopes and the payload of a task request: each field held to its rule (docs/wire.md §1, §2)."""

import re
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final

from asap_core.testing.planted.refusals import CallFault, Misfit
from asap_core.testing.planted.switches import Breaks

_URN: Final = re.compile(r"urn:asap:agent:[a-z0-9-]+(?::[a-z0-9-]+)?")
_LONGEST: Final = 256
_PLACE: Final = ("params", "envelope")

FieldRule = tuple[str, Callable[[Any], bool]]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _id(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _LONGEST and value.isprintable()


def _short(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _LONGEST


def _object(value: Any) -> bool:
    return isinstance(value, dict)


def _or_null(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def is_urn(value: Any, broken: Breaks) -> bool:
    """Whether a value is an agent URN: one spelling for each agent."""
    if not isinstance(value, str) or (len(value) > _LONGEST and not broken("envelope.urn_length")):
        return False
    if broken("envelope.urn_newline"):
        value = value.removesuffix("\n")
    if broken("envelope.urn_case"):
        value = value.lower()
    if broken("envelope.urn_segments"):
        value = ":".join(value.split(":")[:5])
    return _URN.fullmatch(value) is not None or broken("envelope.urn_grammar")


def _rules(broken: Breaks) -> dict[str, FieldRule]:
    urn = ("an agent URN such as urn:asap:agent:name", lambda value: is_urn(value, broken))
    moment = ("an RFC 3339 date and time", lambda value: read_timestamp(value, broken) is not None)
    name = (f"a non-empty string of at most {_LONGEST} characters", _id)
    some = ("a string, or null", _or_null(_text))
    return {
        "id": name,
        "asap_version": ("a string", _text),
        "timestamp": moment,
        "sender": urn,
        "recipient": urn,
        "payload_type": (f"a payload type of at most {_LONGEST} characters", _short),
        "payload": ("an object", _object),
        "correlation_id": some,
        "trace_id": some,
        "requires_ack": ("true or false", lambda value: isinstance(value, bool)),
        "extensions": ("an object, or null", _or_null(_object)),
    }


# What has a default, and so may be left out.
_OPTIONAL: Final = {"correlation_id": None, "trace_id": None, "requires_ack": False, "extensions": None}
_NAMES: Final = ("id", "asap_version", "timestamp", "sender", "recipient", "payload_type", "payload", *_OPTIONAL)
_ANSWERS: Final = frozenset({"taskresponse", "taskstream", "mcptoolresult", "mcpresourcedata"})


def normal_type(payload_type: str, broken: Breaks) -> str:
    """Return a payload type as it's compared: lower-case letters and digits only (docs/wire.md §1.4)."""
    if broken("envelope.payload_type_spelling"):
        return "taskrequest" if payload_type == "task.request" else payload_type
    return re.sub(r"[^a-z0-9]", "", payload_type.lower())


# What an agent that lets a field pass takes for it.
_INSTEAD: Final = {
    "id": "none",
    "asap_version": "0.1",
    "payload_type": "task.request",
    "payload": {"conversation_id": "", "skill_id": "echo", "input": {}},
    "requires_ack": False,
}


def _is_let_pass(key: str, value: dict[str, Any], broken: Breaks) -> bool:
    if key not in value:
        return broken(f"envelope.{key}_missing")
    if value[key] is None:
        return broken(f"envelope.{key}_null")
    return broken(f"envelope.{key}_unchecked")


def check_envelope(value: dict[str, Any], broken: Breaks) -> dict[str, Any]:
    """Return an envelope with its defaults. Raises CallFault, which lists everything that is wrong."""
    problems = []
    rules = _rules(broken)
    unknown = value.keys() - _NAMES
    if unknown and not broken("envelope.unknown_keys"):
        problems.append(Misfit(_PLACE, f"no keys but {', '.join(_NAMES)}", "unknown_keys", sorted(unknown)))
    whole = {**_OPTIONAL, **value}
    for key, (expected, fits) in rules.items():
        if key in whole and fits(whole[key]):
            continue
        if _is_let_pass(key, whole, broken):
            whole[key] = _INSTEAD.get(key)
            continue
        kind = "wrong" if key in whole else "missing"
        problems.append(Misfit((*_PLACE, key), expected, kind, whole.get(key)))
    answers = isinstance(whole.get("payload_type"), str) and normal_type(whole["payload_type"], broken) in _ANSWERS
    if answers and not whole["correlation_id"] and not broken("envelope.correlation_missing"):
        problems.append(Misfit(_PLACE, "correlation_id to name the envelope that this payload type answers"))
    problems += _refused_by_a_break(value, whole, broken)
    if problems:
        if broken("errors.first_problem_only"):
            del problems[1:]
        raise CallFault("malformed", *problems, note="Invalid envelope structure")
    return whole


def _refused_by_a_break(value: dict[str, Any], whole: dict[str, Any], broken: Breaks) -> list[Misfit]:
    """Refuse what is right. Only a broken agent does."""
    more = whole["extensions"]
    found = [
        ("envelope.all_fields", whole.keys() - value.keys(), "all fields"),
        ("envelope.id_short", len(str(whole.get("id"))) == _LONGEST, "a shorter id"),
        ("envelope.ack_refused", whole["requires_ack"] is True, "no acknowledgement"),
        ("envelope.correlation_refused", whole["correlation_id"] is not None, "no correlation_id"),
        ("envelope.extensions_closed", isinstance(more, dict) and more.keys() - {"nonce"}, "a nonce only"),
    ]
    return [Misfit(_PLACE, expected) for switch, is_wrong, expected in found if is_wrong and broken(switch)]


_TASK: Final[dict[str, FieldRule]] = {
    "conversation_id": ("a string", _text),
    "skill_id": ("a string", _text),
    "input": ("an object", _object),
    "parent_task_id": ("a string, or null", _or_null(_text)),
    "config": ("an object, or null", _or_null(_object)),
}


def check_task(payload: dict[str, Any], broken: Breaks) -> dict[str, Any]:
    """Check the payload of a task request. Raises CallFault."""
    place = (*_PLACE, "payload")
    problems = []
    if payload.keys() - _TASK.keys() and not broken("envelope.payload_unknown_keys"):
        problems.append(Misfit(place, f"no keys but {', '.join(_TASK)}", "unknown_keys"))
    whole = {"parent_task_id": None, "config": None, **payload}
    for key, (expected, fits) in _TASK.items():
        if key not in whole:
            problems.append(Misfit((*place, key), expected, "missing"))
        elif not fits(whole[key]):
            problems.append(Misfit((*place, key), expected, value=whole[key]))
    if problems and not broken("envelope.payload_unchecked"):
        raise CallFault("malformed", *problems, note="Invalid envelope structure")
    return {"skill_id": "", "input": {}, **whole}


# --- timestamps ------------------------------------------------------------------------------------------------------

_ISO: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[Tt ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,18}))?)?([Zz]|[+-]\d\d:?\d\d)?)?", re.ASCII
)
_UNIX: Final = re.compile(r"-?\d{1,15}(?:\.\d{1,9})?", re.ASCII)
# Larger numbers are milliseconds: as seconds they would be after the year 2600.
_MOST_SECONDS: Final = 2e10
_YEAR_1: Final = -62_135_596_800
_YEAR_10000: Final = 253_402_300_800
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def read_timestamp(value: Any, broken: Breaks) -> float | None:
    """Return a timestamp in seconds since 1970 (docs/wire.md §1.2). None if it isn't one."""
    if isinstance(value, bool):
        return 0.0 + value if broken("time.boolean") else None
    if isinstance(value, str) and broken("time.any_digits"):
        value = _with_ascii_digits(value)
    if isinstance(value, str) and broken("time.numbers_as_python"):
        value = _as_python_reads(value)
    if isinstance(value, str) and not _UNIX.fullmatch(value):
        return _from_iso(value, broken)
    if not isinstance(value, str | int | float) or broken("time.unix_refused"):
        return None
    number = float(value) if abs(float(value)) < 1e300 else 1e300
    seconds = number / 1000 if abs(number) > _MOST_SECONDS and not broken("time.milliseconds") else number
    return seconds if _year_exists(seconds) else None


def _with_ascii_digits(text: str) -> str:
    return "".join(str(unicodedata.digit(each)) if each.isdigit() else each for each in text)


def _as_python_reads(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _year_exists(seconds: float) -> bool:
    return _YEAR_1 <= seconds < _YEAR_10000


def _from_iso(text: str, broken: Breaks) -> float | None:
    if broken("time.basic_format") and re.fullmatch(r"\d{8}T\d{6}Z", text):
        text = f"{text[:4]}-{text[4:6]}-{text[6:11]}:{text[11:13]}:{text[13:]}"
    match = _ISO.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    if second == "60" and broken("time.leap_second"):
        raise ArithmeticError("a minute has 60 seconds")
    try:
        at = datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0), tzinfo=UTC)
        offset = _offset(zone, broken)
    except ValueError:
        return None
    micros = int(f"{fraction or 0:0<6}"[:6])
    seconds = (at - _EPOCH - offset).total_seconds() + micros / 1e6
    if not _year_exists(seconds) and broken("time.calendar"):
        raise ArithmeticError("a year of 1 to 9999")
    return seconds if _year_exists(seconds) else None


def _offset(zone: str | None, broken: Breaks) -> timedelta:
    if zone is None:
        # Without an offset it's UTC, wherever the agent runs.
        return timedelta(hours=5 if broken("time.naive_is_local") else 0)
    if zone in "Zz" or broken("time.offset_ignored"):
        return timedelta(0)
    hours, minutes = int(zone[1:3]), int(zone[-2:])
    if zone == "-00:00" and broken("time.unknown_offset"):
        raise ValueError("an offset that is known")
    found = timezone(timedelta(hours=hours, minutes=minutes)).utcoffset(None)
    if hours > 12 and broken("time.offset_above_12"):
        raise ValueError("an offset of at most 12 hours")
    plus = zone[0] == "+" or (hours == 0 and broken("time.offset_sign"))
    return found if plus is not broken("time.offset_inverted") else -found


def written_timestamp(wall: float) -> str:
    """Write a time as peers do: RFC 3339 in UTC, with six fractional digits."""
    return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
