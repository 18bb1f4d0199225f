"""What the commands print: JSON, tables, cards. Data goes to stdout, everything else to stderr."""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["UserError", "add_client_options", "card", "complain", "print_json", "print_line", "table"]


class UserError(Exception):
    """Something the user can put right. `usage` makes it exit code 2."""

    def __init__(self, message: str, *, usage: bool = False) -> None:
        super().__init__(message)
        self.usage = usage


def complain(message: str) -> None:
    """Say what went wrong, on one line of stderr."""
    print(f"asap: {visible(message)}", file=sys.stderr, flush=True)


def visible(text: str) -> str:
    """Text of a peer's, fit for a terminal: no control characters, nothing that moves the cursor."""
    return "".join(character if character.isprintable() else " " for character in text)


def print_json(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2, ensure_ascii=False), flush=True)


def print_line(value: Any) -> None:
    """Print a JSON document on one line."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def card(title: str, facts: Mapping[str, str | None]) -> None:
    """Print a title and its facts, aligned; those that are None are left out."""
    shown = {key: value for key, value in facts.items() if value is not None}
    width = max(map(len, shown), default=0)
    print(visible(title))
    for key, value in shown.items():
        print(f"  {key:<{width}}  {visible(value)}", flush=True)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under heads, columns as wide as what's in them."""
    cells = [[visible(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in [list(heads), *cells]) for column in range(len(heads))]
    for row in [list(heads), *cells]:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip(), flush=True)


def add_client_options(command: argparse.ArgumentParser) -> None:
    """Add the options of every command that calls agents."""
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument(
        "--allow-http", metavar="HOST", action="append", default=[], help="allow plain http to this host (repeatable)"
    )
    add_backend(command)


def add_backend(command: argparse.ArgumentParser) -> None:
    """Add the choice of event loop."""
    command.add_argument("--backend", choices=("trio", "asyncio"), default="trio", help="event loop (default: trio)")
