"""How long a document may be used, how it's revalidated, what a 304 says of it: by the clauses of RFC 9111 and 5861."""

import pytest
from hypothesis import given, strategies as st

from asap_core.http.caching import (
    Freshness,
    FreshnessPolicy,
    conditions,
    confirms,
    freshness_of,
    merged,
    parse_retry_after,
    relevant,
)

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
    def test_headers_decide_the_lifetime(self, headers, seconds) -> None:
        assert fresh(*headers).fresh_for == seconds

    def test_the_ttl_of_a_document_counts_if_headers_say_nothing(self) -> None:
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
    def test_headers_decide_if_a_document_is_kept(self, headers, store) -> None:
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
    def test_headers_decide_how_long_a_stale_document_serves(self, value, revalidate, error) -> None:
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

    def test_a_line_of_blanks_is_read_in_linear_time(self) -> None:
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


class TestPolicy:
    def test_bounds_may_be_zero_but_not_negative(self) -> None:
        bounds = ("default", "most", "stale_while_revalidate", "stale_if_error")
        for bound in bounds:
            assert getattr(FreshnessPolicy(**{bound: 0.0}), bound) == 0.0
            with pytest.raises(ValueError, match=bound):
                FreshnessPolicy(**{bound: -1.0})
        assert [getattr(POLICY, bound) for bound in bounds] == [300.0, 86_400.0, 3_600.0, 86_400.0]

    def test_stale_documents_are_not_used_unless_the_server_allows_it(self) -> None:
        found = Freshness(store=True, fresh_for=1.0)
        assert (found.revalidate_for, found.error_for, found.error_told) == (0.0, 0.0, False)


KEPT = fresh(("ETag", '"e"'), ("Last-Modified", DATE))


class TestValidation:
    def test_a_cached_document_is_revalidated_with_all_its_validators(self) -> None:
        assert conditions(KEPT) == (("if-none-match", '"e"'), ("if-modified-since", DATE))
        assert conditions(fresh(("ETag", '"e"'))) == (("if-none-match", '"e"'),)
        assert conditions(fresh(("Last-Modified", DATE))) == (("if-modified-since", DATE),)
        assert conditions(fresh()) == conditions(None) == ()

    def test_fields_without_meaning_for_lifetimes_are_not_cached(self) -> None:
        headers = [("ETag", '"e"'), ("Set-Cookie", "secret"), ("AGE", "1"), ("Content-Type", "x")]
        assert relevant(headers) == (("etag", '"e"'), ("age", "1"))

    def test_a_304_replaces_repeated_fields_and_those_of_one_response(self) -> None:
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

    def test_a_304_with_an_unknown_validator_confirms_nothing(self) -> None:
        assert not confirms([("ETag", '"e"')], fresh())
        assert not confirms([("Last-Modified", DATE)], fresh())
        assert confirms([], fresh())
