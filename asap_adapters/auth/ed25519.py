"""Verifies Ed25519 signatures of manifests, by `cryptography`. In the extra `keys`."""

try:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
except ModuleNotFoundError as error:
    missing = "keys and signatures need cryptography, which comes with: pip install 'asap-sansio[keys]'"
    raise ModuleNotFoundError(missing, name=error.name) from None


def verify(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether a signature holds: the `Verifier` of `asap_core.wire.signing`."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
