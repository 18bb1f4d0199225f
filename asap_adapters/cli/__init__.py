"""The command `asap`: parses the command line, runs one command, and reports its error in one line."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Final

from asap_adapters.cli import bench, demo, discover, keys, send, serve, token
from asap_adapters.cli.command import CliCommand, Parser, add_commands
from asap_adapters.cli.exit_codes import exit_code
from asap_adapters.cli.output import write_anything

COMMANDS: Final[Sequence[CliCommand]] = (
    *serve.COMMANDS,
    *discover.COMMANDS,
    *send.COMMANDS,
    *token.COMMANDS,
    *keys.COMMANDS,
    *demo.COMMANDS,
    *bench.COMMANDS,
)
GROUPS: Final = {
    "registry": "search a registry, or make an entry for one",
    "keys": "make a key that signs manifests, or show one",
    "manifest": "sign a manifest, or verify a signed one",
    "bench": "measure what admission costs on this machine",
}
_DESCRIPTION: Final = "Serve, find and call agents that speak ASAP, the Async Simple Agent Protocol."


def parser() -> Parser:
    """Build the parser of the whole command line."""
    root = Parser(prog="asap", description=_DESCRIPTION)
    root.add_argument("--version", action="version", version=f"asap-sansio {version('asap-sansio')}")
    add_commands(root, COMMANDS, GROUPS)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 for an error, 2 for a wrong command line, 130 if interrupted."""
    write_anything()
    values = vars(parser().parse_args(argv))
    command: CliCommand = values.pop("command")
    return exit_code(lambda: command.run(values))
