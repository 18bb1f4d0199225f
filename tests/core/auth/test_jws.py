"""Reading compact JWS: one encoding, one meaning, nothing else."""

import json

import pytest
from hypothesis import given, strategies as st

from asap_core.auth.claims import Rejected
from asap_core.auth.jws import (
    Algorithm,
    Malformed,
    decode_base64url,
    encode_base64url,
    names_of,
    serialize,
    signing_input,
)
from tests.core.auth.tokens import (
    GOOD,
    b64,
    judge,
    read,
    token,
)


class TestBase64url:
    @given(st.binary(max_size=100))
    def test_decoding_reverses_encoding(self, data: bytes) -> None:
        assert decode_base64url(encode_base64url(data).encode()) == data

    @pytest.mark.parametrize("start", ["", "AAAA", "AAAAA", "_-9zAA"])
    def test_no_other_text_is_read(self, start: str) -> None:
        for code in range(256):
            text = start.encode() + bytes([code])
            value = decode_base64url(text)
            assert value is None or encode_base64url(value).encode() == text

    @pytest.mark.parametrize("text", [b"A", b"AAAAA", b"AA=", b"AA==", b"AAA=", b"A+AA", b"A/AA", b"AAAA\n"])
    def test_padding_the_other_alphabet_and_wrong_lengths_are_refused(self, text: bytes) -> None:
        assert decode_base64url(text) is None


class TestForm:
    def test_a_valid_token_is_taken_apart(self) -> None:
        found = read(token(typ="application/AT+JWT"))
        assert (found.algorithm, found.kid, found.typ) == (Algorithm.ED25519, "k1", "at+jwt")
        assert json.loads(found.payload) == GOOD
        assert found.signing_input + b"." + b64(found.signature).encode() == token(typ="application/AT+JWT").encode()

    @pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", "", " none", "none\x00", None, 0, ["EdDSA"], {}])
    def test_the_algorithm_none_is_refused_in_any_spelling(self, name) -> None:
        assert isinstance(read(token(alg=name)), Malformed)

    @pytest.mark.parametrize(
        "name", ["HS256", "HS384", "HS512", "ES512", "RS512", "PS256", "ES256K", "eddsa", "A128KW"]
    )
    def test_an_algorithm_that_is_not_listed_is_refused(self, name) -> None:
        assert isinstance(read(token(alg=name)), Malformed)

    def test_the_policy_lists_the_algorithms(self) -> None:
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
    def test_a_token_has_one_spelling(self, change) -> None:
        assert isinstance(read(change(token())), Malformed)

    @given(st.text() | st.binary().map(lambda data: data.decode("latin-1")) | st.from_regex(r"[\w-]*\.[\w-]*\.[\w-]*"))
    def test_any_text_is_refused_or_read(self, text) -> None:
        found = read(text)
        assert isinstance(found, Malformed) or found.signing_input.decode() + "." + b64(found.signature) == text

    @given(st.binary(max_size=300), st.binary(max_size=300), st.binary(max_size=80))
    def test_any_bytes_in_its_parts_are_refused(self, header, payload, signature) -> None:
        assert isinstance(judge(f"{b64(header)}.{b64(payload)}.{b64(signature)}"), Rejected)

    @given(st.binary(max_size=200))
    def test_any_bytes_as_claims_are_refused(self, payload) -> None:
        head = token().split(".")[0]
        assert isinstance(judge(f"{head}.{b64(payload)}.{b64(bytes(64))}"), Rejected)

    def test_what_is_written_is_read(self) -> None:
        header, claims = {"alg": "ES256", "kid": "k1"}, {"sub": "é", "exp": 5}
        written = serialize(signing_input(header, claims), b"\xff" * 64)
        found = read(written)
        assert (found.algorithm, found.kid, found.signature) == (Algorithm.ES256, "k1", b"\xff" * 64)
        assert json.loads(found.payload) == claims
        assert found.signing_input == signing_input(header, claims)

    def test_an_algorithm_has_its_own_names(self) -> None:
        assert names_of({Algorithm.ES256}) == ("ES256",)
        assert names_of(frozenset(Algorithm)) == ("ES256", "Ed25519", "EdDSA", "RS256")

    def test_a_token_has_at_most_8192_characters(self) -> None:
        begins = token().rsplit(".", 1)[0]
        for length in (8_191, 8_192):
            assert len(read(f"{begins}.".ljust(length, "A")).signature) > 5_000
        assert read(f"{begins}.".ljust(8_193, "A")) == Malformed("at most 8192 ASCII characters")

    @pytest.mark.parametrize("kid", ["k", "k" * 256])
    def test_a_kid_has_up_to_256_characters(self, kid) -> None:
        assert read(token(kid=kid)).kid == kid

    def test_a_header_has_at_most_8_levels(self) -> None:
        levels = [json.loads("[" * depth + "]" * depth) for depth in (7, 8)]
        assert read(token(x=levels[0])).kid == "k1"
        assert read(token(x=levels[1])).expected.startswith("a header in JSON: ")

    def test_a_repr_shows_nothing_of_the_token(self) -> None:
        assert "id.example" not in repr(read(token()))
