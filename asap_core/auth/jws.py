"""Compact JWS (RFC 7515): written, and read so strictly that no two readers can disagree about what was signed.

Rule of this module: the header only ever narrows. It selects one of the allowed algorithms and one of the known keys.
Keys and URLs in it (`jwk`, `jku`, `x5c`, `x5u`) are never read (RFC 8725 §3.10). The one exception is
`asap_core.auth.dpop_server`, where the caller proves to hold the key in the header.
"""

import re
from base64 import urlsafe_b64encode
from binascii import a2b_base64
from collections.abc import Collection, Iterable, Mapping
from enum import Enum
from typing import Final

from attrs import field, frozen

from asap_core.wire.json import NotJson, read_json, write_json
from asap_core.wire.json_values import Json

# As for any bearer token (`bearer.MAX_TOKEN`): proxies limit headers to 8 KiB.
MAX_JWS: Final = 8_192
# Key ids are hashes or dates; a longer one is an attempt to waste memory.
MAX_KID: Final = 256
# A header is flat except for embedded keys, which aren't read.
_MAX_DEPTH: Final = 8
# By the length modulo 4, which is never 1. RFC 4648 §3.5: bits left over in the last character are zero, or a signature
# would have sixteen encodings.
_BASE64URL: Final = (
    re.compile(rb"[A-Za-z0-9_-]*"),
    re.compile(rb"(?!)"),
    re.compile(rb"[A-Za-z0-9_-]*[AQgw]"),
    re.compile(rb"[A-Za-z0-9_-]*[AEIMQUYcgkosw048]"),
)
_PADDING: Final = (b"", b"", b"==", b"=")
_STANDARD: Final = bytes.maketrans(b"-_", b"+/")
_PARTS: Final = 3


class Algorithm(Enum):
    """Signature algorithms, each for one type of key; no symmetric one, and no `none` (RFC 8725 §3.1, §3.2)."""

    ED25519 = "Ed25519"
    ES256 = "ES256"
    RS256 = "RS256"


def algorithms_of(given: Iterable[Algorithm | str]) -> frozenset[Algorithm]:
    """Return algorithms, by their values too. Raises ValueError if one is unknown."""
    return frozenset(map(Algorithm, given))


# RFC 8037 calls Ed25519 by the family's name, RFC 9864 by its own.
_NAMES: Final = {"EdDSA": Algorithm.ED25519, **{each.value: each for each in Algorithm}}


@frozen
class Malformed:
    """Not an acceptable JWS. `expected` says what one has; it repeats nothing of the token."""

    expected: str


@frozen(kw_only=True)
class Jws:
    """A signed token, decoded; nothing in it is verified yet."""

    algorithm: Algorithm
    kid: str | None
    typ: str | None
    payload: bytes = field(repr=False)
    signing_input: bytes = field(repr=False)
    signature: bytes = field(repr=False)


def names_of(algorithms: Collection[Algorithm]) -> tuple[str, ...]:
    """Return all names of these algorithms, sorted."""
    return tuple(sorted(name for name, each in _NAMES.items() if each in algorithms))


def algorithm_of(name: object) -> Algorithm | None:
    """Return the algorithm of that name, or None. Names are case-sensitive (RFC 7515 §4.1.1)."""
    return _NAMES.get(name) if isinstance(name, str) else None


def encode_base64url(data: bytes) -> str:
    """Encode as base64url without padding (RFC 7515 §2)."""
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode_base64url(text: bytes) -> bytes | None:
    """Decode base64url without padding (RFC 7515 §2). Returns None if `text` isn't the one encoding of some bytes."""
    over = len(text) % 4
    return a2b_base64((text + _PADDING[over]).translate(_STANDARD)) if _BASE64URL[over].fullmatch(text) else None


def signing_input(header: Mapping[str, object], claims: Mapping[str, object]) -> bytes:
    """Return what a compact JWS signs (RFC 7515 §5.1): header and claims, each as base64url."""
    return ".".join(encode_base64url(write_json(dict(part))) for part in (header, claims)).encode("ascii")


def serialize(signing_input: bytes, signature: bytes) -> str:
    """Return the compact JWS (RFC 7515 §7.1)."""
    return f"{signing_input.decode('ascii')}.{encode_base64url(signature)}"


def read_jws(token: str, *, algorithms: Collection[Algorithm]) -> Jws | Malformed:
    """Decode a compact JWS signed with one of these algorithms. Never raises, whatever the text."""
    if len(token) > MAX_JWS or not token.isascii():
        return Malformed(f"at most {MAX_JWS} ASCII characters")
    parts = token.encode("ascii").split(b".")
    if len(parts) != _PARTS or not all(parts):
        return Malformed("header, payload and signature, divided by dots")
    decoded = [value for part in parts if (value := decode_base64url(part)) is not None]
    if len(decoded) != _PARTS:
        return Malformed("base64url without padding")
    try:
        header = read_json(decoded[0], max_depth=_MAX_DEPTH)
    except NotJson as error:
        return Malformed(f"a header in JSON: {error.expected}")
    return _read_header(header, parts, decoded, algorithms)


def _read_header(
    header: Json, parts: list[bytes], decoded: list[bytes], algorithms: Collection[Algorithm]
) -> Jws | Malformed:
    if not isinstance(header, dict):
        return Malformed("a header that is an object")
    # RFC 7515 §4.1.11: `crit` lists extensions that must be understood, and we support none. RFC 7797: `b64` would
    # change what is signed.
    if "crit" in header or "b64" in header:
        return Malformed("a header without crit and b64")
    algorithm = algorithm_of(header.get("alg"))
    if algorithm is None or algorithm not in algorithms:
        return Malformed(f"alg {', '.join(sorted(each.value for each in algorithms))}")
    kid, typ = header.get("kid"), header.get("typ")
    if kid is not None and not (isinstance(kid, str) and 0 < len(kid) <= MAX_KID):
        return Malformed(f"a kid of 1 to {MAX_KID} characters, or none")
    if typ is not None and not isinstance(typ, str):
        return Malformed("a typ that is text, or none")
    return Jws(
        algorithm=algorithm,
        kid=kid,
        # RFC 7515 §4.1.9: a media type, compared without case, its "application/" left out.
        typ=None if typ is None else typ.lower().removeprefix("application/"),
        payload=decoded[1],
        signing_input=parts[0] + b"." + parts[1],
        signature=decoded[2],
    )
