"""Builders of a manifest, an agent, an envelope and a call. Each is valid until a test changes a field."""

import itertools
from collections.abc import Iterator
from typing import Any, Final

from asap_core import Agent, AuthScheme, Capabilities, Endpoints, Manifest, ManualClock, Policy, Skill, StartPolicy

AGENT: Final = "urn:asap:agent:echo-agent"
ALICE: Final = "urn:asap:agent:alice"
URL: Final = "https://a.example/asap"
# The wall time of a new ManualClock.
STAMP: Final = "2025-06-15T15:06:40Z"

# All of the same length: the size of a message doesn't depend on how many were made before.
_numbers: Iterator[int] = itertools.count(10_000_000)


def manifest(*skills: str, url: str = URL, auth: bool = False, **changes) -> Manifest:
    """The manifest of an agent with these skills, `echo` by default, that requires bearer tokens if `auth`."""
    fields = {
        "id": AGENT, "name": "Echo", "version": "1.0.0", "description": "Echoes",
        "capabilities": Capabilities(skills=[Skill(id=name, description="") for name in skills or ("echo",)]),
        "endpoints": Endpoints(asap=url),
        "auth": AuthScheme(schemes=["Bearer"]) if auth else None,
    }  # fmt: skip
    return Manifest(**{**fields, **changes})


def agent(described: Manifest | None = None, **policy) -> Agent:
    """An agent that isn't bound. It accepts envelopes from before its start, and as many of one peer as come."""
    fields = {"peer_limits": (), "start": StartPolicy.OPEN, **policy}
    return Agent(described or manifest(), policy=Policy(**fields))


def bound(agent: Agent, **options) -> Agent:
    """Bind to a manual clock, numbered ids and a constant key."""
    fields = {"clock": ManualClock(), "ids": lambda: f"id-{next(_numbers)}", "key": b"k" * 32}
    return agent.bind(**{**fields, **options})


def envelope(**changes) -> dict[str, Any]:
    """An envelope as JSON, from Alice to the agent, with an id of its own. A field that is `...` is left out."""
    fields = {
        "id": f"e-{next(_numbers)}", "asap_version": "0.1", "timestamp": STAMP, "sender": ALICE, "recipient": AGENT,
        "payload_type": "task.request", "payload": {"conversation_id": "c", "skill_id": "echo", "input": {}},
    }  # fmt: skip
    return {name: value for name, value in {**fields, **changes}.items() if value is not ...}


def call(number: object = 1, *, key: str | None = None, envelope_changes=None, **changes) -> dict[str, Any]:
    """A JSON-RPC request that sends an envelope, under an idempotency key if there is one."""
    params: dict[str, object] = {"envelope": envelope(**(envelope_changes or {}))}
    if key is not None:
        params["idempotency_key"] = key
    return {"jsonrpc": "2.0", "method": "asap.send", "id": number, "params": params, **changes}
