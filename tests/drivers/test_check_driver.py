"""The kit that checks a client's driver: right ones pass, and each broken one is told what is wrong."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import urljoin

import pytest
from attrs import evolve

from asap_core.client import (
    Client,
    Completed,
    Dial,
    Effect,
    Expired,
    Fetch,
    HttpExchange,
    Outcome,
    Received,
    Returned,
    Stage,
    Unanswered,
    Wait,
    step,
)
from asap_core.testing import check_driver
from asap_core.testing.drivers import broken_rules
from docs.drivers.asyncio_protocol import AsyncioClient
from docs.drivers.threads import Threads
from tests.drivers.runners import (
    OnLoop,
    asyncio_protocol,
    blocking_client,
    function,
    result_of,
    simulator,
    threads,
)

pytestmark = pytest.mark.live


@pytest.mark.parametrize(
    ("prepare", "lacks"),
    [
        pytest.param(threads, ["cancelling"], id="threads"),
        pytest.param(function, ["concurrency", "cancelling"], id="lambda"),
        pytest.param(asyncio_protocol, [], id="asyncio"),
        pytest.param(simulator, ["requests", "addresses"], id="simulator"),
        pytest.param(partial(OnLoop, backend="asyncio"), [], id="AgentClient on asyncio"),
        pytest.param(partial(OnLoop, backend="trio"), [], id="AgentClient on trio"),
        pytest.param(blocking_client, ["cancelling"], id="BlockingClient"),
    ],
)
def test_a_right_driver_passes(prepare: Any, lacks: Any) -> None:
    check_driver(prepare, lacks=lacks)


def test_what_a_driver_lacks_must_be_known() -> None:
    with pytest.raises(
        ValueError, match="lacks: expected some of requests, addresses, patience, concurrency, cancelling"
    ):
        check_driver(threads, lacks=["x"])  # type: ignore[list-item]


@pytest.mark.planted
@pytest.mark.parametrize(
    ("binds", "says"), [(True, "a Sleep is answered by Completed, not by None"), (False, "it doesn't bind the client")]
)
def test_all_broken_rules_are_listed(binds: bool, says: str) -> None:
    def prepare(client: Client) -> Any:
        if binds:
            threads(client)
        return lambda programs, _: [None for _ in programs]

    with pytest.raises(AssertionError) as caught:
        check_driver(prepare)
    assert str(caught.value).count("\n* ") > 15
    assert f"* A Sleep takes its time: {says}\n" in str(caught.value)


# --- planted defects -------------------------------------------------------------------------------------------------


HELD: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while HELD:
        HELD.pop().close()


class FollowsRedirects(Threads):
    def perform(self, effect: Effect) -> Outcome:
        outcome = super().perform(effect)
        if isinstance(effect, Fetch) and (location := dict(effect.reader.headers).get("location")):
            return super().perform(evolve(effect, url=urljoin(effect.url, location)))
        return outcome


class ResolvesByItself(Threads):
    def perform(self, effect: Effect) -> Outcome:
        if isinstance(effect, Fetch):
            effect = evolve(effect, route=evolve(effect.route, announced=()))
        return super().perform(effect)


class AsksNobody(Threads):
    """It connects whatever the policy says."""

    def perform(self, effect: Effect) -> Outcome:
        if isinstance(effect, Fetch):
            effect = evolve(effect, route=evolve(effect.route, announced=("127.0.0.1",)))
        return super().perform(effect)


class LimitsEachStep(Threads):
    """Its limits are those of sockets: for each piece."""

    def perform(self, effect: Effect) -> Outcome:
        return self.fetch(effect) if isinstance(effect, Fetch) else super().perform(effect)

    def fetch(self, asked: Fetch) -> Outcome:
        http, chosen = HttpExchange(asked), asked.route.choose()
        if not isinstance(chosen, Dial):
            return chosen
        try:
            with socket.create_connection((chosen.addresses[0], asked.route.port), asked.seconds) as connection:
                connection.sendall(http.begin())
                while http.outcome is None:
                    self.receive(http, connection)
                return http.outcome
        except OSError as error:
            return http.failed(error)

    def receive(self, http: HttpExchange, connection: socket.socket) -> None:
        http.receive(connection.recv(65_536))


class IgnoresPatience(LimitsEachStep):
    """It looks at `seconds`, and at nothing else."""

    ends = 0.0

    def fetch(self, asked: Fetch) -> Outcome:
        self.ends = time.monotonic() + asked.seconds
        return super().fetch(asked)

    def receive(self, http: HttpExchange, connection: socket.socket) -> None:
        if self.ends <= time.monotonic():
            raise TimeoutError
        connection.settimeout(self.ends - time.monotonic())
        super().receive(http, connection)


class LeavesConnectionsOpen(IgnoresPatience):
    """Until the end of the test."""

    def receive(self, http: HttpExchange, connection: socket.socket) -> None:
        HELD.append(connection.dup())
        super().receive(http, connection)


class ReadsOn(IgnoresPatience):
    """It reads a body to its end, wanted or not."""

    def receive(self, http: HttpExchange, connection: socket.socket) -> None:
        super().receive(http, connection)
        if http.outcome is not None and not http._reader.wants:
            http.outcome = None


class TakesHalfForWhole(Threads):
    def perform(self, effect: Effect) -> Outcome:
        outcome = super().perform(effect)
        if isinstance(effect, Fetch) and isinstance(outcome, Unanswered) and outcome.stage is Stage.ANSWERED:
            effect.reader.end()
            return Received()
        return outcome


class Raises(Threads):
    def perform(self, effect: Effect) -> Outcome:
        outcome = super().perform(effect)
        if isinstance(outcome, Unanswered):
            raise ConnectionError(outcome.problem)
        return outcome


class QuotesThePeer(Threads):
    def perform(self, effect: Effect) -> Outcome:
        outcome = super().perform(effect)
        is_strange = isinstance(outcome, Unanswered) and "HTTP" in outcome.problem
        return Unanswered(Stage.SENT, "expected HTTP, not 220 what-the-peer-sent") if is_strange else outcome


class MistakesTheStage(Threads):
    def perform(self, effect: Effect) -> Outcome:
        outcome = super().perform(effect)
        return evolve(outcome, stage=Stage.CONNECTING) if isinstance(outcome, Unanswered) else outcome


class KeepsCookies(Threads):
    cookie = ""

    def perform(self, effect: Effect) -> Outcome:
        if not isinstance(effect, Fetch):
            return super().perform(effect)
        outcome = super().perform(evolve(effect, headers=(*effect.headers, ("cookie", self.cookie))))
        self.cookie = dict(effect.reader.headers).get("set-cookie", "")
        return outcome


class GivesUpEarlyAnswers(Threads):
    """It takes an answer that came early for a broken connection."""

    def perform(self, effect: Effect) -> Outcome:
        outcome = super().perform(effect)
        early = isinstance(effect, Fetch) and effect.reader.status == 413
        return Unanswered(Stage.SENT, "BrokenPipeError") if early else outcome


class SleepsThroughWakes(Threads):
    def perform(self, effect: Effect) -> Outcome:
        if not isinstance(effect, Wait):
            return super().perform(effect)
        time.sleep(3.0)
        return Completed() if effect.ticket.ready else Expired()


class AnswersAWaitByNone(Threads):
    def perform(self, effect: Effect) -> Any:
        return None if isinstance(effect, Wait) else super().perform(effect)


class TakesNoRemarks(Threads):
    def run(self, program: Any) -> Any:
        self.client.take_remarks = tuple  # type: ignore[method-assign]
        return super().run(program)


class TakesNoWakes(Threads):
    def __init__(self, client: Client) -> None:
        super().__init__(client)
        client.take_wakes = tuple  # type: ignore[method-assign]


class SwallowsErrors(Threads):
    def run(self, program: Any) -> Any:
        result = result_of(super().run, program)
        return None if isinstance(result, ValueError) else result


class NeverCloses(AsyncioClient):
    async def run(self, program: Any) -> Any:
        # So that the garbage collector doesn't close it.
        vars(self).setdefault("held", []).append(program)
        moved = step(program)
        while not isinstance(moved, Returned):
            self.settle()
            moved = step(program, await self.perform(moved))
        return moved.value


class Throws(AsyncioClient):
    async def run(self, program: Any) -> Any:
        try:
            return await super().run(self.kept(program))
        except asyncio.CancelledError as error:
            with suppress(asyncio.CancelledError):
                program.throw(error)
            raise

    def kept(self, program: Any) -> Any:
        outcome = None
        while not isinstance(moved := step(program, outcome), Returned):
            outcome = yield moved
        return moved.value


DEFECTS: dict[str, tuple[Any, str, str]] = {
    "redirects are followed": (FollowsRedirects, "check_redirects", "requested were ['/moved', '/ok']"),
    "names are resolved": (ResolvesByItself, "check_addresses", "two addresses were chosen, of which the second"),
    "the policy isn't asked": (AsksNobody, "check_refused_addresses", "it requested what the policy refuses"),
    "limits are for each piece": (LimitsEachStep, "check_time_limits", "one byte came each 0.1 s: after"),
    "the reader's patience is ignored": (IgnoresPatience, "check_patience", "the body of an error stalled"),
    "bodies are read to their end": (ReadsOn, "check_large_bodies", "expected Received, not Expired"),
    "half a document is a whole one": (
        TakesHalfForWhole,
        "check_broken_responses",
        "a body was cut off: expected",
    ),
    "failures are exceptions": (Raises, "check_refused_connections", "a failure is an outcome, not an exception"),
    "a problem quotes the peer": (QuotesThePeer, "check_broken_responses", "the problem has what the peer sent"),
    "the stage is wrong": (MistakesTheStage, "check_broken_responses", "the server may have acted on it"),
    "cookies are kept": (KeepsCookies, "check_requests", "it sends the field cookie"),
    "early answers are lost": (GivesUpEarlyAnswers, "check_early_answers", "comes before the request is read"),
    "a ticket isn't looked at": (SleepsThroughWakes, "check_wait", "look at it first"),
    "an outcome has the wrong type": (AnswersAWaitByNone, "check_wait", "a Wait is answered by Completed or Expired"),
    "remarks aren't taken": (TakesNoRemarks, "check_settling", "it doesn't call take_remarks()"),
    "wakes aren't taken": (TakesNoWakes, "check_settling", "it doesn't call take_wakes()"),
    "errors are swallowed": (SwallowsErrors, "check_results", "expected the exceptions of two programs"),
    "programs aren't closed": (NeverCloses, "check_cancelling", "isn't closed: call its close() in a finally"),
    "cancellations are thrown": (Throws, "check_cancelling", "only close() ends a program"),
    "connections stay open": (LeavesConnectionsOpen, "check_time_limits", "connection is still open"),
}


@pytest.mark.planted
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_broken_driver_is_told_what_is_wrong(defect: str) -> None:
    kind, check, says = DEFECTS[defect]
    prepare: Any = threads if issubclass(kind, Threads) else asyncio_protocol
    (broken,) = broken_rules(partial(prepare, kind=kind), only={check})
    assert says in broken
