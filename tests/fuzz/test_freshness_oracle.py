"""Our reading of RFC 9111 beside hishel's, whose states are free of I/O, over random heads of responses.

hishel is asked as a private cache that serves nothing stale. Where the two disagree, ours is the stricter, and for one
of the reasons listed in `Reason`.
"""

import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from types import SimpleNamespace
from typing import Any

import hishel
import pytest
from hishel._core import _spec
from hypothesis import Phase, assume, example, find, given, settings, strategies as st

from asap_core.clock import WallTime
from asap_core.http.caching import Freshness, FreshnessPolicy, HeaderPairs, confirms, freshness_of, merged, relevant

NOW = 1_750_000_000
DATE = "Sun, 15 Jun 2025 15:06:40 GMT"
LATER = "Sun, 15 Jun 2025 15:08:20 GMT"  # 100 s
EARLIER = "Sun, 15 Jun 2025 15:05:00 GMT"
# Long lifetimes are cut by policy; here none is, so that what the headers say is compared.
POLICY = FreshnessPolicy(default=0.0, most=2.0**40)
OPTIONS = hishel.CacheOptions(shared=False, supported_methods=["GET"], allow_stale=False)
ASKED = hishel.Request("GET", "https://a.example/m.json")


# Any example will do, not only the simplest.
HUNT = settings(max_examples=10_000, phases=[Phase.generate], derandomize=True, database=None)


class Reason(Enum):
    """Why ours may be stricter than hishel. Each is allowed by the clause it names."""

    REPEATED = "§4.2.1: several values of a directive are stale; hishel takes the last"
    MALFORMED = "§4.2.1: what can't be read is stale; hishel passes over it, and reads numbers as Python's int does"
    DATE = "RFC 9110 §5.6.7: a date has one of three forms, else it's over; hishel reads dates as mail does"
    NAMED_FIELDS = "§5.2.2.4: no-cache with field names is taken for no-cache without; hishel leaves the fields out"
    ARGUMENT = "§5.2.2.5, §5.2.2.2: a directive counts even with an argument it doesn't have; hishel passes over it"
    NO_HEURISTICS = "§4.2.2: heuristics are a MAY; hishel takes a tenth of the time since Last-Modified"


def response(headers: HeaderPairs, status: int = 200) -> hishel.Response:
    fields: dict[str, list[str]] = {}
    for name, value in headers:
        fields.setdefault(name.lower(), []).append(value)
    return hishel.Response(status, hishel.Headers(fields))


@contextmanager
def at(now: float) -> Iterator[None]:
    """The time as hishel sees it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_spec, "time", SimpleNamespace(time=lambda: now))
        yield


def stores(headers: HeaderPairs) -> bool:
    """Whether hishel would keep a response, and ever use it again."""
    after = hishel.CacheMiss(OPTIONS, ASKED).next(response(headers))
    assert isinstance(after, hishel.StoreAndUse | hishel.CouldNotBeStored)
    # What varies by everything it keeps, and never uses.
    return isinstance(after, hishel.StoreAndUse) and not any(n == "vary" and "*" in value for n, value in headers)


def is_fresh(headers: HeaderPairs, after: float) -> bool:
    """Whether hishel would use a response received now, `after` seconds from now, without asking."""
    with at(NOW + after):
        entry = hishel.Entry(uuid.UUID(int=0), ASKED, response(headers))
        state = hishel.IdleClient(OPTIONS).next(ASKED, [entry])
    assert isinstance(state, hishel.FromCache | hishel.NeedRevalidation)
    return isinstance(state, hishel.FromCache)


def ours(headers: HeaderPairs) -> Freshness:
    return freshness_of(headers, policy=POLICY, wall=WallTime(NOW))


# --- random heads -----------------------------------------------------------------------------------------------------

NUMBERS = st.integers(0, 300).map(str)
ODD_NUMBERS = st.sampled_from(["", " 7", "-1", "+5", "1.5", "1_0", "٣", "soon", "99999999999", '"50', "5;6"])
NAMES = st.sampled_from(["max-age", "MAX-AGE", "s-maxage", "stale-while-revalidate", "stale-if-error"])
BARE = st.sampled_from(["no-store", "No-Store", "no-cache", "must-revalidate", "proxy-revalidate", "private", "public"])
COUNTED = st.builds("{}={}".format, NAMES, NUMBERS | NUMBERS.map('"{}"'.format))
DIRECTIVE = BARE | COUNTED | st.sampled_from(["immutable", "x=y", 'x="a, max-age=7"', ""])
ODD_DIRECTIVE = (
    st.builds("{}={}".format, NAMES, ODD_NUMBERS)
    | st.sampled_from(['no-cache="etag, date"', 'private="x"', "no-store=1", "no-cache=x", "max-age", "max-age 5", "@"])
    | NAMES
)
DATES = st.sampled_from([DATE, LATER, EARLIER])
NO_DATES = st.sampled_from(["0", "-1", "", "now", "Sun, 99 Foo 2025 15:07:40 GMT"])
# Which hishel takes for dates.
MAIL_DATES = st.sampled_from(
    ["Sun, 15 Jun 2025 15:08:20 UTC", "Sun, 15 Jun 25 15:08:20 GMT", "15 Jun 2025 15:08:20 GMT", f"{LATER} (later)"]
)
ODD_DATES = NO_DATES | MAIL_DATES
VARY = st.sampled_from(["*", "accept", "accept, *", "Accept-Encoding"])
AGE = st.integers(0, 200).map(str)


def lines(directive: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, str]]:
    return st.tuples(st.just("cache-control"), st.lists(directive, max_size=4).map(", ".join))


def heads(*fields: st.SearchStrategy[tuple[str, str]]) -> st.SearchStrategy[Any]:
    return st.lists(st.one_of(*fields), max_size=4)


WELL_FORMED = heads(
    lines(DIRECTIVE),
    st.tuples(st.just("expires"), DATES),
    st.tuples(st.just("vary"), VARY),
    st.tuples(st.just("age"), AGE),
    st.tuples(st.just("etag"), st.just('"e"')),
)
ANY = heads(
    lines(DIRECTIVE | ODD_DIRECTIVE),
    st.tuples(st.just("expires"), DATES | ODD_DATES),
    st.tuples(st.just("vary"), VARY),
    st.tuples(st.just("last-modified"), DATES | ODD_DATES),
)


def reasons(headers: HeaderPairs) -> set[Reason]:
    """Which of the reasons there are in this head, found without the code under test."""
    told = ",".join(value for name, value in headers if name == "cache-control").lower()
    text = told.replace(" ", "")
    members = [member.partition("=") for member in text.replace('"a,max-age=7"', "a").split(",") if member]
    names = [name for name, _, _ in members]
    counted = [(name, value.strip('"')) for name, _, value in members if name == "max-age"]
    expires = [value for name, value in headers if name == "expires"]
    found = set()
    if names.count("max-age") > 1 or len(expires) > 1:
        found.add(Reason.REPEATED)
    if any(not (value.isascii() and value.isdigit()) for _, value in counted) or not text.isascii():
        found.add(Reason.MALFORMED)
    if any(mark in text for mark in ("@", ";", "age5")) or text.count('"') % 2:
        found.add(Reason.MALFORMED)
    if "= " in told or any(equals and not value for _, equals, value in members):
        found.add(Reason.MALFORMED)
    if any(re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT", value) is None for value in expires):
        found.add(Reason.DATE)
    if any(name == "no-cache" and equals for name, equals, _ in members):
        found.add(Reason.NAMED_FIELDS)
    if any(name in {"no-store", "must-revalidate"} and equals for name, equals, _ in members):
        found.add(Reason.ARGUMENT)
    if "max-age" not in names and not expires:
        found.add(Reason.NO_HEURISTICS)
    return found


# --- the laws ---------------------------------------------------------------------------------------------------------


def aged(headers: HeaderPairs) -> int:
    # hishel reads no Age, and takes the time since Date for it: a copy of age 20 is one received 20 s ago.
    return next((int(value) for name, value in headers if name == "age"), 0)


def agree(read: Callable[[HeaderPairs], Freshness], headers: HeaderPairs, after: int) -> bool:
    found, dated = read(headers), [*headers, ("date", DATE)]
    if found.store is not stores(dated):
        return False
    return not found.store or (after < found.fresh_for) is is_fresh(dated, after + aged(headers))


@given(headers=WELL_FORMED, after=st.integers(0, 300))
@example(headers=[("cache-control", "max-age=60"), ("age", "20")], after=39)
@example(headers=[("cache-control", "max-age=60"), ("age", "20")], after=40)
def test_both_readers_agree_on_well_formed_headers(headers, after: int) -> None:
    assume(not reasons(headers))
    assert agree(ours, headers, after)


def replacing(old: str, new: str) -> Callable[[HeaderPairs], Freshness]:
    return lambda headers: ours([(name, value.lower().replace(old, new)) for name, value in headers])


def without(field: str) -> Callable[[HeaderPairs], Freshness]:
    return lambda headers: ours([(name, value) for name, value in headers if name != field])


WRONG = {
    "the shared cache's lifetime": replacing("s-maxage", "max-age"),
    "no-store passed over": replacing("no-store", "x"),
    "no-cache passed over": replacing("no-cache", "x"),
    "the private taken for not to be kept": replacing("private", "no-store"),
    "quoted numbers passed over": replacing('"', "-"),
    "age not counted": without("age"),
    "expires passed over": without("expires"),
    "vary passed over": without("vary"),
}


@pytest.mark.planted
@pytest.mark.long
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_reading_is_caught(wrong: str) -> None:
    cases = st.tuples(WELL_FORMED.filter(lambda headers: not reasons(headers)), st.integers(0, 300))
    find(cases, lambda case: not agree(WRONG[wrong], *case), settings=HUNT)


@given(headers=ANY, after=st.integers(0, 300))
def test_on_other_headers_our_reader_is_stricter_for_a_listed_reason(headers, after: int) -> None:
    read, dated = ours(headers), [*headers, ("date", DATE)]
    fresh = stores(dated) and is_fresh(dated, after)
    used = read.store and after < read.fresh_for
    assert fresh or not used, "used what hishel wouldn't"
    if fresh and not used:
        assert reasons(headers), "didn't use what hishel would, for no reason"
    if stores(dated) and not read.store:
        assert reasons(headers) & {Reason.ARGUMENT, Reason.MALFORMED}


@pytest.mark.long
@pytest.mark.parametrize("reason", Reason)
def test_each_listed_reason_makes_a_difference(reason: Reason) -> None:
    def differs(headers) -> bool:
        dated = [*headers, ("date", DATE)]
        mine = ours(headers)
        return reasons(headers) == {reason} and is_fresh(dated, 0) and not (mine.store and mine.fresh_for > 0)

    find(ANY, differs, settings=HUNT)


@given(expires=DATES | NO_DATES, date=DATES | NO_DATES | st.none())
def test_expires_counts_from_the_servers_own_date(expires: str, date: str | None) -> None:
    headers = [("expires", expires), *([] if date is None else [("date", date)])]
    with at(NOW):
        theirs = _spec.get_freshness_lifetime(response(headers), False)
    assert theirs is not None
    # Theirs is negative for what's over; whether a Date in the past makes the response as old (§4.2.3) is left out.
    assert ours(headers).fresh_for == max(theirs, 0)


VALIDATORS = st.sampled_from(
    [[], [("etag", '"a"')], [("etag", '"b"')], [("last-modified", DATE)], [("last-modified", EARLIER)]]
)
UPDATES = heads(lines(BARE | COUNTED), st.tuples(st.just("expires"), DATES))


@given(kept=UPDATES, validators=VALIDATORS, update=UPDATES, said=VALIDATORS)
def test_a_304_refreshes_the_same_fields_and_only_its_own_document(kept, validators, update, said) -> None:
    stored, answer = [*kept, *validators, ("date", EARLIER)], [*update, *said, ("date", DATE)]
    entry = hishel.Entry(uuid.UUID(int=0), ASKED, response(stored))
    state: Any = hishel.NeedRevalidation(OPTIONS, ASKED, ASKED, [entry]).next(response(answer, 304))
    if isinstance(state, hishel.InvalidateEntries):
        state = state.next()
    same = confirms(answer, ours(stored))
    # Without a validator in it a 304 confirms the only document there is, in both.
    assert same is isinstance(state, hishel.NeedToBeUpdated)
    if same:
        theirs = state.updating_entries[0].response.headers
        refreshed = ours(merged(relevant(stored), answer))
        assert refreshed == ours([(name, value) for name in theirs for value in theirs.get_list(name)])
