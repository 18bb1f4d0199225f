"""What the commands print: JSON, tables, cards. Data goes to stdout, everything else to stderr.

Names, descriptions and answers come from strangers: nothing of theirs reaches the terminal that would move its cursor,
change its colours or turn the direction of the text.
"""

import io
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

# Control characters, unpaired surrogates, and what changes the direction of text (Unicode UAX #9, §2).
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def write_anything() -> None:
    """Let stdout and stderr take every character: what their encoding lacks is written as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(line: str) -> None:
    """Print a line, at once: whoever reads a pipe shouldn't wait for a buffer."""
    print(visible(line), flush=True)


def complain(message: str) -> None:
    """Say what went wrong, on one line of stderr."""
    print(f"asap: {visible(message)}", file=sys.stderr, flush=True)


def visible(text: str) -> str:
    """Text of a stranger's, fit for a terminal and for one line of it."""
    return _UNSAFE.sub(" ", text)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """JSON that's fit for a terminal: what isn't is escaped, so that it's the same document."""
    utf = (sys.stdout.encoding or "").lower().startswith("utf")
    text = json.dumps(value, indent=indent, ensure_ascii=not utf)
    lines = [_UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", line) for line in text.split("\n")]
    return "\n".join(lines)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Print one JSON document; without `indent`, on one line."""
    print(json_text(value, indent=indent), flush=True)


def card(title: str, facts: Mapping[str, str | None]) -> None:
    """Print a title and its facts, aligned; those that are None are left out."""
    shown = {key: value for key, value in facts.items() if value is not None}
    width = max(map(len, shown), default=0)
    say(title)
    for key, value in shown.items():
        say(f"  {key:<{width}}  {value}")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under heads, columns as wide as what's in them."""
    cells = [list(heads), *([visible(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        say("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
