"""Access tokens of a client, as programs: fetched by client credentials, and shown with a message to the right agent.

Concurrent callers share one fetch; `TokenCache` decides. The program of one of them fetches, the others wait. A token
is sent only to the origin that its credentials were configured for; over plain http only to this machine.
"""

from collections.abc import Callable, Iterable, Mapping
from math import ceil
from typing import Final, assert_never

from attrs import define, evolve, field, frozen

from asap_core.auth.authorization import ClientCredentials, CredentialsMismatch, scopes_for
from asap_core.auth.client_credentials import (
    GrantedToken,
    GrantFailed,
    GrantRefused,
    PostForm,
    TokenResponse,
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
from asap_core.client.programs import LATE, Program, within
from asap_core.client.provider import Provider
from asap_core.client.replies import retry_after_of
from asap_core.client.requests import HttpAnswer, Requests
from asap_core.client.runtime import Place, Runtime
from asap_core.clock import WallTime
from asap_core.errors import AsapError, BadReply, NotAllowed, NoToken, Unreachable, Unsuitable
from asap_core.lru import Lru
from asap_core.net.outbound import Allowed
from asap_core.net.provenance import MAX_REMEMBERED
from asap_core.net.urls import without_credentials
from asap_core.wire.manifest import AuthScheme

_LOGGER: Final = "asap.oauth"
_REFUSED: Final = "it doesn't give this client what it asks for"
_ADVICE: Final = {
    "invalid_client": "unknown client, or wrong secret or key",
    "invalid_scope": "it doesn't give this client these scopes",
    "invalid_target": "it doesn't give tokens for this audience",
    "unauthorized_client": "this client may not use the client credentials grant",
    "unsupported_grant_type": "it doesn't give tokens for client credentials",
}

# --- getting tokens --------------------------------------------------------------------------------------------------


@frozen
class Authorization:
    """A token, and its key in the cache."""

    key: TokenKey
    token: Token = field(repr=False)


class _TokenPlace(Place[TokenEffect["_TokenPlace"]]):
    """The place of one look-up of a token."""


class TokenSource:
    """Gets tokens by client credentials, for one client. Its users share them."""

    def __init__(self, runtime: Runtime, requests: Requests) -> None:
        self._runtime = runtime
        self._requests = requests
        self._tokens: TokenCache[_TokenPlace] = TokenCache()
        # By issuer. A user has a few. A program that passes other credentials to each call doesn't fill the memory.
        self._providers: Lru[str, Provider] = Lru(MAX_REMEMBERED)
        self._nonces = ServerNonces()

    @property
    def waiting(self) -> int:
        """Return how many programs wait for a token, those that fetch included."""
        return self._tokens.waiting

    def add(self, credentials: ClientCredentials) -> None:
        """Prepare for the use of these. Raises ValueError for an invalid issuer."""
        if credentials.issuer is not None:
            self._provider(credentials.issuer)

    def _provider(self, issuer: str) -> Provider:
        provider = self._providers.peek(issuer)
        if provider is None:
            provider = Provider(self._runtime, self._requests, issuer)
            self._providers.put(issuer, provider)
        return provider

    def drop(self, authorization: Authorization) -> bool:
        """Drop this token, since the agent refused it. Returns whether another one may help."""
        return self._tokens.drop(authorization.key, authorization.token, now=self._runtime.now())

    def get(self, credentials: ClientCredentials, scopes: tuple[str, ...]) -> Program[Authorization]:
        """Return a token for these scopes, cached or fetched. Raises `NoToken`, `NotAllowed`."""
        runtime, key, place = self._runtime, credentials.key(scopes), _TokenPlace()
        with runtime.undoing(lambda: runtime.give(self._tokens.abandon(place))):
            runtime.give(self._tokens.lookup(key, place, at=runtime.moment()))
            while True:
                effect = yield from runtime.next_for(place)
                match effect:
                    case TokenGiven(_, token):
                        return Authorization(key, token)
                    case TokenFailed(_, error, next_try):
                        raise _error_for(error, next_try)
                    case TokenLead():
                        yield from self._lead(credentials, scopes, effect)
                    case _:
                        assert_never(effect)

    def _lead(
        self, credentials: ClientCredentials, scopes: tuple[str, ...], lead: TokenLead[_TokenPlace]
    ) -> Program[None]:
        """Fetch for all waiters. `lead.patience` bounds it if the present token is still good."""
        runtime = self._runtime
        outcome = yield from within(lead.patience, self._fetch(credentials, scopes), runtime.clock)
        at, jitter = runtime.moment(), runtime.fraction()
        if outcome is LATE:
            late = NoToken(without_credentials(credentials.asked), "no new token in time")
            runtime.give(self._tokens.outwait(lead.flight, late, at=at, jitter=jitter))
            return
        effects = self._tokens.settle(lead.flight, outcome, at=at, jitter=jitter)
        if isinstance(outcome, NotIssued) and any(isinstance(effect, TokenGiven) for effect in effects):
            # Logged here, since the callers get the old token, and no error.
            runtime.warn(_LOGGER, f"{outcome.error}; the token there is serves until it ends")
        runtime.give(effects)

    def _fetch(self, credentials: ClientCredentials, scopes: tuple[str, ...]) -> Program[Issued | NotIssued]:
        try:
            endpoint = yield from self._endpoint(credentials)
            answer, granted = yield from self._request(endpoint, credentials, scopes)
        except NotAllowed as error:
            return NotIssued(evolve(error))
        except AsapError as error:
            # The reason without its traceback: the error is cached, and raised to many callers.
            reason = error.reason if isinstance(error, Unreachable | BadReply) else str(error)
            crowded = isinstance(error, Unreachable) and error.crowded
            remedy = error.remedy if isinstance(error, BadReply) else None
            return NotIssued(NoToken(without_credentials(credentials.asked), reason, remedy=remedy), crowded=crowded)
        shown = without_credentials(endpoint.url)
        match granted:
            case GrantedToken(value, lifetime, given):
                lacking = set(scopes) - (set(scopes) if given is None else given)
                if lacking:
                    # RFC 6749 §3.3: the server may grant fewer scopes. The agent decides whether they suffice.
                    self._runtime.warn(_LOGGER, f"{shown} gives a token without {' '.join(sorted(lacking))}")
                return Issued(value, lifetime)
            case GrantRefused(code):
                return NotIssued(NoToken(shown, _words(code), refused=True))
            case GrantFailed(expected):
                wait = retry_after_of(answer.headers, wall=self._runtime.wall())
                return NotIssued(NoToken(shown, f"expected {expected}"), wait)
            case _:
                assert_never(granted)

    def _endpoint(self, credentials: ClientCredentials) -> Program[Allowed]:
        if credentials.token_endpoint is not None:
            return self._requests.judge(credentials.token_endpoint)
        return (yield from self._provider(credentials.asked).endpoint("token_endpoint"))

    def _request(
        self, endpoint: Allowed, credentials: ClientCredentials, scopes: tuple[str, ...]
    ) -> Program[tuple[HttpAnswer, TokenResponse]]:
        """POST to the token endpoint; once more if it requires its nonce in the proof (RFC 9449 §8)."""
        again = False
        while True:
            nonce = self._nonces.nonce_for(endpoint.url)
            proof = self._proof(endpoint, credentials, nonce)
            answer = yield from self._requests.post_form(endpoint, self._form(endpoint, credentials, scopes), proof)
            granted = read_token_response(answer.status, answer.body, token_type=credentials.token_type)
            error = granted.code if isinstance(granted, GrantRefused) else None
            if not proof or not self._nonces.answered(
                endpoint.url, status=answer.status, headers=_raw(answer.headers), error=error, sent=nonce, again=again
            ):
                return answer, granted
            again = True

    def _form(self, endpoint: Allowed, credentials: ClientCredentials, scopes: tuple[str, ...]) -> PostForm:
        return authenticated_form(
            credentials.fields(scopes),
            credentials.client,
            audience=credentials.assertion_audience or endpoint.url,
            jti=self._runtime.new_token(),
            wall=self._runtime.wall(),
        )

    def _proof(self, endpoint: Allowed, credentials: ClientCredentials, nonce: str | None) -> dict[str, str]:
        if credentials.dpop is None:
            return {}
        runtime = self._runtime
        claims = ProofClaims(
            method="POST", url=endpoint.url, issued=runtime.wall(), jti=runtime.new_token(), nonce=nonce
        )
        return {"dpop": make_proof(credentials.dpop, claims)}


def _raw(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in headers]


def _words(code: str | None) -> str:
    return _REFUSED if code is None else f"{_ADVICE.get(code, _REFUSED)} ({code})"


def _error_for(error: NoToken | NotAllowed, next_try: float) -> NoToken | NotAllowed:
    """Return the exception to raise: a copy for each waiter, so that tracebacks don't accumulate on one object."""
    if isinstance(error, NotAllowed):
        return evolve(error)
    # Rounded up, so that a caller who waits this long isn't too early.
    return evolve(error, next_try=ceil(next_try * 10) / 10 or None)


# --- showing tokens --------------------------------------------------------------------------------------------------


@frozen
class Destination:
    """Where an envelope goes, and how the agent there authenticates callers, by its manifest."""

    allowed: Allowed
    agent_id: str
    auth: AuthScheme | None = None


class Authorizer:
    """Chooses credentials by origin.

    credentials: those of each agent, by its origin.
    """

    def __init__(self, runtime: Runtime, source: TokenSource, credentials: Mapping[str, ClientCredentials]) -> None:
        self.runtime = runtime
        self.source = source
        self.credentials = credentials
        # Nonces of agents. `TokenSource` has those of token endpoints, which may be on the same origin.
        self.nonces = ServerNonces()
        for each in credentials.values():
            source.add(each)

    def credentials_for(self, to: Destination) -> "MessageCredentials":
        """Return the credentials of one message. Raises `Unsuitable` if the agent doesn't accept them."""
        allowed = to.allowed
        credentials = self.credentials.get(allowed.origin)
        if credentials is None or not allowed.is_confidential:
            return MessageCredentials(self, to, None, ())
        scopes = scopes_for(credentials, to.auth)
        if isinstance(scopes, CredentialsMismatch):
            raise Unsuitable(without_credentials(allowed.url), to.agent_id, scopes.lacks)
        return MessageCredentials(self, to, credentials, scopes)


@define(eq=False)
class MessageCredentials:
    """The credentials of one message: a new proof for each attempt, a new token at most once."""

    _authorizer: Authorizer = field(repr=False)
    _to: Destination
    _credentials: ClientCredentials | None
    _scopes: tuple[str, ...]
    _shown: Authorization | None = None
    _nonce: str | None = field(default=None, repr=False)
    _replaced: bool = False
    _asked_for_nonce: bool = False

    def headers(self, wall: Callable[[], WallTime]) -> Program[dict[str, str] | None]:
        """Return the headers to send; None if there are no credentials for this agent.

        wall: returns the time by the agent's clock; called when the proof is made.
        Raises: as `TokenSource.get`.
        """
        if self._credentials is None:
            return None
        if self._shown is None:
            self._shown = yield from self._authorizer.source.get(self._credentials, self._scopes)
        token, key = self._shown.token.value, self._credentials.dpop
        shown = {"authorization": f"{self._credentials.token_type} {token}"}
        if key is not None:
            url, jti = self._to.allowed.url, self._authorizer.runtime.new_token()
            self._nonce = self._authorizer.nonces.nonce_for(url)
            claims = ProofClaims(method="POST", url=url, issued=wall(), jti=jti, access_token=token, nonce=self._nonce)
            shown["dpop"] = make_proof(key, claims)
        return shown

    def should_retry(self, status: int, headers: Iterable[tuple[str, str]], *, refused: bool) -> bool:
        """Return whether to send the message again, with other credentials.

        refused: whether the response refused these. Sending again isn't a replay: such an agent didn't admit the
            message.
        """
        if self._shown is None or self._credentials is None:
            return False
        if self._credentials.dpop is not None and self._authorizer.nonces.answered(
            self._to.allowed.url, status=status, headers=_raw(headers), sent=self._nonce, again=self._asked_for_nonce
        ):
            self._asked_for_nonce = True
            return True
        if self._replaced or not refused or not self._authorizer.source.drop(self._shown):
            return False
        self._replaced, self._shown = True, None
        return True
