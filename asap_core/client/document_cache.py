"""What is fetched by URL, kept while it's good, and asked for once however many want it.

    lookup ──▶ Deliver (kept)          settle ──▶ Deliver to all who wait
           └─▶ Lead: fetch it          abandon ─▶ Lead for the next, or nothing
           └─▶ () : wait               (late results are refused)

Effects come back as a tuple, deliveries first, at most one `Lead`, last. Failures are remembered briefly, so that a
dead host is asked once and not once per caller; a document past its lifetime serves on while its server fails, within
bounds.
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
from asap_core.client.flights import SPREAD, BackOff, Crowded, Failure, Flight, Flights, Joined, Leading
from asap_core.clock import Instant, Moment
from asap_core.http.freshness import Freshness, FreshnessPolicy, HeaderPairs, freshness_of
from asap_core.http.validation import conditions, confirms, merged, relevant
from asap_core.lru import Lru
from asap_core.wire.rules import integer, number

V = TypeVar("V")
W = TypeVar("W", bound=Hashable)


@frozen(kw_only=True)
class DocumentCachePolicy:
    """Bounds of a directory."""

    freshness: FreshnessPolicy = field(factory=FreshnessPolicy)
    max_entries: int = field(default=1_000, validator=integer(least=1))
    """The reference's number of manifests; some 10 KB each."""
    first_failure: float = field(default=1.0, validator=[number(), validators.gt(0)])
    """How long a first failure is remembered: a dead host is asked once a second."""
    longest_failure: float = field(default=30.0, validator=[number(), validators.gt(0)])
    """How long failures in a row are remembered at most: a host that's back is noticed within half a minute."""


@frozen
class Deliver(Generic[V, W]):
    """Give this result to this waiter: it's done."""

    waiter: W
    result: Document[V] | NoDocument


@frozen
class Lead(Generic[W]):
    """This waiter fetches now, with these conditional headers, and settles the flight.

    `stale_at_hand`: a stale document would do, so that the fetch shouldn't keep the caller long.
    """

    waiter: W
    flight: Flight[str, W]
    headers: HeaderPairs
    stale_at_hand: bool


CacheEffect = Deliver[V, W] | Lead[W]


@frozen(eq=False)
class _Entry(Generic[V]):
    """A document as its server last vouched for it."""

    value: V
    vouched: Instant
    freshness: Freshness
    due: Instant
    """When it's asked for again: the end of its lifetime, or a little before."""
    headers: HeaderPairs
    ttl: float | None

    def is_fresh(self, now: Instant) -> bool:
        return now < self.vouched + self.freshness.fresh_for

    def may_be_revalidated_behind(self, now: Instant) -> bool:
        return now < self.vouched + self.freshness.fresh_for + self.freshness.revalidate_for

    def excuses_failure(self, now: Instant) -> bool:
        # What may be used while somebody revalidates may be used while that fails or takes too long (RFC 5861 §3).
        bound = max(self.freshness.error_for, self.freshness.revalidate_for)
        return now < self.vouched + self.freshness.fresh_for + bound

    def found(self, source: Source, now: Instant) -> Document[V]:
        # Asked for ahead of its time, it isn't stale, whatever came of that.
        return Document(self.value, Source.CACHED if self.is_fresh(now) else source, max(now - self.vouched, 0.0))


@define(eq=False)
class _FetchPurpose(Generic[V]):
    """What a live flight is for: which entry it revalidates, and whether what it brings may be kept."""

    entry: _Entry[V] | None
    keep: bool


class CrowdedError(Exception):
    """More is being fetched than policy allows at once."""


class DocumentCache(Generic[V, W]):
    """Documents by URL. One event loop owns it; its methods return at once.

    Without `keep`, one fetch answers all who wait and nothing outlives it, a failure neither: what is asked for is how
    things are now.
    """

    def __init__(self, policy: DocumentCachePolicy | None = None, *, keep: bool = True) -> None:
        self._policy = DocumentCachePolicy() if policy is None else policy
        self._keeps = keep
        self._flights: Flights[str, W] = Flights()
        self._errands: dict[Flight[str, W], _FetchPurpose[V]] = {}
        self._entries: Lru[str, _Entry[V]] = Lru(self._policy.max_entries)
        self._failures: BackOff[str, Failed] = BackOff(
            most=self._policy.max_entries, first=self._policy.first_failure, longest=self._policy.longest_failure
        )

    def __len__(self) -> int:
        """How many documents are kept."""
        return len(self._entries)

    @property
    def waiting(self) -> int:
        """How many wait for a document."""
        return self._flights.waiting

    def cached(self, url: str, *, now: Instant) -> V | None:
        """The document, if it's kept, good as it is, and not yet to be asked for again."""
        entry = self._entries.peek(url)
        return entry.value if entry is not None and now < entry.due else None

    def at_hand(self, url: str, *, now: Instant) -> Document[V] | None:
        """What `lookup` would deliver at once because it's good as it is. It counts as used."""
        entry = self._entries.peek(url)
        if entry is None or now >= entry.due:
            return None
        self._entries.touch(url)
        return entry.found(Source.CACHED, now)

    def knows(self, url: str) -> bool:
        """Whether something is kept, remembered or being fetched under exactly this URL."""
        return url in self._entries or url in self._failures or self._flights.flight(url) is not None

    def freshness(self, url: str) -> Freshness | None:
        """How long the document may be used, from when its server last vouched for it; None where it isn't kept."""
        entry = self._entries.peek(url)
        return None if entry is None else entry.freshness

    def kept_as(self, url: str, value: V) -> Freshness | None:
        """`freshness`, where exactly this document is what is kept; else None."""
        entry = self._entries.peek(url)
        return entry.freshness if entry is not None and entry.value is value else None

    def due(self, url: str) -> Instant | None:
        """When it pays to ask again: the kept document is due, or the failure no longer remembered. None: at once."""
        entry, failure = self._entries.peek(url), self._failures.last(url)
        moments = [] if entry is None else [entry.due]
        return max([*moments, *([] if failure is None else [failure.until])], default=None)

    def lookup(self, url: str, waiter: W, *, now: Instant) -> tuple[CacheEffect[V, W], ...]:
        """Ask for a document: deliver it, lead a fetch, or (nothing) wait for the one under way."""
        found = self.at_hand(url, now=now)
        if found is not None:
            return (Deliver(waiter, found),)
        entry, failure = self._entries.peek(url), self._failures.last(url)
        if failure is not None and now < failure.until:
            return (Deliver(waiter, _without(entry, failure, now)),)
        behind = entry if entry is not None and entry.may_be_revalidated_behind(now) else None
        if behind is not None and self._flights.flight(url) is not None:
            return (Deliver(waiter, behind.found(Source.STALE_REVALIDATING, now)),)
        return self._join(url, waiter, stale_at_hand=behind is not None)

    def refresh(self, url: str, waiter: W, *, now: Instant, cool_down: float) -> tuple[CacheEffect[V, W], ...]:
        """Ask for a document anew, even if the kept one is good: for who misses something in it, such as a key.

        Within `cool_down` seconds of the last answer or failure it's `lookup`: however many miss however much, a server
        that lets its document be kept is asked once in that time. A fetch that's under way is joined.
        """
        entry, failure = self._entries.peek(url), self._failures.last(url)
        recent = (entry is not None and now < entry.vouched + cool_down) or (
            failure is not None and now < max(failure.since + cool_down, failure.until)
        )
        return self.lookup(url, waiter, now=now) if recent else self._join(url, waiter, stale_at_hand=False)

    def settle(
        self, flight: Flight[str, W], outcome: FetchOutcome[V], *, at: Moment, jitter: float = 0.0
    ) -> tuple[CacheEffect[V, W], ...]:
        """The fetch is over: one answer for all who wait. A flight that's over already changes nothing.

        `jitter` in [0, 1) spreads the next try of clients that failed together, and the expiry of those that fetched
        together. A 304 that's about another document than the kept one makes the leader fetch again, the whole of it.
        """
        if not self._flights.is_live(flight):
            return ()
        url = flight.key
        errand = self._errands[flight]
        if (
            isinstance(outcome, NotModified)
            and errand.entry is not None
            and not confirms(outcome.headers, errand.entry.freshness)
        ):
            errand.entry = None
            return (Lead(flight.leader, flight, (), stale_at_hand=False),)
        del self._errands[flight]
        result = self._judge(url, errand, outcome, at=at, jitter=jitter)
        return tuple(Deliver(waiter, result) for waiter in self._flights.land(flight))

    def outwait(
        self, flight: Flight[str, W], failed: Failed, *, at: Moment, jitter: float
    ) -> tuple[CacheEffect[V, W], ...]:
        """The leader, who had a stale document at hand when it came, waits no longer: it's given that one.

        Whoever waits with it has none, or asked for a fresh one, and more time: the next in line leads. Where nobody
        does, the fetch has failed. As `settle` otherwise.
        """
        if not self._flights.is_live(flight):
            return ()
        url = flight.key
        errand = self._errands[flight]
        if errand.entry is None:
            return self.settle(flight, failed, at=at, jitter=jitter)
        mine = Deliver(flight.leader, errand.entry.found(Source.STALE_ERROR, at.now))
        leading = self._flights.leave(flight.leader)
        del self._errands[flight]
        if leading is not None:
            return (mine, self._lead(leading, stale_at_hand=False))
        self._fail(url, errand, failed, now=at.now, jitter=jitter)
        return (mine,)

    def keeps(self, flight: Flight[str, W]) -> bool:
        """Whether what this flight brings is to be kept: it's live, and its URL wasn't forgotten since it began."""
        return self._flights.is_live(flight) and self._errands[flight].keep

    def abandon(self, waiter: W) -> tuple[CacheEffect[V, W], ...]:
        """`waiter` was cancelled; idempotent. Where it led, the next in line leads."""
        flight = self._flights.flight_of(waiter)
        leading = self._flights.leave(waiter)
        if flight is not None and not self._flights.is_live(flight):
            del self._errands[flight]
        return () if leading is None else (self._lead(leading, stale_at_hand=False),)

    def forget(self, url: str) -> None:
        """Drop what is kept of `url`, failures too; what is being fetched answers its waiters and isn't kept.

        Whoever asks from now on has it fetched anew: it's forgotten because something about it has changed.
        """
        self._entries.pop(url)
        self._failures.forget(url)
        flight = self._flights.flight(url)
        if flight is not None:
            self._errands[flight].keep = False
            self._flights.detach(url)

    def clear(self) -> None:
        """`forget` every URL."""
        for url in {*self._entries, *self._failures, *(flight.key for flight in self._errands)}:
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
                error = CrowdedError("more documents are being fetched than the directory allows at once")
                return (Deliver(waiter, NoDocument(error, self._policy.first_failure)),)
            case _:
                assert_never(joined)

    def _lead(self, leading: Leading[str, W], *, stale_at_hand: bool) -> Lead[W]:
        flight = leading.flight
        # What was taken over from who asked before it was forgotten mustn't meet what was asked for since.
        joinable = self._flights.flight(flight.key) is flight
        entry = self._entries.peek(flight.key) if joinable else None
        self._errands[flight] = _FetchPurpose(entry, self._keeps and joinable)
        return Lead(leading.waiter, flight, conditions(None if entry is None else entry.freshness), stale_at_hand)

    # --- judging -----------------------------------------------------------------------------------------------------

    def _judge(
        self, url: str, errand: _FetchPurpose[V], outcome: FetchOutcome[V], *, at: Moment, jitter: float
    ) -> Document[V] | NoDocument:
        match outcome:
            case Fetched(value, headers, ttl):
                entry = self._vouched(value, relevant(headers), ttl, at=at, jitter=jitter)
                if errand.keep:
                    self._keep(url, entry)
                return Document(value, Source.FETCHED, 0.0)
            case NotModified(headers):
                return self._confirm(url, errand, headers, at=at, jitter=jitter)
            case Failed():
                return self._fail(url, errand, outcome, now=at.now, jitter=jitter)
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
        self, url: str, errand: _FetchPurpose[V], headers: HeaderPairs, *, at: Moment, jitter: float
    ) -> Document[V] | NoDocument:
        old = errand.entry
        if old is None:
            # Nothing was said of what is kept, so that nothing can be unchanged.
            error = LookupError("the server says not modified, and was asked for the whole document")
            return self._fail(url, errand, Failed(error, FailureKind.UNUSABLE), now=at.now, jitter=jitter)
        entry = self._vouched(old.value, merged(old.headers, headers), old.ttl, at=at, jitter=jitter)
        if self._entries.peek(url) is old:
            # Evicted or forgotten meanwhile, it answers those who wait, and stays out.
            self._keep(url, entry)
        return Document(entry.value, Source.REVALIDATED, 0.0)

    def _fail(
        self, url: str, errand: _FetchPurpose[V], failed: Failed, *, now: Instant, jitter: float
    ) -> Document[V] | NoDocument:
        if not errand.keep or failed.kind is FailureKind.REFUSED:
            return NoDocument(failed.error, 0.0)
        if failed.kind is FailureKind.CROWDED:
            return _without(self._entries.peek(url), Failure(failed, now, now, 1), now)
        if failed.kind is FailureKind.GONE:
            self._entries.pop(url)
        failure = self._failures.failed(url, failed, now=now, retry_after=failed.retry_after, jitter=jitter)
        return _without(self._entries.peek(url), failure, now)


def _without(entry: _Entry[V] | None, failure: Failure[Failed], now: Instant) -> Document[V] | NoDocument:
    """What to answer while the server fails: the kept document within its bound, or the failure."""
    if entry is not None and (entry.is_fresh(now) or (failure.cause.kind in _EXCUSED and entry.excuses_failure(now))):
        return entry.found(Source.STALE_ERROR, now)
    return NoDocument(failure.cause.error, failure.until - now, None if entry is None else now - entry.vouched)


# RFC 5861 §4: "any situation that would result in a 500, 502, 503, or 504 HTTP response status code"; an answer that
# says no, or that's nonsense, isn't an outage.
_EXCUSED: Final = frozenset({FailureKind.UNREACHABLE, FailureKind.TIMEOUT, FailureKind.SERVER, FailureKind.CROWDED})
