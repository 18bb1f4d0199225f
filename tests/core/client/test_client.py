"""The client's methods, without a loop: what each option and argument does, over agents, files and a provider."""

import gzip
import json
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from asap_core.auth.authorization import ClientCredentials
from asap_core.auth.client_credentials import ClientSecret
from asap_core.client.breaker import BreakerPolicy
from asap_core.client.client import Client
from asap_core.client.delivery import RetryPolicy
from asap_core.client.document_cache import DocumentCachePolicy
from asap_core.client.fetch_results import Source
from asap_core.client.messages import conversation_id_of
from asap_core.client.options import DiscoveryOptions, RequestOptions, TrustPolicy
from asap_core.client.programs import Completed, Fetch, FileIdentity, Program, Unanswered, WriteFile, step
from asap_core.client.search import Resolved, Unresolved
from asap_core.clock import WallTime
from asap_core.errors import (
    AgentChanged,
    BadReply,
    InvalidDocument,
    NotAllowed,
    NotResolved,
    RemoteError,
    TimedOut,
    Unreachable,
    Unsuitable,
    Unverified,
    WrongAgent,
)
from asap_core.net.addresses import Proximity
from asap_core.net.outbound import OutboundPolicy
from asap_core.wire.codec import decode_manifest
from asap_core.wire.envelope import Envelope, utc
from asap_core.wire.manifest import HEALTH_PATH, MANIFEST_PATH
from asap_core.wire.payloads import TaskRequest
from tests.core.client.agents import OTHER, URN, Outside, announcement, manifest, registry, revocations
from tests.core.client.peers import LOST, METADATA, NOT_CONNECTED, answer
from tests.core.client.scripted import HELD, After, Answer, Driver, Reply, Run
from tests.core.client.signatures import KEYS, signed, verify

ME = "urn:asap:agent:me"
BASE = "https://a.example"
ENDPOINT = f"{BASE}/asap"
A, HEALTH = f"{BASE}{MANIFEST_PATH}", f"{BASE}{HEALTH_PATH}"
R = "https://r.example/1"
ISSUER = "https://id.example"
WORK = {"skill_id": "echo", "input": {}}
HEALTHY = {"status": "healthy", "agent_id": URN, "version": "1", "asap_version": "0.1", "uptime_seconds": 1.0}
CREDENTIALS = ClientCredentials(client=ClientSecret("me", "s3cret"), issuer=ISSUER, scopes=("asap",))


class Reverse:
    """A content coding for tests: the bytes in reverse order."""

    def decompress(self, data: bytes, _most: int) -> bytes:
        return data[::-1]


class World(Outside):
    """A bound client, an agent at `BASE` with an endpoint, and a provider at `ISSUER`.

    posts: the requests that the agent was sent.
    agent_does: what the agent does with the next ones. None, or none left: it replies.
    """

    def __init__(self, *, bind: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__()
        self.posts: list[Fetch] = []
        self.agent_does: list[Reply | After | None] = []
        self.pages = {
            A: manifest(),
            HEALTH: HEALTHY,
            ENDPOINT: self.agent,
            f"{ISSUER}/.well-known/openid-configuration": METADATA,
            f"{ISSUER}/token": answer({"access_token": "t1", "token_type": "Bearer", "expires_in": 3600}),
        }
        bound: dict[str, Any] = {"links": self.links, "verify": verify, **(bind or {})}
        self.client = Client(ME, **options).bind(self.runtime, **bound)

    def discover(self, base_url: str = BASE, **wanted: Any) -> str:
        return self.run(self.client.discover(base_url, **wanted)).id

    def send(self, target: Any = BASE, payload: Any = WORK, **options: Any) -> Envelope:
        return self.run(self.client.send(target, "task.request", payload, **options))

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The parameters of all calls."""
        documents = map(_document, self.posts)
        return [one["params"] for each in documents for one in (each if isinstance(each, list) else [each])]

    @property
    def shown(self) -> list[str | None]:
        """The credential of each request to the agent."""
        return [dict(post.headers).get("authorization") for post in self.posts]

    def agent(self, fetch: Fetch) -> Reply | After:
        self.posts.append(fetch)
        does = self.agent_does.pop(0) if self.agent_does else None
        if does is not None:
            return does
        document = _document(fetch)
        return answer(list(map(_reply, document)) if isinstance(document, list) else _reply(document))


def _document(fetch: Fetch) -> Any:
    body = fetch.body or b""
    return json.loads(gzip.decompress(body) if ("content-encoding", "gzip") in fetch.headers else body)


def _reply(call: dict[str, Any]) -> dict[str, Any]:
    asked = call["params"]["envelope"]
    if asked["payload"]["skill_id"] != "echo":
        return {"jsonrpc": "2.0", "id": call["id"], "error": {"code": -32012, "message": "no such skill"}}
    payload = {"task_id": "t", "status": "completed", "result": asked["payload"]["input"]}
    envelope = {
        **asked, "id": "reply", "sender": asked["recipient"], "recipient": asked["sender"],
        "correlation_id": asked["id"], "payload_type": "task.response", "payload": payload,
    }  # fmt: skip
    return {"jsonrpc": "2.0", "id": call["id"], "result": {"envelope": envelope}}


def text_of(key: Any) -> str:
    return b64encode(key.raw).decode()


class TestBinding:
    def test_the_sender_is_checked(self) -> None:
        with pytest.raises(ValueError, match="expected as sender an agent URN"):
            Client("me")

    def test_options_are_checked(self) -> None:
        wrong: Any = 3
        with pytest.raises(ValueError, match="retry: expected a RetryPolicy"):
            Client(ME, retry=wrong)

    def test_a_client_shows_its_sender_and_no_token(self) -> None:
        client = Client(ME, token="hunter2")
        assert (client.sender, repr(client)) == (ME, f"Client(sender='{ME}')")

    def test_a_client_is_bound_once(self) -> None:
        world = World()
        with pytest.raises(RuntimeError, match="bound already; make another Client"):
            world.client.bind(world.runtime)

    @pytest.mark.parametrize(
        "use",
        [
            Client.take_wakes,
            Client.take_removals,
            Client.take_remarks,
            Client.reset,
            lambda client: client.cached(BASE),
            lambda client: client.keep_fresh([BASE]),
            lambda client: step(client.discover(BASE)),
            lambda client: step(client.resolve(URN)),
            lambda client: step(client.token(CREDENTIALS)),
            lambda client: step(client.send(decode_manifest(manifest()), "task.request", WORK)),
        ],
    )
    def test_a_client_that_is_not_bound_says_so(self, use: Callable[[Client], object]) -> None:
        with pytest.raises(RuntimeError, match="isn't bound; call bind"):
            use(Client(ME))

    def test_another_attribute_does_not_exist(self) -> None:
        for client in (Client(ME), World().client):
            with pytest.raises(AttributeError, match="disocver"):
                client.disocver  # type: ignore[attr-defined]  # noqa: B018

    def test_the_default_links_know_no_network(self) -> None:
        driver = Driver(lambda _: Answer(body=json.dumps(manifest()).encode()))
        client = Client(ME).bind(driver.runtime)
        with pytest.raises(NotAllowed):
            driver.run(client.follow(announcement(URN, "http://a.localhost/m", "10.0.0.7")))

    def test_codings_are_checked(self) -> None:
        wrong: Any = {"br": Reverse}
        with pytest.raises(ValueError, match="codings: expected a mapping with keys of bytes"):
            World(bind={"codings": wrong})

    def test_further_codings_are_accepted_in_responses(self) -> None:
        class Decoder(Reverse):
            eof = True
            unconsumed_tail = unused_data = b""

            def flush(self) -> bytes:
                return b""

        world = World(bind={"codings": {b"inv": Decoder}})
        world.run(world.client.get_document(A))
        (fetch,) = [each for each in world.effects if isinstance(each, Fetch)]
        assert "inv" in dict(fetch.headers)["accept-encoding"]

    @pytest.mark.parametrize("token", ["", "hunter2\nx-admin: 1", "hunter2 x", "hünter2"])
    def test_a_token_that_cannot_be_sent_is_refused_and_not_repeated(self, token: str) -> None:
        for options in ({"token": token}, {"auth": {BASE: token}}):
            with pytest.raises(ValueError, match="visible ASCII") as caught:
                World(**options)
            assert "nter2" not in str(caught.value)

    def test_trusted_keys_need_a_verifier(self) -> None:
        trust = TrustPolicy(trusted_keys={URN: text_of(KEYS[0])})
        with pytest.raises(ValueError, match="verif"):
            World(trust=trust, bind={"verify": None})


class TestDiscovery:
    def test_a_manifest_is_fetched_once_and_cached(self) -> None:
        world = World()
        assert world.client.cached(BASE) is None
        assert [world.discover(), world.discover()] == [URN, URN]
        cached = world.client.cached(BASE)
        assert cached is not None
        assert (cached.id, world.asked) == (URN, [A])

    def test_concurrent_calls_make_one_request(self) -> None:
        world = World()
        world.pages[A] = After(1.0, answer(manifest()))
        runs = [world.start(world.client.discover(BASE)) for _ in range(20)]
        world.advance(1.0)
        assert [run.result().id for run in runs] == [URN] * 20
        assert world.asked == [A]

    def test_another_caller_leads_after_a_closed_leader(self) -> None:
        world = World()
        world.pages[A] = After(5.0, answer(manifest()))
        leader, waiting = (world.start(world.client.discover(BASE)) for _ in range(2))
        world.advance(1.0)
        world.close(leader)
        world.advance(5.0)
        assert (waiting.result().id, world.asked) == (URN, [A, A])

    def test_the_agent_is_the_expected_one(self) -> None:
        world = World()
        assert world.discover(expect=URN) == URN
        with pytest.raises(WrongAgent, match="echo-agent, not urn:asap:agent:other"):
            world.discover(expect=OTHER)
        with pytest.raises(WrongAgent):
            world.run(world.client.get_manifest(A, expect=OTHER))
        with pytest.raises(WrongAgent):
            world.run(world.client.look_up(BASE, expect=OTHER))

    def test_the_agent_has_what_is_required(self) -> None:
        world = World()
        assert world.discover(require_skill="echo", require_version="0.1") == URN
        for lacking in ({"require_skill": "fly"}, {"require_version": "9.1"}):
            with pytest.raises(Unsuitable):
                world.discover(**lacking)
            with pytest.raises(Unsuitable):
                world.run(world.client.look_up(BASE, **lacking))

    def test_each_of_several_equal_requirements_counts(self) -> None:
        with pytest.raises(WrongAgent):
            World().discover(expect=OTHER, require_skill=OTHER)
        with pytest.raises(ValueError, match="expected as least version"):
            World().discover(expect=OTHER, require_skill=OTHER, require_version=OTHER)

    def test_look_up_returns_source_age_and_lifetime(self) -> None:
        world = World()
        world.pages[A] = answer(manifest(), cache_control="max-age=60")
        first = world.run(world.client.look_up(BASE))
        world.advance(7.0)
        second = world.run(world.client.look_up(BASE))
        assert [(found.source, found.age, found.url) for found in (first, second)] == [
            (Source.FETCHED, 0.0, A),
            (Source.CACHED, 7.0, A),
        ]
        assert second.freshness is not None
        assert second.freshness.fresh_for == 60

    def test_get_manifest_asks_exactly_this_url(self) -> None:
        world = World()
        world.pages = {"https://a.example/m?x=1": manifest()}
        assert world.run(world.client.get_manifest("https://a.example/m?x=1")).id == URN
        assert world.asked == ["https://a.example/m?x=1"]

    @pytest.mark.parametrize("url", [f"{BASE}/?page=1", f"{BASE}#top"])
    def test_a_base_url_has_no_query_and_no_fragment(self, url: str) -> None:
        world = World()
        for call in (world.client.discover, world.client.look_up, world.client.health_check):
            with pytest.raises(NotAllowed, match="no query and no fragment"):
                world.run(call(url))

    @pytest.mark.parametrize(
        "url", ["http://example.com", "ftp://localhost", "http://u:p@localhost", "nonsense", "http://[::1"]
    )
    def test_no_request_is_sent_to_a_url_that_is_not_allowed(self, url: str) -> None:
        world = World()
        for call in (world.client.discover, world.client.get_manifest, world.client.get_document):
            with pytest.raises(NotAllowed) as caught:
                world.run(call(url))
            assert "u:p" not in str(caught.value)
        assert world.effects == []

    @pytest.mark.parametrize(
        ("page", "error"),
        [
            (b"not json", InvalidDocument),
            (b"{}", InvalidDocument),
            (b"x" * 2_000_000, BadReply),
            (answer(b"x", content_encoding="zstd"), BadReply),
            (answer(b"x", content_encoding="gzip"), BadReply),
            (answer(status=302, location="http://elsewhere"), BadReply),
            (404, BadReply),
            (answer(status=500, retry_after="99999999"), BadReply),
            (304, BadReply),
            (NOT_CONNECTED, Unreachable),
            (HELD, TimedOut),
        ],
    )
    def test_a_response_that_is_no_manifest_is_an_error(self, page: Any, error: type[Exception]) -> None:
        world = World()
        world.pages[A] = page
        with pytest.raises(error) as caught:
            world.discover()
        assert ("redirects aren't followed" in str(caught.value)) is (getattr(page, "status", 0) == 302)

    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ({"retry_after": "3.5"}, 3.5),
            # Its clock is years behind.
            ({"retry_after": "Sun, 06 Nov 1994 08:49:42 GMT", "date": "Sun, 06 Nov 1994 08:49:37 GMT"}, 5.0),
        ],
    )
    def test_the_next_try_is_when_the_server_says(self, headers: dict[str, str], seconds: float) -> None:
        world = World()
        world.pages[A] = answer(status=503, **headers)
        with pytest.raises(BadReply) as caught:
            world.discover()
        assert seconds <= (caught.value.next_try or 0) <= seconds * 1.1

    def test_the_error_says_what_was_tried_and_when_the_next_try_is(self) -> None:
        world = World()
        world.pages[A] = 500
        says = r"manifest\.json \(HTTP 500\): .*; not asked again for 1\.[01] s$"
        with pytest.raises(BadReply, match=says) as caught:
            world.discover()
        assert caught.value.kept_age is None

    def test_a_cached_manifest_serves_while_its_server_fails(self) -> None:
        world = World()
        world.discover()
        world.pages[A] = NOT_CONNECTED
        world.advance(3_600)
        assert world.run(world.client.look_up(BASE)).source is Source.STALE_ERROR
        world.advance(86_400)
        with pytest.raises(Unreachable, match="the cached copy is 90000 s old, too old to use") as caught:
            world.discover()
        assert caught.value.kept_age == 90_000
        assert caught.value.next_try is not None

    @pytest.mark.parametrize("step", [3_600.0, -3_600.0])
    def test_a_wall_clock_that_jumps_changes_no_lifetime(self, step: float) -> None:
        world = World()
        world.discover()
        world.advance(100.0)
        world.clock.step_wall(step)
        assert world.run(world.client.look_up(BASE)).source is Source.CACHED
        world.advance(250.0)
        assert world.run(world.client.look_up(BASE)).source is not Source.CACHED

    @pytest.mark.parametrize("path", ["/asap", "/asap/", MANIFEST_PATH])
    def test_a_url_that_is_not_the_base_is_an_error_with_advice(self, path: str) -> None:
        world = World()
        for call in (world.client.discover, world.client.health_check):
            with pytest.raises(BadReply, match=rf"200( or 503)?; give the base URL, {BASE}(;|$)"):
                world.run(call(BASE + path))
        with pytest.raises(BadReply, match=r"HTTP 200; not asked|HTTP 200$"):
            world.discover(f"{BASE}/other")

    def test_a_document_is_returned_and_not_cached(self) -> None:
        world = World()
        world.pages[R] = b"any bytes"
        assert [world.run(world.client.get_document(R)) for _ in range(2)] == [b"any bytes"] * 2
        assert world.asked == [R, R]

    def test_the_health_of_an_unhealthy_agent_is_returned(self) -> None:
        world = World()
        world.pages[HEALTH] = answer({**HEALTHY, "status": "unhealthy"}, 503)
        assert not world.run(world.client.health_check(BASE)).healthy

    def test_health_is_neither_cached_nor_asked_twice_at_once(self) -> None:
        world = World()
        world.pages[HEALTH] = After(1.0, answer(HEALTHY))
        for asked in (1, 2):
            runs = [world.start(world.client.health_check(BASE)) for _ in range(5)]
            world.advance(1.0)
            assert [run.result().healthy for run in runs] == [True] * 5
            assert world.asked == [HEALTH] * asked

    def test_a_failed_health_check_is_not_cached(self) -> None:
        world = World()
        world.pages[HEALTH] = NOT_CONNECTED
        with pytest.raises(Unreachable, match=r"can't connect: refused$"):
            world.run(world.client.health_check(BASE))
        world.pages[HEALTH] = HEALTHY
        assert world.run(world.client.health_check(BASE)).healthy


class TestForgetting:
    @pytest.mark.parametrize("url", [BASE, A])
    def test_an_agent_is_forgotten_by_base_url_or_by_manifest_url(self, url: str) -> None:
        world = World()
        world.discover()
        world.client.forget(url)
        assert world.client.cached(BASE) is None
        # Which agent answered there is forgotten, too.
        world.pages[A] = manifest(OTHER)
        assert world.discover() == OTHER

    def test_a_url_with_a_query_is_forgotten_as_it_is(self) -> None:
        world = World()
        url = "https://a.example/m?x=1"
        world.pages[url] = manifest()
        for _ in range(2):
            world.run(world.client.get_manifest(url))
            world.client.forget(url)
        assert world.asked == [url, url]

    def test_reset_forgets_everything(self) -> None:
        world = World()
        world.pages[R] = registry(A)
        for _ in range(2):
            world.discover()
            world.run(world.client.registry(R))
            world.client.reset()
        assert world.asked == [A, R, A, R]


class TestTrust:
    def test_another_agent_at_a_url_is_refused_unless_allowed(self) -> None:
        for allowed in (False, True):
            world = World(trust=TrustPolicy(allow_changed_agents=allowed))
            world.discover()
            world.pages[A] = manifest(OTHER)
            world.advance(100_000.0)
            if allowed:
                assert world.discover() == OTHER
            else:
                with pytest.raises(AgentChanged):
                    world.discover()
                (remark,) = world.client.take_remarks()
                assert (remark.logger, remark.level) == ("asap.discovery", "warning")
                assert world.client.take_remarks() == ()

    def test_the_manifest_of_an_agent_with_trusted_keys_is_signed_by_one(self) -> None:
        world = World(trust=TrustPolicy(trusted_keys={URN: [text_of(KEYS[0]), text_of(KEYS[1])]}))
        world.pages[A] = signed(manifest(), KEYS[1])
        assert world.discover() == URN
        for page in (manifest(), signed(manifest(), KEYS[2])):
            world.client.reset()
            world.pages[A] = page
            with pytest.raises(Unverified):
                world.discover()

    def test_a_signed_manifest_may_be_required_of_all(self) -> None:
        world = World(trust=TrustPolicy(require_signed=True))
        with pytest.raises(Unverified):
            world.discover()


class TestKeepingFresh:
    def test_there_is_a_program_for_each_url(self) -> None:
        world = World()
        b = f"https://b.example{MANIFEST_PATH}"
        for url, urn in ((A, URN), (b, OTHER)):
            world.pages[url] = answer(manifest(urn), cache_control="max-age=60")
        runs = [world.start(program) for program in world.client.keep_fresh([BASE, "https://b.example"])]
        world.advance(200.0)
        assert world.client.cached(BASE) is not None
        assert world.asked[:2] == [A, b]
        assert min(map(world.asked.count, (A, b))) >= 3
        for run in runs:
            world.close(run)

    def test_a_token_is_sent_to_the_origin_of_an_agent_that_is_kept_fresh(self) -> None:
        world = World(token="t")
        (program,) = world.client.keep_fresh([BASE])
        run = world.start(program)
        world.advance(1.0)
        world.send(world.client.cached(BASE))
        assert world.shown == ["Bearer t"]
        world.close(run)

    def test_a_failed_fetch_is_logged_and_retried(self) -> None:
        world = World()
        world.pages[A] = 500
        (program,) = world.client.keep_fresh([BASE])
        run = world.start(program)
        world.advance(5.0)
        assert {remark.logger for remark in world.client.take_remarks()} == {"asap.discovery"}
        world.pages[A] = manifest()
        world.advance(60.0)
        assert world.client.cached(BASE) is not None
        world.close(run)

    def test_a_url_that_may_not_be_kept_fresh_is_refused_at_once(self) -> None:
        client = World(discovery=DiscoveryOptions(cache=DocumentCachePolicy(max_entries=2))).client
        with pytest.raises(NotAllowed):
            client.keep_fresh([BASE, "http://a.example"])
        with pytest.raises(ValueError, match="at most 2 agents"):
            client.keep_fresh([BASE] * 3)
        with pytest.raises(ValueError, match="base_urls: expected a list"):
            client.keep_fresh(BASE)


class TestRegistries:
    @pytest.mark.parametrize("location", [R, "/r.json", Path("/r.json")])
    def test_a_registry_is_read_from_a_url_or_a_file(self, location: Any) -> None:
        world = World()
        world.pages[R] = world.files["/r.json"] = registry(A)
        assert len(world.run(world.client.registry(location)).agents) == 1

    def test_a_file_that_cannot_be_read_is_an_os_error(self) -> None:
        world = World()
        with pytest.raises(OSError, match="No such file"):
            world.run(world.client.registry("none.json"))

    def test_a_broken_entry_is_reported_and_the_others_are_found(self) -> None:
        world = World()
        listed = registry(A)
        world.pages[R] = {**listed, "agents": [*listed["agents"], {"id": "broken"}]}
        assert [skip.index for skip in world.run(world.client.registry(R)).skipped] == [1]
        assert len(world.run(world.client.find(R))) == 1

    def test_entries_are_found_by_skill_or_id(self) -> None:
        world = World()
        listed, others = registry(A), registry("https://b.example/m", urn=OTHER, skills=["fly"])
        world.pages[R] = {**listed, "agents": listed["agents"] + others["agents"]}
        client = world.client
        assert [entry.id for entry in world.run(client.find(R, skill="echo"))] == [URN]
        assert [entry.id for entry in world.run(client.find(R, agent_id=OTHER))] == [OTHER]
        assert world.run(client.find(R, skill="swim")) == ()

    @pytest.mark.parametrize("directory", ["/copies", Path("/copies")])
    def test_a_copy_stands_in_for_a_registry_that_fails(self, directory: Any) -> None:
        world = World(discovery=DiscoveryOptions(registry_cache=directory))
        world.pages[R] = registry(A)
        script = world.script

        def with_files(effect: Any) -> Reply | After:
            if not isinstance(effect, WriteFile):
                return script(effect)
            data = b"".join(effect.file.pieces())
            world.files[effect.path] = Answer(body=data, identity=FileIdentity(1, len(data), 0, 0))
            return Completed()

        world.script = with_files
        assert len(world.run(world.client.registry(R)).agents) == 1
        assert world.client.stands_in(R) is None
        world.pages[R] = 500
        world.advance(90_000.0)
        assert len(world.run(world.client.registry(R)).agents) == 1
        assert world.client.stands_in(R) == 90_000.0
        (path,) = world.files
        assert path.startswith("/copies/")
        world.client.forget(R)
        assert path in world.client.take_removals()
        assert world.client.take_removals() == ()


class TestResolving:
    def test_an_agent_is_found_in_a_registry(self) -> None:
        world = World(discovery=DiscoveryOptions(registries=[R, Path("/r.json")]))
        world.files["/r.json"] = registry(A)
        assert world.run(world.client.resolve(URN, wait=0)).id == URN
        end = world.run(world.client.explain(URN, wait=0, require_skill="echo", require_version="0.1"))
        assert isinstance(end, Resolved)
        assert (end.source, end.url) == ("/r.json", A)

    def test_an_agent_is_found_on_the_local_network(self) -> None:
        world = World()
        world.pages["https://a.localhost/m"] = manifest()
        world.announce(announcement(URN, "https://a.localhost/m"))
        assert world.run(world.client.resolve(URN)).id == URN

    def test_an_agent_that_is_nowhere_is_not_resolved(self) -> None:
        world = World(discovery=DiscoveryOptions(registries=[R]))
        world.pages[R] = registry(A, urn=OTHER)
        with pytest.raises(NotResolved, match="not listed") as caught:
            world.run(world.client.resolve(URN))
        assert world.clock.monotonic() == 3.0
        world.run(world.client.explain(URN))
        assert world.clock.monotonic() == 6.0
        end = world.run(world.client.explain(URN, wait=0))
        assert isinstance(end, Unresolved)
        assert list(map(str, end.trace)) == list(map(str, caught.value.asked))[:1]

    def test_a_candidate_without_what_is_required_is_refused(self) -> None:
        world = World(discovery=DiscoveryOptions(registries=[R]))
        world.pages[R] = registry(A)
        for lacking in ({"require_skill": "fly"}, {"require_version": "9.1"}):
            with pytest.raises(NotResolved):
                world.run(world.client.resolve(URN, wait=0, **lacking))

    @pytest.mark.parametrize("location", ["https://id.example/revoked", "/revoked.json", Path("/revoked.json")])
    def test_a_revoked_agent_is_not_resolved(self, location: Any) -> None:
        world = World(discovery=DiscoveryOptions(registries=[R], revocations=location))
        world.pages |= {R: registry(A), "https://id.example/revoked": revocations(URN)}
        world.files["/revoked.json"] = revocations(URN)
        with pytest.raises(NotResolved, match="revoked"):
            world.run(world.client.resolve(URN, wait=0))

    def test_an_unusable_registry_is_skipped(self) -> None:
        world = World(discovery=DiscoveryOptions(registries=["/bad.json", R]))
        world.files["/bad.json"] = registry("https://xn--a/")
        world.pages[R] = registry(A)
        assert world.run(world.client.resolve(URN, wait=0)).id == URN

    @pytest.mark.parametrize(
        ("named", "asked"),
        [
            ("http://127.0.0.1:9/admin?do=it", False), ("https://10.0.0.1/m", False), ("https://[fd00::1]/m", False),
            ("https://169.254.169.254/latest", False), ("https://agent.example/m", True),
        ],
    )  # fmt: skip
    def test_a_registry_cannot_lead_to_private_addresses(self, named: str, asked: bool) -> None:
        world = World(discovery=DiscoveryOptions(registries=[R]))
        world.pages[R] = registry(named)
        with pytest.raises(NotResolved) as caught:
            world.run(world.client.resolve(URN, wait=0))
        assert world.asked == [R, *([named] if asked else [])]
        assert ("allow_endpoints" in str(caught.value)) is not asked

    def test_an_announced_agent_is_followed(self) -> None:
        world = World()
        world.pages["http://a.localhost/m"] = manifest()
        found = announcement(URN, "http://a.localhost/m")
        assert world.run(world.client.follow(found)).id == URN
        assert world.links_asked == ["eth0"]
        with pytest.raises(WrongAgent):
            world.run(world.client.follow(found, expect=OTHER))
        with pytest.raises(WrongAgent):
            world.run(world.client.follow(announcement(OTHER, "http://a.localhost/m")))


class TestCredentials:
    @pytest.mark.parametrize("target", [BASE, A])
    def test_a_token_is_sent_with_envelopes_to_an_origin_that_the_caller_named(self, target: str) -> None:
        world = World(token="t")
        found = world.run(world.client.get_manifest(A)) if target == A else target
        world.send(found)
        assert world.shown == ["Bearer t"]
        first = next(each for each in world.effects if isinstance(each, Fetch))
        assert "authorization" not in dict(first.headers)

    def test_a_token_is_sent_to_an_origin_from_a_registry_only_if_auth_lists_it(self) -> None:
        for options, shown in (({"token": "t"}, None), ({"auth": {BASE: "t"}}, "Bearer t")):
            world = World(**options, discovery=DiscoveryOptions(registries=[R]))
            world.pages[R] = registry(A)
            world.send(world.run(world.client.resolve(URN, wait=0)))
            assert world.shown == [shown]

    def test_a_token_is_not_sent_to_an_announced_origin(self) -> None:
        world = World(token="t")
        world.pages |= {
            "http://a.localhost/m": manifest(endpoints={"asap": "http://a.localhost/asap"}),
            "http://a.localhost/asap": world.agent,
        }
        world.send(world.run(world.client.follow(announcement(URN, "http://a.localhost/m"))))
        assert world.shown == [None]

    def test_no_token_is_sent_over_plain_http_to_another_machine(self) -> None:
        world = World(token="t", outbound=OutboundPolicy(allow_http=["agent.lan"]))
        world.pages |= {
            f"http://agent.lan{MANIFEST_PATH}": manifest(endpoints={"asap": "http://agent.lan/asap"}),
            "http://agent.lan/asap": world.agent,
        }
        world.send("http://agent.lan")
        assert world.shown == [None]

    def test_credentials_get_tokens_for_their_origin(self) -> None:
        world = World(auth={f"{BASE}:443": CREDENTIALS})
        world.send()
        world.send()
        assert world.shown == ["Bearer t1", "Bearer t1"]
        assert world.asked.count(f"{ISSUER}/token") == 1

    def test_a_token_is_got_once_and_returned_from_the_cache(self) -> None:
        world = World()
        assert [world.run(world.client.token(CREDENTIALS)).value for _ in range(2)] == ["t1", "t1"]
        (fetch,) = [each for each in world.effects if isinstance(each, Fetch) and each.method == "POST"]
        assert b"scope=asap" in (fetch.body or b"")

    def test_a_token_endpoint_of_the_caller_may_be_on_any_network(self) -> None:
        world = World()
        endpoint = f"{ISSUER}/token"
        world.client._requests.judge(endpoint, named_by="https://elsewhere.example/registry.json")
        given = ClientCredentials(client=ClientSecret("me", "s3cret"), token_endpoint=endpoint)
        assert world.run(world.client.token(given)).value == "t1"
        (fetch,) = [effect for effect in world.effects if isinstance(effect, Fetch)]
        assert fetch.route.reach is Proximity.MACHINE


class TestSending:
    def test_an_envelope_is_sent_to_the_agent_at_a_url_and_the_reply_returned(self) -> None:
        world = World()
        reply = world.send(payload={"skill_id": "echo", "input": {"a": 1}})
        assert reply.payload["result"] == {"a": 1}
        (call,) = world.calls
        envelope = call["envelope"]
        assert (envelope["sender"], envelope["recipient"]) == (ME, URN)
        assert envelope["timestamp"] == utc(world.clock.wall()).isoformat().replace("+00:00", "Z")
        assert envelope["payload"]["conversation_id"].startswith("conv_id-")
        assert envelope["extensions"]["nonce"].startswith("token-")
        assert call["idempotency_key"].startswith("id-")
        assert world.asked == [A, ENDPOINT]

    def test_a_manifest_needs_no_discovery(self) -> None:
        world = World()
        found = world.run(world.client.discover(BASE))
        world.client.reset()
        world.send(found)
        assert world.asked == [A, ENDPOINT]

    def test_a_payload_may_be_of_the_model(self) -> None:
        world = World()
        request = TaskRequest(conversation_id="c", skill_id="echo", input={"b": 2})
        assert world.send(payload=request).payload["result"] == {"b": 2}
        assert world.calls[0]["envelope"]["payload"]["conversation_id"] == "c"

    def test_the_caller_may_choose_sender_nonce_trace_and_key(self) -> None:
        world = World()
        world.send(sender=OTHER, nonce="n", trace_id="trace", idempotency_key="k")
        (call,) = world.calls
        envelope = call["envelope"]
        assert call["idempotency_key"] == "k"
        assert (envelope["sender"], envelope["extensions"]["nonce"], envelope["trace_id"]) == (OTHER, "n", "trace")
        assert envelope["payload"]["conversation_id"] == conversation_id_of("k", OTHER, URN)
        with pytest.raises(ValueError, match="sender: expected an agent URN"):
            world.send(sender="me")

    def test_a_lost_reply_is_asked_for_again_only_with_a_key(self) -> None:
        world = World(retry=RetryPolicy(retries=1))
        world.agent_does = [LOST]
        with pytest.raises(Unreachable):
            world.send()
        world.agent_does = [LOST]
        assert world.send(idempotency_key="k").payload["status"] == "completed"
        assert [call["idempotency_key"] for call in world.calls[1:]] == ["k", "k"]
        first, second = (call["envelope"] for call in world.calls[1:])
        assert first["extensions"]["nonce"] != second["extensions"]["nonce"]

    @pytest.mark.parametrize(
        ("policy", "retries"), [(RetryPolicy(retries=0), 0), (RetryPolicy(retries=3), 3), (None, 2)]
    )
    def test_a_message_is_sent_again_as_often_as_the_policy_says(
        self, policy: RetryPolicy | None, retries: int
    ) -> None:
        world = World(retry=policy)
        world.agent_does = [NOT_CONNECTED] * (retries + 1)
        with pytest.raises(Unreachable):
            world.send()
        assert len(world.posts) == retries + 1

    def test_a_breaker_stops_calls_to_an_agent_that_keeps_failing(self) -> None:
        world = World(retry=RetryPolicy(retries=0), breaker=BreakerPolicy(threshold=2))
        world.agent_does = [NOT_CONNECTED] * 2
        for _ in range(3):
            with pytest.raises(Unreachable):
                world.send()
        assert len(world.posts) == 2

    def test_a_refusal_is_an_error_with_its_fields(self) -> None:
        with pytest.raises(RemoteError, match="no such skill") as caught:
            World().send(payload={"skill_id": "other", "input": {}})
        assert caught.value.code == -32012

    def test_an_endpoint_on_another_origin_is_not_posted_to_unless_allowed(self) -> None:
        elsewhere = "https://elsewhere.example/asap"
        world = World()
        world.pages[A] = manifest(endpoints={"asap": elsewhere})
        found = world.run(world.client.discover(BASE))
        with pytest.raises(NotAllowed, match="allow_endpoints"):
            world.send(found)
        with pytest.raises(NotAllowed, match="allow_endpoints"):
            world.run(world.client.send_batch(found, [("task.request", WORK)]))
        allowing = World(outbound=OutboundPolicy(allow_endpoints=["https://elsewhere.example"]))
        allowing.pages |= {A: world.pages[A], elsewhere: allowing.agent}
        assert allowing.send().payload["status"] == "completed"

    def test_an_endpoint_without_a_zone_is_on_the_link_of_its_manifest(self) -> None:
        world = World()
        world.networks = ("fe80::1/64",)
        world.pages |= {
            "http://[fe80::9%eth0]:8000/m": manifest(endpoints={"asap": "http://[fe80::9]:8000/asap"}),
            "http://[fe80::9%eth0]:8000/asap": world.agent,
        }
        found = announcement(URN, "http://[fe80::9%eth0]:8000/m", "fe80::9%eth0")
        found = evolve(found, host="fe80::9%eth0", port=8000)
        assert world.send(world.run(world.client.follow(found))).payload["status"] == "completed"

    def test_requests_are_made_as_the_options_say(self) -> None:
        large = {"skill_id": "echo", "input": {"a": "x" * 50_000}}
        for compress in (True, False):
            world = World(http=RequestOptions(timeout=7.0, compress=compress))
            assert world.send(payload=large).payload["result"] == large["input"]
            (post,) = world.posts
            assert (("content-encoding", "gzip") in post.headers) is compress
            assert post.seconds <= 7.0

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ({1: "a", "1": "b"}, r"\$\.params\.envelope\.payload\.input\.x\['1'\]: expected keys that are unique"),
            (float("nan"), r"payload\.input\.x: expected finite numbers"),
            ([{1}], r"payload\.input\.x\[0\]: expected values that JSON has .*, not set"),
            ("\ud800", r"payload\.input\.x: expected strings without lone surrogates"),
        ],
    )
    @pytest.mark.parametrize("key", [None, "k"])
    def test_a_payload_that_json_cannot_write_is_refused_before_it_is_sent(
        self, value: object, expected: str, key: str | None
    ) -> None:
        world = World()
        with pytest.raises(ValueError, match=expected):
            world.send(payload={"skill_id": "echo", "input": {"x": value}}, idempotency_key=key)
        assert world.posts == []
        assert world.send(payload={"skill_id": "echo", "input": {"x": 1}}).payload["result"] == {"x": 1}

    def test_an_envelope_of_the_callers_is_posted_unchanged_and_once(self) -> None:
        world = World(retry=RetryPolicy(retries=5))
        found = decode_manifest(manifest())
        envelope = Envelope.new(
            sender=OTHER, recipient=URN, payload_type="task.request", payload=WORK, ids=lambda: "mine",
            wall=world.clock.wall(), nonce="n",
        )  # fmt: skip
        post = world.client.post
        assert world.run(post(found, envelope)).correlation_id == "mine"
        assert world.run(post(found, envelope, idempotency_key="k")).correlation_id == "mine"
        assert [call["idempotency_key"][:3] for call in world.calls] == ["id-", "k"]
        assert {call["envelope"]["sender"] for call in world.calls} == {OTHER}
        world.agent_does = [NOT_CONNECTED]
        with pytest.raises(Unreachable):
            world.run(post(found, envelope, idempotency_key="k"))
        assert len(world.posts) == 3
        with pytest.raises(ValueError, match="idempotency key of 1 to"):
            world.run(post(found, envelope, idempotency_key=""))

    def test_a_batch_is_returned_in_order(self) -> None:
        world = World()
        messages: Any = [("task.request", {"skill_id": skill, "input": {}}) for skill in ("echo", "no", "echo")]
        outcomes = world.run(world.client.send_batch(BASE, messages))
        assert [type(outcome).__name__ for outcome in outcomes] == ["Envelope", "RemoteError", "Envelope"]
        assert len(world.posts) == 1
        assert {call["envelope"]["sender"] for call in world.calls} == {ME}
        with pytest.raises(ValueError, match="1 to 50"):
            world.run(world.client.send_batch(BASE, []))


def test_a_closed_call_leaves_nothing() -> None:
    """Every method's program is closed at each of its effects; then the same call succeeds."""

    def programs(world: World) -> list[Program[Any]]:
        client = world.client
        return [
            client.discover(BASE), client.look_up(BASE), client.health_check(BASE), client.registry(R),
            client.find(R), client.explain(URN, wait=0), client.token(CREDENTIALS), client.get_document(A),
            client.follow(announcement(URN, "http://a.localhost/m")), client.send(BASE, "task.request", WORK),
            client.send_batch(BASE, [("task.request", WORK)]), client.post(decode_manifest(manifest()), _envelope()),
        ]  # fmt: skip

    def fresh() -> World:
        world = World(auth={BASE: CREDENTIALS}, discovery=DiscoveryOptions(registries=[R]))
        world.pages |= {R: registry(A), "http://a.localhost/m": manifest()}
        return world

    for number in range(len(programs(fresh()))):
        for steps in range(10):
            world = fresh()
            run: Run[Any] = world.start(programs(world)[number])
            for _ in range(steps):
                world.turn()
            if run.effect is None:
                break
            world.close(run)
            assert world.runs == []
            assert world.client._tokens.waiting == world.client._discovery._manifests.waiting == 0
            world.run(programs(world)[number])
        else:
            raise AssertionError("never finished")


def _envelope() -> Envelope:
    return Envelope.new(
        sender=ME, recipient=URN, payload_type="task.request", payload=WORK, ids=lambda: "mine", wall=WallTime(0.0),
        nonce="n",
    )  # fmt: skip


def test_a_failure_is_raised_as_a_copy_to_each_caller() -> None:
    world = World()
    world.pages[A] = After(1.0, Unanswered(NOT_CONNECTED.stage, "refused"))
    runs = [world.start(world.client.discover(BASE)) for _ in range(5)]
    world.advance(1.0)
    assert len({id(run.end) for run in runs}) == 5
    assert world.asked == [A]
