"""mDNS for trio and asyncio: announces and watches agents on every link, by zeroconf in a thread.

zeroconf runs on asyncio only, so it has its own event loop in that thread. Blocking calls run in worker threads; the
engine's reports are passed to the caller's loop.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from asap_core.mdns.announcing import Announced, Txt, instance_name, txt_record
from asap_core.mdns.dnssd import AnnouncedAgents, Event
from asap_core.net.interfaces import INTERFACES
from asap_core.wire.manifest import is_absolute_url

if TYPE_CHECKING:
    from asap_adapters.mdns.announcing import AnnouncingEngine
    from asap_adapters.mdns.browsing import WatchingEngine
    from asap_adapters.mdns.multicast import Engine

T = TypeVar("T")

# Three goodbyes 125 ms apart and joining the thread take 0.3 s. After this long the engine is stuck; peers' records
# then expire by themselves in two minutes (RFC 6762 §10).
_CLOSING_SECONDS: Final = 3.0


class Advertiser:
    """Announces one agent while it's entered, on every link where the agent is reachable. The constructor does no I/O.

    >>> async with Advertiser(agent_id=…, name=…, version=…, skills=…, manifest_url=…, host=…, port=…):
    ...     await serve(…)

    host: the address that the server is bound to. Loopback is announced on loopback only; a wildcard on all other
    links, each with its own addresses.
    manifest_url: with a wildcard host, it's announced with each link's own address.
    interfaces: names or addresses of interfaces; an address means the interface that has it at the moment. None means
    all.

    Links that appear, disappear or change their addresses are followed, once a change has lasted a second, and more
    slowly if there are many changes.

    Raises: ValueError if the manifest URL isn't absolute, or it or the id is too long to be announced. On entering,
    MdnsUnavailable if it can't be announced on any link: there is no multicast, or browsers would refuse the manifest
    URL, since it's neither at an announced address nor at a `.local` name. Losing all links later isn't an error.
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
        self._agent_id = agent_id
        if not is_absolute_url(manifest_url, "http", "https"):
            raise ValueError("manifest_url: expected an absolute URL, such as http://192.0.2.1:8000/manifest.json")
        self._manifest_url = manifest_url
        self._txt = self._record(version, skills)
        self._version, self._skills = version, tuple(skills)
        self._label = instance_name(name)
        self._host = host
        self._port = port
        self._interfaces = interfaces
        self._engine: AnnouncingEngine | None = None
        self._entered = False

    def _record(self, version: str, skills: Sequence[str]) -> Txt:
        return txt_record(agent_id=self._agent_id, manifest_url=self._manifest_url, version=version, skills=skills)

    @property
    def left_out(self) -> tuple[str, ...]:
        """The TXT keys that were omitted because their values are too long."""
        return self._txt.left_out

    @property
    def announced(self) -> tuple[Announced, ...]:
        """The current announcements, one for each link. Empty unless it's entered."""
        return self._engine.announced if self._engine is not None and self._entered else ()

    @property
    def instance(self) -> str | None:
        """The instance name on the first link, or None if it isn't announced.

        Names differ between links: if another agent on a link has the name, it's `name-2` there.
        """
        announced = self.announced
        return announced[0].instance if announced else None

    async def __aenter__(self) -> Self:
        """Announce the agent. Returns after some 1.2 s, when a free name was found and announced."""
        _check_unused(self._engine)
        self._engine = engine = await _in_thread(self._make_engine)
        try:
            await _in_thread(engine.open)
            await _outcome(engine.begin())
        except BaseException:
            await _close(engine)
            raise
        self._entered = True
        return self

    async def update(self, *, version: str, skills: Sequence[str]) -> None:
        """Announce another version and other skills under the same names. Browsers see an update.

        Raises: RuntimeError if it isn't entered; MdnsUnavailable if the engine has died.
        """
        engine = self._engine
        if engine is None or not self._entered:
            raise RuntimeError("enter it first: async with Advertiser(…) as advertiser")
        record = self._record(version, skills)
        await _in_thread(engine.change, version, skills)
        self._txt = record

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send goodbyes and stop."""
        self._entered = False
        if self._engine is not None:
            await _close(self._engine)

    def _make_engine(self) -> "AnnouncingEngine":
        from asap_adapters.mdns.announcing import AnnouncingEngine, Service  # noqa: PLC0415 - 80 ms, which a loop can't spare

        service = Service(
            agent_id=self._agent_id,
            label=self._label,
            version=self._version,
            skills=self._skills,
            manifest_url=self._manifest_url,
            host=self._host,
            port=self._port,
        )
        return AnnouncingEngine(self._interfaces, service)


def browse(*, interfaces: Sequence[str] | None = None) -> AbstractAsyncContextManager["Browser"]:
    """Watch the agents on the local network.

    >>> async with browse() as events:
    ...     async for event in events: ...

    interfaces: names or addresses of this machine's interfaces; None means all, including loopback.
    Raises: on entering, MdnsUnavailable if multicast isn't possible.

    Links that appear and disappear are followed: agents on a link that disappears are removed. Leaving the block ends
    the thread and closes its sockets.
    """
    return Browser(interfaces=interfaces)


class Browser:
    """The agents on the local network, as an asynchronous iterator of events within `async with`.

    A slow reader gets the latest state, not every change in between. Several tasks may read; each event goes to one of
    them. The iteration ends when the block is left.
    """

    def __init__(self, *, interfaces: Sequence[str] | None = None) -> None:
        INTERFACES.check("interfaces", interfaces)
        self._interfaces = interfaces
        self._announced_agents = AnnouncedAgents()
        self._lock = threading.Lock()  # around the announced_agents, which the engine's thread fills
        self._events: deque[Event] = deque()
        self._news = anyio.Event()
        self._waking = False
        self._engine: WatchingEngine | None = None
        self._links: tuple[str, ...] = ()
        self._closed = False

    @property
    def links(self) -> tuple[str, ...]:
        """The names of the interfaces that were watched from the start."""
        return self._links

    async def __aenter__(self) -> Self:
        """Start watching."""
        _check_unused(self._engine)
        self._engine = engine = await _in_thread(self._make_engine, self._waker())
        try:
            await _in_thread(engine.open)
            self._links = tuple(link.name for link in await _outcome(engine.begin()))
        except BaseException:
            await _close(engine)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop watching."""
        self._closed = True
        self._wake()
        if self._engine is not None:
            await _close(self._engine)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if self._engine is None:
            raise RuntimeError("enter it first: async with browse() as events")
        await anyio.lowlevel.checkpoint()
        while not self._closed:
            if not self._events:
                self._take()
            if self._events:
                return self._events.popleft()
            await self._news.wait()
        raise StopAsyncIteration

    def _take(self) -> None:
        # Reset the flag before reading: news that arrives in between sets it again.
        if self._news.is_set():
            self._news = anyio.Event()
        with self._lock:
            self._events.extend(self._announced_agents.take())

    def _wake(self) -> None:
        self._waking = False  # first: later news must schedule another call
        self._news.set()

    def _waker(self) -> Callable[[], None]:
        call_soon = _caller()

        def wake() -> None:
            # At most one call is scheduled, however much happens on the link while the loop is busy.
            if not self._waking:
                self._waking = True
                call_soon(self._wake)

        return wake

    def _make_engine(self, on_news: Callable[[], None]) -> "WatchingEngine":
        from asap_adapters.mdns.browsing import WatchingEngine  # noqa: PLC0415 - 80 ms, which a loop can't spare

        return WatchingEngine(self._interfaces, self._announced_agents, self._lock, on_news)


# --- between the loop and the threads --------------------------------------------------------------------------------


def _check_unused(engine: object) -> None:
    if engine is not None:
        raise RuntimeError("it was entered before; make another one")


async def _in_thread(call: Callable[..., T], *args: object) -> T:
    # Its own limiter: stopping must not wait for the user's worker threads, which may all be busy.
    return await anyio.to_thread.run_sync(call, *args, limiter=anyio.CapacityLimiter(1))


async def _close(engine: "Engine") -> None:
    with anyio.CancelScope(shield=True), anyio.move_on_after(_CLOSING_SECONDS):
        await anyio.to_thread.run_sync(engine.close, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))


async def _outcome(future: Future[T]) -> T:
    """Wait for a result from the engine's thread. Can be cancelled, unlike a wait in a worker thread."""
    done = anyio.Event()
    call_soon = _caller()
    future.add_done_callback(lambda _: call_soon(done.set))
    try:
        await done.wait()
    except BaseException:
        future.cancel()
        raise
    return future.result()


def _caller() -> Callable[[Callable[[], None]], None]:
    """Return a function that schedules a call in this loop. Callable from any thread; does nothing after its end."""
    native: Any = anyio.lowlevel.current_token().native_token
    schedule = native.call_soon_threadsafe if isinstance(native, asyncio.AbstractEventLoop) else native.run_sync_soon

    def call_soon(function: Callable[[], None]) -> None:
        try:
            schedule(function)
        except RuntimeError:
            return  # the loop has ended (trio's RunFinishedError is a RuntimeError): nobody waits any more

    return call_soon
