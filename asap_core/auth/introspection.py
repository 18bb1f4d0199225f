"""Judging opaque tokens by introspection (RFC 7662): one question for all who show a token, kept for a while.

    lookup ─▶ Judged                              a kept response decides, or the provider may not be asked now
           ─▶ AskProvider ─▶ settle ─▶ Judged     this waiter asks, for all who show the same token meanwhile
           ─▶ ()                                  another waiter asks already

Rule 1: a token is good because the provider said so recently, and for no other reason. Tokens are kept as keyed
digests, never in clear.

Rule 2: a failure counts against the token alone, which is then asked about less and less often, unless no token can be
the reason. Providers answer a malformed token with 400, 403, 413, 422 or 431, or a page; some with 500, or not in time.
So the provider itself is left alone, for all tokens, only if

* it can't be reached, or doesn't know *this client* (401 `invalid_client`);
* two different tokens fail that it called active before, with no answer between them;
* it fails before it has ever answered. Only then can a stranger's malformed token be the reason.
"""

from collections.abc import Hashable
from enum import Enum
from hashlib import blake2b
from typing import Final, Generic, TypeVar, assert_never

from attrs import frozen

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
from asap_core.flights import BackOff, Crowded, Flight, Flights, Joined, Leading
from asap_core.lru import Lru

W = TypeVar("W", bound=Hashable)

# 128 bits under a secret key: too many to find a second token with the digest of a known one.
_DIGEST: Final = 16
# How many tokens that were good before must fail until the provider is to blame. One may have a reason of its own, such
# as a user who was deleted.
_DIFFERENT: Final = 2
# A fifth of all questions at once is reserved for tokens that were good before.
_RESERVED: Final = 5


class NoVerdict(Enum):
    """Why a token can't be judged now."""

    PROVIDER = "provider"
    """The provider can't be reached, or doesn't answer as it should. It is asked again later."""
    CROWDED = "crowded"
    """Too many other tokens are being asked about."""


IntrospectionVerdict = Accepted | InsufficientScope | Rejected | NoVerdict


@frozen
class Judged(Generic[W]):
    """Tell this waiter the verdict on its token."""

    waiter: W
    verdict: IntrospectionVerdict


@frozen
class AskProvider(Generic[W]):
    """This waiter must ask the provider about its token, and settle the flight."""

    waiter: W
    flight: Flight[bytes, W]


IntrospectionEffect = Judged[W] | AskProvider[W]


@frozen
class _Kept:
    verdict: Accepted | InsufficientScope | Rejected
    until: Instant
    ends: WallTime


class Introspector(Generic[W]):
    """Judges tokens by the responses of one provider. One event loop owns it; its methods return at once.

    secret: 32 random bytes for the digests of tokens
    """

    def __init__(self, policy: IntrospectionPolicy, *, secret: bytes) -> None:
        self.policy = policy
        self._secret = secret
        self._good: Lru[bytes, _Kept] = Lru(policy.max_kept)
        self._refused: Lru[bytes, _Kept] = Lru(policy.max_kept)
        # Tokens that the provider called active in its last response about them.
        self._known: Lru[bytes, None] = Lru(policy.max_kept)
        self._failed: BackOff[bytes, None] = BackOff(most=policy.max_kept)
        self._provider_failed: BackOff[None, None] = BackOff(most=1)
        # Whether the provider has ever answered, and the known tokens that failed since its last answer.
        self._answered = False
        self._doubted: set[bytes] = set()
        self._flights: Flights[bytes, W] = Flights(max_flights=policy.max_asked)

    def __len__(self) -> int:
        """How many responses are kept."""
        return len(self._good) + len(self._refused)

    @property
    def waiting(self) -> int:
        """How many wait for a verdict, those who ask included."""
        return self._flights.waiting

    @property
    def asking(self) -> int:
        """How many tokens are being asked about."""
        return len(self._flights)

    def known(self, token: str, *, at: Moment) -> IntrospectionVerdict | None:
        """Return the verdict on a token if it's kept: what `lookup` would return at once. None: it may have to ask."""
        return self._recall(self._digest(token), at=at) if is_token(token) else None

    def lookup(self, token: str, waiter: W, *, at: Moment) -> tuple[IntrospectionEffect[W], ...]:
        """Judge a token: at once, by asking the provider, or (no effect) by waiting for a request under way.

        Never raises, whatever the text. Raises ValueError if `waiter` waits already.
        """
        if not is_token(token):
            return (Judged(waiter, Rejected("a token of visible ASCII characters")),)
        digest = self._digest(token)
        kept = self._recall(digest, at=at)
        if kept is not None:
            return (Judged(waiter, kept),)
        if self._flights.flight(digest) is None and (refused := self._may_not_ask(digest, now=at.now)) is not None:
            return (Judged(waiter, refused),)
        joined = self._flights.join(digest, waiter)
        match joined:
            case Leading():
                return (self._lead(joined),)
            case Joined():
                return ()
            case Crowded():
                return (Judged(waiter, NoVerdict.CROWDED),)
            case _:
                assert_never(joined)

    def _digest(self, token: str) -> bytes:
        return blake2b(token.encode("ascii"), key=self._secret, digest_size=_DIGEST).digest()

    def _may_not_ask(self, digest: bytes, *, now: Instant) -> NoVerdict | None:
        """Return why the provider may not be asked about a token now, or None if it may."""
        if self._provider_failed.current(None, now=now) or self._failed.current(digest, now=now):
            return NoVerdict.PROVIDER
        most = self.policy.max_asked
        strangers = sum(1 for each in self._flights if each not in self._known)
        is_crowded = digest not in self._known and strangers >= most - most // _RESERVED
        return NoVerdict.CROWDED if is_crowded else None

    def settle(
        self,
        flight: Flight[bytes, W],
        answer: ActiveToken | InactiveToken | IntrospectionFailed,
        *,
        at: Moment,
    ) -> tuple[IntrospectionEffect[W], ...]:
        """The provider answered, or failed: one verdict for all who wait. A late answer changes nothing."""
        if not self._flights.is_live(flight):
            return ()
        waiters = self._flights.land(flight)
        verdict = self._judge(flight.key, answer, at=at)
        return tuple(Judged(waiter, verdict) for waiter in waiters)

    def abandon(self, waiter: W) -> tuple[IntrospectionEffect[W], ...]:
        """`waiter` was cancelled; idempotent. If it asked, the next in line asks."""
        leading = self._flights.leave(waiter)
        return () if leading is None else (self._lead(leading),)

    def _lead(self, leading: Leading[bytes, W]) -> AskProvider[W]:
        return AskProvider(leading.waiter, leading.flight)

    def _judge(
        self, digest: bytes, answer: ActiveToken | InactiveToken | IntrospectionFailed, *, at: Moment
    ) -> IntrospectionVerdict:
        if isinstance(answer, IntrospectionFailed):
            self._fail(digest, answer, now=at.now)
            return NoVerdict.PROVIDER
        self._provider_failed.forget(None)
        self._answered = True
        self._doubted.clear()
        self._failed.forget(digest)
        self._known.pop(digest)
        if isinstance(answer, ActiveToken):
            verdict = judge_introspection(answer, self.policy, wall=at.wall)
        else:
            verdict = Rejected("a token that's active")
        self._keep(digest, verdict, at=at)
        return verdict

    def _fail(self, digest: bytes, answer: IntrospectionFailed, *, now: Instant) -> None:
        if self._provider_is_to_blame(digest, answer.cause):
            # Questions that were under way together count as one failure.
            if self._provider_failed.current(None, now=now) is None:
                self._provider_failed.failed(None, None, now=now)
            return
        self._failed.failed(digest, None, now=now)

    def _provider_is_to_blame(self, digest: bytes, cause: FailureCause) -> bool:
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
                # It ends on whichever clock reaches its end first.
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
