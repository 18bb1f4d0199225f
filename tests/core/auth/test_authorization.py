"""Which token an agent is shown: what its manifest says narrows what was configured, and never widens it."""

from typing import Any

import pytest

from asap_core import AuthScheme
from asap_core.auth.authorization import ClientCredentials, CredentialsMismatch, scopes_for
from asap_core.auth.client_credentials import ClientSecret

ME = ClientSecret("me", "secret")
ISSUER, ENDPOINT = "https://id.example", "https://id.example/token"


def of(**changes) -> ClientCredentials:
    return ClientCredentials(**{"client": ME, "issuer": ISSUER, "scopes": ("read", "write"), **changes})


def taking(*schemes: str, **oauth2) -> AuthScheme:
    return AuthScheme(schemes=schemes or ("bearer",), oauth2=oauth2 or None)


class TestAgentSchemes:
    def test_an_agent_without_auth_gets_all_scopes(self) -> None:
        assert scopes_for(of(), None) == scopes_for(of(), taking()) == ("read", "write")

    @pytest.mark.parametrize("scheme", ["bearer", "Bearer", "DPoP", "oauth2"])
    def test_each_name_of_a_token_scheme_is_accepted(self, scheme) -> None:
        assert scopes_for(of(), taking("basic", scheme)) == ("read", "write")

    def test_other_schemes_are_a_mismatch(self) -> None:
        lacks = "a use for access tokens: its manifest names other ways to authenticate"
        assert (
            scopes_for(of(), taking("basic")) == scopes_for(of(), AuthScheme(schemes=())) == CredentialsMismatch(lacks)
        )

    @pytest.mark.parametrize("name", ["token_endpoint", "token_url", "tokenUrl"])
    def test_a_manifest_cannot_name_the_provider_that_gets_the_secret(self, name) -> None:
        ours = of(issuer=None, token_endpoint=ENDPOINT)
        assert scopes_for(ours, taking(**{name: ENDPOINT})) == ("read", "write")
        assert isinstance(scopes_for(ours, taking(**{name: "https://evil.example/token"})), CredentialsMismatch)
        assert isinstance(scopes_for(of(), taking(issuer="https://evil.example")), CredentialsMismatch)
        # How it's written doesn't count, nor what it says of what wasn't configured.
        assert scopes_for(of(), taking(issuer="https://ID.example:443/", token_url="https://x.example")) == (
            "read",
            "write",
        )

    @pytest.mark.parametrize(
        "named", [["write", "admin", 5, ["read"]], "admin write", {"write": "Write things", "admin": ""}]
    )
    def test_only_configured_scopes_that_the_agent_names_are_requested(self, named) -> None:
        assert scopes_for(of(), taking(scopes=named)) == ("write",)

    @pytest.mark.parametrize("named", [["admin"], [], 5, None, ""])
    def test_all_scopes_are_requested_if_the_agent_names_none_of_them(self, named) -> None:
        assert scopes_for(of(), taking(scopes=named)) == ("read", "write")
        assert scopes_for(of(scopes=()), taking(scopes=named)) == ()


class TestTokenRequests:
    def test_a_token_request_has_the_registered_field_names(self) -> None:
        asked = of(audience="urn:asap:agent:a", resource="https://a.example").fields(("write", "read"))
        assert dict(asked) == {
            "grant_type": "client_credentials", "scope": "write read", "audience": "urn:asap:agent:a",
            "resource": "https://a.example",
        }  # fmt: skip
        assert of().fields(()) == (("grant_type", "client_credentials"),)

    def test_a_token_for_anything_else_has_another_key(self) -> None:
        made = [
            of(), of(issuer="https://other.example"), of(token_endpoint=ENDPOINT), of(audience="a"), of(resource="a"),
            of(client=ClientSecret("you", "secret")),
        ]  # fmt: skip
        assert len({each.key(("read",)) for each in made}) == len(made)
        assert of().key(("a", "b")) == of().key(("b", "a"))
        assert of().key(()) != of().key(("a",))

    def test_a_bound_token_has_another_cache_key_for_each_key(self) -> None:
        class Key:
            algorithm = "ES256"
            public_jwk: Any = None

            def __init__(self, thumbprint: str) -> None:
                self.thumbprint = thumbprint

            def sign(self, message: bytes) -> bytes:
                return message

        bound = [of(), of(dpop=Key("a")), of(dpop=Key("b"))]
        assert len({each.key(()) for each in bound}) == 3
        assert [each.token_type for each in bound] == ["Bearer", "DPoP", "DPoP"]

    def test_the_audience_of_an_assertion_is_the_provider(self) -> None:
        assert of().assertion_audience == ISSUER
        assert of(issuer=None, token_endpoint=ENDPOINT).assertion_audience is None
        assert of(token_endpoint=ENDPOINT).asked == ENDPOINT

    def test_scopes_may_be_written_in_one_text(self) -> None:
        assert of(scopes="a b").scopes == ("a", "b")

    def test_an_issuer_that_is_not_asked_need_not_be_a_url(self) -> None:
        assert of(issuer="accounts.example", token_endpoint=ENDPOINT).assertion_audience == "accounts.example"

    @pytest.mark.parametrize(
        "wrong",
        [
            {"issuer": None},
            {"issuer": 5},
            {"token_endpoint": 5},
            {"audience": 5},
            {"resource": 5},
            {"issuer": ""},
            {"issuer": "nonsense"},
            {"issuer": "https://id.example?tenant=a"},
            {"token_endpoint": "nonsense"},
            {"token_endpoint": "ftp://id.example/token"},
            {"token_endpoint": ""},
            {"audience": ""},
            {"resource": ""},
            {"scopes": ['"']},
            {"scopes": ["a b"]},
            {"scopes": 5},
            {"client": "me"},
            {"dpop": "key"},
        ],
    )
    def test_invalid_credentials_are_refused(self, wrong) -> None:
        with pytest.raises(ValueError, match="expected"):
            of(**wrong)
        assert "secret'" not in repr(of())
