"""The directory: one fetch for all who ask, kept for as long as its server allows, asked for again when that pays."""

from typing import Any

import pytest
from hypothesis import Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from asap_core.client.document_cache import CrowdedError, Deliver, DocumentCache, DocumentCachePolicy, Lead
from asap_core.client.fetch_results import Document, Failed, FailureKind, Fetched, NoDocument, NotModified, Source
from asap_core.flights import Flights
from tests.moments import moment

WALL = 1_750_000_000.0
DATE = "Sun, 15 Jun 2025 15:06:40 GMT"
URL = "https://a.example/m.json"
DEAD = Failed(ConnectionError("refused"), FailureKind.UNREACHABLE)


class Play:
    """A directory and its clock, driven step by step."""

    def __init__(self, **policy) -> None:
        self.directory: Any = DocumentCache(DocumentCachePolicy(**policy))
        self.now = 0.0
        self.waiters = iter(range(10**6))

    def lookup(self, url=URL):
        return self.directory.lookup(url, next(self.waiters), now=self.now)  # type: ignore[arg-type, unused-ignore]

    def refresh(self, url=URL, cool_down=60.0):
        return self.directory.refresh(url, next(self.waiters), now=self.now, cool_down=cool_down)

    def settle(self, flight, outcome, jitter=0.0):
        return self.directory.settle(flight, outcome, at=moment(self.now, WALL + self.now), jitter=jitter)  # type: ignore[arg-type, unused-ignore]

    def outwait(self, flight, jitter=0.0):
        late = Failed(TimeoutError(), FailureKind.TIMEOUT)
        return self.directory.outwait(flight, late, at=moment(self.now, WALL), jitter=jitter)

    def fetch(self, outcome, url=URL):
        (lead,) = self.lookup(url)
        assert isinstance(lead, Lead), lead
        return self.settle(lead.flight, outcome)[0].result

    def result(self, url=URL):
        (deliver,) = self.lookup(url)
        assert isinstance(deliver, Deliver), deliver
        return deliver.result


class TestDocumentCache:
    def test_fifty_callers_share_one_fetch_and_one_answer(self) -> None:
        play = Play()
        (lead,) = play.lookup()
        assert [play.lookup() for _ in range(49)] == [()] * 49
        delivered = play.settle(lead.flight, Fetched("v"))
        assert [effect.result for effect in delivered] == [Document("v", Source.FETCHED, 0.0)] * 50
        assert (len(play.directory), play.directory.waiting) == (1, 0)

    def test_a_fresh_document_is_returned_at_once(self) -> None:
        play: Any = Play()
        play.fetch(Fetched("v", [("cache-control", "max-age=60")]))
        play.now = 59.0
        assert play.result() == Document("v", Source.CACHED, 59.0)
        assert play.directory.cached(URL, now=play.now) == "v"
        assert play.directory.cached(URL, now=60.0) is None
        assert play.directory.cached("other", now=0.0) is None
        assert play.directory.at_hand(URL, now=play.now) == "v"
        assert play.directory.at_hand(URL, now=60.0) is None
        assert play.directory.at_hand("other", now=0.0) is None

    def test_age_counts_from_the_response_or_its_confirmation(self) -> None:
        play = Play()
        play.now = 10.0
        play.fetch(Fetched("v", [("cache-control", "max-age=60, must-revalidate")]))
        play.now = 10.5
        assert play.result() == Document("v", Source.CACHED, 0.5)
        play.now = 5.0
        assert play.result().age == 0.0
        play.now = 70.0
        assert play.fetch(DEAD) == NoDocument(DEAD.error, 1.0, age=60.0)

    def test_the_freshness_of_a_document_can_be_read(self) -> None:
        play: Any = Play()
        play.fetch(Fetched("v", [("cache-control", "max-age=60"), ("etag", '"e"')]))
        assert (play.directory.freshness(URL).fresh_for, play.directory.freshness(URL).etag) == (60.0, '"e"')
        assert play.directory.freshness("other") is None
        value = play.result().value
        assert play.directory.kept_as(URL, value) is play.directory.freshness(URL)
        assert play.directory.kept_as("other", value) is play.directory.kept_as(URL, "another") is None

    def test_a_stale_document_is_requested_with_its_validators(self) -> None:
        play = Play()
        play.fetch(Fetched("v", [("etag", '"x"'), ("last-modified", DATE), ("cache-control", "max-age=60")]))
        play.now = 60.0
        (lead,) = play.lookup()
        assert lead.headers == (("if-none-match", '"x"'), ("if-modified-since", DATE))
        result = play.settle(lead.flight, NotModified([("cache-control", "max-age=10")]))[0].result
        assert result == Document("v", Source.REVALIDATED, 0.0)
        play.now = 69.0
        assert play.result().source is Source.CACHED
        play.now = 70.0
        assert play.lookup()[0].headers[0] == ("if-none-match", '"x"')

    def test_a_304_without_headers_keeps_the_old_ones(self) -> None:
        play = Play()
        play.fetch(Fetched("v", [("cache-control", "max-age=60"), ("age", "50")], 5.0))
        play.now = 10.0
        (lead,) = play.lookup()
        play.settle(lead.flight, NotModified())
        play.now = 69.0
        assert play.result().source is Source.CACHED

    def test_a_304_for_an_unconditional_request_is_an_error(self) -> None:
        play = Play()
        (lead,) = play.lookup()
        result = play.settle(lead.flight, NotModified())[0].result
        assert (str(result.error), result.next_try) == (
            "the server says not modified, and was asked for the whole document",
            1.0,
        )

    def test_a_304_about_another_document_makes_the_leader_fetch_the_whole_once(self) -> None:
        play = Play()
        play.fetch(Fetched("v", [("etag", '"x"')]))
        play.now = 300.0
        (lead,) = play.lookup()
        assert play.lookup() == ()
        (again,) = play.settle(lead.flight, NotModified([("etag", '"y"')]))
        assert again == Lead(lead.waiter, lead.flight, (), stale_at_hand=False)
        assert play.directory.waiting == 2
        assert isinstance(play.settle(again.flight, NotModified([("etag", '"y"')]))[0].result, NoDocument)
        play.now += 1.0
        assert play.fetch(Fetched("w", [("etag", '"y"')])).value == "w"

    def test_a_304_for_an_evicted_document_answers_and_restores_nothing(self) -> None:
        play = Play(max_entries=1)
        play.fetch(Fetched("v"))
        play.now = 300.0
        (lead,) = play.lookup()
        play.fetch(Fetched("w"), "other")
        assert play.settle(lead.flight, NotModified())[0].result == Document("v", Source.REVALIDATED, 0.0)
        assert play.result("other").value == "w"
        assert isinstance(play.lookup()[0], Lead)

    def test_a_304_for_a_forgotten_document_answers_and_restores_nothing(self) -> None:
        play = Play()
        play.fetch(Fetched("v"))
        play.now = 300.0
        (lead,) = play.lookup()
        play.directory.forget(URL)
        assert play.settle(lead.flight, NotModified())[0].result == Document("v", Source.REVALIDATED, 0.0)
        assert len(play.directory) == 0

    def test_documents_are_requested_at_spread_times_before_they_expire(self) -> None:
        play = Play()
        (lead,) = play.lookup()
        play.settle(lead.flight, Fetched("v", [("cache-control", "max-age=100, must-revalidate")]), jitter=0.5)
        play.now = 94.9
        assert play.directory.cached(URL, now=play.now) == "v"
        assert play.result().source is Source.CACHED
        play.now = 95.0
        assert play.directory.cached(URL, now=play.now) is None
        (lead,) = play.lookup()
        assert lead.stale_at_hand
        assert play.result() == Document("v", Source.CACHED, 95.0)
        assert play.settle(lead.flight, Failed(OSError(), FailureKind.UNUSABLE))[0].result.source is Source.CACHED
        play.now = 100.0
        assert isinstance(play.fetch(DEAD), NoDocument)

    def test_a_304_spreads_the_next_request_too(self) -> None:
        play = Play()
        play.fetch(Fetched("v"))
        play.now = 300.0
        (lead,) = play.lookup()
        play.settle(lead.flight, NotModified(), jitter=0.5)
        assert play.directory.due(URL) == 300.0 + 285.0

    def test_the_state_of_a_document_can_be_read(self) -> None:
        play = Play()
        assert not play.directory.knows(URL)
        (lead,) = play.lookup()
        assert play.directory.knows(URL)
        play.settle(lead.flight, DEAD)
        assert play.directory.knows(URL)
        play.now = 1.0
        play.fetch(Fetched("v"))
        assert play.directory.knows(URL)
        play.directory.forget(URL)
        assert not play.directory.knows(URL)

    def test_the_time_of_the_next_request_can_be_read(self) -> None:
        play = Play()
        assert play.directory.due(URL) is None
        play.fetch(DEAD)
        assert play.directory.due(URL) == 1.0
        assert play.directory.failure(URL).cause is DEAD
        play.now = 1.0
        play.fetch(Fetched("v"))
        assert (play.directory.due(URL), play.directory.due(URL, share=0.5)) == (301.0, 151.0)
        assert play.directory.failure(URL) is None
        play.now = 301.0
        play.fetch(DEAD)
        assert play.directory.due(URL) == 302.0

    def test_a_document_with_no_store_is_returned_to_waiters_and_not_cached(self) -> None:
        play = Play()
        assert play.fetch(Fetched("v", [("cache-control", "no-store")])).value == "v"
        assert len(play.directory) == 0
        assert isinstance(play.lookup()[0], Lead)

    def test_a_cached_document_whose_next_response_says_no_store_is_dropped(self) -> None:
        play = Play()
        play.fetch(Fetched("v", [("cache-control", "max-age=10, stale-if-error=60")]))
        play.now = 10.0
        assert play.fetch(Fetched("w", [("cache-control", "no-store")])).value == "w"
        assert len(play.directory) == 0
        assert play.fetch(DEAD) == NoDocument(DEAD.error, 1.0)

    def test_others_get_the_stale_document_during_a_revalidation(self) -> None:
        play = Play()
        play.fetch(Fetched("v", [("cache-control", "max-age=10, stale-while-revalidate=60")]))
        play.now = 20.0
        (lead,) = play.lookup()
        assert lead.stale_at_hand
        assert play.result() == Document("v", Source.STALE_REVALIDATING, 20.0)
        assert play.settle(lead.flight, Fetched("w"))[0].result.value == "w"
        assert play.result().value == "w"

    def test_a_failed_or_slow_revalidation_keeps_the_stale_document(self) -> None:
        play = Play()
        play.fetch(Fetched("v", [("cache-control", "max-age=10, stale-while-revalidate=60, stale-if-error=0")]))
        play.now = 20.0
        assert play.fetch(Failed(TimeoutError(), FailureKind.TIMEOUT)).value == "v"
        play.now = 71.0
        assert isinstance(play.fetch(Failed(TimeoutError(), FailureKind.TIMEOUT)), NoDocument)

    def test_a_leader_returns_the_stale_document_and_a_waiter_takes_over(self) -> None:
        play = Play()
        play.fetch(Fetched("v", [("cache-control", "max-age=10, stale-while-revalidate=5, stale-if-error=0")]))
        play.now = 14.0
        (lead,) = play.lookup()
        play.now = 15.5
        assert play.lookup() == (), "too late for the stale one"
        mine, next_lead = play.outwait(lead.flight)
        assert (mine.waiter, mine.result) == (lead.waiter, Document("v", Source.STALE_ERROR, 15.5))
        assert (next_lead.waiter, next_lead.stale_at_hand) == (2, False)
        assert play.outwait(lead.flight) == play.settle(lead.flight, Fetched("late")) == ()
        assert play.settle(next_lead.flight, Fetched("w"))[0].result.value == "w"

    def test_a_lone_leader_returns_the_stale_document_and_the_failure_is_kept(self) -> None:
        for forgotten in (False, True):
            play = Play()
            play.fetch(Fetched("v", [("cache-control", "max-age=10, stale-while-revalidate=5, stale-if-error=0")]))
            play.now = 14.0
            (lead,) = play.lookup()
            if forgotten:
                play.directory.forget(URL)
            play.now = 15.5
            (mine,) = play.outwait(lead.flight)
            assert mine.result == Document("v", Source.STALE_ERROR, 15.5)
            assert (play.directory._purposes, play.directory.waiting) == ({}, 0)
            (again,) = play.lookup()
            assert isinstance(again, Lead) if forgotten else isinstance(again.result, NoDocument)

    def test_a_waiter_without_a_stale_document_gets_the_failure(self) -> None:
        play = Play()
        (lead,) = play.lookup()
        (mine,) = play.outwait(lead.flight, jitter=0.5)
        assert (type(mine.result), mine.result.next_try) == (NoDocument, pytest.approx(1.05))
        assert (play.directory._purposes, play.directory.waiting) == ({}, 0)

    def test_a_refused_url_is_not_a_failure_of_its_host(self) -> None:
        play = Play()
        (lead,) = play.lookup()
        assert play.lookup() == ()
        told = play.settle(lead.flight, Failed(LookupError("not from there"), FailureKind.REFUSED))
        assert [effect.result for effect in told] == [NoDocument(told[0].result.error, 0.0)] * 2
        assert str(told[0].result.error) == "not from there"
        assert isinstance(play.lookup()[0], Lead), "another may ask at once"

    def test_a_full_connection_pool_is_not_a_failure_of_the_host(self) -> None:
        play, crowded = Play(), Failed(LookupError("no connection to spare"), FailureKind.CROWDED)
        assert play.fetch(crowded) == NoDocument(crowded.error, 0.0)
        assert play.fetch(Fetched("v", [("cache-control", "max-age=10, stale-if-error=60")])).value == "v"
        play.now = 11.0
        assert play.fetch(crowded) == Document("v", Source.STALE_ERROR, 11.0), "what is kept may stand in"
        play.now = 90.0
        assert play.fetch(crowded) == NoDocument(crowded.error, 0.0, 90.0)
        assert isinstance(play.lookup()[0], Lead), "another may ask at once"

    def test_the_result_of_a_forgotten_fetch_is_not_cached(self) -> None:
        play = Play()
        (lead,) = play.lookup()
        assert play.directory.keeps(lead.flight)
        play.directory.forget(URL)
        assert not play.directory.keeps(lead.flight)
        play.settle(lead.flight, Fetched("v"))
        assert not play.directory.keeps(lead.flight)

    def test_beyond_stale_while_revalidate_all_callers_wait(self) -> None:
        play = Play()
        play.fetch(Fetched("v", [("cache-control", "max-age=10, stale-while-revalidate=60")]))
        play.now = 71.0
        (lead,) = play.lookup()
        assert not lead.stale_at_hand
        assert play.lookup() == ()

    def test_a_failure_is_returned_to_all_and_remembered_briefly(self) -> None:
        play = Play()
        (lead,) = play.lookup()
        play.lookup()
        results = [effect.result for effect in play.settle(lead.flight, DEAD)]
        assert results == [NoDocument(DEAD.error, 1.0)] * 2
        play.now = 0.5
        assert play.result() == NoDocument(DEAD.error, 0.5)
        play.now = 1.0
        assert isinstance(play.lookup()[0], Lead)

    def test_failures_in_a_row_are_remembered_longer_and_spread(self) -> None:
        play = Play()
        waits = []
        for _ in range(40):
            (lead,) = play.lookup()
            waits.append(play.settle(lead.flight, DEAD, jitter=0.5)[0].result.next_try)
            play.now += waits[-1]
        assert waits[:6] == pytest.approx([1.05, 2.1, 4.2, 8.4, 16.8, 31.5])
        assert waits[-1] == pytest.approx(31.5)
        assert play.fetch(Fetched("v")).value == "v"
        play.now += 300
        assert play.fetch(DEAD).source is Source.STALE_ERROR

    def test_the_server_may_ask_for_a_longer_wait_within_bounds(self) -> None:
        play = Play()
        assert play.fetch(Failed(OSError(), FailureKind.SERVER, retry_after=20.0)).next_try == 20.0
        play.now = 20.0
        assert play.fetch(Failed(OSError(), FailureKind.SERVER, retry_after=1e9)).next_try == 30.0

    @pytest.mark.parametrize("kind", [FailureKind.UNREACHABLE, FailureKind.TIMEOUT, FailureKind.SERVER])
    def test_while_its_server_fails_a_stale_document_serves_for_a_day(self, kind) -> None:
        play = Play()
        play.fetch(Fetched("v"))
        play.now = 300.0 + 86_399
        assert play.fetch(Failed(OSError(), kind)) == Document("v", Source.STALE_ERROR, play.now)
        assert play.result().source is Source.STALE_ERROR
        play.now += 2
        failed = Failed(OSError(), kind)
        play.fetch(failed)
        assert play.result() == NoDocument(failed.error, 2.0, age=86_701.0)

    def test_a_document_that_its_server_deleted_is_dropped(self) -> None:
        play = Play()
        play.fetch(Fetched("v"))
        play.now = 300.0
        assert isinstance(play.fetch(Failed(OSError(), FailureKind.GONE)), NoDocument)
        assert len(play.directory) == 0

    def test_an_unreadable_answer_does_not_count_as_an_outage(self) -> None:
        play = Play()
        play.fetch(Fetched("v"))
        play.now = 300.0
        assert isinstance(play.fetch(Failed(OSError(), FailureKind.UNUSABLE)), NoDocument)
        assert len(play.directory) == 1

    def test_a_waiter_takes_over_from_a_leader_that_leaves(self) -> None:
        play = Play()
        (lead,) = play.lookup()
        play.lookup()
        (next_lead,) = play.directory.abandon(lead.waiter)
        assert isinstance(next_lead, Lead)
        assert not next_lead.stale_at_hand
        assert play.settle(lead.flight, Fetched("late")) == ()
        assert play.settle(next_lead.flight, Fetched("v"))[0].result.value == "v"
        assert play.directory.abandon(lead.waiter) == ()

    def test_a_document_that_is_forgotten_during_its_fetch_is_not_cached(self) -> None:
        play = Play()
        (lead,) = play.lookup()
        play.directory.forget(URL)
        assert play.settle(lead.flight, Fetched("v"))[0].result.value == "v"
        assert len(play.directory) == 0
        play.directory.forget(URL)
        (lead,) = play.lookup()
        play.directory.forget(URL)
        play.directory.abandon(lead.waiter)
        assert play.directory._purposes == {}

    def test_a_lookup_after_forget_starts_a_new_fetch(self) -> None:
        play = Play()
        (old,) = play.lookup()
        assert play.lookup() == ()
        play.directory.forget(URL)
        assert not play.directory.knows(URL)
        (new,) = play.lookup()
        assert play.directory.keeps(new.flight)
        assert not play.directory.keeps(old.flight)
        assert [effect.result.value for effect in play.settle(new.flight, Fetched("new"))] == ["new"]
        # The old one, late, is for those who asked before, and changes nothing.
        assert [effect.result.value for effect in play.settle(old.flight, Fetched("old"))] == ["old", "old"]
        assert play.result().value == "new"
        assert play.directory._purposes == {}

    @pytest.mark.parametrize("outcome", [Fetched("old"), DEAD, NotModified(), Failed(OSError(), FailureKind.GONE)])
    def test_a_forgotten_flight_that_is_taken_over_changes_no_newer_document(self, outcome) -> None:
        play = Play()
        (old,) = play.lookup()
        play.lookup()
        play.directory.forget(URL)
        play.fetch(Fetched("new", [("etag", '"e"')]))
        (taken,) = play.directory.abandon(old.waiter)
        assert (taken.headers, play.directory.keeps(taken.flight)) == ((), False)
        play.settle(taken.flight, outcome)
        assert play.result() == Document("new", Source.CACHED, 0.0)
        assert (play.directory._purposes, len(play.directory._failures)) == ({}, 0)

    def test_all_documents_can_be_forgotten(self) -> None:
        play = Play()
        play.fetch(Fetched("v"), "kept")
        play.fetch(DEAD, "dead")
        (lead,) = play.lookup("coming")
        play.directory.clear()
        assert isinstance(play.lookup("kept")[0], Lead)
        assert isinstance(play.lookup("dead")[0], Lead)
        assert play.settle(lead.flight, Fetched("v"))[0].result.value == "v"
        assert len(play.directory) == 0

    def test_a_refresh_fetches_a_fresh_document(self) -> None:
        play = Play()
        play.fetch(Fetched("v", [("etag", '"x"')]))
        play.now = 60.0
        (lead,) = play.refresh()
        assert (lead.headers, lead.stale_at_hand) == ((("if-none-match", '"x"'),), False)
        assert play.refresh() == ()
        assert play.result() == Document("v", Source.CACHED, 60.0)
        assert [effect.result.value for effect in play.settle(lead.flight, Fetched("w"))] == ["w", "w"]

    def test_a_refresh_happens_at_most_once_in_a_cool_down(self) -> None:
        play = Play()
        play.fetch(Fetched("v"))
        play.now = 59.9
        assert play.refresh()[0].result == Document("v", Source.CACHED, 59.9)
        play.now = 60.0
        (lead,) = play.refresh()
        assert play.settle(lead.flight, DEAD)[0].result == Document("v", Source.CACHED, 60.0)
        play.now = 119.9
        assert play.refresh()[0].result.source is Source.CACHED
        play.now = 120.0
        assert isinstance(play.refresh()[0], Lead)

    def test_a_refresh_requests_nothing_while_the_server_fails(self) -> None:
        play = Play()
        play.fetch(Failed(OSError(), FailureKind.SERVER, retry_after=20.0))
        play.now = 19.0
        assert play.refresh(cool_down=1.0)[0].result.next_try == 1.0
        play.now = 20.0
        assert isinstance(play.refresh(cool_down=1.0)[0], Lead)

    def test_a_refresh_of_an_uncached_document_is_a_fetch(self) -> None:
        play = Play()
        (lead,) = play.refresh()
        assert play.settle(lead.flight, DEAD)[0].result == NoDocument(DEAD.error, 1.0)

    @pytest.mark.parametrize("kind", [FailureKind.UNREACHABLE, FailureKind.UNUSABLE])
    def test_a_failed_refresh_does_not_make_the_document_stale(self, kind) -> None:
        play = Play()
        play.fetch(Fetched("v", [("cache-control", "max-age=100, must-revalidate")]))
        play.now = 99.0
        (lead,) = play.refresh()
        assert play.settle(lead.flight, Failed(OSError(), kind))[0].result == Document("v", Source.CACHED, 99.0)
        play.now = 100.0
        assert isinstance(play.fetch(Failed(OSError(), kind)), NoDocument)

    def test_a_document_with_no_store_answers_its_waiters_only(self) -> None:
        play = Play()
        play.directory = DocumentCache(keep=False)
        for outcome in (Fetched("v", [("cache-control", "max-age=60")]), DEAD):
            (lead,) = play.lookup()
            assert play.lookup() == ()
            assert len(play.settle(lead.flight, outcome)) == 2
            assert (len(play.directory), len(play.directory._failures)) == (0, 0)
        assert play.fetch(DEAD) == NoDocument(DEAD.error, 0.0)

    def test_a_failure_of_a_forgotten_document_is_not_remembered(self) -> None:
        play = Play()
        (lead,) = play.lookup()
        play.directory.forget(URL)
        assert play.settle(lead.flight, DEAD)[0].result == NoDocument(DEAD.error, 0.0)
        assert isinstance(play.lookup()[0], Lead)

    @pytest.mark.parametrize(
        "use", [lambda play: play.result("a"), lambda play: play.directory.at_hand("a", now=play.now)]
    )
    def test_the_least_recently_used_documents_are_evicted_first(self, use) -> None:
        play = Play(max_entries=2)
        for name in ("a", "b"):
            play.fetch(Fetched(name), name)
        use(play)
        play.fetch(Fetched("c"), "c")
        assert play.result("a").value == "a"
        assert isinstance(play.lookup("b")[0], Lead)

    def test_a_refetched_document_counts_as_used(self) -> None:
        play = Play(max_entries=2)
        for name in ("a", "b"):
            play.fetch(Fetched(name), name)
        play.now = 300.0
        play.fetch(Fetched("a"), "a")
        play.fetch(Fetched("c"), "c")
        assert play.result("a").value == "a"

    def test_failures_are_bounded_and_the_oldest_are_evicted_first(self) -> None:
        play = Play(max_entries=2)
        for name in ("a", "b", "c"):
            play.fetch(DEAD, name)
        assert isinstance(play.result("b"), NoDocument)
        assert isinstance(play.result("c"), NoDocument)
        assert isinstance(play.lookup("a")[0], Lead)

    def test_the_bounds_are_as_documented(self) -> None:
        policy = DocumentCachePolicy()
        assert (policy.max_entries, policy.first_failure, policy.longest_failure) == (1_000, 1.0, 30.0)
        assert DocumentCachePolicy(max_entries=1, first_failure=0.1, longest_failure=0.1).max_entries == 1
        for bound in ("max_entries", "first_failure", "longest_failure"):
            with pytest.raises(ValueError, match=bound):
                DocumentCachePolicy(**{bound: 0})  # type: ignore[arg-type]

    def test_times_without_jitter_are_not_spread(self) -> None:
        directory: Any = DocumentCache()
        (lead,) = directory.lookup(URL, 1, now=0.0)
        directory.settle(lead.flight, Fetched("v"), at=moment(0.0, WALL))
        assert directory.due(URL) == 300.0

    def test_callers_beyond_the_limit_are_refused(self) -> None:
        play = Play()
        play.directory._flights = Flights(max_flights=1)
        play.lookup("a")
        result = play.result("b")
        assert isinstance(result.error, CrowdedError)


KEPT = [("cache-control", "max-age=10, stale-while-revalidate=10"), ("etag", '"e"')]
OUTCOMES: dict[str, Any] = {
    "kept": lambda value: Fetched(value, KEPT),
    "not kept": lambda value: Fetched(value, [("cache-control", "no-store")]),
    "not modified": lambda _: NotModified(),
    "another not modified": lambda _: NotModified([("etag", '"other"')]),
    "dead": lambda _: DEAD,
    "gone": lambda _: Failed(OSError(), FailureKind.GONE),
}
LIKELY = ["kept", "kept", "kept", "not modified", "not modified", *OUTCOMES]
URLS = ("a", "b")


class CacheLaws(RuleBasedStateMachine):
    """Every waiter ends once; one live flight per URL; nobody waits without one; nothing old comes back.

    Who asks after a URL was forgotten asks for another thing: (url, how often it was forgotten). A document's value is
    the number of its fetch, so that which is newer can be seen.
    """

    kind = DocumentCache

    def __init__(self) -> None:
        super().__init__()
        self.directory: Any = self.kind(DocumentCachePolicy(max_entries=1))
        self.now = 0.0
        self.number = 0
        self.waiting: Any = {}
        # Who leads: its flight, and when its fetch began, counted in fetches.
        self.leads: Any = {}
        self.late: Any = []
        # Of each URL: what began before that was forgotten isn't kept, and what was seen last is the least to come.
        self.least: Any = dict.fromkeys(URLS, 0)
        self.forgotten: Any = dict.fromkeys(URLS, 0)
        # When that was, counted in fetches: whoever asks since gets nothing from before.
        self.since: Any = {(url, 0): 0 for url in URLS}

    def carry_out(self, effects) -> None:
        for place, effect in enumerate(effects):
            if isinstance(effect, Deliver):
                asked = self.waiting.pop(effect.waiter, None)
                assert asked is not None, "delivered to nobody, or twice"
                self.leads.pop(effect.waiter, None)
                value = getattr(effect.result, "value", None)
                assert value is None or value >= self.since[asked], "from before it was forgotten"
            else:
                assert place == len(effects) - 1, "a fetch that isn't last"
                keys = [self.waiting[waiter] for waiter in self.leads if waiter != effect.waiter]
                assert self.waiting[effect.waiter] not in keys, "two live flights for one key"
                self.number += 1
                self.leads[effect.waiter] = effect.flight, self.number

    @rule(url=st.sampled_from(URLS))
    def look_up(self, url) -> None:
        self.number += 1
        self.waiting[self.number] = url, self.forgotten[url]
        self.carry_out(self.directory.lookup(url, self.number, now=self.now))

    @rule(url=st.sampled_from(URLS), cool_down=st.sampled_from([1.0, 10.0]))
    def refresh(self, url, cool_down) -> None:
        self.number += 1
        self.waiting[self.number] = url, self.forgotten[url]
        self.carry_out(self.directory.refresh(url, self.number, now=self.now, cool_down=cool_down))

    @precondition(lambda self: self.leads)
    @rule(data=st.data(), outcome=st.sampled_from(LIKELY), jitter=st.sampled_from([0.0, 0.9]))
    def settle(self, data, outcome, jitter) -> None:
        self.end(data.draw(st.sampled_from(sorted(self.leads))), outcome, jitter)

    def end(self, waiter, outcome, jitter) -> None:
        (flight, began), asked = self.leads[waiter], self.waiting[waiter]
        url = asked[0]
        others = {one for one, key in self.waiting.items() if key == asked} - {waiter}
        was_forgotten = asked[1] < self.forgotten[url]
        untouched = self.directory.cached(url, now=self.now), self.directory.due(url)
        kept_before = self.directory.freshness(url) is not None
        effects = self.directory.settle(
            flight, OUTCOMES[outcome](began), at=moment(self.now, WALL + self.now), jitter=jitter
        )
        self.carry_out(effects)
        if isinstance(effects[-1], Lead):
            assert outcome == "another not modified"
            assert effects == (Lead(waiter, flight, (), stale_at_hand=False),)
            return
        assert not (others | {waiter}) & self.waiting.keys(), "somebody was left waiting"
        assert len({id(effect.result) for effect in effects}) == 1, "they were told different things"
        assert not was_forgotten or untouched == (self.directory.cached(url, now=self.now), self.directory.due(url))
        assert kept_before or outcome != "not modified" or self.directory.freshness(url) is None, "it came back"
        self.late.append(flight)

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def a_late_result_changes_nothing(self, data) -> None:
        flight = data.draw(st.sampled_from(self.late))
        assert self.directory.settle(flight, Fetched(0), at=moment(self.now, WALL)) == ()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data) -> None:
        self.leave(data.draw(st.sampled_from(sorted(self.waiting))))

    def leave(self, waiter) -> None:
        lead = self.leads.pop(waiter, None)
        del self.waiting[waiter]
        self.carry_out(self.directory.abandon(waiter))
        if lead is not None:
            self.late.append(lead[0])

    # In one step what by chance takes thousands of examples.

    @precondition(lambda self: self.leads)
    @rule(data=st.data())
    def a_fetch_is_taken_over_after_its_url_was_forgotten(self, data) -> None:
        waiter = data.draw(st.sampled_from(sorted(self.leads)))
        url = self.waiting[waiter][0]
        self.look_up(url)
        self.forget(url)
        self.leave(waiter)

    @rule(url=st.sampled_from(URLS), outcome=st.sampled_from(["kept", "not modified"]))
    def a_document_is_evicted_while_it_is_revalidated(self, url, outcome) -> None:
        self.fetch(url, "kept")
        self.time_passes(40.0)
        self.look_up(url)
        self.fetch(URLS[url == URLS[0]], "kept")
        self.fetch(url, outcome)

    def fetch(self, url, outcome) -> None:
        self.look_up(url)
        for leader in [one for one in self.leads if self.waiting[one] == (url, self.forgotten[url])]:
            self.end(leader, outcome, 0.0)

    @rule(url=st.sampled_from(URLS))
    def forget(self, url) -> None:
        self.directory.forget(url)
        self.number += 1
        self.least[url] = self.number
        self.forgotten[url] += 1
        self.since[url, self.forgotten[url]] = self.number

    @rule(seconds=st.sampled_from([0.5, 1.0, 11.0, 40.0]))
    def time_passes(self, seconds) -> None:
        self.now += seconds

    @invariant()
    def nobody_waits_without_a_flight(self) -> None:
        led = {self.waiting[waiter] for waiter in self.leads}
        assert set(self.waiting.values()) == led
        assert {flight for flight, _ in self.leads.values()} == self.directory._purposes.keys()
        assert self.directory.waiting == len(self.waiting)

    @invariant()
    def nothing_old_comes_back(self) -> None:
        for url in URLS:
            value = self.directory.cached(url, now=self.now)
            assert value is None or value >= self.least[url]
            self.least[url] = max(self.least[url], value or 0)

    @invariant()
    def it_is_bounded(self) -> None:
        assert len(self.directory) <= 1
        assert len(self.directory._failures) <= 1


class SecondFlight(DocumentCache):  # type: ignore[type-arg]
    def lookup(self, url, waiter, *, now):
        self._flights.detach(url)
        return super().lookup(url, waiter, now=now)


class LosesOnHandOver(DocumentCache):  # type: ignore[type-arg]
    def abandon(self, waiter):
        return super().abandon(waiter)[:0]


class TakesLateResults(DocumentCache):  # type: ignore[type-arg]
    def settle(self, flight, outcome, **times):
        return super().settle(self._flights.flight(flight.key) or flight, outcome, **times)


class TellsTheLeaderOnly(DocumentCache):  # type: ignore[type-arg]
    def settle(self, flight, outcome, **times):
        return super().settle(flight, outcome, **times)[:1]


class KeepsWhatWasForgotten(DocumentCache):  # type: ignore[type-arg]
    def settle(self, flight, outcome, **times):
        for purpose in self._purposes.values():
            purpose.keep = True
        return super().settle(flight, outcome, **times)


class LetsJoinWhatWasForgotten(DocumentCache):  # type: ignore[type-arg]
    def forget(self, url) -> None:
        detach, self._flights.detach = self._flights.detach, lambda key: None  # type: ignore[method-assign]
        super().forget(url)
        self._flights.detach = detach  # type: ignore[method-assign]


class KeepsWhatWasTakenOver(DocumentCache):  # type: ignore[type-arg]
    def _lead(self, leading, **stale):
        lead = super()._lead(leading, **stale)
        self._purposes[leading.flight].keep = True
        return lead


class BringsBackWhatWasEvicted(DocumentCache):  # type: ignore[type-arg]
    def settle(self, flight, outcome, **times):
        purpose = self._purposes.get(flight)
        if purpose is not None and purpose.entry is not None and flight.key not in self._entries:
            self._entries.put(flight.key, purpose.entry)
        return super().settle(flight, outcome, **times)


class KeepsErrands(DocumentCache):  # type: ignore[type-arg]
    def abandon(self, waiter):
        errands = dict(self._purposes)
        effects = super().abandon(waiter)
        self._purposes = {**errands, **self._purposes}
        return effects


LAWS = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_the_cache_matches_its_model() -> None:
    run_state_machine_as_test(CacheLaws, settings=LAWS)


@pytest.mark.planted
@pytest.mark.long
@pytest.mark.parametrize(
    "mutant",
    [
        SecondFlight,
        LosesOnHandOver,
        TakesLateResults,
        TellsTheLeaderOnly,
        KeepsWhatWasForgotten,
        LetsJoinWhatWasForgotten,
        KeepsWhatWasTakenOver,
        BringsBackWhatWasEvicted,
        KeepsErrands,
    ],
)
def test_a_planted_bug_in_the_cache_is_caught(mutant) -> None:
    hunt = settings(LAWS, max_examples=5000, phases=[Phase.generate], derandomize=True, database=None)
    machine = type("Machine", (CacheLaws,), {"kind": mutant})
    with pytest.raises((AssertionError, BaseExceptionGroup, KeyError, ValueError)):
        run_state_machine_as_test(machine, settings=hunt)
