"""`asap keys` and `asap manifest`, as a user types them; and a manifest served, fetched and verified."""

import json
import stat
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from asap_adapters.cli import main

pytestmark = pytest.mark.live

PLAIN: Any = {
    "id": "urn:asap:agent:a", "name": "A", "version": "1.0.0", "description": "", "capabilities": {},
    "endpoints": {"asap": "https://a.example/asap"},
}  # fmt: skip


@pytest.fixture
def asap(capsys):
    """Run the command in this process; returns (exit code, stdout, stderr)."""

    def run(*argv: object):
        code: Any
        try:
            code = main([str(word) for word in argv])
        except SystemExit as exited:
            code = exited.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def key(asap, tmp_path: Path):
    """A key file, and its public key."""
    file = tmp_path / "key.pem"
    code, out, err = asap("keys", "new", "--out", file)
    assert (code, f"the private key is in {file}" in err) == (0, True)
    return file, out.strip()


@pytest.fixture
def signed(asap, key, tmp_path: Path) -> Path:
    """A file with a signed manifest."""
    plain, file = tmp_path / "plain.json", tmp_path / "signed.json"
    plain.write_text(json.dumps(PLAIN))
    code, out, _ = asap("manifest", "sign", plain, "--key", key[0])
    assert code == 0
    file.write_text(out)
    return file


def test_a_key_is_made_once_and_shown(asap, key) -> None:
    file, public = key
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_bytes()
    code, out, err = asap("keys", "new", "--out", file)
    assert (code, out, "a key is never overwritten" in err, file.read_bytes()) == (1, "", True, before)
    assert asap("keys", "show", file) == (0, f"{public}\n", "")
    assert json.loads(asap("keys", "show", file, "--json")[1]) == {"public_key": public}
    another = file.with_name("another.pem")
    assert list(json.loads(asap("keys", "new", "--out", another, "--json")[1])) == ["public_key"]


def test_only_a_given_key_verifies(asap, key, signed: Path, tmp_path: Path) -> None:
    _, public = key
    other = asap("keys", "new", "--out", tmp_path / "other.pem")[1].strip()
    code, out, _ = asap("manifest", "verify", signed, "--key", other, "--key", public)
    assert (code, out.split()[0], "urn:asap:agent:a" in out) == (0, "verified", True)
    code, out, err = asap("manifest", "verify", signed)
    assert (code, out, f"it's signed by {public}" in err, "--key" in err) == (1, "", True, True)
    code, _, err = asap("manifest", "verify", signed, "--key", other)
    assert (code, "isn't a trusted key of this agent" in err) == (1, True)
    code, out, _ = asap("manifest", "verify", signed, "--key", other, "--json")
    told = json.loads(out)
    assert (code, told["verified"], told["key"]) == (1, False, public)
    told = json.loads(asap("manifest", "verify", signed, "--key", public, "--json")[1])
    assert told == {"verified": True, "key": public, "why": None}


def test_an_invalid_signature_is_refused_at_any_trust_level(asap, key, signed: Path) -> None:
    good = json.loads(signed.read_text())
    block = good["signature"]
    for bad, says in (
        ({**good, "manifest": {**PLAIN, "name": "B"}, "signature": {**block, "trust_level": "enterprise"}}, "changed"),
        ({**good, "signature": {**block, "signature": "x"}}, "not a valid signed manifest"),
        (good["manifest"], "it isn't signed"),
    ):
        signed.write_text(json.dumps(bad))
        code, out, err = asap("manifest", "verify", signed, "--key", key[1])
        assert (code, out, says in err) == (1, "", True), err


def test_a_manifest_is_verified_from_its_url(asap, key, signed: Path) -> None:
    handler = partial(Quiet, directory=signed.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        base = f"http://127.0.0.1:{server.server_port}"
        try:
            code, out, _ = asap("manifest", "verify", f"{base}/signed.json", "--key", key[1])
            assert (code, "verified" in out) == (0, True)
            code, _, err = asap("manifest", "verify", f"{base}/none.json", "--key", key[1])
            assert (code, "(HTTP 404): expected the document" in err) == (1, True)
        finally:
            server.shutdown()
            thread.join()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        """Nothing on stderr."""


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["keys"], 2, "COMMAND"),
        (["keys", "new"], 2, "--out"),
        (["keys", "show", "no-such-key.pem"], 1, "no-such-key.pem: No such file"),
        (["manifest", "sign", "x.json"], 2, "--key"),
        (["manifest", "verify", "no-such.json"], 1, "no-such.json: No such file"),
        (["manifest", "verify", "x.json", "--key", "short"], 2, "expected an Ed25519 public key"),
        (["manifest", "verify", "http://agent.example/m"], 1, "--allow-http agent.example"),
    ],
)
def test_an_error_is_one_line(asap, argv, code: int, says: str) -> None:
    found, out, err = asap(*argv)
    assert (found, out, says in err, err.count("\n")) == (code, "", True, 1), err


def test_invalid_files_are_refused(asap, key, tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    for text, says in (
        (b"{", "is not a valid manifest"),
        (b"{}", "is not a valid manifest"),
        (b"x" * 1_048_577, "at most"),
    ):
        file.write_bytes(text)
        code, _, err = asap("manifest", "sign", file, "--key", key[0])
        assert (code, says in err) == (1, True), err
    code, _, err = asap("manifest", "sign", file, "--key", file)
    assert (code, "expected an Ed25519 key in PEM" in err) == (1, True)


def test_each_command_without_cryptography_names_the_package_to_install(tmp_path: Path) -> None:
    for argv in (
        ["keys", "new", "--out", "k"],
        ["keys", "show", "k"],
        ["manifest", "verify", "m"],
    ):
        hidden = "import sys; sys.modules['cryptography'] = None"
        code = f"{hidden}\nfrom asap_adapters.cli import main\nsys.exit(main({argv}))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert (done.returncode, "pip install 'asap-sansio[keys]'" in done.stderr) == (1, True), done.stderr
        assert done.stderr.count("\n") == 1
