"""The laws of keeping documents fresh, for any outcomes in any order, closed or collected at any yield.

(a) When nobody keeps a document fresh any longer, no ticket, flight, waiter, wake or undo is left.
(b) There's one live fetch for each document. However many programs keep it fresh, they make the requests of one: at
    most one in ten seconds, none long before it's needed, and none before the pause of a failure is over.
(c) While its server answers, a document is cached at all times: it's fetched before it expires, after a failure, and
    anew after `forget`, also if other callers leave. A failure ends nothing, and is logged.
(f) Nothing is fetched that the outbound policy refuses.
(g) The same script gives the same effects.
"""

import math
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from attrs import define, field
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from asap_core.client import documents
from asap_core.client.body_reader import WholeParser
from asap_core.client.document_cache import DocumentCache
from asap_core.client.documents import Documents
from asap_core.client.programs import Fetch, Wait
from asap_core.client.requests import Requests
from asap_core.errors import AsapError, InvalidDocument, NotAllowed, Problem
from asap_core.net.outbound import OutboundPolicy
from asap_core.net.urls import normal
from tests.core.client.laws import (
    FAILURES,
    NUMBERS,
    REQUEST_DEFECTS,
    TABLE_DEFECTS,
    Defects,
    ProgramMachine,
    World,
    is_caught,
    keeps_its_laws,
    leads_outside,
)
from tests.core.client.scripted import HELD, After, Answer, Reply, Run

HOSTS = ("a.example", "b.example")
URLS = tuple(f"https://{host}/m.json" for host in HOSTS)
BAD = "https://169.254.169.254/m.json"
LEAST_PAUSE = 10.0
# A document counts for so many seconds; programs expire and are due a little before, by jitter, and fetch ahead.
GOOD = {"a minute": 60.0, "five minutes": 300.0}
EARLIEST = 0.9 * 0.95
REPLIES: dict[str, Reply] = {
    **{name: Answer(200, (("cache-control", f"max-age={life:g}"),), b"1") for name, life in GOOD.items()},
    "not to be stored": Answer(200, (("cache-control", "no-store"),), b"1"),
    "for a moment": Answer(200, (("cache-control", "max-age=1"),), b"1"),
    "not modified": Answer(304),
    **FAILURES,
}
BROKEN = {*FAILURES, "not modified"}
# These aren't remembered: they say nothing about the server.
UNCOUNTED = {"no connection free", "barred"}
# Within so many seconds a document is cached again: after a failure, or while only the least pause is in the way.
RECOVERY, SOON = 30.0 * 1.1 + LEAST_PAUSE + 2.0, LEAST_PAUSE + 2.0
TOLERANCE = 1e-6


@define(eq=False)
class Document:
    """What the model knows of one URL. `serves`: how its server answers, after a second, unless it's held.

    ready: from when on it must be cached. told, life: the last good answer, and for how long it counts. failed, pause:
    the last failure, and how long it's left alone for it. asked: when a keeper last began or ended a request.
    """

    serves: str = "a minute"
    ready: float = math.inf
    told: float = -math.inf
    life: float = 0.0
    failed: float = -math.inf
    in_a_row: int = 0
    pause: float = 0.0
    asked: float = -math.inf
    keepers: list[Run[Any]] = field(factory=list)


class Keepers(World):
    """Programs that keep documents fresh, other callers, and servers that answer by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.script = self.served
        self.requests = Requests(self.runtime, policy=OutboundPolicy(redirects=2))
        self.documents: Documents[bytes] = Documents(
            self.runtime, self.requests, parser=lambda: WholeParser(parse), limit=100, policy=None
        )
        self.model = {url: Document() for url in URLS}
        self.url_of: dict[Run[Any], str] = {}
        # Those whose request began before its document was forgotten: what comes isn't cached.
        self.outdated: set[Run[Any]] = set()
        self.holds = False

    @property
    def tables(self) -> tuple[int, ...]:
        kept = self.documents._kept_fresh.values()
        return self.documents.waiting, len(kept), sum(len(each.tickets) for each in kept)

    def served(self, fetch: Fetch) -> Reply | After:
        document = next((document for url, document in self.model.items() if host(url) == host(fetch.url)), None)
        return HELD if self.holds or document is None else After(1.0, REPLIES[document.serves])

    # --- commands ----------------------------------------------------------------------------------------------------

    def keep(self, url: str) -> None:
        document = self.model[url]
        run = self.start(self.documents.keep_fresh(url))
        self.url_of[run] = url
        document.keepers.append(run)
        if document.ready == math.inf:
            self.expect(document, RECOVERY)
        self.look(run, None)

    def keep_what_is_refused(self) -> None:
        run = self.start(self.documents.keep_fresh(BAD))
        assert isinstance(run.end, NotAllowed), "kept fresh, and not allowed"

    def find(self, url: str) -> None:
        run = self.start(self.documents.find(url))
        if run.effect is not None:
            self.url_of[run] = url
            self.look(run, None)

    def serve(self, url: str, name: str) -> None:
        """From now on its server answers like this."""
        document = self.model[url]
        was_good, document.serves = document.serves in GOOD, name
        if not was_good or name not in GOOD:
            self.expect(document, RECOVERY)

    def hold(self, holds: bool) -> None:
        """From now on servers don't answer, or do again."""
        self.holds = holds
        for document in self.model.values():
            # Those that were asked meanwhile wait for ten seconds.
            self.expect(document, RECOVERY + 20.0)

    def tell(self, which: int, name: str) -> None:
        run = self.chosen(which, Fetch)
        if run is not None:
            url = self.url_of[run]
            self.answer(run, REPLIES[name])
            self.expect(self.model[url], RECOVERY)

    def forget(self, url: str | None) -> None:
        if url is None:
            self.documents.clear()
        else:
            self.documents.forget(url.replace("https://", "HTTPS://"))
        for each in URLS if url is None else [url]:
            document = self.model[each]
            document.told = document.failed = -math.inf
            document.life, document.in_a_row = 0.0, 0
            self.outdated.update(run for run, its in self.url_of.items() if its == each and not is_asleep(run))
            # Somebody may be waiting for the old one, for as long as its server takes.
            if document.ready < math.inf:
                self.expect(document, SOON + 12.0 * any(run in self.outdated for run in document.keepers))
        self._wake()

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and look once a second."""
        for _ in range(int(seconds)):
            self.advance(1.0)
            self.is_cached()

    # --- the model ---------------------------------------------------------------------------------------------------

    def is_cached(self) -> None:
        now = self.clock.monotonic()
        for url, document in self.model.items():
            if document.keepers and now >= document.ready:
                assert self.documents.cached(url) is not None, "it has expired, though its server answers"

    def expect(self, document: Document, seconds: float) -> None:
        """It must be cached by then, if somebody keeps it fresh and its server answers."""
        good = document.keepers and document.serves in GOOD and not self.holds
        before = 0.0 if document.ready == math.inf else document.ready
        document.ready = max(before, self.clock.monotonic() + seconds) if good else math.inf

    def left(self, run: Run[Any]) -> None:
        document = self.model[self.url_of.pop(run)]
        self.outdated.discard(run)
        if run in document.keepers:
            document.keepers.remove(run)
            if not document.keepers:
                document.asked = -math.inf
        self.expect(document, RECOVERY)

    def answer(self, run: Run[Any], reply: Reply) -> None:
        before, outdated = run.effect, run in self.outdated
        if isinstance(before, Fetch):
            self.note(run, reply, outdated=outdated)
        super().answer(run, reply)
        self.look(run, before)

    def note(self, run: Run[Any], reply: Reply, *, outdated: bool) -> None:
        """What is known, once this reply is there."""
        document, now = self.model[self.url_of[run]], self.clock.monotonic()
        name = next((name for name, each in REPLIES.items() if each == reply), "expired")
        if outdated or name in UNCOUNTED:
            return
        if name in BROKEN:
            document.failed, document.in_a_row = now, document.in_a_row + 1
            least = 3.0 if name == "down" else 0.0
            document.pause = min(max(2.0 ** (document.in_a_row - 1), least), 30.0)
        else:
            document.told, document.life, document.failed, document.in_a_row = now, GOOD.get(name, 0.0), -math.inf, 0

    def look(self, run: Run[Any], before: object) -> None:
        """A program went on: see what it does now, and what it did before."""
        document, now = self.model[self.url_of[run]], self.clock.monotonic()
        if isinstance(run.effect, Fetch):
            leads_outside(run.effect, HOSTS)
        if run not in document.keepers:
            if run.effect is None:
                del self.url_of[run]
                self.outdated.discard(run)
            return
        assert run.effect is not None, "it ended"
        slept = before is None or (isinstance(before, Wait) and before.seconds is not None)
        if slept and not is_asleep(run):
            self.begins(document)
            document.asked = now
        elif not slept and is_asleep(run):
            document.asked = now
            if isinstance(before, Fetch) and document.failed == now and run not in self.outdated:
                assert self.runtime.take_remarks(), "a failure isn't logged"
            self.outdated.discard(run)
        self.runtime.take_remarks()

    def begins(self, document: Document) -> None:
        """A keeper begins a request."""
        now = self.clock.monotonic()
        assert now >= document.asked + LEAST_PAUSE - TOLERANCE, "requested twice in ten seconds"
        assert now >= document.failed + document.pause - TOLERANCE, "requested in the pause of a failure"
        if document.failed < document.told:
            assert now >= document.told + EARLIEST * document.life - TOLERANCE, "requested long before its time"

    def trace(self) -> Iterator[str]:
        yield from super().trace()
        yield f"{[document.asked for document in self.model.values()]}"


def parse(data: bytes) -> bytes:
    if data == b"!":
        raise InvalidDocument("a document", (Problem((), "another"),))
    return data


def is_asleep(run: Run[Any]) -> bool:
    return isinstance(run.effect, Wait) and run.effect.seconds is not None


def host(url: str) -> str | None:
    return urlsplit(url).hostname


# --- the laws --------------------------------------------------------------------------------------------------------

URL = st.sampled_from([URLS[0], *URLS])
SERVED = st.sampled_from([*GOOD, *GOOD, *GOOD, *REPLIES])


class KeepFreshLaws(ProgramMachine):
    world_of: Any = staticmethod(Keepers)

    @initialize(url=URL, number=st.integers(1, 3), serves=SERVED)
    def some_are_kept_fresh(self, url: str, number: int, serves: str) -> None:
        self.do("serve", url, serves)
        for _ in range(number):
            self.do("keep", url)
            self.do("pass_time", 5.0)

    @rule(url=URL)
    def keep(self, url: str) -> None:
        self.do("keep", url)

    @rule()
    def keep_what_is_refused(self) -> None:
        self.do("keep_what_is_refused")

    @rule(url=URL)
    def find(self, url: str) -> None:
        self.do("find", url)

    @rule(url=URL, serves=SERVED, seconds=st.sampled_from([0.0, 11.0, 61.0]))
    def serve(self, url: str, serves: str, seconds: float) -> None:
        self.do("serve", url, serves)
        self.do("pass_time", seconds)

    @rule(url=URL, failure=st.sampled_from(sorted(BROKEN)), seconds=st.sampled_from([20.0, 60.0, 130.0]))
    def a_server_fails_for_some_time(self, url: str, failure: str, seconds: float) -> None:
        self.do("serve", url, failure)
        self.do("pass_time", seconds)
        self.do("serve", url, "a minute")
        self.do("pass_time", 70.0)

    @rule(holds=st.booleans())
    def hold(self, holds: bool) -> None:
        self.do("hold", holds)

    @rule(which=NUMBERS, name=st.sampled_from(sorted(REPLIES)))
    def tell(self, which: int, name: str) -> None:
        self.do("tell", which, name)

    @rule(url=st.none() | URL, seconds=st.sampled_from([0.0, 13.0]))
    def forget(self, url: str | None, seconds: float) -> None:
        self.do("forget", url)
        self.do("pass_time", seconds)

    @rule(seconds=st.sampled_from([1.0, 5.0, 11.0, 61.0, 301.0]))
    def time_passes(self, seconds: float) -> None:
        self.do("pass_time", seconds)

    @invariant()
    def there_is_one_live_fetch_for_each_document(self) -> None:
        live = [run for run in self.world.runs if isinstance(run.effect, Fetch) and run not in self.world.outdated]
        urls = [self.world.url_of[run] for run in live]
        assert len(urls) == len(set(urls)), "a second fetch of one document"

    @invariant()
    def the_tables_hold_those_that_are_there(self) -> None:
        if not self.world.runtime._undone:
            kept = [document for document in self.world.model.values() if document.keepers]
            _, urls, tickets = self.world.tables
            assert (urls, tickets) == (len(kept), sum(len(each.keepers) for each in kept)), "who left is in the table"


def test_keeping_fresh_keeps_its_laws() -> None:
    keeps_its_laws(KeepFreshLaws)


# --- planted defects -------------------------------------------------------------------------------------------------


def fetches_as_often_as_it_may(self, _key, kept):
    return 0.0 if kept.asked is None else kept.asked + LEAST_PAUSE - self._runtime.now()


def fetches_at_each_wake(self, key, kept):
    self._woken = pause(self, key, kept) if getattr(self, "_woken", 0.0) <= 0.0 else 0.0
    return self._woken


def counts_for_itself(self, key, kept):
    kept.asked = None
    return pause(self, key, kept)


def forgets_quietly(self, url):
    self._cache.forget(normal(url))


def ends_at_a_failure(self, key, kept):
    kept.asked = self._runtime.now()
    yield from self.find(key, cool_down=0.0)
    kept.asked = self._runtime.now()


def forgets_failures(self, key, kept):
    self._cache._failures.forget(key)
    return pause(self, key, kept)


def gives_up(self, url, *, share=1.0):
    failure = self.failure(url)
    return due(self, url, share=share) if failure is None or failure.in_a_row < 2 else failure.since + 1e6


def leaves_the_others(self, key, _ticket):
    self._kept_fresh.pop(key, None)


def logs_only_what_is_raised(self, key, kept):
    kept.asked = self._runtime.now()
    try:
        yield from self.find(key, cool_down=0.0)
    except AsapError as error:
        self._runtime.warn("asap.discovery", error)
    kept.asked = self._runtime.now()


pause, due = Documents._pause, DocumentCache.due
DEFECTS: Defects = {
    **TABLE_DEFECTS,
    **{name: each for name, each in REQUEST_DEFECTS.items() if name != "redirects are followed anywhere"},
    "it's fetched as often as allowed": (Documents, "_pause", fetches_as_often_as_it_may),
    "each wake is a fetch": (Documents, "_pause", fetches_at_each_wake),
    "each program counts for itself": (Documents, "_pause", counts_for_itself),
    "the least pause is too short": (documents, "_LEAST_PAUSE", 9.0),
    "it's fetched when it has expired": (documents, "_AHEAD", 1.1),
    "who sleeps doesn't notice that it's forgotten": (Documents, "forget", forgets_quietly),
    "a failure ends it": (Documents, "_refresh", ends_at_a_failure),
    "the pause of a failure doesn't count": (Documents, "_pause", forgets_failures),
    "two failures in a row are too many": (DocumentCache, "due", gives_up),
    "who leaves stays in the table": (Documents, "_end_keeping", lambda *_: None),
    "the last one to come is the first to leave": (Documents, "_end_keeping", leaves_the_others),
    "a failure isn't logged while the document can be used": (Documents, "_refresh", logs_only_what_is_raised),
}


@pytest.mark.planted
@pytest.mark.long
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_caught(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*DEFECTS[defect])
    is_caught(KeepFreshLaws)
