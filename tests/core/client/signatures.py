"""A stand-in for Ed25519, for tests without a package for it: signatures that only look like it."""

from collections.abc import Mapping
from hashlib import sha512
from typing import Any

from asap_core.wire.signing import PublicKey, sign

KEYS = tuple(PublicKey(bytes([n]) * 32) for n in (3, 4, 5))


def signature(key: PublicKey, message: bytes) -> bytes:
    digest = sha512(key.raw + message).digest()
    return digest[:63] + bytes([digest[63] & 0x0F])


def verify(key: bytes, given: bytes, message: bytes) -> bool:
    return given == signature(PublicKey(key), message)


def signed(document: Mapping[str, Any], key: PublicKey) -> dict[str, Any]:
    """Return the signed form of a manifest."""
    return sign(document, lambda message: signature(key, message), key)
