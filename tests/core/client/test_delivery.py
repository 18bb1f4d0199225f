"""Retries that end, and what time it is where."""

from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, strategies as st

from asap_core.client.delivery import (
    Attempt,
    GiveUp,
    RetryAfter,
    RetryPolicy,
    ServerClocks,
    classify_failure,
    next_step,
    read_server_time,
    server_time_in,
)
from asap_core.errors import BadReply, NoToken, RemoteError, TimedOut, Unreachable
from asap_core.net.outbound import Allowed
from asap_core.refusals import TIMESTAMP
from tests.moments import moment

POLICY = RetryPolicy()


def step(ended=Attempt.LOST, *, attempts=1, keyed=True, jitter=0.0, retry_after=None):
    return next_step(ended, attempts=attempts, keyed=keyed, policy=POLICY, jitter=jitter, retry_after=retry_after)


class TestRetries:
    def test_delays_double_and_end(self) -> None:
        assert [step(attempts=n) for n in (1, 2)] == [RetryAfter(1.0), RetryAfter(2.0)]
        assert step(attempts=3) == GiveUp("3 attempts were made")

    def test_an_answered_message_is_not_retried(self) -> None:
        assert isinstance(step(Attempt.ANSWERED), GiveUp)

    def test_a_message_that_may_have_been_handled_is_retried_under_a_key_only(self) -> None:
        assert "twice" in step(keyed=False).reason
        assert step(Attempt.RECOVERABLE, keyed=False) == RetryAfter(1.0)

    def test_a_message_that_was_not_sent_is_retried_without_a_key_too(self) -> None:
        assert step(Attempt.UNSENT, keyed=False) == RetryAfter(1.0)

    def test_retry_after_of_the_server_counts_up_to_a_cap(self) -> None:
        assert step(retry_after=5.0) == RetryAfter(5.0)
        assert step(retry_after=0.1) == RetryAfter(1.0)
        assert step(retry_after=60.0) == RetryAfter(60.0)
        assert step(retry_after=61.0) == GiveUp("it asks to wait for 61 s, which is longer than 60 s")

    @given(st.integers(1, 10**6), st.floats(0, 1, exclude_max=True), st.floats(0, 60))
    def test_no_delay_is_over_the_cap(self, attempts, jitter, retry_after) -> None:
        policy = RetryPolicy(retries=10**6)
        found: Any = next_step(
            Attempt.LOST, attempts=attempts, keyed=True, policy=policy, jitter=jitter, retry_after=retry_after
        )
        assert 0.9 <= found.seconds <= policy.longest_delay


class TestServerTimes:
    HERE = "https://a.example"

    def test_the_time_of_a_server_continues_by_the_monotonic_clock(self) -> None:
        times: Any = ServerClocks()
        assert times.wall(self.HERE, at=moment(0.0, 100.0)) == 100.0
        times.learn(self.HERE, 5000.0, now=10.0)
        assert times.wall(self.HERE, at=moment(10.0, 100.0)) == 5000.0
        assert times.wall(self.HERE, at=moment(12.5, -1.0)) == 5002.5
        assert times.wall("https://b.example", at=moment(12.5, 7.0)) == 7.0

    def test_the_time_of_a_server_is_forgotten_after_an_hour(self) -> None:
        times: Any = ServerClocks()
        times.learn(self.HERE, 5000.0, now=10.0)
        assert times.wall(self.HERE, at=moment(3610.0, 1.0)) == 8600.0
        assert times.wall(self.HERE, at=moment(3610.1, 1.0)) == 1.0
        assert len(times) == 0

    def test_the_latest_time_of_a_server_counts(self) -> None:
        times: Any = ServerClocks()
        times.learn(self.HERE, 5000.0, now=10.0)
        times.learn(self.HERE, 4000.0, now=11.0)
        assert times.wall(self.HERE, at=moment(11.0, 1.0)) == 4000.0

    def test_the_number_of_server_times_is_bounded_and_the_oldest_is_forgotten(self) -> None:
        times: Any = ServerClocks()
        for number in range(1001):
            times.learn(f"https://{number}.example", 5000.0, now=float(number))
        assert len(times) == 1000
        assert times.wall("https://0.example", at=moment(1001.0, 1.0)) == 1.0
        assert times.wall("https://1.example", at=moment(1001.0, 1.0)) == 6000.0

    def test_a_time_learned_again_is_not_the_oldest(self) -> None:
        times: Any = ServerClocks()
        times.learn(self.HERE, 5000.0, now=0.0)
        for number in range(999):
            times.learn(f"https://{number}.example", 1.0, now=0.0)
        times.learn(self.HERE, 6000.0, now=0.0)
        times.learn("https://one.more", 1.0, now=0.0)
        assert times.wall(self.HERE, at=moment(0.0, 1.0)) == 6000.0

    @pytest.mark.parametrize("value", [None, 5, "", "soon", "2026-13-01T00:00:00Z", ["2026-01-01T00:00:00Z"]])
    def test_an_invalid_time_is_ignored(self, value) -> None:
        assert read_server_time({"server_time": value}) is None
        assert read_server_time({}) is None

    def test_a_time_is_read(self) -> None:
        assert read_server_time({"server_time": "2026-11-23T00:01:00Z"}) == 1_795_392_060.0
        for extreme in ("1970-01-01T00:01:00Z", "2024-12-31T23:59:59Z", "2100-01-01T00:00:00Z", "9999-12-31T23:59:59Z"):
            assert read_server_time({"server_time": extreme}) is None


class TestErrors:
    HERE = Allowed("https://a.example/asap", "https://a.example:443", "a.example", encrypted=True)
    REFUSED = RemoteError(
        code=-32002, message="no", taxonomy=TIMESTAMP.taxonomy, recoverable=True,
        details={"server_time": "2026-11-23T00:01:00Z"},
    )  # fmt: skip

    @pytest.mark.parametrize(
        ("error", "ended"),
        [
            (Unreachable("u", "r", sent=False), Attempt.UNSENT),
            (Unreachable("u", "r"), Attempt.LOST),
            (TimedOut("u", "r"), Attempt.LOST),
            (NoToken("u", "r"), Attempt.UNSENT),
            (NoToken("u", "r", refused=True), Attempt.ANSWERED),
            (RemoteError(code=1, message="busy", recoverable=True), Attempt.RECOVERABLE),
            (RemoteError(code=1, message="no"), Attempt.ANSWERED),
            (REFUSED, Attempt.ANSWERED),
            (RemoteError(code=503, message="m", status=503, own=False), Attempt.LOST),
            (RemoteError(code=429, message="m", status=429, own=False), Attempt.RECOVERABLE),
            (RemoteError(code=503, message="m", status=503), Attempt.ANSWERED),
            (RemoteError(code=500, message="m", status=500, own=False), Attempt.ANSWERED),
            (BadReply("u", "html", 429), Attempt.RECOVERABLE),
            (BadReply("u", "html", 502), Attempt.LOST),
            (BadReply("u", "html", 500), Attempt.ANSWERED),
            (BadReply("u", "large"), Attempt.ANSWERED),
        ],
        ids=[
            "unsent",
            "lost",
            "late",
            "no token",
            "no token ever",
            "busy",
            "no",
            "date",
            "a proxy",
            "a limit",
            "its own",
            "500",
            "limit page",
            "proxy page",
            "page",
            "large",
        ],
    )
    def test_the_fields_of_an_error_decide_if_it_is_retried(self, error, ended) -> None:
        assert classify_failure(error) is ended

    @pytest.mark.parametrize(
        ("asked", "believed"),
        [
            (HERE, True),
            (evolve(HERE, encrypted=False), False),
            (evolve(HERE, encrypted=False, host="127.0.0.1"), True),
        ],
    )
    def test_a_time_is_believed_only_over_tls_or_from_this_machine(self, asked, believed) -> None:
        assert (server_time_in(self.REFUSED, asked) is not None) is believed

    def test_no_other_error_sets_the_servers_time(self) -> None:
        other = RemoteError(code=1, message="no", details={"server_time": "2026-11-23T00:01:00Z"})
        assert server_time_in(other, self.HERE) is None
        assert server_time_in(Unreachable("u", "r"), self.HERE) is None
