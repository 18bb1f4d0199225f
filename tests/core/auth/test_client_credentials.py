"""Client credentials: what a token endpoint is asked, and what its answer means."""

import json
from base64 import b64decode, urlsafe_b64decode

import pytest
from hypothesis import given, strategies as st

from asap_core.auth.client_credentials import (
    ClientKey,
    ClientSecret,
    GrantedToken,
    GrantFailed,
    GrantRefused,
    SecretMethod,
    authenticated_form,
    read_token_response,
)

GOOD = {"access_token": "t0ken", "token_type": "Bearer", "expires_in": 3600}


def grant(status: int = 200, token_type: str = "Bearer", **changes):
    value = {key: item for key, item in {**GOOD, **changes}.items() if item is not ...}
    return read_token_response(status, json.dumps(value).encode(), token_type=token_type)


def form(client, **more):
    asked = {"audience": "https://id.example", "jti": "j-1", "wall": 1000.5, **more}
    return authenticated_form([("grant_type", "client_credentials")], client, **asked)


class TestClientAuthentication:
    def test_basic_encodes_id_and_secret_before_it_joins_them(self) -> None:
        # RFC 6749 §2.3.1: form-encoding first, so that a colon in the id can't end it.
        made = form(ClientSecret("a:b c", "p%+:"))
        ((name, value),) = made.headers
        assert (name, b64decode(value.removeprefix("Basic ")).decode()) == ("authorization", "a%3Ab+c:p%25%2B%3A")
        assert made.fields == (("grant_type", "client_credentials"),)

    def test_post_sends_id_and_secret_in_the_form(self) -> None:
        made = form(ClientSecret("me", "secret", SecretMethod.POST))
        assert made.fields[1:] == (("client_id", "me"), ("client_secret", "secret"))
        assert made.headers == ()

    def test_a_key_signs_an_assertion_for_this_provider(self) -> None:
        signed: list[bytes] = []

        def sign(message: bytes) -> bytes:
            signed.append(message)
            return b"\xff\xfe"

        fields = dict(form(ClientKey("me", "EdDSA", sign, kid="k1")).fields)
        assert fields["client_assertion_type"] == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
        assert fields["client_id"] == "me"
        header, claims, signature = fields["client_assertion"].split(".")
        assert f"{header}.{claims}".encode() == signed[0]
        assert signature == "__4"
        assert read(header) == {"alg": "EdDSA", "typ": "JWT", "kid": "k1"}
        assert read(claims) == {
            "iss": "me", "sub": "me", "aud": "https://id.example", "jti": "j-1", "iat": 1000, "exp": 1060,
        }  # fmt: skip
        assert "kid" not in read(dict(form(ClientKey("me", "ES256", sign)).fields)["client_assertion"].split(".")[0])

    def test_no_repr_shows_the_secret(self) -> None:
        clients = [ClientSecret("me", "s3cret"), ClientSecret("me", "s3cret", SecretMethod.POST)]
        assert "s3cret" not in repr(clients) + repr([form(client) for client in clients])
        assert "czNjcmV0" not in repr(form(clients[0]))

    @pytest.mark.parametrize(
        ("name", "secret"), [("", "s"), ("é", "s"), ("a\nb", "s"), ("me", ""), ("me", "a\nb"), ("me", "ü")]
    )
    def test_invalid_clients_are_refused(self, name, secret) -> None:
        with pytest.raises(ValueError, match="expected a client") as caught:
            ClientSecret(name, secret)
        assert "ü" not in str(caught.value)

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"client_id": ""}, "expected a client id"),
            ({"client_id": 5}, "expected a client id"),
            ({"algorithm": 5}, "algorithm: expected"),
            ({"algorithm": None}, "algorithm: expected"),
            ({"algorithm": ""}, "algorithm: expected a string that isn't empty"),
            ({"sign": b"key"}, "sign: expected a function that signs bytes"),
            ({"kid": 5}, "kid: expected"),
            ({"kid": ""}, "kid: expected"),
        ],
    )
    def test_an_invalid_key_of_a_client_is_refused(self, changes, expected) -> None:
        with pytest.raises(ValueError, match=expected):
            ClientKey(**{"client_id": "me", "algorithm": "ES256", "sign": bytes, **changes})

    @pytest.mark.parametrize("wrong", [None, 5, b"s"])
    def test_an_id_and_a_secret_are_texts(self, wrong) -> None:
        with pytest.raises(ValueError, match="expected a client id"):
            ClientSecret(wrong, "s")
        with pytest.raises(ValueError, match="expected a client secret"):
            ClientSecret("me", wrong)

    def test_methods_go_by_their_registered_names(self) -> None:
        assert ClientSecret("me", "s", "client_secret_post").method is SecretMethod.POST
        with pytest.raises(ValueError, match="not a valid"):
            ClientSecret("me", "s", "none")


def read(part: str):
    return json.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))


class TestTokenResponses:
    def test_a_granted_token_is_read(self) -> None:
        assert grant() == GrantedToken("t0ken", 3600.0)
        assert grant(scope="a b", token_type="Bearer") == GrantedToken("t0ken", 3600.0, frozenset({"a", "b"}))
        assert grant(scope="") == GrantedToken("t0ken", 3600.0, frozenset())
        assert grant(scope=["a", "b c"]) == GrantedToken("t0ken", 3600.0, frozenset({"a", "b", "c"}))
        for said in (None, 5, ["a", 5], {"a": True}):
            assert grant(scope=said) == GrantedToken("t0ken", 3600.0, None)
        assert "t0ken" not in repr(grant())

    def test_the_token_type_is_the_requested_one_in_any_case(self) -> None:
        # RFC 6749 §5.1; RFC 9449 §5.
        body = json.dumps({**GOOD, "token_type": "bEARER"}).encode()
        assert isinstance(read_token_response(200, body), GrantedToken)
        assert isinstance(read_token_response(200, body, token_type="DPoP"), GrantFailed)
        for kind in (None, 5, "mac", ""):
            assert isinstance(read_token_response(200, json.dumps({**GOOD, "token_type": kind}).encode()), GrantFailed)

    @pytest.mark.parametrize(
        ("expires_in", "lifetime"),
        [
            (..., 300.0),
            (None, 300.0),
            ("3599", 3599.0),
            (0.5, 0.5),
            (1, 1.0),
            (31_535_999, 31_535_999.0),
            (10**12, 31_536_000.0),
            ("99999999", 31_536_000.0),
        ],
    )
    def test_expires_in_gives_the_lifetime(self, expires_in, lifetime) -> None:
        assert grant(expires_in=expires_in).lifetime == lifetime

    @pytest.mark.parametrize("expires_in", [0, -1, True, "", "0", "soon", "-5", "100000000", "9" * 99, [1], "١٢"])
    def test_invalid_lifetimes_are_refused(self, expires_in) -> None:
        assert grant(expires_in=expires_in) == GrantFailed("expires_in in seconds, more than 0, or none")

    @pytest.mark.parametrize("token", [..., None, "", 5, "a b", "a\nb", "é", "x" * 8193])
    def test_invalid_tokens_are_refused(self, token) -> None:
        assert isinstance(grant(access_token=token), GrantFailed)

    @pytest.mark.parametrize("status", [400, 401, 403])
    def test_a_refusal_is_read_with_its_error_code(self, status) -> None:
        assert grant(status, error="invalid_client") == GrantRefused("invalid_client")
        # Whatever else it says, it's nobody's to repeat.
        assert grant(status, error="<b>evil</b>", error_description="x") == GrantRefused(None)
        assert grant(status, error=["invalid_client"]) == GrantRefused(None)
        assert read_token_response(status, b"<html>") == GrantRefused(None)
        assert read_token_response(status, b"[]") == GrantRefused(None)

    @pytest.mark.parametrize("status", [201, 302, 404, 429, 500, 503])
    def test_any_other_status_is_a_failure(self, status) -> None:
        assert grant(status) == GrantFailed(f"a token with HTTP 200, not HTTP {status}")

    def test_a_response_has_at_most_16_levels(self) -> None:
        levels = [json.loads("[" * depth + "]" * depth) for depth in (15, 16)]
        assert isinstance(grant(x=levels[0]), GrantedToken)
        assert grant(x=levels[1]) == GrantFailed("a JSON object with a token")

    def test_other_bodies_are_failures(self) -> None:
        assert (
            read_token_response(200, b"{")
            == read_token_response(200, b"[1]")
            == GrantFailed("a JSON object with a token")
        )

    @given(st.integers(100, 599), st.binary())
    def test_any_bytes_are_a_response_that_grants_no_token(self, status, body) -> None:
        assert not isinstance(read_token_response(status, body), GrantedToken)
