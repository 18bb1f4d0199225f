"""The command `asap`: parses the command line, runs one command, and reports its error in one line."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

from asap_adapters.cli.command import CliCommand, Parser, add_commands
from asap_adapters.cli.failures import exit_code
from asap_adapters.cli.output import say, write_anything

# The module of each command or group, by its name. A process imports only that of the command that it runs: a server
# starts in half the time without the client.
HOMES: Final = {
    "serve": "serve",
    "discover": "discover",
    "health": "discover",
    "browse": "discover",
    "registry": "discover",
    "resolve": "discover",
    "send": "send",
    "token": "token",
    "keys": "keys",
    "manifest": "keys",
    "demo": "demo",
    "bench": "bench",
    "conform": "conform",
    "compare": "compare",
    "fuzz": "fuzz",
}
GROUPS: Final = {
    "registry": "search a registry, or make an entry for one",
    "keys": "make a key that signs manifests, or show one",
    "manifest": "sign a manifest, or verify a signed one",
    "bench": "measure what admission costs on this machine",
}
_DESCRIPTION: Final = "Serve, find and call agents that speak ASAP, the Async Simple Agent Protocol."


def commands(word: str | None = None) -> Sequence[CliCommand]:
    """Return the commands of the module that has the command or group `word`; all commands if none has it."""
    modules = [HOMES[word]] if word in HOMES else dict.fromkeys(HOMES.values())
    found: list[CliCommand] = []
    for name in modules:
        found += import_module(f"asap_adapters.cli.{name}").COMMANDS
    return found


def parser(word: str | None = None) -> Parser:
    """Build the parser of the command line that begins with this word."""
    root = Parser(prog="asap", description=_DESCRIPTION)
    root.add_argument("--version", action=_Version, nargs=0, help="show program's version number and exit")
    add_commands(root, commands(word), GROUPS)
    return root


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version  # noqa: PLC0415 - a server starts without it

        say(f"asap-sansio {version('asap-sansio')}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 for an error, 2 for a wrong command line, 130 if interrupted."""
    write_anything()
    arguments = sys.argv[1:] if argv is None else argv
    values = vars(parser(*arguments[:1]).parse_args(arguments))
    command: CliCommand = values.pop("command")
    return exit_code(lambda: command.run(values))
