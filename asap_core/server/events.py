"""What admission decided, as values for whoever watches: logs, counters, alarms.

Nothing in a `Decision` is a secret, a nonce or a text that a stranger chose: a payload type is named only where the
agent knows it, and a sender only as the principal that was proven.
"""

from collections.abc import Callable
from enum import Enum
from typing import Final

from attrs import frozen

from asap_core.refusals import (
    ANSWER_GONE,
    AUTHENTICATION_REQUIRED,
    BATCH_SIZE,
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


class What(Enum):
    """What was decided. The values are stable: counters and log searches use them."""

    ACCEPTED = "accepted"
    """New and in order: its handler runs."""
    REPEATED = "repeated"
    """Asked before under its idempotency key, and answered as before: a retry."""
    REPLAYED = "replayed"
    """Its nonce was seen before: a duplicate on the way, or somebody who captured it."""
    STALE = "stale"
    """Dated before the window: a slow clock, a long way, or something captured."""
    FUTURE = "future"
    """Dated after the window: a fast clock."""
    SATURATED = "saturated"
    """No room to remember it."""
    RESTARTED = "restarted"
    """Dated before the last start, or before what was forgotten: it may have been accepted then."""
    SPOOFED = "spoofed"
    """Its sender isn't the agent that authenticated."""
    MISADDRESSED = "misaddressed"
    """For another agent."""
    FOREIGN = "foreign"
    """From a web page that may not call."""
    UNAUTHENTICATED = "unauthenticated"
    """No credential, or one that isn't good."""
    LIMITED = "limited"
    """Over the share of its peer or principal."""
    MALFORMED = "malformed"
    """Not what it should be: JSON, JSON-RPC, envelope or payload."""
    UNREADABLE = "unreadable"
    """Its body is too large, or not in the coding that it says."""
    UNKNOWN = "unknown"
    """No such method, version, payload type or skill here."""
    UNSETTLED = "unsettled"
    """Under its idempotency key something is running, was lost, was something else, or is no longer known."""
    UNAVAILABLE = "unavailable"
    """What decides (a store, an identity provider) was out of reach."""


@frozen(kw_only=True)
class Decision:
    """One decision about one call, or about a request that came to no call.

    `peer` is the address, `principal` the agent that authenticated, `payload_type` the normalised type where the agent
    takes it, `kind` the refusal's, `age` the seconds since the date it carries where that's why (negative: ahead).
    """

    what: What
    peer: str
    principal: str | None = None
    payload_type: str | None = None
    kind: Kind | None = None
    age: float | None = None


Observer = Callable[[Decision], None]
"""Is told every decision, while it's made: must be quick. What it raises is counted, and changes nothing else."""

WHAT_OF: Final = {
    kind.taxonomy: what
    for what, kinds in {
        What.REPLAYED: (REPLAYED,),
        What.SATURATED: (SATURATED,),
        What.RESTARTED: (RESTARTED,),
        What.SPOOFED: (SENDER_MISMATCH,),
        What.MISADDRESSED: (MISADDRESSED,),
        What.FOREIGN: (FOREIGN_PAGE,),
        What.UNAUTHENTICATED: (AUTHENTICATION_REQUIRED, INVALID_CREDENTIAL, INSUFFICIENT_SCOPE),
        What.LIMITED: (RATE_LIMITED,),
        What.MALFORMED: (PARSE_ERROR, INVALID_REQUEST, BATCH_SIZE, MALFORMED_ENVELOPE),
        What.UNKNOWN: (METHOD_NOT_FOUND, VERSION_INCOMPATIBLE, HANDLER_NOT_FOUND),
        What.UNSETTLED: (STILL_RUNNING, KEY_MISMATCH, OUTCOME_UNKNOWN, ANSWER_GONE),
        What.UNAVAILABLE: (UNAVAILABLE,),
    }.items()
    for kind in kinds
}
"""By taxonomy code, what a refusal of that kind means. A timestamp's depends on its age."""
