"""Admission in a real Redis or Valkey, on both backends: shared by several servers, gone, hanging, and back again."""

import gc
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any

import anyio
import httpx
import pytest
from attrs import evolve
from coredis.connection._request import Request

from asap_adapters import Redis, serve
from asap_adapters.server.asgi import AsgiApp
from asap_adapters.server.startup import bind_agent
from asap_adapters.stores.redis import RedisStore
from asap_core import Agent, BadStore
from asap_core.admission.admission import AdmissionQuestion, Admitted, OutcomeUnknown, Running, Stored, StoreUnavailable
from asap_core.admission.replay import Replayed
from asap_core.auth.principal import TokenTable
from asap_core.clock import WallTime
from asap_core.wire.handler_reply import Replied
from tests import builders
from tests.builders import manifest
from tests.live.redis_server import Server, server
from tests.live.skipped_time import backend, let_time_pass, skip_time, stop_time

pytestmark = [pytest.mark.live, pytest.mark.anyio]

ALICE = "urn:asap:agent:alice"
ANSWER = Replied("task.response", {"task_id": "t"})
# Nothing here takes that long, unless it hangs.
SECONDS = 60.0


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request) -> Any:
    return backend(request.param)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("valkey")) as running:
        yield running


@pytest.fixture
def redis(lasting: Server) -> Server:
    lasting.client().flushall()
    return lasting


@pytest.fixture
def mortal(tmp_path) -> Iterator[Server]:
    with server(tmp_path) as running:
        yield running


def agent(*, auth: bool = False, **policy) -> Agent:
    return builders.agent(manifest("count", auth=auth, id="urn:asap:agent:shop"), **policy)


def question(nonce: str, key: str | None = None, **changes) -> AdmissionQuestion:
    plain = AdmissionQuestion(
        sender=ALICE,
        authenticated=True,
        peer="127.0.0.1",
        nonce=nonce,
        issued=WallTime(time.time()),
        idempotency_key=key,
        digest=b"" if key is None else b"d" * 16,
        deadline=30.0,
    )
    return evolve(plain, **changes)


def stored(redis: Server, timeout: float = SECONDS, **policy):
    return RedisStore.open(redis.url, agent(**policy), timeout=timeout)


async def until_admitted(store: RedisStore, *, key: str | None = None) -> None:
    """Ask until the server is connected to again."""
    with anyio.fail_after(SECONDS):
        for number in count():
            if isinstance(await store.ask(question(f"again{number}", key)), Admitted):
                return
            await anyio.sleep(0.05)


class Counting:
    """A skill that says how often it ran, after a while."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.runs = 0
        self.seconds = seconds

    async def __call__(self, _request, _context):
        self.runs += 1
        await anyio.sleep(self.seconds)
        return {"runs": self.runs}


@asynccontextmanager
async def served(url: str, handler, **options) -> AsyncIterator[str]:
    policy = options.pop("policy", {})
    one = agent(auth="authenticate" in options, **policy)
    storage = Redis(url, share_peer_limits=options.pop("share_peer_limits", False))
    opened = partial(RedisStore.open, timeout=options.pop("timeout", SECONDS))
    async with anyio.create_task_group() as group:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RedisStore, "open", opened)
            served_at = await group.start(
                partial(serve, one, {"count": handler}, at=("127.0.0.1", 0), storage=storage, **options)
            )
        yield served_at
        group.cancel_scope.cancel()


def web(**options) -> httpx.AsyncClient:
    return httpx.AsyncClient(trust_env=False, timeout=SECONDS, **options)


async def post(http: httpx.AsyncClient, url: str, key: str | None = None) -> httpx.Response:
    params = {"envelope": envelope()} | ({} if key is None else {"idempotency_key": key})
    return await http.post(f"{url}/asap", json={"jsonrpc": "2.0", "method": "asap.send", "id": 1, "params": params})


# --- the store -------------------------------------------------------------------------------------------------------


async def test_two_processes_accept_an_envelope_once(redis: Server) -> None:
    async with stored(redis) as one, stored(redis) as other:
        asked = question("n1")
        assert await one.ask(asked) == Admitted(None)
        assert await other.ask(asked) == Replayed()
        assert await other.ask(question("n2")) == Admitted(None)
        assert await one.ask(evolve(asked, nonce=None)) == Admitted(None)  # there's nothing to ask


async def test_one_of_many_concurrent_copies_is_accepted(redis: Server) -> None:
    async with stored(redis) as one, stored(redis) as other:
        asked = question("n1")
        answers: list[Any] = []

        async def ask(store) -> None:
            answers.append(await store.ask(asked))

        async with anyio.create_task_group() as group:
            for number in range(50):
                group.start_soon(ask, (one, other)[number % 2])
        assert sorted(map(type, answers), key=str) == sorted([Admitted] + [Replayed] * 49, key=str)
    connected = redis.client().info("stats")["total_connections_received"]
    assert connected < 50 + 10


async def test_the_outcome_of_a_call_is_known_to_all_processes(redis: Server) -> None:
    async with stored(redis) as one, stored(redis) as other:
        done, lost, given = [await one.ask(question(f"n{key}", key)) for key in "abc"]
        assert await other.ask(question("m1", "a")) == Running(0.5)
        await one.record(done.reservation, ANSWER, 10)
        await one.lose(lost.reservation)
        await one.give_back(given.reservation)
        assert await other.ask(question("m1", "a")) == Stored(ANSWER)
        assert await other.ask(question("m2", "b")) == OutcomeUnknown()
        assert isinstance(await other.ask(question("m3", "c")), Admitted)


async def test_a_call_cancelled_at_any_moment_frees_its_key(redis: Server) -> None:
    async with stored(redis) as store:
        for steps in range(30):
            key = f"k{steps}"
            answers: list[Any] = []

            async def ask(scope, key: str = key, answers=answers) -> None:
                with scope:
                    answers.append(await store.ask(question(f"n{key}", key)))

            scope = anyio.CancelScope()
            async with anyio.create_task_group() as group:
                group.start_soon(ask, scope)
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
            again = await store.ask(question(f"m{key}", key))
            assert type(again) is (Running if answers else Admitted), steps


async def test_a_store_recovers_from_a_server_that_is_gone_and_comes_back(mortal: Server, caplog) -> None:
    caplog.set_level(logging.WARNING, "asap.redis")
    async with stored(mortal, start="exact", skew=0) as store:
        await anyio.sleep(0.01)
        asked = question("n1")
        assert await store.ask(asked) == Admitted(None)
        begun = await store.ask(question("n2", "k"))
        mortal.kill()
        for _ in range(3):
            assert await store.ask(question("n3")) == StoreUnavailable(1.0)
        await store.record(begun.reservation, ANSWER, 10)  # nobody is told, and nothing breaks
        mortal.start()
        await until_admitted(store)
        # Empty, and another one: all that may have been accepted there is refused.
        assert not isinstance(await store.ask(asked), Admitted | StoreUnavailable)
        assert await store.ask(question("n4")) == Admitted(None)
    said = [record.message for record in caplog.records if record.name == "asap.redis"]
    assert len(said) == 2
    assert "can't be asked, so nothing is admitted" in said[0]
    assert "answers again" in said[1]


async def test_a_server_that_hangs_blocks_no_caller_and_keeps_no_connection(mortal: Server) -> None:
    stop_time()
    async with stored(mortal, 0.2) as store:
        assert await store.ask(question("n0")) == Admitted(None)
        mortal.hang()
        skip_time()
        answers = []

        async def ask(number: int) -> None:
            answers.append(await store.ask(question(f"n{number}", f"k{number}")))

        for round_ in range(2):
            began = anyio.current_time()
            async with anyio.create_task_group() as group:
                for number in range(300):
                    group.start_soon(ask, round_ * 1000 + number)
            assert anyio.current_time() - began == pytest.approx(0.2)
        assert answers == [StoreUnavailable(1.0)] * 600
        await anyio.sleep(0.3)  # the connection that was left is ended once all who waited there have gone
        gc.collect()
        # Of 600 nothing is left but what the last attempt to connect was about.
        assert sum(type(one) is Request for one in gc.get_objects()) < 5
        mortal.go_on()
        let_time_pass()
        await until_admitted(store)


@pytest.mark.parametrize("lost", [False, True], ids=["hangs midway", "hangs while it is connected to again"])
@pytest.mark.parametrize("what", ["ask", "ask under a key", "take", "record", "lose", "give back"])
async def test_a_server_that_hangs_delays_each_caller_by_one_timeout_at_most(
    mortal: Server, what: str, lost: bool
) -> None:
    stop_time()
    async with stored(mortal, 0.6, principal_limits="9/second") as store:
        held = (await store.ask(question("n1", "k1"))).reservation
        if lost:
            mortal.kill()
            assert await store.ask(question("n2")) == StoreUnavailable(1.0)
            mortal.start()
            skip_time()
            await anyio.sleep(0.2)
        mortal.hang()
        skip_time()
        share: Any = SimpleNamespace(scope="principal", key=ALICE, cost=1, partial=False)
        began = anyio.current_time()
        match what:
            case "ask":
                assert await store.ask(question("n3")) == StoreUnavailable(1.0)
            case "ask under a key":
                assert await store.ask(question("n3", "k3")) == StoreUnavailable(1.0)
            case "take":
                assert await store.take(share) == StoreUnavailable(1.0)
            case "record":
                await store.record(held, ANSWER, 10)
            case "lose":
                await store.lose(held)
            case _:
                await store.give_back(held)
        assert anyio.current_time() - began <= 0.6 + 0.001


async def test_callers_one_after_another_wait_no_longer_on_a_server_that_hangs(mortal: Server) -> None:
    waited = []
    stop_time()
    async with stored(mortal, 0.6) as store:
        await store.ask(question("n0"))
        mortal.hang()
        skip_time()

        async def ask(number: int) -> None:
            await anyio.sleep(number / 10)
            began = anyio.current_time()
            assert await store.ask(question(f"n{number}", f"k{number}")) == StoreUnavailable(1.0)
            waited.append(anyio.current_time() - began)

        async with anyio.create_task_group() as group:
            for number in range(1, 21):
                group.start_soon(ask, number)
    assert len(waited) == 20
    assert max(waited) <= 0.6 + 0.001


async def test_a_key_that_a_resumed_server_reads_too_late_is_free_again(mortal: Server) -> None:
    stop_time()
    async with stored(mortal, 0.3) as store:
        await store.ask(question("n0"))
        mortal.hang()
        skip_time()
        assert await store.ask(question("n1", "k1")) == StoreUnavailable(1.0)
        mortal.go_on()
        let_time_pass()
        began = anyio.current_time()
        await until_admitted(store, key="k1")
        assert anyio.current_time() - began < 30, "not given back, but over at its deadline"


async def test_an_answer_not_recorded_in_time_is_recorded_when_the_server_resumes(mortal: Server) -> None:
    stop_time()
    async with stored(mortal, 0.3) as store:
        done = await store.ask(question("n1", "k1", deadline=1_000.0))
        mortal.hang()
        skip_time()
        await store.record(done.reservation, ANSWER, 900)
        mortal.go_on()
        let_time_pass()
        answer: object = None
        with anyio.fail_after(SECONDS):
            for number in count(2):
                answer = await store.ask(question(f"n{number}", "k1"))
                if not isinstance(answer, StoreUnavailable | Running):
                    break
                await anyio.sleep(0.05)
            assert answer == Stored(ANSWER)


async def test_callers_leave_a_server_that_hangs_between_two_answers_after_their_timeout(mortal: Server) -> None:
    stop_time()
    async with stored(mortal, 0.3) as store:
        await store.ask(question("n0"))
        for round_ in range(3):
            mortal.hang()
            skip_time()
            began = anyio.current_time()
            assert await store.ask(question(f"n{round_}", f"k{round_}")) == StoreUnavailable(1.0)
            assert anyio.current_time() - began == pytest.approx(0.3)
            mortal.go_on()
            let_time_pass()
            await until_admitted(store)


async def test_a_server_with_everything_deleted_counts_as_started_anew(redis: Server) -> None:
    async with stored(redis, start="floor") as store:
        asked = question("n1", issued=WallTime(time.time() + 1))
        assert await store.ask(asked) == Admitted(None)
        redis.client().flushall()
        assert not isinstance(await store.ask(evolve(asked, issued=WallTime(time.time() - 1))), Admitted)
        redis.client().script_flush()
        assert await store.ask(question("n2", issued=WallTime(time.time() + 1))) == Admitted(None)


class TestOpen:
    async def test_a_server_that_hangs_is_an_error(self, mortal: Server) -> None:
        mortal.hang()
        skip_time()
        began = anyio.current_time()
        with pytest.raises(OSError, match=r"redis at 127\.0\.0\.1:\d+: "):
            async with stored(mortal, 0.3):
                pass
        assert anyio.current_time() - began <= 4 * 0.3 + 0.001

    async def test_a_server_that_is_not_there_is_an_error(self) -> None:
        with pytest.raises(OSError, match=r"redis at 127\.0\.0\.1:1: .+"):
            async with RedisStore.open("redis://127.0.0.1:1", agent()):
                pass

    async def test_a_password_is_needed_and_never_shown(self, tmp_path) -> None:
        with server(tmp_path, "--requirepass", "opensesame") as guarded:
            for url in (guarded.url, guarded.url.replace("//", "//:wrongsecret@")):
                with pytest.raises(OSError, match="redis at") as raised:
                    async with RedisStore.open(url, agent()):
                        pass
                assert "secret" not in str(raised.value)
            async with RedisStore.open(guarded.url.replace("//", "//:opensesame@"), agent()) as store:
                assert await store.ask(question("n1")) == Admitted(None)

    async def test_a_server_that_evicts_is_refused(self, tmp_path) -> None:
        expected = pytest.raises(BadStore, match=r"redis at 127\.0\.0\.1:\d+: expected maxmemory-policy noeviction")
        with server(tmp_path, "--maxmemory-policy", "allkeys-lru") as evicting, expected:
            async with RedisStore.open(evicting.url, agent()):
                pass

    async def test_another_window_than_that_of_the_others_is_refused(self, redis: Server) -> None:
        async with stored(redis):
            with pytest.raises(BadStore, match="max_age=300, skew=30"):
                async with stored(redis, max_age=100.0):
                    pass

    @pytest.mark.parametrize(
        "url", ["", "localhost", "http://localhost", "redis://", "redis://localhost:x", "redis://h/?max_connections=z"]
    )
    async def test_an_invalid_url_is_refused(self, url: str) -> None:
        with pytest.raises(ValueError, match="expected a URL"):
            async with RedisStore.open(url, agent()):
                pass

    async def test_an_agent_without_shared_admission_is_refused(self, redis: Server) -> None:
        with pytest.raises(ValueError, match="shared_admission=True"):
            async with RedisStore.open(redis.url, bind_agent(agent())):
                pass

    async def test_an_exception_in_the_block_propagates_unchanged(self, redis: Server) -> None:
        with pytest.raises(KeyError, match="mine"):
            async with stored(redis):
                raise KeyError("mine")


# --- whole servers ---------------------------------------------------------------------------------------------------


async def test_a_retry_at_another_server_waits_for_the_work_and_gets_its_answer(redis: Server) -> None:
    handler = Counting(0.6)
    async with served(redis.url, handler) as one, served(redis.url, handler) as other, web() as http:
        replies: list[Any] = []

        async def ask(url: str) -> None:
            replies.append((await post(http, url, "k")).json()["result"]["envelope"])

        async with anyio.create_task_group() as group:
            group.start_soon(ask, one)
            await anyio.sleep(0.2)
            group.start_soon(ask, other)
        assert handler.runs == 1
        assert [reply["payload"]["result"] for reply in replies] == [{"runs": 1}] * 2


async def test_without_redis_calls_are_answered_503_and_all_else_continues(mortal: Server) -> None:
    handler = Counting()
    async with served(mortal.url, handler) as url, web() as http:
        assert "result" in (await post(http, url)).json()
        mortal.kill()
        refused = await post(http, url)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["data"]["code"] == "asap:admission/unavailable"
        for path in ("/.well-known/asap/manifest.json", "/.well-known/asap/health", "/ready"):
            assert (await http.get(url + path)).status_code == 200
        mortal.start()
        with anyio.fail_after(SECONDS):
            while (again := await post(http, url)).status_code == 503:  # noqa: ASYNC110 - it's asked again
                await anyio.sleep(0.05)
        assert "result" in again.json()
        assert handler.runs == 2


async def test_a_server_that_hangs_delays_no_other_request(mortal: Server) -> None:
    async with served(mortal.url, Counting()) as url, web() as http:
        await http.get(f"{url}/ready")
        mortal.hang()
        statuses = []

        async def ask() -> None:
            statuses.append((await post(http, url)).status_code)

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(ask)
            await anyio.sleep(0.1)
            for _ in range(5):
                assert (await http.get(f"{url}/ready")).status_code == 200
            assert not statuses
            mortal.kill()
        assert statuses == [503] * 20


async def test_a_server_that_hangs_while_the_work_runs_delays_the_answer_by_a_second_at_most(mortal: Server) -> None:
    ended = 0.0

    async def work(_request, _context):
        nonlocal ended
        mortal.hang()
        skip_time()
        ended = anyio.current_time()
        return {"runs": 1}

    stop_time()
    async with served(mortal.url, work, timeout=1.0) as url, web() as http:
        assert "result" in (await post(http, url, "k")).json()
        # A second wait would make two. The loop has other timers, which a slow machine may skip to meanwhile.
        assert anyio.current_time() - ended < 1.9
        began = anyio.current_time()
        assert (await post(http, url, "k")).status_code == 503
        assert anyio.current_time() - began < 1.9


async def test_all_processes_share_the_limits_of_principals_and_report_them(redis: Server) -> None:
    table = TokenTable({"secret-of-alice": ALICE})
    options: Any = {"authenticate": table.verify, "policy": {"principal_limits": "3/hour"}}
    async with (
        served(redis.url, Counting(), **options) as one,
        served(redis.url, Counting(), **options) as other,
        web(headers={"authorization": "Bearer secret-of-alice"}) as http,
    ):
        answers = [await post(http, url) for url in (one, other, one, other)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[0].headers["ratelimit"] == '"3-per-3600s";r=2;t=1200'
    assert 600 <= int(answers[3].headers["retry-after"]) <= 1_200


async def test_all_processes_share_the_limits_of_peers_if_configured(redis: Server) -> None:
    options: Any = {"policy": {"peer_limits": "1/hour"}}
    for shared, expected in ((False, 200), (True, 429)):
        async with (
            served(redis.url, Counting(), share_peer_limits=shared, **options) as one,
            served(redis.url, Counting(), share_peer_limits=shared, **options) as other,
            web() as http,
        ):
            assert (await post(http, one)).status_code == 200
            assert (await post(http, other)).status_code == expected


async def test_the_asgi_application_shares_limits_too(redis: Server, caplog) -> None:
    app = AsgiApp(agent(), {"count": Counting()}, storage=Redis(redis.url))
    with caplog.at_level(logging.WARNING, "asap.asgi"):
        async with lifespan(app), stored(redis) as other:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as http:
                sent = envelope()
                body = {"jsonrpc": "2.0", "method": "asap.send", "id": 1, "params": {"envelope": sent}}
                answers = [(await http.post("/asap", json=body)).json() for _ in range(2)]
            assert ["result" in answer for answer in answers] == [True, False]
            assert isinstance(await other.ask(question("n1")), Admitted)
    assert not [record for record in caplog.records if "per process" in record.message]


async def test_the_asgi_application_says_why_it_does_not_start() -> None:
    app = AsgiApp(agent(), {"count": Counting()}, storage=Redis("redis://127.0.0.1:1"))
    sent: list[Any] = []

    async def receive():
        return {"type": "lifespan.startup"}

    async def send_one(message) -> None:
        sent.append(message)

    await app({"type": "lifespan"}, receive, send_one)
    assert sent[0]["type"] == "lifespan.startup.failed"
    assert "redis at 127.0.0.1:1" in sent[0]["message"]


async def test_the_asgi_application_needs_lifespan(redis: Server) -> None:
    app = AsgiApp(agent(), {"count": Counting()}, storage=Redis(redis.url))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as http:
        with pytest.raises(RuntimeError, match="expected an ASGI server with lifespan"):
            await http.get("/ready")


@asynccontextmanager
async def lifespan(app: AsgiApp) -> AsyncIterator[None]:
    """As an ASGI server does it: in one task, from start to end."""
    to_app, of_server = anyio.create_memory_object_stream[Any](1)
    started, ended = anyio.Event(), anyio.Event()

    async def send_one(message) -> None:
        {"lifespan.startup.complete": started, "lifespan.shutdown.complete": ended}[message["type"]].set()

    async with to_app, of_server, anyio.create_task_group() as group:
        group.start_soon(app, {"type": "lifespan"}, of_server.receive, send_one)
        await to_app.send({"type": "lifespan.startup"})
        await started.wait()
        yield
        await to_app.send({"type": "lifespan.shutdown"})
        await ended.wait()


def envelope():
    from asap_adapters.system import new_id
    from asap_core import Envelope, encode_envelope

    return encode_envelope(
        Envelope.new(
            sender=ALICE,
            recipient="urn:asap:agent:shop",
            payload_type="task.request",
            payload={"conversation_id": "c", "skill_id": "count", "input": {}},
            ids=new_id,
            wall=WallTime(time.time()),
        )
    )
