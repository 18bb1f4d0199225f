"""What both sides of `benchmarks.credentials` do alike: make tokens and requests, and send them to an ASGI application.

It runs under either interpreter, so it imports nothing of either implementation.
"""

import json
import time
import uuid
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

from joserfc import jwt
from joserfc.jwk import OKPKey, RSAKey

ISSUER, AUDIENCE, ALICE = "https://id.example", "urn:asap:agent:measured", "urn:asap:agent:alice"
SKILL_INPUT = {"text": "x" * 600}
ROUNDS, CALLS = 3, 200

App = Callable[..., Awaitable[None]]


def keys() -> dict[str, Any]:
    """A key of each kind, by the algorithm's name."""
    return {
        "EdDSA": OKPKey.generate_key("Ed25519", {"kid": "ed"}, private=True),
        "RS256": RSAKey.generate_key(2048, {"kid": "rsa"}, private=True),
    }


def token(algorithm: str, key: Any) -> str:
    """A token of its own."""
    now = int(time.time())
    claims = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": ALICE, "exp": now + 3_600, "iat": now, "jti": str(uuid.uuid4()),
        # Whom it's for, as the reference wants to have it said.
        "https://github.com/adriannoes/asap-protocol/agent_id": AUDIENCE,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return jwt.encode({"alg": algorithm, "kid": key.kid}, claims, key, algorithms=[algorithm])


def body() -> bytes:
    """A request of 1 KB, never seen before."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    envelope = {
        "id": uuid.uuid4().hex[:26].upper(), "asap_version": "0.1", "timestamp": moment, "sender": ALICE,
        "recipient": AUDIENCE, "payload_type": "task.request",
        "payload": {"conversation_id": "c", "skill_id": "echo", "input": SKILL_INPUT},
        "extensions": {"nonce": uuid.uuid4().hex},
    }  # fmt: skip
    call = {"jsonrpc": "2.0", "method": "asap.send", "id": "1", "params": {"envelope": envelope}}
    return json.dumps(call).encode()


async def post(app: App, content: bytes, bearer: str) -> None:
    """Send one request; it must be answered with a result."""
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/asap", "raw_path": b"/asap", "root_path": "", "query_string": b"", "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", 80),
        "headers": [
            (b"host", b"localhost"), (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(content)), (b"authorization", b"Bearer " + bearer.encode()),
        ],
    }  # fmt: skip
    told: list[dict[str, Any]] = []
    waiting = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return waiting.pop() if waiting else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        told.append(message)

    await app(scope, receive, send)
    answer = b"".join(message.get("body", b"") for message in told)
    assert told[0]["status"] == 200 and b'"result"' in answer, (told[0]["status"], answer[:500])  # noqa: PT018 - one question


async def times(app: App, algorithm: str, key: Any) -> tuple[float, float]:
    """Processor seconds for a request with a token that's known, and with one that's new: the best of some rounds."""
    known = token(algorithm, key)
    await post(app, body(), known)
    best = [float("inf")] * 2
    for _ in range(ROUNDS):
        for place, tokens in enumerate(([known] * CALLS, [token(algorithm, key) for _ in range(CALLS)])):
            requests = [(body(), one) for one in tokens]
            began = time.process_time()
            for content, one in requests:
                await post(app, content, one)
            best[place] = min(best[place], (time.process_time() - began) / CALLS)
    return best[0], best[1]
