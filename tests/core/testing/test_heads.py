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


def refusal_of(pieces: Iterable[bytes]) -> BadHead | None:
    """How the head is refused; None if it's read."""
    reader = HeadReader(max_size=4_096, max_fields=20)
    found: Head | BadHead | None = None
    for piece in pieces:
        found = reader.feed(piece)
        if found is not None:
            break
    assert found is not None, "it waits for more"
    request = found.request(peer="192.0.2.1") if isinstance(found, Head) else found
    if isinstance(request, BadHead):
        return request
    judged = judge(request.method, request.target, collect(request.headers))
    return judged if isinstance(judged, BadHead) else None


def whole_and_cut(data: bytes) -> st.SearchStrategy[tuple[bytes, tuple[bytes, ...]]]:
    return st.tuples(st.just(data), cuts(data))


@given(heads().flatmap(whole_and_cut))
def test_a_valid_head_is_read_however_it_is_cut(drawn) -> None:
    data, pieces = drawn
    assert refusal_of([data]) is refusal_of(pieces) is None


# Made once for each rule: a strategy that is made again for each example takes twice as long.
broken_heads = cache(nearly_valid_heads)
REQUEST, LINE, TARGET = (
    "an HTTP/1.1 request",
    "a request line of method, target and version",
    "a request target that is",
)
HOST, LENGTH, FRAMING = "one Host", "one Content-Length, of digits", "either Content-Length or"
ENDS = "lines that end in CR LF, without control characters"
# How the refusal for each rule begins: a head that broke another rule too could be refused for that one.
REASONS = {
    "a request begins with its method": REQUEST, "a method is a token": REQUEST, "a field has a colon": REQUEST,
    "a field's name is a token": REQUEST, "a request line has three words": LINE, "one space divides the words": LINE,
    "the version has two numbers": LINE, "the version is known": "HTTP/1.1 or HTTP/1.0",
    "the target has one of four forms": TARGET, "a target has no fragment": TARGET, "a target has no user": TARGET,
    "a target has characters of a URI only": TARGET, "a line ends in CR LF, not in LF": ENDS,
    "a line ends in CR LF, not in CR": ENDS, "a head has no control characters": ENDS,
    "a field stays on one line": "header fields on one line",
    "no blank precedes the colon": "header names without whitespace", "a request has one Host": HOST,
    "a request in HTTP/1.1 has a Host": HOST,
    "Host is a name or an address": HOST, "Content-Length has digits only": LENGTH,
    "there is one Content-Length": LENGTH, "there is one framing": FRAMING, "HTTP/1.0 has no transfer coding": FRAMING,
    "the transfer coding is chunked": "no Transfer-Encoding but chunked",
}  # fmt: skip


@pytest.mark.parametrize("rule", sorted(HEAD_RULES))
@given(st.data())
def test_a_head_that_breaks_a_rule_is_refused_however_it_is_cut(rule, data) -> None:
    drawn = data.draw(broken_heads(rule))
    assert drawn.rule == rule
    assert refusal_of([drawn.mended]) is None
    for pieces in ([drawn.data], data.draw(cuts(drawn.data))):
        refusal = refusal_of(pieces)
        assert refusal is not None
        assert refusal.status == drawn.status
        assert refusal.expected.startswith(REASONS[rule])
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
