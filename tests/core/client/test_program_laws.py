"""The laws of programs that look up documents, for any outcomes in any order, closed or collected at any yield.

(a) When nobody waits any longer, no flight, waiter, wake or undo is left.
(b) There's one live fetch for each document, and one answer or one failure for all who wait for it.
(f) Nothing is fetched that the outbound policy refuses.
(g) The same script gives the same effects.
"""

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pytest
from attrs import define, evolve, field
from hypothesis import Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from asap_core.client import documents as documents_module
from asap_core.client.body_reader import WholeParser
from asap_core.client.document_cache import DocumentCache
from asap_core.client.documents import Documents, LocatedDocument
from asap_core.client.fetch_results import Source
from asap_core.client.programs import (
    Barred,
    Completed,
    Expired,
    Fetch,
    Program,
    Returned,
    Stage,
    Unanswered,
    Wait,
)
from asap_core.client.requests import Requests
from asap_core.client.runtime import Runtime
from asap_core.errors import Advice, InvalidDocument, NotAllowed, Problem
from asap_core.flights import Flights
from asap_core.net.outbound import Allowed, OutboundPolicy
from tests.core.client.scripted import Answer, Driver, Reply, Run

# --- the world: a client's documents, and the commands of a test -----------------------------------------------------

GOOD = ("http://localhost/a", "http://localhost/b", "https://ok.example/c")
BAD = ("http://agent.example/d", "https://169.254.169.254/e", "https://u:p@ok.example/f")
STALE_SOON = "max-age=5, stale-while-revalidate=60"
REPLIES: dict[str, Reply] = {
    "fresh": Answer(200, (("cache-control", "max-age=60"), ("etag", '"1"'))),
    "stale soon": Answer(200, (("cache-control", STALE_SOON), ("etag", '"1"'))),
    "not to be stored": Answer(200, (("cache-control", "no-store"),)),
    "confirmed": Answer(304, (("etag", '"1"'),)),
    "another one confirmed": Answer(304, (("etag", '"2"'),)),
    "gone": Answer(404),
    "down": Answer(503, (("retry-after", "3"),)),
    "moved": Answer(302, (("location", "/moved"),)),
    "moved away": Answer(302, (("location", "https://evil.example/"),)),
    "moved inside": Answer(307, (("location", "http://169.254.169.254/latest"),)),
    "moved to another port": Answer(301, (("location", "//localhost:22/"),)),
    "too large": Answer(200, body=b"x" * 200),
    "invalid": Answer(200, body=b"!"),
    "cut off": Answer(200, failure=Unanswered(Stage.ANSWERED, "it broke")),
    "no connection free": Unanswered(Stage.QUEUED, "queued"),
    "not connected": Unanswered(Stage.CONNECTING, "can't connect: refused"),
    "lost": Unanswered(Stage.SENT, "the connection broke"),
    "expired": Expired(),
    "expired before": Expired(Stage.CONNECTING),
    "barred": Barred("it's inside", Advice("allow it")),
}


Command = tuple[str, tuple[Any, ...]]
"""A method of `World`, and its arguments."""


def parse(data: bytes) -> bytes:
    if data.startswith(b"!"):
        raise InvalidDocument("a document", (Problem((), "another"),))
    return data


@define(eq=False)
class Group:
    """Those who wait for one fetch, in order of coming. `landed`: what came of it."""

    key: str
    members: list[Run[Any]] = field(factory=list)
    landed: Returned[Any] | Exception | None = None

    @property
    def fetching(self) -> list[Run[Any]]:
        return [run for run in self.members if isinstance(run.effect, Fetch)]


class World(Driver):
    """Does what it's told, and watches beside a naive model who waits for what."""

    def __init__(self, kind: type[Documents[bytes]] = Documents, requests: type[Requests] = Requests) -> None:
        super().__init__()
        self.policy = OutboundPolicy(redirects=2)
        self.requests = requests(self.runtime, policy=self.policy)
        self.documents = kind(self.runtime, self.requests, parser=lambda: WholeParser(parse), limit=100, policy=None)
        self.answers = 0
        # Of each URL the group that newcomers join, and of each that waits its group.
        self.groups: dict[str, Group] = {}
        self.group_of: dict[Run[Any], Group] = {}
        # Those that stop waiting for a fresh document after a second.
        self.impatient: set[Run[Any]] = set()
        self.ends: list[str] = []

    # --- commands ----------------------------------------------------------------------------------------------------

    def find(self, url: str) -> None:
        self.begin(url, self.documents.find(url))

    def refresh(self, url: str, cool_down: float) -> None:
        self.begin(url, self.documents.find(url, cool_down=cool_down))

    def tell(self, which: int, reply: str) -> None:
        """Answer one of the requests."""
        self.each(Fetch, which, lambda run: self.answer(run, self.made(reply)))

    def wake_in_vain(self, which: int) -> None:
        self.each(Wait, which, lambda run: self.answer(run, Completed()))

    def next_turn(self) -> None:
        """Let one of those go on whose effect is over."""
        self.turn(self.clock.monotonic())

    def settle(self) -> None:
        """Let all of them go on."""
        self.advance(0.0)

    def leave(self, which: int, lost: bool) -> None:
        """Close a program, or leave it to the garbage collector of another thread."""
        if not self.runs:
            return
        run = self.runs[which % len(self.runs)]
        group, before = self.group_of.pop(run), self.documents.waiting
        group.members.remove(run)
        if lost:
            self.lose(run)
            assert self.documents.waiting == before, "a table was changed without its owner"
        else:
            self.close(run)

    def forget(self, url: str | None) -> None:
        """Forget this document, or all."""
        if url is None:
            self.groups.clear()
            self.documents.clear()
        else:
            self.groups.pop(url, None)
            self.documents.forget(url)

    def each(self, kind: type[Any], which: int, do: Callable[[Run[Any]], None]) -> None:
        runs = [run for run in self.runs if isinstance(run.effect, kind)]
        if runs:
            do(runs[which % len(runs)])

    def made(self, name: str) -> Reply:
        """Each document is another one."""
        reply = REPLIES[name]
        if isinstance(reply, Answer) and reply.status == 200 and not reply.body:
            self.answers += 1
            return evolve(reply, body=b"%d" % self.answers)
        return reply

    # --- the model ---------------------------------------------------------------------------------------------------

    def begin(self, url: str, program: Program[Any]) -> None:
        run = self.start(program)
        if run.effect is None:
            self.note_end(run)
            return
        before, fetches = self.groups.get(url), isinstance(run.effect, Fetch)
        group = self.group_of[run] = Group(url) if before is None or fetches else before
        self.groups[url] = group
        group.members.append(run)
        if fetches:
            assert before is None or before.landed is not None or not before.members, "a second fetch of one document"
            self.note_fetch(run)
        else:
            assert before is not None, "it waits for nothing"
            assert before.landed is None, "it waits for what is over"

    def answer(self, run: Run[Any], reply: Any) -> None:
        before, group = run.effect, self.group_of[run]
        super().answer(run, reply)
        if isinstance(run.effect, Fetch):
            if isinstance(before, Wait):
                assert group.landed is None, "it fetches what it was to get"
                assert group.fetching == [run], "a second fetch of one document"
                assert group.members[0] is run, "somebody else was first"
            self.note_fetch(run)
        elif isinstance(run.effect, Wait):
            assert isinstance(before, Wait), "it fetched, and waits"
        else:
            self.note_end(run)
            del self.group_of[run]
            if isinstance(before, Wait):
                self.is_the_same(run, group)
            elif run in self.impatient and isinstance(reply, Expired):
                assert isinstance(run.end, Returned)
                assert run.end.value.source in {Source.STALE_ERROR, Source.CACHED}
            else:
                assert group.landed is None, "a second answer"
                group.landed = run.end
            group.members.remove(run)

    def note_fetch(self, run: Run[Any]) -> None:
        assert isinstance(run.effect, Fetch)
        self.may_be_fetched(run.effect)
        if run.effect.url in GOOD:
            (self.impatient.add if run.effect.seconds == 1.0 else self.impatient.discard)(run)

    def may_be_fetched(self, fetch: Fetch) -> None:
        """Judged by a naive list of what the policy allows."""
        parts, route = urlsplit(fetch.url), fetch.route
        assert (parts.scheme, parts.netloc) in {("http", "localhost"), ("https", "ok.example")}, fetch.url
        assert (route.host, route.scheme) == (parts.hostname, parts.scheme), "another route than the URL's"
        assert isinstance(route.choose(["8.8.8.8", "10.0.0.5"]), Barred) or route.host == "localhost", "inside"

    def is_the_same(self, run: Run[Any], group: Group) -> None:
        assert group.landed is not None, "an answer before the answer"
        if isinstance(run.end, Returned):
            assert run.end == group.landed, "another answer than the others'"
        else:
            assert (type(run.end), str(run.end)) == (type(group.landed), str(group.landed)), "another failure"
            assert run.end is not group.landed, "one exception for two"

    def note_end(self, run: Run[Any]) -> None:
        end = run.end
        self.ends.append(str(end.value if isinstance(end, Returned) else end))

    # --- (a) and (g) -------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        return sum(group.landed is None for group in self.group_of.values())

    def is_empty(self) -> None:
        cache = self.documents._cache
        left = self.documents.waiting, len(cache._flights), len(cache._purposes), len(self.runtime._undone)
        assert (*left, self.runtime.take_wakes()) == (0, 0, 0, 0, ()), "something is left"

    def trace(self) -> Iterator[str]:
        """What happened, without what is compared by identity."""
        for effect in self.effects:
            match effect:
                case Fetch():
                    yield f"{effect} {effect.headers} {effect.body!r} {effect.route}"
                case _:
                    yield type(effect).__name__
        yield from self.ends


# --- the laws --------------------------------------------------------------------------------------------------------

URLS = st.sampled_from(GOOD)
NUMBERS = st.integers(0, 7)


class ProgramLaws(RuleBasedStateMachine):
    world_of: Any = staticmethod(World)

    def __init__(self) -> None:
        super().__init__()
        self.world: World = self.world_of()
        self.commands: list[Command] = []
        self.failed = False

    def do(self, command: str, *arguments: Any) -> None:
        self.commands.append((command, arguments))
        self.failed = True
        getattr(self.world, command)(*arguments)
        self.failed = False

    @initialize(url=URLS, reply=st.sampled_from(["fresh", "stale soon", "down"]))
    def one_was_looked_up_before(self, url: str, reply: str) -> None:
        self.do("find", url)
        self.do("tell", 0, reply)
        self.do("advance", 6.0)

    @rule(url=URLS)
    def find(self, url: str) -> None:
        self.do("find", url)

    @rule(url=st.sampled_from(BAD))
    def find_what_is_refused(self, url: str) -> None:
        self.do("find", url)

    @rule(url=URLS, cool_down=st.sampled_from([0.0, 5.0]))
    def refresh(self, url: str, cool_down: float) -> None:
        self.do("refresh", url, cool_down)

    @rule(which=NUMBERS, reply=st.sampled_from(sorted(REPLIES)))
    def tell(self, which: int, reply: str) -> None:
        self.do("tell", which, reply)

    @rule(which=NUMBERS)
    def wake_in_vain(self, which: int) -> None:
        self.do("wake_in_vain", which)

    @rule()
    def next_turn(self) -> None:
        self.do("next_turn")

    @rule(which=NUMBERS, lost=st.booleans())
    def leave(self, which: int, lost: bool) -> None:
        self.do("leave", which, lost)

    @rule(url=st.none() | URLS)
    def forget(self, url: str | None) -> None:
        self.do("forget", url)

    @rule(seconds=st.sampled_from([0.3, 1.0, 7.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.do("advance", seconds)

    @rule()
    def all_who_can_go_on_do(self) -> None:
        self.do("settle")
        for group in self.world.group_of.values():
            assert group.landed is None, "somebody isn't told what came"
            assert len(group.fetching) == 1, "all wait, and nobody fetches"

    @invariant()
    def each_who_waits_is_in_the_tables_and_nobody_else(self) -> None:
        if not self.world.runtime._undone:
            assert self.world.documents.waiting == self.world.waiting

    def teardown(self) -> None:
        if self.failed:
            # What failed is to be reported, and not what comes of it.
            return
        self.do("leave", 0, True)
        self.do("tell", 1, "fresh")
        self.all_who_can_go_on_do()
        for number in range(len(self.world.runs)):
            self.do("leave", number, number % 2 == 0)
        self.do("settle")
        assert self.world.runs == []
        self.world.is_empty()
        again: World = self.world_of()
        for command, arguments in self.commands:
            getattr(again, command)(*arguments)
        assert list(again.trace()) == list(self.world.trace()), "the same script, and other effects"


LAWS = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_programs_keep_their_laws() -> None:
    run_state_machine_as_test(ProgramLaws, settings=settings(LAWS, max_examples=settings().max_examples))


# --- planted defects -------------------------------------------------------------------------------------------------


class TellsNobodyWhoLeft(Documents[bytes]):
    """Who leaves isn't taken out of the table."""

    def find(self, url, *, cool_down=None):
        self._cache.abandon = lambda waiter: ()  # type: ignore[method-assign]
        return super().find(url, cool_down=cool_down)


class NeverUndoes(Runtime):
    def undo_after(self, _error, _undo):
        pass


class ForgetsTheUndone(Runtime):
    def take_wakes(self):
        self._undone.clear()
        return super().take_wakes()


class UndoesWhereverItIsClosed(Runtime):
    def undo_after(self, _error, undo):
        undo()


class LosesWakes(Runtime):
    """Hands out what there is, and tells no driver."""

    def take_wakes(self):
        super().take_wakes()
        return ()


class WakesOnlyTheFirst(Runtime):
    def take_wakes(self):
        return super().take_wakes()[:1]


class TellsTheLeaderOnly(Documents[bytes]):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        land = self._cache._flights.land
        self._cache._flights.land = lambda flight: land(flight)[:1]  # type: ignore[method-assign]


class FetchesForEach(Documents[bytes]):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self._cache._flights = FliesForEach()


class FliesForEach(Flights[Any, Any]):
    def join(self, key, waiter):
        self.detach(key)
        return super().join(key, waiter)


class HandsOverToTheLast(Flights[Any, Any]):
    def _hand_over(self, flight):
        last = next(reversed(flight.waiters))
        flight.waiters = {last: None, **flight.waiters}
        return super()._hand_over(flight)


class LastTakesOver(Documents[bytes]):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self._cache._flights = HandsOverToTheLast()


class KeepsPurposes(Documents[bytes]):
    """The table of what flights are for isn't emptied when their last waiter leaves."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self._cache.abandon = self.abandon  # type: ignore[method-assign]

    def abandon(self, waiter):
        purposes = dict(self._cache._purposes)
        effects = DocumentCache.abandon(self._cache, waiter)
        self._cache._purposes |= purposes
        return effects


class TellsEachAnotherAge(Documents[bytes]):
    """Whoever waited isn't told the same as the one who fetched."""

    told = 0

    def find(self, url, *, cool_down=None):
        located = yield from super().find(url, cool_down=cool_down)
        self.told += 1
        return LocatedDocument(located.document, located.url, located.source, located.age + self.told)


class FollowsAnywhere(Requests):
    def __init__(self, *arguments, policy, **options):
        super().__init__(*arguments, policy=FollowsRedirects(redirects=2), **options)


class FollowsRedirects(OutboundPolicy):
    def judge_redirect(self, asked, location, *, followed, method="GET"):
        found = super().judge_redirect(asked, location, followed=followed, method=method)
        if isinstance(found, Allowed) or followed >= self.redirects:
            return found
        return Allowed(location, location, urlsplit(location).hostname or "", encrypted=False)


class JudgesNothing(Requests):
    def judge(self, url, *, named_by=None, announced=()):
        try:
            return super().judge(url, named_by=named_by, announced=announced)
        except NotAllowed:
            return Allowed(url, url, urlsplit(url).hostname or "", encrypted=False)


class LetsInsideAddressesBe(Requests):
    def _fetch(self, call, reader, end):
        self.policy = OutboundPolicy(redirects=2, allow_networks=["10.0.0.0/8"])
        return super()._fetch(call, reader, end)


class AsksAtRandom(Requests):
    """With a header that no script decides."""

    def get(self, allowed, headers, limit, **options):
        return super().get(allowed, [*headers, ("x-request-id", str(random.random()))], limit, **options)


def one_error_for_all(unfound, _shown):
    return unfound.error


def with_runtime(kind: type[Runtime]) -> Callable[[], World]:
    class Driven(World):
        def __init__(self) -> None:
            super().__init__()
            old = self.runtime
            self.runtime = kind(old.clock, old.new_id, old.new_token, old.fraction)
            self.requests = Requests(self.runtime, policy=self.policy)
            self.documents = Documents(
                self.runtime, self.requests, parser=lambda: WholeParser(parse), limit=100, policy=None
            )

    return Driven


WORLDS: dict[str, Callable[[], World]] = {
    **{
        kind.__name__: with_runtime(kind)
        for kind in (NeverUndoes, ForgetsTheUndone, UndoesWhereverItIsClosed, LosesWakes, WakesOnlyTheFirst)
    },
    **{
        kind.__name__: partial(World, kind)
        for kind in (
            TellsNobodyWhoLeft,
            TellsTheLeaderOnly,
            FetchesForEach,
            LastTakesOver,
            KeepsPurposes,
            TellsEachAnotherAge,
        )
    },
    **{
        kind.__name__: partial(World, requests=kind)
        for kind in (FollowsAnywhere, JudgesNothing, LetsInsideAddressesBe, AsksAtRandom)
    },
}
HUNT = settings(LAWS, max_examples=1_000, phases=[Phase.generate], derandomize=True, database=None)


def caught(world: Callable[[], World]) -> None:
    machine = type("Machine", (ProgramLaws,), {"world_of": staticmethod(world)})
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        run_state_machine_as_test(machine, settings=HUNT)


@pytest.mark.planted
@pytest.mark.long
@pytest.mark.parametrize("mutant", WORLDS)
def test_broken_programs_are_caught(mutant: str) -> None:
    caught(WORLDS[mutant])


@pytest.mark.planted
def test_one_exception_for_all_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_module, "_error_for", one_error_for_all)
    caught(World)
