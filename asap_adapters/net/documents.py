"""Documents by URL, as the core's directory decides: kept, led, waited for. One fetch for all who ask.

The fetch runs in the task of the caller who leads it; whoever waits is woken with the answer, or to lead in its turn.
"""

import logging
from collections.abc import Callable, Collection
from typing import Any, Final, Generic, Protocol, TypeVar

import anyio
from attrs import define, evolve, frozen

from asap_adapters.net.transport import DOCUMENT_SECONDS, Answer, HttpTransport
from asap_adapters.system import LoopClock, random_fraction
from asap_core.client.document_cache import CacheEffect, CrowdedError, Deliver, DocumentCache, DocumentCachePolicy, Lead
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
from asap_core.client.replies import retry_after_of
from asap_core.clock import Moment
from asap_core.errors import (
    AsapError,
    BadReply,
    InvalidDocument,
    NotAllowed,
    TimedOut,
    Unreachable,
    Unverified,
    WrongAgent,
)
from asap_core.http.caching import Freshness
from asap_core.net.outbound import Allowed
from asap_core.net.urls import meant_base, normal, without_credentials

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_log = logging.getLogger("asap.discovery")

# How long a caller waits for a fresh document where a stale one would do.
_REVALIDATION_SECONDS: Final = 1.0
# What is kept fresh is fetched when this part of its time is over, and never more often than this, in seconds: a server
# that lets nothing be kept is asked as often as a cautious monitor does.
_AHEAD: Final = 0.9
_LEAST_PAUSE: Final = 10.0
_OK: Final = frozenset({200})
_NOT_MODIFIED: Final = 304
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_SERVER_TROUBLE: Final = frozenset({500, 502, 503, 504})
# Statuses of a URL at which there's nothing to get; then a URL of another kind than the base URL may have been given.
_NOT_THERE: Final = frozenset({400, 404, 405, 410})
# The server has spoken: there is no document, or none for this caller (401 and 403). A cached copy may not stand in.
_GONE: Final = frozenset({401, 403, 404, 410})


@frozen
class LocatedDocument(Generic[T]):
    """A document found: where it was asked for, where it came from, how many seconds ago its server vouched for it."""

    document: T
    url: str
    source: Source
    age: float


class Reader(Protocol[T_co]):
    """Reads one document piece by piece, so that a large one holds nobody up."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises `InvalidDocument`."""
        ...

    def close(self) -> T_co:
        """The document is whole: return it. Raises `InvalidDocument`."""
        ...


class WholeReader(Generic[T]):
    """Reads a document in one go, once all of it is there: for small ones."""

    def __init__(self, read: Callable[[bytes], T]) -> None:
        self._read = read
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        """See `Reader`."""
        self._data += data

    def close(self) -> T:
        """See `Reader`."""
        return self._read(bytes(self._data))


@define(eq=False)
class _Waiter:
    """A task that waits for a document: woken when it has something to do."""

    effect: Deliver[Any, Any] | Lead[Any] | None = None
    woken: anyio.Event | None = None


_WAYS_TO_FAIL: Final = (Unreachable, NotAllowed, BadReply, InvalidDocument, Unverified, WrongAgent)


class Documents(Generic[T]):
    """One kind of document: how it's read, how large and how slow it may be, how long it says that it's good.

    `judge` says whether and how the document is asked for: as `HttpTransport.judge` does, unless another is given.
    `accept` is asked before a document is given to anybody, and whether it's to be kept: it returns what may be, or
    raises what speaks against.
    `statuses` are those whose body is the document. Without `keep`, it answers those who wait for it and no one later.
    """

    def __init__(
        self,
        http: HttpTransport,
        clock: LoopClock,
        *,
        reader: Callable[[], Reader[T]],
        judge: Callable[[str], Allowed] | None = None,
        accept: Callable[[str, T, bool], T] = lambda _url, document, _keep: document,
        limit: int,
        seconds: float = DOCUMENT_SECONDS,
        ttl: Callable[[T], float | None] = lambda _: None,
        policy: DocumentCachePolicy | None,
        keep: bool = True,
        statuses: Collection[int] = _OK,
    ) -> None:
        self._http = http
        self._clock = clock
        self._reader = reader
        self._judged_by = judge
        self._accept = accept
        self._limit = limit
        self._seconds = seconds
        self._ttl = ttl
        self._statuses = frozenset(statuses)
        self._cache: DocumentCache[T, _Waiter] = DocumentCache(policy, keep=keep)

    @property
    def waiting(self) -> int:
        """How many tasks wait for a document."""
        return self._cache.waiting

    def cached(self, url: str) -> T | None:
        """The document if it's kept and good, without waiting for anything. Raises RuntimeError outside a loop."""
        now = self._clock.monotonic()
        found = self._cache.cached(url, now=now)
        return self._cache.cached(normal(url), now=now) if found is None else found

    def freshness(self, url: str) -> Freshness | None:
        """How long the document may be used, from when its server last vouched for it; None where it isn't kept."""
        return self._cache.freshness(url)

    def kept_as(self, url: str, document: T) -> Freshness | None:
        """`freshness`, where exactly this document is what is kept; else None."""
        return self._cache.kept_as(url, document)

    def forget(self, url: str) -> None:
        """Drop what is kept of `url`, failures too; what is being fetched answers who waits for it, and isn't kept."""
        self._cache.forget(normal(url))

    def clear(self) -> None:
        """Drop all that is kept, failures too."""
        self._cache.clear()

    async def find(self, url: str) -> LocatedDocument[T]:
        """Return the document, kept or fetched. Raises what kept it from being had."""
        now = self._clock.monotonic()
        found = self._cache.at_hand(url, now=now) if self._http.is_open else None
        if found is not None:
            # The URL was judged before its document was fetched, and nothing is asked now.
            await anyio.lowlevel.checkpoint()
            return LocatedDocument(found.value, url, found.source, found.age)
        key, waiter = self._key(url), _Waiter()
        _carry_out(self._cache.lookup(key, waiter, now=now))
        return await self._wait(key, waiter)

    async def refresh(self, url: str, cool_down: float) -> LocatedDocument[T]:
        """Fetch the document even if the kept one is good, at most once in `cool_down` seconds; as `find` otherwise.

        For key sets: a key that isn't in the kept one may be new. What is kept is given where fetching it fails.
        """
        key, waiter = self._key(url), _Waiter()
        now = self._clock.monotonic()
        _carry_out(self._cache.refresh(key, waiter, now=now, cool_down=cool_down))
        return await self._wait(key, waiter)

    async def keep_fresh(self, url: str) -> None:
        """Fetch the document ahead of its time, again and again, until cancelled. Raises `NotAllowed` at once or never.

        Failures are logged, and tried again when that pays.
        """
        url = self._http.judge(url).url
        while True:
            try:
                await self.refresh(url, cool_down=_LEAST_PAUSE)
            except AsapError as error:
                _log.warning("%s", error)
            due, now = self._cache.due(url), self._clock.monotonic()
            await anyio.sleep(max(_LEAST_PAUSE, 0.0 if due is None else _AHEAD * (due - now)))

    def _key(self, url: str) -> str:
        """Under what the document is kept. A URL in use was judged, and is again before it's asked: `NotAllowed`."""
        if self._http.is_open and self._cache.knows(url):
            return url
        self._judge(url)
        return normal(url)

    def _judge(self, url: str) -> Allowed:
        return self._http.judge(url) if self._judged_by is None else self._judged_by(url)

    async def _wait(self, url: str, waiter: _Waiter) -> LocatedDocument[T]:
        try:
            while True:
                effect, waiter.effect = waiter.effect, None
                match effect:
                    case Deliver(_, Document(value, source, age)):
                        return LocatedDocument(value, url, source, age)
                    case Deliver(_, NoDocument() as unfound):
                        raise _error_for(unfound, without_credentials(url))  # noqa: TRY301 - to abandon what was delivered is no harm
                    case Lead():
                        await self._lead(url, effect)
                    case None:
                        waiter.woken = anyio.Event()
                        await waiter.woken.wait()
        except BaseException:
            _carry_out(self._cache.abandon(waiter))
            raise

    async def _lead(self, url: str, lead: Lead[Any]) -> None:
        """Fetch, for this caller and all who wait; for no longer than it's worth to one who has a stale document."""
        outcome: FetchOutcome[T] | None = None
        with anyio.move_on_after(_REVALIDATION_SECONDS if lead.stale_at_hand else None):
            outcome = await self._fetch(url, lead)
        at, jitter = Moment.read(self._clock), random_fraction()
        if outcome is None:
            late = Failed(TimedOut(without_credentials(url), "no fresh document in time"), FailureKind.TIMEOUT)
            _carry_out(self._cache.outwait(lead.flight, late, at=at, jitter=jitter))
        else:
            _carry_out(self._cache.settle(lead.flight, outcome, at=at, jitter=jitter))

    async def _fetch(self, url: str, lead: Lead[Any]) -> FetchOutcome[T]:
        try:
            reader, allowed = self._reader(), self._judge(url)
            answer = await self._http.get(
                allowed,
                lead.headers,
                self._limit,
                into=reader.feed,
                statuses=self._statuses,
                seconds=self._seconds,
            )
            return self._outcome(url, allowed.url, answer, reader, lead)
        except _WAYS_TO_FAIL as error:
            # A copy: what was raised holds on to the frames that it came through, and so to all that was read.
            return Failed(evolve(error), _kind_of(error))

    def _outcome(self, key: str, url: str, answer: Answer, reader: Reader[T], lead: Lead[Any]) -> FetchOutcome[T]:
        status, headers, _ = answer
        if status == _NOT_MODIFIED and lead.headers:
            return NotModified(headers)
        if status in self._statuses:
            value = self._accept(key, reader.close(), self._cache.keeps(lead.flight))
            return Fetched(value, headers, self._ttl(value))
        note = "; redirects aren't followed" if status in _REDIRECTS else ""
        base = meant_base(url) if status in _NOT_THERE else None
        note = note if base is None else f"; give the base URL, {base}"
        wanted = " or ".join(map(str, sorted(self._statuses)))
        error = BadReply(without_credentials(url), f"expected the document with HTTP {wanted}{note}", status)
        if status in _GONE:
            return Failed(error, FailureKind.GONE)
        wait = retry_after_of(headers, wall=self._clock.wall())
        return Failed(error, FailureKind.SERVER if status in _SERVER_TROUBLE else FailureKind.UNUSABLE, wait)


# What each way to fail says of the server, the first that fits: a time-out is `Unreachable` as well.
_KINDS: Final = (
    (TimedOut, FailureKind.TIMEOUT),
    (Unreachable, FailureKind.UNREACHABLE),
    (NotAllowed, FailureKind.REFUSED),
    ((BadReply, InvalidDocument, Unverified, WrongAgent), FailureKind.UNUSABLE),
)


def _kind_of(error: Exception) -> FailureKind:
    if isinstance(error, Unreachable) and error.crowded:
        return FailureKind.CROWDED
    return next(kind for known, kind in _KINDS if isinstance(error, known))


def _carry_out(effects: tuple[CacheEffect[Any, Any], ...]) -> None:
    """Hand every effect to the task it's for. No checkpoint here: what was decided is done before all else."""
    for effect in effects:
        waiter: _Waiter = effect.waiter
        waiter.effect = effect
        if waiter.woken is not None:
            waiter.woken.set()


def _error_for(unfound: NoDocument, shown: str) -> Exception:
    """What to raise: what was tried, when it's tried next, and how old what is kept is where that can't stand in."""
    error, age = unfound.error, unfound.age
    next_try = round(unfound.next_try, 1) or None
    # One error object answers many waiters; each raises a copy, so that tracebacks don't pile up on it.
    if isinstance(error, Unreachable | BadReply):
        return evolve(error, next_try=next_try, kept_age=age)
    if isinstance(error, InvalidDocument | NotAllowed | Unverified | WrongAgent):
        return evolve(error)
    return Unreachable(shown, str(error), next_try, sent=False, kept_age=age, crowded=isinstance(error, CrowdedError))
