"""Sends envelopes and reads the replies; retries if that's safe and may help.

Every attempt has the same envelope id and idempotency key, and its own timestamp and nonce, so that a retry isn't a
replay. If a server refuses the timestamp and states its time, that time is used for requests to this server, once.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, assert_never

import anyio
from attrs import evolve, frozen

from asap_adapters.auth.authorizer import Authorizer, Destination
from asap_adapters.net.transport import HttpTransport
from asap_adapters.system import LoopClock, new_id, new_token, random_fraction
from asap_core.client.breaker import BreakerOpen, BreakerPolicy, Breakers, Permit, RequestOutcome, request_outcome
from asap_core.client.delivery import GiveUp, RetryAfter, RetryPolicy, classify_failure, next_step
from asap_core.client.replies import (
    ReplyOutcome as Answered,
    SentCall,
    UnusableReply,
    is_unauthorized,
    read_batch_reply,
    read_reply,
    retry_after_of,
)
from asap_core.client.server_clock import ServerClocks, server_time_in
from asap_core.clock import Moment, WallTime
from asap_core.errors import BadReply, NoToken, RemoteError, Unreachable
from asap_core.net.outbound import Allowed
from asap_core.net.urls import without_credentials
from asap_core.wire.codec import encode_envelope
from asap_core.wire.envelope import Envelope, utc
from asap_core.wire.jsonrpc import METHOD, CallId

T = TypeVar("T")


@frozen
class _Answer:
    """The response to a POST. `retry_after` is in seconds."""

    status: int
    body: bytes
    retry_after: float | None


class Sender:
    """Sends envelopes for one client, and tracks each server's clock."""

    def __init__(
        self,
        http: HttpTransport,
        clock: LoopClock,
        retry: RetryPolicy,
        breaker: BreakerPolicy | None,
        authorizer: Authorizer,
    ) -> None:
        self._http = http
        self._clock = clock
        self._retry = retry
        self._breakers = None if breaker is None else Breakers(breaker)
        self._authorizer = authorizer
        self._times = ServerClocks()

    def wall(self, allowed: Allowed) -> WallTime:
        """Return the timestamp for an envelope to this server."""
        return self._times.wall(allowed.origin, at=Moment.read(self._clock))

    async def once(self, to: Destination, envelope: Envelope, key: str) -> Envelope:
        """Send it once, unchanged. Raises `RemoteError`, `Unreachable`, `TimedOut`, `BadReply`, `NoToken`."""
        sent = SentCall(f"req-{new_id()}", envelope)

        def read(answer: _Answer) -> Envelope:
            outcome = read_reply(sent, status=answer.status, body=answer.body, retry_after=answer.retry_after)
            return _taken(outcome, to.allowed, answer)

        return await self._ask(to, _call_of(sent, key), {"x-idempotency-key": key}, read, call_id=sent.call_id)

    async def batch(self, to: Destination, envelopes: Sequence[Envelope]) -> list[Envelope | RemoteError]:
        """Send them in one request. Returns the results in order. Raises as `once` if the request fails.

        It's sent again, as by `deliver`, if no message was carried out.
        """
        keys = [new_id() for _ in envelopes]

        async def post(renewed: Sequence[Envelope]) -> list[Envelope | RemoteError]:
            return await self._batch_once(to, renewed, keys)

        try:
            # Not `keyed`: the keys above are made here, so nobody has said that the peer honours them.
            return await self._until_answered(to, envelopes, post, keyed=False, nonces=[None] * len(keys))
        except RemoteError as refused:
            # The whole batch was refused: report it for each message.
            return [refused] * len(keys)

    async def _batch_once(
        self, to: Destination, envelopes: Sequence[Envelope], keys: Sequence[str]
    ) -> list[Envelope | RemoteError]:
        sent = tuple(SentCall(f"req-{new_id()}", envelope) for envelope in envelopes)

        def read(answer: _Answer) -> list[Envelope | RemoteError]:
            outcomes = read_batch_reply(sent, status=answer.status, body=answer.body, retry_after=answer.retry_after)
            if isinstance(outcomes, RemoteError | UnusableReply):
                raise _failure(outcomes, to.allowed, answer)
            return [one if isinstance(one, RemoteError) else _taken(one, to.allowed, answer) for one in outcomes]

        # Not compressed: the reference refuses a compressed batch.
        calls = [_call_of(one, key) for one, key in zip(sent, keys, strict=True)]
        return await self._ask(to, calls, {}, read, compress=False)

    async def _ask(
        self,
        to: Destination,
        document: object,
        headers: Mapping[str, str],
        read: Callable[[_Answer], T],
        *,
        call_id: CallId | None = None,
        compress: bool = True,
    ) -> T:
        """POST with credentials; retry once with new ones if refused."""
        credentials = self._authorizer.credentials_for(to)
        while True:
            credential = await credentials.headers(wall=self.wall(to.allowed))
            with self._permitted(to.allowed):
                status, answered, body = await self._http.post(
                    to.allowed, document, headers, compress=compress, credential=credential
                )
                refused = is_unauthorized(status, body, call_id)
                if not credentials.should_retry(status, answered, refused=refused):
                    return read(_Answer(status, body, retry_after_of(answered, wall=self.wall(to.allowed))))

    @contextmanager
    def _permitted(self, allowed: Allowed) -> Iterator[None]:
        """Raise `Unreachable` if the breaker is open; record the outcome."""
        if self._breakers is None:
            yield
            return
        permit = self._breakers.ask(allowed.origin, now=self._clock.monotonic())
        match permit:
            case BreakerOpen(retry_after):
                reason = "it failed repeatedly; requests are paused"
                raise Unreachable(without_credentials(allowed.url), reason, round(retry_after, 1), sent=False)
            case Permit():
                pass
            case _:
                assert_never(permit)
        outcome = RequestOutcome.ABANDONED
        try:
            yield
            outcome = request_outcome(None)
        except BaseException as error:
            outcome = request_outcome(error)
            raise
        finally:
            self._breakers.give_back(allowed.origin, permit, outcome, now=self._clock.monotonic())

    async def deliver(
        self, to: Destination, envelope: Envelope, key: str, *, keyed: bool, nonce: str | None
    ) -> Envelope:
        """Send it until it's answered, within the retry policy. Raises the last attempt's exception.

        keyed: whether the caller chose the key, so that the peer honours it. Only then is the message sent again if its
        answer was lost.
        nonce: the caller's own, the same in each attempt; None for a new one each time.
        """

        async def post(renewed: Sequence[Envelope]) -> Envelope:
            return await self.once(to, renewed[0], key)

        return await self._until_answered(to, [envelope], post, keyed=keyed, nonces=[nonce])

    async def _until_answered(
        self,
        to: Destination,
        envelopes: Sequence[Envelope],
        post: Callable[[Sequence[Envelope]], Awaitable[T]],
        *,
        keyed: bool,
        nonces: Sequence[str | None],
    ) -> T:
        attempts, corrected = 0, False
        while True:
            attempts += 1
            try:
                return await post(envelopes)
            except (RemoteError, Unreachable, NoToken, BadReply) as error:
                if not corrected and self._learns(to.allowed, error):
                    # A wrong clock isn't a failure of the server, so it doesn't count as an attempt.
                    corrected, attempts = True, attempts - 1
                else:
                    await self._wait_or_raise(error, attempts, keyed=keyed)
            envelopes = [
                self._renewed(to.allowed, envelope, nonce) for envelope, nonce in zip(envelopes, nonces, strict=True)
            ]

    def _learns(self, allowed: Allowed, error: RemoteError | Unreachable | NoToken | BadReply) -> bool:
        """Learn the server's time from its refusal of a timestamp, if that is credible."""
        told = server_time_in(error, allowed)
        if told is not None:
            self._times.learn(allowed.origin, told, now=self._clock.monotonic())
        return told is not None

    async def _wait_or_raise(
        self, error: RemoteError | Unreachable | NoToken | BadReply, attempts: int, *, keyed: bool
    ) -> None:
        if isinstance(error, Unreachable) and error.next_try is not None:
            # The breaker's pause is longer than a caller should wait without a reason.
            raise error
        retry_after = error.retry_after if isinstance(error, RemoteError | BadReply) else error.next_try
        step = next_step(
            classify_failure(error),
            attempts=attempts,
            keyed=keyed,
            policy=self._retry,
            jitter=random_fraction(),
            retry_after=retry_after,
        )
        match step:
            case RetryAfter(seconds):
                await anyio.sleep(seconds)
            case GiveUp():
                raise error
            case _:
                assert_never(step)

    def _renewed(self, allowed: Allowed, envelope: Envelope, nonce: str | None) -> Envelope:
        """Return the same envelope with a new timestamp, and a new nonce unless it's the caller's."""
        extensions = {**(envelope.extensions or {}), "nonce": nonce or new_token()}
        return evolve(envelope, timestamp=utc(self.wall(allowed)), extensions=extensions)


def _taken(outcome: Answered, allowed: Allowed, answer: _Answer) -> Envelope:
    """Return the reply. Raises `RemoteError` if the agent refused, `BadReply` if it's unusable."""
    if isinstance(outcome, Envelope):
        return outcome
    raise _failure(outcome, allowed, answer)


def _failure(outcome: RemoteError | UnusableReply, allowed: Allowed, answer: _Answer) -> RemoteError | BadReply:
    if isinstance(outcome, RemoteError):
        return outcome
    shown = without_credentials(allowed.url)
    return BadReply(shown, outcome.reason, answer.status, retry_after=answer.retry_after)


def _call_of(sent: SentCall, key: str) -> dict[str, Any]:
    """Return the JSON-RPC call that contains an envelope."""
    params = {"envelope": encode_envelope(sent.envelope), "idempotency_key": key}
    return {"jsonrpc": "2.0", "method": METHOD, "id": sent.call_id, "params": params}
