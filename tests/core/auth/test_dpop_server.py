"""Proofs of possession judged (RFC 9449), without cryptography: signatures are answered by the test."""

import json
from base64 import urlsafe_b64encode
from typing import Any

import pytest
from attrs import evolve
from hypothesis import Phase, given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from asap_core import (
    Authenticated,
    ClaimProof,
    ManualClock,
    ReadBody,
    Request,
    Respond,
    StartPolicy,
    TokenTable,
)
from asap_core.admission import admission
from asap_core.admission.replay import Floored, Replayed, Saturated
from asap_core.auth import dpop_server as dpop, jwt
from asap_core.auth.claims import Accepted, ByClaim, Rejected, TokenPolicy
from asap_core.auth.dpop import comparable_url, thumbprint, token_hash
from asap_core.auth.dpop_server import DpopPolicy, NonceMint, ProofRequirement, UnverifiedProof, read_proof
from asap_core.auth.jwks import EcKey, KeySet, OkpKey, RsaKey, public_jwk
from asap_core.auth.jws import Algorithm
from asap_core.auth.jwt import JwtVerifier, NeedKeys, VerifyProof, VerifySignature
from asap_core.auth.principal import (
    Credential,
    DpopProof,
    InsufficientScope,
    ProofOffer,
    ProofRefused,
    Proven,
    challenge,
)
from asap_core.clock import Instant, WallTime
from asap_core.server import exchange
from asap_core.server.call_context import IllegalMove
from tests import builders
from tests.builders import manifest
from tests.moments import moment

ISSUER, AUDIENCE, ALICE = "https://id.example", "https://agent.example", "urn:asap:agent:alice"
URL = "https://agent.example/asap"
WALL: Any = WallTime(1_750_000_000.0)
NOW: Any = Instant(1_000.0)
ISSUERS = OkpKey("k1", b"\x01" * 32)
# P-256's base point (SEC 2 §2.4.2): a point that's on the curve.
GX = 0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296
GY = 0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5
MINE, OTHER = OkpKey(None, b"\x02" * 32), OkpKey(None, b"\x03" * 32)
ES, RS = EcKey(None, GX, GY), RsaKey(None, (1 << 2047) + 1, 65_537)
SECRET = b"n" * 32


def b64(data) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def jws(header, payload, signature) -> str:
    parts = (part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload))
    return f"{'.'.join(map(b64, parts))}.{b64(signature)}"


def token(key=MINE, **changes) -> str:
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": ALICE, "exp": WALL + 86_400, **changes}
    if key is not None:
        claims.setdefault("cnf", {"jkt": thumbprint(public_jwk(key))})
    return jws({"alg": "EdDSA", "kid": "k1"}, claims, bytes(64))


TOKEN = token()


def parts(**changes):
    """The header and the claims of a good proof."""
    header = {"typ": "dpop+jwt", "alg": "EdDSA", "jwk": public_jwk(MINE)}
    claims = {"jti": "j", "htm": "POST", "htu": URL, "iat": int(WALL), "ath": token_hash(TOKEN), **changes}
    return header, claims


def proof(header=None, *, signature=bytes(64), **changes) -> str:
    good, claims = parts(**changes)
    return jws({**good, **(header or {})}, claims, signature)


def read(text, *, wall=WALL, mint=None, text_of_token=TOKEN, url=URL, **policy):
    shown = DpopProof(text=text, method="POST", url=url)
    return read_proof(shown, token=text_of_token, policy=DpopPolicy(**policy), mint=mint, wall=wall)


class TestProofs:
    def test_a_valid_proof_is_read(self) -> None:
        found = read(proof())
        assert isinstance(found, UnverifiedProof)
        assert (found.key, found.thumbprint) == (MINE, thumbprint(public_jwk(MINE)))
        assert (found.proof_id, found.issued, found.nonce) == ("j", WALL, None)
        assert found.holder == f"dpop {found.thumbprint} {URL}"

    @pytest.mark.parametrize(("key", "alg", "size"), [(MINE, "Ed25519", 64), (ES, "ES256", 64), (RS, "RS256", 256)])
    def test_proofs_of_each_kind_of_key_are_read(self, key, alg, size) -> None:
        signature = b"\x01" + bytes(size - 2) + b"\x01" if alg != "Ed25519" else bytes(size)
        signature = b"\x01" * 64 if alg == "ES256" else signature
        found = read(proof({"alg": alg, "jwk": public_jwk(key)}, signature=signature))
        assert isinstance(found, UnverifiedProof)
        assert found.key == key
        others = frozenset(Algorithm) - {key.algorithm}
        assert isinstance(read(proof({"alg": alg, "jwk": public_jwk(key)}), algorithms=others), ProofRefused)

    @pytest.mark.parametrize(
        "header",
        [
            {"typ": None},
            {"typ": "JWT"},
            {"typ": "at+jwt"},
            {"typ": "dpop"},
            {"alg": "none"},
            {"alg": "HS256"},
            {"alg": "ES256"},
            {"alg": None},
            {"jwk": None},
            {"jwk": []},
            {"jwk": "k"},
            {"jwk": {**public_jwk(MINE), "d": "AA"}},
            {"jwk": {"kty": "oct", "k": "AAAA"}},
            {"jwk": public_jwk(ES)},
            {"jwk": {**public_jwk(MINE), "x": b64(bytes(31))}},
            {"jwk": {**public_jwk(MINE), "use": "enc"}},
            {"crit": ["x"], "x": 1},
        ],
    )
    def test_wrong_headers_are_refused(self, header) -> None:
        assert isinstance(read(proof(header)), ProofRefused)

    def test_a_typ_in_another_case_is_the_same_media_type(self) -> None:
        assert isinstance(read(proof({"typ": "application/DPoP+JWT"})), UnverifiedProof)

    @pytest.mark.parametrize(
        ("wrong", "wanted"),
        [
            ({"htm": "GET"}, "htm"),
            ({"htm": "post"}, "htm"),
            ({"htm": None}, "htm"),
            ({"htu": "https://agent.example/asap/stream"}, "htu"),
            ({"htu": "http://agent.example/asap"}, "htu"),
            ({"htu": "https://evil.example/asap"}, "htu"),
            ({"htu": None}, "htu"),
            ({"htu": 5}, "htu"),
            ({"htu": "/asap"}, "htu"),
            ({"iat": None}, "iat"),
            ({"iat": "1750000000"}, "iat"),
            ({"iat": True}, "iat"),
            ({"iat": int(WALL) - 61}, "iat"),
            ({"iat": int(WALL) + 31}, "iat"),
            ({"iat": 10**400}, "iat"),
            ({"jti": ""}, "jti"),
            ({"jti": None}, "jti"),
            ({"jti": 5}, "jti"),
            ({"jti": "j" * 257}, "jti"),
            ({"ath": None}, "ath"),
            ({"ath": token_hash("another")}, "ath"),
            ({"ath": token_hash(TOKEN) + "="}, "ath"),
        ],
    )
    def test_wrong_claims_are_refused(self, wrong, wanted) -> None:
        found = read(proof(**wrong))
        assert isinstance(found, ProofRefused)
        assert wanted in found.expected
        assert found.error == "invalid_dpop_proof"

    @pytest.mark.parametrize("iat", [int(WALL) - 60, int(WALL) + 30, WALL + 0.5])
    def test_a_date_is_accepted_within_its_bounds(self, iat) -> None:
        assert isinstance(read(proof(iat=iat)), UnverifiedProof)

    @pytest.mark.parametrize("htu", [f"{URL}?q#f", "https://AGENT.example:443/asap", "https://agent.example/%61sap"])
    def test_the_url_is_accepted_in_another_spelling(self, htu) -> None:
        assert isinstance(read(proof(htu=htu)), UnverifiedProof)

    def test_an_agent_without_a_url_accepts_no_proof(self) -> None:
        assert isinstance(read(proof(), url="somewhere"), ProofRefused)
        assert isinstance(read(proof(htu="somewhere"), url="somewhere"), ProofRefused)

    @pytest.mark.parametrize(
        "text",
        [
            jws(parts()[0], b"{", bytes(64)),
            jws(parts()[0], [], bytes(64)),
            jws(parts()[0], b'{"jti":"a","jti":"b"}', bytes(64)),
            proof(signature=bytes(63)),
            proof(signature=b"\xff" * 64),
            proof() + ".x",
            f"{proof()},{proof()}",
            "",
        ],
    )
    def test_proofs_of_a_wrong_form_are_refused(self, text) -> None:
        assert isinstance(read(text), ProofRefused)

    def test_claims_have_at_most_8_levels(self) -> None:
        levels = [json.loads("[" * depth + "]" * depth) for depth in (7, 8)]
        assert isinstance(read(proof(x=levels[0])), UnverifiedProof)
        assert read(proof(x=levels[1])).expected == "claims in JSON: at most 8 arrays and objects within each other"
        assert isinstance(read(proof({"x": levels[0]})), UnverifiedProof)
        assert read(jws(parts()[0], [], bytes(64))).expected == "claims that are an object"

    def test_a_repr_shows_nothing_of_the_proof(self) -> None:
        found = read(proof(jti="JJJ"))
        assert "JJJ" not in repr(found)
        assert "JJJ" not in repr(DpopProof(text=proof(jti="JJJ"), method="POST", url=URL))

    @settings(max_examples=400)
    @given(data=st.data())
    def test_each_mutated_claim_or_header_is_refused(self, data) -> None:
        header, claims = parts(nonce=NonceMint(SECRET, life=300).current(wall=WALL))
        mint = NonceMint(SECRET, life=300)
        assert isinstance(read(jws(header, claims, bytes(64)), mint=mint), UnverifiedProof)
        name = data.draw(st.sampled_from([("h", each) for each in header] + [("c", each) for each in claims]))
        where = {"h": header, "c": claims}[name[0]]
        good = where[name[1]]
        other = data.draw(_ANYTHING | st.just(_GONE) | (_like(good) if isinstance(good, str) else st.nothing()))
        if other is _GONE:
            del where[name[1]]
        else:
            where[name[1]] = other
        found = read(jws(header, claims, bytes(64)), mint=mint)
        assert isinstance(found, ProofRefused) or _means_the_same(name[1], other, good)


_GONE = object()
_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def _like(text: str):
    """Something that differs in a character or its case, or has more or less at its ends."""
    place = st.integers(0, len(text) - 1)
    return st.one_of(
        st.builds(lambda at, by: text[:at] + by + text[at + 1 :], place, st.characters(codec="ascii")),
        st.sampled_from(
            [text.upper(), text.lower(), text + "=", text + " ", " " + text, text[1:], text[:-1], text * 2]
        ),
    )


def _means_the_same(name: str, other, good) -> bool:
    match name:
        case "jti":
            return isinstance(other, str) and 0 < len(other) <= 256
        case "htu":
            return isinstance(other, str) and comparable_url(other) == good
        case "iat":
            return type(other) in (int, float) and WALL - 60 <= other <= WALL + 30
        case "typ":
            return isinstance(other, str) and other.lower() == good
        case "alg":
            return other in ("EdDSA", "Ed25519")
        case _:
            return bool(other == good)


class TestNonces:
    def test_a_required_nonce_is_offered_and_then_accepted(self) -> None:
        mint = NonceMint(SECRET, life=300)
        found = read(proof(), mint=mint)
        assert (found.error, found.nonce) == ("use_dpop_nonce", mint.current(wall=WALL))
        assert isinstance(read(proof(nonce=found.nonce), mint=mint), UnverifiedProof)
        assert found.nonce not in repr(found)

    @pytest.mark.parametrize("nonce", [None, 5, "", "x", "é", ["x"]])
    def test_any_other_nonce_is_refused(self, nonce) -> None:
        found = read(proof(nonce=nonce), mint=NonceMint(SECRET, life=300))
        assert found.error == "use_dpop_nonce"
        assert not NonceMint(SECRET, life=300).accepts("\ud800", wall=WALL)

    def test_the_previous_nonce_is_accepted_and_a_new_one_offered(self) -> None:
        mint = NonceMint(SECRET, life=300)
        old, start = mint.current(wall=WALL), 300 * (WALL // 300)

        def at(seconds):
            wall = WallTime(start + seconds)
            return read(proof(nonce=old, iat=int(wall)), wall=wall, mint=mint)

        assert at(0).nonce is at(299).nonce is None
        assert at(300).nonce == at(599).nonce == mint.current(wall=WallTime(start + 300)) != old
        assert at(600).error == at(-1).error == "use_dpop_nonce"

    def test_a_nonce_is_the_same_in_all_versions(self) -> None:
        """During a rolling update, old and new processes serve one agent."""
        assert NonceMint(SECRET, life=300).current(wall=WALL) == "APz3Hwb7igiF1s1tXuAuAQ"

    @pytest.mark.parametrize(("length", "fits"), [(15, False), (16, True), (64, True), (65, False)])
    def test_the_secret_of_nonces_has_16_to_64_bytes(self, length, fits) -> None:
        if fits:
            assert NonceMint(b"s" * length, life=300).current(wall=WALL)
        else:
            with pytest.raises(ValueError, match="expected a secret of 16 to 64 random bytes"):
                NonceMint(b"s" * length, life=300)

    def test_a_nonce_of_another_secret_is_refused(self) -> None:
        mint, again, other = (NonceMint(secret, life=300) for secret in (SECRET, SECRET, b"o" * 32))
        assert mint.current(wall=WALL) == again.current(wall=WALL) != other.current(wall=WALL)
        assert not other.accepts(mint.current(wall=WALL), wall=WALL)
        for secret in (b"short", b"l" * 65):
            with pytest.raises(ValueError, match="16 to 64"):
                NonceMint(secret, life=300)

    def test_all_other_claims_are_checked_before_the_nonce(self) -> None:
        assert read(proof(htm="GET"), mint=NonceMint(SECRET, life=300)).error == "invalid_dpop_proof"


def verifier(nonce_secret=SECRET, **changes):
    policy = {"issuer": ISSUER, "audience": AUDIENCE, "agent": ByClaim("sub"), **changes}
    made = JwtVerifier(TokenPolicy(**policy), secret=b"s" * 32, nonce_secret=nonce_secret)
    made.ring.fetched(made.ring.due(now=NOW), KeySet((ISSUERS,)), age=0, now=NOW)  # type: ignore[arg-type] # it's due
    return made


def shown(text=None):
    return DpopProof(text=proof() if text is None else text, method="POST", url=URL)


def judge(text=TOKEN, proof_of_it=None, made=None, *, signed=True):
    """The verdict, the token's signature being good, the proof's `signed`."""
    state = (verifier() if made is None else made).open(text, proof=proof_of_it, at=moment(NOW, WALL))
    if isinstance(state, VerifySignature):
        state = state.good(at=moment(NOW, WALL))
    if isinstance(state, VerifyProof):
        state = state.good() if signed else state.bad()
    return state


class TestTokensAndTheirKeys:
    def test_a_bound_token_with_its_proof_is_accepted(self) -> None:
        found = judge(TOKEN, shown())
        assert isinstance(found, Proven)
        assert (found.principal, found.principal.key) == (Authenticated(ALICE), thumbprint(public_jwk(MINE)))

    def test_a_bound_token_is_refused_as_a_bearer_token(self) -> None:
        for mode in ProofRequirement:
            assert isinstance(judge(TOKEN, None, verifier(dpop=mode)), Rejected)

    def test_an_unbound_token_with_a_proof_is_refused(self) -> None:
        text = token(None)
        assert isinstance(judge(text), Accepted)
        assert isinstance(judge(text, shown(proof(ath=token_hash(text)))), Rejected)

    def test_a_stolen_token_with_another_key_is_refused(self) -> None:
        thiefs = proof({"jwk": public_jwk(OTHER)})
        assert isinstance(judge(TOKEN, shown(thiefs)), Rejected)
        made = verifier()
        assert isinstance(judge(TOKEN, shown(), made), Proven)
        assert isinstance(judge(TOKEN, shown(thiefs), made), Rejected)  # a remembered one, too
        assert isinstance(judge(TOKEN, None, made), Rejected)

    def test_a_proof_that_its_key_did_not_sign_is_refused(self) -> None:
        found = judge(TOKEN, shown(), signed=False)
        assert (found.error, found.expected) == ("invalid_dpop_proof", "a signature by the key in jwk")

    def test_a_remembered_token_needs_a_proof_each_time(self) -> None:
        made = verifier()
        judge(TOKEN, shown(), made)
        assert len(made) == 1
        assert isinstance(made.open(TOKEN, proof=shown(), at=moment(NOW, WALL)), VerifyProof)
        assert isinstance(judge(TOKEN, shown(proof(jti="")), made), ProofRefused)

    def test_dpop_off_refuses_bound_tokens_and_dpop_required_refuses_unbound_tokens(self) -> None:
        for text in (TOKEN, token(None)):
            assert judge(text, shown(), verifier(dpop="off")) == Rejected("a bearer token, without a proof")
        required = verifier(dpop="required")
        assert isinstance(judge(token(None), None, required), Rejected)
        assert isinstance(judge(TOKEN, shown(), required), Proven)
        assert verifier(dpop="off").policy.dpop.offer() is None
        assert required.policy.dpop.offer() == ProofOffer(algs=("ES256", "Ed25519", "EdDSA", "RS256"), required=True)

    @pytest.mark.parametrize(
        "cnf",
        [
            None,
            {},
            [],
            "x",
            {"jkt": 5},
            {"jkt": ""},
            {"jkt": "x" * 43 + "="},
            {"jkt": "é"},
            {"jkt": b64(bytes(31))},
            {"x5t#S256": b64(bytes(32))},
            {"jkt": thumbprint(public_jwk(MINE)), "x5t#S256": b64(bytes(32))},
            {"jwk": public_jwk(MINE)},
        ],
    )
    def test_other_confirmations_are_refused(self, cnf) -> None:
        text = token(cnf=cnf)
        for each in (None, shown(proof(ath=token_hash(text)))):
            assert isinstance(judge(text, each), Rejected)

    def test_missing_scopes_are_told_only_to_a_caller_that_proves_the_key(self) -> None:
        made = verifier(scopes="a")
        assert judge(TOKEN, shown(), made) == InsufficientScope(frozenset("a"))
        assert isinstance(judge(TOKEN, shown(), made, signed=False), ProofRefused)

    def test_keys_are_fetched_before_the_proof_counts(self) -> None:
        made: Any = JwtVerifier(verifier().policy, secret=b"s" * 32)
        state = made.open(TOKEN, proof=shown(), at=moment(NOW, WALL))
        assert isinstance(state, NeedKeys)
        state = state.fetched(KeySet((ISSUERS,)), age=0, at=moment(NOW, WALL))
        assert isinstance(state, VerifySignature)

    def test_each_process_has_its_own_nonces_by_default(self) -> None:
        policy = verifier(dpop=DpopPolicy(nonce=True)).policy
        found = [
            JwtVerifier(policy, secret=secret).open(TOKEN, proof=shown(), at=moment(NOW, WALL))
            for secret in (b"a" * 32, b"b" * 32)
        ]
        assert len({each.nonce for each in found}) == 2  # type: ignore[union-attr] # they ask for a nonce

    def test_processes_with_one_nonce_secret_issue_the_same_nonces(self) -> None:
        policy = verifier(dpop=DpopPolicy(nonce=True)).policy
        found: Any = [
            JwtVerifier(policy, secret=secret, nonce_secret=SECRET).open(TOKEN, proof=shown(), at=moment(NOW, WALL))
            for secret in (b"a" * 32, b"b" * 32)
        ]
        assert [each.nonce for each in found] == [NonceMint(SECRET, life=300).current(wall=WALL)] * 2

    @pytest.mark.parametrize(
        "wrong",
        [
            {"proofs": "always"},
            {"algorithms": ()},
            {"algorithms": ["HS256"]},
            {"algorithms": "ES256"},
            {"max_age": 0},
            {"max_age": 300.1},
            {"skew": -0.1},
            {"skew": 300.1},
            {"nonce": 1},
            {"nonce_life": 0},
        ],
    )
    def test_an_invalid_policy_is_refused(self, wrong) -> None:
        with pytest.raises((ValueError, TypeError)):
            DpopPolicy(**wrong)

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("max_age", [0.5, 300]),
            ("skew", [0, 0.5, 300]),
            ("nonce_life", [0.5, 1]),
            ("algorithms", [{Algorithm.ES256}]),
            ("proofs", list(ProofRequirement)),
        ],
    )
    def test_a_policy_has_values_within_bounds(self, name, values) -> None:
        assert [getattr(DpopPolicy(**{name: value}), name) for value in values] == values

    def test_algorithms_may_be_given_by_their_names(self) -> None:
        assert DpopPolicy(algorithms=["ES256"]).algorithms == {Algorithm.ES256}

    def test_the_defaults_of_a_policy_are_those_that_are_documented(self) -> None:
        made = DpopPolicy()
        assert (made.proofs, made.algorithms) == (ProofRequirement.ALLOWED, frozenset(Algorithm))
        assert (made.max_age, made.skew, made.nonce, made.nonce_life) == (60.0, 30.0, False, 300.0)
        assert made.offer() == ProofOffer(algs=("ES256", "Ed25519", "EdDSA", "RS256"), required=False)

    @given(st.text() | st.from_regex(r"[\w-]*\.[\w-]*\.[\w-]*"))
    def test_any_text_as_a_proof_is_refused(self, text) -> None:
        assert isinstance(judge(TOKEN, shown(text)), ProofRefused)

    @given(st.binary(max_size=200), st.binary(max_size=200), st.binary(max_size=80))
    def test_any_bytes_in_its_parts_are_refused(self, header, payload, signature) -> None:
        assert isinstance(judge(TOKEN, shown(jws(header, payload, signature))), ProofRefused)
        assert isinstance(judge(TOKEN, shown(jws(parts()[0], payload, signature))), ProofRefused)


OFFER = ProofOffer(algs=("ES256", "EdDSA"))


def agent(*, offer=OFFER, clock=None, shared=False, **policy):
    made = builders.agent(manifest(url=URL, auth=True), **policy)
    made.proofs = offer
    clock = ManualClock(monotonic=NOW, wall=WALL) if clock is None else clock
    return builders.bound(made, clock=clock, shared_admission=shared)


def opened(made, *headers, target: str = "/asap"):
    return made.open(Request(method="POST", target=target, headers=headers, peer="192.0.2.1"))


def with_proof(made, text=None, **options):
    text = proof() if text is None else text
    return opened(made, (b"authorization", b"DPoP " + TOKEN.encode()), (b"dpop", text.encode()), **options)


def answer(state):
    """Status and challenge of a response."""
    headers = dict(state.response.headers)
    return state.response.status, headers.get(b"www-authenticate", b"").decode(), headers.get(b"dpop-nonce")


PROVEN: Any = Proven(principal=Authenticated(ALICE), holder="h", proof_id="j", issued=WALL)
BEARER, DPOP = 'Bearer realm="asap"', 'DPoP realm="asap", algs="ES256 EdDSA"'


class TestThroughAnExchange:
    def test_a_proof_must_be_for_the_agents_url(self) -> None:
        state = with_proof(agent())
        assert state.credential == Credential(TOKEN, DpopProof(text=proof(), method="POST", url=URL))
        assert with_proof(agent(), target="/asap/stream?x").credential.proof.url == f"{URL}/stream"
        assert TOKEN not in repr(state.credential)

    @pytest.mark.parametrize("scheme", [b"DPoP", b"dpop", b"DPOP"])
    def test_the_schemes_name_is_case_insensitive(self, scheme) -> None:
        state = opened(agent(), (b"authorization", scheme + b" t"), (b"dpop", b" p "))
        assert state.credential.proof.text == "p"

    def test_the_proof_of_a_bearer_token_is_ignored(self) -> None:
        assert opened(agent(), (b"authorization", b"Bearer t"), (b"dpop", b"p")).credential == Credential("t")

    @pytest.mark.parametrize(
        "headers",
        [
            [(b"authorization", b"DPoP t")],
            [(b"authorization", b"DPoP t"), (b"dpop", b"p"), (b"dpop", b"p")],
            [(b"authorization", b"DPoP"), (b"dpop", b"p")],
            [(b"authorization", b"DPoP a b"), (b"dpop", b"p")],
            [(b"authorization", b"DPoP \xff"), (b"dpop", b"p")],
        ],
    )
    def test_a_request_has_exactly_one_token_and_one_proof(self, headers) -> None:
        assert answer(opened(agent(), *headers)) == (401, f'{BEARER}, {DPOP}, error="invalid_dpop_proof"', None)

    def test_two_authorization_headers_are_refused(self) -> None:
        headers = [(b"authorization", b"DPoP t"), (b"authorization", b"Bearer t"), (b"dpop", b"p")]
        assert answer(opened(agent(), *headers)) == (
            401,
            f'{BEARER}, error="invalid_request", {DPOP}',
            None,
        )

    def test_an_agent_without_dpop_does_not_offer_the_scheme(self) -> None:
        assert answer(with_proof(agent(offer=None))) == (401, BEARER, None)

    def test_a_challenge_lists_the_accepted_schemes(self) -> None:
        assert answer(opened(agent())) == (401, f"{BEARER}, {DPOP}", None)
        required = evolve(OFFER, required=True)
        assert answer(opened(agent(offer=required))) == (401, DPOP, None)
        assert challenge(required, error="invalid_token") == f'{DPOP}, error="invalid_token"'
        # RFC 9449 §7.2: a bound token as a bearer's.
        state = opened(agent(), (b"authorization", b"Bearer t"))
        assert answer(state.refused()) == (401, f'{BEARER}, error="invalid_token", {DPOP}', None)
        assert answer(with_proof(agent()).refused()) == (401, f'{BEARER}, {DPOP}, error="invalid_token"', None)

    def test_a_refused_proof_is_answered_401_with_its_error(self) -> None:
        wrong = with_proof(agent()).refused(ProofRefused("x"))
        assert answer(wrong) == (401, f'{BEARER}, {DPOP}, error="invalid_dpop_proof"', None)
        assert b'"Invalid proof of possession"' in wrong.response.body
        unsaid = with_proof(agent()).refused(ProofRefused("x", "n1"))
        assert answer(unsaid) == (401, f'{BEARER}, {DPOP}, error="use_dpop_nonce"', b"n1")
        assert b'"A proof of possession with the nonce is required"' in unsaid.response.body
        assert unsaid.response.close

    def test_a_missing_scope_is_answered_403_in_the_scheme_of_the_token(self) -> None:
        refused = with_proof(agent()).insufficient(InsufficientScope(frozenset("a")))
        assert refused.response.close
        status, challenged, _ = answer(refused)
        assert (status, challenged) == (403, 'DPoP realm="asap", error="insufficient_scope", scope="a"')

    def test_a_proof_is_accepted_once(self) -> None:
        made = agent()
        assert isinstance(with_proof(made).verified(PROVEN), ReadBody)
        again = with_proof(made).verified(PROVEN)
        assert answer(again) == (401, f'{BEARER}, {DPOP}, error="invalid_dpop_proof"', None)
        for other in ({"proof_id": "k"}, {"holder": "g"}):
            assert isinstance(with_proof(made).verified(evolve(PROVEN, **other)), ReadBody)

    def test_a_full_table_of_proofs_is_answered_503(self) -> None:
        made = agent(nonces_per_sender=2)
        for number in range(2):
            assert isinstance(with_proof(made).verified(evolve(PROVEN, proof_id=str(number))), ReadBody)
        full = with_proof(made).verified(evolve(PROVEN, proof_id="2")).response
        assert (full.status, dict(full.headers)[b"retry-after"]) == (503, b"330")
        # What's live isn't forgotten for it.
        assert answer(with_proof(made).verified(evolve(PROVEN, proof_id="0")))[0] == 401

    def test_a_proof_dated_before_the_start_is_answered_503(self) -> None:
        found = with_proof(agent(start=StartPolicy.FLOOR)).verified(PROVEN).response
        assert (found.status, dict(found.headers)[b"retry-after"]) == (503, b"1")
        assert b'"asap:admission/restarted"' in found.body

    @pytest.mark.parametrize(
        ("said", "status"),
        [
            (admission.Admitted(None), None),
            (Replayed(), 401),
            (admission.Stale(WALL), 401),
            (admission.Future(WALL), 401),
            (Saturated(2.0), 503),
            (Floored(2.0), 503),
            (admission.StoreUnavailable(2.0), 503),
            (admission.Stored(None), 503),
            (admission.Running(1.0), 503),
            (admission.Mismatch(), 503),
            (admission.OutcomeUnknown(), 503),
            (admission.AnswerGone(), 503),
        ],
    )
    def test_a_shared_store_is_asked(self, said, status) -> None:
        state: Any = with_proof(agent(shared=True)).verified(PROVEN)
        assert isinstance(state, ClaimProof)
        question = state.question
        assert (question.sender, question.nonce, question.issued) == ("h", "j", WALL)
        assert question.authenticated
        assert (question.idempotency_key, question.digest, question.deadline) == (None, b"", 0.0)
        after: Any = state.answered(said)
        assert isinstance(after, ReadBody) if status is None else after.response.status == status
        assert status is None or after.response.close
        with pytest.raises(IllegalMove, match="ClaimProof was left already"):
            state.answered(said)

    def test_a_shared_store_that_cannot_be_asked_admits_nothing(self) -> None:
        state: Any = with_proof(agent(shared=True)).verified(PROVEN)
        response = state.unavailable().response
        assert (response.status, response.close) == (503, True)  # the body wasn't read
        with pytest.raises(IllegalMove, match="ClaimProof was left already"):
            state.unavailable()

    def test_a_proof_check_may_be_abandoned(self) -> None:
        assert with_proof(agent(shared=True)).verified(PROVEN).abandon()

    def test_every_answer_offers_a_new_nonce(self) -> None:
        renewed = evolve(PROVEN, nonce="n2")
        made = agent()
        body = with_proof(made).verified(renewed)
        response = body.feed(b"{").end().response
        assert (response.status, dict(response.headers)[b"dpop-nonce"]) == (200, b"n2")
        assert answer(with_proof(made).verified(renewed))[2] == b"n2"

    def test_static_tokens_are_bearer_tokens(self) -> None:
        table = TokenTable({TOKEN: ALICE})
        assert table.verify(Credential(TOKEN)) == Authenticated(ALICE)
        assert table.verify(with_proof(agent()).credential) is None

    @given(st.binary(max_size=100), st.lists(st.binary(max_size=300), max_size=3))
    def test_any_bytes_in_the_headers_get_a_decision(self, authorization, proofs) -> None:
        headers = [(b"authorization", b"DPoP " + authorization), *((b"dpop", each) for each in proofs)]
        state = opened(agent(), *headers)
        if not isinstance(state, Respond):
            verdict = judge(state.credential.token, state.credential.proof)
            assert isinstance(verdict, (Rejected, ProofRefused))
            state = state.refused(verdict if isinstance(verdict, ProofRefused) else None)
        assert state.response.status == 401


# --- all of it together, beside a naive model ------------------------------------------------------------------------

KEYS: Any = {"mine": MINE, "other": OTHER}
TOKENS = {name: token(key) for name, key in KEYS.items()}
GOOD: Any = {"htm": "POST", "htu": URL}


class ProofMachine(RuleBasedStateMachine):
    """Whole requests: a valid proof is accepted once, an invalid one never; errors of others change nothing."""

    steps = False
    policy: Any = {}
    kept = 330

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock(monotonic=NOW, wall=WALL)
        self.agent = agent(clock=self.clock, **self.policy)
        self.verifier = verifier(dpop=DpopPolicy(nonce=True, nonce_life=100), fresh_for=1e9)
        # What was accepted: by whom, when; by what each nonce was first seen.
        self.accepted: Any = {}
        self.exactly: Any = set()
        self.nonces: Any = {}
        # Whether a good one may be refused: since the clock stepped, or an older one is forgotten already.
        self.stepped = self.kept < 90

    @property
    def slot(self) -> int:
        return int(self.clock.wall() // 100)

    @rule(seconds=st.sampled_from([0.5, 1, 30, 60, 99, 100, 331]))
    def time_passes(self, seconds) -> None:
        self.clock.advance(seconds)

    @rule(back=st.sampled_from([10, 100, 1_000]))
    def the_wall_clock_steps_back(self, back) -> None:
        if self.steps:
            self.clock.step_wall(-back)
            self.stepped = True

    @rule(
        holder=st.sampled_from(sorted(KEYS)),
        jti=st.sampled_from("abc"),
        age=st.sampled_from([0, 0, 0, 59, 61, -29, -31]),
        nonce=st.sampled_from([0, 0, 0, 1, 2, 3, None]),
        wrong=st.sampled_from([{}, {}, {}, {}, {"htu": URL + "/x"}, {"htm": "GET"}, {"ath": token_hash("x")}]),
        signer=st.sampled_from(["mine", "other", None, None, None]),
        signed=st.sampled_from([True, True, True, False]),
    )
    def a_proof_comes(self, holder, jti, age, nonce, wrong, signer, signed) -> None:  # noqa: PLR0917 - drawn by name
        self.send(holder, jti, age=age, nonce=nonce, wrong=wrong, signer=signer, signed=signed)

    # By chance there are few of these, and most bugs show in what follows them.
    @precondition(lambda self: self.nonces)
    @rule(
        holder=st.sampled_from(sorted(KEYS)),
        jti=st.sampled_from("abc"),
        wrong=st.sampled_from([{}, {}, {"htu": URL + "/x"}]),
        signed=st.booleans(),
    )
    def a_proof_comes_with_the_newest_nonce(self, holder, jti, wrong, signed) -> None:
        self.send(holder, jti, age=0, nonce=self.slot - max(self.nonces), wrong=wrong, signer=None, signed=signed)

    def send(self, holder, jti, *, age, nonce, wrong, signer, signed) -> None:
        wall, now = self.clock.wall(), self.clock.monotonic()
        signer = signer or holder
        issued = int(wall) - age
        said = self.nonces.get(None if nonce is None else self.slot - nonce)
        text = jws(
            {"typ": "dpop+jwt", "alg": "EdDSA", "jwk": public_jwk(KEYS[signer])},
            {
                **GOOD, "jti": jti, "iat": issued, "ath": token_hash(TOKENS[holder]),
                **({} if said is None else {"nonce": said}), **wrong,
            },
            bytes(64),
        )  # fmt: skip
        headers = (b"authorization", b"DPoP " + TOKENS[holder].encode()), (b"dpop", text.encode())
        status, given = self.drive(opened(self.agent, *headers), signed=signed)
        says_right = not wrong and wall - 60 <= issued <= wall + 30
        good_nonce = said is not None and nonce in (0, 1)
        if says_right and not good_nonce:
            assert (status, given is None) == (401, False)
            self.nonces[self.slot] = given
            return
        good = says_right and signer == holder and signed
        if not good:
            assert status == 401
            return
        self.judge(holder, jti, issued, now, status, given=given, renewed=nonce == 1)

    def judge(self, holder, jti, issued, now, status, *, given, renewed) -> None:
        last = self.accepted.get((holder, jti))
        if status is None:
            assert (holder, jti, issued) not in self.exactly
            assert last is None or now - last >= self.kept
            self.exactly.add((holder, jti, issued))
            self.accepted[holder, jti] = now
        elif last is None and not self.stepped:
            pytest.fail(f"a good proof was refused with {status}")
        else:
            assert status in (401, 503)
        if renewed and given is not None:
            self.nonces[self.slot] = given
        assert (given is not None) == renewed

    def drive(self, state, *, signed):
        credential = state.credential
        found: Any = self.verifier.open(
            credential.token, proof=credential.proof, at=moment(self.clock.monotonic(), self.clock.wall())
        )
        if isinstance(found, VerifySignature):
            found = found.good(at=moment(self.clock.monotonic(), self.clock.wall()))
        if isinstance(found, VerifyProof):
            found = found.good() if signed else found.bad()
        match found:
            case Rejected():
                state = state.refused()
            case ProofRefused():
                state = state.refused(found)
            case Accepted(principal):
                state = state.verified(principal)
            case _:
                state = state.verified(found)
        let_in, after = isinstance(state, ReadBody), _any(state)
        response = after.feed(b"{").end().response if let_in else after.response
        given = dict(response.headers).get(b"dpop-nonce")
        return None if let_in else response.status, None if given is None else given.decode()


class SteppedProofMachine(ProofMachine):
    steps = True


class ForgetfulProofMachine(ProofMachine):
    """An agent that forgets sooner than proofs are too old: what it forgot it refuses by its date."""

    steps = True
    policy: Any = {"max_age": 20.0, "skew": 5.0}
    kept = 25


LAWS = settings(max_examples=150, stateful_step_count=25, deadline=None)
HUNT = settings(LAWS, max_examples=2_000, phases=[Phase.generate], derandomize=True, database=None)


@pytest.mark.parametrize("machine", [ProofMachine, SteppedProofMachine, ForgetfulProofMachine])
def test_a_valid_proof_is_accepted_once_and_an_invalid_one_never(machine) -> None:
    run_state_machine_as_test(machine, settings=LAWS)


def _accepts_any_nonce(patch) -> None:
    patch.setattr(NonceMint, "accepts", lambda _self, nonce, *, wall: isinstance(nonce, str))


def _accepts_old_nonces(patch) -> None:
    good = NonceMint.accepts
    patch.setattr(
        NonceMint, "accepts", lambda self, n, *, wall: good(self, n, wall=wall) or good(self, n, wall=wall - 100)
    )


def _offers_no_new_nonce(patch) -> None:
    good = dpop.read_proof
    patch.setattr(
        jwt,
        "read_proof",
        lambda *a, **k: evolve(p, nonce=None) if isinstance(p := good(*a, **k), UnverifiedProof) else p,
    )


def _accepts_any_url(patch) -> None:
    patch.setattr(dpop, "comparable_url", lambda _url: URL)


def _accepts_any_token(patch) -> None:
    patch.setattr(dpop, "token_hash", lambda _token: token_hash("x"))


def _accepts_any_key(patch) -> None:
    patch.setattr(jwt, "wrong_key", lambda *_: None)
    patch.setattr("asap_core.auth.claims.wrong_key", lambda *_: None)


def _any(value):
    return value


def _shares_proof_ids_between_keys(patch) -> None:
    good = jwt.VerifyProof.good
    patch.setattr(jwt.VerifyProof, "good", lambda self: evolve(_any(good(self)), holder="dpop"))


def _accepts_old_proofs(patch) -> None:
    good = dpop._wrong
    later: Any = lambda c, s, *, token, policy, wall: good(  # noqa: E731
        c, s, token=token, policy=evolve(policy, max_age=300.0), wall=wall
    )
    patch.setattr(dpop, "_wrong", later)


def _claims_the_id_before_the_signature_is_checked(patch) -> None:
    good = jwt._Run.judged

    def judged(self, verdict):
        found = good(self, verdict)
        used = self.verifier.__dict__.setdefault("used", set())
        if (self.proof.thumbprint, self.proof.proof_id) in used:
            return ProofRefused("a proof that's new")
        used.add((self.proof.thumbprint, self.proof.proof_id))
        return found

    patch.setattr(jwt._Run, "judged", judged)


def _accepts_an_invalid_signature(patch) -> None:
    patch.setattr(jwt.VerifyProof, "bad", lambda self: self.good())


def _accepts_a_proof_twice(patch) -> None:
    good = exchange._after_claim
    patch.setattr(exchange, "_after_claim", lambda run, proven, _answer: good(run, proven, admission.Admitted(None)))


def _remembers_the_proof_with_the_token(patch) -> None:
    patch.setattr(jwt._Run, "judged", lambda _self, verdict: verdict)


@pytest.mark.planted
@pytest.mark.long
@pytest.mark.parametrize(
    "plant",
    [
        _accepts_any_nonce,
        _accepts_old_nonces,
        _offers_no_new_nonce,
        _accepts_any_url,
        _accepts_any_token,
        _accepts_any_key,
        _shares_proof_ids_between_keys,
        _accepts_old_proofs,
        _claims_the_id_before_the_signature_is_checked,
        _accepts_an_invalid_signature,
        _accepts_a_proof_twice,
        _remembers_the_proof_with_the_token,
    ],
)
def test_a_planted_bug_is_caught(plant, monkeypatch) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception, ExceptionGroup)):
        run_state_machine_as_test(ProofMachine, settings=HUNT)
