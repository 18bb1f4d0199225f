"""Runs one zeroconf for each link in a thread with its own event loop.

An `Engine` owns the thread. `asap_core.net.interfaces.LinkWatch` decides which links it joins and leaves. Its public
methods may be called from any thread. Importing this module takes 80 ms, so `asap_adapters.mdns.local_network` imports
it in a worker thread.
"""

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Final, TypeVar, assert_never

import zeroconf
from attrs import define, field
from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

from asap_adapters.mdns.interfaces import machine_links
from asap_core.clock import Instant
from asap_core.errors import MdnsUnavailable
from asap_core.net.interfaces import Join, Leave, Link, LinkChange, LinkWatch, Move, select_links, why_unused

log: Final = logging.getLogger("asap.mdns")

T = TypeVar("T")

# RFC 1035 §3.2.2, §3.2.4.
TYPE_PTR: Final = 12
CLASS_IN: Final = 1
# How long the engine's thread may take to answer. It usually takes milliseconds: after this long it's dead.
ENGINE_SECONDS: Final = 5.0
# Between checks of the machine's interfaces, which take less than a millisecond. A change takes effect once it has
# lasted a second.
_LOOK_SECONDS: Final = 1.0
# What zeroconf raises if it can't send a packet or open a socket.
ENGINE_ERRORS: Final = (OSError, RuntimeError, zeroconf.Error)


@define(eq=False)
class Station:
    """One link, and its zeroconf."""

    link: Link
    owner: AsyncZeroconf
    browser: AsyncServiceBrowser | None = None

    @property
    def engine(self) -> zeroconf.Zeroconf:
        """The synchronous zeroconf, which most of zeroconf's functions take."""
        return self.owner.zeroconf

    async def close(self, *, quietly: bool = False) -> None:
        """Stop.

        quietly: send no goodbyes, since the service continues, or the link is gone.
        """
        if quietly:
            self.engine.registry.async_remove(self.engine.registry.async_get_service_infos())
        with contextlib.suppress(*ENGINE_ERRORS):
            if self.browser is not None:
                await self.browser.async_cancel()
            await self.owner.async_close()


@define(eq=False)
class Engine:
    """The thread and its stations. `open` and `close` may be called from any thread, in any order, and repeatedly.

    wanted: names or addresses of the links to use; None means all.
    """

    wanted: Sequence[str] | None
    _watch: LinkWatch = field(factory=LinkWatch, init=False)
    _stations: dict[str, Station] = field(factory=dict, init=False)
    _loop: asyncio.AbstractEventLoop | None = field(default=None, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _watching: asyncio.Task[None] | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)
    # `close` may be called while `open` runs in another thread: the second waits, and sees the first one's result.
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def open(self) -> None:
        """Start the thread. Raises `MdnsUnavailable`. Does nothing if it was closed before."""
        with self._lock:
            if self._closed:
                return
            _check_wanted(self.wanted)
            self._loop = loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=loop.run_forever, name="asap-mdns", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Send goodbyes on every link, stop, and join the thread."""
        with self._lock:
            self._closed = True
            loop, thread, self._loop = self._loop, self._thread, None
            if loop is None or thread is None:
                return
            with contextlib.suppress(TimeoutError, *ENGINE_ERRORS):
                asyncio.run_coroutine_threadsafe(self._end(), loop).result(ENGINE_SECONDS)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def begin(self) -> "Future[tuple[Link, ...]]":
        """Join every link. The future's result is the joined links; it raises `MdnsUnavailable` if there are none."""
        return self.call(self._begin())

    def call(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine in the engine's loop. Raises RuntimeError if that isn't running."""
        if self._loop is None:
            coroutine.close()
            raise RuntimeError("the engine isn't running")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    # --- in the engine's loop ----------------------------------------------------------------------------------------

    def unfit(self, link: Link) -> str | None:
        """Return why this engine has nothing to do on this link, or None."""
        del link
        return None

    async def joined(self, station: Station) -> None:
        """Called when a link was joined. If it raises `MdnsUnavailable` or one of `ENGINE_ERRORS`, the link is left."""

    async def moved(self, station: Station, before: Link) -> None:
        """Called when a link's addresses changed, except those that are sent from."""

    async def rejoined(self, station: Station) -> None:
        """Called when a link was joined again, with other addresses to send from. May raise as `joined`."""
        await self.joined(station)

    def parted(self, link: Link) -> None:
        """Called when a link was left, or couldn't be joined."""

    def looked(self) -> None:
        """Called after each check of the interfaces: once a second."""

    async def _begin(self) -> tuple[Link, ...]:
        unfit, problems = await self._look()
        if not self._stations:
            raise MdnsUnavailable(_nothing_joined(self.wanted, problems, unfit))
        for problem in problems:
            log.warning("mDNS: %s", problem)
        self._watching = asyncio.ensure_future(self._keep_looking())
        return tuple(station.link for station in self._stations.values())

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                _, problems = await self._look()
                self.looked()
            except Exception:
                # A bug. It must not end all later checks.
                log.exception("mDNS: the interfaces can't be looked at")
                continue
            for problem in problems:
                log.warning("mDNS: %s", problem)

    async def _look(self) -> tuple[list[str], list[str]]:
        """Check the interfaces and take the due steps. Returns the links without a use, and the failures, as text."""
        links = select_links(machine_links(), wanted=self.wanted)
        unfit = {link.name: reason for link in links if (reason := self.unfit(link)) is not None}
        steps = self._watch.look(
            [link for link in links if link.name not in unfit], now=Instant(asyncio.get_running_loop().time())
        )
        problems = [problem for problem in await asyncio.gather(*map(self._take, steps)) if problem is not None]
        return [f"{name}: {reason}" for name, reason in unfit.items()], problems

    async def _take(self, step: LinkChange) -> str | None:
        """Take one step. Returns what failed, as text, or None."""
        match step:
            case Join(link):
                return await self._join(link, self.joined)
            case Leave(link):
                # No goodbye if the link itself is gone. It may also be left because the agent's URL has moved.
                gone = all(one.name != link.name or why_unused(one) is not None for one in machine_links())
                log.info("mDNS: %s is %s", link.name, "gone" if gone else "left")
                await self._part(link, quietly=gone)
                self.parted(link)
            case Move(before, after) if before.sources == after.sources and after.name in self._stations:
                station = self._stations[after.name]
                station.link = after
                await self.moved(station, before)
            case Move(before, after):
                # No goodbye: the service continues at another address.
                await self._part(before, quietly=True)
                return await self._join(after, self.rejoined)
            case _:
                assert_never(step)
        return None

    async def _join(self, link: Link, then: Callable[[Station], Coroutine[Any, Any, None]]) -> str | None:
        # If this is cancelled, the engine is ending, and closes every station in its table.
        try:
            station = self._stations[link.name] = _station(link)
            await _started(station)
            await then(station)
        except (MdnsUnavailable, *ENGINE_ERRORS) as error:
            await self._part(link, quietly=True)
            self._watch.failed(link.name)
            self.parted(link)
            return f"{link.name}: {_words(error)}"
        return None

    async def _part(self, link: Link, *, quietly: bool = False) -> None:
        station = self._stations.get(link.name)
        if station is not None:
            await station.close(quietly=quietly)
            del self._stations[link.name]

    async def _end(self) -> None:
        """Leave all links at the same time, and cancel all tasks."""
        # Tasks first: an announcement that is repeated after the goodbye would bring the service back.
        await _cancel_others()
        stations, self._stations = self._stations, {}
        await asyncio.gather(*(station.close() for station in stations.values()))
        await _cancel_others()


async def _cancel_others() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _station(link: Link) -> Station:
    """Create a zeroconf on this link only."""
    try:
        return Station(link, AsyncZeroconf(interfaces=_choice(link)))
    except OSError as error:
        raise MdnsUnavailable(f"mDNS needs multicast on UDP port 5353: {error.strerror or error}") from error


async def _started(station: Station) -> None:
    await station.engine.async_wait_for_start()
    _check_senders(station.engine)
    for reader in station.engine.engine.readers:
        _hold_to(station.link, reader.sock)


def _check_senders(engine: zeroconf.Zeroconf) -> None:
    if not engine.engine.senders:
        raise MdnsUnavailable("it takes no multicast")


def _choice(link: Link) -> list[str | int]:
    """Return the link's sources for zeroconf: by index if another interface has the same address."""
    same = [one for one in machine_links() if set(one.sources) & set(link.sources)]
    return [link.index if ":" in source and len(same) > 1 else source for source in link.sources]


def _hold_to(link: Link, reader: socket.socket) -> None:
    """Make a socket receive packets of this link only.

    Linux delivers a group's packets to every socket on the port, whichever interface joined the group (ip(7),
    IP_MULTICAST_ALL). Binding to an interface needs no privilege since Linux 5.7; before, packets of other links may be
    received too. Sockets that are bound to an address receive no multicast.
    """
    if hasattr(socket, "SO_BINDTODEVICE") and reader.getsockname()[0] in ("0.0.0.0", "::"):  # noqa: S104 - a comparison
        with contextlib.suppress(OSError):
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.name.encode())


def _check_wanted(wanted: Sequence[str] | None) -> None:
    # Otherwise a misspelt name would be waited for silently.
    machine = machine_links()
    unknown = [text for text in wanted or () if not any(link.is_meant_by(text) for link in machine)]
    if unknown or not machine:
        known = ", ".join(f"{link.name} ({', '.join(link.addresses)})" for link in machine) or "none that is up"
        raise MdnsUnavailable(f"expected interfaces that this machine has; it has {known}")


def _nothing_joined(wanted: Sequence[str] | None, problems: Sequence[str], unfit: Sequence[str]) -> str:
    machine = [link for link in machine_links() if wanted is None or any(map(link.is_meant_by, wanted))]
    reasons = [*problems, *(f"{link.name}: {reason}" for link in machine if (reason := why_unused(link)) is not None)]
    if not reasons and any(not link.loopback for link in machine):
        return f"mDNS isn't of use here: {'; '.join(unfit)}"
    which = "; ".join(reasons or unfit)
    return f"mDNS needs multicast, and no interface here has it ({which}); a container may need host networking"


def _words(error: BaseException) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error) if isinstance(error, MdnsUnavailable) else type(error).__name__
