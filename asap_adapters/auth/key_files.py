"""Private keys in files: read within a bound, and written as PEM where only their owner may read them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeGuard, TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
    load_pem_private_key,
    load_ssh_private_key,
)

K = TypeVar("K")

# The largest key that is read here, an RSA key of 8192 bits, takes 6.4 KB.
_MAX_FILE: Final = 16_384


def is_p256(key: PrivateKeyTypes) -> TypeGuard[EllipticCurvePrivateKey]:
    """Whether the key is on P-256."""
    return isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP256R1)


def read_private_key(path: str | Path, accepts: Callable[[PrivateKeyTypes], TypeGuard[K]], *, expected: str) -> K:
    """Read a private key from a file without a pass phrase: PEM (PKCS #8), or OpenSSH's format or DER.

    accepts: whether a key is of a kind that the caller uses
    expected: what such a file holds, in words, for the error

    Raises OSError, and ValueError that names the file.
    """
    with Path(path).open("rb") as file:
        text = file.read(_MAX_FILE + 1)
    try:
        key = _load(text) if len(text) <= _MAX_FILE else None
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: there's a pass phrase
        key = None
    if key is None or not accepts(key):
        raise ValueError(f"{path}: expected {expected}")
    return key


def _load(text: bytes) -> PrivateKeyTypes:
    if b"-----BEGIN" not in text:
        return load_der_private_key(text, password=None)
    if b"OPENSSH PRIVATE KEY" in text:
        return load_ssh_private_key(text, password=None)
    return load_pem_private_key(text, password=None)


def as_pem(key: PrivateKeyTypes) -> bytes:
    """Write the key as PEM (PKCS #8), unencrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def write_private_key(path: str | Path, pem: bytes) -> None:
    """Write a key to a new file of mode 0600. Raises OSError: FileExistsError if the path exists."""
    # O_EXCL: never over another key, nor through a link that somebody put there.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
