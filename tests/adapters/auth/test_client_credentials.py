"""Tokens for the client's requests, with real keys and a real agent, and cancelling on both loops."""

import base64
import json
import time
from typing import Any
from urllib.parse import parse_qs

import anyio
import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from asap_adapters import AgentClient, HttpOptions, RemoteError
from asap_adapters.auth.client_keys import DpopKey
from asap_adapters.auth.jwt import JwtAuthenticator
from asap_adapters.testing import InProcessTransport
from asap_core import Authenticated, Endpoints
from asap_core.auth.authorization import ClientCredentials
from asap_core.auth.claims import BySubject, TokenPolicy
from asap_core.auth.client_credentials import ClientSecret
from asap_core.auth.dpop import thumbprint
from asap_core.auth.dpop_server import DpopPolicy
from asap_core.client.delivery import RetryPolicy
from tests.adapters.client.test_cancelling import Interrupted
from tests.clients import make_client

pytestmark = pytest.mark.anyio

ISSUER, BASE, ME = "https://id.example", "https://agent.example", "urn:asap:agent:me"
ASK = {"skill_id": "echo", "input": {"n": 1}}
METADATA = {"issuer": ISSUER, "token_endpoint": f"{ISSUER}/token"}


class World(httpx.AsyncBaseTransport):
    """A provider at id.example, and at all other hosts an agent that wants its tokens. `seconds`: of the provider."""

    def __init__(self, agent, handlers) -> None:
        # Made within the loop that it's used in.
        self.make: Any = lambda: InProcessTransport(agent, handlers, authenticate=self.verify)
        self.inner: Any = None
        self.good: set[str] = set()
        self.issued: list[Any] = []
        self.asked: list[str] = []
        self.shown: list[Any] = []
        self.seconds = 0.0

    def verify(self, credential):
        return Authenticated(ME) if credential.token in self.good else None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.host == "id.example":
            return await self.provide(request)
        if request.method == "POST":
            self.shown.append((str(request.url), request.headers.get("authorization")))
        self.inner = self.inner or self.make()
        return await self.inner.handle_async_request(request)  # type: ignore[no-any-return]

    async def provide(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path)
        await anyio.sleep(self.seconds)
        if request.method == "GET":
            return httpx.Response(200, json=METADATA)
        form = {name: value for name, (value,) in parse_qs((await request.aread()).decode()).items()}
        self.issued.append({**form, "authorization": request.headers.get("authorization")})
        token = f"t{len(self.issued)}"
        self.good.add(token)
        return httpx.Response(200, json={"access_token": token, "token_type": "Bearer", "expires_in": 3600})

    @property
    def fetches(self) -> int:
        return self.asked.count("/token")


@pytest.fixture
def world(manifest, agent, echo_handlers):
    made = agent()
    return World(
        type(made)(manifest(auth=True, endpoints=Endpoints(asap=f"{BASE}/asap")), policy=made.policy), echo_handlers
    )


def credentials(**changes) -> ClientCredentials:
    return ClientCredentials(**{"client": ClientSecret("me", "s3cret"), "issuer": ISSUER, **changes})


def client_of(world: World, auth=None, **options) -> AgentClient:
    auth = {BASE: credentials()} if auth is None else auth
    return make_client(sender=ME, transport=world, auth=auth, **{"retry": RetryPolicy(retries=0), **options})


async def token_of(client: AgentClient, asked: ClientCredentials):
    source = client._client._sending._authorizer.source
    return await client._driver.run(source.get(asked, ()))


async def send(client: AgentClient):
    return (await client.send(BASE, "task.request", ASK)).payload["result"]


class TestTokens:
    async def test_a_token_is_fetched_once_and_sent(self, world) -> None:
        async with client_of(world) as client:
            for _ in range(3):
                assert await send(client) == {"echoed": {"n": 1}}
        assert world.asked == ["/.well-known/openid-configuration", "/token"]
        assert world.shown == [(f"{BASE}/asap", "Bearer t1")] * 3
        (asked,) = world.issued
        assert asked["grant_type"] == "client_credentials"
        assert base64.b64decode(asked["authorization"].removeprefix("Basic ")) == b"me:s3cret"


class TestCancellation:
    @pytest.mark.parametrize("seconds", [0.0, 1.0])
    async def test_waiters_are_answered_if_a_caller_is_cancelled_at_any_await(self, world, seconds) -> None:
        at = 0
        while True:
            at += 1
            interrupted = Interrupted(at)
            world.asked.clear()
            world.seconds = seconds
            async with client_of(world) as client:
                source = client._client._sending._authorizer.source
                others: list[Any] = []

                async def first(client=client, interrupted=interrupted) -> None:
                    await interrupted.run(token_of(client, credentials()))

                async def other(client=client, others=others) -> None:
                    others.append(await token_of(client, credentials()))

                async with anyio.create_task_group() as group:
                    group.start_soon(first)
                    await anyio.lowlevel.checkpoint()
                    for _ in range(3):
                        group.start_soon(other)
                assert len(others) == 3
                assert len({each.token.value for each in others}) == 1
                assert (source.waiting, len(source._tokens._flights)) == (0, 0)
            # The work of one leader is lost at most once.
            assert world.fetches <= 2
            if interrupted.awaits < at:
                break
        assert at > 2


class BoundWorld(httpx.AsyncBaseTransport):
    """A provider that binds tokens to the key of the proof they're asked with, and an agent that wants such."""

    def __init__(self, agent, handlers, **dpop) -> None:
        self.key = ECKey.generate_key("P-256", {"kid": "k"}, private=True)
        policy = TokenPolicy(
            issuer=ISSUER, audience="a", agent=BySubject({"me": ME}), dpop=DpopPolicy(proofs="required", **dpop)
        )
        self.tokens = JwtAuthenticator(policy, http=HttpOptions(transport=self))
        self.make: Any = lambda: InProcessTransport(agent, handlers, authenticate=self.tokens.verify)
        self.inner: Any = None
        self.asked: list[Any] = []
        self.shown: list[Any] = []
        self.nonce: str | None = None
        self.token_type = "DPoP"

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.host != "id.example":
            self.inner = self.inner or self.make()
            if request.method == "POST":
                self.shown.append((request.headers["authorization"].split()[0], request.headers.get("dpop")))
            return await self.inner.handle_async_request(request)  # type: ignore[no-any-return]
        if request.method == "GET":
            known = request.url.path == "/keys"
            keys = {"keys": [self.key.as_dict(private=False)]}
            metadata = {"issuer": ISSUER, "jwks_uri": f"{ISSUER}/keys", "token_endpoint": f"{ISSUER}/token"}
            return httpx.Response(200, json=keys if known else metadata)
        return self.issue(request.headers["dpop"])

    def issue(self, proof: str) -> httpx.Response:
        header, claims = (json.loads(base64.urlsafe_b64decode(part + "===")) for part in proof.split(".")[:2])
        self.asked.append(claims)
        if claims.get("nonce") != self.nonce:
            return httpx.Response(400, json={"error": "use_dpop_nonce"}, headers={"dpop-nonce": str(self.nonce)})
        jwt.decode(proof, ECKey.import_key(header["jwk"]), algorithms=["ES256"])
        now = int(time.time())
        bound = {"iss": ISSUER, "aud": "a", "sub": "me", "exp": now + 300, "cnf": {"jkt": thumbprint(header["jwk"])}}
        token = jwt.encode({"alg": "ES256", "kid": "k"}, bound, self.key)
        return httpx.Response(200, json={"access_token": token, "token_type": self.token_type, "expires_in": 300})


class TestDpop:
    KEY = DpopKey.generate()

    @pytest.fixture
    def bound(self, manifest, agent, echo_handlers):
        made = agent()
        described = manifest(auth=True, endpoints=Endpoints(asap=f"{BASE}/asap"))
        return lambda **dpop: BoundWorld(type(made)(described, policy=made.policy), echo_handlers, **dpop)

    async def test_each_message_has_a_proof_of_its_own(self, bound) -> None:
        world = bound()
        async with world.tokens, client_of(world, {BASE: credentials(dpop=self.KEY)}) as client:
            for _ in range(3):
                assert await send(client) == {"echoed": {"n": 1}}
        (asked,) = world.asked
        assert (asked["htm"], asked["htu"], "ath" in asked) == ("POST", f"{ISSUER}/token", False)
        assert [scheme for scheme, _ in world.shown] == ["DPoP"] * 3
        assert len({proof for _, proof in world.shown}) == 3
        assert "ath" in json.loads(base64.urlsafe_b64decode(world.shown[0][1].split(".")[1] + "==="))

    async def test_nonces_of_agent_and_provider_cost_one_more_request_each(self, bound) -> None:
        world = bound(nonce=True)
        world.nonce = "n-1"
        async with world.tokens, client_of(world, {BASE: credentials(dpop=self.KEY)}) as client:
            for _ in range(3):
                await send(client)
        assert [asked.get("nonce") for asked in world.asked] == [None, "n-1"]
        assert len(world.shown) == 4

    async def test_a_stolen_token_is_refused_without_its_key(self, bound) -> None:
        world = bound()
        async with world.tokens, client_of(world, {BASE: credentials(dpop=self.KEY)}) as client:
            await send(client)
            world.shown.clear()
            stolen = (await token_of(client, credentials(dpop=self.KEY))).token.value
            async with client_of(world, {BASE: stolen}) as thief:
                with pytest.raises(RemoteError, match="Invalid authentication token"):
                    await send(thief)
