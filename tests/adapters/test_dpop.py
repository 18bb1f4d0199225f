"""Proofs of possession by joserfc: RFC 9449's own, keys in files, and whole requests that carry them."""

import stat
import warnings
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from joserfc import jws
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, OKPKey

from asap_adapters.dpop import DpopKey, make_proof
from asap_core.clock import WallTime

ALGORITHMS: Any = ["ES256", "Ed25519"]
URL = "https://agent.example/asap"


def _pem(key: Any, cipher: Any = None) -> bytes:
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, cipher or NoEncryption()))


class TestKeys:
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_they_are_kept_in_files_of_their_owner(self, algorithm: Any, tmp_path: Path) -> None:
        key, path = DpopKey.generate(algorithm), tmp_path / "key.pem"
        key.save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        again = DpopKey.load(str(path))
        assert (again.thumbprint, again.algorithm, again.public_jwk) == (key.thumbprint, key.algorithm, key.public_jwk)
        with pytest.raises(FileExistsError):
            key.save(path)

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_nothing_shows_the_private_part(self, algorithm: Any) -> None:
        key = DpopKey.generate(algorithm)
        assert set(key.public_jwk) <= {"kty", "crv", "x", "y"}
        assert repr(key) == str(key) == "DpopKey()"

    def test_the_thumbprint_is_joserfcs(self) -> None:
        for algorithm in ALGORITHMS:
            key = DpopKey.generate(algorithm)
            assert key.thumbprint == key._key.thumbprint()

    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"no key",
            b"x" * 5_000,
            _pem(rsa.generate_private_key(65_537, 2_048)),
            _pem(ec.generate_private_key(ec.SECP384R1())),
            _pem(ec.generate_private_key(ec.SECP256R1()), BestAvailableEncryption(b"pass")),
            ECKey.generate_key("P-256").as_pem(private=False),
            OKPKey.generate_key("X25519").as_pem(private=True),
        ],
    )
    def test_other_files_are_refused(self, text: bytes, tmp_path: Path) -> None:
        path = tmp_path / "key.pem"
        path.write_bytes(text)
        with pytest.raises(ValueError, match="expected a key on P-256 or an Ed25519 key"):
            DpopKey.load(path)


class TestMakingProofs:
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_joserfc_takes_them(self, algorithm: Any) -> None:
        key = DpopKey.generate(algorithm)
        proof = make_proof(key, method="POST", url=URL, now_wall=WallTime(5.5), jti="j", access_token="t", nonce="n")
        read: Any = ECKey if algorithm == "ES256" else OKPKey
        registry = jws.JWSRegistry(header_registry={}, algorithms=["ES256", "EdDSA"], strict_check_header=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SecurityWarning)  # servers still call it EdDSA, whatever RFC 9864 says
            found = jws.deserialize_compact(proof, read.import_key(dict(key.public_jwk)), registry=registry)
        assert found.headers()["jwk"] == key.public_jwk
        with pytest.raises(ValueError, match="jti"):
            make_proof(key, method="POST", url=URL, now_wall=WallTime(5.5), jti="")
