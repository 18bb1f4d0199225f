"""Key sets (JWKS) by which an issuer's tokens verify, and nearly valid ones, by which none does."""

from collections.abc import Callable, Mapping
from typing import Final

from attrs import frozen
from hypothesis import strategies as st

from asap_core.auth.jws import encode_base64url
from asap_core.testing.laws.lab import Change, changed
from asap_core.testing.nearly_valid import MISSING, NearlyValid, without
from asap_core.testing.strategies import TEXTS
from asap_core.testing.token_rules import TokenIssuer
from asap_core.wire.json_values import Json, JsonObject

Jwk = Mapping[str, str]
_BreakSet = Callable[[TokenIssuer, JsonObject], st.SearchStrategy[JsonObject]]


@frozen
class KeyRule:
    """How a rule of a key is broken: `values`, made from the public key, replace the member `name`.

    kinds: the values of `kty` that the rule is for.
    """

    name: str
    values: Callable[[Jwk], st.SearchStrategy[Change]]
    kinds: tuple[str, ...] = ("OKP", "EC", "RSA")


def key_sets(issuer: TokenIssuer) -> st.SearchStrategy[JsonObject]:
    """Key sets with the issuer's key, by which its tokens verify. Other keys, usable and not, may be beside it."""
    return st.builds(lambda before, key, after: {"keys": [*before, key, *after]}, _OTHERS, _keys(issuer), _OTHERS)


def nearly_valid_key_sets(issuer: TokenIssuer, *rules: str) -> st.SearchStrategy[NearlyValid]:
    """Key sets by which none of the issuer's tokens verify, since they break one rule each.

    The rules are named in this module: `KEY_SET_RULES`, and those in `KEY_RULES` that are for the kind of the issuer's
    key. Other keys may be beside the broken one.

    rules: the names of those to break; all of them if there are none.
    Raises: KeyError for a name that isn't in the tables, or is for keys of another kind.
    """
    kind = issuer.key.public_jwk["kty"]
    fitting = {name: how for name, how in KEY_RULES.items() if kind in how.kinds}
    table: dict[str, KeyRule | _BreakSet] = {**fitting, **KEY_SET_RULES}
    chosen = {name: table[name] for name in rules or table}

    keys = _keys(issuer)

    @st.composite
    def drawn(draw: st.DrawFn) -> NearlyValid:
        name, key, others = draw(st.sampled_from([*chosen])), draw(keys), draw(_OTHERS)
        mended: JsonObject = {"keys": [*others, key]}
        how = chosen[name]
        if not isinstance(how, KeyRule):
            return NearlyValid(name, draw(how(issuer, mended)), mended)
        broken = changed(key, {how.name: draw(how.values(issuer.key.public_jwk))})
        return NearlyValid(name, {"keys": [*others, broken]}, mended)

    return drawn()


def _keys(issuer: TokenIssuer) -> st.SearchStrategy[JsonObject]:
    """The issuer's public key, with what may be beside its members. RFC 7517 §4: unknown members are ignored."""
    own: JsonObject = {**issuer.key.public_jwk, "kid": issuer.kid}
    optional: dict[str, st.SearchStrategy[Json]] = {
        "use": st.just("sig"),
        "alg": st.just(issuer.key.algorithm),
        "key_ops": st.just(["verify"]),
        "x5t": st.just("AAAA"),
        "x-unknown": st.sampled_from([None, "", 5, [], {"a": [True]}]),
    }
    return st.fixed_dictionaries({}, optional=optional).map(lambda more: {**own, **more})


def _number(value: int, size: int) -> str:
    return encode_base64url(value.to_bytes(size))


# P-256's field and base point (SEC 2 §2.4.2).
_FIELD: Final = 2**256 - 2**224 + 2**192 + 2**96 - 1
_BASE: Final[JsonObject] = {
    "kty": "EC",
    "crv": "P-256",
    "x": _number(0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296, 32),
    "y": _number(0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5, 32),
}
_MODULUS: Final = _number((1 << 2047) + 1, 256)
# Keys of another name, and what a reader must skip (RFC 7517 §5).
_OTHERS: Final[st.SearchStrategy[list[JsonObject]]] = st.lists(
    st.sampled_from(
        [
            {"kty": "OKP", "crv": "Ed25519", "x": encode_base64url(bytes(range(32))), "kid": "okp"},
            {**_BASE, "kid": "ec", "use": "sig"},
            {"kty": "RSA", "n": _MODULUS, "e": "AQAB", "kid": "rsa", "alg": "RS256"},
            {"kty": "RSA", "n": _MODULUS, "e": "AQAB", "kid": "encryption", "use": "enc"},
            {"kty": "oct", "k": "AAAA", "kid": "symmetric"},
            {"kty": "OKP", "crv": "X25519", "x": encode_base64url(bytes(range(32))), "kid": "exchange"},
            {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA", "kid": "unknown"},
            {},
        ]
    ),
    max_size=2,
    unique_by=lambda key: key.get("kid"),
)


# --- the rules -------------------------------------------------------------------------------------------------------


def _any(*values: Json) -> Callable[[Jwk], st.SearchStrategy[Change]]:
    return lambda _: st.sampled_from(values)


def _but(*kinds: str) -> Callable[[Jwk], st.SearchStrategy[Change]]:
    return lambda _: without(*kinds)


def _missing(_jwk: Jwk) -> st.SearchStrategy[Change]:
    return MISSING


def _misspelt(name: str) -> Callable[[Jwk], st.SearchStrategy[Change]]:
    """Spellings that lenient readers take for the member's value."""
    return lambda jwk: st.sampled_from(
        [f"{jwk[name]}=", f"{jwk[name]}==", f"{jwk[name]}\n", f" {jwk[name]}", f"{jwk[name]}é", f"+/{jwk[name][2:]}"]
    )


def _others_of(name: str, *values: str) -> Callable[[Jwk], st.SearchStrategy[Change]]:
    return lambda jwk: st.sampled_from([value for value in values if value != jwk[name]])


def _other_algorithms(jwk: Jwk) -> st.SearchStrategy[Change]:
    own = {"OKP": ("EdDSA", "Ed25519"), "EC": ("ES256",), "RSA": ("RS256",)}[jwk["kty"]]
    listed = ("EdDSA", "ES256", "ES384", "RS256", "RS512", "PS256", "HS256", "RSA-OAEP", "ECDH-ES", "none", "")
    return st.sampled_from([each for each in listed if each not in own])


def _of_sizes(*sizes: int) -> Callable[[Jwk], st.SearchStrategy[Change]]:
    return lambda _: st.sampled_from([encode_base64url(bytes(range(1, size + 1))) for size in sizes])


def _longer(name: str) -> Callable[[Jwk], st.SearchStrategy[Change]]:
    # RFC 7518 §6.2.1.2: a coordinate has 32 bytes, not one zero more.
    return lambda jwk: st.just("AAAA" + jwk[name]) | _of_sizes(31, 33)(jwk)


_STRINGS: Final = {"x": ("OKP", "EC"), "y": ("EC",), "n": ("RSA",), "e": ("RSA",)}
_PRIVATE: Final = ("d", "p", "q", "dp", "dq", "qi", "k")

KEY_RULES: Final[Mapping[str, KeyRule]] = {
    "a key has a kty": KeyRule("kty", _missing),
    "kty is a string": KeyRule("kty", _but("string")),
    "kty is that of the key": KeyRule("kty", _others_of("kty", "OKP", "EC", "RSA", "oct", "okp", "ec", "rsa", "")),
    "use is a string or null": KeyRule("use", _but("string", "null")),
    "use is sig": KeyRule("use", _any("enc", "SIG", "verify", "")),
    "key_ops is an array or null": KeyRule("key_ops", lambda _: without("array", "null") | st.just("verify")),
    "key_ops has verify": KeyRule("key_ops", _any([], ["sign"], ["encrypt", "wrapKey"], ["Verify"], [["verify"]])),
    "alg is a string or null": KeyRule("alg", _but("string", "null")),
    "alg is that of the key": KeyRule("alg", _other_algorithms),
    "a key has the kid of the token": KeyRule("kid", lambda _: MISSING | TEXTS.map("other-{}".format)),
    "kid is a string": KeyRule("kid", _but("string")),
    **{f"a key has no private part {name}": KeyRule(name, _any("AAAA", "")) for name in _PRIVATE},
    **{f"a key has {name}": KeyRule(name, _missing, kinds) for name, kinds in _STRINGS.items()},
    **{f"{name} is a string": KeyRule(name, _but("string"), kinds) for name, kinds in _STRINGS.items()},
    **{f"{name} is base64url without padding": KeyRule(name, _misspelt(name), kinds)
       for name, kinds in _STRINGS.items()},
    "a key has a crv": KeyRule("crv", _missing, ("OKP", "EC")),
    "crv is a string": KeyRule("crv", _but("string"), ("OKP", "EC")),
    "crv is that of the key": KeyRule(
        "crv", _others_of("crv", "Ed25519", "Ed448", "X25519", "P-256", "P-384", "secp256k1", ""), ("OKP", "EC")
    ),
    "x has 32 bytes": KeyRule("x", _of_sizes(1, 31, 33, 57), ("OKP",)),
    "each coordinate has 32 bytes": KeyRule("x", _longer("x"), ("EC",)),
    "each coordinate is in the field": KeyRule("y", _any(_number(_FIELD, 32), _number(2**256 - 1, 32)), ("EC",)),
    "a point is on the curve": KeyRule("y", _any(_number(1, 32), _number(0, 32), _number(_FIELD - 1, 32)), ("EC",)),
    "n has at least 2048 bits": KeyRule(
        "n", _any(_number((1 << 511) + 1, 64), _number((1 << 1023) + 1, 128), _number((1 << 2046) + 1, 256)), ("RSA",)
    ),
    "n has at most 8192 bits": KeyRule("n", _any(_number((1 << 8192) + 1, 1_025)), ("RSA",)),
    "n is odd": KeyRule("n", _any(_number(1 << 2047, 256)), ("RSA",)),
    "e is odd and above 1": KeyRule("e", _any("AA", "AQ", "Ag", "AQAA"), ("RSA",)),
    "e has at most 32 bits": KeyRule("e", _any(_number((1 << 32) + 1, 5), _number((1 << 255) + 1, 32)), ("RSA",)),
}  # fmt: skip
"""The rules of one key that `nearly_valid_key_sets` breaks, by name. Source: RFC 7517, RFC 7518 §6, RFC 8037 §2."""


def _ambiguous(issuer: TokenIssuer, mended: JsonObject) -> st.SearchStrategy[JsonObject]:
    forged: JsonObject = {**issuer.forger.public_jwk, "kid": issuer.kid}
    return st.permutations([*_listed(mended), forged]).map(lambda keys: {"keys": list[Json](keys)})


def _listed(mended: JsonObject) -> list[Json]:
    listed = mended["keys"]
    return listed if isinstance(listed, list) else []


KEY_SET_RULES: Final[Mapping[str, _BreakSet]] = {
    "a key set has keys": lambda _, mended: st.just({"key": mended["keys"]}),
    "keys is an array": lambda _, mended: (
        without("array").map(lambda value: {"keys": value}) | st.just({"keys": {"0": _listed(mended)[-1]}})
    ),
    "each key is an object": lambda _, mended: st.just({"keys": [[key] for key in _listed(mended)]}),
    "the key is in the set": lambda _, mended: st.just({"keys": _listed(mended)[:-1]}),
    "one key of a kind has the kid": _ambiguous,
}
"""The rules of a set that `nearly_valid_key_sets` breaks, by name. Source: RFC 7517 §4.5, §5."""
