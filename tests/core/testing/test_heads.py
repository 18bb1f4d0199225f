"""Heads, valid and nearly valid: our readers refuse exactly those that break a rule, with its status, however cut."""

from collections.abc import Iterable
from functools import cache

import pytest
from hypothesis import given, strategies as st

from asap_core.http.head import BadHead, Head, HeadReader, judge, read_plain_head
from asap_core.http.messages import collect
from asap_core.testing import cuts, heads, nearly_valid_heads
from asap_core.testing.head_rules import HEAD_RULES
from tests.core.testing.measured import assert_even, examples_of


def status_of(pieces: Iterable[bytes]) -> int | None:
    """The status of the refusal; None if the head is read."""
    reader = HeadReader(max_size=4_096, max_fields=20)
    found: Head | BadHead | None = None
    for piece in pieces:
        found = reader.feed(piece)
        if found is not None:
            break
    assert found is not None, "it waits for more"
    request = found.request(peer="192.0.2.1") if isinstance(found, Head) else found
    if isinstance(request, BadHead):
        return request.status
    judged = judge(request.method, request.target, collect(request.headers))
    return judged.status if isinstance(judged, BadHead) else None


def whole_and_cut(data: bytes) -> st.SearchStrategy[tuple[bytes, tuple[bytes, ...]]]:
    return st.tuples(st.just(data), cuts(data))


@given(heads().flatmap(whole_and_cut))
def test_a_valid_head_is_read_however_it_is_cut(drawn) -> None:
    data, pieces = drawn
    assert status_of([data]) is status_of(pieces) is None


# What the readers leave to their drivers; `tests/adapters/server/test_nearly_valid_heads.py` tries them all.
BY_DRIVERS = {"a request in HTTP/1.1 has a Host"}
# Made once for each rule: a strategy that is made again for each example takes twice as long.
broken_heads = cache(nearly_valid_heads)


@pytest.mark.parametrize("rule", sorted(HEAD_RULES.keys() - BY_DRIVERS))
@given(st.data())
def test_a_head_that_breaks_a_rule_is_refused_however_it_is_cut(rule, data) -> None:
    drawn = data.draw(broken_heads(rule))
    assert drawn.rule == rule
    assert status_of([drawn.mended]) is None
    assert status_of([drawn.data]) == drawn.status
    assert status_of(data.draw(cuts(drawn.data))) == drawn.status
    assert read_plain_head(drawn.data, max_size=4_096, max_fields=20) is None


def test_a_rule_that_is_unknown_is_refused() -> None:
    with pytest.raises(KeyError):
        nearly_valid_heads("no such rule")


def test_every_rule_has_its_clause_and_the_status_of_a_refusal() -> None:
    for rule in HEAD_RULES.values():
        assert rule.source.startswith("RFC ")
        assert rule.status in {400, 501, 505}


def test_the_rules_are_drawn_evenly() -> None:
    assert_even((each.rule for each in examples_of(nearly_valid_heads())), HEAD_RULES)


def test_half_of_the_valid_heads_are_those_that_most_clients_send() -> None:
    """The others are for the general reader: other targets, HTTP/1.0, chunked bodies."""
    drawn = examples_of(heads())
    plain = sum(read_plain_head(each, max_size=4_096, max_fields=20) is not None for each in drawn)
    assert 0.2 * len(drawn) <= plain <= 0.8 * len(drawn)
    assert len({*drawn}) >= 0.6 * len(drawn)
