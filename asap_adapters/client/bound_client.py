"""What `AgentClient` and `BlockingClient` share: their arguments, and the core's client bound to a driver."""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from asap_adapters.coding import CODINGS
from asap_adapters.net.http_requests import ConnectionOptions
from asap_adapters.net.outbound_transport import HttpOptions
from asap_core.arguments import moved_to, replaced
from asap_core.auth.authorization import ClientCredentials
from asap_core.client.breaker import BreakerPolicy
from asap_core.client.client import Client
from asap_core.client.delivery import RetryPolicy
from asap_core.client.options import DiscoveryOptions, TrustPolicy
from asap_core.client.runtime import Runtime
from asap_core.clock import Clock
from asap_core.net.outbound import OutboundPolicy

P = ParamSpec("P")
T = TypeVar("T")


class ClientDriver(Protocol):
    """What runs a client's programs."""

    runtime: Runtime

    @property
    def is_open(self) -> bool:
        """Return whether programs can be run."""

    def call(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that changes what programs share, and doesn't wait."""


O = TypeVar("O", bound=ConnectionOptions)  # noqa: E741 - options


def _plain(function: Callable[Concatenate[Client, P], T]) -> Callable[Concatenate["BoundClient[Any]", P], T]:
    """Make a method of one of `Client`'s that doesn't wait."""

    @functools.wraps(function)
    def method(self: "BoundClient[Any]", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._driver.call(function, self._client, *args, **kwargs)

    return method


class BoundClient(Generic[O]):
    """The core's client, and the driver that runs its programs."""

    _opened_by: ClassVar[str]
    _driver: ClientDriver

    @replaced(
        **moved_to("outbound=OutboundPolicy(…)", OutboundPolicy),
        **moved_to("trust=TrustPolicy(…)", TrustPolicy),
        **moved_to("discovery=DiscoveryOptions(…)", DiscoveryOptions),
        **moved_to("http=HttpOptions(…) (BlockingHttpOptions for a BlockingClient)", HttpOptions),
        policy="discovery=DiscoveryOptions(cache=…)",
    )
    def __init__(
        self,
        sender: str,
        *,
        token: str | None = None,
        auth: Mapping[str, str | ClientCredentials] | None = None,
        outbound: OutboundPolicy | None = None,
        trust: TrustPolicy | None = None,
        discovery: DiscoveryOptions | None = None,
        http: O | None = None,
        retry: RetryPolicy | None = None,
        breaker: BreakerPolicy | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Make a client that isn't open yet.

        sender: the URN that envelopes are sent as.
        token: a bearer token for the origins of URLs given to `discover`, `get_manifest` or `send`. It's never sent to
            an origin learned from a registry or the local network, nor over plain http except to this machine.
        auth: tokens for further origins, or the `ClientCredentials` that get tokens for them, by origin.
        outbound: what it may connect to.
        trust: which agents it trusts.
        discovery: where it looks for agents, and how long documents are cached.
        http: how it makes requests, and over which transport.
        retry: how often a request is sent again, and after what delays.
        breaker: when an agent that keeps failing is no longer called for a while. By default all are called.
        clock: for simulations.

        Raises ValueError if an argument is invalid; ImportError if `trust` needs an extra that isn't installed.
        """
        if trust is not None and (trust.trusted_keys or trust.require_signed):
            import asap_adapters.auth.ed25519  # noqa: F401, PLC0415 - a missing extra is reported at once
        self._driver = self._make_driver(http, clock)
        self._client = Client(
            sender, token=token, auth=auth, outbound=outbound, trust=trust, discovery=discovery, http=http,
            retry=retry, breaker=breaker,
        )  # fmt: skip
        self._client.bind(self._driver.runtime, codings=CODINGS, links=_links, verify=_verify)

    def _make_driver(self, http: O | None, clock: Clock | None) -> ClientDriver:
        raise NotImplementedError

    @property
    def sender(self) -> str:
        """The URN that envelopes are sent as."""
        return self._client.sender

    cached = _plain(Client.cached)
    forget = _plain(Client.forget)
    reset = _plain(Client.reset)
    stands_in = _plain(Client.stands_in)

    def __del__(self) -> None:
        driver = getattr(self, "_driver", None)
        if driver is not None and driver.is_open:
            warnings.warn(
                f"{self!r} was never closed; use {self._opened_by}", ResourceWarning, source=self, stacklevel=2
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(sender={self._client.sender!r})"


def _links(link: str) -> tuple[tuple[str, ...], frozenset[str]]:
    from asap_adapters.mdns.interfaces import links  # noqa: PLC0415 - a dependency of zeroconf, for announcements only

    return links(link)


def _verify(public_key: bytes, signature: bytes, message: bytes) -> bool:
    from asap_adapters.auth.ed25519 import verify  # noqa: PLC0415 - an optional extra

    return verify(public_key, signature, message)
