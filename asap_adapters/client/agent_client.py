"""The client on trio and asyncio: finds agents and sends them messages, over httpx.

`asap_core.client` decides everything; a `ProgramDriver` carries it out in the task of the caller. The client has no
tasks that outlive a call.
"""

import functools
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Concatenate, ParamSpec, TypeVar

import anyio

from asap_adapters.client.bound_client import BoundClient
from asap_adapters.driver import DriverOwner, ProgramDriver
from asap_adapters.net.outbound_transport import HttpOptions
from asap_core.arguments import expect_kind
from asap_core.client.client import Client
from asap_core.client.programs import Program
from asap_core.clock import Clock
from asap_core.wire.manifest import Manifest

P = ParamSpec("P")
T = TypeVar("T")


def _method(
    program: Callable[Concatenate[Client, P], Program[T]],
) -> Callable[Concatenate["AgentClient", P], Coroutine[Any, Any, T]]:
    """Make a method that runs one of `Client`'s programs."""

    @functools.wraps(program)
    def method(self: "AgentClient", /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        return self._driver.run(program(self._client, *args, **kwargs))

    return method


class AgentClient(DriverOwner, BoundClient[HttpOptions]):
    """Finds agents and sends them envelopes.

    Use it as `async with AgentClient(…) as client`, or close it with `aclose()`.
    """

    _opened_by = "async with"
    _driver: ProgramDriver

    def _make_driver(self, http: HttpOptions | None, clock: Clock | None) -> ProgramDriver:
        options = HttpOptions() if http is None else http
        expect_kind("http", options, HttpOptions, "HttpOptions(timeout=10.0)")
        return ProgramDriver(options, owner="AgentClient(sender=…)", clock=clock)

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

    def cached(self, base_url: str) -> Manifest | None:  # without a wrapper, which would take as long as the call
        """Return the cached manifest of the agent at `base_url`, without waiting. Returns None if none is fresh."""
        return self._client.cached(base_url)

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
        from asap_adapters.mdns.local_network import browse  # noqa: PLC0415 - importing zeroconf takes 80 ms, and few callers need it

        return browse(interfaces=interfaces)

    token = _method(Client.token)

    # --- sending -----------------------------------------------------------------------------------------------------

    send = _method(Client.send)
    post = _method(Client.post)
    send_batch = _method(Client.send_batch)
