"""Admission: nonces, idempotency keys and dates, in memory and by the state `Admit`."""

import json
from typing import Any

import pytest
from attrs import asdict

from asap_core import (
    Admit,
    Authenticated,
    Hold,
    ManualClock,
    NoncePolicy,
    Policy,
    Record,
    Refusal,
    Replied,
    Request,
    StartPolicy,
)
from asap_core.admission import admission
from asap_core.admission.replay import Floored, Replayed, Saturated
from asap_core.clock import WallTime
from asap_core.refusals import BUSY, HANDLER_FAILED
from asap_core.server.events import What
from asap_core.wire.jsonrpc import MAX_ID
from tests.builders import AGENT, ALICE, call
from tests.core.server.exchanges import body, finish, head, outcome, post, reply, serve


class TestAdmission:
    @pytest.mark.parametrize("policy", list(NoncePolicy))
    @pytest.mark.parametrize("nonce", [True, False])
    def test_the_policy_decides_if_a_nonce_or_an_id_identifies_an_envelope(self, policy, nonce) -> None:
        extensions = {"nonce": "n"} if nonce else None
        agent = serve(nonce=policy)
        first, again = (
            outcome(post(agent, call(envelope_changes={"id": "same", "extensions": extensions}))) for _ in range(2)
        )
        if policy is NoncePolicy.REQUIRED and not nonce:
            assert first == "asap:protocol/malformed_envelope"
        else:
            assert first == "ok"
            assert again == ("ok" if policy is NoncePolicy.OFF else "asap:protocol/invalid_nonce")

    @pytest.mark.parametrize(("nonce", "what"), [(..., "missing"), (5, "wrong"), ("", "wrong")])
    def test_a_missing_nonce_and_an_invalid_one_are_distinct_refusals(self, nonce, what) -> None:
        changes = {} if nonce is ... else {"extensions": {"nonce": nonce}}
        value = json.loads(post(serve(nonce=NoncePolicy.REQUIRED), call(envelope_changes=changes)).body)
        assert [error["type"] for error in value["error"]["data"]["validation_errors"]] == [what]

    @pytest.mark.parametrize("nonce", ["x", "ix", "nx"])
    def test_a_nonce_and_an_equal_envelope_id_are_distinct(self, nonce) -> None:
        agent = serve()
        assert outcome(post(agent, call(envelope_changes={"extensions": {"nonce": nonce}}))) == "ok"
        assert outcome(post(agent, call(envelope_changes={"id": "x"}))) == "ok"

    @pytest.mark.parametrize(
        ("policy", "may", "must"),
        [
            ({"require_id": False}, "id", "timestamp"),
            ({"require_timestamp": False, "nonce": NoncePolicy.OFF}, "timestamp", "id"),
        ],
    )
    def test_policy_makes_each_field_optional_separately(self, policy, may, must) -> None:
        agent = serve(**policy)
        assert outcome(post(agent, call(envelope_changes={may: ...}))) == "ok"
        assert outcome(post(agent, call(envelope_changes={must: ...}))) == "asap:protocol/malformed_envelope"

    def test_an_optional_field_is_checked_if_it_is_there(self) -> None:
        agent = serve(require_id=False, require_timestamp=False, nonce=NoncePolicy.OFF)
        asked = call(envelope_changes={"id": "mine"})
        # In another order too, which isn't read as a plain call.
        for text in (asked, dict(reversed(asked.items()))):
            assert json.loads(post(agent, text).body)["result"]["envelope"]["correlation_id"] == "mine"
        assert outcome(post(agent, call(envelope_changes={"timestamp": 0}))) == "asap:protocol/invalid_timestamp"

    def test_old_peers_may_omit_the_fields_that_the_policy_makes_optional(self) -> None:
        agent = serve(**asdict(Policy.reference(), recurse=False) | {"peer_limits": ()})
        for left_out in (..., None):
            changes = {"id": left_out, "timestamp": left_out, "recipient": "urn:asap:agent:any"}
            assert outcome(post(agent, call(envelope_changes=changes))) == "ok"

    @pytest.mark.parametrize(
        ("version", "code"),
        [
            ("0.1", "ok"),
            ("0.2.5", "ok"),
            ("1.0", "asap:protocol/version_incompatible"),
            ("99", "asap:protocol/version_incompatible"),
            ("", "asap:protocol/version_incompatible"),
        ],
    )
    def test_an_envelope_of_another_major_version_is_refused(self, version, code) -> None:
        other = call(envelope_changes={"asap_version": version})
        assert outcome(post(serve(), other)) == code
        assert outcome(post(serve(check_version=False), other)) == "ok"

    def test_the_sender_of_a_message_must_be_the_sender_of_its_envelope(self) -> None:
        options: Any = {"payload_types": ["task.request", "message.send"]}
        payload = {"task_id": "t", "message_id": "m", "sender": ALICE, "role": "user", "parts": []}
        for sender, code in ((ALICE, "ok"), ("urn:asap:agent:other", "asap:auth/sender_mismatch")):
            message = call(envelope_changes={"payload_type": "message.send", "payload": {**payload, "sender": sender}})
            assert outcome(post(serve(**options), message)) == code
            assert outcome(post(serve(**options, check_payload_sender=False), message)) == "ok"

    def test_the_sender_of_an_answer_is_the_agent_that_answers(self) -> None:
        other = call(envelope_changes={"recipient": "urn:asap:agent:any"})
        answer = json.loads(post(serve(check_recipient=False), other).body)["result"]["envelope"]
        assert answer["sender"] == AGENT
        alias = serve(aliases=["urn:asap:agent:any"])
        assert json.loads(post(alias, other).body)["result"]["envelope"]["sender"] == "urn:asap:agent:any"

    def test_a_repeated_key_gets_the_first_answer_under_the_new_id(self) -> None:
        agent = serve()
        first = json.loads(post(agent, call(1, key="k")).body)
        again = json.loads(post(agent, call(2, key="k")).body)
        assert again["id"] == 2
        assert again["result"]["envelope"]["payload"] == first["result"]["envelope"]["payload"]
        assert again["result"]["envelope"]["correlation_id"] != first["result"]["envelope"]["correlation_id"]

    def test_a_refusal_after_a_restart_says_so_and_does_not_blame_load(self) -> None:
        told: Any = []
        agent = serve(start=StartPolicy.FLOOR, observe=told.append)
        answer = post(agent, call(key="k", envelope_changes={"timestamp": "2025-06-15T15:06:39Z"}))
        error = json.loads(answer.body)["error"]
        assert (answer.status, error["code"], error["data"]["code"]) == (503, -32067, "asap:admission/restarted")
        assert (error["data"]["recoverable"], error["data"]["retry_after"]) == (True, 1)
        assert dict(answer.headers)[b"retry-after"] == b"1"
        assert "last start" in error["message"] == error["data"]["error"]
        assert [each.what for each in told] == [What.RESTARTED]

    def test_a_key_may_come_as_a_header(self) -> None:
        agent = serve()
        post(agent, call(envelope_changes={"id": "a"}), x_idempotency_key="k")
        assert outcome(post(agent, call(envelope_changes={"id": "a"}), x_idempotency_key="k")) == "ok"
        assert outcome(post(agent, call(envelope_changes={"id": "a"}, key="k"), x_idempotency_key="k")) == "ok"

    @pytest.mark.parametrize("key", [" k ", "k" * MAX_ID])
    def test_a_key_may_be_as_long_in_a_header_as_elsewhere(self, key) -> None:
        assert outcome(post(serve(), call(key=key.strip()), x_idempotency_key=key)) == "ok"

    UNKNOWN = ["", "unix", "testclient", "0.0.0.0", "::", "_hidden", "192.0.2.1, 192.0.2.2", "1" * 100]

    @pytest.mark.parametrize("peer", UNKNOWN)
    def test_no_key_is_kept_without_an_address_or_a_principal(self, peer) -> None:
        agent = serve()
        for asked, headers in ((call(key="k", envelope_changes={"id": "a"}), {}), (call(), {"x_idempotency_key": "k"})):
            response = post(agent, asked, peer=peer, **headers)
            assert outcome(response) == "asap:protocol/malformed_envelope"
            for what_to_do in (b"expected no key, or a caller who authenticates", b"over TCP", b"(trusted_proxies)"):
                assert what_to_do in response.body
        # Nothing was spent for it, and without a key it's served.
        assert outcome(post(agent, call(envelope_changes={"id": "a"}), peer=peer)) == "ok"
        batch = json.loads(post(agent, [call(1, key="k"), call(2)], peer=peer).body)
        assert ["error" in one for one in batch] == [True, False]

    @pytest.mark.parametrize("peer", UNKNOWN)
    def test_a_principal_needs_no_address_for_its_keys(self, peer) -> None:
        agent = serve(auth=True)
        for _ in range(2):
            assert outcome(post(agent, call(key="k"), peer=peer, authorization="Bearer x")) == "ok"

    @pytest.mark.parametrize(
        ("told", "known"),
        [
            ("198.51.100.7", True),
            ("198.51.100.7, 10.0.0.2", True),
            ("10.1.1.1", True),
            (None, True),
            ("unknown", False),
            ("", False),
            ("198.51.100.7, _hidden, 10.0.0.3", False),
            ("198.51.100.7" + ", 10.0.0.2" * 20, False),
            ("10.0.0.2" + ", 10.0.0.2" * 19, True),
        ],
    )
    def test_no_key_is_kept_if_a_proxy_names_no_address(self, told, known) -> None:
        agent = serve(trusted_proxies=("10.0.0.0/8",))
        headers = {} if told is None else {"x_forwarded_for": told}
        expected = "ok" if known else "asap:protocol/malformed_envelope"
        assert outcome(post(agent, call(key="k"), peer="10.0.0.1", **headers)) == expected

    @pytest.mark.parametrize("key", ["k\xa0", "\x85k", "é", "a\x1fb"])
    def test_a_key_in_a_header_is_printable_ascii(self, key) -> None:
        request = Request(
            method="POST", target="/asap", headers=((b"x-idempotency-key", key.encode("latin-1")),), peer="192.0.2.1"
        )
        response = finish(serve().open(request).feed(json.dumps(call()).encode()).end())
        assert outcome(response) == "asap:protocol/malformed_envelope"

    @pytest.mark.parametrize("value", ["other", "", "x" * 300])
    def test_two_keys_that_differ_are_refused(self, value) -> None:
        assert outcome(post(serve(), call(key="k"), x_idempotency_key=value)) == "asap:protocol/malformed_envelope"

    def test_a_key_in_the_header_of_an_unreadable_body_changes_nothing(self) -> None:
        assert outcome(post(serve(), {}, x_idempotency_key="k")) == "asap:rpc/invalid_request"

    def test_a_key_in_the_config_of_a_task_is_ignored(self) -> None:
        payload = {"conversation_id": "c", "skill_id": "echo", "input": {}, "config": {"idempotency_key": "other"}}
        assert outcome(post(serve(), call(key="k", envelope_changes={"payload": payload}))) == "ok"

    def test_a_call_that_never_ran_frees_its_key(self) -> None:
        agent = serve()

        def busy(state):
            return state.turned_away(Refusal(kind=BUSY, retry_after=1.0))

        response = post(agent, call(key="k"), answer=busy)
        assert (response.status, outcome(response)) == (503, "asap:transport/thread_pool_exhausted")
        assert dict(response.headers)[b"retry-after"] == b"1"
        assert outcome(post(agent, call(key="k"))) == "ok"

    def test_a_refusal_without_a_time_has_no_retry_after(self) -> None:
        response = post(serve(), call(), answer=lambda state: state.turned_away(Refusal(kind=BUSY)))
        assert (response.status, b"retry-after" in dict(response.headers)) == (503, False)

    @pytest.mark.parametrize(("leave", "then"), [("lost", "asap:admission/outcome_unknown"), ("abandon", "ok")])
    def test_a_lost_call_makes_its_key_unknown_and_an_abandoned_one_frees_it(self, leave, then) -> None:
        agent = serve()
        (dispatch,) = agent.open(head()).feed(json.dumps(call(key="k")).encode()).end().calls
        assert dispatch.shielded
        getattr(dispatch, leave)()
        assert agent.active == 0
        assert outcome(post(agent, call(key="k"))) == then

    ANSWERS = [
        (Replayed(), "asap:protocol/invalid_nonce", 200),
        (Saturated(5.0), "asap:admission/saturated", 503),
        (Floored(5.0), "asap:admission/restarted", 503),
        (admission.Mismatch(), "asap:admission/key_mismatch", 200),
        (admission.OutcomeUnknown(), "asap:admission/outcome_unknown", 200),
        (admission.AnswerGone(), "asap:admission/answer_gone", 200),
        (admission.Stale(WallTime(2e9)), "asap:protocol/invalid_timestamp", 200),
        (admission.Future(WallTime(1e9)), "asap:protocol/invalid_timestamp", 200),
        (admission.StoreUnavailable(2.0), "asap:admission/unavailable", 503),
        (admission.Stored(Replied("task.response", {"task_id": "t", "status": "completed"})), "ok", 200),
        (admission.Stored(Refusal(kind=HANDLER_FAILED)), "asap:rpc/internal_error", 200),
    ]

    @pytest.mark.parametrize(("given_answer", "code", "status"), ANSWERS, ids=lambda value: type(value).__name__)
    def test_a_shared_store_answers_with_the_same_types(self, given_answer, code, status) -> None:
        state = serve(shared=True).open(head()).feed(json.dumps(call(key="k")).encode()).end()
        (admit,) = state.calls
        assert isinstance(admit, Admit)
        response = state.answered([admit.answered(given_answer)]).response
        assert (response.status, outcome(response)) == (status, code)
        assert (b"retry-after" in dict(response.headers)) is (status == 503)

    @pytest.mark.parametrize("auth", [False, True])
    def test_the_question_to_a_store_has_all_facts_that_its_answer_depends_on(self, auth) -> None:
        state = serve(shared=True, auth=auth).open(head(authorization="Bearer t"))
        state = state.verified(Authenticated(ALICE)) if auth else state
        asked = [call(1, envelope_changes={"id": "a"}), call(2, key="k", envelope_changes={"id": "b"})]
        plain, keyed = (one.question for one in state.feed(json.dumps(asked).encode()).end().calls)
        facts = {"sender": ALICE, "authenticated": auth, "peer": "192.0.2.1", "issued": 1750000000.0, "deadline": 30.0}
        assert plain == admission.AdmissionQuestion(nonce="ia", idempotency_key=None, digest=b"", **facts)
        assert keyed == admission.AdmissionQuestion(nonce="ib", idempotency_key="k", digest=keyed.digest, **facts)
        assert len(keyed.digest) == 16

    @pytest.mark.parametrize(
        ("age", "offset", "what"),
        [
            (0.12345, {"age_seconds": 0.123}, What.STALE),
            (400.0, {"age_seconds": 400.0}, What.STALE),
            (-0.12345, {"future_offset_seconds": 0.123}, What.FUTURE),
        ],
    )
    def test_a_store_with_another_clock_may_refuse_a_date_as_stale_or_future(self, age, offset, what) -> None:
        clock, told = ManualClock(), []  # type: ignore[var-annotated]
        issued = call(envelope_changes={"timestamp": 1750000000.0})
        agent = serve(shared=True, clock=clock, max_age=500.0, observe=told.append)
        state = agent.open(head()).feed(json.dumps(issued).encode()).end()
        theirs = WallTime(1750000000.0 + age)
        answered = state.calls[0].answered(admission.Stale(theirs) if age > 0 else admission.Future(theirs))
        details = json.loads(answered.body)["error"]["data"]["details"]
        assert offset.items() <= details.items()
        assert (told[-1].what, told[-1].age) == (what, pytest.approx(age))

    def test_a_store_with_its_own_tickets_is_polled_too(self) -> None:
        (asked,) = serve(shared=True).open(head()).feed(json.dumps(call(key="k")).encode()).end().calls
        held = asked.answered(admission.Running(0.5, b"theirs"))
        assert (held.ticket, held.seconds) == (None, 0.5)

    def test_work_in_another_process_is_polled_until_hold_ends(self) -> None:
        clock = ManualClock()
        state = serve(shared=True, clock=clock, hold=1.2).open(head()).feed(json.dumps(call(key="k")).encode()).end()
        (asked,) = state.calls
        waited = []
        while isinstance(asked, Admit):
            held = asked.answered(admission.Running(0.5))
            if isinstance(held, Hold):
                assert held.ticket is None
                waited.append(round(held.seconds, 6))
                clock.advance(held.seconds)
                asked = held.again()
            else:
                asked = held
        assert waited == [0.5, 0.5, 0.2]
        response = state.answered([asked]).response
        assert (response.status, outcome(response)) == (200, "asap:admission/still_running")
        assert json.loads(response.body)["error"]["data"]["retry_after_ms"] == 500
        assert json.loads(response.body)["error"]["data"]["recoverable"] is True

    def test_an_invalid_answer_of_a_store_is_a_bug(self) -> None:
        (admit,) = serve(shared=True).open(head()).feed(json.dumps(call()).encode()).end().calls
        with pytest.raises(TypeError, match="recorded"):
            admit.answered(admission.Stored("x"))

    def test_with_a_shared_store_the_driver_keeps_the_answer(self) -> None:
        agent = serve(shared=True)
        state = agent.open(head()).feed(json.dumps(call(key="k")).encode()).end()
        dispatch = state.calls[0].answered(admission.Admitted(admission.Reservation(b"r")))
        record = reply(dispatch)
        assert isinstance(record, Record)
        assert (record.reservation, record.size > 100) == (admission.Reservation(b"r"), True)
        assert outcome(state.answered([record.recorded()]).response) == "ok"
        state = agent.open(head()).feed(json.dumps(call(key="k")).encode()).end()
        dispatch = state.calls[0].answered(admission.Admitted(admission.Reservation(b"r")))
        dispatch.abandon()
        assert agent.active == 0


class TestColdStarts:
    """A request starts the process: it's dated before the agent has its clock."""

    def instance(self, *, seconds=2.0, **policy):
        """An agent that started so long after the envelopes' date."""
        clock = ManualClock()
        clock.advance(seconds)
        return serve(clock=clock, **policy)

    @pytest.mark.parametrize("start", ["floor", "exact"])
    @pytest.mark.parametrize("seconds", [0.0, 2.0])
    def test_the_first_request_is_refused_as_dated_before_the_start(self, start, seconds) -> None:
        response = post(self.instance(start=start, seconds=seconds), call())
        assert (response.status, outcome(response)) == (503, "asap:admission/restarted")

    def test_an_open_start_accepts_the_first_request_once(self) -> None:
        agent, asked = self.instance(start="open"), call()
        assert outcome(post(agent, asked)) == "ok"
        assert outcome(post(agent, asked)) == "asap:protocol/invalid_nonce"

    def test_another_process_with_an_open_start_may_accept_a_replay(self) -> None:
        asked, keyed = call(), call(key="k")
        for seconds in (2.0, 2.0, 299.0):
            agent = self.instance(start="open", seconds=seconds)
            worked: list[int] = []
            assert outcome(post(agent, asked)) == "ok"
            for _ in range(2):
                post(agent, keyed, answer=lambda state, worked=worked: (worked.append(1), reply(state))[1])
            assert worked == [1]

    @pytest.mark.parametrize(("max_age", "seconds"), [(300.0, 301.0), (30.0, 31.0)])
    def test_an_open_start_still_refuses_a_stale_timestamp(self, max_age, seconds) -> None:
        agent = self.instance(start="open", max_age=max_age, seconds=seconds)
        assert outcome(post(agent, call())) == "asap:protocol/invalid_timestamp"

    def test_with_a_shared_store_the_store_decides_about_the_start(self) -> None:
        state = self.instance(start="floor", shared=True).open(head()).feed(body()).end()
        assert isinstance(state.calls[0], Admit)
