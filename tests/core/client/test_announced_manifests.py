"""Announced agents: what their announcement allows is for following it, and for no other source of the same host."""

import json

import pytest
from attrs import evolve

from asap_core.client import announced_manifests
from asap_core.client.search import Unresolved
from asap_core.client.trust import Wanted
from asap_core.errors import AgentChanged, BadReply, NotAllowed, WrongAgent
from asap_core.mdns.dnssd import Announcement
from tests.core.client.agents import OTHER, URN, World, announcement, manifest, registry
from tests.core.client.scripted import After, Answer

ANYONE = Wanted()
HERE = "http://192.168.1.5:8000"
AT_HERE = announcement(URN, f"{HERE}/m", "192.168.1.5")


@pytest.fixture
def world() -> World:
    world = World(registries=["https://r.example/1"])
    world.networks = ("192.168.1.2/24", "127.0.0.1/8")
    world.pages[f"{HERE}/m"] = manifest(endpoints={"asap": f"{HERE}/asap"})
    return world


def follow(world: World, one: Announcement, wanted: Wanted = ANYONE) -> str:
    return world.run(world.discovery.follow(one, wanted)).document.id


def test_an_announced_agent_is_followed() -> None:
    world = World()
    world.pages["https://a.localhost/m"] = manifest()
    found = world.run(world.discovery.follow(announcement(None, "https://a.localhost/m"), ANYONE))
    assert (found.document.id, found.url) == (URN, "https://a.localhost/m")
    with pytest.raises(WrongAgent):
        follow(world, announcement(OTHER, "https://a.localhost/m"), Wanted(urn=OTHER))
    assert (world.asked, world.links_asked) == (["https://a.localhost/m"], ["eth0", "eth0"])


@pytest.mark.parametrize(
    "url", ["http://a.example/m", "http://b.localhost.a.example/m", "http://10.0.0.1/m", "http://"]
)
def test_only_the_announced_host_is_requested(url: str) -> None:
    """An announcement that a caller makes may name another host, or a URL that isn't one."""
    world = World()
    with pytest.raises(NotAllowed, match="it was announced on the local network, and isn't on it"):
        follow(world, evolve(announcement(None, "https://a.localhost/m"), manifest_url=url))
    assert world.asked == []


@pytest.mark.parametrize(
    "url",
    [
        *(f"http://192.168.1.5:{port}{path}" for port in (8000, 9000) for path in ("/admin", "/m")),
        "http://192.168.1.5/m",
        "https://192.168.1.5:8000/m",
        "http://192.168.1.6:8000/m",
    ],
)
def test_a_registry_may_not_name_an_announced_host(world: World, url: str) -> None:
    world.pages[url] = world.pages[f"{HERE}/m"]
    world.pages["https://r.example/1"] = registry(url)
    assert follow(world, AT_HERE) == URN
    assert isinstance(world.run(world.discovery.resolve(Wanted(urn=URN), wait=0)), Unresolved)
    assert world.asked == [f"{HERE}/m", "https://r.example/1"]
    # A caller who follows the announcement may still do so.
    world.discovery.forget(f"{HERE}/m")
    world.announce(AT_HERE)
    assert not isinstance(world.run(world.discovery.resolve(Wanted(urn=URN), wait=2)), Unresolved)


def test_a_caller_may_not_request_an_announced_host_otherwise(world: World) -> None:
    assert follow(world, AT_HERE) == URN
    for program in (
        world.discovery.find(f"{HERE}/m", ANYONE),
        world.discovery.look_up("http://192.168.1.5:9000/m", ANYONE),
        world.discovery.document(f"{HERE}/m"),
        world.discovery.health(HERE),
        world.discovery.keep_fresh(f"{HERE}/m"),
    ):
        with pytest.raises(NotAllowed):
            world.run(program)
    assert world.discovery.cached(f"{HERE}/m") is None
    assert world.asked == [f"{HERE}/m"]


def test_a_manifest_belongs_to_where_its_agent_was_announced(world: World) -> None:
    found = world.run(world.discovery.follow(AT_HERE, ANYONE)).document
    assert (world.discovery.origin(found), world.discovery.announced_at(found)) == (HERE, ("192.168.1.5",))
    own = evolve(found)
    assert (world.discovery.origin(own), world.discovery.announced_at(own)) == (None, ())


def test_each_announcement_is_cached_and_forgotten_by_itself(world: World) -> None:
    url = "http://agent.local:8000/m"
    first, second = (announcement(URN, url, f"192.168.1.{number}") for number in (5, 6))
    world.pages[url] = manifest()
    assert follow(world, first) == URN
    # Another agent announces itself at the same URL: the one that is known there is the first announcement's.
    world.pages[url] = manifest(OTHER)
    assert [follow(world, second), follow(world, first)] == [OTHER, URN]
    assert world.asked == [url, url]
    world.discovery.forget("http://agent.local:8000/other")
    assert follow(world, first) == URN
    world.discovery.forget(url)
    assert follow(world, first) == OTHER
    world.pages[url] = manifest()
    world.advance(400)
    with pytest.raises(AgentChanged, match=r"agent\.local"):
        follow(world, first)
    world.discovery.reset()
    assert follow(world, first) == URN


def test_an_announced_agent_may_change_where_that_is_allowed() -> None:
    world = World(allow_changed_agents=True)
    for urn in (URN, OTHER):
        world.pages["https://a.localhost/m"] = manifest(urn)
        assert follow(world, announcement(None, "https://a.localhost/m")) == urn
        world.advance(301)


@pytest.fixture
def slow(monkeypatch) -> World:
    """A manifest that takes 5 s, while as many others are announced as are remembered."""
    monkeypatch.setattr(announced_manifests, "MAX_REMEMBERED", 2)
    world = World()
    world.pages["https://a.localhost/slow"] = After(5.0, Answer(body=json.dumps(manifest()).encode()))
    return world


def others(world: World) -> None:
    for number in range(3):
        with pytest.raises(BadReply):
            follow(world, announcement(None, f"https://a.localhost/{number}"))


def test_a_manifest_that_is_being_fetched_arrives_although_others_are_announced(slow: World) -> None:
    run = slow.start(slow.discovery.follow(announcement(None, "https://a.localhost/slow"), ANYONE))
    others(slow)
    slow.advance(5.0)
    assert run.result().document.id == URN


def test_an_announcement_that_is_forgotten_meanwhile_is_not_followed_again(slow: World) -> None:
    one = announcement(None, "https://a.localhost/slow")
    leader, other = (slow.start(slow.discovery.follow(one, ANYONE)) for _ in range(2))
    others(slow)
    slow.close(leader)
    slow.advance(0.0)
    with pytest.raises(NotAllowed, match="its announcement was forgotten; follow its announcement again"):
        other.result()
