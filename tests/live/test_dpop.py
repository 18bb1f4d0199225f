"""Proofs of possession at real servers: replayed, stolen, over restarts, with Redis and several workers."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import httpx
import pytest

from asap_adapters import HttpOptions, Redis, StateFile, serve
from asap_adapters.auth.client_keys import DpopKey
from asap_adapters.auth.jwt import JwtAuthenticator
from asap_adapters.cli.echo_agent import ECHO_ID, echo, echo_manifest
from asap_adapters.server.listener import listen, url_of
from asap_core import Agent, Policy
from asap_core.auth.claims import ByClaim, TokenPolicy
from asap_core.auth.dpop_server import DpopPolicy
from tests.adapters.auth.test_dpop import ISSUER, THIEF, Provider, body, error, proof, token
from tests.live.command import ALICE, asap, backend, served
from tests.live.test_oidc import AUDIENCE, SECRET, provider
from tests.live.test_workers import redis, send, start

__all__ = ["backend", "provider", "redis", "served", "start"]

pytestmark = pytest.mark.live

# Behind one name, as a proxy in front of them has it.
PUBLIC = "https://agent.example/agents/echo"


@asynccontextmanager
async def serving(base: str | None = None, policy=None, **options) -> AsyncIterator[str]:
    """Our server on a free port: the URL that it's called at. `base` is what its manifest says instead."""
    tokens = TokenPolicy(issuer=ISSUER, audience=ECHO_ID, agent=ByClaim("sub"), dpop=options.pop("dpop", "allowed"))
    async with JwtAuthenticator(tokens, http=HttpOptions(transport=Provider()), nonce_secret=b"n" * 32) as made:
        bound = await listen("127.0.0.1", 0)
        here = url_of("127.0.0.1", bound.port, tls=False)
        manifest = echo_manifest(ECHO_ID, base or here, auth=True)
        fields: Any = {"peer_limits": (), "start": "open", **(policy or {})}
        stop = anyio.Event()
        async with anyio.create_task_group() as group:
            run = partial(serve, Agent(manifest, policy=Policy(**fields)), {"echo": echo}, at=bound, stop=stop)
            await group.start(partial(run, authenticate=made.verify, **options))
            yield f"{here}/asap"
            stop.set()


async def post(url: str, text: str, shown: str, *, scheme: str = "DPoP") -> httpx.Response:
    headers = {"authorization": f"{scheme} {text}", "dpop": shown}
    async with httpx.AsyncClient(trust_env=False, timeout=20) as http:
        return await http.post(url, headers=headers, content=body())


@pytest.mark.anyio
class TestAtARealServer:
    async def test_a_proof_is_accepted_once_and_for_its_own_request_only(self) -> None:
        text = token()
        async with serving() as url:
            shown = proof(text=text, url=url)
            assert "result" in (await post(url, text, shown)).json()
            assert error(await post(url, text, shown)) == "invalid_dpop_proof"
            for wrong in (
                proof(text=text, url=url, method="GET"),
                proof(text=text, url=f"{url}/stream"),
                proof(text=text, url=url.replace("127.0.0.1", "localhost")),
                proof(text=token(sub="urn:asap:agent:x"), url=url),
            ):
                assert error(await post(url, text, wrong)) == "invalid_dpop_proof"
            assert error(await post(url, text, proof(THIEF, text=text, url=url))) == "invalid_token"
            assert error(await post(url, text, proof(text=text, url=url), scheme="Bearer")) == "invalid_token"
            assert "result" in (await post(url, text, proof(text=text, url=url))).json()

    async def test_a_proof_behind_a_proxy_is_for_the_url_in_the_manifest(self) -> None:
        text = token()
        async with serving(PUBLIC) as url:
            assert error(await post(url, text, proof(text=text, url=url))) == "invalid_dpop_proof"
            assert "result" in (await post(url, text, proof(text=text, url=f"{PUBLIC}/asap"))).json()

    async def test_a_proof_from_before_a_restart_is_refused_after_it(self, tmp_path) -> None:
        text, public = token(), f"{PUBLIC}/asap"
        shown = proof(text=text, url=public)
        async with serving(PUBLIC, storage=StateFile(tmp_path / "state")) as url:
            assert "result" in (await post(url, text, shown)).json()
        async with serving(PUBLIC, storage=StateFile(tmp_path / "state")) as url:
            assert error(await post(url, text, shown)) == "invalid_dpop_proof"
            assert "result" in (await post(url, text, proof(text=text, url=public))).json()
        # Without a state file all that's dated before the start is, and it's told to come again.
        async with serving(PUBLIC, policy={"start": "floor"}) as url:
            refused = await post(url, text, shown)
            assert (refused.status_code, refused.headers["retry-after"] >= "1") == (503, True)

    async def test_servers_that_share_redis_accept_a_proof_once(self, redis) -> None:
        text, public = token(), f"{PUBLIC}/asap"
        dpop = DpopPolicy(nonce=True)
        async with (
            serving(PUBLIC, storage=Redis(redis.url), dpop=dpop) as one,
            serving(PUBLIC, storage=Redis(redis.url), dpop=dpop) as two,
        ):
            nonce = (await post(one, text, proof(text=text, url=public))).headers["dpop-nonce"]
            shown = proof(text=text, url=public, nonce=nonce)
            assert "result" in (await post(two, text, shown)).json()
            assert error(await post(one, text, shown)) == "invalid_dpop_proof"
            assert error(await post(two, text, shown)) == "invalid_dpop_proof"

    async def test_a_proof_is_answered_503_while_redis_is_down(self, redis) -> None:
        text = token()
        async with serving(PUBLIC, storage=Redis(redis.url)) as url:
            redis.kill()
            try:
                answer = await post(url, text, proof(text=text, url=f"{PUBLIC}/asap"))
                assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
            finally:
                redis.start()


def past_the_second_of_its_start() -> None:
    """Proofs are dated in whole seconds: one of that second may have been made before the start."""
    time.sleep(1.0 - time.time() % 1.0)


class TestFromTheCommandLine:
    @pytest.fixture
    def who(self, tmp_path, provider):
        (tmp_path / "secret").write_text(SECRET)
        DpopKey.generate().save(tmp_path / "key.pem")
        secret = ["--client-secret-file", str(tmp_path / "secret")]
        key = ["--dpop-key", str(tmp_path / "key.pem")]
        return ["--sender", ALICE, "--issuer", provider.issuer, "--client-id", "client-7", *secret], key

    @pytest.fixture
    def options(self, provider):
        return ["--oidc", provider.issuer, "--audience", AUDIENCE, "--subject", f"client-7={ALICE}"]

    def test_only_a_client_that_proves_its_key_is_accepted(self, served, who, options) -> None:
        url, _ = served(*options, "--dpop", "required", "--dpop-nonce")
        past_the_second_of_its_start()
        client, key = who
        done = asap("send", url, "--skill", "echo", *client, *key)
        assert (done.returncode, done.stdout) == (0, 'completed: {"echoed": {}}\n'), done.stderr
        assert "Invalid authentication token" in asap("send", url, "--skill", "echo", *client).stderr

    def test_nonces_are_valid_at_every_worker(self, start, who, options) -> None:
        url, _ = start(*options, "--dpop", "required", "--dpop-nonce")
        past_the_second_of_its_start()
        for _ in range(4):
            done = send(url, *who[0], *who[1])
            assert done.returncode == 0, done.stderr
