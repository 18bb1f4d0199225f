"""The command `asap`: parses, runs one command on the chosen backend, and says what went wrong in one line."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Final

import anyio

from asap_adapters.cli import bench, demo, discover, keys, resolve, send, serve, token
from asap_adapters.cli.options import EXIT_INTERRUPTED, EXIT_USAGE, Parser
from asap_adapters.cli.output import UserError, complain, write_anything
from asap_adapters.cli.wording import in_words, unwrapped
from asap_core.errors import AsapError

EXIT_ERROR: Final = 1

_DESCRIPTION: Final = "Serve, find and call agents that speak ASAP, the Async Simple Agent Protocol."


def parser() -> Parser:
    """Build the whole command line."""
    root = Parser(prog="asap", description=_DESCRIPTION)
    root.add_argument("--version", action="version", version=f"asap-sansio {version('asap-sansio')}")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (serve, discover, resolve, send, token, keys, demo, bench):
        module.add_commands(commands)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for what went wrong, 2 for usage, 130 when interrupted."""
    write_anything()
    arguments = parser().parse_args(argv)
    if getattr(arguments, "workers", 1) == 1:
        return _run(arguments)
    return _reported(lambda: serve.with_workers(arguments, _run))


def _run(arguments: argparse.Namespace) -> int:
    return _reported(lambda: anyio.run(arguments.run, arguments, backend=arguments.backend))


def _reported(act: Callable[[], int | None]) -> int:
    try:
        return act() or 0
    except BaseException as error:  # noqa: BLE001 - what isn't a user's mistake is raised again
        return _report(unwrapped(error))


def _report(error: BaseException) -> int:
    match error:
        case KeyboardInterrupt():
            return EXIT_INTERRUPTED
        case BrokenPipeError():
            return _unread()
        case UserError(usage=usage):
            complain(str(error))
            return EXIT_USAGE if usage else EXIT_ERROR
        case AsapError() | OSError() | ValueError():
            complain(in_words(error))
            return EXIT_ERROR
        case ModuleNotFoundError(name="coredis"):  # of --redis: the extra isn't installed
            complain(str(error))
            return EXIT_ERROR
        case _:
            raise error


def _unread() -> int:
    """Whoever read our output has had enough (`asap browse | head`): not an error, and nothing more can be said."""
    # What Python still has in its buffer goes nowhere, instead of failing at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
