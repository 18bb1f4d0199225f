"""The parts of messages and artifacts, distinguished by `type` (docs/wire.md §2.2)."""

import base64
import binascii
import re
from typing import ClassVar, Final
from urllib.parse import unquote

from attrs import field, frozen

from asap_core.errors import InvalidDocument, Problem
from asap_core.wire.codec import decode_as
from asap_core.wire.json_values import JsonObject
from asap_core.wire.rules import OBJECT, TEXT, Rule, absent_or

_MIME_TYPE: Final = re.compile(r"[a-z0-9-]+/[a-z0-9.+-]+", re.ASCII | re.IGNORECASE)
# Common servers and proxies refuse longer URLs. Inline data has its own field.
_MAX_URI: Final = 8192
# Percent-encoding may be nested. Each round decodes one layer; no legitimate URI has three.
_ROUNDS: Final = 3


def _safe_uri(value: object) -> bool:
    if type(value) is not str or not 0 < len(value) <= _MAX_URI or not value.isprintable() or " " in value:
        return False
    for _ in range(_ROUNDS):
        value = unquote(value)
    # `file:/x`, `file:x` and `FILE://x` are all the file scheme (RFC 8089 §2), encoded or not.
    if value.strip().lower().startswith("file:"):
        return False
    return ".." not in re.split(r"[/\\?#]", value)


def _strict_base64(value: object) -> bool:
    if type(value) is not str:
        return False
    try:
        base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


URI: Final = Rule("a URI that isn't a file: URI and has no '..' segment, at most 8192 characters", _safe_uri)
MIME_TYPE: Final = Rule(
    "a media type such as text/plain, without parameters",
    lambda value: type(value) is str and _MIME_TYPE.fullmatch(value) is not None,
)
BASE64: Final = Rule("standard base64 with padding (RFC 4648 §4)", _strict_base64)


@frozen(kw_only=True)
class TextPart:
    """Plain text."""

    type: ClassVar[str] = "text"
    content: str = field(validator=TEXT)


@frozen(kw_only=True)
class DataPart:
    """A JSON object, and optionally the URI of its schema."""

    type: ClassVar[str] = "data"
    data: JsonObject = field(validator=OBJECT)
    schema_uri: str | None = field(default=None, validator=absent_or(TEXT))


@frozen(kw_only=True)
class FilePart:
    """A file by reference, or inline as base64. This library checks the URI and never fetches it."""

    type: ClassVar[str] = "file"
    uri: str = field(validator=URI)
    mime_type: str = field(validator=MIME_TYPE)
    inline_data: str | None = field(default=None, validator=absent_or(BASE64))


@frozen(kw_only=True)
class ResourcePart:
    """An MCP resource by its URI."""

    type: ClassVar[str] = "resource"
    resource_uri: str = field(validator=TEXT)


@frozen(kw_only=True)
class TemplatePart:
    """A template, and the variables to fill in."""

    type: ClassVar[str] = "template"
    template: str = field(validator=TEXT)
    variables: JsonObject = field(validator=OBJECT)


Part = TextPart | DataPart | FilePart | ResourcePart | TemplatePart
PARTS: Final[dict[str, type[Part]]] = {
    part.type: part for part in (TextPart, DataPart, FilePart, ResourcePart, TemplatePart)
}
"""The class of a part, by its `type`."""


def decode_part(value: object, *, path: tuple[str | int, ...] = ()) -> Part:
    """Decode a message part by its `type`, strictly. Raises `InvalidDocument`."""
    if type(value) is not dict or type(tag := value.get("type")) is not str or tag not in PARTS:
        raise InvalidDocument("part", (Problem((*path, "type"), f"one of {', '.join(PARTS)}"),))
    return decode_as({key: item for key, item in value.items() if key != "type"}, PARTS[tag], "part", path)
