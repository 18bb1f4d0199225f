"""The command `asap`: parses, runs one command on the chosen backend, and says what went wrong in one line."""

import argparse
import sys
from collections.abc import Sequence
from typing import Final

import anyio

from asap_adapters.cli import demo, find, send, serve
from asap_adapters.cli.output import UserError, complain
from asap_core.errors import AsapError

__all__ = ["main"]

EXIT_ERROR: Final = 1
EXIT_USAGE: Final = 2
# 128 + SIGINT, as shells report it.
EXIT_INTERRUPTED: Final = 130

_DESCRIPTION: Final = "Serve, find and call agents that speak ASAP, the Async Simple Agent Protocol."


def parser() -> argparse.ArgumentParser:
    """Build the whole command line."""
    root = argparse.ArgumentParser(prog="asap", description=_DESCRIPTION, allow_abbrev=False)
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (serve, find, send, demo):
        module.add_commands(commands)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for what went wrong, 2 for usage."""
    arguments = parser().parse_args(argv)
    try:
        code: int | None = anyio.run(arguments.run, arguments, backend=arguments.backend)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has had enough (`asap browse | head`): not an error, and nothing more can be said.
        sys.stderr.close()
        return 0
    except BaseExceptionGroup as group:
        return _report(_only(group))
    except UserError as error:
        complain(str(error))
        return EXIT_USAGE if error.usage else EXIT_ERROR
    except (AsapError, OSError, ValueError) as error:
        return _report(error)
    return code or 0


def _report(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if not isinstance(error, AsapError | OSError | ValueError | UserError):
        raise error
    complain(_in_words(error))
    return EXIT_USAGE if isinstance(error, UserError) and error.usage else EXIT_ERROR


def _in_words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error in nested groups; a task group wraps what its task raised."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
