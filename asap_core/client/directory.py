"""What is fetched by URL, kept while it's good, and asked for once however many want it.

    lookup ──▶ Deliver (kept)          settle ──▶ Deliver to all who wait
           └─▶ Lead: fetch it          abandon ─▶ Lead for the next, or nothing
           └─▶ () : wait               (late results are refused)

Effects come back as a tuple, deliveries first, at most one `Lead`, last. Failures are remembered briefly, so that a
dead host is asked once and not once per caller; a document past its lifetime serves on while its server fails, within
bounds.
"""

from collections import OrderedDict
from collections.abc import Hashable
from enum import Enum
from typing import Final, Generic, TypeVar, assert_never

from attrs import define, field, frozen, validators

from asap_core.client.coalesce import Coalescer, Crowded, Flight, Joined, Leading
from asap_core.client.freshness import Freshness, FreshnessPolicy, HeaderPairs, freshness_of
from asap_core.clock import Instant, WallTime

__all__ = [
    "Deliver",
    "Directory",
    "DirectoryPolicy",
    "Effect",
    "Failed",
    "FailureKind",
    "Fetched",
    "Found",
    "Lead",
    "NotModified",
    "Source",
    "Unfound",
]

V = TypeVar("V")
W = TypeVar("W", bound=Hashable)


@frozen(kw_only=True)
class DirectoryPolicy:
    """Bounds of a directory."""

    freshness: FreshnessPolicy = field(factory=FreshnessPolicy)
    max_entries: int = field(default=1_000, validator=validators.gt(0))
    """The reference's number of manifests; some 10 KB each."""
    first_failure: float = field(default=1.0, validator=validators.gt(0))
    """How long a first failure is remembered: a dead host is asked once a second."""
    longest_failure: float = field(default=30.0, validator=validators.gt(0))
    """How long failures in a row are remembered at most: a host that's back is noticed within half a minute."""


class FailureKind(Enum):
    """What kind of failure it was; it decides whether a kept document may stand in."""

    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    SERVER = "server"
    """500, 502, 503, 504 (RFC 5861 §4)."""
    GONE = "gone"
    """401, 403, 404, 410: the server answers, and what is kept is no longer for us."""
    UNUSABLE = "unusable"
    """An answer that isn't the document."""


@frozen
class Fetched(Generic[V]):
    """The document came: its value, the response headers, how long it says itself that it's good."""

    value: V
    headers: HeaderPairs = ()
    ttl: float | None = None


@frozen
class NotModified:
    """The server says that what is kept is good (RFC 9110 §15.4.5)."""

    headers: HeaderPairs = ()


@frozen
class Failed:
    """It did not come. `error` is what every waiter gets; `retry_after` is the server's own word, capped by policy."""

    error: Exception
    kind: FailureKind
    retry_after: float | None = None


Outcome = Fetched[V] | NotModified | Failed


class Source(Enum):
    """Where a found document came from."""

    FETCHED = "fetched"
    CACHED = "cached"
    REVALIDATED = "revalidated"
    STALE_REVALIDATING = "stale, being revalidated"
    STALE_ERROR = "stale, its server fails"


@frozen
class Found(Generic[V]):
    """The document, where it came from, and how many seconds ago its server last vouched for it."""

    value: V
    source: Source
    age: float


@frozen
class Unfound:
    """There's none: what happened, and in how many seconds it pays to ask again."""

    error: Exception
    next_try: float


@frozen
class Deliver(Generic[V, W]):
    """Give this result to this waiter: it's done."""

    waiter: W
    result: Found[V] | Unfound


@frozen
class Lead(Generic[W]):
    """This waiter fetches now, with these conditional headers, and settles the flight.

    `stale_at_hand`: a stale document would do, so that the fetch shouldn't keep the caller long.
    """

    waiter: W
    flight: Flight[str, W]
    headers: HeaderPairs
    stale_at_hand: bool


Effect = Deliver[V, W] | Lead[W]


@define(eq=False)
class _Entry(Generic[V]):
    value: V
    vouched: Instant
    freshness: Freshness
    headers: HeaderPairs
    ttl: float | None


@define(eq=False)
class _Failure:
    failed: Failed
    since: Instant
    until: Instant
    in_a_row: int


class CrowdedError(Exception):
    """More is being fetched than policy allows at once."""


class Directory(Generic[V, W]):
    """Documents by URL. One event loop owns it; its methods return at once.

    Without `keep`, one fetch answers all who wait and nothing outlives it, a failure neither: what is asked for is how
    things are now.
    """

    def __init__(self, policy: DirectoryPolicy | None = None, *, keep: bool = True) -> None:
        self._policy = DirectoryPolicy() if policy is None else policy
        self._keeps = keep
        self._flights: Coalescer[str, W] = Coalescer()
        self._entries: OrderedDict[str, _Entry[V]] = OrderedDict()
        self._failures: OrderedDict[str, _Failure] = OrderedDict()
        self._disowned: set[Flight[str, W]] = set()

    def __len__(self) -> int:
        """How many documents are kept."""
        return len(self._entries)

    @property
    def waiting(self) -> int:
        """How many wait for a document."""
        return self._flights.waiting

    def cached(self, url: str, *, now: Instant) -> V | None:
        """The document, if it's kept and good as it is."""
        entry = self._entries.get(url)
        return entry.value if entry is not None and now < _soft(entry) else None

    def freshness(self, url: str) -> Freshness | None:
        """How long the document may be used, from when its server last vouched for it; None where it isn't kept."""
        entry = self._entries.get(url)
        return None if entry is None else entry.freshness

    def lookup(self, url: str, waiter: W, *, now: Instant) -> tuple[Effect[V, W], ...]:
        """Ask for a document: deliver it, lead a fetch, or (nothing) wait for the one under way."""
        entry = self._entries.get(url)
        if entry is not None and now < _soft(entry):
            self._entries.move_to_end(url)
            return (Deliver(waiter, _found(entry, Source.CACHED, now)),)
        failure = self._failures.get(url)
        if failure is not None and now < failure.until:
            return (Deliver(waiter, self._without(entry, failure, now)),)
        usable = entry is not None and now < _soft(entry) + entry.freshness.revalidate_for
        if entry is not None and usable and self._flights.flight(url) is not None:
            return (Deliver(waiter, _found(entry, Source.STALE_REVALIDATING, now)),)
        return self._join(url, waiter, stale_at_hand=usable)

    def refresh(self, url: str, waiter: W, *, now: Instant, cool_down: float) -> tuple[Effect[V, W], ...]:
        """Ask for a document anew, even if the kept one is good: for who misses something in it, such as a key.

        Within `cool_down` seconds of the last answer or failure it's `lookup`: however many miss however much, a server
        that lets its document be kept is asked once in that time. A fetch that's under way is joined.
        """
        entry, failure = self._entries.get(url), self._failures.get(url)
        recent = (entry is not None and now < entry.vouched + cool_down) or (
            failure is not None and now < max(failure.since + cool_down, failure.until)
        )
        return self.lookup(url, waiter, now=now) if recent else self._join(url, waiter, stale_at_hand=False)

    def _join(self, url: str, waiter: W, *, stale_at_hand: bool) -> tuple[Effect[V, W], ...]:
        joined = self._flights.join(url, waiter)
        match joined:
            case Leading():
                return (self._lead(joined, stale_at_hand=stale_at_hand),)
            case Joined():
                return ()
            case Crowded():
                error = CrowdedError("more documents are being fetched than the directory allows at once")
                return (Deliver(waiter, Unfound(error, self._policy.first_failure)),)
            case _:
                assert_never(joined)

    def settle(
        self, flight: Flight[str, W], outcome: Outcome[V], *, now: Instant, wall: WallTime, jitter: float = 0.0
    ) -> tuple[Effect[V, W], ...]:
        """The fetch is over: one answer for all who wait. A flight that's over already changes nothing.

        `jitter` in [0, 1) spreads the next try of clients that failed together.
        """
        disowned = flight in self._disowned
        self._disowned.discard(flight)
        if not self._flights.is_live(flight):
            return ()
        result = self._judge(flight.key, outcome, now=now, wall=wall, jitter=jitter, keep=self._keeps and not disowned)
        return tuple(Deliver(waiter, result) for waiter in self._flights.land(flight))

    def abandon(self, waiter: W) -> tuple[Effect[V, W], ...]:
        """`waiter` was cancelled; idempotent. Where it led, the next in line leads."""
        leading = self._flights.leave(waiter)
        self._disowned = {flight for flight in self._disowned if self._flights.is_live(flight)}
        return () if leading is None else (self._lead(leading, stale_at_hand=False),)

    def forget(self, url: str) -> None:
        """Drop what is kept of `url`, failures too; what is being fetched answers its waiters and isn't kept."""
        self._entries.pop(url, None)
        self._failures.pop(url, None)
        flight = self._flights.flight(url)
        if flight is not None:
            self._disowned.add(flight)

    def clear(self) -> None:
        """`forget` every URL."""
        for url in {*self._entries, *self._failures, *self._flights}:
            self.forget(url)

    # --- judging -----------------------------------------------------------------------------------------------------

    def _lead(self, leading: Leading[str, W], *, stale_at_hand: bool) -> Lead[W]:
        entry = self._entries.get(leading.flight.key)
        headers: list[tuple[str, str]] = []
        if entry is not None and entry.freshness.etag is not None:
            headers.append(("if-none-match", entry.freshness.etag))
        if entry is not None and entry.freshness.last_modified is not None:
            headers.append(("if-modified-since", entry.freshness.last_modified))
        return Lead(leading.waiter, leading.flight, tuple(headers), stale_at_hand)

    def _judge(
        self, url: str, outcome: Outcome[V], *, now: Instant, wall: WallTime, jitter: float, keep: bool
    ) -> Found[V] | Unfound:
        match outcome:
            case Fetched(value, headers, ttl):
                freshness = freshness_of(headers, policy=self._policy.freshness, wall=wall, ttl=ttl)
                entry = _Entry(value, now, freshness, headers, ttl)
                self._keep(url, entry, keep=keep)
                return _found(entry, Source.FETCHED, now)
            case NotModified(headers):
                return self._refresh(url, headers, now=now, wall=wall)
            case Failed():
                return self._fail(url, outcome, now=now, jitter=jitter) if keep else Unfound(outcome.error, 0.0)
            case _:
                assert_never(outcome)

    def _keep(self, url: str, entry: _Entry[V], *, keep: bool) -> None:
        self._failures.pop(url, None)
        self._entries.pop(url, None)
        if not keep or not entry.freshness.store:
            return
        self._entries[url] = entry
        if len(self._entries) > self._policy.max_entries:
            self._entries.popitem(last=False)

    def _refresh(self, url: str, headers: HeaderPairs, *, now: Instant, wall: WallTime) -> Found[V] | Unfound:
        entry = self._entries.get(url)
        if entry is None:
            # What was to be refreshed has been forgotten meanwhile; asking again brings it whole.
            return Unfound(LookupError("the server says not modified, and nothing is kept"), 0.0)
        # RFC 9111 §3.2: the 304's headers replace the stored ones of the same name. An Age was the old response's.
        replaced = {name.lower() for name, _ in headers} | {"age"}
        kept = [(name, value) for name, value in entry.headers if name.lower() not in replaced]
        entry.headers = (*kept, *headers)
        entry.freshness = freshness_of(entry.headers, policy=self._policy.freshness, wall=wall, ttl=entry.ttl)
        entry.vouched = now
        self._keep(url, entry, keep=True)
        return _found(entry, Source.REVALIDATED, now)

    def _fail(self, url: str, failed: Failed, *, now: Instant, jitter: float) -> Found[V] | Unfound:
        if failed.kind is FailureKind.GONE:
            self._entries.pop(url, None)
        before = self._failures.pop(url, None)
        in_a_row = 1 if before is None else before.in_a_row + 1
        wait = self._policy.first_failure * 2.0 ** min(in_a_row - 1, _DOUBLINGS)
        if failed.retry_after is not None:
            wait = max(wait, failed.retry_after)
        wait = min(wait, self._policy.longest_failure) * (1.0 + _SPREAD * jitter)
        failure = _Failure(failed, now, Instant(now + wait), in_a_row)
        self._failures[url] = failure
        if len(self._failures) > self._policy.max_entries:
            self._failures.popitem(last=False)
        return self._without(self._entries.get(url), failure, now)

    def _without(self, entry: _Entry[V] | None, failure: _Failure, now: Instant) -> Found[V] | Unfound:
        """What to answer while the server fails: the kept document within its bound, or the failure."""
        if entry is not None and now < _soft(entry):
            # It was refreshed ahead of its time: what came of that doesn't make it stale.
            return _found(entry, Source.CACHED, now)
        if entry is not None and failure.failed.kind in _EXCUSED and now < _soft(entry) + _usable_for(entry):
            return _found(entry, Source.STALE_ERROR, now)
        return Unfound(failure.failed.error, failure.until - now)


# RFC 5861 §4: errors "such as" these; an answer that says no, or that's nonsense, isn't an outage.
_EXCUSED: Final = frozenset({FailureKind.UNREACHABLE, FailureKind.TIMEOUT, FailureKind.SERVER})
# 2**20 seconds is past any bound on failures; beyond it only overflow waits.
_DOUBLINGS: Final = 20
# A tenth, as the reference spreads its retries.
_SPREAD: Final = 0.1


def _usable_for(entry: _Entry[V]) -> float:
    # What may be used while somebody revalidates may be used while that fails or takes too long (RFC 5861 §3).
    return max(entry.freshness.error_for, entry.freshness.revalidate_for)


def _soft(entry: _Entry[V]) -> float:
    return entry.vouched + entry.freshness.fresh_for


def _found(entry: _Entry[V], source: Source, now: Instant) -> Found[V]:
    return Found(entry.value, source, max(now - entry.vouched, 0.0))
