"""An authenticator for tokens that only their provider can read (RFC 7662): the provider is asked about each.

`asap_core.auth.introspection` decides whether the provider is asked, what a response means and how long it is kept. A
question runs in the task of the first caller that shows the token.
"""

import logging
import ssl
from collections.abc import Collection, Iterable
from types import TracebackType
from typing import Any, Final, Self, assert_never

import anyio
import httpx
from attrs import define

from asap_adapters.auth.provider import Provider
from asap_adapters.net.transport import HttpTransport
from asap_adapters.system import LoopClock, new_secret, new_token
from asap_core.auth.claims import Accepted, Rejected
from asap_core.auth.client_credentials import ClientKey, ClientSecret, authenticated_form
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
from asap_core.clock import Moment
from asap_core.errors import AsapError, BadReply, Unreachable
from asap_core.net.outbound import Allowed, OutboundPolicy

_log: Final = logging.getLogger("asap.introspection")

# As long as other documents may take; callers' requests wait for it.
_SECONDS: Final = 10.0


class IntrospectionUnavailable(OSError):
    """The identity provider doesn't say whether a token is good: it failed, or is asked about too many."""


@define(eq=False)
class _Waiter:
    """A task that waits for a verdict: woken when it has something to do."""

    effect: IntrospectionEffect[Any] | None = None
    woken: anyio.Event | None = None


class IntrospectionAuthenticator:
    """An authenticator that asks a provider whom tokens stand for: `serve(…, authenticate=introspection)`.

    Use it as `async with IntrospectionAuthenticator(…)`, or close it with `aclose()`.

    policy: which responses are accepted, and for how long they are kept
    client: what authenticates us to the provider (§2.1)
    endpoint: the URL to ask; by default the one in the metadata of the policy's issuer
    allow_http, allow_networks, verify, trust_env, transport: as in `JwtAuthenticator`

    Raises ValueError if both `endpoint` and the policy's issuer are missing, or the issuer isn't a valid one.
    """

    proofs: ProofOffer | None = None
    """It verifies no proofs: the provider's answer about a bound token is refused."""

    def __init__(
        self,
        policy: IntrospectionPolicy,
        client: ClientSecret | ClientKey,
        *,
        endpoint: str | None = None,
        allow_http: Collection[str] = (),
        allow_networks: Iterable[str] = (),
        verify: ssl.SSLContext | bool = True,
        trust_env: bool = False,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if not isinstance(policy, IntrospectionPolicy):
            raise ValueError("policy: expected an IntrospectionPolicy")  # noqa: TRY004 - as for all that's given
        if not isinstance(client, ClientSecret | ClientKey):
            raise ValueError("client: expected ClientSecret(…) or a ClientKey")  # noqa: TRY004 - as for all that's given
        if endpoint is None and policy.issuer is None:
            raise ValueError("expected the URL of an introspection endpoint, or a policy that names the issuer")
        self._client = client
        self._endpoint = endpoint
        self._clock = LoopClock()
        self._introspector: Introspector[_Waiter] = Introspector(policy, secret=new_secret())
        self._http = HttpTransport(
            token=None,
            auth={},
            policy=OutboundPolicy(allow_http=allow_http, allow_networks=allow_networks),
            timeout=_SECONDS,
            trust_env=trust_env,
            compress=False,
            verify=verify,
            transport=transport,
            named=() if endpoint is None else (endpoint,),
        )
        self._provider = (
            None if endpoint is not None or policy.issuer is None else Provider(self._http, self._clock, policy.issuer)
        )

    async def __aenter__(self) -> Self:
        self._http.open()
        if self._provider is not None:
            self._provider.name()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections. A second time does nothing."""
        await self._http.aclose()

    @property
    def waiting(self) -> int:
        """How many tasks wait for the provider."""
        return self._introspector.waiting

    async def verify(self, credential: Credential) -> Authenticated | InsufficientScope | None:
        """Return whom the token stands for, or None if it isn't good. Raises `IntrospectionUnavailable` if unknown."""
        if credential.proof is not None:
            # Proofs aren't verified here.
            return None
        waiter = _Waiter()
        try:
            self._carry_out(self._introspector.lookup(credential.token, waiter, at=Moment.read(self._clock)))
            while True:
                effect, waiter.effect = waiter.effect, None
                match effect:
                    case Judged(_, verdict):
                        return _told(verdict)
                    case AskProvider(_, flight):
                        answer = await self._ask(credential.token)
                        self._carry_out(self._introspector.settle(flight, answer, at=Moment.read(self._clock)))
                    case None:
                        waiter.woken = anyio.Event()
                        await waiter.woken.wait()
                    case _:
                        assert_never(effect)
        except BaseException:
            self._carry_out(self._introspector.abandon(waiter))
            raise

    async def _ask(self, token: str) -> ActiveToken | InactiveToken | IntrospectionFailed:
        try:
            answer = await self._post(token, await self._find())
        except AsapError as error:
            # The endpoint isn't known, or not to be asked.
            answer = IntrospectionFailed(
                str(error), FailureCause.EITHER if _is_crowded(error) else FailureCause.PROVIDER
            )
        if isinstance(answer, IntrospectionFailed):
            _log.warning("the identity provider doesn't say whether a token is good: %s", answer.expected)
        return answer

    async def _post(self, token: str, endpoint: Allowed) -> ActiveToken | InactiveToken | IntrospectionFailed:
        form = authenticated_form(
            # RFC 7662 §2.1; the hint saves a provider a search.
            (("token", token), ("token_type_hint", "access_token")),
            self._client,
            audience=self._introspector.policy.issuer or endpoint.url,
            jti=new_token(),
            wall=self._clock.wall(),
        )
        try:
            status, _, body = await self._http.post_form(endpoint, form)
        except (Unreachable, BadReply) as error:
            # A token that wasn't sent isn't the reason; but many that are slow keep others from being sent.
            unsent = isinstance(error, Unreachable) and not error.sent and not _is_crowded(error)
            return IntrospectionFailed(str(error), FailureCause.PROVIDER if unsent else FailureCause.EITHER)
        return read_introspection(status, body)

    async def _find(self) -> Allowed:
        if self._provider is not None:
            return await self._provider.endpoint("introspection_endpoint")
        return self._http.judge(self._endpoint or "")

    def _carry_out(self, effects: tuple[IntrospectionEffect[_Waiter], ...]) -> None:
        """Hand every effect to the task it's for. No await, so no other task runs in between."""
        for effect in effects:
            effect.waiter.effect = effect
            if effect.waiter.woken is not None:
                effect.waiter.woken.set()


def _is_crowded(error: AsapError) -> bool:
    return isinstance(error, Unreachable) and error.crowded


def _told(verdict: IntrospectionVerdict) -> Authenticated | InsufficientScope | None:
    match verdict:
        case Accepted(principal):
            return principal
        case InsufficientScope():
            return verdict
        case Rejected(expected):
            _log.info("a token was refused: expected %s", expected)
            return None
        case NoVerdict.PROVIDER:
            raise IntrospectionUnavailable("the identity provider doesn't say whether a token is good")
        case NoVerdict.CROWDED:
            raise IntrospectionUnavailable("the identity provider is being asked about too many tokens")
        case _:
            assert_never(verdict)
