"""Finding an agent as the core decides: by URN through registries and the local network, and only the right one."""

import gc
import gzip
import json
import os
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from attrs import evolve

from asap_adapters import DiscoveryOptions, HttpOptions
from asap_adapters.auth.signing_key import PrivateKey
from asap_adapters.client.agent_client import AgentClient
from asap_core import (
    AgentChanged,
    BadReply,
    Endpoints,
    InvalidDocument,
    NotAllowed,
    NotResolved,
    Unsuitable,
    Unverified,
    WrongAgent,
    to_json,
)
from asap_core.client import discovery
from asap_core.client.resolution import LOCAL_NETWORK, Resolved, Unresolved
from asap_core.errors import Advice, AsapError, MdnsUnavailable
from asap_core.mdns.dnssd import Added, Announcement, Removed, Updated
from asap_core.wire.signing import sign
from tests.clients import make_client

pytestmark = pytest.mark.anyio

URN = "urn:asap:agent:echo-agent"
MANIFEST = "/.well-known/asap/manifest.json"


def registry(*urls: str, urn: str = URN) -> dict[str, Any]:
    entry = {"id": urn, "name": "E", "description": "", "asap_version": "0.1", "skills": ["echo"]}
    agents = [{**entry, "endpoints": {"manifest": url}} for url in urls]
    return {"version": "1", "updated_at": "2026-01-01T00:00:00Z", "agents": agents}


@pytest.fixture
def world(manifest):
    """What is at each URL: a document, a status, or seconds to wait before 504."""
    return {"https://a.example/m": to_json(manifest())}


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def client_in(world, asked):
    async def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        found = world.get(str(request.url), 404)
        if isinstance(found, float):
            await anyio.sleep(found)
            return httpx.Response(504)
        return httpx.Response(found) if isinstance(found, int) else httpx.Response(200, json=found)

    def make(**options) -> AgentClient:
        return make_client(transport=httpx.MockTransport(answer), **options)

    return make


def announcement(urn: str | None, url: str) -> Announcement:
    host = url.split("/")[2]
    return Announcement(
        instance=url,
        agent_id=urn,
        version="",
        skills=None,
        manifest_url=url,
        host=host,
        port=443,
        addresses=("127.0.0.1",),
    )


class Coming:
    """These events, a second apart, and then nothing for ever."""

    def __init__(self, events) -> None:
        self._events = list(events)

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self._events:
            await anyio.sleep_forever()
        await anyio.sleep(1)
        return self._events.pop(0)


def on_link(client: AgentClient, *events) -> None:
    """Let the client see these on its local network, a second apart; an exception is one that browsing raises."""

    @asynccontextmanager
    async def browse(*, interfaces=None) -> AsyncIterator[Any]:
        del interfaces
        if events and isinstance(events[0], Exception):
            raise events[0]

        yield Coming(events)

    client._driver.browse = browse


@pytest.mark.parametrize(
    ("headers", "fetched"),
    [
        ({"Expires": "Sat, 06 Nov 2094 08:49:37 GMT"}, 1),
        ({"Expires": "Saturday, 06-Nov-94 08:49:37 GMT"}, 2),  # 1994
        ({"Expires": "Sat Nov  6 08:49:37 2094"}, 1),
        *(
            ({"Expires": f"Sat, 06 Nov {end}"}, 2)
            for end in ("2094 08:49:37 UTC", "2094 08:49:37 PST", "94 08:49:37 GMT")
        ),
        ({"Expires": "Sat 06 Nov 2094 08:49:37 GMT"}, 2),
        ({"Expires": "Sat, 06 Nov 2094 08:49:37 GMT or later"}, 2),
        ({"Cache-Control": "max-age=60"}, 1),
        ({"Cache-Control": "max-age =60"}, 2),
        ({"Cache-Control": "max-age= 60"}, 2),
    ],
)
async def test_a_lifetime_that_is_malformed_is_over(manifest, headers, fetched) -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json=to_json(manifest()), headers=headers)

    async with AgentClient(
        sender="urn:asap:agent:me", http=HttpOptions(transport=httpx.MockTransport(answer))
    ) as client:
        for _ in range(2):
            assert (await client.get_manifest("https://a.example/m")).id == URN
    assert len(asked) == fetched


class TestByUrn:
    async def test_registries_are_asked_in_order_and_all_of_it_is_told(self, world, client_in, asked, tmp_path) -> None:
        file = tmp_path / "registry.json"
        file.write_text(json.dumps(registry("https://b.example/m")))
        world["https://r.example/1"] = registry("https://a.example/m")
        world["https://b.example/m"] = {**world["https://a.example/m"], "id": "urn:asap:agent:other"}
        locations = [
            "https://gone.example/r",
            tmp_path / "none.json",
            file,
            "https://r.example/1",
            "https://r.example/2",
        ]
        async with client_in(registries=locations) as client:
            end = await client.explain(URN)
            assert (await client.resolve(URN)).id == URN
        assert isinstance(end, Resolved)
        assert (end.source, end.url) == ("https://r.example/1", "https://a.example/m")
        assert [one.verdict.value for one in end.trace] == ["failed", "failed", "taken", "refused", "taken", "taken"]
        assert "No such file" in str(end.trace[1])
        # What failed a moment ago, and what is good, isn't asked for again.
        assert asked == ["https://gone.example/r", "https://b.example/m", "https://r.example/1", "https://a.example/m"]

    async def test_then_the_local_network(self, world, client_in) -> None:
        world["https://a.localhost/m"] = world["https://a.example/m"]
        other = {**world["https://a.localhost/m"], "id": "urn:asap:agent:other"}
        world |= {"https://b.localhost/m": other, "https://c.localhost/m": other}
        a, b = announcement(URN, "https://a.localhost/m"), announcement(URN, "https://b.localhost/m")
        unnamed, elsewhere = (
            announcement(None, "https://c.localhost/m"),
            announcement("urn:asap:agent:x", "https://x.localhost/m"),
        )
        async with client_in(registries=["https://r.example/1"]) as client:
            on_link(client, Added(elsewhere), Removed(a), Added(unnamed), Added(b), Updated(a))
            began = anyio.current_time()
            end = await client.explain(URN, wait=30)
            assert anyio.current_time() - began == pytest.approx(5, abs=0.1)
        assert isinstance(end, Resolved)
        assert (end.source, [one.verdict.value for one in end.trace]) == (
            LOCAL_NETWORK, ["failed", "refused", "refused", "taken"],
        )  # fmt: skip

    async def test_which_is_listened_to_no_longer_than_wanted(self, world, client_in) -> None:
        world["https://a.localhost/m"] = 60.0
        async with client_in() as client:
            on_link(client)
            end = await client.explain(URN, wait=3)
            assert [str(one) for one in end.trace] == ["the local network: not announced within 3 s"]
            on_link(client, Added(announcement(URN, "https://a.localhost/m")))
            began = anyio.current_time()
            end = await client.explain(URN, wait=3)
            assert anyio.current_time() - began == pytest.approx(3, abs=0.1)
        assert [str(one) for one in end.trace] == [
            "https://a.localhost:443/m: no answer from https://a.localhost:443/m: no manifest within 3 s",
            "the local network: nobody else is announced within 3 s",
        ]

    async def test_or_not_at_all(self, client_in) -> None:
        async with client_in() as client:
            on_link(client, MdnsUnavailable("no multicast in here"))
            assert str(await client.explain(URN)).count("no multicast in here") == 1
            with pytest.raises(NotResolved, match=f"{URN} isn't found: no registry is configured, and the local"):
                await client.resolve(URN, wait=0)
            with pytest.raises(NotResolved, match="the local network: no multicast in here"):
                await client.resolve(URN)

    async def test_what_is_required_is_had(self, world, client_in) -> None:
        world["https://r.example/1"] = registry("https://a.example/m")
        async with client_in(registries=["https://r.example/1"]) as client:
            assert (await client.resolve(URN, wait=0, require_skill="echo", require_version="0.1")).id == URN
            with pytest.raises(NotResolved, match="the skill fly"):
                await client.resolve(URN, wait=0, require_skill="fly")
            with pytest.raises(NotResolved, match=r"ASAP 9.1 or later"):
                await client.resolve(URN, wait=0, require_version="9.1")
            with pytest.raises(ValueError, match="expected"):
                await client.resolve("echo", wait=0)

    async def test_a_caller_who_leaves_leaves_nothing(self, world, client_in) -> None:
        """Cancelled at every step in turn."""
        world["https://r.example/1"] = registry("https://b.example/m", "https://a.example/m")
        for steps in range(60):
            async with client_in(registries=["https://r.example/1"]) as client:
                on_link(client, Added(announcement(URN, "https://a.example/m")))
                ends: list[Any] = []
                async with anyio.create_task_group() as group:

                    async def look(client=client, ends=ends) -> None:
                        ends.append(await client.explain(URN, wait=5))

                    group.start_soon(look)
                    for _ in range(steps):
                        await anyio.lowlevel.checkpoint()
                    group.cancel_scope.cancel()
                assert (
                    client._client._discovery._manifests.waiting == client._client._discovery._registries.waiting == 0
                )
                # And what was begun can be begun again.
                assert isinstance(await client.explain(URN, wait=5), Resolved | Unresolved)


class TestTheRightAgent:
    async def test_is_the_one_expected_and_what_is_required(self, world, client_in) -> None:
        world[f"https://a.example{MANIFEST}"] = world["https://a.example/m"]
        async with client_in() as client:
            assert (await client.discover("https://a.example", expect=URN, require_skill="echo")).id == URN
            with pytest.raises(WrongAgent, match="not urn:asap:agent:other"):
                await client.discover("https://a.example", expect="urn:asap:agent:other")
            with pytest.raises(Unsuitable, match="doesn't have the skill fly"):
                await client.discover("https://a.example", require_skill="fly")
            with pytest.raises(Unsuitable, match="doesn't have ASAP 9 or later"):
                await client.look_up("https://a.example", require_version="9")

    async def test_stays_the_same_at_its_url(self, world, client_in, caplog) -> None:
        url = f"https://a.example{MANIFEST}"
        world[url] = world["https://a.example/m"]
        async with client_in() as client:
            await client.discover("https://a.example")
            world[url] = {**world[url], "id": "urn:asap:agent:other"}
            assert (await client.discover("https://a.example")).id == URN, "which is fresh"
            for pause in (301, 0, 40):
                await anyio.sleep(pause)
                with pytest.raises(AgentChanged) as caught:
                    await client.discover("https://a.example")
                assert (caught.value.expected, caught.value.found) == (URN, "urn:asap:agent:other")
            assert client.cached("https://a.example") is None
            assert "is urn:asap:agent:other now, and was urn:asap:agent:echo-agent" in caplog.text
            client.forget("https://a.example")
            assert (await client.discover("https://a.example")).id == "urn:asap:agent:other"

    async def test_forget_during_fetch_allows_another_agent(self, manifest) -> None:
        who = ["urn:asap:agent:a", "urn:asap:agent:b"]

        async def slow(_request: httpx.Request) -> httpx.Response:
            name = who.pop(0)
            await anyio.sleep(1)
            return httpx.Response(200, json=to_json(manifest(id=name)))

        async with AgentClient(
            sender="urn:asap:agent:me", http=HttpOptions(transport=httpx.MockTransport(slow))
        ) as client:
            async with anyio.create_task_group() as group:
                group.start_soon(client.discover, "https://a.example")
                await anyio.sleep(0.5)
                client.forget("https://a.example")
            assert (await client.discover("https://a.example")).id == "urn:asap:agent:b"

    async def test_lookup_after_forget_starts_a_new_fetch(self, world, client_in, manifest) -> None:
        who = ["urn:asap:agent:a", "urn:asap:agent:b"]
        found: list[str] = []

        async def slow(_request: httpx.Request) -> httpx.Response:
            name = who.pop(0)
            await anyio.sleep(1)
            return httpx.Response(200, json=to_json(manifest(id=name)))

        async def ask(client: AgentClient) -> None:
            found.append((await client.discover("https://a.example")).id)

        async with AgentClient(
            sender="urn:asap:agent:me", http=HttpOptions(transport=httpx.MockTransport(slow))
        ) as client:
            async with anyio.create_task_group() as group:
                group.start_soon(ask, client)
                await anyio.sleep(0.5)
                client.forget("https://a.example")
                group.start_soon(ask, client)
            assert found == ["urn:asap:agent:a", "urn:asap:agent:b"]
            assert client.cached("https://a.example").id == "urn:asap:agent:b"  # type: ignore[union-attr]
            assert client._client._discovery._manifests._cache._purposes == {}

    async def test_one_url_is_one_however_it_is_spelled(self, world, client_in, asked) -> None:
        url = f"https://a.example{MANIFEST}"
        world[url] = world["https://a.example/m"]
        async with client_in() as client:
            for spelled in ("https://a.example", "https://A.Example:443/", "HTTPS://a.EXAMPLE"):
                await client.discover(spelled)
                assert client.cached(spelled) is not None
            assert asked == [url]
            world[url] = {**world[url], "id": "urn:asap:agent:other"}
            await anyio.sleep(301)
            with pytest.raises(AgentChanged):
                await client.discover("https://A.example")
            client.forget("https://A.EXAMPLE:443")
            await client.discover("https://a.example")
            await client.get_manifest("https://a.example/m#x")
            before = len(asked)
            client.forget("https://a.example/m#x")
            await client.get_manifest("https://a.example/m")
            assert len(asked) == before + 1

    async def test_or_changes_where_that_is_allowed(self, world, client_in) -> None:
        url = f"https://a.example{MANIFEST}"
        world[url] = world["https://a.example/m"]
        async with client_in(allow_changed_agents=True) as client:
            await client.discover("https://a.example")
            world[url] = {**world[url], "id": "urn:asap:agent:other"}
            await anyio.sleep(301)
            assert (await client.discover("https://a.example")).id == "urn:asap:agent:other"


async def test_however_many_are_found_none_becomes_the_callers_own(world, client_in) -> None:
    """A manifest may name an endpoint where it came from and nowhere else; one that the caller made, anywhere."""
    elsewhere = {**world["https://a.example/m"], "endpoints": {"asap": "https://b.example/asap"}}
    world |= {f"https://a.example/{number}": elsewhere for number in range(1_100)}
    async with client_in() as client:
        found = [await client.get_manifest(f"https://a.example/{number}") for number in range(1_100)]
        for manifest in (found[0], found[-1]):
            with pytest.raises(NotAllowed, match=r"came from https://a\.example"):
                await client.send(manifest, "task.request", {"skill_id": "echo", "input": {}})
        client.reset()
        del found, manifest
        gc.collect()
        assert len(client._client._discovery._origins) == 0, "kept only for as long as there are manifests"


class TestForgetting:
    async def test_what_is_forgotten_is_asked_for_again(self, world, client_in, asked) -> None:
        world[f"https://a.example{MANIFEST}"] = world["https://a.example/m"]
        world["https://r.example/1?x=1"] = registry()
        async with client_in() as client:
            for _ in range(2):
                await client.discover("https://a.example")
                await client.get_manifest("https://a.example/m")
                await client.registry("https://r.example/1?x=1")
            assert len(asked) == 3
            for url in ("https://a.example", "https://a.example/m", "https://r.example/1?x=1"):
                client.forget(url)
                await client.discover("https://a.example")
                await client.get_manifest("https://a.example/m")
                await client.registry("https://r.example/1?x=1")
            assert len(asked) == 6
            client.reset()
            assert client.cached("https://a.example") is None
            await client.registry("https://r.example/1?x=1")
            assert len(asked) == 7

    async def test_what_is_under_way_answers_and_is_not_kept(self, world, manifest, asked) -> None:
        body = json.dumps(to_json(manifest())).encode()

        async def slow(request: httpx.Request) -> httpx.Response:
            asked.append(str(request.url))
            await anyio.sleep(1)
            return httpx.Response(200, content=body)

        async with AgentClient(
            sender="urn:asap:agent:me", http=HttpOptions(transport=httpx.MockTransport(slow))
        ) as client:
            async with anyio.create_task_group() as group:
                group.start_soon(client.discover, "https://a.example")
                await anyio.sleep(0.5)
                client.reset()
            assert client.cached("https://a.example") is None


async def test_an_announced_agent_is_followed(world, client_in) -> None:
    world["https://a.localhost/m"] = world["https://a.example/m"]
    async with client_in() as client:
        assert (await client.follow(announcement(None, "https://a.localhost/m"))).id == URN
        with pytest.raises(WrongAgent):
            await client.follow(announcement("urn:asap:agent:other", "https://a.localhost/m"))


@pytest.mark.parametrize(
    "url", ["http://a.example/m", "http://b.localhost.a.example/m", "http://10.0.0.1/m", "http://"]
)
async def test_only_the_host_that_was_announced_is(client_in, asked, url) -> None:
    """One that's made by hand may name a host and a URL that isn't there."""
    made = evolve(announcement(None, "https://a.localhost/m"), manifest_url=url)
    async with client_in() as client:
        with pytest.raises(NotAllowed, match="it was announced on the local network, and isn't on it"):
            await client.follow(made)
    assert asked == []


@pytest.mark.parametrize("port", [8000, 9000])
async def test_what_the_caller_named_is_open_to_no_registry(world, client_in, manifest, asked, port) -> None:
    world[f"http://localhost:8000{MANIFEST}"] = to_json(manifest())
    world["https://r.example/1"] = registry(f"http://localhost:{port}/admin")
    async with client_in(registries=["https://r.example/1"]) as client:
        assert (await client.discover("http://localhost:8000")).id == URN
        end = await client.explain(URN, wait=0)
        assert isinstance(end, Unresolved)
        assert "a more distant network may not name it" in str(end.trace[-1])
        assert (await client.discover("http://localhost:8000")).id == URN
    assert not any("admin" in url for url in asked)


class TestAnnounced:
    """What an announcement allows is for following it, and for nobody who names the same host."""

    HERE = "http://192.168.1.5:8000"

    @pytest.fixture
    def neighbour(self, world, manifest, monkeypatch) -> Announcement:
        monkeypatch.setattr("asap_adapters.net.interfaces.link_networks", lambda _link: ("192.168.1.2/24",))
        world[f"{self.HERE}/m"] = to_json(manifest(endpoints=Endpoints(asap=f"{self.HERE}/asap")))
        return evolve(announcement(URN, f"{self.HERE}/m"), host="192.168.1.5", addresses=("192.168.1.5",))

    @pytest.mark.parametrize(
        "url",
        [
            *(f"http://192.168.1.5:{port}{path}" for port in (8000, 9000) for path in ("/admin", "/m")),
            "http://192.168.1.5/m",
            "https://192.168.1.5:8000/m",
            "http://192.168.1.6:8000/m",
        ],
    )
    async def test_a_registry_may_not_name_its_host(self, world, client_in, neighbour, asked, url) -> None:
        world[url] = world[f"{self.HERE}/m"]
        world["https://r.example/1"] = registry(url)
        async with client_in(registries=["https://r.example/1"]) as client:
            assert (await client.follow(neighbour)).id == URN
            end = await client.explain(URN, wait=0)
            assert isinstance(end, Unresolved)
            assert asked == [f"{self.HERE}/m", "https://r.example/1"]
            # Which takes nothing away from who follows it.
            client.forget(f"{self.HERE}/m")
            on_link(client, Added(neighbour))
            assert (await client.resolve(URN, wait=2)).id == URN

    async def test_a_thousand_others_announced_meanwhile_take_nothing_away(self, manifest) -> None:
        async def answer(request: httpx.Request) -> httpx.Response:
            if request.url.path != "/slow":
                return httpx.Response(404)
            await anyio.sleep(5)
            return httpx.Response(200, json=to_json(manifest()))

        transport = httpx.MockTransport(answer)
        async with AgentClient(sender="urn:asap:agent:me", http=HttpOptions(transport=transport)) as client:

            async def others() -> None:
                for number in range(1000):
                    with pytest.raises(AsapError):
                        await client.follow(announcement(None, f"https://a.localhost/{number}"))

            async with anyio.create_task_group() as group:
                group.start_soon(others)
                assert (await client.follow(announcement(None, "https://a.localhost/slow"))).id == URN

    async def test_nor_does_the_caller_without_allowing_it(self, world, client_in, neighbour, asked) -> None:
        world[f"{self.HERE}{MANIFEST}"] = world[f"{self.HERE}/m"]
        async with client_in() as client:
            assert (await client.follow(neighbour)).id == URN
            for base in (self.HERE, "http://192.168.1.5:9000"):
                for ask in (client.discover, client.health_check, client.get_document, client.get_manifest):
                    with pytest.raises(NotAllowed):
                        await ask(base)
                with pytest.raises(NotAllowed):
                    await client.send(base, "task.query", {})
            with pytest.raises(NotAllowed):
                await client.get_manifest(f"{self.HERE}/m")
            assert client.cached(self.HERE) is None
            assert asked == [f"{self.HERE}/m"]

    async def test_envelopes_go_to_where_it_was_announced(self, world, client_in, neighbour, manifest, asked) -> None:
        async with client_in(allow_endpoints=["http://192.168.1.5:9000"]) as client:
            found = await client.follow(neighbour)
            with pytest.raises(BadReply):
                await client.send(found, "task.query", {})
            assert asked[-1] == f"{self.HERE}/asap"
            # One that says that they go elsewhere.
            client.reset()
            world[f"{self.HERE}/m"] = to_json(manifest(endpoints=Endpoints(asap="http://192.168.1.5:7000/asap")))
            with pytest.raises(NotAllowed):
                await client.send(await client.follow(neighbour), "task.query", {})
            # A copy of the manifest is the caller's own, and was announced nowhere.
            with pytest.raises(NotAllowed):
                await client.send(evolve(found), "task.query", {})

    async def test_each_is_kept_and_forgotten_by_itself(self, world, client_in, neighbour, manifest, asked) -> None:
        other = evolve(neighbour, addresses=("192.168.1.5", "192.168.1.6"), host="agent.local")
        url = "http://agent.local:8000/m"
        first, second = (evolve(other, manifest_url=url, addresses=(f"192.168.1.{n}",)) for n in (5, 6))
        world[url] = world[f"{self.HERE}/m"]
        async with client_in() as client:
            assert (await client.follow(first)).id == URN
            # Another one announces itself at the same URL: no matter for whom the first is known.
            world[url] = to_json(manifest(id="urn:asap:agent:b"))
            assert (await client.follow(second, expect="urn:asap:agent:b")).id == "urn:asap:agent:b"
            assert (await client.follow(first)).id == URN
            assert asked == [url, url]
            client.forget(url)
            assert (await client.follow(first, expect="urn:asap:agent:b")).id == "urn:asap:agent:b"
            world[url] = world[f"{self.HERE}/m"]
            await anyio.sleep(400)
            with pytest.raises(AgentChanged, match=r"agent\.local"):
                await client.follow(first)


# Forty pieces.
LARGE = 4_000


def large() -> bytes:
    return json.dumps(registry(*["https://a.example/m"] * LARGE)).encode()


@pytest.mark.parametrize("source", ["file", "plain", "gzip", "copy"])
async def test_a_large_registry_holds_nobody_up(source, tmp_path) -> None:
    """However large, other tasks take their turns while it's read, and however small it is when packed."""
    data, turns = large(), 0
    location: Any = "https://r.example/1"
    if source == "file":
        location = tmp_path / "registry.json"
        location.write_bytes(data)
    packed = gzip.compress(data) if source == "gzip" else data
    headers = {"content-encoding": "gzip"} if source == "gzip" else {}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=headers, stream=Once(packed)))
    options: Any = {"registry_cache": tmp_path} if source == "copy" else {}
    if source == "copy":
        async with make_client(transport=transport, **options) as client:
            await client.registry(location)
        transport = httpx.MockTransport(lambda _: httpx.Response(503))
    client = make_client(transport=transport, **options)
    async with client, anyio.create_task_group() as group:

        async def turn() -> None:
            nonlocal turns
            while True:
                await anyio.lowlevel.checkpoint()
                turns += 1

        group.start_soon(turn)
        assert len((await client.registry(location)).agents) == LARGE
        group.cancel_scope.cancel()
    assert turns > len(data) / 20_000


async def test_one_who_leaves_in_the_middle_spoils_it_for_nobody() -> None:
    """Cancelled at any step of a long reading, the leader leaves no half-read registry to those who wait."""
    data = large()[:-2] + b', {"id": "broken"}]}'
    transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=Once(data)))
    for steps in (*range(20), *range(20, 64, 4)):
        async with AgentClient(sender="urn:asap:agent:me", http=HttpOptions(transport=transport)) as client:
            found: list[Any] = []
            leader = anyio.CancelScope()

            async def leading(client=client, leader=leader) -> None:
                with leader:
                    await client.registry("https://r.example/1")

            async def waiting(client=client, found=found) -> None:
                found.append(await client.registry("https://r.example/1"))

            async with anyio.create_task_group() as group:
                group.start_soon(leading)
                group.start_soon(waiting)
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                leader.cancel()
        assert [(len(catalog), len(catalog.skipped)) for catalog in found] == [(LARGE, 1)]


class Once(httpx.AsyncByteStream):
    """A body in one piece, as a fast network brings it."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._body


async def test_what_is_wrong_in_the_middle_ends_it(client_in, asked) -> None:
    data = large()
    middle = data.index(b"}, {", len(data) // 2)
    data = data[:middle] + b"},, {" + data[middle:]
    transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=Once(data)))
    async with AgentClient(sender="urn:asap:agent:me", http=HttpOptions(transport=transport)) as client:
        for _ in range(2):
            with pytest.raises(InvalidDocument, match="one JSON text"):
                await client.registry("https://r.example/1")


class TestFailures:
    async def test_one_remembered_holds_nothing_of_what_was_read(self) -> None:
        """A failure is some hundred bytes, whatever the answer was."""
        body = b'{"id": "' + b"x" * 900_000 + b'"}'
        transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=Once(body)))
        async with AgentClient(sender="urn:asap:agent:me", http=HttpOptions(transport=transport)) as client:

            async def fail(number: int) -> None:
                with pytest.raises(InvalidDocument):
                    await client.get_manifest(f"https://a.example/{number}")

            await fail(0)
            gc.collect()
            tracemalloc.start()
            for number in range(1, 21):
                await fail(number)
            gc.collect()
            held = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
        assert held < 1_000_000

    async def test_a_refusal_for_who_named_a_url_is_not_the_callers(self, manifest) -> None:
        documents = {
            "/r.json": registry("https://corp.example/m"),
            "/m": to_json(manifest()),
        }
        addresses = {"reg.example": "93.184.216.34", "corp.example": "10.0.0.5"}
        provenance_asked: list[str] = []

        async def answer(request: httpx.Request) -> httpx.Response:
            host = request.url.host
            provenance_asked.append(host)
            if host == "corp.example" and len(provenance_asked) == 2:
                raise NotAllowed(str(request.url), "what names it isn't inside", Advice("allow it"))
            assert host in addresses
            return httpx.Response(200, json=documents[request.url.path])

        client = AgentClient(
            sender="urn:asap:agent:me",
            http=HttpOptions(transport=httpx.MockTransport(answer)),
            discovery=DiscoveryOptions(registries=["https://reg.example/r.json"]),
        )
        async with client:
            assert isinstance(await client.explain(URN, wait=0), Unresolved)
            assert (await client.get_manifest("https://corp.example/m")).id == URN

    async def test_a_callers_timeout_does_not_affect_others(self, manifest) -> None:
        """Who revalidates with a stale one at hand waits a second; who joins that fetch, as long as it takes."""
        seconds = [0.0, 3.0, 3.0]
        headers = {"cache-control": "max-age=10, stale-while-revalidate=5, stale-if-error=0"}

        async def answer(_request: httpx.Request) -> httpx.Response:
            await anyio.sleep(seconds.pop(0))
            return httpx.Response(200, json=to_json(manifest()), headers=headers)

        told: list[tuple[str, float, str]] = []
        async with AgentClient(
            sender="urn:asap:agent:me", http=HttpOptions(transport=httpx.MockTransport(answer))
        ) as client:
            await client.discover("https://a.example")
            await anyio.sleep(14.5)

            async def ask(name: str) -> None:
                began = anyio.current_time()
                found = await client.look_up("https://a.example")
                told.append((name, round(anyio.current_time() - began, 1), found.source.value))

            async with anyio.create_task_group() as group:
                group.start_soon(ask, "leader")
                await anyio.sleep(0.8)
                group.start_soon(ask, "late")
        assert told == [("leader", 1.0, "stale, its server fails"), ("late", 3.2, "fetched")]


@pytest.mark.parametrize("name", ["pipe", "a\0b"])
async def test_what_is_no_file_is_told_at_once(client_in, tmp_path, name) -> None:
    if name == "pipe":
        os.mkfifo(tmp_path / name)
    async with client_in(registries=[tmp_path / name]) as client:
        with pytest.raises(BadReply, match="expected a file"):
            await client.registry(tmp_path / name)
        assert "expected a file" in str((await client.explain(URN, wait=0)).trace[0])


async def test_one_too_large_is_refused(client_in, tmp_path, monkeypatch) -> None:
    file = tmp_path / "registry.json"
    file.write_text(json.dumps(registry()))
    monkeypatch.setattr(discovery, "MAX_REGISTRY", file.stat().st_size - 1)
    async with client_in() as client:
        with pytest.raises(BadReply, match="expected at most"):
            await client.registry(file)


class TestSigned:
    """A manifest that must be signed is, before it's kept."""

    URL = f"https://a.example{MANIFEST}"

    @pytest.fixture
    def keys(self):
        return [PrivateKey.new() for _ in range(3)]

    @staticmethod
    def pin(*keys: PrivateKey):
        return {URN: [str(key.public_key) for key in keys]}

    @pytest.fixture
    def signed(self, manifest):
        return lambda key, **changes: sign(to_json(manifest(**changes)), key.sign, key.public_key)

    async def test_by_a_pinned_key_it_is_kept_as_it_was_signed(self, world, client_in, keys, signed, asked) -> None:
        world[self.URL] = signed(keys[1])
        del world[self.URL]["manifest"]["supported_versions"]
        async with client_in(trusted_keys=self.pin(*keys[:2])) as client:
            for _ in range(2):
                assert (await client.discover("https://a.example")).supported_versions == ("2.2",)
            assert len(asked) == 1
            assert client.cached("https://a.example").id == URN

    async def test_else_it_is_an_error_and_replaces_nothing(self, world, client_in, keys, signed, caplog) -> None:
        forged = signed(keys[0])
        forged["manifest"]["endpoints"]["asap"] = "https://evil.example/asap"
        forged["signature"]["trust_level"] = "enterprise"
        for wrong, says in (
            (signed(keys[2]), "isn't a trusted key of this agent"),
            (forged, "its signature isn't one of this manifest"),
            (forged["manifest"], "it isn't signed"),
            ({**forged, "signature": {}}, "not a valid signed manifest"),
        ):
            world[self.URL] = signed(keys[0])
            async with client_in(trusted_keys=self.pin(*keys[:2])) as client:
                good = await client.discover("https://a.example")
                world[self.URL] = wrong
                assert await client.discover("https://a.example") is good, "which is fresh"
                await anyio.sleep(301)
                for _ in range(2):
                    with pytest.raises(Unverified, match=says):
                        await client.discover("https://a.example")
                assert says in caplog.text
                # The old one is still there for its server to vouch for, and what comes next is judged anew.
                world[self.URL] = signed(keys[1])
                await anyio.sleep(40)
                assert (await client.discover("https://a.example")).endpoints.asap == good.endpoints.asap

    async def test_all_who_wait_get_the_same_error(self, world, client_in, keys, signed, asked) -> None:
        world[self.URL] = signed(keys[2])
        caught = []
        async with client_in(trusted_keys=self.pin(keys[0])) as client:

            async def ask() -> None:
                with pytest.raises(Unverified) as error:
                    await client.discover("https://a.example")
                caught.append(error.value)

            async with anyio.create_task_group() as group:
                for _ in range(10):
                    group.start_soon(ask)
        assert (len(caught), len(set(map(id, caught))), len(asked)) == (10, 10, 1)

    async def test_others_need_not_unless_all_must(self, world, client_in, keys, signed) -> None:
        world[self.URL] = signed(keys[0], id="urn:asap:agent:other")
        async with client_in(trusted_keys=self.pin(keys[0])) as client:
            assert (await client.discover("https://a.example")).id == "urn:asap:agent:other"
        async with client_in(trusted_keys=self.pin(keys[0]), require_signed=True) as client:
            with pytest.raises(Unverified, match="no key is known for this agent"):
                await client.discover("https://a.example")

    async def test_a_registry_names_keys(self, world, client_in, keys, signed) -> None:
        listed = registry("https://a.example/m")
        world["https://r.example/1"] = listed
        for required in (False, True):
            async with client_in(registries=["https://r.example/1"], require_signed=required) as client:
                listed["agents"][0]["public_key"] = str(keys[0].public_key)
                world["https://a.example/m"] = signed(keys[0])
                assert (await client.resolve(URN, wait=0)).id == URN
                client.reset()
                world["https://a.example/m"] = signed(keys[1])
                with pytest.raises(NotResolved, match="isn't a trusted key of this agent"):
                    await client.resolve(URN, wait=0)
                client.reset()
                listed["agents"][0]["public_key"] = "none at all"
                with pytest.raises(NotResolved, match="the registry names no usable key: expected"):
                    await client.resolve(URN, wait=0)

    async def test_which_count_for_what_is_kept_as_well(self, world, client_in, keys, signed, asked) -> None:
        """Found without a registry and kept unverified, then named by one with a key."""
        world["https://a.example/m"] = signed(keys[1])
        world["https://r.example/1"] = registry("https://a.example/m")
        world["https://r.example/1"]["agents"][0]["public_key"] = [str(key.public_key) for key in keys[:1]]
        async with client_in(registries=["https://r.example/1"]) as client:
            assert (await client.get_manifest("https://a.example/m")).id == URN
            with pytest.raises(NotResolved, match="isn't a trusted key"):
                await client.resolve(URN, wait=0)
            assert asked.count("https://a.example/m") == 1

    @pytest.fixture
    def named(self, world, keys):
        """Registry 1 says that A is at `/m` and which key it has."""
        world["https://r.example/1"] = registry("https://a.example/m")
        world["https://r.example/1"]["agents"][0]["public_key"] = str(keys[0].public_key)
        return ["https://r.example/1", "https://r.example/2"]

    async def test_hold_though_a_registry_lists_another_agent_at_the_url(
        self, world, client_in, named, manifest
    ) -> None:
        other = "urn:asap:agent:b"
        world["https://r.example/2"] = registry("https://a.example/m", urn=other)

        async def slowly(request: httpx.Request) -> httpx.Response:
            await anyio.sleep(1)
            found = world.get(str(request.url))
            return httpx.Response(404) if found is None else httpx.Response(200, json=found)

        ended: list[str] = []

        async def resolve(urn: str, after: float) -> None:
            await anyio.sleep(after)
            with pytest.raises(NotResolved) as caught:
                await client.resolve(urn, wait=0)
            ended.append(str(caught.value))

        transport = httpx.MockTransport(slowly)
        async with AgentClient(
            sender="urn:asap:agent:me",
            http=HttpOptions(transport=transport),
            discovery=DiscoveryOptions(registries=named),
        ) as client:
            async with anyio.create_task_group() as group:
                group.start_soon(resolve, URN, 0.5)
                group.start_soon(resolve, other, 0.0)
            assert any("it isn't signed" in said for said in ended)
            assert client.cached("https://a.example") is None

    @pytest.mark.parametrize("failing", ["down", "unsigned", "another key's", "another agent's"])
    @pytest.mark.parametrize("offered", ["by a registry", "with another key", "by a neighbour", "by a reset registry"])
    async def test_hold_for_every_later_candidate(
        self,
        *,
        world,
        client_in,
        keys,
        signed,
        named,
        manifest,
        failing,
        offered,
    ) -> None:
        world["https://a.example/m"] = {
            "down": 503,
            "unsigned": to_json(manifest()),
            "another key's": signed(keys[1]),
            "another agent's": to_json(manifest(id="urn:asap:agent:b")),
        }[failing]
        world["https://b.example/m"] = signed(keys[1]) if offered == "with another key" else to_json(manifest())
        world["https://127.0.0.1/m"] = to_json(manifest())
        if offered != "by a neighbour":
            world["https://r.example/2"] = registry("https://b.example/m")
        if offered == "with another key":
            world["https://r.example/2"]["agents"][0]["public_key"] = str(keys[1].public_key)
        async with client_in(registries=named) as client:
            on_link(client, Added(announcement(None, "https://127.0.0.1/m")))
            async with anyio.create_task_group() as group:
                if offered == "by a reset registry":
                    # What is dropped while a search goes on is no less named in it.
                    group.start_soon(self.forget, client)
                with pytest.raises(NotResolved, match=r"isn't signed|isn't a trusted key"):
                    await client.resolve(URN, wait=2)
            # One that its key signed is found wherever it is.
            client.reset()
            world["https://127.0.0.1/m"] = world["https://b.example/m"] = signed(keys[0])
            assert (await client.resolve(URN, wait=2)).id == URN

    @staticmethod
    async def forget(client: AgentClient) -> None:
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
            client.reset()
            client.forget("https://a.example/m")

    @pytest.mark.parametrize("key", ["none at all", [], 7, ["x"]])
    async def test_that_cannot_be_read_let_nobody_in(self, world, client_in, named, manifest, key) -> None:
        world["https://r.example/1"]["agents"][0]["public_key"] = key
        world["https://r.example/2"] = registry("https://b.example/m")
        world["https://b.example/m"] = to_json(manifest())
        async with client_in(registries=named) as client:
            with pytest.raises(NotResolved) as caught:
                await client.resolve(URN, wait=0)
        assert str(caught.value).count("the registry names no usable key") == 2

    async def test_hold_while_the_registry_that_named_them_cannot_be_had(
        self, *, world, client_in, keys, signed, named, manifest
    ) -> None:
        world["https://a.example/m"] = signed(keys[0])
        world["https://r.example/2"] = registry("https://b.example/m")
        world["https://b.example/m"] = to_json(manifest())
        async with client_in(registries=named) as client:
            assert (await client.resolve(URN, wait=0)).id == URN
            # The registry and the agent both go.
            world["https://r.example/1"] = world["https://a.example/m"] = 404
            await anyio.sleep(400)
            with pytest.raises(NotResolved, match="it isn't signed"):
                await client.resolve(URN, wait=0)
            # It's back, and doesn't list the agent any more.
            world["https://r.example/1"] = registry()
            await anyio.sleep(400)
            assert (await client.resolve(URN, wait=0)).id == URN

    async def test_what_resolve_refuses_nothing_else_gives_out(
        self, *, world, client_in, keys, signed, named, manifest, asked
    ) -> None:
        url = f"https://a.example{MANIFEST}"
        world["https://r.example/1"]["agents"][0]["endpoints"]["manifest"] = url
        world[url] = world["https://a.example:8443/m"] = to_json(manifest())
        async with client_in(registries=named) as client:
            assert (await client.discover("https://a.example")).id == URN
            assert client.cached("https://a.example") is not None
            with pytest.raises(NotResolved, match="it isn't signed"):
                await client.resolve(URN, wait=0)
            assert client.cached("https://a.example") is None
            for ask in (client.discover, client.look_up):
                with pytest.raises(Unverified, match="it isn't signed"):
                    await ask("https://a.example")
            with pytest.raises(Unverified, match="it isn't signed"):
                await client.get_manifest("https://a.example:8443/m")
            assert asked.count(url) == 1
            client.forget(url)
            world[url] = signed(keys[0])
            assert (await client.resolve(URN, wait=0)).id == URN
            assert client.cached("https://a.example") is not None

    async def test_what_is_revalidated_is_judged_anew(self, keys, signed) -> None:
        """By a 304, under keys that were named since it was kept."""
        listed = registry("https://a.example/m")

        def answer(request: httpx.Request) -> httpx.Response:
            if request.url.host == "r.example":
                return httpx.Response(200, json=listed, headers={"cache-control": "max-age=1"})
            if "if-none-match" in request.headers:
                return httpx.Response(304)
            return httpx.Response(200, json=signed(keys[0]), headers={"etag": '"e"', "cache-control": "max-age=1"})

        transport = httpx.MockTransport(answer)
        async with AgentClient(
            sender="urn:asap:agent:me",
            http=HttpOptions(transport=transport),
            discovery=DiscoveryOptions(registries=["https://r.example/1"]),
        ) as client:
            assert (await client.resolve(URN, wait=0)).id == URN
            listed["agents"][0]["public_key"] = str(keys[1].public_key)
            await anyio.sleep(2)
            with pytest.raises(NotResolved, match="isn't a trusted key"):
                await client.resolve(URN, wait=0)
            listed["agents"][0]["public_key"] = str(keys[0].public_key)
            await anyio.sleep(2)
            assert (await client.resolve(URN, wait=0)).id == URN

    async def test_pins_come_before_what_a_registry_names(self, world, client_in, keys, signed) -> None:
        world["https://a.example/m"] = signed(keys[1])
        world["https://r.example/1"] = registry("https://a.example/m")
        world["https://r.example/1"]["agents"][0]["public_key"] = str(keys[1].public_key)
        async with client_in(registries=["https://r.example/1"], trusted_keys=self.pin(keys[0])) as client:
            with pytest.raises(NotResolved, match="isn't a trusted key"):
                await client.resolve(URN, wait=0)

    async def test_keys_that_are_none_are_refused_at_once(self, client_in) -> None:
        with pytest.raises(ValueError, match="expected an Ed25519 public key"):
            client_in(trusted_keys={URN: "x"})


class TestRevoked:
    LIST = "https://revoked.example/list.json"

    @staticmethod
    def listing(*urns: str):
        return {"version": "1.0", "revoked": [{"urn": urn, "reason": "key stolen"} for urn in urns]}

    @pytest.fixture
    def registered(self, world):
        world["https://r.example/1"] = registry("https://a.example/m")
        return {"registries": ["https://r.example/1"], "revocations": self.LIST}

    async def test_is_asked_first_and_then_nobody(self, world, client_in, asked, registered) -> None:
        world[self.LIST] = self.listing(URN)
        async with client_in(**registered) as client:
            with pytest.raises(NotResolved, match=r"list\.json: revoked: key stolen"):
                await client.resolve(URN, wait=0)
            assert asked == [self.LIST]

    async def test_others_are_found_and_the_list_is_fetched_once_for_all(
        self, world, client_in, asked, registered
    ) -> None:
        world[self.LIST] = self.listing("urn:asap:agent:other")
        async with client_in(**registered) as client, anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(lambda: client.resolve(URN, wait=0))
        assert asked.count(self.LIST) == 1

    @pytest.mark.parametrize(
        "bad", [404, 500, {}, [], {"version": "1.0", "revoked": [{}]}, {"version": "1.0", "revoked": None}], ids=str
    )
    async def test_what_is_no_list_lets_nobody_through(self, world, client_in, asked, registered, bad) -> None:
        world[self.LIST] = bad
        async with client_in(**registered) as client:
            for _ in range(2):
                end = await client.explain(URN, wait=3)
                assert isinstance(end, Unresolved)
                assert [one.verdict.value for one in end.trace] == ["failed"]
        assert asked == [self.LIST]

    async def test_an_outage_is_bridged_for_its_time_and_nonsense_never(self, world, client_in, registered) -> None:
        world[self.LIST] = self.listing()
        async with client_in(**registered) as client:
            assert (await client.resolve(URN, wait=0)).id == URN
            world[self.LIST] = 503
            await anyio.sleep(3_600)
            assert (await client.resolve(URN, wait=0)).id == URN
            world[self.LIST] = {"revoked": "everybody"}
            await anyio.sleep(3_600)
            with pytest.raises(NotResolved, match="not a valid revocation list"):
                await client.resolve(URN, wait=0)
            world[self.LIST] = 503
            for _ in range(25):
                await anyio.sleep(3_600)
            with pytest.raises(NotResolved, match="HTTP 503"):
                await client.resolve(URN, wait=0)

    async def test_it_may_be_a_file(self, client_in, registered, tmp_path, monkeypatch) -> None:
        file = tmp_path / "revoked.json"
        async with client_in(**{**registered, "revocations": file}) as client:
            with pytest.raises(NotResolved, match=r"revoked\.json: No such file"):
                await client.resolve(URN, wait=0)
            file.write_text(json.dumps(self.listing()))
            assert (await client.resolve(URN, wait=0)).id == URN
            file.write_text(json.dumps(self.listing(URN)))
            with pytest.raises(NotResolved, match="revoked: key stolen"):
                await client.resolve(URN, wait=0)
            monkeypatch.setattr(discovery, "MAX_REVOCATIONS", file.stat().st_size - 1)
            with pytest.raises(NotResolved, match="expected at most"):
                await client.resolve(URN, wait=0)

    async def test_what_is_forgotten_is_asked_for_again(self, world, client_in, asked, registered) -> None:
        world[self.LIST] = self.listing()
        async with client_in(**registered) as client:
            for forget in (lambda: client.forget(self.LIST), client.reset):
                await client.resolve(URN, wait=0)
                forget()
            await client.resolve(URN, wait=0)
        assert asked.count(self.LIST) == 3
