"""The client without await, for scripts, notebooks and servers of threads: finds agents and sends them messages.

`asap_core.client` decides everything; a `BlockingDriver` carries it out in the thread of the caller.
"""

import functools
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Self, TypeVar

from asap_adapters.blocking.driver import BlockingDriver
from asap_adapters.blocking.http_options import BlockingHttpOptions
from asap_adapters.client.bound_client import BoundClient
from asap_core.arguments import expect_kind
from asap_core.client.client import Client
from asap_core.client.programs import Program
from asap_core.clock import Clock

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


class BlockingClient(BoundClient[BlockingHttpOptions]):
    """Finds agents and sends them envelopes, without an event loop. Any thread may use it, several at once.

    Use it as `with BlockingClient(…) as client`, or close it with `close()`. Its methods and its parameters are
    `AgentClient`'s.

    Ctrl-C and other signals interrupt a call while it waits, and leave nothing half done.
    """

    _opened_by = "with"
    _driver: BlockingDriver

    def _make_driver(self, http: BlockingHttpOptions | None, clock: Clock | None) -> BlockingDriver:
        options = BlockingHttpOptions() if http is None else http
        expect_kind("http", options, BlockingHttpOptions, "BlockingHttpOptions(timeout=10.0)")
        return BlockingDriver(options, owner="BlockingClient(sender=…)", clock=clock)

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
