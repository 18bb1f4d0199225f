"""An agent with a manual clock, requests to it, and exchanges driven to their response."""

import json

from asap_core import (
    Agent,
    Authenticate,
    Authenticated,
    Dispatch,
    Fork,
    ManualClock,
    Policy,
    ReadBody,
    Replied,
    Request,
    Respond,
    StartPolicy,
)
from tests.builders import ALICE, bound, call, manifest


def serve(
    *,
    auth=False,
    clock=None,
    shared=False,
    shared_limits=(),
    payload_types=("task.request",),
    aliases=(),
    observe=None,
    counters=None,
    **policy,
):
    fields = {"peer_limits": (), "start": StartPolicy.OPEN, **policy}
    agent = Agent(manifest(auth=auth), policy=Policy(**fields), payload_types=payload_types, aliases=aliases)
    return bound(
        agent, clock=clock or ManualClock(), shared_admission=shared, shared_limits=shared_limits, observe=observe,
        counters=counters,
    )  # fmt: skip


def body():
    return json.dumps(call()).encode()


def head(method="POST", target="/asap", peer="192.0.2.1", **headers):
    pairs = tuple((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items())
    return Request(method=method, target=target, headers=pairs, peer=peer)


def reply(state):
    return state.replied(Replied("task.response", {"task_id": "t", "status": "completed"}))


def finish(state, *, answer=reply):
    """Drive to the response, every dispatch answered by `answer`."""
    while not isinstance(state, Respond):
        match state:
            case Authenticate():
                state = state.verified(Authenticated(ALICE))
            case Fork():
                state = state.answered([answer(one) if isinstance(one, Dispatch) else one for one in state.calls])  # type: ignore[misc]
    return state.response


def post(agent, body, *, answer=reply, peer="192.0.2.1", **headers):
    state = agent.open(head(peer=peer, **headers))
    if isinstance(state, Authenticate):
        state = state.verified(Authenticated(ALICE))
    if isinstance(state, ReadBody):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        state = state.feed(data)
        state = state.end() if isinstance(state, ReadBody) else state
    return finish(state, answer=answer)


def outcome(response):
    """The taxonomy of the refusal, or "ok"."""
    value = json.loads(response.body)
    assert ("error" in value) is not ("result" in value), value
    return value["error"]["data"]["code"] if "error" in value else "ok"


# Bodies that are refused before a handler is looked for, each with its taxonomy code.
REFUSED = [
    (b"", "asap:rpc/parse_error"),
    (b"not json", "asap:rpc/parse_error"),
    (b'{"a":1,"a":2}', "asap:rpc/parse_error"),
    (b"[" * 1000 + b"]" * 1000, "asap:rpc/parse_error"),
    (5, "asap:rpc/invalid_request"),
    ({}, "asap:rpc/invalid_request"),
    (call(jsonrpc="1.0"), "asap:rpc/invalid_request"),
    (call(method=5), "asap:rpc/invalid_request"),
    (call(more=1), "asap:rpc/invalid_request"),
    ({key: value for key, value in call().items() if key != "id"}, "asap:rpc/invalid_request"),
    (call(None), "asap:rpc/invalid_request"),
    (call(1.5), "asap:rpc/invalid_request"),
    (call(True), "asap:rpc/invalid_request"),
    (call({}), "asap:rpc/invalid_request"),
    (call("x" * 300), "asap:rpc/invalid_request"),
    (call(2**63), "asap:rpc/invalid_request"),
    (call(-(2**63) - 1), "asap:rpc/invalid_request"),
    ({key: value for key, value in call().items() if key != "params"}, "asap:rpc/invalid_request"),
    (call(method="other"), "asap:rpc/method_not_found"),
    (call(params=[]), "asap:protocol/malformed_envelope"),
    (call(params={}), "asap:protocol/malformed_envelope"),
    (call(params={"envelope": 5}), "asap:protocol/malformed_envelope"),
    (call(key=""), "asap:protocol/malformed_envelope"),
    (call(key="x" * 300), "asap:protocol/malformed_envelope"),
    (call(envelope_changes={"sender": "x"}), "asap:protocol/malformed_envelope"),
    (call(envelope_changes={"timestamp": ...}), "asap:protocol/malformed_envelope"),
    (call(envelope_changes={"id": ...}), "asap:protocol/malformed_envelope"),
    (call(envelope_changes={"recipient": "urn:asap:agent:other"}), "asap:admission/misaddressed"),
    (call(envelope_changes={"timestamp": "2025-06-15T15:01:39Z"}), "asap:protocol/invalid_timestamp"),
    (call(envelope_changes={"timestamp": "2025-06-15T15:07:11Z"}), "asap:protocol/invalid_timestamp"),
    (call(envelope_changes={"payload_type": "no.such"}), "asap:transport/handler_not_found"),
    (call(envelope_changes={"payload": {}}), "asap:protocol/malformed_envelope"),
    (
        call(envelope_changes={"payload": {"conversation_id": "c", "skill_id": "no", "input": {}}}),
        "asap:transport/handler_not_found",
    ),
    (call(envelope_changes={"extensions": {"nonce": ""}}), "asap:protocol/malformed_envelope"),
    (call(envelope_changes={"extensions": {"nonce": 5}}), "asap:protocol/malformed_envelope"),
]
