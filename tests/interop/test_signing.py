"""Signed manifests in both directions: the reference signs and we verify, we sign and it verifies."""

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from asap_adapters.auth.ed25519 import verify
from asap_adapters.auth.signing_key import PrivateKey
from asap_core import PublicKey, to_json
from asap_core.wire.signing import Broken, OtherKey, Verified, judge, sign, signed_bytes
from tests.builders import manifest

pytestmark = pytest.mark.interop

SCRIPT = Path(__file__).parent / "reference_signing.py"
SECONDS = 60

BARE: Any = {
    "id": "urn:asap:agent:a", "name": "Ä€😀\ufb33", "version": "1.0.0", "description": "\u2028\u0007\"\\",
    "capabilities": {}, "endpoints": {"asap": "https://a.example/asap"},
}  # fmt: skip
FULL: Any = {
    **BARE,
    "capabilities": {
        "asap_version": "2.2",
        "skills": [
            {"id": "e", "description": "", "input_schema": {"maximum": 1e21, "b": [0.1, -0.0, 5e-324], "é": None}},
            {"id": "f", "description": "", "output_schema": {}},
        ],
        "mcp_tools": ["t"],
        "hardware": {"class": "edge_accelerator", "io": ["gpio"]},
        "inference": {"modes": ["cloud"], "local_models": [{"id": "m", "throughput_tokens_per_second": 10}]},
    },
    "supported_versions": ["2.1", "2.2"],
    "auth": {"schemes": ["bearer"], "oauth2": {"x": [1]}},
    "sla": {"availability": "99.5%"},
    "verification": {"status": "verified"},
    "ttl_seconds": 60,
}
OURS: Any = to_json(manifest("e", url="https://a.example/asap", id="urn:asap:agent:a", name="A", auth=True))


@pytest.fixture
def reference(reference_python):
    """Let the reference sign, or verify, a document."""

    def run(document, *argv: str):
        done = subprocess.run(
            [reference_python, "-W", "ignore", str(SCRIPT), *argv],
            input=json.dumps(document),
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.mark.parametrize("how", ["name", "alias"])
@pytest.mark.parametrize("document", [BARE, FULL], ids=["bare", "full"])
def test_a_manifest_signed_by_the_reference_is_verified_here(reference, document, how: str) -> None:
    made = reference(document, "sign", how)
    wrapper, key = made["signed"], PublicKey.read(made["signed"]["public_key"])
    assert signed_bytes(document).decode() == made["bytes"]
    verdict = judge(wrapper, [key], verify)
    assert isinstance(verdict, Verified)
    # And what its user wrote, before it filled anything in.
    assert judge({**wrapper, "manifest": document}, [key], verify) == verdict
    assert isinstance(judge(wrapper, [PrivateKey.new().public_key], verify), OtherKey)
    changed = copy.deepcopy(wrapper)
    changed["manifest"]["endpoints"]["asap"] = "https://b.example/asap"
    assert judge(changed, [key], verify) == Broken()


@pytest.mark.parametrize("document", [BARE, FULL, OURS], ids=["bare", "full", "ours"])
def test_a_manifest_signed_here_is_verified_by_the_reference(reference, document) -> None:
    key = PrivateKey.new()
    wrapper = sign(document, key.sign, key.public_key)
    assert reference(wrapper, "verify", str(key.public_key)) is True
    assert reference(wrapper, "verify", str(PrivateKey.new().public_key)) is False
    wrapper["manifest"]["name"] = "B"
    assert reference(wrapper, "verify", str(key.public_key)) is False
