"""Judging claims: what a token must say, and to which agent and scopes that leads."""

import json
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from asap_core import (
    Agent,
    Authenticated,
    Dispatch,
    Policy,
    Request,
    StartPolicy,
)
from asap_core.auth.bearer import is_scope
from asap_core.auth.claims import Accepted, ByClaim, BySubject, Rejected, TokenPolicy, is_date, judge_claims, wrong_key
from asap_core.auth.dpop_server import DpopPolicy, ProofRequirement
from asap_core.auth.introspection_response import IntrospectionPolicy
from asap_core.auth.principal import InsufficientScope
from asap_core.clock import WallTime
from tests.builders import bound, call, manifest
from tests.core.auth.tokens import (
    ALICE,
    AUDIENCE,
    GOOD,
    WALL,
    b64,
    judge,
    policy,
    read,
    token,
    verifier,
)


class TestClaims:
    def test_the_unmutated_token_passes(self) -> None:
        assert judge(token()) == Accepted(Authenticated(ALICE), WallTime(WALL + 90))

    @pytest.mark.parametrize("name", ["iss", "aud", "sub", "exp"])
    def test_required_claims_are_required(self, name) -> None:
        assert isinstance(judge(token({key: value for key, value in GOOD.items() if key != name})), Rejected)

    @given(st.sampled_from(["iss", "aud", "sub", "exp", "nbf", "iat"]), st.data())
    @settings(max_examples=200)
    def test_each_mutated_claim_is_refused(self, name, data) -> None:
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
    def test_claims_that_are_no_object_are_refused(self, claims) -> None:
        head = token().split(".")[0]
        assert isinstance(judge(f"{head}.{b64(json.dumps(claims).encode())}.{b64(bytes(64))}"), Rejected)

    def test_claims_are_json_of_at_most_16_levels(self) -> None:
        head = token().split(".")[0]
        assert judge(f"{head}.{b64(b'{')}.{b64(bytes(64))}") == Rejected(
            "claims in JSON: one JSON text; it stops being JSON at character 1"
        )
        for levels, expected in ((15, Accepted), (16, Rejected)):
            nested: Any = 0
            for _ in range(levels):
                nested = [nested]
            assert isinstance(judge(token({**GOOD, "x": nested})), expected)

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
    def test_times_are_accepted_within_their_bounds(self, change, passes) -> None:
        assert isinstance(judge(token({**GOOD, **change})), Accepted) is passes

    @pytest.mark.parametrize("value", [1, 0.5, 253_402_300_799])
    def test_a_date_is_a_number_from_1970_to_the_year_9999(self, value) -> None:
        assert is_date(value)
        for wrong in (0, -1, 253_402_300_800, float("nan"), float("inf"), True, "1", None):
            assert not is_date(wrong)

    @pytest.mark.parametrize("thumbprint", ["x", b64(bytes(31)), b64(bytes(33)), b64(bytes(32)) + "=", "é", 5, None])
    def test_cnf_has_the_thumbprint_of_a_key(self, thumbprint) -> None:
        """Whatever proof came with the token: these can't be the thumbprint of any key."""
        jws = read(token({**GOOD, "cnf": {"jkt": thumbprint}}))
        found = judge_claims(jws, policy(), wall=WALL, proof_key=thumbprint)
        assert found == Rejected("in cnf a jkt, and nothing else")

    def test_a_token_and_its_proof_are_by_the_same_key(self) -> None:
        required, allowed = (DpopPolicy(proofs=each) for each in (ProofRequirement.REQUIRED, ProofRequirement.ALLOWED))
        assert wrong_key(None, None, allowed) is wrong_key("a", "a", allowed) is wrong_key("a", "a", required) is None
        assert wrong_key(None, "a", allowed) == "a bearer token, without a proof"
        assert wrong_key("a", "b", allowed) == wrong_key("a", None, allowed) == "a proof by the key in cnf"
        assert wrong_key(None, "a", required) == "a token that's bound to a key, with proof of it"

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
    def test_tokens_of_another_typ_are_refused(self, typ, passes) -> None:
        assert isinstance(judge(token(typ=typ)), Accepted) is passes

    def test_the_policy_may_require_one_typ(self) -> None:
        strict = {"types": {"at+jwt"}}
        assert isinstance(judge(token(), verifier(**strict)), Rejected)
        assert isinstance(judge(token(typ="at+jwt"), verifier(**strict)), Accepted)

    def test_only_listed_subjects_are_accepted(self) -> None:
        made = verifier(agent=BySubject({"client-7": ALICE}))
        assert judge(token({**GOOD, "sub": "client-7"}), made).principal == Authenticated(ALICE)
        for other in (ALICE, "client-8", None, ["client-7"], 7):
            assert isinstance(judge(token({**GOOD, "sub": other}), made), Rejected)

    def test_a_claim_that_is_not_the_urn_of_an_agent_is_refused(self) -> None:
        for sub in ("alice", "", None, 7, f"{ALICE}\n", [ALICE]):
            assert judge(token({**GOOD, "sub": sub})) == Rejected("a token of an agent that may call")
        assert judge(token({**GOOD, "scope": 5})) == Rejected("a scope that is text")

    @pytest.mark.parametrize(
        "agents", [{}, {"": ALICE}, {"x": "alice"}, {"x": ALICE, "y": "alice"}, [("x", ALICE)], None]
    )
    def test_a_list_of_subjects_must_name_agents(self, agents) -> None:
        with pytest.raises(ValueError, match="expected at least one subject"):
            BySubject(agents)

    @pytest.mark.parametrize("wrong", ["", 5, None])
    def test_the_claim_that_names_the_agent_has_a_name(self, wrong) -> None:
        with pytest.raises(ValueError, match="name: expected a string that isn't empty"):
            ByClaim(wrong)
        with pytest.raises(ValueError, match="claim: expected a string that isn't empty"):
            BySubject({"x": ALICE}, claim=wrong)

    @pytest.mark.parametrize("wrong", ["", [""], ["me", ""], [], [5]])
    def test_an_audience_is_named(self, wrong) -> None:
        with pytest.raises(ValueError, match="audience: expected"):
            verifier(audience=wrong)

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

    def test_a_missing_scope_is_answered_403_with_the_required_scopes(self) -> None:
        agent = bound(Agent(manifest(auth=True)))
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
    def test_a_skill_or_payload_type_may_require_scopes_of_its_own(self, wanted, held, status) -> None:
        described = manifest("echo", "other", auth=held is not None)
        with pytest.raises(ValueError, match="scopes: expected payload types and skills"):
            Agent(described, policy=Policy(scopes={"task.request/ech": "a"}))
        rules = Policy(scopes=wanted, start=StartPolicy.OPEN)
        agent = bound(Agent(described, policy=rules, payload_types=("task.request", "task.cancel")))
        headers = ((b"authorization", b"Bearer x"),)
        state: Any = agent.open(Request(method="POST", target="/asap", headers=headers, peer="192.0.2.1"))
        if held is not None:
            state = state.verified(judge(token({**GOOD, "scope": held})).principal)
        body = call(envelope_changes={"payload_type": "TaskRequest"})
        state = state.feed(json.dumps(body).encode()).end()
        (run,) = state.calls
        if status == 200:
            assert isinstance(run, Dispatch)
        else:
            response = state.answered([run]).response
            scopes = " ".join(sorted({each for key in wanted for each in wanted[key]}))
            challenge = f'Bearer realm="asap", error="insufficient_scope", scope="{scopes}"'.encode()
            assert (response.status, dict(response.headers)[b"www-authenticate"]) == (403, challenge)

    @pytest.mark.parametrize("wrong", [{"": "a"}, {"task.request": []}, {"task.request": 'a"'}, {"task.request": ""}])
    def test_invalid_scopes_are_refused(self, wrong) -> None:
        with pytest.raises(ValueError, match="scopes: expected"):
            Policy(scopes=wrong)

    def test_a_single_text_is_one_audience_or_scope(self) -> None:
        assert (policy().audience, policy(scopes="ab").scopes) == ({AUDIENCE}, {"ab"})

    @pytest.mark.parametrize("audience", [[], 5, None, [5], ["a", 5]])
    def test_an_audience_is_at_least_one_text(self, audience) -> None:
        with pytest.raises(ValueError, match="audience: expected whom tokens are for"):
            policy(audience=audience)
        if audience is not None:  # there, None leaves the audience to the provider
            with pytest.raises(ValueError, match="audience: expected whom tokens are for"):
                IntrospectionPolicy(audience=audience, agent=policy().agent)
        assert IntrospectionPolicy(audience=None, agent=policy().agent).audience is None

    @pytest.mark.parametrize(
        ("name", "valid", "wrong"),
        [
            ("issuer", ["x"], ["", 5, None]),
            ("leeway", [0, 0.5, 300], [-0.1, 300.1, "30"]),
            ("fresh_for", [0.5], [0, -1, float("inf")]),
            ("stale_for", [0, 0.5], [-0.1]),
            ("cool_down", [0.5], [0, -1]),
            ("patience", [0.5], [0, -1]),
            ("max_known", [1], [0, 1.5]),
        ],
    )
    def test_a_policy_has_values_within_bounds(self, name, valid, wrong) -> None:
        for value in valid:
            assert getattr(policy(**{name: value}), name) == value
        for value in wrong:
            with pytest.raises(ValueError, match=name):
                policy(**{name: value})

    def test_the_defaults_of_a_policy_are_those_that_are_documented(self) -> None:
        made: TokenPolicy = policy()
        assert (made.leeway, made.fresh_for, made.stale_for) == (30.0, 300.0, 3_600.0)
        assert (made.cool_down, made.patience, made.max_known) == (30.0, 1.0, 10_000)
