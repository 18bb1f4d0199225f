"""Sends envelopes and reads the replies, as programs; sends again if that's safe and may help.

Every attempt has the same envelope id and idempotency key, and its own timestamp and nonce, so that a retry isn't a
replay. If a server refuses the timestamp and states its time, that time is used for requests to this server, once.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar, assert_never

from attrs import evolve, frozen

from asap_core.client.breaker import BreakerOpen, BreakerPolicy, Breakers, RequestOutcome, request_outcome
from asap_core.client.delivery import (
    GiveUp,
    RetryAfter,
    RetryPolicy,
    ServerClocks,
    classify_failure,
    next_step,
    server_time_in,
)
from asap_core.client.programs import Program, Sleep
from asap_core.client.replies import (
    ReplyOutcome,
    SentCall,
    UnusableReply,
    is_unauthorized,
    read_batch_reply,
    read_reply,
    retry_after_of,
)
from asap_core.client.requests import Requests
from asap_core.client.runtime import Runtime
from asap_core.client.tokens import Authorizer, Destination, MessageCredentials
from asap_core.clock import WallTime
from asap_core.errors import AsapError, BadReply, NoToken, RemoteError, Unreachable
from asap_core.net.outbound import Allowed
from asap_core.net.urls import without_credentials
from asap_core.wire.codec import encode_envelope
from asap_core.wire.envelope import Envelope, utc
from asap_core.wire.json_values import JsonObject
from asap_core.wire.jsonrpc import METHOD, CallId

T = TypeVar("T")


@frozen
class _Answer:
    """The response to a POST. `retry_after` is in seconds."""

    status: int
    body: bytes
    retry_after: float | None


@frozen
class _Call(Generic[T]):
    """What a request contains, and how its response is read.

    call_id: of a single call; None for a batch.
    """

    document: object
    headers: Mapping[str, str]
    read: Callable[[_Answer], T]
    call_id: CallId | None = None
    compress: bool = True


class Sender:
    """Sends the envelopes of one client, and tracks each server's clock.

    breaker: when a host isn't asked any more; None: it's always asked.
    """

    def __init__(
        self,
        runtime: Runtime,
        requests: Requests,
        retry: RetryPolicy,
        breaker: BreakerPolicy | None,
        authorizer: Authorizer,
    ) -> None:
        self._runtime = runtime
        self._requests = requests
        self._retry = retry
        self._breakers = None if breaker is None else Breakers(breaker)
        self._authorizer = authorizer
        self._times = ServerClocks()

    def wall(self, allowed: Allowed) -> WallTime:
        """Return the timestamp for an envelope to this server."""
        return self._times.wall(allowed.origin, at=self._runtime.moment())

    # --- messages ----------------------------------------------------------------------------------------------------

    def deliver(
        self, to: Destination, envelope: Envelope, key: str, *, keyed: bool, nonce: str | None
    ) -> Program[Envelope]:
        """Send it until it's answered, within the retry policy. Raises the last attempt's exception.

        keyed: whether the caller chose the key, so that the peer honours it. Only then is the message sent again if its
            answer was lost.
        nonce: the caller's own, the same in each attempt; None for a new one each time.
        """

        def post(renewed: Sequence[Envelope]) -> Program[Envelope]:
            return self.once(to, renewed[0], key)

        return self._until_answered(to, [envelope], post, keyed=keyed, nonces=[nonce])

    def once(self, to: Destination, envelope: Envelope, key: str) -> Program[Envelope]:
        """Send it once, unchanged. Raises `RemoteError`, `Unreachable`, `TimedOut`, `BadReply`, `NoToken`."""
        sent = SentCall(f"req-{self._runtime.new_id()}", envelope)

        def read(answer: _Answer) -> Envelope:
            outcome = read_reply(sent, status=answer.status, body=answer.body, retry_after=answer.retry_after)
            return _reply_in(outcome, to.allowed, answer)

        return self._ask(to, _Call(_json_call(sent, key), {"x-idempotency-key": key}, read, sent.call_id))

    def batch(self, to: Destination, envelopes: Sequence[Envelope]) -> Program[list[Envelope | RemoteError]]:
        """Send them in one request. Returns the results in order. Raises as `once` if the request fails.

        It's sent again, as by `deliver`, if no message was carried out.
        """
        keys = [self._runtime.new_id() for _ in envelopes]

        def post(renewed: Sequence[Envelope]) -> Program[list[Envelope | RemoteError]]:
            return self._batch_once(to, renewed, keys)

        try:
            # Not `keyed`: the keys above are made here, so nobody has said that the peer honours them.
            return (yield from self._until_answered(to, envelopes, post, keyed=False, nonces=[None] * len(keys)))
        except RemoteError as refused:
            # The whole batch was refused: report it for each message.
            return [refused] * len(keys)

    def _batch_once(
        self, to: Destination, envelopes: Sequence[Envelope], keys: Sequence[str]
    ) -> Program[list[Envelope | RemoteError]]:
        sent = tuple(SentCall(f"req-{self._runtime.new_id()}", envelope) for envelope in envelopes)

        def read(answer: _Answer) -> list[Envelope | RemoteError]:
            outcomes = read_batch_reply(sent, status=answer.status, body=answer.body, retry_after=answer.retry_after)
            if isinstance(outcomes, RemoteError | UnusableReply):
                raise _failure(outcomes, to.allowed, answer)
            return [one if isinstance(one, RemoteError) else _reply_in(one, to.allowed, answer) for one in outcomes]

        # Not compressed: the reference refuses a compressed batch.
        calls = [_json_call(one, key) for one, key in zip(sent, keys, strict=True)]
        return self._ask(to, _Call(calls, {}, read, compress=False))

    # --- one attempt -------------------------------------------------------------------------------------------------

    def _ask(self, to: Destination, call: _Call[T]) -> Program[T]:
        """POST with credentials; once more with others if these are refused."""
        credentials = self._authorizer.credentials_for(to)
        while True:
            shown = yield from credentials.headers(lambda: self.wall(to.allowed))
            attempt = self._attempt(to, call, credentials, shown)
            result = yield from self._permitted(to.allowed, attempt)
            if result is not None:
                return result

    def _permitted(self, allowed: Allowed, attempt: Program[T]) -> Program[T]:
        """Make an attempt, and tell the breaker how it ended. Raises `Unreachable` if the breaker is open."""
        breakers, runtime = self._breakers, self._runtime
        if breakers is None:
            return (yield from attempt)
        permit = breakers.ask(allowed.origin, now=runtime.now())
        if isinstance(permit, BreakerOpen):
            reason = "it failed repeatedly; requests are paused"
            raise Unreachable(without_credentials(allowed.url), reason, round(permit.retry_after, 1), sent=False)

        def give_back(outcome: RequestOutcome) -> None:
            breakers.give_back(allowed.origin, permit, outcome, now=runtime.now())

        with runtime.undoing(lambda: give_back(RequestOutcome.ABANDONED)):
            try:
                result = yield from attempt
            except AsapError as error:
                give_back(request_outcome(error))
                raise
        give_back(request_outcome(None))
        return result

    def _attempt(
        self, to: Destination, call: _Call[T], credentials: MessageCredentials, shown: Mapping[str, str] | None
    ) -> Program[T | None]:
        """Return what the response means. Returns None if the call is to be sent again, with other credentials."""
        answer = yield from self._requests.post(
            to.allowed, call.document, call.headers, compress=call.compress, credential=shown
        )
        refused = is_unauthorized(answer.status, answer.body, call.call_id)
        if credentials.should_retry(answer.status, answer.headers, refused=refused):
            return None
        wait = retry_after_of(answer.headers, wall=self.wall(to.allowed))
        return call.read(_Answer(answer.status, answer.body, wait))

    # --- several attempts --------------------------------------------------------------------------------------------

    def _until_answered(
        self,
        to: Destination,
        envelopes: Sequence[Envelope],
        post: Callable[[Sequence[Envelope]], Program[T]],
        *,
        keyed: bool,
        nonces: Sequence[str | None],
    ) -> Program[T]:
        attempts, corrected = 0, False
        while True:
            attempts += 1
            try:
                return (yield from post(envelopes))
            except (RemoteError, Unreachable, NoToken, BadReply) as error:
                if not corrected and self._learns(to.allowed, error):
                    # A wrong clock isn't a failure of the server, so it doesn't count as an attempt.
                    corrected, attempts = True, attempts - 1
                else:
                    yield from self._wait_or_raise(error, attempts, keyed=keyed)
            envelopes = [
                self._renewed(to.allowed, envelope, nonce) for envelope, nonce in zip(envelopes, nonces, strict=True)
            ]

    def _learns(self, allowed: Allowed, error: RemoteError | Unreachable | NoToken | BadReply) -> bool:
        """Learn the server's time from its refusal of a timestamp, if that is credible."""
        told = server_time_in(error, allowed)
        if told is not None:
            self._times.learn(allowed.origin, told, now=self._runtime.now())
        return told is not None

    def _wait_or_raise(
        self, error: RemoteError | Unreachable | NoToken | BadReply, attempts: int, *, keyed: bool
    ) -> Program[None]:
        if isinstance(error, Unreachable) and error.next_try is not None:
            # The breaker's pause is longer than a caller should wait without a reason.
            raise error
        retry_after = error.retry_after if isinstance(error, RemoteError | BadReply) else error.next_try
        step = next_step(
            classify_failure(error),
            attempts=attempts,
            keyed=keyed,
            policy=self._retry,
            jitter=self._runtime.fraction(),
            retry_after=retry_after,
        )
        match step:
            case RetryAfter(seconds):
                yield from Sleep(seconds)
            case GiveUp():
                raise error
            case _:
                assert_never(step)

    def _renewed(self, allowed: Allowed, envelope: Envelope, nonce: str | None) -> Envelope:
        """Return the same envelope with a new timestamp, and a new nonce unless it's the caller's."""
        extensions = {**(envelope.extensions or {}), "nonce": nonce or self._runtime.new_token()}
        return evolve(envelope, timestamp=utc(self.wall(allowed)), extensions=extensions)


def _reply_in(outcome: ReplyOutcome, allowed: Allowed, answer: _Answer) -> Envelope:
    """Return the reply. Raises `RemoteError` if the agent refused, `BadReply` if it's unusable."""
    if isinstance(outcome, Envelope):
        return outcome
    raise _failure(outcome, allowed, answer)


def _failure(outcome: RemoteError | UnusableReply, allowed: Allowed, answer: _Answer) -> RemoteError | BadReply:
    if isinstance(outcome, RemoteError):
        return outcome
    shown = without_credentials(allowed.url)
    return BadReply(shown, outcome.reason, answer.status, retry_after=answer.retry_after)


def _json_call(sent: SentCall, key: str) -> JsonObject:
    """Return the JSON-RPC call that contains an envelope."""
    params = {"envelope": encode_envelope(sent.envelope), "idempotency_key": key}
    return {"jsonrpc": "2.0", "method": METHOD, "id": sent.call_id, "params": params}
