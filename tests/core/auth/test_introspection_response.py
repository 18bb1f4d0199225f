"""Reading and judging introspection responses."""

import json
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, strategies as st

from asap_core import Authenticated
from asap_core.auth.claims import Accepted, ByClaim, BySubject, Rejected
from asap_core.auth.introspection_response import (
    ActiveToken,
    FailureCause,
    InactiveToken,
    IntrospectionFailed,
    IntrospectionPolicy,
    judge_introspection,
    read_introspection,
)
from asap_core.auth.principal import InsufficientScope
from tests.core.auth.responses import ALICE, AUDIENCE, GOOD, POLICY, WALL


def judge(policy=POLICY, *, wall=WALL, **changes):
    claims = {name: value for name, value in {**GOOD, **changes}.items() if value is not ...}
    return judge_introspection(ActiveToken(claims), policy, wall=wall)


class TestResponses:
    def test_a_value_of_active_that_is_no_boolean_is_a_failure(self) -> None:
        assert read_introspection(200, json.dumps(GOOD).encode()) == ActiveToken(GOOD)
        assert read_introspection(200, b'{"active": false, "sub": "x"}') == InactiveToken()
        for other in ("1", '"true"', "null", "[true]", "{}"):
            found = read_introspection(200, b'{"active": %s}' % other.encode())
            assert found == IntrospectionFailed("an object with active, true or false", FailureCause.TOKEN)
        assert ALICE not in repr(ActiveToken(GOOD))

    @pytest.mark.parametrize("status", [204, 302, 400, 401, 403, 404, 429, 500])
    def test_any_other_status_is_a_failure(self, status) -> None:
        found: Any = read_introspection(status, json.dumps(GOOD).encode())
        assert found.expected == f"an answer with HTTP 200, not HTTP {status}"

    @given(st.integers(100, 599), st.binary())
    def test_no_random_bytes_grant_access(self, status, body) -> None:
        assert isinstance(read_introspection(status, body), IntrospectionFailed)

    def test_an_active_response_is_cached_for_the_time_in_the_policy(self) -> None:
        assert judge() == Accepted(Authenticated(ALICE), WALL + 60.0)  # type: ignore[arg-type]
        assert judge().principal.scopes == {"read", "write"}

    def test_an_active_response_is_cached_no_longer_than_its_exp_and_leeway(self) -> None:
        assert judge(exp=WALL + 10).until == WALL + 40
        assert judge(exp=...).until == WALL + 60
        assert judge(exp=WALL - 29.5).until == WALL + 0.5
        assert judge(exp=WALL - 30) == Rejected("exp, if there, in the future")

    @pytest.mark.parametrize(
        "changes",
        [
            {"aud": ...}, {"aud": "other"}, {"aud": [AUDIENCE, 5]}, {"aud": []}, {"aud": None},
            {"iss": "https://id.example/"}, {"iss": None},
            {"exp": None}, {"exp": "soon"}, {"exp": True}, {"exp": 1e15},
            {"nbf": WALL + 31}, {"iat": WALL + 31}, {"nbf": "x"},
            {"token_type": "refresh_token"}, {"token_type": None}, {"token_type": "DPoP"}, {"cnf": {"jkt": "x"}},
            {"sub": ...}, {"sub": "alice"}, {"sub": 5}, {"scope": ["read", 5]}, {"scope": 5}, {"scope": {"read": True}},
        ],
    )  # fmt: skip
    def test_a_wrong_claim_is_refused(self, changes) -> None:
        assert isinstance(judge(**changes), Rejected)

    @pytest.mark.parametrize("changes", [{"iss": ...}, {"token_type": ...}, {"aud": ["x", AUDIENCE]}, {"iat": ...}])
    def test_optional_claims_may_be_missing(self, changes) -> None:
        assert isinstance(judge(**changes), Accepted)

    def test_a_token_without_the_required_scope_is_refused_as_insufficient(self) -> None:
        assert judge(scope="write") == judge(scope=...) == InsufficientScope(frozenset({"read"}))
        assert judge(scope=None) == judge(scope=[]) == judge(scope=["write"]) == InsufficientScope(frozenset({"read"}))

    def test_the_scope_claim_is_words_in_a_text_or_a_list(self) -> None:
        for scope in (["read", "write"], ["read write"], "write  read "):
            assert judge(scope=scope).principal.scopes == {"read", "write"}
        nothing = evolve(POLICY, scopes=[])
        assert judge(nothing, scope=None).principal.scopes == frozenset()
        assert judge(scope=..., scp=["read"]).principal.scopes == {"read"}

    def test_audience_none_leaves_the_audience_to_the_provider(self) -> None:
        assert isinstance(judge(evolve(POLICY, audience=None), aud=...), Accepted)
        with pytest.raises(ValueError, match="audience"):
            IntrospectionPolicy(audience=[], agent=ByClaim("sub"))
        with pytest.raises(TypeError):
            IntrospectionPolicy(agent=ByClaim("sub"))  # type: ignore[call-arg]

    def test_policy_fields_take_one_text_or_several(self) -> None:
        several = IntrospectionPolicy(audience=[AUDIENCE, "x"], agent=ByClaim("sub"), scopes="read")
        assert several.scopes == {"read"}
        assert isinstance(judge(several, aud="x", scope="read"), Accepted)
        assert read_introspection(200, b"[1]") == IntrospectionFailed(
            "an object with active, true or false", FailureCause.TOKEN
        )
        assert isinstance(read_introspection(200, b"{"), IntrospectionFailed)
        assert isinstance(judge(nbf=WALL + 30, iat=WALL + 30), Accepted)
        assert (
            judge(sub="alice")
            == judge(evolve(POLICY, agent=ByClaim("username")))
            == Rejected("a token of an agent that may call")
        )

    @pytest.mark.parametrize(
        ("name", "valid", "wrong"),
        [
            ("issuer", ["x", None], [5, ""]),
            ("leeway", [0, 0.5, 300], [-0.1, 300.1]),
            ("most", [0.5], [0, -1, float("inf")]),
            ("most_refused", [0.5], [0, -1, float("inf")]),
            ("max_kept", [1], [0, 1.5]),
            ("max_asked", [1], [0, 1.5]),
        ],
    )
    def test_a_policy_has_values_within_bounds(self, name, valid, wrong) -> None:
        for value in valid:
            assert getattr(evolve(POLICY, **{name: value}), name) == value
        for value in wrong:
            with pytest.raises(ValueError, match=name):
                evolve(POLICY, **{name: value})

    def test_the_defaults_of_a_policy_are_those_that_are_documented(self) -> None:
        made = IntrospectionPolicy(audience=None, agent=ByClaim("sub"))
        assert (made.issuer, made.scopes, made.leeway) == (None, frozenset(), 30.0)
        assert (made.most, made.most_refused, made.max_kept, made.max_asked) == (60.0, 10.0, 10_000, 100)

    def test_a_response_has_at_most_16_levels(self) -> None:
        levels = [json.loads("[" * depth + "]" * depth) for depth in (15, 16)]
        body = {"active": True, "x": levels[0]}
        assert read_introspection(200, json.dumps(body).encode()) == ActiveToken(body)
        found: Any = read_introspection(200, json.dumps({**body, "x": levels[1]}).encode())
        assert found.expected == "an answer in JSON: at most 16 arrays and objects within each other"

    def test_the_agent_of_a_subject_may_be_listed(self) -> None:
        listed = evolve(POLICY, agent=BySubject({"7": ALICE}))
        assert judge(listed, sub="7").principal.urn == ALICE
        assert isinstance(judge(listed, sub="8"), Rejected)
        # Of a client's own token some providers say no subject (RFC 7662 §2.2: optional).
        clients = evolve(POLICY, agent=BySubject({"c": ALICE}, claim="client_id"))
        assert judge(clients, sub=...).principal.urn == ALICE
        assert isinstance(judge(clients, client_id=...), Rejected)

    def test_any_issuer_is_accepted_if_the_policy_names_none(self) -> None:
        assert isinstance(judge(evolve(POLICY, issuer=None), iss="x"), Accepted)
        with pytest.raises(ValueError, match="scopes"):
            evolve(POLICY, scopes=['"'])
