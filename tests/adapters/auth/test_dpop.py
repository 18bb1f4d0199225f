"""Proofs of possession by joserfc: RFC 9449's own, keys in files, and whole requests that carry them."""

import json
import stat
import time
import warnings
from base64 import urlsafe_b64decode, urlsafe_b64encode
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import httpx
import pytest
from attrs import evolve
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings, strategies as st
from joserfc import jws, jwt
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, OKPKey

from asap_adapters import AsgiApp, HttpOptions, RemoteError
from asap_adapters.auth.client_keys import DpopKey
from asap_adapters.auth.jwt import JwtAuthenticator, is_signature
from asap_adapters.testing import InProcessTransport
from asap_core import Authenticated, Envelope
from asap_core.auth.authorization import ClientCredentials
from asap_core.auth.claims import ByClaim, TokenPolicy
from asap_core.auth.client_credentials import ClientSecret
from asap_core.auth.dpop_client import ProofClaims, make_proof
from asap_core.auth.dpop_server import DpopPolicy, UnverifiedProof, read_proof
from asap_core.auth.principal import Credential, DpopProof, ProofRefused, Proven
from asap_core.client.delivery import RetryPolicy
from asap_core.clock import WallTime
from asap_core.wire.codec import encode_envelope
from tests.adapters.client.test_cancelling import Interrupted
from tests.clients import make_client

pytestmark = pytest.mark.anyio

ALGORITHMS: Any = ["ES256", "Ed25519"]
BASE, ISSUER, AUDIENCE = "https://agent.example", "https://id.example", "urn:asap:agent:echo-agent"
URL, ME = f"{BASE}/asap", "urn:asap:agent:tester"

# RFC 9449, figures 2 and 13: the same key, for a token endpoint and for a resource.
HEADER = (
    "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJo"
    "RjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19"
)
FOR_A_TOKEN = (
    f"{HEADER}.eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2Vu"
    "IiwiaWF0IjoxNTYyMjYyNjE2fQ.2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg4PtFLbdLXiOSsX0x7NVY-FNyJK70nfbV37xRZT3Lg"
)
FOR_A_RESOURCE = (
    f"{HEADER}.eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR0VUIiwiaHR1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90"
    "ZWN0ZWRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCwiYXRoIjoiZlVIeU8ycjJaM0RaNTNFc05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFFbyJ9"
    ".2oW9RP35yRqzhrtNP86L-Ey71EOptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA"
)
RESOURCE = DpopProof(text=FOR_A_RESOURCE, method="GET", url="https://resource.example.org/protectedresource")
TOKEN = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"


def judged(shown, *, wall=1_562_262_618):
    """The proof, or why it's refused, its signature looked at too."""
    found = read_proof(shown, token=TOKEN, policy=DpopPolicy(), mint=None, wall=wall)
    if isinstance(found, UnverifiedProof) and not is_signature(found.key, found.signing_input, found.signature):
        return ProofRefused("a signature")
    return found


class TestRfcExamples:
    def test_the_proof_of_a_resource_request_is_verified(self) -> None:
        found = judged(RESOURCE)
        assert isinstance(found, UnverifiedProof)
        # Figure 8: what the token's cnf has.
        assert found.thumbprint == "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
        assert found.proof_id == "e1j3V_bKic8-LAEB"

    def test_the_proof_of_a_token_request_is_signed_and_valid_for_no_resource(self) -> None:
        shown = DpopProof(text=FOR_A_TOKEN, method="POST", url="https://server.example.com/token")
        assert judged(shown, wall=1_562_262_616) == ProofRefused("ath to be the hash of the token")
        key = ECKey.import_key(json.loads(urlsafe_b64decode(HEADER + "=="))["jwk"])
        registry = jws.JWSRegistry(header_registry={}, strict_check_header=False)
        assert b"token" in jws.deserialize_compact(FOR_A_TOKEN, key, registry=registry).payload

    @pytest.mark.parametrize(
        "change", [{"method": "POST"}, {"url": "https://resource.example.org/"}, {"text": FOR_A_TOKEN}]
    )
    def test_the_proof_of_the_rfc_is_refused_for_any_other_request(self, change) -> None:
        assert isinstance(judged(evolve(RESOURCE, **change)), ProofRefused)

    def test_a_proof_with_one_changed_character_is_refused(self) -> None:
        for place in range(len(FOR_A_RESOURCE)):
            for other in "Az0_.":
                changed = FOR_A_RESOURCE[:place] + other + FOR_A_RESOURCE[place + 1 :]
                if changed != FOR_A_RESOURCE:
                    assert isinstance(judged(evolve(RESOURCE, text=changed)), ProofRefused)

    @settings(max_examples=300, deadline=None)
    @given(data=st.data())
    def test_each_mutated_claim_or_header_is_refused(self, data) -> None:
        parts = [json.loads(urlsafe_b64decode(part + "==")) for part in FOR_A_RESOURCE.split(".")[:2]]
        part = data.draw(st.sampled_from(parts))
        name = data.draw(st.sampled_from(sorted(part)))
        leaf = st.none() | st.booleans() | st.integers() | st.text()
        other = data.draw(leaf | st.lists(leaf, max_size=2) | st.dictionaries(st.text(max_size=3), leaf, max_size=2))
        if other == part[name] and type(other) is type(part[name]):
            return
        part[name] = other
        texts = [urlsafe_b64encode(json.dumps(each).encode()).rstrip(b"=").decode() for each in parts]
        changed = ".".join([*texts, FOR_A_RESOURCE.split(".")[2]])
        assert isinstance(judged(evolve(RESOURCE, text=changed)), ProofRefused)


def _pem(key, cipher=None) -> bytes:
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, cipher or NoEncryption()))


class TestKeys:
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_files_are_readable_by_their_owner_only(self, algorithm, tmp_path: Path) -> None:
        key, path = DpopKey.generate(algorithm), tmp_path / "key.pem"
        key.save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        again = DpopKey.load(str(path))
        assert (again.thumbprint, again.algorithm, again.public_jwk) == (key.thumbprint, key.algorithm, key.public_jwk)
        with pytest.raises(FileExistsError):
            key.save(path)

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_no_repr_shows_the_private_part(self, algorithm) -> None:
        key = DpopKey.generate(algorithm)
        assert set(key.public_jwk) <= {"kty", "crv", "x", "y"}
        assert repr(key) == str(key) == "DpopKey()"

    def test_the_thumbprint_equals_that_of_joserfc(self) -> None:
        for algorithm in ALGORITHMS:
            key = DpopKey.generate(algorithm)
            assert key.thumbprint == key._key.thumbprint()

    @pytest.mark.parametrize(
        ("encoding", "form"), [(Encoding.PEM, PrivateFormat.OpenSSH), (Encoding.DER, PrivateFormat.PKCS8)]
    )
    def test_other_forms_of_the_same_key_are_read(self, encoding, form, tmp_path: Path) -> None:
        key, path = ec.generate_private_key(ec.SECP256R1()), tmp_path / "key"
        path.write_bytes(key.private_bytes(encoding, form, NoEncryption()))
        assert DpopKey.load(path).public_jwk == ECKey.import_key(_pem(key)).as_dict(private=False)

    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"no key",
            b"x" * 5_000,
            _pem(rsa.generate_private_key(65_537, 2_048)),
            _pem(ec.generate_private_key(ec.SECP384R1())),
            _pem(ec.generate_private_key(ec.SECP256R1()), BestAvailableEncryption(b"pass")),
            ECKey.generate_key("P-256").as_pem(private=False),
            OKPKey.generate_key("X25519").as_pem(private=True),
        ],
    )
    def test_other_files_are_refused(self, text: bytes, tmp_path: Path) -> None:
        path = tmp_path / "key.pem"
        path.write_bytes(text)
        with pytest.raises(ValueError, match="expected a key on P-256 or an Ed25519 key"):
            DpopKey.load(path)


class TestMakingProofs:
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_joserfc_accepts_our_proofs(self, algorithm) -> None:
        key = DpopKey.generate(algorithm)
        proof = make_proof(
            key, ProofClaims(method="POST", url=URL, issued=WallTime(5.5), jti="j", access_token="t", nonce="n")
        )
        read: Any = ECKey if algorithm == "ES256" else OKPKey
        registry = jws.JWSRegistry(header_registry={}, algorithms=["ES256", "EdDSA"], strict_check_header=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SecurityWarning)  # servers still call it EdDSA, whatever RFC 9864 says
            found = jws.deserialize_compact(proof, read.import_key(dict(key.public_jwk)), registry=registry)
        assert found.headers()["jwk"] == key.public_jwk


# --- whole requests --------------------------------------------------------------------------------------------------

ISSUERS = ECKey.generate_key("P-256", {"kid": "one"}, private=True)
KEY, THIEF = DpopKey.generate(), DpopKey.generate("Ed25519")


def token(key=KEY, **changes) -> str:
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": ME, "exp": int(time.time()) + 36_000, **changes}
    cnf = {} if key is None else {"cnf": {"jkt": key.thumbprint}}
    return jwt.encode({"alg": "ES256", "kid": "one"}, {**claims, **cnf}, ISSUERS)


def proof(key=KEY, *, text, method: str = "POST", url: str = URL, jti: str = "", age: float = 0.0, **more) -> str:
    jti = jti or f"j{time.monotonic_ns()}"
    wall = WallTime(time.time() - age)
    return make_proof(key, ProofClaims(method=method, url=url, issued=wall, jti=jti, access_token=text, **more))


class Provider(httpx.AsyncBaseTransport):
    """An identity provider: its keys, and tokens bound to the key of the proof."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.issued = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await anyio.sleep(self.seconds)
        match request.url.path:
            case "/keys":
                return httpx.Response(200, json={"keys": [ISSUERS.as_dict(private=False)]})
            case "/token":
                self.issued += 1
                head = json.loads(urlsafe_b64decode(request.headers["dpop"].split(".")[0] + "=="))
                jkt = ECKey.import_key(head["jwk"]).thumbprint()
                text = token(None, cnf={"jkt": jkt})
                return httpx.Response(200, json={"access_token": text, "token_type": "DPoP", "expires_in": 3600})
            case _:
                endpoints = {"jwks_uri": f"{ISSUER}/keys", "token_endpoint": f"{ISSUER}/token"}
                return httpx.Response(200, json={"issuer": ISSUER, **endpoints})


def tokens(provider=None, **dpop) -> JwtAuthenticator:
    policy = TokenPolicy(issuer=ISSUER, audience=AUDIENCE, agent=ByClaim("sub"), dpop=DpopPolicy(**dpop))
    return JwtAuthenticator(policy, http=HttpOptions(transport=provider or Provider()))


def body() -> bytes:
    envelope = Envelope.new(
        sender=ME,
        recipient=AUDIENCE,
        payload_type="task.request",
        payload={"conversation_id": "c", "skill_id": "echo", "input": {}},
        ids=lambda: f"id{time.monotonic_ns()}",
        wall=WallTime(time.time()),
    )
    call = {"jsonrpc": "2.0", "method": "asap.send", "id": 1, "params": {"envelope": encode_envelope(envelope)}}
    return json.dumps(call).encode()


@pytest.fixture(params=["in process", "asgi"])
def serving(request, agent, manifest, echo_handlers):
    """An httpx transport to an agent that accepts these tokens."""

    def make(made: JwtAuthenticator, **policy):
        from asap_core import Agent, Endpoints

        one = Agent(manifest(auth=True, endpoints=Endpoints(asap=URL)), policy=agent(**policy).policy)
        if request.param == "in process":
            return InProcessTransport(one, echo_handlers, authenticate=made.verify)
        return httpx.ASGITransport(app=AsgiApp(one, echo_handlers, authenticate=made.verify))

    return make


async def post(transport, text: str, *proofs: str, scheme: str = "DPoP") -> httpx.Response:
    headers = [("authorization", f"{scheme} {text}"), *(("dpop", each) for each in proofs)]
    request = httpx.Request("POST", URL, headers=headers, content=body())
    response: httpx.Response = await transport.handle_async_request(request)
    await response.aread()
    return response


def error(response: httpx.Response):
    """The error code in the challenge."""
    assert response.status_code == 401
    assert 'DPoP realm="asap", algs="ES256 Ed25519 EdDSA RS256"' in response.headers["www-authenticate"]
    found = response.headers["www-authenticate"].partition('error="')[2]
    return found.partition('"')[0]


class TestWholeRequests:
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    async def test_each_proof_of_the_key_is_accepted_once(self, serving, algorithm) -> None:
        key = DpopKey.generate(algorithm)
        async with tokens() as made:
            transport, text = serving(made), token(key)
            for _ in range(3):
                shown = proof(key, text=text)
                assert "result" in (await post(transport, text, shown)).json()
                # Another envelope, the same proof.
                assert error(await post(transport, text, shown)) == "invalid_dpop_proof"

    async def test_a_proof_for_another_request_is_refused(self, serving) -> None:
        async with tokens() as made:
            transport, text = serving(made), token()
            for wrong in (
                proof(text=text, method="GET"),
                proof(text=text, url="https://evil.example/asap"),
                proof(text=text, url=f"{URL}/stream"),
                proof(text=token(sub="urn:asap:agent:x")),
                proof(text=None),
                proof(text=text, age=90),
                proof(text=text, age=-90),
                proof(text=text)[:-4] + "AAAA",
                "x",
            ):
                assert error(await post(transport, text, wrong)) == "invalid_dpop_proof"
            good = proof(text=text)
            assert error(await post(transport, text, good, good)) == "invalid_dpop_proof"
            assert error(await post(transport, text)) == "invalid_dpop_proof"
            assert (await post(transport, text, good)).status_code == 200

    async def test_a_stolen_token_is_refused_without_its_key(self, serving) -> None:
        async with tokens() as made:
            transport, text = serving(made), token()
            for _ in range(2):  # the second time it's remembered
                assert error(await post(transport, text, scheme="Bearer")) == "invalid_token"
                assert error(await post(transport, text, proof(text=text), scheme="Bearer")) == "invalid_token"
                assert error(await post(transport, text, proof(THIEF, text=text))) == "invalid_token"
                assert (await post(transport, text, proof(text=text))).status_code == 200

    async def test_a_failed_proof_uses_up_no_id(self, serving) -> None:
        async with tokens() as made:
            transport, text = serving(made), token()
            forged = proof(text=text, jti="mine")[:-4] + "AAAA"
            assert error(await post(transport, text, forged)) == "invalid_dpop_proof"
            assert error(await post(transport, text, proof(THIEF, text=text, jti="mine"))) == "invalid_token"
            assert (await post(transport, text, proof(text=text, jti="mine"))).status_code == 200

    async def test_an_unbound_token_is_a_bearer_token(self, serving) -> None:
        async with tokens() as made:
            transport, text = serving(made), token(None)
            assert (await post(transport, text, scheme="Bearer")).status_code == 200
            assert error(await post(transport, text, proof(text=text))) == "invalid_token"

    async def test_dpop_may_be_required_or_off(self, serving) -> None:
        async with tokens(proofs="required") as made:
            transport = serving(made)
            response = await post(transport, token(None), scheme="Bearer")
            assert response.headers["www-authenticate"].startswith("DPoP ")
            assert error(response) == "invalid_token"
            assert (await post(transport, token(), proof(text=token()))).status_code == 401  # of another token
        async with tokens(proofs="off") as made:
            transport, text = serving(made), token()
            response = await post(transport, text, proof(text=text))
            assert (response.status_code, response.headers["www-authenticate"]) == (401, 'Bearer realm="asap"')

    async def test_a_wrapper_without_proofs_gets_no_proofs(self, agent, echo_handlers) -> None:
        async with tokens() as made:
            seen: list[Any] = []

            async def verify(credential: Credential):
                seen.append(credential)
                return await made.verify(credential)

            transport, text = InProcessTransport(agent(auth=True), echo_handlers, authenticate=verify), token()
            assert (await post(transport, text, proof(text=text))).status_code == 401
            assert (await post(transport, text, scheme="Bearer")).status_code == 401
            assert seen == [Credential(text)]
            wrapper = SimpleNamespace(verify=verify, proofs=made.proofs)
            transport = InProcessTransport(agent(auth=True), echo_handlers, authenticate=wrapper)
            url = agent().manifest.endpoints.asap
            assert (await post(transport, text, proof(text=text, url=url))).status_code == 200

    async def test_a_full_table_of_proofs_is_answered_503(self, serving) -> None:
        async with tokens() as made:
            transport, text = serving(made, nonces_per_sender=1), token()
            assert (await post(transport, text, proof(text=text))).status_code == 200
            full = await post(transport, text, proof(text=text))
            assert full.status_code == 503
            assert int(full.headers["retry-after"]) > 300

    async def test_logs_contain_nothing_of_a_proof(self, serving, caplog) -> None:
        caplog.set_level("DEBUG")
        caplog.set_level("DEBUG", "asap")
        async with tokens() as made:
            transport, text = serving(made), token()
            shown = proof(text=text, method="GET", jti="a-proofs-id")
            await post(transport, text, shown)
            await post(transport, text, proof(text=text, jti="a-proofs-id"))
            await post(transport, text, proof(text=text, jti="a-proofs-id"))
        assert "a proof was refused: expected htm" in caplog.text
        assert not any(secret in caplog.text for secret in (text, shown, "a-proofs-id"))


class TestNonces:
    async def test_a_client_takes_over_a_nonce_and_repeats_its_request(self, serving) -> None:
        provider = Provider()
        async with tokens(provider, nonce=True, proofs="required") as made:
            inner, statuses = serving(made), []

            class World(httpx.AsyncBaseTransport):
                async def handle_async_request(self, request: httpx.Request):
                    if request.url.host == "id.example":
                        return await provider.handle_async_request(request)
                    response = await inner.handle_async_request(request)
                    if request.method == "POST":
                        statuses.append(response.status_code)
                    return response

            credentials = ClientCredentials(client=ClientSecret("me", "s"), issuer=ISSUER, dpop=KEY)
            options: Any = {"retry": RetryPolicy(retries=0), "transport": World(), "auth": {BASE: credentials}}
            async with make_client(sender=ME, **options) as client:
                for _ in range(3):
                    await client.send(BASE, "task.request", {"skill_id": "echo", "input": {}})
            assert statuses == [401, 200, 200, 200]
            assert provider.issued == 1
            async with make_client(sender="urn:asap:agent:x", **options) as client:
                with pytest.raises(RemoteError, match="Sender does not match"):
                    await client.send(BASE, "task.request", {"skill_id": "echo", "input": {}})

    async def test_a_new_nonce_is_offered_after_its_lifetime(self, serving) -> None:
        async with tokens(nonce=True, nonce_life=1e9) as made:
            transport, text = serving(made), token()
            asked = await post(transport, text, proof(text=text))
            assert error(asked) == "use_dpop_nonce"
            nonce = asked.headers["dpop-nonce"]
            answer = await post(transport, text, proof(text=text, nonce=nonce))
            assert (answer.status_code, answer.headers.get("dpop-nonce")) == (200, None)
            mint: Any = made._authentication._verifier._mint
            old = mint._of(int(time.time() // 1e9) - 1)
            answer = await post(transport, text, proof(text=text, nonce=old))
            assert (answer.status_code, answer.headers["dpop-nonce"]) == (200, nonce)
            stale = mint._of(int(time.time() // 1e9) - 2)
            assert error(await post(transport, text, proof(text=text, nonce=stale))) == "use_dpop_nonce"

    async def test_processes_with_one_secret_issue_the_same_nonce(self, serving) -> None:
        policy = TokenPolicy(issuer=ISSUER, audience=AUDIENCE, agent=ByClaim("sub"), dpop=DpopPolicy(nonce=True))
        text, answers = token(), []
        for secret in (b"a" * 32, b"a" * 32, b"b" * 32):
            async with JwtAuthenticator(policy, http=HttpOptions(transport=Provider()), nonce_secret=secret) as made:
                answers.append((await post(serving(made), text, proof(text=text))).headers["dpop-nonce"])
        assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize("natively", [False, True], ids=["by a scope", "by task.cancel()"])
async def test_a_cancelled_check_uses_up_no_proof(natively: bool, anyio_backend_name: str) -> None:
    """A caller that leaves while its token is checked, or keys are fetched, may send the same proof again."""
    if natively and anyio_backend_name == "trio":
        pytest.skip("cannot run anywhere here: trio has no other cancellation than its scopes")
    at = 1
    while True:
        provider = Provider()
        provider.seconds = 0.1
        async with tokens(provider) as made:
            text = token()
            shown = DpopProof(text=proof(text=text), method="POST", url=URL)
            done: list[Any] = []

            async def verify(made=made, text=text, shown=shown, done=done) -> None:
                done.append(await made.verify(Credential(text, shown)))

            interrupted = Interrupted(at, natively=natively)
            ended = await interrupted.run(verify())
            if interrupted.awaits < at:
                assert ended
                break
            with anyio.fail_after(60):
                # Where the fetch that it led was given up, keys are asked for again after a moment.
                await anyio.sleep(2)
                found = await made.verify(Credential(text, shown))
            assert isinstance(found, Proven)
            assert found.principal == Authenticated(ME)
        at += 1
    assert at > 2


async def test_a_request_cancelled_at_any_await_leaves_nothing_behind(agent, manifest, echo_handlers) -> None:
    from asap_core import Agent, Endpoints

    async with tokens() as made:
        text, at = token(), 1
        one = Agent(manifest(auth=True, endpoints=Endpoints(asap=URL)), policy=agent().policy)
        transport = InProcessTransport(one, echo_handlers, authenticate=made.verify)
        while True:
            interrupted, shown = Interrupted(at), proof(text=text)
            await interrupted.run(post(transport, text, shown))
            assert (one.active, one.body_bytes, one._callers) == (0, 0, {})
            await anyio.sleep(2)
            # Claimed or not by then: it's never good twice.
            first, second = [(await post(transport, text, shown)).status_code for _ in range(2)]
            assert (first in (200, 401), second) == (True, 401)
            assert (await post(transport, text, proof(text=text))).status_code == 200
            if interrupted.awaits < at:
                assert first == 401
                break
            at += 1
