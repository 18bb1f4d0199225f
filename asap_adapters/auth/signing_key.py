"""Private Ed25519 keys for signed manifests, by `cryptography`. In the extra `keys`."""

# First, since it says which extra is missing.
import asap_adapters.auth.ed25519  # noqa: F401

# isort: split
from pathlib import Path
from typing import TypeGuard

from attrs import field, frozen
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from asap_adapters.auth.key_files import as_pem, read_private_key, write_private_key
from asap_core.wire.signing import PublicKey


def _is_ed25519(key: PrivateKeyTypes) -> TypeGuard[Ed25519PrivateKey]:
    return isinstance(key, Ed25519PrivateKey)


@frozen
class PrivateKey:
    """An Ed25519 private key. Its repr doesn't show it."""

    _key: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def new(cls) -> "PrivateKey":
        """Make a key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def read(cls, path: Path) -> "PrivateKey":
        """Read a key from a PEM file (PKCS #8, RFC 8410), without a pass phrase. Raises OSError, ValueError."""
        return cls(
            read_private_key(path, _is_ed25519, expected="an Ed25519 key in PEM (PKCS #8), without a pass phrase")
        )

    def write(self, path: Path) -> None:
        """Write the key to a new file of mode 0600. Raises OSError: FileExistsError if the path exists."""
        write_private_key(path, as_pem(self._key))

    @property
    def public_key(self) -> PublicKey:
        """The public key, by which others verify signatures."""
        return PublicKey(self._key.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message: the `Signer` of `asap_core.wire.signing`."""
        return self._key.sign(message)
