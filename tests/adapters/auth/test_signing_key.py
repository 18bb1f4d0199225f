"""Ed25519 by `cryptography`: RFC 8032's vectors, what both sides refuse, and keys in files."""

import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from asap_adapters.auth.ed25519 import verify
from asap_adapters.auth.signing_key import PrivateKey
from asap_core.wire.signing import Broken, PublicKey, Verified, judge, sign

ROOT = Path(__file__).parents[3]

# RFC 8032 §7.1: public key, message, signature.
VECTORS = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
            "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
        ),
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
            "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
        ),
    ),
]
DOCUMENT: Any = {
    "id": "urn:asap:agent:a", "name": "A", "version": "1.0.0", "description": "", "capabilities": {},
    "endpoints": {"asap": "https://a.example/asap"},
}  # fmt: skip


@pytest.mark.parametrize(("key", "message", "signature"), VECTORS)
def test_the_vectors_of_rfc_8032_are_verified(key: str, message: str, signature: str) -> None:
    raw = bytes.fromhex(signature)
    assert verify(bytes.fromhex(key), raw, bytes.fromhex(message))
    assert not verify(bytes.fromhex(key), raw, b"another")
    for at in range(0, 64, 7):
        assert not verify(bytes.fromhex(key), raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :], bytes.fromhex(message))


def test_invalid_bytes_are_not_verified_and_raise_nothing() -> None:
    for key, signature in ((b"", b""), (b"\xff" * 32, b"s" * 64), (b"k" * 31, b"s" * 64), (b"k" * 32, b"s")):
        assert not verify(key, signature, b"m")


def test_a_signed_manifest_is_verified_with_the_key() -> None:
    key = PrivateKey.new()
    wrapper = sign(DOCUMENT, key.sign, key.public_key)
    assert isinstance(judge(wrapper, [PrivateKey.new().public_key, key.public_key], verify), Verified)
    wrapper["manifest"]["name"] = "B"
    assert judge(wrapper, [key.public_key], verify) == Broken()


class TestInAFile:
    def test_a_key_file_is_written_once_and_readable_by_its_owner_only(self, tmp_path: Path) -> None:
        key, file = PrivateKey.new(), tmp_path / "key.pem"
        key.write(file)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert file.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----\n")
        assert PrivateKey.read(file).public_key == key.public_key
        before = file.read_bytes()
        with pytest.raises(FileExistsError):
            PrivateKey.new().write(file)
        assert file.read_bytes() == before
        link = tmp_path / "link"
        link.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(FileExistsError):
            key.write(link)

    def test_no_repr_shows_a_key(self, tmp_path: Path) -> None:
        key, file = PrivateKey.new(), tmp_path / "key.pem"
        key.write(file)
        assert repr(key) == "PrivateKey()"

    def test_other_files_are_refused(self, tmp_path: Path) -> None:
        key, file = PrivateKey.new(), tmp_path / "key.pem"
        foreign = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        locked = key._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"p"))
        for text in (
            b"",
            b"-----BEGIN PRIVATE KEY-----\nMC4CAQ\n-----END PRIVATE KEY-----\n",
            foreign.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            locked,
            b"x" * 5000,
        ):
            file.write_bytes(text)
            with pytest.raises(ValueError, match="expected an Ed25519 key in PEM"):
                PrivateKey.read(file)
        with pytest.raises(FileNotFoundError):
            PrivateKey.read(tmp_path / "none")


def test_without_cryptography_the_error_names_the_package_to_install() -> None:
    code = "import sys; sys.modules['cryptography'] = None\nimport asap_adapters.auth.signing_key"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert "pip install 'asap-sansio[keys]'" in done.stderr.splitlines()[-1]


def test_a_written_key_is_read_back() -> None:
    key = PrivateKey.new().public_key
    assert PublicKey.read(str(key)) == key
