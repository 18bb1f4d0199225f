"""Limits of peers and principals: the state `TakeLimit`, and whose share a request uses."""

import json
from typing import Any

import pytest

from asap_core import (
    Admit,
    Anonymous,
    Answered,
    Authenticated,
    Dispatch,
    Fork,
    ManualClock,
    ReadBody,
    TakeLimit,
    parse_limits,
)
from asap_core.admission import admission
from asap_core.admission.ratelimit import Left, Limiter
from asap_core.admission.replay import Replayed
from asap_core.server.events import What
from tests.builders import ALICE, call
from tests.core.server.exchanges import body, finish, head, outcome, post, reply, serve


class TestShareOfARequest:
    """Which share a request uses, and the headers that report it."""

    PROXIED = {"trusted_proxies": ("10.0.0.0/8",), "peer_limits": parse_limits("1/minute")}

    def test_the_share_behind_a_trusted_proxy_is_the_clients(self) -> None:
        agent = serve(**self.PROXIED)
        for client, code in (("192.0.2.1", "ok"), ("192.0.2.2", "ok"), ("192.0.2.1", "asap:transport/rate_limited")):
            answer = post(agent, call(), peer="10.0.0.1", x_forwarded_for=f"203.0.113.5, {client}")
            assert outcome(answer) == code

    def test_values_that_a_proxy_quotes_do_not_choose_the_share(self) -> None:
        agent = serve(forwarded_header="forwarded", **self.PROXIED)
        for number, code in enumerate(("ok", "asap:transport/rate_limited", "asap:transport/rate_limited")):
            value = f'for=203.0.113.7;host="a,for=198.51.100.{number}"'
            assert outcome(post(agent, call(), peer="10.0.0.1", forwarded=value)) == code

    def test_the_forwarding_header_of_an_untrusted_peer_is_not_read(self) -> None:
        agent = serve(**self.PROXIED)
        post(agent, call(), peer="192.0.2.9", x_forwarded_for="203.0.113.1")
        answer = post(agent, call(), peer="192.0.2.9", x_forwarded_for="203.0.113.2")
        assert outcome(answer) == "asap:transport/rate_limited"

    def test_an_anonymous_principal_is_the_address_of_the_client(self) -> None:
        agent = serve(trusted_proxies=("10.0.0.0/8",))
        (dispatch,) = agent.open(head(peer="10.0.0.1", x_forwarded_for="192.0.2.7")).feed(body()).end().calls
        assert dispatch.principal == Anonymous("192.0.2.7")

    def test_every_answer_has_the_remaining_share(self) -> None:
        agent = serve(peer_limits=parse_limits("10/second;100/minute"))
        headers = dict(post(agent, call()).headers)
        assert headers[b"ratelimit-policy"] == b'"10-per-1s";q=10;w=1, "100-per-60s";q=100;w=60'
        assert headers[b"ratelimit"] == b'"10-per-1s";r=9;t=1'
        for _ in range(9):
            post(agent, call())
        refused = dict(post(agent, call()).headers)
        assert refused[b"ratelimit"] == b'"10-per-1s";r=0;t=1'
        assert refused[b"retry-after"] == b"1"

    def test_the_remaining_share_is_that_at_the_time_of_the_answer(self) -> None:
        clock = ManualClock()
        agent = serve(clock=clock, peer_limits=parse_limits("10/second"))
        fork = agent.open(head()).feed(body()).end()
        clock.advance(0.1)
        assert dict(finish(fork).headers)[b"ratelimit"] == b'"10-per-1s";r=10;t=0'
        reading = agent.open(head())
        clock.advance(0.1)
        refused = reading.feed(b"nonsense").end().response
        assert (dict(refused.headers)[b"ratelimit"], refused.close) == (b'"10-per-1s";r=10;t=0', False)

    def test_rate_limit_headers_show_the_principals_limit_if_there_is_one(self) -> None:
        agent = serve(auth=True, principal_limits=parse_limits("5/hour"))
        headers = dict(post(agent, call(), authorization="Bearer t").headers)
        assert headers[b"ratelimit"] == b'"5-per-3600s";r=4;t=720'

    @pytest.mark.parametrize("options", [{}, {"shared_limits": ["peer"], "peer_limits": parse_limits("1/second")}])
    def test_no_rate_limit_header_is_sent_if_the_remaining_share_is_unknown(self, options) -> None:
        state = serve(**options).open(head())
        state: Any = state.taken() if isinstance(state, TakeLimit) else state  # type: ignore[no-redef]
        assert not any(name.startswith(b"ratelimit") for name, _ in finish(state.feed(body()).end()).headers)

    def test_handlers_at_work_are_bounded_for_each_caller(self) -> None:
        told: list[Any] = []
        agent = serve(concurrent=2, observe=told.append)
        working = [agent.open(head()).feed(body()).end() for _ in range(2)]
        response = post(agent, call())
        assert (response.status, outcome(response)) == (429, "asap:transport/rate_limited")
        assert json.loads(response.body)["error"]["data"]["limit"] == "2 at once"
        assert dict(response.headers)[b"retry-after"] == b"1"
        assert told[-1].what is What.LIMITED
        # Somebody else has a share of its own; and what was refused has used up no nonce.
        assert outcome(post(agent, call(), peer="192.0.2.77")) == "ok"
        same = call()
        assert outcome(post(agent, same)) == "asap:transport/rate_limited"
        finish(working[0])
        assert outcome(post(agent, same)) == "ok"
        working[1].abandon()
        assert (agent.active, agent._callers) == (0, {})

    def test_a_call_that_waits_for_a_store_counts_as_running(self) -> None:
        agent = serve(shared=True, concurrent=2)

        def ask():
            return agent.open(head()).feed(body()).end()

        first, second, third = ask(), ask(), ask()
        assert [type(one.calls[0]) for one in (first, second, third)] == [Admit, Admit, Answered]
        assert outcome(third.answered(third.calls).response) == "asap:transport/rate_limited"
        dispatched = first.calls[0].answered(admission.Admitted(None))
        assert isinstance(ask().calls[0], Answered)
        second.calls[0].answered(Replayed())
        fourth = ask()
        assert isinstance(fourth.calls[0], Admit)
        fourth.abandon()
        reply(dispatched)
        assert agent._callers == {}

    def test_handlers_of_authenticated_callers_are_counted_by_principal(self) -> None:
        agent = serve(auth=True, concurrent=1)
        first = agent.open(head(authorization="Bearer t")).verified(Authenticated(ALICE)).feed(body()).end()
        assert isinstance(first.calls[0], Dispatch)
        again = post(agent, call(), peer="192.0.2.77", authorization="Bearer t")
        assert outcome(again) == "asap:transport/rate_limited"

    def test_a_limiter_returns_the_remaining_amount_of_each_limit(self) -> None:
        limiter = Limiter(parse_limits("2/second;10/minute"), capacity=10)
        now: Any = 5.0
        assert [(left.amount, left.seconds) for left in limiter.left("k", now=now)] == [(2, 0.0), (10, 0.0)]
        limiter.take("k", now=now)
        assert [(left.amount, left.seconds) for left in limiter.left("k", now=now)] == [(1, 0.5), (9, 6.0)]
        assert len(limiter) == 1


class TestLimits:
    def test_a_request_over_the_limit_is_answered_429_as_in_the_reference(self) -> None:
        agent = serve(peer_limits=parse_limits("2/minute"))
        assert [post(agent, call()).status for _ in range(3)] == [200, 200, 429]
        response: Any = agent.open(head()).response
        data = json.loads(response.body)["error"]
        assert (data["code"], data["data"]["limit"], data["data"]["retry_after"]) == (429, "2 per 1 minute", 30)
        assert dict(response.headers)[b"retry-after"] == b"30"
        assert response.close
        assert isinstance(agent.open(head(peer="192.0.2.2")), ReadBody)

    def test_documents_cost_nothing(self) -> None:
        agent = serve(peer_limits=parse_limits("1/minute"))
        assert all(finish(agent.open(head("GET", "/health"))).status == 200 for _ in range(5))

    def test_a_batch_costs_its_number_of_items_and_the_rest_is_limited(self) -> None:
        agent = serve(peer_limits=parse_limits("10/minute"))
        values = json.loads(post(agent, [call(number) for number in range(15)]).body)
        limited = [value["error"]["code"] if "error" in value else 0 for value in values]
        assert limited == [0] * 10 + [429] * 5
        assert values[-1]["error"]["data"]["retry_after"] == 1
        assert agent.open(head()).response.status == 429

    def test_an_authenticated_agent_has_a_share_of_its_own(self) -> None:
        agent = serve(auth=True, peer_limits=parse_limits("100/minute"), principal_limits=parse_limits("3/minute"))
        values = json.loads(post(agent, [call(number) for number in range(5)], authorization="Bearer x").body)
        assert ["error" in value for value in values] == [False] * 3 + [True] * 2
        assert post(agent, call(), authorization="Bearer x").status == 429

    def test_a_batch_of_one_item_costs_one(self) -> None:
        agent = serve(peer_limits=parse_limits("2/minute"))
        assert [json.loads(post(agent, [call()]).body)[0].get("error") for _ in range(2)] == [None, None]

    def test_only_a_principal_limit_counts_the_batch_too(self) -> None:
        agent = serve(auth=True, principal_limits=parse_limits("3/minute"))
        values = json.loads(post(agent, [call(number) for number in range(5)], authorization="Bearer x").body)
        assert values[-1]["error"]["data"]["limit"] == "3 per 1 minute"

    def test_a_shared_limiter_is_asked_by_the_driver(self) -> None:
        agent = serve(shared_limits=["peer"], peer_limits=parse_limits("10/minute"))
        state: Any = agent.open(head())
        assert isinstance(state, TakeLimit)
        assert (state.scope, state.key, state.cost, state.partial) == ("peer", "192.0.2.1", 1, False)
        # The body hasn't been read: after the response no other request can be found on this connection.
        for refused, status in (
            (state.limited(5.0, "10 per 1 minute"), 429),
            (agent.open(head()).unavailable(), 503),
        ):
            assert (refused.response.status, refused.response.close) == (status, True)
        state = agent.open(head()).taken().feed(json.dumps([call(1), call(2), call(3)]).encode()).end()
        assert (state.cost, state.partial) == (2, True)
        assert [isinstance(one, Dispatch) for one in state.taken(1).calls] == [True, True, False]
        state = agent.open(head()).taken().feed(json.dumps([call(1)]).encode()).end()
        assert isinstance(state, Fork)

    def test_a_batch_that_is_refused_by_a_shared_limiter_leaves_the_connection_open(self) -> None:
        agent = serve(shared_limits=["peer"], peer_limits=parse_limits("10/minute"))

        def ask_for_the_rest() -> Any:
            return agent.open(head()).taken().feed(json.dumps([call(1), call(2)]).encode()).end()

        assert not ask_for_the_rest().limited(5.0, "10 per 1 minute").response.close
        assert not ask_for_the_rest().unavailable().response.close

    @pytest.mark.parametrize("number", [1, 3])
    def test_a_shared_limiter_is_asked_only_if_there_are_limits(self, number) -> None:
        batch = json.dumps([call(each) for each in range(number)]).encode()

        def read(state):
            return state.verified(Authenticated(ALICE))

        agent = serve(auth=True, shared_limits=["peer", "principal"])
        state = read(agent.open(head(authorization="Bearer t")))
        assert isinstance(state.feed(batch).end(), Fork)
        agent = serve(auth=True, shared_limits=["peer", "principal"], principal_limits=parse_limits("9/minute"))
        state = read(agent.open(head(authorization="Bearer t"))).taken().feed(batch).end()
        assert isinstance(state, Fork) if number == 1 else (state.scope, state.cost) == ("principal", 2)

    def test_the_caller_is_told_the_remaining_share_of_a_shared_limiter(self) -> None:
        agent = serve(shared_limits=["peer"], peer_limits=parse_limits("10/minute"))
        (limit,) = agent.policy.peer_limits

        def headers(body):
            return dict(finish(body.feed(json.dumps(call()).encode()).end()).headers)

        told: Any = agent.open(head())
        assert headers(told.taken(1, (Left(limit, 7, 12.5),)))[b"ratelimit"] == b'"10-per-60s";r=7;t=13'
        untold: Any = agent.open(head())
        assert b"ratelimit" not in headers(untold.taken())
