"""Private keys in files with which clients authenticate to providers (`private_key_jwt`). In the extra `jwt`."""

from pathlib import Path
from typing import Final, TypeGuard, assert_never

from asap_core.auth.client_credentials import ClientKey

try:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from joserfc.jwk import ECKey, OKPKey, RSAKey
    from joserfc.jws import JWSRegistry

    from asap_adapters.auth.key_files import as_pem, is_p256, read_private_key
except ModuleNotFoundError as error:
    missing = "a client's key needs joserfc, which comes with: pip install 'asap-sansio[jwt]'"
    raise ModuleNotFoundError(missing, name=error.name) from None

# RFC 7518 §3.3.
_LEAST_RSA_BITS: Final = 2_048

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
        return key.key_size >= _LEAST_RSA_BITS
    return isinstance(key, Ed25519PrivateKey) or is_p256(key)


def _imported(key: _Key) -> tuple[str, OKPKey | ECKey | RSAKey]:
    match key:
        case Ed25519PrivateKey():
            # Providers know the name of RFC 8037, not the newer one of RFC 9864.
            return "EdDSA", OKPKey.import_key(as_pem(key))
        case EllipticCurvePrivateKey():
            return "ES256", ECKey.import_key(as_pem(key))
        case RSAPrivateKey():
            return "RS256", RSAKey.import_key(as_pem(key))
        case _:
            assert_never(key)
