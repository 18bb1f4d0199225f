"""Run by the reference implementation's interpreter: its client plays a script against a URL, one JSON line per step.

Usage: reference_client.py BASE_URL AGENT_ID [TOKEN]
"""

# ruff: noqa: BLE001 - a script that prints what happened, whatever it was

import asyncio
import json
import logging
import sys
import uuid
from datetime import UTC, datetime, timedelta

logging.disable(logging.CRITICAL)

from asap.models.envelope import Envelope  # noqa: E402
from asap.transport.client import ASAPClient  # noqa: E402

SENDER = "urn:asap:agent:reference-client"


def envelope(recipient, **changes):
    fields = {
        "asap_version": "0.1",
        "timestamp": datetime.now(UTC),
        "sender": SENDER,
        "recipient": recipient,
        "payload_type": "task.request",
        "payload": {"conversation_id": "c1", "skill_id": "echo", "input": {"text": "hi"}},
        "extensions": {"nonce": uuid.uuid4().hex},
    }
    return Envelope(**{**fields, **changes})


def say(step, outcome):
    print(json.dumps({"step": step, **outcome}), flush=True)


def plain(value):
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


async def step(name, call):
    try:
        value = await call
        say(name, {"ok": [plain(item) for item in value] if isinstance(value, list) else plain(value)})
    except Exception as error:
        data = getattr(error, "data", None)
        code = getattr(error, "json_rpc_code", None) or getattr(error, "wire_jsonrpc_code", None)
        code = code if code is not None else getattr(error, "rpc_code", None)
        say(
            name,
            {
                "error": type(error).__name__,
                "code": code,
                "taxonomy": getattr(error, "code", None),
                "text": str(error),
                "data": data if isinstance(data, dict) else None,
            },
        )


async def main(base_url, agent, token):
    def big():
        payload = {"conversation_id": "c1", "skill_id": "echo", "input": {"text": "x" * 50_000}}
        return envelope(agent, payload=payload)

    async with ASAPClient(base_url, auth_token=token, max_retries=1) as client:
        await step("manifest", client.get_manifest())
        await step("discover", client.discover(base_url))
        await step("health", client.health_check(base_url))
        await step("send", client.send(envelope(agent)))
        await step("send_50k", client.send(big()))
        nonce = {"nonce": "the-same"}
        await step("nonce_first", client.send(envelope(agent, extensions=nonce)))
        await step("nonce_again", client.send(envelope(agent, extensions=nonce)))
        stale = datetime.now(UTC) - timedelta(hours=1)
        await step("stale", client.send(envelope(agent, timestamp=stale)))
        await step("unknown_type", client.send(envelope(agent, payload_type="no.such.type", payload={"a": 1})))
        await step("twenty", client.send_batch([envelope(agent) for _ in range(20)]))
        await step("batch", client.batch([envelope(agent) for _ in range(5)]))
        await step("other_sender", client.send(envelope(agent, sender="urn:asap:agent:mallory")))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None))
