"""A provider that's asked about tokens, on both backends, in virtual time: once for all, and as policy says."""

import base64
import logging
import time
from typing import Any
from urllib.parse import parse_qs

import anyio
import httpx
import pytest

from asap_adapters import HttpOptions
from asap_adapters.auth import IntrospectionAuthenticator, IntrospectionUnavailable
from asap_adapters.testing import InProcessTransport
from asap_core import Authenticated, RemoteError
from asap_core.auth.claims import BySubject
from asap_core.auth.client_credentials import ClientKey, ClientSecret
from asap_core.auth.introspection_response import IntrospectionPolicy
from asap_core.auth.principal import Credential
from tests.adapters.client.test_cancelling import Interrupted

pytestmark = pytest.mark.anyio

ISSUER, ENDPOINT, AUDIENCE = "https://id.example", "https://id.example/introspect", "urn:asap:agent:echo-agent"
ALICE, TESTER, BASE = "urn:asap:agent:alice", "urn:asap:agent:tester", "http://localhost"


class Provider(httpx.AsyncBaseTransport):
    """Knows some tokens; what it answers besides can be changed, and how it fails."""

    def __init__(self) -> None:
        self.tokens: dict[str, Any] = {"t": {}}
        self.asked: list[Any] = []
        self.seconds = 0.0
        self.happens: Any = None
        self.metadata: Any = {"issuer": ISSUER, "introspection_endpoint": ENDPOINT}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            await anyio.lowlevel.checkpoint()  # as on a network
            return httpx.Response(200, json=self.metadata)
        form = {name: value for name, (value,) in parse_qs((await request.aread()).decode()).items()}
        self.asked.append({**form, "authorization": request.headers.get("authorization")})
        await anyio.sleep(self.seconds)
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
    http = HttpOptions(transport=provider)
    return IntrospectionAuthenticator(IntrospectionPolicy(**rules), client, endpoint=endpoint, http=http)


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

    async def test_a_thousand_first_requests_cause_one_introspection(self, provider: Provider) -> None:
        provider.seconds = 1.0
        found: list[Any] = []

        async def one(asking: IntrospectionAuthenticator) -> None:
            found.append(await ask(asking, "t"))

        async with made(provider) as asking, anyio.create_task_group() as group:
            for _ in range(1000):
                group.start_soon(one, asking)
        assert (len(provider.asked), found) == (1, [ALICE] * 1000)


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


@pytest.mark.parametrize("natively", [False, True], ids=["by a scope", "by task.cancel()"])
async def test_the_other_waiters_are_answered_if_one_is_cancelled(
    provider: Provider, natively: bool, anyio_backend_name: str
) -> None:
    if natively and anyio_backend_name == "trio":
        pytest.skip("cannot run anywhere here: trio has no other cancellation than its scopes")
    at = 0
    while True:
        at += 1
        provider.asked.clear()
        provider.seconds = 1.0
        interrupted = Interrupted(at, natively=natively)
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
