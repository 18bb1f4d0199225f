"""Fetches documents by URL, as programs, and takes a server's 304; concurrent callers share one fetch.

`DocumentCache` decides what is fetched, and what is fresh.

The program of one of the callers fetches. The others wait, and get the result, or fetch themselves if that program is
closed.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Final, Generic, TypeVar, assert_never

from attrs import define, evolve, field, frozen

from asap_core.client.body_reader import DocumentParser, WholeParser
from asap_core.client.document_cache import (
    CrowdedError,
    Deliver,  # noqa: F401 - named in a string
    DocumentCache,
    DocumentCachePolicy,
    Lead,
)
from asap_core.client.fetch_results import (
    GONE,
    OUTAGE,
    Document,
    Failed,
    FailureKind,
    Fetched,
    FetchOutcome,
    NoDocument,
    NotModified,
    Source,
)
from asap_core.client.programs import LATE, Program, Ticket, Wait, within
from asap_core.client.replies import retry_after_of
from asap_core.client.requests import DOCUMENT_SECONDS, REDIRECTS, HttpAnswer, Requests
from asap_core.client.runtime import Place, Runtime
from asap_core.client.trust import ReceivedManifest, read_received
from asap_core.clock import Instant
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

# In bytes. A manifest has a few kilobytes; with the schemas of hundreds of skills, some 100.
MAX_MANIFEST: Final = 1_048_576
# How many seconds a caller waits for a fresh document if a stale one is usable.
_REVALIDATION_SECONDS: Final = 1.0
# Fraction of the lifetime after which `keep_fresh` refetches.
_AHEAD: Final = 0.9
# Seconds between its requests at least, as of a cautious monitor: some servers forbid caching.
_LEAST_PAUSE: Final = 10.0
_OK: Final = frozenset({200})
_NOT_MODIFIED: Final = 304
# Statuses which suggest that the caller gave another URL instead of the base URL.
_NOT_THERE: Final = frozenset({400, 404, 405, 410})

_DOCUMENT_ERRORS: Final = (Unreachable, NotAllowed, BadReply, InvalidDocument, Unverified, WrongAgent)
_DocumentError = Unreachable | NotAllowed | BadReply | InvalidDocument | Unverified | WrongAgent


@frozen
class LocatedDocument(Generic[T]):
    """A document, its URL, its source, and how many seconds ago its server confirmed it."""

    document: T
    url: str
    source: Source
    age: float


class _DocumentPlace(Place["Deliver[T, _DocumentPlace[T]] | Lead[_DocumentPlace[T]]"], Generic[T]):
    """The place of one look-up of a document."""


@define(eq=False)
class _KeptFresh:
    """A document that programs keep fresh together.

    tickets: one of each of these programs, in order of their starts.
    asked: when one of them last began or ended a request.
    """

    tickets: dict[Ticket, None] = field(factory=dict)
    asked: Instant | None = None


class Documents(Generic[T]):
    """Fetches and caches documents of one kind.

    parser: makes a parser for each document.
    judge: returns where to send the request, or raises `NotAllowed`. The default is `Requests.judge`.
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
        runtime: Runtime,
        requests: Requests,
        *,
        parser: Callable[[], DocumentParser[T]],
        judge: Callable[[str], Allowed] | None = None,
        accept: Callable[[str, T, bool], T] = lambda _url, document, _keep: document,
        limit: int,
        seconds: float = DOCUMENT_SECONDS,
        ttl: Callable[[T], float | None] = lambda _: None,
        policy: DocumentCachePolicy | None,
        keep: bool = True,
        statuses: Collection[int] = _OK,
    ) -> None:
        self._runtime = runtime
        self._requests = requests
        self._parser = parser
        self._judge: Callable[[str], Allowed] = requests.judge if judge is None else judge
        self._accept = accept
        self._limit = limit
        self._seconds = seconds
        self._ttl = ttl
        self._statuses = frozenset(statuses)
        self._cache: DocumentCache[T, _DocumentPlace[T]] = DocumentCache(policy, keep=keep)
        self._kept_fresh: dict[str, _KeptFresh] = {}

    @property
    def waiting(self) -> int:
        """Return how many programs wait for a document."""
        return self._cache.waiting

    def cached(self, url: str) -> T | None:
        """Return the document if a fresh one is cached."""
        now = self._runtime.now()
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
        key = normal(url)
        self._cache.forget(key)
        self._wake_keepers(key)

    def clear(self) -> None:
        """Forget all documents and failures."""
        self._cache.clear()
        for key in self._kept_fresh:
            self._wake_keepers(key)

    def at_hand(self, url: str) -> T | None:
        """Return the document if exactly this URL is cached and fresh: what `find` would return at once."""
        # The URL was checked before its document was fetched, and nothing is requested now.
        return self._cache.at_hand(url, now=self._runtime.now())

    def find(self, url: str, *, cool_down: float | None = None) -> Program[LocatedDocument[T]]:
        """Return the document from the cache or the network. Raises an `AsapError` if it's unavailable.

        cool_down: if it isn't None, the document is fetched even if the cached one is fresh, at most once in that many
        seconds. For key sets: a key that isn't in the cached set may be new. If fetching fails, the cached document is
        returned.
        """
        runtime, cache, now = self._runtime, self._cache, self._runtime.now()
        key = self._key(url)
        place: _DocumentPlace[T] = _DocumentPlace()
        # Without `undoing` and `next_for`: thousands may wait, and each would keep the objects that these make.
        try:
            runtime.give(
                cache.lookup(key, place, now=now)
                if cool_down is None
                else cache.refresh(key, place, now=now, cool_down=cool_down)
            )
            while True:
                effect = place.take()
                if effect is None:
                    yield place.wait()
                elif isinstance(effect, Lead):
                    yield from self._lead(key, effect)
                else:
                    return _delivered(effect.result, key)
        except BaseException as error:
            runtime.undo_after(error, partial(self._abandon, place))
            raise

    def _abandon(self, place: _DocumentPlace[T]) -> None:
        self._runtime.give(self._cache.abandon(place))

    def keep_fresh(self, url: str) -> Program[None]:
        """Fetch the document before it expires, until closed. Raises `NotAllowed` at once or never.

        Failures are logged, and retried when the cache allows it. Several programs for one URL make the requests of
        one. After `forget`, one of them fetches anew.
        """
        runtime, ticket = self._runtime, Ticket()
        key = normal(self._requests.judge(url).url)
        kept = self._kept_fresh.setdefault(key, _KeptFresh())
        kept.tickets[ticket] = None
        try:
            while True:
                pause = self._pause(key, kept)
                if pause > 0.0:
                    ticket.parked, ticket.ready = True, False
                    yield from Wait(ticket, pause)
                    ticket.parked = False
                else:
                    yield from self._refresh(key, kept)
        except BaseException as error:
            runtime.undo_after(error, partial(self._end_keeping, key, ticket))
            raise

    def _pause(self, key: str, kept: _KeptFresh) -> float:
        """Return for how many seconds nothing needs to be done, or may be done, to keep the document fresh."""
        moments = [self._cache.due(key, share=_AHEAD), None if kept.asked is None else kept.asked + _LEAST_PAUSE]
        return max([moment - self._runtime.now() for moment in moments if moment is not None], default=0.0)

    def _refresh(self, key: str, kept: _KeptFresh) -> Program[None]:
        """Fetch the document ahead of time, and log a failure, also if the cached document may still be used."""
        kept.asked, before = self._runtime.now(), self._cache.failure(key)
        try:
            yield from self.find(key, cool_down=0.0)
        except AsapError as error:
            self._runtime.warn("asap.discovery", error)
        else:
            failure, now = self._cache.failure(key), self._runtime.now()
            if failure is not None and failure is not before:
                unfound = NoDocument(failure.cause.error, failure.until - now)
                self._runtime.warn("asap.discovery", _error_for(unfound, without_credentials(key)))
        kept.asked = self._runtime.now()

    def _end_keeping(self, key: str, ticket: Ticket) -> None:
        kept = self._kept_fresh[key]
        del kept.tickets[ticket]
        if not kept.tickets:
            del self._kept_fresh[key]

    def _wake_keepers(self, key: str) -> None:
        if key in self._kept_fresh:
            for ticket in self._kept_fresh[key].tickets:
                self._runtime.wake(ticket)

    def _key(self, url: str) -> str:
        """Return the cache key. Checks the URL unless it's known. Raises `NotAllowed`."""
        if self._cache.knows(url):
            return url
        self._judge(url)
        return normal(url)

    def _lead(self, url: str, lead: Lead[_DocumentPlace[T]]) -> Program[None]:
        """Fetch for all waiters. Stop waiting after 1 s if a stale document is usable."""
        runtime = self._runtime
        patience = _REVALIDATION_SECONDS if lead.stale_at_hand else None
        outcome = yield from within(patience, self._fetch(url, lead), runtime.clock)
        at, jitter = runtime.moment(), runtime.fraction()
        if outcome is LATE:
            late = Failed(TimedOut(without_credentials(url), "no fresh document in time"), FailureKind.TIMEOUT)
            runtime.give(self._cache.outwait(lead.flight, late, at=at, jitter=jitter))
        else:
            runtime.give(self._cache.settle(lead.flight, outcome, at=at, jitter=jitter))

    def _fetch(self, url: str, lead: Lead[_DocumentPlace[T]]) -> Program[FetchOutcome[T]]:
        try:
            parser, allowed = self._parser(), self._judge(url)
            answer = yield from self._requests.get(
                allowed,
                lead.headers,
                self._limit,
                parser=parser,
                statuses=self._statuses,
                seconds=self._seconds,
            )
            return self._outcome(url, allowed.url, answer, parser, lead)
        except _DOCUMENT_ERRORS as error:
            # A copy without the traceback, whose frames hold all that was read.
            return Failed(evolve(error), _kind_of(error))

    def _outcome(
        self, key: str, url: str, answer: HttpAnswer, parser: DocumentParser[T], lead: Lead[_DocumentPlace[T]]
    ) -> FetchOutcome[T]:
        status = answer.status
        if status == _NOT_MODIFIED and lead.headers:
            return NotModified(tuple(answer.headers))
        if status in self._statuses:
            value = self._accept(key, parser.close(), self._cache.keeps(lead.flight))
            return Fetched(value, tuple(answer.headers), self._ttl(value))
        note = "; redirects aren't followed" if status in REDIRECTS else ""
        base = meant_base(url) if status in _NOT_THERE else None
        note = note if base is None else f"; give the base URL, {base}"
        wanted = " or ".join(map(str, sorted(self._statuses)))
        error = BadReply(without_credentials(url), f"expected the document with HTTP {wanted}{note}", status)
        if status in GONE:
            return Failed(error, FailureKind.GONE)
        wait = retry_after_of(answer.headers, wall=self._runtime.wall())
        return Failed(error, FailureKind.SERVER if status in OUTAGE else FailureKind.UNUSABLE, wait)


def manifest_documents(
    runtime: Runtime,
    requests: Requests,
    *,
    judge: Callable[[str], Allowed] | None = None,
    accept: Callable[[str, ReceivedManifest, bool], ReceivedManifest],
    policy: DocumentCachePolicy | None,
) -> Documents[ReceivedManifest]:
    """Return the `Documents` of manifests. The parameters are those of `Documents`."""
    return Documents(
        runtime,
        requests,
        parser=lambda: WholeParser(read_received),
        judge=judge,
        accept=accept,
        limit=MAX_MANIFEST,
        ttl=lambda received: received.manifest.ttl_seconds,
        policy=policy,
    )


def _delivered(result: Document[T] | NoDocument, url: str) -> LocatedDocument[T]:
    match result:
        case Document(value, source, age):
            return LocatedDocument(value, url, source, age)
        case NoDocument():
            raise _error_for(result, without_credentials(url))
        case _:
            assert_never(result)


def _kind_of(error: _DocumentError) -> FailureKind:
    match error:
        case TimedOut():
            return FailureKind.TIMEOUT
        case Unreachable(crowded=True):
            return FailureKind.CROWDED
        case Unreachable():
            return FailureKind.UNREACHABLE
        case NotAllowed():
            return FailureKind.REFUSED
        case BadReply() | InvalidDocument() | Unverified() | WrongAgent():
            return FailureKind.UNUSABLE
        case _:
            assert_never(error)


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
