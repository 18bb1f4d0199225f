"""Finding agents, without a loop: the right agent and no other, by URL, through registries, and by its URN."""

import gc
import json
import tracemalloc
from collections.abc import Collection
from typing import Any

import pytest

from asap_core.client import discovery
from asap_core.client.discovery import join
from asap_core.client.document_cache import DocumentCachePolicy
from asap_core.client.documents import MAX_MANIFEST
from asap_core.client.fetch_results import Source
from asap_core.client.programs import Barred, Expired, Fetch, Program, ReadFile, Unavailable, Wait
from asap_core.client.registry_cache import CachedCopy, RegistryCache
from asap_core.client.search import LOCAL_NETWORK, Resolved, Unresolved
from asap_core.client.trust import Wanted
from asap_core.errors import (
    Advice,
    AgentChanged,
    BadReply,
    InvalidDocument,
    NotAllowed,
    TimedOut,
    Unsuitable,
    Unverified,
    WrongAgent,
)
from asap_core.http.caching import Freshness
from asap_core.mdns.dnssd import Added, Removed, Updated
from asap_core.wire.manifest import HEALTH_PATH, MANIFEST_PATH
from asap_core.wire.registry_index import RegistryIndex
from asap_core.wire.signing import PublicKey
from tests.core.client.agents import NO_FILE, OTHER, URN, World, announcement, manifest, registry, revocations
from tests.core.client.scripted import HELD, After, Answer, Run
from tests.core.client.signatures import KEYS, signed

ANYONE = Wanted()
WANTED = Wanted(urn=URN)
A = f"https://a.example{MANIFEST_PATH}"
R = "https://r.example/1"
HEALTH = f"https://a.example{HEALTH_PATH}"
HEALTHY = {"status": "healthy", "agent_id": URN, "version": "1", "asap_version": "0.1", "uptime_seconds": 1.0}


def find(world: World, url: str = A, wanted: Wanted = ANYONE) -> str:
    return world.run(world.discovery.find(url, wanted)).document.id


def resolve(world: World, wait: float = 0.0, wanted: Wanted = WANTED) -> Resolved | Unresolved:
    return world.run(world.discovery.resolve(wanted, wait=wait))


def reasons(end: Resolved | Unresolved) -> list[str]:
    return [str(one) for one in end.trace]


def verdicts(end: Resolved | Unresolved) -> list[str]:
    return [one.verdict.value for one in end.trace]


def is_found(end: Resolved | Unresolved) -> bool:
    return isinstance(end, Resolved) and end.manifest.id == URN


class TestResolving:
    def test_registries_are_asked_in_order(self) -> None:
        world = World(registries=["https://gone.example/r", "none.json", "/registry.json", R, "https://r.example/2"])
        world.files["/registry.json"] = registry("https://b.example/m")
        world.pages |= {
            R: registry("https://a.example/m"),
            "https://b.example/m": manifest(OTHER),
            "https://a.example/m": manifest(),
        }
        end = resolve(world)
        assert isinstance(end, Resolved)
        assert is_found(resolve(world))
        assert (end.source, end.url) == (R, "https://a.example/m")
        assert verdicts(end) == ["failed", "failed", "taken", "refused", "taken", "taken"]
        assert reasons(end)[1] == "none.json: No such file or directory"
        # What failed a moment ago, and what is fresh, isn't requested again.
        assert world.asked == ["https://gone.example/r", "https://b.example/m", R, "https://a.example/m"]

    def test_then_the_local_network_is_watched(self) -> None:
        world = World(registries=[R])
        world.pages |= {
            "https://a.localhost/m": manifest(),
            "https://b.localhost/m": manifest(OTHER),
            "https://c.localhost/m": manifest(OTHER),
        }
        a, b = announcement(URN, "https://a.localhost/m"), announcement(URN, "https://b.localhost/m")
        unnamed, elsewhere = announcement(None, "https://c.localhost/m"), announcement("urn:asap:agent:x", "https://x")
        world.coming = [Added(elsewhere), Removed(a), Added(unnamed), Added(b), Updated(a)]
        end = resolve(world, 30.0)
        assert world.clock.monotonic() == 5.0
        assert isinstance(end, Resolved)
        assert (end.source, verdicts(end)) == (LOCAL_NETWORK, ["failed", "refused", "refused", "taken"])

    def test_the_local_network_is_watched_no_longer_than_wanted(self) -> None:
        world = World()
        assert reasons(resolve(world, 3.0)) == ["the local network: not announced within 3 s"]
        world.pages["https://a.localhost/m"] = After(60.0, Answer(504))
        world.announce(announcement(URN, "https://a.localhost/m"))
        assert reasons(resolve(world, 3.0)) == [
            "https://a.localhost:443/m: no answer from https://a.localhost:443/m: no manifest within 3 s",
            "the local network: nobody else is announced within 3 s",
        ]
        assert world.clock.monotonic() == 6.0

    def test_the_local_network_may_be_unavailable(self) -> None:
        world = World()
        world.coming = [Unavailable("no multicast in here")]
        assert reasons(resolve(world, 3.0)) == ["the local network: no multicast in here"]
        assert reasons(resolve(world)) == []

    def test_the_agent_has_what_is_required(self) -> None:
        world = World(registries=[R])
        world.pages |= {R: registry(A), A: manifest()}
        assert is_found(resolve(world, wanted=Wanted(urn=URN, skill="echo", least_version="0.1")))
        for lacking, words in (({"skill": "fly"}, "the skill fly"), ({"least_version": "9.1"}, "ASAP 9.1 or later")):
            end = resolve(world, wanted=Wanted(urn=URN, **lacking))
            assert words in reasons(end)[-1]

    def test_a_closed_search_leaves_nothing(self) -> None:
        """Closed at every effect in turn."""
        for steps in range(20):
            world = World(registries=[R])
            world.pages |= {R: registry("https://b.example/m", A), A: After(1.0, Answer(503))}
            world.announce(announcement(URN, "https://a.localhost/m"))
            run = world.start(world.discovery.resolve(WANTED, wait=5.0))
            for _ in range(steps):
                world.turn()
            if run.effect is None:
                assert steps > 4
                break
            world.close(run)
            assert world.discovery._manifests.waiting == world.discovery._registries.waiting == 0
            assert isinstance(resolve(world, 5.0), Unresolved)
        else:
            raise AssertionError("it never ended")


class TestIdentity:
    def test_an_agent_must_have_the_expected_id_and_what_is_required(self) -> None:
        world = World()
        world.pages[A] = manifest()
        assert find(world, A, Wanted(urn=URN, skill="echo")) == URN
        for wanted, error, words in (
            (Wanted(urn=OTHER), WrongAgent, "not urn:asap:agent:other"),
            (Wanted(skill="fly"), Unsuitable, "doesn't have the skill fly"),
            (Wanted(least_version="9"), Unsuitable, "doesn't have ASAP 9 or later"),
        ):
            with pytest.raises(error, match=words):
                find(world, A, wanted)
            with pytest.raises(error, match=words):
                world.run(world.discovery.look_up(A, wanted))

    def test_another_agent_at_a_known_url_is_refused(self) -> None:
        world = World()
        world.pages[A] = manifest()
        find(world)
        world.pages[A] = manifest(OTHER)
        assert find(world) == URN, "the fresh one"
        for pause in (301, 0, 40):
            world.advance(pause)
            with pytest.raises(AgentChanged) as caught:
                find(world)
            assert (caught.value.expected, caught.value.found) == (URN, OTHER)
        assert world.discovery.cached(A) is None
        assert [f"is {OTHER} now, and was {URN}" in text for text in world.warnings()] == [True, True]
        world.discovery.forget(A)
        assert find(world) == OTHER

    def test_an_error_shows_no_secret_of_the_url(self) -> None:
        world, url = World(), "https://a.example/m?token=secret"
        world.pages[url] = manifest()
        find(world, url)
        world.advance(301)
        world.pages[url] = manifest(OTHER)
        with pytest.raises(AgentChanged) as caught:
            find(world, url)
        assert "secret" not in str(caught.value) + str(world.warnings())

    def test_another_agent_is_accepted_after_forget_during_a_fetch(self) -> None:
        world = World()
        world.pages[A] = After(1.0, Answer(body=json.dumps(manifest()).encode()))
        run = world.start(world.discovery.find(A, ANYONE))
        world.advance(0.5)
        world.discovery.forget(A)
        world.advance(0.5)
        assert run.result().document.id == URN
        world.pages[A] = manifest(OTHER)
        assert find(world) == OTHER

    def test_a_lookup_after_forget_starts_a_new_fetch(self) -> None:
        world, runs = World(), list[Run[Any]]()
        for urn in (URN, OTHER):
            world.pages[A] = After(1.0, Answer(body=json.dumps(manifest(urn)).encode()))
            world.discovery.forget(A)
            runs.append(world.start(world.discovery.find(A, ANYONE)))
            world.advance(0.5)
        world.advance(1.0)
        assert [run.result().document.id for run in runs] == [URN, OTHER]
        cached = world.discovery.cached(A)
        assert cached is not None
        assert cached.id == OTHER
        assert world.discovery._manifests._cache._purposes == {}

    def test_a_cached_manifest_is_at_hand_as_find_would_return_it(self) -> None:
        world = World()
        world.pages[A] = manifest()
        assert world.discovery.at_hand(A, WANTED) is None
        find(world)
        found = world.discovery.at_hand(A, WANTED)
        assert found is world.discovery.cached(A)
        assert found is not None
        assert (world.discovery.origin(found), world.discovery.announced_at(found)) == ("https://a.example:443", ())
        with pytest.raises(WrongAgent):
            world.discovery.at_hand(A, Wanted(urn=OTHER))
        world.advance(300)
        assert world.discovery.at_hand(A, ANYONE) is None

    def test_spellings_of_a_url_are_one_url(self) -> None:
        world = World()
        world.pages[A] = manifest()
        for base_url in ("https://a.example", "https://A.Example:443/", "HTTPS://a.EXAMPLE"):
            url = join(base_url, MANIFEST_PATH)
            assert find(world, url) == URN
            assert world.discovery.cached(url) is not None
        assert world.asked == [A]
        world.pages[A] = manifest(OTHER)
        world.advance(301)
        with pytest.raises(AgentChanged):
            find(world, join("https://A.example", MANIFEST_PATH))
        world.discovery.forget(join("https://A.EXAMPLE:443", MANIFEST_PATH))
        assert find(world, A + "#x") == OTHER

    def test_another_agent_is_accepted_if_changes_are_allowed(self) -> None:
        world = World(allow_changed_agents=True)
        for urn in (URN, OTHER):
            world.pages[A] = manifest(urn)
            assert find(world) == urn
            world.advance(301)
        assert world.warnings() == []

    def test_a_url_refused_for_its_source_may_be_requested_by_the_caller(self) -> None:
        world, url = World(registries=[R]), "https://corp.example/m"
        world.pages |= {
            R: Answer(body=json.dumps(registry(url)).encode(), address="93.184.216.34"),
            url: Barred("what names it isn't inside", Advice("allow it")),
        }
        assert "what names it isn't inside" in reasons(resolve(world))[-1]
        world.pages[url] = manifest()
        assert find(world, url) == URN

    def test_a_registry_may_not_name_hosts_that_only_the_caller_may(self) -> None:
        for port in (8000, 9000):
            world = World(registries=[R])
            url = f"http://localhost:8000{MANIFEST_PATH}"
            world.pages |= {url: manifest(), R: registry(f"http://localhost:{port}/admin")}
            assert find(world, url) == URN
            assert "a more distant network may not name it" in reasons(resolve(world))[-1]
            assert find(world, url) == URN
            assert world.asked == [url, R]


def test_the_origin_of_each_live_manifest_is_known() -> None:
    """Whether it's cached or not. So its endpoint is never judged as that of a manifest which the caller made."""
    world = World()
    urls = [f"https://a.example/{number}" for number in range(1_100)]
    world.pages = dict.fromkeys(urls, manifest(endpoints={"asap": "https://b.example/asap"}))
    found = [world.run(world.discovery.find(url, ANYONE)).document for url in urls]
    assert {world.discovery.origin(one) for one in found} == {"https://a.example:443"}
    for one in (found[0], found[-1]):
        with pytest.raises(NotAllowed, match=r"came from https://a\.example"):
            world.requests.judge_endpoint(one.endpoints.asap, world.discovery.origin(one))
    world.requests.judge_endpoint(one.endpoints.asap, None)
    assert {world.discovery.announced_at(one) for one in found} == {()}
    del one
    del found[1:]
    world.discovery.reset()
    gc.collect()
    assert len(world.discovery._origins) == 1, "kept for as long as there are manifests"


def test_an_origin_is_known_by_the_manifest_object_and_not_by_its_address() -> None:
    world = World()
    world.pages |= {A: manifest(), "https://b.example/m": manifest()}
    one, two = (world.run(world.discovery.find(url, ANYONE)).document for url in world.pages)
    # As if `two` had been allocated where another manifest was.
    world.discovery._origins[id(two)] = world.discovery._origins[id(one)]
    assert world.discovery.origin(two) is None
    world.run(world.discovery.find("https://b.example/m", ANYONE))
    assert [world.discovery.origin(each) for each in (one, two)] == ["https://a.example:443", "https://b.example:443"]


def test_a_lookup_returns_source_and_age() -> None:
    world = World()
    world.pages[A] = Answer(headers=(("cache-control", "max-age=60"),), body=json.dumps(manifest()).encode())
    looks = []
    for pause in (0, 30):
        world.advance(pause)
        looks.append(world.run(world.discovery.look_up(A, ANYONE)))
    assert [(one.manifest.id, one.url, one.source, one.age) for one in looks] == [
        (URN, A, Source.FETCHED, 0.0),
        (URN, A, Source.CACHED, 30.0),
    ]
    assert {one.freshness and one.freshness.fresh_for for one in looks} == {60.0}


def test_a_manifest_may_state_its_lifetime() -> None:
    world = World()
    world.pages[A] = manifest(ttl_seconds=42)
    freshness = world.run(world.discovery.look_up(A, ANYONE)).freshness
    assert freshness is not None
    assert freshness.fresh_for == 42.0


def test_documents_are_bounded() -> None:
    assert (discovery.MAX_REGISTRY, discovery.MAX_REVOCATIONS, discovery._MAX_HEALTH) == (67_108_864, 1_048_576, 65_536)
    assert MAX_MANIFEST == 1_048_576
    world = World()
    world.pages |= {A: manifest(), R: registry()}
    find(world)
    world.run(world.discovery.registry(R))
    assert [effect.seconds for effect in world.effects] == [10.0, 30.0]


class TestKeepingFresh:
    def test_a_manifest_is_fetched_before_it_expires(self) -> None:
        world = World()
        world.pages[A] = manifest()
        run = world.start(world.discovery.keep_fresh(A))
        for _ in range(10):
            world.advance(200)
            assert world.discovery.cached(A) is not None
        assert 5 < len(world.asked) < 10
        assert isinstance(run.effect, Wait)
        world.close(run)

    def test_a_url_that_is_not_allowed_is_refused_at_once(self) -> None:
        world = World()
        with pytest.raises(NotAllowed):
            world.discovery.check_kept_fresh([A, "http://a.example"])
        world.discovery.check_kept_fresh([A] * 1_000)
        with pytest.raises(ValueError, match="expected at most 1000 agents: the cache holds no more manifests"):
            world.discovery.check_kept_fresh([A] * 1_001)
        with pytest.raises(ValueError, match="expected at most 2 agents"):
            World(policy=DocumentCachePolicy(max_entries=2)).discovery.check_kept_fresh([A] * 3)


class TestForgetting:
    def test_forgotten_documents_are_fetched_again(self) -> None:
        world = World(revocations="https://r.example/revoked")
        urls = [A, R, "https://r.example/revoked"]
        world.pages = dict(zip(urls, (manifest(), registry(), revocations()), strict=True))

        def fetch() -> list[str]:
            world.asked.clear()
            find(world)
            world.run(world.discovery.registry(R))
            resolve(world)
            return list(world.asked)

        assert (fetch(), fetch()) == (urls, [])
        for url in urls:
            world.discovery.forget(url)
            assert fetch() == [url]
        world.discovery.reset()
        assert world.discovery.cached(A) is None
        assert fetch() == urls

    def test_keys_that_a_registry_named_for_a_url_are_forgotten_with_it(self) -> None:
        world = World(registries=[R])
        world.pages |= {R: registry(A, public_key=str(KEYS[0])), A: manifest()}
        resolve(world)
        with pytest.raises(Unverified):
            find(world)
        world.discovery.forget(A)
        assert find(world) == URN

    def test_a_reset_forgets_which_agents_and_keys_are_known(self) -> None:
        world = World(registries=[R])
        world.pages |= {R: registry(A, public_key=str(KEYS[0])), A: manifest(OTHER)}
        resolve(world)
        world.pages[A] = manifest()
        world.advance(301)
        with pytest.raises(Unverified):
            find(world)
        world.discovery.reset()
        assert find(world) == URN

    def test_a_fetch_under_way_is_answered_and_not_cached(self) -> None:
        world = World()
        world.pages[A] = After(1.0, Answer(body=json.dumps(manifest()).encode()))
        run = world.start(world.discovery.find(A, ANYONE))
        world.discovery.reset()
        world.advance(1.0)
        assert run.result().document.id == URN
        assert world.discovery.cached(A) is None


class TestHealth:
    def test_a_report_is_not_cached(self) -> None:
        world = World()
        world.pages[HEALTH] = HEALTHY
        for _ in range(2):
            assert world.run(world.discovery.health("https://a.example/")).agent_id == URN
        assert world.asked == [HEALTH] * 2

    def test_concurrent_callers_share_a_request(self) -> None:
        world = World()
        world.pages[HEALTH] = After(1.0, Answer(503, body=json.dumps({**HEALTHY, "status": "unhealthy"}).encode()))
        runs = [world.start(world.discovery.health("https://a.example")) for _ in range(3)]
        world.advance(1.0)
        assert [run.result().status for run in runs] == ["unhealthy"] * 3
        assert world.asked == [HEALTH]

    def test_a_base_url_has_no_query_and_no_fragment(self) -> None:
        for url in ("https://a.example?token=x", "https://a.example#x"):
            with pytest.raises(NotAllowed, match="a base URL has no query and no fragment; expected one such as"):
                join(url, HEALTH_PATH)
        assert join("https://a.example//", HEALTH_PATH) == HEALTH


class TestDocument:
    def test_a_document_is_returned_unchanged(self) -> None:
        world = World()
        world.pages["https://a.example/d"] = b"any bytes"
        for _ in range(2):
            assert world.run(world.discovery.document("https://a.example/d")) == b"any bytes"
        assert len(world.asked) == 2

    def test_another_status_is_an_error(self) -> None:
        world = World()
        with pytest.raises(BadReply, match="expected the document with HTTP 200") as caught:
            world.run(world.discovery.document("https://a.example/d?secret"))
        assert (caught.value.status, "secret" in str(caught.value)) == (404, False)


class TestFailures:
    def test_a_failed_fetch_is_remembered_without_its_body(self) -> None:
        world, body = World(), b'{"id": "' + b"x" * 900_000 + b'"}'
        world.script = lambda _effect: Answer(body=body)

        def fail(number: int) -> None:
            with pytest.raises(InvalidDocument):
                find(world, f"https://a.example/{number}")
            world.effects.clear()

        fail(0)
        gc.collect()
        tracemalloc.start()
        for number in range(1, 21):
            fail(number)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert held < 1_000_000

    def test_a_leader_with_a_stale_document_waits_a_second_and_others_longer(self) -> None:
        world = World()
        headers = (("cache-control", "max-age=10, stale-while-revalidate=5, stale-if-error=0"),)
        answer = Answer(headers=headers, body=json.dumps(manifest()).encode())
        world.pages[A] = answer
        find(world)
        world.pages[A] = After(3.0, answer)
        world.advance(14.5)
        leader = world.start(world.discovery.look_up(A, ANYONE))
        world.advance(0.8)
        late = world.start(world.discovery.look_up(A, ANYONE))
        world.advance(0.2)
        assert leader.result().source is Source.STALE_ERROR
        world.advance(3.0)
        assert late.result().source is Source.FETCHED

    def test_a_closed_leader_leaves_no_half_read_registry(self) -> None:
        data = json.dumps({**registry(A, A), "agents": [*registry(A, A)["agents"], {"id": "broken"}]}).encode()
        for at in range(0, len(data), 7):
            world = World()
            world.pages[R] = HELD
            leader, waiting = (world.start(world.discovery.registry(R)) for _ in range(2))
            assert isinstance(leader.effect, Fetch)
            leader.effect.reader.begin(200, ())
            leader.effect.reader.feed(data[:at])
            leader.effect.reader.work()
            world.pages[R] = data
            world.close(leader)
            world.advance(0)
            read = waiting.result()
            assert isinstance(read, RegistryIndex)
            assert (len(read), len(read.skipped)) == (2, 1)

    @pytest.mark.parametrize(
        ("headers", "fetched"),
        [
            ({"expires": "Sat, 06 Nov 2094 08:49:37 GMT"}, 1),
            ({"expires": "Saturday, 06-Nov-94 08:49:37 GMT"}, 2),  # 1994
            ({"expires": "Sat Nov  6 08:49:37 2094"}, 1),
            *(
                ({"expires": f"Sat, 06 Nov {end}"}, 2)
                for end in ("2094 08:49:37 UTC", "2094 08:49:37 PST", "94 08:49:37 GMT")
            ),
            ({"expires": "Sat 06 Nov 2094 08:49:37 GMT"}, 2),
            ({"expires": "Sat, 06 Nov 2094 08:49:37 GMT or later"}, 2),
            ({"cache-control": "max-age=60"}, 1),
            ({"cache-control": "max-age =60"}, 2),
            ({"cache-control": "max-age= 60"}, 2),
        ],
    )
    def test_a_document_with_a_malformed_lifetime_is_stale(self, headers: dict[str, str], fetched: int) -> None:
        world = World()
        world.pages[A] = Answer(headers=tuple(headers.items()), body=json.dumps(manifest()).encode())
        for _ in range(2):
            assert find(world) == URN
        assert len(world.asked) == fetched


class TestFiles:
    def test_a_registry_may_be_a_file(self) -> None:
        world = World()
        world.files["/r.json"] = registry(A, A)
        read = world.run(world.discovery.registry("/r.json"))
        assert isinstance(read, RegistryIndex)
        assert len(read) == 2
        assert [effect.path for effect in world.effects if isinstance(effect, ReadFile)] == ["/r.json"]

    def test_an_error_of_the_system_is_raised_unchanged(self) -> None:
        world = World()
        with pytest.raises(FileNotFoundError) as caught:
            world.run(world.discovery.registry("none.json"))
        assert (caught.value.filename, caught.value.strerror) == ("none.json", NO_FILE.reason)

    @pytest.mark.parametrize(
        ("found", "error", "words"),
        [
            (Unavailable("expected a file"), BadReply, "unusable answer from /f: expected a file"),
            (Expired(), TimedOut, "no answer from /f: it wasn't read in time"),
            (b"[]", InvalidDocument, "not a valid "),
            (b"x" * 1_001, BadReply, "unusable answer from /f: expected at most 1000 bytes"),
        ],
    )
    def test_a_file_that_cannot_be_used_is_an_error(self, found: Any, error: Any, words: str, monkeypatch) -> None:
        monkeypatch.setattr(discovery, "MAX_REGISTRY", 1_000)
        monkeypatch.setattr(discovery, "MAX_REVOCATIONS", 1_000)
        world = World(registries=["/f"])
        world.files["/f"] = found
        for read in (world.discovery.registry, world.discovery.revocations):
            with pytest.raises(error, match=words):
                world.run(read("/f"))
        assert words in reasons(resolve(world))[0]

    def test_the_largest_registry_fits(self, monkeypatch) -> None:
        data = json.dumps(registry(A)).encode()
        monkeypatch.setattr(discovery, "MAX_REGISTRY", len(data))
        world = World()
        world.files["/f"] = data
        world.run(world.discovery.registry("/f"))


# --- copies of registries --------------------------------------------------------------------------------------------


class Copies(RegistryCache):
    """Copies of registries in memory."""

    def __init__(self) -> None:
        self.stored: dict[str, RegistryIndex] = {}
        self.calls: list[tuple[object, ...]] = []

    def put(self, url: str, index: RegistryIndex, freshness: Freshness, *, age: float) -> Program[None]:
        yield from ()
        self.calls.append(("put", freshness.fresh_for, age))
        self.stored[url] = index

    def take(self, url: str, error: Exception) -> Program[CachedCopy | None]:
        yield from ()
        self.calls.append(("take", type(error)))
        found = self.stored.get(url)
        return None if found is None else CachedCopy(found, 7.0)

    def stands_in(self, url: str) -> float | None:
        return 7.0 if url in self.stored else None

    def drop(self, url: str) -> None:
        self.calls.append(("drop", self.stored.pop(url, None) is not None))

    def clear(self) -> None:
        self.stored.clear()


class TestCopies:
    def test_a_copy_is_used_while_the_registry_is_unavailable(self) -> None:
        copies = Copies()
        world = World(registries=[R], registry_cache=copies)
        world.pages |= {R: registry(A), A: manifest()}
        assert is_found(resolve(world))
        world.pages[R] = 404
        world.advance(301)
        assert reasons(resolve(world))[0] == "https://r.example:443/1: listed, in its last good copy, 7 s old"
        read = world.run(world.discovery.registry(R))
        assert isinstance(read, CachedCopy)
        assert copies.calls == [("put", 300.0, 0.0), ("take", BadReply), ("take", BadReply)]
        assert (world.discovery.stands_in(R), world.discovery.stands_in("https://other.example")) == (7.0, None)

    def test_a_revocation_list_is_not_read_from_a_copy(self) -> None:
        copies = Copies()
        world = World(registries=[R], revocations=R, registry_cache=copies)
        world.pages |= {R: registry(A), A: manifest()}
        world.run(world.discovery.registry(R))
        assert len(copies.stored) == 1
        world.pages[R] = 503
        world.advance(301)
        assert not is_found(resolve(world))

    def test_without_a_copy_the_registrys_error_is_raised(self) -> None:
        for world in (World(registry_cache=Copies()), World()):
            with pytest.raises(BadReply, match="HTTP 404"):
                world.run(world.discovery.registry(R))
            assert world.discovery.stands_in(R) is None

    def test_a_copy_is_stored_with_the_documents_age(self) -> None:
        copies = Copies()
        world = World(registry_cache=copies)
        world.pages[R] = registry(A)
        for pause in (0, 100):
            world.advance(pause)
            world.run(world.discovery.registry(R))
        assert copies.calls == [("put", 300.0, 0.0), ("put", 300.0, 100.0)]

    def test_a_registry_that_may_not_be_cached_is_not_copied(self) -> None:
        copies = Copies()
        world = World(registry_cache=copies)
        world.pages[R] = Answer(headers=(("cache-control", "no-store"),), body=json.dumps(registry(A)).encode())
        world.run(world.discovery.registry(R))
        assert copies.calls == [("drop", False)]

    def test_a_registry_that_was_replaced_meanwhile_is_not_copied(self) -> None:
        copies = Copies()
        world = World(registry_cache=copies)
        body = json.dumps(registry(A)).encode()
        world.pages[R] = After(2.0, Answer(body=body))
        old = world.start(world.discovery.registry(R))
        world.discovery.forget(R)
        world.pages[R] = Answer(body=body)
        new = world.run(world.discovery.registry(R))
        copies.calls.clear()
        world.advance(2.0)
        assert old.result() is not new
        assert copies.calls == []
        assert list(copies.stored.values()) == [new]

    def test_forgotten_registries_have_no_copies(self) -> None:
        copies = Copies()
        world = World(registry_cache=copies)
        world.pages |= {R: registry(), "https://r.example/2": registry()}
        for url in (R, "https://r.example/2"):
            world.run(world.discovery.registry(url))
        world.discovery.forget(R)
        assert len(copies.stored) == 1
        world.discovery.reset()
        assert copies.stored == {}


# --- signed manifests ------------------------------------------------------------------------------------------------


def pins(*keys: PublicKey) -> dict[str, Collection[str]]:
    return {URN: [str(key) for key in keys]}


class TestSigned:
    def test_a_manifest_signed_by_a_pinned_key_is_cached_as_it_was_signed(self) -> None:
        world = World(trusted_keys=pins(*KEYS[:2]))
        world.pages[A] = signed(manifest(), KEYS[1])
        world.pages[A]["manifest"]["name"] = "Echo"
        for _ in range(2):
            assert find(world) == URN
        assert len(world.asked) == 1
        assert world.discovery.cached(A) is not None

    def test_a_manifest_with_another_signature_is_refused_and_replaces_nothing(self) -> None:
        forged = signed(manifest(), KEYS[0])
        forged["manifest"]["endpoints"]["asap"] = "https://evil.example/asap"
        forged["signature"]["trust_level"] = "enterprise"
        for wrong, words in (
            (signed(manifest(), KEYS[2]), "isn't a trusted key of this agent"),
            (forged, "its signature isn't one of this manifest"),
            (forged["manifest"], "it isn't signed"),
        ):
            world = World(trusted_keys=pins(*KEYS[:2]))
            world.pages[A] = signed(manifest(), KEYS[0])
            find(world)
            world.pages[A] = wrong
            assert find(world) == URN, "the fresh one"
            world.advance(301)
            for _ in range(2):
                with pytest.raises(Unverified, match=words):
                    find(world)
            assert [words in text for text in world.warnings()] == [True]
            world.pages[A] = signed(manifest(), KEYS[1])
            world.advance(40)
            assert find(world) == URN

    def test_each_waiter_gets_an_error_of_its_own(self) -> None:
        world = World(trusted_keys=pins(KEYS[0]))
        world.pages[A] = After(1.0, Answer(body=json.dumps(manifest()).encode()))
        runs = [world.start(world.discovery.find(A, ANYONE)) for _ in range(10)]
        world.advance(1.0)
        errors = {id(run.end): type(run.end) for run in runs}
        assert (len(errors), set(errors.values()), len(world.asked)) == (10, {Unverified}, 1)

    def test_other_agents_must_sign_only_if_all_must(self) -> None:
        for required in (False, True):
            world = World(trusted_keys=pins(KEYS[0]), require_signed=required)
            world.pages[A] = signed(manifest(OTHER), KEYS[0])
            if required:
                with pytest.raises(Unverified, match="no key is known for this agent"):
                    find(world)
            else:
                assert find(world) == OTHER

    def test_invalid_keys_are_refused_at_once(self) -> None:
        with pytest.raises(ValueError, match="expected an Ed25519 public key"):
            World(trusted_keys={URN: "x"})
        with pytest.raises(ValueError, match="expected verify"):
            World(require_signed=True, verify=None)

    def test_a_registry_names_keys(self) -> None:
        world = World(registries=[R])
        world.pages |= {R: registry(A, public_key=str(KEYS[0])), A: signed(manifest(), KEYS[0])}
        assert is_found(resolve(world))
        for key, words in ((KEYS[0], ""), (KEYS[1], "isn't a trusted key of this agent"), (None, "no usable key")):
            world.discovery.reset()
            world.pages[R] = registry(A, public_key="none at all" if key is None else str(key))
            assert words in reasons(resolve(world))[-1]

    @pytest.mark.parametrize("key", ["none at all", [], 7, ["x"]])
    def test_no_candidate_is_accepted_if_the_keys_are_unreadable(self, key: Any) -> None:
        world = World(registries=[R, "https://r.example/2"])
        world.pages |= {
            R: registry(A, public_key=key),
            "https://r.example/2": registry("https://b.example/m"),
            **dict.fromkeys((A, "https://b.example/m"), manifest()),
        }
        assert str(reasons(resolve(world))).count("the registry names no usable key") == 2

    def test_pinned_keys_take_precedence_over_keys_of_a_registry(self) -> None:
        world = World(registries=[R], trusted_keys=pins(KEYS[0]))
        world.pages |= {R: registry(A, public_key=str(KEYS[1])), A: signed(manifest(), KEYS[1])}
        assert "isn't a trusted key" in reasons(resolve(world))[-1]

    def test_a_manifest_that_a_search_refuses_is_returned_by_no_lookup(self) -> None:
        world = World(registries=[R])
        world.pages |= {R: registry(A, public_key=str(KEYS[0])), A: manifest(), "https://b.example/m": manifest()}
        assert find(world) == URN
        assert world.discovery.cached(A) is not None
        assert "it isn't signed" in reasons(resolve(world))[-1]
        assert world.discovery.cached(A) is None
        for program in (world.discovery.find(A, ANYONE), world.discovery.look_up("https://b.example/m", ANYONE)):
            with pytest.raises(Unverified, match="it isn't signed"):
                world.run(program)
        assert world.asked.count(A) == 1
        world.discovery.forget(A)
        world.pages[A] = signed(manifest(), KEYS[0])
        assert is_found(resolve(world))

    def test_a_cached_manifest_is_verified_by_keys_that_were_named_since(self) -> None:
        for page, found in (
            (signed(manifest(), KEYS[0]), True),
            (signed(manifest(), KEYS[1]), False),
            ({**signed(manifest(), KEYS[0]), "signature": {}}, False),
        ):
            world = World(registries=[R])
            world.pages |= {R: registry(A, public_key=str(KEYS[0])), A: page}
            assert find(world) == URN
            assert is_found(resolve(world)) == found
            cached = world.discovery.cached(A)
            assert (cached is not None) == found
            if cached is not None:
                assert world.discovery.origin(cached) == "https://a.example:443"
            assert world.asked == [A, R]

    @pytest.mark.parametrize("failing", [503, manifest(), signed(manifest(), KEYS[1]), manifest(OTHER)], ids=range(4))
    @pytest.mark.parametrize("offered", ["by a registry", "with another key", "by a neighbour"])
    def test_keys_apply_to_every_later_candidate(self, failing: Any, offered: str) -> None:
        world = World(registries=[R, "https://r.example/2"])
        world.pages |= {
            R: registry(A, public_key=str(KEYS[0])),
            A: failing,
            "https://b.example/m": signed(manifest(), KEYS[1]) if offered == "with another key" else manifest(),
            "https://127.0.0.1/m": manifest(),
        }
        if offered != "by a neighbour":
            other = {"public_key": str(KEYS[1])} if offered == "with another key" else {}
            world.pages["https://r.example/2"] = registry("https://b.example/m", **other)
        neighbour = announcement(None, "https://127.0.0.1/m")
        world.announce(neighbour)
        end = resolve(world, 2.0)
        assert isinstance(end, Unresolved)
        assert any("isn't signed" in why or "isn't a trusted key" in why for why in reasons(end))
        # One that its key signed is found wherever it is.
        world.discovery.reset()
        world.pages["https://127.0.0.1/m"] = world.pages["https://b.example/m"] = signed(manifest(), KEYS[0])
        world.announce(neighbour)
        assert is_found(resolve(world, 2.0))

    def test_keys_apply_although_the_search_is_forgotten_meanwhile(self) -> None:
        world = World(registries=[R])
        world.pages |= {R: registry(A, public_key=str(KEYS[0])), A: 503, "https://127.0.0.1/m": manifest()}
        world.announce(announcement(None, "https://127.0.0.1/m"))
        run = world.start(world.discovery.resolve(WANTED, wait=2.0))
        while run.effect is not None:
            world.turn()
            world.discovery.reset()
        assert any("isn't signed" in why for why in reasons(run.result()))

    def test_keys_apply_although_a_registry_lists_another_agent_at_the_url(self) -> None:
        world = World(registries=[R, "https://r.example/2"])
        slow = {R: registry(A, public_key=str(KEYS[0])), "https://r.example/2": registry(A, urn=OTHER), A: manifest()}
        world.pages |= {url: After(1.0, Answer(body=json.dumps(page).encode())) for url, page in slow.items()}
        other = world.start(world.discovery.resolve(Wanted(urn=OTHER), wait=0))
        world.advance(0.5)
        run = world.start(world.discovery.resolve(WANTED, wait=0))
        world.advance(10.0)
        assert [isinstance(each.result(), Unresolved) for each in (other, run)] == [True, True]
        assert any("it isn't signed" in why for why in reasons(run.result()))
        assert world.discovery.cached(A) is None

    def test_keys_apply_while_the_registry_that_named_them_is_unavailable(self) -> None:
        world = World(registries=[R, "https://r.example/2"])
        world.pages |= {
            R: registry(A, public_key=str(KEYS[0])),
            A: signed(manifest(), KEYS[0]),
            "https://r.example/2": registry("https://b.example/m"),
            "https://b.example/m": manifest(),
        }
        assert is_found(resolve(world))
        world.pages[R] = world.pages[A] = 404
        world.advance(400)
        assert any("it isn't signed" in why for why in reasons(resolve(world)))
        # It's back, and doesn't list the agent any more.
        world.pages[R] = registry()
        world.advance(400)
        assert is_found(resolve(world))

    def test_a_revalidated_manifest_is_verified_again(self) -> None:
        """By a 304, under keys that were named since it was cached."""
        world = World(registries=[R])
        headers = (("etag", '"e"'), ("cache-control", "max-age=1"))
        for key, found in ((KEYS[0], True), (KEYS[1], False), (KEYS[0], True)):
            body = json.dumps(registry(A, public_key=str(key))).encode()
            world.pages[R] = Answer(headers=headers[1:], body=body)
            page = json.dumps(signed(manifest(), KEYS[0])).encode()
            world.pages.setdefault(A, Answer(headers=headers, body=page))
            assert is_found(resolve(world)) == found
            world.pages[A] = 304
            world.advance(2)


# --- revocations -----------------------------------------------------------------------------------------------------


class TestRevoked:
    LIST = "https://revoked.example/list.json"

    def registered(self, **options: Any) -> World:
        world = World(registries=[R], revocations=self.LIST, **options)
        world.pages |= {R: registry(A), A: manifest(), self.LIST: revocations()}
        return world

    def test_the_list_is_read_first(self) -> None:
        world = self.registered()
        world.pages[self.LIST] = revocations(URN)
        assert reasons(resolve(world)) == ["https://revoked.example:443/list.json: revoked: key stolen"]
        assert world.asked == [self.LIST]

    def test_the_list_is_fetched_once_for_all_searches(self) -> None:
        world = self.registered()
        world.pages[self.LIST] = After(1.0, Answer(body=json.dumps(revocations(OTHER)).encode()))
        runs = [world.start(world.discovery.resolve(WANTED, wait=0)) for _ in range(10)]
        world.advance(1.0)
        assert all(is_found(run.result()) for run in runs)
        assert world.asked == [self.LIST, R, A]

    @pytest.mark.parametrize(
        "bad", [404, 500, {}, [], {"version": "1.0", "revoked": [{}]}, {"version": "1.0", "revoked": None}], ids=str
    )
    def test_no_agent_is_found_if_the_list_is_unusable(self, bad: Any) -> None:
        world = self.registered()
        world.pages[self.LIST] = bad
        for _ in range(2):
            assert verdicts(resolve(world, 3.0)) == ["failed"]
        assert world.asked == [self.LIST]

    def test_a_list_is_used_for_a_day_while_its_server_is_down(self) -> None:
        world = self.registered()
        assert is_found(resolve(world))
        for page, hours, words in (
            (503, 1, "the agent wanted"),
            ({"revoked": "everybody"}, 1, "not a valid revocation list"),
            (503, 25, "HTTP 503"),
        ):
            world.pages[self.LIST] = page
            world.advance(hours * 3_600)
            assert words in reasons(resolve(world))[-1]

    def test_the_list_may_be_a_file(self) -> None:
        world = World(registries=[R], revocations="/revoked.json")
        world.pages |= {R: registry(A), A: manifest()}
        assert reasons(resolve(world)) == ["/revoked.json: No such file or directory"]
        world.files["/revoked.json"] = revocations()
        assert is_found(resolve(world))
        world.files["/revoked.json"] = revocations(URN)
        assert reasons(resolve(world)) == ["/revoked.json: revoked: key stolen"]
