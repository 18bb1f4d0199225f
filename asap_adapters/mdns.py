"""mDNS on trio and asyncio: agents announced and watched, by zeroconf's engine in its own thread.

zeroconf's asyncio class doesn't run on trio; its threaded one runs beside any loop. Everything that may block goes to a
worker thread; what the engine reports comes back into the caller's loop. It reaches the local network only.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Final, Self

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import ifaddr
import zeroconf
from attrs import define

from asap_core.dnssd import (
    SERVICE_TYPE,
    Event,
    Neighbourhood,
    advertised_addresses,
    instance_name,
    read_announcement,
    txt_record,
)
from asap_core.errors import AsapError

__all__ = ["Advertiser", "Browser", "MdnsUnavailable", "browse", "interfaces_for"]

# zeroconf's own default for resolving a service.
_RESOLVE_MS: Final = 3_000
# Goodbye is three packets 125 ms apart; what takes longer is stuck, and the records run out by themselves in 2 minutes.
_GOODBYE_SECONDS: Final = 3.0
# Reports not yet taken by a slow reader; past it the oldest are dropped, and the neighbourhood still knows the rest.
_MAX_PENDING: Final = 10_000
_LOOPBACK: Final = ("127.0.0.1",)


class MdnsUnavailable(AsapError):
    """This machine, or this container, can't send or receive multicast; the message says what was tried."""


def interfaces_for(host: str) -> tuple[str, ...] | None:
    """The interfaces to use for a server bound to `host`: loopback only for loopback, else all (None)."""
    return _LOOPBACK if host in ("127.0.0.1", "::1", "localhost") else None


def _start_engine(interfaces: Sequence[str] | None) -> zeroconf.Zeroconf:
    try:
        chosen: Any = zeroconf.InterfaceChoice.All if interfaces is None else list(interfaces)
        return zeroconf.Zeroconf(interfaces=chosen)
    except OSError as error:
        where = "every interface" if interfaces is None else ", ".join(interfaces)
        raise MdnsUnavailable(f"mDNS needs multicast, and {where} has none: {error.strerror or error}") from error


class Advertiser:
    """Announces one agent for as long as it's entered. The constructor does no I/O.

    >>> async with Advertiser(agent_id=…, name=…, version=…, skills=…, manifest_url=…, host=…, port=…):
    ...     await serve(…)

    `host` is what the server is bound to: loopback is announced on loopback only, a wildcard with the addresses of all
    other interfaces. Raises `MdnsUnavailable` on entering where multicast isn't possible, ValueError where the manifest
    URL is too long to be announced.
    """

    def __init__(
        self,
        *,
        agent_id: str,
        name: str,
        version: str,
        skills: Sequence[str],
        manifest_url: str,
        host: str,
        port: int,
        interfaces: Sequence[str] | None = None,
    ) -> None:
        self._txt = txt_record(agent_id=agent_id, manifest_url=manifest_url, version=version, skills=skills)
        self._label = instance_name(name)
        self._host = host
        self._port = port
        self._interfaces = interfaces_for(host) if interfaces is None else tuple(interfaces)
        self._engine: zeroconf.Zeroconf | None = None
        self._info: zeroconf.ServiceInfo | None = None

    @property
    def left_out(self) -> tuple[str, ...]:
        """TXT keys that were left out because their values don't fit."""
        return self._txt.left_out

    @property
    def instance(self) -> str | None:
        """The name it's announced under; another agent of that name on the link makes it `name-2`."""
        return None if self._info is None else self._info.name.removesuffix(f".{SERVICE_TYPE}")

    async def __aenter__(self) -> Self:
        """Announce it: returns when the name is known to be free, after some 0.5 s."""
        await anyio.to_thread.run_sync(self._register)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say goodbye, and stop."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(_GOODBYE_SECONDS):
            await anyio.to_thread.run_sync(self._close, abandon_on_cancel=True)

    def _register(self) -> None:
        engine = _start_engine(self._interfaces)
        try:
            addresses = self._addresses()
            info = zeroconf.ServiceInfo(
                SERVICE_TYPE,
                f"{self._label}.{SERVICE_TYPE}",
                parsed_addresses=list(addresses),
                port=self._port,
                properties=dict(self._txt.strings),
                server=f"{self._label}-{self._port}.local.",
            )
            engine.register_service(info, allow_name_change=True)
        except BaseException:
            engine.close()
            raise
        self._engine, self._info = engine, info

    def _addresses(self) -> tuple[str, ...]:
        addresses = advertised_addresses(self._host, _machine_addresses())
        if not addresses:
            raise MdnsUnavailable(f"no address of this machine can be announced for a server bound to {self._host}")
        return addresses

    def _close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()  # sends the goodbyes


def _machine_addresses() -> list[str]:
    return [ip.ip if isinstance(ip.ip, str) else ip.ip[0] for adapter in ifaddr.get_adapters() for ip in adapter.ips]


def browse(*, interfaces: Sequence[str] | None = None) -> AbstractAsyncContextManager["Browser"]:
    """Watch the agents on the local network.

    >>> async with browse() as events:
    ...     async for event in events: ...

    It ends promptly when the block is left, and leaves no thread and no socket behind.
    """
    return Browser(interfaces=interfaces)


@define(eq=False)
class _Mailbox:
    """Reports from the engine's threads to one task of one loop."""

    wake: Callable[[], None]
    pending: deque[Callable[[Neighbourhood], tuple[Event, ...]]]
    open: bool = True


class Browser:
    """The agents on the local network as an asynchronous iterator of events, within `async with`."""

    def __init__(self, *, interfaces: Sequence[str] | None = None) -> None:
        self._interfaces = interfaces
        self._neighbourhood = Neighbourhood()
        self._events: deque[Event] = deque()
        self._reported = anyio.Event()
        self._mailbox: _Mailbox | None = None
        self._engine: zeroconf.Zeroconf | None = None
        self._browser: zeroconf.ServiceBrowser | None = None

    async def __aenter__(self) -> Self:
        """Start watching."""
        self._mailbox = _Mailbox(_waker(self._wake), deque(maxlen=_MAX_PENDING))
        await anyio.to_thread.run_sync(self._start, self._mailbox)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop watching."""
        if self._mailbox is not None:
            self._mailbox.open = False
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._stop)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            await self._reported.wait()
            self._reported = anyio.Event()
            self._take()
        return self._events.popleft()

    def _wake(self) -> None:
        self._reported.set()

    def _take(self) -> None:
        mailbox = self._mailbox
        while mailbox is not None and mailbox.pending:
            self._events.extend(mailbox.pending.popleft()(self._neighbourhood))

    # --- in the engine's threads -------------------------------------------------------------------------------------

    def _start(self, mailbox: _Mailbox) -> None:
        engine = _start_engine(self._interfaces)
        # The engine's callbacks run on its loop and mustn't wait; resolving a service does, so it has a thread.
        resolver = _Resolver(engine, mailbox)
        self._engine = engine
        self._resolver = resolver
        self._browser = zeroconf.ServiceBrowser(engine, SERVICE_TYPE, handlers=[resolver.changed])

    def _stop(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None and self._browser is not None:
            self._browser.cancel()  # joins its thread, which close() doesn't
            engine.close()
            self._resolver.stop()


class _Resolver:
    """Resolves what the engine reports, one after another, in a thread of its own."""

    def __init__(self, engine: zeroconf.Zeroconf, mailbox: _Mailbox) -> None:
        self._engine = engine
        self._mailbox = mailbox
        self._names: deque[tuple[str, bool]] = deque(maxlen=_MAX_PENDING)
        self._work = threading.Event()
        self._thread = threading.Thread(target=self._run, name="asap-mdns-resolver", daemon=True)
        self._thread.start()

    def changed(
        self, zeroconf: zeroconf.Zeroconf, service_type: str, name: str, state_change: zeroconf.ServiceStateChange
    ) -> None:
        """A service came, changed or went: called by the engine with these keywords."""
        del zeroconf, service_type
        self._names.append((name, state_change.name != "Removed"))
        self._work.set()

    def stop(self) -> None:
        """Stop at the next chance; waits for it."""
        self._mailbox.open = False
        self._work.set()
        self._thread.join(timeout=_RESOLVE_MS / 1000 + 1)

    def _run(self) -> None:
        while self._mailbox.open:
            self._work.wait()
            self._work.clear()
            while self._names:
                self._report(*self._names.popleft())

    def _report(self, name: str, there: bool) -> None:  # noqa: FBT001 - one of the two reports there are
        instance = name.removesuffix(f".{SERVICE_TYPE}")
        if not self._mailbox.open:
            return
        if not there:
            self._post(lambda known: known.gone(instance))
            return
        info = zeroconf.ServiceInfo(SERVICE_TYPE, name)
        try:
            # Cached when the announcement came whole, which it does; else ask, in steps short enough to stop between.
            resolved = info.load_from_cache(self._engine) or info.request(self._engine, _RESOLVE_MS)
        except (OSError, zeroconf.Error, RuntimeError):
            resolved = False  # the engine is being closed, or the name is no name
        if resolved:
            found = read_announcement(
                instance=instance,
                server=info.server,
                port=info.port,
                addresses=info.parsed_scoped_addresses(),
                txt=info.properties,
            )
            self._post(lambda known: known.seen(found))

    def _post(self, report: Callable[[Neighbourhood], tuple[Event, ...]]) -> None:
        if self._mailbox.open:
            self._mailbox.pending.append(report)
            self._mailbox.wake()


def _waker(wake: Callable[[], None]) -> Callable[[], None]:
    """A function that calls `wake` in this loop, callable from any thread, also after the loop has ended."""
    token = anyio.lowlevel.current_token()

    def from_thread() -> None:
        try:
            anyio.from_thread.run_sync(wake, token=token)
        except (RuntimeError, anyio.RunFinishedError):
            return  # the loop is over: nobody reads any more

    return from_thread
