"""Tokens made by joserfc, a provider that behaves and one that doesn't, on both backends, in virtual time."""

import json
import time
import warnings
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from joserfc import jwt
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from asap_adapters import HttpOptions
from asap_adapters.auth import DpopKey, ProviderUnavailable
from asap_adapters.auth.jwt import JwtAuthenticator, is_signature
from asap_adapters.testing import InProcessTransport
from asap_core import Authenticated, RemoteError
from asap_core.auth.claims import ByClaim, TokenPolicy
from asap_core.auth.jwks import read_key_set
from asap_core.auth.jws import Algorithm, read_jws
from asap_core.auth.principal import Credential, InsufficientScope
from asap_core.testing import TokenIssuer, key_sets, nearly_valid_tokens
from tests.adapters.client.test_cancelling import Interrupted
from tests.core.testing.measured import examples_of

pytestmark = pytest.mark.anyio

ISSUER, AUDIENCE = "https://id.example", "urn:asap:agent:echo-agent"
ALICE, TESTER = "urn:asap:agent:alice", "urn:asap:agent:tester"
BASE = "http://localhost"
# By kind: keys are slow to make.
MADE: Any = {
    "EdDSA": OKPKey.generate_key("Ed25519", {"kid": "ed"}, private=True),
    "ES256": ECKey.generate_key("P-256", {"kid": "ec"}, private=True),
    "RS256": RSAKey.generate_key(2048, {"kid": "rsa"}, private=True),
}
OTHER = OKPKey.generate_key("Ed25519", {"kid": "ed"}, private=True)


def claims(**changes):
    now = int(time.time())
    return {"iss": ISSUER, "aud": AUDIENCE, "sub": ALICE, "exp": now + 36_000, "iat": now, **changes}


def token(key=MADE["EdDSA"], *, alg="EdDSA", header=None, **changes) -> str:
    kid = {} if key.kid is None else {"kid": key.kid}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # providers still call it EdDSA, whatever RFC 9864 says
        return jwt.encode({"alg": alg, **kid, **(header or {})}, claims(**changes), key, algorithms=[alg])


class Provider(httpx.AsyncBaseTransport):
    """An identity provider in memory: what it says can be changed, and how it fails."""

    def __init__(self, *keys) -> None:
        self.keys: Any = list(keys or MADE.values())
        self.asked: Any = []
        self.metadata: Any = {"issuer": ISSUER, "jwks_uri": f"{ISSUER}/keys"}
        self.seconds = 0.0
        self.fail: Any = None
        self.answers: Any = {}
        self.headers: Any = {}

    @property
    def fetches(self) -> int:
        return int(self.asked.count("/keys"))

    async def handle_async_request(self, request):
        self.asked.append(request.url.path)
        await anyio.sleep(self.seconds)
        if self.fail is not None:
            raise self.fail
        if request.url.path in self.answers:
            return self.answers[request.url.path]()
        if request.url.path == "/.well-known/openid-configuration":
            return httpx.Response(200, json=self.metadata)
        if request.url.path == "/keys":
            keys = [key.as_dict(private=False) for key in self.keys]
            return httpx.Response(200, json={"keys": keys}, headers=self.headers)
        return httpx.Response(404)


def tokens(provider, **changes):
    policy = {"issuer": ISSUER, "audience": AUDIENCE, "agent": ByClaim("sub"), **changes}
    return JwtAuthenticator(TokenPolicy(**policy), http=HttpOptions(transport=provider))


async def ask(made, text):
    """The agent of the token, None, the missing scopes, or "unavailable"."""
    try:
        found = await made.verify(Credential(text))
    except ProviderUnavailable:
        return "unavailable"
    return found.urn if isinstance(found, Authenticated) else found


class TestTokens:
    @pytest.mark.parametrize("alg", list(MADE))
    async def test_tokens_of_each_algorithm_are_accepted(self, alg) -> None:
        provider = Provider()
        async with tokens(provider) as made:
            assert await ask(made, token(MADE[alg], alg=alg)) == ALICE
            assert await ask(made, token(MADE[alg], alg=alg)) == ALICE
        assert provider.asked == ["/.well-known/openid-configuration", "/keys"]

    @pytest.mark.parametrize("alg", ["ES256", "Ed25519"])
    async def test_tokens_that_break_one_rule_are_refused(self, alg) -> None:
        issuer = TokenIssuer(
            key=DpopKey.generate(alg),
            forger=DpopKey.generate(alg),
            issuer=ISSUER,
            audience=AUDIENCE,
            agent=ALICE,
            wall=time.time,
        )
        provider = Provider()
        provider.answers["/keys"] = lambda: httpx.Response(200, json=examples_of(key_sets(issuer))[-1])
        async with tokens(provider) as made:
            for drawn in examples_of(nearly_valid_tokens(issuer), 150):
                assert await ask(made, drawn.mended) == ALICE
                assert await ask(made, drawn.token) is None, drawn.rule

    async def test_the_algorithm_name_ed25519_is_accepted(self) -> None:
        async with tokens(Provider()) as made:
            assert await ask(made, token(alg="Ed25519")) == ALICE

    async def test_a_token_signed_by_another_key_with_the_same_kid_is_refused(self) -> None:
        async with tokens(Provider()) as made:
            assert await ask(made, token(OTHER)) is None

    async def test_a_public_key_is_not_accepted_as_an_hmac_secret(self) -> None:
        # HMAC under the public key, as PEM and as it's published: a verifier that lets the header choose takes it.
        public = MADE["RS256"].as_pem(private=False)
        async with tokens(Provider()) as made:
            for secret in (public, public.strip(), json.dumps(MADE["RS256"].as_dict(private=False)).encode()):
                forged = token(OctKey.import_key(secret.hex(), {"kid": "rsa"}), alg="HS256")
                assert await ask(made, forged) is None

    async def test_keys_and_urls_in_the_header_are_ignored(self) -> None:
        provider = Provider()
        evil = {
            "jwk": OTHER.as_dict(private=False),
            "jku": "https://evil.example/keys",
            "x5u": "https://evil.example/x",
        }
        async with tokens(provider) as made:
            for name, value in evil.items():
                assert await ask(made, _signed({"alg": "EdDSA", "kid": "ed", name: value}, OTHER)) is None
                assert await ask(made, _signed({"alg": "EdDSA", "kid": "ed", name: value}, MADE["EdDSA"])) == ALICE
        assert provider.asked == ["/.well-known/openid-configuration", "/keys"]

    async def test_a_token_with_one_changed_character_is_refused(self) -> None:
        good = token()
        async with tokens(Provider()) as made:
            assert await ask(made, good) == ALICE
            for place in range(len(good)):
                for other in "Aaz0_-.":
                    changed = good[:place] + other + good[place + 1 :]
                    if changed != good:
                        assert await ask(made, changed) is None

    async def test_required_scopes_are_checked(self) -> None:
        async with tokens(Provider(), scopes=["asap.call"]) as made:
            assert await ask(made, token()) == InsufficientScope(frozenset({"asap.call"}))
            assert await ask(made, token(scope="x asap.call")) == ALICE


def _signed(header, key) -> str:
    from base64 import urlsafe_b64encode

    parts = [urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims())]
    signature = key.get_op_key("sign").sign(b".".join(parts))
    return b".".join([*parts, urlsafe_b64encode(signature).rstrip(b"=")]).decode()


class TestSignatures:
    @pytest.mark.parametrize("alg", list(MADE))
    @given(data=st.data())
    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    def test_random_bytes_are_no_signature(self, alg, data) -> None:
        jws: Any = read_jws(token(MADE[alg], alg=alg), algorithms=frozenset(Algorithm))
        (key,) = read_key_set(json.dumps({"keys": [MADE[alg].as_dict(private=False)]}).encode()).keys
        assert is_signature(key, jws.signing_input, jws.signature)
        size = len(jws.signature)
        other = data.draw(st.binary(min_size=size, max_size=size) | st.binary(max_size=80))
        assert not is_signature(key, jws.signing_input, other)


class TestAskingTheProvider:
    async def test_a_thousand_first_requests_cause_one_fetch(self) -> None:
        provider, found = Provider(), []
        provider.seconds = 0.5

        async def one(made) -> None:
            found.append(await ask(made, token()))

        async with tokens(provider) as made, anyio.create_task_group() as all_at_once:
            for _ in range(1_000):
                all_at_once.start_soon(one, made)
        assert found == [ALICE] * 1_000
        assert provider.asked == ["/.well-known/openid-configuration", "/keys"]

    @pytest.mark.parametrize("failure", [httpx.ConnectError("x"), httpx.ReadTimeout("x"), "hangs", "huge", "redirects"])
    async def test_present_keys_serve_while_the_provider_fails(self, failure, caplog) -> None:
        provider = Provider()
        async with tokens(provider, stale_for=600) as made:
            assert await ask(made, token()) == ALICE
            match failure:
                case Exception():
                    provider.fail = failure
                case "hangs":
                    provider.seconds = 1e6
                case "huge":
                    provider.answers["/keys"] = lambda: httpx.Response(200, content=b" " * 10_485_760)
                case _:
                    elsewhere = {"location": "https://evil.example/evil"}
                    provider.answers["/keys"] = lambda: httpx.Response(302, headers=elsewhere)
            for seconds, result in ((301, ALICE), (550, ALICE), (60, "unavailable")):
                await anyio.sleep(seconds)
                with anyio.fail_after(35):
                    assert await ask(made, token()) == result
            provider.fail, provider.seconds, provider.answers = None, 0.0, {}
            await anyio.sleep(31)
            assert await ask(made, token()) == ALICE
        assert "the identity provider's keys can't be had: " in caplog.text
        assert "/evil" not in provider.asked


@pytest.mark.parametrize("natively", [False, True], ids=["by a scope", "by task.cancel()"])
async def test_the_other_callers_are_answered_if_one_is_cancelled(natively: bool, anyio_backend_name: str) -> None:
    if natively and anyio_backend_name == "trio":
        pytest.skip("cannot run anywhere here: trio has no other cancellation than its scopes")
    at = 0
    while True:
        at += 1
        provider, interrupted = Provider(), Interrupted(at, natively=natively)
        found: list[Any] = []
        provider.seconds = 1.0
        async with tokens(provider) as made:

            async def first(made=made, interrupted=interrupted) -> None:
                await interrupted.run(made.verify(Credential(token())))

            async def other(made=made, found=found) -> None:
                found.append(await ask(made, token()))

            async with anyio.create_task_group() as group:
                # All come before the first leaves: if it left alone, that would count as a failure of the provider.
                group.start_soon(first)
                for _ in range(3):
                    group.start_soon(other)
            assert found == [ALICE] * 3
            assert (made._authentication.waiting, made._authentication._keys.waiting) == (0, 0)
        # At most the request is lost that was under way.
        assert len(provider.asked) <= 3
        if interrupted.awaits < at:
            break
    assert at > 2


class TestThroughAnAgent:
    @pytest.fixture
    def call(self, agent, client_of, echo_handlers):
        async def send(provider, text, **policy):
            async with tokens(provider, **policy) as made:
                transport = InProcessTransport(agent(auth=True), echo_handlers, authenticate=made.verify)
                async with client_of(transport, token=text) as client:
                    return await answer(client)

        async def answer(client):
            try:
                reply = await client.send(
                    BASE, "task.request", {"skill_id": "echo", "conversation_id": "c", "input": {}}
                )
            except RemoteError as error:
                return error.taxonomy
            return reply.payload_type

        return send

    @pytest.mark.parametrize(
        ("changes", "policy", "answer"),
        [
            ({"sub": TESTER}, {}, "task.response"),
            # The token is good, and another agent's: its bearer can't send as anyone else.
            ({"sub": ALICE}, {}, "asap:auth/sender_mismatch"),
            ({"sub": TESTER, "aud": "x"}, {}, "asap:auth/invalid_token"),
            ({"sub": TESTER, "exp": None}, {}, "asap:auth/invalid_token"),
            ({"sub": TESTER}, {"scopes": ["a"]}, "asap:auth/insufficient_scope"),
            ({"sub": TESTER, "scope": "b a"}, {"scopes": ["a"]}, "task.response"),
        ],
    )
    async def test_the_sender_must_be_the_agent_of_the_token(self, call, changes, policy, answer) -> None:
        found = await call(Provider(), token(**changes), **policy)
        assert found.lower().replace("taskresponse", "task.response") == answer

    async def test_requests_are_unavailable_without_the_provider(self, call) -> None:
        provider = Provider()
        provider.fail = httpx.ConnectError("x")
        found = await call(provider, token(sub=TESTER))
        assert found == "asap:admission/unavailable"
