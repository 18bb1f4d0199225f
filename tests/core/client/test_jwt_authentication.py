"""Tokens judged by an issuer's keys, without a loop: when keys are fetched, hostile providers, callers that leave.

Signatures are simulated: a signature is the key's own 32 bytes, and 32 zeros.
"""

from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given, strategies as st

from asap_core.auth.dpop import thumbprint, token_hash
from asap_core.auth.jwks import OkpKey, VerificationKey, public_jwk
from asap_core.auth.principal import Authenticated, Credential, DpopProof, InsufficientScope, ProofRefused, Proven
from asap_core.client.jwt_authentication import JwtAuthentication, ProviderUnavailable
from asap_core.client.programs import Expired, Fetch
from asap_core.client.requests import Requests
from asap_core.net.addresses import Proximity
from asap_core.net.outbound import OutboundPolicy
from tests.core.auth.tokens import ALICE, GOOD, ISSUER, WALL, policy, token as jwt
from tests.core.client.peers import LOST, NOT_CONNECTED, answer
from tests.core.client.scripted import HELD, After, Driver, Run

METADATA, RFC_8414, KEYS = "/.well-known/openid-configuration", "/.well-known/oauth-authorization-server", "/keys"
OLD, NEW, STRANGERS = (OkpKey("k1", b"\x01" * 32), OkpKey("k2", b"\x02" * 32), OkpKey("k1", b"\x03" * 32))
CALLERS = OkpKey(None, b"\x04" * 32)
URL = "https://agent.example/asap"


def signature_of(key: OkpKey) -> bytes:
    return key.x + bytes(32)


def token(key: OkpKey = OLD, *, kid: str | None = None, **changes: Any) -> str:
    claims = {**GOOD, "exp": WALL + 36_000, **changes}
    return jwt(claims, signature=signature_of(key), kid=key.kid if kid is None else kid)


# A token that is bound to its caller's key.
BOUND = token(cnf={"jkt": thumbprint(public_jwk(CALLERS))})


def proof(key: OkpKey = CALLERS) -> DpopProof:
    claims = {"jti": "j", "htm": "POST", "htu": URL, "iat": int(WALL), "ath": token_hash(BOUND)}
    jwk = public_jwk(CALLERS)
    return DpopProof(text=jwt(claims, signature=signature_of(key), typ="dpop+jwt", jwk=jwk), method="POST", url=URL)


class Provider(Driver):
    """An identity provider, and a server that accepts its tokens.

    keys: those that it publishes. seconds: how long it takes. does: what it answers instead, by path.
    """

    def __init__(self, **changes: Any) -> None:
        super().__init__(self._script)
        self.keys: list[object] = [{**public_jwk(OLD), "kid": OLD.kid}]
        self.metadata: object = {"issuer": ISSUER, "jwks_uri": f"{ISSUER}/keys"}
        self.control = ""
        self.seconds = 0.0
        self.does: dict[str, Any] = {}
        self.asked: list[str] = []
        self.checked: list[str] = []
        self.requests = Requests(self.runtime, policy=OutboundPolicy())
        self.tokens = JwtAuthentication(
            self.runtime,
            self.requests,
            policy(**changes),
            verify_signature=self._check("token"),
            verify_proof=self._check("proof"),
            secret=b"s" * 32,
        )

    def _check(self, what: str) -> Any:
        def check(key: VerificationKey, _signing_input: bytes, signature: bytes) -> bool:
            self.checked.append(what)
            return isinstance(key, OkpKey) and signature == signature_of(key)

        return check

    def _script(self, fetch: Fetch) -> Any:
        path = urlsplit(fetch.url).path
        self.asked.append(path)
        documents = {METADATA: self.metadata, KEYS: {"keys": self.keys}}
        usual = answer(documents[path], cache_control=self.control) if path in documents else answer(status=404)
        reply = self.does.get(path, usual)
        return reply if isinstance(reply, After) else After(self.seconds, reply)

    @property
    def fetches(self) -> int:
        return self.asked.count(KEYS)

    @property
    def left(self) -> tuple[int, int, int]:
        """Return how many wait for keys, for the document with them, and for metadata."""
        return self.tokens.waiting, self.tokens._keys.waiting, self.tokens._provider._documents.waiting

    @property
    def remarks(self) -> list[tuple[str, str]]:
        remarks = self.runtime.take_remarks()
        assert {each.logger for each in remarks} <= {"asap.jwt"}
        return [(each.level, each.text) for each in remarks]

    def begin(self, text: str) -> Run[Any]:
        return self.start(self.tokens.verify(Credential(text)))

    def ask(self, text: str, shown: DpopProof | None = None) -> Any:
        """Return whom it stands for, None, what it lacks, or "unavailable"."""
        run = self.start(self.tokens.verify(Credential(text, shown)))
        while run.effect is not None:
            assert self.turn()
        return result_of(run)

    def fails(self, reply: Any) -> None:
        self.does = {METADATA: reply, KEYS: reply}


def result_of(run: Run[Any]) -> Any:
    if isinstance(run.end, ProviderUnavailable):
        return "unavailable"
    found = run.result()
    return found.urn if isinstance(found, Authenticated) else found


class TestVerdicts:
    def test_a_good_token_is_verified_once_and_then_remembered(self) -> None:
        provider = Provider()
        assert [provider.ask(token()) for _ in range(3)] == [ALICE] * 3
        assert (provider.asked, provider.checked) == ([METADATA, KEYS], ["token"])

    def test_a_token_of_another_key_is_refused_and_logged(self) -> None:
        provider = Provider()
        assert provider.ask(token(STRANGERS)) is None
        assert provider.remarks == [("info", "a token was refused: expected a signature by the issuer's key")]

    def test_required_scopes_are_checked(self) -> None:
        provider = Provider(scopes=["call"])
        assert provider.ask(token()) == InsufficientScope(frozenset({"call"}))
        assert provider.ask(token(scope="x call")) == ALICE

    def test_a_policy_of_another_type_is_refused(self) -> None:
        wrong: Any = "policy"
        checks: Any = {"verify_signature": bool, "verify_proof": bool}
        driver = Driver()
        requests = Requests(driver.runtime, policy=OutboundPolicy())
        with pytest.raises(ValueError, match="policy: expected a TokenPolicy"):
            JwtAuthentication(driver.runtime, requests, wrong, **checks, secret=b"s" * 32)


class TestProofs:
    def test_a_proof_of_the_callers_key_is_verified_by_a_function_of_its_own(self) -> None:
        provider = Provider()
        found = provider.ask(BOUND, proof())
        assert isinstance(found, Proven)
        assert (found.principal, found.proof_id) == (Authenticated(ALICE), "j")
        assert provider.checked == ["token", "proof"]

    def test_a_proof_that_another_key_signed_is_refused_and_logged(self) -> None:
        provider = Provider()
        assert provider.ask(BOUND, proof(STRANGERS)) == ProofRefused("a signature by the key in jwk")
        assert provider.remarks == [("info", "a proof was refused: expected a signature by the key in jwk")]

    def test_the_policy_says_which_proofs_are_offered(self) -> None:
        offered = Provider().tokens.proofs
        assert offered is not None
        assert "ES256" in offered.algs
        assert Provider(dpop="off").tokens.proofs is None


class TestAskingTheProvider:
    def test_ten_thousand_forged_tokens_cause_one_request_in_a_cool_down(self) -> None:
        provider = Provider()
        assert provider.ask(token()) == ALICE
        for number in range(10_000):
            if number % 1_000 == 0:
                provider.advance(31)
            assert provider.ask(token(kid=f"k{number}x")) is None
        # Ten cool-downs, and one refresh because the keys were due.
        assert 10 <= provider.fetches <= 11
        before = provider.fetches
        for _ in range(100):
            assert provider.ask(token(STRANGERS)) is None
        assert provider.fetches == before

    def test_a_thousand_first_requests_cause_one_fetch(self) -> None:
        provider = Provider()
        provider.seconds = 0.5
        runs = [provider.begin(token()) for _ in range(1_000)]
        assert provider.tokens.waiting == 1_000
        provider.advance(2)
        assert [result_of(run) for run in runs] == [ALICE] * 1_000
        assert (provider.asked, provider.left) == ([METADATA, KEYS], (0, 0, 0))

    def test_key_rotation_fails_no_request(self) -> None:
        provider = Provider()
        provider.seconds = 0.2
        key, runs = OLD, []
        for second in range(100):
            if second == 45:
                key, provider.keys = NEW, [{**public_jwk(NEW), "kid": NEW.kid}]
            runs += [provider.begin(token(key)) for _ in range(20)]
            provider.advance(1)
        assert [result_of(run) for run in runs] == [ALICE] * 2_000
        assert provider.fetches == 2

    @pytest.mark.parametrize("reply", [NOT_CONNECTED, answer(status=500), answer(status=503, retry_after="60")])
    def test_a_token_with_a_new_key_is_not_refused_during_an_outage(self, reply: Any) -> None:
        provider = Provider()
        assert provider.ask(token()) == ALICE
        provider.keys = [{**public_jwk(NEW), "kid": NEW.kid}]
        provider.fails(reply)
        for _ in range(8):
            provider.advance(30)
            assert (provider.ask(token(NEW)), provider.ask(token())) == ("unavailable", ALICE)
        provider.does.clear()
        provider.advance(40)
        assert (provider.ask(token(NEW)), provider.ask(token())) == (ALICE, None)

    def test_a_thousand_tokens_with_a_new_key_cause_one_fetch(self) -> None:
        provider = Provider()
        provider.ask(token())
        provider.advance(31)
        provider.seconds = 0.5
        provider.keys.append({**public_jwk(NEW), "kid": NEW.kid})
        runs = [provider.begin(token(NEW)) for _ in range(1_000)]
        provider.advance(1)
        assert [result_of(run) for run in runs] == [ALICE] * 1_000
        assert provider.fetches == 2

    def test_tokens_of_a_withdrawn_key_are_refused(self) -> None:
        provider = Provider()
        assert provider.ask(token()) == ALICE
        provider.keys = [{**public_jwk(NEW), "kid": NEW.kid}]
        provider.advance(299)
        assert provider.ask(token()) == ALICE
        provider.advance(2)
        assert provider.ask(token()) is None

    @pytest.mark.parametrize("reply", [NOT_CONNECTED, LOST, Expired(), HELD, answer(status=500), answer(b"\xff<html>")])
    def test_an_hour_of_failures_is_handled_as_the_policy_says(self, reply: Any) -> None:
        provider = Provider(stale_for=1_800)
        assert provider.ask(token()) == ALICE
        provider.fails(reply)
        begun, found = provider.clock.monotonic(), []
        while provider.clock.monotonic() - begun < 3_600:
            asked = provider.clock.monotonic()
            found.append((asked - begun, provider.ask(token())))
            assert provider.clock.monotonic() - asked <= 32
            provider.advance(20)
        assert {result for at, result in found if at < 2_060} == {ALICE}
        assert {result for at, result in found if at > 2_100} == {"unavailable"}
        assert {text.partition(":")[0] for _, text in provider.remarks} == {"the identity provider's keys can't be had"}
        provider.does.clear()
        provider.advance(31)
        assert provider.ask(token()) == ALICE

    def test_a_failure_counts_from_the_moment_at_which_the_keys_are_no_longer_fresh(self) -> None:
        provider = Provider()
        assert provider.ask(token()) == ALICE
        provider.does = {KEYS: NOT_CONNECTED}
        provider.advance(300)
        assert provider.ask(token()) == ALICE
        ((level, text),) = provider.remarks
        assert (level, text.partition(":")[0]) == ("warning", "the identity provider's keys can't be had")

    def test_a_hanging_provider_delays_one_caller_at_a_time(self) -> None:
        provider = Provider()
        provider.ask(token())
        provider.fails(HELD)
        provider.advance(301)
        first, begun = provider.begin(token()), provider.clock.monotonic()
        assert first.effect is not None
        assert [provider.ask(token()) for _ in range(100)] == [ALICE] * 100
        assert provider.clock.monotonic() == begun
        provider.advance(1)
        assert provider.asked == [METADATA, KEYS, METADATA]
        assert (result_of(first), provider.fetches, provider.left) == (ALICE, 1, (0, 0, 0))
        assert provider.remarks == []

    def test_the_provider_may_be_near_even_if_documents_from_afar_name_it_too(self) -> None:
        provider = Provider()
        provider.requests.judge(ISSUER, named_by="https://evil.example/manifest.json")
        assert provider.ask(token()) == ALICE
        first = provider.effects[0]
        assert isinstance(first, Fetch)
        assert first.route.reach is Proximity.MACHINE

    def test_no_store_does_not_cause_a_request_for_each_token(self) -> None:
        provider = Provider()
        provider.control = "no-store"
        assert [provider.ask(token(jti=str(number))) for number in range(50)] == [ALICE] * 50
        assert provider.fetches == 1


class TestHostileProviders:
    @pytest.mark.parametrize(
        ("path", "reply"),
        [
            (KEYS, answer(status=500)),
            (KEYS, answer(b'{"keys":[' + b" " * 10_485_760 + b"]}")),
            (KEYS, answer(status=302, location="https://evil.example/evil")),
            (KEYS, answer(b"\xff<html>")),
            (KEYS, answer({"keys": []})),
            (METADATA, answer(status=302, location="https://evil.example/evil")),
            (METADATA, answer({"issuer": "https://other.example", "jwks_uri": f"{ISSUER}/evil"})),
            (METADATA, answer({"issuer": ISSUER})),
            (METADATA, answer({"issuer": ISSUER, "jwks_uri": "http://169.254.169.254/evil"})),
            (METADATA, answer({"issuer": ISSUER, "jwks_uri": "https://192.168.0.1/evil"})),
        ],
    )
    def test_no_token_is_accepted_from_a_hostile_provider(self, path: str, reply: Any) -> None:
        provider = Provider()
        provider.does[path] = reply
        assert provider.ask(token()) in ("unavailable", None)
        assert set(provider.asked) <= {METADATA, KEYS}

    def test_metadata_at_the_url_of_rfc_8414_is_found(self) -> None:
        provider = Provider()
        provider.does = {METADATA: answer(status=404), RFC_8414: answer(provider.metadata)}
        assert provider.ask(token()) == ALICE

    def test_unusable_keys_do_not_affect_the_others_and_are_logged(self) -> None:
        provider = Provider()
        odd = [
            {"kty": "oct", "k": "AAAA", "kid": "k1"},
            {"kty": "EC"},
            5,
            {**public_jwk(STRANGERS), "kid": "k1", "use": "enc"},
        ]
        provider.keys = [*odd, *provider.keys]
        assert provider.ask(token()) == ALICE
        assert provider.remarks == [("info", "4 keys of the identity provider can't be used")]


class TestLeaving:
    @pytest.mark.parametrize("leave", [Driver.close, Driver.lose])
    @pytest.mark.parametrize("answers", [0, 1])
    def test_the_others_are_answered_if_the_one_that_fetches_leaves(self, leave: Any, answers: int) -> None:
        provider = Provider()
        provider.seconds = 1.0
        first = provider.begin(token())
        others = [provider.begin(token()) for _ in range(3)]
        provider.advance(answers + 0.5)
        leave(provider, first)
        provider.advance(5)
        assert [result_of(run) for run in others] == [ALICE] * 3
        # At most the request is lost that was under way.
        assert len(provider.asked) <= 3
        assert provider.left == (0, 0, 0)

    @pytest.mark.parametrize("leave", [Driver.close, Driver.lose])
    def test_a_caller_that_leaves_alone_loses_nothing(self, leave: Any) -> None:
        provider = Provider()
        provider.seconds = 1.0
        for seconds in (0.0, 0.5, 1.5):
            run = provider.begin(token())
            if run.effect is not None:
                provider.advance(seconds)
                leave(provider, run)
                provider.advance(0)
            assert provider.left == (0, 0, 0)
        assert provider.ask(token()) == "unavailable"
        provider.advance(31)
        assert provider.ask(token()) == ALICE

    @given(st.lists(st.sampled_from(["old", "new", "pass", "close", "lose"]), max_size=20))
    def test_after_any_arrivals_and_closes_nothing_is_left_and_one_request_is_made_at_once(
        self, moves: list[str]
    ) -> None:
        provider, stayed = Provider(), []
        provider.keys.append({**public_jwk(NEW), "kid": NEW.kid})
        for move in moves:
            if move in ("old", "new"):
                stayed.append(provider.begin(token(OLD if move == "old" else NEW)))
            elif move == "pass":
                provider.seconds = 0.7
                provider.advance(0.5)
            elif waiting := [run for run in stayed if run.effect is not None]:
                stayed.remove(waiting[0])
                (Driver.close if move == "close" else Driver.lose)(provider, waiting[0])
                provider.advance(0)
            assert len([run for run in provider.runs if isinstance(run.effect, Fetch)]) <= 1
        provider.advance(60)
        assert {result_of(run) for run in stayed} <= {ALICE, "unavailable"}
        assert provider.left == (0, 0, 0)
        assert provider.ask(token()) == ALICE

    def test_the_same_script_causes_the_same_effects(self) -> None:
        def effects() -> list[Any]:
            provider = Provider()
            for text in (token(), token(NEW), token(STRANGERS), token()):
                provider.ask(text)
                provider.advance(200)
            return provider.effects

        assert effects() == effects()
