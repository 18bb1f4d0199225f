"""Shares: what GCRA admits in any window, and what a full table does."""

from typing import Any

import pytest
from hypothesis import given, strategies as st

from asap_core.admission.ratelimit import Limit, Limited, Limiter, Taken, is_address, parse_limits, peer_key

TEN = parse_limits("10/second")
BOTH = parse_limits("10/second;100/minute")


class TestReadingLimits:
    @pytest.mark.parametrize(
        ("text", "limits"),
        [
            ("10/second", (Limit(10, 1.0),)),
            ("10/second;100/minute", (Limit(10, 1.0), Limit(100, 60.0))),
            (" 5 / hour ; ", (Limit(5, 3600.0),)),
            ("10 per 1 second", (Limit(10, 1.0),)),
            ("7 per 2 days", (Limit(7, 172_800.0),)),
            ("", ()),
            (";".join(["1/day"] * 8), (Limit(1, 86_400.0),) * 8),
        ],
    )
    def test_limits_are_read_as_the_reference_writes_them(self, text, limits) -> None:
        assert parse_limits(text) == limits

    @pytest.mark.parametrize(
        "text", ["10", "0/second", "ten/second", "10/year", "-1/second", "1/second\nx", ";".join(["1/day"] * 9)]
    )
    def test_an_invalid_limit_is_refused_with_an_example(self, text) -> None:
        with pytest.raises(ValueError, match="10/second;100/minute"):
            parse_limits(text)

    @pytest.mark.parametrize(
        "text", ["10 per 1 second", "100 per 1 minute", "3 per 2 hour", "5 per 1 day", "7 per 1.5 second"]
    )
    def test_limits_are_shown_as_the_reference_shows_them(self, text) -> None:
        amount, _, per, unit = text.split()
        seconds = float(per) * {"second": 1, "minute": 60, "hour": 3600, "day": 86400}[unit]
        assert str(Limit(int(amount), seconds)) == text


class TestTaking:
    def test_a_quiet_key_gets_its_amount_at_once_and_then_its_rate(self) -> None:
        limiter: Any = Limiter(TEN, capacity=10)
        assert [limiter.take("k", now=0.0) for _ in range(10)] == [Taken()] * 10
        refused = limiter.take("k", now=0.0)
        assert refused == Limited(pytest.approx(0.1), "10 per 1 second")  # type: ignore[arg-type]
        assert limiter.take("k", now=0.1) == Taken()
        assert isinstance(limiter.take("k", now=0.15), Limited)

    def test_a_request_that_one_limit_refuses_costs_nothing_in_the_others(self) -> None:
        limiter: Any = Limiter(BOTH, capacity=10)
        for _ in range(1000):
            limiter.take("k", now=0.0)
        taken = sum(isinstance(limiter.take("k", now=1.0 + second), Taken) for second in range(8) for _ in range(10))
        assert taken == 80

    def test_keys_do_not_share(self) -> None:
        limiter: Any = Limiter(TEN, capacity=10)
        assert limiter.take("a", cost=10, now=0.0) == limiter.take("b", cost=10, now=0.0) == Taken()

    def test_a_cost_above_the_amount_is_never_granted(self) -> None:
        limiter: Any = Limiter(TEN, capacity=10)
        assert isinstance(limiter.take("k", cost=11, now=0.0), Limited)
        assert len(limiter) == 0

    def test_take_up_to_grants_part_of_a_cost(self) -> None:
        limiter: Any = Limiter(BOTH, capacity=10)
        assert limiter.take_up_to("k", cost=4, now=0.0) == 4
        assert limiter.take_up_to("k", cost=50, now=0.0) == 6
        assert limiter.take_up_to("k", cost=50, now=0.0) == 0
        assert limiter.take_up_to("k", cost=50, now=0.35) == 3

    @given(st.lists(st.tuples(st.floats(0, 0.5), st.integers(1, 3)), max_size=200))
    def test_any_window_admits_less_than_twice_the_amount(self, steps) -> None:
        limiter, now, granted = Limiter(TEN, capacity=10), 0.0, []
        for pause, cost in steps:
            now += pause
            if isinstance(limiter.take("k", cost=cost, now=now), Taken):
                granted.append((now, cost))
        for start, _ in granted:
            assert sum(cost for at, cost in granted if start <= at < start + 1) < 20

    def test_a_caller_over_several_limits_is_told_the_longest_wait(self) -> None:
        for text in ("2/second;2/minute", "2/minute;2/second"):
            limiter: Any = Limiter(parse_limits(text), capacity=10)
            limiter.take("k", cost=2, now=0.0)
            assert limiter.take("k", now=0.0) == Limited(30.0, "2 per 1 minute")

    @given(st.lists(st.floats(0, 2), max_size=50))
    def test_a_caller_that_waits_for_retry_after_is_admitted(self, pauses) -> None:
        limiter, now = Limiter(BOTH, capacity=10), 0.0
        for pause in pauses:
            now += pause
            outcome = limiter.take("k", cost=5, now=now)
            if isinstance(outcome, Limited):
                now += outcome.retry_after
                assert limiter.take("k", cost=5, now=now) == Taken()


class TestAFullTable:
    def test_a_full_table_drops_keys_with_a_full_amount(self) -> None:
        limiter: Any = Limiter(TEN, capacity=3)
        for key in "abc":
            limiter.take(key, now=0.0)
        assert limiter.take("d", now=10.0) == Taken()
        assert len(limiter) == 3

    def test_a_full_table_gives_new_keys_one_shared_amount_and_evicts_no_key(self) -> None:
        limiter: Any = Limiter(TEN, capacity=3)
        for key in "abc":
            limiter.take(key, cost=10, now=0.0)
        taken = [isinstance(limiter.take(f"new{number}", now=0.0), Taken) for number in range(20)]
        assert sum(taken) == 10
        assert all(isinstance(limiter.take(key, now=0.0), Limited) for key in "abc")
        assert len(limiter) == 4

    def test_a_key_with_a_full_amount_from_this_moment_is_dropped(self) -> None:
        limiter: Any = Limiter(parse_limits("1/second"), capacity=1)
        limiter.take("a", now=0.0)
        assert limiter.take("b", now=1.0) == Taken()
        assert len(limiter) == 1

    def test_a_dropped_key_counts_as_new(self) -> None:
        limiter: Any = Limiter(parse_limits("1/second"), capacity=1)
        limiter.take("a", now=0.0)
        assert [limiter.take(key, now=1.0) for key in "ba"] == [Taken()] * 2
        # `a` had to take from the share of all newcomers.
        assert isinstance(limiter.take("c", now=1.0), Limited)

    def test_a_key_with_a_full_amount_in_one_limit_only_stays(self) -> None:
        limiter: Any = Limiter(BOTH, capacity=1)
        limiter.take("a", cost=10, now=0.0)
        limiter.take("b", now=2.0)
        assert len(limiter) == 2

    def test_the_key_that_is_idle_longest_is_looked_at_first(self) -> None:
        limiter: Any = Limiter(TEN, capacity=20)
        for now in (0.0, 10.0):
            for number in range(20 if now == 0 else 19):
                limiter.take(str(number), now=now)
        assert limiter.take("new", now=10.0) == Taken()
        assert len(limiter) == 20

    def test_the_remaining_amount_is_that_of_the_key_also_if_the_table_is_full(self) -> None:
        limiter: Any = Limiter(TEN, capacity=1)
        limiter.take("a", cost=10, now=0.0)
        assert [left.amount for left in limiter.left("a", now=0.0)] == [0]
        assert [left.amount for left in limiter.left("new", now=0.0)] == [10]


class TestPeers:
    @pytest.mark.parametrize(
        ("one", "other", "same"),
        [
            ("2001:db8::1", "2001:db8::ffff", True),
            ("2001:db8::1", "2001:db8:0:1::1", False),
            ("::ffff:192.0.2.1", "192.0.2.1", True),
            ("192.0.2.1", "192.0.2.2", False),
            ("fe80::1%eth0", "fe80::1%eth1", False),
            ("fe80::1%eth0", "fe80::2%eth0", False),
            ("", "unknown", True),
            ("one", "other", False),
            ("x" * 64, "x" * 65, True),
        ],
    )
    def test_addresses_of_one_host_have_the_same_key(self, one, other, same) -> None:
        assert (peer_key(one) == peer_key(other)) is same

    @pytest.mark.parametrize(
        ("peer", "known"),
        [
            ("192.0.2.1", True),
            ("fe80::1%eth0", True),
            ("fe80::1%" + "x" * 56, True),
            ("fe80::1%" + "x" * 57, False),  # longer than any address that a host has
            ("::", False),
            ("0.0.0.0", False),
            ("unix:", False),
            ("", False),
        ],
    )
    def test_a_peer_is_known_by_an_address_that_a_host_can_have(self, peer, known) -> None:
        assert is_address(peer) is known

    @given(st.text())
    def test_any_text_is_a_key(self, text) -> None:
        assert 0 < len(peer_key(text)) <= 70


class TestManyKeys:
    """Above some thousands of keys the table is split; its decisions stay the same."""

    def test_a_large_table_is_full_at_its_capacity(self) -> None:
        limiter: Any = Limiter(parse_limits("1/second"), capacity=5000)
        for number in range(5000):
            assert limiter.take(str(number), now=0.0) == Taken()
        assert len(limiter) == 5000
        # Newcomers share one record, and evict nobody.
        assert limiter.take("new", now=0.5) == Taken()
        assert isinstance(limiter.take("newer", now=0.5), Limited)
        assert isinstance(limiter.take("7", now=0.5), Limited)
        # When some are whole again there's room for each that comes.
        for number in range(300):
            assert limiter.take(f"later{number}", now=10.0) == Taken()
        assert len(limiter) <= 5001

    def test_a_large_table_looks_for_room_in_all_its_parts(self) -> None:
        limiter: Any = Limiter(parse_limits("1/second"), capacity=5000)
        for number in range(5000):
            limiter.take(str(number), now=0.0)
        taken = sum(isinstance(limiter.take(f"later{number}", now=10.0), Taken) for number in range(5000))
        assert taken > 4000

    CALLS = st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 3), st.sampled_from([0.0, 0.1, 0.7, 5.0]))

    @given(st.lists(CALLS, max_size=60))
    def test_a_large_table_decides_as_a_small_one(self, calls) -> None:
        small: Any = Limiter(parse_limits("2/second;5/minute"), capacity=100)
        large: Any = Limiter(parse_limits("2/second;5/minute"), capacity=100_000)
        now = 0.0
        for key, cost, seconds in calls:
            now += seconds
            assert small.take(key, cost=cost, now=now) == large.take(key, cost=cost, now=now)
            assert small.left(key, now=now) == large.left(key, now=now)
            assert small.take_up_to(key, cost=cost, now=now) == large.take_up_to(key, cost=cost, now=now)
        assert len(small) == len(large)


def test_retry_after_is_exact() -> None:
    limiter: Any = Limiter(parse_limits("2/second;3/minute"), capacity=10)
    now = 1000.0
    for _ in range(2):
        limiter.take("k", now=now)
    limited = limiter.take("k", now=now + 0.1)
    assert (limited.limit, limited.retry_after) == ("2 per 1 second", pytest.approx(0.4))
    limiter.take("k", now=now + 1.0)
    limited = limiter.take("k", now=now + 1.5)
    assert (limited.limit, limited.retry_after) == ("3 per 1 minute", pytest.approx(18.5))


def test_a_partial_take_of_one_request_grants_one_or_none() -> None:
    limiter: Any = Limiter(parse_limits("2/second"), capacity=10)
    assert [limiter.take_up_to("k", cost=1, now=0.0) for _ in range(3)] == [1, 1, 0]
