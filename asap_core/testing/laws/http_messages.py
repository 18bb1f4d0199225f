"""Requests as a law writes them, and answers as bytes are read: nothing is repaired, and nothing is required.

A request is sent exactly as `HttpRequest.to_bytes` writes it. An answer keeps its bytes, so a report can show them.
"""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Final, cast

from attrs import field, frozen

from asap_core.wire.json_values import Json, JsonObject

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] (\d{3})(?: [^\r\n]*)?\Z")
_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,8}")
# Statuses whose answers have no body (RFC 9112 §6.3).
_BODILESS: Final = (204, 304)
# What Python's readers say of a text that is cut.
_CUT: Final = "unexpected end of data"
_UNTERMINATED: Final = "Unterminated string"


@frozen
class HttpRequest:
    """One request: what stands in its head, in this order and spelling, and its body."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = field(default=b"", repr=False)

    def to_bytes(self) -> bytes:
        """Return the bytes that are sent. Adds no header; characters above U+00FF raise UnicodeEncodeError."""
        fields = "".join(f"{name}: {value}\r\n" for name, value in self.headers)
        return f"{self.method} {self.target} HTTP/1.1\r\n{fields}\r\n".encode("latin-1") + self.body


@frozen(slots=False)
class Answer:
    """One answer, or none.

    status: None if there was no answer, or none that is HTTP.
    headers: names in lower case, in the order of arrival.
    problem: why there is no whole answer; empty if there is one. The other fields are as far as it came.
    """

    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = field(default=b"", repr=False)
    raw: bytes = field(default=b"", repr=False)
    problem: str = ""

    def header(self, name: str) -> str | None:
        """Return the value of a header (its name in lower case), or None. Values of several lines are joined."""
        found = [value for key, value in self.headers if key == name]
        return ", ".join(found) if found else None

    @cached_property
    def json(self) -> Json:
        """The body as JSON, or None if it isn't JSON."""
        try:
            return cast("Json", json.loads(self.body))
        except (ValueError, RecursionError):
            return None

    @property
    def document(self) -> JsonObject:
        """The body as a JSON object; empty if it isn't one."""
        return self.json if isinstance(self.json, dict) else {}

    @property
    def items(self) -> list[JsonObject]:
        """The objects in the body's array, the answers to a batch; empty if it's no array."""
        return [each for each in self.json if isinstance(each, dict)] if isinstance(self.json, list) else []

    @property
    def result(self) -> JsonObject | None:
        """The `result` of JSON-RPC, or None."""
        found = self.document.get("result")
        return found if isinstance(found, dict) else None

    @property
    def error(self) -> JsonObject | None:
        """The `error` of JSON-RPC, or None."""
        found = self.document.get("error")
        return found if isinstance(found, dict) else None

    @property
    def data(self) -> JsonObject:
        """The `data` of the error; empty if there is none."""
        found = (self.error or {}).get("data")
        return found if isinstance(found, dict) else {}

    @property
    def code(self) -> Json:
        """The error's number, or None."""
        return (self.error or {}).get("code")

    @property
    def taxonomy(self) -> Json:
        """The error's `data.code`, such as `asap:protocol/invalid_nonce`, or None."""
        return self.data.get("code")

    @property
    def envelope(self) -> JsonObject | None:
        """The envelope of a success, or None."""
        found = (self.result or {}).get("envelope")
        return found if isinstance(found, dict) else None

    @property
    def is_success(self) -> bool:
        """Whether the call was accepted: status 200 and a result, and no error."""
        return not self.problem and self.status == 200 and self.result is not None and self.error is None  # noqa: PLR2004 - HTTP's OK

    def __str__(self) -> str:
        if self.problem:
            return f"no whole answer{'' if self.status is None else f', HTTP {self.status}'}: {self.problem}"
        if self.error is not None:
            taxonomy = f" {self.taxonomy}" if self.taxonomy else ""
            return f"HTTP {self.status}, JSON-RPC error {self.code}{taxonomy}"
        if self.result is not None:
            return f"HTTP {self.status}, a JSON-RPC result"
        why = _why_not_json(self.body, self.header("content-length")) if self.body else ""
        return f"HTTP {self.status}, a body of {len(self.body)} bytes{why}"


def _why_not_json(body: bytes, length: str | None) -> str:
    """Say why a body isn't JSON, and where. Empty if it is. `length`: its Content-Length."""
    begin, end = " that isn't JSON: ", f"at byte {len(body)}{'' if length is None else ', its Content-Length'}"
    if length is not None and not body.isascii():
        end += " (which counts bytes, not characters)"
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        cut = error.reason == _CUT
        return f"{begin}it ends inside a character {end}" if cut else f"{begin}no UTF-8 at byte {error.start}"
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg.startswith(_UNTERMINATED):
            return f"{begin}it ends inside a string {end}"
        if not text[error.pos :].strip():
            return f"{begin}it ends inside a value {end}"
        return f"{begin}it's wrong at byte {len(text[: error.pos].encode())}"
    except (ValueError, RecursionError):
        return f"{begin}a number, or the depth, is beyond all bounds"
    return ""


def read_answers(data: bytes, methods: Sequence[str] = (), *, closed: bool) -> tuple[list[Answer], bytes]:
    """Return the whole answers in these bytes, in order, and the bytes after them.

    methods: of the requests; an answer to HEAD has no body.
    closed: whether the connection has ended, which ends a body without a length.
    """
    answers: list[Answer] = []
    while data:
        method = methods[len(answers)] if len(answers) < len(methods) else ""
        end = _end_of_answer(data, method, closed=closed)
        if end is None:
            break
        answer, used = end
        data = data[used:]
        if answer.status is not None and answer.status // 100 == 1:  # an interim answer: the final one follows
            continue
        answers.append(answer)
    return answers, data


def _end_of_answer(data: bytes, method: str, *, closed: bool) -> tuple[Answer, int] | None:
    head, mark, _ = data.partition(b"\r\n\r\n")
    if not mark:
        return None
    lines = head.split(b"\r\n")
    status = _STATUS_LINE.match(lines[0])
    if status is None:
        return Answer(raw=data, problem="what came isn't HTTP/1.1"), len(data)
    fields = tuple(
        (name.decode("latin-1").lower(), value.decode("latin-1").strip(" \t"))
        for name, _, value in (line.partition(b":") for line in lines[1:])
    )
    begin = len(head) + len(mark)
    found = _body(data[begin:], int(status[1]), dict(fields), method, closed=closed)
    if found is None and closed:
        problem = "the connection ended within the body"
        return Answer(int(status[1]), fields, data[begin:], data, problem), len(data)
    if found is None:
        return None
    body, length = found
    return Answer(int(status[1]), fields, body, data[: begin + length]), begin + length


def _body(rest: bytes, status: int, fields: dict[str, str], method: str, *, closed: bool) -> tuple[bytes, int] | None:
    """Return the body and how many bytes it took, or None if it isn't whole. Source: RFC 9112 §6.3."""
    if method == "HEAD" or status in _BODILESS or status // 100 == 1:
        return b"", 0
    if "chunked" in fields.get("transfer-encoding", "").lower():
        return _chunks(rest)
    length = fields.get("content-length")
    if length is not None and length.isascii() and length.isdigit():
        return (rest[: int(length)], int(length)) if len(rest) >= int(length) else None
    return (rest, len(rest)) if closed else None


def _chunks(rest: bytes) -> tuple[bytes, int] | None:
    body, at = b"", 0
    while (line := rest.find(b"\r\n", at)) >= 0:
        size = _SIZE.match(rest, at)
        count = int(size[0], 16) if size else 0
        if count == 0:
            end = rest.find(b"\r\n", line + 2) if rest[line + 2 : line + 4] == b"\r\n" else rest.find(b"\r\n\r\n", line)
            return None if end < 0 else (body, end + (2 if end == line + 2 else 4))
        begin = line + 2
        if len(rest) < begin + count + 2:
            return None
        body += rest[begin : begin + count]
        at = begin + count + 2
    return None
