"""Prints what the commands have to say: JSON, tables and cards on stdout, everything else on stderr.

Names, descriptions and answers come from other machines. They could contain control characters that move the cursor,
change colours or turn the direction of the text; these never reach the terminal.
"""

import io
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

# Control characters, unpaired surrogates, and what changes the direction of text (Unicode UAX #9, §2).
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def write_anything() -> None:
    """Let stdout and stderr accept every character: those that their encoding lacks are escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(line: str) -> None:
    """Print a line, and flush it, since the reader of a pipe shouldn't wait for a full buffer."""
    print(visible(line), flush=True)


def complain(message: str) -> None:
    """Print an error or a remark, on one line of stderr."""
    # With its newline in one write: workers share this stream.
    sys.stderr.write(f"asap: {visible(message)}\n")
    sys.stderr.flush()


def visible(text: str) -> str:
    """Return text in one line that is safe for a terminal: unsafe characters become spaces."""
    return _UNSAFE.sub(" ", text)


def json_text(value: object, *, indent: int | None = None) -> str:
    """Return JSON that is safe for a terminal. Unsafe characters are escaped, so the document stays the same."""
    utf = (sys.stdout.encoding or "").lower().startswith("utf")
    text = json.dumps(value, indent=indent, ensure_ascii=not utf)
    lines = [_UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", line) for line in text.split("\n")]
    return "\n".join(lines)


def print_json(value: object, *, indent: int | None = 2) -> None:
    """Print one JSON document; with `indent` None, on one line."""
    print(json_text(value, indent=indent), flush=True)


def card(title: str, facts: Mapping[str, str | None]) -> None:
    """Print a title and aligned facts, without those that are None."""
    shown = {key: value for key, value in facts.items() if value is not None}
    width = max(map(len, shown), default=0)
    say(title)
    for key, value in shown.items():
        say(f"  {key:<{width}}  {value}")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under column heads; each column is as wide as its widest cell."""
    cells = [list(heads), *([visible(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        say("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
