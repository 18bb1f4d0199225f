"""What a message shows to its agent: a token, with a proof where it's bound to a key; and another where that's refused.

A token goes to the origins that its credentials were given for, and to none over plain http but this machine.
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
    """Where an envelope goes, and what the agent there says of how it's authenticated to."""

    allowed: Allowed
    agent_id: str
    auth: AuthScheme | None = None


class Authorizer:
    """Says what to show to whom: the tokens of those credentials that were given for an origin."""

    def __init__(self, source: TokenSource, credentials: Mapping[str, ClientCredentials]) -> None:
        self.source = source
        self.credentials = credentials
        # Of agents; a token endpoint on the same origin has its own.
        self.nonces = ServerNonces()
        for each in credentials.values():
            source.add(each)

    def credentials_for(self, to: Destination) -> "MessageCredentials":
        """What one message shows there. Raises `Unsuitable` where the credentials aren't what the agent takes."""
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
    """What one message shows, as often as it's sent: another proof each time, another token at most once."""

    _authorizer: Authorizer = field(repr=False)
    _to: Destination
    _credentials: ClientCredentials | None
    _scopes: tuple[str, ...]
    _shown: Authorization | None = None
    _nonce: str | None = field(default=None, repr=False)
    _replaced: bool = False
    _asked_for_nonce: bool = False

    async def headers(self, *, wall: WallTime) -> dict[str, str] | None:
        """What to send; None where no credentials are for this agent. `wall` is the time there.

        Raises as `TokenSource.get`.
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
        """Whether something else may do, where the answer `refused` what was shown.

        The same message once more is no replay: who refuses a credential has admitted nothing.
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
