"""Conditional requests and what a 304 says of a cached document, clause by clause of RFC 9111."""

import pytest

from asap_core.http.freshness import FreshnessPolicy, freshness_of
from asap_core.http.validation import conditions, confirms, merged, relevant

POLICY = FreshnessPolicy()
WALL = 1_750_000_000.0
DATE = "Sun, 15 Jun 2025 15:06:40 GMT"


def fresh(*headers, ttl=None):
    return freshness_of(headers, policy=POLICY, wall=WALL, ttl=ttl)  # type: ignore[arg-type]


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

    def test_and_none_by_a_validator_that_is_not_known_of_it(self) -> None:
        assert not confirms([("ETag", '"e"')], fresh())
        assert not confirms([("Last-Modified", DATE)], fresh())
        assert confirms([], fresh())
