"""Fetches documents by URL. Concurrent callers share one fetch; `DocumentCache` decides.

The fetch runs in the task of one of the callers. The others wait, and are woken with the result, or to fetch themselves
if that caller is cancelled.
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

# How many seconds a caller waits for a fresh document if a stale one is usable.
_REVALIDATION_SECONDS: Final = 1.0
# Fraction of the lifetime after which `keep_fresh` refetches.
_AHEAD: Final = 0.9
# Seconds between its requests at least, as of a cautious monitor: some servers forbid caching.
_LEAST_PAUSE: Final = 10.0
_OK: Final = frozenset({200})
_NOT_MODIFIED: Final = 304
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_SERVER_TROUBLE: Final = frozenset({500, 502, 503, 504})
# Statuses which suggest that the caller gave another URL instead of the base URL.
_NOT_THERE: Final = frozenset({400, 404, 405, 410})
# The server has spoken: there is no document, or none for this caller (401 and 403). A cached copy may not stand in.
_GONE: Final = frozenset({401, 403, 404, 410})


@frozen
class LocatedDocument(Generic[T]):
    """A document, its URL, its source, and how many seconds ago its server confirmed it."""

    document: T
    url: str
    source: Source
    age: float


class Reader(Protocol[T_co]):
    """Reads one document piece by piece, so that a large one doesn't block the loop."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises `InvalidDocument`."""
        ...

    def close(self) -> T_co:
        """Return the complete document. Raises `InvalidDocument`."""
        ...


class WholeReader(Generic[T]):
    """Reads a small document at once, when it's complete."""

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
    """A task that waits for a document. It's woken with the result, or to fetch it."""

    effect: Deliver[Any, Any] | Lead[Any] | None = None
    woken: anyio.Event | None = None


_WAYS_TO_FAIL: Final = (Unreachable, NotAllowed, BadReply, InvalidDocument, Unverified, WrongAgent)


class Documents(Generic[T]):
    """Fetches and caches documents of one kind.

    reader: makes a reader for each document.
    judge: returns where to send the request, or raises `NotAllowed`. The default is `HttpTransport.judge`.
    accept: called with URL, document and whether it will be cached, before that. Returns the document to use, or raises
        an error if it's refused.
    limit: the document's size, in bytes.
    seconds: for a request.
    ttl: returns the lifetime that the document itself states, in seconds, or None.
    keep: if false, the document is given to the present waiters and isn't cached.
    statuses: those whose body is the document.
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
        """Return how many tasks wait for a document."""
        return self._cache.waiting

    def cached(self, url: str) -> T | None:
        """Return the document if a fresh one is cached, without waiting. Raises RuntimeError outside a loop."""
        now = self._clock.monotonic()
        found = self._cache.cached(url, now=now)
        return self._cache.cached(normal(url), now=now) if found is None else found

    def freshness(self, url: str) -> Freshness | None:
        """Return how long the document may be used, from its server's last confirmation; None if it isn't cached."""
        return self._cache.freshness(url)

    def kept_as(self, url: str, document: T) -> Freshness | None:
        """Return `freshness` if exactly this document is cached; else None."""
        return self._cache.kept_as(url, document)

    def forget(self, url: str) -> None:
        """Forget the document or failure. If it's being fetched, its waiters get the result, and it isn't cached."""
        self._cache.forget(normal(url))

    def clear(self) -> None:
        """Forget all documents and failures."""
        self._cache.clear()

    async def find(self, url: str) -> LocatedDocument[T]:
        """Return the document from the cache or the network. Raises an `AsapError` if it's unavailable."""
        now = self._clock.monotonic()
        found = self._cache.at_hand(url, now=now) if self._http.is_open else None
        if found is not None:
            # The URL was checked before its document was fetched, and nothing is requested now.
            await anyio.lowlevel.checkpoint()
            return LocatedDocument(found.value, url, found.source, found.age)
        key, waiter = self._key(url), _Waiter()
        _carry_out(self._cache.lookup(key, waiter, now=now))
        return await self._wait(key, waiter)

    async def refresh(self, url: str, cool_down: float) -> LocatedDocument[T]:
        """Fetch the document even if the cached one is fresh, at most once in `cool_down` seconds. Otherwise as `find`.

        For key sets: a key that isn't in the cached set may be new. If fetching fails, the cached document is returned.
        """
        key, waiter = self._key(url), _Waiter()
        now = self._clock.monotonic()
        _carry_out(self._cache.refresh(key, waiter, now=now, cool_down=cool_down))
        return await self._wait(key, waiter)

    async def keep_fresh(self, url: str) -> None:
        """Fetch the document before it expires, until cancelled. Raises `NotAllowed` at once or never.

        Failures are logged, and retried when the cache allows it.
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
        """Return the cache key. Checks the URL unless it's known. Raises `NotAllowed`."""
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
        """Fetch for all waiters. Stop waiting after 1 s if a stale document is usable."""
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
            # A copy without the traceback, whose frames hold all that was read.
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


# By exception; the first match counts, since `TimedOut` is an `Unreachable` too.
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
    """Hand every effect to the task it's for. No await, so no other task runs in between."""
    for effect in effects:
        waiter: _Waiter = effect.waiter
        waiter.effect = effect
        if waiter.woken is not None:
            waiter.woken.set()


def _error_for(unfound: NoDocument, shown: str) -> Exception:
    """Return the exception to raise, with the time of the next try and the age of a cached document that's too old."""
    error, age = unfound.error, unfound.age
    next_try = round(unfound.next_try, 1) or None
    # Each waiter raises a copy, so that tracebacks don't accumulate on one object.
    if isinstance(error, Unreachable | BadReply):
        return evolve(error, next_try=next_try, kept_age=age)
    if isinstance(error, InvalidDocument | NotAllowed | Unverified | WrongAgent):
        return evolve(error)
    return Unreachable(shown, str(error), next_try, sent=False, kept_age=age, crowded=isinstance(error, CrowdedError))
