"""Heads by another reader: what ours accepts, h11 accepts and reads the same, with the same body and the same end.

`python -m tests.fuzz head SECONDS` searches longer, guided by coverage.
"""

import re

import attrs
import pytest
from hypothesis import given, strategies as st

from tests.core.http.test_plain_head import almost_heads
from tests.fuzz import head_fuzzer
from tests.fuzz.head_fuzzer import Reason, by_ours, check, fuzz, general


@given(almost_heads() | st.binary(max_size=100), st.integers(0, 100))
def test_a_head_that_ours_accepts_means_the_same_to_h11(data, cut) -> None:
    """And however it's divided. One that only h11 accepts has a named reason."""
    check(data, cut)


def test_a_short_search_finds_no_difference() -> None:
    number, kept = fuzz(until=lambda number: number == 1_000, seed=1)
    assert number == 1_000
    assert kept > 50


@pytest.mark.planted
@pytest.mark.parametrize(
    "defect",
    [
        {"method": "GET"}, {"target": "/"}, {"headers": ()}, {"length": 1}, {"stays_open": True}, {"end": 20},
    ],
)  # fmt: skip
def test_a_short_search_finds_a_reader_that_differs(monkeypatch, defect) -> None:
    def wrong(data: bytes):
        plain = by_ours(data)
        return None if plain is None else attrs.evolve(plain, **defect)

    monkeypatch.setattr(head_fuzzer, "by_ours", wrong)
    with pytest.raises(AssertionError):
        fuzz(until=lambda number: number == 5_000, seed=1)


GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
EXAMPLES = {
    Reason.VERSION: b"GET / HTTP/1.0\r\n\r\n",
    Reason.CONNECT: b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    Reason.TARGET: b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    Reason.EMPTY_LINE: b"\r\n" + GET + b"\r\n",
    Reason.TRANSFER_CODING: GET + b"Transfer-Encoding: chunked\r\n\r\n",
    Reason.EXPECT: GET + b"Expect: 100-continue\r\n\r\n",
    Reason.UPGRADE: GET + b"Upgrade: h2c\r\n\r\n",
    Reason.CONNECTION: GET + b"Connection: close, x\r\n\r\n",
    Reason.LENGTH: GET + b"Content-Length: 12345678901234567890\r\n\r\n",
    Reason.CONNECTIONS: GET + b"Connection: close\r\nConnection: close\r\n\r\n",
}


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_needed(reason) -> None:
    data = EXAMPLES[reason]
    assert [each for each in Reason if re.search(each.value, data)] == [reason]
    assert general(data)
    assert by_ours(data) is None
