"""How long a document may be used, clause by clause of RFC 9111 and 5861, and beside hishel's reading of them."""

import time
from datetime import UTC, datetime
from email.utils import formatdate

import pytest
from hypothesis import given, strategies as st

from asap_core.http.dates import parse_http_date
from asap_core.http.freshness import Freshness, FreshnessPolicy, freshness_of, parse_retry_after
from asap_core.http.validation import conditions, confirms, merged, relevant

POLICY = FreshnessPolicy()
WALL = 1_750_000_000.0
DATE = "Sun, 15 Jun 2025 15:06:40 GMT"


def fresh(*headers, ttl=None):
    return freshness_of(headers, policy=POLICY, wall=WALL, ttl=ttl)  # type: ignore[arg-type]


class TestFreshness:
    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ([], 300),
            ([("Cache-Control", "max-age=60")], 60),
            ([("cache-control", "public, MAX-AGE=60")], 60),
            ([("Cache-Control", 'max-age="60"')], 60),
            ([("Cache-Control", "max-age=60"), ("Age", "20")], 40),
            ([("Cache-Control", "max-age=60"), ("Age", "70")], 0),
            ([("Cache-Control", "max-age=60"), ("Age", "x")], 60),
            ([("Cache-Control", "max-age=60"), ("Age", "20 , 70")], 40),
            ([("Cache-Control", "max-age=60"), ("Age", "20"), ("Age", "70")], 40),
            ([("Cache-Control", "max-age=60"), ("Age", "-1")], 60),
            # A copy of two days in a cache by the way: what is left of its year is cut, not what it had.
            ([("Cache-Control", "max-age=31536000"), ("Age", "172800")], 86_400),
            ([("Age", "100")], 200),
            ([("Cache-Control", "max-age=99999999")], 86_400),
            ([("Cache-Control", "max-age=" + "9" * 400)], 86_400),
            ([("Cache-Control", "s-maxage=5")], 300),
            ([("Cache-Control", "max-age=0")], 0),
            ([("Cache-Control", "max-age=-5")], 0),
            ([("Cache-Control", "max-age=soon")], 0),
            ([("Cache-Control", "max-age")], 0),
            ([("Cache-Control", "max-age=5, max-age=6")], 0),
            ([("Cache-Control", "max-age=5"), ("Cache-Control", "max-age=6")], 0),
            ([("Cache-Control", "no-cache, max-age=60")], 0),
            ([("Cache-Control", 'no-cache="set-cookie, age", max-age=60')], 0),
            ([("Cache-Control", "max-age=60, must-revalidate, proxy-revalidate, immutable")], 60),
            ([("Cache-Control", ', ,\tmax-age="60" ,')], 60),
            ([("Cache-Control", "max-age=" + "0" * 40 + "60")], 60),
            ([("Cache-Control", "max-age=60"), ("Age", "0" * 40 + "20")], 40),
            ([("Cache-Control", 'x="no-cache, max-age=7", max-age=60')], 60),
            ([("Cache-Control", 'x="a\\"b", max-age=60')], 60),
            # What can't be read is stale, whatever else is said.
            ([("Cache-Control", "max-age=60;public")], 0),
            ([("Cache-Control", "max-age=60 public")], 0),
            ([("Cache-Control", 'max-age="60')], 0),
            ([("Cache-Control", "max-age=")], 0),
            # RFC 9111 §5.2 has no blanks around "=", and something behind it.
            ([("Cache-Control", "max-age =60")], 0),
            ([("Cache-Control", "max-age= 60")], 0),
            ([("Cache-Control", 'max-age = "60"')], 0),
            ([("Cache-Control", "max-age\t=60")], 0),
            ([("Cache-Control", "max-age=60, x =5")], 0),
            ([("Cache-Control", "x= 5, max-age=60")], 0),
            ([("Cache-Control", "x=, max-age=60")], 0),
            ([("Cache-Control", "=5, max-age=60")], 0),
            ([("Cache-Control", "x==5, max-age=60")], 0),
            ([("Cache-Control", "max-age='60'")], 0),
            ([("Cache-Control", 'max-age="60" 5')], 0),
            ([("Cache-Control", 'max-age=""')], 0),
            ([("Cache-Control", 'x="\x01", max-age=60')], 0),
            ([("Cache-Control", "max-age=٦٠")], 0),
            ([("Cache-Control", "max-age=60\xa0")], 0),
            ([("Cache-Control", "max-age=60\n")], 0),
            ([("Cache-Control", "mäx=5, max-age=60")], 0),
            ([("Cache-Control", "max-age=60, @")], 0),
            ([("Cache-Control", "@")], 0),
            ([("Cache-Control", "@"), ("Cache-Control", "max-age=60")], 0),
            ([("Cache-Control", "")], 300),
            ([("Last-Modified", DATE)], 300),
            ([("Expires", "Sun, 15 Jun 2025 15:07:40 GMT")], 60),
            ([("Expires", "Sun, 15 Jun 2025 15:07:40 GMT"), ("Date", "Sun, 15 Jun 2025 15:07:00 GMT")], 40),
            ([("Expires", "Sun, 15 Jun 2025 15:07:40 GMT"), ("Date", "nonsense")], 60),
            ([("Expires", "0")], 0),
            ([("Expires", "Sun, 15 Jun 2025 15:07:40 UTC")], 0),
            ([("Expires", "Sun, 15 Jun 2025 15:07:40 GMT\xa0")], 0),
            ([("Expires", "Fri, 31 Dec 9999 23:59:59 GMT")], 86_400),
            ([("Expires", "Sunday, 15-Jun-25 15:07:40 GMT")], 60),
            ([("Expires", "Sun, 15 Jun 2025 15:05:00 GMT")], 0),
            ([("Expires", "Sun, 15 Jun 2025 15:07:40 GMT"), ("Date", DATE), ("Date", DATE)], 60),
            ([("Expires", "Sun, 15 Jun 2025 15:07:40 GMT"), ("Age", "20")], 40),
            ([("Expires", "Sun, 15 Jun 2025 15:07:40 GMT"), ("Expires", "Sun, 15 Jun 2025 15:07:40 GMT")], 0),
            ([("Expires", "Sun, 15 Jun 2025 15:07:40 GMT"), ("Cache-Control", "max-age=5")], 5),
        ],
        ids=repr,
    )
    def test_how_long_it_is_good(self, headers, seconds) -> None:
        assert fresh(*headers).fresh_for == seconds

    def test_the_documents_own_word_counts_where_headers_are_silent(self) -> None:
        assert fresh(ttl=20).fresh_for == 20
        assert fresh(ttl=-20).fresh_for == 0
        assert fresh(("Cache-Control", "max-age=60"), ttl=20).fresh_for == 60

    @pytest.mark.parametrize(
        ("headers", "store"),
        [
            ([("Cache-Control", "no-store")], False),
            ([("Cache-Control", "max-age=60; No-Store")], False),
            ([("Cache-Control", "max-age =60, no-store")], False),
            ([("Vary", "*")], False),
            ([("Vary", "Accept, *")], False),
            ([("Vary", "Accept"), ("Vary", "*")], False),
            ([("Cache-Control", "no-cache")], True),
            ([("Vary", "Accept")], True),
            ([("Cache-Control", "private")], True),
        ],
    )
    def test_whether_it_is_kept(self, headers, store) -> None:
        assert fresh(*headers).store is store

    @pytest.mark.parametrize(
        ("value", "revalidate", "error"),
        [
            ("max-age=1", 0, 86_400),
            ("max-age=1, stale-while-revalidate=30", 30, 86_400),
            ("max-age=1, stale-while-revalidate=99999", 3600, 86_400),
            ("max-age=1, stale-if-error=60", 0, 60),
            ("max-age=1, stale-if-error=x", 0, 0),
            ("max-age=1, must-revalidate, stale-while-revalidate=30, stale-if-error=60", 0, 0),
            ("no-cache, stale-while-revalidate=30", 0, 0),
            ("max-age=1; must-revalidate", 0, 0),
            ("max-age=1, stale-while-revalidate =30, stale-if-error=60", 0, 0),
            ("max-age =1, must-revalidate", 0, 0),
            ("max-age=1, stale-while-revalidate=3, stale-while-revalidate=4", 0, 86_400),
            ("max-age=1, proxy-revalidate", 0, 86_400),
            ("max-age=1, stale-if-error=999999999", 0, 86_400),
        ],
    )
    def test_how_long_it_serves_when_stale(self, value, revalidate, error) -> None:
        found = fresh(("Cache-Control", value))
        assert (found.revalidate_for, found.error_for) == (revalidate, error)

    def test_validators_are_kept_if_they_can_be_sent_back(self) -> None:
        assert fresh(("ETag", '"x"'), ("Last-Modified", DATE)).etag == '"x"'
        for value in ("é", "", "x" * 2000, "a\nb"):
            assert fresh(("ETag", value)).etag is None
        assert fresh(("ETag", '"x"'), ("ETag", '"y"')).etag is None
        assert fresh(("ETag", ' "x" ')).etag == '"x"'
        assert fresh(("ETag", "x")).etag == "x"
        assert (fresh(("ETag", "x" * 1024)).etag, fresh(("ETag", "x" * 1025)).etag) == ("x" * 1024, None)

    def test_a_line_of_blanks_takes_no_time(self) -> None:
        # The square of its length would be a minute.
        assert fresh(("Cache-Control", "max-age=60" + " " * 60_000 + "@")).fresh_for == 0
        assert fresh(("Cache-Control", "," + " " * 60_000 + "@")).fresh_for == 0

    @given(st.lists(st.tuples(st.sampled_from(["Cache-Control", "Expires", "Age", "Date", "ETag", "Vary"]), st.text())))
    def test_any_headers_give_a_lifetime_within_policy(self, headers) -> None:
        found = fresh(*headers)
        assert 0 <= found.fresh_for <= POLICY.most
        assert 0 <= found.revalidate_for <= POLICY.stale_while_revalidate
        assert 0 <= found.error_for <= POLICY.stale_if_error

    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            (" 5 ", 5),
            ("9" * 30, 2**31),
            (DATE.ljust(80), 0),
            ("Sun, 15 Jun 2025 15:07:40 GMT", 60),
            (DATE, 0),
            ("Sun, 15 Jun 2025 15:07:40 UTC", None),
            ("Sun, 15 Jun 25 15:07:40 GMT", None),
            ("Sunday, 15-Jun-25 15:07:40 GMT", 60),
            ("5\xa0", None),
            ("x", None),
            ("1.5", None),
            ("-1", None),
        ],
    )
    def test_retry_after_is_seconds_or_a_date(self, text, seconds) -> None:
        assert parse_retry_after(text, wall=WALL) == seconds  # type: ignore[arg-type]


def read_date(text: str, wall: float = WALL):
    return parse_http_date(text, wall=wall)  # type: ignore[arg-type]


class TestDates:
    @pytest.mark.parametrize(
        "text",
        [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "Sun Nov 06 08:49:37 1994",
            # RFC 9111 §4.2: a cache "SHOULD match the field value case-insensitively".
            "SUN, 06 nOV 1994 08:49:37 gmt",
            # Whose day of the week it is decides nothing.
            "Mon, 06 Nov 1994 08:49:37 GMT",
        ],
    )
    def test_there_are_three_forms(self, text) -> None:
        assert read_date(text) == 784_111_777

    @pytest.mark.parametrize(
        "text",
        [
            *(
                f"Sun, 06 Nov 2094 08:49:37{zone}"
                for zone in ("", " UTC", " PST", " Z", " +0000", " GMT+1", "GMT", " ")
            ),
            "Sun, 06 Nov 94 08:49:37 GMT",
            "Sun, 06 Nov 094 08:49:37 GMT",
            "Sun, 06 Nov 12094 08:49:37 GMT",
            "Sun 06 Nov 2094 08:49:37 GMT",
            "06 Nov 2094 08:49:37 GMT",
            "Sun,06 Nov 2094 08:49:37 GMT",
            "Sunday, 06 Nov 2094 08:49:37 GMT",
            "Son, 06 Nov 2094 08:49:37 GMT",
            "Sun, 06 November 2094 08:49:37 GMT",
            "Sun, 06 Nov 2094 08:49:37 GMT or so",
            "Sun, 06 Nov 2094 08:49:37 GMT;",
            "Sun, 06 Nov 2094 08:49:37 GMT\n",
            "\xa0Sun, 06 Nov 2094 08:49:37 GMT",
            "Sun, 06  Nov 2094 08:49:37 GMT",
            "Sun,\t06 Nov 2094 08:49:37 GMT",
            "Sun, 6 Nov 2094 08:49:37 GMT",
            "Sun, 06 Nov 2094 8:49:37 GMT",
            "Sun, 06 Nov 2094 08:49 GMT",
            "Sun, 06 Nov 2094 08.49.37 GMT",
            "Sun, 06 Nov 2094 24:00:00 GMT",
            "Sun, 06 Nov 2094 08:60:00 GMT",
            "Sun, 06 Nov 2094 08:49:60 GMT",
            "Sun, 06 Nov 2094 08:49:37.5 GMT",
            "Sun, 00 Nov 2094 08:49:37 GMT",
            "Sun, 31 Nov 2094 08:49:37 GMT",
            "Thu, 29 Feb 2093 08:49:37 GMT",
            "Sun, 06 Nov 0000 08:49:37 GMT",
            "Sun, 0٦ Nov 2094 08:49:37 GMT",
            "ſun, 06 Nov 2094 08:49:37 GMT",
            "Sun, 06-Nov-94 08:49:37 GMT",
            "Sunday, 06-Nov-2094 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 UTC",
            "Sunday, 6-Nov-94 08:49:37 GMT",
            "Sunday, 29-Feb-93 08:49:37 GMT",
            "Sun Nov 6 08:49:37 2094",
            "Sun Nov  6 08:49:37 2094 GMT",
            "Sun Nov  6 08:49:37 94",
            "Sun, Nov  6 08:49:37 2094",
            "2094-11-06T08:49:37Z",
            "0",
            "-1",
            "",
        ],
    )
    def test_nothing_else_is_one(self, text) -> None:
        assert read_date(text) is None
        assert fresh(("Expires", text)).fresh_for == 0

    @pytest.mark.parametrize(
        ("text", "date"),
        [
            ("Sunday, 15-Jun-75 15:06:40 GMT", "Sat, 15 Jun 2075 15:06:40 GMT"),
            ("Sunday, 15-Jun-75 15:06:41 GMT", "Sun, 15 Jun 1975 15:06:41 GMT"),
            ("Sunday, 15-Jun-76 15:06:40 GMT", "Tue, 15 Jun 1976 15:06:40 GMT"),
            ("Sunday, 15-Jun-74 15:06:41 GMT", "Fri, 15 Jun 2074 15:06:41 GMT"),
            ("Sunday, 15-Jun-00 15:06:40 GMT", "Thu, 15 Jun 2000 15:06:40 GMT"),
        ],
    )
    def test_a_year_of_two_digits_is_at_most_50_years_ahead(self, text, date) -> None:
        assert read_date(text) == read_date(date)

    def test_and_may_be_of_the_next_century(self) -> None:
        late = read_date("Thu, 01 Jan 2099 00:00:00 GMT")
        assert read_date("Sunday, 15-Jun-05 15:06:40 GMT", late) == read_date("Mon, 15 Jun 2105 15:06:40 GMT")

    def test_a_leap_second_is_the_second_before_it(self) -> None:
        assert read_date("Sat, 31 Dec 2016 23:59:60 GMT") == read_date("Sat, 31 Dec 2016 23:59:59 GMT") == 1_483_228_799

    @pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
    def test_a_date_is_in_utc_wherever_this_machine_is(self, monkeypatch, zone) -> None:
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        try:
            assert read_date("Sun Nov  6 08:49:37 1994") == 784_111_777
        finally:
            monkeypatch.undo()
            time.tzset()

    @given(st.text())
    def test_any_text_is_a_date_or_none(self, text) -> None:
        assert read_date(text) is None or isinstance(read_date(text), float)

    @given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9999, 12, 31)))  # noqa: DTZ001 - any
    def test_what_is_written_is_read(self, moment: datetime) -> None:
        seconds = int(moment.replace(tzinfo=UTC).timestamp())
        assert read_date(formatdate(seconds, usegmt=True)) == seconds
        assert read_date(time.asctime(time.gmtime(seconds))) == seconds


KEPT = fresh(("ETag", '"e"'), ("Last-Modified", DATE))


class TestPolicy:
    def test_a_bound_may_be_nothing_and_not_less(self) -> None:
        bounds = ("default", "most", "stale_while_revalidate", "stale_if_error")
        for bound in bounds:
            assert getattr(FreshnessPolicy(**{bound: 0.0}), bound) == 0.0
            with pytest.raises(ValueError, match=bound):
                FreshnessPolicy(**{bound: -1.0})
        assert [getattr(POLICY, bound) for bound in bounds] == [300.0, 86_400.0, 3_600.0, 86_400.0]

    def test_what_is_stale_serves_nobody_unless_that_is_said(self) -> None:
        found = Freshness(store=True, fresh_for=1.0)
        assert (found.revalidate_for, found.error_for, found.error_told) == (0.0, 0.0, False)


class TestValidation:
    def test_what_is_kept_is_asked_about_with_all_that_is_known_of_it(self) -> None:
        assert conditions(KEPT) == (("if-none-match", '"e"'), ("if-modified-since", DATE))
        assert conditions(fresh(("ETag", '"e"'))) == (("if-none-match", '"e"'),)
        assert conditions(fresh(("Last-Modified", DATE))) == (("if-modified-since", DATE),)
        assert conditions(fresh()) == conditions(None) == ()

    def test_fields_that_say_nothing_of_lifetimes_are_not_kept(self) -> None:
        headers = [("ETag", '"e"'), ("Set-Cookie", "secret"), ("AGE", "1"), ("Content-Type", "x")]
        assert relevant(headers) == (("etag", '"e"'), ("age", "1"))

    def test_a_304_replaces_what_it_repeats_and_what_was_of_one_response(self) -> None:
        stored = relevant([("cache-control", "max-age=1"), ("etag", '"e"'), ("age", "5"), ("date", DATE)])
        assert merged(stored, [("Cache-Control", "max-age=2"), ("Server", "x")]) == (
            ("etag", '"e"'),
            ("cache-control", "max-age=2"),
        )
        assert merged(stored, [("age", "7")]) == (*stored[:2], ("age", "7"))

    @pytest.mark.parametrize(
        ("said", "same"),
        [
            ([], True),
            ([("ETag", '"e"')], True),
            ([("ETag", 'W/"e"')], True),
            ([("ETag", ' "e" ')], True),
            ([("ETag", '"other"')], False),
            ([("Last-Modified", DATE)], True),
            ([("Last-Modified", "Sun, 15 Jun 2025 15:00:00 GMT")], False),
            # The stronger validator decides.
            ([("ETag", '"e"'), ("Last-Modified", "Sun, 15 Jun 2025 15:00:00 GMT")], True),
        ],
    )
    def test_a_304_confirms_its_own_document_only(self, said, same) -> None:
        assert confirms(said, KEPT) is same

    def test_and_none_by_a_validator_that_is_not_known_of_it(self) -> None:
        assert not confirms([("ETag", '"e"')], fresh())
        assert not confirms([("Last-Modified", DATE)], fresh())
        assert confirms([], fresh())
