"""Reading key sets, and which bytes can be a signature by a key."""

import json

import pytest
from hypothesis import given, strategies as st

from asap_core.auth.claims import Accepted, Rejected
from asap_core.auth.jwks import MAX_KEYS, EcKey, KeySet, OkpKey, RsaKey, is_possible, read_key_set
from asap_core.auth.jws import Algorithm
from asap_core.auth.jwt import NeedKeys
from asap_core.errors import InvalidDocument
from tests.core.auth.tokens import (
    GX,
    GY,
    MODULUS,
    L,
    N,
    b64,
    judge,
    token,
    verifier,
)

RSA = {"kty": "RSA", "n": b64(MODULUS.to_bytes(256)), "e": "AQAB"}


EC = {"kty": "EC", "crv": "P-256", "x": b64(GX.to_bytes(32)), "y": b64(GY.to_bytes(32))}


OKP = {"kty": "OKP", "crv": "Ed25519", "x": b64(bytes(range(32)))}


def key_set(*keys):
    return read_key_set(json.dumps({"keys": keys}).encode())


class TestReadingKeySets:
    def test_keys_of_the_three_kinds_are_read(self) -> None:
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
    def test_an_unusable_key_is_skipped(self, bad) -> None:
        found = key_set(bad, OKP)
        assert (found.keys, found.skipped) == ((OkpKey(None, bytes(range(32))),), 1)

    @pytest.mark.parametrize("name", ["kid", "use", "alg", "key_ops", "d", "k", "x5c", "oth"])
    def test_a_null_member_counts_as_missing(self, name) -> None:
        for key, read in ((RSA, RsaKey(None, MODULUS, 65_537)), (OKP, OkpKey(None, bytes(range(32))))):
            assert key_set({**key, name: None}).keys == (read,)

    def test_a_key_listed_twice_counts_once(self) -> None:
        for twin in (OKP, {**OKP, "use": "sig", "alg": None}):
            twice = key_set({**OKP, "kid": "k1"}, {**twin, "kid": "k1"}, {**RSA, "kid": "k1"})
            assert isinstance(judge(token(kid="k1"), verifier(twice)), Accepted)
            assert isinstance(judge(token(kid=None), verifier(twice)), Accepted)
        other = {**OKP, "x": b64(bytes(32)), "kid": "k1"}
        two = key_set({**OKP, "kid": "k1"}, {**OKP, "kid": "k1"}, other)
        assert judge(token(kid="k1"), verifier(two)) == Rejected("a key of the issuer's")

    @pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"keys":{}}', b'{"keys":null}', b'{"keys":[],"keys":[]}'])
    def test_other_documents_are_no_key_set(self, text) -> None:
        with pytest.raises(InvalidDocument):
            read_key_set(text)

    def test_the_number_of_keys_is_bounded(self) -> None:
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
    def test_any_bytes_are_a_key_set_or_an_invalid_document(self, data) -> None:
        try:
            assert isinstance(read_key_set(data), KeySet)
        except InvalidDocument:
            pass

    def test_a_signature_must_have_the_form_of_its_key(self) -> None:
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
