"""A private key in a file, by which a client proves itself to a provider (`private_key_jwt`). In the extra `jwt`."""

from pathlib import Path
from typing import Final

from asap_core.auth.client_credentials import ClientKey

try:
    from joserfc.errors import JoseError
    from joserfc.jwk import ECKey, OKPKey, RSAKey
    from joserfc.jws import JWSRegistry
except ModuleNotFoundError as error:
    missing = "a client's key needs joserfc, which comes with: pip install 'asap-sansio[jwt]'"
    raise ModuleNotFoundError(missing, name=error.name) from None

# An RSA key of 8192 bits takes 6.4 KB.
_MAX_PEM: Final = 16_384
# RFC 7518 §3.3.
_LEAST_RSA_BITS: Final = 2_048


def read_client_key(path: str | Path, client_id: str, *, kid: str | None = None) -> ClientKey:
    """Read a client's key from PEM (PKCS #8), without a pass phrase: Ed25519, P-256, or RSA of 2048 bits or more.

    `kid` is what the provider calls it, where it knows several. Raises OSError, and ValueError that names the file.
    """
    with Path(path).open("rb") as file:
        text = file.read(_MAX_PEM + 1)
    algorithm, key = _read(text) if len(text) <= _MAX_PEM else (None, None)
    if algorithm is None or key is None:
        expected = "a private key in PEM (PKCS #8), without a pass phrase: Ed25519, P-256, or RSA of 2048 bits or more"
        raise ValueError(f"{path}: expected {expected}")
    signing = JWSRegistry.algorithms[algorithm]
    return ClientKey(client_id, algorithm, lambda message: bytes(signing.sign(message, key)), kid)


def _read(text: bytes) -> tuple[str, OKPKey | ECKey | RSAKey] | tuple[None, None]:
    for kind in (OKPKey, ECKey, RSAKey):
        try:
            key = kind.import_key(text)
        except (JoseError, ValueError, TypeError):  # TypeError: there's a pass phrase
            continue
        algorithm = _algorithm(key)
        if key.is_private and algorithm is not None:
            return algorithm, key
    return None, None


def _algorithm(key: OKPKey | ECKey | RSAKey) -> str | None:
    match key:
        # By the name that providers know (RFC 8037), not by the newer one (RFC 9864).
        case OKPKey():
            return "EdDSA" if key.curve_name == "Ed25519" else None
        case ECKey():
            return "ES256" if key.curve_name == "P-256" else None
        case RSAKey():
            return "RS256" if key.raw_value.key_size >= _LEAST_RSA_BITS else None
