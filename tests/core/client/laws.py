"""Stateful machines for the laws of programs: a test drives a world by hand, and at the end another one the same way.

class Thing(World): ...                     # the commands, and a naive model that watches
class ThingLaws(ProgramMachine):            # the rules: `self.do("command", …)`
    world_of = staticmethod(Thing)
"""

import random
from collections.abc import Collection, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from attrs import evolve
from hypothesis import Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from asap_core.client.programs import (
    Barred,
    Completed,
    Expired,
    Fetch,
    Next,
    ReadFile,
    Returned,
    Sleep,
    Stage,
    Unanswered,
    Wait,
    WriteFile,
)
from asap_core.client.requests import Requests
from asap_core.client.runtime import Runtime
from asap_core.errors import Advice, NotAllowed
from asap_core.flights import Flights
from asap_core.net.outbound import Allowed, OutboundPolicy, UrlRefused
from tests.core.client.scripted import Answer, Driver, Reply, Run

LINK_LOCAL = "http://169.254.169.254/latest"
# A server's replies that hold no document, and what comes instead of one.
FAILURES: dict[str, Reply] = {
    "gone": Answer(404),
    "down": Answer(503, (("retry-after", "3"),)),
    "moved away": Answer(302, (("location", "https://evil.example/"),)),
    "moved inside": Answer(307, (("location", LINK_LOCAL),)),
    "moved to another port": Answer(301, (("location", "//localhost:22/"),)),
    "invalid": Answer(200, body=b"!"),
    "cut off": Answer(200, failure=Unanswered(Stage.ANSWERED, "it broke")),
    "no connection free": Unanswered(Stage.QUEUED, "queued"),
    "not connected": Unanswered(Stage.CONNECTING, "can't connect: refused"),
    "lost": Unanswered(Stage.SENT, "the connection broke"),
    "expired": Expired(),
    "expired before": Expired(Stage.CONNECTING),
    "barred": Barred("it's inside", Advice("allow it")),
}


class World(Driver):
    """Does what it's told, and watches."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[str] = []

    @property
    def tables(self) -> tuple[int, ...]:
        """How many are in each table of those who wait."""
        raise NotImplementedError

    def left(self, run: Run[Any]) -> None:
        """This run is about to be closed."""

    # --- commands ----------------------------------------------------------------------------------------------------

    def chosen(self, which: int, *kinds: type[Any]) -> Run[Any] | None:
        """Return one of the runs that wait for such an effect, if there's one."""
        runs = [run for run in self.runs if isinstance(run.effect, kinds)]
        return runs[which % len(runs)] if runs else None

    def wake_in_vain(self, which: int) -> None:
        run = self.chosen(which, Wait)
        if run is not None:
            self.answer(run, Completed())

    def next_turn(self) -> None:
        """Let one of those go on whose effect is over."""
        self.turn(self.clock.monotonic())

    def settle(self) -> None:
        """Let all of them go on."""
        self.advance(0.0)

    def leave(self, which: int, lost: bool) -> None:
        """Close a program, or leave it to the garbage collector of another thread."""
        run = self.chosen(which, object)
        if run is None:
            return
        self.left(run)
        if lost:
            before = self.tables
            self.lose(run)
            assert self.tables == before, "a table was changed without its owner"
        else:
            self.close(run)

    # --- what holds in every world -----------------------------------------------------------------------------------

    def requested(self, kind: type[Any] = Fetch) -> list[Any]:
        """The effects of this kind that are under way."""
        return [run.effect for run in self.runs if isinstance(run.effect, kind)]

    def is_empty(self) -> None:
        left = *self.tables, len(self.runtime._undone), *self.runtime.take_wakes()
        assert left == (0,) * len(left), "something is left"

    def note_end(self, run: Run[Any]) -> None:
        self.ends.append(f"{self.clock.monotonic()} {run.end.value if isinstance(run.end, Returned) else run.end!r}")

    def trace(self) -> Iterator[str]:
        """What happened, without what is compared by identity."""
        for effect in self.effects:
            match effect:
                case Fetch():
                    yield f"{effect} {effect.headers} {effect.body!r} {effect.route}"
                case Wait():
                    yield f"Wait {effect.seconds}"
                case Next():
                    yield f"Next {effect.seconds}"
                case Sleep():
                    yield str(effect)
                case ReadFile() | WriteFile():
                    yield f"{type(effect).__name__} {effect.path} {effect.seconds}"
        yield from self.ends


def leads_outside(fetch: Fetch, hosts: Collection[str]) -> None:
    """Assert that a request goes to one of these hosts, over TLS, and to no address inside."""
    parts, route = urlsplit(fetch.url), fetch.route
    assert parts.scheme == "https", f"unencrypted: {fetch.url}"
    assert parts.netloc in hosts, f"a stranger's: {fetch.url}"
    assert (route.host, route.scheme, route.port) == (parts.hostname, "https", 443), "another route than the URL's"
    assert isinstance(route.choose(["10.0.0.5", "169.254.169.254"]), Barred), "inside"


# --- machines --------------------------------------------------------------------------------------------------------

NUMBERS = st.integers(0, 7)


class ProgramMachine(RuleBasedStateMachine):
    """The rules that fit every world. A subclass adds its own."""

    world_of: Any = staticmethod(World)

    def __init__(self) -> None:
        super().__init__()
        self.world = self.world_of()
        self.commands: list[tuple[str, tuple[Any, ...]]] = []
        self.failed = False

    def do(self, command: str, *arguments: Any) -> None:
        """Give the world a command."""
        self.commands.append((command, arguments))
        self.failed = True
        getattr(self.world, command)(*arguments)
        self.failed = False

    @rule(which=NUMBERS)
    def wake_in_vain(self, which: int) -> None:
        self.do("wake_in_vain", which)

    @rule()
    def next_turn(self) -> None:
        self.do("next_turn")

    @rule(which=NUMBERS, lost=st.booleans())
    def leave(self, which: int, lost: bool) -> None:
        self.do("leave", which, lost)

    def teardown(self) -> None:
        if self.failed:
            # What failed is to be reported, and not what comes of it.
            return
        for number in range(len(self.world.runs)):
            self.do("leave", number, number % 2 == 0)
        self.do("settle")
        assert self.world.runs == []
        self.world.is_empty()
        again = self.world_of()
        for command, arguments in self.commands:
            getattr(again, command)(*arguments)
        assert list(again.trace()) == list(self.world.trace()), "the same script, and other effects"


LAWS = settings(max_examples=100, stateful_step_count=40, deadline=None)
HUNT = settings(LAWS, max_examples=1_000, phases=[Phase.generate], derandomize=True, database=None)


def keeps_its_laws(machine: type[ProgramMachine]) -> None:
    run_state_machine_as_test(machine, settings=settings(LAWS, max_examples=settings().max_examples))


def is_caught(machine: type[ProgramMachine]) -> None:
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        run_state_machine_as_test(machine, settings=HUNT)


# --- defects that every machine must notice ------------------------------------------------------------------------


def judges_nothing(self: Requests, url: str, **options: Any) -> Allowed:
    try:
        return judge(self, url, **options)
    except NotAllowed:
        return Allowed(url, url, urlsplit(url).hostname or "", encrypted=False)


def follows_anywhere(self: OutboundPolicy, _asked: Allowed, location: str, **_: object) -> Allowed | UrlRefused:
    return self.judge(location)


def fetches_for_each(self: Any, key: Any, waiter: Any) -> Any:
    self.detach(key)
    return join(self, key, waiter)


def tells_the_leader_only(self: Any, flight: Any) -> Any:
    return land(self, flight)[:1]


def with_a_header_of_chance(self: Requests, call: Any) -> Any:
    header = "x-request-id", str(random.random())
    return exchange(self, evolve(call, headers=(*call.headers, header)))


judge, exchange, join, land = Requests.judge, Requests._exchange, Flights.join, Flights.land
Defects = dict[str, tuple[Any, str, Any]]
"""What is replaced: in which object, under which name, by what."""
TABLE_DEFECTS: Defects = {
    "nothing is undone": (Runtime, "undo_after", lambda _self, _error, _undo: None),
    "it's undone where it's closed": (Runtime, "undo_after", lambda _self, _error, undo: undo()),
    "each caller fetches": (Flights, "join", fetches_for_each),
    "only the first is told": (Flights, "land", tells_the_leader_only),
}
REQUEST_DEFECTS: Defects = {
    "nothing is judged": (Requests, "judge", judges_nothing),
    "redirects are followed anywhere": (OutboundPolicy, "judge_redirect", follows_anywhere),
    "requests differ by chance": (Requests, "_exchange", with_a_header_of_chance),
}
