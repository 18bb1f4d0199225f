"""Law: what stands in a quoted-string separates nothing, and what can't be read is never guessed at (RFC 9110 §5.6)."""

import time
from datetime import UTC, datetime
from email.utils import formatdate

import pytest
from hypothesis import given, strategies as st

from asap_core.clock import WallTime
from asap_core.http.caching import FreshnessPolicy, freshness_of
from asap_core.http.fields import CHALLENGE_SCHEME, challenges, last_members, members, parameters, parse_http_date

words = st.text("abcXYZ019!#$%&'*+.^_`|~-", min_size=1, max_size=8)
texts = st.text(st.characters(min_codepoint=32, max_codepoint=126) | st.sampled_from('\t\\",;= \xff'), max_size=12)
values = words | texts
anything = st.text(st.characters(max_codepoint=255)) | st.text('",;= \\ab', max_size=40)


def written(value):
    """A value as a token if it is one, else as a quoted-string."""
    if value.isascii() and value and all(char.isalnum() or char in "!#$%&'*+.^_`|~-" for char in value):
        return value
    return '"' + value.replace("\\", r"\\").replace('"', r"\"") + '"'


pairs = st.dictionaries(words.map(str.lower), values, min_size=1, max_size=4)


def joined(pairs, separator):
    return separator.join(f"{name}={written(value)}" for name, value in pairs.items())


@given(st.lists(pairs, min_size=1, max_size=4), st.sampled_from([",", ", ", " ,\t"]))
def test_members_are_read_as_they_were_written(listed, comma) -> None:
    read = last_members(comma.join(joined(each, "; ") for each in listed))
    assert [parameters(each or "") for each in read] == listed[::-1]
    assert [parameters(each) for each in members(comma.join(joined(each, "; ") for each in listed))] == listed


@given(anything, pairs)
def test_text_further_left_does_not_change_how_a_member_is_read(left, member) -> None:
    assert next(last_members(f"{left},{joined(member, ';')}")) == joined(member, ";").strip()


@given(anything)
def test_any_text_gets_an_answer(text) -> None:
    read = list(last_members(text))
    # Every member is there once, whatever separates them; where the reading ended, something is left.
    found = [each for each in read if each is not None]
    assert len(found) <= text.count(",") + 1
    assert (None in read) == (read[-1] is None)
    assert members(text) == ([] if None in read else found[::-1])
    parameters(text)
    assert all(CHALLENGE_SCHEME in each for each in challenges(text))


@pytest.mark.parametrize("piece", ['"', '\\"', "a", " ", ",", ";", "a=", 'a="', "\\", "a ", '"\\', "a=b "])
def test_long_texts_take_linear_time(piece) -> None:
    text = piece * 100_000
    assert len(list(last_members(text))) <= len(text) + 1
    members(text)
    parameters(text)
    assert len(challenges(text)) <= len(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        (";", {}),
        ("a=b", {"a": "b"}),
        ("A=b;", {"a": "b"}),
        ('a="b;c=d"', {"a": "b;c=d"}),
        (r'a="\"\\"', {"a": '"\\'}),
        ("a=", {"a": ""}),
        ('a=""', {"a": ""}),
        ("a", None),
        ("a=b c", None),
        ("a=b;a=b", None),
        ("a=b;A=c", None),
        ('a="b', None),
        ('a="b"c', None),
        ('a=b"c"', None),
        ("a=b,c=d", None),
        ("a =b", None),
        ("=b", None),
        ('a="\n"', None),
    ],
)
def test_parameters_are_read(text, found) -> None:
    assert parameters(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("Bearer", [("bearer", {})]),
        ('Bearer realm="a, DPoP error=x", error=y', [("bearer", {"realm": "a, DPoP error=x", "error": "y"})]),
        ('Basic realm="x", DPoP algs="ES256"', [("basic", {"realm": "x"}), ("dpop", {"algs": "ES256"})]),
        ("Negotiate YWJj==, DPoP", [("negotiate", {}), ("dpop", {})]),
        ("DPoP a = b ,c= d", [("dpop", {"a": "b", "c": "d"})]),
        ('DPoP a="b" c="d"', [("dpop", {"a": "b", "c": "d"})]),  # without the comma, as some write it
        ("DPoP a=b, A=c", [("dpop", {"a": "b"})]),
        (",, DPoP ,, a=b,", [("dpop", {"a": "b"})]),
        ("a=b", []),
        ('DPoP a="b, c=d', [("dpop", {})]),
        ('DPoP a="b"c=d', [("dpop", {})]),
    ],
)
def test_challenges_are_read(text, found) -> None:
    assert challenges(text) == [{CHALLENGE_SCHEME: scheme, **given_} for scheme, given_ in found]


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
