"""Tokens that only their provider can read (RFC 7662): asked about once for all who show them, believed for a while.

    lookup ─▶ Judged                      what is kept says so, or nothing may be asked now
           ─▶ AskProvider ─▶ settle ─▶ Judged     this one asks the provider, for all who show the same token meanwhile
           ─▶ ()                          somebody asks already

Rule of this module: a token is good because the provider said so not long ago, and for no other reason. Tokens are kept
by keyed digests, never as themselves (fault 29).

Second rule: what a stranger's token brings about holds for that token alone, which is asked about less and less
often. Providers answer an odd one with 400, 403, 413, 422 or 431, or a page; some with 500, or not in time. The
provider is left alone, for all, only if no token can be the reason: it isn't reached, or doesn't know *us* (401
`invalid_client`); if two different tokens that it called active before fail, with no answer between them; or if it's
in trouble before it has answered anything. In that last case alone a stranger can be the reason, at a provider that
fails for odd tokens.
"""

from collections.abc import Hashable
from enum import Enum
from hashlib import blake2b
from typing import Final, Generic, TypeVar, assert_never

from attrs import field, frozen

from asap_core.auth.bearer import is_token
from asap_core.auth.claims import Accepted, Rejected
from asap_core.auth.introspection_response import (
    ActiveToken,
    FailureCause,
    InactiveToken,
    IntrospectionFailed,
    IntrospectionPolicy,
    judge_introspection,
)
from asap_core.auth.principal import InsufficientScope
from asap_core.clock import Instant, Moment, WallTime
from asap_core.lru import Lru

W = TypeVar("W", bound=Hashable)

# 128 bits under a secret key: nobody finds a second token with the digest of a known one.
_DIGEST: Final = 16
# As long as a host that failed is left alone at first, and at most.
_FIRST_PAUSE: Final = 1.0
_DOUBLINGS: Final = 5
# Tokens that were good and fail now, until it's the provider that does: one alone may be odd in a way of its own, such
# as that of a user who was deleted.
_DIFFERENT: Final = 2

# Every fifth question is kept for tokens that were good before.
_RESERVED: Final = 5


class NoVerdict(Enum):
    """It can't be told now whether the token is good."""

    PROVIDER = "provider"
    """The provider can't be reached, or doesn't answer as it should; it's asked again later."""
    CROWDED = "crowded"
    """Too many other tokens are being asked about."""


IntrospectionVerdict = Accepted | InsufficientScope | Rejected | NoVerdict


@frozen(eq=False)
class Question(Generic[W]):
    """One question under way. Compared by identity: a second one about the same token is another."""

    digest: bytes = field(repr=False)
    waiters: dict[W, None] = field(factory=dict, repr=False)


@frozen
class Judged(Generic[W]):
    """Tell this waiter what comes of its token."""

    waiter: W
    verdict: IntrospectionVerdict


@frozen
class AskProvider(Generic[W]):
    """This waiter asks the provider about its token, and settles the question."""

    waiter: W
    question: Question[W]


IntrospectionEffect = Judged[W] | AskProvider[W]


@frozen
class _Failure:
    """A token that couldn't be told about: how often in a row, and when it's asked about again."""

    count: int
    until: Instant


@frozen
class _Kept:
    verdict: Accepted | InsufficientScope | Rejected
    until: Instant
    ends: WallTime


class Introspector(Generic[W]):
    """Judges tokens by one provider's word. One event loop owns it; its methods return at once.

    `secret` is 32 random bytes for the digests that tokens are kept by; no token is kept in clear.
    """

    def __init__(self, policy: IntrospectionPolicy, *, secret: bytes) -> None:
        self.policy = policy
        self._secret = secret
        self._good: Lru[bytes, _Kept] = Lru(policy.max_kept)
        self._refused: Lru[bytes, _Kept] = Lru(policy.max_kept)
        # Tokens that the provider called active when it spoke of them last.
        self._known: Lru[bytes, None] = Lru(policy.max_kept)
        self._failed: Lru[bytes, _Failure] = Lru(policy.max_kept)
        # Whether the provider has ever answered; and known tokens that failed since its last answer.
        self._answered = False
        self._doubted: set[bytes] = set()
        self._questions: dict[bytes, Question[W]] = {}
        self._asking: dict[W, Question[W]] = {}
        self._failures = 0
        self._next_try = Instant(float("-inf"))

    def __len__(self) -> int:
        """How many answers are kept."""
        return len(self._good) + len(self._refused)

    @property
    def waiting(self) -> int:
        """How many wait for an answer, those who ask included."""
        return len(self._asking)

    @property
    def asking(self) -> int:
        """How many questions are under way."""
        return len(self._questions)

    def lookup(self, token: str, waiter: W, *, at: Moment) -> tuple[IntrospectionEffect[W], ...]:
        """Judge a token: at once, by asking, or (nothing) with the answer that's awaited. Never raises on any text.

        A waiter waits for one token at a time.
        """
        if not is_token(token):
            return (Judged(waiter, Rejected("a token of visible ASCII characters")),)
        digest = blake2b(token.encode("ascii"), key=self._secret, digest_size=_DIGEST).digest()
        kept = self._recall(digest, at=at)
        if kept is not None:
            return (Judged(waiter, kept),)
        question = self._questions.get(digest)
        if question is not None:
            question.waiters[waiter] = None
            self._asking[waiter] = question
            return ()
        failed = self._failed.peek(digest)
        if at.now < self._next_try or (failed is not None and at.now < failed.until):
            return (Judged(waiter, NoVerdict.PROVIDER),)
        if self._is_crowded(digest):
            return (Judged(waiter, NoVerdict.CROWDED),)
        return (self._lead(digest, {waiter: None}),)

    def _is_crowded(self, digest: bytes) -> bool:
        most = self.policy.max_asked
        if digest in self._known:
            return len(self._questions) >= most
        strangers = sum(1 for each in self._questions if each not in self._known)
        return len(self._questions) >= most or strangers >= most - most // _RESERVED

    def settle(
        self,
        question: Question[W],
        answer: ActiveToken | InactiveToken | IntrospectionFailed,
        *,
        at: Moment,
    ) -> tuple[IntrospectionEffect[W], ...]:
        """The provider answered: one verdict for all who wait. A question that's over already changes nothing."""
        if self._questions.get(question.digest) is not question:
            return ()
        del self._questions[question.digest]
        verdict = self._judge(question.digest, answer, at=at)
        for waiter in question.waiters:
            del self._asking[waiter]
        return tuple(Judged(waiter, verdict) for waiter in question.waiters)

    def abandon(self, waiter: W) -> tuple[IntrospectionEffect[W], ...]:
        """`waiter` was cancelled; idempotent. Where it asked, the next in line asks."""
        question = self._asking.pop(waiter, None)
        if question is None:
            return ()
        asks = next(iter(question.waiters)) == waiter
        del question.waiters[waiter]
        if question.waiters:
            # A new question, so that what the first one may still bring is late.
            return (self._lead(question.digest, question.waiters),) if asks else ()
        del self._questions[question.digest]
        return ()

    def _lead(self, digest: bytes, waiters: dict[W, None]) -> AskProvider[W]:
        question = self._questions[digest] = Question(digest, dict(waiters))
        for waiter in question.waiters:
            self._asking[waiter] = question
        return AskProvider(next(iter(question.waiters)), question)

    def _judge(
        self, digest: bytes, answer: ActiveToken | InactiveToken | IntrospectionFailed, *, at: Moment
    ) -> IntrospectionVerdict:
        if isinstance(answer, IntrospectionFailed):
            self._fail(digest, answer, now=at.now)
            return NoVerdict.PROVIDER
        self._failures, self._next_try, self._answered = 0, Instant(float("-inf")), True
        self._doubted.clear()
        self._failed.pop(digest)
        self._known.pop(digest)
        if isinstance(answer, ActiveToken):
            verdict = judge_introspection(answer, self.policy, wall=at.wall)
        else:
            verdict = Rejected("a token that's active")
        self._keep(digest, verdict, at=at)
        return verdict

    def _fail(self, digest: bytes, answer: IntrospectionFailed, *, now: Instant) -> None:
        if self._is_the_providers(digest, answer.cause):
            # Those that were asked together failed together.
            if now >= self._next_try:
                self._failures += 1
                self._next_try = _pause(self._failures, now)
            return
        before = self._failed.pop(digest)
        count = 1 if before is None else before.count + 1
        self._failed.put(digest, _Failure(count, _pause(count, now)))

    def _is_the_providers(self, digest: bytes, cause: FailureCause) -> bool:
        if cause is FailureCause.PROVIDER:
            return True
        if digest in self._known and len(self._doubted) < _DIFFERENT:
            self._doubted.add(digest)
        if digest in self._known and len(self._doubted) == _DIFFERENT:
            return True
        return cause is FailureCause.EITHER and not self._answered

    def _recall(self, digest: bytes, *, at: Moment) -> IntrospectionVerdict | None:
        for table in (self._good, self._refused):
            kept = table.peek(digest)
            if kept is not None:
                # Its end counts on both clocks, whichever is there first.
                if at.now < kept.until and at.wall < kept.ends:
                    table.touch(digest)
                    return kept.verdict
                table.pop(digest)
        return None

    def _keep(self, digest: bytes, verdict: Accepted | InsufficientScope | Rejected, *, at: Moment) -> None:
        match verdict:
            case Accepted(_, until):
                table, ends = self._good, until
            case InsufficientScope():
                table, ends = self._good, WallTime(at.wall + self.policy.most_refused)
            case Rejected():
                table, ends = self._refused, WallTime(at.wall + self.policy.most_refused)
            case _:
                assert_never(verdict)
        table.put(digest, _Kept(verdict, Instant(at.now + (ends - at.wall)), ends))
        if table is self._good:
            self._known.put(digest, None)


def _pause(failures: int, now: Instant) -> Instant:
    return Instant(now + _FIRST_PAUSE * 2.0 ** min(failures - 1, _DOUBLINGS))
