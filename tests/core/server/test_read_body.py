"""The body of a request, and of all requests together: the state `ReadBody`."""

import gzip
import json
from typing import Any

import pytest

from asap_core import (
    ReadBody,
    Respond,
)
from asap_core.server.call_context import IllegalMove
from asap_core.server.events import What
from tests.builders import call
from tests.core.server.exchanges import head, outcome, post, reply, serve


class TestBodies:
    def test_a_length_over_the_limit_is_refused_before_it_is_read(self) -> None:
        for length in ("10485761", "9" * 30, "9" * 5000):
            state = serve().open(head(content_length=length))
            assert (state.response.status, state.response.close) == (413, True)

    @pytest.mark.parametrize("length", ["0", "10485760", "10".zfill(18)])
    def test_a_length_within_the_limit_is_accepted(self, length) -> None:
        assert isinstance(serve().open(head(content_length=length)), ReadBody)

    def test_a_body_over_the_limit_is_refused_while_it_arrives(self) -> None:
        state = serve(max_body=10).open(head()).feed(b"x" * 10)
        response = state.feed(b"x").response
        assert (response.status, response.close) == (413, True)
        with pytest.raises(IllegalMove):
            state.end()

    @pytest.mark.parametrize("coding", ["gzip", "GZIP", " x-gzip ", "identity", ""])
    def test_known_codings_are_inflated(self, coding) -> None:
        body = json.dumps(call()).encode()
        body = gzip.compress(body) if "gzip" in coding.lower() else body
        assert outcome(post(serve(), body, content_encoding=coding)) == "ok"

    @pytest.mark.parametrize("coding", ["br", "gzip, br", "deflate", "gzip, gzip"])
    def test_unknown_codings_are_refused_with_the_known_ones(self, coding) -> None:
        response = serve().open(head(content_encoding=coding)).response
        assert (response.status, dict(response.headers)[b"accept-encoding"]) == (415, b"gzip, x-gzip")
        assert response.close

    @pytest.mark.parametrize(
        ("body", "close"),
        [(b"not gzip", True), (gzip.compress(b"x") + b"more", True), (gzip.compress(b"x" * 1000)[:-9], False)],
        ids=["no gzip", "more", "cut off"],
    )
    def test_a_body_that_cannot_be_decompressed_is_refused(self, body, close) -> None:
        # What is found wrong at its end was read whole: the connection can go on.
        response = post(serve(), body, content_encoding="gzip")
        assert (response.status, response.close) == (400, close)

    def test_expect_continue_is_recognised(self) -> None:
        assert serve().open(head(expect="100-Continue")).expect_continue
        assert serve().open(head(expect="x, 100-continue")).expect_continue
        assert not serve().open(head(expect='"100-continue"')).expect_continue
        assert not serve().open(head(expect='x="a, 100-continue"')).expect_continue
        assert serve().open(head(expect='x="a", 100-continue')).expect_continue
        assert not serve().open(head()).expect_continue


class TestBodiesTogether:
    FREE = 65_536
    BOUND: Any = {"max_bodies": 200_000, "max_body": 200_000}

    def under_way(self, agent, size: int):
        state = agent.open(head())
        assert isinstance(state, ReadBody)
        return state.feed(b" " * (self.FREE + size))

    def test_bodies_together_are_bounded_by_the_policy(self) -> None:
        told: list[Any] = []
        agent = serve(**self.BOUND, observe=told.append)
        first = self.under_way(agent, 120_000)
        second = self.under_way(agent, 80_000)
        assert isinstance(first, ReadBody) and isinstance(second, ReadBody)  # noqa: PT018
        refused = self.under_way(agent, 1).response
        assert (refused.status, outcome(refused), refused.close) == (503, "asap:transport/thread_pool_exhausted", True)
        assert dict(refused.headers)[b"retry-after"] == b"1"
        assert told[-1].what is What.LIMITED
        # The small ones get through, and so does the next large one when there's room again.
        assert outcome(post(agent, call())) == "ok"
        assert isinstance(first.feed(b" "), Respond)
        with pytest.raises(IllegalMove):
            first.end()
        assert isinstance(self.under_way(agent, 120_000), ReadBody)

    def test_bodies_count_until_their_answer_is_made(self) -> None:
        agent = serve(**self.BOUND)
        large = call(
            envelope_changes={"payload": {"conversation_id": "c", "skill_id": "echo", "input": {"x": "x" * 150_000}}}
        )
        for leave in ("answered", "abandon"):
            fork = agent.open(head()).feed(json.dumps(large).encode()).end()
            assert agent.body_bytes > 150_000 - self.FREE
            assert self.under_way(agent, 120_000).response.status == 503
            after = fork.answered([reply(fork.calls[0])]) if leave == "answered" else fork.abandon()
            assert agent.body_bytes == 0
            if isinstance(after, Respond):
                after.abandon()  # must not give it back twice
                assert agent.body_bytes == 0
            large["params"]["envelope"]["id"] = "another"

    @pytest.mark.parametrize("leave", ["abandon", "end"])
    def test_an_abandoned_body_releases_its_bytes(self, leave) -> None:
        agent = serve(**self.BOUND)
        for _ in range(3):
            state = self.under_way(agent, 30_000).feed(b" " * 70_000)
            assert agent.body_bytes == 100_000
            getattr(state, leave)()
            assert agent.body_bytes == 0

    def test_a_refused_body_releases_its_bytes(self) -> None:
        agent = serve(max_bodies=10**6, max_body=self.FREE + 1000)
        assert self.under_way(agent, 1001).response.status == 413
        assert self.under_way(agent, 1000).feed(b" ").response.status == 413
        assert agent.body_bytes == 0

    def test_small_bodies_do_not_count(self) -> None:
        agent = serve(**self.BOUND)
        for size in (1, self.FREE):
            small: Any = agent.open(head())
            assert isinstance(small.feed(b" " * size), ReadBody)
            assert agent.body_bytes == 0

    def test_bodies_count_inflated(self) -> None:
        agent = serve(**self.BOUND)
        assert isinstance(self.under_way(agent, 120_000), ReadBody)
        state = agent.open(head(content_encoding="gzip")).feed(gzip.compress(b" " * (self.FREE + 80_001)))
        assert state.response.status == 503
        assert agent.body_bytes == 120_000
