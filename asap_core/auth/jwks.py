"""Key sets (RFC 7517): public keys that can verify, each bound to the one algorithm that its type is for.

Rule 1: a key that can't be used is skipped and doesn't invalidate the set (RFC 7517 §5).

Rule 2: there is no type for symmetric keys here, so that a public key can't be taken for one (RFC 8725 §2.1).
"""

from collections.abc import Mapping
from typing import Final, assert_never

from attrs import frozen

from asap_core.auth.jws import MAX_KID, Algorithm, Jws, algorithm_of, decode_base64url, encode_base64url
from asap_core.errors import InvalidDocument, Problem
from asap_core.wire.json import NotJson, read_json
from asap_core.wire.json_values import Json

# A provider has two or three keys, with certificate chains perhaps 10 KB each.
MAX_KEY_SET: Final = 262_144
# Google has 2 keys, Microsoft's common endpoint some 15.
MAX_KEYS: Final = 100
_MAX_DEPTH: Final = 8
LEAST_RSA_BITS: Final = 2_048
"""Of a key that signs (RFC 7518 §3.3)."""
# Above it one check costs milliseconds.
_MOST_RSA_BITS: Final = 8_192
# OpenSSL's own bound on exponents of large keys is 64 bits; everyone's is 65537.
_MAX_EXPONENT: Final = 1 << 32
# P-256 (SEC 2 §2.4.2): the field, the curve's b, the order of its group.
_P: Final = 2**256 - 2**224 + 2**192 + 2**96 - 1
_B: Final = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
_N: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
# RFC 8032 §5.1: the order of Ed25519's group.
_L: Final = 2**252 + 27742317777372353535851937790883648493
_HALF: Final = 32
# A published private key is everyone's (RFC 7518 §6): its signatures prove nothing.
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


@frozen
class OkpKey:
    """An Ed25519 key (RFC 8037 §2)."""

    kid: str | None
    x: bytes
    algorithm = Algorithm.ED25519


@frozen
class EcKey:
    """A key on P-256 (RFC 7518 §6.2)."""

    kid: str | None
    x: int
    y: int
    algorithm = Algorithm.ES256


@frozen
class RsaKey:
    """An RSA key (RFC 7518 §6.3)."""

    kid: str | None
    n: int
    e: int
    algorithm = Algorithm.RS256


VerificationKey = OkpKey | EcKey | RsaKey


@frozen
class KeySet:
    """The keys of a set that can verify signatures, in its order, and how many others were skipped."""

    keys: tuple[VerificationKey, ...]
    skipped: int = 0

    def key_for(self, jws: Jws) -> VerificationKey | None:
        """Return the only key that this token may have been signed with, or None if there is none or several.

        A key that is listed twice counts once.
        """
        candidates = {key for key in self.keys if key.algorithm is jws.algorithm and jws.kid in (None, key.kid)}
        return candidates.pop() if len(candidates) == 1 else None


def read_key_set(data: bytes) -> KeySet:
    """Read a key set; keys that can't be used are skipped. Raises `InvalidDocument` if it isn't a key set."""
    try:
        value = read_json(data, max_depth=_MAX_DEPTH)
    except NotJson as error:
        raise InvalidDocument("key set", (Problem((), error.expected, "ill_formed"),)) from None
    listed = value.get("keys") if isinstance(value, dict) else None
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise InvalidDocument("key set", (Problem(("keys",), f"an array of at most {MAX_KEYS} keys"),))
    keys = tuple(key for each in listed if (key := read_key(each)) is not None)
    return KeySet(keys, len(listed) - len(keys))


def read_key(value: object) -> VerificationKey | None:
    """Return the public key of a JWK, or None if it can't be used for verification or is private. Never raises.

    A member that is null counts as missing: some serializers write every member they know of.
    """
    if not isinstance(value, dict):
        return None
    value = {name: member for name, member in value.items() if member is not None}
    if value.get("use", "sig") != "sig" or not _PRIVATE.isdisjoint(value):
        return None
    operations, kid = value.get("key_ops", ["verify"]), value.get("kid")
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    if kid is not None and not (isinstance(kid, str) and 0 < len(kid) <= MAX_KID):
        return None
    read = _READERS.get(value["kty"]) if isinstance(value.get("kty"), str) else None
    key = None if read is None else read(kid, value)
    if key is None or ("alg" in value and algorithm_of(value["alg"]) is not key.algorithm):
        return None
    return key


def _octets(value: Mapping[str, Json], name: str) -> bytes:
    text = value.get(name)
    if not isinstance(text, str) or not text.isascii():
        return b""
    return decode_base64url(text.encode("ascii")) or b""


def _read_okp(kid: str | None, value: Mapping[str, Json]) -> VerificationKey | None:
    x = _octets(value, "x")
    return OkpKey(kid, x) if value.get("crv") == "Ed25519" and len(x) == _HALF else None


def _read_ec(kid: str | None, value: Mapping[str, Json]) -> VerificationKey | None:
    # RFC 7518 §6.2.1.2: coordinates have the field's full length.
    coordinates = [_octets(value, "x"), _octets(value, "y")]
    if value.get("crv") != "P-256" or any(len(each) != _HALF for each in coordinates):
        return None
    x, y = (int.from_bytes(each) for each in coordinates)
    # RFC 8725 §3.4: a point off the curve belongs to another group, perhaps a small one.
    on_curve = x < _P and y < _P and (y * y - (x * x - 3) * x - _B) % _P == 0
    return EcKey(kid, x, y) if on_curve else None


def _read_rsa(kid: str | None, value: Mapping[str, Json]) -> VerificationKey | None:
    n, e = int.from_bytes(_octets(value, "n")), int.from_bytes(_octets(value, "e"))
    if not LEAST_RSA_BITS <= n.bit_length() <= _MOST_RSA_BITS or n % 2 == 0 or e % 2 == 0 or not 1 < e < _MAX_EXPONENT:
        return None
    return RsaKey(kid, n, e)


def public_jwk(key: VerificationKey) -> dict[str, str]:
    """Return the members that define a key (RFC 7638 §3.2), in their canonical encoding."""
    match key:
        case OkpKey(_, x):
            return {"kty": "OKP", "crv": "Ed25519", "x": encode_base64url(x)}
        case EcKey(_, x, y):
            coordinates = {"x": encode_base64url(x.to_bytes(_HALF)), "y": encode_base64url(y.to_bytes(_HALF))}
            return {"kty": "EC", "crv": "P-256", **coordinates}
        case RsaKey(_, n, e):
            return {"kty": "RSA", "n": _integer(n), "e": _integer(e)}
        case _:
            assert_never(key)


def _integer(value: int) -> str:
    # RFC 7518 §2, Base64urlUInt: no leading zeros.
    return encode_base64url(value.to_bytes((value.bit_length() + 7) // 8))


_READERS: Final = {"OKP": _read_okp, "EC": _read_ec, "RSA": _read_rsa}


def is_possible(key: VerificationKey, signature: bytes) -> bool:
    """Whether these bytes can be a signature by this key, by form and range, before any arithmetic.

    Some libraries accept signatures out of range: zeros for ECDSA, a second S for Ed25519 (RFC 8032 §8.4).
    """
    match key:
        case OkpKey():
            return len(signature) == 2 * _HALF and int.from_bytes(signature[_HALF:], "little") < _L
        case EcKey():
            r, s = int.from_bytes(signature[:_HALF]), int.from_bytes(signature[_HALF:])
            return len(signature) == 2 * _HALF and 0 < r < _N and 0 < s < _N
        case RsaKey(_, n):
            return len(signature) == (n.bit_length() + 7) // 8 and int.from_bytes(signature) < n
        case _:
            assert_never(key)
