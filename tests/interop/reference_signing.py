"""Run by the reference implementation's interpreter: signs a manifest, or verifies a signed one, read from stdin.

Usage: reference_signing.py sign [name|alias] | verify PUBLIC_KEY
"""

import json
import sys

from asap.crypto.keys import generate_keypair, load_public_key_from_base64
from asap.crypto.models import SignedManifest
from asap.crypto.signing import canonicalize, sign_manifest, verify_manifest
from asap.errors import SignatureVerificationError
from asap.models.entities import Manifest


def sign(how):
    manifest = Manifest.model_validate(json.load(sys.stdin))
    signed = sign_manifest(manifest, generate_keypair()[0])
    document = json.loads(signed.model_dump_json(by_alias=how == "alias"))
    print(json.dumps({"signed": document, "bytes": canonicalize(manifest).decode()}))


def verify(key):
    try:
        holds = verify_manifest(SignedManifest.model_validate(json.load(sys.stdin)), load_public_key_from_base64(key))
    except SignatureVerificationError:
        holds = False
    print(json.dumps(holds))


if __name__ == "__main__":
    {"sign": sign, "verify": verify}[sys.argv[1]](sys.argv[2])
