"""JSON texts ⇄ plain values, so strict that two readers can't disagree about a text (RFC 8259, RFC 7493).

Refused: bytes that aren't UTF-8, a byte order mark, duplicate keys, NaN and infinities (1e999 too), lone surrogates,
and nesting beyond a limit. `_read_slowly` implements these rules with the standard library and is authoritative.
msgspec, if installed, is only a faster path to the same result: its value is used only if writing it again gives the
same text. No duplicate key, unusual number or escape passes that check; such texts take the slow path.
"""

import json
import math
import re
from collections.abc import Iterable
from json.encoder import encode_basestring
from typing import Any, Final, NoReturn, TypeGuard

from asap_core.wire.json_values import JSON_VALUES, Json, NotWritable, Path, plain_json

msgspec: Any
try:
    import msgspec
except ImportError:  # the core works without it, slower
    msgspec = None
else:
    _decode, _encode = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode
    _encode_sorted = msgspec.json.Encoder(order="sorted").encode

# An envelope needs 5 levels, a JSON Schema in a manifest perhaps 20; CPython's own readers fail near 1,000.
MAX_DEPTH: Final = 64
# The largest `max_depth` that callers may pass: readers need some of the interpreter's 1,000 frames for each level.
MOST_DEPTH: Final = 300


class NotJson(ValueError):
    """A text isn't acceptable JSON. `expected` completes "expected …"; the text isn't stored."""

    def __init__(self, expected: str) -> None:
        super().__init__(f"expected {expected}")
        self.expected = expected


COUNTED: Final = 4_096
_UNDECIDED: Final = object()


def read_json(data: bytes, *, max_depth: int = MAX_DEPTH) -> Json:
    """Read one JSON text.

    max_depth: how many arrays and objects may be nested.
    Raises: NotJson, and nothing else whatever the bytes.
    """
    value: Json = _read_fast(data)
    if value is _UNDECIDED:
        value = _read_slowly(data)
    # Small texts: counting brackets is cheaper than walking the value. Large ones are mostly strings: walk at once.
    if len(data) > COUNTED or opened(data) > max_depth:
        _check_depth(value, max_depth)
    return value


_ARRAY: Final = ord("[")


def opened(data: bytes) -> int:
    """Count the opening brackets and braces of a text, including those within strings: an upper bound of its depth."""
    # `replace` is faster than `count` for a frequent byte: `bytes.count` inspects every byte by itself.
    opened = len(data) - len(data.replace(b"{", b""))
    return opened + data.count(b"[") if _ARRAY in data else opened


def _read_fast(data: bytes) -> Any:
    """Return the value, or `_UNDECIDED`."""
    if msgspec is None:
        return _UNDECIDED
    try:
        value = _decode(data)
        written: bytes = _encode(value)
        if written == data or written == msgspec.json.format(data, indent=-1):
            return value
    except (ValueError, RecursionError):  # msgspec.DecodeError is a ValueError
        pass
    return _UNDECIDED


_SURROGATE_ESCAPE: Final = re.compile(r"\\u[dD][89a-fA-F]")


def _read_slowly(data: bytes) -> Json:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise NotJson("UTF-8") from None
    try:
        value: Json = _DECODER.decode(text)
    except NotJson:
        raise
    except RecursionError:
        raise NotJson("fewer arrays and objects within each other") from None
    except json.JSONDecodeError as error:
        raise NotJson(f"one JSON text; it stops being JSON at character {error.pos}") from None
    except ValueError:  # CPython won't read an integer of more than 4,300 digits: reading is quadratic
        raise NotJson("numbers of at most 4,300 digits") from None
    # Only an escape can produce a surrogate: UTF-8 has none (RFC 3629 §3).
    if _SURROGATE_ESCAPE.search(text) and _has_lone_surrogate(value):
        raise NotJson("strings without lone surrogates (RFC 7493 §2.1)")
    return value


def read_json_at(text: str, at: int, *, max_depth: int = MAX_DEPTH) -> tuple[Json, int]:
    """Read the JSON value that begins at `at`; return it and the index after it. As strict as `read_json`.

    Raises: json.JSONDecodeError if there is no whole value (more text may complete it); NotJson if it breaks a rule.
    """
    try:
        value, end = _DECODER.raw_decode(text, at)
    except (NotJson, json.JSONDecodeError):
        raise
    except RecursionError:
        raise NotJson("fewer arrays and objects within each other") from None
    except ValueError:
        raise NotJson("numbers of at most 4,300 digits") from None
    if _SURROGATE_ESCAPE.search(text, at, end) and _has_lone_surrogate(value):
        raise NotJson("strings without lone surrogates (RFC 7493 §2.1)")
    if text.count("{", at, end) + text.count("[", at, end) > max_depth:
        _check_depth(value, max_depth)
    return value, end


_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _has_lone_surrogate(value: object) -> bool:
    try:
        _ENCODER.encode(value).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    members = dict(pairs)
    if len(members) != len(pairs):
        # RFC 8259 §4: receivers differ on which one counts, so a filter in front may have read another.
        raise NotJson("keys that are unique within their object")
    return members


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise NotJson("numbers within the range of a double")
    return number


def _no_constant(_name: str) -> NoReturn:
    raise NotJson("numbers; NaN and Infinity aren't JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_constant)


def _check_depth(value: Json, max_depth: int) -> None:
    level = _containers([value])
    for _ in range(max_depth):
        level = _containers([child for container in level for child in _children(container)])
        if not level:
            return
    raise NotJson(f"at most {max_depth} arrays and objects within each other")


def _containers(values: Iterable[Json]) -> list[dict[str, Json] | list[Json]]:
    return [value for value in values if type(value) is dict or type(value) is list]


def _children(container: dict[str, Json] | list[Json]) -> Iterable[Json]:
    return container.values() if type(container) is dict else container


def write_json(value: object, *, max_depth: int = MAX_DEPTH) -> bytes:
    """Write plain values as one compact JSON text in UTF-8, which `read_json` with the same `max_depth` accepts.

    Tuples become arrays; keys that are numbers, true, false or null become strings.
    Raises: NotWritable (a ValueError) for values that aren't JSON: NaN, sets, other objects, lone surrogates, cycles,
    a repeated key. That is a mistake in local code, never a peer's.
    """
    fast = None if msgspec is None else _write_fast(value, max_depth)
    if fast is not None:
        return fast
    return _ENCODER.encode(plain_json(value, max_depth=max_depth)).encode("utf-8")


def _write_fast(value: object, max_depth: int) -> bytes | None:
    """Return the text, or None if only the slow path can decide."""
    try:
        written: bytes = _encode(value)
        if len(written) > COUNTED and _is_plain(value):
            _check_depth(value, max_depth)
            return written
        again = _decode(written)
        # msgspec writes NaN as null, dates as strings, and the keys 1 and "1" as the same: so the text must read back
        # as an equal value. And since a value's own == may return anything, that value must give the same text.
        if again != value or _encode(again) != written:
            return None
        if len(written) > COUNTED or opened(written) > max_depth:
            _check_depth(again, max_depth)
    except Exception:  # noqa: BLE001 - a value's == may raise anything; the slow path reports the problem
        return None
    return written


# Large texts are mostly a few long strings: to look at so many parts takes a tenth of the time of reading them again.
_FEW: Final = 64
_PLAIN_TYPES: Final = frozenset({str, int, bool, type(None)})


def _is_plain(value: object) -> TypeGuard[Json]:
    """Whether a value has few parts, all of JSON's own types. What msgspec writes of it needs no second look."""
    parts: list[Any] = [value]
    for part in parts:  # they become more meanwhile
        kind = type(part)
        if kind is dict or kind is list:
            if len(parts) + len(part) > _FEW or not (kind is list or all(type(key) is str for key in part)):
                return False
            parts += part if kind is list else part.values()
        elif kind not in _PLAIN_TYPES and not (kind is float and math.isfinite(part)):
            return False
    return True


def stable_json(value: object) -> bytes:
    """Write plain values with sorted keys: equal values give equal bytes. For digests within one installation."""
    if msgspec is not None:
        sorted_text: bytes = _encode_sorted(value)
        return sorted_text
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True).encode()


# RFC 8785 §3.2.2.3 takes numbers as doubles; a larger integer would change on the way (RFC 7493 §2.2).
_MAX_SAFE_INTEGER: Final = 2**53 - 1


def canonical_json(value: object, *, max_depth: int = MAX_DEPTH) -> bytes:
    """Write plain values in the JSON Canonicalization Scheme, for signatures.

    Raises: NotWritable (a ValueError) for integers beyond ±(2**53 - 1), for keys that aren't strings (the signed text
    would be ambiguous), and for everything that `write_json` refuses.
    Source: RFC 8785.
    """
    return _canonical(value, (), max_depth).encode("utf-8")


def _canonical(value: object, path: Path, room: int) -> str:
    match value:
        case dict() | list() | tuple() if not room:
            raise NotWritable(path, "fewer arrays and objects within each other, and none within itself")
        case dict():
            # §3.2.3: sorted by UTF-16 code units, which differs from code points beyond the BMP.
            members = sorted((_code_units(key, path), key, item) for key, item in value.items())
            return "{" + ",".join([_member(key, item, path, room) for _, key, item in members]) + "}"
        case list() | tuple():
            return "[" + ",".join([_canonical(item, (*path, at), room - 1) for at, item in enumerate(value)]) + "]"
        case bool() | None:
            return _ENCODER.encode(value)
        case int() if not abs(value) <= _MAX_SAFE_INTEGER:
            raise NotWritable(path, "integers within ±(2**53 - 1)")
        case float() if not math.isfinite(value):
            raise NotWritable(path, "finite numbers; NaN and Infinity aren't JSON")
        case float():
            return _ecmascript(value)
        case int():
            return f"{value:d}"
        case str():
            _code_units(value, path)
            return encode_basestring(value)
        case _:
            raise NotWritable(path, f"{JSON_VALUES}, not {type(value).__name__}")


def _member(key: str, item: object, path: Path, room: int) -> str:
    return f"{encode_basestring(key)}:{_canonical(item, (*path, key), room - 1)}"


def _code_units(key: object, path: Path) -> bytes:
    if not isinstance(key, str):
        raise NotWritable(path, f"keys that are strings, not {type(key).__name__}")
    try:
        return key.encode("utf-16-be")
    except UnicodeEncodeError:
        raise NotWritable(path, "strings without lone surrogates (RFC 7493 §2.1)") from None


def _ecmascript(number: float) -> str:
    """Write a double as ECMAScript's Number::toString does (ECMA-262 §6.1.6.1.20), as RFC 8785 §3.2.2.3 requires."""
    if number == 0:
        return "0"
    mantissa, _, exponent = f"{abs(number)!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    fraction = "" if fraction == "0" else fraction
    point = len(whole) + int(exponent or 0)
    digits = (whole + fraction).lstrip("0")
    point -= len(whole + fraction) - len(digits)
    digits = digits.rstrip("0")
    return ("-" if number < 0 else "") + _place(digits, point)


# The bounds between plain and exponential notation, from the same clause.
_PLAIN_BELOW: Final = 21
_PLAIN_ABOVE: Final = -6


def _place(digits: str, point: int) -> str:
    if len(digits) <= point <= _PLAIN_BELOW:
        return digits.ljust(point, "0")
    if 0 < point <= _PLAIN_BELOW:
        return f"{digits[:point]}.{digits[point:]}"
    if _PLAIN_ABOVE < point <= 0:
        return "0." + "0" * -point + digits
    power = point - 1
    mantissa = digits if len(digits) == 1 else f"{digits[0]}.{digits[1:]}"
    return f"{mantissa}e{'+' if power >= 0 else '-'}{abs(power)}"
