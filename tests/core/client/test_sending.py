"""Sending, without a loop: what is sent again and what isn't, with which credential, by which clock, past a breaker."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from asap_core.client.breaker import BreakerPolicy, Permit
from asap_core.client.delivery import RetryPolicy
from asap_core.client.programs import Completed, Expired, Fetch, Sleep, Stage, Unanswered
from asap_core.clock import WallTime
from asap_core.errors import BadReply, NoToken, RemoteError, TimedOut, Unreachable, Unsuitable
from asap_core.refusals import TIMESTAMP
from asap_core.wire.envelope import utc
from asap_core.wire.manifest import AuthScheme
from tests.core.client.peers import (
    AGENT,
    LOST,
    ME,
    NOT_CONNECTED,
    THEM,
    Does,
    Key,
    Peers,
    answer,
    claims_of,
    credentials,
    error,
    lost_after,
    refused,
)
from tests.core.client.scripted import After, Answer, Driver, Run


def result(reply: Any) -> Any:
    return reply.payload["result"]


class TestRetries:
    @pytest.fixture
    def peers(self) -> Peers:
        return Peers(retry=RetryPolicy())

    def test_the_first_attempt_is_the_unchanged_envelope(self, peers) -> None:
        reply = peers.send("k")
        assert (reply.sender, reply.recipient, reply.correlation_id) == (THEM, ME, "message-1")
        (post,) = peers.posts
        assert post.document["id"].startswith("req-id-")
        assert (post.document["jsonrpc"], post.document["method"]) == ("2.0", "asap.send")
        assert post.calls == [{"envelope": post.envelope, "idempotency_key": "k"}]
        assert post.headers["x-idempotency-key"] == "k"
        assert post.envelope["extensions"] == {"nonce": "nonce-1"}

    def test_a_retry_keeps_id_and_key_and_has_a_new_timestamp_and_nonce(self, peers) -> None:
        peers.agent_does = [NOT_CONNECTED, Expired(Stage.CONNECTING)]
        peers.send()
        calls = [post.calls[0] for post in peers.posts]
        assert len(calls) == 3
        assert len({call["envelope"]["id"] for call in calls}) == 1
        keys = {call["idempotency_key"] for call in calls} | {post.headers["x-idempotency-key"] for post in peers.posts}
        assert len(keys) == 1
        assert len({call["envelope"]["extensions"]["nonce"] for call in calls}) == 3
        assert len({call["envelope"]["timestamp"] for call in calls}) == 3
        assert len({post.document["id"] for post in peers.posts}) == 3
        waits = [after.at - before.at for before, after in pairwise(peers.posts)]
        assert waits == pytest.approx([0.95, 1.9])

    def test_a_nonce_of_the_caller_is_kept(self, peers) -> None:
        peers.agent_does = [NOT_CONNECTED]
        peers.send(nonce="mine")
        assert peers.posts[1].envelope["extensions"] == {"nonce": "mine"}

    @pytest.mark.parametrize("extensions", [None, {"nonce": "first", "trace": "t"}])
    def test_other_extensions_are_kept(self, peers, extensions) -> None:
        envelope = evolve(peers.envelope(), extensions=extensions)
        peers.agent_does = [NOT_CONNECTED]
        peers.run(peers.sender.deliver(peers.to, envelope, "k", keyed=True, nonce=None))
        sent, resent = (post.envelope["extensions"] for post in peers.posts)
        assert sent == extensions
        assert resent == {**(extensions or {}), "nonce": resent["nonce"]}
        assert resent["nonce"].startswith("token-")

    def test_a_retry_waits_as_long_as_the_agent_says(self, peers) -> None:
        peers.agent_does = [refused(retry_after_ms=7500)]
        peers.send()
        assert peers.posts[1].at - peers.posts[0].at == 7.5

    def test_a_message_is_not_sent_again_if_the_wait_would_be_too_long(self, peers) -> None:
        peers.agent_does = [refused(retry_after=61)]
        with pytest.raises(RemoteError) as caught:
            peers.send()
        assert (caught.value.retry_after, len(peers.posts)) == (61.0, 1)

    def test_the_last_error_is_raised(self, peers) -> None:
        peers.agent_does = [NOT_CONNECTED] * 3
        with pytest.raises(Unreachable, match="can't connect") as caught:
            peers.send()
        assert (len(peers.posts), caught.value.sent) == (3, False)

    @pytest.mark.parametrize("lost", [LOST, Expired(), Unanswered(Stage.ANSWERED, "cut off")])
    def test_a_message_that_may_be_done_is_not_sent_again_without_a_key(self, peers, lost) -> None:
        peers.agent_does = [lost]
        with pytest.raises(Unreachable):
            peers.send()
        assert len(peers.posts) == 1

    def test_a_message_with_a_key_is_sent_again_for_its_reply(self, peers) -> None:
        peers.agent_does = [lost_after(peers), lost_after(peers)]
        assert result(peers.send("k")) == {"runs": 1}
        assert (len(peers.posts), peers.work) == (3, {"k": 1})

    def test_a_message_is_not_sent_again_after_a_final_refusal(self, peers) -> None:
        peers.agent_does = [answer({"jsonrpc": "2.0", "id": None, "error": {"code": -32603, "message": "no"}})]
        with pytest.raises(RemoteError):
            peers.send("k")
        assert len(peers.posts) == 1

    def test_a_policy_may_allow_no_retry(self) -> None:
        peers = Peers(retry=RetryPolicy(retries=0))
        peers.agent_does = [NOT_CONNECTED]
        with pytest.raises(Unreachable):
            peers.send()
        assert len(peers.posts) == 1

    def test_an_envelope_of_the_caller_is_sent_once_under_any_policy(self, peers) -> None:
        peers.agent_does = [NOT_CONNECTED, None]
        with pytest.raises(Unreachable):
            peers.run(peers.sender.once(peers.to, peers.envelope(), "k"))
        assert result(peers.run(peers.sender.once(peers.to, peers.envelope(), "k"))) == {"runs": 1}
        assert len(peers.posts) == 2

    def test_a_send_that_is_closed_during_a_pause_ends(self, peers) -> None:
        peers.agent_does = [refused(retry_after=30)]
        run = peers.start(peers.deliver())
        peers.turn()
        assert run.effect == Sleep(30.0)
        peers.close(run)
        peers.advance(60)
        assert len(peers.posts) == 1

    def test_an_error_names_the_url_without_its_query(self, peers) -> None:
        peers.agent_does = [answer(b"<html>")]
        to = evolve(peers.to, allowed=peers.requests.judge(f"{AGENT}/asap?key=s3cret"))
        with pytest.raises(BadReply) as caught:
            peers.send("k", to=to)
        assert (caught.value.url, caught.value.status) == ("https://agent.example:443/asap", 200)


# --- the table of docs/outbound.md -----------------------------------------------------------------------------------


def own(data: object = None, **members: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": None, "error": {"code": -32603, "message": "no", "data": data}, **members}


def reply_to(asked: dict[str, Any]) -> dict[str, Any]:
    envelope = asked["params"]["envelope"]
    reply = {
        **envelope, "id": "r", "sender": envelope["recipient"], "recipient": envelope["sender"],
        "correlation_id": envelope["id"], "payload_type": "task.response",
        "payload": {"task_id": "t", "status": "completed", "result": {}},
    }  # fmt: skip
    return {"jsonrpc": "2.0", "id": asked["id"], "result": {"envelope": reply}}


SHAPES: dict[str, list[Any]] = {
    "a reply to this call": [reply_to],
    "own": [lambda _: own(), lambda asked: own(id=asked["id"]), lambda _: {"error": "no", "code": "asap:x"}],
    "own, recoverable": [
        lambda asked: own({"recoverable": True}, id=asked["id"]),
        lambda _: {"detail": "no", "code": "asap:x", "recoverable": True},
    ],
    "own, not recoverable": [
        lambda _: own({"recoverable": False}, id=""),
        lambda _: {"error": "no", "code": "asap:x", "recoverable": False},
    ],
    '`{"detail": …}`': [lambda _: {"detail": "no"}, lambda _: {"detail": "no", "code": "busy", "recoverable": True}],
    "a page": [
        lambda _: b"<html>no</html>",
        lambda _: {"detail": [{"loc": ["body"]}]},
        lambda _: [],
        lambda _: {"message": "no"},
    ],
    "nothing": [lambda _: b""],
    "another call's error": [lambda _: own({"recoverable": True, "retry_after": 1}, id="req-another")],
    "no connection": [NOT_CONNECTED],
    "no answer": [LOST],
}


def rows_of_the_table():
    """Each row of the table in `docs/outbound.md`, once for each status and shape of answer."""
    text = (Path(__file__).parents[3] / "docs" / "outbound.md").read_text(encoding="utf-8")
    lines = text.partition("| HTTP status | answer |")[2].partition("\n\n")[0].splitlines()[2:]
    for line in lines:
        statuses, answers, raises, *counts = (cell.strip() for cell in line.strip("| ").split(" | "))
        for shape in answers.split("; "):
            for status in statuses.split(", "):
                for keyed, count in zip((False, True), counts, strict=True):
                    yield pytest.param(
                        (status, shape, raises.strip("`"), keyed, count),
                        id=f"{status} {shape} {'with' if keyed else 'without'} a key",
                    )


def shaped(peers: Peers, status: str, make: Any, **headers: str) -> Does:
    """An answer of this status and shape."""
    if isinstance(make, Unanswered):
        return make

    def does(_fetch: Fetch):
        document = peers.posts[-1].document
        return answer(make(document[0] if isinstance(document, list) else document), int(status), **headers)

    return does


RAISED = {"RemoteError": RemoteError, "BadReply": BadReply, "Unreachable": Unreachable}


class TestTableOfAnswers:
    def test_the_table_is_read_from_the_docs(self) -> None:
        rows = list(rows_of_the_table())
        assert len(rows) > 150
        assert {row.values[0][1] for row in rows} == set(SHAPES)
        assert {row.values[0][4] for row in rows} == {"once", "again", "returned"}

    @pytest.mark.parametrize("row", list(rows_of_the_table()))
    def test_each_row_of_the_table_is_true(self, row) -> None:
        status, name, raises, keyed, count = row
        key = "k" if keyed else None
        for number, shape in enumerate(SHAPES[name]):
            peers = Peers(retry=RetryPolicy())
            peers.agent_does = [shaped(peers, status, shape, retry_after="7")] * (3 if count == "again" else 1)
            if count == "returned":
                peers.send(key)
                assert len(peers.posts) == 1
                continue
            with pytest.raises(RAISED[raises]):
                peers.send(key)
            assert len(peers.posts) == (3 if count == "again" else 1), f"shape {number}"
            waits = [after.at - before.at for before, after in pairwise(peers.posts)]
            assert all(wait >= 7 for wait in waits) or status == "–"

    def test_a_retry_waits_until_a_date(self) -> None:
        peers = Peers(retry=RetryPolicy())
        headers = {"date": "Sun, 06 Nov 2094 08:49:37 GMT", "retry_after": "Sun, 06 Nov 2094 08:49:57 GMT"}
        peers.agent_does = [shaped(peers, "429", SHAPES["a page"][0], **headers)]
        peers.send()
        assert peers.posts[1].at - peers.posts[0].at == 20

    def test_a_page_may_say_how_long_to_wait(self) -> None:
        peers = Peers(retry=RetryPolicy())
        peers.agent_does = [shaped(peers, "429", SHAPES["a page"][0], retry_after="61")]
        with pytest.raises(BadReply) as caught:
            peers.send()
        assert (caught.value.status, caught.value.retry_after, len(peers.posts)) == (429, 61.0, 1)

    def test_work_behind_a_failing_proxy_is_done_once(self) -> None:
        peers = Peers(retry=RetryPolicy())
        peers.agent_does = [answer({"detail": "no"}, 502), answer(["no"], 503), None]
        assert result(peers.send("k")) == {"runs": 1}
        assert len(peers.posts) == 3


class TestBatches:
    def test_results_are_in_order(self) -> None:
        peers = Peers()

        def backwards(fetch: Fetch):
            reply = peers.carried_out(fetch)
            return answer(json.loads(reply.body)[::-1])

        peers.agent_does = [backwards]
        first, second = peers.send_batch()
        assert isinstance(first, type(second))
        assert [first.correlation_id, second.correlation_id] == ["message-0", "message-1"]  # type: ignore[union-attr]
        (post,) = peers.posts
        assert "x-idempotency-key" not in post.headers
        assert len({call["idempotency_key"] for call in post.calls}) == 2

    def test_a_large_message_is_compressed_and_a_batch_is_not(self) -> None:
        peers = Peers()
        peers.send_batch(20)
        large = peers.sender.once(peers.to, peers.envelope(), "k" * 2000)
        peers.run(large)
        assert [post.headers.get("content-encoding") for post in peers.posts] == [None, "gzip"]

    def test_one_refused_message_leaves_the_others(self) -> None:
        peers = Peers()

        def half(fetch: Fetch):
            reply = json.loads(peers.carried_out(fetch).body)
            return answer([reply[0], own({"recoverable": False}, id=reply[1]["id"])])

        peers.agent_does = [half]
        first, second = peers.send_batch()
        assert not isinstance(first, RemoteError)
        assert isinstance(second, RemoteError)

    def test_one_unusable_reply_fails_the_request(self) -> None:
        peers = Peers()
        peers.agent_does = [answer([])]
        with pytest.raises(BadReply, match="expected a JSON-RPC answer"):
            peers.send_batch()

    @pytest.mark.parametrize(("status", "shape"), [("429", "a page"), ("429", "nothing"), ("503", "own")])
    def test_a_batch_is_sent_again_if_nothing_of_it_was_done(self, status, shape) -> None:
        peers = Peers(retry=RetryPolicy())
        peers.agent_does = [shaped(peers, status, SHAPES[shape][0], retry_after="7")]
        assert [reply.correlation_id for reply in peers.send_batch()] == ["message-0", "message-1"]  # type: ignore[union-attr]
        first, second = peers.posts
        assert second.at - first.at == 7
        for one, other in zip(first.calls, second.calls, strict=True):
            assert one["idempotency_key"] == other["idempotency_key"]
            assert one["envelope"]["id"] == other["envelope"]["id"]
            assert one["envelope"]["extensions"] != other["envelope"]["extensions"]

    def test_a_refusal_of_all_is_reported_for_each(self) -> None:
        peers = Peers(retry=RetryPolicy())
        peers.agent_does = [answer({"detail": "no"}, 503)]
        outcomes = peers.send_batch(3)
        assert len(outcomes) == 3
        assert all(isinstance(each, RemoteError) and not each.recoverable for each in outcomes)
        assert len(peers.posts) == 1

    def test_a_batch_that_may_be_done_is_not_sent_again(self) -> None:
        peers = Peers(retry=RetryPolicy())
        peers.agent_does = [answer(b"<html>", 503)]
        with pytest.raises(BadReply):
            peers.send_batch()
        assert len(peers.posts) == 1


class TestCredentials:
    def test_each_attempt_shows_the_token(self) -> None:
        peers = Peers(auth={AGENT: credentials()}, retry=RetryPolicy())
        peers.agent_does = [NOT_CONNECTED, NOT_CONNECTED]
        peers.send()
        assert (peers.shown, peers.fetches) == (["Bearer t1"] * 3, 1)

    def test_a_batch_shows_the_token(self) -> None:
        peers = Peers(auth={AGENT: credentials()})
        peers.send_batch()
        assert peers.shown == ["Bearer t1"]

    def test_without_credentials_an_origin_gets_its_static_token(self) -> None:
        peers = Peers(static={AGENT: "static"})
        peers.agent_does = [answer({"detail": "Invalid authentication token"}, 401)]
        with pytest.raises(RemoteError, match="Invalid authentication token"):
            peers.send()
        assert peers.shown == ["Bearer static"], "and it isn't replaced"

    def test_a_refused_token_is_replaced_once(self) -> None:
        peers = Peers(auth={AGENT: credentials()})
        peers.send()
        peers.good.clear()
        peers.send()
        assert peers.shown == ["Bearer t1", "Bearer t1", "Bearer t2"]

    def test_a_token_that_is_refused_in_http_200_is_replaced(self) -> None:
        peers = Peers(auth={AGENT: credentials()})
        data = {"error": "Invalid token", "status_code": 401}
        refusal = {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "Invalid request", "data": data}}
        peers.agent_does = [answer(refusal)]
        assert result(peers.send()) == {"runs": 1}
        assert peers.shown == ["Bearer t1", "Bearer t2"]

    def test_a_peer_that_refuses_every_token_is_sent_the_message_twice(self) -> None:
        peers = Peers(auth={AGENT: credentials()}, retry=RetryPolicy())
        peers.agent_does = [answer({"detail": "Invalid authentication token"}, 401)] * 9
        with pytest.raises(RemoteError, match="Invalid authentication token"):
            peers.send("k")
        assert (len(peers.posts), peers.fetches) == (2, 2)

    def test_a_token_is_not_replaced_if_the_refusal_has_another_reason(self) -> None:
        peers = Peers(auth={AGENT: credentials()})
        peers.agent_does = [answer({"detail": "Sender does not match"}, 403)]
        with pytest.raises(RemoteError, match="Sender does not match"):
            peers.send()
        assert peers.fetches == 1

    def test_nothing_is_sent_to_an_agent_that_accepts_no_token(self) -> None:
        peers = Peers(auth={AGENT: credentials()})
        with pytest.raises(Unsuitable):
            peers.send(to=peers.destination(AGENT, AuthScheme(schemes=["basic"])))
        assert peers.effects == []

    def test_a_send_waits_for_a_provider_that_has_trouble(self) -> None:
        peers = Peers(auth={AGENT: credentials()}, retry=RetryPolicy())
        peers.provider_does = [error(503, retry_after="3"), LOST]
        peers.send()
        assert (peers.fetches, len(peers.posts)) == (3, 1)
        assert 4.0 < peers.posts[0].at < 8.0

    def test_a_refusal_by_the_provider_is_final(self) -> None:
        peers = Peers(auth={AGENT: credentials()}, retry=RetryPolicy())
        peers.provider_does = [error(401, "invalid_client")]
        with pytest.raises(NoToken, match="unknown client"):
            peers.send("k")
        assert (peers.fetches, peers.posts) == (1, [])

    def test_the_nonce_that_an_agent_asks_for_costs_one_more_request(self) -> None:
        peers = Peers(auth={AGENT: credentials(dpop=Key())})
        peers.token_type = "DPoP"
        headers = {"www_authenticate": 'DPoP error="use_dpop_nonce"', "dpop_nonce": "n-1"}
        peers.agent_does = [answer({"detail": "no"}, 401, **headers)]
        for _ in range(3):
            peers.send()
        proofs = [claims_of(post.headers["dpop"]) for post in peers.posts]
        assert [claims.get("nonce") for claims in proofs] == [None, "n-1", "n-1", "n-1"]
        assert len({claims["jti"] for claims in proofs}) == 4
        assert peers.fetches == 1


def is_ahead(peers: Peers, seconds: float) -> Does:
    """The agent refuses the timestamp: its clock is so far ahead of this one."""

    def does(_fetch: Fetch) -> Answer:
        details = {"server_time": utc(WallTime(peers.runtime.wall() + seconds)).isoformat()}
        return answer(own({"code": TIMESTAMP.taxonomy, "recoverable": True, "details": details}))

    return does


class TestWrongClock:
    @pytest.fixture
    def peers(self) -> Peers:
        return Peers(retry=RetryPolicy(), allow_http=["plain.example"])

    @pytest.mark.parametrize("ahead", [-3600.0, 3600.0, 86_400.0 * 365])
    def test_the_servers_time_is_used_after_a_refusal(self, peers, ahead) -> None:
        peers.agent_does = [is_ahead(peers, ahead)]
        peers.send()
        assert peers.posts[0].at == peers.posts[1].at, "there's no pause"
        assert peers.sender.wall(peers.to.allowed) == peers.runtime.wall() + ahead
        # Even if the local clock is set right.
        peers.clock.step_wall(ahead)
        assert peers.sender.wall(peers.to.allowed) == peers.runtime.wall()
        assert peers.sender.wall(peers.destination("https://other.example").allowed) == peers.runtime.wall()
        assert len(peers.posts) == 2

    def test_a_batch_is_corrected_too(self, peers) -> None:
        peers.agent_does = [is_ahead(peers, 3600.0)]
        assert len(peers.send_batch()) == 2
        assert len(peers.posts) == 2

    def test_a_correction_does_not_count_as_a_retry(self, peers) -> None:
        peers.agent_does = [is_ahead(peers, 3600.0), NOT_CONNECTED, NOT_CONNECTED]
        peers.send()
        assert len(peers.posts) == 4

    def test_a_correction_gives_no_further_attempt(self, peers) -> None:
        peers.agent_does = [is_ahead(peers, 3600.0), *[NOT_CONNECTED] * 3]
        with pytest.raises(Unreachable):
            peers.send()
        assert len(peers.posts) == 4

    def test_a_message_is_sent_twice_to_a_server_that_refuses_every_time(self, peers) -> None:
        peers.agent_does = [is_ahead(peers, 3600.0 * number) for number in range(1, 5)]
        with pytest.raises(RemoteError):
            peers.send()
        assert len(peers.posts) == 2

    def test_no_time_is_accepted_over_plain_http(self, peers) -> None:
        peers.agent_does = [is_ahead(peers, 3600.0)]
        with pytest.raises(RemoteError) as caught:
            peers.send(to=peers.destination("http://plain.example"))
        assert caught.value.taxonomy == TIMESTAMP.taxonomy
        assert len(peers.posts) == 1

    def test_proofs_have_the_time_of_the_agents_clock(self) -> None:
        peers = Peers(auth={AGENT: credentials(dpop=Key())})
        peers.token_type = "DPoP"
        peers.agent_does = [is_ahead(peers, 3600.0)]
        peers.send()
        dates = [claims_of(post.headers["dpop"])["iat"] for post in peers.posts]
        assert dates[1] - dates[0] == 3600


CLOSINGS: list[Callable[[Driver, Run[Any]], None]] = [Driver.close, Driver.lose]


class TestBreaker:
    @pytest.fixture
    def peers(self) -> Peers:
        return Peers(breaker=BreakerPolicy(threshold=2, rest=30.0))

    def failing(self, peers: Peers, times: int) -> Unreachable:
        for _ in range(times - 1):
            with pytest.raises(Unreachable):
                peers.send()
        with pytest.raises(Unreachable) as caught:
            peers.send()
        return caught.value

    def test_a_failing_host_is_paused_and_then_probed(self, peers) -> None:
        peers.agent_does = [NOT_CONNECTED] * 3
        error = self.failing(peers, 5)
        assert (len(peers.posts), error.next_try, error.sent) == (2, 30.0, False)
        assert str(error).startswith(
            "no answer from https://agent.example:443/asap: it failed repeatedly; requests are"
        )
        peers.advance(30)
        self.failing(peers, 2)
        assert len(peers.posts) == 3, "one probe"
        peers.advance(30)
        assert result(peers.send()) == {"runs": 1}
        assert result(peers.send()) == {"runs": 2}

    def test_a_send_does_not_wait_for_the_end_of_the_pause(self) -> None:
        peers = Peers(breaker=BreakerPolicy(threshold=1, rest=30.0), retry=RetryPolicy())
        peers.agent_does = [NOT_CONNECTED] * 9
        assert self.failing(peers, 1).next_try == 29.1, "rounded"
        assert (len(peers.posts), peers.clock.monotonic()) == (1, 0.95)

    def test_every_message_is_sent_without_a_breaker(self) -> None:
        peers = Peers()
        peers.agent_does = [NOT_CONNECTED] * 9
        self.failing(peers, 9)
        assert len(peers.posts) == 9

    def test_a_refusal_does_not_open_the_breaker(self, peers) -> None:
        peers.agent_does = [refused()] * 9
        for _ in range(9):
            with pytest.raises(RemoteError):
                peers.send()
        peers.send()

    def test_messages_to_other_hosts_are_sent(self, peers) -> None:
        peers.agent_does = [NOT_CONNECTED] * 2
        self.failing(peers, 2)
        peers.send(to=peers.destination("https://other.example"))

    def test_one_odd_message_does_not_open_the_breaker(self, peers) -> None:
        odd = [("403", "a page"), ("500", '`{"detail": …}`'), ("413", "nothing"), ("200", "a page"), ("429", "a page")]
        for status, shape in odd * 2:
            peers.agent_does = [shaped(peers, status, SHAPES[shape][0])]
            with pytest.raises((RemoteError, BadReply)):
                peers.send()
        assert result(peers.send()) == {"runs": 1}
        for status in ("502", "504"):
            peers.agent_does = [shaped(peers, status, SHAPES["a page"][0])]
            with pytest.raises(BadReply):
                peers.send()
        with pytest.raises(Unreachable, match="requests are paused"):
            peers.send()

    def test_a_batch_is_one_request(self, peers) -> None:
        peers.agent_does = [NOT_CONNECTED] * 2
        for _ in range(4):
            with pytest.raises(Unreachable):
                peers.send_batch(3)
        assert len(peers.posts) == 2

    def test_waiting_for_a_token_holds_no_permit(self) -> None:
        peers = Peers(auth={AGENT: credentials()}, breaker=BreakerPolicy(threshold=1, rest=30.0))
        peers.life = 20
        peers.agent_does = [NOT_CONNECTED]
        self.failing(peers, 1)
        peers.advance(30)
        peers.seconds = 5.0
        waiting = peers.start(peers.deliver())
        assert peers.sender._breakers is not None
        permit = peers.sender._breakers.ask(peers.to.allowed.origin, now=peers.runtime.now())
        assert isinstance(permit, Permit)
        assert permit.probe
        assert waiting.end is None

    @pytest.mark.parametrize("closing", CLOSINGS)
    @pytest.mark.parametrize("seconds", [0.0, 1.0])
    def test_another_probe_may_follow_a_closed_one(self, peers, closing, seconds) -> None:
        peers.agent_does = [NOT_CONNECTED] * 2
        self.failing(peers, 2)
        peers.advance(30)
        peers.agent_does = [After(seconds, answer({"detail": "no"}, 503))]
        probe = peers.start(peers.deliver())
        self.failing(peers, 1)
        closing(peers, probe)
        peers.runtime.take_wakes()
        assert result(peers.send()) == {"runs": 1}

    def test_closing_changes_no_breaker_until_the_wakes_are_taken(self, peers) -> None:
        peers.agent_does = [NOT_CONNECTED] * 2
        self.failing(peers, 2)
        peers.advance(30)
        program = peers.deliver()
        next(program)
        program.close()
        program = peers.deliver()
        with pytest.raises(Unreachable):
            next(program)
        peers.runtime.take_wakes()
        assert result(peers.send()) == {"runs": 1}

    def test_another_probe_may_follow_one_that_raised_an_unexpected_error(self, peers) -> None:
        peers.agent_does = [NOT_CONNECTED] * 2
        self.failing(peers, 2)
        peers.advance(30)
        program = peers.deliver()
        next(program)
        with pytest.raises(TypeError, match="a Fetch is answered by"):
            program.send(Completed())
        assert result(peers.send()) == {"runs": 1}

    def test_a_timeout_counts_as_a_failure(self, peers) -> None:
        peers.agent_does = [Expired()] * 2
        for _ in range(2):
            with pytest.raises(TimedOut):
                peers.send()
        with pytest.raises(Unreachable, match="requests are paused"):
            peers.send()
