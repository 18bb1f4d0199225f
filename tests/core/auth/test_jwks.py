"""Reading key sets, and which bytes can be a signature by a key."""

import json

import pytest
from hypothesis import given, strategies as st

from asap_core.auth.claims import Accepted, Rejected
from asap_core.auth.jwks import (
    MAX_KEY_SET,
    MAX_KEYS,
    EcKey,
    KeySet,
    OkpKey,
    RsaKey,
    is_possible,
    public_jwk,
    read_key_set,
)
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

# P-256's field, and two of its points that have a small coordinate.
P = 2**256 - 2**224 + 2**192 + 2**96 - 1


Y_OF_0 = 0x66485C780E2F83D72433BD5D84A06BB6541C2AF31DAE871728BF856A174F93F4


X_OF_5 = 0xD7325D7646CD60D80A92738CEB345F844CFFAF35841022CAB176F692DE8DE1D7


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
            {**OKP, "x": b64(bytes(31)), "alg": "EdDSA"},
            {"kty": "oct", "k": "AAAA", "alg": "HS256"},
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

    @pytest.mark.parametrize(("x", "y"), [(0, Y_OF_0), (X_OF_5, 5)])
    def test_a_coordinate_is_less_than_the_field(self, x, y) -> None:
        """RFC 7518 §6.2.1.2. With the field added it's the same point, and would be another key."""

        def coordinates(x, y):
            return {**EC, "x": b64(x.to_bytes(32)), "y": b64(y.to_bytes(32))}

        assert key_set(coordinates(x, y)).keys == (EcKey(None, x, y),)
        other = coordinates(x + P, y) if x == 0 else coordinates(x, y + P)
        assert key_set(other).skipped == 1

    @pytest.mark.parametrize(("bits", "usable"), [(2_047, 0), (2_048, 1), (8_192, 1), (8_193, 0)])
    def test_an_rsa_key_has_2048_to_8192_bits(self, bits, usable) -> None:
        n = (1 << (bits - 1)) + 1
        assert len(key_set({**RSA, "n": b64(n.to_bytes(bits // 8 + 1))}).keys) == usable

    @pytest.mark.parametrize(("e", "usable"), [(1, 0), (3, 1), (2**32 - 1, 1), (2**32 + 1, 0)])
    def test_an_rsa_exponent_has_at_most_32_bits(self, e, usable) -> None:
        assert len(key_set({**RSA, "e": b64(e.to_bytes(5))}).keys) == usable

    @pytest.mark.parametrize("kid", ["k", "k" * 256])
    def test_a_kid_has_up_to_256_characters(self, kid) -> None:
        assert [key.kid for key in key_set({**OKP, "kid": kid}, {**OKP, "kid": "k" * 257}).keys] == [kid]

    @pytest.mark.parametrize("jwk", [RSA, EC, OKP, {**RSA, "n": b64(((1 << 2048) + 1).to_bytes(257)), "e": "Aw"}])
    def test_the_public_members_of_a_key_are_written_as_they_are_read(self, jwk) -> None:
        (key,) = key_set({**jwk, "kid": "k"}).keys
        assert public_jwk(key) == jwk

    def test_a_key_set_has_at_most_8_levels(self) -> None:
        levels = [json.loads("[" * depth + "]" * depth) for depth in (5, 6)]
        assert len(key_set({**OKP, "x5c": levels[0]}).keys) == 1
        with pytest.raises(InvalidDocument, match="at most 8 "):
            key_set({**OKP, "x5c": levels[1]})

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

    def test_the_bounds_are_as_documented(self) -> None:
        assert (MAX_KEY_SET, MAX_KEYS) == (262_144, 100)
        assert KeySet(()).skipped == 0

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
        assert is_possible(ec, pair(N - 1, 1))
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

    def test_the_kid_chooses_among_keys_of_one_algorithm(self) -> None:
        two = key_set({**OKP, "x": b64(bytes(32)), "kid": "k1"}, {**OKP, "kid": "k2"})
        assert isinstance(judge(token(kid="k2"), verifier(two)), Accepted)
        assert judge(token(kid=None), verifier(two)) == Rejected(
            "a kid, since the issuer has several keys or none of this kind"
        )

    @pytest.mark.parametrize(("alg", "key"), [("RS256", OKP), ("ES256", RSA), ("EdDSA", EC), ("ES256", OKP)])
    def test_the_keys_type_decides_the_algorithm(self, alg, key) -> None:
        found = judge(token(alg=alg, kid="k"), verifier(key_set({**key, "kid": "k"})))
        assert isinstance(found, NeedKeys | Rejected)
