"""What a law may have done: a closed union of effects, and the outcomes that answer them.

    program ──▶ LawEffect ──▶ an executor carries it out ──▶ LawOutcome ──▶ program ──▶ … ──▶ its end

As in the client's programs, `yield from` composes, and gives each outcome its type.
"""

from collections.abc import Generator
from typing import TypeVar

from attrs import field, frozen

from asap_core.testing.laws.http_messages import Answer, HttpRequest

T = TypeVar("T")


@frozen
class SendRequest:
    """Send one request on a fresh connection, and read one answer. Answered by `Answer`.

    seconds: for all of it. A peer that takes longer gives an `Answer` without a status.
    """

    request: HttpRequest
    seconds: float = 10.0

    def __iter__(self) -> "Generator[LawEffect, LawOutcome, Answer]":
        outcome = yield self
        if not isinstance(outcome, Answer):
            raise TypeError(f"a SendRequest is answered by Answer, not {outcome!r}")
        return outcome


@frozen
class SendBytes:
    """Send these bytes on a fresh connection, and read what comes. Answered by `AnswersToBytes`.

    pieces: bytes, and pauses between them in seconds.
    answers: stop reading after so many whole answers; 0: read until the peer closes.
    seconds: for all of it.
    methods: of the requests in the bytes, as far as an answer's end depends on them.
    """

    pieces: tuple[bytes | float, ...]
    answers: int = 0
    seconds: float = 5.0
    methods: tuple[str, ...] = ()

    def __iter__(self) -> "Generator[LawEffect, LawOutcome, AnswersToBytes]":
        outcome = yield self
        if not isinstance(outcome, AnswersToBytes):
            raise TypeError(f"a SendBytes is answered by AnswersToBytes, not {outcome!r}")
        return outcome


@frozen
class SendTogether:
    """Send requests at once, each on a connection of its own. Answered by `Together`.

    seconds: for all of them.
    """

    requests: tuple[HttpRequest, ...]
    seconds: float = 10.0

    def __iter__(self) -> "Generator[LawEffect, LawOutcome, tuple[Answer, ...]]":
        outcome = yield self
        if not isinstance(outcome, Together):
            raise TypeError(f"a SendTogether is answered by Together, not {outcome!r}")
        return outcome.answers


@frozen
class ConverseTogether:
    """Send bytes on several connections at once. Answered by `Conversations`.

    seconds of each count from the beginning, so that slow peers cost the time of one.
    """

    conversations: tuple[SendBytes, ...]

    def __iter__(self) -> "Generator[LawEffect, LawOutcome, tuple[AnswersToBytes, ...]]":
        outcome = yield self
        if not isinstance(outcome, Conversations):
            raise TypeError(f"a ConverseTogether is answered by Conversations, not {outcome!r}")
        return outcome.answers


@frozen
class Pause:
    """Let this many seconds pass on the real clock. Answered by `Passed`."""

    seconds: float

    def __iter__(self) -> "Generator[LawEffect, LawOutcome, None]":
        yield self


@frozen
class AdvanceClock:
    """Let seconds pass on both of the agent's clocks, or step its wall clock. Answered by `Passed`."""

    seconds: float = 0.0
    step_wall: float = 0.0

    def __iter__(self) -> "Generator[LawEffect, LawOutcome, None]":
        yield self


@frozen
class ResetTarget:
    """Start the agent again, so that it remembers nothing. Answered by `Passed`."""

    def __iter__(self) -> "Generator[LawEffect, LawOutcome, None]":
        yield self


LawEffect = SendRequest | SendBytes | SendTogether | ConverseTogether | Pause | AdvanceClock | ResetTarget


@frozen
class AnswersToBytes:
    """The whole answers that came, in order.

    rest: bytes that are no whole answer.
    closed: whether the peer closed or reset the connection before the time was over.
    """

    answers: tuple[Answer, ...]
    rest: bytes = field(default=b"", repr=False)
    closed: bool = False
    raw: bytes = field(default=b"", repr=False)

    @property
    def first(self) -> Answer:
        """The first answer, or one without a status."""
        return self.answers[0] if self.answers else Answer(raw=self.raw, problem="the connection had no whole answer")


@frozen
class Together:
    """The answers to requests that were sent at once, in the order of the requests."""

    answers: tuple[Answer, ...]


@frozen
class Conversations:
    """What came on connections that were used at once, in the order of the effects."""

    answers: tuple[AnswersToBytes, ...]


@frozen
class Passed:
    """The time has passed; the clock was moved; the agent was started again."""


LawOutcome = Answer | AnswersToBytes | Together | Conversations | Passed
Steps = Generator[LawEffect, LawOutcome, T]
"""A law's program, or a part of one; `yield from` composes them."""
