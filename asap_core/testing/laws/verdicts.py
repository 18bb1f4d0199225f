"""What comes out of a law, and what a law needs to be tried at all."""

from enum import Enum

from attrs import frozen

from asap_core.testing.laws.http_messages import Answer


class Need(Enum):
    """What a law needs of a run. Without it the law isn't tried; the value completes "it needs …"."""

    SKILL = "a skill that may be run (--skill, or one named echo), and a token if the agent authenticates its callers"
    ADMITTED = "a caller that the agent admits: --token with --as, or an agent without authentication"
    AUTH = "an agent that authenticates its callers, and a token: --token with --as"
    OTHER = "a second caller: --other-token with --other-as"
    FAILING = "a skill that fails (--failing-skill), and a token if the agent authenticates its callers"
    OPEN = "an agent without authentication"
    IDEMPOTENCY = "idempotency keys"
    BATCH = "batches of JSON-RPC"
    COMPRESSION = "compressed bodies"
    BYTES = "a connection that carries any bytes: a run over sockets"
    DIRECT = "a direct connection, without a shared proxy in between: --direct"
    CLOCK = "a hook that moves the agent's clocks (--clock-hook)"
    RESET = "a hook that starts the agent again (--reset-hook)"


@frozen
class Kept:
    """The law was tried and is kept."""


@frozen
class Breach:
    """The law is broken. `got`: what the agent did instead, as text for people."""

    got: str


@frozen
class NotTried:
    """The law says nothing about this run. `why`: as text for people."""

    why: str


Verdict = Kept | Breach | NotTried


class LawBroken(Exception):
    """Ends a law: it's broken.

    got: what the agent did instead.
    answer: in which it shows; None: in the last one.
    unlike: the answer that it should have been like. Then `got` says in what it differs.
    example: which variant of the input it was, if `got` doesn't say it.
    """

    def __init__(
        self, got: str, answer: Answer | None = None, *, unlike: Answer | None = None, example: str = ""
    ) -> None:
        super().__init__(got)
        self.got = got
        self.answer = answer
        self.unlike = unlike
        self.example = example


class LawNotTried(Exception):
    """Ends a law: it can't be judged here. `why`: what is missing."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class RateLimited(LawNotTried):
    """Ends a law: the rate limit refuses what it sends, again and again."""
