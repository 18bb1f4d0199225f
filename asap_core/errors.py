"""Everything that can be wrong, in one table: what it's called on the wire, its status, and what the caller does next.

Rule of this module: a refusal is one `Kind` from the table and fields; its words are rendered when it's written out,
and they never repeat what the caller sent. Exceptions (for users of the library) hold fields and say what would have
been right.

The numeric codes and taxonomy strings are those of the reference implementation 2.5 wherever it has one. Its own codes
fill -32059..-32000; refusals it doesn't know take -32079..-32060, which JSON-RPC 2.0 §5.1 reserves for servers too, so
that no number has two meanings. Clients classify by the taxonomy string first.
"""

from collections.abc import Mapping
from typing import Final

from attrs import define, field, frozen


@frozen(kw_only=True)
class Kind:
    """One sort of refusal: a row of the table.

    `code` is the JSON-RPC error code, `taxonomy` the string that clients classify by, `status` the HTTP status of a
    single request refused so (a batch is always 200), `message` the JSON-RPC message, `recoverable` whether the same
    thing asked again may succeed, `advice` what the caller does about it.
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
TASK_FAILED: Final = Kind(
    code=-32034,
    taxonomy="asap:task/failed",
    status=200,
    message="The handler refused the message",
    recoverable=False,
    advice="read details; the agent's handler chose them",
)
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
# The reference's own number for this, which isn't a JSON-RPC application code (fault 93) but is what clients test for.
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
# A code of its own: it ends by itself, and an operator who reads "saturated" would look for load.
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
    TASK_FAILED,
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


@frozen
class Problem:
    """One thing wrong in a document: where (keys and indexes from the root) and what would have been right.

    `kind` is `missing`, `unknown_keys`, `wrong`, `ill_formed` or `too_much`. Keys in a path come from the
    protocol, never from the document, so that nothing the caller wrote comes back.
    """

    path: tuple[str | int, ...]
    expected: str
    kind: str = "wrong"

    @property
    def json_path(self) -> str:
        """The place as RFC 9535 writes it: `$.params.envelope.sender`, `$.agents[3].id`."""
        return "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path)

    def __str__(self) -> str:
        return f"{self.json_path}: expected {self.expected}"


@frozen(kw_only=True)
class Refusal:
    """A request refused: the kind, and the fields that its words are made of.

    `note` is the sentence for `data.error`; where empty the kind's message serves. `retry_after` is in seconds.
    `challenge` is the value of `WWW-Authenticate` where RFC 9110 §11.6.1 wants one.
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


class AsapError(Exception):
    """Whatever this library raises at its users; the message says what would have been right."""


@define(eq=False)
class InvalidDocument(AsapError, ValueError):
    """A document isn't what it should be; `problems` lists everything wrong with it, each with its place."""

    what: str
    problems: tuple[Problem, ...]

    def __str__(self) -> str:
        return f"not a valid {self.what}: " + "; ".join(str(problem) for problem in self.problems)


@define(eq=False)
class InvalidTransition(AsapError, ValueError):
    """A task can't move so; `allowed` are the statuses it can move to from where it is."""

    task_id: str
    from_status: str
    to_status: str
    allowed: tuple[str, ...]

    def __str__(self) -> str:
        where = " or ".join(self.allowed) or "nowhere: it is over"
        return f"a {self.from_status} task can move to {where}, not to {self.to_status}"


@define(eq=False)
class Unreachable(AsapError):
    """No answer could be had from `url` (credentials removed); `reason` says what happened, `next_try` when it pays.

    `sent` is false where the request didn't get as far as the server: nothing of it was carried out. `crowded` says
    that it waited in vain for a connection of this client's own, which says nothing of the server. `kept_age` says how
    many seconds ago the server last vouched for the document kept, which is too old to stand in.
    """

    url: str
    reason: str
    next_try: float | None = None
    sent: bool = True
    kept_age: float | None = None
    crowded: bool = False

    def __str__(self) -> str:
        return f"no answer from {self.url}: {self.reason}{_later(self.next_try, self.kept_age)}"


@define(eq=False)
class TimedOut(Unreachable):
    """`url` did not answer in time; for a message sent, it may have been carried out."""


@define(eq=False)
class BadReply(AsapError):
    """`url` answered with something that isn't what the protocol says; `reason` says what it should have been.

    `next_try` and `kept_age` are as `Unreachable`'s. `retry_after` is what the answer asked to wait, in seconds.
    """

    url: str
    reason: str
    status: int | None = None
    next_try: float | None = None
    kept_age: float | None = None
    retry_after: float | None = None

    def __str__(self) -> str:
        status = "" if self.status is None else f" (HTTP {self.status})"
        return f"unusable answer from {self.url}{status}: {self.reason}{_later(self.next_try, self.kept_age)}"


def _later(next_try: float | None, kept_age: float | None) -> str:
    wait = "" if next_try is None else f"; not asked again for {next_try:.1f} s"
    return wait if kept_age is None else f"{wait}; what is kept is {kept_age:.0f} s old, and can't stand in"


# RFC 9110 §15.6.3 to §15.6.5: what a proxy answers if it can't tell what became of a request, or had no answer.
GATEWAY: Final = frozenset({502, 503, 504})


@define(eq=False)
class WrongAgent(AsapError):
    """Somebody else answers at `url`: the manifest's id, or a reply's sender, isn't the agent that was asked for."""

    url: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.url} is {self.found}, not {self.expected}"


@define(eq=False)
class AgentChanged(WrongAgent):
    """Another agent than before answers at `url`: `expected` is who did until now. `AgentClient.forget` accepts it."""

    def __str__(self) -> str:
        return f"{self.url} is {self.found} now, and was {self.expected}; forget() it if that's meant"


@define(eq=False)
class Unsuitable(AsapError):
    """The agent at `url` isn't what was required of it: `lacks` says what."""

    url: str
    agent_id: str
    lacks: str

    def __str__(self) -> str:
        return f"{self.agent_id} at {self.url} doesn't have {self.lacks}"


@define(eq=False)
class Unverified(AsapError):
    """The manifest of `agent_id` at `url` isn't signed by a key that counts for it: `reason` says how."""

    url: str
    agent_id: str
    reason: str

    def __str__(self) -> str:
        return f"the manifest of {self.agent_id} at {self.url} isn't verified: {self.reason}"


@define(eq=False)
class NotResolved(AsapError):
    """No agent `urn` was found; `asked` says where it was looked for, and what came of each."""

    urn: str
    asked: tuple[object, ...]

    def __str__(self) -> str:
        where = "; ".join(map(str, self.asked)) or "no registry is configured, and the local network isn't asked"
        return f"{self.urn} isn't found: {where}"


@define(eq=False)
class NotAllowed(AsapError):
    """The library's outbound policy keeps this request from being made; `remedy` says what allows it."""

    url: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.url} is not asked: {self.reason}; {self.remedy}"


@define(eq=False)
class NoToken(AsapError):
    """No access token could be had from the provider at `url`, so that nothing was sent to the agent.

    `refused` says that the provider did answer, and said no; otherwise it may be better in `next_try` seconds.
    """

    url: str
    reason: str
    refused: bool = False
    next_try: float | None = None

    def __str__(self) -> str:
        return f"no access token from {self.url}: {self.reason}{_later(self.next_try, None)}"


class MdnsUnavailable(AsapError):
    """What was asked of mDNS can't be had on this machine or in this container; the message says what it needs."""


class BadState(AsapError):
    """A state file can't be used; nothing of it is. The message says what would have been right."""


class BadStore(AsapError):
    """A server can't be used for admission. The message says what would have been right."""


@define(eq=False, kw_only=True)
class RemoteError(AsapError):
    """The agent answered with an error.

    `code` is the JSON-RPC code, `taxonomy` the string to classify by (empty from a 1.1 peer that sent none), `details`
    what it said beside, `recoverable` whether asking again may help, after `retry_after` seconds if given. `own` is
    false if the answer may be that of a proxy in front of the agent. Of `details["validation_errors"]` the message has
    the first.
    """

    code: int
    message: str
    taxonomy: str = ""
    recoverable: bool = False
    retry_after: float | None = None
    details: Mapping[str, object] = field(factory=dict, repr=False)
    status: int = 200
    own: bool = True

    def __str__(self) -> str:
        label = f"{self.code} {self.taxonomy}".rstrip()
        hint = "" if self.retry_after is None else f" (retry after {self.retry_after:g} s)"
        problems = self.details.get("validation_errors")
        first = f": {remote_problem(problems[0])}" if isinstance(problems, list) and problems else ""
        return f"the agent refused: {self.message}{first} [{label}]{hint}"


# A place and a few words; the path of a deeper place is longer, and says no more.
_MAX_PROBLEM: Final = 200
_UNNAMED: Final = "a problem that it doesn't name"


def remote_problem(problem: object) -> str:
    """One entry of a peer's `validation_errors`, which may be anything: its place and what it says, on one line."""
    if not isinstance(problem, dict):
        return _UNNAMED
    place, says = problem.get("loc"), problem.get("msg")
    where = ".".join(str(step) for step in place if type(step) in (str, int)) if isinstance(place, list) else ""
    told = ": ".join(part for part in (where, says) if isinstance(part, str) and part)[:_MAX_PROBLEM]
    return "".join(char if char.isprintable() else " " for char in told) or _UNNAMED
