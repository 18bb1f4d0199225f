"""HTTP-dates in their three forms, and nothing else (RFC 9110 §5.6.7)."""

import time
from datetime import UTC, datetime
from email.utils import formatdate

import pytest
from hypothesis import given, strategies as st

from asap_core.clock import WallTime
from asap_core.http.caching import FreshnessPolicy, freshness_of
from asap_core.http.dates import parse_http_date

WALL = 1_750_000_000.0


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
    def test_three_forms_of_dates_are_read(self, text) -> None:
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
    def test_no_other_text_is_a_date(self, text) -> None:
        assert read_date(text) is None
        headers = (("Expires", text),)
        assert freshness_of(headers, policy=FreshnessPolicy(), wall=WallTime(WALL)).fresh_for == 0

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

    def test_a_two_digit_year_may_be_in_the_next_century(self) -> None:
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
    def test_written_dates_are_read_back(self, moment: datetime) -> None:
        seconds = int(moment.replace(tzinfo=UTC).timestamp())
        assert read_date(formatdate(seconds, usegmt=True)) == seconds
        assert read_date(time.asctime(time.gmtime(seconds))) == seconds
