"""What the matrix may not show: why a switch breaks no law, and why one breaks laws of other groups than its own.

`python -m asap_core.testing.planted --matrix` fails if a switch is in neither table and should be.
"""

from typing import Final

SWITCHES_OF: Final = {"heads": "http", "bodies": "http", "connections": "http"}
"""Groups of laws whose switches have the name of another group."""

UNFOUND: Final[dict[str, str]] = {
    "replay.evicted_at_the_bound": "the bound is 100,000 nonces: no run sends so many",
    "idempotency.failure_runs_again": "laws run the skill echo, which doesn't fail",
    "discovery.manifest_skills": "an agent may have skills that it doesn't publish",
    "errors.handler_cause": "laws run the skill echo, which doesn't fail",
}
"""Switches that break no law, each with the reason."""

WIDER: Final[dict[str, tuple[str, ...]]] = {
    "a run begins with the manifest": (
        "discovery.manifest_auth",
        "discovery.manifest_changes",
        "discovery.manifest_id",
        "discovery.manifest_json",
        "discovery.manifest_without_capabilities",
        "discovery.manifest_without_id",
        "discovery.needs_token",
    ),
    "no answer, or no refusal, is as it should be": (
        "http.fault_is_500",
        "http.fault_silent",
        "http.length_of_response",
        "http.response_line_ends",
        "jsonrpc.content_type",
        "jsonrpc.error_id_lost",
        "jsonrpc.id_of_another",
        "jsonrpc.result_beside_error",
        "jsonrpc.version_missing",
        "versions.header_missing",
        "errors.code_is_text",
        "errors.data_missing",
        "errors.html",
        "errors.message_missing",
        "errors.taxonomy_missing",
        "identity.refused_with_200",
    ),
    "laws of errors, limits and batches provoke the refusal that doesn't come": (
        "jsonrpc.any_method",
        "envelope.any_payload_type",
        "envelope.any_skill",
        "envelope.correlation_id_unchecked",
        "envelope.extensions_unchecked",
        "envelope.id_unchecked",
        "envelope.payload_type_unchecked",
        "envelope.payload_unchecked",
        "envelope.recipient_unchecked_here",
        "envelope.requires_ack_unchecked",
        "envelope.sender_unchecked",
        "envelope.timestamp_unchecked",
        "envelope.timestamp_missing",
        "envelope.timestamp_null",
        "envelope.unknown_keys",
        "identity.any_token",
        "identity.sender_unbound",
        "replay.accepted",
        "time.old",
        "versions.echoed",
        "versions.unknown",
        "json_text.depth",
        "json_text.empty_body",
        "json_text.trailing_text",
        "limits.body",
        "compression.bomb",
    ),
    "laws of other groups provoke the refusal that is another one": (
        "jsonrpc.invalid_request_code",
        "jsonrpc.method_code",
        "json_text.code",
        "envelope.malformed_code",
        "envelope.handler_code",
        "envelope.misaddressed_code",
        "replay.code",
        "time.code",
        "versions.code",
        "idempotency.mismatch_code",
        "limits.body_status",
        "errors.malformed_is_internal",
        "errors.unknown_skill_is_internal",
        "errors.status_of_refusals",
    ),
    "the rule that is broken is a law of another group": (
        "discovery.health_fields",
        "discovery.health_http_status",
        "identity.of_the_connection",
        "discovery.body_of_head",
        "envelope.recipient_prefix",
        "http.method_not_allowed",
        "http.unknown_path",
    ),
    "laws of other groups look at the reply": (
        "replies.correlation_is_rpc_id",
        "replies.correlation_missing",
        "replies.correlation_of_another",
        "replies.envelope_unwrapped",
        "replies.id_constant",
        "replies.payload_wrapped",
        "replies.result",
    ),
    "laws of other groups make a call that is refused": (
        "time.narrow_window",
        "replay.burnt_by_refused_calls",
        "time.clock_stopped",
        "time.no_tolerance",
        "time.unix_refused",
        "compression.gzip",
        "batch.unknown",
        "envelope.payload_type_spelling",
        "http.keep_alive",
        "http.field_name_case",
        "identity.scheme_case",
    ),
}
"""Switches that break laws of other groups too, by the reason."""
