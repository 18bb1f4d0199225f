"""Tokens, keys and verifiers for the tests of JWTs. Signatures aren't checked: the test says whether one is good."""

import json
from base64 import urlsafe_b64encode
from typing import Any

from asap_core.auth.claims import ByClaim, TokenPolicy
from asap_core.auth.jwks import KeySet, OkpKey
from asap_core.auth.jws import Algorithm, read_jws
from asap_core.auth.jwt import JwtVerifier, VerifySignature
from asap_core.clock import Instant, WallTime
from tests.moments import moment

ISSUER, AUDIENCE, ALICE = "https://id.example", "https://agent.example", "urn:asap:agent:alice"


WALL: Any = WallTime(1_750_000_000.0)


NOW: Any = Instant(1_000.0)


KEY = OkpKey("k1", b"\x01" * 32)


KEYS = KeySet((KEY,))


# P-256's base point (SEC 2 §2.4.2): a point that's on the curve.
GX = 0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296


GY = 0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5


N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


L = 2**252 + 27742317777372353535851937790883648493


MODULUS = (1 << 2047) + 1


GOOD = {"iss": ISSUER, "aud": AUDIENCE, "sub": ALICE, "exp": WALL + 60, "nbf": WALL - 1, "iat": WALL - 1}


def b64(data) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def token(claims=None, *, signature=bytes(64), **header) -> str:
    head = {"alg": "EdDSA", "kid": "k1", **header}
    claims = GOOD if claims is None else claims
    return f"{b64(json.dumps(head).encode())}.{b64(json.dumps(claims).encode())}.{b64(signature)}"


def policy(**changes):
    return TokenPolicy(**{"issuer": ISSUER, "audience": AUDIENCE, "agent": ByClaim("sub"), **changes})


def verifier(keys=KEYS, secret=b"s" * 32, **changes):
    made = JwtVerifier(policy(**changes), secret=secret)
    made.ring.fetched(made.ring.due(now=NOW), keys, age=0, now=NOW)  # type: ignore[arg-type] # it's due: an FetchKeys
    return made


def judge(text, made=None, *, now=NOW, wall=WALL):
    """The verdict, every signature being good."""
    state = (verifier() if made is None else made).open(text, at=moment(now, wall))
    return state.good(at=moment(now, wall)) if isinstance(state, VerifySignature) else state


def read(text, algorithms=frozenset(Algorithm)):
    return read_jws(text, algorithms=algorithms)
