"""JSON texts, read so that a text has one meaning (RFC 8259, RFC 7493): the standard library's reader, made strict."""

import json
import math
import re
from typing import Any, Final, NoReturn

from asap_core.testing.planted.switches import Breaks

_BRACKET: Final = re.compile(r"[][{}]")
# A string, if it has no escaped quotation marks.
_UP_TO_A_QUOTE: Final = re.compile(r'"[^"]*"')


class UnreadableText(ValueError):
    """A text that isn't acceptable JSON; the message says what would be."""


def read_text(data: bytes, *, max_depth: int, broken: Breaks) -> Any:
    """Read one JSON text in UTF-8. Raises UnreadableText."""
    if not data and broken("json_text.empty_body"):
        return {}
    text = _decoded(data, broken)
    if broken("json_text.blanks_around") and text.rstrip() != text:
        raise UnreadableText("a text that ends with its last bracket")
    if broken("json_text.other_blanks"):
        text = text.strip()
    if _looks_deeper(text, max_depth, broken):
        raise UnreadableText(f"at most {max_depth} arrays and objects within each other")
    try:
        if broken("json_text.trailing_text"):
            value, _ = _reader(broken).raw_decode(text.lstrip(" \t\r\n"))
        else:
            value = _reader(broken).decode(text)
    except UnreadableText:
        raise
    except RecursionError:
        if broken("json_text.very_deep"):
            raise
        raise UnreadableText(f"at most {max_depth} arrays and objects within each other") from None
    except json.JSONDecodeError as error:
        near = f", near {text[error.pos : error.pos + 40]!r}" if broken("errors.echo_text") else ""
        raise UnreadableText(f"one JSON text{near}") from None
    except ValueError:  # an integer of more than 4,300 digits
        if broken("json_text.long_number"):
            raise
        raise UnreadableText("numbers of at most 4,300 digits") from None
    if not broken("json_text.depth") and _is_deeper(value, max_depth):
        raise UnreadableText(f"at most {max_depth} arrays and objects within each other")
    if not broken("json_text.lone_surrogate") and _has_lone_surrogate(value):
        raise UnreadableText("strings without lone surrogates")
    return value


def _decoded(data: bytes, broken: Breaks) -> str:
    if broken("json_text.bom"):
        data = data.removeprefix(b"\xef\xbb\xbf")
    if broken("json_text.other_encodings"):
        return data.decode(json.detect_encoding(data), "surrogatepass")
    if broken("json_text.invalid_utf8"):
        return data.decode("utf-8", "replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise UnreadableText("UTF-8") from None


def _reader(broken: Breaks) -> json.JSONDecoder:
    def no_constant(name: str) -> Any:
        if broken("json_text.nan" if name == "NaN" else "json_text.infinity"):
            return None
        return _refuse("numbers; NaN and Infinity aren't JSON")

    def finite(digits: str) -> float:
        number = float(digits)
        if math.isinf(number) and not broken("json_text.overflowing_number"):
            _refuse("numbers within the range of a double")
        return min(number, 1.7e308)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            if broken("json_text.duplicate_keys_first"):
                return dict(reversed(pairs))
            if not broken("json_text.duplicate_keys"):
                _refuse("keys that are unique within their object")
        return dict(pairs)

    return json.JSONDecoder(
        parse_constant=no_constant,
        parse_float=finite,
        object_pairs_hook=unique,
        strict=not broken("json_text.control_character"),
    )


def _refuse(expected: str) -> NoReturn:
    raise UnreadableText(expected)


def _is_deeper(value: object, levels: int) -> bool:
    layer = [value]
    for _ in range(levels + 1):
        layer = [item for outer in layer for item in _items(outer)]
    return bool(layer)


def _looks_deeper(text: str, levels: int, broken: Breaks) -> bool:
    """Count brackets before the text is read. Only a broken agent does: some of them stand in strings."""
    if broken("replies.escaped_quotes"):
        text = _UP_TO_A_QUOTE.sub("", text)
    elif not broken("replies.brackets_in_text"):
        return False
    level = 0
    for each in _BRACKET.findall(text):
        level += 1 if each in "[{" else -1
        if level > levels:
            return True
    return False


def _items(value: object) -> list[object]:
    """The items of an array or object; for an empty one None stands, since it's a level too."""
    if isinstance(value, dict):
        return [*value.values()] or [None]
    return (value or [None]) if isinstance(value, list) else []


def _has_lone_surrogate(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


_COMPACT: Final = (",", ":")


def write_text(value: object) -> bytes:
    """Write plain values as one compact JSON text."""
    return json.dumps(value, ensure_ascii=True, separators=_COMPACT).encode("ascii")
