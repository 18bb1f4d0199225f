"""The client on trio and asyncio: finds agents and sends them messages, over httpx.

`asap_core.client` decides everything; a `ProgramDriver` carries it out in the task of the caller. The client has no
tasks that outlive a call.
"""

import functools
import warnings
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar

import anyio

from asap_adapters.client.client_binding import bind_client
from asap_adapters.driver import ProgramDriver
from asap_adapters.net.http_options import HttpOptions
from asap_core.arguments import ArgumentRule, expect_kind, has_methods, is_instance, is_list_of, is_or_none, replaced
from asap_core.auth.authorization import ClientCredentials
from asap_core.client.breaker import BreakerPolicy
from asap_core.client.client import Client
from asap_core.client.delivery import RetryPolicy
from asap_core.client.options import DiscoveryOptions, Location, TrustPolicy
from asap_core.client.programs import Program
from asap_core.clock import Clock
from asap_core.net.outbound import OutboundPolicy
from asap_core.wire.manifest import Manifest

_CLOCK: Final = ArgumentRule("a clock with the methods monotonic and wall, or None", has_methods("monotonic", "wall"))

P = ParamSpec("P")
T = TypeVar("T")

_INTERFACES: Final = ArgumentRule(
    "a list of names or addresses of interfaces, or None", is_or_none(is_list_of(is_instance(str)))
)


def _method(
    program: Callable[Concatenate[Client, P], Program[T]],
) -> Callable[Concatenate["AgentClient", P], Coroutine[Any, Any, T]]:
    """Make a method that runs one of `Client`'s programs."""

    @functools.wraps(program)
    def method(self: "AgentClient", /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        return self._driver.run(program(self._client, *args, **kwargs))

    return method


class AgentClient:
    """Finds agents and sends them envelopes.

    Use it as `async with AgentClient(…) as client`, or close it with `aclose()`.

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
    clock: for simulations.

    Raises ValueError if an argument is invalid.
    """

    @replaced(
        **dict.fromkeys(
            ("allow_http", "allow_networks", "allow_ports", "allow_endpoints", "redirects"),
            "outbound=OutboundPolicy(…), which has an option of this name",
        ),
        **dict.fromkeys(
            ("allow_changed_agents", "trusted_keys", "require_signed"),
            "trust=TrustPolicy(…), which has an option of this name",
        ),
        **dict.fromkeys(
            ("registries", "revocations", "registry_cache"),
            "discovery=DiscoveryOptions(…), which has an option of this name",
        ),
        **dict.fromkeys(
            ("timeout", "compress", "verify", "trust_env", "transport", "resolver"),
            "http=HttpOptions(…), which has an option of this name",
        ),
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
        http: HttpOptions | None = None,
        retry: RetryPolicy | None = None,
        breaker: BreakerPolicy | None = None,
        clock: Clock | None = None,
    ) -> None:
        if clock is not None:
            _CLOCK.check("clock", clock)
        http = HttpOptions() if http is None else http
        expect_kind("http", http, HttpOptions, "HttpOptions(timeout=10.0)")
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
        self._driver = ProgramDriver(http.connect, owner="AgentClient(sender=…)", browse=_browse, clock=clock)
        bind_client(self._client, self._driver.runtime, trust)

    @property
    def sender(self) -> str:
        """The URN that envelopes are sent as."""
        return self._client.sender

    async def __aenter__(self) -> Self:
        """Open it."""
        self._driver.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections. Any task may call it; a second call does nothing."""
        await self._driver.aclose()

    def __del__(self) -> None:
        driver = getattr(self, "_driver", None)
        if driver is not None and driver.is_open:
            warnings.warn(f"{self!r} was never closed; use async with", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        return f"AgentClient(sender={self._client.sender!r})"

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

    def cached(self, base_url: str) -> Manifest | None:
        """Return the cached manifest of the agent at `base_url`, without waiting. Returns None if none is fresh."""
        return self._client.cached(base_url)

    def forget(self, url: str) -> None:
        """Remove the cache entries of an agent (by its base URL), or of a manifest or registry (by its own URL).

        These are the document, a remembered failure, and which agent answered there.
        """
        self._client.forget(url)
        self._driver.settle()

    def reset(self) -> None:
        """Remove all cache entries of all agents and registries. Requests under way continue."""
        self._client.reset()
        self._driver.settle()

    def stands_in(self, location: Location) -> float | None:
        """Return the age in seconds of the copy last used in place of this registry; None if it wasn't needed."""
        return self._client.stands_in(location)

    async def keep_fresh(self, base_urls: Collection[str]) -> None:
        """Fetch the manifests of the agents at these URLs before they expire, until cancelled.

        Run it in a task group of your own: `group.start_soon(client.keep_fresh, ["https://agent.example"])`. A failed
        fetch is logged (`asap.discovery`) and retried. No manifest is requested more often than every 10 s.
        Raises NotAllowed, at once, if a URL may not be requested; ValueError for more URLs than the cache has room for.
        """
        programs = self._client.keep_fresh(base_urls)
        self._driver.opened()
        async with anyio.create_task_group() as group:
            for program in programs:
                group.start_soon(self._driver.run, program)

    def browse(self, *, interfaces: Sequence[str] | None = None) -> AbstractAsyncContextManager[Any]:
        """Watch the agents on the local network: `async with client.browse() as events: async for event in events: …`.

        Events are `Added`, `Updated`, `Removed` and `Ignored` of `asap_core.mdns.dnssd`.

        interfaces: names or addresses of this machine's interfaces; None means all.
        """
        _INTERFACES.check("interfaces", interfaces)
        return _browse(interfaces=interfaces)

    token = _method(Client.token)

    # --- sending -----------------------------------------------------------------------------------------------------

    send = _method(Client.send)
    post = _method(Client.post)
    send_batch = _method(Client.send_batch)


def _browse(*, interfaces: Sequence[str] | None = None) -> AbstractAsyncContextManager[Any]:
    from asap_adapters.mdns.local_network import browse  # noqa: PLC0415 - importing zeroconf takes 80 ms, and few callers need it

    return browse(interfaces=interfaces)
