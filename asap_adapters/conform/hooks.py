"""Hooks of the owner of a live agent, which move its clocks or start it again; here as commands."""

import shlex
import subprocess
from collections.abc import Callable
from typing import Final

from attrs import frozen

from asap_core.testing.laws.verdicts import LawNotTried

MoveClock = Callable[[str, int], None]
"""Moves the agent's clocks by whole seconds. "advance": both, as if they had passed; "step": the wall clock only."""
Restart = Callable[[], None]
"""Starts the agent again, so that it remembers nothing. Returns when the old one is gone."""

# An agent that needs longer to start isn't one that a test can start again for each law.
_LONGEST: Final = 30.0


@frozen
class HookCommand:
    """A command of the user's, run without a shell. Its standard output is dropped; it shares standard error.

    words: the program, and what precedes the arguments of a call.
    """

    words: tuple[str, ...]

    def __call__(self, *arguments: str | int) -> None:
        """Run the command with these arguments, for at most 30 s. Raises LawNotTried if it fails."""
        try:
            done = subprocess.run(  # noqa: S603 - the words are the user's own
                [*self.words, *map(str, arguments)],
                check=False, timeout=_LONGEST, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LawNotTried(f"the hook {self.words[0]} failed: {error}") from None
        if done.returncode:
            raise LawNotTried(f"the hook {self.words[0]} failed: it ended with {done.returncode}")


def command_line(hook: object) -> str:
    """Return what runs a hook in a shell; empty if it's no command."""
    return shlex.join(hook.words) if isinstance(hook, HookCommand) else ""


def hook_command(text: str) -> HookCommand:
    """Read a command as a shell divides it into words. Raises ValueError if there is none."""
    words = shlex.split(text)
    if not words:
        raise ValueError("expected a command")
    return HookCommand(tuple(words))
