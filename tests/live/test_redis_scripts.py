"""The scripts of shared admission on a real server: the law, under any clock and any restart, and that it's not idle.

Time and the server's name are the test's own: the scripts read them from a key instead. What is planted wrong in a
script is caught by the same law.
"""

import itertools
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import valkey
from attrs import evolve
from hypothesis import Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from asap_core.admission import redis_scripts as scripts
from asap_core.admission.admission import (
    AdmissionQuestion,
    Admitted,
    AnswerGone,
    Future,
    Mismatch,
    OutcomeUnknown,
    Running,
    Stale,
    Stored,
)
from asap_core.admission.policy import Policy
from asap_core.admission.ratelimit import Granted, Limited, Limiter, parse_limits
from asap_core.admission.redis import Begin, Command, SharedAdmission, SharedLimits
from asap_core.admission.replay import Floored, Replayed, Saturated
from asap_core.admission.state_file import outcome_to_json
from asap_core.clock import WallTime
from asap_core.errors import BadStore
from asap_core.wire.handler_reply import Replied
from asap_core.wire.json import write_json
from tests.live.redis_server import given_url, server

pytestmark = pytest.mark.live

START = 1_750_000_000.0
AGENTS = [f"urn:asap:agent:{name}" for name in ("alice", "bob")]
WINDOW = 60.0
SKEW = 5.0


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Any]:
    if (url := given_url()) is not None:
        yield valkey.Valkey.from_url(url)
        return
    with server(tmp_path_factory.mktemp("valkey")) as started:
        yield started.client()


class World:
    """A server with a clock and a name of the test's, and scripts in which something may have been changed."""

    def __init__(self, client, *changes: tuple[str, str]) -> None:
        self.client = client
        self.changes = (
            ("redis.call('TIME')", "redis.call('HMGET', 'test', 's', 'us')"),
            ("redis.call('INFO', 'server')", "redis.call('HGET', 'test', 'info')"),
            *changes,
        )
        self.names = itertools.count()
        client.flushall()
        self.set_time(START)
        self.rename()

    def set_time(self, now: float) -> None:
        self.now = now
        micros = round(now * 1e6)
        self.client.hset("test", mapping={"s": micros // 1_000_000, "us": micros % 1_000_000})

    def rename(self) -> None:
        """Become another server, as far as anybody can tell."""
        self.client.hset("test", "info", f"x:y\r\nrun_id:run{next(self.names)}\r\nz:1\r\n")

    def run(self, command: Command):
        text = command.script.text
        for was, becomes in self.changes:
            text = text.replace(was, becomes)
        return self.client.eval(text, len(command.keys), *command.keys, *command.arguments)

    def keep(self) -> dict[bytes, bytes]:
        """Keep a copy of the data, as a disk would."""
        return {key: self.client.dump(key) for key in self.client.keys("asap:*")}

    def restart(self, kept: dict[bytes, bytes]) -> None:
        for key in self.client.keys("asap:*"):
            self.client.delete(key)
        for key, value in kept.items():
            self.client.restore(key, 0, value)
        self.rename()


class Worker:
    """One process of those that share: it begins, asks, and begins again when it's told to."""

    def __init__(self, world: World, number: int = 0, kind: type[SharedAdmission] = SharedAdmission, **policy):
        self.world = world
        numbers = {"max_age": WINDOW, "skew": SKEW, "start": "open", **policy}
        self.admission = kind("urn:asap:agent:shop", Policy(**numbers), secret=bytes([number]) * 32)
        self.marks = itertools.count()
        self.number = number

    def begin(self) -> None:
        self.admission.begun(self.world.run(self.admission.begin()))

    def ask(self, question: AdmissionQuestion):
        for _ in range(3):
            mark = bytes([self.number]) + next(self.marks).to_bytes(7, "big")
            command = self.admission.ask(question, token=mark)
            answer = self.admission.answer(self.world.run(command), command)
            if not isinstance(answer, Begin):
                return answer
            self.begin()
        raise AssertionError("it never begins")

    def claim(self, nonce: str, issued: float, sender: str = AGENTS[0], *, authenticated: bool = True):
        return self.ask(question(nonce, issued, sender=sender, authenticated=authenticated))

    def record(self, answer, outcome):
        return self.world.run(self.admission.record(answer.reservation, outcome))


def question(nonce: str | None, issued: float, key: str | None = None, **changes) -> AdmissionQuestion:
    plain = AdmissionQuestion(
        sender=AGENTS[0],
        authenticated=True,
        peer="192.0.2.1",
        nonce=nonce,
        issued=WallTime(issued),
        idempotency_key=key,
        digest=b"" if key is None else b"d" * 16,
        deadline=30.0,
    )
    return evolve(plain, **changes)


@pytest.fixture
def world(running) -> World:
    return World(running)


# --- the law ---------------------------------------------------------------------------------------------------------


# Mostly what passes, and the edges of the window.
OFF = st.sampled_from([0.0, 0.0, 0.0, -1.0, 1.0, 4.999, 5.0, 5.001, -59.999, -60.0, -60.001])


class Law(RuleBasedStateMachine):
    """(sender, nonce, issued) is admitted at most once, ever: whatever the server's clock does, whatever it forgets.

    And (sender, nonce) at most once in a window, while the clock runs forwards and nothing is forgotten.
    """

    client: ClassVar[Any]
    changes: ClassVar[tuple[tuple[str, str], ...]] = ()
    kind: ClassVar[type[SharedAdmission]] = SharedAdmission

    @initialize(start=st.sampled_from(["exact", "floor"]), calm=st.booleans())
    def begin(self, start: str, calm: bool) -> None:
        # Half of the time nothing goes wrong: that's when a window lasts.
        self.calm = calm
        self.world = World(self.client, *self.changes)
        # Two that share, as two processes do.
        self.workers = [Worker(self.world, number, self.kind, start=start, nonces_per_sender=20) for number in (0, 1)]
        self.start = start
        self.admitted: set[Any] = set()
        self.since: dict[Any, float] = {}
        self.captured: list[Any] = []
        self.latest = START
        self.disk: dict[bytes, bytes] = {}
        self.world.set_time(START + 2 * SKEW)
        self.workers[0].claim("first", START)

    def _ask(self, worker: int, sender: int, nonce: str, issued: float) -> None:
        # Without a clock that agrees, `floor` gives up what was dated ahead just before a crash.
        ahead = issued > self.world.now
        if self.start == "floor" and ahead:
            return
        answer = self.workers[worker].claim(nonce, issued, AGENTS[sender])
        if isinstance(answer, Admitted):
            assert (sender, nonce, issued) not in self.admitted, "accepted twice"
            last = self.since.get((sender, nonce))
            assert last is None or self.world.now >= last + WINDOW + SKEW, "accepted twice within the window"
            self.admitted.add((sender, nonce, issued))
            self.since[sender, nonce] = self.world.now
            self.captured.append((sender, nonce, issued))
        else:
            assert isinstance(answer, Replayed | Stale | Future | Floored | Saturated)

    @rule(worker=st.integers(0, 1), sender=st.integers(0, 1), off=OFF)
    def sends(self, worker: int, sender: int, off: float) -> None:
        self._ask(worker, sender, f"n{len(self.captured)}", self.world.now + off)

    @precondition(lambda self: self.captured)
    @rule(worker=st.integers(0, 1), back=st.integers(1, 8))
    def replays(self, worker: int, back: int) -> None:
        self._ask(worker, *self.captured[-back:][0])

    @precondition(lambda self: self.captured)
    @rule(worker=st.integers(0, 1), back=st.integers(1, 8), off=OFF)
    def uses_a_nonce_again(self, worker: int, back: int, off: float) -> None:
        sender, nonce, _ = self.captured[-back:][0]
        self._ask(worker, sender, nonce, self.world.now + off)

    @rule(seconds=st.sampled_from([0.2, 1.0, 30.0, 60.0, 64.9, 65.0, 200.0]))
    def time_goes_on(self, seconds: float) -> None:
        self.world.set_time(self.world.now + seconds)
        self.latest = max(self.latest, self.world.now)

    @precondition(lambda self: not self.calm)
    @rule(seconds=st.sampled_from([0.3, 0.9, 10.0, 66.0, 3600.0]))
    def the_clock_steps_back(self, seconds: float) -> None:
        self.world.set_time(self.world.now - seconds)
        # Within a window only while the clock runs forwards: what's counted from here on is counted anew.
        self.since.clear()

    @precondition(lambda self: not self.calm)
    @rule(seconds=st.sampled_from([66.0, 90.0, 3600.0]))
    def the_clock_ran_ahead_and_is_put_right(self, seconds: float) -> None:
        """As docs/restarts.md says to: the clock is set, and the watermark is deleted. Then a caller replays."""
        replayed = self.captured[-1:]
        self.world.set_time(self.world.now + seconds)
        self.latest = max(self.latest, self.world.now)
        self._ask(0, 0, "ahead", self.world.now)
        self.world.set_time(self.world.now - seconds)
        for key in self.client.keys("asap:*:meta"):
            self.client.hset(key, "watermark", 0)
        self.since.clear()
        # Its nonce had expired by the clock that ran ahead, and is gone: only the floor refuses it.
        for sent in replayed:
            self._ask(0, *sent)

    @precondition(lambda self: not self.calm)
    @rule()
    def it_is_written_to_disk(self) -> None:
        self.disk = self.world.keep()

    @precondition(lambda self: not self.calm)
    @rule(lost=st.booleans())
    def it_crashes(self, lost: bool) -> None:
        """With what was on the disk, or with nothing; the clock didn't step back meanwhile. Then a caller replays."""
        self.world.set_time(self.latest)
        self.world.restart({} if lost else self.disk)
        self.workers[0].begin()
        if lost:
            self.disk = {}
        self.since.clear()
        # What was dated up to now counts as accepted, and `exact` refuses what may have been dated ahead as well.
        self.latest = self.world.now
        for sent in self.captured[-1:]:
            self._ask(1, *sent)


class WithoutSender(SharedAdmission):
    """Digests without the sender: one agent's nonce is another's."""

    def _nonce(self, question: AdmissionQuestion, nonce: str) -> bytes:
        return super()._nonce(evolve(question, sender=""), nonce)

    def _sender(self, question: AdmissionQuestion) -> bytes:
        return b"everyone"


class KeyOfItsOwn(SharedAdmission):
    """Each process has a key of its own, so that their digests differ."""

    def _nonce(self, question: AdmissionQuestion, nonce: str) -> bytes:
        return super()._nonce(question, f"{id(self)}{nonce}")


CASES: dict[str, tuple[tuple[tuple[str, str], ...], type[SharedAdmission]]] = {
    "floor not raised": ((("floor = math.max(floor, gone[#gone] - max_age)", "floor = floor"),), SharedAdmission),
    "kept for the age alone": ((("wall + max_age + skew), nonce)", "wall + max_age), nonce)"),), SharedAdmission),
    "not asked whether it's there": (
        (("text(wall + max_age + skew), nonce) == 0", "text(wall + max_age + skew), nonce) == 2"),),
        SharedAdmission,
    ),
    "no floor after a start": (
        (("local floor = math.max(floors[start], tonumber(known[7] or 0))", "local floor = 0"),),
        SharedAdmission,
    ),
    "a new server goes unnoticed": (
        (
            ("if known[1] == this then", "if known[1] then"),
            ("state[1] ~= run or ", ""),
            ("not string.find", "not 1 and not string.find"),
        ),
        SharedAdmission,
    ),
    "a key of its own": ((), KeyOfItsOwn),
}


def search(client, changes=(), kind=SharedAdmission, *, examples: int) -> None:
    found = type("Searched", (Law,), {"client": client, "changes": changes, "kind": kind})
    few = settings(
        settings.get_profile("ci"),
        max_examples=examples,
        stateful_step_count=40,
        print_blob=False,
        database=None,
        phases=[Phase.generate],  # that it's found is enough: the smallest way to it takes a minute
    )
    run_state_machine_as_test(found, settings=few)


def test_nothing_is_accepted_twice(running) -> None:
    search(running, examples=100)


@pytest.mark.planted
@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_a_planted_bug_is_caught(running, name: str) -> None:
    changes, kind = CASES[name]
    for was, _ in changes:
        assert was in scripts.BEGIN.text + scripts.CLAIM.text, "there's nothing to change"
    with pytest.raises((AssertionError, ExceptionGroup)):
        search(running, changes, kind, examples=3_000)


def test_a_nonce_of_one_agent_is_not_that_of_another(world: World) -> None:
    right, wrong = Worker(world), Worker(world, 0, WithoutSender)
    assert [type(right.claim("n", world.now, sender)) for sender in AGENTS] == [Admitted, Admitted]
    world.client.flushall()
    world.set_time(START)
    world.rename()
    assert [type(wrong.claim("n", world.now, sender)) for sender in AGENTS] == [Admitted, Replayed]


# --- what else it says -----------------------------------------------------------------------------------------------


class TestStart:
    @pytest.mark.parametrize(("start", "first"), [("open", -60.0), ("floor", 0.000001), ("exact", SKEW + 0.000001)])
    def test_each_start_policy_refuses_the_dates_that_it_names(self, world: World, start: str, first: float) -> None:
        worker = Worker(world, start=start)
        worker.begin()
        if start != "open":
            assert isinstance(worker.claim("a", START + first - 0.000001), Floored)
        world.set_time(START + max(first, 0.0))
        assert worker.claim("a", START + first) == Admitted(None)

    def test_a_later_process_joins_the_first(self, world: World) -> None:
        first, second = Worker(world, 1, start="floor"), Worker(world, 2, start="floor")
        first.begin()
        world.set_time(START + 10)
        assert first.claim("a", START + 1) == Admitted(None)
        assert second.claim("a", START + 1) == Replayed()
        assert second.claim("b", START + 1) == Admitted(None)  # its floor is that of the first

    def test_another_window_is_refused(self, world: World) -> None:
        Worker(world).begin()
        with pytest.raises(BadStore, match="max_age=60, skew=5, as the other processes"):
            Worker(world, max_age=61.0).begin()

    def test_a_server_with_everything_deleted_counts_as_started_anew(self, world: World) -> None:
        worker = Worker(world, start="floor")
        worker.begin()
        world.set_time(START + 10)
        assert worker.claim("a", START + 10) == Admitted(None)
        for key in world.client.keys("asap:*"):
            world.client.delete(key)
        assert isinstance(worker.claim("a", START + 10), Floored)

    def test_a_server_replaced_behind_a_proxy_is_noticed_within_a_second(self, world: World) -> None:
        worker = Worker(world, start="floor")
        worker.begin()
        world.set_time(START + 10)
        assert worker.claim("a", START + 9) == Admitted(None)
        world.rename()
        world.set_time(START + 12)
        assert isinstance(worker.claim("b", START + 9), Floored)


class TestBounds:
    def test_each_sender_has_a_share_of_its_own(self, world: World) -> None:
        worker = Worker(world, nonces_per_sender=3)
        assert [type(worker.claim(f"n{n}", START)) for n in range(4)] == [Admitted] * 3 + [Saturated]
        assert worker.claim("n3", START).retry_after == WINDOW + SKEW
        assert worker.claim("n0", START) == Replayed()
        assert worker.claim("n0", START, AGENTS[1]) == Admitted(None)

    def test_all_senders_share_the_capacity_and_anonymous_ones_half_of_it(self, world: World) -> None:
        worker = Worker(world, nonce_capacity=6)
        strangers = [worker.claim(f"s{n}", START, f"urn:asap:agent:s{n}", authenticated=False) for n in range(4)]
        assert list(map(type, strangers)) == [Admitted] * 3 + [Saturated]
        assert [type(worker.claim(f"n{n}", START)) for n in range(4)] == [Admitted] * 3 + [Saturated]
        assert worker.claim("n0", START) == Replayed()  # even when it's full

    def test_expired_nonces_make_room_and_leave_nothing_behind(self, world: World) -> None:
        worker = Worker(world, nonce_capacity=40)
        for round_ in range(4):
            now = START + round_ * 100
            world.set_time(now)
            # What's over is forgotten as questions come: the first of them may find it full still.
            worker.claim("first", now)
            answers = [worker.claim(f"n{n}", now) for n in range(39)]
            assert answers == [Admitted(None)] * 39
        world.set_time(START + 1000)
        for n in range(3):
            worker.claim(f"last{n}", START + 900)  # stale, but time goes on
        (nonces,) = [world.client.zcard(key) for key in world.client.keys("asap:*:nonces")] or [0]
        assert nonces == 0
        assert not world.client.keys("asap:*:live")


class TestKeys:
    ANSWER = Replied("task.response", {"task_id": "t"})

    def test_the_work_is_done_once_and_its_answer_kept(self, world: World) -> None:
        one, other = Worker(world, 1), Worker(world, 2)
        admitted = one.ask(question("n1", START, "k"))
        assert isinstance(admitted, Admitted)
        assert other.ask(question("n2", START, "k")) == Running(0.5)
        assert other.ask(question("n2", START, "k", digest=b"e" * 16)) == Mismatch()
        assert one.record(admitted, self.ANSWER) == [b"kept"]
        assert other.ask(question("n1", START, "k")) == Stored(self.ANSWER)  # byte for byte the same: a retry
        assert isinstance(other.ask(question("n1", START, "k2")), Replayed)
        # A retry burns no nonce.
        assert other.ask(question("n2", START)) == Admitted(None)

    def test_a_call_that_is_never_reported_is_unknown_and_then_forgotten(self, world: World) -> None:
        worker = Worker(world, idempotency_ttl=100.0)
        assert isinstance(worker.ask(question("n1", START, "k")), Admitted)
        world.set_time(START + 34.9)
        assert worker.ask(question("n2", START, "k")) == Running(0.1)
        world.set_time(START + 35)
        assert worker.ask(question("n2", START, "k")) == OutcomeUnknown()
        world.set_time(START + 135)
        assert isinstance(worker.ask(question("n3", START + 135, "k")), Admitted)

    def test_a_lost_call_is_unknown_and_one_given_back_frees_its_key(self, world: World) -> None:
        worker = Worker(world, idempotency_ttl=100.0)
        lost, given = worker.ask(question("n1", START, "k1")), worker.ask(question("n2", START, "k2"))
        assert world.run(worker.admission.lose(lost.reservation)) == [b"kept"]
        assert world.run(worker.admission.give_back(given.reservation)) == [b"kept"]
        assert worker.ask(question("n3", START, "k1")) == OutcomeUnknown()
        again = worker.ask(question("n4", START, "k2"))
        assert isinstance(again, Admitted)
        # Said twice, or by whoever had it before, it changes nothing.
        assert world.run(worker.admission.give_back(given.reservation)) == [b"late"]
        assert worker.record(given, self.ANSWER) == [b"late"]
        assert isinstance(worker.ask(question("n5", START, "k2")), Running)
        # What is known after all is better than nothing.
        assert worker.record(lost, self.ANSWER) == [b"kept"]
        assert worker.ask(question("n3", START, "k1")) == Stored(self.ANSWER)

    def test_answers_are_bounded_oldest_first_and_leave_a_tombstone(self, world: World) -> None:
        size = len(worker_answer(self.ANSWER))
        worker = Worker(world, idempotency_bytes=2 * size + 1, idempotency_ttl=100.0)
        for n in range(4):
            world.set_time(START + n)
            worker.record(worker.ask(question(f"n{n}", START, f"k{n}")), self.ANSWER)
        answers = [worker.ask(question("m", START, f"k{n}")) for n in range(4)]
        assert answers == [AnswerGone(), AnswerGone(), Stored(self.ANSWER), Stored(self.ANSWER)]
        (meta,) = world.client.keys("asap:*:meta")
        assert int(world.client.hget(meta, "bytes")) == 2 * size
        world.set_time(START + 200)
        for n in range(8):
            worker.ask(question(f"o{n}", START + 200, f"x{n}"))
        assert int(world.client.hget(meta, "bytes")) == 0

    def test_keys_are_bounded(self, world: World) -> None:
        worker = Worker(world, idempotency_entries=2, idempotency_ttl=100.0)
        first = worker.ask(question("n0", START, "k0"))
        worker.record(first, self.ANSWER)
        worker.ask(question("n1", START, "k1"))
        assert worker.ask(question("n2", START, "k2")) == Saturated(100.0)
        assert worker.ask(question("n3", START, "k0")) == Stored(self.ANSWER)
        world.set_time(START + 100)
        assert isinstance(worker.ask(question("n2", START + 100, "k2")), Admitted)

    def test_a_replay_reserves_nothing(self, world: World) -> None:
        worker = Worker(world)
        worker.claim("n", START)
        assert worker.ask(question("n", START, "k")) == Replayed()
        assert isinstance(worker.ask(question("m", START, "k")), Admitted)

    def test_keys_count_without_nonces_too(self, world: World) -> None:
        worker = Worker(world)
        assert isinstance(worker.ask(question(None, START, "k")), Admitted)
        assert isinstance(worker.ask(question(None, START, "k")), Running)


def worker_answer(outcome) -> bytes:
    return write_json(outcome_to_json(outcome))


class TestLimits:
    def test_the_redis_limiter_grants_what_the_one_in_memory_grants(self, running) -> None:
        limits = parse_limits("5/second;20/minute")
        for seed in range(20):
            world = World(running)
            shared = SharedLimits("urn:asap:agent:shop", "peer", limits, capacity=100)
            local = Limiter(limits, capacity=100)
            now = 0.0
            for step in range(60):
                # Arithmetic instead of chance: the same steps each time, different ones for each seed.
                mixed = (seed * 7919 + step * 104_729) % 1009
                now += (0.0, 0.05, 0.4, 3.0, 0.0)[mixed % 5]
                world.set_time(START + now)
                key, cost, partial = f"k{mixed % 2}", 1 + mixed % 7, mixed % 3 == 0
                ours = shared.taken(world.run(shared.take(key, cost=cost, partial=partial)))
                if partial:
                    assert isinstance(ours, Granted)
                    assert ours.amount == local.take_up_to(key, cost=cost, now=now)  # type: ignore[arg-type]
                else:
                    theirs = local.take(key, cost=cost, now=now)  # type: ignore[arg-type]
                    assert isinstance(ours, Limited) is isinstance(theirs, Limited)
                    if isinstance(ours, Limited) and isinstance(theirs, Limited):
                        assert ours.limit == theirs.limit
                        assert ours.retry_after == pytest.approx(theirs.retry_after, abs=1e-4)
                if isinstance(ours, Granted):
                    expected = local.left(key, now=now)  # type: ignore[arg-type]
                    assert [one.amount for one in ours.left] == [one.amount for one in expected]
                    assert [one.seconds for one in ours.left] == pytest.approx(
                        [one.seconds for one in expected], abs=1e-4
                    )

    def test_a_full_table_drops_full_amounts_and_then_shares_one(self, world: World) -> None:
        shared = SharedLimits("urn:asap:agent:shop", "peer", parse_limits("2/minute"), capacity=2)

        def take(key: str):
            return shared.taken(world.run(shared.take(key, cost=1, partial=False)))

        assert [type(take(key)) for key in "abcde"] == [Granted] * 4 + [Limited]
        assert isinstance(take("a"), Granted)
        world.set_time(START + 61)
        assert [type(take(key)) for key in "fg"] == [Granted] * 2

    def test_a_clock_that_steps_back_delays_callers_by_one_period_at_most(self, world: World) -> None:
        shared = SharedLimits("urn:asap:agent:shop", "peer", parse_limits("1/minute"), capacity=9)

        def take():
            return shared.taken(world.run(shared.take("a", cost=1, partial=False)))

        assert isinstance(take(), Granted)
        world.set_time(START - 3600)
        refused = take()
        assert isinstance(refused, Limited)
        assert refused.retry_after <= 60.0
        world.set_time(START - 3600 + 60)
        assert isinstance(take(), Granted)


def test_a_server_that_evicts_is_refused(tmp_path) -> None:
    with server(tmp_path, "--maxmemory-policy", "allkeys-lru") as evicting:
        client = evicting.client()
        admission = SharedAdmission("urn:asap:agent:shop", Policy(), secret=bytes(32))
        command = admission.begin()
        with pytest.raises(BadStore, match="noeviction"):
            admission.begun(client.eval(command.script.text, 1, *command.keys, *command.arguments))


def test_the_scripts_are_known_by_their_hash(running) -> None:
    known = [script for script in vars(scripts).values() if isinstance(script, scripts.Script)]
    assert known
    for script in known:
        assert running.script_load(script.text) == script.sha
