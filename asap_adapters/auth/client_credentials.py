"""Fetches access tokens by client credentials. Concurrent callers share one fetch; `TokenCache` decides.

A fetch runs in the task of one of its callers, without a lock.
"""

import logging
from collections.abc import Iterable
from math import ceil
from typing import Any, Final, assert_never

import anyio
from attrs import define, evolve, field, frozen

from asap_adapters.auth.provider import Provider
from asap_adapters.net.transport import Answer, HttpTransport
from asap_adapters.system import LoopClock, new_token, random_fraction
from asap_core.auth.authorization import ClientCredentials
from asap_core.auth.client_credentials import (
    GrantedToken,
    GrantFailed,
    GrantRefused,
    authenticated_form,
    read_token_response,
)
from asap_core.auth.dpop_client import ProofClaims, ServerNonces, make_proof
from asap_core.auth.token_cache import (
    Issued,
    NotIssued,
    Token,
    TokenCache,
    TokenEffect,
    TokenFailed,
    TokenGiven,
    TokenKey,
    TokenLead,
)
from asap_core.client.replies import retry_after_of
from asap_core.clock import Moment
from asap_core.errors import AsapError, BadReply, NotAllowed, NoToken, Unreachable
from asap_core.net.outbound import Allowed
from asap_core.net.urls import without_credentials

_log = logging.getLogger("asap.oauth")

_REFUSED: Final = "it doesn't give this client what it asks for"
_ADVICE: Final = {
    "invalid_client": "unknown client, or wrong secret or key",
    "invalid_scope": "it doesn't give this client these scopes",
    "invalid_target": "it doesn't give tokens for this audience",
    "unauthorized_client": "this client may not use the client credentials grant",
    "unsupported_grant_type": "it doesn't give tokens for client credentials",
}


@frozen
class Authorization:
    """A token, and its key in the cache."""

    key: TokenKey
    token: Token = field(repr=False)


@define(eq=False)
class _Waiter:
    """A task that waits for a token. It's woken with a token or an error, or to fetch one."""

    effect: TokenEffect[Any] | None = None
    woken: anyio.Event | None = None


class TokenSource:
    """Gets tokens by client credentials, over one client's transport. Its users share them."""

    def __init__(self, http: HttpTransport, clock: LoopClock) -> None:
        self._http = http
        self._clock = clock
        self._tokens: TokenCache[_Waiter] = TokenCache()
        self._providers: dict[str, Provider] = {}
        self._nonces = ServerNonces()

    @property
    def waiting(self) -> int:
        """How many tasks wait for a token."""
        return self._tokens.waiting

    def add(self, credentials: ClientCredentials) -> None:
        """Prepare for the use of these. Raises ValueError for an invalid issuer."""
        if credentials.issuer is not None and credentials.issuer not in self._providers:
            self._providers[credentials.issuer] = Provider(self._http, self._clock, credentials.issuer)

    def drop(self, authorization: Authorization) -> bool:
        """Drop this token, since the agent refused it. Returns whether another one may help."""
        return self._tokens.drop(authorization.key, authorization.token, now=self._clock.monotonic())

    async def get(self, credentials: ClientCredentials, scopes: tuple[str, ...]) -> Authorization:
        """Return a token for these scopes, cached or fetched. Raises `NoToken`, `NotAllowed`."""
        key, waiter = credentials.key(scopes), _Waiter()
        try:
            _carry_out(self._tokens.lookup(key, waiter, at=Moment.read(self._clock)))
            while True:
                effect, waiter.effect = waiter.effect, None
                match effect:
                    case TokenGiven(_, token):
                        return Authorization(key, token)
                    case TokenFailed(_, error, next_try):
                        raise _error_for(error, next_try)  # noqa: TRY301 - to abandon what was delivered is no harm
                    case TokenLead():
                        await self._lead(credentials, scopes, effect)
                    case None:
                        waiter.woken = anyio.Event()
                        await waiter.woken.wait()
                    case _:
                        assert_never(effect)
        except BaseException:
            _carry_out(self._tokens.abandon(waiter))
            raise

    async def _lead(self, credentials: ClientCredentials, scopes: tuple[str, ...], lead: TokenLead[_Waiter]) -> None:
        """Fetch for all waiters. `lead.patience` bounds it if the present token is still good."""
        outcome: Issued | NotIssued | None = None
        with anyio.move_on_after(lead.patience):
            outcome = await self._fetch(credentials, scopes)
        jitter = random_fraction()
        if outcome is None:
            late = NoToken(without_credentials(credentials.asked), "no new token in time")
            _carry_out(self._tokens.outwait(lead.flight, late, at=Moment.read(self._clock), jitter=jitter))
        else:
            effects = self._tokens.settle(lead.flight, outcome, at=Moment.read(self._clock), jitter=jitter)
            if isinstance(outcome, NotIssued) and any(isinstance(effect, TokenGiven) for effect in effects):
                # Logged here, since the callers got the old token, and no error.
                _log.warning("%s; the token there is serves until it ends", outcome.error)
            _carry_out(effects)

    async def _fetch(self, credentials: ClientCredentials, scopes: tuple[str, ...]) -> Issued | NotIssued:
        try:
            endpoint = await self._endpoint(credentials)
            status, headers, body = await self._post(endpoint, credentials, scopes)
        except NotAllowed as error:
            return NotIssued(evolve(error))
        except AsapError as error:
            # The reason without its traceback: the error is cached, and raised to many callers.
            reason = error.reason if isinstance(error, Unreachable | BadReply) else str(error)
            crowded = isinstance(error, Unreachable) and error.crowded
            remedy = error.remedy if isinstance(error, BadReply) else None
            return NotIssued(NoToken(without_credentials(credentials.asked), reason, remedy=remedy), crowded=crowded)
        granted = read_token_response(status, body, token_type=credentials.token_type)
        shown = without_credentials(endpoint.url)
        match granted:
            case GrantedToken(value, lifetime, given):
                lacking = set(scopes) - (set(scopes) if given is None else given)
                if lacking:
                    # RFC 6749 §3.3: the server may grant fewer scopes. The agent decides whether they suffice.
                    _log.warning("%s gives a token without %s", shown, " ".join(sorted(lacking)))
                return Issued(value, lifetime)
            case GrantRefused(code):
                return NotIssued(NoToken(shown, _words(code), refused=True))
            case GrantFailed(expected):
                wait = retry_after_of(headers, wall=self._clock.wall())
                return NotIssued(NoToken(shown, f"expected {expected}"), wait)
            case _:
                assert_never(granted)

    async def _post(self, endpoint: Allowed, credentials: ClientCredentials, scopes: tuple[str, ...]) -> Answer:
        """POST to the token endpoint; once more if it requires its nonce in the proof (RFC 9449 §8)."""
        again = False
        while True:
            form = authenticated_form(
                credentials.fields(scopes),
                credentials.client,
                audience=credentials.assertion_audience or endpoint.url,
                jti=new_token(),
                wall=self._clock.wall(),
            )
            nonce = self._nonces.nonce_for(endpoint.url)
            extra = {}
            if credentials.dpop is not None:
                proof = ProofClaims(
                    method="POST", url=endpoint.url, issued=self._clock.wall(), jti=new_token(), nonce=nonce
                )
                extra["dpop"] = make_proof(credentials.dpop, proof)
            status, headers, body = await self._http.post_form(endpoint, form, extra)
            granted = read_token_response(status, body, token_type=credentials.token_type)
            told = granted.code if isinstance(granted, GrantRefused) else None
            if credentials.dpop is None or not self._nonces.answered(
                endpoint.url, status=status, headers=raw(headers), error=told, sent=nonce, again=again
            ):
                return status, headers, body
            again = True

    async def _endpoint(self, credentials: ClientCredentials) -> Allowed:
        if credentials.token_endpoint is not None:
            return self._http.judge(credentials.token_endpoint)
        return await self._providers[credentials.asked].endpoint("token_endpoint")


def raw(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    """Return the headers as bytes, for the core's parsers."""
    return [(name.encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in headers]


def _words(code: str | None) -> str:
    return _REFUSED if code is None else f"{_ADVICE.get(code, _REFUSED)} ({code})"


def _error_for(error: Exception, next_try: float) -> Exception:
    """Return the exception to raise: a copy for each waiter, so that tracebacks don't accumulate on one object."""
    if isinstance(error, NoToken):
        # Rounded up, so that a caller who waits this long isn't too early.
        return evolve(error, next_try=ceil(next_try * 10) / 10 or None)
    return evolve(error) if isinstance(error, NotAllowed) else error  # a bug, raised before


def _carry_out(effects: tuple[TokenEffect[_Waiter], ...]) -> None:
    """Hand every effect to the task it's for. No await, so no other task runs in between."""
    for effect in effects:
        waiter = effect.waiter
        waiter.effect = effect
        if waiter.woken is not None:
            waiter.woken.set()
