"""Keys that tokens are bound to, in files, and the proofs made with them (RFC 9449). Comes with the extra `jwt`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, assert_never

from attrs import field, frozen

from asap_core.auth.dpop import thumbprint

try:
    from joserfc.errors import JoseError
    from joserfc.jwk import ECKey, OKPKey
    from joserfc.jws import JWSRegistry
except ModuleNotFoundError as error:
    missing = "proofs of possession need joserfc, which comes with: pip install 'asap-sansio[jwt]'"
    raise ModuleNotFoundError(missing, name=error.name) from None

DpopAlgorithm = Literal["ES256", "Ed25519"]

# A key on P-256 takes 241 bytes, an Ed25519 key 119; more than this is neither.
_MAX_PEM: Final = 4_096
# RFC 9864 calls it Ed25519; the servers that check proofs today list it by RFC 8037's name.
_ED25519: Final = "EdDSA"


@frozen
class DpopKey:
    """A key that tokens are bound to: ES256 or Ed25519. Nothing shows its private part."""

    _key: ECKey | OKPKey = field(repr=False)

    @classmethod
    def generate(cls, algorithm: DpopAlgorithm = "ES256") -> "DpopKey":
        """Make one. Every server that knows DPoP takes ES256; ours take both."""
        match algorithm:
            case "ES256":
                return cls(ECKey.generate_key("P-256", private=True))
            case "Ed25519":
                return cls(OKPKey.generate_key("Ed25519", private=True))
            case _:
                assert_never(algorithm)

    @classmethod
    def load(cls, path: str | Path) -> "DpopKey":
        """Read one from a PEM file (PKCS #8), without a pass phrase. Raises OSError, ValueError."""
        with Path(path).open("rb") as file:
            text = file.read(_MAX_PEM + 1)
        for kind in (ECKey, OKPKey):
            try:
                key = kind.import_key(text)
            except (JoseError, ValueError, TypeError):  # TypeError: there's a pass phrase
                continue
            if key.is_private and key.curve_name in ("P-256", "Ed25519") and len(text) <= _MAX_PEM:
                return cls(key)
        raise ValueError(f"{path}: expected a key on P-256 or an Ed25519 key in PEM (PKCS #8), without a pass phrase")

    def save(self, path: str | Path) -> None:
        """Write it to a new file that only its owner may read. Raises OSError: FileExistsError where there is one."""
        # O_EXCL: never over another key, nor through a link that somebody put there.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(self._key.as_pem(private=True))
            file.flush()
            os.fsync(file.fileno())

    @property
    def algorithm(self) -> str:
        """The `alg` of its proofs."""
        return _ED25519 if isinstance(self._key, OKPKey) else "ES256"

    @property
    def public_jwk(self) -> Mapping[str, str]:
        """Its public part, as a proof shows it."""
        return {name: str(value) for name, value in self._key.as_dict(private=False).items()}

    @property
    def thumbprint(self) -> str:
        """What a token bound to it has in `cnf.jkt`, and an authorization request in `dpop_jkt` (RFC 9449 §6, §10)."""
        return thumbprint(self.public_jwk)

    def sign(self, message: bytes) -> bytes:
        """The signature of a message, as JWS writes it (RFC 7518 §3.4, RFC 8037 §3.1)."""
        return bytes(JWSRegistry.algorithms[self.algorithm].sign(message, self._key))
