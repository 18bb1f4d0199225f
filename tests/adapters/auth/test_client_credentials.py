"""Tokens for the client's requests, on both backends, in virtual time: got once, shown to whom they're for."""

import base64
import json
import logging
import time
from typing import Any
from urllib.parse import parse_qs

import anyio
import httpx
import pytest
from attrs import evolve
from joserfc import jwt
from joserfc.jwk import ECKey

from asap_adapters import AgentClient, NotAllowed, RemoteError
from asap_adapters.auth.client_keys import DpopKey
from asap_adapters.auth.jwt import JwtAuthenticator
from asap_adapters.testing import InProcessTransport
from asap_core import Allow, Authenticated, AuthScheme, Endpoints, NoToken, Unsuitable
from asap_core.auth.authorization import ClientCredentials
from asap_core.auth.claims import BySubject, TokenPolicy
from asap_core.auth.client_credentials import ClientKey, ClientSecret
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
    """A provider at id.example, and at all other hosts an agent that wants its tokens."""

    def __init__(self, agent, handlers) -> None:
        self.agents: Any = {}
        self.make: Any = lambda: InProcessTransport(agent, handlers, authenticate=self.verify)
        self.good: set[str] = set()
        self.issued: list[Any] = []
        self.asked: list[str] = []
        self.shown: list[Any] = []
        self.seconds = 0.0
        self.life: Any = 3600
        self.metadata: Any = METADATA
        # What the token endpoint does next, or an answer that it gives for good.
        self.trouble: list[Any] = []

    def verify(self, credential):
        return Authenticated(ME) if credential.token in self.good else None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.host == "id.example":
            return await self.provide(request)
        if request.method == "POST":
            self.shown.append((str(request.url), request.headers.get("authorization")))
        inner = self.agents.setdefault("here", None) or self.make()
        self.agents["here"] = inner
        return await inner.handle_async_request(request)  # type: ignore[no-any-return]

    async def provide(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path)
        await anyio.sleep(self.seconds)
        if request.method == "GET":
            if callable(self.metadata):
                return self.metadata()  # type: ignore[no-any-return]
            return httpx.Response(200 if "openid" in request.url.path else 404, json=self.metadata)
        happens = self.trouble.pop(0) if self.trouble else None
        if isinstance(happens, Exception):
            raise happens
        if happens is not None:
            return happens()  # type: ignore[no-any-return]
        form = {name: value for name, (value,) in parse_qs((await request.aread()).decode()).items()}
        self.issued.append({**form, "authorization": request.headers.get("authorization")})
        token = f"t{len(self.issued)}"
        self.good.add(token)
        answer = {"access_token": token, "token_type": "Bearer", "expires_in": self.life}
        return httpx.Response(200, json=answer)

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


async def send(client: AgentClient, base: str = BASE):
    return (await client.send(base, "task.request", ASK)).payload["result"]


def error(status: int, code: str = "", **headers: str):
    return lambda: httpx.Response(status, json={"error": code, "error_description": "s3cret"}, headers=headers)


class TestGettingOne:
    async def test_a_token_is_fetched_once_and_sent(self, world) -> None:
        async with client_of(world) as client:
            for _ in range(3):
                assert await send(client) == {"echoed": {"n": 1}}
        assert world.asked == ["/.well-known/openid-configuration", "/token"]
        assert world.shown == [(f"{BASE}/asap", "Bearer t1")] * 3
        (asked,) = world.issued
        assert asked["grant_type"] == "client_credentials"
        assert base64.b64decode(asked["authorization"].removeprefix("Basic ")) == b"me:s3cret"

    async def test_a_thousand_first_requests_ask_once(self, world) -> None:
        world.seconds = 1.0
        async with client_of(world) as client:
            manifest = await client.discover(BASE)
            async with anyio.create_task_group() as group:
                for _ in range(1000):
                    group.start_soon(client.send, manifest, "task.request", ASK)
        assert (world.fetches, len(world.shown)) == (1, 1000)

    async def test_by_a_key(self, world) -> None:
        key = ClientKey("me", "EdDSA", lambda message: message[:4])
        async with client_of(world, {BASE: credentials(client=key)}) as client:
            await send(client)
        (asked,) = world.issued
        claims = asked["client_assertion"].split(".")[1]
        assert json.loads(base64.urlsafe_b64decode(claims + "==="))["aud"] == ISSUER
        assert asked["authorization"] is None

    async def test_at_an_endpoint_of_the_callers(self, world) -> None:
        key = ClientKey("me", "EdDSA", lambda message: message[:4])
        auth = {
            BASE: credentials(client=key, issuer=None, token_endpoint=f"{ISSUER}/token", audience="a", scopes="x y")
        }
        async with client_of(world, auth) as client:
            await send(client)
        assert world.asked == ["/token"]
        (asked,) = world.issued
        assert (asked["audience"], asked["scope"]) == ("a", "x y")
        claims = asked["client_assertion"].split(".")[1]
        assert json.loads(base64.urlsafe_b64decode(claims + "==="))["aud"] == f"{ISSUER}/token"

    async def test_batches_and_envelopes_of_the_callers_have_one_too(self, world) -> None:
        async with client_of(world) as client:
            assert len(await client.send_batch(BASE, [("task.request", ASK)] * 2)) == 2
        assert world.shown == [(f"{BASE}/asap", "Bearer t1")]


class TestForWhomItIs:
    async def test_for_no_other_origin(self, world) -> None:
        async with client_of(world, {"https://other.example": credentials()}) as client:
            with pytest.raises(RemoteError, match="required"):
                await send(client)
        assert (world.asked, world.shown) == ([], [(f"{BASE}/asap", None)])

    async def test_not_over_plain_http(self, world, agent, manifest, echo_handlers) -> None:
        plain = "http://agent.example"
        bare = agent()
        world.make = lambda: InProcessTransport(
            type(bare)(manifest(endpoints=Endpoints(asap=f"{plain}/asap")), policy=bare.policy),
            echo_handlers,
        )
        async with client_of(world, {plain: credentials()}, allow_http=["agent.example"]) as client:
            await send(client, plain)
        assert (world.asked, world.shown) == ([], [(f"{plain}/asap", None)])

    async def test_no_secret_goes_over_plain_http_whatever_is_allowed(self, world) -> None:
        auth = {BASE: credentials(issuer=None, token_endpoint="http://id.example/token")}
        async with client_of(world, auth, allow_http=["id.example"]) as client:
            with pytest.raises(NotAllowed, match="the form contains"):
                await send(client)
        assert (world.asked, world.shown) == ([], [])

    async def test_an_agent_that_takes_none_is_told_apart_from_one_that_is_down(self, world, agent, manifest) -> None:
        made = evolve(manifest(endpoints=Endpoints(asap=f"{BASE}/asap")), auth=AuthScheme(schemes=["basic"]))
        async with client_of(world) as client:
            with pytest.raises(Unsuitable, match="other ways to authenticate"):
                await client.send(made, "task.request", ASK)
        assert world.asked == []

    async def test_the_secret_goes_to_no_provider_that_the_manifest_names(self, world, manifest) -> None:
        evil = AuthScheme(schemes=["bearer"], oauth2={"token_url": "https://evil.example/token", "issuer": "https://x"})
        made = evolve(manifest(endpoints=Endpoints(asap=f"{BASE}/asap")), auth=evil)
        async with client_of(world) as client:
            with pytest.raises(Unsuitable, match="names another"):
                await client.send(made, "task.request", ASK)
        assert world.asked == []

    async def test_each_scope_is_a_token_of_its_own(self, world) -> None:
        auth = {BASE: credentials(scopes="read"), "https://b.example": credentials(scopes="write")}
        async with client_of(world, auth) as client:
            manifest = await client.discover(BASE)
            await client.send(manifest, "task.request", ASK)
            client._client._sending._authorizer.credentials[BASE + ":443"] = auth["https://b.example"]  # type: ignore[index]
            await client.send(manifest, "task.request", ASK)
        assert [asked["scope"] for asked in world.issued] == ["read", "write"]
        assert [shown for _, shown in world.shown] == ["Bearer t1", "Bearer t2"]

    async def test_metadata_names_no_place_inside(self, world) -> None:
        world.metadata = {**METADATA, "token_endpoint": "http://169.254.169.254/token"}
        async with client_of(world) as client:
            with pytest.raises(NotAllowed):
                await send(client)
        world.metadata = {"issuer": ISSUER}
        async with client_of(world) as client:
            with pytest.raises(NoToken, match="expected a provider that has a token_endpoint"):
                await send(client)
        assert world.fetches == 0

    async def test_metadata_that_redirect_name_the_option_that_follows(self, world) -> None:
        world.metadata = lambda: httpx.Response(308, headers={"location": f"{ISSUER}/moved"})
        async with client_of(world) as client:
            with pytest.raises(NoToken, match="redirects aren't followed; allow it with redirects=2") as caught:
                await send(client)
        assert caught.value.remedy == Allow("redirects", 2)


class TestRefusedByTheAgent:
    async def test_a_refused_token_is_replaced_once(self, world) -> None:
        async with client_of(world) as client:
            await send(client)
            world.good.clear()
            await send(client)
        assert [shown for _, shown in world.shown] == ["Bearer t1", "Bearer t1", "Bearer t2"]

    async def test_a_peer_that_refuses_every_token_causes_two_fetches_in_ten_seconds(self, world) -> None:
        world.verify = lambda _credential: None
        async with client_of(world) as client:
            for _ in range(10):
                with pytest.raises(RemoteError, match="Invalid authentication token"):
                    await send(client)
            assert (world.fetches, len(world.shown)) == (2, 11)
            await anyio.sleep(10.0)
            with pytest.raises(RemoteError, match="Invalid authentication token"):
                await send(client)
        assert world.fetches == 3

    async def test_of_many_calls_one_has_it_replaced(self, world) -> None:
        async with client_of(world) as client:
            manifest = await client.discover(BASE)
            await client.send(manifest, "task.request", ASK)
            world.good.clear()
            world.seconds = 1.0
            async with anyio.create_task_group() as group:
                for _ in range(50):
                    group.start_soon(client.send, manifest, "task.request", ASK)
        assert world.fetches == 2

    async def test_the_reference_says_so_within_200(self, world) -> None:
        inner, refusals = world.make, [1]
        rpc = {"code": -32600, "message": "Invalid request", "data": {"error": "Invalid token", "status_code": 401}}

        class Reference(httpx.AsyncBaseTransport):
            def __init__(self) -> None:
                self.inner = inner()

            async def handle_async_request(self, request: httpx.Request):
                if request.method == "POST" and refusals:
                    refusals.pop()
                    return httpx.Response(200, json={"jsonrpc": "2.0", "id": None, "error": rpc})
                return await self.inner.handle_async_request(request)

        world.make = Reference
        async with client_of(world) as client:
            assert await send(client) == {"echoed": {"n": 1}}
        assert world.fetches == 2

    async def test_what_lacks_a_scope_is_not_replaced(self, world) -> None:
        async with client_of(world) as client:
            world.verify = lambda _credential: Authenticated("urn:asap:agent:somebody-else")
            with pytest.raises(RemoteError, match="Sender does not match"):
                await send(client)
        assert world.fetches == 1

    async def test_a_token_of_the_callers_is_not_replaced(self, world) -> None:
        async with client_of(world, {BASE: "static"}) as client:
            with pytest.raises(RemoteError, match="Invalid authentication token"):
                await send(client)
        assert world.shown == [(f"{BASE}/asap", "Bearer static")]


class TestWhileTheProviderFails:
    async def test_a_token_that_is_still_good_serves(self, world, caplog) -> None:
        world.life = 100
        async with client_of(world) as client:
            manifest = await client.discover(BASE)
            await client.send(manifest, "task.request", ASK)
            await anyio.sleep(81.0)
            world.trouble = [error(503)] * 99
            for _ in range(100):
                await client.send(manifest, "task.request", ASK)
            assert world.fetches == 2
            assert caplog.text.count("the token there is serves until it ends") == 1
            await anyio.sleep(18.0)
            await client.send(manifest, "task.request", ASK)
            await anyio.sleep(2.0)
            with pytest.raises(NoToken, match="HTTP 503"):
                await client.send(manifest, "task.request", ASK)
        assert {shown for _, shown in world.shown} == {"Bearer t1"}

    async def test_a_provider_that_hangs_delays_nobody_for_long(self, world) -> None:
        world.life = 100
        async with client_of(world) as client:
            manifest = await client.discover(BASE)
            await client.send(manifest, "task.request", ASK)
            await anyio.sleep(81.0)
            world.seconds = 60.0
            start = anyio.current_time()
            await client.send(manifest, "task.request", ASK)
            assert anyio.current_time() - start == pytest.approx(1.0)
            start = anyio.current_time()
            await client.send(manifest, "task.request", ASK)
            assert anyio.current_time() == start

    async def test_without_one_it_is_asked_once_a_second_and_less(self, world) -> None:
        world.trouble = [error(500)] * 99
        async with client_of(world) as client:
            for _ in range(20):
                with pytest.raises(NoToken, match="expected a token with HTTP 200, not HTTP 500"):
                    await send(client)
                await anyio.sleep(0.25)
        assert world.fetches == 3

    async def test_a_send_waits_out_a_hiccup(self, world) -> None:
        world.trouble = [error(503, **{"Retry-After": "3"}), httpx.ReadError("")]
        async with client_of(world, retry=RetryPolicy()) as client:
            start = anyio.current_time()
            assert await send(client) == {"echoed": {"n": 1}}
            assert 4.0 < anyio.current_time() - start < 8.0
        assert (world.fetches, len(world.shown)) == (3, 1)

    async def test_a_refusal_is_not_asked_about_again(self, world, caplog) -> None:
        caplog.set_level(logging.DEBUG)
        world.trouble = [error(401, "invalid_client")]
        async with client_of(world, retry=RetryPolicy()) as client:
            with pytest.raises(NoToken, match=r"unknown client, or wrong.*\(invalid_client\)") as caught:
                await send(client)
        assert (world.fetches, caught.value.refused) == (1, True)
        assert "s3cret" not in caplog.text + repr(client) + str(caught.value) + repr(caught.value)

    @pytest.mark.parametrize(
        ("answer", "told"),
        [
            (error(400, "evil <b>"), "it doesn't give this client what it asks for;"),
            (error(400, "invalid_scope"), "these scopes (invalid_scope)"),
            (lambda: httpx.Response(200, text="{"), "expected a JSON object with a token"),
            (
                lambda: httpx.Response(200, json={"access_token": "a b", "token_type": "bearer"}),
                "expected an access_token",
            ),
            (lambda: httpx.Response(200, content=b"x" * 70_000), "expected at most 65536 bytes"),
            (lambda: httpx.Response(302, headers={"location": "https://elsewhere.example"}), "redirect"),
            (httpx.ConnectError("refused"), "can't connect"),
            (httpx.ReadTimeout(""), "nothing within 10 s"),
        ],
    )
    async def test_the_error_says_what_went_wrong(self, world, answer, told) -> None:
        world.trouble = [answer]
        async with client_of(world) as client:
            with pytest.raises(NoToken) as caught:
                await send(client)
        assert told in str(caught.value)
        assert str(caught.value).startswith(f"no access token from {ISSUER}")
        assert "evil" not in str(caught.value)

    async def test_less_than_was_asked_for_is_logged(self, world, caplog) -> None:
        narrow = {"access_token": "t", "token_type": "bearer", "scope": "read"}
        world.good.add("t")
        world.trouble = [lambda: httpx.Response(200, json=narrow)]
        async with client_of(world, {BASE: credentials(scopes="read write")}) as client:
            await send(client)
        assert "a token without write" in caplog.text


class TestLeaving:
    @pytest.mark.parametrize("seconds", [0.0, 1.0])
    async def test_at_each_await_leaves_nothing_behind_and_the_others_are_answered(self, world, seconds) -> None:
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
        self.tokens = JwtAuthenticator(policy, transport=self)
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


class TestBoundToAKey:
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

    async def test_nonces_of_either_are_taken_up_with_one_more_request(self, bound) -> None:
        world = bound(nonce=True)
        world.nonce = "n-1"
        async with world.tokens, client_of(world, {BASE: credentials(dpop=self.KEY)}) as client:
            for _ in range(3):
                await send(client)
        assert [asked.get("nonce") for asked in world.asked] == [None, "n-1"]
        assert len(world.shown) == 4

    async def test_a_server_that_wants_another_nonce_each_time_is_not_asked_for_ever(self, bound) -> None:
        world = bound()
        world.nonce = "n-1"

        def refuse(proof: str) -> httpx.Response:
            world.asked.append(proof)
            headers = {"dpop-nonce": f"n-{len(world.asked)}"}
            return httpx.Response(400, json={"error": "use_dpop_nonce"}, headers=headers)

        world.issue = refuse
        async with client_of(world, {BASE: credentials(dpop=self.KEY)}) as client:
            with pytest.raises(NoToken, match="use_dpop_nonce"):
                await send(client)
        assert len(world.asked) == 2

    async def test_one_that_is_not_bound_is_not_what_was_asked_for(self, bound) -> None:
        world = bound()
        world.token_type = "Bearer"
        async with client_of(world, {BASE: credentials(dpop=self.KEY)}) as client:
            with pytest.raises(NoToken, match="expected token_type DPoP"):
                await send(client)
        assert world.shown == []

    async def test_without_the_key_it_is_useless(self, bound) -> None:
        world = bound()
        async with world.tokens, client_of(world, {BASE: credentials(dpop=self.KEY)}) as client:
            await send(client)
            world.shown.clear()
            stolen = (await token_of(client, credentials(dpop=self.KEY))).token.value
            async with client_of(world, {BASE: stolen}) as thief:
                with pytest.raises(RemoteError, match="Invalid authentication token"):
                    await send(thief)
