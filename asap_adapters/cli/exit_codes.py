"""How a command ends: an error becomes one line on stderr and an exit code."""

import os
import sys
from collections.abc import Callable
from typing import Final

from asap_adapters.cli.error_messages import in_words, unwrapped
from asap_adapters.cli.output import complain
from asap_core.errors import AsapError

EXIT_ERROR: Final = 1
EXIT_USAGE: Final = 2
# 128 + SIGINT, as shells report it.
EXIT_INTERRUPTED: Final = 130


class UserError(Exception):
    """An error that the user can put right.

    usage: the command line itself is wrong, and the exit code is 2.
    code: the exit code otherwise.
    """

    def __init__(self, message: str, *, usage: bool = False, code: int = EXIT_ERROR) -> None:
        super().__init__(message)
        self.code = EXIT_USAGE if usage else code


def exit_code(act: Callable[[], int]) -> int:
    """Call `act` and return its exit code, or report its error and return that error's. Bugs are raised again."""
    try:
        return act()
    except BaseException as error:  # noqa: BLE001 - `_report` raises again what isn't the user's to put right
        return _report(unwrapped(error))


def _report(error: BaseException) -> int:
    match error:
        case KeyboardInterrupt():
            return EXIT_INTERRUPTED
        case BrokenPipeError():
            return _ignore_broken_pipe()
        case UserError(code=code):
            complain(str(error))
            return code
        case AsapError() | OSError() | ValueError():
            complain(in_words(error))
            return EXIT_ERROR
        case ModuleNotFoundError() if "pip install" in str(error):  # an extra isn't installed; the message names it
            complain(str(error))
            return EXIT_ERROR
        case _:
            raise error


def _ignore_broken_pipe() -> int:
    """End without an error: the reader of our output has closed it, as in `asap browse | head`."""
    # Python writes the rest of its buffer at exit; into the closed pipe, that would fail.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
