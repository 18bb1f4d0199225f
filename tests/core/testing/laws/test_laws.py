"""The laws in this process, on this library's agent: all are kept; and what the runner makes of what a law does."""

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from attrs import evolve

from asap_core.admission.policy import Policy
from asap_core.clock import ManualClock
from asap_core.testing.laws.catalogue import GROUPS, LAWS, chosen
from asap_core.testing.laws.checks import accepted, check, refused, repeated
from asap_core.testing.laws.effects import (
    AdvanceClock,
    AnswersToBytes,
    ConverseTogether,
    Passed,
    Pause,
    ResetTarget,
    SendBytes,
    SendRequest,
    SendTogether,
    Steps,
)
from asap_core.testing.laws.http_messages import Answer, HttpRequest
from asap_core.testing.laws.in_process import ALICE, BOB, CallableExecutor, local_executor
from asap_core.testing.laws.lab import ABSENT, Caller, Lab, changed
from asap_core.testing.laws.law import Law, LawGroup, by_id
from asap_core.testing.laws.runner import HookRun, LawResult, Recorder, Report, run_law, run_laws
from asap_core.testing.laws.survey import AgentUnderTest, NoManifest, survey
from asap_core.testing.laws.text_report import text_report
from asap_core.testing.laws.verdicts import Breach, Kept, LawBroken, LawNotTried, Need, NotTried, RateLimited
from asap_core.wire.json_values import Json


def surveyed(executor: CallableExecutor, clock: ManualClock, **fields: Any) -> Lab:
    numbers = itertools.count()
    described = AgentUnderTest(
        host="localhost", token="token-of-alice", urn=ALICE, other_token="token-of-bob", other_urn=BOB,
        failing="fail", offers=executor.offers | {Need.DIRECT},
    )  # fmt: skip
    steps = survey(evolve(described, **fields), wall=clock.wall, ids=lambda: f"conform-{next(numbers)}")
    lab = Recorder(executor, clock.monotonic).run(steps)
    assert isinstance(lab, Lab)
    return lab


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def test_this_librarys_agent_keeps_every_law(clock) -> None:
    executor = local_executor(clock)
    results = [*run_laws(LAWS, surveyed(executor, clock), executor, clock.monotonic)]
    assert [(each.law.id, each.remark) for each in results if each.outcome is LawResult.FAILED] == []
    skipped = [each.law for each in results if each.outcome is LawResult.SKIPPED]
    others = {law.id for law in skipped if not law.needs & {Need.BYTES, Need.OPEN}}
    # Without I/O it doesn't know br, and its clock goes so far ahead at a start that an old date is refused as such.
    brotli = {"compression.brotli_bodies", "compression.corrupt_brotli", "compression.nothing_after_brotli"}
    assert others == {*brotli, "errors.retry_after"}


def test_an_agent_of_the_profile_reference_breaks_strict_laws_only(clock) -> None:
    executor = local_executor(clock, policy=evolve(Policy.reference(), peer_limits=()))
    results = [*run_laws(LAWS, surveyed(executor, clock), executor, clock.monotonic)]
    broken = {each.law.id: each.law.strict for each in results if each.outcome is LawResult.FAILED}
    assert "identity.the_recipient_is_this_agent" in broken
    assert all(broken.values()), broken


def test_laws_that_are_left_after_an_hour_are_skipped(clock) -> None:
    executor = local_executor(clock)

    def waits(_lab: Lab) -> Steps[None]:
        """It waits."""
        for _ in range(20):
            yield from Pause(100.0)

    law = evolve(LAWS[0], provoke=waits)
    results = [*run_laws([law] * 40, surveyed(executor, clock), executor, clock.monotonic)]
    assert {each.outcome for each in results} == {LawResult.SKIPPED}  # each takes more than its 120 s
    assert [each.remark for each in results].count("the laws before it took more than 3600 s") == 22


def test_bytes_that_the_rate_limit_refuses_are_sent_again(clock) -> None:
    limited, answered = Answer(429, (("retry-after", "3"),)), Answer(200)
    answers, performed = iter([limited, limited, answered]), []

    class Limits:
        offers = frozenset({Need.BYTES})

        def perform(self, effect: Any) -> Any:
            performed.append(effect)
            return Passed() if isinstance(effect, Pause) else AnswersToBytes((next(answers),))

    sent = SendBytes((b"x",))
    recorder = Recorder(Limits(), clock.monotonic)
    assert recorder.perform(sent) == AnswersToBytes((answered,))
    assert performed == [sent, Pause(3.0), sent, Pause(3.0), sent]
    assert len(recorder.exchanges) == 1


def test_items_of_a_batch_that_the_rate_limit_refuses_are_sent_again(clock) -> None:
    executor = local_executor(clock, policy=evolve(Policy(), peer_limits="2/second"))
    lab = surveyed(executor, clock)
    sent = [lab.envelope() for _ in range(4)]
    answer = Recorder(executor, clock.monotonic).run(lab.call([lab.rpc(each) for each in sent]))
    assert isinstance(answer, Answer)
    assert [each["result"]["envelope"]["correlation_id"] for each in answer.items] == [each["id"] for each in sent]


def test_a_batch_that_the_rate_limit_refuses_for_ever_says_nothing_about_a_law(clock) -> None:
    limited = Answer(200, body=b'[{"error": {"code": 429}}, {"result": {}}]')
    lab = surveyed(local_executor(clock), clock)
    recorder = Recorder(CallableExecutor(lambda _request: limited, clock), clock.monotonic)
    batch: list[Json] = [lab.rpc(lab.envelope(), key=lab.fresh()) for _ in range(2)]
    with pytest.raises(RateLimited, match="also after 10 attempts"):
        recorder.run(lab.call(batch))
    # A key in the head is about the whole batch: a part of it isn't the same request.
    with pytest.raises(RateLimited, match="a part of a batch"):
        recorder.run(lab.call(batch, headers=[("X-Idempotency-Key", "key")]))


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.id)
def test_a_law_says_what_it_is(law: Law) -> None:
    assert law.title.endswith(".")
    assert law.clause
    assert law.expected
    assert law.id.startswith(f"{law.group}.")


def test_ids_and_groups_occur_once() -> None:
    assert len({group.name for group in GROUPS}) == len(GROUPS)
    with pytest.raises(ValueError, match="two laws have the id"):
        by_id([LAWS[0], LAWS[0]])


def test_laws_are_chosen_by_profile_group_and_id() -> None:
    assert {*chosen()} == {*LAWS}
    assert [Need.RESET in law.needs for law in chosen()] == sorted(Need.RESET in law.needs for law in LAWS)
    assert {*chosen(strict=False)} == {law for law in LAWS if not law.strict}
    some = chosen(only=["batch", "time.leap_seconds"], excluded=["batch.sizes"])
    assert {law.group for law in some} == {"batch", "time"}
    assert "batch.sizes" not in {law.id for law in some}
    assert {*chosen(excluded=["batch"])} == {law for law in LAWS if law.group != "batch"}
    with pytest.raises(ValueError, match="no law or group is named nosuch"):
        chosen(only=["nosuch"])
    with pytest.raises(ValueError, match=r"no law or group is named batch\.nosuch"):
        chosen(excluded=["batch.nosuch"])


class TestTheRunner:
    """What a law does, as a verdict."""

    @pytest.fixture
    def judged(self, clock):
        """Run a function as a law; returns its result."""

        def run(provoke, needs=(), answers=(), hooks=("", "")) -> Any:
            given: Iterator[Answer] = iter(answers)
            executor = CallableExecutor(lambda _request: next(given), clock)
            group = LawGroup("group", "a group")
            group.law(clause="clause", expected="expected", needs=needs)(provoke)
            lab = evolve(surveyed(local_executor(clock), clock), clock_hook=hooks[0], reset_hook=hooks[1])
            return run_law(group.laws[0], lab, executor, clock.monotonic)

        return run

    def test_a_law_that_returns_is_kept(self, judged) -> None:
        def law(lab):
            """A title."""
            yield from Pause(1)

        assert judged(law).verdict == Kept()

    def test_a_law_that_fails_a_check_is_broken_and_keeps_its_exchanges(self, judged) -> None:
        def law(lab):
            """A title."""
            accepted((yield from lab.send(lab.envelope())), "example")

        result = judged(law, answers=[Answer(500, body=b"{}", raw=b"HTTP/1.1 500 X\r\n\r\n{}")])
        assert result.verdict == Breach("example: HTTP 500, a body of 2 bytes")
        assert result.exchanges[0].sent.startswith(b"POST /asap HTTP/1.1\r\nHost: localhost\r\n")
        assert result.exchanges[0].received == b"HTTP/1.1 500 X\r\n\r\n{}"

    def test_a_remark_that_quotes_the_agent_is_bounded(self, judged) -> None:
        def law(lab):
            """A title."""
            yield from Pause(1)
            check(False, "x" * 1_000_000)

        assert 1_000 < len(judged(law).remark) <= 2_000

    def test_a_law_without_what_it_needs_is_not_tried(self, judged) -> None:
        def law(lab):
            """A title."""
            yield from SendBytes((b"",))

        assert "a run over sockets" in judged(law, needs={Need.BYTES}).remark

    def test_a_law_whose_precondition_fails_is_not_tried(self, judged) -> None:
        def law(lab):
            """A title."""
            yield from lab.succeed(lab.envelope())

        assert judged(law, answers=[Answer(503)]).outcome is LawResult.SKIPPED

    def test_a_law_that_never_ends_is_ended(self, judged) -> None:
        def law(lab):
            """A title."""
            while True:
                yield from Pause(0.1)

        assert "took more than" in judged(law).remark

    def test_a_rate_limit_is_waited_for(self, judged, clock) -> None:
        def law(lab):
            """A title."""
            check((yield from lab.get("/")).status == 200, "no 200")

        limited = Answer(429, (("retry-after", "3"),))
        before = clock.monotonic()
        assert judged(law, answers=[limited, limited, Answer(200)]).verdict == Kept()
        assert clock.monotonic() - before >= 6

    def test_a_clock_that_a_law_moves_does_not_end_it(self, judged) -> None:
        def law(lab):
            """A title."""
            yield from AdvanceClock(10_000)
            check((yield from lab.get("/")).status == 200, "no 200")

        assert judged(law, answers=[Answer(200)]).verdict == Kept()

    ONE, LIMITED = Answer(200, body=b'{"result": {}}'), Answer(429)
    BATCH = Answer(200, body=b"[" + b", ".join([b'{"result": {}}'] * 50) + b"]")

    # The limit of a rate may refuse the rest of a batch.
    LIMITED_CALL = b'{"error": {"code": -32061, "data": {"code": "asap:admission/limited"}}}'
    REFUSED = Answer(200, body=b"[" + b", ".join([b'{"result": {}}'] * 49 + [LIMITED_CALL]) + b"]")

    @pytest.mark.parametrize(
        ("answers", "expected"),
        [
            ([BATCH] * 21, "kept"),
            ([LIMITED, *[ONE] * 150], "after 150 further calls"),
            ([BATCH, LIMITED, *[ONE] * 100], "after 150 further calls"),
            ([BATCH, REFUSED, *[ONE] * 51], "weren't accepted: HTTP 200, JSON-RPC error -32061 asap:admission/limited"),
            ([BATCH, BATCH, BATCH, BATCH, LIMITED], "after 200 further calls"),
            ([Answer(200, body=b'{"error": {"code": -32600}}'), *[ONE] * 1050], "kept"),
            ([Answer(400), *[ONE] * 200, LIMITED], "after 200 further calls"),
        ],
    )
    def test_many_calls_are_fewer_if_the_rate_is_limited(self, judged, answers, expected) -> None:
        def judge(*, forgotten) -> Steps[None]:
            yield from Pause(0)
            check(not forgotten, "forgotten")

        def law(lab):
            """A title."""
            yield from lab.many_later(lambda: lab.rpc(lab.envelope()), lambda: judge(forgotten=False))

        def broken(lab):
            """A title."""
            yield from lab.many_later(lambda: lab.rpc(lab.envelope()), lambda: judge(forgotten=True))

        result = judged(law, answers=answers)
        assert result.verdict == Kept() if expected == "kept" else expected in result.remark
        assert len(result.exchanges) == len(answers)
        assert judged(broken, answers=answers).verdict == Breach("forgotten")

    def test_requests_at_once_are_recorded_one_by_one(self, judged) -> None:
        def law(lab):
            """A title."""
            check(len((yield from SendTogether((lab.request("GET", "/"),) * 2))) == 3, "two")

        assert [str(each.answer) for each in judged(law, answers=[Answer(200), Answer(404)]).exchanges] == [
            "HTTP 200, a body of 0 bytes",
            "HTTP 404, a body of 0 bytes",
        ]

    def test_the_exchange_that_breaks_a_law_is_marked(self, judged) -> None:
        answers = [Answer(200, body=b"%d" % number) for number in range(4)]

        def last(lab):
            """A title."""
            for _ in answers[1:]:
                yield from lab.get("/")
            check((yield from lab.get("/")).body == b"", "a remark")

        def second(lab):
            """A title."""
            yield from lab.get("/")
            got = yield from lab.get("/")
            yield from lab.get("/")
            yield from lab.get("/")
            check(got.body == b"", got)

        for law, marks in ((last, [False, False, False, True]), (second, [False, True, False, False])):
            assert [each.failing for each in judged(law, answers=answers).exchanges] == marks

    def test_hooks_are_recorded_before_the_next_exchange_and_a_clock_that_was_set_back_catches_up(
        self, judged, clock
    ) -> None:
        began: list[float] = []

        def law(lab):
            """A title."""
            began.extend((clock.wall(), clock.monotonic()))
            yield from lab.get("/")
            yield from AdvanceClock(40)
            yield from AdvanceClock(step_wall=-1_000)
            yield from ResetTarget()
            yield from lab.get("/")

        result = judged(law, answers=[Answer(200)] * 2, hooks=("move the $clock token-of-alice", "restart"))
        moves = ("clock: advance 40", "move the $clock $TOKEN advance 40"), (
            "clock: step -1000", "move the $clock $TOKEN step -1000",
        )  # fmt: skip
        wanted = [HookRun(*each) for each in (*moves, ("the agent is started again", "restart"))]
        assert [each.hooks for each in result.exchanges] == [(), tuple(wanted)]
        assert [each.at for each in result.exchanges] == [began[0]] * 2  # as if the clock hadn't been moved
        # Dates that were present before it was set back are behind the window.
        assert (clock.monotonic() - began[1], clock.wall() - began[0]) == (40 + 1_331, 40 + 331)

    def test_a_clock_hook_that_fails_after_a_law_changes_nothing(self, clock) -> None:
        class FailsLater(CallableExecutor):
            moves = 0

            def perform(self, effect: Any) -> Any:
                FailsLater.moves += isinstance(effect, AdvanceClock)
                if FailsLater.moves == 2:
                    raise LawNotTried("the hook failed")
                return super().perform(effect)

        def steps(_lab: Lab) -> Steps[None]:
            yield from AdvanceClock(step_wall=-1)

        executor = FailsLater(lambda _request: Answer(200), clock)
        law = evolve(LAWS[0], provoke=steps)
        assert run_law(law, surveyed(local_executor(clock), clock), executor, clock.monotonic).verdict == Kept()
        assert FailsLater.moves == 2

    def test_two_answers_that_should_be_equal_are_compared(self, judged) -> None:
        text = '{"result": {"envelope": {"payload": {"task_id": "%s", "result": {"a": [1, null]}}}}}'
        replies = [Answer(200, body=(text % name).encode()) for name in ("x", "x", "y")]
        gone = Answer(200, body=b'{"result": {"envelope": {"payload": null}}}')

        def law(lab):
            """A title."""
            first = yield from lab.get("/")
            repeated((yield from lab.get("/")), first, "second")
            repeated((yield from lab.get("/")), first, "third")

        result = judged(law, answers=replies)
        assert result.remark == 'third: it differs from exchange 1 in payload.task_id: "y", not "x"'
        assert [each.failing for each in result.exchanges] == [False, False, True]
        remark = judged(law, answers=[gone, replies[0]]).remark
        assert remark.startswith('second: it differs from exchange 1 in payload: {"task_id": "x", "result"')
        assert judged(law, answers=[replies[0]] * 3).verdict == Kept()

    def test_a_wrong_outcome_is_a_bug_of_the_executor(self) -> None:
        for effect in (SendRequest(None), SendBytes(()), SendTogether(()), ConverseTogether(())):  # type: ignore[arg-type]
            steps = iter(effect)
            next(steps)
            with pytest.raises(TypeError, match="is answered by"):
                steps.send(None)  # type: ignore[arg-type]


def test_dates_from_before_the_start_are_made_anew(clock) -> None:
    """A date in whole seconds may lie before the start of an agent that has just started."""
    local, started = local_executor(clock), -1_000.0
    refusal = Answer(503, (("retry-after", "1"),), b'{"error": {"data": {"code": "asap:admission/restarted"}}}')

    def send(request: HttpRequest) -> Answer:
        too_early = clock.wall() < started + 0.5
        return refusal if too_early else local.send(request)

    executor = CallableExecutor(send, clock)
    lab = surveyed(executor, clock)
    for law in chosen(only=["time.spellings_of_dates", "time.unix_seconds", "time.unix_milliseconds"]):
        started = clock.wall()
        result = run_law(law, lab, executor, clock.monotonic)
        assert (result.remark, result.exchanges[0].answer[:8]) == ("", "HTTP 503")
    started = clock.wall() + 1_000
    result = run_law(law, lab, executor, clock.monotonic)
    assert result.verdict == NotTried("the agent has just started, and refuses what is dated before")


@pytest.mark.parametrize(
    ("law", "answer", "remark"),
    [
        ("batch.status_of_batches", b'[{"result": {}}]', "accepted: got 1 answer to a batch of 2 requests"),
        ("batch.status_of_batches", b"{}", "accepted: got 1 answer to a batch of 2 requests"),
        ("batch.status_of_batches", b"[]", "accepted: got 0 answers to a batch of 2 requests"),
        (
            "errors.nothing_is_repeated",
            b'{"error": {"code": 1, "data": {"validation_errors": [{"n": 1}, {"loc": ["x%s"]}]}}}',
            "the answer repeats what was sent, in error.data.validation_errors[1].loc[0]",
        ),
        ("errors.nothing_is_repeated", b'{"error": {"code": 1, "data": {"%s": 1}}}', "in a name in error.data"),
        ("errors.nothing_is_repeated", b'{"%s": 1, "error": {"code": 1}}', "in a name in the body"),
    ],
)
def test_a_remark_says_where_and_how_many(clock, law: str, answer: bytes, remark: str) -> None:
    def send(request: HttpRequest) -> Answer:
        marker = re.search(rb"zqx[\w-]+", request.body)
        body = answer.replace(b"%s", marker[0] if marker else b"")
        return Answer(200, body=body, raw=body)

    lab = surveyed(local_executor(clock), clock)
    [result] = [*run_laws(chosen(only=[law]), lab, CallableExecutor(send, clock), clock.monotonic)]
    assert remark in result.remark


def test_a_key_that_a_refusal_uses_up_is_told_with_its_cause(clock) -> None:
    local, keys = local_executor(clock), set()

    def send(request: HttpRequest) -> Answer:
        key = json.loads(request.body)["params"]["idempotency_key"]
        if key in keys:
            return Answer(409)
        answer = local.send(request)
        if answer.taxonomy == "asap:protocol/invalid_timestamp":
            keys.add(key)
        return answer

    lab = surveyed(local, clock)
    [result] = [
        *run_laws(
            chosen(only=["idempotency.refused_calls_use_no_key"]), lab, CallableExecutor(send, clock), clock.monotonic
        )
    ]
    assert result.remark.startswith("after a refusal for its date, the key counts as used: HTTP 409")
    wrong, corrected = (json.loads(each.request.body) for each in result.exchanges[-2:] if each.request)
    different = {
        name
        for name, value in wrong["params"]["envelope"].items()
        if corrected["params"]["envelope"][name] != value and name != "extensions"
    }
    assert different == {"timestamp"}


class TestChecks:
    """A refusal is on purpose."""

    @pytest.mark.parametrize(
        "answer",
        [
            Answer(500, body=b"{}"),
            Answer(200, body=b'{"error": {"code": -32603}}'),
            Answer(200, body=b'{"result": {}}'),
            Answer(200, body=b"[]"),
            Answer(problem="the connection was closed"),
        ],
        ids=str,
    )
    def test_a_crash_is_no_refusal(self, answer) -> None:
        with pytest.raises(LawBroken):
            refused(answer)

    def test_codes_and_statuses_are_compared(self) -> None:
        answer = Answer(401, body=b'{"error": {"code": -32600, "data": {"code": "asap:auth/required"}}}')
        refused(answer, statuses=[401], codes=["asap:auth/required"])
        refused(answer, codes=[-32600])
        for wrong in ({"statuses": [403]}, {"codes": [-32000]}):
            with pytest.raises(LawBroken, match="HTTP 401"):
                refused(answer, "example", **wrong)


class TestTheSurvey:
    """What a run learns from the manifest."""

    def test_without_a_manifest_there_is_no_lab(self, clock) -> None:
        executor = CallableExecutor(lambda _request: Answer(404, body=b"{}"))
        steps = survey(AgentUnderTest(host="localhost"), wall=clock.wall, ids=lambda: "id")
        assert Recorder(executor, clock.monotonic).run(steps) == NoManifest("HTTP 404, a body of 2 bytes")
        assert executor.offers == frozenset()

    def test_bytes_that_are_not_http_are_an_agent_that_breaks_laws(self, clock) -> None:
        executor = CallableExecutor(lambda _request: Answer(raw=b"HTTP/1.1 200 OK\n\n", problem="not whole"))
        assert surveyed(executor, clock).recipient == ""

    @pytest.mark.parametrize("body", [b"no JSON", b"{}", b'{"id": 1}'])
    def test_an_unusable_manifest_breaks_laws_of_discovery_and_no_call_is_made(self, clock, body) -> None:
        executor = CallableExecutor(lambda _request: Answer(200, body=body))
        lab = surveyed(executor, clock)
        results = {each.law.id: each for each in run_laws(LAWS, lab, executor, clock.monotonic)}
        assert results["discovery.manifest"].outcome is LawResult.FAILED
        assert results["replay.same_envelope"].outcome is LawResult.SKIPPED

    def test_only_echo_is_run_unasked(self, clock) -> None:
        executor = local_executor(clock)
        assert surveyed(executor, clock).skill == "echo"
        assert surveyed(executor, clock, skill="other").skill == "other"
        assert Need.SKILL not in surveyed(executor, clock, token=None).has

    def test_without_a_token_no_law_fails_on_an_agent_that_requires_one(self, clock) -> None:
        executor = local_executor(clock)
        lab = surveyed(executor, clock, token=None, urn=None, other_token=None, other_urn=None)
        results = {each.law.id: each for each in run_laws(LAWS, lab, executor, clock.monotonic)}
        assert [each.law.id for each in results.values() if each.outcome is LawResult.FAILED] == []
        assert "a caller that the agent admits" in results["errors.unreadable_bodies"].remark

    def test_without_authentication_another_name_is_another_caller(self, clock) -> None:
        manifest = b'{"manifest": {"id": "urn:asap:agent:a", "capabilities": {"skills": [{"id": "other"}]}}}'
        lab = surveyed(CallableExecutor(lambda _request: Answer(200, body=manifest)), clock, token=None, other_urn=None)
        assert (lab.second_caller().urn, lab.skill) == ("urn:asap:agent:conform:other", None)
        assert Need.OPEN in lab.has

    def test_a_second_caller_may_be_missing(self, clock) -> None:
        lab = surveyed(local_executor(clock), clock, other_token=None)
        with pytest.raises(LawNotTried, match="--other-token"):
            lab.second_caller()


class TestTheReport:
    """A failure says all that's needed to repeat it."""

    def test_a_failure_has_its_law_its_bytes_and_a_curl_line(self, clock) -> None:
        executor = local_executor(clock, policy=evolve(Policy.reference(), peer_limits=()))
        lab = surveyed(executor, clock)
        chosen = [law for law in LAWS if law.id in ("identity.the_recipient_is_this_agent", "http.one_host")]
        results = tuple(run_laws(chosen, lab, executor, clock.monotonic))
        text = "\n".join(text_report(Report("http://localhost", lab.recipient, "strict", results)))
        for part in (
            "BROKEN  identity.the_recipient_is_this_agent  (must)",
            "from:      docs/security.md 9",
            "got:       recipient urn:asap:agent:somebody-else: HTTP 200, a JSON-RPC result",
            "    > POST /asap HTTP/1.1",
            "    < HTTP/1.1 200",
            "    curl -i --path-as-is -X POST -H 'Content-Type: application/json' -H 'Authorization: Bearer '",
            """-H 'Authorization: Bearer '"$TOKEN" --data-binary '{"jsonrpc": """,
            "http://localhost/asap",
            "    > Authorization: Bearer $TOKEN",
            "Not tried (1):",
        ):
            assert part in text, part
        assert "token-of-alice" not in text

    @pytest.mark.parametrize("token", ["a", "a-long-token"])
    def test_no_token_is_shown(self, clock, token) -> None:
        executor = local_executor(clock)
        lab = evolve(surveyed(executor, clock), caller=Caller(ALICE, token), other=None)
        results = [run_law(law, lab, executor, clock.monotonic) for law in LAWS if law.group == "replies"]
        shown = [part for each in results for one in each.exchanges for part in (one.sent, repr(one.request).encode())]
        assert shown
        assert not [part for part in shown if f"Bearer {token}".encode() in part]
        assert all(b"Bearer $TOKEN" in part for part in shown)


def test_a_document_is_changed_and_fields_left_out() -> None:
    assert changed({"a": 1, "b": 2}, {"b": ABSENT, "c": None}) == {"a": 1, "c": None}


def test_what_is_not_tried_says_why() -> None:
    assert NotTried("why").why == "why"
