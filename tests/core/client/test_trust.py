"""Which manifests must be signed, and by whom; a naive model beside it, and mutants that it must catch.

And a URL that becomes another agent's is noticed, however often its manifest was dropped meanwhile.
"""

import json
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from asap_core.client import search, trust
from asap_core.client.documents import LocatedDocument
from asap_core.client.fetch_results import Source
from asap_core.client.programs import Completed, Heard, Next, Program, Returned, Sleep, step
from asap_core.client.registry_cache import CachedCopy
from asap_core.client.search import Resolved, resolve
from asap_core.client.trust import MAX_SIGNED, FirstSeen, NamedKeys, TrustedKeys, Wanted, keys_in, read_received
from asap_core.clock import ManualClock
from asap_core.errors import InvalidDocument, Unverified
from asap_core.mdns.dnssd import Added, Announcement
from asap_core.net.urls import without_credentials
from asap_core.wire.manifest import Manifest
from asap_core.wire.registry import RegistryEntry, decode_registry_entry
from asap_core.wire.registry_index import RegistryIndex
from asap_core.wire.registry_reader import RegistryReader
from asap_core.wire.revocation import RevocationList
from asap_core.wire.signing import PublicKey
from tests.core.client.signatures import KEYS, signed, verify

A, B = "urn:asap:agent:a", "urn:asap:agent:b"
URL, OTHER_URL = "https://a.example/m", "https://b.example/m"


def document(agent_id: str, key: PublicKey | None):
    plain = {
        "id": agent_id, "name": "N", "version": "1", "description": "", "capabilities": {},
        "endpoints": {"asap": "https://a.example/asap"},
    }  # fmt: skip
    return plain if key is None else signed(plain, key)


def published(agent_id: str, key: PublicKey | None):
    return read_received(json.dumps(document(agent_id, key)).encode())


def entry(agent_id: str = A, url: str = URL, **extra):
    plain = {"id": agent_id, "name": "", "description": "", "endpoints": {"manifest": url}, "asap_version": "0.1"}
    return decode_registry_entry({**plain, **extra})


def keyed(*keys: PublicKey, agent_id: str = A, url: str = URL):
    return entry(agent_id, url, public_key=list(map(str, keys)) or None)


KEY = st.sampled_from([*KEYS, None])
NAMED = st.none() | st.tuples(st.sampled_from([A, B]), st.lists(st.sampled_from(KEYS), min_size=1, max_size=3))
WORLDS = st.fixed_dictionaries(
    {
        "pinned": st.dictionaries(st.sampled_from([A, B]), st.lists(st.sampled_from(KEYS), min_size=1, max_size=2)),
        "heard": NAMED,
        "search": NAMED,
        "required": st.booleans(),
        "agent": st.sampled_from([A, B]),
        "signer": KEY,
    }
)


def law(module, world) -> None:
    """Pinned keys win, then keys of the search, then of registries; without keys any manifest is accepted.

    The exception: with `require_signed` a manifest without keys is refused.
    """
    keys = module.TrustedKeys(
        {urn: [str(key) for key in pinned] for urn, pinned in world["pinned"].items()},
        require_signed=world["required"],
        verify=verify,
    )
    counting: Any = ()
    if world["heard"] is not None:
        agent, heard = world["heard"]
        keys.learn(agent, [keyed(*heard, agent_id=agent, url=OTHER_URL)], rank=0)
        counting = heard if agent == world["agent"] else ()
    named = None
    if world["search"] is not None:
        agent, listed = world["search"]
        named = module.NamedKeys(agent_id=agent, keys=tuple(listed))
        counting = listed if agent == world["agent"] else counting
    counting = world["pinned"].get(world["agent"], counting)
    came = published(world["agent"], world["signer"])
    good = world["signer"] in counting if counting else not world["required"]
    if not good:
        with pytest.raises(Unverified) as caught:
            keys.admit(URL, came, named)
        assert (caught.value.url, caught.value.agent_id) == (without_credentials(URL), world["agent"])
        return
    admitted = keys.admit(URL, came, named)
    assert admitted.manifest.id == world["agent"]
    assert admitted.key == (world["signer"] if counting else None)
    assert keys.admit(URL, admitted, named) == admitted
    if counting and world["agent"] not in world["pinned"]:
        other = KEYS[(KEYS.index(world["signer"]) + 1) % 3]
        with pytest.raises(Unverified, match="isn't a trusted key of this agent"):
            keys.admit(URL, admitted, module.NamedKeys(agent_id=world["agent"], keys=(other,)))


@given(WORLDS)
def test_a_manifest_is_accepted_only_if_signed_by_the_keys_that_apply(world) -> None:
    law(trust, world)


MUTANTS = {
    "pins don't count": ("if pinned is not None:", "if False:"),
    "a registry overrules pins": ("if pinned is not None:", "if pinned is not None and not self._registry_keys:"),
    "any agent's keys count": (" or named.agent_id != agent_id", ""),
    "the search doesn't count": ("if named is None or named", "if True or named"),
    "what was heard doesn't count": ("named = None if known is None else known.named", "named = None"),
    "nothing is required": ("if self._require_signed:", "if False:"),
    "what was verified once is good for ever": ("if received.key in keys:", "if received.key is not None:"),
    "the judgement doesn't matter": ("raise Unverified(without_credentials(url), agent_id, w", "return received, (w"),
    "the key isn't kept": (", key=judgement.key)", ")"),
}  # fmt: skip


def mutated(before: str, after: str):
    source = Path(str(trust.__file__)).read_text("utf-8")
    assert source.count(before) == 1
    mutant = types.ModuleType("mutant")
    exec(compile(source.replace(before, after), "mutant", "exec"), mutant.__dict__)
    return mutant


@pytest.mark.planted
@pytest.mark.long
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_caught(name: str) -> None:
    before, after = MUTANTS[name]
    mutant = mutated(before, after)

    @settings(database=None, max_examples=500, report_multiple_bugs=False)
    @given(WORLDS)
    def run(world) -> None:
        law(mutant, world)

    with pytest.raises((AssertionError, pytest.fail.Exception, Unverified)):
        run()


def test_a_received_manifest_is_replaced_by_the_signed_one() -> None:
    wrapper = document(A, KEYS[0])
    del wrapper["manifest"]["supported_versions"]
    wrapper["manifest"]["signature"] = "smuggled"
    came = read_received(json.dumps(wrapper).encode())
    assert (came.manifest.supported_versions, came.manifest.signature) == (None, "smuggled")
    admitted = TrustedKeys({A: str(KEYS[0])}, require_signed=True, verify=verify).admit(URL, came)
    assert (admitted.manifest.supported_versions, admitted.manifest.signature) == (("2.2",), None)


def test_a_manifest_that_is_too_long_is_not_verified() -> None:
    wrapper = document(A, KEYS[0])
    data = json.dumps(wrapper).encode()
    keys = TrustedKeys({A: str(KEYS[0])}, require_signed=False, verify=verify)
    assert keys.admit(URL, read_received(data.ljust(MAX_SIGNED))).key == KEYS[0]
    with pytest.raises(Unverified, match="longer than the 65536 bytes that are verified"):
        keys.admit(URL, read_received(data.ljust(MAX_SIGNED + 1)))
    # Of an agent without trusted keys nothing is verified.
    others = json.dumps(document(B, KEYS[0])).encode()
    assert keys.admit(URL, read_received(others.ljust(MAX_SIGNED + 1))).key is None


class TestKeysOfRegistries:
    @pytest.fixture
    def keys(self) -> TrustedKeys:
        return TrustedKeys({}, require_signed=False, verify=verify)

    @staticmethod
    def wants(keys: TrustedKeys) -> PublicKey | None:
        """By which key A's manifest must be signed."""
        for key in (None, *KEYS):
            try:
                keys.admit(URL, published(A, key))
            except Unverified:
                continue
            return key
        raise AssertionError("none is good")

    def test_named_keys_are_forgotten_with_their_urls(self, keys: TrustedKeys) -> None:
        keys.learn(A, [keyed(KEYS[0]), entry(url=f"{OTHER_URL}#x"), entry(endpoints={})], rank=0)
        with pytest.raises(Unverified, match=f"the manifest of {A} at .*443/m isn't verified: it isn't signed"):
            keys.admit(URL, published(A, None))
        keys.forget(URL)
        assert self.wants(keys) == KEYS[0]
        keys.forget(URL)
        keys.forget(OTHER_URL)
        assert self.wants(keys) is None

    def test_keys_named_for_another_agent_at_the_same_url_change_nothing(self, keys: TrustedKeys) -> None:
        keys.learn(A, [keyed(KEYS[0])], rank=0)
        keys.learn(B, [keyed(KEYS[1], agent_id=B)], rank=1)
        assert self.wants(keys) == KEYS[0]
        keys.learn(B, [entry(B)], rank=1)
        assert self.wants(keys) == KEYS[0]

    def test_keys_of_the_first_registry_apply_until_it_withdraws_them(self, keys: TrustedKeys) -> None:
        keys.learn(A, [keyed(KEYS[0])], rank=1)
        keys.learn(A, [keyed(KEYS[1])], rank=2)
        keys.learn(A, [entry()], rank=2)
        keys.learn(A, [], rank=2)
        keys.learn(A, [], rank=0)
        assert self.wants(keys) == KEYS[0]
        keys.learn(A, [keyed(KEYS[2])], rank=1)
        assert self.wants(keys) == KEYS[2]
        keys.learn(A, [keyed(KEYS[1])], rank=0)
        assert self.wants(keys) == KEYS[1]
        keys.learn(A, [], rank=0)
        assert self.wants(keys) is None
        keys.learn(A, [keyed(KEYS[2])], rank=1)
        keys.learn(A, [entry()], rank=0)
        assert self.wants(keys) is None
        keys.learn(A, [keyed(KEYS[0])], rank=0)
        keys.clear()
        assert self.wants(keys) is None

    def test_with_unreadable_keys_no_agent_is_accepted(self, keys: TrustedKeys) -> None:
        unreadable = keys_in([entry(), entry(public_key="x"), keyed(KEYS[0])])
        for key in (None, KEYS[0]):
            with pytest.raises(Unverified, match="the registry names no usable key: expected") as caught:
                keys.admit(URL, published(A, key), unreadable)
            assert (caught.value.url, caught.value.agent_id) == (without_credentials(URL), A)
        assert keys.admit(URL, published(B, None), unreadable).key is None
        keys.learn(A, [entry(public_key="x")], rank=0)
        with pytest.raises(Unverified, match="no usable key"):
            keys.admit(URL, published(A, KEYS[0]))
        pinned = TrustedKeys({A: str(KEYS[0])}, require_signed=False, verify=verify)
        assert pinned.admit(URL, published(A, KEYS[0]), unreadable).key == KEYS[0]

    def test_keys_of_the_latest_agents_are_remembered(self, monkeypatch) -> None:
        monkeypatch.setattr(trust, "_MAX_NAMED", 2)
        keys = TrustedKeys({}, require_signed=False, verify=verify)
        for agent in (A, "urn:asap:agent:c", A, B):
            keys.learn(agent, [keyed(KEYS[0], agent_id=agent)], rank=0)
        assert self.wants(keys) == KEYS[0]
        keys.learn("urn:asap:agent:d", [keyed(KEYS[0], agent_id="urn:asap:agent:d")], rank=0)
        assert self.wants(keys) is None


# --- searches, side by side: what is given out as A was signed by the first registry's key ----------------------------

RANKS = (0, 1, 2)
# Mostly A, so that what is about it meets.
AGENT = st.sampled_from([A, A, A, B])
SAID = st.none() | st.lists(st.tuples(AGENT, st.sampled_from([URL, OTHER_URL]), KEY), max_size=2)
PAGE = st.tuples(AGENT, KEY)


def announcement(url: str) -> Announcement:
    return Announcement(
        instance="x", agent_id=None, version="", skills=None, manifest_url=url, host="a.example", port=1, addresses=()
    )


class OneSearch:
    """A search that is carried out step by step. It stops before each question, so that the world changes between."""

    def __init__(self, machine: "Searching", agent: str) -> None:
        self.machine, self.agent = machine, agent
        self.said: Any = None
        self.page: Any = None
        # The naive model: the first key that this search read, and the key that the last manifest should have.
        self.bound: PublicKey | None = None
        self.expected: PublicKey | None = None
        self.key: PublicKey | None = None
        self.program = resolve(
            Wanted(urn=agent), sources=self, clock=ManualClock(), registries=tuple(map(str, RANKS)), wait=1.0
        )
        self.moved = step(self.program)

    def go_on(self, said, page, neighbour: str) -> None:
        if isinstance(self.moved, Returned):
            return
        self.said, self.page = said, page
        heard = isinstance(self.moved, Next)
        self.moved = step(self.program, Heard(Added(announcement(neighbour))) if heard else Completed())
        if isinstance(self.moved, Returned) and isinstance(self.moved.value, Resolved):
            right = self.expected is None or self.key == self.expected
            assert right, "one that isn't signed by the agent's key was taken"

    def revocations(self, location: str) -> Program[RevocationList]:
        raise NotImplementedError

    def registry(self, location: str) -> Program[RegistryIndex | CachedCopy]:
        yield from Sleep(0.0)
        if self.said is None:
            raise OSError("gone")
        named = self.machine.learn(self.agent, int(location), self.said)
        self.bound = self.bound or named
        entries = [
            {"id": other, "name": "", "description": "", "asap_version": "0.1", "endpoints": {"manifest": url},
             **({} if key is None else {"public_key": str(key)})}
            for other, url, key in self.said
        ]  # fmt: skip
        reader = RegistryReader()
        reader.feed(json.dumps({"version": "1", "updated_at": "2026-01-01", "agents": entries}).encode())
        return reader.close()

    def learn(self, urn: str, entries: Sequence[RegistryEntry], *, rank: int) -> None:
        self.machine.keys.learn(urn, entries, rank=rank)

    def find(
        self, url: str, wanted: Wanted, *, named: NamedKeys | None, named_by: str | None
    ) -> Program[LocatedDocument[Manifest]]:
        yield from Sleep(0.0)
        told = self.machine.told.get(self.agent)
        self.expected = self.bound or (None if told is None else told[1])
        found = self.machine.keys.admit(url, self.machine.document(url, self.page), named)
        self.key = found.key
        return LocatedDocument(found.manifest, url, Source.FETCHED, 0.0)

    def follow(
        self, announcement: Announcement, wanted: Wanted, *, named: NamedKeys | None
    ) -> Program[LocatedDocument[Manifest]]:
        return self.find(announcement.manifest_url, wanted, named=named, named_by=None)


class Searching(RuleBasedStateMachine):
    """Searches and visits of one client, in any order, in a world that changes under them."""

    module: Any = trust

    def __init__(self) -> None:
        super().__init__()
        self.keys = self.module.TrustedKeys({}, require_signed=False, verify=verify)
        self.kept: dict[str, Any] = {}
        self.searches: list[OneSearch] = []
        # The naive model: for each agent who named its keys, and which.
        self.told: dict[str, tuple[int, PublicKey, set[str]]] = {}

    @rule(url=st.sampled_from([URL, OTHER_URL]))
    def expire(self, url: str) -> None:
        self.kept.pop(url, None)

    @rule(url=st.sampled_from([URL, OTHER_URL]))
    def forget(self, url: str) -> None:
        self.kept.pop(url, None)
        self.keys.forget(url)
        for agent, (rank, key, urls) in list(self.told.items()):
            self.told[agent] = (rank, key, urls - {url})
            if url in urls and urls == {url}:
                del self.told[agent]

    @rule()
    def reset(self) -> None:
        self.kept.clear()
        self.keys.clear()
        self.told.clear()

    @rule(agent=AGENT)
    def begin(self, agent: str) -> None:
        if len(self.searches) < len(RANKS):
            self.searches.append(OneSearch(self, agent))

    @rule(which=st.integers(0, 2), said=SAID, page=PAGE, neighbour=st.sampled_from([URL, OTHER_URL]))
    def go_on(self, which: int, said, page, neighbour: str) -> None:
        """A search takes a step; this is what the registry says that it reads, or what is served where it looks."""
        if which < len(self.searches):
            self.searches[which].go_on(said, page, neighbour)

    def learn(self, agent: str, rank: int, said) -> PublicKey | None:
        """Note in the model what a registry says. Returns the key that it names for this agent."""
        listed = [(url, key) for other, url, key in said if other == agent]
        named = next((key for _, key in listed if key is not None), None)
        before = self.told.get(agent, (99, None, set()))[0]
        if before == rank or (before > rank and listed):
            self.told.pop(agent, None)
            if named is not None:
                self.told[agent] = (rank, named, {url for url, _ in listed})
        return named

    def document(self, url: str, page):
        """What is kept, or is fetched and kept, as `Documents` does."""
        if url not in self.kept:
            self.kept[url] = self.keys.admit(url, published(*page))
        return self.kept[url]

    @rule(url=st.sampled_from([URL, OTHER_URL]), page=PAGE)
    def visit(self, url: str, page) -> None:
        """A caller who knows the URL."""
        (agent, signer), fresh = page, url not in self.kept
        try:
            found = self.keys.admit(url, self.document(url, page))
        except Unverified:
            assert not fresh or (agent in self.told and self.told[agent][1] != signer), "refused for no reason"
            return
        told = self.told.get(found.manifest.id)
        assert told is None or found.key == told[1], "one that isn't signed by the agent's key was given out"


HUNTING = settings(
    max_examples=5_000, stateful_step_count=40, database=None, phases=[Phase.generate], report_multiple_bugs=False
)


def test_keys_apply_to_the_search_and_the_agent() -> None:
    run_state_machine_as_test(Searching)


@pytest.mark.planted
@pytest.mark.long
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("if named is None or named.agent_id != agent_id:", "if True:"),
        ("known = self._registry_keys.peek(agent_id)", "known = None"),
    ],
)
def test_a_planted_bug_in_the_search_is_caught(before: str, after: str) -> None:
    class Broken(Searching):
        module = mutated(before, after)

    with pytest.raises(AssertionError):
        run_state_machine_as_test(Broken, settings=HUNTING)


@pytest.mark.planted
def test_a_search_that_forgets_its_keys_is_caught(monkeypatch) -> None:
    monkeypatch.setattr(search, "keys_in", lambda _entries: None)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Searching, settings=HUNTING)


@pytest.mark.parametrize("pinned", [{"nobody": str(KEYS[0])}, {A: "x"}, {A: []}])
def test_invalid_pinned_keys_are_refused(pinned) -> None:
    with pytest.raises(ValueError, match="expected"):
        TrustedKeys(pinned, require_signed=False, verify=verify)


def test_signatures_that_cannot_be_checked_may_not_be_required() -> None:
    for required in ({A: str(KEYS[0])}, {}):
        with pytest.raises(ValueError, match="expected verify, which checks the signatures"):
            TrustedKeys(required, require_signed=not required, verify=None)


def test_without_a_verifier_agents_with_keys_are_refused() -> None:
    keys = TrustedKeys({}, require_signed=False, verify=None)
    assert keys.admit(URL, published(A, None)).key is None
    keys.learn(A, [keyed(KEYS[0])], rank=0)
    with pytest.raises(Unverified, match="nothing here checks Ed25519 signatures"):
        keys.admit(URL, published(A, KEYS[0]))


def test_a_registry_names_keys() -> None:
    assert keys_in([]) is keys_in([entry(), entry(public_key=None)]) is None
    assert keys_in([entry(public_key=str(KEYS[0]))]) == NamedKeys(agent_id=A, keys=KEYS[:1])
    assert keys_in([entry(public_key=list(map(str, KEYS)))]) == NamedKeys(agent_id=A, keys=KEYS)
    assert keys_in([entry(), keyed(KEYS[1]), keyed(KEYS[2])]) == NamedKeys(agent_id=A, keys=KEYS[1:2])
    wrongs: list[Any] = ["", 7, [], {}, ["x"]]
    for wrong in wrongs:
        found = keys_in([entry(public_key=wrong)])
        assert found is not None
        assert found.keys == ()
        assert "the registry names no usable key: expected" in found.problem


@given(st.binary(max_size=50))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with pytest.raises(InvalidDocument, match="not a valid manifest"):
        read_received(data)


URLS = st.sampled_from(["https://a", "https://b", "https://c"])


@given(st.lists(st.tuples(URLS, st.sampled_from([A, B, "forget", "clear"])), max_size=30))
def test_the_first_agent_at_a_url_stays_its_incumbent(steps: list[tuple[str, str]]) -> None:
    incumbents, model = FirstSeen(), dict[str, str]()
    for url, what in steps:
        match what:
            case "forget":
                incumbents.forget(url)
                model.pop(url, None)
            case "clear":
                incumbents.clear()
                model.clear()
            case _:
                before = model.setdefault(url, what)
                changed = incumbents.check(url, what)
                assert (changed is None) == (before == what)
                if changed is not None:
                    assert (changed.url, changed.expected, changed.found) == (f"{url}:443", before, what)
        assert len(incumbents) == len(model)


def test_the_url_that_was_not_seen_for_longest_is_forgotten_first() -> None:
    incumbents = FirstSeen(max_urls=2)
    for url in ("https://a", "https://b", "https://a", "https://c"):
        assert incumbents.check(url, A) is None
    assert len(incumbents) == 2
    assert incumbents.check("https://a?secret", A) is None
    changed = incumbents.check("https://c", B)
    assert changed is not None
    assert incumbents.check("https://b", B) is None


def test_a_manifest_is_verified_once_with_the_same_keys() -> None:
    verified: list[bytes] = []

    def counted(public_key: bytes, signature: bytes, message: bytes) -> bool:
        verified.append(message)
        return verify(public_key, signature, message)

    keys = TrustedKeys({A: frozenset({str(KEYS[0])})}, require_signed=False, verify=counted)
    admitted = keys.admit(URL, published(A, KEYS[0]))
    assert len(verified) >= 1
    verified.clear()
    assert keys.admit(URL, admitted) == admitted
    assert verified == []


def test_a_manifest_that_is_not_signed_has_no_wrapper() -> None:
    assert published(A, None).wrapper is None
    assert published(A, KEYS[0]).wrapper is not None
