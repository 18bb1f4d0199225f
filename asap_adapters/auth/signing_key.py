"""Ed25519 by `cryptography`: keys made, kept in files, used. Comes with the extra `keys`."""

import os
from pathlib import Path
from typing import Final

from attrs import field, frozen

from asap_core.wire.signing import PublicKey

try:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
    )
except ModuleNotFoundError as error:
    missing = "keys and signatures need cryptography, which comes with: pip install 'asap-sansio[keys]'"
    raise ModuleNotFoundError(missing, name=error.name) from None

# Of an Ed25519 key 119 bytes; more than this isn't one.
_MAX_PEM: Final = 4_096


def verify(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether a signature holds: the `Verifier` of `asap_core.wire.signing`."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@frozen
class PrivateKey:
    """An Ed25519 key to sign with. Nothing shows it."""

    _key: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def new(cls) -> "PrivateKey":
        """Make one."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def read(cls, path: Path) -> "PrivateKey":
        """Read one from a PEM file (PKCS #8, RFC 8410), without a pass phrase. Raises OSError, ValueError."""
        with path.open("rb") as file:
            text = file.read(_MAX_PEM + 1)
        try:
            key = load_pem_private_key(text, password=None) if len(text) <= _MAX_PEM else None
        except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: there's a pass phrase
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError(f"{path}: expected an Ed25519 key in PEM (PKCS #8), without a pass phrase")  # noqa: TRY004 - what is in a file is a value
        return cls(key)

    def write(self, path: Path) -> None:
        """Write it to a new file that only its owner may read. Raises OSError: FileExistsError where there is one."""
        text = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        # O_EXCL: never over another key, nor through a link that somebody put there.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    @property
    def public_key(self) -> PublicKey:
        """What others verify by."""
        return PublicKey(self._key.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """The signature of a message: the `Signer` of `asap_core.wire.signing`."""
        return self._key.sign(message)
