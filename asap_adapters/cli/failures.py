"""How a command fails: an error becomes one line on stderr, in the words of the command line, and an exit code."""

import os
import sys
from collections.abc import Callable
from typing import Final

from asap_adapters.cli.output import complain
from asap_core.errors import (
    Advice,
    Allow,
    AsapError,
    BadReply,
    InvalidDocument,
    NotAllowed,
    NoToken,
    RemoteError,
    Unreachable,
    remote_problem,
)
from asap_core.refusals import AUTHENTICATION_REQUIRED, HANDLER_NOT_FOUND, KINDS, REPLAYED, SENDER_MISMATCH

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


# The command's option for an option of the library. `redirects` has none: the command never follows any.
_OPTIONS: Final = {
    "allow_http": "--allow-http",
    "allow_networks": "--allow-network",
    "allow_ports": "--allow-port",
    "allow_endpoints": "--allow-endpoint",
}
# What to do about a refusal: the advice of the table of refusals, or the command's own if it has an option for it.
_ADVICE: Final = {
    **{kind.taxonomy: kind.advice for kind in KINDS},
    AUTHENTICATION_REQUIRED.taxonomy: "give --token, or --client-id with --issuer or --token-endpoint",
    SENDER_MISMATCH.taxonomy: "give as --sender the agent that the token stands for",
    HANDLER_NOT_FOUND.taxonomy: "`asap discover` lists the agent's skills",
    REPLAYED.taxonomy: "leave --nonce out, or give a new one",
}
# A document may have as many problems as it has fields; the first few show what kind of document it is.
_MAX_PROBLEMS: Final = 5


def in_words(error: BaseException) -> str:
    """Describe what went wrong, and what would have been right, in one line."""
    if isinstance(error, BadReply | NoToken | Unreachable):
        # The time of the next try is for programs that continue; this one ends.
        error.next_try = None
    match error:
        case NotAllowed(remedy=Allow() as allow):
            error.remedy = _as_option(allow) or Advice("nothing here allows it")
        case BadReply(remedy=Allow() as allow) | NoToken(remedy=Allow() as allow):
            error.remedy = _as_option(allow)
        case RemoteError():
            return _refused(error)
        case InvalidDocument():
            return _invalid(error)
        case OSError() if error.strerror:
            return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _invalid(error: InvalidDocument) -> str:
    told = [str(problem) for problem in error.problems[:_MAX_PROBLEMS]]
    more = len(error.problems) - len(told)
    return f"not a valid {error.what}: " + "; ".join([*told, *([f"and {more} more"] if more else [])])


def unwrapped(error: BaseException) -> BaseException:
    """Return the error itself, or the first error of the group that a task group raised."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _as_option(allow: Allow) -> Advice | None:
    option = _OPTIONS.get(allow.option)
    return None if option is None else Advice(allow.written(f"{option} {allow.value}"))


def _refused(error: RemoteError) -> str:
    problems = error.details.get("validation_errors")
    if isinstance(problems, list) and problems:
        # `str(error)` has the first problem. Problems say what to do, so there's no advice.
        more = [remote_problem(problem) for problem in problems[1:_MAX_PROBLEMS]]
    else:
        more = [_ADVICE[error.taxonomy]] if error.taxonomy in _ADVICE else []
    return "; ".join([str(error), *more])
