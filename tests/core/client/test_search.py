"""Searching for an agent by its URN: the first candidate in order that is the agent, and a trace of the others."""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest
from attrs import define, field
from hypothesis import Phase, given, settings, strategies as st

from asap_core.client import search
from asap_core.client.documents import LocatedDocument
from asap_core.client.fetch_results import Source
from asap_core.client.programs import Completed, Expired, Heard, LocalNetwork, Next, Program, Sleep, Unavailable
from asap_core.client.registry_cache import CachedCopy
from asap_core.client.search import LOCAL_NETWORK, MAX_LISTED, MAX_ON_LINK, Resolved, TraceVerdict, Unresolved, resolve
from asap_core.client.trust import NamedKeys, Wanted
from asap_core.errors import NotResolved, Unreachable
from asap_core.mdns.dnssd import Added, Announcement, Event, Removed, Updated
from asap_core.wire.codec import decode_manifest
from asap_core.wire.manifest import Manifest
from asap_core.wire.registry import RegistryEntry
from asap_core.wire.registry_index import RegistryIndex
from asap_core.wire.registry_reader import RegistryReader
from asap_core.wire.revocation import RevocationList
from tests.core.client.scripted import HELD, After, Driver, Reply

T = TypeVar("T")

URN = "urn:asap:agent:wanted"
OTHER = "urn:asap:agent:other"


def manifest(urn: str = URN, *, skill: str = "echo") -> Manifest:
    return decode_manifest(
        {
            "id": urn, "name": "A", "version": "1.0.0", "description": "", "endpoints": {"asap": "https://a/asap"},
            "capabilities": {"asap_version": "0.1", "skills": [{"id": skill, "description": ""}]},
        }
    )  # fmt: skip


def index(*agents: tuple[str, dict[str, str]], key: str | None = None, unreadable: int = 1) -> RegistryIndex:
    """A registry of these agents with their endpoints; the last one has this key."""
    entries: list[dict[str, Any]] = [
        {"id": urn, "name": "A", "description": "", "asap_version": "0.1", "endpoints": endpoints}
        for urn, endpoints in agents
    ]
    if key is not None:
        entries[-1]["public_key"] = key
    agents_and_others = [*entries, *([{}] * unreadable)]
    reader = RegistryReader()
    reader.feed(json.dumps({"version": "1", "updated_at": "2026-01-01", "agents": agents_and_others}).encode())
    return reader.close()


def announcement(urn: str | None, url: str) -> Announcement:
    return Announcement(
        instance=url, agent_id=urn, version="", skills=None, manifest_url=url, host="192.0.2.1", port=1, addresses=()
    )


# --- a world, and what a naive reading of it finds -------------------------------------------------------------------


@define
class World:
    """What there is: a manifest or an error at each URL, registries by name, announcements in order. Is asked itself.

    revoked: the reason in the revocation list; None if the agent isn't in it, "error" if the list is unavailable.
    slow: seconds until a manifest arrives.
    """

    pages: dict[str, Manifest | None]
    registries: dict[str, RegistryIndex | CachedCopy | None]
    announced: tuple[Announcement, ...] = ()
    revoked: str | None = None
    slow: float | None = None
    asked: list[tuple[str, NamedKeys | None, str | None]] = field(factory=list)
    learned: list[tuple[int, int]] = field(factory=list)

    def revocations(self, location: str) -> Program[RevocationList]:
        yield from ()
        if self.revoked == "error":
            raise Unreachable(location, "down")
        return RevocationList({} if self.revoked is None else {URN: self.revoked})

    def registry(self, location: str) -> Program[RegistryIndex | CachedCopy]:
        yield from ()
        found = self.registries[location]
        if found is None:
            raise OSError("gone")
        return found

    def learn(self, urn: str, entries: Sequence[RegistryEntry], *, rank: int) -> None:
        assert urn == URN
        self.learned.append((rank, len(entries)))

    def find(
        self, url: str, wanted: Wanted, *, named: NamedKeys | None, named_by: str | None
    ) -> Program[LocatedDocument[Manifest]]:
        assert wanted == Wanted()
        self.asked.append((url, named, named_by))
        if self.slow is not None:
            yield from Sleep(self.slow)
        page = self.pages.get(url)
        if page is None:
            raise Unreachable(url, "down")
        return LocatedDocument(page, url, Source.FETCHED, 0.0)

    def follow(
        self, announcement: Announcement, wanted: Wanted, *, named: NamedKeys | None
    ) -> Program[LocatedDocument[Manifest]]:
        return self.find(announcement.manifest_url, wanted, named=named, named_by=None)


class Link(Driver):
    """A driver whose local network has these events, each after some seconds, or can't be watched."""

    def __init__(self, *events: Event | Unavailable, apart: float = 0.0) -> None:
        super().__init__(self._next)
        self._coming, self._apart = list(events), apart
        self.sources: set[LocalNetwork] = set()

    def _next(self, effect: Next) -> Reply | After:
        self.sources.add(effect.source)
        if not self._coming:
            return HELD
        event = self._coming.pop(0)
        return After(self._apart, event if isinstance(event, Unavailable) else Heard(event))


Begin = Callable[..., Program[Resolved | Unresolved]]


def explore(world: World, *, begin: Begin = resolve, wanted: Wanted | None = None, **options: Any) -> Any:
    driver = Link(*map(Added, world.announced))
    options = {"registries": tuple(world.registries), "wait": 3.0, **options}
    return driver.run(begin(wanted or Wanted(urn=URN), sources=world, clock=driver.clock, **options))


def naive(world: World, *, wanted: Wanted, checked: bool, browse: bool) -> tuple[str, str] | None:
    """Where the agent is, and who says so, found by looking everywhere."""

    def right(url: str | None) -> bool:
        page = world.pages.get(url or "")
        return page is not None and page.id == wanted.urn and (wanted.skill is None or wanted.skill in page.skill_ids)

    if checked and world.revoked is not None:
        return None
    named: list[tuple[str | None, str]] = []
    for location, found in world.registries.items():
        agents = found.agents if isinstance(found, RegistryIndex) else ()
        named.extend((entry.endpoints.get("manifest"), location) for entry in agents if entry.id == wanted.urn)
    if browse:
        looked = [one for one in world.announced if one.agent_id in (None, wanted.urn)][:MAX_ON_LINK]
        named.extend((one.manifest_url, LOCAL_NETWORK) for one in looked)
    return next(((url, where) for url, where in named if url and right(url)), None)


URLS = ("https://a/m", "https://b/m", "https://c/m")


@st.composite
def worlds(draw) -> World:
    pages = {
        url: draw(st.sampled_from([manifest(), None, manifest(), manifest(OTHER), manifest(skill="other")]))
        for url in URLS
    }
    endpoints = st.sampled_from([*({"manifest": url} for url in URLS), {}])
    listed = st.lists(st.tuples(st.sampled_from([URN, OTHER]), endpoints), max_size=3)
    registries = draw(
        st.dictionaries(st.sampled_from(["r1", "/r/2", "r3"]), st.one_of(st.none(), listed.map(lambda x: index(*x))))
    )
    seen = st.builds(announcement, st.sampled_from([URN, OTHER, None]), st.sampled_from(URLS))
    announced = draw(st.lists(seen, max_size=MAX_ON_LINK + 3))
    revoked = draw(st.sampled_from(["error", "stolen", None]))
    return World(pages, registries, tuple(announced), revoked)


# A planted defect need only be found, not made small.
PLANTED = (Phase.generate,)


def law(begin: Begin, phases: tuple[Phase, ...] = tuple(Phase)) -> None:
    """A search finds what a naive reader finds, and the trace has the result of every question before."""

    @settings(report_multiple_bugs=False, max_examples=300, phases=phases)
    @given(worlds(), st.booleans(), st.booleans(), st.sampled_from([None, "echo"]))
    def held(world: World, checked: bool, browse: bool, skill: str | None) -> None:
        wanted = Wanted(urn=URN, skill=skill)
        revoked = "https://r/revoked" if checked else None
        end = explore(world, begin=begin, wanted=wanted, revoked=revoked, wait=3.0 if browse else 0.0)
        expected = naive(world, wanted=wanted, checked=checked, browse=browse)
        assert ((end.url, end.source) if isinstance(end, Resolved) else None) == expected
        asked = [one.where for one in end.trace]
        if isinstance(end, Resolved):
            assert end.trace[-1].verdict is TraceVerdict.TAKEN
            assert end.manifest.id == URN
        elif not (checked and world.revoked):
            assert set(world.registries) <= set(asked)
            assert (LOCAL_NETWORK in asked) == browse
        order = [*dict.fromkeys(where for where in asked if where in world.registries)]
        assert order == list(world.registries)[: len(order)]

    held()


def test_the_first_candidate_that_is_the_agent_is_found() -> None:
    law(resolve)


# --- planted defects -------------------------------------------------------------------------------------------------


class Trusting(Wanted):
    """Accepts any agent."""

    def judge(self, manifest: Manifest, url: str) -> None:
        return None


def any_id(wanted: Wanted, **options: Any) -> Program[Resolved | Unresolved]:
    return resolve(Trusting(urn=wanted.urn), **options)


def last_first(wanted: Wanted, *, registries: Sequence[str], **options: Any) -> Program[Resolved | Unresolved]:
    return resolve(wanted, registries=registries[::-1], **options)


def unchecked(wanted: Wanted, *, revoked: str | None, **options: Any) -> Program[Resolved | Unresolved]:
    return resolve(wanted, **options)


def deaf(wanted: Wanted, *, wait: float, **options: Any) -> Program[Resolved | Unresolved]:
    return resolve(wanted, wait=0.0, **options)


def first_only(wanted: Wanted, *, registries: Sequence[str], **options: Any) -> Program[Resolved | Unresolved]:
    return resolve(wanted, registries=registries[:1], **options)


@pytest.mark.planted
@pytest.mark.parametrize("mutant", [any_id, last_first, unchecked, deaf, first_only])
def test_a_planted_bug_is_caught(mutant: Begin) -> None:
    with pytest.raises(AssertionError):
        law(mutant, PLANTED)


Search = search._Search


class UnreadListIsClear(Search):
    def is_clear(self, location: str) -> Program[bool]:
        return (yield from super().is_clear(location)) or self.trace[-1].verdict is TraceVerdict.FAILED


class RevokedIsClear(Search):
    def is_clear(self, location: str) -> Program[bool]:
        return (yield from super().is_clear(location)) or self.trace[-1].verdict is TraceVerdict.REFUSED


class EndedSearch(Exception):
    pass


class Ending(Search):
    def run(self, registries: Sequence[str], revoked: str | None, wait: float) -> Program[Resolved | Unresolved]:
        try:
            return (yield from super().run(registries, revoked, wait))
        except EndedSearch:
            return self.unresolved()

    def end_if_failed(self, found: T) -> T:
        if self.trace[-1].verdict is TraceVerdict.FAILED:
            raise EndedSearch
        return found


class EndsAtAnUnreadRegistry(Ending):
    def entries(self, location: str, rank: int) -> Program[Sequence[RegistryEntry]]:
        return self.end_if_failed((yield from super().entries(location, rank)))


class EndsAtAnUnreadManifest(Ending):
    def candidate(self, url: str, source: str, fetch: Program[LocatedDocument[Manifest]]) -> Program[Resolved | None]:
        return self.end_if_failed((yield from super().candidate(url, source, fetch)))


class IgnoresUnnamedAgents(Search):
    def may_be(self, announcement: Announcement) -> bool:
        return announcement.agent_id is not None


@pytest.mark.planted
@pytest.mark.long
@pytest.mark.parametrize(
    "broken",
    [UnreadListIsClear, RevokedIsClear, EndsAtAnUnreadRegistry, EndsAtAnUnreadManifest, IgnoresUnnamedAgents],
)
def test_a_planted_bug_in_the_order_is_caught(broken: type[Search], monkeypatch) -> None:
    monkeypatch.setattr(search, "_Search", broken)
    with pytest.raises(AssertionError):
        law(resolve, PLANTED)


# --- the trace -------------------------------------------------------------------------------------------------------


def told(end: Resolved | Unresolved) -> list[tuple[str, str]]:
    return [(str(one), one.verdict.name) for one in end.trace]


def test_the_trace_describes_the_search() -> None:
    world = World(
        {URLS[0]: manifest(OTHER), URLS[2]: manifest()},
        {
            "https://user:secret@r/1?token=secret": None,
            "/r/2": index((OTHER, {})),
            "r3": index((URN, {})),
            "r4": index((URN, {"manifest": URLS[0]})),
            "r5": index((URN, {"manifest": URLS[1]}), (URN, {"manifest": URLS[0]})),
        },
        (announcement(OTHER, "https://x"), announcement(None, URLS[2])),
    )
    end = explore(world, revoked="/revoked")
    assert told(end) == [
        ("/revoked: not revoked", "TAKEN"),
        ("https://r:443/1: gone", "FAILED"),
        ("/r/2: not listed among 1; 1 of its entries can't be read", "ABSENT"),
        ("r3: listed", "TAKEN"),
        ("r3: the entry has no URL", "REFUSED"),
        ("r4: listed", "TAKEN"),
        ("https://a:443/m: is urn:asap:agent:other, not urn:asap:agent:wanted", "REFUSED"),
        ("r5: listed 2 times", "TAKEN"),
        ("https://b:443/m: no answer from https://b/m: down", "FAILED"),
        ("https://a:443/m: is urn:asap:agent:other, not urn:asap:agent:wanted", "REFUSED"),
        ("https://c:443/m: the agent wanted", "TAKEN"),
    ]
    assert isinstance(end, Resolved)
    assert (end.url, end.source, end.wanted.urn) == (URLS[2], LOCAL_NETWORK, URN)
    assert "secret" not in str(end.trace)
    assert [(url, named_by) for url, _, named_by in world.asked] == [
        (URLS[0], "r4"),
        (URLS[1], "r5"),
        (URLS[0], "r5"),
        (URLS[2], None),
    ]


def test_the_trace_says_that_a_copy_was_read() -> None:
    for registry, words in (
        (index((URN, {})), "listed"),
        (index((URN, {}), (URN, {})), "listed 2 times"),
        (index((OTHER, {})), "not listed among 1; 1 of its entries can't be read"),
        (index((OTHER, {}), unreadable=0), "not listed among 1"),
    ):
        assert explore(World({}, {"r": registry})).trace[0].why == words
        assert (
            explore(World({}, {"r": CachedCopy(registry, 7_200.0)})).trace[0].why
            == f"{words}, in its last good copy, 2 hours old"
        )


class Unread(World):
    """Files that aren't there, and servers that are down."""

    def revocations(self, location: str) -> Program[RevocationList]:
        yield from self.registry(location)
        raise AssertionError

    def registry(self, location: str) -> Program[RegistryIndex | CachedCopy]:
        yield from ()
        if "://" in location:
            raise Unreachable(location, "down")
        raise OSError(2, "No such file or directory", location)


def test_the_reason_for_an_unread_file_is_told_without_its_name() -> None:
    assert told(explore(Unread({}, {}), registries=("/r", "https://r"), wait=0.0)) == [
        ("/r: No such file or directory", "FAILED"),
        ("https://r:443: no answer from https://r: down", "FAILED"),
    ]
    assert told(explore(Unread({}, {}), revoked="/revoked")) == [("/revoked: No such file or directory", "FAILED")]


@pytest.mark.parametrize(
    ("revoked", "verdict", "words"),
    [
        ("key stolen", "REFUSED", "revoked: key stolen"),
        ("", "REFUSED", "revoked"),
        ("error", "FAILED", "no answer from https://user@r/revoked: down"),
    ],
)
def test_a_revoked_agent_is_not_searched_for(revoked: str, verdict: str, words: str) -> None:
    world = World({URLS[0]: manifest()}, {"r": index((URN, {"manifest": URLS[0]}))}, revoked=revoked)
    end = explore(world, revoked="https://user@r/revoked")
    assert isinstance(end, Unresolved)
    assert told(end) == [(f"https://r:443/revoked: {words}", verdict)]
    assert not world.asked
    assert not world.learned


def test_a_search_needs_a_urn() -> None:
    with pytest.raises(ValueError, match="expected the URN"):
        resolve(Wanted(skill="echo"), sources=World({}, {}), clock=Driver().clock, wait=0.0)


def test_the_error_says_where_the_agent_was_searched_for() -> None:
    assert str(NotResolved(URN, explore(World({}, {})).trace)) == (
        f"{URN} isn't found: the local network: not announced within 3 s"
    )


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_manifest_must_be_signed_by_keys_of_the_first_registry_that_named_any() -> None:
    registries: dict[str, RegistryIndex | CachedCopy | None] = {
        "unsigned": index((URN, {"manifest": URLS[0]})),
        "first": index((URN, {"manifest": URLS[1]}), (URN, {"manifest": URLS[1]}), key="not a key"),
        "second": index((URN, {"manifest": URLS[2]}), key="another"),
    }
    world = World({}, registries, (announcement(URN, URLS[0]),))
    explore(world)
    asked = [(url, named) for url, named, _ in world.asked]
    named = asked[1][1]
    assert named is not None
    assert (named.agent_id, named.keys) == (URN, ())
    assert asked == [
        (URLS[0], None),
        (URLS[1], named),
        (URLS[1], named),
        (URLS[2], named),
        (URLS[0], named),
    ]
    assert all(one is named for _, one in asked[1:])


def test_keys_are_learned_from_each_registry_that_is_read() -> None:
    world = World({}, {"r0": index((URN, {}), (URN, {})), "r1": None, "r2": index((OTHER, {}))})
    explore(world)
    assert world.learned == [(0, 2), (2, 0)]


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_the_entries_tried_per_registry_are_bounded() -> None:
    assert (MAX_LISTED, MAX_ON_LINK) == (4, 16)
    listed = [(URN, {"manifest": f"https://a{number}"}) for number in range(MAX_LISTED + 5)]
    world = World({}, {"r": index(*listed)})
    end = explore(world, wait=0.0)
    assert isinstance(end, Unresolved)
    assert [url for url, _, _ in world.asked] == [f"https://a{number}" for number in range(MAX_LISTED)]
    assert end.trace[0].why == f"listed {MAX_LISTED + 5} times"
    assert world.learned == [(0, MAX_LISTED)]


def test_the_agents_tried_on_the_link_are_bounded() -> None:
    coming = tuple(announcement(URN, f"https://a{place}") for place in range(MAX_ON_LINK + 3))
    world = World(dict.fromkeys((one.manifest_url for one in coming[MAX_ON_LINK:]), manifest()), {}, coming)
    end = explore(world)
    assert len(world.asked) == MAX_ON_LINK
    assert end.trace[-1].why == "nobody else is announced within 3 s"


# --- the local network -----------------------------------------------------------------------------------------------


def search_on(link: Link, world: World, *, wait: float = 3.0) -> Resolved | Unresolved:
    return link.run(resolve(Wanted(urn=URN), sources=world, clock=link.clock, wait=wait))


def test_the_local_network_is_watched_until_the_agent_is_found() -> None:
    wrong, right = announcement(URN, URLS[0]), announcement(URN, URLS[1])
    link = Link(
        Removed(right), Added(announcement(OTHER, URLS[2])), Added(wrong), Updated(right), Added(right), apart=1.0
    )
    world = World({URLS[0]: manifest(OTHER), URLS[1]: manifest(), URLS[2]: manifest()}, {})
    end = search_on(link, world, wait=30.0)
    assert [one.verdict.name for one in end.trace] == ["REFUSED", "TAKEN"]
    assert (link.clock.monotonic(), len(link.sources)) == (4.0, 1)


def test_an_agent_that_is_not_announced_in_time_is_not_found() -> None:
    link = Link()
    assert told(search_on(link, World({}, {}), wait=0.5)) == [
        ("the local network: not announced within 0.5 s", "ABSENT"),
    ]
    assert link.clock.monotonic() == 0.5


def test_the_search_does_not_wait_for_a_late_manifest() -> None:
    world = World({URLS[0]: manifest()}, {}, slow=2.5)
    link = Link(Added(announcement(URN, URLS[0])), apart=1.0)
    assert told(search_on(link, world)) == [
        ("https://a:443/m: no answer from https://a:443/m: no manifest within 3 s", "FAILED"),
        ("the local network: nobody else is announced within 3 s", "ABSENT"),
    ]
    assert link.clock.monotonic() == 3.0
    world.slow = 2.0
    assert isinstance(search_on(Link(Added(announcement(URN, URLS[0])), apart=1.0), world), Resolved)


def test_neighbours_that_change_without_end_do_not_prolong_the_search() -> None:
    elsewhere = Updated(announcement(OTHER, URLS[0]))
    link = Link(*[elsewhere] * 100, apart=0.75)
    assert told(search_on(link, World({}, {}))) == [("the local network: not announced within 3 s", "ABSENT")]
    assert (link.clock.monotonic(), len(link.effects)) == (3.0, 4)


def test_the_search_ends_when_the_driver_reports_expiry() -> None:
    """Even if the clock is a little behind."""
    driver, world = Driver(), World({}, {}, slow=30.0)
    begun = [driver.start(resolve(Wanted(urn=URN), sources=world, clock=driver.clock, wait=3.0)) for _ in range(2)]
    driver.answer(begun[1], Heard(Added(announcement(URN, URLS[0]))))
    driver.answer(begun[0], Expired())
    driver.answer(begun[1], Completed())
    assert [len(run.result().trace) for run in begun] == [1, 2]
    assert driver.clock.monotonic() == 0.0


def test_the_trace_says_why_the_local_network_cannot_be_watched() -> None:
    end = search_on(Link(Unavailable("no multicast in here")), World({}, {}))
    assert told(end) == [("the local network: no multicast in here", "FAILED")]
