"""The refusals of an agent, as a table: for each what it's called on the wire, its status, and what to do about it.

Rule of this module: a refusal is one `Kind` of the table and some fields. Its text is made when it's written out, and
never repeats what the caller sent.

The numeric codes and taxonomy strings are those of the reference implementation 2.5 wherever it has one. Its own codes
fill -32059..-32000; refusals it doesn't know take -32079..-32060, which JSON-RPC 2.0 §5.1 reserves for servers too, so
that no number has two meanings. Clients classify by the taxonomy string first.
"""

from collections.abc import Mapping
from typing import Final

from attrs import field, frozen

from asap_core.errors import Problem


@frozen(kw_only=True)
class Kind:
    """One kind of refusal: a row of the table.

    code: the JSON-RPC error code.
    taxonomy: the string by which clients classify errors.
    status: the HTTP status, if the request is a single call. A batch is always 200.
    message: the JSON-RPC message.
    recoverable: whether a retry may succeed.
    advice: what the caller can do about it.
    """

    code: int
    taxonomy: str
    status: int
    message: str
    recoverable: bool
    advice: str


PARSE_ERROR: Final = Kind(
    code=-32700,
    taxonomy="asap:rpc/parse_error",
    status=200,
    message="Parse error",
    recoverable=False,
    advice="send one JSON text in UTF-8, without duplicate keys, NaN or lone surrogates, within the depth limit",
)
INVALID_REQUEST: Final = Kind(
    code=-32600,
    taxonomy="asap:rpc/invalid_request",
    status=200,
    message="Invalid request",
    recoverable=False,
    advice="send a JSON-RPC 2.0 request object, or an array of them",
)
BATCH_SIZE: Final = Kind(
    code=-32600,
    taxonomy="asap:rpc/batch_size",
    status=200,
    message="Invalid request",
    recoverable=False,
    advice="split the batch",
)
METHOD_NOT_FOUND: Final = Kind(
    code=-32601,
    taxonomy="asap:rpc/method_not_found",
    status=200,
    message="Method not found",
    recoverable=False,
    advice="call the method asap.send",
)
MALFORMED_ENVELOPE: Final = Kind(
    code=-32602,
    taxonomy="asap:protocol/malformed_envelope",
    status=200,
    message="Invalid params",
    recoverable=False,
    advice="mend what validation_errors names; every error is listed",
)
HANDLER_FAILED: Final = Kind(
    code=-32603,
    taxonomy="asap:rpc/internal_error",
    status=200,
    message="Internal error",
    recoverable=False,
    advice="tell the agent's operator; its log has the cause",
)
VERSION_INCOMPATIBLE: Final = Kind(
    code=-32000,
    taxonomy="asap:protocol/version_incompatible",
    status=200,
    message="ASAP protocol version incompatible",
    recoverable=False,
    advice="name a supported version in ASAP-Version, or leave the header out",
)
TIMESTAMP: Final = Kind(
    code=-32002,
    taxonomy="asap:protocol/invalid_timestamp",
    status=200,
    message="Envelope timestamp is outside the accepted window",
    recoverable=True,
    advice="compare server_time with your clock and send a fresh timestamp",
)
REPLAYED: Final = Kind(
    code=-32003,
    taxonomy="asap:protocol/invalid_nonce",
    status=200,
    message="Envelope was seen before",
    recoverable=False,
    advice="a retry keeps the envelope id and the idempotency key and takes a fresh timestamp and nonce",
)
HANDLER_NOT_FOUND: Final = Kind(
    code=-32012,
    taxonomy="asap:transport/handler_not_found",
    status=200,
    message="No handler registered for this payload type or skill",
    recoverable=False,
    advice="look up the skills in the agent's manifest",
)
HANDLER_TIMEOUT: Final = Kind(
    code=-32033,
    taxonomy="asap:transport/timeout",
    status=200,
    message="The handler did not finish within its deadline",
    recoverable=False,
    advice="ask for less, or ask the operator for a longer deadline; the work may have been done in part",
)
"""The handler didn't finish within its deadline."""
# The reference answers authentication with -32600 and the sender rule with -32602, inside HTTP 200. The codes stay, so
# that its clients know them; the status becomes what RFC 9110 §15.5.2 and §15.5.4 call it.
AUTHENTICATION_REQUIRED: Final = Kind(
    code=-32600,
    taxonomy="asap:auth/required",
    status=401,
    message="Authentication required",
    recoverable=False,
    advice="send Authorization: Bearer with a token for this agent",
)
INVALID_CREDENTIAL: Final = Kind(
    code=-32600,
    taxonomy="asap:auth/invalid_token",
    status=401,
    message="Invalid authentication token",
    recoverable=False,
    advice="get a new token",
)
INSUFFICIENT_SCOPE: Final = Kind(
    code=-32600,
    taxonomy="asap:auth/insufficient_scope",
    status=403,
    message="The token does not allow this",
    recoverable=False,
    advice="get a token with the scopes that WWW-Authenticate names",
)
SENDER_MISMATCH: Final = Kind(
    code=-32602,
    taxonomy="asap:auth/sender_mismatch",
    status=403,
    message="Sender does not match authenticated identity",
    recoverable=False,
    advice="put the URN that the token stands for in envelope.sender",
)
# The reference's number. It isn't a JSON-RPC application code, but clients test for it.
RATE_LIMITED: Final = Kind(
    code=429,
    taxonomy="asap:transport/rate_limited",
    status=429,
    message="Rate limit exceeded",
    recoverable=True,
    advice="wait for retry_after seconds",
)
MISADDRESSED: Final = Kind(
    code=-32060,
    taxonomy="asap:admission/misaddressed",
    status=200,
    message="The recipient is another agent",
    recoverable=False,
    advice="address the envelope to the id in this agent's manifest",
)
SATURATED: Final = Kind(
    code=-32061,
    taxonomy="asap:admission/saturated",
    status=503,
    message="No room to remember this envelope",
    recoverable=True,
    advice="wait for retry_after seconds; nothing was run",
)
STILL_RUNNING: Final = Kind(
    code=-32062,
    taxonomy="asap:admission/still_running",
    status=200,
    message="The first request with this idempotency key is still running",
    recoverable=True,
    advice="ask again with the same key after retry_after_ms; the work is not done twice",
)
KEY_MISMATCH: Final = Kind(
    code=-32063,
    taxonomy="asap:admission/key_mismatch",
    status=200,
    message="Another request was made under this idempotency key",
    recoverable=False,
    advice="take a new idempotency key for a new request",
)
OUTCOME_UNKNOWN: Final = Kind(
    code=-32064,
    taxonomy="asap:admission/outcome_unknown",
    status=200,
    message="The first request with this idempotency key was cut off; it may have run",
    recoverable=False,
    advice="find out whether the work was done before asking under a new key",
)
ANSWER_GONE: Final = Kind(
    code=-32065,
    taxonomy="asap:admission/answer_gone",
    status=200,
    message="The request with this idempotency key was answered; the answer is no longer kept",
    recoverable=False,
    advice="the work was done once; ask for its result in another way",
)
UNAVAILABLE: Final = Kind(
    code=-32066,
    taxonomy="asap:admission/unavailable",
    status=503,
    message="What this decision needs is out of reach",
    recoverable=True,
    advice="wait for retry_after seconds; nothing was run",
)
# Not "saturated": this ends by itself, and an operator who reads "saturated" would look for load.
RESTARTED: Final = Kind(
    code=-32067,
    taxonomy="asap:admission/restarted",
    status=503,
    message="The envelope is dated before this agent's last start, and may have been accepted before it",
    recoverable=True,
    advice="send it with a fresh timestamp after retry_after seconds; this time nothing was run",
)
# 403 under every profile: no client of the reference sends an Origin, and a browser must see that it failed.
FOREIGN_PAGE: Final = Kind(
    code=-32068,
    taxonomy="asap:admission/foreign_page",
    status=403,
    message="This web page may not call this agent",
    recoverable=False,
    advice="have the operator list the page's origin (origins), or the name in Host (hosts), in the agent's policy",
)
BUSY: Final = Kind(
    code=-32031,
    taxonomy="asap:transport/thread_pool_exhausted",
    status=503,
    message="Every worker of this agent is busy",
    recoverable=True,
    advice="wait for retry_after seconds; nothing was run",
)

KINDS: Final[tuple[Kind, ...]] = (
    PARSE_ERROR,
    INVALID_REQUEST,
    BATCH_SIZE,
    METHOD_NOT_FOUND,
    MALFORMED_ENVELOPE,
    HANDLER_FAILED,
    VERSION_INCOMPATIBLE,
    TIMESTAMP,
    REPLAYED,
    HANDLER_NOT_FOUND,
    HANDLER_TIMEOUT,
    AUTHENTICATION_REQUIRED,
    INVALID_CREDENTIAL,
    INSUFFICIENT_SCOPE,
    SENDER_MISMATCH,
    RATE_LIMITED,
    MISADDRESSED,
    SATURATED,
    STILL_RUNNING,
    KEY_MISMATCH,
    OUTCOME_UNKNOWN,
    ANSWER_GONE,
    UNAVAILABLE,
    RESTARTED,
    FOREIGN_PAGE,
    BUSY,
)
"""The whole table, in the order of `docs/errors.md`, which is checked against it."""


@frozen(kw_only=True)
class Refusal:
    """A request refused: the kind, and what its text is made of.

    note: the sentence for `data.error`; by default the kind's message.
    details: further members of `data`.
    problems: what is wrong in the envelope.
    retry_after: seconds until a retry is worthwhile.
    challenge: the value of `WWW-Authenticate`, if RFC 9110 §11.6.1 requires one.
    """

    kind: Kind
    note: str = ""
    details: Mapping[str, object] = field(factory=dict)
    problems: tuple[Problem, ...] = ()
    retry_after: float | None = None
    challenge: str | None = None

    def __str__(self) -> str:
        parts = [self.note or self.kind.message, *(str(problem) for problem in self.problems)]
        return "; ".join(parts)
