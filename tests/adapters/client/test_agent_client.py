"""The client over an agent in the same process, on virtual time."""

import gc
import json
import re
import time
from typing import Any

import anyio
import httpx
import pytest

from asap_adapters.testing import in_process
from asap_core import (
    BadReply,
    InvalidDocument,
    NotAllowed,
    NotResolved,
    RemoteError,
    TaskRequest,
    TimedOut,
    Unreachable,
    WrongAgent,
)
from asap_core.client.fetch_results import Source
from tests.clients import make_client

pytestmark = pytest.mark.anyio

BASE = "http://localhost"
MANIFEST = "/.well-known/asap/manifest.json"


class Streamed(httpx.AsyncByteStream):
    def __init__(self, body) -> None:
        self.body = body

    async def __aiter__(self):
        yield self.body


def answering(*responses):
    """A transport that gives these responses, one after another, the last one for ever."""
    left = list(responses)

    def handle(_request):
        response = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(response, Exception):
            raise response
        status, body, headers = response
        return httpx.Response(status, stream=Streamed(body), headers=headers)

    return httpx.MockTransport(handle)


class TestOpeningAndClosing:
    async def test_a_client_that_is_not_open_raises_an_error_with_the_remedy(self, counting, client_of) -> None:
        with pytest.raises(RuntimeError, match="async with AgentClient"):
            await client_of(counting()).discover(BASE)

    async def test_a_client_may_be_closed_twice_and_from_another_task(self, counting, client_of) -> None:
        client = await client_of(counting()).__aenter__()
        async with anyio.create_task_group() as group:
            group.start_soon(client.aclose)
            group.start_soon(client.aclose)
        await client.aclose()
        with pytest.raises(RuntimeError, match="async with"):
            await client.discover(BASE)

    async def test_a_client_that_is_never_closed_warns(self, counting, client_of) -> None:
        client = await client_of(counting()).__aenter__()
        with pytest.warns(ResourceWarning, match="never closed"):  # noqa: PT031 - both make one event
            del client
            gc.collect()

    async def test_a_client_opened_twice_raises_an_error(self, counting, client_of) -> None:
        async with client_of(counting()) as client:
            with pytest.raises(RuntimeError, match="open already"):
                await client.__aenter__()

    def test_the_sender_is_checked_at_once(self, client_of) -> None:
        from asap_adapters import AgentClient

        with pytest.raises(ValueError, match="urn:asap:agent"):
            AgentClient(sender="me")

    @pytest.mark.parametrize("token", ["", "hunter2\nx-admin: 1", "hunter2 x", "hünter2"])
    def test_a_token_that_cannot_be_sent_is_refused_and_not_repeated(self, token) -> None:

        for options in ({"token": token}, {"auth": {"https://a.example": token}}):
            with pytest.raises(ValueError, match="visible ASCII") as caught:
                make_client(**options)
            assert "nter2" not in str(caught.value)


class TestDiscovery:
    @pytest.mark.parametrize("url", [f"{BASE}/?page=1", f"{BASE}#top"])
    async def test_a_base_url_has_no_query_and_no_fragment(self, counting, client_of, url) -> None:
        from asap_adapters import NotAllowed

        async with client_of(counting()) as client:
            with pytest.raises(NotAllowed, match="no query and no fragment"):
                await client.discover(url)

    async def test_look_up_returns_how_long_a_manifest_is_fresh(self, counting, client_of) -> None:
        async with client_of(counting()) as client:
            assert (await client.look_up(BASE)).freshness.fresh_for == 300

    async def test_fifty_concurrent_calls_make_one_request(self, counting, client_of) -> None:
        transport = counting(seconds=1)
        found = []
        async with client_of(transport) as client:
            before = anyio.current_time()

            async def one() -> None:
                found.append(await client.discover(BASE))

            async with anyio.create_task_group() as group:
                for _ in range(50):
                    group.start_soon(one)
            assert anyio.current_time() - before == pytest.approx(1)
        assert transport.paths == [MANIFEST]
        assert len(found) == 50

    async def test_fifty_concurrent_calls_to_a_dead_host_make_one_request_and_fail_together(
        self, counting, client_of
    ) -> None:
        transport = counting(seconds=2)
        transport.fail_with = httpx.ConnectError("refused")
        failures = []
        async with client_of(transport) as client:

            async def one() -> None:
                try:
                    await client.discover(BASE)
                except Unreachable as error:
                    failures.append(error)

            before = anyio.current_time()
            async with anyio.create_task_group() as group:
                for _ in range(50):
                    group.start_soon(one)
            assert anyio.current_time() - before == pytest.approx(2)
        assert len(failures) == 50
        assert len(set(map(id, failures))) == 50
        assert transport.paths == [MANIFEST]

    async def test_another_caller_leads_after_a_cancelled_leader(self, counting, client_of) -> None:
        transport = counting(seconds=5)
        found = []
        async with client_of(transport) as client, anyio.create_task_group() as group:
            leader = anyio.CancelScope()

            async def leading() -> None:
                with leader:
                    await client.discover(BASE)

            async def waiting() -> None:
                found.append(await client.discover(BASE))

            group.start_soon(leading)
            await anyio.sleep(1)
            group.start_soon(waiting)
            await anyio.sleep(1)
            leader.cancel()
        assert len(found) == 1
        assert transport.paths == [MANIFEST, MANIFEST]

    async def test_waiters_are_answered_if_the_leader_is_cancelled_at_any_moment(self, counting, client_of) -> None:
        """Cancel the leader after every number of scheduling steps: the other waiters still get their answer."""
        for steps in range(25):
            found: Any = []
            async with client_of(counting(seconds=0.1)) as client, anyio.create_task_group() as group:
                leader = anyio.CancelScope()

                async def leading(client=client, leader=leader) -> None:
                    with leader:
                        await client.discover(BASE)

                async def waiting(client=client, found=found) -> None:
                    found.append(await client.discover(BASE))

                group.start_soon(leading)
                group.start_soon(waiting)
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                leader.cancel()
            assert (len(found), client._client._discovery._manifests.waiting) == (1, 0)

    async def test_a_cached_manifest_is_revalidated_when_it_expires(self, counting, client_of) -> None:
        transport = counting()
        async with client_of(transport) as client:
            sources = []
            # Up to a tenth before its time, so that who fetched together doesn't ask together.
            for pause in (0, 269, 31):
                await anyio.sleep(pause)
                sources.append((await client.look_up(BASE)).source)
        assert sources == [Source.FETCHED, Source.CACHED, Source.REVALIDATED]

    async def test_a_caller_that_revalidates_waits_a_second_and_then_gets_the_stale_manifest(
        self, client_of, manifest
    ) -> None:
        from asap_core.server.wellknown import publish

        headers = {"cache-control": "max-age=10, stale-while-revalidate=60"}
        asked = 0

        async def handle(_request: httpx.Request) -> httpx.Response:
            nonlocal asked
            asked += 1
            await anyio.sleep(0 if asked == 1 else 30)
            return httpx.Response(200, stream=Streamed(publish(manifest())), headers=headers)

        async with client_of(httpx.MockTransport(handle)) as client:
            await client.discover(BASE)
            await anyio.sleep(20)
            before = anyio.current_time()
            found = await client.look_up(BASE)
            assert anyio.current_time() - before == pytest.approx(1)
        assert (found.source, asked) == (Source.STALE_ERROR, 2)

    async def test_a_cached_manifest_serves_while_its_server_fails(self, counting, client_of) -> None:
        transport = counting()
        async with client_of(transport) as client:
            await client.discover(BASE)
            transport.fail_with = httpx.ConnectError("refused")
            await anyio.sleep(3600)
            assert (await client.look_up(BASE)).source is Source.STALE_ERROR
            await anyio.sleep(86_400)
            with pytest.raises(Unreachable, match="can't connect") as caught:
                await client.discover(BASE)
        assert caught.value.kept_age == 90_000
        assert caught.value.next_try is not None
        assert "the cached copy is 90000 s old, too old to use" in str(caught.value)

    async def test_the_error_says_what_was_tried_and_when_the_next_try_is(self, client_of) -> None:
        async with client_of(answering((500, b"", {}))) as client:
            with pytest.raises(BadReply) as caught:
                await client.discover(BASE)
        assert re.search(r"manifest\.json \(HTTP 500\): .*; not asked again for 1\.[01] s$", str(caught.value))
        assert caught.value.kept_age is None

    @pytest.mark.parametrize("step", [3600, -3600])
    async def test_a_wall_clock_that_jumps_changes_no_lifetime_and_no_uptime(
        self, counting, client_of, monkeypatch, step
    ) -> None:
        transport = counting()
        async with client_of(transport) as client:
            await client.discover(BASE)
            await anyio.sleep(100)
            real = time.time
            monkeypatch.setattr(time, "time", lambda: real() + step)
            assert (await client.look_up(BASE)).source is Source.CACHED
            assert (await client.health_check(BASE)).uptime_seconds == pytest.approx(100)
            await anyio.sleep(250)
            assert (await client.look_up(BASE)).source is Source.REVALIDATED

    async def test_an_unexpected_agent_is_an_error(self, counting, client_of) -> None:
        async with client_of(counting()) as client:
            with pytest.raises(WrongAgent, match="urn:asap:agent:echo-agent, not urn:asap:agent:other"):
                await client.discover(BASE, expect="urn:asap:agent:other")

    async def test_a_host_that_hangs_times_out(self, counting, client_of) -> None:
        async with client_of(counting(seconds=1000)) as client:
            before = anyio.current_time()
            with pytest.raises(TimedOut, match="nothing within 10 s"):
                await client.discover(BASE)
            assert anyio.current_time() - before == pytest.approx(10)

    @pytest.mark.parametrize(
        ("response", "error"),
        [
            ((200, b"not json", {}), InvalidDocument),
            ((200, b"{}", {}), InvalidDocument),
            ((200, b"x" * 2_000_000, {}), BadReply),
            ((200, b"x", {"content-encoding": "zstd"}), BadReply),
            ((200, b"x", {"content-encoding": "gzip"}), BadReply),
            ((302, b"", {"location": "http://elsewhere"}), BadReply),
            ((404, b"", {}), BadReply),
            ((500, b"", {"retry-after": "99999999"}), BadReply),
            ((304, b"", {}), BadReply),
        ],
    )
    async def test_a_response_that_is_no_manifest_is_an_error(self, client_of, response, error) -> None:
        async with client_of(answering(response)) as client:
            with pytest.raises(error) as caught:
                await client.discover(BASE)
        assert ("redirects aren't followed" in str(caught.value)) is (response[0] == 302)

    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ({"retry-after": "3.5"}, 3.5),
            # Its clock is years behind.
            ({"retry-after": "Sun, 06 Nov 1994 08:49:42 GMT", "date": "Sun, 06 Nov 1994 08:49:37 GMT"}, 5.0),
        ],
    )
    async def test_the_next_try_is_when_the_server_says(self, client_of, headers, seconds) -> None:
        async with client_of(answering((503, b"", headers))) as client:
            with pytest.raises(BadReply) as caught:
                await client.discover(BASE)
        assert seconds <= (caught.value.next_try or 0) <= seconds * 1.1

    @pytest.mark.parametrize(
        "url", ["http://example.com", "ftp://localhost", "http://u:p@localhost", "nonsense", "http://[::1"]
    )
    async def test_no_request_is_sent_to_a_url_that_is_not_allowed(self, counting, client_of, url) -> None:
        transport = counting()
        async with client_of(transport) as client:
            with pytest.raises(NotAllowed) as caught:
                await client.discover(url)
        assert transport.paths == []
        assert "u:p" not in str(caught.value)

    async def test_the_health_of_an_unhealthy_agent_is_returned(self, client_of) -> None:
        report = b'{"status":"unhealthy","agent_id":"a","version":"1","uptime_seconds":1}'
        async with client_of(answering((503, report, {}))) as client:
            assert not (await client.health_check(BASE)).healthy

    async def test_concurrent_health_checks_make_one_request_and_are_never_cached(self, counting, client_of) -> None:
        transport, reports = counting(seconds=1), []
        async with client_of(transport) as client:

            async def one() -> None:
                reports.append((await client.health_check(BASE)).uptime_seconds)

            for _ in range(2):
                async with anyio.create_task_group() as group:
                    for _ in range(50):
                        group.start_soon(one)
        assert transport.paths == ["/.well-known/asap/health"] * 2
        assert reports == [pytest.approx(1)] * 50 + [pytest.approx(2)] * 50

    async def test_a_failed_health_check_is_not_cached(self, counting, client_of) -> None:
        transport = counting()
        transport.fail_with = httpx.ConnectError("refused")
        async with client_of(transport) as client:
            with pytest.raises(Unreachable, match=r"can't connect: refused$"):
                await client.health_check(BASE)
            transport.fail_with = None
            assert (await client.health_check(BASE)).healthy


class TestRegistry:
    REGISTRY: Any = {
        "version": "1",
        "updated_at": "2026-01-01T00:00:00Z",
        "agents": [
            {
                "id": "urn:asap:agent:echo-agent",
                "name": "Echo",
                "description": "",
                "asap_version": "0.1",
                "skills": ["echo"],
                "endpoints": {"http": f"{BASE}/asap"},
            },
            {"id": "broken"},
        ],
    }

    async def test_a_slow_registry_blocks_no_other_task(self, client_of) -> None:
        async def slow(_request):
            await anyio.sleep(5)
            return httpx.Response(200, json=self.REGISTRY)

        ticks = 0
        async with client_of(httpx.MockTransport(slow)) as client, anyio.create_task_group() as group:

            async def tick() -> None:
                nonlocal ticks
                while True:
                    await anyio.sleep(0.1)
                    ticks += 1

            group.start_soon(tick)
            registry = await client.registry(f"{BASE}/registry.json")
            group.cancel_scope.cancel()
        assert len(registry.agents) == 1
        assert ticks >= 48

    async def test_a_broken_entry_is_reported_and_the_others_are_found(self, client_of, tmp_path) -> None:
        file = tmp_path / "registry.json"
        file.write_text(json.dumps(self.REGISTRY))
        async with client_of(answering((404, b"", {}))) as client:
            assert [skip.index for skip in (await client.registry(file)).skipped] == [1]
            assert len(await client.find(str(file), skill="echo")) == 1
            assert await client.find(file, skill="other") == ()

    async def test_resolve_verifies_the_agent_that_answers(self, counting, client_of, tmp_path) -> None:
        file = tmp_path / "registry.json"
        file.write_text(json.dumps(self.REGISTRY))
        async with client_of(counting(), registries=[file]) as client:
            manifest = await client.resolve("urn:asap:agent:echo-agent", wait=0)
            assert manifest.id == "urn:asap:agent:echo-agent"
            with pytest.raises(NotResolved, match="not listed"):
                await client.resolve("urn:asap:agent:nobody", wait=0)

    @pytest.mark.parametrize(
        ("named", "asked"),
        [
            ("http://127.0.0.1:9/admin?do=it", False), ("https://10.0.0.1/m", False), ("https://[fd00::1]/m", False),
            ("https://169.254.169.254/latest", False), ("https://agent.example/m", True),
        ],
    )  # fmt: skip
    async def test_a_registry_cannot_lead_to_private_addresses(self, client_of, named, asked) -> None:
        entry = {**self.REGISTRY["agents"][0], "endpoints": {"http": "https://x.example/asap", "manifest": named}}
        seen: list[str] = []

        def handle(request: httpx.Request) -> httpx.Response:
            seen.append(str(request.url))
            return httpx.Response(200, stream=Streamed(json.dumps({**self.REGISTRY, "agents": [entry]}).encode()))

        transport = httpx.MockTransport(handle)
        async with client_of(transport, registries=["https://registry.example/lite.json"]) as client:
            with pytest.raises(NotResolved) as caught:
                await client.resolve("urn:asap:agent:echo-agent", wait=0)
        assert seen == ["https://registry.example/lite.json", *([named] if asked else [])]
        assert ("allow_endpoints" in str(caught.value)) is not asked

    async def test_an_unusable_registry_is_skipped(self, counting, client_of, tmp_path) -> None:
        bad, good = tmp_path / "bad.json", tmp_path / "good.json"
        entry = {**self.REGISTRY["agents"][0], "endpoints": {"http": "x", "manifest": "https://xn--a/"}}
        bad.write_text(json.dumps({**self.REGISTRY, "agents": [entry]}))
        good.write_text(json.dumps(self.REGISTRY))
        async with client_of(counting(), registries=[bad, good]) as client:
            assert (await client.resolve("urn:asap:agent:echo-agent", wait=0)).id == "urn:asap:agent:echo-agent"


class TestSending:
    async def test_a_reply_is_returned(self, agent, echo_handlers) -> None:
        async with in_process(agent(), echo_handlers) as client:
            reply = await client.send(BASE, "task.request", {"skill_id": "echo", "input": {"a": 1}})
            assert reply.payload["result"] == {"echoed": {"a": 1}}
            request = TaskRequest(conversation_id="c", skill_id="echo", input={"b": 2})
            reply = await client.send(BASE, "task.request", request)
            assert reply.payload["result"] == {"echoed": {"b": 2}}

    async def test_a_large_message_is_compressed_and_arrives(self, agent, echo_handlers) -> None:
        async with in_process(agent(), echo_handlers) as client:
            reply = await client.send(BASE, "task.request", {"skill_id": "echo", "input": {"a": "x" * 50_000}})
            assert len(reply.payload["result"]["echoed"]["a"]) == 50_000

    async def test_a_refusal_is_an_error_with_its_fields(self, agent, echo_handlers) -> None:
        async with in_process(agent(), echo_handlers) as client:
            with pytest.raises(RemoteError) as caught:
                await client.send(BASE, "task.request", {"skill_id": "other", "input": {}})
            assert (caught.value.code, caught.value.taxonomy) == (-32012, "asap:transport/handler_not_found")
            await client.send(BASE, "task.request", {"skill_id": "echo", "input": {}}, nonce="n")
            with pytest.raises(RemoteError, match="seen before"):
                await client.send(BASE, "task.request", {"skill_id": "echo", "input": {}}, nonce="n")

    async def test_the_message_of_an_error_names_the_first_problem(self, agent, echo_handlers) -> None:
        async with in_process(agent(), echo_handlers) as client:
            with pytest.raises(RemoteError, match=r"Invalid params .*: params\.envelope\.payload\.skill_id: expected"):
                await client.send(BASE, "task.request", {"input": {}})

    @pytest.mark.parametrize("path", ["/asap", "/asap/", "/.well-known/asap/manifest.json"])
    async def test_a_url_that_is_not_the_base_is_an_error_with_advice(self, agent, echo_handlers, path) -> None:
        async with in_process(agent(), echo_handlers) as client:
            for ask in (client.discover, client.health_check):
                with pytest.raises(BadReply, match=rf"200( or 503)?; give the base URL, {BASE}(;|$)"):
                    await ask(BASE + path)
            with pytest.raises(BadReply, match=r"HTTP 200; not asked|HTTP 200$"):
                await client.discover(f"{BASE}/other")

    async def test_a_batch_is_returned_in_order(self, agent, echo_handlers) -> None:
        async with in_process(agent(), echo_handlers) as client:
            messages: Any = [("task.request", {"skill_id": skill, "input": {}}) for skill in ("echo", "no", "echo")]
            outcomes = await client.send_batch(BASE, messages)
            assert [type(outcome).__name__ for outcome in outcomes] == ["Envelope", "RemoteError", "Envelope"]
            with pytest.raises(ValueError, match="1 to 50"):
                await client.send_batch(BASE, [])

    async def test_an_endpoint_on_another_origin_is_not_posted_to(self, manifest, counting, client_of) -> None:
        from attrs import evolve

        from asap_core import Endpoints
        from asap_core.server.wellknown import publish

        foreign = evolve(manifest(), endpoints=Endpoints(asap="https://elsewhere.example/asap"))
        async with client_of(answering((200, publish(foreign), {}))) as client:
            found = await client.discover(BASE)
            with pytest.raises(NotAllowed, match="allow_endpoints"):
                await client.send(found, "task.request", {"skill_id": "echo", "input": {}})

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda value: value | {"id": "another"},
            lambda value: {"jsonrpc": "2.0", "id": value["id"], "result": {}},
            lambda value: {"jsonrpc": "2.0", "id": value["id"]},
            lambda value: [],
            lambda value: _in_envelope(value, correlation_id="another"),
            lambda value: _in_envelope(value, sender="urn:asap:agent:mallory"),
            lambda value: _in_envelope(value, recipient="urn:asap:agent:mallory"),
            lambda value: _in_envelope(value, timestamp="soon"),
        ],
    )
    async def test_a_mismatched_reply_is_refused(self, counting, client_of, spoil) -> None:
        inner = counting()

        class Spoiling(httpx.AsyncBaseTransport):
            async def handle_async_request(self, request):
                response = await inner.handle_async_request(request)
                body = await response.aread()
                if request.url.path == "/asap":
                    body = json.dumps(spoil(json.loads(body))).encode()
                return httpx.Response(200, stream=Streamed(body))

        async with client_of(Spoiling()) as client:
            with pytest.raises(BadReply):
                await client.send(BASE, "task.request", {"skill_id": "echo", "input": {}})


def _in_envelope(value, **changes):
    envelope = value["result"]["envelope"] | changes
    return value | {"result": {"envelope": envelope}}


class TestCredentials:
    @pytest.fixture
    def seen(self):
        return []

    @pytest.fixture
    async def noting(self, seen, counting):
        inner = counting()

        class Noting(httpx.AsyncBaseTransport):
            async def handle_async_request(self, request):
                seen.append((request.url.path, request.headers.get("authorization")))
                return await inner.handle_async_request(request)

        return Noting()

    async def test_a_token_is_sent_with_envelopes_to_an_origin_that_the_caller_named(
        self, client_of, noting, seen
    ) -> None:
        async with client_of(noting, token="t") as client:
            await client.send(BASE, "task.request", {"skill_id": "echo", "input": {}})
        assert seen == [(MANIFEST, None), ("/asap", "Bearer t")]

    async def test_a_token_is_not_sent_to_an_origin_from_a_registry(self, client_of, noting, seen, tmp_path) -> None:
        file = tmp_path / "registry.json"
        file.write_text(json.dumps(TestRegistry.REGISTRY))
        async with client_of(noting, token="t", registries=[file]) as client:
            manifest = await client.resolve("urn:asap:agent:echo-agent", wait=0)
            await client.send(manifest, "task.request", {"skill_id": "echo", "input": {}})
        assert seen == [(MANIFEST, None), ("/asap", None)]

    async def test_a_token_is_sent_to_an_origin_from_a_registry_that_auth_lists(
        self, client_of, noting, seen, tmp_path
    ) -> None:
        file = tmp_path / "registry.json"
        file.write_text(json.dumps(TestRegistry.REGISTRY))
        async with client_of(noting, auth={BASE: "t"}, registries=[file]) as client:
            manifest = await client.resolve("urn:asap:agent:echo-agent", wait=0)
            await client.send(manifest, "task.request", {"skill_id": "echo", "input": {}})
        assert seen[-1] == ("/asap", "Bearer t")

    async def test_no_token_is_sent_over_plain_http_to_another_machine(self, manifest, client_of, seen) -> None:
        from attrs import evolve

        from asap_core import Endpoints
        from asap_core.server.wellknown import publish

        there = evolve(manifest(), endpoints=Endpoints(asap="http://agent.lan/asap"))

        def handle(request):
            seen.append((request.url.path, request.headers.get("authorization")))
            return httpx.Response(200 if request.method == "GET" else 404, content=publish(there))

        async with client_of(httpx.MockTransport(handle), token="t", allow_http=["agent.lan"]) as client:
            with pytest.raises(BadReply):
                await client.send("http://agent.lan", "task.request", {"skill_id": "echo", "input": {}})
        assert seen == [(MANIFEST, None), ("/asap", None)]


class TestPayloadsThatCannotBeWritten:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ({1: "a", "1": "b"}, r"\$\.params\.envelope\.payload\.input\.x\['1'\]: expected keys that are unique"),
            (float("nan"), r"payload\.input\.x: expected finite numbers"),
            ([{1}], r"payload\.input\.x\[0\]: expected values that JSON has .*, not set"),
            ("\ud800", r"payload\.input\.x: expected strings without lone surrogates"),
        ],
    )
    async def test_unwritable_payloads_are_refused_before_they_are_sent(
        self, counting, client_of, value, expected
    ) -> None:
        transport = counting()
        async with client_of(transport) as client:

            async def send(x, key="k"):
                payload = {"skill_id": "echo", "input": {"x": x}}
                return await client.send(BASE, "task.request", payload, idempotency_key=key)

            for key in (None, "k"):
                with pytest.raises(ValueError, match=expected):
                    await send(value, key)
            assert "/asap" not in transport.paths
            assert (await send(1)).payload["result"] == {"echoed": {"x": 1}}
