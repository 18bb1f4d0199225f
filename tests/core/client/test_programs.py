"""Programs: their effects and outcomes, how they're stepped and closed, and their time limits."""

from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import given, strategies as st

from asap_core.client.body_reader import BodyReader
from asap_core.client.programs import (
    LATE,
    Barred,
    Completed,
    Effect,
    Expired,
    Fetch,
    FileRead,
    Heard,
    Late,
    LocalNetwork,
    Next,
    Outcome,
    Program,
    ReadFile,
    Received,
    Returned,
    Route,
    Sleep,
    Stage,
    Ticket,
    Unanswered,
    Unavailable,
    Wait,
    WriteFile,
    step,
    within,
)
from asap_core.clock import ManualClock
from asap_core.errors import Advice, Unreachable
from asap_core.mdns.dnssd import Ignored, UnusableRecord
from asap_core.net.addresses import Proximity
from asap_core.net.outbound import Dial, OutboundPolicy
from tests.core.client.scripted import HELD, After, Answer, Driver

ROUTE = Route("agent.example", 443, "https")


def fetch(seconds: float = 10.0) -> Fetch:
    return Fetch("GET", "https://agent.example/x", (), None, seconds, 9.0, ROUTE, BodyReader(100))


RECEIVED, UNANSWERED, EXPIRED = Received("8.8.8.8"), Unanswered(Stage.SENT, "the connection broke"), Expired()
BARRED, COMPLETED, HEARD = (
    Barred("it's inside", Advice("allow it")),
    Completed(),
    Heard(Ignored(UnusableRecord("agent", "no port"))),
)
FILE_READ, UNAVAILABLE = FileRead(), Unavailable("no such file")
OUTCOMES: list[Outcome] = [RECEIVED, UNANSWERED, EXPIRED, BARRED, COMPLETED, HEARD, FILE_READ, UNAVAILABLE]
CONTENT: Any = object()
EFFECTS: list[tuple[Any, list[Outcome]]] = [
    (fetch(), [RECEIVED, UNANSWERED, EXPIRED, BARRED]),
    (Wait(Ticket()), [COMPLETED, EXPIRED]),
    (Sleep(1.0), [COMPLETED]),
    (Next(LocalNetwork()), [HEARD, UNAVAILABLE, EXPIRED]),
    (ReadFile("/a", BodyReader(100)), [FILE_READ, UNAVAILABLE, EXPIRED]),
    (WriteFile("/a", CONTENT), [COMPLETED, UNAVAILABLE, EXPIRED]),
]


def program_of(effect: Any) -> Program[Any]:
    return (yield from effect)


class TestEffects:
    @pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: type(outcome).__name__)
    @pytest.mark.parametrize(("effect", "answers"), EFFECTS, ids=[type(effect).__name__ for effect, _ in EFFECTS])
    def test_an_effect_accepts_only_its_own_outcomes(self, effect, answers, outcome) -> None:
        program = program_of(effect)
        assert step(program) is effect
        if outcome in answers:
            assert step(program, outcome) == Returned(outcome)
        else:
            with pytest.raises(
                TypeError, match=rf"^a {type(effect).__name__} is answered by .*, not {type(outcome).__name__}\("
            ):
                step(program, outcome)

    def test_readers_and_writers_are_not_compared(self) -> None:
        assert fetch() == fetch()
        assert ReadFile("/a", BodyReader(1)) == ReadFile("/a", BodyReader(2))
        other: Any = object()
        assert WriteFile("/a", CONTENT) == WriteFile("/a", other)

    def test_defaults_claim_nothing(self) -> None:
        assert (UNANSWERED.silent, Ticket().ready, Ticket().parked) == (False, False, False)
        assert (ReadFile("/a", BodyReader(1)).private, EXPIRED.stage) == (False, Stage.SENT)

    def test_a_request_shows_no_secrets(self) -> None:
        secret = "hunter2"
        request = Fetch("POST", "https://a.example/", (("x", secret),), secret.encode(), 1.0, 1.0, ROUTE, BodyReader(1))
        assert secret not in repr(request)


class TestStepping:
    def test_a_program_runs_up_to_its_next_effect(self) -> None:
        def program() -> Program[str]:
            yield from Sleep(1.0)
            yield from Sleep(2.0)
            return "done"

        running = program()
        assert [step(running), step(running, COMPLETED), step(running, COMPLETED)] == [
            Sleep(1.0),
            Sleep(2.0),
            Returned("done"),
        ]

    def test_an_exception_of_the_program_propagates(self) -> None:
        def program() -> Program[None]:
            yield from Sleep(1.0)
            raise Unreachable("https://a.example", "why")

        running = program()
        step(running)
        with pytest.raises(Unreachable):
            step(running, COMPLETED)

    def test_a_program_without_effects_is_finished_at_once(self) -> None:
        def program() -> Program[None]:
            yield from ()

        assert step(program()) == Returned(None)


class TestMistakesOfADriver:
    """They're told as such: nothing is returned, and the program may go on."""

    def test_a_program_that_has_ended_takes_no_outcome(self) -> None:
        returned, closed = sleeps(), sleeps(1.0)
        step(returned)
        step(closed)
        closed.close()
        for program in (returned, closed):
            with pytest.raises(RuntimeError, match="this program has ended: it has returned, raised or been closed"):
                step(program, COMPLETED)

    def test_the_first_step_has_no_outcome(self) -> None:
        program = sleeps(1.0)
        with pytest.raises(TypeError, match="the first step of a program has no outcome"):
            step(program, COMPLETED)
        assert step(program) == Sleep(1.0)

    def test_a_list_of_programs_is_not_a_program(self) -> None:
        programs: Any = [sleeps(1.0)]
        with pytest.raises(TypeError, match="expected a program, not a list: keep_fresh returns several; step each"):
            step(programs)

    @pytest.mark.parametrize(("value", "kind"), [(None, "NoneType"), (fetch, "function"), (5, "int")])
    @pytest.mark.parametrize("outcome", [None, COMPLETED])
    def test_another_value_is_not_a_program(self, value: Any, kind: str, outcome: Outcome | None) -> None:
        with pytest.raises(TypeError, match=rf"expected a program, such as client\.discover\(url\), not {kind}$"):
            step(value, outcome)

    @pytest.mark.parametrize("error", [TypeError("the program's own"), AttributeError("the program's own")])
    @pytest.mark.parametrize("begun", [True, False])
    def test_a_program_may_raise_these_errors_itself(self, error: Exception, begun: bool) -> None:
        def failing() -> Program[None]:
            if begun:
                yield from Sleep(1.0)
            raise error

        program = failing()
        outcome = None
        if begun:
            step(program)
            outcome = COMPLETED
        with pytest.raises(type(error)) as caught:
            step(program, outcome)
        assert caught.value is error


class TestRoutes:
    def test_a_name_is_resolved_and_its_addresses_are_chosen(self) -> None:
        assert ROUTE.name == "agent.example"
        assert ROUTE.choose(["8.8.8.8", "2606:4700::1"]) == Dial(("8.8.8.8", "2606:4700::1"))

    def test_one_refused_address_refuses_the_route(self) -> None:
        refused = ROUTE.choose(["8.8.8.8", "10.0.0.5"])
        assert isinstance(refused, Barred)
        assert "agent.example resolves to 10.0.0.5" in refused.reason

    def test_the_reach_and_the_policy_decide_about_an_address(self) -> None:
        policy = OutboundPolicy(allow_networks=["10.0.0.0/8"])
        near, far = (
            Route("a.example", 8443, "http", (), policy, reach) for reach in (Proximity.MACHINE, Proximity.INTERNET)
        )
        assert near.choose(["10.0.0.5"]) == Dial(("10.0.0.5",))
        refused: Any = far.choose(["10.0.0.5"])
        assert refused.remedy.value == "http://a.example:8443"

    @pytest.mark.parametrize(("host", "addresses"), [("localhost", ("127.0.0.1", "::1")), ("8.8.8.8", ("8.8.8.8",))])
    def test_this_machine_and_addresses_are_not_resolved(self, host, addresses) -> None:
        route = Route(host, 80, "http")
        assert (route.name, route.choose()) == (None, Dial(addresses))

    def test_an_announced_host_is_at_the_announced_addresses_only(self) -> None:
        route = Route("agent.local", 80, "http", ("192.168.1.9",))
        assert route.name is None
        assert route.choose(["8.8.8.8"]) == Dial(("192.168.1.9",))

    def test_a_name_without_addresses_is_an_unanswered_request(self) -> None:
        assert ROUTE.choose(()) == Unanswered(Stage.CONNECTING, "its name can't be resolved: it has no address")

    @pytest.mark.parametrize(
        ("host", "name"),
        [
            ("agent.example", "agent.example"),
            ("agent.example.", "agent.example"),
            ("8.8.8.8", "8.8.8.8"),
            ("fe80::1%eth0", "fe80::1"),
        ],
    )
    def test_a_certificate_is_checked_for_the_host_without_a_trailing_dot_and_a_zone(self, host, name) -> None:
        assert Route(host, 443, "https").server_name == name


def sleeps(*seconds: float, closed: list[str] | None = None) -> Program[str]:
    try:
        for each in seconds:
            yield from Sleep(each)
    finally:
        if closed is not None:
            closed.append("closed")
    return "slept"


class TestTimeLimits:
    """`within` gives each effect the remaining time."""

    def run(self, program: Program[Any], script: Any = HELD, seconds: float | None = 5.0) -> tuple[Any, float, Driver]:
        driver = Driver(lambda _: script)
        value = driver.run(within(seconds, program, driver.clock))
        return value, driver.clock.monotonic(), driver

    def test_without_a_limit_nothing_changes(self) -> None:
        value, took, driver = self.run(sleeps(3.0, 99.0), seconds=None)
        assert (value, took, driver.effects) == ("slept", 102.0, [Sleep(3.0), Sleep(99.0)])

    def test_a_program_that_needs_less_time_is_finished(self) -> None:
        value, took, driver = self.run(sleeps(2.0, 3.0))
        assert (value, took, driver.effects) == ("slept", 5.0, [Sleep(2.0), Sleep(3.0)])

    def test_a_program_that_needs_more_time_is_closed(self) -> None:
        closed: list[str] = []
        value, took, driver = self.run(sleeps(2.0, 4.0, closed=closed))
        assert (value, took, driver.effects, closed) == (LATE, 5.0, [Sleep(2.0), Sleep(3.0)], ["closed"])

    @pytest.mark.parametrize(
        "effect",
        [
            fetch(),
            Wait(Ticket()),
            Wait(Ticket(), 9.0),
            Next(LocalNetwork()),
            ReadFile("/a", BodyReader(9)),
            WriteFile("/a", CONTENT),
            Sleep(9.0),
        ],
        ids=lambda effect: type(effect).__name__,
    )
    def test_every_effect_gets_the_remaining_time(self, effect) -> None:
        def program() -> Program[object]:
            yield from Sleep(2.0)
            return (yield from effect)

        value, took, driver = self.run(program())
        assert (value, took, driver.effects[1].seconds) == (LATE, 5.0, 3.0)

    def test_the_program_gets_the_expiry_of_an_effects_own_limit(self) -> None:
        for seconds in (4.0, 5.0):
            value, took, _ = self.run(program_of(fetch(seconds)))
            assert (value, took) == (Expired(), seconds)

    def test_an_outcome_at_the_last_moment_counts(self) -> None:
        value, took, _ = self.run(program_of(fetch()), After(5.0, Answer()))
        assert (value, took) == (Received(), 5.0)

    def test_an_outcome_counts_even_if_the_clock_is_past_the_limit(self) -> None:
        clock = ManualClock()
        program = within(5.0, program_of(fetch()), clock)
        step(program)
        clock.advance(60.0)
        assert step(program, RECEIVED) == Returned(RECEIVED)

    def test_the_next_effect_after_the_limit_gets_no_time(self) -> None:
        def program() -> Program[object]:
            yield from fetch()
            return (yield from fetch())

        clock = ManualClock()
        running: Program[object] = within(5.0, program(), clock)
        step(running)
        clock.advance(60.0)
        second: Any = step(running, RECEIVED)
        assert second.seconds == 0.0
        assert step(running, Expired()) == Returned(LATE)

    def test_a_failure_is_not_late(self) -> None:
        value, _, _ = self.run(program_of(fetch()), After(1.0, UNANSWERED))
        assert value == UNANSWERED

    def test_a_program_without_effects_finishes_in_no_time(self) -> None:
        assert self.run(sleeps(), seconds=0.0)[0] == "slept"
        assert self.run(sleeps(1.0), seconds=0.0)[:2] == (LATE, 0.0)

    def test_an_exception_of_the_program_propagates(self) -> None:
        def program() -> Program[None]:
            yield from Sleep(1.0)
            raise Unreachable("https://a.example", "why")

        with pytest.raises(Unreachable):
            self.run(program())

    @pytest.mark.parametrize(
        ("inner", "outer", "result", "took"), [(2.0, 5.0, ("inner", LATE), 2.0), (5.0, 2.0, LATE, 2.0)]
    )
    def test_the_shorter_of_two_limits_counts(self, inner, outer, result, took) -> None:
        driver = Driver()

        def program() -> Program[tuple[str, str | Late]]:
            return "inner", (yield from within(inner, sleeps(9.0), driver.clock))

        assert driver.run(within(outer, program(), driver.clock)) == result
        assert driver.clock.monotonic() == took

    def test_the_program_inside_is_closed_even_if_something_else_holds_it(self) -> None:
        closed: list[str] = []
        inside = sleeps(9.0, closed=closed)
        assert self.run(inside)[0] is LATE
        assert closed == ["closed"]

    def test_closing_closes_the_program_inside(self) -> None:
        closed: list[str] = []
        driver = Driver()
        run = driver.start(within(5.0, sleeps(9.0, closed=closed), driver.clock))
        driver.close(run)
        assert closed == ["closed"]


def naive(limit: int, *seconds: int) -> tuple[object, float]:
    total = sum(seconds)
    return ("slept", total) if total <= limit else (LATE, limit)


@given(st.integers(0, 20), st.lists(st.integers(0, 9), max_size=6))
def test_a_limit_is_kept_to_the_second(limit: int, seconds: list[int]) -> None:
    driver = Driver()
    value = driver.run(within(limit, sleeps(*seconds), driver.clock))
    assert (value, driver.clock.monotonic()) == naive(limit, *seconds)


class TestClosing:
    def test_a_closed_program_yields_nothing_more(self) -> None:
        running = sleeps(1.0, 2.0)
        step(running)
        running.close()
        with pytest.raises(StopIteration):
            next(running)

    def test_closing_a_program_that_was_never_started_does_nothing(self) -> None:
        closed: list[str] = []
        sleeps(1.0, closed=closed).close()
        assert closed == []


def test_a_ticket_is_equal_only_to_itself() -> None:
    assert Ticket() != Ticket()
    assert LocalNetwork() != LocalNetwork()
    effect: Generator[Effect, Outcome, Any] = program_of(Wait(Ticket(ready=True)))
    assert isinstance(step(effect), Wait)
