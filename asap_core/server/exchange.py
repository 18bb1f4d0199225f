"""One HTTP request from its head to its response, as linked states with only legal moves; also the table of GET routes.

    open ─▶ TakeLimit ─▶ Authenticate ─▶ ClaimProof ─▶ TakeLimit ─▶ ReadBody ─▶ TakeLimit ─▶ Fork ─▶ Respond ─▶ Done
              (peer)                                  (principal)               (a batch)    │
                 └───────────┴───────────────┴────────────┴────────────┴── refused ──────────┘

Rules of this module:

* Cheap checks and those of anonymous callers come first; nothing is spent on a stranger that a later check refuses.
* The order of the checks is the order of the functions below `open_exchange`; each ends by calling the next.
* A state offers only the moves that are legal in it. It's left by one of them, once. A second move raises
  `IllegalMove`, which is a bug of the driver.
* Every move returns the next state. Only `ReadBody.feed` may return the state itself.
* Every state but `Done` has `abandon()`, for a peer that left or a driver that stops.
* On the path of every request arguments are positional: Python 3.11 takes four times as long to call a function with
  keywords.

With limits in memory (the default) the core answers `TakeLimit` itself, with admission in memory also `ClaimProof`, and
a driver never meets them. A driver is one `match` over these states and one over a call's (`asap_core.server.call`);
both end in `assert_never`.
"""

import re
from collections.abc import Callable, Sequence
from math import ceil
from typing import Final, TypeVar, assert_never

from attrs import define, evolve, field, frozen

from asap_core.admission.admission import (
    AdmissionAnswer,
    AdmissionQuestion,
    Admitted,
    AnswerGone,
    Future,
    Mismatch,
    OutcomeUnknown,
    Running,
    Stale,
    Stored,
    StoreUnavailable,
)
from asap_core.admission.ratelimit import Left, Limited, is_address, peer_key
from asap_core.admission.replay import Floored, Replayed, Saturated
from asap_core.auth.principal import (
    Anonymous,
    Authenticated,
    BadCredential,
    Credential,
    InsufficientScope,
    NoCredential,
    Principal,
    ProofRefused,
    Proven,
    challenge,
    insufficient_scope,
    read_credential,
)
from asap_core.clock import Instant, Moment
from asap_core.errors import Problem
from asap_core.http.fields import members
from asap_core.http.head import BadHead, PlainRequest, judge
from asap_core.http.messages import (
    BadCoding,
    Body,
    BodyTooLarge,
    Headers,
    Request,
    Response,
    collect,
    header_values,
    json_response,
)
from asap_core.http.pages import PREFLIGHT, PageAllowed, PageRefused
from asap_core.http.proxies import caller_of
from asap_core.refusals import (
    AUTHENTICATION_REQUIRED,
    BATCH_SIZE,
    BUSY,
    FOREIGN_PAGE,
    HANDLER_FAILED,
    INSUFFICIENT_SCOPE,
    INVALID_CREDENTIAL,
    INVALID_REQUEST,
    MALFORMED_ENVELOPE,
    PARSE_ERROR,
    RATE_LIMITED,
    RESTARTED,
    SATURATED,
    UNAVAILABLE,
    VERSION_INCOMPATIBLE,
    Kind,
    Refusal,
)
from asap_core.server.call import (
    Answered,
    CallState,
    abandon_call,
    id_of,
    limited_call,
    open_call,
    refused_call,
)
from asap_core.server.call_context import IllegalMove
from asap_core.server.events import DECISION_OF, What
from asap_core.server.outgoing import UNCOUNTED, Outgoing
from asap_core.server.serving import Scope, Serving
from asap_core.server.wellknown import METRICS_PATH, status_response
from asap_core.wire.envelope import SUPPORTED_VERSIONS
from asap_core.wire.json import NotJson, read_json
from asap_core.wire.json_values import Json
from asap_core.wire.jsonrpc import MAX_ID, Call, RefusedCall, parse_call
from asap_core.wire.manifest import HEALTH_PATH, MANIFEST_PATH

try:
    from asap_core.wire.plain_call import read_plain_call
except ImportError:  # msgspec isn't installed

    def read_plain_call(_data: bytes, _max_depth: int, /) -> Call | None:
        """Leave every call to the long way."""
        return None


ASAP_PATH: Final = "/asap"
STREAM_PATH: Final = "/asap/stream"
DEFAULT_VERSION: Final = "2.2"
# RFC 9110 §8.6: no Content-Length with 204, and with 304 only that of the 200.
_BODILESS: Final = frozenset({204, 304})
# The first 64 KiB of each body aren't counted: most requests are smaller, and pass even if large bodies of others hold
# all of `max_bodies`. A thousand connections hold 64 MB so.
_FREE: Final = 65_536


@define(eq=False)
class _ExchangeContext:
    """What the states of one exchange share, and no other module uses.

    States hold the context, and it holds only their number: no reference cycle is left for the garbage collector.
    """

    agent: Serving
    request: Request
    now: Instant
    headers: dict[bytes, bytes]
    principal: Principal
    peer_known: bool
    streamed: bool
    version: str = DEFAULT_VERSION
    step: int = 0
    limit_key: tuple[Scope, str] | None = None
    left: tuple[Left, ...] | None = None
    nonce: str | None = None
    held: int = 0
    """Bytes of the body that count towards `Policy.max_bodies`: from their arrival until the answer is made."""
    cors: Headers = ()

    def leave(self, state: "_State") -> None:
        if state._step != self.step:  # noqa: SLF001 - one module, one machine
            raise IllegalMove(f"this {type(state).__name__} was left already; go on from the state that it returned")
        self.step += 1

    def has_room(self, size: int) -> bool:
        """Count the first `size` bytes of the body towards `Policy.max_bodies`. Returns False if they don't fit."""
        more = size - _FREE - self.held
        if not self.agent.hold_body(more):
            return False
        self.held += more
        return True

    def release_body(self) -> None:
        """Stop counting the body: it isn't needed any more."""
        self.agent.free_body(self.held)
        self.held = 0

    def respond(self, response: Response) -> "Respond":
        if self.held:
            self.release_body()
        head = self.request.method == "HEAD"
        length = () if response.status in _BODILESS else ((b"content-length", b"%d" % len(response.body)),)
        limits = self.left
        if limits is None:
            limits = () if self.limit_key is None else self.agent.left(*self.limit_key, now=self.now)
        complete = Response(
            status=response.status,
            headers=(
                *response.headers,
                *length,
                (b"asap-version", self.version.encode("ascii")),
                *_limit_headers(limits),
                *(() if self.nonce is None else ((b"dpop-nonce", self.nonce.encode("ascii")),)),
                *self.cors,
            ),
            body=b"" if head else response.body,
            close=response.close,
        )
        return Respond(complete, self, self.step)

    def tell(self, what: What, kind: Kind | None = None) -> None:
        """Tell the observers about the request as a whole."""
        self.agent.tell(what, peer=self.request.peer, principal=self.principal, kind=kind)

    def refuse(self, refusal: Refusal, *, close: bool = False) -> "Respond":
        """Answer the whole request with one JSON-RPC error, id null."""
        self.tell(DECISION_OF[refusal.kind.taxonomy], refusal.kind)
        return self.respond(_rpc_response(self.agent, refused_call(None, refusal), close=close))

    def refuse_plainly(self, status: int, detail: str, *headers: tuple[bytes, bytes], close: bool) -> "Respond":
        """Answer below JSON-RPC, with the same body as the reference implementation: `{"detail": …}`."""
        return self.respond(json_response(status, {"detail": detail}, headers, close=close))


class _State:
    """What all states but `Done` have."""

    _context: _ExchangeContext
    _step: int

    def abandon(self) -> "Done":
        """End the exchange because the peer left or the driver stops, and give back what is reserved."""
        self._context.release_body()  # first: a move that raised halfway has left this state, and still holds the body
        self._context.leave(self)
        return Done()


@define(eq=False)
class TakeLimit(_State):
    """Ask the limiter that the agent shares with other processes.

    Leads to Authenticate (the peer's limit), ReadBody (the principal's), Fork (the rest of a batch), or to the next
    TakeLimit; to Respond (429 or 503) if the limit is used up or the limiter is unavailable.

    scope: "peer" or "principal".
    key: whose limit it is.
    cost: how much to take.
    partial: take as much as there is, up to `cost`, instead of all or nothing.
    """

    scope: Scope
    key: str
    cost: int
    partial: bool
    _proceed: Callable[[int], "_AfterLimit"] = field(repr=False)
    _context: _ExchangeContext = field(repr=False)
    _step: int = field(repr=False)

    def taken(self, granted: int | None = None, left: tuple[Left, ...] | None = None) -> "_AfterLimit":
        """The limit allows it.

        granted: how much was taken if `partial`; by default all of `cost`.
        left: what is left of the limit; the response tells it to the caller.
        """
        self._context.leave(self)
        self._context.left = left
        return self._proceed(self.cost if granted is None else granted)

    def limited(self, retry_after: float, limit: str) -> "Respond":
        """The limit is used up for another `retry_after` seconds; `limit` names the rule, such as "10 per 1 second"."""
        self._context.leave(self)
        return _refuse_limited(self._context, retry_after, limit, close=self._unread)

    def unavailable(self) -> "Respond":
        """The limiter can't be asked: fail closed."""
        self._context.leave(self)
        return self._context.refuse(_unavailable(self._context), close=self._unread)

    @property
    def _unread(self) -> bool:
        # A partial limit is for the rest of a batch, whose body has been read. All others are taken before the body.
        return not self.partial


@define(eq=False)
class Authenticate(_State):
    """Verify a credential.

    Leads to ClaimProof (a token with a proof), TakeLimit (the principal's limit) or ReadBody; to Respond (401, 403 or
    503) if it's refused.
    """

    credential: Credential
    _context: _ExchangeContext = field(repr=False)
    _step: int = field(repr=False)

    def verified(self, principal: Authenticated | Proven) -> "ClaimProof | TakeLimit | ReadBody | Respond":
        """It's valid, and stands for this agent."""
        self._context.leave(self)
        if isinstance(principal, Proven):
            return _claim_proof(self._context, principal)
        return _take_principal_limit(self._context, principal)

    def refused(self, proof: ProofRefused | None = None) -> "Respond":
        """It isn't valid or, if `proof` is given, the proof that came with it isn't."""
        self._context.leave(self)
        if proof is not None:
            return _refuse_proof(self._context, proof)
        proves, note = self.credential.proof is not None, "Invalid authentication token"
        return _challenge(self._context, INVALID_CREDENTIAL, note, error="invalid_token", proves=proves)

    def insufficient(self, missing: InsufficientScope) -> "Respond":
        """It's valid, and lacks these scopes."""
        self._context.leave(self)
        challenged = insufficient_scope(missing.scopes, proves=self.credential.proof is not None)
        return self._context.refuse(Refusal(kind=INSUFFICIENT_SCOPE, challenge=challenged), close=True)

    def unavailable(self) -> "Respond":
        """It can't be verified now: fail closed."""
        self._context.leave(self)
        return self._context.refuse(_unavailable(self._context), close=True)


@define(eq=False)
class ClaimProof(_State):
    """Ask the store that remembers nonces whether this proof of possession (RFC 9449) is new.

    Leads to TakeLimit (the principal's limit) or ReadBody, with the principal in `proven`; to Respond (401 or 503) if
    the proof was used before or the store is unavailable.
    """

    question: AdmissionQuestion
    proven: Proven = field(repr=False)
    _context: _ExchangeContext = field(repr=False)
    _step: int = field(repr=False)

    def answered(self, answer: AdmissionAnswer) -> "TakeLimit | ReadBody | Respond":
        """Go on with the store's answer."""
        self._context.leave(self)
        return _after_claim(self._context, self.proven, answer)

    def unavailable(self) -> "Respond":
        """The store can't be asked: fail closed."""
        self._context.leave(self)
        return self._context.refuse(_unavailable(self._context), close=True)


@define(eq=False)
class ReadBody(_State):
    """Read the body, and feed it as it arrives.

    Leads to Fork, or to TakeLimit for the rest of a batch; to Respond if the body is refused.

    limit: how many bytes are worth reading, before and after decoding.
    expect_continue: send 100 Continue before reading (RFC 9110 §10.1.1).
    """

    limit: int
    expect_continue: bool
    _body: Body = field(repr=False)
    _context: _ExchangeContext = field(repr=False)
    _step: int = field(repr=False)

    def feed(self, chunk: bytes) -> "ReadBody | Respond":
        """Take the next bytes, however many. Returns this state, or the refusal: too large, unreadable or no room."""
        if self._step != self._context.step:
            self._context.leave(self)
        if type(chunk) is not bytes:
            chunk = _copied(chunk)
        try:
            self._body.feed(chunk)
        except (BodyTooLarge, BadCoding) as error:
            self._context.leave(self)
            return _refuse_body(self._context, error, close=True)
        if self._body.held > _FREE and not self._context.has_room(self._body.held):
            self._context.leave(self)
            return _no_room(self._context)
        return self

    def end(self) -> "TakeLimit | Fork | Respond":
        """The body is complete."""
        self._context.leave(self)
        try:
            data = self._body.end()
        except BadCoding as error:
            return _refuse_body(self._context, error, close=False)
        return _parse(self._context, data)


def _copied(chunk: object) -> bytes:
    # A bytearray may be changed later by its owner. The check comes first because bytes(5) would be five zeros.
    if isinstance(chunk, bytes | bytearray | memoryview):
        return bytes(chunk)
    raise ValueError("feed: expected bytes, such as text.encode()")


@define(eq=False)
class Fork(_State):
    """Drive each of the calls in the request to its `Answered`, the items of a batch concurrently.

    Leads to Respond.

    calls: the first state of each call.
    batch: whether the request is a JSON-RPC batch; then `calls` are its items, in order.
    """

    calls: tuple[CallState, ...]
    batch: bool
    _context: _ExchangeContext = field(repr=False)
    _step: int = field(repr=False)

    def abandon(self) -> "Done":
        """End the exchange: every call that isn't answered is abandoned in its present state."""
        for call in self.calls:
            abandon_call(call)
        return super().abandon()

    def answered(self, answers: Sequence[Answered]) -> "Respond":
        """Go on with the answers of all calls, in the order of `calls`."""
        try:
            sizes = [len(answer.body) for answer in answers]
        except (AttributeError, TypeError):
            sizes = []
        if len(sizes) != len(self.calls):
            raise ValueError("answered: expected one Answered for each call, in their order")
        self._context.leave(self)
        if self._context.limit_key is not None:  # what's left of it is told as of now
            self._context.now = self._context.agent.now()
        size = sum(sizes)
        if size <= UNCOUNTED:
            return self._context.respond(self._response(answers))
        return self._large(answers, size)

    def _response(self, answers: Sequence[Answered]) -> Response:
        if not self.batch:
            return _rpc_response(self._context.agent, answers[0])
        body = b"[" + b",".join(answer.body for answer in answers) + b"]"
        return Response(status=200, headers=((b"content-type", b"application/json"),), body=body)

    def _large(self, answers: Sequence[Answered], size: int) -> "Respond":
        outgoing = self._context.agent.outgoing
        if not outgoing.fits(size):
            number = None if self.batch else id_of(self.calls[0])
            refused = refused_call(number, Refusal(kind=HANDLER_FAILED, note="Internal server error"))
            respond = self._context.respond(_rpc_response(self._context.agent, refused))
            respond.fault = f"expected at most {outgoing.most} bytes in one answer (max_answers), not {size}"
            return respond
        respond = self._context.respond(self._response(answers))
        respond.outgoing, respond.ends = outgoing.begin(size)
        return respond


@define(eq=False)
class Respond(_State):
    """Send the response.

    Leads to Done.

    response: if its `close` is true, end the connection after it.
    outgoing: set for a large response: send it in pieces, and call `progressed` after each that the peer took.
    ends: other large responses that must end now to make room for this one: reset their connections.
    fault: if set, why an answer couldn't be sent, for the operator's log.
    """

    response: Response
    _context: _ExchangeContext = field(repr=False)
    _step: int = field(repr=False)
    outgoing: Outgoing | None = None
    ends: tuple[Outgoing, ...] = ()
    fault: str | None = None

    def progressed(self) -> None:
        """The peer has taken another piece of a large response."""
        if self.outgoing is not None:
            self._context.agent.outgoing.progressed(self.outgoing)

    def sent(self) -> "Done":
        """The response has been sent."""
        self._context.leave(self)
        self._end()
        return Done()

    def abandon(self) -> "Done":
        """End the exchange: the peer left or was too slow, or the driver stops."""
        self._end()
        return super().abandon()

    def _end(self) -> None:
        if self.outgoing is not None:
            self._context.agent.outgoing.end(self.outgoing)
            # The body no longer counts, so nothing may hold it; and a traceback may still hold this state.
            self.response = evolve(self.response, body=b"")


@frozen
class Done:
    """The exchange is over."""


Exchange = TakeLimit | Authenticate | ClaimProof | ReadBody | Fork | Respond | Done
# The peer's limit is taken before authentication, the principal's after it, and both for the rest of a batch.
_AfterLimit = Authenticate | TakeLimit | ReadBody | Fork | Respond
_Next = TypeVar("_Next", bound=_AfterLimit)


# --- the order of the checks -----------------------------------------------------------------------------------------


_DOCUMENTS: Final[dict[str, Callable[[_ExchangeContext], Response]]] = {
    MANIFEST_PATH: lambda context: context.agent.document.response(context.request),
    HEALTH_PATH: lambda context: context.agent.health(),
    "/health": lambda _context: status_response(ok=True),
    "/ready": lambda context: status_response(ok=not context.agent.draining),
    METRICS_PATH: lambda context: context.agent.metrics(),
}


def open_exchange(agent: Serving, request: Request, now: Instant) -> TakeLimit | Authenticate | ReadBody | Respond:
    """Check target, method and framing. A request for a document is answered at once."""
    path: str | BadHead
    if isinstance(request, PlainRequest):
        headers, path = request.fields, request.path
    else:
        headers = collect(request.headers)
        path = judge(request.method, request.target, headers)
    policy, peer_known = agent.policy, True
    if policy.trusted_proxies:
        header = policy.forwarded_header
        peer, peer_known = caller_of(request.peer, request.headers, trusted=policy.trusted_proxies, header=header)
        request = evolve(request, peer=peer)
    peer_known = peer_known and is_address(request.peer)
    principal, streamed = Anonymous(request.peer), path == STREAM_PATH
    context = _ExchangeContext(agent, request, now, headers, principal, peer_known, streamed)
    if isinstance(path, BadHead):
        return context.refuse_plainly(path.status, f"Expected {path.expected}", close=True)
    if path in (ASAP_PATH, STREAM_PATH):
        return (
            _take_peer_limit(context) if request.method == "POST" and b"origin" not in headers else _judge_page(context)
        )
    if path not in _DOCUMENTS or (path == METRICS_PATH and agent.counters is None):
        return context.refuse_plainly(404, "Not Found", close=_has_body(headers))
    if request.method not in ("GET", "HEAD"):
        return context.refuse_plainly(405, "Method Not Allowed", (b"allow", b"GET, HEAD"), close=_has_body(headers))
    context.cors = agent.pages.readers(header_values(request.headers, b"origin"))
    return context.respond(_DOCUMENTS[path](context))


def _has_body(headers: dict[bytes, bytes]) -> bool:
    # RFC 9112 §6.3. A body that isn't wanted isn't read; without one the next request may follow.
    return b"transfer-encoding" in headers or bool(headers.get(b"content-length", b"").strip(b"0"))


def _judge_page(context: _ExchangeContext) -> TakeLimit | Authenticate | ReadBody | Respond:
    """Refuse a web page that may not call, before anything is spent, and answer its browser's preflight (OPTIONS)."""
    request = context.request
    page: PageAllowed | PageRefused = PageAllowed()
    if b"origin" in context.headers:
        page = context.agent.pages.judge(
            header_values(request.headers, b"origin"), _hosts(request), local=request.local
        )
    context.cors = page.headers if isinstance(page, PageAllowed) else ()
    if request.method == "OPTIONS" and context.cors:
        return context.respond(Response(status=204, headers=PREFLIGHT))
    if request.method != "POST":
        return context.refuse_plainly(405, "Method Not Allowed", (b"allow", b"POST"), close=_has_body(context.headers))
    if isinstance(page, PageRefused):
        return context.refuse(Refusal(kind=FOREIGN_PAGE, note=page.note), close=True)
    return _take_peer_limit(context)


def _hosts(request: Request) -> list[str]:
    """The hosts that a request names: `Host`, and an absolute target's, which comes first (RFC 9112 §3.2.2)."""
    hosts = [value.decode("latin-1") for value in header_values(request.headers, b"host")]
    if not request.target.startswith("/"):
        rest = request.target.partition("://")[2]
        hosts.append(rest.partition("/")[0].partition("?")[0])
    return hosts


def _take_peer_limit(context: _ExchangeContext) -> TakeLimit | Authenticate | ReadBody | Respond:
    if not context.agent.policy.peer_limits:
        return _read_credential(context)
    return _take(context, "peer", peer_key(context.request.peer), 1, lambda _granted: _read_credential(context))


def _take(
    context: _ExchangeContext,
    scope: Scope,
    key: str,
    cost: int,
    proceed: Callable[[int], _Next],
    *,
    partial: bool = False,
) -> TakeLimit | Respond | _Next:
    context.limit_key, context.left = (scope, key), None
    taken = context.agent.take(scope, key, cost, partial=partial, now=context.now)
    if taken is None:
        return TakeLimit(scope, key, cost, partial, proceed, context, context.step)
    if isinstance(taken, Limited):
        return _refuse_limited(context, taken.retry_after, taken.limit, close=not partial)
    return proceed(taken)


def _refuse_limited(context: _ExchangeContext, retry_after: float, limit: str, *, close: bool) -> Respond:
    context.tell(What.LIMITED, RATE_LIMITED)
    return context.respond(_rpc_response(context.agent, limited_call(None, retry_after, limit), close=close))


def _read_credential(context: _ExchangeContext) -> Authenticate | ReadBody | Respond:
    if not context.agent.authenticates:
        return _negotiate_version(context)
    # The published URL, not that of the request: a proxy in front may use another name and path.
    url = None if context.agent.proofs is None else context.agent.url + ("/stream" if context.streamed else "")
    match read_credential(context.request.headers, method=context.request.method, url=url):
        case NoCredential():
            return _challenge(context, AUTHENTICATION_REQUIRED, "Authentication required")
        case BadCredential(expected, proves):
            note = f"Invalid authentication token: expected {expected}"
            error = "invalid_dpop_proof" if proves else "invalid_request"
            return _challenge(context, INVALID_CREDENTIAL, note, error=error, proves=proves)
        case credential:
            return Authenticate(credential, context, context.step)


def _challenge(
    context: _ExchangeContext, kind: Kind, note: str, *, error: str | None = None, proves: bool = False
) -> Respond:
    # RFC 6750 §3: without credentials no error code; with bad ones the code.
    challenged = challenge(context.agent.proofs, error=error, proves=proves)
    return context.refuse(Refusal(kind=kind, note=note, challenge=challenged), close=True)


def _refuse_proof(context: _ExchangeContext, proof: ProofRefused) -> Respond:
    context.nonce = proof.nonce or context.nonce
    note = "Invalid proof of possession" if proof.nonce is None else "A proof of possession with the nonce is required"
    return _challenge(context, INVALID_CREDENTIAL, note, error=proof.error, proves=True)


def _claim_proof(context: _ExchangeContext, proven: Proven) -> ClaimProof | TakeLimit | ReadBody | Respond:
    # Proofs are remembered where the nonces of envelopes are: so they're shared and survive restarts as those do.
    agent, holder = context.agent, proven.holder
    admission = agent.admission
    context.nonce = proven.nonce
    if admission is None:
        question = AdmissionQuestion(
            sender=holder,
            authenticated=True,
            peer="",
            nonce=proven.proof_id,
            issued=proven.issued,
            idempotency_key=None,
            digest=b"",
            deadline=0.0,
        )
        return ClaimProof(question, proven, context, context.step)
    claimed = admission.claim(holder, True, proven.proof_id, proven.issued, agent.moment())  # noqa: FBT003 - as it stands
    return _after_claim(context, proven, claimed)


_PROOF_REFUSALS: Final[dict[type, tuple[Kind, str]]] = {
    Saturated: (SATURATED, "There is no room to remember this proof"),
    Floored: (RESTARTED, "The proof is dated before this agent's last start, and may have been accepted before it"),
    StoreUnavailable: (UNAVAILABLE, ""),
}


def _after_claim(context: _ExchangeContext, proven: Proven, answer: AdmissionAnswer) -> TakeLimit | ReadBody | Respond:
    match answer:
        case Admitted():
            return _take_principal_limit(context, proven.principal)
        case Replayed():
            return _refuse_proof(context, ProofRefused("a proof that's new"))
        case Stale() | Future():
            return _refuse_proof(context, ProofRefused("iat of now"))
        case Saturated() | Floored() | StoreUnavailable():
            kind, note = _PROOF_REFUSALS[type(answer)]
            return context.refuse(Refusal(kind=kind, note=note, retry_after=answer.retry_after), close=True)
        case Stored() | Running() | Mismatch() | OutcomeUnknown() | AnswerGone():
            # These answers are about idempotency keys, and the question had none: the store is broken.
            return context.refuse(_unavailable(context), close=True)
        case _:
            assert_never(answer)


def _take_principal_limit(context: _ExchangeContext, principal: Authenticated) -> TakeLimit | ReadBody | Respond:
    context.principal = principal
    if not context.agent.policy.principal_limits:
        return _negotiate_version(context)
    return _take(context, "principal", principal.urn, 1, lambda _granted: _negotiate_version(context))


_VERSIONS: Final = re.compile(rb"[0-9., ]{1,64}")


def _negotiate_version(context: _ExchangeContext) -> ReadBody | Respond:
    offered = context.headers.get(b"asap-version")
    if offered is not None and offered.strip():
        versions = members(offered.decode("latin-1"))
        known = [version for version in SUPPORTED_VERSIONS if version in versions]
        if not known:
            # As the reference does. Nothing else that a caller sent is repeated.
            requested = offered.decode("ascii") if _VERSIONS.fullmatch(offered) else None
            details = {"requested": requested, "supported": sorted(SUPPORTED_VERSIONS)}
            return context.refuse(Refusal(kind=VERSION_INCOMPATIBLE, details=details), close=True)
        # The caller's order is its preference.
        context.version = min(known, key=versions.index)
    return _open_body(context)


# A longer number is above any limit, and int() of a megabyte of digits takes long.
_LENGTH_DIGITS: Final = 18


def _open_body(context: _ExchangeContext) -> ReadBody | Respond:
    limit = context.agent.policy.max_body
    length = context.headers.get(b"content-length")
    if length is not None and (len(length) > _LENGTH_DIGITS or int(length) > limit):
        return _refuse_body(context, BodyTooLarge(limit), close=True)
    coding = context.headers.get(b"content-encoding", b"").strip().lower()
    make = context.agent.codings.get(coding)
    if make is None and coding not in (b"", b"identity"):
        supported = b", ".join(sorted(context.agent.codings))
        detail = f"Unsupported Content-Encoding. Supported: {supported.decode('ascii')}"
        context.tell(What.UNREADABLE)
        # RFC 9110 §12.5.3: a 415 because of the coding lists the supported ones.
        return context.refuse_plainly(415, detail, (b"accept-encoding", supported), close=True)
    body = Body(limit, None if make is None else make())
    expect = context.headers.get(b"expect")
    expects = expect is not None and "100-continue" in members(expect.decode("latin-1").lower())
    return ReadBody(limit, expects, body, context, context.step)


def _refuse_body(context: _ExchangeContext, error: BodyTooLarge | BadCoding, *, close: bool) -> Respond:
    context.tell(What.UNREADABLE)
    if isinstance(error, BodyTooLarge):
        return context.refuse_plainly(413, f"Request body exceeds the maximum of {error.limit} bytes", close=close)
    return context.refuse_plainly(400, f"Invalid compressed data: {error}", close=close)


def _no_room(context: _ExchangeContext) -> Respond:
    note = "Too much is being sent to this agent at once"
    retry_after = context.agent.policy.retry_after_unavailable
    return context.refuse(Refusal(kind=BUSY, note=note, retry_after=retry_after), close=True)


def _parse(context: _ExchangeContext, data: bytes) -> TakeLimit | Fork | Respond:
    # The body may have taken a while: the decision is made at the instant of its last byte.
    context.now = context.agent.now()
    max_depth = context.agent.policy.max_depth
    call: Call | RefusedCall | None = read_plain_call(data, max_depth)
    if call is None:
        try:
            value = read_json(data, max_depth=max_depth)
        except NotJson as error:
            problem = Problem((), error.expected, "ill_formed")
            return context.refuse(
                Refusal(kind=PARSE_ERROR, note=f"Invalid JSON: expected {error.expected}", problems=(problem,))
            )
        if type(value) is list:
            return _open_batch(context, value)
        call = parse_call(value)
    key = _header_key(context)
    if key is not None and isinstance(call, Call):
        call = _with_key(call, key)
    at = Moment(context.now, context.agent.wall())
    return Fork((_begin(context, call, at),), False, context, context.step)  # noqa: FBT003 - as its fields stand


def _header_key(context: _ExchangeContext) -> str | None:
    """Return the idempotency key in the header: None if there is none, empty if it's invalid."""
    if b"x-idempotency-key" not in context.headers:
        return None
    values = header_values(context.request.headers, b"x-idempotency-key")
    key = values[0].strip(b" \t").decode("latin-1")
    # ASCII only: other characters have no single encoding in a header, and the key may be in the body as well.
    return key if len(values) == 1 and len(key) <= MAX_ID and key.isascii() and key.isprintable() else ""


def _with_key(call: Call, key: str) -> Call | RefusedCall:
    if not key:
        return _refuse_key(call, f"one X-Idempotency-Key of 1 to {MAX_ID} printable ASCII characters")
    if call.idempotency_key not in (None, key):
        return _refuse_key(call, "the same key as in the header X-Idempotency-Key")
    return Call(call.id, call.envelope, key)


def _refuse_key(call: Call, expected: str) -> RefusedCall:
    problem = Problem(("params", "idempotency_key"), expected)
    return RefusedCall(call.id, Refusal(kind=MALFORMED_ENVELOPE, note="Invalid idempotency key", problems=(problem,)))


def _open_batch(context: _ExchangeContext, items: list[Json]) -> TakeLimit | Fork | Respond:
    most = context.agent.policy.max_batch
    if not items:
        return context.refuse(Refusal(kind=INVALID_REQUEST, note="empty batch", details={"reason": "empty batch"}))
    if len(items) > most:
        reason = f"batch size exceeds max {most}"
        return context.refuse(Refusal(kind=BATCH_SIZE, note=reason, details={"reason": reason, "max": most}))
    calls: list[Call | RefusedCall] = [parse_call(item) for item in items]
    key = _header_key(context)
    for place, call in enumerate(calls):
        if key is not None and isinstance(call, Call):
            # An item gets the batch's key with its index, unless it has the same key of its own.
            by_place = f"{key}#{place}" if key and call.idempotency_key is None else key
            calls[place] = _with_key(call, by_place)
    return _take_batch_limits(context, tuple(calls))


def _take_batch_limits(context: _ExchangeContext, calls: tuple[Call | RefusedCall, ...]) -> TakeLimit | Fork | Respond:
    """Take one from both limits for each item but the first, which was paid for before authentication."""
    policy, rest = context.agent.policy, len(calls) - 1

    def from_principal(granted: int) -> TakeLimit | Fork | Respond:
        match context.principal:
            case Authenticated(urn) if policy.principal_limits and granted:
                proceed = lambda last: _fork(context, calls, granted=last + 1)  # noqa: E731
                return _take(context, "principal", urn, granted, proceed, partial=True)
            case _:
                return _fork(context, calls, granted=granted + 1)

    if not policy.peer_limits or not rest:
        return from_principal(rest)
    return _take(context, "peer", peer_key(context.request.peer), rest, from_principal, partial=True)


# Seconds: what a limit per second needs to refill.
_AFTER_BATCH: Final = 1.0


def _fork(context: _ExchangeContext, calls: tuple[Call | RefusedCall, ...], *, granted: int) -> Fork:
    at = Moment(context.now, context.agent.wall())
    states = tuple(
        _begin(context, call, at) if index < granted else _over_the_limit(context, call)
        for index, call in enumerate(calls)
    )
    return Fork(states, True, context, context.step)  # noqa: FBT003 - as its fields stand


def _begin(context: _ExchangeContext, call: Call | RefusedCall, at: Moment) -> CallState:
    if isinstance(call, RefusedCall):
        context.tell(DECISION_OF[call.refusal.kind.taxonomy], call.refusal.kind)
        return refused_call(call.id, call.refusal)
    peer, peer_known = context.request.peer, context.peer_known
    return open_call(context.agent, call, context.principal, peer, peer_known, context.streamed, at)


def _over_the_limit(context: _ExchangeContext, call: Call | RefusedCall) -> Answered:
    context.tell(What.LIMITED, RATE_LIMITED)
    limits = context.agent.policy.peer_limits or context.agent.policy.principal_limits
    return limited_call(call.id, _AFTER_BATCH, str(limits[0]))


def _limit_headers(limits: Sequence[Left]) -> Headers:
    """Headers that tell a caller its limits and what is left (draft-ietf-httpapi-ratelimit-headers)."""
    if not limits:
        return ()
    named = {f"{left.limit.amount}-per-{left.limit.per:g}s": left for left in limits}
    policies = ", ".join(f'"{name}";q={left.limit.amount};w={ceil(left.limit.per)}' for name, left in named.items())
    name, least = min(named.items(), key=lambda item: item[1].amount)
    state = f'"{name}";r={least.amount};t={ceil(least.seconds)}'
    return ((b"ratelimit-policy", policies.encode("ascii")), (b"ratelimit", state.encode("ascii")))


# --- responses -------------------------------------------------------------------------------------------------------


def _unavailable(context: _ExchangeContext) -> Refusal:
    return Refusal(kind=UNAVAILABLE, retry_after=context.agent.policy.retry_after_unavailable)


# RFC 9110 §10.2.3 and RFC 6585 §4.
_WITH_RETRY_AFTER: Final = frozenset({RATE_LIMITED.status, UNAVAILABLE.status})


def _rpc_response(agent: Serving, answered: Answered, *, close: bool = False) -> Response:
    refusal = answered.refusal
    status, headers = 200, [(b"content-type", b"application/json")]
    if refusal is not None:
        status = refusal.kind.status
        if refusal.challenge is not None:
            headers.append((b"www-authenticate", refusal.challenge.encode("ascii")))
        if refusal.retry_after is not None and status in _WITH_RETRY_AFTER:
            headers.append((b"retry-after", b"%d" % max(1, ceil(refusal.retry_after))))
        if agent.policy.plain_refusals and status in (401, 403) and refusal.kind is not FOREIGN_PAGE:
            status = 200
    return Response(status=status, headers=tuple(headers), body=answered.body, close=close)


def refuse_head(status: int, detail: str) -> Response:
    """Return the response to an unreadable request, for drivers that parse HTTP: 400, 408, 413, 431 or 505."""
    response = json_response(status, {"detail": detail}, close=True)
    extra = ((b"content-length", b"%d" % len(response.body)), (b"asap-version", DEFAULT_VERSION.encode("ascii")))
    return evolve(response, headers=(*response.headers, *extra))
