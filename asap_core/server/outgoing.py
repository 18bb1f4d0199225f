"""Large answers under way, counted in bytes: if the next one needs the room, the slowest readers are ended.

An answer counts with its whole size until its reader has taken all of it, since its text is kept that long. The slowest
reader is the one that took its last piece longest ago. Not the one with the lowest average: the kernel takes the first
megabytes of any answer at once, so that a reader of nothing looks quick while it's new.
"""

from collections.abc import Callable
from typing import Final

from attrs import define, field

# Answers up to this size aren't counted: they leave in one piece. A thousand connections hold 64 MB of them.
UNCOUNTED: Final = 65_536
# Times its size that an answer needs: the next one is made beside all that are held, from a request as large as it,
# which is there as text and as values, is written in two steps, and kept under its idempotency key. Measured with such
# keys: 60 answers of 8 MB that nobody reads take 287 MB, and 306 MB with room for 4.
_ROOM: Final = 8


def _nothing() -> None:
    """An answer whose driver hasn't begun to send it."""


@define(eq=False)
class Outgoing:
    """One large answer under way, of `size` bytes.

    `reset` is the driver's: it sets it before it sends, and calls those of the answers that it's told to end.
    """

    size: int
    reset: Callable[[], None] = _nothing


@define(eq=False)
class OutgoingAnswers:
    """The large answers of one agent: `most` bytes of them at once. `held` is how many there are."""

    most: int
    held: int = field(default=0, init=False)
    _slowest_first: dict[Outgoing, None] = field(factory=dict, init=False)

    def fits(self, size: int) -> bool:
        """Whether an answer of this size could be sent at all."""
        return size <= self.most

    def begin(self, size: int) -> tuple[Outgoing, tuple[Outgoing, ...]]:
        """Count an answer that fits. Returns it, and those that are ended to make room for it, slowest first."""
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
        """The reader took a piece: of all readers it's now the least slow."""
        if answer in self._slowest_first:
            del self._slowest_first[answer]
            self._slowest_first[answer] = None

    def end(self, answer: Outgoing) -> None:
        """The answer was taken whole, or its reader is gone. Does nothing if it was ended before."""
        if answer in self._slowest_first:
            del self._slowest_first[answer]
            self.held -= answer.size
