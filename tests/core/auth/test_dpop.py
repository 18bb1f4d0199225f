"""Proofs of possession (RFC 9449) without cryptography: signed text, comparable URLs, nonces of servers."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from asap_core.auth.dpop import comparable_url, is_nonce, is_proof_id, thumbprint, token_hash
from asap_core.auth.dpop_client import MAX_SERVERS, ProofClaims, ServerNonces, make_proof, unsigned_proof
from asap_core.auth.jws import serialize
from asap_core.clock import WallTime

WALL: Any = WallTime(1_750_000_000.0)
URL = "https://agent.example/asap"
# RFC 9449 §4.2, figure 3.
JWK = {
    "kty": "EC",
    "x": "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs",
    "y": "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA",
    "crv": "P-256",
}


def b64(data) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text):
    return json.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))


class TestThumbprints:
    def test_the_thumbprint_of_rfc_7638_is_reproduced(self) -> None:
        jwk = {
            "kty": "RSA",
            "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXj"
            "BZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0"
            "zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csF"
            "Cur-kEgU8awapJzKnqDKgw",
            "e": "AQAB",
            "alg": "RS256",
            "kid": "2011-04-29",
        }
        assert thumbprint(jwk) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"

    def test_the_thumbprint_of_rfc_8037_is_reproduced(self) -> None:
        jwk = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
        assert thumbprint(jwk) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"

    def test_the_thumbprint_and_token_hash_of_rfc_9449_are_reproduced(self) -> None:
        assert thumbprint({**JWK, "kid": "x"}) == "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
        assert (
            token_hash("Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU") == "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo"
        )

    @pytest.mark.parametrize("bad", [{}, {"kty": "oct", "k": "AA"}, {"kty": ["EC"]}, {**JWK, "x": 5}, {"kty": "EC"}])
    def test_an_invalid_public_key_has_no_thumbprint(self, bad) -> None:
        with pytest.raises(ValueError, match="expected a JWK"):
            thumbprint(bad)


SAME = [
    "https://agent.example/asap",
    "HTTPS://AGENT.example:443/asap",
    "https://agent.example:/asap?x=1#y",
    "https://agent.example/%61s%61p",
    "https://agent.example/x/../asap",
    "https://agent.example/./%2e/asap",
]


class TestUrls:
    @pytest.mark.parametrize("url", SAME)
    def test_spellings_of_one_url_compare_equal(self, url: str) -> None:
        assert comparable_url(url) == "https://agent.example/asap"

    @pytest.mark.parametrize(
        "url",
        [
            "http://agent.example/asap",
            "https://agent.example:8443/asap",
            "https://agent.example./asap",
            "https://agent.example/asap/",
            "https://agent.example/ASAP",
            "https://agent.example//asap",
            "https://agent.example/asap%2F",
            "https://agent.example/asap/stream",
            "https://agent.example",
            "https://agent.example/asap/..",
            "https://other.example/asap",
        ],
    )
    def test_different_urls_do_not_compare_equal(self, url: str) -> None:
        assert comparable_url(url) not in (None, "https://agent.example/asap")

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("http://[::1]:80/a", "http://[::1]/a"),
            ("http://[FE80::1]:8000", "http://[fe80::1]:8000/"),
            ("https://h:0443/a%c3%A9", "https://h/a%C3%A9"),
            ("https://h/../../a/b/.", "https://h/a/b/"),
            ("https://h/a/b/c/../d", "https://h/a/b/d"),
        ],
    )
    def test_a_url_is_shown_in_its_normal_form(self, url: str, shown: str) -> None:
        assert comparable_url(url) == shown

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "/asap",
            "ftp://agent.example/asap",
            "https://agent.example/é",
            "https:///asap",
            "https://user@agent.example/asap",
            "https://agent.example:x/asap",
            "https://agent.example:99999/asap",
            "https://[::1/asap",
            "https://[::1]x/asap",
            "https://agent.example/%",
            "https://agent.example/%4",
            "https://agent.example/%zz",
            "https://agent.example/a b",
            "https://agent.example/a\\b",
            "https://agent.example/a\n",
            "https://agent.exämple/a",
            "https://agent.example/" + "a" * 8_000,
        ],
    )
    def test_an_invalid_url_has_no_comparable_form(self, url: str) -> None:
        assert comparable_url(url) is None

    def test_a_url_has_at_most_8000_characters(self) -> None:
        longest = "https://agent.example/".ljust(8_000, "a")
        assert comparable_url(longest) == longest
        assert comparable_url(longest + "a") is None

    @given(st.text() | st.text("htps:/.%2e@[]?#aA:0", max_size=40).map("https://".__add__))
    def test_the_comparable_form_of_a_comparable_form_is_itself(self, url: str) -> None:
        found = comparable_url(url)
        assert found is None or (comparable_url(found) == found and "?" not in found and "#" not in found)


def proof(**changes):
    return ProofClaims(**{"method": "POST", "url": URL, "issued": WALL, "jti": "j", **changes})


def test_a_proof_id_has_1_to_256_characters() -> None:
    assert is_proof_id("j")
    assert is_proof_id("j" * 256)
    for wrong in ("", "j" * 257, 5, None, ["j"]):
        assert not is_proof_id(wrong)


def test_a_nonce_has_1_to_1024_characters() -> None:
    assert is_nonce("n")
    assert is_nonce("n" * 1_024)
    for wrong in ("", "n" * 1_025, 5, None, ["n"], "n\n", 'n"'):
        assert not is_nonce(wrong)


class TestMakingProofs:
    def test_the_claims_are_those_of_rfc_9449(self) -> None:
        made = proof(url=f"{URL}?x#y", issued=WallTime(WALL + 0.9), access_token="t", nonce="n")
        head, claims = map(unb64, unsigned_proof(made, alg="ES256", jwk=JWK).decode().split("."))
        assert head == {"typ": "dpop+jwt", "alg": "ES256", "jwk": JWK}
        assert claims == {
            "jti": "j",
            "htm": "POST",
            "htu": URL,
            "iat": 1_750_000_000,
            "ath": token_hash("t"),
            "nonce": "n",
        }

    def test_a_proof_without_token_and_nonce_has_no_claims_for_them(self) -> None:
        _, claims = map(unb64, unsigned_proof(proof(), alg="ES256", jwk=JWK).decode().split("."))
        assert set(claims) == {"jti", "htm", "htu", "iat"}

    def test_a_proof_contains_no_private_part_of_the_key(self) -> None:
        head = unb64(
            unsigned_proof(proof(), alg="ES256", jwk={**JWK, "d": "secret", "kid": "k"}).split(b".")[0].decode()
        )
        assert head["jwk"] == JWK

    def test_a_proof_is_signed_by_its_key(self) -> None:
        class Key:
            algorithm, public_jwk, thumbprint = "ES256", JWK, ""

            def sign(self, message: bytes) -> bytes:
                return b"\xff\xff"

        assert make_proof(Key(), proof()) == serialize(unsigned_proof(proof(), alg="ES256", jwk=JWK), b"\xff\xff")

    def test_a_proof_is_serialized_with_its_signature(self) -> None:
        assert serialize(b"a.b", b"\xff\xff") == "a.b.__8"

    @pytest.mark.parametrize(
        "bad",
        [{"url": "/asap"}, {"jti": ""}, {"jti": "j" * 257}, {"nonce": ""}, {"nonce": 'a"'}, {"access_token": "é"}],
    )
    def test_invalid_claims_are_refused(self, bad) -> None:
        with pytest.raises(ValueError, match="expected"):
            proof(**bad)
        with pytest.raises(ValueError, match="expected a JWK"):
            unsigned_proof(proof(), alg="ES256", jwk={"kty": "oct"})

    def test_a_repr_shows_nothing_of_the_proof(self) -> None:
        shown = repr(proof(jti="JJJ", access_token="TTT", nonce="NNN"))
        assert not any(each in shown for each in ("JJJ", "TTT", "NNN"))


ASKED = ((b"DPoP-Nonce", b"n1"), (b"WWW-Authenticate", b'DPoP error="use_dpop_nonce", algs="ES256"'))


class TestNoncesOfServers:
    def test_a_nonce_that_is_asked_for_causes_one_retry(self) -> None:
        nonces = ServerNonces()
        assert nonces.nonce_for(URL) is None
        assert nonces.answered(URL, status=401, headers=ASKED, sent=None)
        assert nonces.nonce_for("https://AGENT.example:443/other") == "n1"
        assert not nonces.answered(URL, status=401, headers=ASKED, sent="n1")
        assert not nonces.answered(URL, status=401, headers=ASKED, sent="n0", again=True)

    def test_a_token_endpoint_requires_a_nonce_in_its_body(self) -> None:
        nonces, headers = ServerNonces(), ((b"dpop-nonce", b" n1 "),)
        assert not nonces.answered(URL, status=400, headers=headers, error="invalid_grant", sent=None)
        assert nonces.answered(URL, status=400, headers=headers, error="use_dpop_nonce", sent=None)

    def test_the_newest_nonce_counts_also_from_a_successful_response(self) -> None:
        nonces = ServerNonces()
        for number in range(3):
            assert not nonces.answered(URL, status=200, headers=((b"dpop-nonce", b"n%d" % number),), sent=None)
        assert nonces.nonce_for(URL) == "n2"
        assert nonces.nonce_for("https://other.example/asap") is None
        assert not nonces.answered(URL, status=200, headers=(), sent=None)
        assert nonces.nonce_for(URL) == "n2"

    @pytest.mark.parametrize(
        "challenge",
        [
            b'DPoP error="use_dpop_nonce"',
            b"dpop algs=ES256, error=use_dpop_nonce",
            b'Bearer realm="asap", DPoP realm="asap", error="use_dpop_nonce", error_description="nonce"',
            b'DPoP error_description="a, \\"b\\"", error="use_dpop_nonce"',
        ],
    )
    def test_a_challenge_asks_for_a_nonce_in_any_valid_spelling(self, challenge: bytes) -> None:
        headers = (ASKED[0], (b"www-authenticate", challenge))
        assert ServerNonces().answered(URL, status=401, headers=headers, sent=None)

    @pytest.mark.parametrize(
        ("status", "headers"),
        [
            (200, ASKED),
            (403, ASKED),
            (401, ASKED[:1]),
            (401, (ASKED[0], (b"x-authenticate", ASKED[1][1]))),
            (401, ASKED[1:]),
            (401, (ASKED[0], *ASKED)),
            (401, ((b"dpop-nonce", b'a"b'), ASKED[1])),
            (401, ((b"dpop-nonce", b""), ASKED[1])),
            (401, ((b"dpop-nonce", b"n" * 1_025), ASKED[1])),
            (401, (ASKED[0], (b"www-authenticate", b'DPoP error="invalid_dpop_proof"'))),
            (401, (ASKED[0], (b"www-authenticate", b'Bearer error="use_dpop_nonce"'))),
            (401, (ASKED[0], (b"www-authenticate", b'DPoP error_description="no error=use_dpop_nonce"'))),
            (401, (ASKED[0], (b"www-authenticate", b'Bearer realm="x, DPoP error=use_dpop_nonce"'))),
            (401, (ASKED[0], (b"www-authenticate", b'DPoP algs="ES256", Bearer error="use_dpop_nonce"'))),
        ],
    )
    def test_other_responses_cause_no_retry(self, status: int, headers) -> None:
        assert not ServerNonces().answered(URL, status=status, headers=headers, sent=None)

    def test_what_is_not_a_url_has_no_nonce(self) -> None:
        assert ServerNonces().nonce_for("somewhere") is None

    def test_nonces_are_bounded_and_the_oldest_is_forgotten(self) -> None:
        nonces = ServerNonces(most=2)
        for host in ("a", "b", "a", "c"):
            nonces.answered(f"https://{host}.example/", status=200, headers=((b"dpop-nonce", b"n"),), sent=None)
        assert len(nonces) == 2
        assert nonces.nonce_for("https://b.example/") is None
        assert nonces.nonce_for("https://a.example/") == "n"

    def test_the_nonces_of_a_thousand_servers_are_remembered(self) -> None:
        nonces = ServerNonces()
        for number in range(1_001):
            nonces.answered(f"https://h{number}/", status=200, headers=((b"dpop-nonce", b"n"),), sent=None)
        assert len(nonces) == MAX_SERVERS == 1_000

    @given(st.binary(), st.binary())
    @example(b"\xff", b"\xff")
    def test_any_bytes_in_a_response_are_handled(self, nonce: bytes, challenge: bytes) -> None:
        nonces = ServerNonces()
        nonces.answered(URL, status=401, headers=((b"dpop-nonce", nonce), (b"www-authenticate", challenge)), sent=None)
        found = nonces.nonce_for(URL)
        assert found is None or is_nonce(found)
