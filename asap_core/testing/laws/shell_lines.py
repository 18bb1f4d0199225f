"""Lines for a POSIX shell that repeat an exchange, also later: ids and dates are variables in them.

    NOW=$(date +%s); RUN=$(echo $NOW | tail -c 9); at() { date -u -d "@$((NOW + $1))" +%Y-%m-%dT%H:%M:%S.000000Z; }
    curl … -d '{"id": "conform-'$RUN'-7", "timestamp": "'$(at -310)'", …}' http://127.0.0.1:8000/asap

Each value has as many characters as the text that it replaces, so that lengths in a head stay right. A date
that occurs again in a law's lines is the same text again: the agent compares it.
"""

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import chain
from math import ceil
from shlex import quote
from typing import Final

from attrs import define, field

from asap_core.testing.laws.http_messages import HttpRequest
from asap_core.testing.laws.runner import RecordedExchange

PREPARE: Final = (
    "NOW=$(date +%s)",
    "RUN=$(echo $NOW | tail -c 9)",
    'at() { date -u -d "@$((NOW + $1))" +%Y-%m-%dT%H:%M:%S.000000Z; }',
)
"""What the lines need, once for each repetition: a run of its own, and dates."""

# A command line has some 100 KB; nobody reads as much.
_LONGEST: Final = 40_000
# Possessive, `+`: otherwise the engine keeps some 100 bytes for each repetition, 6 GB for a bomb of 64 MB.
_VARIABLE: Final = re.compile(
    r"(?P<run>conform-)(?:[0-9A-Za-z_-]{8})(?=-\d)|(?P<date>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z)"
    r"|(?P<token>\$(?P<name>(?:OTHER_)?TOKEN)(?P<made>_SHORTER|_SWAPPED|_BASIC)?)|(?P<many>(?P<one>[^\0])(?P=one){999,}+)"
)
# What the shell makes of a token, by the suffix of its name: see `TokenMask`.
_MADE: Final = {
    None: '"${name}"',
    "_SHORTER": '"${{{name}%?}}"',
    "_SWAPPED": '"$(printf %s "${name}" | tr a-zA-Z A-Za-z)"',
    "_BASIC": """"$(printf %s "conform:${name}" | base64 | tr -d '\\n')\"""",
}
# A gzip file, as zlib names it.
_GZIP: Final = 31
# What a small body may become: a line can hold more only where one character is repeated.
_MOST_UNPACKED: Final = 1 << 24
_NOT_LATER: Final = "  # can't be repeated later: id and date are in the compressed bytes"
# Seconds in which an answer comes, once all has been sent.
_MOMENT: Final = 2


@define
class Dates:
    """How many seconds from now the dates of requests are.

    at: when the present request was sent, in seconds since the Unix epoch.
    offsets: of the dates so far: one that occurs again stays the same.
    """

    at: float = 0.0
    offsets: dict[str, int | None] = field(factory=dict)

    def offset(self, text: str) -> int | None:
        """Return the offset of a date. None if there's no such date: a leap second."""
        if text not in self.offsets:
            try:
                self.offsets[text] = round(datetime.fromisoformat(text).timestamp() - self.at)
            except ValueError:
                self.offsets[text] = None
        return self.offsets[text]


def repeating_lines(exchanges: Iterable[RecordedExchange], url: str) -> Iterator[str]:
    """Yield a line for each exchange of a law, in order, that repeats it; empty if no such line can."""
    dates = Dates()
    for each in exchanges:
        dates.at = each.at
        if each.request is not None:
            yield curl_line(each.request, url, dates)
        else:
            yield telnet_line(each.pieces, url, dates, each.seconds) or ""


def curl_line(request: HttpRequest, url: str, dates: Dates | None = None) -> str:
    """Return a line that sends this request once more. `dates`: those of the lines before it."""
    dates = dates or Dates()
    scheme, _, rest = url.partition("://")
    authority = rest.partition("/")[0]
    words = ["curl", "-i", "--path-as-is"]
    words += ["-I"] if request.method == "HEAD" else ["-X", quote(request.method)]
    for name, value in request.headers:
        is_own = name.lower() in {"connection", "content-length"} or (name.lower() == "host" and value == authority)
        if not is_own:
            words += ["-H", _word(f"{name}: {value}" if value else f"{name};", dates)]
    target = _word(f"{scheme}://{authority}{request.target}", dates)
    if not request.body:
        empty = ["--data-binary", "''"] if any(name.lower() == "content-length" for name, _ in request.headers) else []
        return " ".join([*words, *empty, target])
    body, unpacked = request.body.decode("latin-1"), _unpacked(request)
    if unpacked is None and _is_plain(body):
        return " ".join([*words, "--data-binary", _word(body, dates), target])
    source = _printed(body if unpacked is None else unpacked, dates)
    if source is None:
        return " ".join([*words, f"--data-binary @body.bin {target}  # {len(body)} bytes, in the JSON report"])
    packing = [] if unpacked is None else ["gzip -c"]
    remark = _NOT_LATER if unpacked is None and _is_packed(request) else ""
    return " | ".join([source, *packing, " ".join([*words, "--data-binary", "@-", target])]) + remark


def telnet_line(
    pieces: Sequence[bytes | float], url: str, dates: Dates | None = None, seconds: float = 0.0
) -> str | None:
    """Return a line that sends these bytes once more, with the pauses between them. None if there are too many.

    dates: those of the lines before it.
    seconds: how long to wait for all, since a peer may leave the connection open. curl's limit is a moment longer.
    """
    scheme, _, rest = url.partition("://")
    if scheme != "http":
        return None
    steps, dates = [], dates or Dates()
    for piece in pieces:
        step = f"sleep {piece:g}" if isinstance(piece, float) else _printed(piece.decode("latin-1"), dates)
        if step is None:
            return None
        steps.append(step)
    pauses = sum(piece for piece in pieces if isinstance(piece, float))
    most = ceil(max(seconds, pauses)) + 2 * _MOMENT
    return f"{{ {'; '.join([*steps, f'sleep {_MOMENT}'])}; }} | curl -sN -m {most} telnet://{rest.partition('/')[0]}"


def _unpacked(request: HttpRequest) -> str | None:
    """Return the text of a body that is whole gzip, whatever its head says; None for other bodies."""
    reader = zlib.decompressobj(wbits=_GZIP)
    try:
        text = reader.decompress(request.body, _MOST_UNPACKED)
    except zlib.error:  # it isn't gzip, or meant to be corrupt
        return None
    return text.decode("latin-1") if reader.eof and not reader.unused_data else None


def _is_packed(request: HttpRequest) -> bool:
    """Say whether a body is compressed in a way that no command here repeats."""
    return not request.body.isascii() and any(name.lower() == "content-encoding" for name, _ in request.headers)


def _is_plain(text: str) -> bool:
    is_short = len(text) <= _LONGEST and not any(match["many"] for match in _variables(text))
    return text.isascii() and text.isprintable() and is_short


def _variables(text: str) -> Iterator[re.Match[str]]:
    """Yield what the shell puts in. Ends if there's so much text before the next one that no line holds it."""
    at = 0
    while (begun := _VARIABLE.search(text, at, at + _LONGEST)) and (match := _VARIABLE.match(text, begun.start())):
        yield match
        at = match.end()


def _pieces(text: str, dates: Dates) -> Iterator[tuple[str, str]]:
    """Divide a text into what is quoted, what the shell puts in, and a character that is repeated."""
    end = 0
    for match in _variables(text):
        offset = None if match["date"] is None else dates.offset(match["date"])
        if match["date"] is not None and offset is None:
            continue
        yield "text", text[end : match.start()]
        end = match.end()
        if match["run"]:
            yield "text", match["run"]
            yield "shell", "$RUN"
        elif match["token"]:
            yield "shell", _MADE[match["made"]].format(name=match["name"])
        elif match["many"]:
            yield "many", match["many"]
        else:
            yield "shell", f"$(at {offset})"
    yield "text", text[end:]


def _word(text: str, dates: Dates) -> str:
    """Return a text as one word of the shell."""
    words = [quote(part) if kind != "shell" else part for kind, part in _pieces(text, dates) if part]
    return "".join(words) or "''"


def _printed(text: str, dates: Dates) -> str | None:
    """Return commands that print a text, whatever its characters. None if they would be too long."""
    steps: list[str] = []
    word = ""
    for kind, part in chain(_pieces(text, dates), [("many", "")]):
        if kind == "text" and len(part) > _LONGEST:
            return None
        if kind != "many":
            word += part if kind == "shell" else quote("".join(map(_escaped, part))) if part else ""
            continue
        steps += [f"printf %b {word}"] if word else []
        steps += [f"head -c {len(part)} /dev/zero | tr '\\0' {quote(part[0])}"] if part else []
        word = ""
    if sum(map(len, steps)) > _LONGEST:
        return None
    return steps[0] if len(steps) == 1 else f"{{ {'; '.join(steps)}; }}"


def _escaped(character: str) -> str:
    """Return a character as `printf %b` reads it."""
    if character == "\\":
        return "\\\\"
    return character if character.isascii() and character.isprintable() else f"\\0{ord(character):03o}"
