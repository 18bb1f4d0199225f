"""The framing of chunked bodies (RFC 9112 §7.1), line by line."""

import re
from typing import Final

from asap_core.testing.planted.messages import HttpFault
from asap_core.testing.planted.switches import Breaks

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - no password
_QUOTED: Final = r'"(?:[^"\\]|\\.)*"'
# 16 hexadecimal digits are more than any body needs.
_SIZE: Final = re.compile(rf"([0-9A-Fa-f]{{1,16}})(?:;{_TOKEN}(?:=(?:{_TOKEN}|{_QUOTED}))?)*")
# RFC 9110 §6.5.1: fields that decide how a request is read count only if they precede the body.
_NOT_IN_TRAILERS: Final = frozenset(
    [
        *("asap-version", "authorization", "connection", "content-encoding", "content-length", "content-type"),
        *("expect", "forwarded", "host", "if-none-match", "origin", "te", "trailer", "transfer-encoding"),
        *("x-forwarded-for", "x-idempotency-key"),
    ]
)


def chunk_size(text: str, broken: Breaks) -> int:
    """Read the line before a chunk. Raises HttpFault."""
    if broken("http.chunk_size_prefix"):
        text = text.removeprefix("0x").removeprefix("+")
    if broken("http.chunk_size_blanks"):
        text = text.strip(" \t")
    if broken("http.chunk_extension"):
        text = text.partition(";")[0].strip()
    match = _SIZE.fullmatch(text)
    if match is None:
        raise HttpFault(400, "chunk sizes in hexadecimal, with extensions as in RFC 9112")
    return int(match[1], 16) % 2**32 if broken("http.chunk_size_wraps") else int(match[1], 16)


def check_trailer(text: str, broken: Breaks) -> None:
    """Check a trailer field. Raises HttpFault."""
    name, colon, _ = text.partition(":")
    if (not colon or not re.fullmatch(_TOKEN, name)) and not broken("http.trailer_grammar"):
        raise HttpFault(400, "trailers of a name, a colon and a value")
    if name.lower() in _NOT_IN_TRAILERS and not broken("http.trailer_framing"):
        raise HttpFault(400, "in trailers no field that decides how the request is read")
