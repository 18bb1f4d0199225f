"""Decisions of admission as values, for logs, counters and alarms.

A `Decision` holds no secret, no nonce and no text that a stranger chose: a payload type is named only if the agent has
it, a sender only as the principal that was authenticated.
"""

from collections.abc import Callable
from enum import Enum
from typing import Final

from asap_core.refusals import (
    ANSWER_GONE,
    AUTHENTICATION_REQUIRED,
    BATCH_SIZE,
    BUSY,
    FOREIGN_PAGE,
    HANDLER_NOT_FOUND,
    INSUFFICIENT_SCOPE,
    INVALID_CREDENTIAL,
    INVALID_REQUEST,
    KEY_MISMATCH,
    MALFORMED_ENVELOPE,
    METHOD_NOT_FOUND,
    MISADDRESSED,
    OUTCOME_UNKNOWN,
    PARSE_ERROR,
    RATE_LIMITED,
    REPLAYED,
    RESTARTED,
    SATURATED,
    SENDER_MISMATCH,
    STILL_RUNNING,
    UNAVAILABLE,
    VERSION_INCOMPATIBLE,
    Kind,
)
from asap_core.request_values import frozen


class What(Enum):
    """What was decided. The values are stable: counters and log searches use them."""

    ACCEPTED = "accepted"
    """New and valid: its handler runs."""
    REPEATED = "repeated"
    """A retry under its idempotency key, which got the first answer again."""
    REPLAYED = "replayed"
    """Its nonce was seen before: it was duplicated on the way, or captured and sent again."""
    STALE = "stale"
    """Dated before the accepted window: a slow clock, a long delay, or a captured envelope."""
    FUTURE = "future"
    """Dated after the accepted window: a fast clock."""
    SATURATED = "saturated"
    """No room to remember it."""
    RESTARTED = "restarted"
    """Dated before the last start, or before the oldest nonces kept: it may have been accepted then."""
    SPOOFED = "spoofed"
    """Its sender isn't the agent that authenticated."""
    MISADDRESSED = "misaddressed"
    """Addressed to another agent."""
    FOREIGN = "foreign"
    """From a web page that may not call this agent."""
    UNAUTHENTICATED = "unauthenticated"
    """No credential, or an invalid one."""
    LIMITED = "limited"
    """Over the limits of its peer or principal."""
    MALFORMED = "malformed"
    """Invalid JSON, JSON-RPC, envelope or payload."""
    UNREADABLE = "unreadable"
    """Its body is too large, or not in the content coding that it names."""
    UNKNOWN = "unknown"
    """Its method, version, payload type or skill isn't supported."""
    UNSETTLED = "unsettled"
    """Its key is in use, was used for another request, or its answer is lost or dropped."""
    UNAVAILABLE = "unavailable"
    """A store or an identity provider was unavailable."""


@frozen(kw_only=True)
class Decision:
    """One decision about a call, or about a request that contained none.

    peer: the caller's address.
    principal: the agent that authenticated.
    payload_type: the normalised type, if the agent has it.
    kind: the refusal's row in the table.
    age: seconds since the envelope's timestamp, if that is why it was refused; negative if it's in the future.
    """

    what: What
    peer: str
    principal: str | None = None
    payload_type: str | None = None
    kind: Kind | None = None
    age: float | None = None


Observer = Callable[[Decision], None]
"""Is called with every decision, and must be quick. What it raises is counted, and changes nothing else."""

DECISION_OF: Final = {
    kind.taxonomy: what
    for what, kinds in {
        What.REPLAYED: (REPLAYED,),
        What.SATURATED: (SATURATED,),
        What.RESTARTED: (RESTARTED,),
        What.SPOOFED: (SENDER_MISMATCH,),
        What.MISADDRESSED: (MISADDRESSED,),
        What.FOREIGN: (FOREIGN_PAGE,),
        What.UNAUTHENTICATED: (AUTHENTICATION_REQUIRED, INVALID_CREDENTIAL, INSUFFICIENT_SCOPE),
        What.LIMITED: (RATE_LIMITED, BUSY),
        What.MALFORMED: (PARSE_ERROR, INVALID_REQUEST, BATCH_SIZE, MALFORMED_ENVELOPE),
        What.UNKNOWN: (METHOD_NOT_FOUND, VERSION_INCOMPATIBLE, HANDLER_NOT_FOUND),
        What.UNSETTLED: (STILL_RUNNING, KEY_MISMATCH, OUTCOME_UNKNOWN, ANSWER_GONE),
        What.UNAVAILABLE: (UNAVAILABLE,),
    }.items()
    for kind in kinds
}
"""The decision that a refusal stands for, by its taxonomy code. A timestamp's depends on its age."""
