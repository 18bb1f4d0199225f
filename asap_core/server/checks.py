"""The checks of a call before admission, in order: sender, version, recipient, date, payload, scopes, load.

They're cheap and leave nothing behind: no nonce is used up by a call that can't run.
"""

from typing import Any, Final

from asap_core.auth.principal import Authenticated, insufficient_scope, sender_rule
from asap_core.clock import WallTime
from asap_core.errors import InvalidDocument, Problem
from asap_core.refusals import (
    HANDLER_NOT_FOUND,
    INSUFFICIENT_SCOPE,
    MALFORMED_ENVELOPE,
    MISADDRESSED,
    RATE_LIMITED,
    SENDER_MISMATCH,
    TIMESTAMP,
    VERSION_INCOMPATIBLE,
    Refusal,
)
from asap_core.server.call_run import CallRun
from asap_core.server.serving import Serving
from asap_core.wire.codec import decode_payload_of
from asap_core.wire.envelope import ASAP_VERSION, normalise_payload_type, utc
from asap_core.wire.payloads import MessageSend, TaskRequest


def first_refusal(run: CallRun, *, streamed: bool) -> Refusal | None:
    """Run the checks in order and return the first refusal, or None. Sets `run.kind` and `run.request`."""
    return (
        sender_rule(run.principal, run.envelope.sender)
        or _key_has_an_owner(run)
        or _version_is_known(run)
        or _recipient_is_this_agent(run)
        or _timestamp_is_in_window(run)
        or _payload_and_handler_exist(run, streamed=streamed)
        or _scopes_allow(run)
        or _there_is_room(run)
    )


def malformed(error: InvalidDocument) -> Refusal:
    """Return the refusal of an invalid envelope or payload."""
    return Refusal(kind=MALFORMED_ENVELOPE, note="Invalid envelope structure", problems=error.problems)


def with_what_old_peers_leave_out(agent: Serving, value: dict[str, Any], wall: WallTime) -> dict[str, Any]:
    """Return the envelope with an id and a timestamp, if the policy lets a peer omit them."""
    # The reference, 1.1 and 2.x, treats a null id or timestamp as absent and fills it in. Here the policy decides.
    if not agent.policy.require_id and value.get("id") is None:
        value = {**value, "id": agent.new_id()}
    if not agent.policy.require_timestamp and value.get("timestamp") is None:
        value = {**value, "timestamp": utc(wall)}
    return value


def _key_has_an_owner(run: CallRun) -> Refusal | None:
    """Keys belong to a principal or to an address: without either, all callers would share them."""
    if run.call.idempotency_key is None or run.peer_known or isinstance(run.principal, Authenticated):
        return None
    expected = (
        "no key, or a caller who authenticates: the address of this one isn't known. Behind a proxy that connects over "
        "TCP the agent's operator can have it told (trusted_proxies)"
    )
    problem = Problem(("params", "idempotency_key"), expected)
    return Refusal(kind=MALFORMED_ENVELOPE, note="Invalid idempotency key", problems=(problem,))


def _version_is_known(run: CallRun) -> Refusal | None:
    if run.envelope.asap_version.startswith("0.") or not run.agent.policy.check_version:
        return None
    return Refusal(kind=VERSION_INCOMPATIBLE, details={"supported": [ASAP_VERSION]})


def _recipient_is_this_agent(run: CallRun) -> Refusal | None:
    if not run.agent.policy.check_recipient or run.agent.answers_to(run.envelope.recipient):
        return None
    return Refusal(kind=MISADDRESSED, details={"agent_id": run.agent.manifest.id})


def _timestamp_is_in_window(run: CallRun) -> Refusal | None:
    age = run.wall - run.issued
    if -run.agent.policy.skew <= age <= run.agent.policy.max_age:
        return None
    return timestamp_refusal(run, age)


def timestamp_refusal(run: CallRun, age: float) -> Refusal:
    """Return the refusal of a timestamp that's `age` seconds old. It tells the caller the server's time."""
    bounds: dict[str, object] = {
        "server_time": utc(run.wall).isoformat().replace("+00:00", "Z"),
        "max_age_seconds": run.agent.policy.max_age,
        "max_future_tolerance_seconds": run.agent.policy.skew,
    }
    offset = {"age_seconds": round(age, 3)} if age > 0 else {"future_offset_seconds": round(-age, 3)}
    return Refusal(
        kind=TIMESTAMP, note="Invalid envelope timestamp", details=offset | bounds, retry_after=_AFTER_TIMESTAMP
    )


# Seconds to wait before a retry, as the reference says.
_AFTER_TIMESTAMP: Final = 5.0


def _payload_and_handler_exist(run: CallRun, *, streamed: bool) -> Refusal | None:
    run.kind = normalise_payload_type(run.envelope.payload_type)
    if streamed or run.kind not in run.agent.payload_types:
        supported = [] if streamed else sorted(run.agent.payload_types)
        return Refusal(kind=HANDLER_NOT_FOUND, details={"supported": supported})
    try:
        run.request = decode_payload_of(run.kind, run.envelope.payload, path=("params", "envelope", "payload"))
    except InvalidDocument as error:
        return malformed(error)
    if isinstance(run.request, MessageSend) and run.request.sender != run.envelope.sender:
        return Refusal(kind=SENDER_MISMATCH) if run.agent.policy.check_payload_sender else None
    if isinstance(run.request, TaskRequest) and run.request.skill_id not in run.agent.skills:
        return Refusal(kind=HANDLER_NOT_FOUND, details={"skills": sorted(run.agent.skills)})
    return None


def _scopes_allow(run: CallRun) -> Refusal | None:
    if not run.agent.policy.scopes:
        return None
    asked = {run.kind, f"{run.kind}/{run.request.skill_id}" if isinstance(run.request, TaskRequest) else run.kind}
    wanted = frozenset[str]().union(*(scopes for key, scopes in run.agent.policy.scopes if key in asked))
    held = run.principal.scopes if isinstance(run.principal, Authenticated) else frozenset()
    if wanted <= held:
        return None
    proves = isinstance(run.principal, Authenticated) and run.principal.key is not None
    return Refusal(kind=INSUFFICIENT_SCOPE, challenge=insufficient_scope(wanted, proves=proves))


def _there_is_room(run: CallRun) -> Refusal | None:
    if run.agent.has_room_for(run.caller):
        return None
    limit = f"{run.agent.policy.concurrent} at once"
    return Refusal(kind=RATE_LIMITED, details={"limit": limit}, retry_after=_AFTER_BUSY_CALLER)


# Seconds. When one of the caller's handlers will end isn't known.
_AFTER_BUSY_CALLER: Final = 1.0
