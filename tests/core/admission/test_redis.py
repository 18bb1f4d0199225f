"""Shared admission without a server: the commands, the meaning of replies, and the refusal of invalid ones."""

from contextlib import suppress

import pytest
from attrs import evolve
from hypothesis import given, strategies as st

from asap_core.admission.admission import (
    AdmissionQuestion,
    Admitted,
    AnswerGone,
    Future,
    Mismatch,
    OutcomeUnknown,
    Reservation,
    Running,
    Stale,
    Stored,
)
from asap_core.admission.policy import Policy
from asap_core.admission.ratelimit import Granted, Left, Limited, parse_limits
from asap_core.admission.redis import Begin, Command, SharedAdmission, SharedLimits
from asap_core.admission.redis_scripts import ADMIT, BEGIN, CLAIM, FINISH, SETTLE, TAKE
from asap_core.admission.replay import Floored, Replayed, Saturated
from asap_core.admission.state_file import outcome_to_json
from asap_core.clock import WallTime
from asap_core.errors import BadStore
from asap_core.refusals import HANDLER_FAILED, Refusal
from asap_core.wire.handler_reply import Replied
from asap_core.wire.json import write_json

AGENT = "urn:asap:agent:shop"
SECRET, OTHER = b"s" * 32, b"o" * 32
MARK = b"m" * 8
QUESTION = AdmissionQuestion(
    sender="urn:asap:agent:alice",
    authenticated=True,
    peer="192.0.2.1",
    nonce="n1",
    issued=WallTime(1_750_000_000.25),
    idempotency_key=None,
    digest=b"",
    deadline=30.0,
)
KEYED = evolve(QUESTION, idempotency_key="k", digest=b"d" * 16)


def shared(agent: str = AGENT, secret: bytes = SECRET, **policy) -> SharedAdmission:
    return SharedAdmission(agent, Policy(**policy), secret=secret)


def begun(admission: SharedAdmission, server: bytes = b"run1") -> SharedAdmission:
    """Begun by itself: the server took what was proposed."""
    secret, epoch, *_ = admission.begin().arguments
    admission.begun([b"begun", server, secret, epoch])
    return admission


class TestBegin:
    def test_begin_proposes_a_secret_and_names_its_window(self) -> None:
        command = shared(max_age=60.0, skew=0.5, start="exact").begin()
        assert command.script is BEGIN
        assert command.arguments[0] == SECRET
        assert command.arguments[2:] == (b"exact", b"60000000", b"500000")
        assert len(command.keys) == 1
        assert len(command.arguments[1]) == 8

    def test_a_question_before_begin_names_no_server(self) -> None:
        assert shared().ask(QUESTION, token=MARK).arguments[0] == b""

    def test_the_keys_of_an_agent_are_its_own_and_in_one_hash_slot(self) -> None:
        ours, theirs = shared().ask(KEYED, token=MARK).keys, shared("urn:asap:agent:b").ask(KEYED, token=MARK).keys
        assert not set(ours) & set(theirs)
        assert len({key[key.index(b"{") : key.index(b"}")] for key in ours}) == 1
        assert len(set(ours)) == len(ours) == 7

    def test_the_first_secret_is_used_by_all(self) -> None:
        first, second = begun(shared()), shared(secret=OTHER)
        assert first.ask(KEYED, token=MARK) != begun(shared(secret=OTHER)).ask(KEYED, token=MARK)
        secret, epoch, *_ = first.begin().arguments
        second.begun([b"begun", b"run1", secret, epoch])
        assert second.ask(KEYED, token=MARK) == first.ask(KEYED, token=MARK)

    def test_each_question_names_the_server_of_the_latest_begin(self) -> None:
        admission = begun(shared(), b"run1")
        assert admission.ask(QUESTION, token=MARK).arguments[0] == b"run1"
        assert begun(admission, b"run2").ask(QUESTION, token=MARK).arguments[0] == b"run2"

    @pytest.mark.parametrize(
        ("reply", "says"),
        [
            ([b"evicts"], "expected maxmemory-policy noeviction"),
            ([b"window", b"60000000", b"500000"], "expected a policy with max_age=60, skew=0.5"),
            ([b"begun", b"run1", SECRET, b"not its epoch"], "something else"),
            ([], "something else"),
            ([b"window", b"x", b"1"], "expected a number of microseconds"),
        ],
    )
    def test_an_unusable_reply_raises_bad_store_with_what_is_expected(self, reply, says: str) -> None:
        with pytest.raises(BadStore, match=says):
            shared().begun(reply)

    def test_a_secret_is_32_bytes(self) -> None:
        with pytest.raises(ValueError, match="expected a secret of 32 random bytes"):
            shared(secret=b"short")


class TestAsk:
    def test_a_question_without_a_key_claims_a_nonce_and_reserves_nothing(self) -> None:
        admission = begun(shared(nonces_per_sender=7, nonce_capacity=100, max_age=60.0, skew=1.0))
        command = admission.ask(QUESTION, token=MARK)
        server, _, issued, nonce, most, capacity, max_age, skew = command.arguments
        assert (command.script, len(command.keys)) == (CLAIM, 3)
        assert (server, issued, len(nonce)) == (b"run1", b"1750000000250000", 24)
        assert (most, capacity, max_age, skew) == (b"7", b"100", b"60000000", b"1000000")
        assert admission.reservation_of(command) is None

    def test_anonymous_senders_count_as_one_sender_with_half_of_the_capacity(self) -> None:
        admission = begun(shared(nonce_capacity=101))
        asked = [
            admission.ask(evolve(QUESTION, authenticated=False, sender=f"urn:asap:agent:{name}"), token=MARK).arguments
            for name in "ab"
        ]
        assert asked[0][3][:8] == asked[1][3][:8] == bytes(8)
        assert asked[0][3] != asked[1][3]
        assert asked[0][4] == b"50"
        tiny = begun(shared(nonce_capacity=1)).ask(evolve(QUESTION, authenticated=False), token=MARK)
        assert tiny.arguments[4] == b"1"

    def test_no_two_nonces_of_any_senders_have_the_same_digest(self) -> None:
        admission = begun(shared())
        different = [
            QUESTION,
            evolve(QUESTION, authenticated=False),
            evolve(QUESTION, nonce="n2"),
            evolve(QUESTION, sender="urn:asap:agent:bob"),
            evolve(QUESTION, sender="urn:asap:agent:alice1", nonce="n1"),
            evolve(QUESTION, sender="urn:asap:agent:alice", nonce="1n1"),
        ]
        assert len({admission.ask(one, token=MARK).arguments[3] for one in different}) == len(different)

    def test_a_question_without_a_nonce_claims_none(self) -> None:
        assert begun(shared()).ask(evolve(KEYED, nonce=None), token=MARK).arguments[3] == b""

    def test_a_question_with_a_key_reserves_it(self) -> None:
        admission = begun(shared(idempotency_ttl=60.0, idempotency_entries=9))
        command = admission.ask(KEYED, token=MARK)
        key, digest, token, deadline, ttl, entries = command.arguments[8:]
        assert (command.script, len(command.keys)) == (ADMIT, 7)
        assert (len(key), digest, token, deadline, ttl, entries) == (
            16,
            b"d" * 16,
            MARK,
            b"35000000",
            b"60000000",
            b"9",
        )
        assert admission.reservation_of(command) == Reservation(key + MARK)
        assert admission.answer([b"admitted"], command) == Admitted(Reservation(key + MARK))

    def test_a_key_belongs_to_the_caller_that_asks(self) -> None:
        admission = begun(shared())
        anonymous = evolve(KEYED, authenticated=False)
        asked = [KEYED, evolve(KEYED, sender="urn:asap:agent:bob"), anonymous, evolve(anonymous, peer="192.0.2.2")]
        assert len({admission.ask(one, token=MARK).arguments[8] for one in asked}) == len(asked)
        assert (
            admission.ask(KEYED, token=MARK).arguments[8]
            == admission.ask(evolve(KEYED, peer="192.0.2.9", nonce="n9"), token=MARK).arguments[8]
        )

    def test_names_and_digests_are_the_same_in_every_version(self) -> None:
        # Processes of two versions share a server while they're replaced one by one: what one wrote, the other finds.
        command = begun(shared()).ask(KEYED, token=MARK)
        assert command.keys[0] == b"asap:{9e4035b89070f6b467b8e021}:meta"
        assert [command.arguments[place].hex() for place in (1, 3, 8)] == [
            "ea0e2291ebe27515",
            "4718a476d1ba396a06169eda4b643eaf0b13c20c3bf945e7",
            "e82decc9465f9fafb867f06ef0e25d95",
        ]

    OUTCOME = Replied("task.response", {"task_id": "t"})
    BROKEN = Refusal(kind=HANDLER_FAILED)
    ANSWERS = [
        ([b"admitted"], Admitted(None)),
        ([b"begin"], Begin()),
        ([b"replayed"], Replayed()),
        ([b"mismatch"], Mismatch()),
        ([b"gone"], AnswerGone()),
        ([b"lost"], OutcomeUnknown()),
        ([b"running", b"30000000"], Running(0.5)),
        ([b"running", b"200000"], Running(0.2)),
        ([b"saturated", b"2500000"], Saturated(2.5)),
        ([b"saturated", b"-5"], Saturated(1.0)),
        ([b"floored", b"2000000"], Floored(3.0)),
        ([b"floored", b"-2000000"], Floored(1.0)),
        ([b"stale", b"1750000000250000"], Stale(WallTime(1_750_000_000.25))),
        ([b"future", b"1750000000250000"], Future(WallTime(1_750_000_000.25))),
        ([b"stored", write_json(outcome_to_json(OUTCOME))], Stored(OUTCOME)),
        ([b"stored", write_json(outcome_to_json(BROKEN))], Stored(BROKEN)),
    ]

    @pytest.mark.parametrize(("reply", "answer"), ANSWERS, ids=lambda value: str(value)[:24])
    def test_each_reply_is_read_as_its_answer(self, reply, answer) -> None:
        admission = begun(shared())
        assert admission.answer(reply, admission.ask(QUESTION, token=MARK)) == answer

    @given(
        st.recursive(
            st.none() | st.binary(max_size=20) | st.integers() | st.sampled_from([b"stored", b"running", b"begin"]),
            lambda inner: st.lists(inner, max_size=4),
        )
    )
    def test_any_reply_is_an_answer_or_a_bad_store(self, reply) -> None:
        admission = begun(shared())
        limits = SharedLimits(AGENT, "peer", parse_limits("1/second"), capacity=9)
        for read in (
            lambda: admission.answer(reply, admission.ask(KEYED, token=MARK)),
            lambda: admission.begun(reply),
            lambda: limits.taken(reply),
        ):
            with suppress(BadStore):  # anything else that's raised is a bug
                read()

    @pytest.mark.parametrize("reply", [[b"nonsense"], [b"admitted", b"1"], [b"stale"], [b"running", b"soon"], None])
    def test_an_invalid_reply_raises_bad_store(self, reply) -> None:
        admission = begun(shared())
        with pytest.raises(BadStore, match=r"expected (an answer of admission|a number of microseconds)"):
            admission.answer(reply, admission.ask(QUESTION, token=MARK))

    @pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"refused": "no such"}', b'{"type": 1}', b"\xff"])
    def test_an_answer_in_another_format_raises_bad_store(self, text: bytes) -> None:
        admission = begun(shared())
        with pytest.raises(BadStore, match="that this version wrote"):
            admission.answer([b"stored", text], admission.ask(KEYED, token=MARK))


class TestEnd:
    def test_each_end_names_the_reservation(self) -> None:
        admission = begun(shared(idempotency_ttl=60.0, idempotency_bytes=99))
        reservation = Reservation(b"k" * 16 + MARK)
        record = admission.record(reservation, Replied("task.response", {"a": 1}))
        assert record.script is FINISH
        assert record.arguments[:2] == (b"k" * 16, MARK)
        assert record.arguments[2:] == (b'{"type":"task.response","payload":{"a":1}}', b"60000000", b"99")
        lose, free = admission.lose(reservation), admission.give_back(reservation)
        assert lose == Command(SETTLE, record.keys, (b"k" * 16, MARK, b"lost", b"60000000"))
        assert free == Command(SETTLE, record.keys, (b"k" * 16, MARK, b"free", b"60000000"))


class TestLimits:
    def test_a_limit_command_has_the_rates(self) -> None:
        limits = SharedLimits(AGENT, "principal", parse_limits("10/second;100/minute"), capacity=50)
        command = limits.take("urn:asap:agent:alice", cost=3, partial=True)
        assert command.script is TAKE
        assert command.arguments[1:] == (b"3", b"1", b"50", b"1000000", b"10", b"60000000", b"100")
        assert len(command.arguments[0]) == 16
        assert limits.take("other", cost=3, partial=False).arguments[:3] != command.arguments[:3]
        assert SharedLimits(AGENT, "peer", (), capacity=1).take("a", cost=1, partial=False).keys != command.keys

    def test_a_limit_reply_says_what_is_left(self) -> None:
        second, minute = parse_limits("10/second;100/minute")
        limits = SharedLimits(AGENT, "peer", (second, minute), capacity=50)
        assert limits.taken([b"taken", b"3", b"300000", b"1800000"]) == Granted(
            3, (Left(second, 7, 0.3), Left(minute, 97, 1.8))
        )
        assert limits.taken([b"taken", b"0", b"2000000", b"-5"]) == Granted(
            0, (Left(second, 0, 2.0), Left(minute, 100, 0.0))
        )
        assert limits.taken([b"limited", b"250000", b"1"]) == Limited(0.25, "100 per 1 minute")

    @pytest.mark.parametrize(
        "reply",
        [[b"limited", b"1", b"2"], [b"limited", b"1", b"-1"], [b"taken", b"1"], [b"taken", b"x", b"1", b"1"]],
    )
    def test_an_invalid_reply_raises_bad_store(self, reply) -> None:
        limits = SharedLimits(AGENT, "peer", parse_limits("10/second;100/minute"), capacity=50)
        with pytest.raises(BadStore, match="a limiter"):
            limits.taken(reply)

    @pytest.mark.parametrize("owed", [1, b"", b"x", b"1" * 19])
    def test_a_time_that_is_no_number_is_refused(self, owed) -> None:
        limits = SharedLimits(AGENT, "peer", parse_limits("10/second"), capacity=50)
        with pytest.raises(BadStore, match="number of microseconds"):
            limits.taken([b"taken", b"1", owed])
