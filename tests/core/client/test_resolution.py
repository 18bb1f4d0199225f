"""Finding an agent by its URN: the first candidate in order that is the agent, and a trace of the rest."""

import json
from collections.abc import Callable, Iterator
from typing import Any, assert_never

import pytest
from attrs import evolve, frozen
from hypothesis import Phase, given, settings, strategies as st

from asap_core.client import resolution
from asap_core.client.resolution import (
    LOCAL_NETWORK,
    MAX_LISTED,
    MAX_ON_LINK,
    Browse,
    CheckRevoked,
    FetchManifest,
    ReadRegistry,
    ResolutionState,
    Resolved,
    TraceVerdict,
    Unresolved,
    Wanted,
    is_version,
    resolve,
)
from asap_core.errors import AgentChanged, AsapError, NotResolved, Unreachable, Unsuitable, WrongAgent
from asap_core.mdns.dnssd import Announcement
from asap_core.wire.codec import decode_manifest
from asap_core.wire.manifest import Manifest
from asap_core.wire.registry_index import RegistryIndex
from asap_core.wire.registry_reader import RegistryReader

URN = "urn:asap:agent:wanted"
OTHER = "urn:asap:agent:other"


def manifest(urn: str = URN, *, skill: str = "echo", version: str = "0.1", supported=None) -> Manifest:
    return decode_manifest(
        {
            "id": urn, "name": "A", "version": "1.0.0", "description": "", "endpoints": {"asap": "https://a/asap"},
            "capabilities": {"asap_version": version, "skills": [{"id": skill, "description": ""}]},
            **({} if supported is None else {"supported_versions": supported}),
        }
    )  # fmt: skip


def catalog(*agents: tuple[str, dict[str, str]]) -> RegistryIndex:
    entries = [
        {"id": urn, "name": "A", "description": "", "asap_version": "0.1", "endpoints": endpoints}
        for urn, endpoints in agents
    ]
    reader = RegistryReader()
    reader.feed(json.dumps({"version": "1", "updated_at": "2026-01-01", "agents": [*entries, {}]}).encode())
    return reader.close()


def announcement(urn: str | None, url: str) -> Announcement:
    return Announcement(
        instance=url, agent_id=urn, version="", skills=None, manifest_url=url, host="192.0.2.1", port=1, addresses=()
    )


# --- a world, and what a naive reading of it finds -------------------------------------------------------------------


@frozen
class World:
    """A world of one search: a manifest or an error at each URL, registries by name, announcements in order."""

    pages: dict[str, Manifest | None]
    registries: dict[str, RegistryIndex | None]
    announced: tuple[Announcement, ...]
    revoked: str | None = None
    """What the revocation list says: None that it's clear, "error" that it can't be had."""


def explore(step: ResolutionState, world: World) -> Resolved | Unresolved:
    """Carry out the effects of the states."""
    coming: Iterator[Announcement] = iter(world.announced)
    while True:
        match step:
            case CheckRevoked():
                if world.revoked == "error":
                    step = step.failed(Unreachable("r", "down"))
                else:
                    step = step.clear() if world.revoked is None else step.revoked("stolen")
            case ReadRegistry(_, location):
                found = world.registries[location]
                step = step.failed(OSError("gone")) if found is None else step.read(found)
            case FetchManifest():
                page = world.pages.get(step.url)
                step = step.failed(Unreachable(step.url, "down")) if page is None else step.fetched(page)
            case Browse():
                one = next(coming, None)
                step = step.ended(3) if one is None else step.announced(one)
            case Resolved() | Unresolved():
                return step
            case _:
                assert_never(step)


def naive(world: World, *, wanted: Wanted, checked: bool, browse: bool) -> tuple[str, str] | None:
    """The URL of the agent and its source, found by looking everywhere."""

    def right(url: str | None) -> bool:
        page = world.pages.get(url or "")
        return page is not None and page.id == wanted.urn and (wanted.skill is None or wanted.skill in page.skill_ids)

    if checked and world.revoked is not None:
        return None
    named: list[tuple[str | None, str]] = []
    for location, found in world.registries.items():
        listed = [entry for entry in found.agents if entry.id == wanted.urn] if found else []
        named.extend((entry.endpoints.get("manifest"), location) for entry in listed)
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
        st.dictionaries(st.sampled_from(["r1", "/r/2", "r3"]), st.one_of(st.none(), listed.map(lambda x: catalog(*x))))
    )
    seen = st.builds(announcement, st.sampled_from([URN, OTHER, None]), st.sampled_from(URLS))
    announced = draw(st.lists(seen, max_size=MAX_ON_LINK + 3))
    revoked = draw(st.sampled_from(["error", "stolen", None]))
    return World(pages, registries, tuple(announced), revoked)


# A planted mistake need only be found, not made small.
PLANTED = (Phase.generate,)


def law(begin: Callable[..., ResolutionState], phases: tuple[Phase, ...] = tuple(Phase)) -> None:
    """The search finds what a naive reader finds, and the trace has the outcome of every earlier request."""

    @settings(report_multiple_bugs=False, max_examples=300, phases=phases)
    @given(worlds(), st.booleans(), st.booleans(), st.sampled_from([None, "echo"]))
    def held(world: World, checked: bool, browse: bool, skill: str | None) -> None:
        wanted = Wanted(urn=URN, skill=skill)
        revoked = "https://r/revoked" if checked else None
        end = explore(begin(wanted, registries=tuple(world.registries), revoked=revoked, browse=browse), world)
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


class Trusting(Wanted):
    """Accepts any agent that answers."""

    def judge(self, manifest: Manifest, url: str) -> None:
        return None


def any_id(wanted: Wanted, **options) -> ResolutionState:
    return resolve(Trusting(urn=wanted.urn), **options)


def last_first(wanted: Wanted, *, registries, **options) -> ResolutionState:
    return resolve(wanted, registries=registries[::-1], **options)


def unchecked(wanted: Wanted, *, revoked, **options) -> ResolutionState:
    return resolve(wanted, **options)


def deaf(wanted: Wanted, *, browse, **options) -> ResolutionState:
    return resolve(wanted, browse=False, **options)


def first_only(wanted: Wanted, *, registries, **options) -> ResolutionState:
    return resolve(wanted, registries=registries[:1], **options)


@pytest.mark.planted
@pytest.mark.parametrize("mutant", [any_id, last_first, unchecked, deaf, first_only])
def test_a_planted_bug_is_caught(mutant) -> None:
    with pytest.raises(AssertionError):
        law(mutant, PLANTED)


@pytest.mark.planted
@pytest.mark.parametrize(
    ("state", "method", "other"),
    [
        (CheckRevoked, "failed", lambda self, error: self.clear()),
        (CheckRevoked, "revoked", lambda self, why: self.clear()),
        (ReadRegistry, "failed", lambda self, error: self._search.unresolved()),
        (FetchManifest, "failed", lambda self, error: self._search.unresolved()),
        (Browse, "announced", lambda self, one: self if one.agent_id is None else FetchManifest(
            self._search, one.manifest_url, LOCAL_NETWORK, one)),
    ],
)  # fmt: skip
def test_a_planted_bug_in_a_state_is_caught(state, method, other, monkeypatch) -> None:
    monkeypatch.setattr(state, method, other)
    with pytest.raises(AssertionError):
        law(resolve, PLANTED)


def test_the_trace_describes_the_search() -> None:
    world = World(
        {URLS[0]: manifest(OTHER), URLS[2]: manifest()},
        {
            "https://user:secret@r/1?token=secret": None,
            "/r/2": catalog((OTHER, {})),
            "r3": catalog((URN, {})),
            "r4": catalog((URN, {"manifest": URLS[0]})),
            "r5": catalog((URN, {"manifest": URLS[1]}), (URN, {"manifest": URLS[0]})),
        },
        (announcement(OTHER, "https://x"), announcement(None, URLS[2])),
    )
    end = explore(resolve(Wanted(urn=URN), registries=tuple(world.registries), revoked="/revoked"), world)
    assert [(str(one), one.verdict.name) for one in end.trace] == [
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
    assert (end.source, end.wanted.urn) == (LOCAL_NETWORK, URN)
    assert "secret" not in str(end.trace)


def test_a_copy_of_a_registry_is_named_in_the_trace() -> None:
    begin: Any = resolve(Wanted(urn=URN), registries=["r"], browse=False)
    for listed, words in (
        (catalog((URN, {})), "listed"),
        (catalog((URN, {}), (URN, {})), "listed 2 times"),
        (catalog((OTHER, {})), "not listed among 1; 1 of its entries can't be read"),
    ):
        assert begin.read(listed).trace[0].why == words
        assert begin.read(listed, copied="its last good copy").trace[0].why == f"{words}, in its last good copy"


def test_a_manifest_must_be_signed_by_keys_of_the_first_registry_that_named_any() -> None:
    def listing(key: str, url: str) -> RegistryIndex:
        reader = RegistryReader()
        entry = {"id": URN, "name": "A", "description": "", "asap_version": "0.1", "endpoints": {"manifest": url}}
        entries = [entry, {**entry, "public_key": key}] if key else [entry]
        reader.feed(json.dumps({"version": "1", "updated_at": "2026-01-01", "agents": entries}).encode())
        return reader.close()

    def failed(step: Any, times: int) -> Any:
        for _ in range(times):
            step = step.failed(Unreachable("u", "down"))
        return step

    step: Any = resolve(Wanted(urn=URN), registries=["unsigned", "first", "second"])
    step = step.read(listing("", URLS[0]))
    assert step.keys is None
    step = failed(step, 1).read(listing("not a key", URLS[1]))
    named = step.keys
    assert (named.agent_id, named.keys) == (URN, ())
    step = failed(step, 2).read(listing("another", URLS[2]))
    assert step.keys is named
    assert failed(step, 2).announced(announcement(URN, URLS[0])).keys is named


def test_the_trace_mentions_no_unreadable_entries_if_there_are_none() -> None:
    reader = RegistryReader()
    reader.feed(b'{"version":"1","updated_at":"2026-01-01","agents":[]}')
    begin: Any = resolve(Wanted(urn=URN), registries=["r"], browse=False)
    assert begin.read(reader.close()).trace[0].why == "not listed among 0"


def test_the_trace_says_if_no_agent_or_no_other_agent_was_announced() -> None:
    step: Any = resolve(Wanted(urn=URN))
    assert step.ended(3.0).trace[-1].why == "not announced within 3 s"
    step = step.announced(announcement(URN, URLS[0])).fetched(manifest(OTHER))
    assert step.ended(3.0).trace[-1].why == "nobody else is announced within 3 s"


def test_the_number_of_candidates_of_a_registry_is_bounded() -> None:
    assert (MAX_LISTED, MAX_ON_LINK) == (4, 16)
    step: Any = resolve(Wanted(urn=URN), registries=["r"], browse=False)
    step = step.read(catalog(*[(URN, {"manifest": f"https://a{number}"}) for number in range(MAX_LISTED + 5)]))
    for number in range(MAX_LISTED):
        assert step.url == f"https://a{number}"
        step = step.failed(Unreachable("u", "down"))
    assert isinstance(step, Unresolved)


def test_the_number_of_announced_candidates_is_bounded() -> None:
    step: Any = resolve(Wanted(urn=URN))
    for place in range(MAX_ON_LINK):
        step = step.announced(announcement(URN, f"https://a{place}"))
        assert isinstance(step, FetchManifest)
        step = step.fetched(manifest(OTHER))
    assert step.announced(announcement(URN, "https://more")) is step
    assert step.failed(OSError("no multicast here")).trace[-1].why == "no multicast here"


def test_the_trace_says_that_an_agent_is_revoked() -> None:
    step: Any = resolve(Wanted(urn=URN), registries=["r"], revoked="https://r/revoked")
    assert [str(one) for one in step.revoked("key stolen").trace] == ["https://r:443/revoked: revoked: key stolen"]
    assert [str(one) for one in step.revoked("").trace] == ["https://r:443/revoked: revoked"]


def test_a_search_without_a_urn_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the URN"):
        resolve(Wanted(skill="echo"))


class TestWanted:
    def test_all_requirements_are_checked(self) -> None:
        wanted = Wanted(urn=URN, skill="echo", least_version="1.1")
        assert wanted.judge(manifest(version="1.1.0"), "https://a") is None
        assert Wanted().judge(manifest(OTHER), "https://a") is None
        for wrong, error, words in (
            (manifest(OTHER), WrongAgent, "https://a:443 is urn:asap:agent:other, not urn:asap:agent:wanted"),
            (manifest(skill="other"), Unsuitable, f"{URN} at https://a:443 doesn't have the skill echo"),
            (manifest(version="1.0"), Unsuitable, f"{URN} at https://a:443 doesn't have ASAP 1.1 or later"),
        ):
            found = wanted.judge(wrong, "https://user:secret@a?token=secret")
            assert type(found) is error
            assert str(found) == words

    @pytest.mark.parametrize(
        ("spoken", "least", "fits"),
        [
            ("2.1", "2.1", True), ("2.1.0", "2.1", True), ("2.1", "2.1.0.0", True), ("2.10", "2.9", True),
            ("2.0", "2.1", False), ("2.1rc1", "2.1", False), ("2.1-rc.1", "2.1b2", True), ("2.1.dev3", "2.1a", False),
            ("2.1a2", "2.1alpha1", True), ("2.1b", "2.1rc", False), ("2.1rc10", "2.1rc9", True), ("soon", "1", False),
            ("2.1rc1", "2.1rc2", False), ("2.1rc0", "2.1rc", True), ("2.1rc", "2.1rc1", False),
            ("2.1a1", "2.1alpha1", True), ("2.1alpha1", "2.1a1", True), ("2.1b1", "2.1beta1", True),
            ("2.1beta1", "2.1b1", True), ("2.1.dev0", "2.1a0", False), ("2.1alpha", "2.1beta", False),
        ],
    )  # fmt: skip
    def test_versions_are_ordered_as_in_pep_440(self, spoken, least, fits) -> None:
        wanted = Wanted(least_version=least)
        assert (wanted.judge(manifest(version=spoken), "https://a") is None) == fits
        assert (wanted.judge(manifest(version="0.1", supported=["0.2", spoken]), "https://a") is None) == fits

    @given(st.text(max_size=12) | st.from_regex(r"\d\.\d(rc\d)?", fullmatch=True))
    def test_any_text_is_a_version_or_is_refused(self, text: str) -> None:
        assert is_version(text) == (resolution._order(text) != ((), 0, 0))
        if not is_version(text):
            with pytest.raises(ValueError, match="expected as least version") as caught:
                Wanted(least_version=text)
            assert "text" not in str(caught.value)

    def test_an_invalid_urn_is_refused(self) -> None:
        with pytest.raises(ValueError, match="urn: expected"):
            Wanted(urn="me")


def test_errors_have_the_expected_messages() -> None:
    errors: list[AsapError] = [
        AgentChanged("https://a", URN, OTHER),
        NotResolved(URN, ()),
        NotResolved(URN, evolve(explore(resolve(Wanted(urn=URN)), World({}, {}, ()))).trace),
    ]
    assert list(map(str, errors)) == [
        f"https://a is {OTHER} now, and was {URN}; call forget(url) if this is intended",
        f"{URN} isn't found: no registry is configured, and the local network isn't asked",
        f"{URN} isn't found: the local network: not announced within 3 s",
    ]
