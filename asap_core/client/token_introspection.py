"""Authenticates a server's callers by introspection (RFC 7662), as programs: asks the provider whom a token stands for.

`asap_core.auth.introspection` decides whether the provider is asked, what a response means and how long it is kept. The
program of the first caller that shows a token asks; those of the others wait.
"""

from typing import Final, assert_never

from asap_core.auth.claims import Accepted, Rejected
from asap_core.auth.client_credentials import ClientKey, ClientSecret, PostForm, authenticated_form
from asap_core.auth.introspection import (
    AskProvider,
    IntrospectionEffect,
    IntrospectionVerdict,
    Introspector,
    Judged,
    NoVerdict,
)
from asap_core.auth.introspection_response import (
    ActiveToken,
    FailureCause,
    InactiveToken,
    IntrospectionFailed,
    IntrospectionPolicy,
    read_introspection,
)
from asap_core.auth.principal import Authenticated, Credential, InsufficientScope, ProofOffer
from asap_core.client.programs import Program
from asap_core.client.provider import Provider
from asap_core.client.requests import Requests
from asap_core.client.runtime import Place, Runtime
from asap_core.errors import AsapError, BadReply, Unreachable
from asap_core.net.outbound import Allowed
from asap_core.net.urls import is_web_url

_LOGGER: Final = "asap.introspection"


class IntrospectionUnavailable(OSError):
    """The identity provider doesn't say whether a token is good: it failed, or is asked about too many."""


class _TokenQuestion(Place[IntrospectionEffect["_TokenQuestion"]]):
    """The place of one token that is shown."""


class TokenIntrospection:
    """Asks one provider whom tokens stand for.

    policy: which responses are accepted, and for how long they are kept.
    client: what authenticates us to the provider (§2.1).
    secret: 32 random bytes for the digests that tokens are remembered by.
    endpoint: the URL to ask; by default the one in the metadata of the policy's issuer.

    Raises: ValueError for a policy or client of another type, if both `endpoint` and the policy's issuer are missing,
        or if the issuer or the endpoint isn't a valid one.
    """

    proofs: ProofOffer | None = None
    """It verifies no proofs: the provider's answer about a bound token is refused."""

    def __init__(
        self,
        runtime: Runtime,
        requests: Requests,
        policy: IntrospectionPolicy,
        client: ClientSecret | ClientKey,
        *,
        secret: bytes,
        endpoint: str | None = None,
    ) -> None:
        if not isinstance(policy, IntrospectionPolicy):
            raise ValueError("policy: expected an IntrospectionPolicy")  # noqa: TRY004 - as for all that's given
        if not isinstance(client, ClientSecret | ClientKey):
            raise ValueError("client: expected ClientSecret(…) or a ClientKey")  # noqa: TRY004 - as for all that's given
        self._runtime = runtime
        self._requests = requests
        self._client = client
        self._introspector: Introspector[_TokenQuestion] = Introspector(policy, secret=secret)
        if endpoint is not None:
            if not is_web_url(endpoint):
                raise ValueError("endpoint: expected a URL such as https://id.example/introspect, or None")
            self._provider: Provider | str = endpoint
        elif policy.issuer is not None:
            self._provider = Provider(runtime, requests, policy.issuer)
        else:
            raise ValueError("expected the URL of an introspection endpoint, or a policy that names the issuer")

    @property
    def waiting(self) -> int:
        """Return how many programs wait for the provider, those that ask included."""
        return self._introspector.waiting

    def verify(self, credential: Credential) -> Program[Authenticated | InsufficientScope | None]:
        """Return whom the token stands for, or None if it isn't good. Raises `IntrospectionUnavailable` if unknown."""
        if credential.proof is not None:
            # Proofs aren't verified here.
            return None
        known = self._introspector.known(credential.token, at=self._runtime.moment())
        return self._result((yield from self._judge(credential)) if known is None else known)

    def _judge(self, credential: Credential) -> Program[IntrospectionVerdict]:
        runtime, introspector, place = self._runtime, self._introspector, _TokenQuestion()
        with runtime.undoing(lambda: runtime.give(introspector.abandon(place))):
            runtime.give(introspector.lookup(credential.token, place, at=runtime.moment()))
            while True:
                effect = yield from runtime.next_for(place)
                match effect:
                    case Judged(_, verdict):
                        return verdict
                    case AskProvider(_, flight):
                        answer = yield from self._ask(credential.token)
                        runtime.give(introspector.settle(flight, answer, at=runtime.moment()))
                    case _:
                        assert_never(effect)

    def _result(self, verdict: IntrospectionVerdict) -> Authenticated | InsufficientScope | None:
        match verdict:
            case Accepted(principal):
                return principal
            case InsufficientScope():
                return verdict
            case Rejected(expected):
                self._runtime.inform(_LOGGER, f"a token was refused: expected {expected}")
                return None
            case NoVerdict.PROVIDER:
                raise IntrospectionUnavailable("the identity provider doesn't say whether a token is good")
            case NoVerdict.CROWDED:
                raise IntrospectionUnavailable("the identity provider is being asked about too many tokens")
            case _:
                assert_never(verdict)

    def _ask(self, token: str) -> Program[ActiveToken | InactiveToken | IntrospectionFailed]:
        try:
            answer = yield from self._post(token, (yield from self._endpoint()))
        except AsapError as error:
            # The endpoint isn't known, or not to be asked.
            answer = IntrospectionFailed(
                str(error), FailureCause.EITHER if _is_crowded(error) else FailureCause.PROVIDER
            )
        if isinstance(answer, IntrospectionFailed):
            text = f"the identity provider doesn't say whether a token is good: {answer.expected}"
            self._runtime.warn(_LOGGER, text)
        return answer

    def _post(self, token: str, endpoint: Allowed) -> Program[ActiveToken | InactiveToken | IntrospectionFailed]:
        try:
            answer = yield from self._requests.post_form(endpoint, self._form(token, endpoint))
        except (Unreachable, BadReply) as error:
            # An unsent token can't be the cause. But many slow requests may keep others from being sent.
            unsent = isinstance(error, Unreachable) and not error.sent and not _is_crowded(error)
            return IntrospectionFailed(str(error), FailureCause.PROVIDER if unsent else FailureCause.EITHER)
        return read_introspection(answer.status, answer.body)

    def _form(self, token: str, endpoint: Allowed) -> PostForm:
        return authenticated_form(
            # RFC 7662 §2.1; the hint saves a provider a search.
            (("token", token), ("token_type_hint", "access_token")),
            self._client,
            audience=self._introspector.policy.issuer or endpoint.url,
            jti=self._runtime.new_token(),
            wall=self._runtime.wall(),
        )

    def _endpoint(self) -> Program[Allowed]:
        match self._provider:
            case Provider() as provider:
                provider.name()
                return (yield from provider.endpoint("introspection_endpoint"))
            case url:
                self._requests.name_origin(url)
                return self._requests.judge(url)


def _is_crowded(error: AsapError) -> bool:
    return isinstance(error, Unreachable) and error.crowded
