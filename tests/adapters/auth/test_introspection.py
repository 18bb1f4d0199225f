"""A provider that's asked about tokens, on both backends, in virtual time: once for all, and as policy says."""

import base64
import logging
import time
from typing import Any
from urllib.parse import parse_qs

import anyio
import httpx
import pytest

from asap_adapters.auth import IntrospectionAuthenticator, IntrospectionUnavailable
from asap_adapters.testing import InProcessTransport
from asap_core import Authenticated, RemoteError
from asap_core.auth.claims import BySubject
from asap_core.auth.client_credentials import ClientKey, ClientSecret
from asap_core.auth.introspection_response import IntrospectionPolicy
from asap_core.auth.principal import Credential, DpopProof, InsufficientScope
from tests.adapters.client.test_cancelling import Interrupted

pytestmark = pytest.mark.anyio

ISSUER, ENDPOINT, AUDIENCE = "https://id.example", "https://id.example/introspect", "urn:asap:agent:echo-agent"
ALICE, TESTER, BASE = "urn:asap:agent:alice", "urn:asap:agent:tester", "http://localhost"


class Provider(httpx.AsyncBaseTransport):
    """Knows some tokens; what it answers besides can be changed, and how it fails."""

    def __init__(self) -> None:
        self.tokens: dict[str, Any] = {"t": {}}
        self.asked: list[Any] = []
        self.at_once = self.most_at_once = 0
        self.seconds = 0.0
        self.happens: Any = None
        self.metadata: Any = {"issuer": ISSUER, "introspection_endpoint": ENDPOINT}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json=self.metadata)
        form = {name: value for name, (value,) in parse_qs((await request.aread()).decode()).items()}
        self.asked.append({**form, "authorization": request.headers.get("authorization")})
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await anyio.sleep(self.seconds)
        finally:
            self.at_once -= 1
        if isinstance(self.happens, Exception):
            raise self.happens
        if self.happens is not None:
            return self.happens()  # type: ignore[no-any-return]
        known = self.tokens.get(form["token"])
        if known is None:
            return httpx.Response(200, json={"active": False})
        now = int(time.time())
        said = {"active": True, "sub": "7", "aud": AUDIENCE, "iss": ISSUER, "exp": now + 36_000, "scope": "call"}
        return httpx.Response(200, json={**said, **known})


@pytest.fixture
def provider() -> Provider:
    return Provider()


def made(provider: Provider, *, endpoint=ENDPOINT, client=None, **policy) -> IntrospectionAuthenticator:
    agent = BySubject({"7": ALICE, "8": TESTER})
    rules: Any = {"audience": AUDIENCE, "agent": agent, "issuer": ISSUER, "scopes": ["call"], **policy}
    client = ClientSecret("rs", "s3cret") if client is None else client
    return IntrospectionAuthenticator(IntrospectionPolicy(**rules), client, endpoint=endpoint, transport=provider)


async def ask(asking: IntrospectionAuthenticator, token: str):
    """The agent of the token, None, the missing scopes, or "unavailable"."""
    try:
        found = await asking.verify(Credential(token))
    except IntrospectionUnavailable:
        return "unavailable"
    return found.urn if isinstance(found, Authenticated) else found


class TestRequests:
    async def test_a_request_has_the_client_credentials_and_the_token(self, provider: Provider) -> None:
        async with made(provider) as asking:
            assert [await ask(asking, "t") for _ in range(3)] == [ALICE] * 3
            assert await ask(asking, "unknown") is None
        assert [asked["token"] for asked in provider.asked] == ["t", "unknown"]
        assert provider.asked[0]["token_type_hint"] == "access_token"
        assert base64.b64decode(provider.asked[0]["authorization"].removeprefix("Basic ")) == b"rs:s3cret"

    async def test_a_client_key_authenticates_at_the_endpoint_of_the_metadata(self, provider: Provider) -> None:
        async with made(provider, endpoint=None, client=ClientKey("rs", "EdDSA", lambda text: text[:4])) as asking:
            assert await ask(asking, "t") == ALICE
        assert provider.asked[0]["client_assertion"].count(".") == 2

    async def test_metadata_without_a_usable_endpoint_makes_introspection_unavailable(self, provider: Provider) -> None:
        for metadata in ({"issuer": ISSUER}, {"issuer": ISSUER, "introspection_endpoint": "http://169.254.169.254/"}):
            provider.metadata = metadata
            async with made(provider, endpoint=None) as asking:
                assert await ask(asking, "t") == "unavailable"
        with pytest.raises(ValueError, match="expected the URL"):
            made(provider, endpoint=None, issuer=None)

    async def test_a_thousand_first_requests_cause_one_introspection(self, provider: Provider) -> None:
        provider.seconds = 1.0
        found: list[Any] = []

        async def one(asking: IntrospectionAuthenticator) -> None:
            found.append(await ask(asking, "t"))

        async with made(provider) as asking, anyio.create_task_group() as group:
            for _ in range(1000):
                group.start_soon(one, asking)
        assert (len(provider.asked), found) == (1, [ALICE] * 1000)

    async def test_ten_thousand_guesses_do_not_affect_valid_tokens(self, provider: Provider) -> None:
        provider.seconds = 0.01
        async with made(provider, max_kept=1000) as asking:
            assert await ask(asking, "t") == ALICE
            async with anyio.create_task_group() as group:
                for number in range(10_000):
                    group.start_soon(ask, asking, f"guess-{number}")
            assert provider.most_at_once <= 100
            assert len(asking._introspection._introspector) <= 2000
            asked = len(provider.asked)
            assert await ask(asking, "t") == ALICE
            assert len(provider.asked) == asked

    async def test_a_revoked_token_is_refused_after_a_minute(self, provider: Provider) -> None:
        async with made(provider) as asking:
            assert await ask(asking, "t") == ALICE
            provider.tokens.clear()
            await anyio.sleep(59.9)
            assert await ask(asking, "t") == ALICE
            await anyio.sleep(0.1)
            assert await ask(asking, "t") is None

    async def test_scopes_and_proofs_are_checked(self, provider: Provider) -> None:
        provider.tokens["small"] = {"scope": "other"}
        async with made(provider) as asking:
            assert await ask(asking, "small") == InsufficientScope(frozenset({"call"}))
            shown = DpopProof(text="x", method="POST", url=BASE)
            assert await asking.verify(Credential("t", shown)) is None
        assert [asked["token"] for asked in provider.asked] == ["small"]


HOSTILE: Any = [
    httpx.ConnectError(""),
    httpx.ReadTimeout(""),
    lambda: httpx.Response(500),
    lambda: httpx.Response(401, json={"error": "invalid_client"}),
    lambda: httpx.Response(302, headers={"location": "https://evil.example"}),
    lambda: httpx.Response(200, content=b"x" * 10_000_000),
    lambda: httpx.Response(200, json={"active": "true", "sub": "7"}),
    lambda: httpx.Response(200, text="<html>"),
]


# What providers, and filters before them, answer a token that's odd to them.
ODD: Any = [
    *[lambda status=status: httpx.Response(status) for status in (400, 403, 413, 414, 415, 422, 431)],
    lambda: httpx.Response(400, json={"error": "invalid_request"}),
    lambda: httpx.Response(200, text="<html>"),
    lambda: httpx.Response(200),
    lambda: httpx.Response(200, json={"active": None}),
]
# And what they answer, or don't, if they're in trouble as well.
DOUBTFUL: Any = [
    *[lambda status=status: httpx.Response(status) for status in (401, 404, 429, 500, 502, 503, 504)],
    lambda: httpx.Response(302, headers={"location": "https://evil.example"}),
    lambda: httpx.Response(200, content=b"x" * 10_000_000),
    httpx.ReadError(""),
    httpx.ReadTimeout(""),
]


class TestUnknownTokens:
    """An unknown token affects only its own verdict."""

    async def junk(self, asking: IntrospectionAuthenticator, provider: Provider, happens, *tokens: str) -> None:
        provider.happens = happens
        for token in tokens:
            assert await ask(asking, token) == "unavailable"
        provider.happens = None

    @pytest.mark.parametrize("happens", ODD)
    async def test_an_odd_token_does_not_affect_valid_tokens(self, provider: Provider, happens) -> None:
        async with made(provider) as asking:
            await self.junk(asking, provider, happens, "j" * 8000, "%00", "junk")
            assert await ask(asking, "t") == ALICE

    @pytest.mark.parametrize("happens", [*ODD, *DOUBTFUL])
    async def test_tokens_that_cause_failures_repeatedly_do_not_affect_valid_tokens(
        self, provider: Provider, happens
    ) -> None:
        async with made(provider) as asking:
            assert await ask(asking, "unknown") is None
            for number in range(20):
                provider.tokens[f"new{number}"] = {}
                await self.junk(asking, provider, happens, "junk" * number + "j", f"junk{number}")
                assert await ask(asking, f"new{number}") == ALICE
                await anyio.sleep(3.0)

    async def test_a_slow_unknown_token_uses_no_slot_of_a_token_that_was_good(self, provider: Provider) -> None:
        async with made(provider, max_asked=5) as asking:
            assert await ask(asking, "t") == ALICE
            await anyio.sleep(61.0)
            provider.seconds = 5.0
            async with anyio.create_task_group() as group:
                for number in range(10):
                    group.start_soon(ask, asking, f"guess{number}")
                await anyio.sleep(1.0)
                assert await ask(asking, "guess") == "unavailable"
                assert await ask(asking, "t") == ALICE
                assert provider.most_at_once == 5


class TestProviderFailures:
    @pytest.mark.parametrize("happens", HOSTILE)
    async def test_a_failure_admits_no_caller_and_is_distinct_from_a_refused_token(
        self, provider: Provider, happens, caplog
    ) -> None:
        provider.happens = happens
        async with made(provider) as asking:
            assert await ask(asking, "t-s3cret") == "unavailable"
            assert asking.waiting == 0
        assert "doesn't say whether a token is good" in caplog.text
        assert "s3cret" not in caplog.text

    async def test_a_failing_provider_is_asked_less_and_less_often(self, provider: Provider) -> None:
        provider.happens = HOSTILE[2]
        async with made(provider) as asking:
            for number in range(240):
                assert await ask(asking, f"t{number}") == "unavailable"
                await anyio.sleep(0.25)
            # After 1, 2, 4, 8 and 16 seconds, in a minute.
            assert len(provider.asked) == 6

    @pytest.mark.parametrize("happens", [DOUBTFUL[3], httpx.ConnectError("")])
    async def test_a_provider_that_fails_for_good_tokens_is_asked_less_often_too(
        self, provider: Provider, happens
    ) -> None:
        provider.tokens |= {"u": {}, "v": {}}
        async with made(provider) as asking:
            assert [await ask(asking, token) for token in ("t", "u", "v")] == [ALICE] * 3
            await anyio.sleep(60.0)
            provider.happens = happens
            asked = len(provider.asked)
            for _ in range(60):
                for token in ("t", "u", "v"):
                    assert await ask(asking, token) == "unavailable"
                await anyio.sleep(1.0)
            assert len(provider.asked) - asked <= 9
            provider.happens = None
            await anyio.sleep(32.0)
            assert [await ask(asking, token) for token in ("t", "u", "v")] == [ALICE] * 3

    async def test_a_cached_answer_serves_for_its_minute_and_not_longer(self, provider: Provider) -> None:
        async with made(provider) as asking:
            assert await ask(asking, "t") == ALICE
            provider.happens = HOSTILE[0]
            assert await ask(asking, "u") == "unavailable"
            await anyio.sleep(59.0)
            assert await ask(asking, "t") == ALICE
            await anyio.sleep(1.0)
            assert await ask(asking, "t") == "unavailable"
            provider.happens = None
            await anyio.sleep(2.0)
            assert await ask(asking, "t") == ALICE

    async def test_all_waiters_for_a_hanging_provider_are_answered(self, provider: Provider) -> None:
        provider.seconds = 3600.0
        found: list[Any] = []

        async def one(asking: IntrospectionAuthenticator) -> None:
            found.append(await ask(asking, "t"))

        async with made(provider) as asking:
            start = anyio.current_time()
            async with anyio.create_task_group() as group:
                for _ in range(50):
                    group.start_soon(one, asking)
            assert anyio.current_time() - start == pytest.approx(10.0)
        assert (len(provider.asked), found) == (1, ["unavailable"] * 50)


async def test_the_other_waiters_are_answered_if_one_is_cancelled(provider: Provider) -> None:
    at = 0
    while True:
        at += 1
        provider.asked.clear()
        provider.seconds = 1.0
        interrupted = Interrupted(at)
        async with made(provider, endpoint=None) as asking:
            found: list[Any] = []

            async def first(asking=asking, interrupted=interrupted) -> None:
                await interrupted.run(ask(asking, "t"))

            async def other(asking=asking, found=found) -> None:
                found.append(await ask(asking, "t"))

            async with anyio.create_task_group() as group:
                group.start_soon(first)
                await anyio.lowlevel.checkpoint()
                for _ in range(3):
                    group.start_soon(other)
            assert found == [ALICE] * 3
            assert (asking.waiting, asking._introspection._introspector.asking) == (0, 0)
        assert len(provider.asked) <= 2
        if interrupted.awaits < at:
            break
    assert at > 2


class TestThroughAnAgent:
    async def test_the_sender_must_be_the_agent_of_the_token(
        self, provider: Provider, agent, echo_handlers, client_of, caplog
    ) -> None:
        caplog.set_level(logging.DEBUG, "asap")
        provider.tokens["mine"] = {"sub": "8"}
        async with made(provider) as asking:
            transport = InProcessTransport(agent(auth=True), echo_handlers, authenticate=asking.verify)

            async def send(token: str):
                async with client_of(transport, token=token) as client:
                    return (await client.send(BASE, "task.request", {"skill_id": "echo", "input": {}})).payload

            assert (await send("mine"))["status"] == "completed"
            for token, told in (("t", "Sender does not match"), ("unknown", "Invalid authentication token")):
                with pytest.raises(RemoteError, match=told):
                    await send(token)
            provider.happens = HOSTILE[0]
            with pytest.raises(RemoteError) as caught:
                async with client_of(transport, token="new", retry=None) as client:
                    await client.post(await client.discover(BASE), _envelope())
            assert caught.value.status == 503
        assert "mine" not in caplog.text


def _envelope():
    from asap_adapters.system import new_id, new_token
    from asap_core import Envelope

    ids: Any = new_id
    wall: Any = time.time()
    return Envelope.new(
        sender=TESTER, recipient=AUDIENCE, payload_type="task.request",
        payload={"skill_id": "echo", "input": {}, "conversation_id": "c"}, ids=ids, wall=wall, nonce=new_token(),
    )  # fmt: skip
