"""A client's private keys, and their files: one that it authenticates with, and one that its tokens are bound to.

The first is for `private_key_jwt` (RFC 7523), the second for DPoP (RFC 9449). In the extra `jwt`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, TypeGuard, assert_never

from attrs import field, frozen

from asap_core.auth.client_credentials import ClientKey
from asap_core.auth.dpop import thumbprint
from asap_core.auth.jwks import LEAST_RSA_BITS

try:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from joserfc.jwk import ECKey, OKPKey, RSAKey
    from joserfc.jws import JWSRegistry

    from asap_adapters.auth.key_files import as_pem, is_p256, read_private_key, write_private_key
except ModuleNotFoundError as error:
    missing = "a client's keys need joserfc, which comes with: pip install 'asap-sansio[jwt]'"
    raise ModuleNotFoundError(missing, name=error.name) from None

# RFC 9864 calls it Ed25519; today's providers and servers know it by the name of RFC 8037.
_ED25519: Final = "EdDSA"

_Key = Ed25519PrivateKey | EllipticCurvePrivateKey | RSAPrivateKey


def read_client_key(path: str | Path, client_id: str, *, kid: str | None = None) -> ClientKey:
    """Read a client's key from a PEM file (PKCS #8, no pass phrase): Ed25519, P-256, or RSA of 2048 bits or more.

    kid: what the provider calls the key, if it knows several of this client

    Raises OSError, and ValueError that names the file.
    """
    expected = "a private key in PEM (PKCS #8), without a pass phrase: Ed25519, P-256, or RSA of 2048 bits or more"
    key = read_private_key(path, _is_client_key, expected=expected)
    algorithm, imported = _imported(key)
    signing = JWSRegistry.algorithms[algorithm]
    return ClientKey(client_id, algorithm, lambda message: bytes(signing.sign(message, imported)), kid)


def _is_client_key(key: PrivateKeyTypes) -> TypeGuard[_Key]:
    if isinstance(key, RSAPrivateKey):
        return key.key_size >= LEAST_RSA_BITS
    return isinstance(key, Ed25519PrivateKey) or is_p256(key)


def _imported(key: _Key) -> tuple[str, OKPKey | ECKey | RSAKey]:
    match key:
        case Ed25519PrivateKey():
            return _ED25519, OKPKey.import_key(as_pem(key))
        case EllipticCurvePrivateKey():
            return "ES256", ECKey.import_key(as_pem(key))
        case RSAPrivateKey():
            return "RS256", RSAKey.import_key(as_pem(key))
        case _:
            assert_never(key)


DpopAlgorithm = Literal["ES256", "Ed25519"]


def _is_dpop_key(key: PrivateKeyTypes) -> TypeGuard[EllipticCurvePrivateKey | Ed25519PrivateKey]:
    return isinstance(key, Ed25519PrivateKey) or is_p256(key)


@frozen
class DpopKey:
    """A private key that tokens are bound to: ES256 or Ed25519. Its repr doesn't show it."""

    _key: ECKey | OKPKey = field(repr=False)

    @classmethod
    def generate(cls, algorithm: DpopAlgorithm = "ES256") -> "DpopKey":
        """Make a key. Every server that supports DPoP accepts ES256; ours accept both."""
        match algorithm:
            case "ES256":
                return cls(ECKey.generate_key("P-256", private=True))
            case "Ed25519":
                return cls(OKPKey.generate_key("Ed25519", private=True))
            case _:
                assert_never(algorithm)

    @classmethod
    def load(cls, path: str | Path) -> "DpopKey":
        """Read a key from a PEM file (PKCS #8), without a pass phrase. Raises OSError, ValueError."""
        expected = "a key on P-256 or an Ed25519 key in PEM (PKCS #8), without a pass phrase"
        key = read_private_key(path, _is_dpop_key, expected=expected)
        kind = OKPKey if isinstance(key, Ed25519PrivateKey) else ECKey
        return cls(kind.import_key(as_pem(key)))

    def save(self, path: str | Path) -> None:
        """Write the key to a new file of mode 0600. Raises OSError: FileExistsError if the path exists."""
        write_private_key(path, self._key.as_pem(private=True))

    @property
    def algorithm(self) -> str:
        """The `alg` of proofs by this key."""
        return _ED25519 if isinstance(self._key, OKPKey) else "ES256"

    @property
    def public_jwk(self) -> Mapping[str, str]:
        """The public part of the key, as in the header of proofs."""
        return {name: str(value) for name, value in self._key.as_dict(private=False).items()}

    @property
    def thumbprint(self) -> str:
        """The `cnf.jkt` of tokens bound to this key, and `dpop_jkt` of authorization requests (RFC 9449 §6, §10)."""
        return thumbprint(self.public_jwk)

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message, as JWS encodes it (RFC 7518 §3.4, RFC 8037 §3.1)."""
        return bytes(JWSRegistry.algorithms[self.algorithm].sign(message, self._key))
