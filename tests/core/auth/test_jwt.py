"""Tokens judged without cryptography: signatures are answered by the test, so that all else is seen by itself."""

import json
from base64 import urlsafe_b64encode
from typing import Any

import pytest
from attrs import evolve
from hypothesis import Phase, given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from asap_core import (
    Agent,
    Authenticated,
    AuthScheme,
    Capabilities,
    Dispatch,
    Endpoints,
    Manifest,
    ManualClock,
    Policy,
    Request,
    Skill,
    StartPolicy,
)
from asap_core.auth import keyring
from asap_core.auth.bearer import is_scope
from asap_core.auth.claims import Accepted, ByClaim, BySubject, Rejected, TokenPolicy
from asap_core.auth.jwks import MAX_KEYS, EcKey, KeySet, OkpKey, RsaKey, is_possible, read_key_set
from asap_core.auth.jws import Algorithm, Jws, Malformed, read_jws
from asap_core.auth.jwt import JwtVerifier, KeysUnavailable, NeedKeys, VerifySignature
from asap_core.auth.keyring import FetchKeys, KeyRing, NoFetch
from asap_core.auth.principal import InsufficientScope
from asap_core.auth.provider import ProviderMetadata, metadata_urls, read_metadata
from asap_core.clock import Instant, WallTime
from asap_core.errors import InvalidDocument
from tests.moments import moment

ISSUER, AUDIENCE, ALICE = "https://id.example", "https://agent.example", "urn:asap:agent:alice"
WALL: Any = WallTime(1_750_000_000.0)
NOW: Any = Instant(1_000.0)
KEY = OkpKey("k1", b"\x01" * 32)
KEYS = KeySet((KEY,))
# P-256's base point (SEC 2 §2.4.2): a point that's on the curve.
GX = 0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296
GY = 0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
L = 2**252 + 27742317777372353535851937790883648493
MODULUS = (1 << 2047) + 1
GOOD = {"iss": ISSUER, "aud": AUDIENCE, "sub": ALICE, "exp": WALL + 60, "nbf": WALL - 1, "iat": WALL - 1}


def b64(data) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def token(claims=None, *, signature=bytes(64), **header) -> str:
    head = {"alg": "EdDSA", "kid": "k1", **header}
    claims = GOOD if claims is None else claims
    return f"{b64(json.dumps(head).encode())}.{b64(json.dumps(claims).encode())}.{b64(signature)}"


def policy(**changes):
    return TokenPolicy(**{"issuer": ISSUER, "audience": AUDIENCE, "agent": ByClaim("sub"), **changes})


def verifier(keys=KEYS, secret=b"s" * 32, **changes):
    made = JwtVerifier(policy(**changes), secret=secret)
    made.ring.fetched(made.ring.due(now=NOW), keys, age=0, now=NOW)  # type: ignore[arg-type] # it's due: an FetchKeys
    return made


def judge(text, made=None, *, now=NOW, wall=WALL):
    """The verdict, every signature being good."""
    state = (verifier() if made is None else made).open(text, at=moment(now, wall))
    return state.good(at=moment(now, wall)) if isinstance(state, VerifySignature) else state


def read(text, algorithms=frozenset(Algorithm)):
    return read_jws(text, algorithms=algorithms)


class TestReadingATokensForm:
    def test_a_good_one_is_taken_apart(self) -> None:
        found = read(token(typ="application/AT+JWT"))
        assert (found.algorithm, found.kid, found.typ) == (Algorithm.ED25519, "k1", "at+jwt")
        assert json.loads(found.payload) == GOOD
        assert found.signing_input + b"." + b64(found.signature).encode() == token(typ="application/AT+JWT").encode()

    @pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", "", " none", "none\x00", None, 0, ["EdDSA"], {}])
    def test_none_is_no_algorithm_in_any_spelling(self, name) -> None:
        assert isinstance(read(token(alg=name)), Malformed)

    @pytest.mark.parametrize(
        "name", ["HS256", "HS384", "HS512", "ES512", "RS512", "PS256", "ES256K", "eddsa", "A128KW"]
    )
    def test_what_is_not_listed_is_refused(self, name) -> None:
        assert isinstance(read(token(alg=name)), Malformed)

    def test_the_list_is_the_policys(self) -> None:
        assert isinstance(read(token(), {Algorithm.ES256}), Malformed)

    @pytest.mark.parametrize(
        "header",
        [
            {"crit": ["b64"], "b64": False},
            {"crit": []},
            {"crit": ["exp"]},
            {"b64": False},
            {"b64": True},
            {"kid": ""},
            {"kid": 5},
            {"kid": "k" * 257},
            {"kid": ["k1"]},
            {"typ": 5},
            {"typ": ["JWT"]},
        ],
    )
    def test_headers_that_change_the_meaning_are_refused(self, header) -> None:
        assert isinstance(read(token(**header)), Malformed)

    @pytest.mark.parametrize(
        "header",
        [
            b'{"alg":"EdDSA","alg":"none"}',
            b'{"kid":"a","alg":"EdDSA","kid":"b"}',
            b"[]",
            b'"EdDSA"',
            b"null",
            b"{",
            b"\xff",
            b'\xef\xbb\xbf{"alg":"EdDSA"}',
            b'{"alg":"EdDSA","x":NaN}',
            b'{"alg":' + b"[" * 99 + b"]" * 99 + b"}",
        ],
    )
    def test_headers_that_two_readers_could_read_differently_are_refused(self, header) -> None:
        assert isinstance(read(f"{b64(header)}.{b64(b'{}')}.{b64(bytes(64))}"), Malformed)

    @pytest.mark.parametrize(
        "change",
        [
            lambda t: t + "=",
            lambda t: t + ".",
            lambda t: "." + t,
            lambda t: t + " ",
            lambda t: " " + t,
            lambda t: t + "\n",
            lambda t: t.replace(".", "..", 1),
            lambda t: t.rsplit(".", 1)[0],
            lambda t: t.rsplit(".", 1)[0] + ".",
            lambda t: t + ".AAAA",
            lambda t: t.replace(".", ".=", 1),
            lambda t: t[:-1] + "+",
            lambda t: t[:-1] + "/",
            lambda t: t[:-1] + "B",
            lambda t: t + "AAA",
            lambda t: t + "é",
            lambda t: t + "A" * 9_000,
            lambda _t: "",
            lambda _t: ".",
            lambda _t: "..",
            lambda t: t.replace(".", "\n.", 1),
            lambda t: t.replace(".", "%2E", 1),
        ],
    )
    def test_there_is_one_spelling(self, change) -> None:
        assert isinstance(read(change(token())), Malformed)

    @given(st.text() | st.binary().map(lambda data: data.decode("latin-1")) | st.from_regex(r"[\w-]*\.[\w-]*\.[\w-]*"))
    def test_any_text_is_refused_or_read_and_nothing_else(self, text) -> None:
        found = read(text)
        assert isinstance(found, Malformed) or found.signing_input.decode() + "." + b64(found.signature) == text

    @given(st.binary(max_size=300), st.binary(max_size=300), st.binary(max_size=80))
    def test_any_bytes_in_its_parts_are_refused(self, header, payload, signature) -> None:
        assert isinstance(judge(f"{b64(header)}.{b64(payload)}.{b64(signature)}"), Rejected)

    @given(st.binary(max_size=200))
    def test_any_bytes_as_claims_are_refused(self, payload) -> None:
        head = token().split(".")[0]
        assert isinstance(judge(f"{head}.{b64(payload)}.{b64(bytes(64))}"), Rejected)

    def test_nothing_of_it_is_shown(self) -> None:
        assert "id.example" not in repr(read(token()))


RSA = {"kty": "RSA", "n": b64(MODULUS.to_bytes(256)), "e": "AQAB"}
EC = {"kty": "EC", "crv": "P-256", "x": b64(GX.to_bytes(32)), "y": b64(GY.to_bytes(32))}
OKP = {"kty": "OKP", "crv": "Ed25519", "x": b64(bytes(range(32)))}


def key_set(*keys):
    return read_key_set(json.dumps({"keys": keys}).encode())


class TestReadingKeySets:
    def test_the_three_kinds(self) -> None:
        found = key_set({**RSA, "kid": "r", "use": "sig"}, {**EC, "key_ops": ["verify"]}, {**OKP, "alg": "EdDSA"})
        assert found.keys == (RsaKey("r", MODULUS, 65_537), EcKey(None, GX, GY), OkpKey(None, bytes(range(32))))
        assert [key.algorithm for key in found.keys] == [Algorithm.RS256, Algorithm.ES256, Algorithm.ED25519]

    @pytest.mark.parametrize(
        "bad",
        [
            5,
            None,
            [],
            {},
            {"kty": "oct", "k": "AAAA"},
            {"kty": ["RSA"]},
            {**RSA, "use": "enc"},
            {**RSA, "alg": "HS256"},
            {**RSA, "alg": "ES256"},
            {**EC, "alg": "RS256"},
            {**RSA, "alg": "PS256"},
            {**RSA, "key_ops": ["encrypt"]},
            {**RSA, "key_ops": "verify"},
            {**RSA, "kid": 5},
            {**RSA, "kid": ""},
            {**RSA, "d": "AAAA"},
            {**OKP, "d": "AAAA"},
            {**RSA, "k": "AAAA"},
            {**RSA, "n": b64(((1 << 1023) + 1).to_bytes(128))},
            {**RSA, "n": b64(((1 << 9000) + 1).to_bytes(1126))},
            {**RSA, "n": b64((1 << 2047).to_bytes(256))},
            {**RSA, "e": "AQ"},
            {**RSA, "e": "Ag"},
            {**RSA, "e": b64(b"\xff" * 5)},
            {**RSA, "e": "AQAB="},
            {**RSA, "e": 3},
            {**RSA, "n": "é"},
            {**EC, "crv": "P-384"},
            {**EC, "crv": ["P-256"]},
            {**EC, "y": b64((GY ^ 1).to_bytes(32))},
            {**EC, "x": b64(bytes(32)), "y": b64(bytes(32))},
            {**EC, "x": b64(b"\xff" * 32)},
            {**EC, "x": b64(b"\0" + GX.to_bytes(32))},
            {**OKP, "crv": "X25519"},
            {**OKP, "x": b64(bytes(31))},
            {**OKP, "x": None},
        ],
    )
    def test_one_that_cannot_be_used_does_not_spoil_the_set(self, bad) -> None:
        found = key_set(bad, OKP)
        assert (found.keys, found.skipped) == ((OkpKey(None, bytes(range(32))),), 1)

    @pytest.mark.parametrize("name", ["kid", "use", "alg", "key_ops", "d", "k", "x5c", "oth"])
    def test_null_is_none(self, name) -> None:
        for key, read in ((RSA, RsaKey(None, MODULUS, 65_537)), (OKP, OkpKey(None, bytes(range(32))))):
            assert key_set({**key, name: None}).keys == (read,)

    def test_one_listed_twice_is_one(self) -> None:
        for twin in (OKP, {**OKP, "use": "sig", "alg": None}):
            twice = key_set({**OKP, "kid": "k1"}, {**twin, "kid": "k1"}, {**RSA, "kid": "k1"})
            assert isinstance(judge(token(kid="k1"), verifier(twice)), Accepted)
            assert isinstance(judge(token(kid=None), verifier(twice)), Accepted)
        other = {**OKP, "x": b64(bytes(32)), "kid": "k1"}
        two = key_set({**OKP, "kid": "k1"}, {**OKP, "kid": "k1"}, other)
        assert judge(token(kid="k1"), verifier(two)) == Rejected("a key of the issuer's")

    @pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"keys":{}}', b'{"keys":null}', b'{"keys":[],"keys":[]}'])
    def test_what_is_no_set_is_said_to_be_none(self, text) -> None:
        with pytest.raises(InvalidDocument):
            read_key_set(text)

    def test_their_number_is_bounded(self) -> None:
        assert len(key_set(*[OKP] * MAX_KEYS).keys) == MAX_KEYS
        with pytest.raises(InvalidDocument, match="at most 100"):
            key_set(*[OKP] * (MAX_KEYS + 1))

    @given(
        st.binary()
        | st.recursive(
            st.none() | st.integers() | st.text(),
            lambda inner: (
                st.lists(inner)
                | st.dictionaries(
                    st.sampled_from(["keys", "kty", "n", "e", "x", "y", "crv", "kid", "alg", "use", "RSA", "EC"]), inner
                )
            ),
        ).map(lambda value: json.dumps(value).encode())
    )
    def test_any_bytes_are_a_set_or_none(self, data) -> None:
        try:
            assert isinstance(read_key_set(data), KeySet)
        except InvalidDocument:
            pass

    def test_a_signature_has_its_keys_form(self) -> None:
        okp, ec, rsa = key_set(OKP, EC, RSA).keys
        assert is_possible(okp, bytes(32) + (L - 1).to_bytes(32, "little"))
        for s in (L, L + 5, 2**256 - 1):
            assert not is_possible(okp, bytes(32) + s.to_bytes(32, "little"))
        assert not is_possible(okp, bytes(63))

        def pair(r, s):
            return r.to_bytes(32) + s.to_bytes(32)

        assert is_possible(ec, pair(1, N - 1))
        for wrong in (
            pair(0, 1),
            pair(1, 0),
            pair(0, 0),
            pair(N, 1),
            pair(1, N),
            pair(1, 1) + b"\0",
            b"\x30\x06\x02\x01\x01\x02\x01\x01",
        ):
            assert not is_possible(ec, wrong)
        assert is_possible(rsa, (MODULUS - 1).to_bytes(256))
        assert not is_possible(rsa, MODULUS.to_bytes(256))
        assert not is_possible(rsa, b"\0" + bytes(256))

    @pytest.mark.parametrize(("alg", "key"), [("RS256", OKP), ("ES256", RSA), ("EdDSA", EC), ("ES256", OKP)])
    def test_the_keys_type_decides_the_algorithm(self, alg, key) -> None:
        found = judge(token(alg=alg, kid="k"), verifier(key_set({**key, "kid": "k"})))
        assert isinstance(found, NeedKeys | Rejected)


class TestClaims:
    def test_the_unmutated_token_passes(self) -> None:
        assert judge(token()) == Accepted(Authenticated(ALICE), WallTime(WALL + 90))

    @pytest.mark.parametrize("name", ["iss", "aud", "sub", "exp"])
    def test_what_must_be_there_must_be_there(self, name) -> None:
        assert isinstance(judge(token({key: value for key, value in GOOD.items() if key != name})), Rejected)

    @given(st.sampled_from(["iss", "aud", "sub", "exp", "nbf", "iat"]), st.data())
    @settings(max_examples=200)
    def test_every_claim_mutated_one_at_a_time(self, name, data) -> None:
        anything: Any = (
            st.none() | st.booleans() | st.text() | st.lists(st.text()) | st.dictionaries(st.text(), st.text())
        )
        wrong: Any = anything | st.just(0) | st.just(-1)
        if name == "exp":
            wrong |= st.floats(max_value=WALL - 30, allow_nan=False, allow_infinity=False) | st.integers(
                253_402_300_800
            )
        elif name in ("nbf", "iat"):
            wrong |= st.floats(min_value=WALL + 30.001, allow_nan=False, allow_infinity=False)
        else:
            wrong |= st.sampled_from(
                [f"{GOOD[name]}/", str(GOOD[name]).upper(), f" {GOOD[name]}", str(GOOD[name])[:-1]]
            )
        value = data.draw(wrong.filter(lambda value: value != GOOD[name]))
        listed = verifier(agent=BySubject({ALICE: ALICE}))
        assert isinstance(judge(token(GOOD), listed), Accepted)
        assert isinstance(judge(token({**GOOD, name: value}), listed), Rejected)

    @pytest.mark.parametrize("claims", [[], "x", None, 5])
    def test_claims_are_an_object(self, claims) -> None:
        head = token().split(".")[0]
        assert isinstance(judge(f"{head}.{b64(json.dumps(claims).encode())}.{b64(bytes(64))}"), Rejected)

    @pytest.mark.parametrize(
        ("change", "passes"),
        [
            ({"exp": WALL - 29}, True),
            ({"exp": WALL - 30}, False),
            ({"exp": WALL + 0.5}, True),
            ({"exp": True}, False),
            ({"exp": str(WALL + 60)}, False),
            ({"nbf": WALL + 30}, True),
            ({"nbf": WALL + 31}, False),
            ({"iat": WALL + 30}, True),
            ({"iat": WALL + 31}, False),
            ({"nbf": None}, False),
            ({"aud": [AUDIENCE]}, True),
            ({"aud": ["x", AUDIENCE]}, True),
            ({"aud": []}, False),
            ({"aud": [AUDIENCE, 5]}, False),
            ({"aud": None}, False),
            ({"aud": {"x": AUDIENCE}}, False),
            ({"cnf": {"jkt": "x"}}, False),
            ({"cnf": None}, False),
            ({"scope": ["a"]}, True),
            ({"scope": None}, True),
            ({"scope": []}, True),
            ({"scope": ["a", 5]}, False),
            ({"scope": [["a"]]}, False),
            ({"scope": {"a": True}}, False),
            ({"scope": True}, False),
            # A date and a key that are null are no date and no key: what guards isn't passed over.
            ({"iat": None}, False),
            ({"exp": None}, False),
            ({"exp": WALL + 59.5}, True),
            ({"jti": 5}, True),
        ],
    )
    def test_the_bounds(self, change, passes) -> None:
        assert isinstance(judge(token({**GOOD, **change})), Accepted) is passes

    @pytest.mark.parametrize(
        ("typ", "passes"),
        [
            ("JWT", True),
            ("at+jwt", True),
            ("application/at+JWT", True),
            ("dpop+jwt", False),
            ("logout+jwt", False),
            ("id+jwt", False),
            ("", False),
        ],
    )
    def test_other_kinds_of_token_say_so_in_typ(self, typ, passes) -> None:
        assert isinstance(judge(token(typ=typ)), Accepted) is passes

    def test_one_type_may_be_asked_for(self) -> None:
        strict = {"types": {"at+jwt"}}
        assert isinstance(judge(token(), verifier(**strict)), Rejected)
        assert isinstance(judge(token(typ="at+jwt"), verifier(**strict)), Accepted)

    def test_subjects_are_listed(self) -> None:
        made = verifier(agent=BySubject({"client-7": ALICE}))
        assert judge(token({**GOOD, "sub": "client-7"}), made).principal == Authenticated(ALICE)
        for other in (ALICE, "client-8", None, ["client-7"], 7):
            assert isinstance(judge(token({**GOOD, "sub": other}), made), Rejected)

    def test_a_claim_that_is_no_agents_urn_is_nobodys(self) -> None:
        for sub in ("alice", "", None, 7, f"{ALICE}\n", [ALICE]):
            assert judge(token({**GOOD, "sub": sub})) == Rejected("a token of an agent that may call")
        assert judge(token({**GOOD, "scope": 5})) == Rejected("a scope that is text")

    @pytest.mark.parametrize("agents", [{}, {"x": "alice"}, {"x": ALICE, "y": "alice"}])
    def test_a_list_of_subjects_names_agents(self, agents) -> None:
        with pytest.raises(ValueError, match="expected at least one subject"):
            BySubject(agents)

    @given(st.sets(st.sampled_from("abcd")))
    def test_scopes_must_all_be_held(self, held) -> None:
        found = judge(token({**GOOD, "scope": " ".join(held)}), verifier(scopes=["a", "b"]))
        assert isinstance(found, Accepted) if {"a", "b"} <= held else found == InsufficientScope(frozenset("ab"))

    @pytest.mark.parametrize(
        ("said", "held"),
        [
            ({"scope": ["a", "b"]}, {"a", "b"}),
            ({"scope": ["a b", "", "c"]}, {"a", "b", "c"}),
            ({"scope": None}, set()),
            ({"scope": []}, set()),
            ({"scp": ["a"]}, {"a"}),
            ({"scp": "a b"}, {"a", "b"}),
            ({"scope": None, "scp": ["a"]}, {"a"}),
            ({"scope": "", "scp": ["a"]}, set()),
            ({"scope": "b", "scp": ["a"]}, {"b"}),
            ({"scp": None}, set()),
        ],
    )
    def test_scopes_are_words_in_a_text_or_a_list(self, said, held) -> None:
        claims = {**{name: value for name, value in GOOD.items() if name != "scope"}, **said}
        assert judge(token(claims)).principal.scopes == held
        asked = judge(token(claims), verifier(scopes=["a"]))
        assert isinstance(asked, Accepted) if "a" in held else asked == InsufficientScope(frozenset("a"))

    @pytest.mark.parametrize("scope", ['a"b', "a b", "a\\b", "", "é", "a\n"])
    def test_scopes_fit_into_a_challenge(self, scope) -> None:
        assert not is_scope(scope)
        with pytest.raises(ValueError, match="scopes"):
            policy(scopes=[scope])
        with pytest.raises(ValueError, match="scopes"):
            InsufficientScope(frozenset([scope]))

    def test_want_of_scope_is_answered_403_with_what_it_takes(self) -> None:
        manifest = Manifest(
            id="urn:asap:agent:a",
            name="",
            version="1",
            description="",
            capabilities=Capabilities(),
            endpoints=Endpoints(asap="https://a.example/asap"),
            auth=AuthScheme(schemes=["bearer"]),
        )
        agent = Agent(manifest).bind(clock=ManualClock(), ids=lambda: "i", key=b"k" * 32)
        headers = ((b"authorization", b"Bearer x"),)
        state: Any = agent.open(Request(method="POST", target="/asap", headers=headers, peer="192.0.2.1"))
        response = state.insufficient(InsufficientScope(frozenset({"b", "a"}))).response
        challenge = b'Bearer realm="asap", error="insufficient_scope", scope="a b"'
        assert (response.status, dict(response.headers)[b"www-authenticate"]) == (403, challenge)
        assert response.close

    @pytest.mark.parametrize(
        ("wanted", "held", "status"),
        [
            ({}, "", 200),
            ({"task.request": "a"}, "a", 200),
            ({"task.request": "a"}, "b", 403),
            ({"task.request/echo": ["a", "b"]}, "b c a", 200),
            ({"task.request/echo": ["a", "b"]}, "a", 403),
            ({"task.request": "a", "task.request/echo": "b"}, "b", 403),
            ({"task.request": "a", "task.request/echo": "b"}, "a b", 200),
            ({"task.request/other": "a", "task.cancel": "b"}, "", 200),
            ({"TaskRequest": "a"}, "b", 403),
            ({"task.request": "a"}, None, 403),
        ],
    )
    def test_a_skill_or_payload_type_may_take_scopes_of_its_own(self, wanted, held, status) -> None:
        manifest = Manifest(
            id="urn:asap:agent:a",
            name="",
            version="1",
            description="",
            capabilities=Capabilities(skills=[Skill(id=name, description="") for name in ("echo", "other")]),
            endpoints=Endpoints(asap="https://a.example/asap"),
            auth=None if held is None else AuthScheme(schemes=["bearer"]),
        )
        rules = Policy(scopes=wanted, start=StartPolicy.OPEN)
        with pytest.raises(ValueError, match="scopes: expected payload types and skills"):
            Agent(manifest, policy=Policy(scopes={"task.request/ech": "a"}))
        agent = Agent(manifest, policy=rules, payload_types=("task.request", "task.cancel")).bind(
            clock=ManualClock(), ids=lambda: "i", key=b"k" * 32
        )
        headers = ((b"authorization", b"Bearer x"),)
        state: Any = agent.open(Request(method="POST", target="/asap", headers=headers, peer="192.0.2.1"))
        if held is not None:
            state = state.verified(judge(token({**GOOD, "scope": held})).principal)
        envelope = {
            "id": "e",
            "asap_version": "0.1",
            "timestamp": "2025-06-15T15:06:40Z",
            "sender": ALICE,
            "recipient": "urn:asap:agent:a",
            "payload_type": "TaskRequest",
            "payload": {"conversation_id": "c", "skill_id": "echo", "input": {}},
        }
        body = {"jsonrpc": "2.0", "id": 1, "method": "asap.send", "params": {"envelope": envelope}}
        state = state.feed(json.dumps(body).encode()).end()
        (call,) = state.calls
        if status == 200:
            assert isinstance(call, Dispatch)
        else:
            response = state.answered([call]).response
            scopes = " ".join(sorted({each for key in wanted for each in wanted[key]}))
            challenge = f'Bearer realm="asap", error="insufficient_scope", scope="{scopes}"'.encode()
            assert (response.status, dict(response.headers)[b"www-authenticate"]) == (403, challenge)

    @pytest.mark.parametrize("wrong", [{"": "a"}, {"task.request": []}, {"task.request": 'a"'}, {"task.request": ""}])
    def test_scopes_that_cannot_be_meant(self, wrong) -> None:
        with pytest.raises(ValueError, match="scopes: expected"):
            Policy(scopes=wrong)

    def test_one_audience_or_scope_is_no_list_of_letters(self) -> None:
        assert (policy().audience, policy(scopes="ab").scopes) == ({AUDIENCE}, {"ab"})


class TestKeys:
    def test_a_token_without_kid_is_for_the_only_key_of_its_kind(self) -> None:
        assert isinstance(judge(token(kid=None)), Accepted)
        assert isinstance(judge(token(kid=None), verifier(KeySet((KEY, evolve(KEY, kid="k2"))))), Rejected)
        assert isinstance(judge(token(kid=None, alg="RS256")), Rejected)

    def test_two_keys_of_one_name_are_none(self) -> None:
        made = verifier(KeySet((KEY, evolve(KEY, x=bytes(32)))))
        assert judge(token(), made) == Rejected("a key of the issuer's")

    def test_a_forged_signature_asks_for_no_keys(self) -> None:
        state = verifier().open(token(), at=moment(NOW, WALL))
        assert (state.key, state.bad()) == (KEY, Rejected("a signature by the issuer's key"))
        assert isinstance(judge(token(signature=bytes(10))), Rejected)

    def test_an_unknown_key_is_asked_for_once_in_the_cool_down(self) -> None:
        made = verifier()
        first = made.open(token(kid="k2"), at=moment(NOW + 31, WALL))
        assert first.fetch.again
        second = made.open(token(kid="k3"), at=moment(NOW + 31, WALL))
        assert second.fetch.again  # joins: it may come to the fetch before the first does
        new = KeySet((KEY, evolve(KEY, kid="k2")))
        assert isinstance(first.fetched(new, age=0, at=moment(NOW + 32, WALL)), VerifySignature)
        assert isinstance(second.fetched(new, age=0, at=moment(NOW + 32, WALL)), Rejected)
        assert isinstance(made.open(token(kid="k4"), at=moment(NOW + 61, WALL)), Rejected)
        assert made.open(token(kid="k4"), at=moment(NOW + 62, WALL)).fetch.again

    def test_an_answer_older_than_what_is_kept_changes_nothing(self) -> None:
        made = verifier()
        late = made.open(token(kid="k2"), at=moment(NOW + 31, WALL))
        late.fetched(KeySet(()), age=40, at=moment(NOW + 31, WALL))
        assert made.ring.keys == KEYS

    def test_without_keys_nothing_can_be_told(self) -> None:
        made: Any = JwtVerifier(policy(), secret=b"s" * 32)
        state = made.open(token(), at=moment(NOW, WALL))
        assert (state.fetch.again, state.fetch.patience) == (False, None)
        assert state.unavailable(at=moment(NOW, WALL)) == KeysUnavailable()
        assert made.open(token(), at=moment(NOW, WALL)) == KeysUnavailable()
        assert isinstance(made.open(token(), at=moment(NOW + 1, WALL)), NeedKeys)

    def test_who_gives_up_after_the_answer_came_counts_as_no_failure(self) -> None:
        made: Any = JwtVerifier(policy(), secret=b"s" * 32)
        one, two = (made.open(token(), at=moment(NOW, WALL)) for _ in range(2))
        assert isinstance(one.fetched(KEYS, age=0, at=moment(NOW, WALL)), VerifySignature)
        assert isinstance(two.unavailable(at=moment(NOW + 1, WALL)), VerifySignature)
        # A failure would have put the next question off.
        assert isinstance(made.open(token(kid="k2"), at=moment(NOW + 31, WALL)), NeedKeys)
        assert isinstance(made.open(token(), at=moment(NOW + 301, WALL)), NeedKeys)

    def test_an_outage_is_bridged_and_bounded(self) -> None:
        made = verifier()
        for second in range(300, 3_900, 10):
            state = made.open(token(), at=moment(NOW + second, WALL))
            if isinstance(state, NeedKeys):
                state = state.unavailable(at=moment(NOW + second, WALL))
            assert isinstance(state, VerifySignature), second
        state = made.open(token(), at=moment(NOW + 3_900, WALL))
        state = state.unavailable(at=moment(NOW + 3_900, WALL)) if isinstance(state, NeedKeys) else state
        assert state == KeysUnavailable()

    def test_an_unknown_key_during_an_outage_cannot_be_told(self) -> None:
        made = verifier()
        state = made.open(token(kid="k2"), at=moment(NOW + 31, WALL))
        assert state.unavailable(at=moment(NOW + 31, WALL)) == KeysUnavailable()
        assert isinstance(made.open(token(), at=moment(NOW + 31, WALL)), VerifySignature)

    def test_who_hangs_up_does_not_have_it_asked_again(self) -> None:
        made = verifier()
        made.open(token(kid="k2"), at=moment(NOW + 31, WALL)).abandon(now=NOW + 31)
        assert made.open(token(kid="k2"), at=moment(NOW + 32, WALL)) == KeysUnavailable()
        one, two = (made.open(token(kid="k2"), at=moment(NOW + 61, WALL)) for _ in range(2))
        one.abandon(now=NOW + 61)
        assert isinstance(two.fetched(KEYS, age=0, at=moment(NOW + 61, WALL)), Rejected)
        one.abandon(now=NOW + 62)  # too late to matter
        assert isinstance(made.open(token(), at=moment(NOW + 62, WALL)), VerifySignature)

    def test_patience_grows_with_a_slow_provider(self) -> None:
        made, found = verifier(), []
        for round_ in range(7):
            state = made.open(token(), at=moment(NOW + 300 + 30 * round_, WALL))
            found.append(state.fetch.patience)
            state.unavailable(at=moment(NOW + 300 + 30 * round_, WALL))
        assert found == [1, 2, 4, 8, 16, 32, 32]


class TestRemembering:
    def test_a_known_token_needs_no_second_signature_check(self) -> None:
        made = verifier()
        first = judge(token(), made)
        assert made.open(token(), at=moment(NOW + 1, WALL + 1)) == first
        assert len(made) == 1
        assert {len(digest) for digest in made._known} == {16}  # and not the token

    def test_who_sees_the_table_cannot_tell_whose_token_it_is(self) -> None:
        tables = [verifier(secret=bytes([number]) * 32) for number in (1, 2)]
        for made in tables:
            judge(token(), made)
        assert len(tables[0]) == len(tables[1]) == 1
        assert not set(tables[0]._known) & set(tables[1]._known)

    @pytest.mark.parametrize(("now", "wall"), [(NOW + 90, WALL), (NOW, WALL + 90)])
    def test_its_end_counts_on_both_clocks(self, now, wall) -> None:
        made = verifier()
        judge(token(), made)
        assert isinstance(made.open(token(), at=moment(now, wall)), VerifySignature)
        assert len(made) == 0

    def test_it_goes_with_its_key(self) -> None:
        made = verifier()
        judge(token(), made)
        made.ring.keys = KeySet((evolve(KEY, x=bytes(32)),))
        assert isinstance(made.open(token(), at=moment(NOW, WALL)), VerifySignature)

    def test_a_refused_one_is_not_remembered(self) -> None:
        made = verifier()
        judge(token({**GOOD, "aud": "x"}), made)
        assert len(made) == 0

    def test_they_are_bounded(self) -> None:
        made = verifier(max_known=2)
        for number in (1, 2):
            judge(token({**GOOD, "jti": number}), made)
        judge(token({**GOOD, "jti": 1}), made)
        judge(token({**GOOD, "jti": 3}), made)
        assert len(made) == 2
        assert isinstance(made.open(token({**GOOD, "jti": 1}), at=moment(NOW, WALL)), Accepted)
        assert isinstance(made.open(token({**GOOD, "jti": 2}), at=moment(NOW, WALL)), VerifySignature)


class TestProviderMetadata:
    @pytest.mark.parametrize(
        ("issuer", "urls"),
        [
            (
                ISSUER,
                (f"{ISSUER}/.well-known/openid-configuration", f"{ISSUER}/.well-known/oauth-authorization-server"),
            ),
            (
                f"{ISSUER}/t/1/",
                (
                    f"{ISSUER}/t/1/.well-known/openid-configuration",
                    f"{ISSUER}/.well-known/oauth-authorization-server/t/1",
                ),
            ),
        ],
    )
    def test_where_it_is(self, issuer, urls) -> None:
        assert metadata_urls(issuer) == urls

    @pytest.mark.parametrize(
        "issuer",
        ["", "id.example", "ftp://x", "https://", f"{ISSUER}?x", f"{ISSUER}#", "https://[x", "https://a:b@id.example"],
    )
    def test_what_is_no_issuer(self, issuer) -> None:
        with pytest.raises(ValueError, match="expected as issuer"):
            metadata_urls(issuer)

    def test_the_issuer_is_the_one_asked(self) -> None:
        good = {"issuer": ISSUER, "jwks_uri": f"{ISSUER}/keys", "other": 1}
        assert read_metadata(json.dumps(good).encode(), issuer=ISSUER) == ProviderMetadata(
            issuer=ISSUER, jwks_uri=f"{ISSUER}/keys"
        )
        wrong: Any
        for wrong in (
            {**good, "issuer": f"{ISSUER}/"},
            {**good, "issuer": None},
            {**good, "issuer": ISSUER.upper()},
            {**good, "jwks_uri": ""},
            {**good, "jwks_uri": 5},
            [],
            {},
        ):
            with pytest.raises(InvalidDocument):
                read_metadata(json.dumps(wrong).encode(), issuer=ISSUER)
        with pytest.raises(InvalidDocument):
            read_metadata(b"{", issuer=ISSUER)


class RingMachine(RuleBasedStateMachine):
    """The key ring beside what it promises: asked at most once per cool-down, never used too long."""

    ring_class: Any = KeyRing

    def __init__(self) -> None:
        super().__init__()
        self.policy = policy(fresh_for=60, stale_for=120, cool_down=30)
        self.ring = self.ring_class(self.policy)
        self.now, self.asked, self.pending = 0.0, [], []  # type: ignore[var-annotated]
        self.vouched = float("-inf")

    @rule(seconds=st.sampled_from([1, 10, 29, 30, 31, 60, 180]))
    def time_passes(self, seconds) -> None:
        self.now += seconds

    def take(self, found) -> None:
        if isinstance(found, FetchKeys):
            # Whoever joins a question under way asks nobody by that.
            joins = self.ring.waiting > 1
            self.pending.append(found)
            if found.again and not joins:
                # A round that's over may not be asked again within the cool-down, whoever wants it.
                assert all(self.now - before >= 30 for before in self.asked)
                assert self.now - self.vouched >= 30
                self.asked.append(self.now)

    @rule()
    def a_token_comes(self) -> None:
        found = self.ring.due(now=self.now)
        if self.now - self.vouched < 60:
            assert found is None
        if self.now - self.vouched >= 180:
            assert found is not None  # nothing is let in by keys so old
        self.take(found)

    @rule()
    def its_key_is_unknown(self) -> None:
        if self.now - self.vouched < 60:
            waited = bool(self.pending)
            found = self.ring.missing(now=self.now)
            if waited and not isinstance(found, FetchKeys):
                assert not self.ring.waiting
            self.take(found)

    @rule()
    def someone_asks_and_hangs_up(self) -> None:
        self.its_key_is_unknown()
        if self.pending:
            self.ring.abandoned(self.pending.pop(), now=self.now)

    @rule(which=st.integers(0), outcome=st.sampled_from(["fetched", "failed", "abandoned"]))
    def it_is_answered(self, which, outcome) -> None:
        if not self.pending:
            return
        ask = self.pending.pop(which % len(self.pending))
        if outcome == "fetched":
            self.ring.fetched(ask, KEYS, age=0, now=self.now)
            self.vouched = self.now
        else:
            getattr(self.ring, outcome)(ask, now=self.now)

    @invariant()
    def keys_serve_within_their_bound_and_no_longer(self) -> None:
        assert (self.ring.usable(now=self.now) is not None) == (self.now - self.vouched < 180)


def test_the_key_ring_keeps_its_promises() -> None:
    run_state_machine_as_test(RingMachine, settings=settings(max_examples=60, stateful_step_count=30, deadline=None))


class AsksAtOnceAfterAnAnswer(KeyRing):
    def fetched(self, ask, keys, *, age, now) -> None:
        before = self._next_again
        super().fetched(ask, keys, age=age, now=now)
        self._next_again = before


class ForgetsTheCoolDownWhenLeft(KeyRing):
    def abandoned(self, ask, *, now) -> None:
        super().abandoned(ask, now=now)
        self._next_again = keyring._NEVER


class ServesForEver(KeyRing):
    def usable(self, *, now):
        return self.keys


class HasNoCoolDown(KeyRing):
    def missing(self, *, now):
        self._next_again = keyring._NEVER
        return super().missing(now=now)


@pytest.mark.parametrize("mutant", [AsksAtOnceAfterAnAnswer, ForgetsTheCoolDownWhenLeft, ServesForEver, HasNoCoolDown])
def test_a_planted_bug_in_the_ring_is_caught(mutant) -> None:
    # Always the same examples: one of these bugs takes some hundred on average, and no number is enough on a bad day.
    hunt = settings(
        max_examples=5000,
        stateful_step_count=25,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        derandomize=True,
    )
    machine = type("Planted", (RingMachine,), {"ring_class": mutant})
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=hunt)


def test_why_it_is_not_asked_is_told_apart() -> None:
    assert [each.value for each in NoFetch] == ["unknown", "unreachable"]
    assert isinstance(read(token()), Jws)
