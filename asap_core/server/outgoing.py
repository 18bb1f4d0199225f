"""Large answers that are being sent, counted in bytes. For the next one, the slowest readers' connections are reset.

An answer counts with its whole size until its reader has taken all of it, since its text is in memory that long. The
slowest reader is the one that took its last piece longest ago. It isn't the one with the lowest average: the kernel
takes the first megabytes of any answer at once, so a new reader looks quick even if it reads nothing.
"""

from collections.abc import Callable
from typing import Final

from attrs import define, field

# Answers up to this size aren't counted: they leave in one piece. A thousand connections hold 64 MB of them.
UNCOUNTED: Final = 65_536
# How many times its size an answer needs while it's made: its request may be as large, and is in memory as text and as
# values; the answer is written in two steps, and kept under its idempotency key. Measured with such keys: 60 answers of
# 8 MB that nobody reads take 287 MB; with 4 instead of 8 here, 306 MB.
_ROOM: Final = 8


def _nothing() -> None:
    """The `reset` of an answer that its driver hasn't begun to send."""


@define(eq=False)
class Outgoing:
    """One large answer that is being sent.

    size: how many bytes it counts for.
    reset: ends the sending. The driver sets it before it sends, and calls it for the answers that it's told to end.
    """

    size: int
    reset: Callable[[], None] = _nothing


@define(eq=False)
class OutgoingAnswers:
    """The large answers of one agent.

    most: how many bytes they may have together (`Policy.max_answers`).
    held: how many they have now.
    """

    most: int
    held: int = field(default=0, init=False)
    _slowest_first: dict[Outgoing, None] = field(factory=dict, init=False)

    def fits(self, size: int) -> bool:
        """Whether an answer of this size can be sent at all."""
        return size <= self.most

    def begin(self, size: int) -> tuple[Outgoing, tuple[Outgoing, ...]]:
        """Count an answer that fits. Returns it, and the answers that must end to make room for it, slowest first."""
        ended = []
        while self.held and self.held + _ROOM * size > self.most:
            slowest = next(iter(self._slowest_first))
            self.end(slowest)
            ended.append(slowest)
        answer = Outgoing(size)
        self._slowest_first[answer] = None
        self.held += size
        return answer, tuple(ended)

    def progressed(self, answer: Outgoing) -> None:
        """Note that the reader took a piece: it's the slowest reader no longer."""
        if answer in self._slowest_first:
            del self._slowest_first[answer]
            self._slowest_first[answer] = None

    def end(self, answer: Outgoing) -> None:
        """Stop counting an answer that was taken or whose reader is gone. Does nothing if it was ended before."""
        if answer in self._slowest_first:
            del self._slowest_first[answer]
            self.held -= answer.size
