"""A cache of documents by URL: each is fetched once for all its waiters, and cached while it's fresh (RFC 9111).

    lookup ──▶ Deliver: from the cache     settle ──▶ Deliver to all waiters
           └─▶ Lead: fetch it              abandon ─▶ Lead for the next waiter, or ()
           └─▶ (): wait                    (a result of a flight that is over changes nothing)

Methods return their effects as a tuple: deliveries first, then at most one `Lead`. Failures are remembered briefly, so
that a dead host is asked once and not once per caller. A stale document is used while its server fails, within the
bounds of its freshness (RFC 5861).
"""

from collections.abc import Hashable
from typing import Final, Generic, TypeVar, assert_never

from attrs import define, field, frozen, validators

from asap_core.client.fetch_results import (
    Document,
    Failed,
    FailureKind,
    Fetched,
    FetchOutcome,
    NoDocument,
    NotModified,
    Source,
)
from asap_core.clock import Instant, Moment
from asap_core.flights import SPREAD, BackOff, Crowded, Failure, Flight, Flights, Joined, Leading
from asap_core.http.caching import (
    Freshness,
    FreshnessPolicy,
    HeaderPairs,
    conditions,
    confirms,
    freshness_of,
    merged,
    relevant,
)
from asap_core.lru import Lru
from asap_core.wire.rules import integer, number

V = TypeVar("V")
W = TypeVar("W", bound=Hashable)


@frozen(kw_only=True)
class DocumentCachePolicy:
    """Bounds of a `DocumentCache`."""

    freshness: FreshnessPolicy = field(factory=FreshnessPolicy)
    max_entries: int = field(default=1_000, validator=integer(least=1))
    """The most documents. The default is the reference's number of manifests; some 10 KB each."""
    first_failure: float = field(default=1.0, validator=[number(), validators.gt(0)])
    """Seconds for which a first failure is remembered: a dead host is asked once a second."""
    longest_failure: float = field(default=30.0, validator=[number(), validators.gt(0)])
    """The most seconds for which failures in a row are remembered: a recovered host is noticed within half a minute."""


@frozen
class Deliver(Generic[V, W]):
    """Give this result to this waiter, whose look-up is over."""

    waiter: W
    result: Document[V] | NoDocument


@frozen
class Lead(Generic[W]):
    """This waiter fetches the document now, then calls `settle`, or `abandon` if it's cancelled.

    headers: make the request conditional.
    stale_at_hand: a stale document is usable, so the caller shouldn't wait long: see `outwait`.
    """

    waiter: W
    flight: Flight[str, W]
    headers: HeaderPairs
    stale_at_hand: bool


CacheEffect = Deliver[V, W] | Lead[W]


@frozen(eq=False)
class _Entry(Generic[V]):
    """A cached document. `vouched` is when its server last sent or confirmed it."""

    value: V
    vouched: Instant
    freshness: Freshness
    due: Instant
    """When it's fetched again: at the end of its lifetime, or a little before."""
    headers: HeaderPairs
    ttl: float | None

    def is_fresh(self, now: Instant) -> bool:
        return now < self.vouched + self.freshness.fresh_for

    def may_be_revalidated_behind(self, now: Instant) -> bool:
        return now < self.vouched + self.freshness.fresh_for + self.freshness.revalidate_for

    def excuses_failure(self, now: Instant) -> bool:
        # A document that may be used during a revalidation may also be used if that fails or is slow (RFC 5861 §3).
        bound = max(self.freshness.error_for, self.freshness.revalidate_for)
        return now < self.vouched + self.freshness.fresh_for + bound

    def found(self, source: Source, now: Instant) -> Document[V]:
        # If it was fetched again before its time and that failed, it's still fresh.
        return Document(self.value, Source.CACHED if self.is_fresh(now) else source, max(now - self.vouched, 0.0))


@define(eq=False)
class _FetchPurpose(Generic[V]):
    """What a flight is for: the entry that it revalidates, and whether to cache its result."""

    entry: _Entry[V] | None
    keep: bool


class CrowdedError(Exception):
    """Too many documents are being fetched at once."""


class DocumentCache(Generic[V, W]):
    """Documents by URL. Not thread-safe: one event loop owns it. Its methods never wait.

    keep: if false, nothing is cached, not even failures: for documents that report a current state, such as health.
    Callers at the same moment still share one fetch.
    """

    def __init__(self, policy: DocumentCachePolicy | None = None, *, keep: bool = True) -> None:
        self._policy = DocumentCachePolicy() if policy is None else policy
        self._keeps = keep
        self._flights: Flights[str, W] = Flights()
        self._purposes: dict[Flight[str, W], _FetchPurpose[V]] = {}
        self._entries: Lru[str, _Entry[V]] = Lru(self._policy.max_entries)
        self._failures: BackOff[str, Failed] = BackOff(
            most=self._policy.max_entries, first=self._policy.first_failure, longest=self._policy.longest_failure
        )

    def __len__(self) -> int:
        """Return how many documents are cached."""
        return len(self._entries)

    @property
    def waiting(self) -> int:
        """How many waiters there are, leaders included."""
        return self._flights.waiting

    def cached(self, url: str, *, now: Instant) -> V | None:
        """Return the document if it's cached and not due for another fetch, or None. Doesn't count as a use."""
        entry = self._entries.peek(url)
        return entry.value if entry is not None and now < entry.due else None

    def at_hand(self, url: str, *, now: Instant) -> V | None:
        """As `cached`, but counts as a use: the least recently used document is evicted first."""
        entry = self._entries.peek(url)
        if entry is None or now >= entry.due:
            return None
        self._entries.touch(url)
        return entry.value

    def knows(self, url: str) -> bool:
        """Return whether a document, a failure or a fetch is known for exactly this URL."""
        return url in self._entries or url in self._failures or self._flights.flight(url) is not None

    def freshness(self, url: str) -> Freshness | None:
        """Return how long the cached document may be used, from when its server last confirmed it, or None."""
        entry = self._entries.peek(url)
        return None if entry is None else entry.freshness

    def kept_as(self, url: str, value: V) -> Freshness | None:
        """Return `freshness(url)` if the cached document is this very object, else None."""
        entry = self._entries.peek(url)
        return entry.freshness if entry is not None and entry.value is value else None

    def failure(self, url: str) -> Failure[Failed] | None:
        """Return the failure that the last fetch of `url` ended with, or None if it succeeded."""
        return self._failures.last(url)

    def due(self, url: str, *, share: float = 1.0) -> Instant | None:
        """Return when to fetch again: after a failure's pause, or at this share of a document's time. None: now."""
        entry, failure = self._entries.peek(url), self._failures.last(url)
        if failure is not None:
            return failure.until
        return None if entry is None else Instant(entry.vouched + share * (entry.due - entry.vouched))

    def lookup(self, url: str, waiter: W, *, now: Instant) -> tuple[CacheEffect[V, W], ...]:
        """Look up a document: deliver it, or lead a fetch, or, without an effect, wait for the running fetch."""
        entry, failure = self._entries.peek(url), self._failures.last(url)
        if entry is not None and now < entry.due:
            self._entries.touch(url)
            return (Deliver(waiter, entry.found(Source.CACHED, now)),)
        if failure is not None and now < failure.until:
            return (Deliver(waiter, _without(entry, failure, now)),)
        behind = entry if entry is not None and entry.may_be_revalidated_behind(now) else None
        if behind is not None and self._flights.flight(url) is not None:
            return (Deliver(waiter, behind.found(Source.STALE_REVALIDATING, now)),)
        return self._join(url, waiter, stale_at_hand=behind is not None)

    def refresh(self, url: str, waiter: W, *, now: Instant, cool_down: float) -> tuple[CacheEffect[V, W], ...]:
        """Fetch a document even if the cached one is fresh: for a caller that misses something in it, such as a key.

        cool_down: within this many seconds of the last answer or failure, this is the same as `lookup`. So a server is
        asked at most once in that time, however many callers miss something.
        """
        entry, failure = self._entries.peek(url), self._failures.last(url)
        recent = (entry is not None and now < entry.vouched + cool_down) or (
            failure is not None and now < max(failure.since + cool_down, failure.until)
        )
        return self.lookup(url, waiter, now=now) if recent else self._join(url, waiter, stale_at_hand=False)

    def settle(
        self, flight: Flight[str, W], outcome: FetchOutcome[V], *, at: Moment, jitter: float = 0.0
    ) -> tuple[CacheEffect[V, W], ...]:
        """End a fetch: deliver its result to all waiters. Does nothing if the flight is over already.

        jitter: in [0, 1); spreads the retries of clients that failed together, and the expiry of those that fetched
        together.
        """
        if not self._flights.is_live(flight):
            return ()
        url = flight.key
        purpose = self._purposes[flight]
        if (
            isinstance(outcome, NotModified)
            and purpose.entry is not None
            and not confirms(outcome.headers, purpose.entry.freshness)
        ):
            # The 304 is about another document than the cached one (RFC 9111 §4.3.3): fetch the whole document.
            purpose.entry = None
            return (Lead(flight.leader, flight, (), stale_at_hand=False),)
        del self._purposes[flight]
        result = self._judge(url, purpose, outcome, at=at, jitter=jitter)
        return tuple(Deliver(waiter, result) for waiter in self._flights.land(flight))

    def outwait(
        self, flight: Flight[str, W], failed: Failed, *, at: Moment, jitter: float
    ) -> tuple[CacheEffect[V, W], ...]:
        """Give the leader its stale document instead of waiting on: for a `Lead` with `stale_at_hand`.

        The other waiters have no stale document, or want a fresh one: the next one leads. Without any, the fetch counts
        as failed. Otherwise as `settle`.
        """
        if not self._flights.is_live(flight):
            return ()
        url = flight.key
        purpose = self._purposes[flight]
        if purpose.entry is None:
            return self.settle(flight, failed, at=at, jitter=jitter)
        mine = Deliver(flight.leader, purpose.entry.found(Source.STALE_ERROR, at.now))
        leading = self._flights.leave(flight.leader)
        del self._purposes[flight]
        if leading is not None:
            return (mine, self._lead(leading, stale_at_hand=False))
        self._fail(url, purpose, failed, now=at.now, jitter=jitter)
        return (mine,)

    def keeps(self, flight: Flight[str, W]) -> bool:
        """Return whether the flight's result will be cached: it's live, and its URL wasn't forgotten meanwhile."""
        return self._flights.is_live(flight) and self._purposes[flight].keep

    def abandon(self, waiter: W) -> tuple[CacheEffect[V, W], ...]:
        """End a cancelled waiter's look-up. Idempotent. If it was the leader, the next waiter leads."""
        flight = self._flights.flight_of(waiter)
        leading = self._flights.leave(waiter)
        if flight is not None and not self._flights.is_live(flight):
            del self._purposes[flight]
        return () if leading is None else (self._lead(leading, stale_at_hand=False),)

    def forget(self, url: str) -> None:
        """Drop the document and the failure of `url`. A running fetch still answers its waiters, but isn't cached.

        Later look-ups start a new fetch: the caller knows that the document has changed.
        """
        self._entries.pop(url)
        self._failures.forget(url)
        flight = self._flights.flight(url)
        if flight is not None:
            self._purposes[flight].keep = False
            self._flights.detach(url)

    def clear(self) -> None:
        """`forget` every URL."""
        for url in {*self._entries, *self._failures, *(flight.key for flight in self._purposes)}:
            self.forget(url)

    # --- leading -----------------------------------------------------------------------------------------------------

    def _join(self, url: str, waiter: W, *, stale_at_hand: bool) -> tuple[CacheEffect[V, W], ...]:
        joined = self._flights.join(url, waiter)
        match joined:
            case Leading():
                return (self._lead(joined, stale_at_hand=stale_at_hand),)
            case Joined():
                return ()
            case Crowded():
                error = CrowdedError("more documents are being fetched than the cache allows at once")
                return (Deliver(waiter, NoDocument(error, self._policy.first_failure)),)
            case _:
                assert_never(joined)

    def _lead(self, leading: Leading[str, W], *, stale_at_hand: bool) -> Lead[W]:
        flight = leading.flight
        # A flight that was detached by `forget` must not use or fill the entry of a later one.
        joinable = self._flights.flight(flight.key) is flight
        entry = self._entries.peek(flight.key) if joinable else None
        self._purposes[flight] = _FetchPurpose(entry, self._keeps and joinable)
        return Lead(leading.waiter, flight, conditions(None if entry is None else entry.freshness), stale_at_hand)

    # --- judging -----------------------------------------------------------------------------------------------------

    def _judge(
        self, url: str, purpose: _FetchPurpose[V], outcome: FetchOutcome[V], *, at: Moment, jitter: float
    ) -> Document[V] | NoDocument:
        match outcome:
            case Fetched(value, headers, ttl):
                entry = self._vouched(value, relevant(headers), ttl, at=at, jitter=jitter)
                if purpose.keep:
                    self._keep(url, entry)
                return Document(value, Source.FETCHED, 0.0)
            case NotModified(headers):
                return self._confirm(url, purpose, headers, at=at, jitter=jitter)
            case Failed():
                return self._fail(url, purpose, outcome, now=at.now, jitter=jitter)
            case _:
                assert_never(outcome)

    def _vouched(self, value: V, headers: HeaderPairs, ttl: float | None, *, at: Moment, jitter: float) -> _Entry[V]:
        freshness = freshness_of(headers, policy=self._policy.freshness, wall=at.wall, ttl=ttl)
        due = Instant(at.now + freshness.fresh_for * (1.0 - SPREAD * jitter))
        return _Entry(value, at.now, freshness, due, headers, ttl)

    def _keep(self, url: str, entry: _Entry[V]) -> None:
        self._failures.forget(url)
        if entry.freshness.store:
            self._entries.put(url, entry)
        else:
            self._entries.pop(url)

    def _confirm(
        self, url: str, purpose: _FetchPurpose[V], headers: HeaderPairs, *, at: Moment, jitter: float
    ) -> Document[V] | NoDocument:
        old = purpose.entry
        if old is None:
            # The request wasn't conditional, so a 304 is an error.
            error = LookupError("the server says not modified, and was asked for the whole document")
            return self._fail(url, purpose, Failed(error, FailureKind.UNUSABLE), now=at.now, jitter=jitter)
        entry = self._vouched(old.value, merged(old.headers, headers), old.ttl, at=at, jitter=jitter)
        if self._entries.peek(url) is old:
            # If it was evicted or forgotten meanwhile, it's only delivered.
            self._keep(url, entry)
        return Document(entry.value, Source.REVALIDATED, 0.0)

    def _fail(
        self, url: str, purpose: _FetchPurpose[V], failed: Failed, *, now: Instant, jitter: float
    ) -> Document[V] | NoDocument:
        if not purpose.keep or failed.kind is FailureKind.REFUSED:
            return NoDocument(failed.error, 0.0)
        if failed.kind is FailureKind.CROWDED:
            return _without(self._entries.peek(url), Failure(failed, now, now, 1), now)
        if failed.kind is FailureKind.GONE:
            self._entries.pop(url)
        failure = self._failures.failed(url, failed, now=now, retry_after=failed.retry_after, jitter=jitter)
        return _without(self._entries.peek(url), failure, now)


# RFC 5861 §4: "any situation that would result in a 500, 502, 503, or 504 HTTP response status code". A refusal or an
# unusable answer isn't an outage.
_EXCUSED: Final = frozenset({FailureKind.UNREACHABLE, FailureKind.TIMEOUT, FailureKind.SERVER, FailureKind.CROWDED})


def _without(entry: _Entry[V] | None, failure: Failure[Failed], now: Instant) -> Document[V] | NoDocument:
    """Return the result while the server fails: the cached document, if it may still be used, or the failure."""
    if entry is not None and (entry.is_fresh(now) or (failure.cause.kind in _EXCUSED and entry.excuses_failure(now))):
        return entry.found(Source.STALE_ERROR, now)
    return NoDocument(failure.cause.error, failure.until - now, None if entry is None else now - entry.vouched)
