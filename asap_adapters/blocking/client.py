"""The client without await, for scripts, notebooks and servers of threads: finds agents and sends them messages.

`asap_core.client` decides everything; a `BlockingDriver` carries it out in the thread of the caller.
"""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Self, TypeVar

from asap_adapters.blocking.driver import BlockingDriver
from asap_adapters.blocking.http_options import BlockingHttpOptions
from asap_adapters.client.client_binding import bind_client
from asap_core.arguments import expect_kind
from asap_core.auth.authorization import ClientCredentials
from asap_core.client.breaker import BreakerPolicy
from asap_core.client.client import Client
from asap_core.client.delivery import RetryPolicy
from asap_core.client.options import DiscoveryOptions, TrustPolicy
from asap_core.client.programs import Program
from asap_core.net.outbound import OutboundPolicy

if TYPE_CHECKING:
    from asap_adapters.blocking.browsing import BlockingBrowser

P = ParamSpec("P")
T = TypeVar("T")


def _method(program: Callable[Concatenate[Client, P], Program[T]]) -> Callable[Concatenate["BlockingClient", P], T]:
    """Make a method that runs one of `Client`'s programs."""

    @functools.wraps(program)
    def method(self: "BlockingClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._driver.run(program, self._client, *args, **kwargs)

    return method


def _plain(function: Callable[Concatenate[Client, P], T]) -> Callable[Concatenate["BlockingClient", P], T]:
    """Make a method of one of `Client`'s that doesn't wait."""

    @functools.wraps(function)
    def method(self: "BlockingClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._driver.call(function, self._client, *args, **kwargs)

    return method


class BlockingClient:
    """Finds agents and sends them envelopes, without an event loop. Any thread may use it, several at once.

    Use it as `with BlockingClient(…) as client`, or close it with `close()`. Its methods and its parameters are
    `AgentClient`'s.

    sender: the URN that envelopes are sent as.
    token: a bearer token for the origins of URLs given to `discover`, `get_manifest` or `send`. It's never sent to an
        origin learned from a registry or the local network, nor over plain http except to this machine.
    auth: tokens for further origins, or the `ClientCredentials` that get tokens for them, by origin.
    outbound: what it may connect to.
    trust: which agents it trusts.
    discovery: where it looks for agents, and how long documents are cached.
    http: how it makes requests, and over which transport.
    retry: how often a request is sent again, and after what delays.
    breaker: when an agent that keeps failing is no longer called for a while. By default all are called.

    Ctrl-C and other signals interrupt a call while it waits, and leave nothing half done.

    Raises ValueError if an argument is invalid.
    """

    def __init__(
        self,
        sender: str,
        *,
        token: str | None = None,
        auth: Mapping[str, str | ClientCredentials] | None = None,
        outbound: OutboundPolicy | None = None,
        trust: TrustPolicy | None = None,
        discovery: DiscoveryOptions | None = None,
        http: BlockingHttpOptions | None = None,
        retry: RetryPolicy | None = None,
        breaker: BreakerPolicy | None = None,
    ) -> None:
        http = BlockingHttpOptions() if http is None else http
        expect_kind("http", http, BlockingHttpOptions, "BlockingHttpOptions(timeout=10.0)")
        self._client = Client(
            sender,
            token=token,
            auth=auth,
            outbound=outbound,
            trust=trust,
            discovery=discovery,
            http=http,
            retry=retry,
            breaker=breaker,
        )
        self._driver = BlockingDriver(http.connect, owner="BlockingClient(sender=…)")
        bind_client(self._client, self._driver.runtime, trust)

    @property
    def sender(self) -> str:
        """The URN that envelopes are sent as."""
        return self._client.sender

    def __enter__(self) -> Self:
        """Open it."""
        self._driver.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close all connections. Any thread may call it; a second call does nothing.

        Calls of other threads raise RuntimeError, whatever they wait for, except a file and a transport of your own.
        """
        self._driver.close()

    def __del__(self) -> None:
        driver = getattr(self, "_driver", None)
        if driver is not None and driver.is_open:
            warnings.warn(f"{self!r} was never closed; use with", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        return f"BlockingClient(sender={self._client.sender!r})"

    # --- finding -----------------------------------------------------------------------------------------------------

    discover = _method(Client.discover)
    look_up = _method(Client.look_up)
    get_manifest = _method(Client.get_manifest)
    get_document = _method(Client.get_document)
    health_check = _method(Client.health_check)
    registry = _method(Client.registry)
    find = _method(Client.find)
    resolve = _method(Client.resolve)
    explain = _method(Client.explain)
    follow = _method(Client.follow)
    cached = _plain(Client.cached)
    forget = _plain(Client.forget)
    reset = _plain(Client.reset)
    stands_in = _plain(Client.stands_in)

    def keep_fresh(self, base_url: str) -> None:
        """Fetch the manifest of the agent at this URL before it expires, until the client is closed.

        Run it in a thread of your own, one for each URL. A failed fetch is logged (`asap.discovery`) and retried. The
        manifest is requested at most every 10 s. Raises NotAllowed, at once, if the URL may not be requested.
        """
        opened = self._driver.is_open
        try:
            self._driver.run(lambda: self._client.keep_fresh([base_url])[0])
        except RuntimeError:
            if self._driver.is_open or not opened:
                raise

    def browse(self, *, interfaces: Sequence[str] | None = None) -> "BlockingBrowser":
        """Watch the agents on the local network: `with client.browse() as events: for event in events: …`.

        Events are `Added`, `Updated`, `Removed` and `Ignored` of `asap_core.mdns.dnssd`. A thread watches until the
        block is left.

        interfaces: names or addresses of this machine's interfaces; None means all.
        """
        from asap_adapters.blocking.browsing import BlockingBrowser  # noqa: PLC0415 - importing zeroconf takes 80 ms, and few callers need it

        return BlockingBrowser(interfaces)

    token = _method(Client.token)

    # --- sending -----------------------------------------------------------------------------------------------------

    send = _method(Client.send)
    post = _method(Client.post)
    send_batch = _method(Client.send_batch)
