"""Chooses the token and proof to send with a message.

A token is sent only to the origin that its credentials were configured for; over plain http only to this machine.
"""

from collections.abc import Iterable, Mapping

from attrs import define, field, frozen

from asap_adapters.auth.client_credentials import Authorization, TokenSource, raw
from asap_adapters.system import new_token
from asap_core.auth.authorization import ClientCredentials, CredentialsMismatch, scopes_for
from asap_core.auth.dpop_client import ProofClaims, ServerNonces, make_proof
from asap_core.clock import WallTime
from asap_core.errors import Unsuitable
from asap_core.net.outbound import Allowed
from asap_core.net.urls import is_loopback, without_credentials
from asap_core.wire.manifest import AuthScheme


@frozen
class Destination:
    """Where an envelope goes, and how the agent there authenticates callers, by its manifest."""

    allowed: Allowed
    agent_id: str
    auth: AuthScheme | None = None


class Authorizer:
    """Chooses credentials by origin."""

    def __init__(self, source: TokenSource, credentials: Mapping[str, ClientCredentials]) -> None:
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
        if credentials is None or not (allowed.encrypted or is_loopback(allowed.host)):
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

    async def headers(self, *, wall: WallTime) -> dict[str, str] | None:
        """Return the headers to send; None if there are no credentials for this agent.

        wall: the time by the agent's clock.
        Raises: as `TokenSource.get`.
        """
        if self._credentials is None:
            return None
        if self._shown is None:
            self._shown = await self._authorizer.source.get(self._credentials, self._scopes)
        token, key = self._shown.token.value, self._credentials.dpop
        shown = {"authorization": f"{self._credentials.token_type} {token}"}
        if key is not None:
            url = self._to.allowed.url
            self._nonce = self._authorizer.nonces.nonce_for(url)
            made = ProofClaims(
                method="POST", url=url, issued=wall, jti=new_token(), access_token=token, nonce=self._nonce
            )
            shown["dpop"] = make_proof(key, made)
        return shown

    def should_retry(self, status: int, headers: Iterable[tuple[str, str]], *, refused: bool) -> bool:
        """Return whether to send the message again, with other credentials.

        refused: whether the response refused these. Sending again isn't a replay: such an agent didn't admit the
        message.
        """
        if self._shown is None or self._credentials is None:
            return False
        if self._credentials.dpop is not None and self._authorizer.nonces.answered(
            self._to.allowed.url, status=status, headers=raw(headers), sent=self._nonce, again=self._asked_for_nonce
        ):
            self._asked_for_nonce = True
            return True
        if self._replaced or not refused or not self._authorizer.source.drop(self._shown):
            return False
        self._replaced, self._shown = True, None
        return True
