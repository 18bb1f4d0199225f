"""Access tokens in JWT: those that a verifier accepts, and nearly valid ones, each with the rule that it breaks."""

import hmac
import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import Final

from attrs import field, frozen
from hypothesis import strategies as st

from asap_core.auth.dpop_client import ProofKey
from asap_core.auth.jws import decode_base64url, encode_base64url
from asap_core.testing.laws.lab import ABSENT, Change, changed
from asap_core.testing.nearly_valid import MISSING, NOT_A_URN, without
from asap_core.testing.strategies import TEXTS
from asap_core.wire.json_values import Json, JsonObject


@frozen(kw_only=True)
class TokenIssuer:
    """An authorization server as the verifier under test knows it: its keys, and what it says in its tokens.

    key: signs the tokens, such as `asap_adapters.auth.DpopKey.generate()`. The verifier knows it by `kid`.
    forger: a key of the same kind that the verifier doesn't know.
    issuer: the `iss` of its tokens.
    audience: their `aud`: the verifier's own name.
    agent: their `sub`: the URN of an agent.
    wall: returns the time by the verifier's wall clock, in seconds since the Unix epoch.
    """

    key: ProofKey = field(repr=False)
    forger: ProofKey = field(repr=False)
    issuer: str
    audience: str
    agent: str
    wall: Callable[[], float]
    kid: str = "key-1"


@frozen
class NearlyValidToken:
    """A token that a verifier refuses.

    rule: the name of the one rule that it breaks.
    token: in compact serialization.
    mended: a token with the same header and claims, except that this rule is kept. The verifier accepts it.
    """

    rule: str
    token: str
    mended: str


def tokens(issuer: TokenIssuer) -> st.SearchStrategy[str]:
    """Tokens that a verifier accepts without a proof of possession, for a minute or more."""
    return st.builds(lambda header, claims: _signed(issuer, header, claims), _headers(issuer), _claims(issuer))


def nearly_valid_tokens(issuer: TokenIssuer, *rules: str) -> st.SearchStrategy[NearlyValidToken]:
    """Tokens that break one rule each, named in `asap_core.testing.token_rules.TOKEN_RULES`.

    Those that are out of date are so by more than five minutes, the longest tolerance for clocks that this library
    has.

    rules: the names of those to break; all of them if there are none.
    Raises: KeyError for a name that isn't in the table.
    """
    chosen = {name: TOKEN_RULES[name] for name in rules or TOKEN_RULES}

    headers, claims = _headers(issuer), _claims(issuer)

    @st.composite
    def drawn(draw: st.DrawFn) -> NearlyValidToken:
        name, header, said = draw(st.sampled_from([*chosen])), draw(headers), draw(claims)
        return NearlyValidToken(name, draw(chosen[name](issuer, header, said)), _signed(issuer, header, said))

    return drawn()


# --- valid ones ------------------------------------------------------------------------------------------------------

_MINUTE: Final = 60.0
_YEAR: Final = 31_536_000.0
# More than any verifier's tolerance; ours has at most five minutes.
_TOO_FAR: Final = 301.0
_UNKNOWN: Final[st.SearchStrategy[Json]] = st.sampled_from([None, "", 5, [], {"a": [True]}])


def _headers(issuer: TokenIssuer) -> st.SearchStrategy[JsonObject]:
    required: dict[str, st.SearchStrategy[Json]] = {"alg": st.just(issuer.key.algorithm), "kid": st.just(issuer.kid)}
    optional: dict[str, st.SearchStrategy[Json]] = {
        "typ": st.sampled_from(["JWT", "jwt", "at+jwt", "application/at+jwt"]),
        "cty": st.just("json"),
    }
    return st.fixed_dictionaries(required, optional=optional)


def _claims(issuer: TokenIssuer) -> st.SearchStrategy[JsonObject]:
    others = st.lists(TEXTS, max_size=2).map(lambda names: [*names, issuer.audience])
    required: dict[str, st.SearchStrategy[Json]] = {
        "iss": st.just(issuer.issuer),
        "sub": st.just(issuer.agent),
        "aud": st.just(issuer.audience) | others.map(list[Json]),
        "exp": _later(issuer, _MINUTE),
    }
    optional: dict[str, st.SearchStrategy[Json]] = {
        "nbf": _earlier(issuer, 0.0),
        "iat": _earlier(issuer, 0.0),
        "jti": TEXTS,
        "scope": st.sampled_from(["", "read", "read write"]),
        "x-unknown": _UNKNOWN,
    }
    return st.fixed_dictionaries(required, optional=optional)


def _later(issuer: TokenIssuer, least: float) -> st.SearchStrategy[Json]:
    """Dates at least so many seconds ahead. RFC 7519 §2: whole seconds, or with a fraction."""
    return st.builds(
        lambda wall, age, whole: int(wall + age) + 1 if whole else wall + age,
        st.builds(issuer.wall),
        st.just(least) | st.floats(least, _YEAR),
        st.booleans(),
    )


def _earlier(issuer: TokenIssuer, least: float) -> st.SearchStrategy[Json]:
    """Dates at least so many seconds ago."""
    return st.builds(
        lambda wall, age, whole: int(wall - age) if whole else wall - age,
        st.builds(issuer.wall),
        st.just(least) | st.floats(least, _YEAR),
        st.booleans(),
    )


# --- how they are written --------------------------------------------------------------------------------------------

_Sign = Callable[[bytes], bytes]


def _compact(header: bytes, claims: bytes, sign: _Sign) -> str:
    text = f"{encode_base64url(header)}.{encode_base64url(claims)}"
    return f"{text}.{encode_base64url(sign(text.encode()))}"


def _json(value: Json) -> bytes:
    return json.dumps(value).encode()


def _signed(issuer: TokenIssuer, header: Json, claims: Json) -> str:
    return _compact(_json(header), _json(claims), issuer.key.sign)


def _twice(document: JsonObject, name: str, value: Json) -> bytes:
    """JSON in which a name stands twice: readers that keep the last value don't see the first."""
    return b"{" + _json(name) + b":" + _json(value) + b"," + _json(document)[1:]


# --- the rules -------------------------------------------------------------------------------------------------------

_Break = Callable[[TokenIssuer, JsonObject, JsonObject], st.SearchStrategy[str]]
_Values = Callable[[TokenIssuer], st.SearchStrategy[Change]]


def _header(name: str, values: _Values | st.SearchStrategy[Change]) -> _Break:
    """Replace a member of the header, and sign it."""
    return lambda issuer, header, claims: _drawn(values, issuer).map(
        lambda value: _signed(issuer, changed(header, {name: value}), claims)
    )


def _claim(name: str, values: _Values | st.SearchStrategy[Change]) -> _Break:
    """Replace a claim, and sign it."""
    return lambda issuer, header, claims: _drawn(values, issuer).map(
        lambda value: _signed(issuer, header, changed(claims, {name: value}))
    )


def _drawn(values: _Values | st.SearchStrategy[Change], issuer: TokenIssuer) -> st.SearchStrategy[Change]:
    return values if isinstance(values, st.SearchStrategy) else values(issuer)


def _text(*changes: Callable[[str], str]) -> _Break:
    """Change the text of a valid token."""
    return lambda issuer, header, claims: st.sampled_from(
        [change(_signed(issuer, header, claims)) for change in changes]
    )


def _not(right: str, *others: str) -> st.SearchStrategy[str]:
    """Texts that aren't `right`, most of them nearly so."""
    near = [f"{right}/", f" {right}", f"{right} ", f"{right}.example", right[:-1], right.upper(), "", *others]
    return st.sampled_from([each for each in near if each != right])


_ALIASES: Final = frozenset({"EdDSA", "Ed25519"})  # RFC 8037 and RFC 9864


def _other_algorithms(issuer: TokenIssuer) -> st.SearchStrategy[Change]:
    own = issuer.key.algorithm
    same = _ALIASES if own in _ALIASES else {own}
    listed = (
        "EdDSA",
        "ES256",
        "ES256K",
        "ES384",
        "RS256",
        "RS512",
        "PS256",
        "A128KW",
        "dir",
        own.swapcase(),
        f"{own} ",
    )
    return st.sampled_from([each for each in listed if each not in same])


def _unsigned(issuer: TokenIssuer, header: JsonObject, claims: JsonObject) -> st.SearchStrategy[str]:
    # RFC 7519 §6: an unsecured JWT has an empty signature. Some verifiers check that, and accept it; some accept any.
    return st.builds(
        lambda name, sign: _compact(_json({**header, "alg": name}), _json(claims), sign),
        st.sampled_from(["none", "None", "NONE", "nOnE", ""]),
        st.sampled_from([lambda _: b"", issuer.key.sign, lambda _: bytes(64)]),
    )


def _by_public_key(issuer: TokenIssuer, header: JsonObject, claims: JsonObject) -> st.SearchStrategy[str]:
    # RFC 8725 §2.1: a verifier that passes the public key to a function for any algorithm takes it for the secret.
    return st.builds(
        lambda secret, name: _compact(
            _json({**header, "alg": name}), _json(claims), lambda text: hmac.digest(secret, text, f"sha{name[2:]}")
        ),
        st.sampled_from(_public_forms(issuer.key.public_jwk)),
        st.sampled_from(["HS256", "HS384", "HS512"]),
    )


# What precedes the key itself in a SubjectPublicKeyInfo (RFC 8410 §4, RFC 5480 §2, RFC 8017 §A.1): Ed25519, P-256, and
# RSA of 2,048 bits with the exponent 65537.
_SPKI: Final = {
    "OKP": bytes.fromhex("302a300506032b6570032100"),
    "EC": bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004"),
    "RSA": bytes.fromhex("30820122300d06092a864886f70d01010105000382010f003082010a0282010100"),
}


def _public_forms(jwk: Mapping[str, str]) -> list[bytes]:
    """What a verifier may have of a public key: itself, as JSON, and as PEM."""
    raw = b"".join(decode_base64url(jwk[name].encode()) or b"" for name in ("x", "y", "n") if name in jwk)
    spki = _SPKI[jwk["kty"]] + raw + (b"\2\3\1\0\1" if jwk["kty"] == "RSA" else b"")
    lines = b64encode(spki)
    body = b"\n".join(lines[start : start + 64] for start in range(0, len(lines), 64))
    pem = b"-----BEGIN PUBLIC KEY-----\n" + body + b"\n-----END PUBLIC KEY-----\n"
    return [raw, _json(dict(jwk)), pem, pem.rstrip()]


def _by_forger(issuer: TokenIssuer, header: JsonObject, claims: JsonObject) -> st.SearchStrategy[str]:
    return st.just(_compact(_json(header), _json(claims), issuer.forger.sign))


def _by_own_key(issuer: TokenIssuer, header: JsonObject, claims: JsonObject) -> st.SearchStrategy[str]:
    # RFC 8725 §3.10: the signer of the token writes these too.
    jwk: JsonObject = {**issuer.forger.public_jwk}
    kids: st.SearchStrategy[Change] = st.sampled_from([issuer.kid, "forged", ABSENT])
    return kids.map(
        lambda kid: _compact(
            _json({**changed(header, {"kid": kid}), "jwk": jwk, "jku": "http://127.0.0.1:9/keys"}),
            _json(claims),
            issuer.forger.sign,
        )
    )


def _changed_later(issuer: TokenIssuer, header: JsonObject, claims: JsonObject) -> st.SearchStrategy[str]:
    signature = _signed(issuer, header, claims).rpartition(".")[2]
    return st.sampled_from(
        [
            (header, {**claims, "sub": f"{issuer.agent}-2"}),
            (header, {**claims, "scope": "admin"}),
            ({**header, "cty": "text"}, claims),
        ]
    ).map(lambda parts: f"{_compact(_json(parts[0]), _json(parts[1]), lambda _: b'')}{signature}")


def _other_length(issuer: TokenIssuer, header: JsonObject, claims: JsonObject) -> st.SearchStrategy[str]:
    cut: list[Callable[[bytes], bytes]] = [
        lambda it: it[:-1],
        lambda it: it + b"\0",
        lambda it: it[:1],
        lambda it: it * 2,
    ]
    return st.sampled_from(cut).map(
        lambda change: _compact(_json(header), _json(claims), lambda text: change(issuer.key.sign(text)))
    )


def _raw(part: str, *texts: bytes) -> _Break:
    """Sign another text in place of the header or the claims."""
    return lambda issuer, header, claims: st.sampled_from(texts).map(
        lambda text: _compact(
            text if part == "header" else _json(header), text if part == "claims" else _json(claims), issuer.key.sign
        )
    )


def _header_twice(issuer: TokenIssuer, header: JsonObject, claims: JsonObject) -> st.SearchStrategy[str]:
    twins = st.sampled_from([("alg", "none"), ("alg", issuer.key.algorithm), ("kid", "other"), ("kid", issuer.kid)])
    return twins.map(lambda twin: _compact(_twice(header, *twin), _json(claims), issuer.key.sign))


def _claim_twice(issuer: TokenIssuer, header: JsonObject, claims: JsonObject) -> st.SearchStrategy[str]:
    twins: st.SearchStrategy[tuple[str, Json]] = st.sampled_from(
        [("sub", f"{issuer.agent}-2"), ("aud", "other"), ("exp", 1), ("iss", issuer.issuer)]
    )
    return twins.map(lambda twin: _compact(_json(header), _twice(claims, *twin), issuer.key.sign))


def _unused_bits(token: str) -> str:
    # A signature has 64 bytes, or a multiple of 256: two characters encode the last one, and four bits are unused.
    return token[:-1] + {"A": "B", "Q": "R", "g": "h", "w": "x"}[token[-1]]


_NOT_JSON: Final = (b"{", b"\xff", b"{} {}", b'{"x":NaN}')
_NO_OBJECT: Final = (b"[]", b"null", b"5", b'"text"', b"true")
_NO_NUMBER: Final = without("number")
# Later than the year 9999: milliseconds, or no end at all.
_NO_END: Final[st.SearchStrategy[Change]] = st.sampled_from([253_402_300_800, 1.75e12, 2**53, 1e300])
_NO_THUMBPRINT: Final[st.SearchStrategy[Change]] = st.sampled_from(
    [None, "", [], {}, {"jkt": None}, {"jkt": ""}, {"jkt": "AAAA"}, {"x5t#S256": "A" * 43}, {"jwk": {"kty": "OKP"}}]
)

TOKEN_RULES: Final[Mapping[str, _Break]] = {
    "a token has three parts": _text(
        lambda it: it.rpartition(".")[0], lambda it: f"{it}.AAAA", lambda it: f".{it}", lambda it: it.replace(".", "")
    ),
    "no part is empty": _text(
        lambda it: f"{it.rpartition('.')[0]}.", lambda it: f".{it.partition('.')[2]}", lambda _: "..",
        lambda it: f"{it.split('.')[0]}..{it.split('.')[2]}",
    ),
    "a part has no padding": _text(lambda it: f"{it}=", lambda it: f"{it}==", lambda it: it.replace(".", "=.", 1)),
    "a part has characters of base64url only": _text(
        lambda it: f"{it}\n", lambda it: f" {it}", lambda it: f"{it}%3D", lambda it: f"{it[:-4]}+/{it[-2:]}",
        lambda it: it.replace(".", "\n.", 1),
    ),
    "unused bits of a part are zero": _text(_unused_bits),
    "the header is JSON": _raw("header", *_NOT_JSON),
    "the header is an object": _raw("header", *_NO_OBJECT),
    "a name stands once in the header": _header_twice,
    "the header has an alg": _header("alg", MISSING),
    "alg is a string": _header("alg", without("string")),
    "alg is that of the key": _header("alg", _other_algorithms),
    "a token is signed": _unsigned,
    "the public key isn't a secret": _by_public_key,
    "kid is a string or null": _header("kid", without("string", "null")),
    "kid isn't empty": _header("kid", st.just("")),
    "kid is known": _header("kid", lambda issuer: _not(issuer.kid).filter(bool)),
    "typ is a string or null": _header("typ", without("string", "null")),
    "typ is that of an access token": _header(
        "typ", st.sampled_from(["dpop+jwt", "logout+jwt", "secevent+jwt", "JWE", "text/html"])
    ),
    "crit lists no extension": _header("crit", st.sampled_from([["exp"], ["x"], ["b64"], [], "exp"])),
    "the payload is encoded": _header("b64", st.booleans()),
    "keys in the header are ignored": _by_own_key,
    "a token is signed by a key of the issuer": _by_forger,
    "the signature is of this header and these claims": _changed_later,
    "the signature has the length of its key": _other_length,
    "the claims are JSON": _raw("claims", *_NOT_JSON),
    "the claims are an object": _raw("claims", *_NO_OBJECT),
    "a name stands once in the claims": _claim_twice,
    **{f"a token has {name}": _claim(name, MISSING) for name in ("iss", "aud", "sub", "exp")},
    "iss is a string": _claim(
        "iss", lambda issuer: without("string") | st.just([issuer.issuer])
    ),
    "iss is the issuer": _claim("iss", lambda issuer: _not(issuer.issuer, issuer.audience)),
    "aud is a string or an array": _claim("aud", without("string", "array")),
    "aud names the verifier": _claim(
        "aud", lambda issuer: _not(issuer.audience, issuer.issuer) | st.lists(_not(issuer.audience), max_size=2)
    ),
    "each audience is a string": _claim(
        "aud", lambda issuer: without("string").map(lambda item: [issuer.audience, item])
    ),
    "sub is a string": _claim("sub", without("string")),
    "sub is an agent's URN": _claim("sub", NOT_A_URN),
    "exp is a number": _claim("exp", _NO_NUMBER),
    "exp is in the future": _claim("exp", lambda issuer: _earlier(issuer, _TOO_FAR) | st.sampled_from([0, -1, 0.5])),
    "exp is before the year 10000": _claim("exp", _NO_END),
    "nbf is a number": _claim("nbf", _NO_NUMBER),
    "nbf is in the past": _claim("nbf", lambda issuer: _later(issuer, _TOO_FAR)),
    "iat is a number": _claim("iat", _NO_NUMBER),
    "iat is in the past": _claim("iat", lambda issuer: _later(issuer, _TOO_FAR)),
    "scope is a string, an array or null": _claim("scope", without("string", "array", "null")),
    "cnf has a thumbprint": _claim("cnf", _NO_THUMBPRINT),
    "a token that is bound to a key needs a proof": _claim(
        "cnf", lambda issuer: st.just({"jkt": issuer.forger.thumbprint})
    ),
}  # fmt: skip
"""The rules that `nearly_valid_tokens` breaks, by name. Source: RFC 7515, RFC 7519, RFC 8725, RFC 7800."""
