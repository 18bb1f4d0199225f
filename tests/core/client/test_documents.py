"""Documents by URL: fetched once for all who ask, kept fresh, and refreshed for callers that miss something in them."""

import gc
import tracemalloc
from typing import Any

import pytest

from asap_core.client.body_reader import WholeParser
from asap_core.client.document_cache import DocumentCachePolicy
from asap_core.client.documents import Documents, LocatedDocument
from asap_core.client.fetch_results import Source
from asap_core.client.programs import Expired, Fetch, FileRead, Program, Stage, Unanswered, Wait
from asap_core.client.requests import Requests
from asap_core.errors import (
    Advice,
    AsapError,
    BadReply,
    InvalidDocument,
    NotAllowed,
    Problem,
    TimedOut,
    Unreachable,
    Unverified,
    WrongAgent,
)
from asap_core.flights import Flights
from asap_core.http.caching import FreshnessPolicy
from asap_core.net.outbound import OutboundPolicy
from tests.core.client.scripted import HELD, After, Answer, Driver, Run

URL, OTHER = "http://localhost/keys.json", "http://localhost/other.json"
BELOW = "http://localhost/asap/.well-known/asap/manifest.json"
REFUSED = Unanswered(Stage.CONNECTING, "can't connect: refused")


class Keys(Driver):
    """A server with a newer key set for each request, one second later; and a client's documents.

    reply: what comes instead, if it's set.
    """

    def __init__(self, *, headers: tuple[tuple[str, str], ...] = (), timeout: float = 60.0, **options: Any) -> None:
        super().__init__(self._reply)
        self.status = 200
        self.headers = headers
        self.seconds = 1.0
        self.reply: Any = None
        self.requests = Requests(self.runtime, policy=OutboundPolicy(), timeout=timeout)
        settings = {"parser": lambda: WholeParser(bytes), "limit": 100, "policy": None, **options}
        self.documents: Documents[bytes] = Documents(self.runtime, self.requests, **settings)

    def _reply(self, _fetch: Fetch) -> After:
        answer = Answer(self.status, self.headers, b"%d" % self.asked)
        return After(self.seconds, answer if self.reply is None else self.reply)

    @property
    def fetches(self) -> list[Fetch]:
        return [effect for effect in self.effects if isinstance(effect, Fetch)]

    @property
    def asked(self) -> int:
        return len(self.fetches)

    def find(self, url: str = URL) -> LocatedDocument[bytes]:
        return self.run(self.documents.find(url))

    def refresh(self, cool_down: float = 60.0) -> LocatedDocument[bytes]:
        return self.run(self.documents.find(URL, cool_down=cool_down))

    def fails(self, program: Program[Any] | None = None) -> AsapError:
        with pytest.raises(AsapError) as caught:
            self.run(self.documents.find(URL) if program is None else program)
        return caught.value


class TestFinding:
    def test_a_document_is_fetched_and_then_cached(self) -> None:
        server = Keys()
        assert server.find() == LocatedDocument(b"1", URL, Source.FETCHED, 0.0)
        server.advance(9)
        assert server.find() == LocatedDocument(b"1", URL, Source.CACHED, 9.0)
        assert server.asked == 1
        assert (server.documents.cached(URL), server.documents.cached(OTHER)) == (b"1", None)

    def test_a_cached_document_is_returned_without_an_effect(self) -> None:
        server = Keys()
        server.find()
        server.effects.clear()
        assert server.start(server.documents.find(URL)).result().document == b"1"
        assert server.effects == []

    def test_spellings_of_a_url_are_one_document(self) -> None:
        server = Keys()
        for url in (URL, "http://LOCALHOST:80/keys.json#x", URL):
            assert server.find(url).url == URL
        assert server.asked == 1
        assert server.documents.cached("http://LOCALHOST:80/keys.json") == b"1"

    def test_a_lifetime_is_the_documents_own_or_its_servers(self) -> None:
        assert self.lifetime(Keys(headers=(("cache-control", "max-age=60"),))) == 60.0
        assert self.lifetime(Keys(ttl=lambda document: 30.0 + int(document))) == 31.0
        assert self.lifetime(Keys()) == 300.0

    def lifetime(self, server: Keys) -> float:
        document = server.find().document
        freshness = server.documents.freshness(URL)
        assert freshness is not None
        assert freshness is server.documents.kept_as(URL, document)
        assert server.documents.kept_as(URL, b"another") is None
        return freshness.fresh_for

    def test_the_accepted_document_is_used(self) -> None:
        seen: list[Any] = []

        def accept(url: str, document: bytes, keep: bool) -> bytes:
            seen.append((url, document, keep))
            return document + b"!"

        server = Keys(accept=accept)
        assert (server.find().document, server.find().document) == (b"1!", b"1!")
        assert seen == [(URL, b"1", True)]

    def test_the_request_has_its_own_limits(self) -> None:
        server = Keys(seconds=4.0)
        server.find()
        assert server.fetches[0].seconds == 4.0
        with pytest.raises(BadReply, match="expected at most 0 bytes"):
            Keys(limit=0).find()

    def test_a_304_confirms_what_is_cached(self) -> None:
        server = Keys(headers=(("etag", '"1"'), ("cache-control", "max-age=10")))
        server.find()
        server.advance(20)
        server.status = 304
        assert server.find() == LocatedDocument(b"1", URL, Source.REVALIDATED, 0.0)
        assert ("if-none-match", '"1"') in server.fetches[1].headers

    def test_a_200_for_a_conditional_request_replaces_what_is_cached(self) -> None:
        server = Keys(headers=(("etag", '"1"'), ("cache-control", "max-age=10")))
        server.find()
        server.advance(20)
        assert server.find() == LocatedDocument(b"2", URL, Source.FETCHED, 0.0)

    def test_a_304_for_an_unconditional_request_is_an_error(self) -> None:
        server = Keys()
        server.status = 304
        assert isinstance(server.fails(), BadReply)


class TestForgetting:
    def test_a_forgotten_document_is_fetched_again(self) -> None:
        server = Keys()
        server.find()
        server.documents.forget("http://LOCALHOST/keys.json")
        assert (server.documents.cached(URL), server.find().document) == (None, b"2")
        server.documents.clear()
        assert server.find().document == b"3"

    def test_a_fetch_under_way_is_answered_and_not_cached(self) -> None:
        kept: list[bool] = []

        def accept(_url: str, document: bytes, keep: bool) -> bytes:
            kept.append(keep)
            return document

        server = Keys(accept=accept)
        run = server.start(server.documents.find(URL))
        server.documents.forget(URL)
        assert server.find().document == b"2"
        assert run.result().document == b"1"
        assert (kept, server.documents.cached(URL)) == ([False, True], b"2")


class TestSharing:
    def test_concurrent_callers_get_one_answer(self) -> None:
        server = Keys()
        runs = [server.start(server.documents.find(URL)) for _ in range(50)]
        assert server.documents.waiting == 50
        server.advance(1)
        assert {run.result().document for run in runs} == {b"1"}
        assert (server.asked, server.documents.waiting) == (1, 0)
        assert sum(isinstance(effect, Wait) for effect in server.effects) == 49

    def test_concurrent_callers_get_copies_of_one_failure(self) -> None:
        server = Keys()
        server.reply = REFUSED
        runs = [server.start(server.documents.find(URL)) for _ in range(50)]
        server.advance(1)
        assert server.asked == 1
        assert len({id(run.end) for run in runs}) == 50
        for run in runs:
            with pytest.raises(Unreachable, match="can't connect: refused; not asked again for"):
                run.result()

    @pytest.mark.parametrize("lost", [False, True], ids=["closed", "collected in another thread"])
    @pytest.mark.parametrize("leaver", [0, 1])
    def test_waiters_are_answered_if_a_caller_is_closed(self, leaver: int, lost: bool) -> None:
        server = Keys()
        runs = [server.start(server.documents.find(URL)) for _ in range(3)]
        server.advance(0.5)
        left = runs.pop(leaver)
        (server.lose if lost else server.close)(left)
        server.advance(2)
        # If it led, its request was made again.
        assert server.asked == 2 - leaver
        assert len({run.result().document for run in runs}) == 1
        assert server.documents.waiting == 0

    def test_the_last_closed_caller_leaves_nothing_behind(self) -> None:
        server = Keys()
        runs = [server.start(server.documents.find(URL)) for _ in range(3)]
        for run in runs:
            server.close(run)
        assert (server.documents.waiting, server.runs, server.turn()) == (0, [], False)
        assert server.find().document == b"2"

    def test_a_caller_that_takes_over_may_be_closed_too(self) -> None:
        server = Keys()
        runs = [server.start(server.documents.find(URL)) for _ in range(3)]
        server.close(runs[0])
        server.close(runs[1])
        server.advance(2)
        assert runs[2].result().document == b"2"

    def test_fetches_of_two_urls_do_not_wait_for_each_other(self) -> None:
        server = Keys()
        server.start(server.documents.find(OTHER))
        assert server.find().document == b"2"

    def test_callers_beyond_the_limit_are_refused(self) -> None:
        server = Keys()
        server.documents._cache._flights = Flights(max_flights=1)
        server.start(server.documents.find(OTHER))
        error: Any = server.fails()
        assert (type(error), error.crowded, error.sent) == (Unreachable, True, False)
        assert "more documents are being fetched than the cache allows at once" in str(error)

    def test_an_unexpected_exception_lets_the_next_caller_fetch(self) -> None:
        """A defect of the caller's own ends its own look-up."""
        calls: list[int] = []

        def accept(_url: str, document: bytes, _keep: bool) -> bytes:
            calls.append(1)
            if len(calls) == 1:
                raise ZeroDivisionError
            return document

        server = Keys(accept=accept)
        server.start(server.documents.find(URL))
        other = server.start(server.documents.find(URL))
        with pytest.raises(ZeroDivisionError):
            server.advance(1)
        server.advance(2)
        assert (other.result().document, server.documents.waiting) == (b"2", 0)


class TestRefreshing:
    def test_many_callers_share_one_request(self) -> None:
        server = Keys()
        server.find()
        server.advance(60)
        runs = [server.start(server.documents.find(URL, cool_down=60)) for _ in range(100)]
        server.advance(1)
        assert ([run.result().document for run in runs], server.asked) == ([b"2"] * 100, 2)

    def test_no_request_is_made_during_the_cool_down(self) -> None:
        server, sources = Keys(), []
        for pause in (0, 59, 1, 59, 1):
            server.advance(pause)
            sources.append(server.refresh().source)
        assert sources == [Source.FETCHED, Source.CACHED, Source.FETCHED, Source.CACHED, Source.FETCHED]

    def test_the_cached_document_outlives_a_refresh_that_fails(self) -> None:
        server = Keys()
        server.find()
        server.advance(60)
        server.status = 500
        assert server.refresh().source is Source.CACHED
        assert server.asked == 2


class TestFailures:
    """Of a document that was cached an hour ago: whether it's used once more, and when the server is asked again."""

    def after(self, reply: Any, **options: Any) -> tuple[Keys, Run[LocatedDocument[bytes]]]:
        server = Keys(**options)
        server.find()
        server.advance(3_600)
        server.reply = reply
        run = server.start(server.documents.find(URL))
        server.advance(60)
        return server, run

    @pytest.mark.parametrize(
        "reply", [REFUSED, Expired(), Unanswered(Stage.QUEUED, ""), Answer(500), Answer(502), Answer(503), Answer(504)]
    )
    def test_a_stale_document_serves_in_an_outage(self, reply) -> None:
        _, run = self.after(reply)
        assert (run.result().document, run.result().source) == (b"1", Source.STALE_ERROR)

    @pytest.mark.parametrize("status", [401, 403, 404, 410])
    def test_a_document_that_its_server_deleted_is_dropped(self, status: int) -> None:
        server, run = self.after(Answer(status))
        with pytest.raises(BadReply, match=rf"\(HTTP {status}\): expected the document with HTTP 200") as caught:
            run.result()
        assert caught.value.kept_age is None
        assert server.documents.freshness(URL) is None

    @pytest.mark.parametrize("reply", [Answer(400), Answer(501), Answer(204), Answer(body=b"x" * 101)])
    def test_no_stale_document_serves_after_an_unusable_answer(self, reply: Answer) -> None:
        server, run = self.after(reply)
        with pytest.raises(BadReply, match=r"the cached copy is 360\d s old, too old to use") as caught:
            run.result()
        assert caught.value.kept_age == 3601.0
        assert server.documents.freshness(URL) is not None

    def test_a_full_connection_pool_is_not_a_failure_of_the_server(self) -> None:
        server = Keys()
        server.reply = Unanswered(Stage.QUEUED, "")
        first, second = server.fails(), server.fails()
        assert server.asked == 2
        assert [(type(error), getattr(error, "crowded", None)) for error in (first, second)] == [
            (Unreachable, True)
        ] * 2

    def test_a_failure_is_remembered_for_a_second_and_then_longer(self) -> None:
        server = Keys()
        server.reply = REFUSED
        waits = []
        for _ in range(3):
            error: Any = server.fails()
            waits.append(error.next_try)
            assert error.next_try == round(error.next_try, 1)
            server.advance(error.next_try - 0.1)
            server.fails()
            server.advance(0.2)
        # A twentieth more, by the driver's fraction; and rounded.
        assert (server.asked, waits) == (3, [pytest.approx(each, abs=0.11) for each in (1.05, 2.1, 4.2)])

    def test_a_server_may_ask_for_a_longer_wait(self) -> None:
        server = Keys(headers=(("retry-after", "20"),))
        server.status = 503
        error: Any = server.fails()
        assert error.next_try == pytest.approx(21.0)

    @pytest.mark.parametrize(
        ("url", "status", "note"),
        [
            *((URL, status, "HTTP 200; redirects aren't followed") for status in (301, 302, 303, 307, 308)),
            *((URL, status, "expected the document with HTTP 200") for status in (304, 309, 404)),
            *((BELOW, status, "; give the base URL, http://localhost") for status in (400, 404, 405, 410)),
            *((BELOW, status, "expected the document with HTTP 200") for status in (401, 403, 406, 411)),
        ],
    )
    def test_an_error_names_a_remedy(self, url: str, status: int, note: str) -> None:
        server = Keys()
        server.status = status
        error = server.fails(server.documents.find(url))
        assert str(error).partition("; not asked")[0].endswith(note)

    @pytest.mark.parametrize(
        "error",
        [
            InvalidDocument("a key set", (Problem((), "a list"),)),
            Unverified(URL, "urn:asap:agent:a", "it isn't signed"),
            WrongAgent(URL, "urn:asap:agent:a", "urn:asap:agent:b"),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_a_refused_document_is_remembered_as_a_failure(self, error) -> None:
        def accept(_url: str, document: bytes, _keep: bool) -> bytes:
            raise error

        server = Keys(accept=accept)
        raised = [server.fails(), server.fails()]
        assert server.asked == 1
        assert [type(each) for each in raised] == [type(error)] * 2
        assert len({id(error), *map(id, raised)}) == 3
        assert str(raised[0]) == str(error)

    def test_a_remembered_failure_holds_no_data(self) -> None:
        """A failure is some hundred bytes, whatever the answer was."""

        def refuse(data: bytes) -> bytes:
            raise InvalidDocument("a key set", (Problem((), "less"),))

        server = Keys(parser=lambda: WholeParser(refuse), limit=1_000_000)
        server.reply = Answer(body=b"x" * 900_000)
        server.fails()
        gc.collect()
        tracemalloc.start()
        for number in range(20):
            server.fails(server.documents.find(f"{URL}?{number}"))
            server.effects.clear()
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert held < 1_000_000


class TestJudging:
    def test_a_refused_url_is_not_requested_and_nothing_is_remembered(self) -> None:
        server = Keys()
        for _ in range(2):
            with pytest.raises(NotAllowed):
                server.find("http://agent.example/")
        assert server.effects == []

    def test_a_url_in_use_is_judged_again_before_it_is_requested(self) -> None:
        refused: list[NotAllowed] = []

        def judge(url: str) -> Any:
            if refused:
                raise refused[0]
            return server.requests.judge(url)

        server = Keys(judge=judge)
        server.find()
        refused.append(NotAllowed(URL, "no longer", Advice("ask somebody else")))
        assert server.find().source is Source.CACHED
        server.advance(300)
        for _ in range(2):
            error = server.fails()
            assert (type(error), error is refused[0], server.asked) == (NotAllowed, False, 1)
        refused.clear()
        assert server.find().source is Source.FETCHED


class TestStale:
    """While a stale document may be used, nobody waits longer than a second for a fresh one."""

    HEADERS = (("cache-control", "max-age=10, stale-while-revalidate=60"),)

    def stale(self, seconds: float = 5.0) -> Keys:
        server = Keys(headers=self.HEADERS)
        server.find()
        server.advance(20)
        server.seconds = seconds
        return server

    def test_a_caller_with_a_stale_document_waits_for_a_quick_answer(self) -> None:
        server = self.stale(1.0)
        assert server.find() == LocatedDocument(b"2", URL, Source.FETCHED, 0.0)

    def test_a_caller_with_a_stale_document_does_not_wait_for_a_slow_answer(self) -> None:
        server = self.stale()
        before = server.clock.monotonic()
        found = server.find()
        assert (found.document, found.source, server.clock.monotonic() - before) == (b"1", Source.STALE_ERROR, 1.0)
        assert server.documents.waiting == 0

    def test_other_callers_get_the_stale_document_at_once(self) -> None:
        server = self.stale()
        server.start(server.documents.find(URL))
        other = server.start(server.documents.find(URL))
        assert other.result().source is Source.STALE_REVALIDATING

    def test_a_caller_that_needs_a_fresh_document_takes_over_and_waits(self) -> None:
        server = self.stale()
        leader = server.start(server.documents.find(URL))
        refresher = server.start(server.documents.find(URL, cool_down=5))
        server.advance(1)
        assert leader.result().source is Source.STALE_ERROR
        server.advance(4)
        assert refresher.end is None
        server.advance(1)
        assert (refresher.result().document, server.asked) == (b"3", 3)

    def test_a_document_that_is_forgotten_meanwhile_is_fetched_whole(self) -> None:
        server = self.stale()
        run = server.start(server.documents.find(URL))
        waiting = server.start(server.documents.find(URL, cool_down=5))
        server.documents.forget(URL)
        server.close(run)
        server.advance(5)
        assert waiting.result().document == b"3"

    def test_a_304_for_another_document_is_followed_by_a_whole_fetch(self) -> None:
        server = Keys(headers=(("etag", '"1"'), *self.HEADERS))
        server.find()
        server.advance(20)
        server.status, server.headers, server.seconds = 304, (("etag", '"2"'),), 0.5
        run = server.start(server.documents.find(URL))
        server.turn()
        # The 304 was for another document, so all of it is fetched, and no stale one is at hand any longer.
        assert run.effect is server.fetches[-1]
        assert [fetch.seconds for fetch in server.fetches[1:]] == [1.0, 10.0]


class TestUnkept:
    def test_concurrent_callers_share_a_request(self) -> None:
        server = Keys(keep=False)
        runs = [server.start(server.documents.find(URL)) for _ in range(3)]
        server.advance(1)
        assert [run.result().document for run in runs] == [b"1"] * 3
        assert server.find().document == b"2"
        assert server.documents.cached(URL) is None

    def test_each_accepted_status_is_an_answer(self) -> None:
        server = Keys(keep=False, statuses={200, 503})
        for number, status in enumerate((200, 503), start=1):
            server.status = status
            assert server.find().document == b"%d" % number
        server.status = 404
        with pytest.raises(BadReply, match="with HTTP 200 or 503"):
            server.find()

    def test_a_failure_is_not_remembered(self) -> None:
        server = Keys(keep=False)
        server.reply = REFUSED
        errors: list[Any] = [server.fails(), server.fails()]
        assert (server.asked, [error.next_try for error in errors]) == (2, [None, None])


class TestKeepingFresh:
    def test_a_document_is_always_fresh_and_fetched_before_its_time(self) -> None:
        server = Keys()
        run = server.start(server.documents.keep_fresh(URL))
        server.advance(2)
        for _ in range(3_600):
            assert server.documents.cached(URL) is not None
            server.advance(1)
        # 300 s of which nine tenths, or a little less, are waited.
        assert 3_600 / 300 < server.asked <= 3_600 / 240 + 1
        server.close(run)
        assert server.documents.waiting == 0

    def test_a_failure_is_logged_and_retried(self) -> None:
        server = Keys()
        server.reply = REFUSED
        server.start(server.documents.keep_fresh(URL))
        server.advance(60)
        assert 4 <= server.asked <= 12
        remark = server.runtime.take_remarks()[0]
        assert (remark.logger, remark.level) == ("asap.discovery", "warning")
        assert "can't connect: refused; not asked again for" in remark.text
        server.reply = None
        server.advance(60)
        assert server.documents.cached(URL) is not None

    def test_what_may_not_be_cached_is_fetched_every_ten_seconds(self) -> None:
        server = Keys(keep=False)
        server.seconds = 0.0
        server.start(server.documents.keep_fresh(URL))
        server.advance(99)
        assert server.asked == 10
        assert {effect.seconds for effect in server.effects if isinstance(effect, Wait)} == {10.0}

    def test_what_may_not_be_requested_is_refused_at_once(self) -> None:
        server = Keys()
        assert isinstance(server.start(server.documents.keep_fresh("http://agent.example")).end, NotAllowed)
        assert (server.effects, server.runtime.take_remarks()) == ([], ())

    @pytest.mark.parametrize("headers", [(), (("cache-control", "no-store"),)])
    def test_several_programs_for_one_url_make_the_requests_of_one(self, headers) -> None:
        asked = []
        for starts in ([0], [0, 3, 20, 61]):
            server = Keys(headers=headers)
            server.seconds = 0.0
            for before, start in zip([0, *starts], starts, strict=False):
                server.advance(start - before)
                server.start(server.documents.keep_fresh(URL))
            server.advance(3_600 - starts[-1])
            asked.append(server.asked)
        assert asked[0] == asked[1] > 10

    def test_a_document_that_another_caller_fetched_is_not_fetched_again(self) -> None:
        server = Keys()
        server.find()
        server.advance(100)
        server.start(server.documents.keep_fresh(URL))
        server.advance(100)
        assert server.asked == 1

    @pytest.mark.parametrize("forget", [lambda each: each.forget("http://LOCALHOST:80/keys.json"), Documents.clear])
    def test_what_is_forgotten_is_fetched_anew(self, forget) -> None:
        server = Keys()
        runs = [server.start(server.documents.keep_fresh(URL)) for _ in range(2)]
        server.advance(20)
        forget(server.documents)
        server.documents.forget(OTHER)
        server.advance(1)
        assert (server.documents.cached(URL), server.asked) == (b"2", 2)
        forget(server.documents)  # again, within ten seconds of the last request
        server.advance(9)
        forget(server.documents)
        server.advance(0.5)
        assert (server.documents.cached(URL), server.asked) == (None, 2)
        server.advance(1.5)
        assert (server.documents.cached(URL), server.asked) == (b"3", 3)
        for run in runs:
            server.close(run)
        assert server.documents._kept_fresh == {}

    def test_what_is_forgotten_while_it_is_fetched_is_fetched_again(self) -> None:
        server = Keys()
        server.start(server.documents.keep_fresh(URL))
        server.advance(257.5)
        server.documents.forget(URL)
        assert (server.runtime.take_wakes(), server.asked) == ((), 2)
        server.advance(1)
        assert server.documents.cached(URL) is None
        server.advance(11)
        assert (server.documents.cached(URL), server.asked) == (b"3", 3)

    def test_a_mistake_of_the_driver_ends_it(self) -> None:
        server = Keys()
        run = server.start(server.documents.keep_fresh(URL))
        server.advance(2)
        with pytest.raises(TypeError, match="a Wait is answered by Completed or Expired"):
            server.answer(run, FileRead())
        assert server.documents._kept_fresh == {}

    def test_the_next_in_line_fetches_if_the_one_that_fetches_is_closed(self) -> None:
        server = Keys()
        first, second = [server.start(server.documents.keep_fresh(URL)) for _ in range(2)]
        assert isinstance(first.effect, Fetch)
        server.close(first)
        server.advance(11)
        assert server.documents.cached(URL) is not None
        server.close(second)
        assert server.documents._kept_fresh == {}

    def test_a_failure_is_logged_even_if_the_cached_document_may_be_used(self) -> None:
        server = Keys()
        server.start(server.documents.keep_fresh(URL))
        server.advance(250)
        server.reply = REFUSED
        server.advance(60)
        assert 3 <= server.asked <= 6
        texts = [remark.text for remark in server.runtime.take_remarks()]
        assert len(texts) == server.asked - 1
        assert server.find().source is Source.STALE_ERROR
        assert texts[0].startswith("no answer from http://localhost:80/keys.json: can't connect: refused; not asked")
        assert texts[0].endswith(" again for 1.1 s")
        server.reply = Unanswered(Stage.QUEUED, "queued")
        server.advance(60)
        assert server.runtime.take_remarks() == ()

    def test_a_short_failure_is_over_before_the_document_expires(self) -> None:
        server = Keys()
        server.start(server.documents.keep_fresh(URL))
        server.advance(250)
        server.reply = REFUSED
        server.advance(10)
        server.reply = None
        server.advance(25)
        assert (server.asked, server.find().document) == (3, b"3")

    def test_keeping_fresh_shares_requests_with_other_callers(self) -> None:
        server = Keys()
        server.start(server.documents.keep_fresh("http://LOCALHOST:80/keys.json"))
        server.find()
        assert server.asked == 1


def test_a_stale_document_serves_for_a_day_and_not_longer() -> None:
    server = Keys(policy=DocumentCachePolicy(freshness=FreshnessPolicy(default=300.0, stale_if_error=86_400.0)))
    server.find()
    server.status = 503
    server.advance(86_400)
    assert server.find().source is Source.STALE_ERROR
    server.advance(301)
    with pytest.raises(BadReply, match=r"the cached copy is 867\d\d s old, too old to use"):
        server.find()


def test_callers_of_a_host_that_hangs_are_all_answered_in_time() -> None:
    server = Keys(timeout=0.5)
    server.reply, server.seconds = HELD.reply, HELD.seconds
    runs = [server.start(server.documents.find(URL)) for _ in range(1_000)]
    server.advance(0.5)
    assert {type(run.end) for run in runs} == {TimedOut}
    assert (server.asked, server.documents.waiting) == (1, 0)
