"""Large answers under way: together within a bound, at which the slowest readers make room."""

import json
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from asap_core import (
    Answered,
    Dispatch,
    Done,
    Fork,
    ReadBody,
    Replied,
    Request,
    Respond,
)
from tests.builders import agent, bound, call

UNCOUNTED = 65_536


def serve(**policy):
    return bound(agent(**policy))


def ask(agent, asked):
    state = agent.open(Request(method="POST", target="/asap", peer="192.0.2.1"))
    assert isinstance(state, ReadBody)
    fed = state.feed(json.dumps(asked).encode())
    assert isinstance(fed, ReadBody)
    return fed.end()


def answer(agent, *sizes: int):
    """Ask for answers of about these sizes (some hundred bytes more), several in a batch; return the response."""
    calls = [call(number) for number in range(len(sizes))]
    fork = ask(agent, calls if len(calls) > 1 else calls[0])
    assert isinstance(fork, Fork)
    dispatches = [one for one in fork.calls if isinstance(one, Dispatch)]
    texts = ["x" * size for size in sizes]
    answered: Any = [
        dispatch.replied(Replied("task.response", {"task_id": "t", "status": "completed", "result": {"text": text}}))
        for dispatch, text in zip(dispatches, texts, strict=True)
    ]
    respond = fork.answered(answered)
    assert isinstance(respond, Respond)
    return respond


class TestUnderTheBound:
    def test_a_small_answer_does_not_count(self) -> None:
        agent = serve()
        respond = answer(agent, 60_000)
        assert (respond.outgoing, respond.ends, agent.outgoing.held) == (None, (), 0)
        respond.progressed()
        assert isinstance(respond.sent(), Done)

    @pytest.mark.parametrize(("size", "held"), [(UNCOUNTED, 0), (UNCOUNTED + 1, UNCOUNTED + 1)])
    def test_the_smallest_answer_that_counts_has_a_byte_more_than_64_kib(self, size: int, held: int) -> None:
        agent = serve()
        fork: Any = ask(agent, call())
        fork.answered([Answered(b"x" * size, Replied("task.response", {}))])
        assert agent.outgoing.held == held

    @pytest.mark.parametrize("leave", ["sent", "abandon"])
    def test_a_large_answer_counts_until_it_is_sent_or_abandoned(self, leave) -> None:
        agent = serve()
        respond = answer(agent, 70_000)
        assert agent.outgoing.held == len(respond.response.body) > 70_000
        respond.progressed()
        assert agent.outgoing.held == len(respond.response.body)
        getattr(respond, leave)()
        assert agent.outgoing.held == 0

    @pytest.mark.parametrize("leave", ["sent", "abandon"])
    def test_an_answer_that_no_longer_counts_is_released(self, leave) -> None:
        respond = answer(serve(), 70_000)
        getattr(respond, leave)()
        assert respond.response.body == b""

    def test_a_batch_counts_as_one(self) -> None:
        agent = serve()
        respond = answer(agent, 40_000, 40_000)
        assert 80_000 < agent.outgoing.held <= len(respond.response.body)
        assert len(json.loads(respond.response.body)) == 2

    def test_documents_and_refusals_do_not_count(self) -> None:
        agent = serve()
        for target in ("/health", "/.well-known/asap/manifest.json", "/nowhere"):
            assert agent.open(Request(method="GET", target=target)).outgoing is None


class TestAtTheBound:
    """Room for eight answers of a size beside those that are held: making one needs as much."""

    SIZE = 100_000

    def test_the_reader_without_progress_for_longest_is_ended(self) -> None:
        agent = serve(max_answers=10 * self.SIZE)
        first, second = answer(agent, self.SIZE), answer(agent, self.SIZE)
        first.progressed()
        third = answer(agent, self.SIZE)
        assert (first.ends, second.ends, third.ends) == ((), (), (second.outgoing,))
        fourth = answer(agent, self.SIZE)
        assert fourth.ends == (first.outgoing,)

    def test_only_as_many_answers_are_ended_as_the_new_one_needs(self) -> None:
        agent = serve(max_answers=36 * self.SIZE)
        small = [answer(agent, self.SIZE) for _ in range(5)]
        large = answer(agent, 4 * self.SIZE)
        assert large.ends == tuple(each.outgoing for each in small[:2])

    def test_an_ended_answer_no_longer_counts_and_can_only_be_abandoned(self) -> None:
        agent = serve(max_answers=3 * self.SIZE)
        slow = answer(agent, self.SIZE)
        after = answer(agent, self.SIZE)
        assert after.ends == (slow.outgoing,)
        slow.progressed()  # the driver hasn't ended it yet
        assert agent.outgoing.held == after.outgoing.size
        slow.abandon()
        assert agent.outgoing.held == after.outgoing.size

    def test_the_driver_provides_the_way_to_end_an_answer(self) -> None:
        agent, ended = serve(max_answers=3 * self.SIZE), []
        slow = answer(agent, self.SIZE)
        slow.outgoing.reset()  # nothing, until it's being sent
        slow.outgoing.reset = lambda: ended.append(slow)
        for each in answer(agent, self.SIZE).ends:
            each.reset()
        assert ended == [slow]

    @pytest.mark.parametrize(("sizes", "number"), [((200_000,), 0), ((70_000, 70_000, 70_000), None)])
    def test_an_answer_that_could_never_fit_is_an_internal_error(self, sizes, number) -> None:
        agent = serve(max_answers=200_000)
        other = answer(agent, 80_000)
        respond = answer(agent, *sizes)
        error = json.loads(respond.response.body)
        assert (error["id"], error["error"]["message"]) == (number, "Internal error")
        assert respond.fault.startswith("expected at most 200000 bytes in one answer (max_answers), not ")
        assert (respond.ends, agent.outgoing.held) == ((), other.outgoing.size)

    def test_the_error_for_a_call_that_was_refused_at_once_has_no_id(self) -> None:
        agent = serve(max_answers=200_000)
        fork: Any = ask(agent, call(method="unknown"))
        assert isinstance(fork.calls[0], Answered)
        respond = fork.answered([Answered(b"x" * 200_001, Replied("task.response", {}))])
        assert json.loads(respond.response.body)["id"] is None

    def test_an_answer_that_just_fits_may_use_all_the_room(self) -> None:
        agent = serve(max_answers=200_000)
        other = answer(agent, 80_000)
        assert answer(agent, 199_000).ends == (other.outgoing,)


class Answers(RuleBasedStateMachine):
    """Beside a list of who's under way, slowest first."""

    MOST = 3_000_000

    def __init__(self) -> None:
        super().__init__()
        self.agent = serve(max_answers=self.MOST)
        self.slowest_first: list[Any] = []
        self.ended: list[Any] = []

    @rule(size=st.integers(UNCOUNTED, 900_000))
    def begin(self, size: int) -> None:
        respond = answer(self.agent, size)
        ended = set(respond.ends)
        # Those that are ended are the slowest, and each was in the way.
        slowest = self.slowest_first[: len(ended)]
        assert {each.outgoing for each in slowest} == ended
        left = self.slowest_first[len(ended) :]
        if slowest:
            with_the_last = [*left, slowest[-1]]
            assert sum(each.outgoing.size for each in with_the_last) + 8 * respond.outgoing.size > self.MOST
        self.ended += slowest
        self.slowest_first = [*left, respond]

    @precondition(lambda self: self.slowest_first)
    @rule(data=st.data())
    def progress(self, data) -> None:
        respond = data.draw(st.sampled_from(self.slowest_first))
        respond.progressed()
        self.slowest_first.remove(respond)
        self.slowest_first.append(respond)

    @precondition(lambda self: self.slowest_first)
    @rule(data=st.data(), leave=st.sampled_from(["sent", "abandon"]))
    def over(self, data, leave: str) -> None:
        respond = data.draw(st.sampled_from(self.slowest_first))
        getattr(respond, leave)()
        self.slowest_first.remove(respond)

    @precondition(lambda self: self.ended)
    @rule(move=st.sampled_from(["progressed", "abandon"]))
    def notice_the_end(self, move: str) -> None:
        respond = self.ended[0] if move == "progressed" else self.ended.pop(0)
        getattr(respond, move)()

    @invariant()
    def held_bytes_are_within_the_bound(self) -> None:
        assert self.agent.outgoing.held == sum(each.outgoing.size for each in self.slowest_first) <= self.MOST


TestAnswers = Answers.TestCase
