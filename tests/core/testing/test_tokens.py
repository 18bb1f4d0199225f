"""Nearly valid tokens and key sets: our verifier refuses each, and accepts it once its one rule is kept."""

import json
from collections.abc import Mapping
from functools import cache
from hashlib import shake_256

import pytest
from hypothesis import given, settings, strategies as st

from asap_core import InvalidDocument
from asap_core.auth.claims import Accepted, ByClaim, Rejected, TokenPolicy
from asap_core.auth.dpop import thumbprint
from asap_core.auth.jwks import KeySet, RsaKey, read_key, read_key_set
from asap_core.auth.jws import decode_base64url, encode_base64url
from asap_core.auth.jwt import JwtVerifier, KeysUnavailable, NeedKeys, VerifySignature
from asap_core.testing import TokenIssuer, key_sets, nearly_valid_key_sets, nearly_valid_tokens, tokens
from asap_core.testing.key_set_rules import KEY_RULES, KEY_SET_RULES
from asap_core.testing.token_rules import TOKEN_RULES
from asap_core.wire.json_values import JsonObject
from tests.core.auth.tokens import ALICE, AUDIENCE, GX, GY, ISSUER, MODULUS, NOW, WALL
from tests.core.testing.measured import assert_even, examples_of
from tests.moments import moment

P = 2**256 - 2**224 + 2**192 + 2**96 - 1


def b64(value: int, size: int) -> str:
    return encode_base64url(value.to_bytes(size))


class KeyedHash:
    """A key whose signatures are hashes: only this test can check them, which is enough for it."""

    def __init__(self, algorithm: str, jwk: Mapping[str, str]) -> None:
        self.algorithm, self.public_jwk, self.thumbprint = algorithm, jwk, thumbprint(jwk)
        self.key = read_key(jwk)

    def sign(self, message: bytes) -> bytes:
        size = 256 if isinstance(self.key, RsaKey) else 64
        signature = bytearray(shake_256(repr(self.key).encode() + message).digest(size))
        # In the range of each kind of key: below n, below the order of the group in both halves.
        signature[0] = signature[32] = signature[-1] = 0
        signature[1] = 1
        return bytes(signature)


def ec(x: int, y: int) -> Mapping[str, str]:
    return {"kty": "EC", "crv": "P-256", "x": b64(x, 32), "y": b64(y, 32)}


def okp(byte: int) -> Mapping[str, str]:
    return {"kty": "OKP", "crv": "Ed25519", "x": encode_base64url(bytes([byte] * 32))}


def rsa(n: int) -> Mapping[str, str]:
    return {"kty": "RSA", "n": b64(n, 256), "e": "AQAB"}


PAIRS = {
    "OKP": (KeyedHash("EdDSA", okp(7)), KeyedHash("EdDSA", okp(8))),
    "EC": (KeyedHash("ES256", ec(GX, GY)), KeyedHash("ES256", ec(GX, P - GY))),
    "RSA": (KeyedHash("RS256", rsa(MODULUS + 2)), KeyedHash("RS256", rsa(MODULUS + 4))),
}


@cache
def issuer(kind: str = "OKP") -> TokenIssuer:
    key, forger = PAIRS[kind]
    return TokenIssuer(key=key, forger=forger, issuer=ISSUER, audience=AUDIENCE, agent=ALICE, wall=lambda: WALL)


def key_set(document: JsonObject) -> KeySet | None:
    try:
        return read_key_set(json.dumps(document).encode())
    except InvalidDocument:
        return None


def judged(kind: str, token: str, keys: JsonObject | None = None) -> Accepted | Rejected | KeysUnavailable:
    """Return a verifier's verdict on the token, by this key set or by one of the issuer's key alone."""
    known = issuer(kind)
    alone: JsonObject = {"keys": [{**known.key.public_jwk, "kid": known.kid}]}
    read = key_set(alone if keys is None else keys)
    verifier = JwtVerifier(TokenPolicy(issuer=ISSUER, audience=AUDIENCE, agent=ByClaim("sub")), secret=b"s" * 32)
    at = moment(NOW, WALL)
    state = verifier.open(token, at=at)
    while isinstance(state, NeedKeys):
        state = state.unavailable(at=at) if read is None else state.fetched(read, age=0, at=at)
    if isinstance(state, VerifySignature):
        signers = [each for pair in PAIRS.values() for each in pair if each.key and each.key == _nameless(state.key)]
        good = any(signer.sign(state.signing_input) == state.signature for signer in signers)
        state = state.good(at=at) if good else state.bad()
    assert isinstance(state, Accepted | Rejected | KeysUnavailable)
    return state


def accepts(kind: str, token: str, keys: JsonObject | None = None) -> bool:
    return isinstance(judged(kind, token, keys), Accepted)


def _nameless(key):
    return type(key)(None, *[getattr(key, name) for name in key.__match_args__[1:]])


KINDS = pytest.mark.parametrize("kind", PAIRS)
# Made once for each issuer and rule: a strategy that is made again for each example takes twice as long.
valid_tokens, valid_key_sets = cache(tokens), cache(key_sets)
broken_tokens, broken_key_sets = cache(nearly_valid_tokens), cache(nearly_valid_key_sets)


@KINDS
@given(st.data())
def test_a_valid_token_is_accepted(kind, data) -> None:
    assert accepts(kind, data.draw(valid_tokens(issuer(kind))), data.draw(valid_key_sets(issuer(kind))))


PARTS, BASE64, KID = "header, payload and signature", "base64url without padding", "a kid of 1 to 256 characters"
ALG, KEY, SIGNATURE = "alg ES256, Ed25519, RS256", "a key of the issuer's", "a signature by the issuer's key"
ISS, AUD, AGENT = "iss to be the issuer", "aud to name this agent", "a token of an agent that may call"
EXP, NBF, IAT = "exp, in the future", "nbf, if there, in the past", "iat, if there, in the past"
CRIT = "a header without crit and b64"
# How the refusal for each rule begins: a token that broke another rule too could be refused for that one.
REASONS: dict[str, str | tuple[str, ...]] = {
    "a token has three parts": PARTS, "no part is empty": PARTS, "a token is signed": (PARTS, ALG),
    "a part has no padding": BASE64, "a part has characters of base64url only": BASE64,
    "unused bits of a part are zero": BASE64, "the header is JSON": "a header in JSON",
    "the header is an object": "a header that is an object",
    "a name stands once in the header": "a header in JSON: keys that are unique",
    "the header has an alg": ALG, "alg is a string": ALG, "alg is that of the key": (ALG, KEY),
    "the public key isn't a secret": ALG, "kid is a string or null": KID, "kid isn't empty": KID, "kid is known": KEY,
    "typ is a string or null": "a typ that is text", "typ is that of an access token": "a token whose typ",
    "crit lists no extension": CRIT, "the payload is encoded": CRIT, "keys in the header are ignored": (KEY, SIGNATURE),
    "a token is signed by a key of the issuer": SIGNATURE, "the signature has the length of its key": SIGNATURE,
    "the signature is of this header and these claims": SIGNATURE, "the claims are JSON": "claims in JSON",
    "the claims are an object": "claims that are an object",
    "a name stands once in the claims": "claims in JSON: keys that are unique",
    "a token has iss": ISS, "iss is a string": ISS, "iss is the issuer": ISS,
    "a token has aud": AUD, "aud is a string or an array": AUD, "aud names the verifier": AUD,
    "each audience is a string": AUD,
    "a token has sub": AGENT, "sub is a string": AGENT, "sub is an agent's URN": AGENT,
    "a token has exp": EXP, "exp is a number": EXP, "exp is in the future": EXP, "exp is before the year 10000": EXP,
    "nbf is a number": NBF, "nbf is in the past": NBF, "iat is a number": IAT, "iat is in the past": IAT,
    "scope is a string, an array or null": "a scope that is text", "cnf has a thumbprint": "in cnf a jkt",
    "a token that is bound to a key needs a proof": "a proof by the key in cnf",
}  # fmt: skip


@pytest.mark.parametrize("rule", TOKEN_RULES)
@settings(max_examples=10)
@given(st.data())
def test_a_token_that_breaks_a_rule_is_refused_for_it(rule, data) -> None:
    kind = data.draw(st.sampled_from([*PAIRS]))
    drawn = data.draw(broken_tokens(issuer(kind), rule))
    assert drawn.rule == rule
    assert accepts(kind, drawn.mended)
    verdict = judged(kind, drawn.token)
    assert isinstance(verdict, Rejected)
    assert verdict.expected.startswith(REASONS[rule])


RULES_OF_KINDS = [
    (kind, rule)
    for kind in PAIRS
    for rule in (*KEY_RULES, *KEY_SET_RULES)
    if rule in KEY_SET_RULES or kind in KEY_RULES[rule].kinds
]


@pytest.mark.parametrize(("kind", "rule"), RULES_OF_KINDS)
@settings(max_examples=5)
@given(st.data())
def test_by_a_key_set_that_breaks_a_rule_no_token_verifies(kind, rule, data) -> None:
    drawn, token = data.draw(broken_key_sets(issuer(kind), rule)), data.draw(valid_tokens(issuer(kind)))
    assert drawn.rule == rule
    assert accepts(kind, token, drawn.mended)
    assert not accepts(kind, token, drawn.document)


@pytest.mark.parametrize("strategy", [nearly_valid_tokens, nearly_valid_key_sets])
def test_a_rule_that_is_unknown_is_refused(strategy) -> None:
    with pytest.raises(KeyError):
        strategy(issuer(), "no such rule")


def test_a_rule_for_keys_of_another_kind_is_refused() -> None:
    with pytest.raises(KeyError):
        nearly_valid_key_sets(issuer("EC"), "n is odd")


# --- what is drawn, counted ------------------------------------------------------------------------------------------


def test_the_rules_of_tokens_are_drawn_evenly() -> None:
    assert_even((each.rule for each in examples_of(nearly_valid_tokens(issuer()), 450)), TOKEN_RULES)


@KINDS
def test_the_rules_of_key_sets_are_drawn_evenly(kind) -> None:
    drawn = examples_of(nearly_valid_key_sets(issuer(kind)))
    assert_even((each.rule for each in drawn), [rule for of, rule in RULES_OF_KINDS if of == kind])


def test_valid_tokens_and_key_sets_differ() -> None:
    claims = [
        json.loads(decode_base64url(each.split(".")[1].encode()) or b"") for each in examples_of(tokens(issuer()))
    ]
    assert sum(isinstance(each["aud"], list) for each in claims) >= 60
    assert sum(isinstance(each["exp"], float) for each in claims) >= 60
    assert sum("nbf" in each for each in claims) >= 60
    sets = [key_set(each) for each in examples_of(key_sets(issuer()))]
    assert all(sets)
    assert sum(len(each.keys) > 1 for each in sets if each) >= 60
    assert sum(each.skipped > 0 for each in sets if each) >= 60
